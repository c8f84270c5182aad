"""Where D4RL keeps the file of each id, what the file is called, and the time limit of each task.

Source: D4RL, d4rl/infos.py and the files that register its environments.
"""

from __future__ import annotations

from ctrlrl.data.scores import ANTMAZES, QUALITIES, SCORES, task_of

ADDRESS = "https://rail.eecs.berkeley.edu/datasets/offline_rl"

_KITCHENS = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}
_HANDS = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}
_OTHERS = {
    "minigrid-fourrooms-v0": "minigrid/minigrid4rooms",
    "minigrid-fourrooms-random-v0": "minigrid/minigrid4rooms_random",
    "flow-ring-random-v0": "flow/flow-ring-v0-random",
    "flow-ring-controller-v0": "flow/flow-ring-v0-idm",
    "flow-merge-random-v0": "flow/flow-merge-v0-random",
    "flow-merge-controller-v0": "flow/flow-merge-v0-idm",
    "carla-lane-v0": "carla/carla_lane_follow_flat-v0",
    "carla-town-v0": "carla/carla_town_subsamp_flat-v0",
}


def _by_id() -> dict[str, str]:
    found = dict(_OTHERS)
    for task in ("halfcheetah", "hopper", "walker2d", "ant"):
        for kind in (*QUALITIES, "full-replay"):
            words = kind.replace("-", "_")
            found |= {f"{task}-{kind}-{v}": f"gym_mujoco_{v}/{task}_{words}-{v}" for v in ("v1", "v2")}
            found[f"bullet-{task}-{kind}-v0"] = f"bullet/bullet-{task}_{words}"
            found[f"{task}-{kind}-v0"] = f"gym_mujoco/{task}_{'mixed' if kind == 'medium-replay' else words}"
    found["walker2d-medium-replay-v0"] = "gym_mujoco/walker_mixed"
    for task in ("pen", "hammer", "door", "relocate"):
        for kind, name in _HANDS.items():
            found[f"{task}-{kind}-v0"] = "hand_dapg/" + name.format(task)
            found[f"{task}-{kind}-v1"] = f"hand_dapg_v1/{task}-{kind}-v1"
    for size in ("open", "umaze", "medium", "large"):
        for v, suffix in (("v0", ""), ("v1", "-v1")):
            found[f"maze2d-{size}-{v}"] = f"maze2d/maze2d-{size}-sparse{suffix}"
            found[f"maze2d-{size}-dense-{v}"] = f"maze2d/maze2d-{size}-dense{suffix}"
        found[f"bullet-maze2d-{size}-v0"] = f"bullet/bullet-maze2d-{size}-sparse"
    found |= {f"kitchen-{kind}-v0": f"kitchen/{name}-v0" for kind, name in _KITCHENS.items()}
    found |= {f"antmaze-{kind}-{v}": _antmaze(kind, v) for kind in ANTMAZES for v in ("v0", "v1", "v2")}
    return {data_id: f"{path}.hdf5" for data_id, path in found.items() if data_id in SCORES}


def _antmaze(kind: str, version: str) -> str:
    size, _, starts = kind.partition("-")
    older = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
    word = size if version == "v1" else older[size]
    folder, end = {"v0": ("new", ""), "v1": ("v1", ""), "v2": ("v2", "_fixed")}[version]
    many = f"multistart_{starts != ''}_multigoal_{starts == 'diverse'}"
    return f"ant_maze_{folder}/Ant_maze_{word}_noisy_{many}_sparse{end}"


FILES = _by_id()  # id -> path below ADDRESS
_IDS = {path.rpartition("/")[2]: data_id for data_id, path in FILES.items()}

_LIMITS = {  # steps; the longest matching beginning counts
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant", "antmaze", "bullet", "carla-town"), 1000),
    "antmaze-umaze": 700,
    **dict.fromkeys(("pen", "adroithandpen"), 100),
    **dict.fromkeys(("door", "hammer", "relocate", "adroithanddoor", "adroithandhammer", "adroithandrelocate"), 200),
    "kitchen": 280,
    "minigrid": 50,
    "flow-ring": 500,
    "flow-merge": 750,
    "carla-lane": 250,
    **dict.fromkeys(("maze2d-open", "bullet-maze2d-open"), 150),
    **dict.fromkeys(("maze2d-umaze", "bullet-maze2d-umaze"), 300),
    **dict.fromkeys(("maze2d-medium", "bullet-maze2d-medium"), 600),
    **dict.fromkeys(("maze2d-large", "bullet-maze2d-large"), 800),
}
_OLD_MAZES = {"umaze": 150, "medium": 250, "large": 600}  # Maze2D v0


def id_of(file_name: str) -> str | None:
    """The id of a file called as D4RL calls it, or as the id: "hopper_medium-v2.hdf5", "hopper-medium-v2.npz"."""
    stem = file_name.rpartition(".")[0]
    return _IDS.get(file_name) or (stem if stem in FILES else None)


def time_limit(name: str) -> int | None:
    """Steps after which the task of an id, or of a Gymnasium id of the same task, is cut off; None where unknown."""
    if name.startswith("maze2d-") and name.endswith("-v0") and "open" not in name:
        return _OLD_MAZES[name.split("-")[1]]
    task = task_of(name)
    known = [start for start in _LIMITS if task == start or task.startswith(f"{start}-")]
    return _LIMITS[max(known, key=len)] if known else None
