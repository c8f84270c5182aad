"""The data card: what is in a data set and how good it is, as plain values for JSON and as lines for a reader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ctrlrl.data.episodes import Array, Episodes
from ctrlrl.data.hashes import row_hashes
from ctrlrl.data.limits import complete

N_BINS = 100  # of a continuous dimension, for SACo
FEW_REWARDS = 10  # distinct ones that are named one by one
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def trajectory_quality(mean_return: float, ref_min: float, ref_max: float) -> float:
    """TQ = (mean return - worst) / (expert - worst); above 1 where the data beats the expert. arXiv:2111.04714."""
    return (mean_return - ref_min) / (ref_max - ref_min)


def coverage(episodes: Episodes, reference: Episodes) -> float:
    """SACo: different (s, a) pairs in the data over those in the reference, usually an online replay of the same size.

    Continuous dimensions are cut into 100 bins between the smallest and the largest value in either set, actions in
    units of each file's own box; pairs are counted exactly. Source: arXiv:2111.04714.
    """
    pairs = [(e.obs.reshape(e.n_rows, -1), e.unit_actions().reshape(e.n_rows, -1)) for e in (episodes, reference)]
    for name, a, b in zip(("observations", "actions"), *pairs, strict=True):
        if a.shape[1] != b.shape[1] or a.dtype.kind != b.dtype.kind:
            raise ValueError(
                f"reference={reference.facts.path}: its {name} have {b.shape[1]} numbers ({b.dtype}), those of "
                f"{episodes.facts.path} {a.shape[1]} ({a.dtype}). Name a data set of the same task."
            )
    binned = [_binned(a, b) for a, b in zip(*pairs, strict=True)]
    counts = [len(np.unique(row_hashes(*columns))) for columns in zip(*binned, strict=True)]
    return counts[0] / counts[1]


def _binned(*tables: Array) -> list[Array]:
    """Tables [N_i, D] with common bins for each dimension, one byte a number; whole numbers stay as they are."""
    if tables[0].dtype.kind != "f":
        return list(tables)
    low, high = np.min([t.min(0) for t in tables], 0), np.max([t.max(0) for t in tables], 0)
    out = [np.empty(t.shape, dtype=np.uint8) for t in tables]
    for d in range(len(low)):  # a dimension at a time: one table of float64 would be eight times the data
        width = (float(high[d]) - float(low[d])) / N_BINS
        for table, bins in zip(tables, out, strict=True):
            share = (table[:, d].astype(np.float64) - low[d]) / width if width > 0 else np.zeros(len(table))
            bins[:, d] = np.minimum(share, N_BINS - 1).astype(np.uint8)
    return out


def data_card(
    episodes: Episodes, *, reference: Episodes | None = None, ref_min: float | None = None, ref_max: float | None = None
) -> dict[str, Any]:
    """Every fact of the card; ref_min and ref_max (returns of a random and an expert policy) precede the file's own."""
    facts, whole = episodes.facts, complete(episodes)
    ref_min = facts.ref_min if ref_min is None else ref_min
    ref_max = facts.ref_max if ref_max is None else ref_max
    returns, lengths = episodes.returns(), episodes.lengths()
    ended = episodes.terminated[episodes.ends - 1]
    quality: dict[str, Any] = {}
    if ref_min is not None and ref_max is not None and facts.in_order:
        if not ref_max > ref_min:
            raise ValueError(f"ref_max must be greater than ref_min, got {ref_max:g} and {ref_min:g}")
        quality = {
            "ref_min": ref_min,
            "ref_max": ref_max,
            "normalized_score": 100.0 * trajectory_quality(float(returns.mean()), ref_min, ref_max),
            "tq": trajectory_quality(float(returns[whole].mean()), ref_min, ref_max) if whole.any() else None,
        }
    if reference is not None:
        finite = not _not_finite(episodes) and not _not_finite(reference)
        saco = coverage(episodes, reference) if finite else None
        quality |= {"saco": saco, "saco_reference": reference.facts.path}
        quality |= {"saco_reference_rows": reference.n_rows}
    return {
        "path": facts.path,
        "format": facts.format,
        "env_id": facts.env_id,
        "data_id": facts.data_id,
        "versions": dict(facts.versions),
        "checksum": facts.checksum,
        "rows": episodes.n_rows,
        "usable_rows": int(episodes.usable.sum()),
        "terminal_rows": int(episodes.terminated.sum()),
        "episodes": episodes.n_episodes,
        "complete_episodes": int(whole.sum()),
        "terminated_episodes": int(ended.sum()),
        "timed_out_episodes": int((~ended).sum()),
        "with_final_observation": int(episodes.has_final.sum()),
        "lengths": _spread(lengths) if facts.in_order else None,
        "returns": _spread(returns) if facts.in_order else None,
        "observations": _column(episodes.obs),
        "actions": _column(episodes.action),
        "rewards": _rewards(episodes.reward),
        "policies": _names(episodes, "episode_policy"),
        "noise": _names(episodes, "episode_noise_std"),
        **quality,
        "notices": [*facts.notices, *_not_finite(episodes)],
    }


