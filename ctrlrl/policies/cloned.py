"""A base for other policies: a cloned diffusion or flow of one action under one observation, from scratch or a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ctrlrl.functional.checks import in_range
from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.types import Window

CHOICES = {
    "base_kind": ("diffusion", "flow"),
    "base_head": ("mlp", "residual"),
    "base_schedule": ("cosine", "vp"),
    "base_sampler": ("ddim", "ddpm", "euler", "midpoint"),
    "base_spacing": ("leading", "trailing"),
}
PREDICTIONS = {"diffusion": ("noise", "data", "v"), "flow": ("velocity", "data")}


@dataclass
class BaseConfig:
    base: str | None = None  # run folder of algo=diffusion or algo=flow to begin with; the base_... are then its own
    base_kind: str = "diffusion"  # diffusion | flow
    base_head: str = "residual"  # mlp | residual
    base_hidden: list[int] | None = None  # null = hidden
    base_embed_dim: int = 16  # of the level, mlp
    base_n_levels: int = 10
    base_schedule: str = "vp"  # cosine | vp
    base_prediction: str | None = None  # noise | data | v, of a flow velocity | data; null = the first of them
    base_sampler: str = "ddpm"  # ddim | ddpm; of a flow euler | midpoint
    base_spacing: str = "leading"
    base_sampling_steps: int | None = None  # of ddim, euler, midpoint; null = base_n_levels, as many as ddpm takes
    base_tau: float = 0.001  # how far the acting base follows the trained one in an update

    def check_base(self, hidden: Sequence[int]) -> None:
        """ValueError for settings of no base. hidden: widths where base_hidden is null."""
        where = type(self).__name__
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{where}.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if (self.base_kind == "flow") != (self.base_sampler in ("euler", "midpoint")):
            fitting = "euler or midpoint" if self.base_kind == "flow" else "ddim or ddpm"
            raise ValueError(
                f"{where}.base_sampler of base_kind={self.base_kind} must be {fitting}, got {self.base_sampler!r}"
            )
        if self.base_prediction not in (None, *PREDICTIONS[self.base_kind]):
            raise ValueError(
                f"{where}.base_prediction of base_kind={self.base_kind} must be one of "
                f"{', '.join(PREDICTIONS[self.base_kind])}, got {self.base_prediction!r}"
            )
        for name in ("base_n_levels", "base_sampling_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {value}")
        if self.base_sampler == "ddpm" and self.base_sampling_steps not in (None, self.base_n_levels):
            raise ValueError(
                f"{where}.base_sampling_steps={self.base_sampling_steps}: base_sampler=ddpm takes every one of "
                f"base_n_levels={self.base_n_levels}; use base_sampler=ddim, or fewer levels"
            )
        widths = hidden if self.base_hidden is None else self.base_hidden
        if self.base_head == "residual" and len(set(widths)) != 1:
            raise ValueError(f"{where}.base_hidden: the blocks of base_head=residual have one width, got {widths}")
        in_range(where, low=0.0, high=1.0, base_tau=self.base_tau)

    @classmethod
    def base_settings(cls, base: Any, where: str) -> dict[str, Any]:
        """The settings that the config of a pretrained base decides; ValueError for one that cannot be a base.

        where: what names it to the user.
        """
        if base.name not in CHOICES["base_kind"]:
            raise ValueError(f"{where} is a run of algo={base.name}; a base is one of algo=diffusion or algo=flow")
        form = {f"algo.{name}": getattr(base, name) for name in ("horizon", "n_obs_steps", "n_action_steps")}
        if set(form.values()) != {1}:
            said = " ".join(f"{name}={value}" for name, value in form.items())
            raise ValueError(
                f"{where} has {said}; a base says one action under one observation. Train it with "
                + " ".join(f"{name}=1" for name in form)
            )
        if base.switches:
            raise ValueError(f"{where} has algo.switches={base.switches}, which edits would leave half open")
        if base.obs_columns is not None:
            raise ValueError(f"{where} has algo.obs_columns={base.obs_columns}; a base sees whole observations")
        own = {f.name for f in fields(cls)}
        shared = {f"base_{f.name}": getattr(base, f.name) for f in fields(base)}
        if base.sampler == "ddpm":
            shared["base_sampling_steps"] = None
        return {"base_kind": base.name} | {name: value for name, value in shared.items() if name in own}


def base_policy(cfg: Any, obs_dim: int, action_dim: int) -> ChunkPolicy:
    """Of a BaseConfig that has `hidden`."""
    return ChunkPolicy(obs_dim, action_dim, _head(cfg, obs_dim, action_dim), _process(cfg), Window(1, 1, 1))


def _process(cfg: Any) -> nn.Module:
    prediction = cfg.base_prediction or PREDICTIONS[cfg.base_kind][0]
    n_steps = cfg.base_sampling_steps or cfg.base_n_levels
    if cfg.base_kind == "flow":
        return FlowProcess(cfg.base_sampler, n_steps, prediction=prediction)
    return DiffusionProcess(
        cfg.base_n_levels,
        prediction,
        cfg.base_sampler,
        n_steps,
        cfg.base_spacing,
        schedule=cfg.base_schedule,
    )


def _head(cfg: Any, obs_dim: int, action_dim: int) -> nn.Module:
    hidden = cfg.hidden if cfg.base_hidden is None else cfg.base_hidden
    if cfg.base_head == "residual":
        return ResidualHead(1, action_dim, obs_dim, width=hidden[0], n_blocks=len(hidden), dropout=0.0)
    code = "times" if cfg.base_kind == "flow" else "steps"
    return MLPHead(1, action_dim, obs_dim, hidden=hidden, embed_dim=cfg.base_embed_dim, code=code)
