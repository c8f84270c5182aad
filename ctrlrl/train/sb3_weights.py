"""Parameters and Adam moments of Stable-Baselines3's PPO under ctrlrl's names and in ctrlrl's action units.

SB3's mean action is in the environment's units, ctrlrl's in [-1, 1]: the affine map goes into the last layer and the
deviations. Its binary actions have one logit each, ctrlrl's a row for each of two options: the logit's and zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrlrl.core.learner import Learner
from ctrlrl.train.pickle_data import TorchFile, mapping

Named = dict[str, Tensor]


class Moments(NamedTuple):
    """Adam's state, by the names of ctrlrl's parameters."""

    step: float
    learning_rate: float
    exp_avg: Named
    exp_avg_sq: Named


class Names(Protocol):
    def translate(self, given: Named, kind: str) -> Named: ...


class Naming:
    """shared: whether actor and critic have one feature extractor, which SB3's state dict then lists three times."""

    def __init__(self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], *, shared: bool, where: str):
        self.where = where
        self.repeated = ("pi_features_extractor.", *(("vf_features_extractor.",) if shared else ()))
        self.keys = list(obs_space.spaces) if isinstance(obs_space, spaces.Dict) else []
        self.binary = isinstance(action_space, spaces.MultiBinary)
        self.center, self.half = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        self.head = {spaces.Box: "mean", spaces.Discrete: "logits"}.get(type(action_space), "net")
        if isinstance(action_space, spaces.Box):
            low, high = (
                torch.tensor(b.reshape(-1), dtype=torch.float64) for b in (action_space.low, action_space.high)
            )
            if not torch.isfinite(high - low).all():
                raise ValueError(f"{where}: the action space {action_space} has no finite bounds to scale by")
            self.center = (low + high) / 2.0
            self.half = torch.where(high > low, (high - low) / 2.0, 1.0)

    def tensors(self, file: TorchFile) -> Named:
        """The state dict in its own order, which is also Adam's numbering, every parameter once."""
        named = mapping(file.content).items()
        return {name: file.tensor(value).float() for name, value in named if not name.startswith(self.repeated)}

    def translate(self, given: Named, kind: str) -> Named:
        """kind: "weight", or the moment "exp_avg" or "exp_avg_sq" of the weights' gradient."""
        n_pi, n_vf = (len(widths(given, net)) for net in ("policy", "value"))
        out: Named = {}
        for name, x in given.items():
            prefix, _, rest = name.partition(".")
            if name == "log_std":
                out["policy.log_std"] = (x.double() - self.half.log()).float() if kind == "weight" else x
            elif prefix == "action_net":
                out[f"policy.{self.head}.{2 * n_pi}.{rest}"] = self._output(x, kind)
            elif prefix == "value_net":
                out[f"critic.net.{2 * n_vf}.{rest}"] = x
            elif name.startswith("mlp_extractor.policy_net."):
                out[f"policy.{self.head}.{name.removeprefix('mlp_extractor.policy_net.')}"] = x
            elif name.startswith("mlp_extractor.value_net."):
                out[f"critic.net.{name.removeprefix('mlp_extractor.value_net.')}"] = x
            elif prefix in ("features_extractor", "vf_features_extractor"):
                ours = "features" if prefix == "features_extractor" else "critic_features"
                out[f"{ours}.encoders.{self._encoder(rest)}"] = x
            else:
                raise ValueError(f"{self.where}: {name[:80]} is no part of a network that ctrlrl can build")
        return out

    def _output(self, x: Tensor, kind: str) -> Tensor:
        """The last layer's weight [A, H] or bias [A], or a moment of its gradient."""
        half = self.half.unsqueeze(-1) if x.ndim == 2 else self.half
        shift = self.center if x.ndim == 1 and kind == "weight" else 0.0
        scale = {"weight": 1.0 / half, "exp_avg": half, "exp_avg_sq": half.square()}[kind]
        x = ((x.double() - shift) * scale).float()
        if not self.binary:
            return x
        silent = {"weight": 0.0, "exp_avg": -1.0, "exp_avg_sq": 1.0}[
            kind
        ]  # the gradient of option 0 is minus option 1's
        return torch.stack((silent * x, x), 1).flatten(0, 1)

    def _encoder(self, rest: str) -> str:
        """ "cnn.0.weight", or "extractors.<key>.cnn.0.weight" in a Dict -> "<place of the image>.cnn.0.weight"."""
        if not rest.startswith("extractors."):
            return f"0.{rest}"
        key, _, rest = rest.removeprefix("extractors.").partition(".")
        return f"{self.keys.index(key)}.{rest}"


