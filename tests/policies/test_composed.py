"""Composed policies of parents that are known in closed form: sections 6, 12.2 and 13 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.functional.predictions import ends, prediction
from ctrlrl.policies.composable import Parent
from ctrlrl.policies.composed import ComposedPolicy, common_window
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.types import Window


def diffusion(
    kind: str = "noise", sampler: str = "ddim", *, n_levels: int = 100, n_steps: int = 100, warm=()
) -> DiffusionProcess:
    return DiffusionProcess(n_levels, kind, sampler, n_steps, "trailing", warm)


def flow(n_steps: int = 100, sampler: str = "euler") -> FlowProcess:
    return FlowProcess(sampler, n_steps, ())


def scales_of(process, level: float) -> tuple[float, float]:
    """Also between two levels of a schedule, linear in the logarithm of noise to signal."""
    if isinstance(process, FlowProcess) or level == int(level):
        return process.scales(level)
    low, part = int(level), level - int(level)
    (a, s), (b, t) = process.scales(low), process.scales(low + 1)
    ratio = math.exp((1 - part) * math.log(s / a) + part * math.log(t / b))
    return 1 / math.hypot(1.0, ratio), ratio / math.hypot(1.0, ratio)


class Gaussian(nn.Module):
    """The exact network of chunks N(mean, std^2). mean: [H, A], or condition [n, C] -> [n, H, A]."""

    def __init__(self, process, mean, std):
        super().__init__()
        self.process, self.mean, self.std = process, mean, std

    def context(self, condition: Tensor) -> Tensor:
        return self.mean(condition) if callable(self.mean) else self.mean

    def at(self, x: Tensor, level: float, context: Tensor) -> Tensor:
        alpha, sigma = scales_of(self.process, level)
        var = self.std**2
        data = (alpha * var * x + sigma**2 * context) / (alpha**2 * var + sigma**2)
        return prediction(self.process.prediction, *ends("data", data, x, alpha, sigma), alpha, sigma)


class Broken(nn.Module):
    def context(self, condition: Tensor) -> Tensor:
        return condition

    def at(self, x: Tensor, level: float, context: Tensor) -> Tensor:
        return torch.full_like(x, math.nan)


def policy(process, head, window: Window = Window(1, 4, 2), *, obs_dim: int = 2, columns=None) -> ChunkPolicy:  # noqa: B008
    return ChunkPolicy(obs_dim, 2, head, process, window, columns=columns).eval()


def gaussian(process, mean, std, window: Window = Window(1, 4, 2)) -> ChunkPolicy:  # noqa: B008
    return policy(process, Gaussian(process, mean, std), window)


def composed(*policies: ChunkPolicy, weights=None, **settings) -> ComposedPolicy:
    parents = [Parent("abc"[i], p) for i, p in enumerate(policies)]
    return ComposedPolicy(parents, weights or [1.0 / len(parents)] * len(parents), **settings)


def seeded(made, obs: Tensor) -> Tensor:
    torch.manual_seed(7)
    return made.sample(obs)


PROCESSES = {
    "ddim": diffusion(n_steps=10),
    "ddpm": diffusion("v", "ddpm", n_levels=20, n_steps=20),
    "flow": flow(10),
}


# Convex ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", PROCESSES)
@pytest.mark.parametrize("name", PROCESSES)
def test_weights_one_and_zero_are_the_parents_to_the_bit(name, broken):
    """13.1: whatever the other parent is, and although it says NaN; also where it sees more and plans farther."""
    torch.manual_seed(0)
    parent = gaussian(PROCESSES[name], 0.3 * torch.randn(4, 2), 0.2)
    for other in (policy(PROCESSES[broken], Broken()), policy(PROCESSES[broken], Broken(), Window(3, 8, 1))):
        first, second = composed(parent, other, weights=[1.0, 0.0]), composed(other, parent, weights=[0.0, 1.0])
        obs = torch.randn(5, 1, 2)
        for made in (first, second):
            assert torch.equal(seeded(made, obs), seeded(parent, obs))
            assert torch.equal(made.sample(obs, deterministic=True), parent.sample(obs, deterministic=True))
            memories, rows = [None, None], torch.randn(6, 5, 2)
            for t, row in enumerate(rows):
                begins = None if t == 0 else torch.rand(5) < 0.3
                outs = []
                for i, acting in enumerate((made, parent)):
                    torch.manual_seed(t)
                    out, memories[i] = acting.act_in_episode(row, memories[i], begins)
                    outs.append(out.action)
                assert torch.equal(*outs)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", ["data", "v"])
def test_the_kind_of_a_parents_prediction_makes_no_difference(kind, sampler):
    """13.2, through the policies: both say the same of the same Gaussians, one as noise and one otherwise."""
    means = 0.3 * torch.randn(2, 4, 2)
    obs = torch.randn(50, 1, 2)

    def parent(i: int, kind: str) -> ChunkPolicy:
        return gaussian(diffusion(kind, sampler), means[i], 0.2)

    mixed = seeded(composed(parent(0, "noise"), parent(1, kind), weights=[0.3, 0.7]), obs)
    same = seeded(composed(parent(0, "noise"), parent(1, "noise"), weights=[0.3, 0.7]), obs)
    torch.testing.assert_close(mixed, same, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "other", [diffusion(n_levels=37, n_steps=37), diffusion("data", n_levels=250, n_steps=10), flow()]
)
def test_a_parent_is_asked_at_the_same_signal_to_noise_ratio(other):
    """Mixing a Gaussian with itself on another path changes nothing; at equal level numbers it would."""
    mean, obs = 0.3 * torch.randn(4, 2), torch.randn(200, 1, 2)
    host = gaussian(diffusion(), mean, 0.3)
    made = composed(host, gaussian(other, mean, 0.3), weights=[0.4, 0.6])
    torch.testing.assert_close(seeded(made, obs), seeded(host, obs), rtol=0, atol=0.02)  # levels are linear between two


def test_a_flow_beside_a_diffusion_follows_the_diffusions_sampler():
    mean = torch.zeros(4, 2)
    made = composed(gaussian(flow(), mean, 0.3), gaussian(diffusion(n_steps=5), mean, 0.3))
    calls = []
    at = made.policies[0].head.at
    made.policies[0].head.at = lambda x, t, context: (calls.append(t), at(x, t, context))[1]
    made.sample(torch.randn(3, 1, 2))
    ratios = [a / (a + s) for a, s in (diffusion().scales(k) for k in (99, 79, 59, 39, 19))]
    assert calls == pytest.approx(ratios)


# Half-blind experts (12.2) --------------------------------------------------------------------------------------------

SCALE, WIDE, NARROW = 0.2, math.sqrt(1.01), 0.1  # the goals' unit in normalised actions, and the experts' deviations
# Success of weight w in the limit of exact integration: with exploding variance the composed flow is linear, so that a
# coordinate's sample is c g + prod s_i^w_i z, c = w int s / (s_1^2 + s^2) prod (s_i^2 / (s_i^2 + s^2))^(w_i / 2) ds,
# and both coordinates' errors are Gaussian. The specification's 400 steps overshoot it by up to .037, at one half.
EXACT = {0.0: 0.222, 0.1: 0.287, 0.3: 0.443, 0.5: 0.523, 0.6: 0.502, 0.8: 0.365, 1.0: 0.222}
PRINTED = {0.0: 0.22, 0.1: 0.29, 0.3: 0.46, 0.5: 0.56, 0.6: 0.53, 0.8: 0.38, 1.0: 0.22}


DIFFUSION = diffusion(n_levels=400, n_steps=400)


def half_blind(process, column: int | None) -> ChunkPolicy:
    """Sees one coordinate of the goal, or none."""

    def mean(condition: Tensor) -> Tensor:
        at = torch.zeros(len(condition), 1, 2)
        if column is not None:
            at[:, 0, column] = SCALE * condition[:, 0]
        return at

    std = torch.full((2,), SCALE * WIDE)
    if column is not None:
        std[column] = SCALE * NARROW
    columns = [] if column is None else [column]
    return policy(process, Gaussian(process, mean, std), Window(1, 1, 1), columns=columns)


def success(made, n: int = 20_000) -> float:
    torch.manual_seed(1)
    goal = torch.randn(n, 2)
    return float(((made.act(goal).action - SCALE * goal).abs().amax(-1) < 0.4 * SCALE).double().mean())


@pytest.mark.parametrize("w", EXACT)
def test_half_blind_flows_succeed_together_as_they_must(w):
    process = flow(400, "midpoint")
    made = composed(half_blind(process, 0), half_blind(process, 1), weights=[w, 1.0 - w])
    assert success(made) == pytest.approx(EXACT[w], abs=0.012)


@pytest.mark.parametrize("w", PRINTED)
@pytest.mark.parametrize("other", [DIFFUSION, diffusion("v", n_levels=100), flow(1)], ids=["alike", "schedule", "flow"])
def test_half_blind_diffusions_succeed_together_as_printed(other, w):
    """The other's own sampler and number of steps play no part."""
    if w == 0.0:
        other = DIFFUSION
    made = composed(half_blind(DIFFUSION, 0), half_blind(other, 1), weights=[w, 1.0 - w])
    assert success(made) == pytest.approx(PRINTED[w], abs=0.02)


