"""A trained policy in one file that needs no ctrlrl: raw observations in, deterministic actions out; docs/export.md."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ctrlrl import build, provenance, runs, tasks
from ctrlrl.core.learner import Learner
from ctrlrl.envs.spec import Array, PartCodec, action_codec, obs_codec

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
TOLERANCE = 1e-5  # between the file's actions and the policy's; relative where actions are larger than 1
ROWS = 128  # observations they are compared on
WIDE = 1e3  # bounds further apart than this stand for none

Acting = Callable[[list[Array]], Array]


def export(model: Any, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write a model's deterministic policy as ONNX (".onnx") or TorchScript (".pt", and its facts as ".json").

    Inputs are the arrays of the observation space with a leading batch axis, one a key of a Dict, in the space's dtype;
    the output is the action in the environment's units. The file is kept only where it acts as the model does.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.cfg), sort_keys=True, default=str).encode()).hexdigest()[:12]
    both = build.Spaces(model.observation_space, model.action_space)
    return _write(model.learner, both, Path(path), format, {"algo": model.algo, "config_hash": digest})


def export_run(folder: Path, path: Path, format: str | None = None, checkpoint: str = "last") -> Path:
    """The same for a run folder's checkpoints/<checkpoint>."""
    cfg, learner = runs.load_run(folder, checkpoint)
    env = tasks.make_env(cfg.env, 1, stagger=False)
    both = tasks.spaces(cfg.env, env.spec)
    env.close()
    facts = provenance.facts(cfg, torch.device("cpu"))
    kept = {k: facts[k] for k in ("algo", "env", "seed", "config_hash")}
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
    module = Deployed(learner, *both).eval()
    observation, action = both.to_json()
    facts |= {"inputs": module.names, "output": module.output, "observation_space": observation, "action_space": action}
    facts |= {"versions": provenance.versions(), "commit": provenance.commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # beside the target: one file system, atomic moves
        act = save(module, Path(scratch) / path.name, facts)
        for n in (1, ROWS):
            _compare(act, module, both, n, path)
        for file in sorted(Path(scratch).iterdir()):
            os.replace(file, path.parent / file.name)
    return path


def _compare(act: Acting, module: Deployed, both: build.Spaces, n: int, path: Path) -> None:
    """RuntimeError where the file does not do what `predict` does."""
    arrays = random_observations(module, n)
    found = dict(zip((p.path for p in module.parts), arrays, strict=True))
    wanted = both.predict(
        lambda obs: module.learner.act(obs, deterministic=True).action, _nest(both.observation, found), _CPU
    )
    got = act(arrays)
    same = got.shape == wanted.shape and np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    if not same or got.dtype != wanted.dtype:
        detail = f"{got.dtype} {got.shape} for {wanted.dtype} {wanted.shape}"
        if got.shape == wanted.shape:
            detail = f"largest difference {np.abs(got.astype(float) - wanted).max():.2g}"
        raise RuntimeError(f"{path} was not written: it does not act as the policy does ({detail})")


_CPU = torch.device("cpu")


class Deployed(nn.Module):
    """Observation arrays [n, *shape], in the order of `names`, to actions [n, *shape] of the action space."""

    def __init__(self, learner: Learner, observation: spaces.Space[Any], action: spaces.Space[Any]):
        super().__init__()
        self.nets = copy.deepcopy(learner.nets).cpu().requires_grad_(False)
        self.learner = copy.copy(learner)  # its methods on these copies of its networks, in float32
        self.learner.nets = self.nets
        for name, net in self.nets.named_children():
            setattr(self.learner, name, net)
        self.learner.set_dtype("float32")
        self.parts = obs_codec(observation).parts
        self.leaves = [_leaf(observation, p) for p in self.parts]
        self.names = [p.part.name or "obs" for p in self.parts]
        self.output = "action" if "action" not in self.names else "next_action"
        self.starts = [None if p.start is None else torch.from_numpy(p.start.astype(np.int64)) for p in self.parts]
        self.codec = action_codec(action)
        self.dtype = torch.from_numpy(np.zeros(0, self.codec.dtype)).dtype
        self.precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.low, self.high = (torch.from_numpy(b).to(self.precision) for b in (self.codec.low, self.codec.high))
        self.start = torch.from_numpy(np.asarray(self.codec.start, np.int64))

    def forward(self, *arrays: Tensor) -> Tensor:
        columns = [_row(*each) for each in zip(self.parts, arrays, self.starts, strict=True)]
        rows = columns[0] if len(columns) == 1 else torch.cat([c.float() for c in columns], 1)
        action = self.learner.act(rows, deterministic=True).action
        if self.codec.action_dim:
            unit = (action.to(self.precision).clamp(-1.0, 1.0) + 1.0) / 2.0
            # the sum may round to just outside of the bounds
            action = (self.low * (1.0 - unit) + self.high * unit).clamp(self.low, self.high)
        else:
            action = action + self.start
        return action.reshape(-1, *self.codec.shape).to(self.dtype)


def _row(part: PartCodec, x: Tensor, start: Tensor | None) -> Tensor:
    """`PartCodec.encode` in torch: [n, *shape] of the environment -> [n, dim]."""
    if part.part.image:
        return (x.permute(0, 3, 1, 2) if part.channels_last else x).reshape(-1, part.dim)
    if part.nvec is None or start is None:
        return x.reshape(-1, part.dim).float()
    index = x.reshape(-1, len(part.nvec)).long() - start
    return torch.cat([index[:, d : d + 1] == torch.arange(int(n)) for d, n in enumerate(part.nvec)], 1).float()


def _leaf(space: Any, part: PartCodec) -> Any:
    for key in part.path:
        space = space[key]
    return space


def _nest(space: spaces.Space[Any], arrays: dict[Any, Array], path: tuple[str | int, ...] = ()) -> Any:
    """Arrays by their path, in the structure of the space."""
    if isinstance(space, spaces.Dict):
        return {key: _nest(inner, arrays, (*path, key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(inner, arrays, (*path, i)) for i, inner in enumerate(space.spaces))
    return arrays[path]


def random_observations(module: Deployed, n: int) -> list[Array]:
    """[n, *shape] of every input, always the same."""
    random = np.random.default_rng(0)
    return [_random(space, n, random) for space in module.leaves]


def _random(space: Any, n: int, random: np.random.Generator) -> Array:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        same = copy.deepcopy(space)
        same.seed(0)
        return np.stack([np.asarray(same.sample()) for _ in range(n)])
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    normal = random.standard_normal((n, *space.shape)).clip(low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = high - low < WIDE
        spread = low + np.where(narrow, high - low, 0.0) * random.random((n, *space.shape))
    return np.where(narrow, spread, normal).astype(space.dtype)


def _save_onnx(module: Deployed, path: Path, facts: dict[str, Any]) -> Acting:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"format=onnx needs {error.name}: pip install 'ctrlrl[onnx]'") from None
    examples = tuple(torch.from_numpy(a) for a in random_observations(module, 2))
    with warnings.catch_warnings(), _silent("torch.onnx._internal.exporter._registration"):
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)  # torch's exporter uses it
        program = torch.onnx.export(
            module,
            examples,
            input_names=module.names,
            output_names=[module.output],
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in examples),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    inner = (value for node in program.model.graph for value in node.outputs if not value.is_graph_output())
    for i, value in enumerate(inner):
        value.name = f"inner.{i}"  # torch calls them "view" or "linear", as a key of a Dict may be called
    program.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run([module.output], dict(zip(module.names, arrays, strict=True)))[0]


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Without its notices (here: that torchvision, which no policy needs, is not installed)."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def _save_torchscript(module: Deployed, path: Path, facts: dict[str, Any]) -> Acting:
    examples = tuple(torch.from_numpy(a) for a in random_observations(module, 2))
    with warnings.catch_warnings(), torch.no_grad():
        # torch points new programs to torch.export and keeps this for those that load TorchScript (C++, robots)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        torch.jit.save(torch.jit.trace(module, examples, check_trace=False), str(path))
        loaded = torch.jit.load(str(path))
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2))
    return lambda arrays: loaded(*(torch.from_numpy(a) for a in arrays)).numpy()
