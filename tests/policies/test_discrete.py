"""Several discrete actions at once: the sums of independent categorical distributions."""

import math

import pytest
import torch

from ctrlrl.policies.discrete import CategoricalPolicy, MultiCategoricalPolicy

NVEC = (3, 1, 4)


def policy(nvec=NVEC) -> MultiCategoricalPolicy:
    torch.manual_seed(0)
    made = MultiCategoricalPolicy(5, nvec, [8], activation="tanh")
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


def test_log_probability_entropy_and_divergence_are_sums_over_the_choices():
    pi, other, obs = policy(), policy(), torch.randn(6, 5)
    torch.nn.init.normal_(other.net[0].weight)
    action = torch.stack([torch.randint(n, (6,)) for n in NVEC], -1)
    log_prob, entropy, kl = other.evaluate(obs, action, {"logits": pi.logits(obs)})
    new, old = (
        [torch.distributions.Categorical(logits=x) for x in net.net(obs).split(NVEC, -1)] for net in (other, pi)
    )
    expected = sum(d.log_prob(action[:, i]) for i, d in enumerate(new))
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(other.log_prob(obs, action), expected)
    torch.testing.assert_close(entropy, sum(d.entropy() for d in new))
    divergence = torch.distributions.kl_divergence
    torch.testing.assert_close(kl, sum(divergence(o, n) for o, n in zip(old, new, strict=True)))


def test_padding_neither_acts_nor_spoils_the_gradient():
    pi, obs = policy(), torch.randn(2000, 5)
    out = pi.act(obs)
    assert (out.action >= 0).all()
    assert (out.action < torch.tensor(NVEC)).all()
    assert set(out.action[:, 2].tolist()) == {0, 1, 2, 3}
    log_prob, entropy, _ = pi.evaluate(obs, out.action, out.extras)
    torch.testing.assert_close(log_prob, out.log_prob)
    (log_prob.mean() + entropy.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in pi.parameters())


@pytest.mark.parametrize("nvec", [(4, 4, 4), NVEC])
def test_every_choice_has_its_own_stretch_of_the_output(nvec):
    pi, obs = policy(nvec), torch.randn(7, 5)
    for i, logits in enumerate(pi.net(obs).split(nvec, -1)):
        assert torch.equal(pi.logits(obs)[:, i, : nvec[i]], logits)


def test_uniform_logits_have_the_entropy_of_all_combinations():
    pi = policy()
    for p in pi.parameters():
        torch.nn.init.zeros_(p)
    _, entropy, _ = pi.evaluate(torch.randn(2, 5), torch.zeros(2, 3, dtype=torch.int64), {})
    assert entropy.tolist() == pytest.approx([math.log(12)] * 2)


def test_one_choice_is_the_categorical_policy():
    many, one = policy((4,)), CategoricalPolicy(5, 4, [8], activation="tanh")
    one.logits.load_state_dict(many.net.state_dict())
    obs = torch.randn(9, 5)
    assert torch.equal(many.act(obs, deterministic=True).action[:, 0], one.act(obs, deterministic=True).action)
    action = torch.randint(4, (9,))
    torch.testing.assert_close(many.log_prob(obs, action[:, None]), one.log_prob(obs, action))


def test_without_joint_every_choice_keeps_its_own_and_they_add_up():
    pi, obs = policy(), torch.randn(6, 5)
    out = pi.act(obs)
    whole = pi.evaluate(obs, out.action, {"logits": pi.logits(obs) + 0.1 * torch.randn(6, 3, 4)})
    pi.joint = False
    for each, total in zip(pi.evaluate(obs, out.action, {}), whole[:2], strict=False):
        assert each.shape == (6, 3)
        torch.testing.assert_close(each.sum(1), total)
    torch.testing.assert_close(pi.log_prob(obs, out.action).sum(1), out.log_prob)
    assert pi.act(obs).log_prob.shape == (6, 3)
    assert pi.evaluate(obs, out.action, {"logits": pi.logits(obs)})[2].shape == (6, 3)
