"""What a callback sees of training: the names SB3 gives to the parts of a vector step, and the ends of episodes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrlrl.train.rollout import EpisodeTracker, Steps
from ctrlrl.types import Metrics, PolicyOutput, Rollout, TimeStep

Info = dict[str, Any]
HIDDEN = ("final_obs", "final_info", "final_observation")


class EpisodeLog(EpisodeTracker):
    """Also keeps the last episodes of every rollout one by one: what fills ep_info_buffer where nobody watches."""

    def __init__(self, n_envs: int, device: torch.device, *, skip_first: bool, window: int):
        super().__init__(n_envs, device, skip_first=skip_first)
        self.window = window
        self.last: list[tuple[float, int]] = []  # return, length; in the order in which they ended
        self.success: list[float] = []

    def ended(self, rollout: Rollout | Steps) -> tuple[Tensor, Tensor]:
        sums, counted = super().ended(rollout)
        t, lane = counted.nonzero()[-self.window :].unbind(1)
        self.last = [(r, int(n)) for r, n in sums[t, :, lane].tolist()]
        self.success = []
        if "success" in rollout.extras:
            told = rollout.extras["success"][rollout.terminated | rollout.truncated]
            self.success = told[~told.isnan()][-self.window :].tolist()
        return sums, counted


class LaneInfos:
    """One info dict a lane and step, as SB3 has them: the environment's own, and what it does not say at an end.

    running: [2, B] return and length of the episodes under way; counts: [B] False where one was cut short by design.
    """

    def __init__(self, env: Any, spaces: Any, running: Any, counts: Any):
        self.env, self.spaces, self.running, self.counts = env, spaces, running, counts
        self.start = time.time()

    def __call__(self, step: TimeStep, done: Any) -> list[Info]:
        given = getattr(self.env, "infos", {})
        n = self.env.spec.n_envs
        reward = step.reward.cpu().numpy()
        counting = step.extras["mask"].cpu().numpy() if "mask" in step.extras else 1.0
        self.running += np.stack((reward if reward.ndim == 1 else reward.sum(-1), np.ones(n) * counting))
        if isinstance(given, Mapping):
            infos = [lane_info(given, lane, bool(done[lane])) for lane in range(n)]
            self._add_ends(infos, step, done)
        else:
            infos = list(given)  # of an SB3 environment, which says all this itself
        self.running[:, done] = 0.0
        self.counts |= done
        return infos

    def _add_ends(self, infos: list[Info], step: TimeStep, done: Any) -> None:
        truncated = step.truncated.cpu().numpy()
        lanes = done.nonzero()[0]
        for info in infos:
            info["TimeLimit.truncated"] = False
        if not len(lanes):
            return
        final = self.spaces.observations(step.final_obs[torch.as_tensor(lanes, device=step.final_obs.device)])
        for i, lane in enumerate(lanes):
            info = infos[lane]
            info["terminal_observation"] = _row(final, i)
            info["TimeLimit.truncated"] = bool(truncated[lane])
            if "success" in step.extras and not torch.isnan(step.extras["success"][lane]):
                info.setdefault("is_success", bool(step.extras["success"][lane]))
            if self.counts[lane] and "episode" not in info:
                total, length = self.running[:, lane]
                seconds = round(time.time() - self.start, 6)
                info["episode"] = {"r": round(float(total), 6), "l": int(length), "t": seconds}


class Watch:
    """The collector's `on_step` while a callback is there, or an environment that has infos of its own.

    model:   its num_timesteps, ep_info_buffer and ep_success_buffer are kept.
    tracker: knows the episodes under way when watching starts; `hand_back` tells it of a rollout that was cut short.
    """

    def __init__(self, model: Any, env: Any, tracker: EpisodeTracker, callback: Any, spaces: Any):
        self.model, self.env, self.tracker, self.callback, self.spaces = model, env, tracker, callback, spaces
        running, counts = tracker.running.double().cpu().numpy().copy(), tracker.counts.cpu().numpy().copy()
        self.infos = LaneInfos(env, spaces, running, counts)
        self.n_steps = 0

    def __call__(self, obs: Tensor, out: PolicyOutput, step: TimeStep) -> bool:
        model = self.model
        model.num_timesteps += self.env.spec.n_envs
        done = (step.terminated | step.truncated).cpu().numpy().copy()
        infos = self.infos(step, done)
        if self.callback is not None:
            self.callback.update_locals(self._locals(obs, out, step, done, infos))
            if not self.callback.on_step():
                return False
        for lane, info in enumerate(infos):
            if "episode" in info:
                model.ep_info_buffer.append(info["episode"])
            if done[lane] and info.get("is_success") is not None:
                model.ep_success_buffer.append(info["is_success"])
        self.n_steps += 1
        return True

    def hand_back(self) -> None:
        self.tracker.running.copy_(torch.as_tensor(self.infos.running))
        self.tracker.counts.copy_(torch.as_tensor(self.infos.counts))

    def _locals(self, obs: Tensor, out: PolicyOutput, step: TimeStep, done: Any, infos: list[Info]) -> dict[str, Any]:
        spaces, learner = self.spaces, self.model.learner
        assert out.log_prob is not None
        return {
            "self": self.model,
            "env": self.model.get_env(),
            "callback": self.callback,
            "n_steps": self.n_steps,
            "n_rollout_steps": self.model.n_steps,
            "obs_tensor": spaces.network_tensors(spaces.observations(obs), obs.device)[0],
            "new_obs": spaces.observations(step.obs),
            "actions": spaces.unscaled(out.action).cpu().numpy(),
            "clipped_actions": spaces.action_codec.decode(out.action),
            "values": learner.actor_value(learner.value(obs)).unsqueeze(-1),
            "log_probs": out.log_prob - spaces.log_volume,
            "rewards": step.reward.cpu().numpy().copy(),
            "dones": done,
            "infos": infos,
        }


class ReplayWatch(Watch):
    """The `on_step` of a loop over replayed steps; dumps the logs after every `log_interval`-th episode."""

    def __init__(self, model: Any, loop: Any, callback: Any, spaces: Any, log_interval: int | None):
        super().__init__(model, loop.env, loop.episodes, callback, spaces)
        self.loop, self.log_interval = loop, log_interval
        self.n_episodes, self.goes_on = 0, True

    def __call__(self, obs: Tensor, out: PolicyOutput, step: TimeStep) -> bool:
        self.goes_on = super().__call__(obs, out, step)
        for _ in range(int((step.terminated | step.truncated).sum()) if self.goes_on else 0):
            self.n_episodes += 1
            self.model._episode_num += 1
            if self.log_interval and self.model._episode_num % self.log_interval == 0:
                self.model.dump_logs()
        return self.goes_on

    def _locals(self, obs: Tensor, out: PolicyOutput, step: TimeStep, done: Any, infos: list[Info]) -> dict[str, Any]:
        spaces, model = self.spaces, self.model
        return {
            "self": model,
            "env": model.get_env(),
            "callback": self.callback,
            "replay_buffer": self.loop.buffer,
            "num_collected_steps": self.n_steps + 1,
            "num_collected_episodes": self.n_episodes,
            "new_obs": spaces.observations(step.obs),
            "buffer_actions": out.action.cpu().numpy(),
            "actions": spaces.action_codec.decode(out.action),
            "rewards": step.reward.cpu().numpy().copy(),
            "dones": done,
            "infos": infos,
        }


class UpdateWatch:
    """The `on_update` of a loop over a data set; dumps the logs after every `log_interval`-th update."""

    def __init__(self, model: Any, callback: Any, log_interval: int | None):
        self.model, self.callback, self.log_interval = model, callback, log_interval
        self.goes_on = True

    def __call__(self, metrics: Metrics) -> bool:
        model = self.model
        model.num_timesteps += 1
        model.offline_steps += 1
        model._means.add(metrics)
        self.callback.update_locals({"self": model, "callback": self.callback, "metrics": metrics})
        self.goes_on = self.callback.on_step()
        if self.log_interval and model.offline_steps % self.log_interval == 0:
            model.dump_logs()
        return self.goes_on


def lane_info(infos: Mapping[str, Any], lane: int, done: bool) -> Info:
    """One lane's info of a Gymnasium vector environment's; at an episode's end the one of its last step."""
    source = infos.get("final_info", infos) if done else infos
    found = {}
    for key, value in source.items():
        if key.startswith("_") or key in HIDDEN or not source.get(f"_{key}", _ALL)[lane]:
            continue
        found[key] = lane_info(value, lane, False) if isinstance(value, Mapping) else value[lane]
    return found


