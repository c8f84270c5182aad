"""What an exported file computes: raw observations to actions in the environment's units, whole decisions at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ctrlrl.core.learner import Learner
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array, PartCodec, action_codec, obs_codec
from ctrlrl.functional.samplers import shifted
from ctrlrl.policies.diffusion import ChunkPolicy
from ctrlrl.policies.receding import Memory
from ctrlrl.policies.rehearsal import rehearsed

WIDE = 1e3  # bounds further apart than this stand for none
_CPU = torch.device("cpu")


class Deployed(nn.Module):
    """Observation arrays [n, *shape], in the order of `names`, to actions [n, *shape] of the action space."""

    tolerance = 1e-5  # between the file's actions and the policy's; relative where actions are larger than 1
    tolerance_sampled = 1e-4  # after many evaluations in a row

    def __init__(self, learner: Learner, observation: spaces.Space[Any], action: spaces.Space[Any]):
        super().__init__()
        self.nets = copy.deepcopy(learner.nets).cpu().requires_grad_(False)
        self.learner = copy.copy(learner)  # its methods on these copies of its networks, in float32
        self.learner.nets = self.nets
        for name, net in self.nets.named_children():
            setattr(self.learner, name, net)
        self.learner.set_dtype("float32")
        self.parts = obs_codec(observation).parts
        self.leaves = [_leaf(observation, p) for p in self.parts]
        self.names: list[str] = []
        for p in self.parts:
            self.names.append(_unused(p.part.name or "obs", "other", self.names))
        self.outputs = [_unused("action", "next", self.names)]
        if isinstance(getattr(self.nets.policy, "base", None), ChunkPolicy):
            self.tolerance = self.tolerance_sampled
        self.facts: dict[str, Any] = {}  # of its own, for the file
        self.starts = [None if p.start is None else torch.from_numpy(p.start.astype(np.int64)) for p in self.parts]
        self.codec = action_codec(action)
        self.dtype = torch.from_numpy(np.zeros(0, self.codec.dtype)).dtype
        self.precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.low, self.high = (torch.from_numpy(b).to(self.precision) for b in (self.codec.low, self.codec.high))
        self.start = torch.from_numpy(np.asarray(self.codec.start, np.int64))

    def forward(self, *arrays: Tensor) -> Any:
        return self.in_units(self.learner.act(self.rows(arrays), deterministic=True).action)

    def rows(self, arrays: Iterable[Tensor]) -> Tensor:
        """[n, O] as the learner takes them."""
        columns = [_row(*each) for each in zip(self.parts, arrays, self.starts, strict=True)]
        return columns[0] if len(columns) == 1 else torch.cat([c.float() for c in columns], 1)

    def in_units(self, action: Tensor) -> Tensor:
        """[n, A] of the policy -> [n, *shape] of the environment."""
        if self.codec.action_dim:
            unit = (action.to(self.precision).clamp(-1.0, 1.0) + 1.0) / 2.0
            # the sum may round to just outside of the bounds
            action = (self.low * (1.0 - unit) + self.high * unit).clamp(self.low, self.high)
        else:
            action = action + self.start
        return action.reshape(-1, *self.codec.shape).to(self.dtype)

    def examples(self, n: int) -> list[Array]:
        """n rows of every input, always the same."""
        return random_observations(self, n)

    def wanted(self, both: Spaces, arrays: list[Array]) -> list[Array]:
        """What `predict` says to them."""
        nested = self.nested(both, arrays)
        return [both.predict(lambda obs: self.learner.act(obs, deterministic=True).action, nested, _CPU)]

    def nested(self, both: Spaces, arrays: list[Array]) -> Any:
        return _nest(both.observation, dict(zip((p.path for p in self.parts), arrays, strict=True)))


def _unused(name: str, prefix: str, taken: Iterable[str]) -> str:
    while name in taken:
        name = f"{prefix}_{name}"
    return name


class DeployedPreferences(Deployed):
    """Observation arrays and `preference` [n, M], a row each, to actions [n, *shape] of the action space."""

    def __init__(self, learner: Learner, observation: spaces.Space[Any], action: spaces.Space[Any], objectives: int):
        super().__init__(learner, observation, action)
        own = _unused("preference", "policy", self.names)
        self.names, self.objectives = [*self.names, own], objectives
        self.facts = {"preference": own, "objectives": objectives}

    def forward(self, *arrays: Tensor) -> Any:
        return self.in_units(self.preferring(self.rows(arrays[:-1]), arrays[-1]))

    def preferring(self, obs: Tensor, preference: Tensor) -> Tensor:
        learner: Any = self.learner
        return learner.act_for(obs, preference, deterministic=True).action

    def examples(self, n: int) -> list[Array]:
        weight = np.random.default_rng(1).dirichlet(np.ones(self.objectives), n).astype(np.float32)
        return [*super().examples(n), weight]

    def wanted(self, both: Spaces, arrays: list[Array]) -> list[Array]:
        nested, preference = self.nested(both, arrays[:-1]), torch.from_numpy(arrays[-1])
        return [both.predict(lambda obs: self.preferring(obs, preference), nested, _CPU)]


class DeployedChunks(Deployed):
    """The last observations [n, n_obs, *shape] and noise [n, H, A] to the actions of a plan [n, n_actions, *shape].

    What the sampler draws on the way is an input too, [n, n_draws, H, A], where it draws at all. The second output is
    the whole plan [n, H, A] in the policy's units. warm: the former plan stands in the place of the noise.
    """

    def __init__(
        self, learner: Learner, observation: spaces.Space[Any], action: spaces.Space[Any], *, warm: bool = False
    ):
        super().__init__(learner, observation, action)
        policy: Any = self.nets.policy
        self.tolerance = self.tolerance_sampled
        self.window, self.warm, process = policy.window, warm, policy.process
        if not warm:
            process.warm = ()  # of this copy: here every plan begins at noise
        self.solve = process.resume if warm else process.sample
        self.levels, self.n_draws = rehearsed(self.solve)
        own = ["former_plan" if warm else "noise", *(["draws"] if self.n_draws else [])]
        own = [_unused(name, "policy", self.names) for name in own]
        self.n_arrays = len(self.names)
        self.names = self.names + own
        self.outputs = [*self.outputs, _unused("plan", "next", self.names)]
        self.facts = {"horizon": self.window.horizon, "n_obs_steps": self.window.n_obs, "plan": self.outputs[1]}
        self.facts |= {"n_action_steps": self.window.n_actions, "network_calls": policy.n_asked * len(self.levels)}

    def forward(self, *arrays: Tensor) -> Any:
        policy: Any = self.nets.policy
        start, *draws = arrays[self.n_arrays :]
        drawn = iter(draws[0].unbind(1) if draws else ())
        begin = shifted(start) if self.warm else start
        plan = self.solve(policy.predictor(self.history(arrays[: self.n_arrays])), begin, lambda x: next(drawn))
        plan = policy.thrown(plan, policy.switch_guess)
        return self.executed(plan), plan

    def history(self, arrays: Iterable[Tensor]) -> Tensor:
        """[n, n_obs, *shape] each -> [n, n_obs, O]."""
        return self.rows(a.flatten(0, 1) for a in arrays).unflatten(0, (-1, self.window.n_obs))

    def executed(self, plan: Tensor) -> Tensor:
        """Of a plan [n, H, A], the actions from the present one on, [n, n_actions, *shape] in the space's units."""
        policy: Any = self.nets.policy
        n_obs, _, n_actions = self.window
        action = policy.executed(plan[:, n_obs - 1 : n_obs - 1 + n_actions])
        return self.in_units(action.flatten(0, 1)).unflatten(0, (-1, n_actions))

    def compile_network(self) -> None:
        """One compiled program for all levels, which it is given as tensors; the sampler stays in Python."""
        policy: Any = self.nets.policy
        at = torch.compile(policy.head.at, dynamic=False)
        levels = {level: torch.tensor([float(level)]) for level in self.levels}
        policy.head.at = lambda x, level, context: at(x, levels[level], context)

    def examples(self, n: int) -> list[Array]:
        n_obs, horizon, _ = self.window
        seen = [a.reshape(n, n_obs, *a.shape[1:]) for a in random_observations(self, n * n_obs)]
        random, chunk = np.random.default_rng(1), (horizon, self.codec.action_dim)
        start = random.standard_normal((n, *chunk), np.float32)
        draws = [random.standard_normal((n, self.n_draws, *chunk), np.float32)] if self.n_draws else []
        return [*seen, start.clip(-1.0, 1.0) if self.warm else start, *draws]

    def wanted(self, both: Spaces, arrays: list[Array]) -> list[Array]:
        """From the policy's own loop, step by step, which is given these numbers for those that it would draw."""
        n_obs, _, n_actions = self.window
        seen, (start, *draws) = arrays[: self.n_arrays], map(torch.from_numpy, arrays[self.n_arrays :])
        steps = [both.rows(self.nested(both, [a[:, t] for a in seen])) for t in range(n_obs)]
        used = torch.full((len(start),), n_actions)
        memory = Memory(torch.stack([steps[0], *steps[:-1]], 1), start, used, n_actions)
        actions = []
        with _Drawing([*([] if self.warm else [start]), *(draws[0].unbind(1) if draws else ())]):
            for _ in range(n_actions):
                out, memory = self.learner.act_in_episode(steps[-1], memory)
                actions.append(both.action_codec.decode(out.action))
        return [np.stack(actions, 1), memory.plan.numpy()]


