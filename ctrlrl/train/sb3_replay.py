"""Models saved by Stable-Baselines3's SAC and TD3, read without executing anything in the file (docs/export.md).

Their policies act in [-1, 1] as ctrlrl's do, so every number is taken over as it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import torch
from gymnasium import spaces

from ctrlrl.train.pickle_data import Global, Made, TorchFile, array_of, mapping, read_member
from ctrlrl.train.sb3_values import schedule_of, space_of
from ctrlrl.train.sb3_weights import Moments, Named, moments_of
from ctrlrl.train.sb3_zip import ACTIVATIONS, MAX_JSON, Reading, as_json, open_zip

OPTIMIZERS = {  # member -> ours, and how the parameters that it numbers begin in policy.pth
    "actor.optimizer.pth": ("policy", "actor."),
    "critic.optimizer.pth": ("critic", "critic."),
    "ent_coef_optimizer.pth": ("log_temperature", ""),
}
MEMBERS = {"data", "policy.pth", "pytorch_variables.pth", "_stable_baselines3_version", "system_info.txt", *OPTIMIZERS}
SIGNS = {"sac": "target_entropy", "td3": "policy_delay"}  # an attribute that only this algorithm's zip has
POLICIES = {
    f"stable_baselines3.{algo}.policies.{kind}": alias
    for algo, name in (("sac", "SACPolicy"), ("td3", "TD3Policy"))
    for kind, alias in ((name, "MlpPolicy"), ("MultiInputPolicy", "MultiInputPolicy"))
}
POLICY_KWARGS = {"net_arch", "activation_fn", "n_critics", "use_sde", "share_features_extractor", "normalize_images"}
COUNTS = ("buffer_size", "learning_starts", "batch_size", "n_steps", "policy_delay", "target_update_interval")
NUMBERS = ("tau", "gamma", "target_policy_noise", "target_noise_clip")


class SB3Replayed(NamedTuple):
    policy: str  # MlpPolicy or MultiInputPolicy
    settings: dict[str, Any]  # arguments of the class
    n_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    weights: Named  # by the names of ctrlrl's parameters
    moments: dict[str, Moments]  # Adam's states, by the names of ctrlrl's optimizers
    num_timesteps: int
    n_updates: int


def read_replayed(path: str | os.PathLike[str] | BinaryIO, algo: str, given: Collection[str] = ()) -> SB3Replayed:
    """What a zip of SB3's SAC or TD3 holds; ValueError names what ctrlrl does not read.

    algo: "sac" or "td3". given: arguments that the caller sets, which need no warning where the zip hides them.
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
        if SIGNS[algo] not in data:
            raise ValueError(f"{where}: not a model of Stable-Baselines3's {algo.upper()}")
        if unknown := sorted(members - MEMBERS):
            raise ValueError(f"{where}: holds {unknown[0][:80]!r}, which Stable-Baselines3's {algo.upper()} does not")
        wanted = [name for name in ("policy.pth", "pytorch_variables.pth", *OPTIMIZERS) if name in members]
        files = {name: TorchFile(read_member(archive, name, where), f"{where}/{name}") for name in wanted}
    try:
        return _Replayed(data, where, given).replayed(files)
    except Exception as error:  # torch, NumPy and Gymnasium each have their own
        if str(error).startswith(where):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{where}: damaged, or not written by Stable-Baselines3 ({text})") from None


