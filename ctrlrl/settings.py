"""Typed configurations from `key=value` words, with Hydra. A mistyped word comes back as one line with the mend."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ctrlrl.config import DataConfig, TrainConfig, env_config_with
from ctrlrl.registry import ALGORITHMS, DATA, ENVIRONMENTS, RECORDED, TOKEN_METHODS, env_settings, lookup, unknown

Command = TypeVar("Command")
_PACKED = Path(__file__).parent / "configs"  # in an installed wheel
CONFIG_DIR = _PACKED if _PACKED.is_dir() else Path(__file__).parent.parent / "configs"
_CONFIG_LIMIT = 2**16  # bytes
_ID = re.compile(r"-v\d+$")
GROUPS = {"algo": tuple(ALGORITHMS), "env": ENVIRONMENTS, "data": DATA}
DEFAULTS = {"algo": "ppo", "env": "pendulum", "data": "none"}  # those of configs/train.yaml


def _itself(store: ConfigStore, memo: object) -> ConfigStore:
    """Hydra copies its sources for every composition, the store of all schemas with them, and then what it loads of it.

    The first copy alone took half of a composition.
    """
    return store


ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]


def presets() -> list[str]:
    """Names that `experiment=` takes, e.g. "ppo/halfcheetah"."""
    root = CONFIG_DIR / "experiment"
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def preset_groups(name: str) -> dict[str, str]:
    """Which algorithm, environment and data a preset is of; nothing for a name that is none."""
    path = CONFIG_DIR / "experiment" / f"{name}.yaml"
    if not path.is_file():
        return {}
    found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    overrides = {key: value for part in found if isinstance(part, dict) for key, value in part.items()}
    return {key.removeprefix("override /"): str(value) for key, value in overrides.items() if "override /" in key}


def train_config(words: Sequence[str]) -> DictConfig:
    """The composed `ctrlrl train` configuration; ValueError for what does not fit.

    experiment=auto (the default) takes the preset experiment/<algo>/<env> where there is one.
    """
    words = [word.lstrip("+") for word in words]  # there is nothing to add to a schema: an unknown key stays unknown
    chosen = _split(words)
    experiment = chosen.pop("experiment", "auto")
    if "env.id" in chosen and "env" not in chosen and experiment in ("auto", "none"):
        words, chosen = [*words, "env=gym"], {**chosen, "env": "gym"}
    if "env" not in chosen and chosen.get("data") == "file" and chosen.get("algo") in TOKEN_METHODS:
        words, chosen = [*words, f"env={RECORDED}"], {**chosen, "env": RECORDED}
    for group, options in GROUPS.items():
        if group in chosen and chosen[group] not in options:
            said, name = unknown(group, chosen[group], options), chosen[group]
            as_id = f" A Gymnasium id goes as env=gym env.id={name}" if group == "env" and _ID.search(name) else ""
            raise ValueError(said + as_id)
    if experiment not in ("auto", "none") and experiment not in presets():
        raise ValueError(unknown("experiment", experiment, presets()))
    if experiment == "auto":
        guess = "/".join(chosen.get(group, DEFAULTS[group]) for group in ("algo", "env"))
        experiment = guess if guess in presets() else "none"
    # the keys of eval.env are those of the environment, not of a schema: "++" adds one or takes a preset's place
    overrides = [f"++{w}" if w.startswith("eval.env.") else w for w in words if not w.startswith("experiment=")]
    if experiment != "none":
        overrides.append(f"+experiment={experiment}")
    for group, name in [*DEFAULTS.items(), *preset_groups(experiment).items(), *chosen.items()]:
        if group in GROUPS:
            _register(group, name)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            cfg = compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        if "/" in experiment and f"experiment/{experiment}'" in str(error):
            typed_words = " ".join(f"{group}={chosen[group]}" for group in GROUPS if group in chosen)
            raise ValueError(f"experiment={experiment} is for other words than {typed_words}; leave it out") from None
        raise ValueError(_explain(error, words)) from None
    cfg.experiment = experiment
    if cfg.iterations is not None:
        _count_iterations(cfg, chosen)
    _check_clocks(cfg, chosen)
    _check_data(cfg, chosen)
    _take_over_base(cfg, chosen)
    return cfg


def _take_over_base(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """What the run folder `algo.base` says of its policy's form, where an algorithm begins with one."""
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm").config
    if not hasattr(kind, "base_settings") or cfg.algo.base is None:
        return
    folder = Path(cfg.algo.base)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"algo.base={folder}: no run folder there; name one of algo=diffusion or algo=flow")
    settings = kind.base_settings(typed(load_config(folder / "config.yaml")).algo, f"algo.base={folder}")
    cfg.algo.base = str(folder.absolute())  # a resume may be asked for elsewhere
    for name, value in settings.items():
        if f"algo.{name}" not in chosen:
            cfg.algo[name] = value


