"""PDPPO: a critic before the decision and one after it; the larger advantage counts. arXiv:2504.05150.

The environment splits its reward into r_x, known once the action is chosen, and r_pre, the rest. Each half has its own
Monte-Carlo returns and its own critic: V_x of the post-decision state, V_pre of the state. Ratio and clip are those of
every single choice (a machine), not of their product, and an update also learns from earlier rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import ActorCriticLearner, Batch
from ctrlrl.core.on_policy_config import ACTIVATIONS, ActorCriticConfig
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.post_decision import post_decision_advantage
from ctrlrl.functional.returns import discounted_returns
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import ValueCritic
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.policies.standard import standard_features, standard_normalizer, standard_policy
from ctrlrl.types import EnvSpec, Rollout, tree_map

_KEPT = "kept/"  # of the earlier rollouts in a training state
_EXTRAS = ("post_obs", "reward_split", "post_value", "mask")


@dataclass
class PDPPOConfig(ActorCriticConfig):
    """Defaults: the authors' lot-sizing code. `gae_lambda` has no part here: returns are Monte-Carlo sums."""

    name: str = "pdppo"
    learning_rate: float = 5.5e-4
    vf_learning_rate: float = 1e-3  # of both critics
    n_steps: int = 100
    n_minibatches: int = 1
    n_epochs: int = 40
    gamma: float = 0.9
    ent_coef: float = 0.001
    vf_coef: float = 1.0
    max_grad_norm: float | None = None
    adam_eps: float = 1e-8
    normalize_advantage: str = "none"
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    activation: str = "relu"
    vf_activation: str = "tanh"
    orthogonal_init: bool = False  # the authors': Kaiming on the policy's last layer, Xavier on the critics
    clip_range: float = 0.2
    kept_rollouts: int = 5  # earlier ones in every update, beside the new one, with the log-probs of their collection
    critics: str = "dual"  # "single": one critic of the state and the total reward, the paper's PPO baseline
    train_trunk: bool = True  # false: the policy learns in its last layer alone, as in the authors' lot-sizing code

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("PDPPOConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        in_range("PDPPOConfig", low=0.0, high=float("inf"), vf_learning_rate=self.vf_learning_rate)
        if self.kept_rollouts < 0:
            raise ValueError(f"PDPPOConfig.kept_rollouts must be at least 0, got {self.kept_rollouts}")
        for name, allowed in (("critics", ("dual", "single")), ("vf_activation", ACTIVATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"PDPPOConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


class PDPPOLearner(ActorCriticLearner):
    needs = frozenset({"post_obs", "reward_split"})
    config = PDPPOConfig
    lanes = (*ActorCriticLearner.lanes, _KEPT)
    cfg: PDPPOConfig

    def __init__(self, cfg: PDPPOConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        if spec.action_dim:
            raise ValueError("algo=pdppo is for discrete actions, those of this environment are continuous")
        features, critic_features = standard_features(spec, own=own_features, **cfg.feature_settings())
        policy = standard_policy(
            spec,
            features.dim,
            cfg.hidden,
            activation=cfg.activation,
            log_std_init=cfg.log_std_init,
            orthogonal=cfg.orthogonal_init,
            joint=False,
        )
        self.log_prob_shape = (len(spec.nvec),) if spec.nvec else ()
        self.head = [layer for layer in policy.modules() if isinstance(layer, nn.Linear)][-1]
        if not cfg.orthogonal_init:
            nn.init.kaiming_uniform_(self.head.weight, nonlinearity="relu")
            nn.init.zeros_(self.head.bias)
        policy.requires_grad_(cfg.train_trunk)
        self.head.requires_grad_(True)
        hidden = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden
        init = None if cfg.orthogonal_init else _xavier
        critic, post_critic = (
            ValueCritic(features.dim, hidden, activation=cfg.vf_activation, init=init).to(spec.device) for _ in range(2)
        )
        self.post_critic = post_critic
        self.kept: Rollout | None = None  # [T', B, ...], the earlier rollouts, one after another
        super().__init__(
            cfg,
            features=features,
            critic_features=critic_features,
            policy=policy.to(spec.device),
            critic=critic,
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
            **({"post_critic": post_critic} if cfg.critics == "dual" else {}),
        )

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        cfg, nets = self.cfg, self.nets
        policy = [nets["features"], nets["policy"] if cfg.train_trunk else self.head]
        critic = [nets[name] for name in ("critic", "critic_features") if name in nets]
        groups = {"actor_critic": (policy, cfg.learning_rate), "critic": (critic, cfg.vf_learning_rate)}
        if cfg.critics == "dual":
            groups["post_critic"] = ([nets["post_critic"]], cfg.vf_learning_rate)
        return {name: ([p for net in found for p in net.parameters()], lr) for name, (found, lr) in groups.items()}

    def experience(self, rollout: Rollout) -> Rollout:
        """The kept rollouts and the new one, one after another: a return goes on over their borders.

        Values are those of the critics that acted. Dual critics: [T', B, 2], V_x and V_pre.
        """
        extras = {name: rollout.extras[name] for name in _EXTRAS if name in rollout.extras}
        if self.cfg.critics == "dual":
            extras["post_value"] = self._values_after(rollout)
        together = rollout._replace(extras=extras)
        if self.kept is not None and self.kept.obs.shape[1] == rollout.obs.shape[1]:
            together = tree_map(lambda old, new: torch.cat((old, new)), self.kept, together)
        n_kept = self.cfg.kept_rollouts * rollout.obs.shape[0]
        self.kept = tree_map(lambda x: x[-n_kept:].clone(), together) if n_kept else None
        split = together.extras["reward_split"]
        if self.cfg.normalize_reward:
            together.extras["reward_split"] = self.reward_scaler(split)
        if self.cfg.critics == "single":
            return together
        return together._replace(value=torch.stack((together.extras["post_value"], together.value), -1))

    def _values_after(self, rollout: Rollout) -> Tensor:
        """V_x of the post-decision states, [T, B]."""
        rows = rollout.extras["post_obs"].flatten(0, 1)
        return torch.cat([self._post_value(chunk) for chunk in self._chunks(rows)]).view_as(rollout.value)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """max(A_x, A_pre) [T', B], and the returns of both rewards, [T', B, 2]; of the total [T', B] with one critic.

        A time limit cuts a return, and nothing is bootstrapped.
        """
        returns = discounted_returns(
            rollout.extras["reward_split"], rollout.terminated, rollout.truncated, gamma=self.cfg.gamma
        )
        if self.cfg.critics == "single":
            target = returns.sum(-1)
            return target - rollout.value, target
        value = rollout.value
        if value.ndim < returns.ndim:  # a rollout as it was collected
            value = torch.stack((self._values_after(rollout), value), -1)
        post, pre = (returns - value).unbind(-1)
        return post_decision_advantage(post, pre), returns

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        """Per sample and choice, [N, D]; [N] where an action is one choice."""
        advantage = batch.advantage.view(-1, *[1] * (log_ratio.ndim - 1)).expand_as(log_ratio)
        return ppo_clip(log_ratio, advantage, clip_range=self.cfg.clip_range)

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        if self.cfg.critics == "single":
            return (value - batch.target).square()
        post_value = self._post_value(batch.extras["post_obs"])
        return (torch.stack((post_value, value), -1) - batch.target).square().sum(-1)

    def _post_value(self, post_obs: Tensor) -> Tensor:
        with self._precision():
            return self.post_critic(self._critic_input(self.normalizer(post_obs)))

    def forget_episodes(self) -> None:
        super().forget_episodes()
        if self.kept is not None:
            self.kept.truncated[-1] = True

    def training_state(self) -> dict[str, Tensor]:
        state = super().training_state()
        if self.kept is not None:
            fields = {**self.kept._asdict(), **self.kept.extras}
            state |= {f"{_KEPT}{name}": x for name, x in fields.items() if name != "extras"}
        return state

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        found = {name.removeprefix(_KEPT): x for name, x in state.items() if name.startswith(_KEPT)}
        if found:
            found = {name: x.to(self.device, copy=True) for name, x in found.items()}
            extras = {name: found.pop(name) for name in _EXTRAS if name in found}
            self.kept = Rollout(**found, extras=extras)


def _xavier(layer: nn.Linear, last: bool) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
