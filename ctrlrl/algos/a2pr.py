"""A2PR: TD3 whose policy is pulled to the data's action or a VAE's, the better one, if it beats V. arXiv:2405.19909."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import gaussian_kl, smoothed_action
from ctrlrl.functional.gates import advantage_gate, better_action
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.functional.weights import q_scale
from ctrlrl.nn.critics import QCritic, ValueCritic
from ctrlrl.nn.mlp import torch_default
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.nn.vae import ActionVAE
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition

ROWS = 16  # decoded rows are a multiple of it: libraries make a bfloat16 kernel for every number of rows they meet
KL_COEF = 0.5


@dataclass
class A2PRConfig:
    name: str = "a2pr"
    learning_rate: float = 3e-4  # of policy, critics and value
    vae_learning_rate: float = 1e-3
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5  # weight of the normalised value against the pull; 40 on halfcheetah
    pull_coef: float = 1.0  # weight of the pull where its gate is open
    vae_weight: float = 1.0  # of the reconstruction of data actions better than V
    detach_target: bool = False  # False: the pull also passes through the VAE's encoder, as in the authors' code
    policy_delay: int = 2  # critic updates a policy update; targets move with the policy
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    critic_hidden: list[int] = field(default_factory=lambda: [256, 256, 256, 256])  # of V too
    vae_hidden: list[int] = field(default_factory=lambda: [750, 750])
    normalize_obs: bool = True

    def __post_init__(self) -> None:
        rates = {"learning_rate": self.learning_rate, "vae_learning_rate": self.vae_learning_rate}
        in_range("A2PRConfig", low=0.0, high=float("inf"), open_ends=True, **rates)
        in_range("A2PRConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        weights = {"alpha": self.alpha, "pull_coef": self.pull_coef, "vae_weight": self.vae_weight}
        noise = {"target_noise": self.target_noise, "target_noise_clip": self.target_noise_clip}
        in_range("A2PRConfig", low=0.0, high=float("inf"), open_ends=False, **weights, **noise)
        if min(self.policy_delay, self.batch_size) < 1:
            raise ValueError("A2PRConfig.policy_delay and batch_size must be at least 1")


class A2PRLearner(OffPolicyLearner):
    config = A2PRConfig

    def __init__(self, cfg: A2PRConfig, spec: EnvSpec):
        n, d = spec.obs_dim, spec.action_dim
        policy, critic = DeterministicPolicy(n, d, cfg.hidden), QCritic(n, d, cfg.critic_hidden)
        nets = Nets(
            normalizer=DataNormalizer(n),
            policy=policy,
            critic=critic,
            target_policy=copy.deepcopy(policy),
            target_critic=copy.deepcopy(critic),
            value=ValueCritic(n, cfg.critic_hidden, activation="relu", init=torch_default),
            vae=ActionVAE(n, d, 2 * d, cfg.vae_hidden),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr = self.cfg.learning_rate
        rates = {"policy": lr, "critic": lr, "value": lr, "vae": self.cfg.vae_learning_rate}
        return {name: GradStep(getattr(self.nets, name).parameters(), learning_rate=lr) for name, lr in rates.items()}

    def followers(self) -> dict[str, Target]:
        names = ("policy", "critic")
        return {name: Target(getattr(self.nets, f"target_{name}"), self.opt[name]) for name in names}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def step(self, batch: Transition, phase: int) -> Metrics:
        """The authors' order: critics; V with the new critics; VAE and policy with V as it was before its step."""
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            noise = self.random.randn_like(batch.action)
            next_action = nets.target_policy(batch.next_obs)
            next_action = smoothed_action(next_action, noise, std=cfg.target_noise, clip=cfg.target_noise_clip)
            next_q = nets.target_critic(batch.next_obs, next_action).amin(0)
        target = td_target(batch.reward, batch.terminated, next_q, gamma=cfg.gamma)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)

        with torch.no_grad(), self.precision():
            next_q = nets.critic(batch.next_obs, next_action).amin(0)
            q = nets.critic.first(batch.obs, batch.action)
        online_target = td_target(batch.reward, batch.terminated, next_q, gamma=cfg.gamma)
        with self.precision():
            value = nets.value(batch.obs)
        value_loss = batch_mean((value - torch.minimum(online_target, target)).square())
        value = value.detach()

        reconstruction, kl = self.vae_losses(batch, keep=q > value)
        vae_loss = reconstruction + KL_COEF * kl
        together(value_loss + vae_loss, [self.opt["value"], self.opt["vae"]])

        metrics = detached(
            loss_critic=critic_loss, loss_value=value_loss, loss_vae=vae_loss, loss_reconstruction=reconstruction,
            loss_kl=kl, value_q=batch_mean(q),
        )  # fmt: skip
        if phase < self.period - 1:
            return metrics
        return metrics | self._policy_step(batch, q, value)

    def vae_losses(self, batch: Transition, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted squared error over the rows to keep, and the KL to the standard normal, means over batch and axes.

        keep: [..., N] bool. The mean counts the other rows as 0, so on a CPU they are hardly decoded at all.
        """
        vae, obs, action, n = self.nets.vae, batch.obs, batch.action, batch.action.shape[-2]
        with self.precision():
            mean, log_std = vae.encode(obs, action)
        latent = mean + log_std.exp() * self.random.randn_like(mean)
        if keep.ndim == 1 and keep.device.type == "cpu":
            rows = keep.argsort(descending=True)[: -(-int(keep.sum()) // ROWS) * ROWS]
            obs, action, latent, keep = obs[rows], action[rows], latent[rows], keep[rows]
        with self.precision():
            decoded = vae.decode(obs, latent)
        error = torch.where(keep, (decoded - action).square().mean(-1), 0.0)
        kl = gaussian_kl(mean, log_std, torch.zeros_like(mean), torch.zeros_like(mean)) / mean.shape[-1]
        return self.cfg.vae_weight * error.sum(-1) / n, batch_mean(kl)

    def _policy_step(self, batch: Transition, q: Tensor, value: Tensor) -> Metrics:
        """q: of the data's actions, after the critics' step; value: V(s) before its step; both [..., N]."""
        nets, cfg = self.nets, self.cfg
        with self.precision():
            action = nets.policy(batch.obs)
            q_policy = nets.critic.first(batch.obs, action)
        proposal = self.proposal(batch.obs, action)
        with torch.no_grad(), self.precision():
            q_proposal = nets.critic.first(batch.obs, proposal)
        goal = better_action(proposal, batch.action, q_proposal - value, q - value)
        gate = advantage_gate(q_proposal, q, value)
        pull = batch_mean(cfg.pull_coef * gate * (action - goal).square().mean(-1))
        policy_loss = batch_mean(-q_scale(q_policy, alpha=cfg.alpha) * q_policy) + pull
        self.opt["policy"](policy_loss)
        for follower in self.targets.values():
            follower.move(cfg.tau)
        return detached(loss_policy=policy_loss, loss_pull=pull, policy_gate=batch_mean(gate.float()))

    def proposal(self, obs: Tensor, action: Tensor) -> Tensor:
        """The VAE's action near a policy's: encoded, drawn, decoded; [..., A]."""
        vae = self.nets.vae
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.detach_target), self.precision():
            mean, log_std = vae.encode(obs, action)
            return vae.decode(obs, mean + log_std.exp() * self.random.randn_like(mean))
