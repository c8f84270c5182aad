"""Flow policies: what they store of an action, and what the flow does with simple fields."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.functional.distributions import gaussian_log_prob
from ctrlrl.policies.flow import MatchedFlowPolicy, NoisyFlowPolicy


def noisy(**changes: Any) -> NoisyFlowPolicy:
    settings: dict[str, Any] = {"activation": "elu", "embed_dim": 8, "path": "straight", "flow_steps": 10}
    settings |= {"log_std_init": -1.0, "degenerate": False}
    return NoisyFlowPolicy(3, 2, [8], **(settings | changes))


def matched(**changes: Any) -> MatchedFlowPolicy:
    settings: dict[str, Any] = {"activation": "silu", "n_frequencies": 4, "scale": 0.25, "flow_steps": 10}
    settings |= {"n_pairs": 8, "squash": True}
    return MatchedFlowPolicy(3, 2, [16], **(settings | changes))


def constant(policy: Any, value: list[float]) -> None:
    """Make the field one vector everywhere."""
    with torch.no_grad():
        policy.velocity.rest[-1].weight.zero_()
        policy.velocity.rest[-1].bias.copy_(torch.tensor(value))


def test_a_noisy_flow_stores_start_end_noise_and_the_noises_density():
    policy, obs = noisy(), torch.randn(16, 3)
    action, log_prob, extras = policy.act(obs)
    assert torch.equal(action, extras["mean"] + extras["noise"])
    assert torch.equal(extras["mean"], policy.flow(obs, extras["z"]))
    assert torch.equal(extras["log_std"], torch.full((16, 2), -1.0))
    zero = torch.zeros(16, 2)
    torch.testing.assert_close(log_prob, gaussian_log_prob(extras["noise"], zero, extras["log_std"]))


def test_a_constant_field_moves_the_noise_by_itself():
    policy = noisy()
    constant(policy, [0.5, -2.0])
    extras = policy.act(torch.randn(16, 3)).extras
    torch.testing.assert_close(extras["mean"], extras["z"] + torch.tensor([0.5, -2.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("path", "end"), [("straight", 1.0), ("trigonometric", 1.5707963)])
def test_the_velocity_is_asked_at_the_grids_times_in_order(path, end):
    policy = noisy(flow_steps=3, path=path)
    torch.testing.assert_close(policy.grid, torch.linspace(0, end, 7))
    asked: list[Tensor] = []
    inner = policy.velocity.at
    policy.velocity.at = lambda known, x, time: asked.append(time) or inner(known, x, time)  # type: ignore[func-returns-value]
    policy.flow(torch.randn(4, 3), torch.randn(4, 2))
    torch.testing.assert_close(torch.stack(asked), policy.velocity.time(policy.grid)[:-1])


def test_the_flow_equals_the_midpoint_rule_on_the_whole_network():
    policy, obs, x = noisy(flow_steps=4), torch.randn(16, 3), torch.randn(16, 2)
    start = x

    def velocity(x: Tensor, t: float) -> Tensor:
        e = policy.velocity.embed_obs(obs) + policy.velocity.embed_time(torch.full((16,), t))
        return policy.velocity.rest(policy.velocity.first(torch.cat((x, e), -1)))

    for i in range(4):
        half = x + velocity(x, i / 4) / 8
        x = x + velocity(half, i / 4 + 1 / 8) / 4
    torch.testing.assert_close(policy.flow(obs, start), x, rtol=0, atol=1e-5)


def test_a_degenerate_flow_starts_at_zero_and_still_adds_noise():
    policy, obs = noisy(degenerate=True), torch.randn(16, 3)
    out = policy.act(obs)
    assert not out.extras["z"].any()
    assert torch.equal(out.extras["mean"], policy.act(obs, deterministic=True).action)
    assert out.extras["noise"].all()


def test_the_deviation_is_held_in_its_bounds():
    policy = noisy(log_std_init=50.0)
    assert torch.equal(policy.bounded_log_std(), torch.tensor([4.0, 4.0]))
    assert torch.equal(noisy(log_std_init=-50.0).bounded_log_std(), torch.tensor([-20.0, -20.0]))


@pytest.mark.parametrize("squash", [True, False])
def test_a_matched_flow_stores_its_end_and_eight_pairs_with_their_errors(squash):
    policy, obs = matched(squash=squash), torch.randn(16, 3)
    action, log_prob, extras = policy.act(obs)
    end = extras["end"]
    assert torch.equal(action, end.tanh() if squash else end)
    assert {k: v.shape[1:] for k, v in extras.items()} == {"end": (2,), "noise": (8, 2), "step": (8,), "error": (8,)}
    assert torch.equal(log_prob, -extras["error"].mean(-1))
    error = policy.matching_error(policy.velocity.context(obs), end, extras["noise"], extras["step"])
    assert torch.equal(error, extras["error"])


def test_the_matching_error_is_the_authors_formula_in_their_time():
    """t = 1 noise: x = t e + (1 - t) a, u = net(x, t), x0 = x - t u, x1 = x0 + u, mean (e - x1)^2."""
    policy, obs = matched(), torch.randn(16, 3)
    _, _, extras = policy.act(obs)
    for k in range(8):
        e, a = extras["noise"][:, k], extras["end"]
        t = 1.0 - extras["step"][:, k] / 10
        x = t[:, None] * e + (1 - t[:, None]) * a
        u = policy.velocity.at(policy.velocity.context(obs) + policy.velocity.time(t), x)
        x1 = (x - t[:, None] * u) + u
        torch.testing.assert_close(extras["error"][:, k], (e - x1).square().mean(-1), rtol=0, atol=1e-5)


def test_pure_noise_tells_nothing_of_the_action():
    """The authors' t = 1 draw: its error is 0 for every network, so its weight in the ratio is too."""
    policy, obs = matched(), torch.randn(16, 3)
    with torch.no_grad():
        extras = policy.act(obs).extras
    first = extras["step"] == 0
    assert 0 < first.sum() < first.numel()
    assert float(extras["error"][first].abs().max()) < 1e-12
    assert float(extras["error"][~first].min()) > 0.0


def test_the_flow_runs_against_the_authors_field():
    """Their u points from action to noise, ours from noise to action: a constant 0.25 * 4 moves the start by -1."""
    policy = matched(squash=False)
    constant(policy, [4.0, 4.0])
    context = policy.velocity.context(torch.randn(16, 3))
    torch.testing.assert_close(policy.flow(context, torch.ones(16, 2)), torch.zeros(16, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [noisy, matched])
def test_the_deterministic_action_begins_at_the_most_probable_noise(make):
    policy, obs = make(), torch.randn(16, 3)
    first, log_prob, extras = policy.act(obs, deterministic=True)
    assert torch.equal(first, policy.act(obs, deterministic=True).action)
    assert log_prob is None
    assert not extras
    assert not torch.equal(policy.act(obs).action, policy.act(obs).action)
