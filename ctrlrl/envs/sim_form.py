"""What a simulator must return, looked at once on a few lanes before it runs on many."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ctrlrl.types import Extras, tree_map


def cast(dtype: torch.dtype, state: Any) -> Any:
    """The state with its numbers, but not its integers, in `dtype`."""
    return tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, state)


def check_sizes(sim: Any) -> None:
    """ValueError where a simulator does not say what it needs to be made into an environment."""
    for name, least in (("obs_dim", 1), ("episode_length", 0), ("n_random", 0)):
        value = getattr(sim, name, None)
        if not isinstance(value, Integral) or value < least:
            got = "it has none" if value is None else f"got {value!r}"
            raise ValueError(f"{type(sim).__name__}.{name} must be an int of at least {least}, {got}")
    if sum((sim.action_dim > 0, sim.n_actions > 0, len(sim.nvec) > 0)) != 1:
        kinds = f"action_dim={sim.action_dim}, n_actions={sim.n_actions}, nvec={sim.nvec}"
        raise ValueError(f"{type(sim).__name__}: exactly one of action_dim, n_actions and nvec is given, got {kinds}")


@torch.no_grad()
def check_form(sim: Any, device: torch.device, dtype: torch.dtype) -> Extras:
    """The extras of one step of a few lanes; ValueError where something that the simulator returns has another form."""
    sim_name, m = type(sim).__name__, len(sim.objectives)
    n = next(n for n in (3, 4, 5) if n not in (sim.obs_dim, m))  # so that [O, B] is not taken for [B, O]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # for a simulator that draws by itself
        state = sim.init(torch.zeros(n, sim.n_random, dtype=torch.float64, device=device))
        _check_state(f"{sim_name}.init", state, n)
        state = cast(dtype, state)
        _check_obs(sim, sim.observe(state), n)
        if sim.action_dim:
            action = torch.zeros(n, sim.action_dim, dtype=dtype, device=device)
        else:
            action = torch.zeros((n, len(sim.nvec)) if sim.nvec else n, dtype=torch.int64, device=device)
        out = sim.step(state, action)
        if not isinstance(out, tuple) or len(out) not in (3, 4) or not isinstance(out[-1], (Tensor, dict)):
            wanted = "(state, reward, terminated), or these and a dict of extras"
            raise ValueError(f"{sim_name}.step must return {wanted}, got {_form(out)}")
        after, reward, terminated, *rest = out
        _check_state(f"{sim_name}.step", after, n)
        old, new = ({name: list(x.shape) for name, x in s._asdict().items()} for s in (state, after))
        if new != old:
            raise ValueError(f"{sim_name}.step: the state's fields and shapes must stay {old}, got {new}")
        shape = (n, m) if m else (n,)
        _check(f"{sim_name}.step: reward", reward, shape, "[B, M]" if m else "[B]", "floating")
        _check(f"{sim_name}.step: terminated", terminated, (n,), "[B]", "bool")
        _check_obs(sim, sim.observe(after), n)
    extras = rest[0] if rest else {}
    missing = sorted(set(sim.extras) - set(extras))
    if missing:
        raise ValueError(f"{sim_name}.step: {missing[0]!r} is missing in the dict of extras that it returns last")
    for name, value in extras.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (n,):
            raise ValueError(f"{sim_name}.step: extras[{name!r}] must be a tensor [{n}, ...], got {_form(value)}")
    return extras


def _check_state(where: str, state: Any, n: int) -> None:
    if not hasattr(state, "_asdict"):
        raise ValueError(f"{where}: the state must be a NamedTuple of tensors, got {_form(state)}")
    for name, value in state._asdict().items():
        if not isinstance(value, Tensor) or value.shape[-1:] != (n,):
            raise ValueError(f"{where}: state.{name} must be a tensor with the {n} lanes last, got {_form(value)}")


def _check_obs(sim: Any, obs: Any, n: int) -> None:
    pixels = len(sim.obs_parts) == 1 and sim.obs_parts[0].image and isinstance(obs, Tensor) and obs.dtype == torch.uint8
    _check(f"{type(sim).__name__}.observe: obs", obs, (n, sim.obs_dim), "[B, O]", "uint8" if pixels else "floating")


def _check(what: str, value: Any, shape: tuple[int, ...], axes: str, kind: str) -> None:
    right = isinstance(value, Tensor) and value.shape == shape
    if not right or not (value.is_floating_point() if kind == "floating" else value.dtype == getattr(torch, kind)):
        raise ValueError(f"{what} must be a {kind} tensor {axes}, here {list(shape)}, got {_form(value)}")


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
