"""SB3's constructor words as fields of an algorithm's config. What ctrlrl does not have is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ctrlrl.registry import unknown

Schedule = Callable[[float], float]
POLICIES = {  # SB3's alias or class name -> the alias
    "MlpPolicy": "MlpPolicy",
    "CnnPolicy": "CnnPolicy",
    "MultiInputPolicy": "MultiInputPolicy",
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "MultiInputActorCriticPolicy": "MultiInputPolicy",
}
ENCODERS: dict[str, dict[str, Any]] = {  # the config of SB3's own feature extractors
    "FlattenExtractor": {"features_extractor": "flatten"},
    "NatureCNN": {"features_extractor": "cnn", "features_dim": 512},
    "CombinedExtractor": {"features_extractor": "cnn", "features_dim": 256},
}
DEFAULT_ENCODER = {"MlpPolicy": "FlattenExtractor", "CnnPolicy": "NatureCNN", "MultiInputPolicy": "CombinedExtractor"}
RENAMED = {  # policy_kwargs -> config field
    "ortho_init": "orthogonal_init",
    "log_std_init": "log_std_init",
    "share_features_extractor": "share_features_extractor",
    "normalize_images": "normalize_images",
}
ONLY = {"use_sde": False, "full_std": True, "use_expln": False, "squash_output": False}  # SB3's defaults, nothing else
POLICY_KWARGS = (
    "net_arch",
    "activation_fn",
    *RENAMED,
    "features_extractor_class",
    "features_extractor_kwargs",
    "optimizer_class",
    "optimizer_kwargs",
    *ONLY,
)


class OwnExtractor:
    """A user's features_extractor_class with its arguments; `make` builds one for an observation space."""

    def __init__(self, kind: type[nn.Module], kwargs: Mapping[str, Any]):
        self.kind, self.kwargs = kind, dict(kwargs)

    @property
    def name(self) -> str:
        return f"{self.kind.__module__}.{self.kind.__qualname__}"

    def make(self, space: Any, *, orthogonal: bool) -> nn.Module:
        """An extractor with SB3's start: orthogonal weights of gain sqrt(2) in linear and convolutional layers."""
        module = self.kind(space, **self.kwargs)
        if not hasattr(module, "features_dim"):
            raise TypeError(
                f"features_extractor_class={self.kind.__name__} needs the attribute features_dim, as in SB3"
            )
        if orthogonal:
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        return module


def policy_name(policy: Any, where: str) -> str:
    """The alias of an alias or of one of SB3's policy classes."""
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
    if name in POLICIES:
        return POLICIES[name]
    if isinstance(policy, str):
        raise ValueError(f"{where}: policy must be one of {', '.join(DEFAULT_ENCODER)}, got {policy!r}")
    raise ValueError(
        f"{where}: policy class {name} is not supported, only SB3's own and the words {', '.join(DEFAULT_ENCODER)}. "
        "Shape the networks with policy_kwargs (net_arch, activation_fn, features_extractor_class)."
    )


def network(
    policy: str, policy_kwargs: Mapping[str, Any], *, cnn_hidden: list[int] | None
) -> tuple[dict[str, Any], OwnExtractor | None]:
    """Config fields, and the user's own feature extractor if there is one.

    cnn_hidden: layers behind a CnnPolicy's encoder where net_arch does not say; None = the config's default.
    """
    for name, value in policy_kwargs.items():
        if name not in POLICY_KWARGS:
            raise TypeError(unknown("policy_kwargs key", name, POLICY_KWARGS))
        if name in ONLY and value != ONLY[name]:
            raise ValueError(f"policy_kwargs {name}={value}: ctrlrl has {name}={ONLY[name]} only")
    values: dict[str, Any] = {field: policy_kwargs[name] for name, field in RENAMED.items() if name in policy_kwargs}
    encoder, own = _extractor(policy, policy_kwargs)
    values |= encoder
    arch = policy_kwargs.get("net_arch")
    if isinstance(arch, (list, tuple)) and len(arch) == 1 and isinstance(arch[0], dict):
        arch = arch[0]  # how SB3 wrote it before 1.8
    if isinstance(arch, dict):
        values |= {"hidden": list(arch.get("pi", [])), "vf_hidden": list(arch.get("vf", []))}
    elif arch is not None:
        if not all(isinstance(width, int) for width in arch):
            raise ValueError(f"policy_kwargs net_arch={arch}: give [64, 64] or dict(pi=[64, 64], vf=[64, 64])")
        values["hidden"] = list(arch)
    elif policy == "CnnPolicy" and own is None and cnn_hidden is not None:
        values["hidden"] = list(cnn_hidden)
    if "activation_fn" in policy_kwargs:
        kind = policy_kwargs["activation_fn"]
        values["activation"] = getattr(kind, "__name__", str(kind)).lower()
    return values | _optimizer(policy_kwargs), own


