import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.a2pr import A2PRConfig, A2PRLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.nn.vae import ActionVAE
from ctrlrl.types import EnvSpec, Transition

SPEC = EnvSpec(4, 2, 0, 1, 1, 0, torch.device("cpu"))


def data(n: int = 400) -> Dataset:
    action = 2.0 * torch.rand(n, 2) - 1.0
    return Dataset.of(Transition(torch.randn(n, 4), action, torch.randn(n), torch.randn(n, 4), torch.rand(n) < 0.2, {}))


def made(source: Dataset, **settings: Any) -> A2PRLearner:
    torch.manual_seed(1)
    sizes: Any = {"hidden": [16, 16], "critic_hidden": [16, 16], "vae_hidden": [24, 24]}
    learner = A2PRLearner(A2PRConfig(batch_size=32, **sizes, **settings), SPEC)
    learner.prefit(source.all())
    return learner


class Losses:
    """Stands for a gradient step: keeps the gradient and takes no step."""

    def __init__(self, params: list[torch.nn.Parameter]):
        self.params = params

    def __call__(self, loss: Tensor) -> None:
        self.grads = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)


class FixedCritic(torch.nn.Module):
    """Q of the data's action and of any other."""

    def __init__(self, data_action: Tensor, q_data: float, q_other: float):
        super().__init__()
        self.action, self.values = data_action, (q_data, q_other)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        is_data = (action == self.action).all(-1)
        return torch.where(is_data, *(torch.tensor(v) for v in self.values)) + 0.0 * action.sum(-1)


def policy_step(q_data: float, q_proposal: float, **settings: Any) -> tuple[A2PRLearner, dict[str, Tensor], Transition]:
    """The policy's part of an update with V = 0 and the given Q values."""
    source = data()
    learner, batch = made(source, **settings), source.sample(32)
    learner.nets.critic = FixedCritic(batch.action, q_data, q_proposal)
    learner.opt["policy"] = Losses(list(learner.nets.policy.parameters()))  # type: ignore[assignment]
    q = torch.full((32,), q_data)
    return learner, learner._policy_step(batch, q, torch.zeros(32)), batch


def test_the_data_action_is_the_goal_where_it_is_the_better_one():
    learner, metrics, batch = policy_step(1.0, 0.5, pull_coef=0.4)
    distance = (learner.nets.policy(batch.obs) - batch.action).square().mean()
    torch.testing.assert_close(metrics["loss/pull"], 0.4 * distance.detach())
    assert metrics["policy/gate"] == 1.0


def test_where_neither_action_beats_the_value_only_q_is_climbed():
    _, metrics, _ = policy_step(-1.0, -0.5)
    assert metrics["loss/pull"] == 0.0
    torch.testing.assert_close(metrics["loss/policy"], torch.tensor(2.5))  # -lambda mean Q = -2.5 / 0.5 * -0.5


def test_two_good_actions_open_the_gate_once():
    learner, metrics, batch = policy_step(2.0, 1.0, pull_coef=1.0)
    distance = (learner.nets.policy(batch.obs) - batch.action).square().mean()
    torch.testing.assert_close(metrics["loss/pull"], distance.detach())


@pytest.mark.parametrize("detach", [False, True])
def test_the_pull_reaches_the_policy_through_the_encoder_unless_detached(detach):
    source = data()
    learner, batch = made(source, alpha=0.0, detach_target=detach), source.sample(32)
    learner.nets.critic = FixedCritic(batch.action, -1.0, 1.0)
    learner.opt["policy"] = Losses(list(learner.nets.policy.parameters()))  # type: ignore[assignment]
    torch.manual_seed(3)
    learner._policy_step(batch, torch.full((32,), -1.0), torch.zeros(32))
    got = torch.cat([g.flatten() for g in learner.opt["policy"].grads])  # type: ignore[attr-defined]

    torch.manual_seed(3)
    vae, action = learner.nets.vae, learner.nets.policy(batch.obs)
    mean, log_std = vae.encode(batch.obs, action)
    proposal = vae.decode(batch.obs, mean + log_std.exp() * torch.randn_like(mean))
    away = 2.0 * (action - proposal).detach() / (32 * 2)
    outputs, grads = ([action], [away]) if detach else ([action, proposal], [away, -away])
    expected = torch.autograd.grad(outputs, learner.opt["policy"].params, grads)
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in expected]), rtol=1e-4, atol=1e-7)


def test_each_loss_moves_its_own_network_alone():
    source, names = data(), ("critic", "value", "vae", "policy")
    for only in names:
        learner = made(source, policy_delay=1)
        for name in set(names) - {only}:
            learner.opt[name].apply = lambda grad: None  # type: ignore[method-assign]
        before = {k: v.clone() for k, v in learner.nets.state_dict().items()}
        learner.update(source.sample(32))
        after = learner.nets.state_dict()
        moved = {k.split(".")[0] for k in after if not torch.equal(before[k], after[k])}
        assert moved - {"target_critic", "target_policy"} == {only}


