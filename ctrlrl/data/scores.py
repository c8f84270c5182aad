"""Reference returns of the D4RL tasks, and the normalised score on the 0-100 scale.

Source: the tables of D4RL (arXiv:2004.07219), 147 ids, which depend on the task alone. Added here because D4RL gives
them where it registers the environments: AntMaze v1, and Maze2D v0.
"""

from __future__ import annotations

import re

Pair = tuple[float, float]  # mean return of a random and of an expert policy: scores 0 and 100

LOCOMOTION: dict[str, Pair] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
ADROIT: dict[str, Pair] = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
BULLET: dict[str, Pair] = {
    "halfcheetah": (-1275.766996, 2381.6725),
    "hopper": (20.058972, 1441.8059623430963),
    "walker2d": (16.523877, 1623.6476303317536),
    "ant": (373.705955, 2650.495),
}
ANTMAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
QUALITIES = ("random", "medium", "expert", "medium-replay", "medium-expert")
OTHERS: dict[str, Pair] = {
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-v0": (0.94, 62.6),
    "maze2d-medium-v0": (5.77, 85.14),
    "maze2d-large-v0": (4.83, 191.99),
    "maze2d-umaze-dense-v0": (23.249793, 81.78995240126592),
    "maze2d-medium-dense-v0": (19.477620, 96.03474232952358),
    "maze2d-large-dense-v0": (27.388310, 215.09965671563742),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "minigrid-fourrooms-v0": (0.01442, 2.89685),
    "minigrid-fourrooms-random-v0": (0.01442, 2.89685),
    "flow-ring-random-v0": (-165.22, 24.42),
    "flow-ring-controller-v0": (-165.22, 24.42),
    "flow-merge-random-v0": (118.67993, 330.03179),
    "flow-merge-controller-v0": (118.67993, 330.03179),
    "carla-lane-v0": (-0.8503839912088142, 1023.5784385429523),
    "carla-town-v0": (-114.81579500772153, 2440.1772022247314),
    "bullet-maze2d-open-v0": (8.75, 64.15),
    "bullet-maze2d-umaze-v0": (32.46, 153.99),
    "bullet-maze2d-medium-v0": (14.87, 238.05),
    "bullet-maze2d-large-v0": (1.82, 285.92),
}


def _by_id() -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for task, pair in LOCOMOTION.items():
        found |= {f"{task}-{quality}-v0": pair for quality in QUALITIES}
        found |= {f"{task}-{quality}-{v}": pair for v in ("v1", "v2") for quality in (*QUALITIES, "full-replay")}
    for task, pair in ADROIT.items():
        found |= {f"{task}-{kind}-{v}": pair for v in ("v0", "v1") for kind in ("human", "cloned", "expert")}
    for task, pair in BULLET.items():
        found |= {f"bullet-{task}-{quality}-v0": pair for quality in QUALITIES}
    found |= {f"antmaze-{kind}-{v}": (0.0, 1.0) for v in ("v0", "v1", "v2") for kind in ANTMAZES}
    found |= {f"kitchen-{kind}-v0": (0.0, 4.0) for kind in ("complete", "partial", "mixed")}
    return found | OTHERS


SCORES = _by_id()
_TASKS = LOCOMOTION | {f"adroithand{task}": pair for task, pair in ADROIT.items()}


def task_of(name: str) -> str:
    """Gymnasium and ctrlrl names without version and capitals: "HalfCheetah-v5", "halfcheetah-v4" -> "halfcheetah"."""
    return re.sub(r"-v\d+$", "", name).lower()


def reference(name: str | None) -> Pair | None:
    """The pair of a D4RL id, or of a simulator that plays the same task in any version; None where there is none.

    Minari's and OGBench's mazes and kitchens are other tasks than D4RL's: they have no pair here.
    """
    if name is None:
        return None
    return SCORES.get(name) or _TASKS.get(task_of(name))


def normalized_score(name: str | None, returns: float) -> float | None:
    """100 (G - min) / (max - min) of an undiscounted raw return G, or of a mean of them; above 100 is possible."""
    pair = reference(name)
    return None if pair is None else 100.0 * (returns - pair[0]) / (pair[1] - pair[0])
