"""The methods by name: each is a few settings of TokenConfig. Where a paper leaves one open, it stays TokenConfig's.

CONFIGS holds a subclass of TokenConfig for every name, with that method's defaults; all its settings can be changed.
"""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any

from ctrlrl.llm.config import TokenConfig

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (source, what differs)
    "grpo": ("arXiv:2402.03300", {"aggregation": "seq_mean", "kl": "loss", "kl_kind": "k3", "kl_coef": 0.04}),
    "dr_grpo": ("arXiv:2503.20783", {"advantage": "group_center", "aggregation": "const"}),
    "dapo": (
        "arXiv:2503.14476",
        {"clip_range_high": 0.28, "group_size": 16, "dynamic_sampling": True, "overlong": "soft"},
    ),
    "gspo": (
        "arXiv:2507.18071",
        {"ratio": "sequence_token", "clip_range": 3e-4, "clip_range_high": 4e-4, "aggregation": "seq_mean"},
    ),
    "gbpo": (
        "arXiv:2604.18578",
        {"advantage": "gbpo", "advantage_eps": 1e-6, "surrogate": "bounded", "learning_rate": 5e-7},
    ),
    "bpo_tokens": (
        "arXiv:2604.18578",
        {"advantage": "value_median", "surrogate": "bounded", "clip_range": 0.3, "target_temperature": 1e-3},
    ),
    "ppo_tokens": (
        "arXiv:1707.06347",
        {"advantage": "gae", "whiten": "tokens", "group_size": 1, "kl": "reward", "kl_kind": "k1", "kl_coef": 0.05},
    ),
    "tppo": ("arXiv:2506.15050", {"advantage": "egae", "whiten": "tokens", "group_size": 1, "window": 64}),
    "spo": (
        "arXiv:2509.13232",
        {
            "advantage": "tracker",
            "whiten": "responses",
            "group_size": 1,
            "clip_range_high": 0.28,
            "dual_clip": 10.0,
        },
    ),
    "holder_po": (
        "arXiv:2605.12058",
        {"ratio": "holder", "holder_p": 2.0, "holder_p_end": -1.0, "aggregation": "seq_mean"},
    ),
    "mc_grpo": (
        "arXiv:2601.22582",
        {"advantage": "median_mad", "group_size": 9, "aggregation": "seq_mean", "n_epochs": 2}
        | {"kl": "loss", "kl_kind": "k3", "kl_coef": 0.04, "learning_rate": 2e-6},
    ),
    "ngrpo": (
        "arXiv:2509.18851",
        {"advantage": "virtual_max", "advantage_eps": 1e-6, "clip_range": 0.16, "clip_range_high": 0.24}
        | {"drop_solved": True},
    ),
    "bnpo": (
        "arXiv:2506.02864",
        {"advantage": "beta_norm", "clip_range_high": 0.28, "aggregation": "seq_sum", "group_size": 16},
    ),
    "gdpo": ("arXiv:2601.05242", {"advantage": "gdpo", "whiten": "responses"}),
    "bapo": ("arXiv:2510.18927", {"surrogate": "clip_bounds", "dual_clip": 3.0}),
    "r2vpo": ("arXiv:2601.03320", {"surrogate": "ratio_var"}),
    "etr": ("arXiv:2601.03723", {"advantage": "group_z_elastic", "surrogate": "clip_elastic"}),
    "topr": (
        "arXiv:2503.14286",
        {"advantage": "group_center", "ratio": "product", "surrogate": "topr", "aggregation": "seq_sum"}
        | {"group_size": 16},
    ),
    "remax": (
        "arXiv:2310.10505",
        {"advantage": "remax", "group_size": 1, "surrogate": "pg", "aggregation": "seq_sum"}
        | {"kl": "reward", "kl_kind": "k1", "kl_coef": 0.05},
    ),
    "rloo": (
        "arXiv:2402.14740",
        {"advantage": "rloo", "ratio": "product", "aggregation": "seq_mean"}
        | {"kl": "reward", "kl_kind": "k1", "kl_coef": 0.05},
    ),
    "reinforce_pp": (
        "arXiv:2501.03262",
        {"advantage": "reinforce_pp", "whiten": "tokens", "group_size": 1}
        | {"kl": "reward", "kl_kind": "k1", "kl_coef": 0.01},
    ),
    "reinforce_pp_baseline": ("arXiv:2501.03262", {"advantage": "group_center", "whiten": "tokens"}),
    "aepo": ("arXiv:2510.08141", {"ent_target": 0.5, "ent_delta": 0.0, "positive_share": 0.25}),
    "cispo": ("arXiv:2506.13585", {"surrogate": "cispo", "clip_range": 1.0, "clip_range_high": 0.28}),
    "sapo": ("arXiv:2511.20347", {"surrogate": "sapo", "aggregation": "seq_mean"}),
    "gmpo": ("arXiv:2507.20673", {"surrogate": "gmpo", "clip_range": 0.4, "aggregation": "seq_mean"}),
    "opo": ("arXiv:2505.23585", {"advantage": "opo", "surrogate": "is"}),
    "dpo": (
        "arXiv:2305.18290",
        {"advantage": "group_center", "ratio": "sequence", "surrogate": "dpo", "aggregation": "seq_mean"}
        | {"group_size": 2},
    ),
    "direct_advantage": (
        "arXiv:2412.18279",
        {"advantage": "group_center", "ratio": "sequence", "surrogate": "regress", "aggregation": "seq_mean"},
    ),
    "sft": ("arXiv:2203.02155", {"advantage": "one", "group_size": 1, "surrogate": "pg"}),
    "simple_po_tokens": ("arXiv:2401.16025", {"surrogate": "simple_quad", "aggregation": "seq_mean"}),
}

EXPERIMENTAL: dict[str, str] = {
    "direct_advantage": "how the paper weighs steps, and its beta, are not known; here a response is one step",
    "holder_po": "the paper's schedule of p is not known; this one falls from 2 to -1 along the run",
    "tppo": "the paper's window length and schedule are not known; windows of 64 tokens are used",
    "r2vpo": "the paper's bound and step of the multiplier are not known; a fixed multiplier of 0.04 is used",
    "etr": "the formula of the elastic bound is a reading of the paper, not the authors' code",
    "bapo": "whether the published runs meant a ratio or a share of 0.5 as target is not known",
}


def config_class(name: str) -> type[TokenConfig]:
    """The configuration of a preset: TokenConfig with other defaults."""
    source, changes = PRESETS[name]
    known = {f.name: f.type for f in fields(TokenConfig)}
    changed = [(key, known[key], field(default=value)) for key, value in {"name": name, **changes}.items()]
    title = "".join(word.capitalize() for word in name.split("_")) + "Config"
    space = {"__module__": TokenConfig.__module__, "source": source, "experimental": EXPERIMENTAL.get(name, "")}
    return make_dataclass(title, changed, bases=(TokenConfig,), namespace=space)


CONFIGS: dict[str, type[TokenConfig]] = {name: config_class(name) for name in PRESETS}


def preset(name: str, **changes: Any) -> TokenConfig:
    """A preset's configuration, with changes."""
    if name not in CONFIGS:
        raise ValueError(f"unknown token method {name!r}; known: {', '.join(CONFIGS)}")
    return CONFIGS[name](**changes)
