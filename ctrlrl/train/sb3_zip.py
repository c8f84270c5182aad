"""Models saved by Stable-Baselines3's PPO, read without executing anything in the file (docs/export.md).

The zip's pickles are read as data. Deterministic actions and values stay the same; log-probabilities differ by the
constant log-volume of the bounds, because ctrlrl's densities are those of actions in [-1, 1].
"""

from __future__ import annotations

import base64
import json
import os
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gymnasium import spaces

from ctrlrl.train.pickle_data import Global, TorchFile, mapping, read_member, read_pickle
from ctrlrl.train.sb3_values import COMMON, channels_last, schedule_of, space_of
from ctrlrl.train.sb3_weights import Moments, Named, Naming, moments_of, widths

MEMBERS = {
    *("data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"),
    *("_stable_baselines3_version", "system_info.txt"),
}
OTHERS = {  # what only this algorithm's zip has, as an attribute or a member
    "policy_delay": "TD3 or DDPG",
    "target_entropy": "SAC",
    "exploration_fraction": "DQN",
    "cg_max_steps": "TRPO",
    "actor.optimizer.pth": "SAC or TD3",
}
POLICIES = {  # the class behind an alias, and its extractor
    f"{COMMON}.policies.ActorCriticPolicy": ("MlpPolicy", "FlattenExtractor"),
    f"{COMMON}.policies.ActorCriticCnnPolicy": ("CnnPolicy", "NatureCNN"),
    f"{COMMON}.policies.MultiInputActorCriticPolicy": ("MultiInputPolicy", "CombinedExtractor"),
}
POLICY_KWARGS = {
    *("net_arch", "activation_fn", "ortho_init", "log_std_init", "share_features_extractor", "normalize_images"),
    *("features_extractor_class", "features_extractor_kwargs", "optimizer_class", "optimizer_kwargs"),
    *("use_sde", "squash_output", "full_std", "use_expln"),
}
ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu", "SiLU": "silu", "GELU": "gelu"}
MAX_JSON = 2**26  # bytes of `data`
NUMBERS = ("n_steps", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")


class SB3Agent(NamedTuple):
    policy: str  # MlpPolicy, CnnPolicy or MultiInputPolicy
    config: dict[str, Any]  # fields of PPOConfig
    batch_size: int
    n_envs: int
    seed: int | None
    observation_space: spaces.Space[Any]  # images as [H, W, C], which takes [C, H, W] too
    action_space: spaces.Space[Any]
    weights: Named  # by the names of ctrlrl's parameters
    moments: Moments | None  # None where Adam has not stepped yet, or where it is not the usual Adam
    num_timesteps: int
    n_updates: int


def read_sb3(path: str | os.PathLike[str] | BinaryIO, given: Collection[str] = ()) -> SB3Agent:
    """What a zip of SB3's PPO holds; ValueError names what ctrlrl does not read.

    given: hyper-parameters that the caller sets, which need no warning where the zip hides them.
    """
    where = str(path)
    with open_zip(path, where) as archive:
        members = set(archive.namelist())
        if "state.json" in members:
            raise ValueError(f"{where}: a model of ctrlrl itself; use load(path)")
        for name in ("data", "policy.pth"):
            if name not in members:
                raise ValueError(f"{where}: not a model of Stable-Baselines3 (it holds no {name})")
        data = as_json(read_member(archive, "data", where, most=MAX_JSON), where)
        _check_algorithm(data, members, where)
        files = {
            name: TorchFile(read_member(archive, name, where), f"{where}/{name}")
            for name in ("policy.pth", "policy.optimizer.pth")
            if name in members
        }
    try:
        return Reading(data, where, given).agent(files["policy.pth"], files.get("policy.optimizer.pth"))
    except Exception as error:  # torch, NumPy and Gymnasium each have their own
        if str(error).startswith(where):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{where}: damaged, or not written by Stable-Baselines3 ({text})") from None


def open_zip(path: str | os.PathLike[str] | BinaryIO, where: str) -> zipfile.ZipFile:
    source: Any = path
    if isinstance(path, (str, os.PathLike)):
        source = Path(path)
        source = source if source.exists() else source.with_name(f"{source.name}.zip")
        if not source.is_file():
            raise ValueError(f"{where}: no such file, with or without .zip")
        with open(source, "rb") as file:
            if file.read(1) == b"\x80":
                raise ValueError(
                    f"{where}: a pickle (VecNormalize statistics, a replay buffer), which can run code and is not "
                    "opened. docs/export.md shows how to take the statistics along."
                )
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{where}: not a model of Stable-Baselines3 ({error})") from None


def as_json(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: its member `data` is not a JSON object")
    return found


def _check_algorithm(data: dict[str, Any], members: set[str], where: str) -> None:
    for sign, name in OTHERS.items():
        if sign in data or sign in members:
            raise ValueError(
                f"{where}: a model of {name}; PPO.from_sb3 reads PPO's, SAC.from_sb3 and TD3.from_sb3 theirs"
            )
    if "clip_range" not in data or "n_epochs" not in data:
        raise ValueError(f"{where}: not a model of PPO (A2C?); only Stable-Baselines3's PPO is imported")
    unknown = sorted(members - MEMBERS)
    if unknown:
        raise ValueError(f"{where}: holds {unknown[0][:80]!r}, which Stable-Baselines3's PPO does not write")


class Reading:
    """One zip's `data`, attribute by attribute."""

    def __init__(self, data: dict[str, Any], where: str, given: Collection[str]):
        self.data, self.where, self.given = data, where, given

    def agent(self, policy: TorchFile, optimizer: TorchFile | None) -> SB3Agent:
        if self.data.get("use_sde"):
            raise self._unread("use_sde", "ctrlrl has no state-dependent exploration")
        alias, extractor, kwargs = self._policy()
        obs_space, action_space = (
            space_of(self._value(name), f"{self.where}: {name}") for name in ("observation_space", "action_space")
        )
        shared = bool(kwargs.get("share_features_extractor", True))
        naming = Naming(obs_space, action_space, shared=shared, where=self.where)
        parameters = naming.tensors(policy)
        config = self._config() | self._network(kwargs, extractor, parameters) | {"share_features_extractor": shared}
        config |= {"hidden": widths(parameters, "policy"), "vf_hidden": widths(parameters, "value")}
        moments = None
        if optimizer is not None:
            group = mapping(optimizer.content)["param_groups"][0]
            config["adam_eps"] = float(group.get("eps", 1e-8))
            try:
                moments = moments_of(optimizer, parameters, naming)
            except ValueError as error:
                self._warn(f"the optimizer's state is left out, {error}")
        return SB3Agent(
            alias,
            config,
            int(self._number("batch_size")),
            int(self._number("n_envs")),
            None if self.data.get("seed") is None else int(self._number("seed")),
            channels_last(obs_space),
            action_space,
            naming.translate(parameters, "weight"),
            moments,
            int(self._number("num_timesteps")),
            int(self._number("_n_updates")),
        )

    def _value(self, name: str) -> Any:
        """An attribute; what JSON could not hold was pickled beside its printed form, and is read as data."""
        value = self.data[name]
        if isinstance(value, dict) and ":serialized:" in value:
            return read_pickle(base64.b64decode(value[":serialized:"]), f"{self.where}/data: {name}")
        return value

    def _number(self, name: str) -> Any:
        value = self.data[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._unread(name, "it is no number")
        return value

    def _unread(self, name: str, why: str) -> ValueError:
        return ValueError(f"{self.where}: {name} is not imported: {why}")

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.where}: {text}", UserWarning, stacklevel=2)

    def _policy(self) -> tuple[str, str, dict[str, Any]]:
        """Its alias, the name of its extractor's class, and its policy_kwargs."""
        policy = self._value("policy_class")
        if not isinstance(policy, Global) or policy not in POLICIES:
            name = policy if isinstance(policy, Global) else "class of the user's"
            raise self._unread(f"the policy {name}", "only MlpPolicy, CnnPolicy and MultiInputPolicy are")
        kwargs = mapping(self._value("policy_kwargs"))
        for name in kwargs:
            if name not in POLICY_KWARGS:
                raise self._unread(f"policy_kwargs[{str(name)[:40]!r}]", "ctrlrl does not know it")
        for name in ("use_sde", "squash_output"):
            if kwargs.get(name):
                raise self._unread(f"policy_kwargs[{name!r}]", "ctrlrl has no state-dependent exploration")
        alias, default = POLICIES[policy]
        extractor = kwargs.get("features_extractor_class", Global(f"{COMMON}.torch_layers.{default}"))
        if extractor not in [f"{COMMON}.torch_layers.{name}" for _, name in POLICIES.values()]:
            name = extractor if isinstance(extractor, Global) else "of the user's"
            why = "it is code. Make PPO(policy_kwargs={'features_extractor_class': ...}) and copy the weights"
            raise self._unread(f"features_extractor_class {name}", why)
        return alias, extractor.rpartition(".")[2], kwargs

    def _config(self) -> dict[str, Any]:
        config = {name: self._number(name) for name in NUMBERS}
        config["normalize_advantage"] = "minibatch" if self.data.get("normalize_advantage", True) else "none"
        config["target_kl"] = None if self.data.get("target_kl") is None else float(self._number("target_kl"))
        config["value_clip_max"] = False
        for name in ("learning_rate", "clip_range", "clip_range_vf"):
            if name in self.given or self.data.get(name) is None:
                continue
            found = schedule_of(self._value(name))
            if found is None or (found[1] == "linear" and name != "learning_rate"):
                self._warn(f"{name} is a function, which is not read; ctrlrl's default is used. Give {name}=... here.")
            else:
                config[name] = found[0]
                config |= {"lr_schedule": found[1]} if name == "learning_rate" else {}
        return config

    def _network(self, kwargs: dict[str, Any], extractor: str, parameters: Named) -> dict[str, Any]:
        activation = kwargs.get("activation_fn", Global("torch.nn.modules.activation.Tanh"))
        known = {f"torch.nn.modules.activation.{name}": ours for name, ours in ACTIVATIONS.items()}
        if not isinstance(activation, Global) or activation not in known:
            name = activation if isinstance(activation, Global) else "function of the user's"
            raise self._unread(f"the activation_fn {name}", f"ctrlrl has {', '.join(ACTIVATIONS)}")
        options = mapping(kwargs.get("features_extractor_kwargs") or {})
        if options.get("normalized_image"):
            raise self._unread("features_extractor_kwargs['normalized_image']", "ctrlrl's images are uint8")
        network: dict[str, Any] = {
            "activation": known[activation],
            "orthogonal_init": bool(kwargs.get("ortho_init", True)),
            "log_std_init": float(kwargs.get("log_std_init", 0.0)),
            "normalize_images": bool(kwargs.get("normalize_images", True)),
        }
        if extractor != "FlattenExtractor":
            network["features_extractor"] = "cnn"
            sizes = [len(t) for name, t in parameters.items() if name.endswith("linear.0.weight")]
            network |= {"features_dim": sizes[0]} if sizes else {}
        return network
