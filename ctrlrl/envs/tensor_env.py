"""What the adapters of tensor simulators share: checks by shape, actions in a simulator's units, errors in one line.

Nothing here reads a tensor's values in `step`: on a GPU each read would wait for the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrlrl.types import EnvSpec

ActionMap = Callable[[Tensor], Tensor]
ACTOR_GROUPS = ("policy", "actor", "obs", "state")  # the names simulators give to what the actor sees
LOST = (
    "the last observation of an episode is lost in its reset; a time-out bootstraps from the value of the "
    "observation acted on (rsl_rl's approximation)"
)
NO_TIME_OUTS = "it does not tell time-outs: every end of an episode counts as a termination until it does"


class TensorEnv:
    """A live simulator behind the VecEnv protocol; subclasses set `spec` and write `reset` and `step`.

    notices: what a user should know of this environment's data, a line each; a run prints them when it starts.
    """

    spec: EnvSpec

    def __init__(self, env: Any, *, name: str | None = None) -> None:
        self.env = env
        self.name = _name(env) if name is None else name
        self.notices: tuple[str, ...] = ()
        self._n_steps = 0  # vector steps so far, for error messages

    def notice(self, text: str) -> None:
        line = f"{self.name}: {text}"
        if line not in self.notices:
            self.notices += (line,)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Whatever the simulator raises comes out as one line with its name on it."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"{self.name}: environment raised {type(error).__name__}: {said} (after {self._n_steps} steps)"
            ) from error

    def parts(self, answer: Any, *lengths: int) -> tuple[Any, ...]:
        """What `step` answered, which must be a tuple of one of these lengths."""
        if not isinstance(answer, tuple) or len(answer) not in lengths:
            got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            wanted = " or ".join(map(str, lengths))
            raise ValueError(f"{self.name}: step must return {wanted} values, got {got}; is there a wrapper around it?")
        return answer

    def rows(self, obs: Any) -> Tensor:
        """Observations [B, O], float32; the tensor itself where it is that already."""
        self._same_shape("observations", obs, (self.spec.n_envs, self.spec.obs_dim))
        return obs.float()

    def lanes(self, what: str, value: Any) -> Tensor:
        """One number a lane, [B]."""
        self._same_shape(what, value, (self.spec.n_envs,))
        return value

    def _same_shape(self, what: str, value: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name}: {what} must be a tensor of shape {shape}, got {type(value).__name__}")
        if value.shape != shape:
            raise ValueError(
                f"{self.name}: {what} must have shape {shape}, got {tuple(value.shape)}. "
                "Take off the wrapper that changes it (skrl's adds an axis), or mend the environment."
            )

    def _action_rows(self, action: Tensor) -> Tensor:
        self._same_shape("actions", action, (self.spec.n_envs, self.spec.action_dim))
        return action

    def _set_spec(self, obs: Any, *, action_dim: int, episode_length: int, n_envs: int | None = None) -> None:
        """From first observations [B, O]; the device is theirs."""
        if not isinstance(obs, Tensor) or obs.ndim != 2:
            got = tuple(obs.shape) if isinstance(obs, Tensor) else type(obs).__name__
            raise ValueError(f"{self.name}: observations must be one tensor [n_envs, O], got {got}")
        if n_envs is not None and len(obs) != n_envs:
            raise ValueError(f"{self.name}: expected observations of {n_envs} environments, got {len(obs)}")
        self.spec = EnvSpec(
            obs_dim=obs.shape[1],
            action_dim=action_dim,
            n_actions=0,
            reward_dim=1,
            n_envs=len(obs),
            episode_length=episode_length,
            device=obs.device,
        )
        self._acted_on = obs.float().clone()  # what the next action is for: simulators write into their buffers

    def _before_reset(self, obs: Tensor, done: Tensor) -> Tensor:
        """[B, O]: the observation acted on where the reset in the same step has overwritten the last one."""
        final_obs = torch.where(done.unsqueeze(1), self._acted_on, obs)
        self._acted_on.copy_(obs)
        return final_obs

    def _spread_clocks(self, owner: Any) -> None:
        """Start clocks spread evenly over the time limit, as rsl_rl's runner sets random ones."""
        buffer = owner.episode_length_buf
        lane = torch.arange(self.spec.n_envs, device=buffer.device)
        owner.episode_length_buf = (lane * self.spec.episode_length // self.spec.n_envs).to(buffer.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the state inside a simulator cannot be had."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            raise ValueError(f"{self.name}: this simulator has no state to restore, got {sorted(state)}")

    def close(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()


def actor_group(env: TensorEnv, obs: Any, wanted: Sequence[str] | None = None) -> Any:
    """What the actor sees of an observation: the tensor itself, or its groups side by side.

    wanted: names of groups; None takes the first of ACTOR_GROUPS that is there. All others are ignored with a notice.
    """
    if isinstance(obs, Tensor) or not hasattr(obs, "keys"):
        return obs
    known = [str(key) for key in obs.keys()]  # noqa: SIM118 (a TensorDict is no dict)
    names = list(wanted or [name for name in ACTOR_GROUPS if name in known][:1])
    if not names and len(known) == 1:
        names = known
    if not names or any(name not in known for name in names):
        asked = f"no group {names}" if names else f"none of {', '.join(ACTOR_GROUPS)}"
        raise ValueError(f"{env.name}: its observation has {asked}; name the actor's with groups=..., it has {known}")
    for name in known:
        if name not in names:
            env.notice(f"observation group {name!r} is ignored: policy and critic both see {', '.join(names)}")
    found = [obs[name] for name in names]
    for name, tensor in zip(names, found, strict=True):
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{env.name}: observation group {name!r} must be one tensor, got {kind}; concatenate it.")
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def bounded_actions(space: Any, device: torch.device, *, scale: float, name: str) -> tuple[int, ActionMap]:
    """(A, map) of a Box: finite bounds take [-1, 1], clipped, to [low, high]; without bounds see `scaled_actions`."""
    if not all(hasattr(space, bound) for bound in ("low", "high")):
        raise ValueError(f"{name}: the action space must be a Box of floats, got {space}")
    low, high = (np.asarray(bound, dtype=np.float32).reshape(-1) for bound in (space.low, space.high))
    with np.errstate(over="ignore", invalid="ignore"):
        middle, half = (low + high) / 2.0, (high - low) / 2.0
    if not np.isfinite(half).all():
        return len(low), scaled_actions(scale)
    if scale != 1.0:
        raise ValueError(f"{name}: action_scale is for actions without bounds, this space has {low} to {high}")
    center, reach = (torch.from_numpy(x).to(device) for x in (middle, half))
    return len(low), lambda action: center + reach * action.clamp(-1.0, 1.0)


def scaled_actions(scale: float) -> ActionMap:
    """The policy's sample times `scale`, unclipped: what rsl_rl sends to a simulator, which clips as it likes."""
    return lambda action: action if scale == 1.0 else action * scale


def _name(env: Any) -> str:
    """The registered id, else the class of the innermost environment."""
    spec = getattr(env, "spec", None)
    return getattr(spec, "id", None) or type(getattr(env, "unwrapped", env)).__name__


def length_of(limit: Any) -> int:
    """A time limit in steps, which may be a tensor with one for every lane (read once, when the adapter is made)."""
    return int(limit.max()) if isinstance(limit, Tensor) else int(limit)


def flag(extras: Any, key: str) -> Any:
    """`extras[key]`, None where the simulator does not tell it."""
    return extras.get(key) if isinstance(extras, Mapping) else None