def test_targets_and_policy_move_on_every_second_update_only():
    source = data()
    learner, moved = made(source), []
    for _ in range(4):
        before = {k: v.clone() for k, v in learner.nets.state_dict().items()}
        learner.update(source.sample(32))
        after = learner.nets.state_dict()
        moved.append({k.split(".")[0] for k in after if not torch.equal(before[k], after[k])})
    assert moved[0] == moved[2] == {"critic", "value", "vae"}
    assert moved[1] == moved[3] == {"critic", "value", "vae", "policy", "target_policy", "target_critic"}


def test_the_policy_gradient_does_not_depend_on_a_common_scale_of_q_and_v():
    source, found = data(), []
    for scale in (1.0, 1000.0):
        learner = made(source, policy_delay=1)
        for name in ("critic", "value", "vae"):
            learner.opt[name].apply = lambda grad: None  # type: ignore[method-assign]
        learner.opt["policy"] = Losses(list(learner.nets.policy.parameters()))  # type: ignore[assignment]
        with torch.no_grad():
            for net in (*learner.nets.critic.heads, learner.nets.value.net):
                net[-1].weight.mul_(scale)
                net[-1].bias.mul_(scale)
        torch.manual_seed(2)
        learner.update(source.take(torch.arange(64)))
        found.append(torch.cat([g.flatten() for g in learner.opt["policy"].grads]))  # type: ignore[attr-defined]
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def with_moments(learner: A2PRLearner, mean: float) -> None:
    """The encoder says N(mean, 1) everywhere."""
    moments = learner.nets.vae.moments
    with torch.no_grad():
        moments.weight.zero_()
        moments.bias.zero_()
        moments.bias[: moments.out_features // 2] = mean


def test_the_vae_has_a_learning_rate_of_its_own():
    rates = {name: step.learning_rate.item() for name, step in made(data()).opt.items()}
    assert rates == pytest.approx({"policy": 3e-4, "critic": 3e-4, "value": 3e-4, "vae": 1e-3})


def test_the_kl_is_a_mean_over_latent_axes():
    source = data()
    learner, batch = made(source), source.sample(32)
    for mean, expected in ((0.0, 0.0), (1.0, 0.5)):
        with_moments(learner, mean)
        _, kl = learner.vae_losses(batch, keep=torch.ones(32, dtype=torch.bool))
        assert kl.item() == pytest.approx(expected, abs=1e-6)


def test_without_a_good_data_action_only_the_kl_is_trained():
    source = data()
    learner, batch = made(source), source.sample(32)
    reconstruction, kl = learner.vae_losses(batch, keep=torch.zeros(32, dtype=torch.bool))
    assert reconstruction.item() == 0.0
    decoder = torch.autograd.grad(reconstruction + kl, list(learner.nets.vae.decoder.parameters()), retain_graph=True)
    assert all((g == 0).all() for g in decoder)
    encoder = torch.autograd.grad(reconstruction + kl, list(learner.nets.vae.encoder.parameters()))
    assert any((g != 0).any() for g in encoder)


def test_rows_that_do_not_count_need_not_be_decoded():
    """Two seeds stacked decode every row, one run only those it keeps: same losses, same gradients."""
    source = data()
    learner, batch = made(source), source.sample(64)
    keep, params, found = torch.rand(64) < 0.4, list(learner.nets.vae.parameters()), []
    for shape in ((64,), (1, 64)):
        shaped = batch._replace(obs=batch.obs.view(*shape, 4), action=batch.action.view(*shape, 2))
        torch.manual_seed(5)
        losses = learner.vae_losses(shaped, keep=keep.view(shape))
        found.append((torch.stack(losses).flatten(), torch.autograd.grad(sum(losses).sum(), params)))  # type: ignore
    torch.testing.assert_close(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_latent_deviation_is_bounded_and_actions_lie_in_the_box():
    vae = ActionVAE(4, 2, 4, [24, 24])
    for bias, log_std in ((-100.0, -4.0), (100.0, 15.0)):
        torch.nn.init.constant_(vae.moments.bias, bias)
        assert (vae.encode(torch.randn(5, 4), torch.rand(5, 2))[1] == log_std).all()
    assert (vae.decode(torch.randn(5, 4), 1e3 * torch.randn(5, 4)).abs() <= 1.0).all()


def test_networks_have_the_authors_sizes():
    """HalfCheetah: 17 observations, 6 actions; counted from the layers of the paper's code."""
    nets = A2PRLearner(A2PRConfig(), SPEC._replace(obs_dim=17, action_dim=6)).nets
    count = {
        name: sum(p.numel() for p in getattr(nets, name).parameters()) for name in ("policy", "critic", "value", "vae")
    }

    def dense(*sizes: int) -> int:
        return sum((a + 1) * b for a, b in pairwise(sizes))

    assert count["policy"] == dense(17, 256, 256, 256, 6)
    assert count["critic"] == 2 * dense(23, 256, 256, 256, 256, 1)
    assert count["value"] == dense(17, 256, 256, 256, 256, 1)
    assert count["vae"] == dense(23, 750, 750) + 2 * dense(750, 12) + dense(29, 750, 750, 6)


OTHER = {"gamma": 0.9, "tau": 0.1, "alpha": 4.0, "target_noise": 0.6, "target_noise_clip": 0.3}  # than the defaults
OTHER |= {"pull_coef": 0.4, "vae_weight": 1.5}


def authors_update(nets: Any, adam: dict[str, Any], batch: Transition, at: int) -> dict[str, Tensor]:
    """The authors' sequence in plain torch with the settings OTHER."""
    s, a, s2 = batch.obs, batch.action, batch.next_obs
    out: dict[str, Tensor] = {}

    def minimize(name: str, loss: Tensor) -> None:
        adam[name].zero_grad()
        loss.backward()
        adam[name].step()

    def autoencode(action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_std = nets.vae.encode(s, action)
        std = log_std.exp()
        return nets.vae.decode(s, mean + std * torch.randn_like(std)), mean, std

    def bootstrap(critic: Any) -> Tensor:
        return batch.reward + 0.9 * (~batch.terminated) * critic(s2, a2).min(0).values

    with torch.no_grad():
        a2 = (nets.target_policy(s2) + (0.6 * torch.randn_like(a)).clamp(-0.3, 0.3)).clamp(-1, 1)
        y = bootstrap(nets.target_critic)
    q1, q2 = nets.critic(s, a)
    out["loss/critic"] = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()
    minimize("critic", out["loss/critic"])
    with torch.no_grad():
        lowest = torch.min(bootstrap(nets.critic), y)
    value = nets.value(s)
    out["loss/value"] = ((value - lowest) ** 2).mean()
    minimize("value", out["loss/value"])
    value = value.detach()
    recon, mean, std = autoencode(a)
    good = (nets.critic(s, a)[0].detach() > value).float().unsqueeze(-1)
    out["loss/reconstruction"] = (1.5 * good * (recon - a) ** 2).mean()
    out["loss/kl"] = -0.5 * (1 + torch.log(std**2) - mean**2 - std**2).mean()
    out["loss/vae"] = out["loss/reconstruction"] + 0.5 * out["loss/kl"]
    minimize("vae", out["loss/vae"])
    if at % 2 == 0:
        pi = nets.policy(s)
        q = nets.critic(s, pi)[0]
        proposal, _, _ = autoencode(pi)
        gain, gain_data = nets.critic(s, proposal)[0] - value, nets.critic(s, a)[0] - value
        goal = proposal * (gain >= gain_data).unsqueeze(-1) + a * (gain_data > gain).unsqueeze(-1)
        weight = 0.4 * ((gain >= 0) + (gain_data > 0))
        out["loss/pull"] = (weight.unsqueeze(-1) * (pi - goal) ** 2).mean()
        out["loss/policy"] = -(4.0 / q.abs().mean().detach()) * q.mean() + out["loss/pull"]
        minimize("policy", out["loss/policy"])
        for name in ("critic", "policy"):
            pairs = zip(getattr(nets, name).parameters(), getattr(nets, f"target_{name}").parameters(), strict=True)
            for p, target in pairs:
                target.data.copy_(0.1 * p.data + 0.9 * target.data)
    return out


def test_updates_are_those_of_the_authors():
    source, names = data(), ("critic", "policy", "value", "vae")
    rates = {"learning_rate": 3e-3, "vae_learning_rate": 3e-3}
    learner = made(source, normalize_obs=False, **rates, **OTHER)
    torch.nn.init.constant_(learner.nets.vae.moments.bias, 0.7)  # a KL that counts
    nets = copy.deepcopy(learner.nets)
    adam = {name: torch.optim.Adam(getattr(nets, name).parameters(), lr=3e-3) for name in names}
    for at in range(1, 9):
        batch = source.sample(32)
        torch.manual_seed(at)
        ours = learner.update(batch)
        torch.manual_seed(at)
        theirs = authors_update(nets, adam, batch, at)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [{"vae_learning_rate": 0.0}, {"gamma": 1.1}, {"pull_coef": -1.0}, {"policy_delay": 0}])
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"A2PRConfig.*{next(iter(bad))}"):
        A2PRConfig(**bad)
