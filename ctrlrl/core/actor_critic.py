"""The on-policy core. A paper overrides only the hook it changes: advantages, log_ratio, surrogate or value_loss.

One update: scale rewards, advantages over the whole rollout, then epochs of minibatches of one joint loss
    mean(surrogate) + vf_coef * mean(value_loss) - ent_coef * mean(entropy).
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ctrlrl.core.compile import Graph, Mode, compiled, undoing
from ctrlrl.core.learner import Learner
from ctrlrl.core.update import GradStep, run_epochs, together
from ctrlrl.functional.distributions import adapt_learning_rate, approx_kl
from ctrlrl.functional.masked import masked_mean, masked_std, pooled_std_mean, standardize
from ctrlrl.functional.returns import discounted_sums, gae
from ctrlrl.functional.scan import append_axes
from ctrlrl.types import Extras, Metrics, PolicyOutput, Rollout, tree_map

CHUNK = 2**18  # rows of a forward pass over a whole rollout: bounds the memory of its activations
WIDE = 512  # of wider rows (images), fewer at once


class Batch(NamedTuple):
    """One rollout, flat: what the loss of a minibatch reads. Observations are normalised already."""

    obs: Tensor  # [N, O]; the policy's features of it inside log_ratio
    action: Tensor  # [N, A], [N] or [N, D]
    log_prob: Tensor  # [N], or [N, D] where each of D choices has its own
    value: Tensor  # [N] or [N, K], by the critic that acted
    advantage: Tensor  # [N], or [N, K] for a learner whose loss makes one of them
    target: Tensor  # [N] or [N, K]
    extras: Extras


class ActorCriticLearner(Learner):
    """features: makes the input of policy and critic of normalised observations; critic_features: the critic's own.

    networks: further ones, by name.
    """

    loop = "on_policy"
    log_prob_shape: tuple[int, ...] = ()  # of a log-probability, behind [T, B]
    lanes: ClassVar[tuple[str, ...]] = ("discounted_return",)
    cfg: Any
    policy: Any
    critic: Any
    nets: nn.ModuleDict
    normalizer: Any
    reward_scaler: Any

    def __init__(
        self,
        cfg: Any,
        *,
        features: nn.Module,
        policy: nn.Module,
        critic: nn.Module,
        normalizer: nn.Module,
        reward_scaler: nn.Module,
        critic_features: nn.Module | None = None,
        **networks: nn.Module,
    ):
        self.cfg = cfg
        self.nets = nn.ModuleDict(
            {"policy": policy, "critic": critic, "normalizer": normalizer, "reward_scaler": reward_scaler}
        )
        self.nets["features"] = features
        if critic_features is not None:
            self.nets["critic_features"] = critic_features
        self.nets.update(networks)
        self.features, self.critic_features = features, critic_features
        self.policy, self.critic, self.normalizer, self.reward_scaler = policy, critic, normalizer, reward_scaler
        self.opt = {
            name: GradStep(
                params,
                learning_rate=lr,
                max_grad_norm=cfg.max_grad_norm,
                eps=cfg.adam_eps,
                weight_decay=cfg.weight_decay,
            )
            for name, (params, lr) in self.parameter_groups().items()
        }
        self.discounted_return: Tensor | None = None  # [B], runs across rollouts
        self.detailed = False  # also measure policy/clip_fraction, for an algorithm with a clip_range
        self._mode: Mode = "eager"
        self._bf16 = False
        self._loss = self.loss
        self._act = self._sample
        self._graphs: dict[int, Graph] = {}

    # hooks -----------------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Parameters and learning rate of each optimiser; "actor_critic" holds the policy's."""
        return {"actor_critic": ([p for net in self.nets.values() for p in net.parameters()], self.cfg.learning_rate)}

    def experience(self, rollout: Rollout) -> Rollout:
        """What an update learns from, [T', B, ...]; by default the new rollout alone."""
        return rollout

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantage [T, B] and value target, [T, B] or [T, B, K]. Source: Schulman et al. 2016, arXiv:1506.02438."""
        return gae(
            rollout.reward,
            rollout.value,
            rollout.next_value,
            rollout.terminated,
            rollout.truncated,
            gamma=self.cfg.gamma,
            gae_lambda=self.cfg.gae_lambda,
        )

    def log_ratio(self, batch: Batch) -> tuple[Any, ...]:
        """log pi_new(a|s) - log pi_old(a|s), entropy, and KL(old || new), [N] or [N, D] each, in nats.

        The entropy is None where there is none to compute. What follows the three are penalties [N] to be minimised.
        """
        log_prob, entropy, kl = self.policy.evaluate(batch.obs, batch.action, batch.extras)
        log_ratio = log_prob - batch.log_prob
        return log_ratio, entropy, approx_kl(log_ratio.detach()) if kl is None else kl

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        """The policy loss per sample, [N]; `value` is the critic's output on batch.obs, computed once a minibatch."""
        raise NotImplementedError

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        """The critic's loss per sample."""
        return (value - batch.target).square()

    def actor_value(self, value: Tensor) -> Tensor:
        """Of a critic's K heads [..., K] the one of the policy's objective, [...]; by default there is only one."""
        return value

    def after_epoch(self, rollout: Rollout, batch: Batch) -> Batch:
        """What the next epoch learns from; by default the same batch."""
        return batch

    def revalued(self, rollout: Rollout) -> Rollout:
        """The rollout with the present critic's values.

        Final observations are not stored, so a truncated step keeps the bootstrap of the critic that acted, and so does
        the last step of the rollout.
        """
        value = self.value(rollout.obs)
        done = append_axes(rollout.terminated | rollout.truncated, value.ndim)
        following = torch.cat((value[1:], rollout.next_value[-1:]))
        return rollout._replace(value=value, next_value=torch.where(done, rollout.next_value, following))

    # acting ----------------------------------------------------------------------------------------------------------

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 products over float32 weights where asked for; networks return float32."""
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self.opt["actor_critic"].flat.device.type, dtype=torch.bfloat16)

    def _sample(self, obs: Tensor) -> PolicyOutput:
        with self._precision():
            return self.policy.act(self.features(self.normalizer(obs)))

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        if deterministic:
            with self._precision():
                return self.policy.act(self.features(self.normalizer(obs)), deterministic=True)
        chunks = [self._act(rows) for rows in self._chunks(obs)]
        out = chunks[0] if len(chunks) == 1 else tree_map(lambda *parts: torch.cat(parts), *chunks)
        # the acting distribution is kept for a rule that compares it with the new one, or where the ratio needs it
        kept = self.cfg.desired_kl is not None or getattr(self.policy, "needs_extras", False)
        return out if kept else out._replace(extras={})

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """V(s) of raw observations [..., O]: [...], or [..., K] of a critic with K heads."""
        flat = obs.reshape(-1, obs.shape[-1])
        with self._precision():
            chunks = [self._value(self._critic_input(self.normalizer(rows))) for rows in self._chunks(flat)]
        values = torch.cat(chunks)
        return values.view(*obs.shape[:-1], *values.shape[1:])

    def _value(self, features: Tensor) -> Tensor:
        return self.critic(features)

    def _critic_input(self, obs: Tensor) -> Tensor:
        return self.features(obs) if self.critic_features is None else self.critic_features(obs)

    def _chunks(self, obs: Tensor) -> tuple[Tensor, ...]:
        return obs.split(max(1, CHUNK // max(1, obs.shape[-1] // WIDE)))

    # learning --------------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> Metrics:
        with torch.no_grad():
            experience = self.experience(self._ended(rollout._replace(reward=self._scaled(rollout))))
            advantage, target = self.advantages(experience)
            batch = self._flatten(experience, advantage, target)
            spread = masked_std(batch.advantage)
            if self.cfg.normalize_advantage == "batch":
                batch = batch._replace(advantage=self._standardized(batch.advantage))
        metrics, n_steps = run_epochs(
            batch,
            self.step,
            n_epochs=self.cfg.n_epochs,
            n_minibatches=self.cfg.minibatches(experience.terminated.numel()),  # the same on every rank
            after_epoch=lambda batch: self.after_epoch(experience, batch),
            report=self._epoch_ends,
        )
        mask = rollout.extras.get("mask")
        self.normalizer.merge(rollout.obs.flatten(0, 1) if mask is None else rollout.obs[mask])
        metrics["value/advantage_variance"] = spread.square()
        value, target = self.actor_value(batch.value), self.actor_value(batch.target)
        residual = (target - value).var(0, unbiased=False)  # of each head
        metrics["value/explained_variance"] = (1.0 - residual / (target.var(0, unbiased=False) + 1e-8)).mean()
        metrics["train/learning_rate"] = self.opt["actor_critic"].learning_rate.clone()
        metrics["train/gradient_steps"] = torch.tensor(float(n_steps))
        return metrics

    def foreseen(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The advantages and targets that `update` would take from a rollout, [T, B] or [T, B, K]; nothing changes."""
        twin = copy.copy(self)
        twin.reward_scaler, twin.discounted_return = copy.deepcopy((self.reward_scaler, self.discounted_return))
        return twin.advantages(twin._ended(rollout._replace(reward=twin._scaled(rollout))))

    def _ended(self, rollout: Rollout) -> Rollout:
        if self.cfg.bootstrap_truncated:
            return rollout
        ends = rollout.terminated | rollout.truncated
        return rollout._replace(terminated=ends, truncated=torch.zeros_like(ends))

    def _scaled(self, rollout: Rollout) -> Tensor:
        """Rewards divided by the running deviation of the discounted return, this rollout's returns included."""
        if not self.cfg.normalize_reward:
            return rollout.reward
        done = rollout.terminated | rollout.truncated
        if self.discounted_return is None or self.discounted_return.shape != rollout.reward[0].shape:
            self.discounted_return = torch.zeros_like(rollout.reward[0])  # a loaded learner may meet more environments
        sums = discounted_sums(rollout.reward, done, self.discounted_return, gamma=self.cfg.gamma)
        self.discounted_return.copy_(sums[-1] * ~done[-1])
        mask = rollout.extras.get("mask")
        self.reward_scaler.merge(sums.reshape(-1) if mask is None else sums[mask])
        return self.reward_scaler(rollout.reward)

    def _flatten(self, rollout: Rollout, advantage: Tensor, target: Tensor) -> Batch:
        """[T, B] to [N]: views, but for rows that were no transitions, which are dropped here."""
        extras = dict(rollout.extras)
        valid = extras.pop("mask", None)
        columns: Any = (rollout.obs, rollout.action, rollout.log_prob, rollout.value, advantage, target, extras)
        obs, *rest = tree_map(lambda x: x.flatten(0, 1) if valid is None else x[valid], columns)
        return Batch(torch.cat([self.normalizer(rows) for rows in self._chunks(obs)]), *rest)

    def _standardized(self, advantage: Tensor) -> Tensor:
        """Over the rows of all ranks."""
        if self.ranks.size == 1:
            return standardize(advantage)
        var, mean = torch.var_mean(advantage.double(), unbiased=False)
        of_all = self.ranks.stacked(torch.stack((torch.full_like(mean, advantage.numel()), mean, var)))
        std, mean = pooled_std_mean(*of_all.unbind(1))
        return standardize(advantage, std_mean=(std.to(advantage.dtype), mean.to(advantage.dtype)))

    def rows(self, rollout: Rollout, x: Tensor) -> Tensor:
        """[T, B, ...] to the [N, ...] rows of the batch."""
        mask = rollout.extras.get("mask")
        return x.flatten(0, 1) if mask is None else x[mask]

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The joint loss of one minibatch and its metrics; the unit that is compiled."""
        cfg = self.cfg
        if cfg.normalize_advantage == "minibatch" and self.ranks.size == 1:
            batch = batch._replace(advantage=standardize(batch.advantage))
        with self._precision():
            features = self.features(batch.obs)
            log_ratio, entropy, kl, *penalties = self.log_ratio(batch._replace(obs=features))
            value = self.critic(features if self.critic_features is None else self.critic_features(batch.obs))
        policy_loss = masked_mean(self.surrogate(log_ratio, batch, value))
        value_loss = masked_mean(self.value_loss(value, batch))
        total = policy_loss + cfg.vf_coef * value_loss
        metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/kl": masked_mean(kl)}
        if entropy is not None:
            metrics["policy/entropy"] = mean_entropy = masked_mean(entropy)
            if cfg.ent_coef:
                total = total - cfg.ent_coef * mean_entropy
        if penalties:
            metrics["loss/penalty"] = penalty = masked_mean(sum(penalties))
            total = total + penalty
        if self.detailed:
            outside = (torch.expm1(log_ratio.detach()).abs() > cfg.clip_range).float()
            metrics["policy/clip_fraction"] = masked_mean(outside)
        return total, metrics

    def step(self, batch: Batch) -> Metrics | None:
        if self._mode == "graph":
            n = batch.obs.shape[0]
            if n not in self._graphs:
                undo = undoing([x for opt in self.opt.values() for x in (opt.flat, *opt.state_dict().values())])
                self._graphs[n] = Graph(self._step, (batch,), undo=undo)
            return tree_map(torch.clone, self._graphs[n](batch))
        return self._step(batch)

    def _step(self, batch: Batch) -> Metrics | None:
        opt, ranks = self.opt["actor_critic"], self.ranks
        if self.cfg.normalize_advantage == "minibatch" and ranks.size > 1:
            batch = batch._replace(advantage=self._standardized(batch.advantage))
        loss, metrics = self._loss(batch)
        metrics = {name: value.detach() for name, value in metrics.items()}  # here: kept graphs would hold activations
        if self.cfg.desired_kl is not None or self.cfg.target_kl is not None:
            metrics["policy/kl"] = ranks.mean_(metrics["policy/kl"])  # so that all ranks decide alike
        if self.cfg.desired_kl is not None and self.cfg.desired_kl_rule == "minibatch":
            lr = adapt_learning_rate(opt.learning_rate, metrics["policy/kl"], desired_kl=self.cfg.desired_kl)
            opt.learning_rate.copy_(lr)
        if self.cfg.target_kl is not None and metrics["policy/kl"] > 1.5 * self.cfg.target_kl:
            return None
        together(loss, list(self.opt.values()))
        return metrics

    def _epoch_ends(self, so_far: Metrics) -> None:
        """so_far: means over the minibatches of this update."""
        if self.cfg.desired_kl is not None and self.cfg.desired_kl_rule == "epoch":
            rate = self.opt["actor_critic"].learning_rate
            rate.copy_(adapt_learning_rate(rate, so_far["policy/kl"], desired_kl=self.cfg.desired_kl, low=1e-6))

    def set_hyper(self, name: str, value: float | None) -> None:
        """Change a number of the config between rollouts; a captured graph holds the old one and is captured anew."""
        if name == "learning_rate" and value is not None:
            self.opt["actor_critic"].learning_rate.fill_(value)  # the config keeps what training starts from
            return
        if name == "max_grad_norm":
            for opt in self.opt.values():
                opt.max_grad_norm = value
        if getattr(self.cfg, name) != value:
            setattr(self.cfg, name, value)
            self._graphs.clear()

    def set_progress(self, done: float) -> None:
        if self.cfg.lr_schedule == "linear":
            self._set_learning_rates(1.0 - done)

    def _set_learning_rates(self, share: float) -> None:
        for name, (_, learning_rate) in self.parameter_groups().items():
            self.opt[name].learning_rate.fill_(learning_rate * share)

    def forget_episodes(self) -> None:
        """No episode of the last rollout goes on in the next: the environments were reset, or steps were lost."""
        self.discounted_return = None

    def set_dtype(self, dtype: str) -> None:
        self._bf16 = dtype == "bfloat16"

    def set_compile(self, mode: str) -> None:
        if mode == "graph" and self.cfg.target_kl is not None:
            raise ValueError(
                "algo.target_kl reads the device at every minibatch, which a CUDA graph cannot do. "
                "Use compile=eager, or desired_kl."
            )
        self._mode = mode  # type: ignore[assignment]
        if mode == "compile":
            self._loss = compiled(self.loss, "compile")
            self._act = compiled(self._sample, "compile")

    def training_state(self) -> dict[str, Tensor]:
        state = super().training_state()
        if self.discounted_return is not None:
            state["discounted_return"] = self.discounted_return
        if self.cfg.desired_kl is not None:
            state["asked_rate"] = self._asked_rate()
        return state

    def _asked_rate(self) -> Tensor:
        """What the rule of desired_kl began with."""
        return torch.tensor(self.cfg.learning_rate, dtype=torch.float64)

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        before = state.get("asked_rate", self._asked_rate())
        goes_on = self.cfg.desired_kl is not None and float(before) == self.cfg.learning_rate
        if not goes_on and self.cfg.lr_schedule == "constant":  # a changed setting counts
            self._set_learning_rates(1.0)
        if "discounted_return" in state:
            self.discounted_return = state["discounted_return"].to(self.opt["actor_critic"].flat.device, copy=True)