@pytest.mark.parametrize("process", [DIFFUSION, flow(400)])
def test_the_product_form_of_half_blind_experts_always_succeeds(process):
    base = Parent("free", half_blind(process, None))
    pair = half_blind(process, 0), half_blind(process, 1)
    assert success(composed(*pair, weights=[1.0, 1.0], mode="product", base=base)) > 0.995


def test_three_parents_share_the_weights():
    """A third that sees both halves helps in proportion; weights of (0, 0, 1) are it alone."""
    process = diffusion(n_levels=50, n_steps=50)
    seeing = policy(
        process,
        Gaussian(process, lambda c: SCALE * c.unsqueeze(1), SCALE * NARROW),
        Window(1, 1, 1),
    )
    trio = half_blind(process, 0), half_blind(process, 1), seeing
    found = [success(composed(*trio, weights=w), 4000) for w in ([0.5, 0.5, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0])]
    assert found[0] < 0.62 < 0.8 < found[1] < found[2]


# Windows --------------------------------------------------------------------------------------------------------------


def test_present_rows_lie_on_one_another():
    window, firsts = common_window([Window(2, 16, 8), Window(1, 6, 4), Window(4, 8, 5)])
    assert window == Window(4, 18, 4)
    assert firsts == [2, 3, 0]


@pytest.mark.parametrize("process", [diffusion(n_steps=10), flow(10)])
def test_horizons_are_averaged_where_both_speak_and_the_rest_is_the_longer_ones(process):
    """Points: of a mix of two of them samples are the mean, row by row of physical time."""
    long, short = 0.8 * torch.rand(6, 2), -0.8 * torch.rand(3, 2)
    a, b = gaussian(process, long, 0.0, Window(2, 6, 2)), gaussian(process, short, 0.0, Window(1, 3, 3))
    made = composed(a, b, weights=[0.25, 0.75])
    assert made.window == Window(2, 6, 2)
    wanted = long.clone()
    wanted[1:4] = 0.25 * long[1:4] + 0.75 * short
    chunk = made.sample(torch.randn(3, 2, 2))
    torch.testing.assert_close(chunk, wanted.expand(3, -1, -1), rtol=0, atol=2e-3)
    action, memory = made.act_in_episode(torch.randn(3, 2), None, None)
    torch.testing.assert_close(action.action, wanted[1].expand(3, -1), rtol=0, atol=2e-3)
    action, memory = made.act_in_episode(torch.randn(3, 2), memory, None)
    torch.testing.assert_close(action.action, wanted[2].expand(3, -1), rtol=0, atol=2e-3)


