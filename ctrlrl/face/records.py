"""What an agent writes to its logger, under SB3's names."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

from ctrlrl.types import Metrics

OF_UPDATE = {
    "train/policy_gradient_loss": "loss/policy",
    "train/value_loss": "loss/value",
    "train/approx_kl": "policy/kl",
    "train/clip_fraction": "policy/clip_fraction",
    "train/explained_variance": "value/explained_variance",
    "train/learning_rate": "train/learning_rate",
}


def record_progress(model: Any, iteration: int) -> None:
    """rollout/* and time/*; called after a rollout and before its update, so train/* is of the update before."""
    record = model.logger.record
    seconds = _elapsed(model)
    if iteration > 0:
        record("time/iterations", iteration, exclude="tensorboard")
    if model.ep_info_buffer:
        record("rollout/ep_rew_mean", _mean(model.ep_info_buffer, "r"))
        record("rollout/ep_len_mean", _mean(model.ep_info_buffer, "l"))
    record("time/fps", int((model.num_timesteps - model._num_timesteps_at_start) / seconds))
    record("time/time_elapsed", int(seconds), exclude="tensorboard")
    record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
    if model.ep_success_buffer:
        record("rollout/success_rate", float(np.mean(model.ep_success_buffer)))


def record_update(model: Any, metrics: Metrics) -> None:
    """train/*: means over the update's minibatches; reads the device once."""
    record, cfg = model.logger.record, model.cfg
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    found = dict(zip(metrics, values, strict=True))
    for name, source in OF_UPDATE.items():
        if source in found:
            record(name, found[source])
    if "policy/entropy" in found:
        entropy = found["policy/entropy"]
        record("train/entropy_loss", -entropy)
        loss = found["loss/policy"] + cfg.vf_coef * found["loss/value"] - cfg.ent_coef * entropy
        record("train/loss", loss + found.get("loss/penalty", 0.0))
    if hasattr(model.policy, "log_std"):
        record("train/std", model.policy.log_std.detach().exp().mean().item())
    record("train/n_updates", model._n_updates, exclude="tensorboard")
    for name in ("clip_range", "clip_range_vf"):
        if getattr(model, name) is not None:
            record(f"train/{name}", getattr(cfg, name))


OF_REPLAY = {
    "train/actor_loss": "loss/policy",
    "train/critic_loss": "loss/critic",
    "train/ent_coef": "policy/temperature",
    "train/ent_coef_loss": "loss/temperature",
}


def record_replay(model: Any, metrics: Metrics) -> None:
    """rollout/*, time/* and train/* of a model that learns from replayed steps."""
    record = model.logger.record
    record("time/episodes", model._episode_num, exclude="tensorboard")
    record_progress(model, 0)
    for name, source in OF_REPLAY.items():
        if source in metrics:
            record(name, float(metrics[source]))
    if metrics:
        _record_updates(model)


def record_offline(model: Any, metrics: Metrics) -> None:
    """time/*, the updates' means under SB3's names or else their own, and rollout/* where there are episodes."""
    if model._episode_num:
        model.logger.record("time/episodes", model._episode_num, exclude="tensorboard")
    record_progress(model, 0)
    known = {source: name for name, source in OF_REPLAY.items()}
    for name, value in metrics.items():
        model.logger.record(known.get(name, name), float(value))
    if metrics:
        _record_updates(model)


def _record_updates(model: Any) -> None:
    steps = model.learner.opt
    of_policy = steps.get("policy", next(iter(steps.values())))  # the one that schedules move
    model.logger.record("train/learning_rate", float(of_policy.learning_rate))
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")


def progress_row(model: Any) -> dict[str, float]:
    """For the live line."""
    row = {"time/steps_per_s": (model.num_timesteps - model._num_timesteps_at_start) / _elapsed(model)}
    return row | ({"rollout/return": _mean(model.ep_info_buffer, "r")} if model.ep_info_buffer else {})


def _elapsed(model: Any) -> float:
    return max((time.time_ns() - model.start_time) / 1e9, sys.float_info.epsilon)


def _mean(infos: Any, key: str) -> float:
    return float(np.mean([info[key] for info in infos]))
