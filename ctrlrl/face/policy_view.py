"""`model.policy`: an agent's networks with the methods of SB3's policies, in the units of the spaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl import build, judging
from ctrlrl.functional import distributions as dist


class ActionDistribution:
    """The policy's distribution over actions [B, *shape] of the action space. Densities are those of these units."""

    def __init__(self, policy: Any, features: Tensor, spaces: build.Spaces):
        if not hasattr(policy, "logits") and not hasattr(policy, "mean"):
            raise ValueError(f"{type(policy).__name__} has no density to ask for: the policy is a flow. Use predict.")
        self.spaces = spaces
        self.log_std: Tensor | None = getattr(policy, "log_std", None)
        self.center = (policy.logits(features) if self.log_std is None else policy.mean(features)).float()

    def log_prob(self, actions: Tensor) -> Tensor:
        """[B] nats."""
        scaled = self.spaces.scaled(actions)
        if self.log_std is not None:
            return dist.gaussian_log_prob(scaled, self.center, self.log_std) - self.spaces.log_volume
        log_prob = dist.categorical_log_prob(self.center, scaled)
        return log_prob if log_prob.ndim == 1 else log_prob.sum(-1)

    def entropy(self) -> Tensor:
        """[B] nats."""
        if self.log_std is not None:
            return (dist.gaussian_entropy(self.log_std) + self.spaces.log_volume).expand(len(self.center))
        entropy = dist.categorical_entropy(self.center)
        return entropy if entropy.ndim == 1 else entropy.sum(-1)

    def mode(self) -> Tensor:
        return self.spaces.unscaled(self.center if self.log_std is not None else self.center.argmax(-1))

    def sample(self) -> Tensor:
        """Not clipped to the bounds of the space."""
        if self.log_std is not None:
            return self.spaces.unscaled(dist.gaussian_sample(self.center, self.log_std))
        return self.spaces.unscaled(dist.categorical_sample(self.center))

    def get_actions(self, deterministic: bool = False) -> Tensor:
        return self.mode() if deterministic else self.sample()

    @property
    def distribution(self) -> Any:
        """torch's own distribution: Normal, Categorical, or a list of Categorical for several choices."""
        if self.log_std is not None:
            codec = self.spaces.action_codec
            half = torch.as_tensor((codec.high - codec.low) / 2.0, dtype=torch.float32, device=self.center.device)
            mean = self.spaces.unscaled(self.center).reshape(self.center.shape)
            return torch.distributions.Normal(mean, self.log_std.exp() * half)
        if self.center.ndim == 2:
            return torch.distributions.Categorical(logits=self.center)
        sizes = self.spaces.action_codec.nvec
        return [torch.distributions.Categorical(logits=self.center[:, i, :n]) for i, n in enumerate(sizes)]


class NetsView(nn.Module):
    """The learner's networks as one module. Parameters are the learner's own: change them in place only.

    obs: a tensor [B, *shape] in the observation space's units (images channel-first or as the space says), or a dict
    of them.
    """

    def __init__(self, learner: Any, spaces: build.Spaces, device: torch.device):
        super().__init__()
        self.observation_space, self.action_space = spaces
        self.learner, self.spaces, self.device = learner, spaces, device
        for name, net in learner.nets.named_children():
            self.add_module(name, net)
        self.set_training_mode(False)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """One observation or a batch of them as tensors with a leading axis, and whether it was a batch."""
        return self.spaces.network_tensors(observation, self.device)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """As the model's `predict`."""
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self.spaces.predict(act, observation, self.device), act.memory


class ReplayedPolicyView(NetsView):
    """Of a model that learns from replayed steps, as SB3's SACPolicy and TD3Policy."""

    def forward(self, obs: Any, deterministic: bool = False) -> Tensor:
        """Actions [B, A] in [-1, 1]."""
        return self.learner.act(self.spaces.rows(obs).to(self.device), deterministic=deterministic).action


class PolicyView(NetsView):
    """Of a model that learns on-policy, as SB3's ActorCriticPolicy."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.learner.opt["actor_critic"].optimizer

    @property
    def log_std(self) -> Tensor:
        return self.learner.policy.log_std

    @property
    def features_extractor(self) -> nn.Module:
        return self.learner.features

    def _normalized(self, obs: Any) -> Tensor:
        """The rows [B, O] behind the observation normaliser."""
        return self.learner.normalizer(self.spaces.rows(obs).to(self.device))

    def _distribution(self, rows: Tensor) -> ActionDistribution:
        return ActionDistribution(self.learner.policy, self.learner.features(rows), self.spaces)

    def _values(self, rows: Tensor) -> Tensor:
        learner = self.learner
        return learner.actor_value(learner._value(learner._critic_input(rows))).unsqueeze(-1)

    def get_distribution(self, obs: Any) -> ActionDistribution:
        return self._distribution(self._normalized(obs))

    def predict_values(self, obs: Any) -> Tensor:
        """[B, 1]."""
        return self._values(self._normalized(obs))

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B, *shape], values [B, 1], log-probabilities [B]."""
        rows = self._normalized(obs)
        distribution = self._distribution(rows)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._values(rows), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, 1], log-probabilities [B] and entropies [B], with gradients."""
        rows = self._normalized(obs)
        distribution = self._distribution(rows)
        return self._values(rows), distribution.log_prob(actions), distribution.entropy()
