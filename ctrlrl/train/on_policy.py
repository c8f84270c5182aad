"""The on-policy loop: collect a rollout, hand it to the learner, repeat. It knows no algorithm and no environment."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ctrlrl.core.actor_critic import ActorCriticLearner
from ctrlrl.train.rollout import Collector, EpisodeSums, EpisodeTracker, fresh_seed, recent_means
from ctrlrl.types import Metrics, Rollout, VecEnv


class OnPolicyLoop:
    """One `iterate` is one rollout and one update. Counters are plain integers; `state_dict` holds all tensors."""

    clock = "env_steps"

    def __init__(
        self,
        learner: ActorCriticLearner,
        env: VecEnv,
        *,
        n_steps: int,
        total_steps: int,
        seed: int | None,
        staggered: bool,
        graph: bool = False,
    ):
        self.learner, self.env, self.total_steps, self.seed = learner, env, total_steps, seed
        self.collector = Collector(env, learner, n_steps, graph=graph)
        self.episodes = EpisodeTracker(env.spec.n_envs, env.spec.device, skip_first=staggered)
        self.recent: deque[EpisodeSums] = deque(maxlen=4096)  # rollouts, where nobody asks for the metrics
        self.env_steps = 0
        self.gradient_steps = 0
        self.steps_per_iteration = n_steps * env.spec.n_envs * learner.ranks.size
        self._check_env = getattr(env, "check", lambda: None)
        self.collector.reset(seed)

    @property
    def done(self) -> bool:
        return self.env_steps >= self.total_steps

    def iterate(self) -> Metrics:
        rollout = self.collect()
        return {} if rollout is None else self.learn(rollout)

    def collect(self) -> Rollout | None:
        """One rollout; None where the collector's `on_step` ended it."""
        rollout = self.collector.collect()
        if rollout is not None:
            self._check_env()
            self._check_finite(rollout)
            self.recent.append(self._of_all_ranks(self.episodes.advance(rollout)))
        return rollout

    def learn(self, rollout: Rollout) -> Metrics:
        self.learner.set_progress(self.env_steps / self.total_steps)
        metrics = self.learner.ranks.averaged(self.learner.update(rollout))
        self.env_steps += self.steps_per_iteration
        self.gradient_steps += int(metrics.pop("train/gradient_steps"))
        return metrics

    def _of_all_ranks(self, sums: EpisodeSums) -> EpisodeSums:
        if self.learner.ranks.size == 1:
            return sums
        return EpisodeSums(*self.learner.ranks.stacked(torch.stack([x.double() for x in sums])).sum(0))

    def episode_metrics(self) -> dict[str, float]:
        return recent_means(self.recent)

    def _check_finite(self, rollout: Rollout) -> None:
        """Stop before a NaN or an infinity reaches the weights. On CUDA this is the rollout's one host read."""
        sums = rollout.obs.sum() + rollout.reward.sum() + rollout.next_value.sum() + rollout.log_prob.sum()
        sums = self.learner.ranks.mean_(sums)
        if bool(torch.isfinite(sums)):
            return
        acted = torch.isfinite(rollout.log_prob[0]).all() and torch.isfinite(rollout.value[0]).all()
        if torch.isfinite(rollout.obs[0]).all() and not acted:
            raise ValueError(
                f"training diverged: after {self.env_steps} environment steps the networks give numbers that are not "
                "finite. Lower algo.learning_rate."
            )
        # the last observation of an episode or of the rollout is not stored: only its value tells
        after = rollout.next_value.where(torch.isfinite(rollout.value), 0.0)
        for name, tensor in (("observation", rollout.obs), ("reward", rollout.reward), ("next observation", after)):
            bad = (~torch.isfinite(tensor)).nonzero()
            if len(bad):
                t, lane = bad[0, :2].tolist()
                step = self.env_steps + t * self.env.spec.n_envs
                raise ValueError(
                    f"the environment gave a non-finite {name} ({tensor[tuple(bad[0])].item()}) in lane {lane} after "
                    f"about {step} environment steps. Training stopped before it reached the policy; mend the "
                    "environment."
                )
        if self.learner.ranks.size > 1:
            raise ValueError("another rank met a number that is not finite; what it said tells which")

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"env/{k}": v for k, v in self.env.state_dict().items()}
        assert self.collector.obs is not None
        state["obs"] = self.collector.obs
        state["episodes/running"], state["episodes/counts"] = self.episodes.running, self.episodes.counts
        if self.recent:
            state["episodes/recent"] = torch.tensor(
                [[float(x) for x in sums] for sums in self.recent], dtype=torch.float64
            )
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.recent = deque((EpisodeSums(*row) for row in state.get("episodes/recent", torch.empty(0, 3))), maxlen=4096)
        env_state = {k.removeprefix("env/"): v for k, v in state.items() if k.startswith("env/")}
        if not env_state:
            # the environment cannot be restored: its episodes start anew, not with the seeds the run began with
            self.learner.forget_episodes()
            if self.seed is not None:
                self.collector.reset(fresh_seed(self.seed, self.env_steps))
            return
        self.env.load_state_dict(env_state)
        assert self.collector.obs is not None
        self.collector.obs.copy_(state["obs"])
        self.episodes.running.copy_(state["episodes/running"])
        self.episodes.counts.copy_(state["episodes/counts"])