class _Drawing(TorchFunctionMode):
    """Policies draw these numbers in turn, instead of random ones."""

    def __init__(self, numbers: list[Tensor]):
        super().__init__()
        self.left = iter(numbers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.left) if func is torch.randn_like else func(*args, **(kwargs or {}))


def _row(part: PartCodec, x: Tensor, start: Tensor | None) -> Tensor:
    """`PartCodec.encode` in torch: [n, *shape] of the environment -> [n, dim]."""
    if part.part.image:
        return (x.permute(0, 3, 1, 2) if part.channels_last else x).reshape(-1, part.dim)
    if part.nvec is None or start is None:
        return x.reshape(-1, part.dim).float()
    index = x.reshape(-1, len(part.nvec)).long() - start
    return torch.cat([index[:, d : d + 1] == torch.arange(int(n)) for d, n in enumerate(part.nvec)], 1).float()


def _leaf(space: Any, part: PartCodec) -> Any:
    for key in part.path:
        space = space[key]
    return space


def _nest(space: spaces.Space[Any], arrays: dict[Any, Array], path: tuple[str | int, ...] = ()) -> Any:
    """Arrays by their path, in the structure of the space."""
    if isinstance(space, spaces.Dict):
        return {key: _nest(inner, arrays, (*path, key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(inner, arrays, (*path, i)) for i, inner in enumerate(space.spaces))
    return arrays[path]


def random_observations(module: Deployed, n: int) -> list[Array]:
    """[n, *shape] of every input, always the same."""
    random = np.random.default_rng(0)
    return [_random(space, n, random) for space in module.leaves]


def _random(space: Any, n: int, random: np.random.Generator) -> Array:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        same = copy.deepcopy(space)
        same.seed(0)
        return np.stack([np.asarray(same.sample()) for _ in range(n)])
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    normal = random.standard_normal((n, *space.shape)).clip(low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = high - low < WIDE
        spread = low + np.where(narrow, high - low, 0.0) * random.random((n, *space.shape))
    return np.where(narrow, spread, normal).astype(space.dtype)
