"""SAC: maximum-entropy control with twin critics and a learned temperature. arXiv:1812.05905.

The order of an update and every default are Stable-Baselines3's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target, frozen, together
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class SACConfig(OnlineConfig):
    name: str = "sac"
    learning_rate: float = 3e-4  # of policy, critics and temperature
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    ent_coef: str | float = "auto"  # the temperature: a number, or learned from 1 on; "auto_0.1" = from 0.1 on
    target_entropy: str | float = "auto"  # that a learned temperature aims at, nats; "auto" = minus the action's size
    n_critics: int = 2
    target_update_interval: int = 1  # updates between two moves of the target critics
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    critic_hidden: list[int] | None = None  # null = hidden
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        if self.learning_rate != 0.0:  # of a model that only acts
            in_range(where, low=0.0, high=inf, open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        for name in ("batch_size", "n_critics", "target_update_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        initial_temperature(self.ent_coef, where)
        aim = self.target_entropy
        if aim != "auto" and (isinstance(aim, str) or not math.isfinite(aim)):
            raise ValueError(f"{where}.target_entropy must be auto or a finite number, got {aim!r}")


class SACLearner(OffPolicyLearner):
    config = SACConfig
    normalized = False
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True

    def __init__(self, cfg: SACConfig, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim)
        hidden = cfg.hidden if cfg.critic_hidden is None else cfg.critic_hidden
        critic = QCritic(*sizes, hidden, n=cfg.n_critics, activation=cfg.activation)
        initial, self.learned = initial_temperature(cfg.ent_coef, type(cfg).__name__)
        nets = Nets(
            normalizer=Identity(),
            policy=SquashedGaussianPolicy(*sizes, cfg.hidden, activation=cfg.activation),
            critic=critic,
            target=copy.deepcopy(critic),
            log_temperature=Scalar(math.log(initial) if initial else -math.inf),
        )
        self.target_entropy = -float(spec.action_dim) if cfg.target_entropy == "auto" else float(cfg.target_entropy)
        super().__init__(cfg, nets.to(spec.device))

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        super().load_model_state(state)
        self._fix_temperature()

    def set_hyper(self, name: str, value: Any) -> None:
        """`ent_coef` may go from one number to another."""
        if name == "ent_coef" and (self.learned or initial_temperature(value, type(self.cfg).__name__)[1]):
            raise ValueError(f"{type(self.cfg).__name__}.ent_coef={self.cfg.ent_coef}: it stays learned or fixed")
        super().set_hyper(name, value)
        self._fix_temperature()

    @torch.no_grad()
    def _fix_temperature(self) -> None:
        """One that is not learned is the configuration's, whatever a file holds."""
        initial, learned = initial_temperature(self.cfg.ent_coef, type(self.cfg).__name__)
        if not learned:
            self.nets.log_temperature.value.fill_(math.log(initial) if initial else -math.inf)

    def optimizers(self) -> dict[str, GradStep]:
        names = ("log_temperature", "critic", "policy") if self.learned else ("critic", "policy")
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in names}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    @property
    def period(self) -> int:
        return self.cfg.target_update_interval

    @property
    def compile_units(self) -> tuple[str, ...]:
        return "critic_loss", "policy_losses"

    def step(self, batch: Transition, phase: int) -> Metrics:
        """Critics, then policy and temperature; all see the temperature before its step, the policy the new critics."""
        nets, cfg = self.nets, self.cfg
        noise, next_noise = self.random.randn_like(batch.action), self.random.randn_like(batch.action)
        temperature = nets.log_temperature().detach().exp()
        critic_loss, q = self.critic_loss(batch, next_noise, temperature)
        self.opt["critic"](critic_loss)
        with frozen(nets.critic):
            losses, log_prob = self.policy_losses(batch.obs, noise, temperature)
        steps = [self.opt[name] for name in ("policy", "log_temperature") if name in self.opt]
        together(sum(losses.values()), steps)  # type: ignore[arg-type]
        if phase == 0:
            self.targets["critic"].move(cfg.tau)
        return detached(
            loss_critic=critic_loss,
            **losses,
            value_q=batch_mean(q),
            policy_entropy=-batch_mean(log_prob),
            policy_temperature=temperature,
        )

    def critic_loss(self, batch: Transition, next_noise: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Of all critics together, 0-dim, and the first one's values [N]. next_noise: of the next actions, [N, A]."""
        target = self.target(batch, next_noise, temperature)
        with self.precision():
            q = self.nets.critic(batch.obs, batch.action)
        return 0.5 * batch_mean((q - target).square()).sum(0), q[0].detach()

    def policy_losses(self, obs: Tensor, noise: Tensor, temperature: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Of the policy and of a temperature that is learned, 0-dim each; the log-density of the actions drawn [N]."""
        action, log_prob = self.sampled(obs, noise)
        with self.precision():
            q = self.nets.critic(obs, action).amin(0)
        losses = {"loss_policy": batch_mean(entropy_policy_loss(q, log_prob, temperature))}
        if self.learned:
            gap = temperature_loss(self.nets.log_temperature(), log_prob, target_entropy=self.target_entropy)
            losses["loss_temperature"] = batch_mean(gap)
        return losses, log_prob.detach()

    def sampled(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action of the policy a row [N, A] and its log-density [N]."""
        with self.precision():
            mean, log_std = self.nets.policy(obs)
        return tanh_gaussian_sample(mean, log_std, noise)

    @torch.no_grad()
    def target(self, batch: Transition, noise: Tensor, temperature: Tensor) -> Tensor:
        """[N], return units: the smallest target critic at a fresh next action, with its entropy's worth."""
        action, log_prob = self.sampled(batch.next_obs, noise)
        with self.precision():
            next_q = self.nets.target(batch.next_obs, action).amin(0)
        soft = next_q - temperature * log_prob
        return td_target(batch.reward, batch.terminated, soft, gamma=self.discount(batch))


def initial_temperature(ent_coef: str | float, where: str) -> tuple[float, bool]:
    """The temperature at the start, and whether it is learned."""
    if isinstance(ent_coef, str) and ent_coef.startswith("auto"):
        word = ent_coef.removeprefix("auto").removeprefix("_") or "1.0"
    else:
        word = str(ent_coef)
    learned = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (0.0 < value < math.inf or (value == 0.0 and not learned)):
        raise ValueError(f"{where}.ent_coef must be auto, auto_<start> or a number from 0 on, got {ent_coef!r}")
    return value, learned
