"""What a model file says of an agent besides its tensors, and how a constructor's arguments come back from it.

Plain values only. A function or a class is not in the file: it is named there, and given again at loading.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from ctrlrl import build
from ctrlrl.config import DIVISION, DataConfig
from ctrlrl.face.arguments import is_schedule, network, policy_name, start_value
from ctrlrl.face.data import data_facts, known_data
from ctrlrl.face.replay_arguments import network as replay_network
from ctrlrl.provenance import versions
from ctrlrl.registry import ALGORITHMS, lookup

File = str | os.PathLike[str] | BinaryIO
KINDS = {"algo": str, "config": dict, "spaces": list, "batch_size": int, "num_timesteps": int}
OFFLINE = {"gradient_steps": int, "env_steps": int, "verbose": int}
OTHERS = {  # what not every file has
    **{"policy": str, "features_extractor": str | None, "schedules": list[str], "objectives": list[str]},
    **{"n_envs": int, "n_updates": int, "stats_window_size": int, "verbose": int, "gradient_steps": int},
    **{"seed": int | None, "tensorboard_log": str | None, "train_freq": list, "data": dict, "versions": dict},
    **{"dataset": bool},
}
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
COPIES = 4  # a network's weights are registered at most this often while it is made


def facts(model: Any) -> dict[str, Any]:
    own = model._extractor
    now = {name: getattr(model, name) for name in SCHEDULES if getattr(model, name) is not None}
    return {
        "algo": model.algo,
        # not where a schedule stands now: many end at 0, which is no setting
        "config": asdict(model.cfg) | {name: start_value(value) for name, value in now.items()},
        "policy": model._policy_name,
        "features_extractor": None if own is None else own.name,
        "schedules": [name for name, value in now.items() if is_schedule(value)],
        "batch_size": model.batch_size,
        "n_envs": model.n_envs,
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "seed": model.seed,
        "stats_window_size": model._stats_window_size,
        "tensorboard_log": None if model.tensorboard_log is None else str(model.tensorboard_log),
        "verbose": model.verbose,
        "spaces": model._spaces.to_json(),
        "versions": versions(),
    }


def offline_facts(model: Any) -> dict[str, Any]:
    """Of a model that learns from a data set."""
    return {
        "algo": model.algo,
        "config": asdict(model.cfg),
        "data": data_facts(model._data),
        "batch_size": model.cfg.batch_size,
        "num_timesteps": model.num_timesteps,
        "gradient_steps": model.gradient_steps,
        "env_steps": model.env_steps,
        "seed": model.seed,
        "verbose": model.verbose,
        "tensorboard_log": None if model.tensorboard_log is None else str(model.tensorboard_log),
        "spaces": model._spaces.to_json(),
        "versions": versions(),
    }


def replay_facts(model: Any) -> dict[str, Any]:
    """Of a model that learns from replayed steps."""
    own = {"train_freq": list(model.train_freq), "gradient_steps": model.gradient_steps}
    return facts(model) | own | {"data": data_facts(model._data), "dataset": model.had_data}


def load_replayed(
    kind: Any, path: File, env: Any, device: Any, *, n_envs: int, changes: Mapping[str, Any], told: bool
) -> Any:
    """A model of that class from its file. told: print the versions of what wrote it and of what is here."""
    checkpoint, where = read(path), str(path)
    found = checkpoint.state
    if found["algo"] != kind.algo:
        raise ValueError(f"{where} holds a model of {found['algo']}, not of {kind.algo}; use ctrlrl.load(path)")
    if told:
        sys.stdout.write(versions_text(found))
    config = {k: v for k, v in found["config"].items() if k != "name"}
    kept = ("seed", "stats_window_size", "tensorboard_log", "verbose", "gradient_steps", "train_freq")
    own = known_data(found) | {name: found[name] for name in kept if name in found}
    if "learning_rate" in found.get("schedules", ()) and "learning_rate" not in changes:
        warnings.warn(
            f"{where}: learning_rate was a function, which a model file does not hold; it is "
            f"{config['learning_rate']} from now on. Give it again: load(path, learning_rate=...).",
            stacklevel=3,
        )
    changes = dict(changes)
    dataset = changes.pop("dataset", None)  # once the model has its spaces
    given = replay_network(changes.get("policy_kwargs") or {})
    if wrong := [name for name, value in given.items() if config.get(name, value) != value]:
        raise ValueError(
            f"{where}: policy_kwargs differ from the saved ones, the model has {wrong[0]}={config[wrong[0]]}; leave "
            "them away"
        )
    model = made(kind, where, found.get("policy", "MlpPolicy"), None, device=device, **{**config, **own, **changes})
    spaces = build.Spaces.from_json(found["spaces"], where)
    if env is not None:
        model._meet(env, n_envs)
        spaces.same(model._spaces, where)
    else:
        model._spaces, (model.observation_space, model.action_space) = spaces, spaces
        model._n_envs = found.get("n_envs", 0)
    with filled_by(checkpoint.model, where):
        model._setup_model()
    build.restore_agent(model.learner, checkpoint, where)
    model.num_timesteps, model._n_updates = found["num_timesteps"], found.get("n_updates", 0)
    model.had_data = found.get("dataset", False)
    if dataset is not None:
        model.set_dataset(dataset)
    return model


def read(path: File) -> build.Checkpoint:
    """A model file whose facts are of the right kinds; ValueError names the first that is not."""
    checkpoint = build.read_zip(path)
    found = checkpoint.state
    check_kinds(found, KINDS, path)
    check_kinds(found, {name: kind for name, kind in OTHERS.items() if name in found}, path)
    types = get_type_hints(DataConfig)
    check_kinds(found.get("data", {}), {name: types[name] for name in known_data(found)}, path)
    for name in found.get("schedules", ()):
        if name not in SCHEDULES or name not in found["config"]:
            raise ValueError(f"{path}: state.json: schedules has {name!r:.40}, which is no schedule of config")
    if found["algo"] in ALGORITHMS:
        check_config(found["config"], lookup(ALGORITHMS, found["algo"], "algorithm").config, path)
    return checkpoint


def check_kinds(found: Mapping[str, Any], kinds: Mapping[str, Any], path: File) -> None:
    for name, kind in kinds.items():
        value = found.get(name)
        if not _fits(value, kind):
            raise ValueError(f"{path}: state.json: {name} is {value!r:.40}, wanted {getattr(kind, '__name__', kind)}")


def check_config(config: Mapping[str, Any], kind: type, path: File) -> None:
    """ValueError where a file's settings are none of the dataclass `kind`."""
    types = get_type_hints(kind)
    check_kinds(config, {name: types[name] for name in config if name in types}, path)
    try:
        kind(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: state.json: config: {str(error).splitlines()[0]}") from None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file is what the annotation says; a flag may be a number, a number a flag."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if isinstance(value, int) and kind in (int, float, bool):
        return abs(value) < 2**63
    return kind is Any or isinstance(value, float if kind is bool else origin or kind)


def made(kind: Any, where: str, *args: Any, **settings: Any) -> Any:
    """A model with a file's settings; a ValueError names the file."""
    try:
        return kind(*args, **settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@contextmanager
def filled_by(tensors: Mapping[str, Tensor], where: str) -> Iterator[None]:
    """Networks made in here may be no larger than a file's tensors fill: ValueError before their memory is touched."""
    held = sum(t.numel() for t in tensors.values())
    left = COPIES * held

    def count(_module: Any, _name: str, parameter: Tensor | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise OverflowError("more weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (OverflowError, MemoryError, RuntimeError) as error:
        text = str(error).splitlines()[0][:100]
        raise ValueError(
            f"{where}: its {held:,} weights do not fill the networks of its configuration and spaces ({text})"
        ) from None
    finally:
        hook.remove()


def arguments(found: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keyword arguments of the constructor, from a file's facts and what `load` was given besides."""
    config = {k: v for k, v in found["config"].items() if k not in ("name", *DIVISION)}
    kept = {
        name: found[name]
        for name in ("batch_size", "seed", "stats_window_size", "tensorboard_log", "verbose")
        if name in found
    }
    policy = policy_name(found.get("policy", "MlpPolicy"), where)
    _check_network(config, found, policy, changes.get("policy_kwargs"), where)
    for name in found.get("schedules", ()):
        if name not in changes:
            warnings.warn(
                f"{where}: {name} was a function, which a model file does not hold; it is {config[name]} from now on. "
                f"Give it again: load(path, {name}=...).",
                stacklevel=4,
            )
    return {"policy": policy, **config, **kept, **changes}


def _check_network(
    config: Mapping[str, Any], found: Mapping[str, Any], policy: str, given: Mapping[str, Any] | None, where: str
) -> None:
    needed = found.get("features_extractor")
    fields, own = network(policy, given or {}, cnn_hidden=None)
    if needed is not None and own is None:
        raise ValueError(
            f"{where}: the model has a features_extractor_class of its own, {needed}, and a file holds no code. Give "
            "it again: load(path, policy_kwargs=dict(features_extractor_class=..., features_extractor_kwargs=...))."
        )
    if given is None:
        return
    wrong = [name for name, value in fields.items() if config.get(name, value) != value]
    if wrong or (own is not None and needed is None):
        what = f"{wrong[0]}={config[wrong[0]]}" if wrong else "no features_extractor_class"
        raise ValueError(f"{where}: policy_kwargs differ from the saved ones, the model has {what}; leave them away")


def custom(objects: Mapping[str, Any] | None, schedules: Sequence[str] = SCHEDULES) -> dict[str, Any]:
    """SB3's custom_objects as constructor arguments; what ctrlrl does not pickle needs no replacement.

    schedules: those that the class has; scripts give the same objects to all.
    """
    if not objects:
        return {}
    found = {name: objects[name] for name in (*schedules, "policy_kwargs") if name in objects}
    if "lr_schedule" in objects:
        found["learning_rate"] = objects["lr_schedule"]
    return found


def versions_text(found: Mapping[str, Any]) -> str:
    """What stands where print_system_info asks for it."""
    lines = [f"saved: {found['versions']}", f"here:  {versions()}"]
    return "\n".join(lines) + "\n"
