"""Behaviour cloning of action chunks by a diffusion (arXiv:2303.04137) or a flow (arXiv:2210.02747).

They differ in the path from noise to data. Sampler and number of steps may be changed after training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from ctrlrl.core.chunk_learner import ChunkConfig, ChunkLearner
from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.transformer import TransformerHead, without_decay
from ctrlrl.nn.unet1d import UNet1D
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.types import EnvSpec

HEADS = ("mlp", "residual", "unet", "transformer")


@dataclass
class DiffusionConfig(ChunkConfig):
    heads: ClassVar[tuple[str, ...]] = HEADS

    name: str = "diffusion"
    n_levels: int = 100
    schedule: str = "cosine"  # cosine | vp, for few levels
    prediction: str = "data"  # noise, as the authors | data, which an MLP learns far sooner | v
    sampler: str = "ddim"  # ddim | ddpm, which takes every level
    spacing: str = "leading"  # of ddim's levels; trailing begins at the noisiest
    warm_start: list[int] = field(default_factory=list)  # levels of real-time iteration, e.g. [2, 1, 0]; [] = none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("schedule", ("cosine", "vp")),
            ("prediction", ("noise", "data", "v")),
            ("sampler", ("ddim", "ddpm")),
            ("spacing", ("leading", "trailing")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"DiffusionConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.sampler == "ddim" and self.n_levels < self.sampling_steps:
            raise ValueError(
                f"DiffusionConfig.sampling_steps={self.sampling_steps} is more than n_levels={self.n_levels}"
            )
        falling = sorted(set(self.warm_start), reverse=True)
        if falling != self.warm_start or not all(0 <= k < self.n_levels for k in falling):
            raise ValueError(
                f"DiffusionConfig.warm_start must fall within 0 ... {self.n_levels - 1}, got {self.warm_start}"
            )
        self.check_warm(self.warm_start)


@dataclass
class FlowConfig(ChunkConfig):
    heads: ClassVar[tuple[str, ...]] = HEADS

    name: str = "flow"
    prediction: str = "data"  # velocity, as the paper | data, which an MLP learns far sooner
    sampler: str = "euler"  # euler | midpoint, which asks the network twice a step
    warm_start: list[float] = field(default_factory=list)  # times of real-time iteration, e.g. [0.9, 0.95]; [] = none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (first, other) in {"prediction": ("velocity", "data"), "sampler": ("euler", "midpoint")}.items():
            if getattr(self, name) not in (first, other):
                raise ValueError(f"FlowConfig.{name} must be {first} or {other}, got {getattr(self, name)!r}")
        rising = sorted(set(self.warm_start))
        if rising != self.warm_start or not all(0.0 <= t < 1.0 for t in rising):
            raise ValueError(f"FlowConfig.warm_start must rise within [0, 1), got {self.warm_start}")
        self.check_warm(self.warm_start)


class GenerativeBCLearner(ChunkLearner):
    code: ClassVar[str]  # what the levels are, as the heads' embedding has it

    def __init__(self, cfg: Any, spec: EnvSpec):
        columns = cfg.obs_columns
        if columns and max(columns) >= spec.obs_dim:
            raise ValueError(
                f"algo.obs_columns has {max(columns)}; observations have {spec.obs_dim} numbers, from 0 on"
            )
        head = self._head(cfg, spec)
        policy = ChunkPolicy(
            spec.obs_dim,
            spec.action_dim,
            head,
            self._process(cfg),
            cfg.window,
            columns=columns,
            switches=cfg.switches,
            switch_guess=cfg.switch_guess,
        )
        super().__init__(cfg, policy, normalizer=Identity(), spared=without_decay(head), device=spec.device)

    def _process(self, cfg: Any) -> nn.Module:
        raise NotImplementedError

    def _head(self, cfg: Any, spec: EnvSpec) -> nn.Module:
        n_seen = spec.obs_dim if cfg.obs_columns is None else len(cfg.obs_columns)
        sizes = (cfg.horizon, spec.action_dim, cfg.n_obs_steps * n_seen)
        if cfg.head == "unet":
            return UNet1D(*sizes, widths=cfg.hidden, embed_dim=cfg.embed_dim, code=self.code)
        if cfg.head == "transformer":
            return TransformerHead(
                *sizes,
                n_obs_steps=cfg.n_obs_steps,
                width=cfg.hidden[0],
                n_layers=len(cfg.hidden),
                n_heads=cfg.n_heads,
                dropout=cfg.dropout,
                code=self.code,
            )
        if cfg.head == "residual":
            return ResidualHead(*sizes, width=cfg.hidden[0], n_blocks=len(cfg.hidden), dropout=cfg.dropout)
        return MLPHead(*sizes, hidden=cfg.hidden, embed_dim=cfg.embed_dim, code=self.code)


class DiffusionLearner(GenerativeBCLearner):
    config = DiffusionConfig
    code = "steps"

    def _process(self, cfg: Any) -> nn.Module:
        return DiffusionProcess(
            cfg.n_levels, cfg.prediction, cfg.sampler, cfg.sampling_steps, cfg.spacing, cfg.warm_start, cfg.schedule
        )


class FlowLearner(GenerativeBCLearner):
    config = FlowConfig
    code = "times"

    def _process(self, cfg: Any) -> nn.Module:
        return FlowProcess(cfg.sampler, cfg.sampling_steps, cfg.warm_start, cfg.prediction)