def _not_finite(episodes: Episodes) -> list[str]:
    columns = {"observations": episodes.obs, "actions": episodes.action, "rewards": episodes.reward}
    bad = [name for name, x in columns.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]
    return [f"nan or inf in {', '.join(bad)}: `ctrlrl data check` names the rows"] if bad else []


def _spread(values: Array) -> dict[str, float]:
    with np.errstate(invalid="ignore"):  # between infinities lies no number
        quantiles = np.quantile(values, _QUANTILES)
    named = {f"q{round(100 * q)}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)}
    return {"min": float(values.min()), **named, "max": float(values.max()), "mean": float(values.mean())}


def _column(values: Array) -> dict[str, Any]:
    shape = list(values.shape[1:])
    return {"shape": shape, "dtype": str(values.dtype), "min": float(values.min()), "max": float(values.max())}


def _rewards(reward: Array) -> dict[str, Any]:
    distinct = np.unique(reward)
    few = [float(v) for v in distinct] if len(distinct) <= FEW_REWARDS else None
    mean = float(reward.mean(dtype=np.float64))
    return {"min": float(distinct[0]), "mean": mean, "max": float(distinct[-1]), "distinct": few}


def _names(episodes: Episodes, column: str) -> dict[str, int] | None:
    """How many episodes have each value of a per-episode column."""
    if column not in episodes.episode_extras:
        return None
    values, counts = np.unique(episodes.episode_extras[column], return_counts=True)
    texts = values.tolist() if values.dtype.kind == "U" else [f"{v:g}" for v in values.tolist()]
    return dict(zip(texts, counts.tolist(), strict=True))


def card_text(card: dict[str, Any]) -> str:
    """The card as aligned lines."""
    rows = list(_lines(card))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _lines(card: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "data set", " ".join(str(card[k]) for k in ("data_id", "path") if card[k])
    yield "layout", card["format"]
    yield "environment", card["env_id"] or "not told"
    yield "made with", ", ".join(f"{k} {v}" for k, v in card["versions"].items()) or "not told"
    left_out = card["rows"] - card["usable_rows"]
    yield "rows", f"{card['rows']:,}" + (f", {left_out:,} of them not for learning" if left_out else "")
    if card["returns"] is None:
        yield "episodes", f"not known, its rows are in no order; {card['terminal_rows']:,} of them are terminal"
    else:
        ends = f"{card['terminated_episodes']:,} terminated, {card['timed_out_episodes']:,} timed out or cut"
        held = f"{card['complete_episodes']:,} complete, {card['with_final_observation']:,} with a final observation"
        yield "episodes", f"{card['episodes']:,}: {ends}; {held}"
        if card["terminal_rows"] != card["terminated_episodes"]:
            yield "terminal rows", f"{card['terminal_rows']:,}, so episodes go on after a terminal"
        yield "length", _range_text(card["lengths"], "{:,.0f}")
        yield "return", _range_text(card["returns"], "{:,.1f}")
    if "ref_min" in card:
        yield (
            "score",
            (
                f"{card['normalized_score']:.1f} on the 0-100 scale (0 is a return of {card['ref_min']:g}, "
                f"100 of {card['ref_max']:g})"
            ),
        )
        yield "TQ", "no complete episode" if card["tq"] is None else f"{card['tq']:.3f} (0 worst, 1 expert)"
    if "saco" in card:
        against = f"{card['saco_reference']}, {card['saco_reference_rows']:,} rows"
        saco = "none, nan or inf in the data" if card["saco"] is None else f"{card['saco']:.3f}"
        yield "SACo", f"{saco} (different state-action pairs against {against})"
    rewards = card["rewards"]
    few = f"; only the values {', '.join(f'{v:g}' for v in rewards['distinct'])}" if rewards["distinct"] else ""
    yield "reward", f"{rewards['min']:g} ... {rewards['max']:g}, mean {rewards['mean']:.4g}{few}"
    for name in ("observations", "actions"):
        c = card[name]
        shape = " x ".join(str(n) for n in c["shape"]) or "one choice"
        yield name, f"{shape}, {c['dtype']}, {c['min']:g} ... {c['max']:g}"
    for name in ("policies", "noise"):
        if card[name]:
            yield name, ", ".join(f"{value} ({count:,} episodes)" for value, count in card[name].items())
    yield "checksum", card["checksum"] or "none"
    for notice in card["notices"]:
        yield "notice", notice


def _range_text(spread: dict[str, float], form: str) -> str:
    names = ("min", "q10", "q25", "q50", "q75", "q90", "max")
    shown = {k: form.format(spread[k]) for k in (*names, "mean")}
    between = " ".join(shown[k] for k in names[1:-1])
    return f"{shown['min']} ... {shown['max']}, mean {shown['mean']} (10/25/50/75/90 %: {between})"