def test_every_parent_sees_its_own_part_of_the_last_observations():
    seen = {}

    def remember(name):
        def mean(condition):
            seen[name] = condition
            return torch.zeros(len(condition), 1, 2)

        return mean

    process = diffusion(n_steps=2)
    a = policy(process, Gaussian(process, remember("a"), 0.1), Window(3, 4, 2), columns=[1])
    b = policy(process, Gaussian(process, remember("b"), 0.1), Window(2, 4, 2), columns=[0, 1])
    obs = torch.arange(6.0).view(1, 3, 2)
    composed(a, b).sample(obs)
    assert seen["a"].tolist() == [[1.0, 3.0, 5.0]]
    assert seen["b"].tolist() == [[2.0, 3.0, 4.0, 5.0]]


def test_deterministic_samples_begin_at_the_longest_parents_noise_whatever_the_batch():
    process = diffusion(n_steps=5)
    a, b = (gaussian(process, torch.zeros(n, 2), 0.3, Window(1, n, 1)) for n in (5, 3))
    made = composed(b, a)
    assert torch.equal(made.start, a.start)
    one, many = (
        made.sample(torch.zeros(1, 1, 2), deterministic=True),
        made.sample(torch.zeros(4, 1, 2), deterministic=True),
    )
    torch.testing.assert_close(many, one.expand(4, -1, -1))
    assert not torch.equal(*(made.sample(torch.zeros(1, 1, 2)) for _ in range(2)))