def _count_iterations(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """The run's length in steps, where it was given in iterations; a typed total_steps wins over a preset."""
    if "total_steps" not in chosen:
        cfg.total_steps = typed(cfg).total_steps
    elif "iterations" in chosen:
        raise ValueError("iterations and total_steps both give the run's length; leave one out")
    cfg.iterations = None


def _check_clocks(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """ValueError where the length of a run was given in steps that it does not take."""
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    offline, online = (getattr(kind, name, False) for name in ("offline", "online"))
    offline = offline or cfg.env.name == RECORDED
    if "gradient_steps" in chosen and not offline:
        raise ValueError("gradient_steps: a run that learns from the environment counts total_steps; give that instead")
    if "total_steps" in chosen and "gradient_steps" not in chosen and offline and not online:
        raise ValueError("total_steps: a run that learns from a data set counts gradient_steps; give that instead")


def _check_data(cfg: DictConfig, chosen: Mapping[str, str]) -> None:
    """ValueError for a setting of a data set where there is none: the run would learn without it.

    Tasks of language models read `data.path` themselves.
    """
    lost = next((f"{k}={v}" for k, v in chosen.items() if k.startswith("data.") and v not in ("null", "none")), None)
    if lost is not None and cfg.data.name == "none" and cfg.algo.name not in TOKEN_METHODS:
        source = "data=file" if lost.startswith("data.path") else "data=file data.path=FILE"
        raise ValueError(f"{lost}: the run has no data set; add {source}, or data=d4rl, minari or ogbench with data.id")


def typed(cfg: DictConfig) -> TrainConfig:
    """Real dataclasses; their range checks run here."""
    try:
        made: TrainConfig = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except ValueError as error:  # what a class calls its own field, people type as a key
        raise ValueError(re.sub(r"\b[A-Z]\w*Config\.", "algo.", str(error))) from None
    if type(made.algo) is not lookup(ALGORITHMS, made.algo.name, "algorithm").config:
        raise ValueError(f"algo.name={made.algo.name}: an algorithm is chosen with algo={made.algo.name}")
    try:
        OmegaConf.merge(OmegaConf.structured(made.env), made.eval.env)
    except OmegaConfBaseException as error:
        raise ValueError(f"eval.env: {_explain(error, ())}") from None
    return made


def load_config(path: Path, words: Sequence[str] = ()) -> DictConfig:
    """The configuration that a run folder's config.yaml holds, changed by `words`."""
    words = [word.lstrip("+") for word in words]
    _split(words)  # OmegaConf takes a word without "=" for null
    try:
        saved = OmegaConf.create(_plain_yaml(path))
        name = OmegaConf.select(saved, "algo.name", default=None)
        env = env_config_with(env_settings(str(OmegaConf.select(saved, "env.name", default=""))))
    except OSError:
        raise ValueError(
            f"{path}: no such file. A run folder holds config.yaml; name one with run=... or run.resume=..."
        ) from None
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as YAML ({said})") from None
    algo = lookup(ALGORITHMS, str(name), "algorithm").config
    schema = OmegaConf.structured(TrainConfig(algo=algo(), env=env()))
    try:
        cfg: DictConfig = OmegaConf.merge(schema, saved, OmegaConf.from_dotlist(list(words)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_explain(error, words)}") from None
    if cfg.iterations is not None:
        _count_iterations(cfg, _split(words))
    return cfg


def _plain_yaml(path: Path) -> str:
    """The text of a config.yaml, which may come from a stranger: nothing in it may grow, build or look elsewhere."""
    if path.stat().st_size > _CONFIG_LIMIT:
        raise ValueError(f"more than {_CONFIG_LIMIT} bytes")
    text, depth = path.read_text(encoding="utf-8"), 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += type(token).__name__.endswith("StartToken") - type(token).__name__.endswith("EndToken")
        if depth > 20:
            raise ValueError(f"line {token.start_mark.line + 1} is nested too deeply")
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken, yaml.TagToken)):
            raise ValueError(f"line {token.start_mark.line + 1} has an anchor, an alias or a tag; a config is plain")
        if isinstance(token, yaml.ScalarToken) and "${" in token.value:
            raise ValueError(f"line {token.start_mark.line + 1} has an interpolation; a config is plain")
    return text


def command(kind: type[Command], words: Sequence[str]) -> Command:
    """The options of a verb as its dataclass, from `key=value` words."""
    for word in words:
        if "=" not in word:
            raise ValueError(f"expected key=value, got {word!r}; keys: {', '.join(f.name for f in fields(kind))}")  # type: ignore[arg-type]
    options = OmegaConf.structured(kind)
    for word in words:
        key = word.partition("=")[0]
        head, _, inner = key.partition(".")
        if inner and head in options and not isinstance(options[head], DictConfig):
            near = difflib.get_close_matches(inner, list(options), n=3, cutoff=0.6)
            mend = f"did you mean {', '.join(near)}?" if near else f"{head} is one value, e.g. {head}=..."
            raise ValueError(f"unknown key {key}; {mend}")
    try:
        merged = OmegaConf.merge(options, OmegaConf.from_dotlist(list(words)))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error, words)) from None


