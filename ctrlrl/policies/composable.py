"""Which chunk policies may be sampled as one; the others are refused with the two numbers that clash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess

MODES = ("convex", "product", "or", "and")


class Parent(NamedTuple):
    name: str  # in messages
    policy: ChunkPolicy


def is_diffusion(parent: Parent) -> bool:
    return isinstance(parent.policy.process, DiffusionProcess)


def weights_fit(
    parents: Sequence[Parent], weights: Sequence[float], mode: str, base: Parent | None, exact: bool
) -> None:
    if mode not in MODES:
        raise ValueError(f"compose.mode must be one of {', '.join(MODES)}, got {mode!r}")
    if len(parents) != len(weights):
        raise ValueError(f"compose: {len(parents)} policies need as many weights, got {len(weights)}")
    if (mode == "product") != (base is not None):
        raise ValueError("compose.mode=product takes compose.base, an unconditional policy; other modes take none")
    if exact and mode != "and":
        raise ValueError(f"compose.exact is for compose.mode=and, got {mode}")
    if not any(weights):
        raise ValueError(f"compose: at least one weight must differ from 0, got {_numbers(weights)}")
    if mode != "product" and not (min(weights) >= 0.0 and abs(sum(weights) - 1.0) <= 1e-6):
        raise ValueError(f"compose: weights must be at least 0 and add up to 1, got {_numbers(weights)}")
    if mode == "and" and max(weights) - min(weights) > 1e-6:
        raise ValueError(f"compose.mode=and finds its own weights, got {_numbers(weights)}; leave compose.weight out")
    if base is not None and (seen := base.policy.obs_normalizer.shift.shape[0]):
        raise ValueError(
            f"compose.base={base.name} sees {seen} numbers of an observation; the base of compose.mode=product is "
            "unconditional, trained with algo.obs_columns=[]"
        )


def same_task(parents: Sequence[Parent]) -> None:
    """ValueError where two parents' actions or observations are not the same, with the two numbers."""
    first = parents[0]
    for other in parents[1:]:
        for what, sizes in (
            ("actions", [p.policy.start.shape[1] for p in (first, other)]),
            ("observations", [p.policy.obs_dim for p in (first, other)]),
        ):
            if sizes[0] != sizes[1]:
                raise ValueError(f"compose: {what} have {sizes[0]} numbers in {first.name}, {sizes[1]} in {other.name}")
        _same_range(first, other)
        if first.policy.switches != other.policy.switches:
            raise ValueError(
                f"compose: algo.switches is {first.policy.switches} in {first.name}, {other.policy.switches} in "
                f"{other.name}; the numbers of an action that are one of two must be the same"
            )


def _same_range(first: Parent, other: Parent) -> None:
    ones = torch.ones_like(first.policy.action_normalizer.shift)
    for sign, end in ((-1.0, "begins"), (1.0, "ends")):
        found = torch.stack([p.policy.action_normalizer.inverse(sign * ones) for p in (first, other)])
        gap = (found[0] - found[1]).abs() * first.policy.action_normalizer.scale
        d = int(gap.argmax())
        if float(gap[d]) > 1e-4:
            raise ValueError(
                f"compose: the range of action number {d} {end} at {float(found[0, d]):.6g} in {first.name}, at "
                f"{float(found[1, d]):.6g} in {other.name}, so their noise means different things. Train both on the "
                "same data, or with algo.action_range=box."
            )


def one_window(parents: Sequence[Parent], mode: str) -> None:
    first = parents[0]
    for other in parents[1:]:
        for name in ("horizon", "n_obs"):
            sizes = [getattr(p.policy.window, name) for p in (first, other)]
            if sizes[0] != sizes[1]:
                key = "n_obs_steps" if name == "n_obs" else name
                raise ValueError(
                    f"compose.mode={mode} takes parents of one {key}, got {sizes[0]} in {first.name}, {sizes[1]} in "
                    f"{other.name}"
                )


def can_be_tracked(parents: Sequence[Parent], mode: str) -> None:
    if not any(is_diffusion(parent) for parent in parents):
        raise ValueError(
            f"compose.mode={mode} samples by a diffusion's levels, and {parents[0].name} and {parents[-1].name} are "
            "flows. Use compose.mode=convex, or one parent of algo=diffusion."
        )


def covers(parents: Sequence[Parent], n_actions: int) -> None:
    for parent in parents:
        n_obs, horizon, _ = parent.policy.window
        if n_actions > horizon - n_obs + 1:
            raise ValueError(
                f"compose.n_action_steps={n_actions} is more than the {horizon - n_obs + 1} actions of a chunk of "
                f"{parent.name} from the present one on"
            )


def _numbers(weights: Sequence[float]) -> str:
    return ", ".join(f"{w:g}" for w in weights)
