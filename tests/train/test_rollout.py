"""The collector on an environment whose every number is known, and the episode tracker against a plain loop."""

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.train.rollout import Collector, EpisodeTracker
from ctrlrl.types import EnvSpec, PolicyOutput, Rollout, TimeStep

CPU = torch.device("cpu")


class CountingEnv:
    """Lane i counts 100 i, 100 i + 1, ... until the last digits reach `ends[i]`, and then starts again.

    Lane 0 is truncated, lane 1 terminated, lane 2 never ends.
    """

    def __init__(self) -> None:
        self.spec = EnvSpec(1, 1, 0, 1, 3, 0, CPU)
        self.ends = torch.tensor([3, 2, 10**6])
        self.count = torch.zeros(3, dtype=torch.int64)
        self.actions: list[Tensor] = []

    def _obs(self, count: Tensor) -> Tensor:
        return (100.0 * torch.arange(3) + count).unsqueeze(1)

    def reset(self, seed: int | None = None) -> Tensor:
        self.count.zero_()
        return self._obs(self.count)

    def step(self, action: Tensor) -> TimeStep:
        self.actions.append(action.clone())
        self.count += 1
        final = self._obs(self.count)
        done = self.count >= self.ends
        self.count[done] = 0
        lane = torch.arange(3)
        reward = final.squeeze(1) / 100.0
        extras = {"odd": (self.count % 2).float()}
        return TimeStep(self._obs(self.count), final, reward, done & (lane == 1), done & (lane == 0), extras)


class LinearLearner(nn.Module):
    """Acts with the negated observation; V(s) = 2 s + 1."""

    log_prob_shape = ()

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        return PolicyOutput(-obs, obs.squeeze(1) / 7.0, {"mean": obs * 3.0})

    def value(self, obs: Tensor) -> Tensor:
        return 2.0 * obs.squeeze(-1) + 1.0


def collected(n_steps: int) -> tuple[Collector, CountingEnv, Rollout]:
    env = CountingEnv()
    collector = Collector(env, LinearLearner(), n_steps)  # type: ignore[arg-type]
    collector.reset(0)
    return collector, env, collector.collect()


def test_a_row_holds_the_observation_acted_on_the_action_and_its_reward():
    _, env, rollout = collected(5)
    assert rollout.obs[..., 0].T.tolist() == [[0, 1, 2, 0, 1], [100, 101, 100, 101, 100], [200, 201, 202, 203, 204]]
    assert torch.equal(rollout.action, -rollout.obs)
    assert torch.equal(rollout.action, torch.stack(env.actions))
    assert torch.allclose(rollout.log_prob, rollout.obs[..., 0] / 7.0)
    assert torch.allclose(rollout.reward.T[1], torch.tensor([1.01, 1.02, 1.01, 1.02, 1.01]))
    assert rollout.truncated.T.tolist() == [[False, False, True, False, False], [False] * 5, [False] * 5]
    assert rollout.terminated.T.tolist() == [[False] * 5, [False, True, False, True, False], [False] * 5]


def test_extras_of_policy_and_environment_are_kept():
    _, _, rollout = collected(4)
    assert torch.equal(rollout.extras["mean"], rollout.obs * 3.0)
    assert rollout.extras["odd"].T.tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 1, 0]]


def test_next_value_is_that_of_the_final_observation_at_a_truncation_and_of_the_next_one_elsewhere():
    _, _, rollout = collected(5)
    assert torch.equal(rollout.value, 2.0 * rollout.obs[..., 0] + 1.0)
    # lane 0: 0 -> 1 -> 2 -> 3 (truncated; its value is 7, that of the fresh observation would be 1) -> 1 -> 2
    assert rollout.next_value.T[0].tolist() == [3.0, 5.0, 7.0, 3.0, 5.0]
    assert rollout.next_value.T[2].tolist() == [403.0, 405.0, 407.0, 409.0, 411.0]
    ok = ~rollout.terminated.T[1]
    assert rollout.next_value.T[1][ok].tolist() == [203.0, 203.0, 203.0]


def test_the_next_rollout_goes_on_where_the_last_one_stopped():
    collector, _, _ = collected(5)
    rollout = collector.collect()
    assert rollout.obs[..., 0].T[0].tolist() == [2, 0, 1, 2, 0]
    assert rollout.obs[..., 0].T[2].tolist() == [205, 206, 207, 208, 209]
    assert rollout.next_value.T[0].tolist() == [7.0, 3.0, 5.0, 7.0, 3.0], "no truncation of the last rollout may linger"


def test_an_extra_that_appears_late_is_not_known_before():
    env = CountingEnv()
    step = env.step

    def late(action: Tensor) -> TimeStep:
        out = step(action)
        return out if len(env.actions) > 2 else out._replace(extras={})

    env.step = late  # type: ignore[method-assign]
    collector = Collector(env, LinearLearner(), 4)  # type: ignore[arg-type]
    collector.reset(0)
    assert collector.collect().extras["odd"][:2].isnan().all()


def plain_tracker(rollouts: list[Rollout], *, skip_first: bool) -> list[tuple[int, float, float]]:
    """(episodes, sum of returns, sum of lengths) of each rollout."""
    n = rollouts[0].reward.shape[1]
    total, length, first = [0.0] * n, [0] * n, [skip_first] * n
    out = []
    for rollout in rollouts:
        count, returns, lengths = 0, 0.0, 0.0
        mask = rollout.extras.get("mask", torch.ones_like(rollout.terminated))
        for t in range(rollout.reward.shape[0]):
            for lane in range(n):
                total[lane] += float(rollout.reward[t, lane])
                length[lane] += int(mask[t, lane])
                if rollout.terminated[t, lane] or rollout.truncated[t, lane]:
                    if not first[lane]:
                        count, returns, lengths = count + 1, returns + total[lane], lengths + length[lane]
                    total[lane], length[lane], first[lane] = 0.0, 0, False
        out.append((count, returns, lengths))
    return out


@pytest.mark.parametrize("skip_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_episode_sums_equal_a_plain_loop(skip_first, masked):
    g = torch.Generator().manual_seed(4)
    rollouts, resetting = [], torch.zeros(5, dtype=torch.bool)
    for _ in range(4):
        reward = torch.randn(9, 5, generator=g)
        ends, kind = torch.rand(9, 5, generator=g) < 0.25, torch.rand(9, 5, generator=g) < 0.5
        extras = {}
        if masked:  # NEXT_STEP: the step after an end is only a reset
            mask = torch.ones(9, 5, dtype=torch.bool)
            for t in range(9):
                mask[t] = ~resetting
                ends[t] &= mask[t]
                resetting = ends[t].clone()
            reward, extras = reward * mask, {"mask": mask}
        empty = torch.empty(9, 5)
        rollouts.append(Rollout(empty, empty, empty, empty, empty, reward, ends & kind, ends & ~kind, extras))
    tracker = EpisodeTracker(5, CPU, skip_first=skip_first)
    for rollout, expected in zip(rollouts, plain_tracker(rollouts, skip_first=skip_first), strict=True):
        sums = tracker.advance(rollout)
        assert int(sums.episodes) == expected[0]
        assert float(sums.returns) == pytest.approx(expected[1], abs=1e-4)
        assert float(sums.lengths) == expected[2]
