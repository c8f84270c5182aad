"""Callbacks: when they are called, what they see, and that watching changes nothing."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrlrl import PPO, BaseCallback, make_env
from ctrlrl.api import Agent
from ctrlrl.train.callbacks import CallbackList, FunctionCallback, as_callback


def small(env: Any = "Pendulum-v1", **changes: Any) -> Agent:
    return PPO("MlpPolicy", env, **{"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, **changes})


def weights(model: Agent) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.policy.parameters()])


class Record(BaseCallback):
    def __init__(self, stop_after: int = 10**9):
        super().__init__()
        self.stop_after = stop_after
        self.moments: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.moments.append("training start")

    def _on_rollout_start(self) -> None:
        self.moments.append("rollout start")

    def _on_step(self) -> bool:
        self.steps.append({**self.locals, "count": self.num_timesteps})
        return self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.moments.append("rollout end")

    def _on_training_end(self) -> None:
        self.moments.append("training end")


class Clock(gym.Env[Any, Any]):
    """Observation: the step in the episode of 5 steps; reward: the step; even lanes' ends are terminations."""

    observation_space = spaces.Box(0, 10, (1,), np.float64)
    action_space = spaces.Box(-3.0, 1.0, (1,), np.float32)

    def __init__(self, truncates: bool = True):
        self.truncates = truncates

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        end = self.t == 5
        info = {"own": self.t * 10, "is_success": self.truncates}
        return np.array([float(self.t)]), float(self.t), end and not self.truncates, end and self.truncates, info


def clocks(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Clock(True), lambda: Clock(False)], autoreset_mode=mode)


def test_every_moment_comes_in_order_and_counts_environment_steps():
    record = Record()
    small(n_envs=3).learn(190, callback=record)
    rollout = ["rollout start", "rollout end"]
    assert record.moments == ["training start", *rollout, *rollout, "training end"]
    assert [step["count"] for step in record.steps] == list(range(3, 195, 3))
    assert [step["n_steps"] for step in record.steps] == [*range(32), *range(32)]


def test_false_ends_training_at_once_and_the_next_learn_goes_on_from_there():
    record = Record(stop_after=38)
    model = small(clocks())
    model.learn(1000, callback=record)
    assert (model.num_timesteps, len(record.steps)) == (76, 38)
    assert record.moments[-1] == "training end"
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 140
    # cut off inside an episode, which goes on where it stood: all have 5 steps and the return 15
    assert {(info["r"], info["l"]) for info in model.ep_info_buffer} == {(15.0, 5)}
    assert len(model.ep_info_buffer) == 28


@pytest.mark.parametrize("env", ["CartPole-v1", "gymnasium"])
def test_watching_changes_nothing(env):
    def model() -> Agent:
        return small(clocks() if env == "gymnasium" else env, n_envs=2)

    alone, watched = model().learn(256), model().learn(256, callback=[Record(), lambda locals_, globals_: True])
    assert torch.equal(weights(alone), weights(watched))
    episodes = [[(info["r"], info["l"]) for info in m.ep_info_buffer] for m in (alone, watched)]
    assert np.allclose(episodes[0], episodes[1], rtol=1e-5)
    assert len(alone.ep_info_buffer) > 1
    assert list(alone.ep_success_buffer) == list(watched.ep_success_buffer)


def test_nothing_is_computed_at_a_step_where_nobody_watches(monkeypatch):
    model = small(make_env("pendulum", 2, seed=0, stagger=False))
    calls = []
    value = model.learner.value
    monkeypatch.setattr(model.learner, "value", lambda obs: calls.append(obs.shape) or value(obs))
    model.learn(64)
    assert model._loop.collector.on_step is None
    assert calls == [(32, 2, 3), (2, 3)]  # the rollout at once, and its last observation
    model.learn(64, callback=lambda locals_, globals_: True)
    assert len(calls) == 4 + 32


