"""Lazy tables: a name to "module:Class". One line per name; nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

ALGORITHMS = {
    "ppo": "ctrlrl.algos.ppo:PPOLearner",
    "bpo": "ctrlrl.algos.bpo:BPOLearner",
    "mtppo": "ctrlrl.algos.mtppo:MTPPOLearner",
    "pdppo": "ctrlrl.algos.pdppo:PDPPOLearner",
    "policyflow": "ctrlrl.algos.policyflow:PolicyFlowLearner",
    "fpo": "ctrlrl.algos.fpo:FPOLearner",
    "cmorl": "ctrlrl.algos.cmorl:CMORLLearner",
    "capql": "ctrlrl.algos.capql:CAPQLLearner",
    "scalarized_ppo": "ctrlrl.algos.cmorl:ScalarizedPPOLearner",
    "sac": "ctrlrl.algos.sac:SACLearner",
    "td3": "ctrlrl.algos.td3:TD3Learner",
    "rlpd": "ctrlrl.algos.rlpd:RLPDLearner",
    "expo": "ctrlrl.algos.expo:EXPOLearner",
    "bc": "ctrlrl.algos.bc:BCLearner",
    "td3bc": "ctrlrl.algos.td3bc:TD3BCLearner",
    "iql": "ctrlrl.algos.iql:IQLLearner",
    "prdc": "ctrlrl.algos.prdc:PRDCLearner",
    "a2pr": "ctrlrl.algos.a2pr:A2PRLearner",
    "rebrac": "ctrlrl.algos.rebrac:ReBRACLearner",
    "awac": "ctrlrl.algos.awac:AWACLearner",
    "cql": "ctrlrl.algos.cql:CQLLearner",
    "calql": "ctrlrl.algos.cql:CalQLLearner",
    "parl": "ctrlrl.algos.parl:PARLLearner",
    "fql": "ctrlrl.algos.fql:FQLLearner",
    "diffusion": "ctrlrl.algos.generative_bc:DiffusionLearner",
    "flow": "ctrlrl.algos.generative_bc:FlowLearner",
    "h2o": "ctrlrl.algos.h2o:H2OLearner",
    "beso": "ctrlrl.algos.beso:BESOLearner",
}

TOKEN_METHODS = (
    "grpo dr_grpo dapo gspo gbpo bpo_tokens ppo_tokens tppo spo holder_po mc_grpo ngrpo bnpo gdpo bapo r2vpo etr topr "
    "remax rloo reinforce_pp reinforce_pp_baseline aepo cispo sapo gmpo opo dpo direct_advantage sft simple_po_tokens"
).split()
ALGORITHMS |= {name: f"ctrlrl.llm.methods:{name}" for name in TOKEN_METHODS}

DATA = ("none", "file", "d4rl", "minari", "ogbench")

SIMULATORS = {  # torch-native: any number of environments, CPU or GPU
    "cartpole": "ctrlrl.envs.classic:CartPole",
    "pendulum": "ctrlrl.envs.classic:Pendulum",
    "mountaincar": "ctrlrl.envs.classic:MountainCar",
    "mountaincar_continuous": "ctrlrl.envs.classic:MountainCarContinuous",
    "acrobot": "ctrlrl.envs.classic:Acrobot",
    "pointmass": "ctrlrl.envs.classic:PointMass",
    "lqr": "ctrlrl.envs.classic:LQR",
    "lotsizing": "ctrlrl.envs.inventory:LotSizing",
    "slippery_lake": "ctrlrl.envs.lake:SlipperyLake",
    "multigoal": "ctrlrl.envs.multigoal:MultiGoal",
    "pointmaze": "ctrlrl.envs.maze:PointMaze",
    "deep_sea_treasure": "ctrlrl.envs.morl:DeepSeaTreasure",
    "deep_sea_treasure_concave": "ctrlrl.envs.morl:DeepSeaTreasureConcave",
    "resource_gathering": "ctrlrl.envs.morl:ResourceGathering",
    "fruit_tree": "ctrlrl.envs.morl:FruitTree",
    "minecart": "ctrlrl.envs.morl_motion:Minecart",
    "mo_mountaincar": "ctrlrl.envs.morl_motion:MOMountainCar",
    "mo_pendulum": "ctrlrl.envs.morl_motion:MOPendulum",
    "mo_bandit": "ctrlrl.envs.morl_motion:QuadraticBandit",
    "mo_irrigation": "ctrlrl.envs.morl_motion:Irrigation",
}

VECTOR_ROBOTS = {  # MuJoCo, paid with vectors; the mo-gymnasium id of the same task
    "mo_halfcheetah": "mo-halfcheetah-v5",
    "mo_hopper": "mo-hopper-v5",
    "mo_hopper_2obj": "mo-hopper-2obj-v5",
    "mo_walker2d": "mo-walker2d-v5",
    "mo_ant": "mo-ant-v5",
    "mo_ant_2obj": "mo-ant-2obj-v5",
    "mo_humanoid": "mo-humanoid-v5",
    "mo_swimmer": "mo-swimmer-v5",
    "mo_reacher": "mo-reacher-v5",
}

TOKEN_TASKS = {  # prompts that a language model answers
    "tokens/copy": "ctrlrl.llm.tasks:Copy",
    "tokens/sorting": "ctrlrl.llm.tasks:Sorting",
    "tokens/parity": "ctrlrl.llm.tasks:Parity",
    "tokens/addition": "ctrlrl.llm.tasks:Addition",
    "tokens/gsm8k": "ctrlrl.llm.tasks:WordProblems",
    "tokens/recorded": "ctrlrl.llm.recorded_task:RecordedTask",
}
RECORDED = "tokens/recorded"  # the one of them that is a file of responses

ROBOTS = {  # MuJoCo, v5 rules; the v4 rules of D4RL under "<name>-v4"; the Gymnasium id of the same task
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
    "humanoid_standup": "HumanoidStandup-v5",
    "swimmer": "Swimmer-v5",
    "reacher": "Reacher-v5",
    "pusher": "Pusher-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "halfcheetah-v4": "HalfCheetah-v4",
    "hopper-v4": "Hopper-v4",
    "walker2d-v4": "Walker2d-v4",
    "ant-v4": "Ant-v4",
    "humanoid-v4": "Humanoid-v4",
    "swimmer-v4": "Swimmer-v4",
    **VECTOR_ROBOTS,
}

GYMNASIUM_IDS = {  # of the torch-native copies, for env.backend=gymnasium and for ids given to the Python API
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "mountaincar": "MountainCar-v0",
    "mountaincar_continuous": "MountainCarContinuous-v0",
    "acrobot": "Acrobot-v1",
    **ROBOTS,
}

SAME_SPACES = {  # Gymnasium ids of the same observations and actions; "" where there is none
    "mo_halfcheetah": "HalfCheetah-v5",
    "mo_hopper": "Hopper-v5",
    "mo_hopper_2obj": "Hopper-v5",
    "mo_walker2d": "Walker2d-v5",
    "mo_ant": "Ant-v5",
    "mo_ant_2obj": "Ant-v5",
    "mo_humanoid": "Humanoid-v5",
    "mo_swimmer": "Swimmer-v5",
    "mo_reacher": "",
}

ROBOT_SETTINGS = "ctrlrl.envs.dynamics:Dynamics"

ENVIRONMENTS = (*SIMULATORS, *ROBOTS, *TOKEN_TASKS, "gym", "none")


def env_settings(name: str) -> type | None:
    """The dataclass of what a user may choose about a task beside EnvConfig; None where there is nothing."""
    if name in ROBOTS:
        return load(ROBOT_SETTINGS)
    own = SIMULATORS | TOKEN_TASKS
    return load(own[name]).Settings if name in own else None


def load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def lookup(table: dict[str, str], name: str, kind: str) -> Any:
    """The class behind a name; ValueError with the nearest names otherwise."""
    if name not in table:
        raise ValueError(unknown(kind, name, table))
    return load(table[name])


def unknown(kind: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return (
        f"unknown {kind} {name!r}; did you mean {', '.join(near)}?"
        if near
        else (f"unknown {kind} {name!r}; known: {', '.join(known)}")
    )