def _extractor(policy: str, policy_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], OwnExtractor | None]:
    kind = policy_kwargs.get("features_extractor_class")
    kwargs = dict(policy_kwargs.get("features_extractor_kwargs") or {})
    name = getattr(kind, "__name__", "") if kind is not None else DEFAULT_ENCODER[policy]
    if kind is not None and (name not in ENCODERS or not kind.__module__.startswith("stable_baselines3.")):
        return {}, OwnExtractor(kind, kwargs)
    values = {} if policy == "MlpPolicy" and kind is None else dict(ENCODERS[name])
    size = {"NatureCNN": "features_dim", "CombinedExtractor": "cnn_output_dim"}.get(name)
    if size in kwargs:
        values["features_dim"] = kwargs.pop(size)
    if kwargs.pop("normalized_image", False):
        values["normalize_images"] = False
    if kwargs:
        raise ValueError(f"features_extractor_kwargs {', '.join(kwargs)}: {name} does not take it here")
    return values, None


def _optimizer(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    kind = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    if kind is not torch.optim.Adam:
        raise ValueError(f"policy_kwargs optimizer_class={kind.__name__}: ctrlrl trains with torch.optim.Adam only")
    kwargs = policy_kwargs.get("optimizer_kwargs")
    if kwargs is None:
        return {}
    for name in kwargs:
        if name != "eps":
            raise ValueError(f"optimizer_kwargs {name}: ctrlrl takes eps only; remove it")
    return {"adam_eps": kwargs.get("eps", 1e-8)}  # torch's, as with SB3 where optimizer_kwargs does not name it


def refuse(where: str, *, use_sde: bool, rollout_buffer_class: Any, rollout_buffer_kwargs: Any) -> None:
    """One line for what the constructor takes by name only."""
    if use_sde:
        raise ValueError(f"{where}: use_sde=True (state-dependent exploration) is not in ctrlrl; leave it False")
    name = getattr(rollout_buffer_class, "__name__", None)
    if rollout_buffer_class is not None and name not in ("RolloutBuffer", "DictRolloutBuffer"):
        raise ValueError(f"{where}: rollout_buffer_class={name} is not used; ctrlrl keeps rollouts on its own")
    if rollout_buffer_kwargs:
        raise ValueError(f"{where}: rollout_buffer_kwargs are not used; ctrlrl keeps rollouts on its own")


def as_schedule(value: float | Schedule) -> Schedule:
    """A function of the remaining progress, 1 at the start to 0 at the end."""
    return value if callable(value) else partial(_constant, float(value))


def _constant(value: float, progress_remaining: float) -> float:
    return value


def is_schedule(value: Any) -> bool:
    """Whether it may change during training: a function that `as_schedule` did not make of a number."""
    return callable(value) and getattr(value, "func", None) is not _constant


def start_value(value: Any) -> Any:
    """Of a schedule: what it gives at the start. Anything else as it is."""
    return float(value(1.0)) if callable(value) else value


def advantage_kind(value: bool | str | None) -> str | None:
    """SB3's flag as the config's word."""
    if isinstance(value, bool):
        return "minibatch" if value else "none"
    return value
