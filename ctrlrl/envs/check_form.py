"""Checks of `check_env` on single steps: the spec, and shapes, dtypes, devices and values of what a step returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.check_report import PASSED, Outcome, failed, skipped
from ctrlrl.envs.check_walk import Subject, act, any_of, at, first_true, random_actions
from ctrlrl.types import EnvSpec, TimeStep

_METHODS = ("reset", "step", "state_dict", "load_state_dict", "close")


def spec(subject: Subject) -> Outcome:
    env = subject.env
    for name in _METHODS:
        if not callable(getattr(env, name, None)):
            return failed(f"the method {name} is missing", mend="see ctrlrl.types.VecEnv for the five it needs")
    for name, n_given in (("reset", 1), ("step", 1), ("load_state_dict", 1)):
        try:
            inspect.signature(getattr(env, name)).bind(*[None] * n_given)
        except TypeError:
            return failed(f"{name} does not take one argument", mend="see ctrlrl.types.VecEnv for the signatures")
    s = env.spec
    if not isinstance(s, EnvSpec):
        return failed(f"spec is {type(s).__name__}", mend="make it a ctrlrl.types.EnvSpec")
    for name, least in (("obs_dim", 1), ("reward_dim", 1), ("n_envs", 1), ("episode_length", 0), ("action_dim", 0)):
        value = getattr(s, name)
        if not isinstance(value, int) or value < least:
            return failed(f"spec.{name} is {value!r}", mend=f"an int of at least {least}")
    if sum((s.action_dim > 0, s.n_actions > 0, len(s.nvec) > 0)) != 1:
        kinds = f"action_dim={s.action_dim}, n_actions={s.n_actions}, nvec={s.nvec}"
        return failed(f"spec has {kinds}", mend="exactly one of them says what an action is, the others are 0 or ()")
    if any(n < 1 for n in s.nvec):
        return failed(f"spec.nvec is {s.nvec}", mend="every choice needs an option")
    if not isinstance(s.device, torch.device):
        return failed(f"spec.device is {s.device!r}", mend="make it a torch.device")
    size = sum(math.prod(p.shape) for p in s.obs_parts)
    if s.obs_parts and size != s.obs_dim:
        return failed(f"spec.obs_parts hold {size} numbers, obs_dim is {s.obs_dim}", mend="make them agree")
    return PASSED


def runs(subject: Subject) -> Outcome:
    """A reset with a seed, a walk, and a reset without."""
    first, _ = subject.raw
    if not isinstance(first, Tensor):
        return failed(f"reset returned {type(first).__name__}", mend="return the observations, a tensor [B, O]")
    subject.env.reset()
    return PASSED


def _fields(subject: Subject) -> Iterator[tuple[str, Any, int]]:
    """(name, value, step) of everything the main walk returned but extras."""
    first, steps = subject.raw
    yield "obs", first, 0
    for t, step in enumerate(steps):
        for name in TimeStep._fields[:-1]:
            yield name, getattr(step, name), t + 1


def _when(step: int) -> str:
    return f"step {step}" if step else "the reset"


def shapes(subject: Subject) -> Outcome:
    s = subject.spec
    row = (s.n_envs,)
    reward = [row] if s.reward_dim == 1 else [(s.n_envs, s.reward_dim)]
    obs = [(s.n_envs, s.obs_dim)]
    wanted = {"obs": obs, "final_obs": obs, "reward": reward, "terminated": [row], "truncated": [row]}
    for name, value, step in _fields(subject):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got not in wanted[name]:
            mend = f"its shape must be {wanted[name][0]}, from spec.n_envs, obs_dim and reward_dim"
            return failed(f"{name} is {got}", _when(step), mend)
    return PASSED


def dtypes(subject: Subject) -> Outcome:
    image = len(subject.spec.obs_parts) == 1 and subject.spec.obs_parts[0].image
    obs = (torch.float32, torch.uint8) if image else (torch.float32,)
    wanted = {"obs": obs, "final_obs": obs, "reward": (torch.float32,)}
    first, _ = subject.raw
    for name, value, step in _fields(subject):
        allowed = wanted.get(name, (torch.bool,))
        if value.dtype not in allowed:
            return failed(f"{name} is {value.dtype}", _when(step), f"it must be {allowed[0]}; .to({allowed[0]})")
        if allowed is obs and value.dtype != first.dtype:
            return failed(f"{name} is {value.dtype}, the reset gave {first.dtype}", _when(step), "keep one of them")
    return PASSED


def devices(subject: Subject) -> Outcome:
    wanted = subject.spec.device
    for name, value, step in _fields(subject):
        if value.device.type != wanted.type or (wanted.index is not None and value.device != wanted):
            return failed(f"{name} is on {value.device}", _when(step), f"spec.device says {wanted}")
    return PASSED


def extras(subject: Subject) -> Outcome:
    """Tensors [B, ...] on the device, of one shape and dtype, which stay once they are there; and all promised ones."""
    _, steps = subject.raw
    known: dict[str, Tensor] = {}
    for t, step in enumerate(steps):
        for name, value in step.extras.items():
            if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != subject.spec.n_envs:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                return failed(f"extras[{name!r}] is {got}", _when(t + 1), "give a tensor with one row a lane")
            if value.device.type != subject.spec.device.type:
                return failed(f"extras[{name!r}] is on {value.device}", _when(t + 1), "give it on spec.device")
            old = known.setdefault(name, value)
            if old.shape != value.shape or old.dtype != value.dtype:
                what = f"extras[{name!r}] changed from {old.dtype} {tuple(old.shape)} to {value.dtype}"
                return failed(f"{what} {tuple(value.shape)}", _when(t + 1), "keep its shape and dtype")
        gone = sorted(known.keys() - step.extras.keys())
        if gone:
            mend = "give it at every later step too, with NaN or False in the lanes that have nothing to tell"
            return failed(f"extras[{gone[0]!r}] is missing", _when(t + 1), mend)
    missing = sorted(set(subject.spec.extras) - steps[0].extras.keys())
    if missing:
        return failed(f"extras[{missing[0]!r}] is missing", _when(1), "spec.extras promises it: give it at every step")
    if "mask" in known and ("mask" not in steps[0].extras or known["mask"].dtype != torch.bool):
        return failed("extras['mask'] is not a bool tensor from the first step on", mend="give it at every step")
    if "mask" in known and known["mask"].ndim != 1:
        return failed(f"extras['mask'] is {tuple(known['mask'].shape)}", mend="its shape must be [B]")
    return PASSED


def finite(subject: Subject) -> Outcome:
    walk = subject.walk
    mend = "mend the physics, or terminate before the state diverges"
    lost = any_of(~walk.first.isfinite(), 1).nonzero()
    if len(lost):
        return failed("the first obs is not finite", at(0, int(lost[0])), mend)
    for name in ("final_obs", "reward", "obs"):
        found = first_true(any_of(~getattr(walk, name).isfinite()))
        if found:
            return failed(f"{name} is not finite", at(*found), mend)
    return PASSED


def action_untouched(subject: Subject) -> Outcome:
    """A rollout keeps the action that was given: the environment may not write to it."""
    env = subject.env
    env.reset(subject.seed)
    action = random_actions(subject.spec, 1, subject.seed)[0].to(subject.spec.device)
    if subject.spec.action_dim:
        action = 1.5 * action.sign()
    given = action.clone()
    env.step(action)
    if torch.equal(action, given):
        return PASSED
    return failed("step wrote to the action it was given", "step 1", "scale and clip a copy: action.clamp(-1, 1)")


def discrete_range(subject: Subject) -> Outcome:
    """An action that does not exist is refused with a ValueError, or does something finite."""
    s = subject.spec
    if s.action_dim:
        return skipped("actions are continuous")
    if s.device.type != "cpu":
        return skipped("on a GPU a wrong index ends the process")
    for wrong in (max(s.nvec or (s.n_actions,)), -1):
        subject.env.reset(subject.seed)
        action = random_actions(s, 1, 7)[0]
        action[0] = wrong
        try:
            step = act(subject.env, action)
        except ValueError:
            continue
        except Exception as error:
            mend = "raise a ValueError that names the range, or take the nearest action there is"
            return failed(f"action {wrong} raised {type(error).__name__}: {error}", at(1, 0), mend)
        if not (step.obs.isfinite().all() and step.final_obs.isfinite().all() and step.reward.isfinite().all()):
            return failed(f"action {wrong} gives what is not finite", at(1, 0), "refuse it with a ValueError")
    return PASSED
