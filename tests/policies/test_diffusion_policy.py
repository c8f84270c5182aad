"""What the networks are taught against closed forms, and what the policy makes of a network that is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.types import Window

MEAN, STD = 0.3, 0.4  # of Gaussian data


def diffusion(sampler: str = "ddim", *, n_levels: int = 100, n_steps: int = 10, prediction: str = "noise", warm=()):
    return DiffusionProcess(n_levels, prediction, sampler, n_steps, "trailing", warm)


def slope_and_offset(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Of the regression line, which the least-squares network is for Gaussian data."""
    x, y = x.double().flatten(), y.double().flatten()
    slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
    return float(slope), float(y.mean() - slope * x.mean())


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_least_squares_field_of_gaussian_data_is_the_exact_one(t, prediction):
    torch.manual_seed(0)
    process = FlowProcess("euler", 10, prediction=prediction)
    data = MEAN + STD * torch.randn(400_000, 1, 1)
    x, level, target = process.lesson(data, torch.randn_like(data), torch.full((400_000,), t))
    assert torch.equal(level, torch.full((400_000,), t))
    slope, offset = slope_and_offset(x, target)
    field = process.field(lambda x, t: slope * x + offset)(torch.tensor([0.0, 1.0]), t).tolist()
    wanted = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    assert field[1] - field[0] == pytest.approx(wanted, abs=0.01)
    assert field[0] == pytest.approx(MEAN - wanted * t * MEAN, abs=0.01)


@pytest.mark.parametrize("k", [0, 40, 90])
def test_the_least_squares_noise_of_gaussian_data_is_the_exact_one(k):
    torch.manual_seed(0)
    process, n = diffusion(), 400_000
    data = MEAN + STD * torch.randn(n, 1, 1)
    x, level, target = process.lesson(data, torch.randn_like(data), torch.full((n,), (k + 0.5) / 100))
    assert torch.equal(level, torch.full((n,), float(k)))
    kept = process.schedule.alpha_bar[k]
    slope = math.sqrt(1 - kept) / (kept * STD**2 + 1 - kept)
    found = slope_and_offset(x, target)
    assert found[0] == pytest.approx(slope, abs=0.01)
    assert found[1] == pytest.approx(-slope * math.sqrt(kept) * MEAN, abs=0.01)


def test_levels_are_drawn_evenly_from_all():
    n = 100_000
    uniform = torch.linspace(0.0, 1.0 - 2**-24, n)
    _, level, _ = diffusion().lesson(torch.zeros(n, 1, 1), torch.zeros(n, 1, 1), uniform)
    counts = torch.bincount(level.long())
    assert len(counts) == 100
    assert counts.min() >= n // 100 - 1


class PointMass(nn.Module):
    """The exact network of a chunk that is always the same: it says where noise leads to from x."""

    def __init__(self, chunk: Tensor, process):
        super().__init__()
        self.chunk, self.process = chunk, process

    def context(self, condition: Tensor) -> Tensor:
        return condition

    def at(self, x: Tensor, level: float, context: Tensor) -> Tensor:
        alpha, sigma = self.process.scales(level)
        noise = (x - alpha * self.chunk) / sigma
        said = {"noise": noise, "data": self.chunk.expand_as(x), "v": alpha * noise - sigma * self.chunk}
        return (said | {"velocity": (self.chunk - x) / sigma})[self.process.prediction]


CHUNK = torch.tensor([[0.1, -0.5], [0.2, 0.3], [0.9, -1.0], [-0.4, 0.0]])
PROCESSES = [
    FlowProcess("euler", 1),
    FlowProcess("midpoint", 5),
    FlowProcess("euler", 3, prediction="data"),
    FlowProcess("midpoint", 5, prediction="data"),
    diffusion(n_steps=1),
    diffusion(prediction="data"),
    diffusion(prediction="v"),
    diffusion("ddpm"),
]


WINDOW = Window(2, 4, 2)


def policy(process, window: Window = WINDOW) -> ChunkPolicy:
    torch.manual_seed(0)
    return ChunkPolicy(3, 2, PointMass(CHUNK, process), process, window).eval()


@pytest.mark.parametrize("process", PROCESSES)
def test_every_sampler_finds_a_point_mass(process):
    chunk = policy(process).sample(torch.randn(6, 2, 3))
    torch.testing.assert_close(chunk, CHUNK.expand(6, -1, -1), rtol=0, atol=1e-3)  # float32 at alpha = 5e-4


