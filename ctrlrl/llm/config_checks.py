"""What a TokenConfig refuses: numbers out of their range, and factors that do not fit together."""

from __future__ import annotations

from typing import Any

from ctrlrl.functional.checks import in_range
from ctrlrl.functional.kl import KINDS
from ctrlrl.llm.estimators import ADVANTAGES, OF_TOKENS
from ctrlrl.llm.objectives import AGGREGATIONS, OF_REFERENCE, OF_RESPONSES, RATIOS, SURROGATES, WITH_TARGET

INF = float("inf")


def check(cfg: Any) -> None:
    """ValueError that names the first setting which is out of its range, or does not fit another."""
    where = f"{type(cfg).__name__} ({cfg.name})"
    for name, allowed in (
        ("advantage", tuple(ADVANTAGES)),
        ("whiten", ("none", "tokens", "responses")),
        ("single", ("refuse", "raw")),
        ("ratio", tuple(RATIOS)),
        ("surrogate", tuple(SURROGATES)),
        ("aggregation", tuple(AGGREGATIONS)),
        ("kl", ("none", "reward", "loss")),
        ("kl_kind", KINDS),
        ("covariance", ("none", "clip", "kl")),
        ("overlong", ("none", "mask", "soft")),
        ("lr_schedule", ("constant", "linear")),
    ):
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{where}.{name} must be one of {', '.join(allowed)}, got {getattr(cfg, name)!r}")
    _numbers(cfg, where)
    _pairs(cfg, where)


