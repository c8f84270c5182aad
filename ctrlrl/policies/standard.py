"""The policy that fits an environment's actions, and the features that fit its observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ctrlrl.nn.features import OwnFeatures, PartFeatures, Vector
from ctrlrl.nn.normalize import Identity, ObsNormalizer
from ctrlrl.policies.discrete import CategoricalPolicy, MultiCategoricalPolicy
from ctrlrl.policies.gaussian import GaussianPolicy
from ctrlrl.types import EnvSpec, ObsPart


def standard_policy(
    spec: EnvSpec,
    obs_dim: int,
    hidden: Sequence[int],
    *,
    activation: str,
    log_std_init: float,
    orthogonal: bool,
    joint: bool = True,
) -> GaussianPolicy | CategoricalPolicy | MultiCategoricalPolicy:
    """obs_dim: size of the network's input, spec.obs_dim or that of the features made of it.

    joint: one log-probability for several discrete choices; False: one each.
    """
    if spec.n_actions:
        return CategoricalPolicy(obs_dim, spec.n_actions, hidden, activation=activation, orthogonal=orthogonal)
    if spec.nvec:
        return MultiCategoricalPolicy(
            obs_dim, spec.nvec, hidden, activation=activation, orthogonal=orthogonal, joint=joint
        )
    return GaussianPolicy(
        obs_dim, spec.action_dim, hidden, activation=activation, log_std_init=log_std_init, orthogonal=orthogonal
    )


def standard_features(
    spec: EnvSpec,
    *,
    extractor: str,
    image_dim: int,
    normalize_images: bool,
    orthogonal: bool,
    shared: bool,
    own: Callable[[], nn.Module] | None = None,
) -> tuple[Any, Any]:
    """What makes the networks' input of observations: one for actor and critic and None, or one for each.

    extractor: "flatten", or "cnn" for a convolutional network on every image of the observation.
    own: makes a user's extractor with SB3's `features_dim`, which then takes the place of both.
    Each has a `dim`, the size of its output.
    """

    def make() -> nn.Module:
        parts = spec.obs_parts or (ObsPart("", (spec.obs_dim,)),)
        if own is not None:
            module = own()
            return OwnFeatures(module, parts, dim=int(module.features_dim), normalize_images=normalize_images)  # type: ignore[arg-type]
        if not any(part.image for part in spec.obs_parts):
            return Vector(spec.obs_dim)
        return PartFeatures(
            parts,
            cnn=extractor == "cnn",
            image_dim=image_dim,
            normalize_images=normalize_images,
            orthogonal=orthogonal,
        )

    features = make()
    return features.to(spec.device), None if shared or isinstance(features, Vector) else make().to(spec.device)


def vector_features(spec: EnvSpec, *, algo: str, extractor: str, own: Callable[[], nn.Module] | None) -> Vector:
    """Of an algorithm that compares with the features of the policy that acted: they must not learn."""
    if own is not None or extractor != "flatten" or any(part.image for part in spec.obs_parts):
        raise ValueError(
            f"algo={algo} takes vectors, no images and no features extractor: its ratio asks the policy that acted, "
            "whose features must not have moved. Use algo=ppo."
        )
    return Vector(spec.obs_dim)


def standard_normalizer(spec: EnvSpec, *, normalize: bool) -> ObsNormalizer | Identity:
    if normalize and any(part.image for part in spec.obs_parts):
        raise ValueError("algo.normalize_obs is for vectors, this observation holds an image; use normalize_obs=false")
    return (ObsNormalizer(spec.obs_dim) if normalize else Identity()).to(spec.device)
