"""How often a sampler asks its network is what its settings say."""

import pytest

from ctrlrl.policies.diffusion import DiffusionProcess, FlowProcess
from ctrlrl.policies.rehearsal import rehearsed


def diffusion(sampler: str) -> DiffusionProcess:
    return DiffusionProcess(100, "noise", sampler, 10, "leading", (2, 1, 0))


@pytest.mark.parametrize(
    ("solve", "levels", "n_draws"),
    [
        (diffusion("ddim").sample, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0], 0),
        (diffusion("ddpm").sample, list(range(99, -1, -1)), 99),
        (diffusion("ddim").resume, [2, 1, 0], 2),
        (FlowProcess("euler", 4, (0.9,)).sample, [0.0, 0.25, 0.5, 0.75], 0),
        (FlowProcess("midpoint", 2, (0.9,)).sample, [0.0, 0.25, 0.5, 0.75], 0),
        (FlowProcess("euler", 4, (0.8, 0.9)).resume, [0.8, 0.9], 0),
    ],
)
def test_levels_and_draws_are_counted(solve, levels, n_draws):
    assert rehearsed(solve) == (pytest.approx(levels), n_draws)