def keys_text(kind: type, prefix: str = "") -> str:
    """The keys of a verb's options with their defaults, as they are typed: "episodes=20 video=null"."""
    found = []
    for name, value in OmegaConf.structured(kind).items():
        if isinstance(value, DictConfig):
            found += [f"{prefix}{name!s}.{inner!s}={_typed(own)}" for inner, own in value.items()]
        elif name != "name":  # of an algorithm's config
            found.append(f"{prefix}{name!s}={_typed(value)}")
    return " ".join(found)


def _typed(value: Any) -> str:
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def _register(group: str, name: str) -> None:
    """Make one option known to Hydra. All of them would be half a second of every command's start."""
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    if group == "algo":
        store.store(group="algo", name=name, node=lookup(ALGORITHMS, name, "algorithm").config)
    elif group == "env":
        folder, _, leaf = f"env/{name}".rpartition("/")
        store.store(group=folder, name=leaf, package="env", node=env_config_with(env_settings(name))(name=name))
    else:
        # made without its checks: the path or id that they ask for comes as an override
        store.store(group="data", name=name, node=OmegaConf.merge(OmegaConf.structured(DataConfig), {"name": name}))


def _split(words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, sign, value = word.partition("=")
        if word in ("-m", "--multirun"):
            raise ValueError(f"{word}: several values of a key are a sweep: ctrlrl sweep ... seed=0,1,2")
        if word.startswith("-"):
            raise ValueError(f"{word}: options are --help and --cfg job; all else is typed key=value")
        if not sign:
            raise ValueError(f"expected key=value, got {word!r}")
        pairs[key] = value
    return pairs


def _explain(error: Exception, words: Sequence[str]) -> str:
    """One line: the word that does not fit and the nearest keys."""
    cause = error.__cause__ or error
    full_key = getattr(cause, "full_key", None)
    parent = getattr(cause, "parent_node", None)
    text = str(cause).splitlines()[0]
    word = next((w for w in words if full_key and w.lstrip("+~").startswith(f"{full_key}=")), None)
    if "Ambiguous value" in text:
        word = getattr(cause, "override", None) or text.partition("'")[2].partition("'")[0]
        return f"{word}: several values are a sweep, ctrlrl sweep ... {word}; a list is written [...]"
    if "is not a ListConfig" in text:
        key, _, value = (word or f"{full_key}=...").partition("=")
        return f"{word or full_key}: a list is written in brackets, {key}=[{value}]"
    if "not in" in text or "does not exist" in text:
        keys = [k for k in parent if k != "hydra"] if parent is not None and hasattr(parent, "keys") else []
        key = str(getattr(cause, "key", full_key))
        prefix = full_key.rpartition(".")[0] if full_key else ""
        nodes = {k: parent._get_node(k) for k in keys} if isinstance(parent, DictConfig) else {}
        inner = [f"{k}.{key}" for k, node in nodes.items() if isinstance(node, DictConfig) and key in node]
        near = inner or difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
        mend = ", ".join(f"{prefix}.{k}" if prefix else str(k) for k in near or keys)
        return f"unknown key {full_key or key}; {f'did you mean {mend}?' if near else f'keys: {mend}'}"
    word = word or getattr(cause, "override", None)  # what Hydra's parser could not read
    return f"{word}: {text}" if word else text
