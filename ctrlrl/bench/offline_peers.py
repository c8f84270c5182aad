"""The other side of offline rows: the authors' own networks, learners and replay buffers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.bench.checkout import checkout
from ctrlrl.bench.rows import Lap, rate

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]  # D4RL's names, [N, ...] float32
CHUNK = 10  # updates between two looks at the clock


class Parts(NamedTuple):
    """What is done with an authors' learner. States here are standardised as the authors do."""

    learner: Any
    update: Callable[[], dict[str, Any]]  # sample a batch and take a gradient step; what they log
    policy: Callable[[Tensor], Tensor]  # [N, O] -> [N, A], deterministic
    q: Callable[[Tensor, Tensor], Tensor]  # [N, O], [N, A] -> the smaller critic, [N]
    act: Callable[[Array], Array]  # [O] -> [A], deterministic, as they evaluate
    mean: Array  # of the states, [O] or [1, O]
    std: Array


class Peer:
    """An authors' learner on a data set.

    data: observations, actions, rewards, next_observations, terminals; states raw, rewards as they are learned from.
    settings: over DEFAULTS, which also holds the words.
    seed: given to NumPy and PyTorch just before the networks are built, as the authors do.
    """

    def __init__(
        self,
        vs: str,
        algo: str,
        peer_dir: str | None,
        data: Columns,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **settings: Any,
    ):
        modules, self.name = checkout(vs, algo, peer_dir)
        unknown = sorted(settings.keys() - DEFAULTS[algo].keys())
        if unknown:
            raise ValueError(f"vs={vs}: {unknown[0]} is no setting of {algo}; known: {', '.join(DEFAULTS[algo])}")
        self.device, self.shape = str(device), (data["observations"].shape[1], data["actions"].shape[1])
        with contextlib.redirect_stdout(io.StringIO()):  # they print sizes
            self._parts = BUILDERS[algo](self, modules, data, DEFAULTS[algo] | settings, seed)

    @property
    def n_parameters(self) -> int:
        """Numbers that its optimisers train."""
        optimizers = [part for part in vars(self._parts.learner).values() if isinstance(part, torch.optim.Optimizer)]
        return sum(p.numel() for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])

    def update(self) -> dict[str, Any]:
        """One batch and one gradient step; the values that the authors log."""
        return self._parts.update()

    def act(self, obs: Array) -> Array:
        """A raw observation [O] to the deterministic action [A]."""
        return self._parts.act((obs - self._parts.mean.reshape(-1)) / self._parts.std.reshape(-1))

    @torch.no_grad()
    def policy(self, obs: Array) -> Tensor:
        """Raw observations [N, O] to deterministic actions [N, A]."""
        return self._parts.policy(self._standardized(obs))

    @torch.no_grad()
    def q(self, obs: Array, action: Tensor) -> Tensor:
        """Of raw observations [N, O] and actions [N, A]: the smaller of the two critics, [N]."""
        return self._parts.q(self._standardized(obs), action)

    def _standardized(self, obs: Array) -> Tensor:
        return torch.as_tensor((obs - self._parts.mean) / self._parts.std, dtype=torch.float32, device=self.device)


class PeerUpdating:
    """Gradient steps a second of the authors' code, sampling included."""

    def __init__(self, peer: Peer, seconds: float, *, warm: int):
        self.peer, self.name, self.seconds = peer, peer.name, seconds
        for _ in range(max(warm, CHUNK)):
            peer.update()

    def _work(self) -> int:
        for _ in range(CHUNK):
            self.peer.update()  # they read losses from the device, so nothing is left under way
        return CHUNK

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


