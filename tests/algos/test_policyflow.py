"""PolicyFlow: the ratio at the old policy and for fields with a known answer, the Brownian term, what is frozen."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.policyflow import PolicyFlowConfig, PolicyFlowLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.functional.distributions import gaussian_log_prob
from ctrlrl.functional.samplers import midpoint, uniform_times
from ctrlrl.train.rollout import Collector
from ctrlrl.types import EnvSpec, ObsPart

SMALL: dict[str, Any] = {"n_steps": 16, "n_minibatches": 4, "n_epochs": 2, "hidden": [16, 16], "embed_dim": 8}
SPEC = EnvSpec(3, 2, 0, 1, 4, 0, torch.device("cpu"))
PATHS = ("straight", "interpolant", "trigonometric")


def make(spec: EnvSpec = SPEC, **settings: Any) -> PolicyFlowLearner:
    torch.manual_seed(1)
    return PolicyFlowLearner(PolicyFlowConfig(**{**SMALL, "output_gain": 1.0, **settings}), spec)


def on_env(**settings: Any) -> tuple[PolicyFlowLearner, Collector]:
    env = BatchedSim(Pendulum(), 8, seed=0, episode_length=10)
    learner = make(env.spec, **settings)
    collector = Collector(env, learner, learner.cfg.n_steps)
    collector.reset(0)
    return learner, collector


def acted(learner: PolicyFlowLearner, n: int = 64, *, shift: float = 0.0) -> Batch:
    """A batch that the learner's policy acted, and then its velocity's last bias moved by `shift`."""
    obs = torch.randn(n, 3)
    with torch.no_grad():
        out = learner.policy.act(obs)
        learner.acted.load_state_dict(learner.policy.velocity.state_dict())
        learner.policy.velocity.rest[-1].bias.add_(shift)
        value = learner.critic(obs)
    return Batch(obs, out.action, out.log_prob, value, torch.randn(n), torch.randn(n), out.extras)  # type: ignore[arg-type]


def spied(learner: PolicyFlowLearner) -> list[tuple[Tensor, ...]]:
    """What log_ratio returns, call by call."""
    seen: list[tuple[Tensor, ...]] = []
    inner = learner.log_ratio

    def log_ratio(batch: Batch) -> tuple[Tensor, ...]:
        out = inner(batch)
        seen.append(tuple(x.detach() for x in out))
        return out

    learner.log_ratio = log_ratio  # type: ignore[method-assign]
    return seen


# the old policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["elu", "mish"])
@pytest.mark.parametrize("times", ["grid", "uniform"])
@pytest.mark.parametrize("path", PATHS)
def test_the_first_ratio_of_every_update_is_exactly_one(path, times, activation):
    learner, collector = on_env(path=path, times=times, activation=activation, normalize_obs=True, learning_rate=3e-3)
    seen = spied(learner)
    for _ in range(3):
        rollout = collector.collect()
        seen.clear()
        learner.update(rollout)
        assert not seen[0][0].any(), "log-ratio 0 to the bit"
        assert not seen[0][2].any(), "and KL"
        assert float(seen[-1][0].abs().max()) > 1e-3, "the policy must have moved since"


def test_the_acting_velocity_stays_while_an_update_moves_the_other_and_is_no_part_of_the_state():
    learner, collector = on_env(learning_rate=3e-3)
    acting = copy.deepcopy(learner.policy.velocity.state_dict())
    learner.update(collector.collect())
    frozen, moved = learner.acted.state_dict(), learner.policy.velocity.state_dict()
    assert all(torch.equal(frozen[k], acting[k]) for k in acting)
    trained = [k for k in acting if k != "embed_time.frequencies"]
    assert all(not torch.equal(moved[k], acting[k]) for k in trained), "the embedding of the state moves too"
    assert not [k for k in learner.model_state() if "acted" in k]
    assert len(learner.opt["actor_critic"].params) == len([*learner.policy.parameters(), *learner.critic.parameters()])


# fields with a known answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_shifted_field_gives_the_exact_conditional_ratio_at_every_time(path):
    """v - v_old = c everywhere: log N(n; c, sigma) - log N(n; 0, old sigma), whichever t is drawn."""
    learner = make(path=path, brownian_coef=0.0)
    batch = acted(learner, shift=0.2)
    with torch.no_grad():
        learner.policy.log_std.sub_(0.3)
    log_ratio, entropy, kl = learner.log_ratio(batch)
    noise = batch.extras["noise"]
    exact = gaussian_log_prob(noise, torch.full_like(noise, 0.2), torch.full((2,), -0.3)) - batch.log_prob
    torch.testing.assert_close(log_ratio, exact, rtol=0, atol=1e-4)
    expected_kl = 2 * (-0.3 + 0.5 * (math.exp(0.6) + 0.04 * math.exp(0.6) - 1.0))
    torch.testing.assert_close(kl, torch.full((64,), expected_kl), rtol=1e-3, atol=0)
    one = 0.5 * math.log(2 * math.pi * math.e) - 0.3
    torch.testing.assert_close(entropy, torch.full((64,), 2 * one), rtol=1e-5, atol=0)


def gaussian_field(learner: PolicyFlowLearner) -> None:
    """Make the velocity independent of x and t: v(s) = rest(first(0, W s + b))."""
    net = learner.policy.velocity
    with torch.no_grad():
        net.first.weight[:, :2] = 0.0
        net.embed_time.net[-1].weight.zero_()
        net.embed_time.net[-1].bias.zero_()


@pytest.mark.parametrize("degenerate", [False, True])
def test_a_field_independent_of_point_and_time_is_gaussian_ppo(degenerate):
    """Spec 8.4, 2: the loss and its gradient are PPO's for the mean z + v(s); with z = 0 for the mean v(s)."""
    learner = make(degenerate=degenerate, brownian_coef=0.0, ent_coef=0.01, normalize_advantage="none", vf_coef=0.0)
    gaussian_field(learner)
    batch = acted(learner, shift=0.1)
    net = learner.policy.velocity
    mean = batch.extras["z"] + net.rest(net.first(torch.cat((torch.zeros(64, 2), net.embed_obs(batch.obs)), -1)))
    rho = (gaussian_log_prob(batch.action, mean, learner.policy.log_std) - batch.log_prob).exp()
    a = batch.advantage
    ppo = torch.maximum(-a * rho, -a * rho.clamp(0.8, 1.2)).mean()
    ppo = ppo - 0.01 * (learner.policy.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    loss, _ = learner.loss(batch)
    torch.testing.assert_close(loss, ppo, rtol=0, atol=1e-5)
    # the parameters that a Gaussian's mean has: all but the weights of the point and the embedding of time
    own = {k: p for k, p in learner.policy.named_parameters() if "embed_time" not in k}
    for name, mine, theirs in zip(
        own, torch.autograd.grad(loss, own.values()), torch.autograd.grad(ppo, own.values()), strict=True
    ):
        start = 2 if name == "velocity.first.weight" else 0
        torch.testing.assert_close(mine[..., start:], theirs[..., start:], rtol=0, atol=1e-5)


def test_in_an_expanding_field_the_ratio_misses_the_flows_jacobian():
    """v = x and v = x + c: the end moves by (e - 1) c, the velocity by c."""
    times, c = uniform_times(200), 0.01
    ends = [midpoint(lambda x, t, c=c: x + c, torch.ones(1), times) for c in (0.0, c)]
    assert float(ends[1] - ends[0]) == pytest.approx((math.e - 1.0) * c, rel=1e-3)


def test_over_all_times_the_ratio_of_a_small_update_is_the_flows_own_where_the_field_ignores_the_point():
    """Paper eq. 11: the velocity's mean change over t is the shift of the flow's end, up to second order."""
    learner = make(spec=SPEC, brownian_coef=0.0, flow_steps=20)
    obs = torch.randn(1, 3).expand(4096, 3).contiguous()
    with torch.no_grad():
        net, z = learner.policy.velocity, torch.zeros(4096, 2)
        gaussian_field(learner)
        learner.acted.load_state_dict(net.state_dict())
        mean = learner.policy.flow(obs, z)
        net.embed_time.net[-1].bias.normal_(std=1e-3)
        net.embed_time.net[-1].weight.normal_(std=1e-3)
        moved = learner.policy.flow(obs[:1], z[:1]) - mean[:1]
        t = (torch.arange(4096) + 0.5) / 4096
        point = (1 - t[:, None]) * z + t[:, None] * mean
        now, before = (v.at(v.context(obs) + v.time(t), point) for v in (net, learner.acted))
        change = now - before
    assert float(moved.abs().max()) > 1e-4
    torch.testing.assert_close(change.mean(0), moved[0], rtol=0.1, atol=1e-5)


# the Brownian term and the value -------------------------------------------------------------------------------------


def test_the_brownian_penalty_is_the_mean_over_dimensions_with_the_target_held():
    """At v = v_old its slope in the last bias is that of (1 - t) v alone; without it the loss has no such term."""
    learner = make(brownian_coef=0.5)
    batch = acted(learner)
    with torch.no_grad():
        learner.policy.velocity.rest[-1].weight.zero_()
        learner.policy.velocity.rest[-1].bias.zero_()
        learner.acted.load_state_dict(learner.policy.velocity.state_dict())
    torch.manual_seed(3)
    *_, penalty = learner.log_ratio(batch)
    torch.manual_seed(3)
    t = learner.policy.grid[torch.randint(21, (64,))].unsqueeze(-1)
    x = (1 - t) * batch.extras["z"] + t * batch.extras["mean"]
    torch.testing.assert_close(penalty, 0.5 * x.square().mean(-1), rtol=1e-5, atol=1e-6)
    grad = torch.autograd.grad(penalty.sum(), learner.policy.velocity.rest[-1].bias)[0]
    torch.testing.assert_close(grad, (-(1 - t) * x / 2).sum(0), rtol=1e-4, atol=1e-5)
    assert "loss/penalty" in learner.loss(batch)[1]
    for settings in ({"brownian_coef": 0.0}, {"degenerate": True}):
        assert len(make(**settings).log_ratio(acted(make(**settings)))) == 3


def test_a_value_beyond_the_clip_gets_no_gradient():
    learner = make(clip_range_vf=0.2)
    batch = acted(learner)._replace(value=torch.zeros(4), target=torch.full((4,), 2.0))
    value = torch.tensor([-1.0, 0.1, 0.3, 5.0], requires_grad=True)
    loss = learner.value_loss(value, batch)
    torch.testing.assert_close(loss, torch.tensor([2.2, 1.9, 1.8, 1.8]).square())
    assert torch.autograd.grad(loss.sum(), value)[0].tolist() == pytest.approx([0.0, -3.8, 0.0, 0.0])


def test_the_times_of_the_ratio_are_spread_evenly():
    learner = make()
    t, velocity_of = learner._draw_times(21_000)
    assert torch.bincount((t * 20).round().long()).tolist() == pytest.approx([1000] * 21, rel=0.15)
    net, obs, x = learner.acted, torch.randn(21_000, 3), torch.randn(21_000, 2)
    torch.testing.assert_close(velocity_of(net, obs, x), net.at(net.context(obs) + net.time(t), x), rtol=0, atol=1e-5)
    t, _ = make(times="uniform", path="trigonometric")._draw_times(21_000)
    assert float(t.mean()) == pytest.approx(math.pi / 4, rel=0.02)
    assert float(t.max()) <= math.pi / 2


# settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"path": "curved"}, "path must be one of straight, interpolant, trigonometric, got 'curved'"),
        ({"times": "all"}, "times must be one of"),
        ({"flow_steps": 0}, "flow_steps"),
        ({"embed_dim": 20}, "embed_dim must be a multiple of 8"),
        ({"brownian_coef": -0.1}, "brownian_coef"),
        ({"clip_range": 1.0}, "clip_range"),
        ({"clip_range_vf": 0.0}, "clip_range_vf"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"desired_kl_rule": "step"}, "desired_kl_rule"),
        ({"lr_schedule": "linear"}, "lr_schedule=linear and desired_kl=0.01 both set the learning rate"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        PolicyFlowConfig(**settings)


def test_images_are_refused_by_name():
    image = SPEC._replace(obs_dim=3 * 64 * 64, obs_parts=(ObsPart("", (3, 64, 64), image=True),))
    with pytest.raises(ValueError, match="algo=policyflow takes vectors"):
        make(image)
    with pytest.raises(ValueError, match="algo=policyflow takes vectors"):
        make(SPEC, features_extractor="cnn")


def test_bfloat16_leaves_the_first_ratio_at_one_and_numbers_finite():
    learner, collector = on_env()
    learner.set_dtype("bfloat16")
    seen = spied(learner)
    metrics = learner.update(collector.collect())
    assert not seen[0][0].any()
    assert all(torch.isfinite(x) for x in metrics.values())