def test_a_step_shows_what_the_environment_was_given_and_gave():
    record = Record()
    model = small(clocks(), policy_kwargs={"log_std_init": 1.0})
    model.learn(64, callback=record)
    for before, step in zip(record.steps, record.steps[1:], strict=False):
        assert step["obs_tensor"].tolist() == before["new_obs"].tolist()
    fourth, fifth = record.steps[3:5]
    assert (fourth["new_obs"].tolist(), fourth["new_obs"].dtype) == ([[4.0], [4.0]], np.float64)
    assert fourth["rewards"].tolist() == [4.0, 4.0]
    assert not fourth["dones"].any()
    assert [info["own"] for info in fourth["infos"]] == [40, 40]
    assert fifth["dones"].all()
    assert fifth["new_obs"].tolist() == [[0.0], [0.0]]
    for lane, info in enumerate(fifth["infos"]):
        assert info["terminal_observation"].tolist() == [5.0]
        assert info["TimeLimit.truncated"] is (lane == 0)
        assert (info["own"], info["is_success"]) == (50, lane == 0)
        assert (info["episode"]["r"], info["episode"]["l"]) == (15.0, 5)
    actions = np.concatenate([step["actions"] for step in record.steps])
    clipped = np.concatenate([step["clipped_actions"] for step in record.steps])
    assert (actions < -3.0).any()
    assert np.clip(actions, -3.0, 1.0) == pytest.approx(clipped, abs=1e-6)


def test_values_and_log_probabilities_are_those_of_the_policy_that_acted():
    record = Record()
    model = small(clocks())
    model.learn(64, callback=record)
    fresh = small(clocks())  # the same seed: the policy before the first update
    first = record.steps[0]
    actions = torch.as_tensor(first["actions"])
    values, log_prob, _ = fresh.policy.evaluate_actions(first["obs_tensor"], actions)
    torch.testing.assert_close(first["values"], values.detach())
    torch.testing.assert_close(first["log_probs"], log_prob.detach(), rtol=1e-4, atol=1e-4)


def test_what_a_callback_keeps_is_not_overwritten_by_the_next_step():
    record = Record()
    small(make_env("pendulum", 2, seed=0)).learn(64, callback=record)
    observations = np.stack([step["new_obs"] for step in record.steps])
    rewards = np.stack([step["rewards"] for step in record.steps])
    assert len(np.unique(observations[:, 0], axis=0)) == 32
    assert len(np.unique(rewards[:, 0])) == 32


def test_a_reset_step_of_a_vector_environment_is_no_episode():
    model = small(clocks(AutoresetMode.NEXT_STEP))
    model.learn(64, callback=Record())
    assert {(info["r"], info["l"]) for info in model.ep_info_buffer} == {(15.0, 5)}
    assert len(model.ep_info_buffer) == 10  # 32 steps: five of an episode and one of its reset


def test_first_episodes_of_staggered_lanes_are_not_reported():
    record = Record()
    model = small("Pendulum-v1", n_envs=8, n_steps=250, batch_size=500)
    model.learn(2000, callback=record)
    assert {info["l"] for info in model.ep_info_buffer} == {200}
    ended = [info for step in record.steps for info in step["infos"] if "terminal_observation" in info]
    assert len(ended) > len(model.ep_info_buffer)


def test_the_rollout_buffer_has_the_last_rollout_in_sb3s_shapes():
    record = Record()
    model = small(clocks())
    model.learn(64, callback=record)
    buffer = model.rollout_buffer
    assert (buffer.buffer_size, buffer.n_envs) == (32, 2)
    assert buffer.observations.shape == (32, 2, 1)
    assert np.array_equal(buffer.observations[1:], np.stack([s["new_obs"] for s in record.steps[:-1]]))
    assert np.array_equal(buffer.rewards, np.stack([s["rewards"] for s in record.steps]))
    assert buffer.actions == pytest.approx(np.stack([s["actions"] for s in record.steps]), abs=1e-6)
    assert buffer.log_probs == pytest.approx(np.stack([s["log_probs"] for s in record.steps]), abs=1e-6)
    assert buffer.episode_starts[:, 0].nonzero()[0].tolist() == [5, 10, 15, 20, 25, 30]
    assert buffer.returns == pytest.approx(buffer.advantages + buffer.values, abs=1e-4)


def test_functions_and_lists_become_callbacks_and_other_things_are_refused():
    assert isinstance(as_callback(print), FunctionCallback)
    assert isinstance(as_callback([print, Record()]), CallbackList)
    record = Record()
    assert as_callback(record) is record
    with pytest.raises(TypeError, match="callback must be"):
        as_callback(3)


@pytest.mark.parametrize(("answer", "goes_on"), [(True, True), (None, True), (False, False), (np.False_, False)])
def test_a_function_ends_training_with_anything_false_but_none(answer, goes_on):
    callback = FunctionCallback(lambda locals_, globals_: answer)
    callback.model = small()
    assert callback.on_step() is goes_on


def test_all_of_a_list_are_called_even_if_the_first_one_ends_training():
    first, second = Record(stop_after=3), Record()
    small().learn(64, callback=[first, second])
    assert (len(first.steps), len(second.steps)) == (3, 3)