class _All:
    def __getitem__(self, lane: int) -> bool:
        return True


_ALL = _All()


def _row(batch: Any, i: int) -> Any:
    if isinstance(batch, dict):
        return {key: _row(value, i) for key, value in batch.items()}
    return tuple(_row(value, i) for value in batch) if isinstance(batch, tuple) else batch[i]


class RolloutView:
    """A rollout under the names and shapes of SB3's RolloutBuffer: arrays [n_steps, n_envs, ...], made when asked for.

    actions are in the units of the space, log_probs and advantages those of the learner; rewards hold no bootstrap.
    """

    full = True

    def __init__(self, rollout: Rollout, learner: Any, spaces: Any):
        self._rollout, self._learner, self._spaces = rollout, learner, spaces
        self.buffer_size, self.n_envs = rollout.terminated.shape

    @property
    def observations(self) -> Any:
        return _lanes(self._spaces.observations(self._rollout.obs.flatten(0, 1)), self._rollout.terminated.shape)

    @property
    def actions(self) -> Any:
        flat = self._spaces.unscaled(self._rollout.action.flatten(0, 1)).cpu().numpy()
        return flat.reshape(self.buffer_size, self.n_envs, -1)

    @property
    def rewards(self) -> Any:
        return self._rollout.reward.cpu().numpy()

    @property
    def values(self) -> Any:
        return self._learner.actor_value(self._rollout.value).cpu().numpy()

    @property
    def log_probs(self) -> Any:
        return self._rollout.log_prob.cpu().numpy() - self._spaces.log_volume

    @property
    def episode_starts(self) -> Any:
        """1 where a step is the first of an episode; the first row is not known and 0."""
        done = (self._rollout.terminated | self._rollout.truncated).cpu().numpy().astype(np.float32)
        return np.concatenate((np.zeros_like(done[:1]), done[:-1]))

    @property
    def advantages(self) -> Any:
        found = self._learner.foreseen(self._rollout)[0]
        return (found if found.ndim == 2 else self._learner.actor_value(found)).cpu().numpy()

    @property
    def returns(self) -> Any:
        return self.advantages + self.values


def _lanes(batch: Any, shape: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _lanes(value, shape) for key, value in batch.items()}
    return (
        tuple(_lanes(v, shape) for v in batch) if isinstance(batch, tuple) else batch.reshape(*shape, *batch.shape[1:])
    )
