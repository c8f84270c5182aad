"""The few containers everything passes: immutable NamedTuples of tensors, and the protocol of a vectorised environment.

Axes: T time, B environments, N flat samples, O / A observation / action size, M objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Extras = dict[str, Tensor]
Metrics = dict[str, Tensor]
Tree = TypeVar("Tree")


class ObsPart(NamedTuple):
    """One array of a structured observation; parts lie one after another in [O]."""

    name: str  # where it lies in a Dict or Tuple; "" = it is the observation
    shape: tuple[int, ...]
    image: bool = False  # [C, H, W] with values 0 ... 255


class EnvSpec(NamedTuple):
    """What a learner must know of an environment before the first step.

    Actions are continuous (action_dim > 0), one discrete choice (n_actions > 0) or several (nvec).
    """

    obs_dim: int
    action_dim: int  # size of a continuous action, else 0
    n_actions: int  # number of discrete actions, else 0
    reward_dim: int
    n_envs: int
    episode_length: int  # time limit in steps; 0 = none
    device: torch.device
    nvec: tuple[int, ...] = ()  # number of options of each of D discrete choices taken together, else ()
    obs_parts: tuple[ObsPart, ...] = ()  # what an observation consists of; () = one vector
    extras: tuple[str, ...] = ()  # what every TimeStep.extras is promised to hold, for learners that need it
    objectives: tuple[str, ...] = ()  # names of the M entries of a vector reward, where it has names


class Scene(NamedTuple):
    """A task with goals in the plane, seen from above: what coverage counts and what a picture of its paths shows.

    A roll-out counts for goal g where its last position lies within `reach` of goals[g], or, with `target`, where it
    lies within `reach` of the place that its last observation asks for, and g is the goal nearest to that place.
    """

    bounds: tuple[float, float, float, float]  # x low, x high, y low, y high
    goals: Tensor  # [G, 2]
    reach: float
    position: slice = slice(0, 2)  # columns of an observation
    target: slice | None = None  # columns of the place asked for; None: any goal will do
    walls: tuple[tuple[float, float, float, float], ...] = ()  # boxes, as `bounds`


class TimeStep(NamedTuple):
    """What one vector step returns; `obs` is the one to act on next, after auto-reset.

    extras may hold `mask` [B] bool: False marks a lane whose step was only a reset and is no transition; and `success`
    [B], 1 or 0, read where an episode ends (NaN: not told).
    """

    obs: Tensor  # [B, O]
    final_obs: Tensor  # [B, O] the observation the action led to, before auto-reset
    reward: Tensor  # [B] or [B, M]
    terminated: Tensor  # [B] bool: the task ended, no bootstrap
    truncated: Tensor  # [B] bool: the clock ended, bootstrap from final_obs; never True where terminated is
    extras: Extras


def begins(step: TimeStep) -> Tensor:
    """[B] bool: the environments whose `obs` is the first of an episode."""
    ended = step.terminated | step.truncated
    return ended | ~step.extras["mask"] if "mask" in step.extras else ended


class Rollout(NamedTuple):
    """T steps of B environments, time-major."""

    obs: Tensor  # [T, B, O]
    action: Tensor  # [T, B, A] float, the unclipped sample, or [T, B] or [T, B, D] int64
    log_prob: Tensor  # [T, B] nats, or [T, B, D] where each of D choices has its own
    value: Tensor  # [T, B] value of obs; [T, B, K] of a critic with K heads
    next_value: Tensor  # [T, B] or [T, B, K] value of the observation the action led to
    reward: Tensor  # [T, B] or [T, B, M]
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    extras: Extras


class Transition(NamedTuple):
    """N transitions of a data set or a replay buffer. Stacked runs of S seeds have [S, N, ...] throughout."""

    obs: Tensor  # [N, O]
    action: Tensor  # [N, A] or [N] int64
    reward: Tensor  # [N]
    next_obs: Tensor  # [N, O]
    terminated: Tensor  # [N] bool
    extras: Extras


class Window(NamedTuple):
    """A piece of an episode: what a policy that predicts several actions at once sees, predicts and executes."""

    n_obs: int  # observations seen, the present one last
    horizon: int  # actions predicted, from that of the oldest of these observations on
    n_actions: int  # actions executed, from the present one on, before the next prediction


class FutureGoals(NamedTuple):
    """Later observations of a window's episode, which its actions are taken to have aimed at."""

    n: int  # observations, one after another
    at_end: bool  # the last ones of the episode, else from a random row behind the window on


class HybridBatch(NamedTuple):
    real: Transition
    sim: Transition


class PolicyOutput(NamedTuple):
    action: Tensor  # [B, A], or [B] or [B, D] int64
    log_prob: Tensor | None  # [B] nats, or [B, D]
    extras: Extras  # kept in the rollout, e.g. the mean of the distribution


@runtime_checkable
class VecEnv(Protocol):
    """B environments stepped together: tensors in, tensors out, on `spec.device`.

    Continuous actions are in [-1, 1] (the environment scales and clips them), discrete ones int64. Observations are
    float32, or uint8 where they are one image. Tensors of a TimeStep may be overwritten by the next step.

    Some have `notices`, lines that a run prints when it starts, and `check()`, which raises where the simulation went
    wrong in a way that only the host can tell; it is called once a rollout and after an evaluation.
    """

    spec: EnvSpec

    def reset(self, seed: int | None = None) -> Tensor: ...
    def step(self, action: Tensor) -> TimeStep: ...
    def state_dict(self) -> dict[str, Tensor]: ...  # everything an exact resume needs; empty when it cannot be had
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...
    def close(self) -> None: ...


class Source(Protocol):
    """Where an off-policy learner's batches come from: a data set, a replay buffer, a mixture of them."""

    def sample(self, n: int) -> Any: ...  # a Transition of n rows, or a HybridBatch


def forgetting(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor | None], None]:
    """What a loop calls with `begins` where some environment begins an episode, and with None where all begin one.

    A policy that remembers its episode has a method `forget` for it; for others nothing happens.
    """
    return getattr(act, "forget", lambda begun: None)


def tree_map(f: Callable[..., Any], tree: Tree, *rest: Any) -> Tree:
    """Apply `f` to the tensors of nested NamedTuples and dicts of one structure; None stays None."""
    if tree is None:
        return tree
    if isinstance(tree, dict):
        return type(tree)((k, tree_map(f, v, *(r[k] for r in rest))) for k, v in tree.items())
    if isinstance(tree, tuple):
        mapped = [tree_map(f, v, *others) for v, *others in zip(tree, *rest, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return f(tree, *rest)
