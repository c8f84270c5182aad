"""How a learner acts where it does not learn: in an evaluation, in trials, on one observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.config import TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.envs.mjcf_tasks import HEIGHT_AND_SPEED
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.functional.pareto import front_measures
from ctrlrl.nn.features import Vector
from ctrlrl.policies.quick import Quick
from ctrlrl.tasks import backend_of, device_of, env_device, eval_env, make_env, make_sim, same_spaces
from ctrlrl.texts import answers_prompts, text_env, text_evaluator
from ctrlrl.train.evaluate import Evaluation, evaluate, forked_rng
from ctrlrl.train.held_out import Rows, held_out_means
from ctrlrl.train.population import AT_ONCE, VectorReturns
from ctrlrl.train.trials import TRIALS, Trials, run_trials
from ctrlrl.types import PolicyOutput, VecEnv


class Acting:
    """Observations [B, O] of one step after another to actions, on the device of the observations.

    memory: what the policy remembers of the episodes under way; None before their first step.
    """

    def __init__(self, learner: Learner, *, deterministic: bool = True, memory: Any = None):
        self.learner, self.deterministic, self.memory = learner, deterministic, memory
        self._begun: Tensor | None = None

    def __call__(self, obs: Tensor) -> Tensor:
        here, begun = obs.to(self.learner.device), self._begun
        self._begun = None
        out, self.memory = self.learner.act_in_episode(
            here,
            self.memory,
            None if begun is None else begun.to(here.device),
            deterministic=self.deterministic,
        )
        return out.action.to(obs.device)

    def forget(self, begun: Tensor | None = None) -> None:
        """The next observations are the first of an episode: where `begun` [B] bool says so, or everywhere."""
        if begun is None or bool(begun.all()):
            self.memory = self._begun = None
        elif bool(begun.any()):
            self._begun = begun


def acting(learner: Learner, *, deterministic: bool = True, memory: Any = None, begun: Any = None) -> Acting:
    """memory: of a former `Acting`, to go on. begun: [B] bool, the environments whose episode begins all the same."""
    act = Acting(learner, deterministic=deterministic, memory=memory)
    if begun is not None:
        act.forget(torch.as_tensor(begun).reshape(-1))
    return act


def judged(learner: Learner, deterministic: bool | None = None) -> Acting:
    """Acting as in an evaluation: as asked for, else deterministic, but for learners that declare otherwise."""
    return acting(learner, deterministic=not learner.stochastic_eval if deterministic is None else deterministic)


def prefer(learner: Any, preference: Any) -> None:
    """Act from now on for a preference [M]; ValueError where the learner knows one objective."""
    if not learner.multi_objective:
        raise ValueError(f"preference={preference!r:.60}: this model learned from one reward; leave it out")
    learner.prefer(preference)


def evaluator(
    learner: Learner, cfg: TrainConfig, *, episodes: int, seed: int, unseen: Rows | None = None
) -> Callable[[], Evaluation]:
    """A function that evaluates the policy on fresh episodes of the training task, with the settings of eval.env.

    unseen: rows that it did not learn from, on which its error is told besides; all that there is with env=none.
    """
    task = eval_env(cfg)
    if answers_prompts(cfg):
        prompts = text_env(replace(cfg, env=task), device_of(cfg))
        greedy = cfg.eval.deterministic is not False
        asked: Any = learner
        return text_evaluator(asked, prompts, episodes=episodes, seed=seed, deterministic=greedy)
    device = env_device(cfg, task)
    same_spaces(cfg, task)
    if learner.multi_objective and hasattr(learner, "policies"):
        if cfg.eval.deterministic is False:
            raise ValueError(
                f"eval.deterministic=false: the policies of algo={cfg.algo.name} are judged without noise; leave it out"
            )
        returns = _vector_returns(learner, cfg, seed)
        return lambda: _front(learner, returns, episodes=episodes, seed=seed)
    env: VecEnv | None = None

    def run() -> Evaluation:
        nonlocal env
        if cfg.env.name == "none":
            return Evaluation.nothing() if unseen is None else _with_error(Evaluation.nothing(), unseen)
        if env is None:
            # a seed, because an environment without one would take it from the generator that training uses
            env = make_env(task, min(episodes, 64), seed=seed, device=device, stagger=False)
        found = evaluate(judged(learner, cfg.eval.deterministic), env, episodes=episodes, seed=seed)
        return found if unseen is None else _with_error(found, unseen)

    def _with_error(found: Evaluation, rows: Rows) -> Evaluation:
        asked = cfg.eval.deterministic
        judge: Any = learner
        means = held_out_means(
            judge, rows, deterministic=not learner.stochastic_eval if asked is None else asked, seed=seed
        )
        own: dict[str, Any] = {f"held_out_{name}": mean for name, mean in means.items()}
        return found._replace(**own)

    return run


class _Preferred(NamedTuple):
    """A learner that was told a preference, as the one policy of all lanes."""

    learner: Learner
    size: int = 1

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        return self.learner.act(obs, deterministic=deterministic)


def preferred_returns(learner: Any, cfg: TrainConfig, *, episodes: int, seed: int) -> tuple[list[float], list[float]]:
    """Mean discounted and undiscounted return [M] of what a learner does for the preference that it was told."""
    with closing(_vector_returns(learner, cfg, seed)) as returns:
        discounted, plain = returns(_Preferred(learner), episodes=episodes, seed=seed)
    return discounted[0].tolist(), plain[0].tolist()


def _vector_returns(learner: Any, cfg: TrainConfig, seed: int) -> VectorReturns:
    task = eval_env(cfg)
    device = env_device(cfg, task)
    return VectorReturns(
        lambda n: make_env(task, n, seed=seed, device=device, stagger=False),
        gamma=learner.cfg.eval_gamma,
        max_steps=learner.cfg.eval_max_steps,
    )


def front_evaluation(learner: Any, cfg: TrainConfig, *, episodes: int, seed: int) -> Evaluation:
    """All policies that a learner has kept, on fresh episodes; what they are worth together is measured on these."""
    with closing(_vector_returns(learner, cfg, seed)) as returns:
        return _front(learner, returns, episodes=episodes, seed=seed)


def _front(learner: Any, returns: VectorReturns, *, episodes: int, seed: int) -> Evaluation:
    index = torch.arange(learner.n_policies)
    parts = [
        returns(learner.policies(part), episodes=episodes, seed=seed)[0] for part in index.split(AT_ONCE) if len(part)
    ]
    if not parts:
        return Evaluation.nothing()
    found = torch.cat(parts).cpu()
    measures = front_measures(found, learner.reference, learner.preferences)
    measures.pop("size")
    return Evaluation.nothing()._replace(front={"returns": found, **measures})


def trials(learner: Learner, cfg: TrainConfig, *, seed: int, n: int = TRIALS) -> Trials | None:
    """Where `n` roll-outs of the sampling policy end; None for a task that is not judged by that."""
    task = eval_env(cfg)
    if backend_of(task) != "torch" or (scene := (sim := make_sim(task)).scene) is None:
        return None
    env = BatchedSim(sim.trial(), n, seed=seed, device=device_of(cfg), stagger=False)
    return run_trials(acting(learner, deterministic=False), env, scene, seed=seed)


class Gaps(NamedTuple):
    """Simulated steps of a learner that estimates how far its simulator is from reality."""

    obs: Tensor  # [N, O] where they began
    gap: Tensor  # [N] nats
    view: tuple[int, int] | None  # columns of height and speed, of a robot that has them


def gaps(learner: Any, cfg: TrainConfig, *, seed: int, steps: int = 300) -> Gaps | None:
    """Steps of the sampling policy in the environment that it learned in; None for a learner without such estimates."""
    if not hasattr(learner, "dynamics_gap"):
        return None
    act, device = acting(learner, deterministic=False), learner.device
    env = make_env(cfg.env, 16, seed=seed, device=env_device(cfg), stagger=False)
    seen = []
    with forked_rng(seed):
        obs = env.reset(seed).clone()
        for _ in range(steps):
            action = act(obs)
            step = env.step(action)
            found = learner.dynamics_gap(*(x.to(device) for x in (obs, action, step.final_obs)))
            seen.append((obs, found))
            obs = step.obs.clone()
    env.close()
    where, gap = (torch.cat(column).cpu() for column in zip(*seen, strict=True))
    return Gaps(where, gap, HEIGHT_AND_SPEED.get(cfg.env.name.removesuffix("-v4")))


def quick(learner: Learner) -> Quick | None:
    """What acts on a single observation in NumPy, as `acting` does deterministically; None for other learners."""
    if learner.multi_objective:
        return None
    if learner.loop in ("off_policy", "hybrid"):
        nets: Any = learner.nets
        return Quick(nets.normalizer, Vector(0), nets.policy)
    parts = [getattr(learner, name, None) for name in ("normalizer", "features", "policy")]
    return None if None in parts else Quick(*parts)  # type: ignore[arg-type]


def scorer(span: Sequence[float] | None) -> Callable[[float], float | None]:
    """Returns on the 0-100 scale between two reference returns; None for all where there are none."""
    if span is None:
        return lambda _: None
    low, high = span
    return lambda value: 100.0 * (value - low) / (high - low)
