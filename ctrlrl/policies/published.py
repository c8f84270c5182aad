"""Policies of other libraries as plain arrays in one .npz: a tanh or relu network between fixed normalisers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.types import EnvSpec

_TOGETHER = (("in_mean", "in_std"), ("out_scale", "out_shift"), ("W_log_std", "b_log_std"))
_LOG_STD = (-20.0, 2.0)  # bounds of state-dependent ones, as SAC has them


class PublishedPolicy:
    """h = (obs - in_mean) / in_std, clipped to +-in_clip; n_hidden layers act(W_i h + b_i); m = W_out h + b_out, times
    out_scale plus out_shift; tanh where `squash`; clipped to [-1, 1]. What the file lacks is left out.

    `sample` adds the file's own Gaussian, log_std [A] or W_log_std h + b_log_std, before the tanh.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = {key: np.asarray(file[key]) for key in file.files}
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            raise ValueError(f"policy={path} cannot be read as .npz ({str(error).splitlines()[0]})") from None
        missing = [key for key in ("W0", "b0", "W_out", "b_out", "n_hidden", "activation") if key not in found]
        if missing:
            raise ValueError(f"policy={path}: no {missing[0]!r} in it; docs/data.md says what a policy file holds")
        self.activation = str(found["activation"])
        if self.activation not in ("tanh", "relu"):
            raise ValueError(f"policy={path}: activation must be tanh or relu, got {self.activation!r}")
        for key in ("squash", "n_hidden"):
            value = found.get(key, np.array(0))
            if value.ndim or value.dtype.kind not in "biuf" or not 0 <= value == np.floor(value):
                raise ValueError(f"policy={path}: {key} must be one count, got {str(value)[:40]!r}")
        self.squash = bool(found.get("squash", False))
        numbers = {k: v for k, v in found.items() if v.dtype.kind in "fiu"}
        self.arrays = {k: torch.from_numpy(np.asarray(v, dtype=np.float32)) for k, v in numbers.items()}
        n_hidden = int(found["n_hidden"])
        try:
            self.layers = [(self.arrays[f"W{i}"], self.arrays[f"b{i}"]) for i in range(n_hidden)]
        except KeyError as error:
            raise ValueError(f"policy={path}: n_hidden is {n_hidden}, but there is no {error}") from None
        self._check_shapes()
        self.stochastic = "log_std" in self.arrays or "W_log_std" in self.arrays

    def _check_shapes(self) -> None:
        """ValueError that names the first array which does not fit the others; a normaliser may be one number."""
        a, where = self.arrays, f"policy={self.path}"
        if not self.layers:
            raise ValueError(f"{where}: n_hidden is 0, wanted a network with a hidden layer")
        for one, other in _TOGETHER:
            if (one in a) != (other in a):
                raise ValueError(
                    f"{where}: {one} and {other} belong together, only {one if one in a else other} is there"
                )
        first = a["W0"].shape
        n_in = n_before = first[-1] if first else 0
        wanted: dict[str, tuple[int, ...]] = {}
        for i, (_, bias) in enumerate(self.layers):
            wanted |= {f"W{i}": (bias.numel(), n_before), f"b{i}": (bias.numel(),)}
            n_before = bias.numel()
        n_out = a["b_out"].numel() if "b_out" in a else 0
        wanted |= {"b_out": (n_out,), "W_out": (n_out, n_before)}
        plain = {"in_mean": (n_in,), "in_std": (n_in,), "in_clip": (n_in,), "log_std": (n_out,)}
        plain |= {"out_scale": (n_out,), "out_shift": (n_out,)}
        noise = {"W_log_std": (n_out, n_before), "b_log_std": (n_out,)}
        wanted |= {key: shape for key, shape in (plain | noise).items() if key in a}
        for key, shape in wanted.items():
            if key not in a:
                raise ValueError(f"{where}: {key} holds no numbers")
            got = tuple(a[key].shape)
            if got != shape and not (key in plain and got == ()):
                raise ValueError(f"{where}: {key} has shape {got}, wanted {shape}")
        if "in_std" in a and not bool((a["in_std"] > 0.0).all()):
            raise ValueError(f"{where}: in_std must be above zero everywhere")

    @property
    def width(self) -> int:
        """Of the widest layer."""
        return max(len(bias) for _, bias in self.layers)

    def check(self, spec: EnvSpec, env: str) -> None:
        """ValueError where the environment has other sizes."""
        mine = (self.layers[0][0].shape[1], self.arrays["W_out"].shape[0])
        if mine != (spec.obs_dim, spec.action_dim):
            raise ValueError(
                f"policy={self.path}: takes {mine[0]} numbers and gives {mine[1]}, env={env} has {spec.obs_dim} and "
                f"{spec.action_dim}"
            )

    def act(self, obs: Tensor) -> Tensor:
        """[B, O] to the policy's best actions [B, A]."""
        return self._bounded(self._mean(self._hidden(obs)))

    def sample(self, obs: Tensor) -> Tensor:
        """[B, O] to actions [B, A] from its own distribution."""
        hidden = self._hidden(obs)
        mean, a = self._mean(hidden), self.arrays
        if "log_std" in a:
            log_std = a["log_std"].expand_as(mean)
        else:
            log_std = F.linear(hidden, a["W_log_std"], a["b_log_std"]).clamp(*_LOG_STD)
        return self._bounded(mean + log_std.exp() * torch.randn_like(mean))

    def _hidden(self, obs: Tensor) -> Tensor:
        h, a = obs.float(), self.arrays
        if "in_mean" in a:
            h = (h - a["in_mean"]) / a["in_std"]
        if "in_clip" in a:
            h = h.clamp(-a["in_clip"], a["in_clip"])
        for weight, bias in self.layers:
            h = F.linear(h, weight, bias)
            h = h.tanh() if self.activation == "tanh" else h.relu()
        return h

    def _mean(self, hidden: Tensor) -> Tensor:
        mean, a = F.linear(hidden, self.arrays["W_out"], self.arrays["b_out"]), self.arrays
        return mean * a["out_scale"] + a["out_shift"] if "out_scale" in a else mean

    def _bounded(self, mean: Tensor) -> Tensor:
        return (mean.tanh() if self.squash else mean).clamp(-1.0, 1.0)
