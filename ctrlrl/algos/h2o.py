"""H2O: SAC on real data and a simulator that is not like reality. arXiv:2206.13464.

Two classifiers tell real transitions from simulated ones. From them comes how likely the real system is to make a
simulated step: unlikely ones count less in the Bellman error, and their values are pushed down.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional import gap
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.discriminator import Discriminator
from ctrlrl.nn.mlp import torch_small_last
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition, tree_map

PADDING = 10.0  # rows that the authors' buffer keeps for the simulator, over those of the data


@dataclass
class H2OConfig(OnlineConfig):
    name: str = "h2o"
    learning_starts: int = 1000
    learning_rate: float = 3e-4  # of all networks
    batch_size: int = 256  # rows for policy and critics, half of them real
    discriminator_batch_size: int = 512  # rows for the classifiers, half of them real
    gamma: float = 0.99
    tau: float = 0.005
    conservative_coef: float = 0.01  # weight of the penalty against the squared TD error; 0 = none
    weight_min: float = 1e-5  # bounds of P_real / P_sim, which weighs a simulated row's TD error
    weight_max: float = 1.0
    gap_min: float = 1e-37  # bounds of a simulated row's gap, nats; the authors' 1e-45 is 0 where denormals are
    gap_max: float = 10.0
    penalty_bound: float | None = 1000.0  # the penalty is clipped into +- this; null = not
    n_next_states: int = 10  # around a simulated next state, over which the gap is averaged
    next_state_noise: float = 1.0  # their deviation, over that of the real states
    pad_state_std: bool = False  # that deviation among ten times as many zeros, as the authors' code has it
    input_noise: float = 0.1  # deviation of what is added to everything that the classifiers learn from
    logit_bound: float | None = 2.0  # of the logits from which ratio and gap come; null = none
    bound_marginal: bool = False  # and of those of (s, a), as in the authors' code: other states then count as a gap
    train_marginal_on_joint: bool = False  # the loss of the classifier of (s, a, s') also trains that of (s, a)
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    layer_norm: bool = False  # in the critics, before every activation: RLPD's, not the paper's
    normalize_obs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        in_range(where, low=0.0, high=inf, open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        for name in ("conservative_coef", "input_noise", "next_state_noise"):
            in_range(where, low=0.0, high=inf, open_ends=False, **{name: getattr(self, name)})
        for name in ("weight", "gap"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if not 0.0 < low <= high:
                raise ValueError(f"{where}: 0 < {name}_min <= {name}_max must hold, got {low} and {high}")
        for name in ("logit_bound", "penalty_bound"):
            if getattr(self, name) is not None:
                in_range(where, low=0.0, high=inf, open_ends=True, **{name: getattr(self, name)})
        for name in ("batch_size", "discriminator_batch_size"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(
                    f"{where}.{name} must be even, half real and half simulated, got {getattr(self, name)}"
                )
        if self.n_next_states < 1:
            raise ValueError(f"{where}.n_next_states must be at least 1, got {self.n_next_states}")
        if self.n_steps != 1:
            raise ValueError(
                f"{where}.n_steps must be 1: the two systems are compared step by step, got {self.n_steps}"
            )
        if self.offline_share != 0.5:
            raise ValueError(f"{where}.offline_share must be 0.5: half of a batch is real, got {self.offline_share}")


class H2OLearner(OffPolicyLearner):
    config = H2OConfig
    loop = "hybrid"
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True

    def __init__(self, cfg: H2OConfig, spec: EnvSpec):
        obs_dim, action_dim = spec.obs_dim, spec.action_dim
        norm = "before" if cfg.layer_norm else "none"
        critic = QCritic(obs_dim, action_dim, cfg.hidden, init=torch_small_last, norm=norm)
        nets = Nets(
            normalizer=DataNormalizer(obs_dim),
            policy=SquashedGaussianPolicy(obs_dim, action_dim, cfg.hidden, affine_log_std=True, init=torch_small_last),
            critic=critic,
            target=copy.deepcopy(critic),
            log_temperature=Scalar(0.0),
            marginal=Discriminator(
                obs_dim + action_dim, cfg.hidden, bound=cfg.logit_bound if cfg.bound_marginal else None
            ),
            transition=Discriminator(2 * obs_dim + action_dim, cfg.hidden, bound=cfg.logit_bound),
            real_states=DataNormalizer(obs_dim),  # for their deviation
        )
        self.target_entropy = -float(action_dim)
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        names = ("marginal", "transition", "log_temperature", "policy", "critic")
        return {n: GradStep(getattr(self.nets, n).parameters(), learning_rate=self.cfg.learning_rate) for n in names}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    def prefit(self, data: Transition) -> None:
        super().prefit(data)
        self.nets.real_states.fit(self.nets.normalizer(data.obs))

    @property
    def rows(self) -> int:
        return self.cfg.batch_size + self.cfg.discriminator_batch_size

    def step(self, batch: HybridBatch, phase: int) -> Metrics:
        """Classifiers, then all losses of the networks as they were, then temperature, policy, critics, targets."""
        nets, cfg, n = self.nets, self.cfg, self.cfg.batch_size // 2
        found = self._classify(*(tree_map(lambda x: x[n:], part) for part in batch))
        real, sim = (tree_map(lambda x: x[:n], part) for part in batch)
        rows = tree_map(lambda *parts: torch.cat(parts), real, sim)

        with self.precision():
            mean, log_std = nets.policy(rows.obs)
            action, log_prob = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
            q_policy = nets.critic(rows.obs, action).amin(0)
            q_real, q_sim = nets.critic(rows.obs, rows.action).split(n, -1)
        temperature = nets.log_temperature().detach().exp()
        entropy_gap = temperature_loss(nets.log_temperature(), log_prob, target_entropy=self.target_entropy)
        policy_loss = batch_mean(entropy_policy_loss(q_policy, log_prob, temperature))

        target_real, target_sim = self.target(rows).split(n)
        weight, u = self.weight_and_gap(sim)
        td_real = batch_mean((q_real - target_real).square())
        td_sim = batch_mean(weight * (q_sim - target_sim).square())
        penalty = gap.gap_penalty(q_sim, gap.log_share(u).float(), q_real, bound=cfg.penalty_bound)
        critic_loss = (td_real + td_sim + cfg.conservative_coef * penalty).sum(0)

        self.opt["log_temperature"](batch_mean(entropy_gap))
        self.opt["policy"](policy_loss)
        self.opt["critic"](critic_loss)
        self.targets["critic"].move(cfg.tau)
        return found | detached(
            loss_critic_real=td_real.sum(0),
            loss_critic_sim=td_sim.sum(0),
            loss_policy=policy_loss,
            value_penalty=penalty.mean(0),
            value_q_real=batch_mean(q_real[0]),
            value_q_sim=batch_mean(q_sim[0]),
            gap_weight=batch_mean(weight),
            gap_nats=batch_mean(u.float()),
            policy_entropy=-batch_mean(log_prob),
            policy_temperature=temperature,
        )

    @torch.no_grad()
    def target(self, rows: Transition) -> Tensor:
        """[N], return units: the smaller target critic at a fresh next action, without entropy."""
        with self.precision():
            mean, log_std = self.nets.policy(rows.next_obs)
            action, _ = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
            next_q = self.nets.target(rows.next_obs, action).amin(0)
        return td_target(rows.reward, rows.terminated, next_q, gamma=self.discount(rows))

    @torch.no_grad()
    def weight_and_gap(self, sim: Transition) -> tuple[Tensor, Tensor]:
        """P_real / P_sim of simulated rows at the step they made, and the gap around it, nats; [N] each, clipped.

        The gap is float64: its authors' least, 1e-45, counts as 0 in the float32 of an update.
        """
        cfg = self.cfg
        noise = self.random.randn_like(sim.next_obs.new_empty(cfg.n_next_states, *sim.next_obs.shape))
        around = sim.next_obs + self.next_state_std() * noise
        next_obs = torch.cat((sim.next_obs.unsqueeze(0), around))
        with self.precision():
            log_ratio = self.log_ratio(sim.obs, sim.action, next_obs)
        weight = gap.dynamics_weight(log_ratio[0], low=cfg.weight_min, high=cfg.weight_max)
        return weight, gap.dynamics_gap(log_ratio[1:].double(), low=cfg.gap_min, high=cfg.gap_max)

    def log_ratio(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """log P_real / P_sim at K next states [K, N, O] of each row, nats [K, N]; observations normalised.

        The joint classifier's log-odds are the marginal's and the transition network's together, so that only the
        latter is left of the ratio.
        """
        shape = next_obs.shape[:-1]
        return self.nets.transition(obs.expand(*shape, -1), action.expand(*shape, -1), next_obs)

    @torch.no_grad()
    def dynamics_gap(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """log P_sim / P_real of single steps with raw observations, nats [N]: high where reality hardly makes them."""
        norm = self.nets.normalizer
        return -self.log_ratio(norm(obs), action, norm(next_obs).unsqueeze(0))[0]

    def next_state_std(self) -> Tensor:
        """[O] of the next states over which a gap is averaged."""
        mean, std = self.nets.real_states.shift, 1.0 / self.nets.real_states.scale
        spread = gap.padded_std(mean, std, copies=PADDING) if self.cfg.pad_state_std else std
        return self.cfg.next_state_noise * spread

    def _classify(self, real: Transition, sim: Transition) -> Metrics:
        """One step of both classifiers."""
        cfg, nets, n = self.cfg, self.nets, len(real.reward)
        rows = torch.cat([torch.cat((r.obs, r.action, r.next_obs), -1) for r in (real, sim)])
        rows = rows + cfg.input_noise * self.random.randn_like(rows)
        with self.precision():
            marginal = nets.marginal(rows[:, : -real.next_obs.shape[-1]])
            joint = (marginal if cfg.train_marginal_on_joint else marginal.detach()) + nets.transition(rows)
        of_real, of_sim = (gap.classification_loss(torch.stack((marginal, joint)), real=real) for real in (True, False))
        losses = batch_mean(of_real[:, :n]) + batch_mean(of_sim[:, n:])
        together(losses.sum(0), [self.opt["marginal"], self.opt["transition"]])
        right = 0.5 * batch_mean((joint[:n] > 0).float() + (joint[n:] < 0).float())
        return detached(loss_marginal=losses[0], loss_joint=losses[1], gap_recognized=right)
