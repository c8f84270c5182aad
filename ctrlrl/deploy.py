"""A trained policy in one file that needs no ctrlrl: raw observations in, deterministic actions out; docs/export.md."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrlrl import build, provenance, runs, tasks, texts
from ctrlrl.core.learner import Learner
from ctrlrl.deployed import Deployed, DeployedChunks, DeployedPreferences
from ctrlrl.disk import strict_json, write_flushed
from ctrlrl.envs.spec import Array
from ctrlrl.policies.composed import ComposedPolicy
from ctrlrl.policies.diffusion import ChunkPolicy
from ctrlrl.policies.optimized import OptimizedPolicy
from ctrlrl.quiet import quiet

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
ROWS = 128  # observations they are compared on

Acting = Callable[[list[Array]], list[Array]]


def export(model: Any, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write a model's deterministic policy as ONNX (".onnx") or TorchScript (".pt", and its facts as ".json").

    Inputs are the arrays of the observation space with a leading batch axis, one a key of a Dict, in the space's dtype;
    the output is the action in the environment's units. The file is kept only where it acts as the model does.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.cfg), sort_keys=True, default=str).encode()).hexdigest()[:12]
    both = build.Spaces(model.observation_space, model.action_space)
    return _write(model.learner, both, Path(path), format, {"algo": model.algo, "config_hash": digest})


def export_run(
    folder: Path, path: Path, format: str | None = None, checkpoint: str = "last", words: Sequence[str] = ()
) -> Path:
    """The same for a run folder's checkpoints/<checkpoint>.

    words: settings other than the run's that its weights fit, e.g. "algo.sampling_steps=5".
    """
    cfg, learner = runs.load_run(folder, checkpoint, words)
    if texts.answers_prompts(cfg):
        if format not in (None, "transformers"):
            raise ValueError(f"format={format}: algo={cfg.algo.name} is exported with format=transformers out=FOLDER")
        if path.suffix in SUFFIXES.values():
            raise ValueError(f"out={path}: a language model becomes a folder for transformers; give out=FOLDER")
        tokenizer = texts.text_env(cfg, torch.device("cpu")).tokenizer
        texts.save_pretrained(learner.nets["policy"], tokenizer, path)  # type: ignore[index]
        return path
    env = tasks.make_env(cfg.env, 1, stagger=False)
    both = tasks.spaces(cfg.env, env.spec)
    env.close()
    facts = provenance.facts(cfg, torch.device("cpu"))
    kept = {k: facts[k] for k in ("algo", "env", "seed")}
    kept["config_hash"] = provenance.config_hash(cfg, runs.data_checksum(folder, checkpoint))
    return _write(learner, both, path, format, kept | {"checkpoint": checkpoint})


def _kind(path: Path, format: str | None) -> str:
    kind = format or next((k for k, suffix in SUFFIXES.items() if path.suffix == suffix), "")
    if kind not in SUFFIXES:
        known = " or ".join(f"{k} (*{suffix})" for k, suffix in SUFFIXES.items())
        raise ValueError(f"format={format}: must be {known}" if format else f"out={path}: must be {known}")
    if path.suffix != SUFFIXES[kind]:
        raise ValueError(f"out={path}: format={kind} needs a name that ends in {SUFFIXES[kind]}")
    return kind


def _write(learner: Learner, both: build.Spaces, path: Path, format: str | None, facts: dict[str, Any]) -> Path:
    save = {"onnx": _save_onnx, "torchscript": _save_torchscript}[_kind(path, format)]
    observation, action = both.to_json()
    facts |= {"observation_space": observation, "action_space": action}
    facts |= {"versions": provenance.versions(), "commit": provenance.commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # beside the target: one file system, atomic moves
        for name, module in _modules(learner, both, path).items():
            told = {"inputs": module.names, "output": module.outputs[0]} | module.facts
            act = save(module, Path(scratch) / name, facts | told)
            for n in (1, ROWS):
                _compare(act, module, both, n, path.parent / name)
        for file in sorted(Path(scratch).iterdir()):
            os.replace(file, path.parent / file.name)
            written.add(file.name)
    for name in {f"{path.stem}.warm{path.suffix}", f"{path.stem}.warm.json"} - written:
        (path.parent / name).unlink(missing_ok=True)  # of a former export, to whose plans it belongs
    return path


def _modules(learner: Learner, both: build.Spaces, path: Path) -> dict[str, Deployed]:
    """By their file's name. A policy that starts its later plans at the former one is another program for those."""
    told: Any = learner
    if learner.multi_objective:
        if not hasattr(learner, "act_for"):
            raise ValueError(
                f"out={path}: a file holds one policy, and algo={told.cfg.name} has found many. Export algo=capql, one "
                "policy for all preferences, or ask the saved front: ctrlrl.load(...).predict(obs, preference=...)"
            )
        return {path.name: DeployedPreferences(learner, *both, told.n_objectives).eval()}
    policy = told.nets.policy
    if isinstance(policy, ComposedPolicy):
        raise ValueError(
            f"out={path}: composed policies are not exported; export their parents, or keep them in Python"
        )
    if isinstance(policy, OptimizedPolicy) and policy.n_climbs:
        raise ValueError(
            f"out={path}: algo={told.cfg.name} climbs its critic's gradient while it acts, which a file cannot do; "
            "export with algo.n_climbs=0, or keep it in Python"
        )
    if not isinstance(policy, ChunkPolicy):
        return {path.name: Deployed(learner, *both).eval()}
    found: dict[str, Deployed] = {path.name: DeployedChunks(learner, *both).eval()}
    if policy.process.warm:
        found[f"{path.stem}.warm{path.suffix}"] = DeployedChunks(learner, *both, warm=True).eval()
    return found