def _seed(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def _adam(net: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=3e-4)


def _corl_buffer(peer: Peer, module: Any, data: Columns) -> tuple[Any, Array, Array]:
    """With states standardised by CORL's own functions, their mean and std."""
    mean, std = module.compute_mean_std(data["observations"], eps=1e-3)
    states = {name: module.normalize_states(data[name], mean, std) for name in ("observations", "next_observations")}
    buffer = module.ReplayBuffer(*peer.shape, len(data["rewards"]), peer.device)
    buffer.load_d4rl_dataset(data | states)
    return buffer, mean, std


def _iql(peer: Peer, modules: list[Any], data: Columns, s: dict[str, Any], seed: int) -> Parts:
    module = modules[0]
    buffer, mean, std = _corl_buffer(peer, module, data)
    _seed(seed)
    q, v = module.TwinQ(*peer.shape).to(peer.device), module.ValueFunction(peer.shape[0]).to(peer.device)
    kind = module.DeterministicPolicy if s["deterministic"] else module.GaussianPolicy
    actor = kind(*peer.shape, 1.0).to(peer.device).eval()  # without dropout, eval only makes `act` take the mean
    learner = module.ImplicitQLearning(
        1.0, actor, _adam(actor), q, _adam(q), v, _adam(v), iql_tau=s["expectile"], beta=s["beta"],
        max_steps=s["max_steps"], discount=s["discount"], tau=s["tau"], device=peer.device,
    )  # fmt: skip
    return Parts(
        learner,
        lambda: learner.train([b.to(peer.device) for b in buffer.sample(s["batch_size"])]),
        actor if s["deterministic"] else lambda states: actor(states).mean,
        q,
        lambda state: actor.act(state, peer.device),
        mean,
        std,
    )


def _td3bc(peer: Peer, modules: list[Any], data: Columns, s: dict[str, Any], seed: int) -> Parts:
    module = modules[0]
    buffer, mean, std = _corl_buffer(peer, module, data)
    _seed(seed)
    actor = module.Actor(*peer.shape, 1.0).to(peer.device)
    critics = [module.Critic(*peer.shape).to(peer.device) for _ in range(2)]
    trained = [part for net in (actor, *critics) for part in (net, _adam(net))]
    own = {name: s[name] for name in ("discount", "tau", "alpha")}
    learner = module.TD3_BC(1.0, *trained, device=peer.device, **own)
    return Parts(
        learner,
        lambda: learner.train([b.to(peer.device) for b in buffer.sample(s["batch_size"])]),
        actor,
        lambda states, actions: torch.min(*[critic(states, actions) for critic in critics]).squeeze(1),
        lambda state: actor.act(state, peer.device),
        mean,
        std,
    )


def _prdc(peer: Peer, modules: list[Any], data: Columns, s: dict[str, Any], seed: int) -> Parts:
    buffer = modules[-1].ReplayBuffer(*peer.shape, peer.device, "", 1, 0)
    buffer.convert_D4RL(data)
    mean, std = buffer.normalize_states()
    keys = np.hstack([s["beta"] * buffer.state, buffer.action])
    _seed(seed)
    own = {name: s[name] for name in ("discount", "tau", "alpha", "beta")}
    learner = modules[0].PRDC(keys, *peer.shape, 1.0, peer.device, k=1, **own)
    return _td3_parts(learner, buffer, mean, std, s)


def _a2pr(peer: Peer, modules: list[Any], data: Columns, s: dict[str, Any], seed: int) -> Parts:
    buffer = modules[-1].ReplayBuffer(*peer.shape, peer.device, "", 1, 0)
    buffer.D4RL_convert(data)
    mean, std = buffer.normalize_states()
    _seed(seed)
    own = {name: s[name] for name in ("discount", "tau", "alpha", "mask", "vae_weight")}
    learner = modules[0].A2PR(*peer.shape, 1.0, peer.device, **own)
    return _td3_parts(learner, buffer, mean, std, s)


def _td3_parts(learner: Any, buffer: Any, mean: Array, std: Array, s: dict[str, Any]) -> Parts:
    return Parts(
        learner,
        lambda: learner.train(buffer, s["batch_size"]),
        learner.actor,
        lambda states, actions: torch.min(*learner.critic(states, actions)).squeeze(1),
        learner.select_action,
        mean,
        std,
    )


_COMMON: dict[str, Any] = {"batch_size": 256, "discount": 0.99, "tau": 0.005}
DEFAULTS: dict[str, dict[str, Any]] = {
    "iql": _COMMON | {"beta": 3.0, "expectile": 0.7, "deterministic": False, "max_steps": 1_000_000},
    "td3bc": _COMMON | {"alpha": 2.5},
    "prdc": _COMMON | {"alpha": 2.5, "beta": 2.0},
    "a2pr": _COMMON | {"alpha": 2.5, "mask": 1.0, "vae_weight": 1.0},
}
BUILDERS: dict[str, Callable[..., Parts]] = {"iql": _iql, "td3bc": _td3bc, "prdc": _prdc, "a2pr": _a2pr}