def widths(named: Named, net: str) -> list[int]:
    """Of the hidden layers of the "policy" or the "value" network; ValueError where one does not fit the one before."""
    prefix = f"mlp_extractor.{net}_net."
    layers = [t for name, t in named.items() if name.startswith(prefix) and name.endswith(".weight")]
    for before, layer in pairwise(layers):  # thin layers in the file could ask for a network that no memory holds
        if layer.ndim != 2 or layer.shape[1] != len(before):
            raise ValueError(
                f"a layer of the {net} network takes {tuple(layer.shape)}, the one before gives {len(before)}"
            )
    return [len(t) for t in layers]


def moments_of(file: TorchFile, parameters: Named, naming: Names) -> Moments | None:
    """Adam's state; None before its first step, ValueError where it is another optimizer's."""
    content = mapping(file.content)
    group, state = content["param_groups"][0], mapping(content["state"])
    if not state:
        return None
    usual = tuple(group.get("betas", ())) == (0.9, 0.999) and not group.get("weight_decay") and not group.get("amsgrad")
    if not usual or any("exp_avg_sq" not in mapping(s) for s in state.values()):
        raise ValueError("it is not Adam with its usual betas and no weight decay")
    found: dict[str, Named] = {"exp_avg": {}, "exp_avg_sq": {}}
    for i, (name, parameter) in enumerate(parameters.items()):
        for kind, tensors in found.items():
            tensors[name] = file.tensor(state[i][kind]).float()
            if tensors[name].shape != parameter.shape:
                raise ValueError(f"its moment {i} does not have the shape of {name}")
    step = float(file.tensor(state[0]["step"]))
    return Moments(step, float(group["lr"]), *(naming.translate(found[kind], kind) for kind in found))


def restore(learner: Learner, weights: Named, moments: Mapping[str, Moments], where: str) -> None:
    """Put weights and moments, by optimizer, into a learner made for their configuration and spaces."""
    params = dict(learner.nets.named_parameters())
    for name in sorted(params.keys() | weights.keys()):
        wanted, got = (tuple(d[name].shape) if name in d else "nothing" for d in (params, weights))
        if wanted != got:
            raise ValueError(f"{where}: the network has {wanted} for {name}, the file {got}")
    states = learner.training_state()
    for name, found in moments.items():
        opt = learner.opt[name]
        own = {key: p for key, p in params.items() if any(p is q for q in opt.params)}
        state = {"step": torch.tensor(found.step), "learning_rate": torch.tensor(found.learning_rate)}
        for kind in ("exp_avg", "exp_avg_sq"):
            # parameters are views of the flat vector: written there, a moment takes the layout its parameter has
            with torch.no_grad():
                for key, p in own.items():
                    p.copy_(getattr(found, kind)[key])
            state[kind] = opt.flat.detach().clone()
        states |= {f"{name}/{key}": tensor for key, tensor in state.items()}
    learner.load_training_state(states)
    learner.load_model_state(learner.model_state() | weights)


def restore_statistics(learner: Any, path: Any) -> None:
    """The arrays mean [O], var [O] and count of an .npz, in the learner's observation normaliser."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mean", "var", "count")}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"obs_stats={path}: not an .npz with mean, var and count ({error!s:.100})") from None
    moments = learner.normalizer.moments
    if found["mean"].shape != moments.mean.shape or found["var"].shape != moments.var.shape or found["count"].ndim:
        raise ValueError(
            f"obs_stats={path}: mean has shape {tuple(found['mean'].shape)}, not {tuple(moments.mean.shape)}"
        )
    for name, tensor in found.items():
        if not tensor.isfinite().all() or (name != "mean" and (tensor < 0).any()):
            raise ValueError(f"obs_stats={path}: {name} must be finite{'' if name == 'mean' else ' and at least 0'}")
    for name, tensor in found.items():
        getattr(moments, name).copy_(tensor)
    learner.normalizer.shift.copy_(moments.mean)
    learner.normalizer.scale.copy_((moments.var + learner.normalizer.eps).rsqrt())
