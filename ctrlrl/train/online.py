"""The online off-policy loop: steps of all environments into a replay buffer, and updates from it.

With a data set: updates from that alone first, then batches of both. It knows no algorithm and no environment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import OffPolicyLearner, OnlineConfig
from ctrlrl.data.arrivals import Arrivals, Seen, WholeEpisodes
from ctrlrl.data.episodes import Facts
from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.train.off_policy import Means, OfflineLoop
from ctrlrl.train.rollout import EpisodeSums, EpisodeTracker, Steps, fresh_seed, recent_means
from ctrlrl.types import Extras, Metrics, PolicyOutput, Source, TimeStep, Transition, VecEnv, tree_map

CHUNK = 50  # steps of all environments, or updates, after which the losses are looked at and a row may be written


class OnlineLoop:
    """One `iterate` is CHUNK steps of all environments, fewer if they bring more updates, or a chunk of offline ones.
    It ends early where `on_step` says no.

    source: where batches come from; it may mix `buffer` with a data set.
    before: the offline updates that come first; the clock then counts these and environment steps, "steps".
    facts: what the data set's file says of itself.
    skilled: the policy acts from the first step on; else actions are random until learning starts.
    reward: scale and shift of the rewards that are kept, as the data set's were transformed.
    arrivals: where steps wait until what the learner reads of their future is known; None: nowhere.
    """

    clock: str

    def __init__(
        self,
        learner: OffPolicyLearner,
        env: VecEnv,
        buffer: ReplayBuffer,
        source: Source,
        *,
        cfg: OnlineConfig,
        batch_size: int,
        env_steps: int,
        seed: int | None,
        staggered: bool,
        before: OfflineLoop | None = None,
        facts: Facts | None = None,
        skilled: bool = False,
        reward: tuple[float, float] = (1.0, 0.0),
        arrivals: Arrivals | None = None,
    ):
        self.learner, self.env, self.buffer, self.source = learner, env, buffer, source
        self.cfg, self.batch_size, self.seed, self.before, self.reward = cfg, batch_size, seed, before, reward
        self.clock = "env_steps" if before is None else "steps"
        self.facts = facts
        self.online_steps = env_steps
        self.env_steps = 0
        self.gradient_steps = 0
        self.owed = 0.0  # updates that environment steps have earned and that were not made yet
        self.waits = 0  # steps of all environments since the last updates
        self.skilled, self.arrivals, self.staggered = skilled, arrivals, staggered
        self.begun = False  # whether the learner knows that the environment's steps have begun
        self.episodes = EpisodeTracker(env.spec.n_envs, env.spec.device, skip_first=staggered)
        self.recent: deque[EpisodeSums] = deque(maxlen=4096)
        self.on_step: Callable[[Tensor, PolicyOutput, TimeStep], bool] | None = None
        self.on_update: Callable[[Metrics], None] | None = None
        self.checked = 0  # rows ever added when the last look at them was taken
        self.obs = env.reset(seed).clone()

    def reset(self, seed: int | None) -> None:
        """All environments anew; the buffer stays."""
        self.obs.copy_(self.env.reset(seed))
        if self.arrivals is not None:
            self.arrivals.clear()
        self.episodes.running.zero_()
        self.episodes.counts.fill_(not self.staggered)  # clocks are staggered anew

    @property
    def steps(self) -> int:
        """Offline updates and environment steps together."""
        return self.env_steps + (0 if self.before is None else self.before.gradient_steps)

    @property
    def total_steps(self) -> int:
        return self.online_steps + (0 if self.before is None else self.before.total_steps)

    @total_steps.setter
    def total_steps(self, steps: int) -> None:
        self.online_steps = steps - (0 if self.before is None else self.before.total_steps)

    @property
    def done(self) -> bool:
        return self.env_steps >= self.online_steps

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the run's settings, a line each; a run prints them when it starts."""
        n, cfg = self.env.spec.n_envs, self.cfg
        unknown = getattr(self.arrivals, "length", 1) - 1  # steps before the first row is known
        n_steps = -(-self.online_steps // n) - max(cfg.learning_starts // n, unknown)  # that earn updates
        if self.online_steps and int(cfg.utd * n * (n_steps - n_steps % cfg.train_freq)) < 1:
            late = f"algo.learning_starts={cfg.learning_starts}, algo.train_freq={cfg.train_freq}, algo.utd={cfg.utd:g}"
            late += f", algo.n_steps={cfg.n_steps}" if unknown else ""
            return (f"no update comes from {self.online_steps} environment steps with {late}; raise total_steps",)
        each, limit = -(-self.online_steps // n), self.env.spec.episode_length
        if isinstance(self.arrivals, WholeEpisodes) and 0 < each < limit and not len(self.buffer):
            wait = f"updates wait for a whole episode, of up to {limit} steps, and each of n_envs={n} makes {each}"
            return (f"{wait}: there may be none; take fewer environments or raise total_steps",)
        return ()

    def iterate(self) -> Metrics:
        """Means over the chunk's updates, none before the first."""
        if self.before is not None and not self.before.done:
            metrics = self.before.iterate()
            self.gradient_steps = self.before.gradient_steps
            return metrics
        if not self.begun:
            self.learner.begin_online()
            self.begun = True
        means, taken = Means(), list[Steps]()
        until = self.gradient_steps + CHUNK
        while len(taken) < CHUNK and self.gradient_steps < until and not self.done:
            step = self.step()
            if step is None:
                break
            taken.append(step)
            for _ in range(self._due()):
                if self.before is None and not self.learner.offline:  # else schedules are the offline training's
                    self.learner.set_progress(self.env_steps / self.online_steps)
                metrics = self.learn()
                means.add(metrics)
                if self.on_update is not None:
                    self.on_update(metrics)
        if taken:
            sums = self.episodes.advance(tree_map(lambda *x: torch.stack(x), taken[0], *taken[1:]))
            if int(sums.episodes):
                self.recent.append(sums)
        self.check()
        return means.read(f"environment step {self.env_steps}")

    def learn(self) -> Metrics:
        """One update."""
        self.gradient_steps += 1
        return self.learner.update(self.source.sample(self.batch_size))

    @torch.no_grad()
    def step(self) -> Steps | None:
        """One step of all environments into the buffer; None, without it, where `on_step` said no."""
        action, kept = self._action()
        step = self.env.step(action)
        goes_on = False
        try:
            goes_on = self.on_step is None or self.on_step(self.obs, PolicyOutput(action, None, {}), step)
        finally:
            if not goes_on:
                self.obs.copy_(step.obs)
                if self.arrivals is not None:
                    self.arrivals.clear()  # a sum must not skip the step that is missing
        if not goes_on:
            return None
        if self.env.spec.device.type == "cpu":
            self._must_be_finite(action, step)
        scale, shift = self.reward
        reward, mask = step.reward * scale + shift, step.extras.get("mask")
        if self.arrivals is None:
            rows = Transition(self.obs, action, reward, step.final_obs, step.terminated, kept)
            self.buffer.add(rows if mask is None else tree_map(lambda x: x[mask], rows))
        else:
            ends = (step.terminated, step.truncated)
            known = self.arrivals.add(Seen(self.obs, action, reward, step.final_obs, *ends, mask))
            if known is not None:
                self.buffer.fill(known)
        self.obs.copy_(step.obs)
        self.env_steps += self.env.spec.n_envs
        return _kept(step)

    def _action(self) -> tuple[Tensor, Extras]:
        """In [-1, 1]: of the policy, or uniform where there is nothing yet that it could have learned from.

        And what the learner wants kept with the row.
        """
        spec, kept = self.env.spec, {}
        at_random = self.env_steps < self.cfg.learning_starts and not self.skilled
        if not at_random or self.learner.kept:
            out = self.learner.explore(self.obs.to(self.learner.device))
            kept = {name: out.extras[name] for name in self.learner.kept}
        if at_random:
            action = 2.0 * torch.rand(spec.n_envs, spec.action_dim, device=spec.device) - 1.0
        else:
            action = out.action.to(self.obs.device)
        if self.cfg.action_noise:
            action = action + self.cfg.action_noise * torch.randn_like(action)
        return action.clamp(-1.0, 1.0), kept

    def _due(self) -> int:
        """Updates to make now. Steps before learning starts, and before the first row is known, earn none."""
        if self.env_steps <= self.cfg.learning_starts or not len(self.buffer):
            return 0
        self.owed += self.cfg.utd * self.env.spec.n_envs
        self.waits += 1
        if self.waits < self.cfg.train_freq:
            return 0
        count = int(self.owed)
        self.owed, self.waits = self.owed - count, 0
        return count

    def episode_metrics(self) -> dict[str, float]:
        found = recent_means(self.recent) | {"rollout/buffer": float(len(self.buffer))}
        if self.env.spec.reward_dim > 1:  # the sum of objectives is no return
            found.pop("rollout/return", None)
        return found

    def results(self) -> dict[str, Any]:
        """What result.json says of the run besides its evaluation."""
        spec = self.env.spec
        return {} if spec.reward_dim == 1 else {"objectives": list(spec.objectives) or None}

    def _must_be_finite(self, action: Tensor, step: TimeStep) -> None:
        """ValueError that names the step and the lane, before a row is kept and an update draws it."""
        if bool(torch.isfinite(action.sum() + step.final_obs.sum() + step.reward.sum())):
            return
        broken = "mend the environment"
        told = (
            ("an action", action, "the policy has diverged, try a lower learning_rate"),
            ("an observation", step.final_obs, broken),
            ("a reward", step.reward, broken),
        )
        for what, values, mend in told:
            bad = ~torch.isfinite(values.reshape(len(values), -1)).all(1)
            if "mask" in step.extras:
                bad &= step.extras["mask"]
            if bad.any():
                lane = int(bad.nonzero()[0])
                raise ValueError(f"environment step {self.env_steps}: {what} of lane {lane} is not finite; {mend}")

    def check(self) -> None:
        """Stop at a NaN or an infinity in rows added since the last look, before a checkpoint keeps it.

        On a CPU each step was looked at before; on a GPU every look would wait for the device.
        """
        getattr(self.env, "check", lambda: None)()
        n_rows, self.checked = self.buffer.added - self.checked, self.buffer.added
        if n_rows and not bool(torch.isfinite(self.buffer.newest(n_rows).sum())):
            raise ValueError(
                f"the environment gave an observation or a reward that is not finite in the last {n_rows} rows before "
                f"environment step {self.env_steps}, or the policy such an action. Mend the environment, or lower "
                "algo.learning_rate."
            )

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"env/{k}": v for k, v in self.env.state_dict().items()}
        state |= {"obs": self.obs, "owed": torch.tensor(self.owed, dtype=torch.float64)}
        state |= {"waits": torch.tensor(self.waits), "begun": torch.tensor(self.begun)}
        if self.before is not None:
            state["offline_steps"] = torch.tensor(self.before.gradient_steps)
        state |= {"episodes/running": self.episodes.running, "episodes/counts": self.episodes.counts}
        if self.arrivals is not None:
            state |= {f"arrivals/{k}": v for k, v in self.arrivals.state_dict().items()}
        if self.recent:
            state["episodes/recent"] = torch.tensor([[float(x) for x in sums] for sums in self.recent]).double()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The counters have been set before; the buffer's rows come from files of their own."""
        self.recent = deque((EpisodeSums(*row) for row in state.get("episodes/recent", torch.empty(0, 3))), maxlen=4096)
        self.owed, self.waits = float(state["owed"]), int(state["waits"])
        self.begun = bool(state["begun"])
        if self.before is not None:
            self.before.gradient_steps = int(state["offline_steps"])
            if self.begun and self.before.gradient_steps < self.before.total_steps:
                raise ValueError(f"gradient_steps stays {self.before.gradient_steps}: its online part has begun")
        env_state = {k.removeprefix("env/"): v for k, v in state.items() if k.startswith("env/")}
        if not env_state:
            if self.seed is not None:
                self.obs = self.env.reset(fresh_seed(self.seed, self.env_steps)).clone()
            return
        self.env.load_state_dict(env_state)
        self.obs.copy_(state["obs"])
        self.episodes.running.copy_(state["episodes/running"])
        self.episodes.counts.copy_(state["episodes/counts"])
        if self.arrivals is not None:
            prefix = "arrivals/"
            self.arrivals.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def _kept(step: TimeStep) -> Steps:
    """What the episode sums read, in tensors that the next step does not overwrite."""
    mask = {"mask": step.extras["mask"].clone()} if "mask" in step.extras else {}
    return Steps(step.reward.clone(), step.terminated.clone(), step.truncated.clone(), mask)