def _numbers(cfg: Any, where: str) -> None:
    in_range(where, low=0.0, high=1.0, gamma=cfg.gamma, gae_lambda=cfg.gae_lambda)
    in_range(where, low=0.0, high=1.0, entropy_share=cfg.entropy_share, covariance_share=cfg.covariance_share)
    in_range(where, low=0.0, high=1.0, positive_share=cfg.positive_share)
    for name in ("clip_range", "clip_range_high", "clip_range_vf", "ent_target", "off_policy_limit", "bounds_step"):
        if (value := getattr(cfg, name)) is not None and not value > 0.0:
            raise ValueError(f"{where}.{name} must be above 0, got {value}")
    for name in ("advantage_eps", "target_temperature", "variance_coef", "variance_bound", "variance_rate"):
        in_range(where, low=0.0, high=INF, **{name: getattr(cfg, name)})
    for name in ("kl_coef", "ent_coef", "ent_delta", "median_coef", "covariance_coef"):
        in_range(where, low=0.0, high=INF, **{name: getattr(cfg, name)})
    for name in ("group_size", "n_virtual", "max_tokens", "n_epochs", "n_minibatches", "max_rounds"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{where}.{name} must be at least 1, got {getattr(cfg, name)}")
    if cfg.micro_batch_size is not None and cfg.micro_batch_size < 1:
        raise ValueError(f"{where}.micro_batch_size must be at least 1 or null, got {cfg.micro_batch_size}")
    for name in ("learning_rate", "weight_decay"):
        in_range(where, low=0.0, high=INF, **{name: getattr(cfg, name)})
    if cfg.window is not None and cfg.window < 1:
        raise ValueError(f"{where}.window must be at least 1 or null, got {cfg.window}")
    if not cfg.beta > 0.0:
        raise ValueError(f"{where}.beta must be above 0, got {cfg.beta}")
    if not cfg.temperature > 0.0:
        raise ValueError(f"{where}.temperature must be above 0, got {cfg.temperature}")
    for name in ("bounds_low", "bounds_high", "covariance_range", "positive_temperatures"):
        pair = getattr(cfg, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise ValueError(f"{where}.{name} must be two numbers, from and to, got {pair}")


def _pairs(cfg: Any, where: str) -> None:
    if cfg.needs_groups and cfg.group_size < 2 and cfg.single == "refuse":
        raise ValueError(
            f"{where}.group_size=1, but advantage={cfg.advantage} compares the responses to a prompt. "
            "Use group_size >= 2, or single=raw, which takes the reward as it is."
        )
    if cfg.single == "raw" and cfg.advantage not in ("group_z", "group_center", "rloo"):
        raise ValueError(f"{where}: single=raw takes advantage=group_z, group_center or rloo, got {cfg.advantage}")
    if cfg.advantage == "median_mad" and cfg.group_size % 2 == 0:
        raise ValueError(f"{where}.group_size must be odd for advantage=median_mad, got {cfg.group_size}")
    if cfg.ratio in OF_RESPONSES and (cfg.advantage in OF_TOKENS or cfg.whiten == "tokens"):
        what = f"advantage={cfg.advantage}" if cfg.advantage in OF_TOKENS else "whiten=tokens makes advantages that are"
        raise ValueError(
            f"{where}: ratio={cfg.ratio} is one a response, {what} one a token. Use ratio=token or "
            "ratio=sequence_token."
        )
    makers = WITH_TARGET.get(cfg.surrogate)
    if makers is not None and cfg.advantage not in makers:
        raise ValueError(f"{where}: surrogate={cfg.surrogate} needs advantage={' or '.join(makers)}")
    if cfg.surrogate == "gmpo" and (cfg.advantage in OF_TOKENS or cfg.ratio != "token"):
        raise ValueError(f"{where}: surrogate=gmpo takes ratio=token and one advantage a response")
    if cfg.surrogate in OF_REFERENCE and (cfg.ratio != "sequence" or cfg.advantage in OF_TOKENS):
        raise ValueError(f"{where}: surrogate={cfg.surrogate} takes ratio=sequence and one advantage a response")
    if cfg.surrogate == "dpo" and (cfg.group_size != 2 or cfg.micro_batch_size == 1):
        raise ValueError(f"{where}: surrogate=dpo compares pairs: group_size=2, and no micro_batch_size=1")
    if cfg.window is not None and (cfg.advantage != "egae" or cfg.group_size != 1):
        raise ValueError(f"{where}.window={cfg.window} takes advantage=egae and group_size=1")
    if cfg.window is not None and cfg.overlong != "none":
        raise ValueError(
            f"{where}.window={cfg.window}: what is unfinished goes on, so overlong={cfg.overlong} has no place"
        )
    if cfg.advantage == "gdpo" and (cfg.overlong == "soft" or cfg.kl == "reward"):
        raise ValueError(
            f"{where}: advantage=gdpo normalizes each reward alone, so overlong=soft and kl=reward have no place. "
            "Give the penalty as a reward function."
        )
    if cfg.kl == "reward" and cfg.kl_kind != "k1":
        raise ValueError(f"{where}: kl=reward takes kl_kind=k1, log pi_old - log ref, got {cfg.kl_kind}")
    if cfg.kl == "loss" and cfg.kl_kind == "k1":
        raise ValueError(f"{where}: kl_kind=k1 in the loss has no gradient in expectation. Use k2 or k3.")
    if cfg.kl == "none" and cfg.kl_coef > 0.0:
        raise ValueError(f"{where}.kl_coef={cfg.kl_coef} does nothing with kl=none. Use kl=reward or kl=loss.")
    if cfg.positive_share > 0.0 and (cfg.advantage in OF_TOKENS or cfg.whiten == "tokens" or cfg.kl == "reward"):
        raise ValueError(f"{where}.positive_share={cfg.positive_share} takes one advantage a response and no kl=reward")
    if cfg.positive_share > 0.0 and cfg.surrogate in WITH_TARGET:
        raise ValueError(
            f"{where}.positive_share={cfg.positive_share}: surrogate={cfg.surrogate} needs targets of its own"
        )
    if cfg.positive_share > 0.0 and (cfg.surrogate == "dpo" or cfg.advantage == "remax"):
        what = "surrogate=dpo" if cfg.surrogate == "dpo" else "advantage=remax"
        raise ValueError(f"{where}.positive_share={cfg.positive_share} exchanges single responses, not with {what}")
    if cfg.off_policy_limit is not None and cfg.advantage in OF_TOKENS:
        raise ValueError(
            f"{where}.off_policy_limit={cfg.off_policy_limit} asks for the sign of one advantage a response, and those "
            f"of advantage={cfg.advantage} are one a token"
        )
    if cfg.positive_share > 0.0 and cfg.ent_target is None:
        raise ValueError(f"{where}.positive_share={cfg.positive_share} holds an entropy: give ent_target, nats")
    if cfg.overlong_buffer is not None and not 0 < cfg.overlong_buffer <= cfg.max_tokens:
        raise ValueError(f"{where}.overlong_buffer must lie in 1 ... max_tokens={cfg.max_tokens} or be null")