def _compare(act: Acting, module: Deployed, both: build.Spaces, n: int, path: Path) -> None:
    """RuntimeError where the file does not do what the policy does."""
    arrays = module.examples(n)
    for got, wanted in zip(act(arrays), module.wanted(both, arrays), strict=True):
        rough = 2.0 * float(np.finfo(wanted.dtype).eps) if wanted.dtype.kind == "f" else 0.0
        near = max(module.tolerance, rough)
        same = got.shape == wanted.shape and np.allclose(got, wanted, rtol=near, atol=near)
        if not same or got.dtype != wanted.dtype:
            detail = f"{got.dtype} {got.shape} for {wanted.dtype} {wanted.shape}"
            if got.shape == wanted.shape:
                detail = f"largest difference {np.abs(got.astype(float) - wanted).max():.2g}"
            raise RuntimeError(f"{path} was not written: it does not act as the policy does ({detail})")


def _save_onnx(module: Deployed, path: Path, facts: dict[str, Any]) -> Acting:
    try:
        import onnxruntime
        from onnxscript import opset18 as op
    except ImportError as error:
        raise ValueError(f"format=onnx needs {error.name}: pip install 'ctrlrl[onnx]'") from None

    def mish(x: Any) -> Any:
        """As the operator Mish, which onnxruntime knows as these three; as one it would not fold constants of it."""
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    examples = tuple(torch.from_numpy(a) for a in module.examples(2))
    # whose notice says that torchvision, which no policy needs, is not installed
    with warnings.catch_warnings(), quiet("torch.onnx._internal.exporter._registration"):
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)  # torch's exporter uses it
        program = torch.onnx.export(
            module,
            examples,
            input_names=module.names,
            output_names=module.outputs,
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in examples),),
            custom_translation_table={torch.ops.aten.mish.default: mish},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    inner = (value for node in program.model.graph for value in node.outputs if not value.is_graph_output())
    for i, value in enumerate(inner):
        value.name = f"inner.{i}"  # torch calls them "view" or "linear", as a key of a Dict may be called
    program.model.metadata_props.update({k: v if isinstance(v, str) else strict_json(v) for k, v in facts.items()})
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(module.outputs, dict(zip(module.names, arrays, strict=True)))


def _save_torchscript(module: Deployed, path: Path, facts: dict[str, Any]) -> Acting:
    examples = tuple(torch.from_numpy(a) for a in module.examples(2))
    with warnings.catch_warnings(), torch.no_grad():
        # torch points new programs to torch.export and keeps this for those that load TorchScript (C++, robots)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        # group_norm looks whether it has more than one number to average
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", torch.jit.TracerWarning)
        # numbers of candidates and of critics are constants
        warnings.filterwarnings("ignore", "Using len to get tensor shape", torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace(module, examples, check_trace=False), str(path))
        loaded = torch.jit.load(str(path))
    write_flushed(path.with_suffix(".json"), strict_json(facts, indent=2).encode())

    def act(arrays: list[Array]) -> list[Array]:
        found = loaded(*(torch.from_numpy(a) for a in arrays))
        return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]

    return act
