"""The loop of learners that train many policies side by side, in rounds. It knows no algorithm and no environment.

A learner tells how many members its next round has; their environments are blocks of lanes of one simulator, which
begins anew with every round. Whenever the learner says so its members are evaluated, all together, and it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ctrlrl.train.evaluate import forked_rng
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.train.rollout import EpisodeSums, fresh_seed
from ctrlrl.types import EnvSpec, Metrics, PolicyOutput, VecEnv

MakeEnv = Callable[[int], VecEnv]  # one environment with so many lanes
AT_ONCE = 64  # policies of a final evaluation that are asked together


class Actors(Protocol):
    """S policies, each for its own block of lanes."""

    @property
    def size(self) -> int: ...

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput: ...


class VectorReturns:
    """Mean returns of policies over whole episodes, at most `max_steps` of each; one lane an episode."""

    def __init__(self, make_env: MakeEnv, *, gamma: float, max_steps: int):
        self.make_env, self.gamma, self.max_steps = make_env, gamma, max_steps
        self.envs: dict[int, VecEnv] = {}
        self.env_steps = 0  # taken here so far

    @torch.no_grad()
    def __call__(self, actors: Actors, *, episodes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Discounted and undiscounted, [S, M] float64 each; deterministic actions."""
        n = actors.size * episodes
        if n not in self.envs:
            self.envs[n] = self.make_env(n)
        env = self.envs[n]
        device, every = env.spec.device, 1 if env.spec.device.type == "cpu" else 16  # steps between two host reads
        alive = torch.ones(n, 1, dtype=torch.bool, device=device)
        sums = torch.zeros(2, n, env.spec.reward_dim, dtype=torch.float64, device=device)
        with forked_rng(seed):
            obs = env.reset(seed)
            for t in range(self.max_steps):
                step = env.step(actors.act(obs, deterministic=True).action)
                reward = torch.where(alive, step.reward.double(), 0.0)
                sums[0].add_(reward, alpha=self.gamma**t)
                sums[1].add_(reward)
                alive &= ~(step.terminated | step.truncated).unsqueeze(1)
                obs = step.obs
                self.env_steps += n
                if t % every == every - 1 and not bool(alive.any()):
                    break
        getattr(env, "check", lambda: None)()
        discounted, plain = sums.unflatten(1, (actors.size, episodes)).mean(2)
        return discounted, plain

    def close(self) -> None:
        for env in self.envs.values():
            env.close()
        self.envs.clear()


class PopulationLoop:
    """One `iterate` is one rollout and one update of all members, and their evaluation where one is due.

    make_env, make_eval_env: environments with a number of lanes. spec: of one member's environments.
    """

    clock = "env_steps"
    judges_itself = True  # what its members are worth it says with every row

    def __init__(
        self,
        learner: Any,
        make_env: MakeEnv,
        make_eval_env: MakeEnv,
        *,
        spec: EnvSpec,
        total_steps: int,
        seed: int,
        eval_seed: int,
        staggered: bool,
    ):
        self.learner, self.spec, self.total_steps, self.seed = learner, spec, total_steps, seed
        self.make_env, self.eval_seed, self.staggered = make_env, eval_seed, staggered
        cfg = learner.cfg
        self.returns = VectorReturns(make_eval_env, gamma=cfg.eval_gamma, max_steps=cfg.eval_max_steps)
        self.round: OnPolicyLoop | None = None
        self.env: VecEnv | None = None  # of the present round
        self.recent: deque[EpisodeSums] = deque(maxlen=4096)
        self.env_steps = self.gradient_steps = self.n_evaluations = 0
        self._members: Metrics = {}
        self._envs: dict[int, VecEnv] = {}
        learner.set_budget(total_steps, spec.n_envs)

    @property
    def done(self) -> bool:
        return self.learner.finished

    def iterate(self) -> Metrics:
        learner = self.learner
        if self.round is None or learner.round_over:
            size = learner.begin_round()
            if not size:
                return self._members | learner.front
            self.round = self._round(size)
        loop = self.round
        learner.set_progress(min(1.0, self.env_steps / self.total_steps))
        rollout = loop.collect()
        assert rollout is not None
        metrics = learner.update(rollout)
        self.env_steps += loop.steps_per_iteration
        loop.env_steps = self.env_steps  # errors tell it
        self.gradient_steps += int(metrics.pop("train/gradient_steps"))
        if learner.evaluation_due:
            self._evaluate()
        return metrics | self._members | learner.front

    def _evaluate(self) -> None:
        learner = self.learner
        seed = fresh_seed(self.eval_seed, self.n_evaluations)
        discounted, plain = self.returns(learner.team, episodes=learner.cfg.eval_episodes, seed=seed)
        self.n_evaluations += 1
        learner.offer(discounted)
        names = self.spec.objectives or [str(i) for i in range(discounted.shape[1])]
        for i, name in enumerate(names):
            self._members[f"members/return_{name}"] = plain[:, i].mean()
            self._members[f"members/discounted_return_{name}"] = discounted[:, i].mean()

    def _round(self, size: int) -> OnPolicyLoop:
        n = size * self.spec.n_envs
        if n not in self._envs:
            self._envs[n] = self.make_env(n)
        self.env = self._envs[n]
        loop = OnPolicyLoop(
            self.learner.team,
            self.env,
            n_steps=self.learner.cfg.n_steps,
            total_steps=self.total_steps,
            seed=fresh_seed(self.seed, self.env_steps),
            staggered=self.staggered,
        )
        loop.env_steps, loop.recent = self.env_steps, self.recent
        return loop

    def episode_metrics(self) -> dict[str, float]:
        """Lengths alone: the sum of objectives is no return."""
        found = self.round.episode_metrics() if self.round is not None else {}
        return {k: v for k, v in found.items() if k != "rollout/return"}

    def results(self) -> dict[str, Any]:
        """What result.json says of the run besides its evaluation: the front as the archive has it."""
        archive = self.learner.archive
        stored = {name.removeprefix("front/"): float(x) for name, x in self.learner.front.items()}
        return {
            "objectives": list(self.spec.objectives) or None,
            "reference": archive.reference.tolist(),
            "hypervolume_stored": stored["hypervolume"],
            "expected_utility_stored": stored["expected_utility"] if len(archive) else None,
            "sparsity_stored": stored["sparsity"],
            "front_stored": archive.returns.tolist(),
            "evaluation_steps": self.returns.env_steps,
        }

    def state_dict(self) -> dict[str, Tensor]:
        if self.round is None:
            return {}
        steps = torch.tensor([self.n_evaluations, self.returns.env_steps])
        told = {name.replace("/", "_told/", 1): x for name, x in self._members.items()}
        return self.round.state_dict() | told | {"evaluations": steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "evaluations" not in state:
            return
        self.n_evaluations, self.returns.env_steps = state["evaluations"].tolist()
        self.round = self._round(self.learner.team.size)
        told = {name: x for name, x in state.items() if name.startswith("members_told/")}
        self._members = {name.replace("_told/", "/", 1): x for name, x in told.items()}
        self.round.load_state_dict({k: x for k, x in state.items() if k != "evaluations" and k not in told})
        self.recent = self.round.recent
