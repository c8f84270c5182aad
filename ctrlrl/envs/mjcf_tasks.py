"""The table of robot tasks: Gymnasium's eleven v5 tasks, and the v4 rules of those whose rules or models changed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from ctrlrl.envs import mjcf

_WHOLE_BODY = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

# name, model, obs_dim, action_dim, frame_skip, timestep, noise
_V5: tuple[mjcf.Task, ...] = (
    mjcf.Task("halfcheetah", "half_cheetah.xml", 17, 6, 5, 0.01, 0.1, normal_velocity=True, control_weight=0.1),
    mjcf.Planar("hopper", "hopper.xml", 11, 3, 4, 0.002, 5e-3, control_weight=1e-3, healthy_reward=1.0,
                height=(0.7, float("inf")), pitch=0.2, state_bound=100.0),
    mjcf.Planar("walker2d", "walker2d_v5.xml", 17, 6, 4, 0.002, 5e-3, control_weight=1e-3, healthy_reward=1.0,
                height=(0.8, 2.0), pitch=1.0),
    mjcf.Ant("ant", "ant.xml", 105, 8, 5, 0.01, 0.1, normal_velocity=True, needs=("xpos", "cfrc_ext"), skip=2,
             control_weight=0.5, healthy_reward=1.0, contact_weight=5e-4),
    mjcf.Humanoid("humanoid", "humanoid.xml", 348, 17, 5, 0.003, 1e-2, needs=_WHOLE_BODY, forward_weight=1.25,
                  control_weight=0.1, healthy_reward=5.0),
    mjcf.HumanoidStandup("humanoid_standup", "humanoidstandup.xml", 348, 17, 5, 0.003, 1e-2, needs=_WHOLE_BODY[1:],
                         control_weight=0.1),
    mjcf.Task("swimmer", "swimmer.xml", 8, 2, 4, 0.01, 0.1, skip=2, control_weight=1e-4),
    mjcf.Reacher("reacher", "reacher.xml", 10, 2, 2, 0.01, 0.1, episode_length=50, needs=("xpos",), control_weight=1.0),
    mjcf.Pusher("pusher", "pusher_v5.xml", 23, 7, 5, 0.01, 0.005, episode_length=100, needs=("xpos",)),
    mjcf.InvertedPendulum("inverted_pendulum", "inverted_pendulum.xml", 4, 1, 2, 0.02, 0.01, skip=0),
    mjcf.InvertedDoublePendulum("inverted_double_pendulum", "inverted_double_pendulum.xml", 9, 1, 5, 0.01, 0.1,
                                normal_velocity=True, needs=("site_xpos", "qfrc_constraint"), healthy_reward=10.0),
)  # fmt: skip

_BY_NAME = {t.name: t for t in _V5}
_V4: tuple[mjcf.Task, ...] = (
    replace(_BY_NAME["halfcheetah"], name="halfcheetah-v4"),
    replace(_BY_NAME["hopper"], name="hopper-v4", pay_unhealthy=True),
    replace(_BY_NAME["walker2d"], name="walker2d-v4", model="walker2d.xml", pay_unhealthy=True),
    mjcf.Ant("ant-v4", "ant.xml", 27, 8, 5, 0.01, 0.1, normal_velocity=True, needs=("xpos",), skip=2,
             control_weight=0.5, healthy_reward=1.0, pay_unhealthy=True),
    mjcf.Humanoid("humanoid-v4", "humanoid.xml", 376, 17, 5, 0.003, 1e-2, needs=_WHOLE_BODY, forward_weight=1.25,
                  control_weight=0.1, healthy_reward=5.0, pay_unhealthy=True, contact_weight=0.0, first_body=0,
                  first_force=0),
    replace(_BY_NAME["swimmer"], name="swimmer-v4"),
)  # fmt: skip

_TARGETS = ((0.14, 0.0), (-0.14, 0.0), (0.0, 0.14), (0.0, -0.14))
_TORQUES = (-1.0, 0.0, 1.0)
_MO: tuple[mjcf.Task, ...] = (  # mo-gymnasium's v5 tasks: the same robots, paid with a vector
    replace(_BY_NAME["halfcheetah"], name="mo_halfcheetah", objectives=("forward", "effort")),
    replace(_BY_NAME["hopper"], name="mo_hopper", objectives=("forward", "height", "effort"), stands_at=1.25),
    replace(_BY_NAME["hopper"], name="mo_hopper_2obj", objectives=("forward", "height"), stands_at=1.25),
    replace(_BY_NAME["walker2d"], name="mo_walker2d", objectives=("forward", "effort")),
    replace(_BY_NAME["ant"], name="mo_ant", objectives=("forward", "sideways", "effort")),
    replace(_BY_NAME["ant"], name="mo_ant_2obj", objectives=("forward", "sideways")),
    replace(_BY_NAME["humanoid"], name="mo_humanoid", objectives=("forward", "effort")),
    replace(_BY_NAME["swimmer"], name="mo_swimmer", objectives=("forward", "effort")),
    mjcf.ManyTargets("mo_reacher", "reacher.xml", 6, 0, 2, 0.01, 0.0, episode_length=50, needs=("xpos",),
                     objectives=("east", "west", "north", "south"), targets=_TARGETS,
                     choices=tuple(product(_TORQUES, _TORQUES))),
)  # fmt: skip

TASKS: dict[str, mjcf.Task] = {t.name: t for t in _V5 + _V4 + _MO}

HEIGHT_AND_SPEED = {  # columns of an observation: the torso's height, m, and its velocity along x, m/s
    "halfcheetah": (0, 8),
    "hopper": (0, 5),
    "walker2d": (0, 8),
    "ant": (0, 13),
    "humanoid": (0, 22),
}


def get_task(name: str) -> mjcf.Task:
    if name not in TASKS:
        raise ValueError(f"unknown MuJoCo task {name!r}; there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
