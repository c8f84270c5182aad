"""The deterministic action for one observation on a CPU, in NumPy: there torch's calls cost many times the arithmetic.

Nothing is copied: the arrays are views of the tensors that training and loading write to, looked up at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctrlrl.nn.features import Vector
from ctrlrl.nn.normalize import DataNormalizer, Identity, ObsNormalizer
from ctrlrl.nn.relu import ReLU
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.policies.discrete import CategoricalPolicy
from ctrlrl.policies.gaussian import BoundedGaussianPolicy, GaussianPolicy

Array = np.ndarray[Any, Any]
ACTIVATIONS: dict[type, Callable[[Array], Array]] = {
    **dict.fromkeys((ReLU, nn.ReLU), lambda x: np.maximum(x, 0.0, out=x)),
    nn.Tanh: lambda x: np.tanh(x, out=x),
}
BODIES = {  # policy -> the name of its layers
    GaussianPolicy: "mean",
    CategoricalPolicy: "logits",
    DeterministicPolicy: "net",
    BoundedGaussianPolicy: "net",
}
LARGEST = 2**17  # numbers of one layer; beyond, the products take most of the time, and torch's threads help
KEPT = 64  # views; more than any network here has


class Quick:
    """What `policy.act(features(normalizer(row)), deterministic=True)` gives, within float32 rounding."""

    def __init__(self, normalizer: nn.Module, features: nn.Module, policy: nn.Module):
        self.normalizer, self.features, self.policy = normalizer, features, policy
        self._views: dict[int, Array] = {}  # by address; a view keeps its memory, so an address means one thing

    def __call__(self, row: Array) -> Array | None:
        """row: [O] float32 -> [A] float32 or 0-dim int64; None where this file does not know the network's form."""
        kind = type(self.policy)
        if type(self.features) is not Vector or kind not in BODIES:
            return None
        x = self._normalized(row)
        if x is None:
            return None
        net = self.policy._modules[BODIES[kind]]
        assert net is not None
        for layer in net._modules.values():
            if layer is None or layer._forward_hooks or layer._forward_pre_hooks:
                return None
            if type(layer) is nn.Linear:
                weight, bias = layer._parameters["weight"], layer._parameters["bias"]
                if weight is None or bias is None or weight.numel() > LARGEST or not _plain(weight):
                    return None
                x = self._view(weight) @ x
                x += self._view(bias)
            elif type(layer) in ACTIVATIONS:
                x = ACTIVATIONS[type(layer)](x)
            else:
                return None
        if kind is CategoricalPolicy:
            return np.asarray(x.argmax())
        if kind is DeterministicPolicy or (kind is BoundedGaussianPolicy and self.policy.squash_mean):
            return np.tanh(x)
        return np.clip(x, -1.0, 1.0) if kind is BoundedGaussianPolicy else x

    def _normalized(self, row: Array) -> Array | None:
        normalizer = self.normalizer
        if type(normalizer) is Identity:
            return row
        if type(normalizer) not in (ObsNormalizer, DataNormalizer):
            return None
        shift, scale = normalizer._buffers["shift"], normalizer._buffers["scale"]
        if shift is None or scale is None or not _plain(shift):
            return None
        x = (row - self._view(shift)) * self._view(scale)
        if not isinstance(normalizer, ObsNormalizer):
            return x
        return np.minimum(np.maximum(x, -normalizer.clip, out=x), normalizer.clip, out=x)

    def _view(self, tensor: Tensor) -> Array:
        address = tensor.data_ptr()
        found = self._views.get(address)
        if found is None:
            if len(self._views) >= KEPT:
                self._views.clear()
            found = self._views[address] = tensor.detach().numpy()
        return found


def _plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype is torch.float32
