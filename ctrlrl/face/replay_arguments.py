"""SB3's constructor words of SAC and TD3 as fields of a config. What ctrlrl does not have is refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ctrlrl.face.numbers import item
from ctrlrl.registry import unknown

POLICIES = {  # SB3's alias or class name -> the alias
    "MlpPolicy": "MlpPolicy",
    "MultiInputPolicy": "MultiInputPolicy",
    "SACPolicy": "MlpPolicy",
    "TD3Policy": "MlpPolicy",
}
POLICY_KWARGS = ("net_arch", "activation_fn", "n_critics", "optimizer_class", "optimizer_kwargs")
NEVER = {  # arguments that only their default is taken for
    "replay_buffer_class": "ctrlrl keeps transitions on its own",
    "replay_buffer_kwargs": "ctrlrl keeps transitions on its own",
    "optimize_memory_usage": "every row holds its next observation, which an episode's end needs",
    "use_sde": "state-dependent exploration is not in ctrlrl",
    "use_sde_at_warmup": "state-dependent exploration is not in ctrlrl",
}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's named arguments, of its locals()."""
    return {k: v for k, v in values.items() if k not in ("self", "settings", "__class__")}


def policy_name(policy: Any, where: str) -> str:
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
    if name in POLICIES:
        return POLICIES[name]
    raise ValueError(f"{where}: policy must be MlpPolicy or MultiInputPolicy (of vectors), got {name!r:.60}")


def refuse(where: str, **given: Any) -> None:
    """ValueError for the first argument that asks for what is not there."""
    for name, value in given.items():
        if name in NEVER and value:
            raise ValueError(f"{where}: {name}={value!r:.40} is not taken: {NEVER[name]}; leave it out")


def network(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields of SB3's policy_kwargs."""
    for name in policy_kwargs:
        if name not in POLICY_KWARGS:
            raise TypeError(unknown("policy_kwargs key", name, POLICY_KWARGS))
    if policy_kwargs.get("optimizer_class", torch.optim.Adam) is not torch.optim.Adam:
        raise ValueError("policy_kwargs optimizer_class: ctrlrl trains with torch.optim.Adam only")
    if policy_kwargs.get("optimizer_kwargs"):
        raise ValueError("policy_kwargs optimizer_kwargs are not taken; learning_rate is an argument of its own")
    values: dict[str, Any] = {}
    arch = policy_kwargs.get("net_arch")
    if arch is not None:
        parts = arch if isinstance(arch, dict) else {"pi": arch, "qf": arch}
        widths = [part for part in parts.values() if isinstance(part, (list, tuple))]
        if set(parts) != {"pi", "qf"} or len(widths) < 2 or any(type(n) is not int for part in widths for n in part):
            raise ValueError(
                f"policy_kwargs net_arch={arch!r:.60}: give [256, 256] or dict(pi=[256, 256], qf=[256, 256])"
            )
        values["hidden"] = list(parts["pi"])
        values |= {"critic_hidden": list(arch["qf"])} if isinstance(arch, dict) else {}
    if "activation_fn" in policy_kwargs:
        kind = policy_kwargs["activation_fn"]
        values["activation"] = getattr(kind, "__name__", str(kind)).lower()
    return values | ({"n_critics": policy_kwargs["n_critics"]} if "n_critics" in policy_kwargs else {})


def refuse_foreign(values: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """ValueError for what `network` read where the algorithm's config has no such field."""
    words = {"critic_hidden": "net_arch of two parts", "activation": "activation_fn", "n_critics": "n_critics"}
    for name, word in words.items():
        if name in values and name not in known:
            mend = "give net_arch=[256, 256], for policy and critics" if name == "critic_hidden" else "leave it out"
            raise ValueError(f"{where}: policy_kwargs {word} is no choice of this algorithm; {mend}")


def noise_of(action_noise: Any, where: str) -> float:
    """Standard deviation, in the units of actions in [-1, 1], of SB3's NormalActionNoise or of a number; None is 0."""
    action_noise = item(action_noise)
    if action_noise is None or isinstance(action_noise, (int, float)):
        return float(action_noise or 0.0)
    kind = type(action_noise).__name__
    if kind == "NormalActionNoise":
        mean, std = (np.asarray(getattr(action_noise, name)) for name in ("_mu", "_sigma"))
        if not mean.any() and std.size and (std == std.flat[0]).all():
            return float(std.flat[0])
        raise ValueError(f"{where}: action_noise must have mean 0 and one standard deviation, got {mean} and {std}")
    raise ValueError(f"{where}: action_noise must be NormalActionNoise or a standard deviation, got {kind}")


def frequency(train_freq: Any, where: str) -> tuple[int, str]:
    """(count, "step" or "episode")."""
    count, unit = train_freq if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    count, unit = item(count), getattr(unit, "value", unit)
    if unit not in ("step", "episode") or isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(
            f"{where}: train_freq must be a count, or (count, 'step' or 'episode'), got {train_freq!r:.60}"
        )
    return count, unit
