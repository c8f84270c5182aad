import copy

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.algos.fql import FQLConfig, FQLLearner
from ctrlrl.nn.mlp import Float32Linear
from ctrlrl.types import EnvSpec, Transition

N, OBS, ACT = 6, 3, 2
SPEC = EnvSpec(OBS, ACT, 0, 1, 1, 100, torch.device("cpu"))
SMALL = {"hidden": [8, 8], "learning_rate": 1e-2, "tau": 0.1}


def learner(**changes) -> FQLLearner:
    torch.manual_seed(0)
    return FQLLearner(FQLConfig(**{**SMALL, **changes}), SPEC)


def batch(seed: int = 1) -> Transition:
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, N, OBS, generator=g)
    action = 2.0 * torch.rand(N, ACT, generator=g) - 1.0
    return Transition(obs, action, torch.randn(N, generator=g), next_obs, torch.arange(N) % 3 == 0, {})


def values(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class WrittenOut:
    """The authors' update: one Adam over the sum of all losses, the critic of the policy's term held fixed."""

    def __init__(self, nets, cfg: FQLConfig):
        self.cfg = cfg
        self.nets = copy.deepcopy(nets).requires_grad_(True)
        params = [p for name in ("policy", "flow", "critic") for p in getattr(self.nets, name).parameters()]
        self.adam = torch.optim.Adam(params, cfg.learning_rate)

    def update(self, data: Transition) -> None:
        cfg, nets = self.cfg, self.nets
        frozen = copy.deepcopy(nets.critic).requires_grad_(False)
        z = torch.randn(N, ACT)
        with torch.no_grad():
            q = nets.target(data.next_obs, nets.policy(data.next_obs, z).clip(-1, 1))
            q = q.mean(0) if cfg.target_q == "mean" else q.min(0).values
            y = data.reward + cfg.gamma * (~data.terminated).float() * q
        critic_loss = (nets.critic(data.obs, data.action) - y).pow(2).mean()

        x0, t = torch.randn(N, ACT), torch.rand(N, 1)
        predicted = nets.flow(data.obs, (1 - t) * x0 + t * data.action, t)
        flow_loss = (predicted - (data.action - x0)).pow(2).mean()

        z = torch.randn(N, ACT)
        with torch.no_grad():
            end = z
            for i in range(cfg.flow_steps):
                end = end + nets.flow(data.obs, end, torch.full((N, 1), i / cfg.flow_steps)) / cfg.flow_steps
        action = nets.policy(data.obs, z)
        q = frozen(data.obs, action.clip(-1, 1)).mean(0)
        q_loss = -q.mean()
        if cfg.normalize_q:
            q_loss = q_loss / q.abs().mean().detach()
        distillation = (action - end.clip(-1, 1)).pow(2).mean()

        self.adam.zero_grad()
        (critic_loss + flow_loss + cfg.alpha * distillation + q_loss).backward()
        for t_, p in zip(nets.target.parameters(), nets.critic.parameters(), strict=True):
            t_.data += cfg.tau * (p.data - t_.data)  # target_update reads the network before the step
        self.adam.step()


@pytest.mark.parametrize(
    "changes", [{}, {"target_q": "min"}, {"normalize_q": True, "alpha": 0.3}, {"flow_steps": 3}], ids=str
)
def test_updates_equal_the_written_out_ones_with_one_adam(changes):
    ours = learner(**changes)
    theirs = WrittenOut(ours.nets, ours.cfg)
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        ours.update(batch(seed))
        torch.manual_seed(seed)
        theirs.update(batch(seed))
    for name in ("policy", "flow", "critic", "target"):
        found, expected = values(getattr(ours.nets, name)), values(getattr(theirs.nets, name))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_policy_that_equals_the_flow_has_nothing_to_distill():
    ours = learner(hidden=[], flow_steps=1)
    with torch.no_grad():  # the flow's one step takes z to z - 0.9 z, inside the box
        for net, gain in ((ours.nets.flow.net[0], -0.9), (ours.nets.policy.net[0], 0.1)):
            net.weight.zero_()
            net.bias.zero_()
            net.weight[:, OBS : OBS + ACT] = gain * torch.eye(ACT)
    assert ours.update(batch())["loss/distillation"] < 1e-12
    assert learner(hidden=[], flow_steps=1).update(batch())["loss/distillation"] > 1e-3


def test_the_flow_clones_the_data_whatever_the_values_say():
    found = []
    for alpha, normalize_q in ((0.0, False), (1000.0, True)):
        ours = learner(alpha=alpha, normalize_q=normalize_q)
        torch.manual_seed(3)
        ours.update(batch())
        found.append(values(ours.nets.flow))
    assert torch.equal(*found)


def test_a_normalized_value_weighs_one_whatever_its_scale():
    ours = learner(normalize_q=True, alpha=0.3)
    with torch.no_grad():
        for head in ours.nets.critic.heads:
            head[-1].bias.fill_(1000.0)  # all values positive: their mean over their mean size is 1
    metrics = ours.update(batch())
    expected = 0.3 * metrics["loss/distillation"] - 1.0
    torch.testing.assert_close(metrics["loss/policy"], expected, rtol=0, atol=1e-5)


def test_critics_have_layer_norm_after_the_activation_and_policies_none():
    ours = learner()
    kinds = [type(layer) for layer in ours.nets.critic.heads[0]]
    assert kinds == [nn.Linear, nn.GELU, nn.LayerNorm, nn.Linear, nn.GELU, nn.LayerNorm, Float32Linear]
    for net in (ours.nets.policy.net, ours.nets.flow.net):
        assert [type(layer) for layer in net] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


def test_initial_weights_fill_the_variance_scaling_interval():
    nets = learner(hidden=[200, 100]).nets
    limit = (6.0 / 300.0) ** 0.5
    for net in (nets.flow.net, nets.policy.net, *nets.critic.heads):
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        assert 0.98 * limit < linear[1].weight.abs().max() <= limit
        assert not any(layer.bias.any() for layer in linear)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"target_q": "max"}, "target_q"), ({"flow_steps": 0}, "flow_steps"), ({"alpha": -1.0}, "alpha")],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=f"FQLConfig.*{said}"):
        FQLConfig(**changes)