def test_a_warm_start_goes_on_from_the_last_plan_of_all():
    calls = []
    process = diffusion(n_levels=10, n_steps=10, warm=(1, 0))
    parents = [gaussian(process, 0.1 * torch.ones(4, 2), 0.2, Window(1, 4, 1)) for _ in range(2)]
    at = parents[0].head.at
    parents[0].head.at = lambda x, k, context: (calls.append(k), at(x, k, context))[1]
    made, memory = composed(*parents), None
    for _ in range(3):
        _, memory = made.act_in_episode(torch.randn(2, 2), memory, None)
    assert calls == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 0, 1, 0]


# Superposition (6.6) --------------------------------------------------------------------------------------------------

LEFT, RIGHT = torch.tensor([[-0.6, 0.0]]), torch.tensor([[0.6, 0.0]])
SINGLE = Window(1, 1, 1)


def superposed(mode: str, *parents, n_levels: int = 100, n: int = 2000, **settings) -> Tensor:
    process = diffusion(n_levels=n_levels, n_steps=n_levels)
    made = composed(*(gaussian(process, m, s, SINGLE) for m, s in parents), mode=mode, **settings)
    torch.manual_seed(3)
    return made.sample(torch.zeros(n, 1, 2))[:, 0]


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_or_samples_each_mode_as_often_as_its_weight_says(share):
    """13.6 at a quarter of the scale, which is that of normalised actions."""
    x = superposed("or", (LEFT, 0.12), (RIGHT, 0.12), weights=[share, 1.0 - share])
    near = [((x - m).norm(dim=-1) < 0.5).double().mean() for m in (LEFT, RIGHT)]
    assert float(sum(near)) > 0.98
    assert float(near[0]) == pytest.approx(share, abs=0.04)


def test_and_collapses_to_where_both_are_equally_likely():
    """13.7: the first coordinate to 0, the second keeps its deviation."""
    x = superposed("and", (LEFT, 0.12), (RIGHT, 0.12), n_levels=500, n=500)
    assert float(x[:, 0].abs().max()) < 0.01
    assert float(x[:, 1].std()) == pytest.approx(0.12, abs=0.015)


def test_the_exact_and_equals_the_densities_where_the_curvatures_differ():
    def log_normal(x, m, s):
        return (-0.5 * ((x - m) / s).square() - math.log(s)).sum(-1)

    parents = (0.25 * torch.tensor([[-1.0, 0.0]]), 0.125), (0.25 * torch.tensor([[1.0, 0.0]]), 0.25)
    gap = {}
    for exact in (False, True):
        x = superposed("and", *parents, n_levels=500, n=300, exact=exact)
        gap[exact] = float((log_normal(x, *parents[0]) - log_normal(x, *parents[1])).mean().abs())
    assert gap[True] < 0.1 < 0.5 < gap[False]


@pytest.mark.parametrize(("mode", "exact"), [("or", False), ("and", False), ("and", True)])
def test_superposition_of_a_policy_with_itself_is_that_policy(mode, exact):
    x = superposed(mode, (RIGHT, 0.12), (RIGHT, 0.12), exact=exact)
    assert x.mean(0).tolist() == pytest.approx([0.6, 0.0], abs=0.02)
    assert x.std(0).tolist() == pytest.approx([0.12, 0.12], abs=0.012)


