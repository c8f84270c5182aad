"""The batched closed loop against a plain one with a deque and a queue for every environment."""

from collections import deque

import pytest
import torch
from torch import Tensor

from ctrlrl.functional.samplers import shifted
from ctrlrl.policies.receding import Memory, advance
from ctrlrl.types import Window

STEPS, LANES = 40, 5


def plan_of(window: Window):
    """A plan [n, H, 2] that tells of all observations seen, and of the row."""

    def plan(seen: Tensor) -> Tensor:
        weights = torch.arange(1.0, window.n_obs + 1)
        told = (seen * weights.view(-1, 1)).sum((1, 2))
        return torch.stack(
            (told.unsqueeze(1) + torch.arange(window.horizon), -told.unsqueeze(1).expand(-1, window.horizon)), -1
        )

    return plan


def by_hand(obs: Tensor, begins: Tensor, window: Window, plan) -> Tensor:
    """Actions [T, B, 2] of Diffusion Policy's loop: one environment after another."""
    actions = torch.zeros(len(obs), obs.shape[1], 2)
    for lane in range(obs.shape[1]):
        for t in range(len(obs)):
            if begins[t, lane]:
                seen = deque([obs[t, lane]] * window.n_obs, maxlen=window.n_obs)
                queue: deque[Tensor] = deque()
            else:
                seen.append(obs[t, lane])
            if not queue:
                chunk = plan(torch.stack(list(seen)).unsqueeze(0))[0]
                queue.extend(chunk[window.n_obs - 1 : window.n_obs - 1 + window.n_actions])
            actions[t, lane] = queue.popleft()
    return actions


def run(obs: Tensor, begins: Tensor, window: Window, plan, follow=None) -> tuple[Tensor, list[Memory]]:
    memory, actions, memories = None, [], []
    for t in range(len(obs)):
        begun = None if t == 0 or not begins[t].any() else begins[t]
        action, memory = advance(memory, obs[t], begun, window, plan, follow)
        actions.append(action)
        memories.append(memory)
    return torch.stack(actions), memories


def episodes(share: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    begins = torch.rand(STEPS, LANES) < share
    begins[0] = True
    return torch.randint(0, 100, (STEPS, LANES, 3)).float(), begins


@pytest.mark.parametrize(
    "window", [Window(2, 16, 8), Window(1, 1, 1), Window(3, 5, 3), Window(1, 4, 4), Window(4, 8, 1)]
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_each_environment_acts_as_if_it_were_alone(window, share):
    obs, begins = episodes(share)
    got, _ = run(obs, begins, window, plan_of(window))
    assert torch.equal(got, by_hand(obs, begins, window, plan_of(window)))


def test_environments_in_step_plan_together_and_only_when_their_queues_are_empty():
    window, asked = Window(2, 16, 8), []

    def plan(seen: Tensor) -> Tensor:
        asked.append(len(seen))
        return plan_of(window)(seen)

    obs, begins = episodes(0.0)
    _, memories = run(obs, begins, window, plan)
    assert asked == [LANES] * (STEPS // 8)
    assert [m.phase for m in memories[:9]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_environments_out_of_step_plan_where_they_must_and_meet_again_when_all_begin():
    window, asked = Window(1, 4, 4), []

    def plan(seen: Tensor) -> Tensor:
        asked.append(len(seen))
        return plan_of(window)(seen)

    obs, begins = episodes(0.0)
    begins[2, 1] = True  # lane 1 then plans at 2, 6, 10, ...; the others at 0, 4, 8, ...
    begins[7] = True
    _, memories = run(obs[:10], begins[:10], window, plan)
    assert asked == [LANES, 1, LANES - 1, 1, LANES]
    assert [m.phase for m in memories] == [1, 2, -1, -1, -1, -1, -1, 1, 2, 3]


def test_a_plan_that_follows_the_last_one_is_its_shift_but_for_new_episodes():
    window = Window(2, 4, 1)
    obs, begins = episodes(0.0)
    begins[3, 2] = True

    def plan(seen: Tensor) -> Tensor:
        return seen[:, -1, :1].unsqueeze(1) + torch.arange(4.0).view(1, 4, 1)

    got, memories = run(obs[:6], begins[:6], window, plan, lambda seen, guess: guess + 1000.0)
    first = plan(obs[0].unsqueeze(1))
    for t, memory in enumerate(memories[:3]):
        wanted = first
        for _ in range(t):
            wanted = shifted(wanted) + 1000.0
        assert torch.equal(memory.plan, wanted)
        assert torch.equal(got[t], wanted[:, 1])
    fresh = plan(obs[3, 2:3].unsqueeze(1))
    assert torch.equal(memories[3].plan[2:3], fresh)
    assert torch.equal(memories[4].plan[2:3], shifted(fresh) + 1000.0)
    assert torch.equal(memories[3].plan[:2], shifted(memories[2].plan[:2]) + 1000.0)


def test_a_state_of_other_environments_is_refused_with_both_numbers():
    window = Window(1, 2, 2)
    _, memory = advance(None, torch.zeros(3, 3), None, window, plan_of(window))
    with pytest.raises(ValueError, match="state is of 3 environments, got 4 observations"):
        advance(memory, torch.zeros(4, 3), None, window, plan_of(window))