class _Replayed(Reading):
    def replayed(self, files: dict[str, TorchFile]) -> SB3Replayed:
        if self.data.get("use_sde"):
            raise self._unread("use_sde", "ctrlrl has no state-dependent exploration")
        policy, kwargs = self._value("policy_class"), mapping(self._value("policy_kwargs"))
        if not isinstance(policy, Global) or policy not in POLICIES:
            name = policy if isinstance(policy, Global) else "class of the user's"
            raise self._unread(f"the policy {name}", "only MlpPolicy and MultiInputPolicy of vectors are")
        for name in kwargs:
            if name not in POLICY_KWARGS:
                raise self._unread(f"policy_kwargs[{str(name)[:40]!r}]", "ctrlrl does not know it")
        obs_space, action_space = (
            space_of(self._value(name), f"{self.where}: {name}") for name in ("observation_space", "action_space")
        )
        file = files["policy.pth"]
        given = {name: file.tensor(value).float() for name, value in mapping(file.content).items()}
        weights = translated(given)
        settings = self._settings(action_space) | self._network(kwargs, weights)
        self._temperature(files, weights)
        return SB3Replayed(
            POLICIES[policy],
            settings,
            int(self._number("n_envs")),
            obs_space,
            action_space,
            weights,
            self._moments(files, given),
            int(self._number("num_timesteps")),
            int(self._number("_n_updates")),
        )

    def _settings(self, action_space: spaces.Space[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {name: int(self._number(name)) for name in COUNTS if name in self.data}
        found |= {name: float(self._number(name)) for name in NUMBERS if name in self.data}
        found |= {"gradient_steps": int(self._number("gradient_steps")), "train_freq": self._train_freq()}
        found["seed"] = None if self.data.get("seed") is None else int(self._number("seed"))
        if "ent_coef" in self.data:
            value = self.data["ent_coef"]
            found["ent_coef"] = value if isinstance(value, str) else float(self._number("ent_coef"))
            entropy = float(self._number("target_entropy"))
            found["target_entropy"] = "auto" if entropy == -float(action_space.shape[0]) else entropy  # type: ignore[index]
        if "learning_rate" not in self.given:
            rate = schedule_of(self._value("learning_rate"))
            if rate is None or rate[1] != "constant":
                self._warn("learning_rate is a function, which is not read. Give learning_rate=... here.")
            if rate is not None:
                found["learning_rate"] = rate[0]
        if self.data.get("action_noise") is not None and "action_noise" not in self.given:
            found["action_noise"] = self._noise(self._value("action_noise"))
        return found

    def _train_freq(self) -> tuple[int, str]:
        value = self._value("train_freq")
        if isinstance(value, int):
            return value, "step"
        count, unit = value.args if isinstance(value, Made) else value
        return int(count), unit.args[0] if isinstance(unit, Made) else str(unit)

    def _noise(self, value: Any) -> float | None:
        if isinstance(value, Made) and value.kind == "stable_baselines3.common.noise.NormalActionNoise":
            mean, std = (array_of(value.attribute(name)) for name in ("_mu", "_sigma"))
            if not mean.any() and (std == std.flat[0]).all():
                return float(std.flat[0])
        self._warn("action_noise is not read; there is none from here on. Give action_noise=... here.")
        return None

    def _network(self, kwargs: dict[str, Any], weights: Named) -> dict[str, Any]:  # type: ignore[override]
        activation = kwargs.get("activation_fn", Global("torch.nn.modules.activation.ReLU"))
        known = {f"torch.nn.modules.activation.{name}": ours for name, ours in ACTIVATIONS.items()}
        if not isinstance(activation, Global) or activation not in known:
            name = activation if isinstance(activation, Global) else "function of the user's"
            raise self._unread(f"the activation_fn {name}", f"ctrlrl has {', '.join(ACTIVATIONS)}")
        critics = {name.split(".")[2] for name in weights if name.startswith("critic.heads.")}
        hidden = {"hidden": _widths(weights, "policy.net."), "critic_hidden": _widths(weights, "critic.heads.0.")}
        return {"activation": known[activation], "n_critics": len(critics), **hidden}

    def _temperature(self, files: dict[str, TorchFile], weights: Named) -> None:
        """SAC's temperature, learned or fixed, among the weights."""
        if "ent_coef" not in self.data:
            return
        file = files["pytorch_variables.pth"]
        for name, value in mapping(file.content).items():
            tensor = file.tensor(value).float().reshape(())
            weights["log_temperature.value"] = tensor if name == "log_ent_coef" else tensor.log()

    def _moments(self, files: dict[str, TorchFile], given: Named) -> dict[str, Moments]:
        found = {}
        for member, (ours, prefix) in OPTIMIZERS.items():
            if member not in files:
                continue
            numbered = {name: x for name, x in given.items() if name.startswith(prefix)}
            if ours == "log_temperature":
                numbered = {"log_ent_coef": torch.zeros(1)}
            try:
                moments = moments_of(files[member], numbered, _Names)
            except ValueError as error:
                self._warn(f"the state of {member} is left out, {error}")
                continue
            if moments is not None:
                found[ours] = moments
        return found


class _Names:
    @staticmethod
    def translate(given: Named, kind: str) -> Named:
        return translated(given)


def translated(given: Named) -> Named:
    """SB3's tensors under ctrlrl's names; a moment of a weight is named as the weight."""
    out: Named = {}
    stochastic = any(name.startswith("actor.log_std.") for name in given)
    twin = "target_critic" if any(name.startswith("actor_target.") for name in given) else "target"
    hidden = [int(name.split(".")[2]) for name in given if name.startswith("actor.latent_pi.")]
    last = max(hidden, default=-2) + 2
    for name, x in given.items():
        net, _, rest = name.partition(".")
        part, _, tail = rest.partition(".")
        if name == "log_ent_coef":
            out["log_temperature.value"] = x.reshape(())
        elif net == "actor" and part == "latent_pi":
            out[f"policy.net.{tail}"] = x
        elif net == "actor" and part == "mu" and stochastic:
            out[f"policy.net.{last}.{tail}"] = torch.cat((x, given[f"actor.log_std.{tail}"]))
        elif net == "actor" and part == "mu":
            out[f"policy.net.{tail}"] = x
        elif net == "actor_target" and part == "mu":
            out[f"target_policy.net.{tail}"] = x
        elif net in ("critic", "critic_target") and part.startswith("qf"):
            out[f"{'critic' if net == 'critic' else twin}.heads.{part[2:]}.{tail}"] = x
        elif not (net == "actor" and part == "log_std"):
            raise ValueError(f"{name[:80]} is no part of a network that ctrlrl can build")
    return out


def _widths(weights: Named, prefix: str) -> list[int]:
    """Of a network's hidden layers; ValueError where one does not fit the one before."""
    layers = [x for name, x in weights.items() if name.startswith(prefix) and name.endswith("weight")]
    for before, layer in pairwise(layers):
        if layer.ndim != 2 or layer.shape[1] != len(before):
            raise ValueError(f"a layer of {prefix[:-1]} takes {tuple(layer.shape)}, the one before gives {len(before)}")
    return [len(x) for x in layers[:-1]]
