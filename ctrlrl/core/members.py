"""Several on-policy learners trained as one: S members with stacked networks, each on its own block of environments.

Lanes are member-major: of S * B environments those from s * B on are member s's. Every member has a critic with one
value an objective, a normalizer and an optimizer of its own, and nothing computed for one depends on another's numbers;
only the order in which minibatches are drawn is shared. Parameters and buffers have a leading [S] axis (nn/stacked.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import Batch
from ctrlrl.core.compile import compiled
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.core.update import as_stored, run_epochs
from ctrlrl.functional.distributions import approx_kl
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import clipped_value
from ctrlrl.functional.returns import discounted_sums, gae
from ctrlrl.types import Metrics, PolicyOutput, Rollout, tree_map


class MemberSteps:
    """One Adam step for each of S members, each clipped by the norm of its own gradient. One flat [S, P] of parameters.

    step: [S] Adam steps that each member has taken; members may differ in it.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], *, learning_rate: float, max_grad_norm: float | None, eps: float
    ):
        self.params, self.max_grad_norm, self.eps = list(params), max_grad_norm, eps
        stored = [as_stored(p.detach(), p) for p in self.params]
        self.flat = torch.cat([x.flatten(1) for x in stored], 1)
        offset = 0
        for p, x in zip(self.params, stored, strict=True):
            width = x[0].numel()
            p.data = as_stored(self.flat[:, offset : offset + width].view(x.shape), p)
            offset += width
        self.learning_rate = torch.tensor(learning_rate, device=self.flat.device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.step = torch.zeros(len(self.flat), device=self.flat.device)

    def __call__(self, loss: Tensor) -> None:
        """loss: [S], none of which depends on another member's parameters."""
        grads = torch.autograd.grad(loss.sum(), self.params, allow_unused=True, materialize_grads=True)
        grad = torch.cat([as_stored(g, p).flatten(1) for g, p in zip(grads, self.params, strict=True)], 1)
        if self.max_grad_norm is not None:
            grad = grad * (self.max_grad_norm / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            self.step += 1.0
            torch._fused_adam_(
                list(self.flat.unbind(0)),
                list(grad.unbind(0)),
                list(self.exp_avg.unbind(0)),
                list(self.exp_avg_sq.unbind(0)),
                [],
                list(self.step.unbind(0)),
                lr=self.learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """[S, ...] each."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "step": self.step}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class Members:
    """What a rollout's collector and its loop see of S policies in training; an algorithm overrides `policy_loss`.

    nets: stacked `policy`, `critic`, `normalizer` and `reward_scaler`. weight: [S, M], what makes one advantage of each
    member's M; the advantages are weighed in the rewards' own units and standardized afterwards.
    """

    log_prob_shape: tuple[int, ...] = ()  # of a log-probability, behind [T, B]
    by_lane = True  # a lane's place decides whose networks it gets, so values are asked for all lanes together
    ranks: Ranks = ALONE

    def __init__(self, cfg: Any, nets: nn.ModuleDict, weight: Tensor):
        self.cfg, self.nets, self.weight, self.size = cfg, nets, weight, len(weight)
        modules: Any = nets
        self.policy, self.critic = modules.policy, modules.critic
        self.normalizer, self.reward_scaler = modules.normalizer, modules.reward_scaler
        self.opt = MemberSteps(
            list(nets.parameters()),
            learning_rate=cfg.learning_rate,
            max_grad_norm=cfg.max_grad_norm,
            eps=cfg.adam_eps,
        )
        self.discounted_return: Tensor | None = None  # [S * B, M], runs across rollouts
        self._loss = self.loss

    def policy_loss(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        """Of each member, [S]; batch.extras holds "advantages", [S, n, M] in the rewards' own units."""
        raise NotImplementedError

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        """The critics' loss, [S, n, M]."""
        if self.cfg.clip_range_vf is None:
            return (value - batch.target).square()
        return clipped_value(value, batch.value, batch.target, clip_range=self.cfg.clip_range_vf, take_max=True)

    # acting ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """obs [S * B, O]."""
        out = self.policy.act(self.normalizer(obs.view(self.size, -1, obs.shape[-1])), deterministic=deterministic)
        return tree_map(lambda x: x.flatten(0, 1), out._replace(extras={}))

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """V(s) of [T, S * B, O] or [S * B, O]: [..., M]."""
        wide = obs.view(-1, self.size, obs.shape[-2] // self.size, obs.shape[-1]).transpose(0, 1)
        values = self.critic(self.normalizer(wide.flatten(1, 2))).view(*wide.shape[:3], -1)
        return values.transpose(0, 1).reshape(*obs.shape[:-1], -1)

    # learning --------------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> Metrics:
        """One of PPO's updates of every member; metrics are means over the members."""
        if "mask" in rollout.extras:
            raise ValueError("members trained together need environments that reset within a step")
        cfg = self.cfg
        with torch.no_grad():
            if not cfg.bootstrap_truncated:
                ends = rollout.terminated | rollout.truncated
                rollout = rollout._replace(terminated=ends, truncated=torch.zeros_like(ends))
            reward, unit = self._scaled(rollout)
            advantage, target = gae(
                reward,
                rollout.value,
                rollout.next_value,
                rollout.terminated,
                rollout.truncated,
                gamma=cfg.gamma,
                gae_lambda=cfg.gae_lambda,
            )
            batch = self._flatten(rollout, advantage, target, unit)
            if cfg.normalize_advantage == "batch":
                batch = batch._replace(advantage=_standardized(batch.advantage, 0))
        metrics, n_steps = run_epochs(
            batch, self.step, n_epochs=cfg.n_epochs, n_minibatches=cfg.minibatches(len(batch.obs))
        )
        self.normalizer.merge(self._rows(rollout.obs).unsqueeze(2))
        residual = (batch.target - batch.value).var(0, unbiased=False)
        metrics["value/explained_variance"] = (1.0 - residual / (batch.target.var(0, unbiased=False) + 1e-8)).mean()
        metrics["train/learning_rate"] = self.opt.learning_rate.clone()
        metrics["train/gradient_steps"] = torch.tensor(float(n_steps))
        return metrics

    def _rows(self, x: Tensor) -> Tensor:
        """[T, S * B, ...] to [T * B, S, ...]."""
        return x.unflatten(1, (self.size, -1)).transpose(1, 2).flatten(0, 1)

    def _scaled(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Rewards in units of each member's and objective's running deviation, and these units, [S, 1, M]."""
        if not self.cfg.normalize_reward:
            return rollout.reward, torch.ones_like(self.weight).unsqueeze(1)
        done = (rollout.terminated | rollout.truncated).unsqueeze(-1)
        if self.discounted_return is None:
            self.discounted_return = torch.zeros_like(rollout.reward[0])
        sums = discounted_sums(rollout.reward, done, self.discounted_return, gamma=self.cfg.gamma)
        self.discounted_return.copy_(sums[-1] * ~done[-1])
        self.reward_scaler.merge(self._rows(sums).unsqueeze(2))
        wide = rollout.reward.unflatten(1, (self.size, -1))
        return self.reward_scaler(wide).flatten(1, 2), self.reward_scaler.unit(wide)

    def _flatten(self, rollout: Rollout, advantage: Tensor, target: Tensor, unit: Tensor) -> Batch:
        obs = self.normalizer(rollout.obs.unflatten(1, (self.size, -1))).flatten(1, 2)
        own = advantage.unflatten(1, (self.size, -1)) * unit
        scalar = (own * self.weight.unsqueeze(1)).sum(-1).flatten(1, 2)
        extras = {"advantages": own.flatten(1, 2)}
        every = Batch(obs, rollout.action, rollout.log_prob, rollout.value, scalar, target, extras)
        return tree_map(self._rows, every)

    def step(self, batch: Batch) -> Metrics:
        loss, metrics = self._loss(tree_map(lambda x: x.transpose(0, 1), batch))
        self.opt(loss)
        return {name: value.detach() for name, value in metrics.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Of each member, [S], from a minibatch [S, n, ...]; the unit that is compiled."""
        cfg = self.cfg
        if cfg.normalize_advantage == "minibatch":
            batch = batch._replace(advantage=_standardized(batch.advantage, 1))
        log_prob, entropy, _ = self.policy.evaluate(batch.obs, batch.action, {})
        log_ratio = log_prob - batch.log_prob
        value = self.critic(batch.obs)
        policy_loss = self.policy_loss(log_ratio, batch, value)
        value_loss = self.value_loss(value, batch).mean((1, 2))
        total = policy_loss + cfg.vf_coef * value_loss
        if cfg.ent_coef:
            total = total - cfg.ent_coef * batch_mean(entropy)
        kl = approx_kl(log_ratio.detach()).mean()
        means = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
        return total, {"policy/kl": kl} | {name: x.mean() for name, x in means.items()}

    def set_compile(self, mode: str) -> None:
        self._loss = compiled(self.loss, "compile") if mode == "compile" else self.loss

    def set_progress(self, done: float) -> None:
        """The loop of one round asks; the rate follows the whole run's progress instead (`learning_rate`)."""

    def forget_episodes(self) -> None:
        """The environments were reset."""
        self.discounted_return = None

    # state -----------------------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Tensor]:
        """Everything that acting as a member, and training it on, needs besides the optimizer: [S, ...] each."""
        return dict(self.nets.state_dict())

    def load_rows(self, rows: dict[str, Tensor]) -> None:
        self.nets.load_state_dict(rows)


def _standardized(x: Tensor, dim: int) -> Tensor:
    """(x - mean) / (std + 1e-8) along an axis; what other members have does not count. Of one number: 0."""
    if x.shape[dim] < 2:
        return torch.zeros_like(x)
    std, mean = torch.std_mean(x, dim=dim, keepdim=True)
    return (x - mean) / (std + 1e-8)