def test_deterministic_superposition_repeats_itself():
    process = diffusion(n_levels=20, n_steps=20)
    for settings in ({"mode": "or"}, {"mode": "and"}, {"mode": "and", "exact": True}):
        made = composed(gaussian(process, LEFT, 0.2, SINGLE), gaussian(process, RIGHT, 0.3, SINGLE), **settings)
        out = [made.sample(torch.zeros(3, 1, 2), deterministic=True) for _ in range(2)]
        assert torch.equal(*out)


# What is refused ------------------------------------------------------------------------------------------------------


def plain(window: Window = SINGLE, process=None, *, obs_dim: int = 2) -> ChunkPolicy:
    process = process or diffusion(n_steps=2)
    return policy(process, Gaussian(process, torch.zeros(2), 0.1), window, obs_dim=obs_dim)


def test_other_actions_and_observations_are_refused_with_both_numbers():
    other = ChunkPolicy(2, 3, Broken(), diffusion(), SINGLE)
    with pytest.raises(ValueError, match="actions have 2 numbers in a, 3 in b"):
        composed(plain(), other)
    with pytest.raises(ValueError, match="observations have 2 numbers in a, 5 in b"):
        composed(plain(), plain(obs_dim=5))


def test_other_ranges_of_actions_are_refused_with_both_numbers():
    a, b = plain(), plain()
    b.action_normalizer.fit(torch.tensor([[-1.0, -0.5], [1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"action number 1 begins at -1 in a, at -0.5 in b.*algo.action_range=box"):
        composed(a, b, weights=[1.0, 0.0])
    a.action_normalizer.fit(torch.tensor([[-1.0, -0.5], [1.0, 0.8]]))
    with pytest.raises(ValueError, match=r"action number 1 ends at 0.8 in a, at 1 in b"):
        composed(a, b)


def test_a_chunk_shorter_than_what_is_executed_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="n_action_steps=4 is more than the 3 actions of a chunk of b"):
        composed(plain(Window(1, 8, 1)), plain(Window(2, 4, 1)), n_actions=4)
    assert composed(plain(Window(1, 8, 1)), plain(Window(2, 4, 1)), n_actions=3).window == Window(2, 9, 3)


def test_modes_take_only_what_they_can_compose():
    unlike = plain(Window(1, 2, 1))
    with pytest.raises(ValueError, match=r"compose.mode=or takes parents of one horizon, got 1 in a, 2 in b"):
        composed(plain(), unlike, mode="or")
    with pytest.raises(ValueError, match="one n_obs_steps, got 1 in a, 2 in b"):
        composed(plain(), plain(Window(2, 1, 1)), mode="and")
    with pytest.raises(ValueError, match="a and b are flows"):
        composed(plain(process=flow()), plain(process=flow()), mode="and")
    with pytest.raises(ValueError, match=r"takes compose.base"):
        composed(plain(), plain(), mode="product")
    with pytest.raises(ValueError, match=r"compose.base=c sees 2 numbers of an observation.*algo.obs_columns=\[\]"):
        composed(plain(), plain(), mode="product", weights=[1.0, 1.0], base=Parent("c", plain()))
    with pytest.raises(ValueError, match="other modes take none"):
        composed(plain(), plain(), base=Parent("c", plain()))
    with pytest.raises(ValueError, match=r"compose.exact is for compose.mode=and, got or"):
        composed(plain(), plain(), mode="or", exact=True)
    with pytest.raises(ValueError, match="finds its own weights"):
        composed(plain(), plain(), mode="and", weights=[0.4, 0.6])
    with pytest.raises(ValueError, match="one of convex, product, or, and, got 'sum'"):
        composed(plain(), plain(), mode="sum")


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [0.5, math.nan]])
def test_weights_that_are_not_convex_are_refused(weights):
    with pytest.raises(ValueError, match="at least 0 and add up to 1"):
        composed(plain(), plain(), weights=weights)
    with pytest.raises(ValueError, match="at least one weight must differ from 0"):
        composed(plain(), plain(), weights=[0.0, 0.0], mode="product", base=Parent("c", plain()))
    with pytest.raises(ValueError, match="2 policies need as many weights, got 1"):
        composed(plain(), plain(), weights=[1.0])