@pytest.mark.parametrize("process", PROCESSES[1:5])
def test_what_is_executed_begins_with_the_present_row_and_is_unnormalized(process):
    made = policy(process)
    made.action_normalizer.fit(torch.tensor([[0.0, -0.5], [1.0, 0.5]]))
    action, memory = made.act_in_episode(torch.randn(6, 3), None, None)
    wanted = CHUNK * 0.5 + torch.tensor([0.5, 0.0])
    torch.testing.assert_close(action.action, wanted[1].expand(6, -1), rtol=0, atol=1e-3)
    action, memory = made.act_in_episode(torch.randn(6, 3), memory, None)
    torch.testing.assert_close(action.action, wanted[2].expand(6, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(made.act(torch.randn(6, 3)).action, wanted[1].expand(6, -1), rtol=0, atol=1e-3)


def test_actions_stay_in_the_box():
    made = policy(PROCESSES[1])
    made.action_normalizer.fit(torch.tensor([[-4.0, -4.0], [4.0, 4.0]]))
    assert made.act(torch.randn(6, 3)).action.abs().max() == 1.0


def test_deterministic_samples_begin_at_the_saved_noise_whatever_the_batch():
    class Lazy(PointMass):
        def at(self, x, level, context):
            return torch.zeros_like(x)

    process = FlowProcess("euler", 3)
    made = ChunkPolicy(3, 2, Lazy(CHUNK, process), process, WINDOW)
    wanted = made.state_dict()["start"].clamp(-1, 1).expand(5, -1, -1)
    assert torch.equal(made.sample(torch.randn(5, 2, 3), deterministic=True), wanted)
    assert not torch.equal(made.sample(torch.randn(5, 2, 3)), wanted)


def test_a_warm_start_over_all_levels_from_noise_is_the_full_sampler():
    """RTI-DP, arXiv:2508.05396: only the start and the list of levels differ."""
    cold, warm = policy(diffusion("ddpm", n_levels=10)), policy(diffusion(n_levels=10, warm=range(9, -1, -1)))
    torch.manual_seed(3)
    wanted = cold.sample(obs := torch.randn(6, 2, 3))
    torch.manual_seed(3)
    torch.randn(6, 2, 3)
    assert torch.equal(warm.resample(obs, torch.randn(6, 4, 2)), wanted)


@pytest.mark.parametrize("process", [diffusion(warm=(2, 1, 0)), FlowProcess("euler", 10, (0.8, 0.9))])
def test_the_chunk_of_a_point_mass_is_the_fixed_point_of_warm_starts(process):
    calls = []
    made = policy(process, Window(2, 4, 1))
    made.head.chunk = CHUNK[-1:].expand(4, -1)  # its shift is itself
    at = made.head.at
    made.head.at = lambda x, level, context: (calls.append(level), at(x, level, context))[1]  # type: ignore[method-assign]
    memory = None
    for _ in range(4):
        out, memory = made.act_in_episode(torch.randn(6, 3), memory, None)
        torch.testing.assert_close(out.action, CHUNK[-1].expand(6, -1), rtol=0, atol=2e-5)
    assert calls == pytest.approx([*calls[:10], *(list(process.warm) * 3)]), "a full sample once, then the short list"


def test_a_switch_is_executed_at_an_end_of_its_range_and_kept_small_in_the_guess():
    process = FlowProcess("midpoint", 5, (0.9,))
    made = ChunkPolicy(3, 2, PointMass(CHUNK, process), process, Window(2, 4, 1), switches=[1], switch_guess=0.1).eval()
    made.action_normalizer.fit(torch.tensor([[0.0, -0.5], [1.0, 0.5]]))
    out, memory = made.act_in_episode(torch.randn(6, 3), None, None)
    assert torch.equal(out.action[:, 1], torch.full((6,), 0.5)), "row 1 of the chunk has 0.3 there"
    torch.testing.assert_close(memory.plan[..., 1], torch.tensor([-0.1, 0.1, -0.1, -0.1]).expand(6, -1))
    torch.testing.assert_close(memory.plan[..., 0], CHUNK[:, 0].expand(6, -1), rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"switches=\[2\]: an action has the numbers 0 ... 1"):
        ChunkPolicy(3, 2, PointMass(CHUNK, process), process, Window(2, 4, 1), switches=[2])
