"""Milliseconds from the last observations to the actions of a plan: every way to run one chunked policy, in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ctrlrl import deploy, tasks
from ctrlrl.bench.ours import Deciding
from ctrlrl.bench.rows import Lap, measured
from ctrlrl.config import TrainConfig
from ctrlrl.deployed import DeployedChunks
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array
from ctrlrl.loops import make_learner

ENGINES = ("eager", "compile", "onnx")
KINDS = {"noise": "epsilon", "data": "sample", "v": "v_prediction"}  # in diffusers' words
Decide = Callable[[], Array]


class Planning(Deciding):
    """The median plan of a lap, in ms."""

    warm_up, block = 5, 1

    def lap(self) -> Lap:
        lap = super().lap()
        return lap._replace(value=lap.value / 1000)


def latencies(
    cfg: TrainConfig,
    *,
    sizes: list[int],
    engines: list[str],
    steps: list[int],
    vs: str | None,
    pairs: int,
    seconds: float,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The fields of a row an engine and number of steps. sizes: of observation and action, [] = the environment's."""
    found = []
    for n in steps or [cfg.algo.sampling_steps]:
        found += _of_one(replace(cfg.algo, sampling_steps=n), _spaces(cfg, sizes), engines, vs, pairs, seconds, note)
    return found


def _of_one(
    algo: Any, both: Spaces, engines: list[str], vs: str | None, pairs: int, seconds: float, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    module = untrained(algo, both)
    peer = None if vs is None else Planning(*peer_loop(vs, module, algo), seconds)
    contenders = [Planning(name, engine(name, module, algo, both), seconds) for name in engines]
    laps: dict[Any, list[Lap]] = {each: [] for each in (*contenders, *([peer] if peer else []))}
    for i in range(pairs):
        for each in laps:
            laps[each].append(each.lap())
        shown = ", ".join(f"{each.name} {own[-1].value:.2f} ms" for each, own in laps.items())
        note(f"  {algo.sampling_steps} steps, round {i + 1}/{pairs}: {shown}")
    about = {"head": algo.head, "sampler": algo.sampler, "sampling_steps": algo.sampling_steps, "unit": "ms"}
    about |= {"network_calls": module.facts["network_calls"], "parameters": _count(module), "horizon": algo.horizon}
    about |= {"obs_dim": both.obs_codec.dim, "action_dim": both.action_codec.action_dim, "n_envs": 1, "device": "cpu"}
    theirs = None if peer is None else laps[peer]
    return [
        measured(laps[each], theirs, None if peer is None else peer.name)
        | about
        | {"engine": each.name, "compile": "compile" if each.name == "compile" else "eager"}
        for each in contenders
    ]


def _count(module: DeployedChunks) -> int:
    policy: Any = module.nets.policy
    return sum(p.numel() for p in policy.head.parameters())


def _spaces(cfg: TrainConfig, sizes: list[int]) -> Spaces:
    if sizes:
        if len(sizes) != 2:
            raise ValueError(f"sizes must be two numbers, of observation and action, got {sizes}")
        obs, action = sizes
        return Spaces(spaces.Box(-np.inf, np.inf, (obs,), np.float32), spaces.Box(-1.0, 1.0, (action,), np.float32))
    env = tasks.make_env(cfg.env, 1, stagger=False)
    both = tasks.spaces(cfg.env, env.spec)
    env.close()
    return both


def untrained(algo: Any, both: Spaces) -> DeployedChunks:
    torch.manual_seed(0)
    return DeployedChunks(make_learner(algo, both.env_spec(torch.device("cpu"))), *both).eval()


def engine(name: str, module: DeployedChunks, algo: Any, both: Spaces) -> Decide:
    """One plan from observations and noise in NumPy to actions in NumPy."""
    if name not in ENGINES:
        raise ValueError(f"engines must be among {', '.join(ENGINES)}, got {name!r}")
    arrays = module.examples(1)
    if name == "onnx":
        return _onnx(module, algo, both, arrays)
    if name == "compile":
        module = untrained(algo, both)
        module.compile_network()

    @torch.no_grad()
    def decide() -> Array:
        return module(*map(torch.from_numpy, arrays))[0].numpy()

    return decide


def _onnx(module: DeployedChunks, algo: Any, both: Spaces, arrays: list[Array]) -> Decide:
    import onnxruntime

    model = SimpleNamespace(
        learner=module.learner, observation_space=both.observation, action_space=both.action, algo=algo.name, cfg=algo
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = deploy.export(model, Path(folder) / "policy.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = dict(zip(module.names, arrays, strict=True))
    return lambda: session.run(module.outputs[:1], feed)[0]


def peer_loop(vs: str, module: DeployedChunks, algo: Any) -> tuple[str, Decide]:
    """diffusers' DDIM scheduler around the same network, as Diffusion Policy's code has it."""
    if vs != "diffusers":
        raise ValueError(f"latency of plans compares with vs=diffusers, got {vs}")
    for key, wanted in (("sampler", "ddim"), ("schedule", "cosine")):
        found = getattr(algo, key, algo.name)
        if found != wanted:
            raise ValueError(f"vs=diffusers compares algo.{key}={wanted}, got {found}")
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise ValueError(f"vs=diffusers needs {package}: pip install {package}") from None
    scheduler = DDIMScheduler(
        num_train_timesteps=algo.n_levels,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=KINDS[algo.prediction],
        timestep_spacing=algo.spacing,
        clip_sample=True,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(algo.sampling_steps)
    policy: Any = module.nets.policy
    *obs, start = module.examples(1)

    @torch.no_grad()
    def decide() -> Array:
        condition = policy.condition(module.history(map(torch.from_numpy, obs)))
        x = torch.from_numpy(start)
        for k in scheduler.timesteps:
            x = scheduler.step(policy.head(x, k, condition), k, x).prev_sample
        return module.executed(x).numpy()

    return f"diffusers {version('diffusers')}, DDIMScheduler", decide
