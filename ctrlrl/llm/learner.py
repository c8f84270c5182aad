"""Learning from judged responses: one learner for every method that a TokenConfig describes. It never sees a task."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.learner import Learner
from ctrlrl.core.ranks import Ranks
from ctrlrl.core.update import GradStep, run_epochs
from ctrlrl.functional.masked import masked_std
from ctrlrl.functional.ratio import truncated_importance
from ctrlrl.llm.advantages import advantages_over_ranks
from ctrlrl.llm.batches import Rollout, Rows, trimmed
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.controls import controls, next_controls
from ctrlrl.llm.critic import value_head, value_loss
from ctrlrl.llm.estimators import AdvantageOut
from ctrlrl.llm.generate import Engine, Responses, sample, sampled_elsewhere
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.llm.losses import summed, token_loss
from ctrlrl.llm.resampling import resampling_temperature, with_positives
from ctrlrl.llm.scoring import Scorer
from ctrlrl.llm.tracker import PromptTracker
from ctrlrl.types import EnvSpec, Metrics


class TokenLearner(Learner):
    loop = "tokens"
    config: ClassVar[type[TokenConfig]] = TokenConfig

    def __init__(
        self,
        cfg: TokenConfig,
        spec: EnvSpec,
        *,
        model: nn.Module,
        eos: int | None,
        pad: int,
        engine: Engine | None = None,
        reference: nn.Module | None = None,
        recorded: bool = False,
    ):
        """model: a causal language model of transformers, with or without PEFT, or a module tokens -> logits.

        engine: who samples instead of the model itself (`generate.sampled_elsewhere`). reference: what the KL is to;
        None: the model as it is now. recorded: responses come from a file, so that the reference's log-probs stand in
        for those of whoever wrote them.
        """
        if cfg.window is not None and engine is not None:
            raise ValueError(f"algo.window={cfg.window}: an engine writes whole responses; leave window or engine out")
        self.cfg, self.spec, self.eos, self.pad, self.engine = cfg, spec, eos, pad, engine
        self.model = LanguageModel(model, checkpoint=cfg.gradient_checkpointing)
        self.nets = nn.ModuleDict({"policy": model})
        self.opt = {"policy": self._step([p for p in model.parameters() if p.requires_grad], "policy")}
        self.reference = self._reference(reference) if cfg.needs_reference or recorded else None
        # what the ratio is to
        self.from_reference = cfg.against_reference or (recorded and cfg.surrogate != "pg")
        critic = self._add_critic() if cfg.needs_critic else None
        self.score = Scorer(cfg, self.model, self.reference, critic)
        self.tracker: PromptTracker | None = None
        self.now = controls(cfg, like=self.opt["policy"].flat)
        self.progress = 0.0
        self.entropy = torch.zeros(())  # of the batch whose prompts are asked again

    def _step(self, params: Sequence[nn.Parameter], name: str) -> GradStep:
        if not params:
            raise ValueError("the model has no parameter that requires a gradient")
        cfg = self.cfg
        rate = self._rate(name)
        return GradStep(params, learning_rate=rate, max_grad_norm=cfg.max_grad_norm, weight_decay=cfg.weight_decay)

    def _rate(self, name: str) -> float:
        if name == "policy":
            return self.cfg.learning_rate
        own = self.cfg.value_learning_rate
        return 10.0 * self.cfg.learning_rate if own is None else own

    def _reference(self, given: nn.Module | None) -> LanguageModel | None:
        """None: the policy without its adapters."""
        if given is None and self.model.adapted:
            return None
        frozen = copy.deepcopy(self.model.module) if given is None else given
        for p in frozen.parameters():
            p.requires_grad_(False)
        return LanguageModel(frozen)

    def _add_critic(self) -> nn.Module:
        if not self.model.split:
            raise ValueError(
                f"algo={self.cfg.name} learns values from a model's hidden states, which this one does not tell apart "
                "from its logits. Use a model of transformers, or a method without a critic."
            )
        head = value_head(self.model, self.cfg.value_heads).to(self.spec.device)
        self.nets.add_module("value", head)
        self.opt["value"] = self._step(list(head.parameters()), "value")
        return head

    # what the loop asks

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"greedy"} if self.cfg.needs_greedy else ())

    @property
    def draws(self) -> int:
        """Responses to each prompt."""
        return self.cfg.group_size

    @property
    def rounds(self) -> int:
        """Batches that may be sampled for one update: prompts that teach nothing are replaced in all but the last."""
        return self.cfg.max_rounds if self.cfg.dynamic_sampling else 1

    def prompt_weight(self, n: int) -> Tensor | None:
        """[n] in proportion to which prompts are worth asking; None: all alike."""
        if not self.cfg.needs_tracker:
            return None
        if self.tracker is None:
            self.tracker = PromptTracker(n, longest=self.spec.episode_length, device=self.device)
        return self.tracker.weight()

    def respond(
        self,
        ids: Tensor,
        mask: Tensor | None,
        *,
        n: int,
        max_new_tokens: int,
        greedy: bool = False,
        temperature: float | None = None,
    ) -> Responses:
        """`n` responses to each of the prompts [P, L]; greedy: the model's own likeliest ones.

        temperature: None = the configured one.
        """
        options: dict[str, Any] = {"n": n, "max_new_tokens": max_new_tokens, "eos": self.eos, "pad": self.pad}
        temperature = 0.0 if greedy else (temperature or self.cfg.temperature)
        if self.engine is not None and not greedy:
            return sampled_elsewhere(self.engine, ids, mask, temperature=temperature, **options)
        with self.score.precision(self.device):
            return sample(self.model, ids, mask, temperature=temperature, **options)

    # learning

    def set_progress(self, done: float) -> None:
        self.progress = done
        if self.cfg.lr_schedule == "linear":
            for name, step in self.opt.items():
                step.learning_rate.fill_(self._rate(name) * (1.0 - done))

    def set_dtype(self, dtype: str) -> None:
        """float32 products, or bfloat16 ones around float32 weights."""
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
        self.score.dtype = dtype

    def set_ranks(self, ranks: Ranks) -> None:
        super().set_ranks(ranks)
        if self.reference is not None:
            for tensor in self.reference.module.state_dict().values():
                ranks.first_(tensor)

    def update(self, batch: Rollout) -> Metrics:
        cfg = self.cfg
        rows, metrics = self._prepared(batch)
        rows = self.score.bunched(rows)
        found, n_steps = run_epochs(rows, self._learn, n_epochs=cfg.n_epochs, n_minibatches=cfg.n_minibatches)
        return {**metrics, **found, "train/gradient_steps": torch.tensor(float(n_steps))}

    @torch.no_grad()
    def _prepared(self, batch: Rollout) -> tuple[Rows, Metrics]:
        """What of a batch is known before the first step: old and reference log-probs, values, advantages."""
        cfg, x = self.cfg, batch
        if self.ranks.size == 1:
            x = trimmed(x)
        several = cfg.n_epochs * cfg.n_minibatches > 1 and not self.from_reference
        in_reward = cfg.kl == "reward" and cfg.needs_reference
        old = value = None
        if several or cfg.needs_critic or in_reward or cfg.needs_tracker or x.log_prob is not None:
            old, value = self.score.log_probs(x)
        ref = self.score.reference_log_probs(x) if cfg.needs_reference or self.from_reference else None
        known = x.advantage is not None
        out = AdvantageOut(x.advantage, x.target) if known else self._advantages(x, old, ref, value)  # type: ignore[arg-type]
        weight = None
        if x.log_prob is not None and old is not None:
            weight = truncated_importance(old, x.log_prob, x.mask, limit=cfg.generator_limit)
        if self.tracker is not None and old is not None:
            self.tracker.step(x, old, lambda past: self.score.log_probs(past)[0], self.ranks)
        keep = torch.ones_like(x.ended) if out.keep is None else out.keep
        mask = (x.mask if x.window is None else x.window) & keep.unsqueeze(1)
        # T-PPO: only responses that ended have returns to learn values from
        finished = x.mask & keep.unsqueeze(1) & (x.ended | (cfg.advantage != "egae")).unsqueeze(1)
        rows = Rows(
            x.prompt_ids,
            x.prompt_mask,
            x.ids,
            mask,
            out.advantage,
            target=out.target,
            returns=out.returns,
            value_old=value,
            value_mask=finished if cfg.needs_critic else None,
            log_prob_old=ref if self.from_reference else (old if several else None),
            log_prob_ref=ref if cfg.kl == "loss" else None,
            weight=weight,
        )
        return rows, {"groups/equal_share": (~x.telling()).float().mean(), "advantage/std": masked_std(out.advantage)}

    @torch.no_grad()
    def ask_again(self, batch: Rollout) -> tuple[Tensor, float] | None:
        """Which of a batch's P prompts are to be asked once more, and at which temperature; None: no one is."""
        cfg, n = self.cfg, len(batch.prompt_ids)
        if cfg.positive_share == 0.0:
            return None
        self.entropy = self.ranks.mean_(self.score.entropy(batch))
        again = torch.randperm(n)[: max(1, round(cfg.positive_share * n))]
        return again.to(batch.ids.device), float(resampling_temperature(cfg, self.entropy))

    @torch.no_grad()
    def with_again(self, batch: Rollout, again: Rollout) -> Rollout:
        """The batch with the good ones of the responses to prompts asked again, and their advantages."""
        judged = self._advantages(batch), self._advantages(again)
        return with_positives(self.cfg, batch, again, judged, self.entropy)

    def _advantages(
        self, batch: Rollout, old: Tensor | None = None, ref: Tensor | None = None, value: Tensor | None = None
    ) -> AdvantageOut:
        state = None if self.tracker is None else self.tracker.counts(batch.prompt)
        return advantages_over_ranks(self.cfg, self.ranks, batch, old=old, ref=ref, value=value, state=state)

    def _learn(self, rows: Rows) -> Metrics:
        """One optimiser step; its micro-batches and ranks divide by the counts of the whole of it."""
        n_tokens = self.ranks.mean_(rows.mask.sum().float()).clamp(min=1.0)
        n_sequences = self.ranks.mean_(rows.mask.any(-1).sum().float()).clamp(min=1.0)
        bounds = self.score.bounds(rows, self.ranks, holder_p=self.now.holder_p)
        grads: dict[str, Tensor] = {}
        found: list[Metrics] = []
        for part in self.score.micro(rows):
            log_prob, entropy, states = self.score.forward(part, learning=True)
            loss, metrics = token_loss(
                self.cfg,
                log_prob,
                log_prob.detach() if part.log_prob_old is None else part.log_prob_old,
                part.advantage,
                part.mask,
                target=part.target,
                log_prob_ref=part.log_prob_ref,
                entropy=entropy,
                weight=part.weight,
                n_tokens=n_tokens,
                n_sequences=n_sequences,
                now=self.now,
                bounds=bounds,
            )
            losses = {"policy": loss}
            if part.returns is not None:
                losses["value"], told = self._value_loss(part, states, rows)
                metrics |= told
            for name, each in losses.items():
                grad = self.opt[name].gradient(each)
                grads[name] = grads[name].add_(grad) if name in grads else grad
            found.append(metrics)
        metrics = found[0] if len(found) == 1 else summed(found)
        for name, grad in grads.items():
            grad = self.ranks.mean_(grad)
            metrics[f"{name}/grad_norm"] = grad.norm()
            self.opt[name].apply(grad)
        self.now = next_controls(self.cfg, self.now, self.ranks.averaged(metrics), progress=self.progress)
        return metrics

    def _value_loss(self, part: Any, states: Tensor, rows: Any) -> tuple[Tensor, Metrics]:
        count = self.ranks.mean_(rows.value_mask.sum().float()).clamp(min=1.0)
        values = self.score.values(states)
        return value_loss(self.cfg, values, part.value_old, part.returns, part.value_mask, n_tokens=count)

    # state

    def model_state(self) -> dict[str, Tensor]:
        """Of a PEFT model only what is trained: its base is on the disk already."""
        state = self.nets.state_dict()
        if not self.model.adapted:
            return dict(state)
        trained = {name for name, p in self.nets.named_parameters() if p.requires_grad}
        return {name: tensor for name, tensor in state.items() if name in trained}

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        self.nets.load_state_dict(state, strict=not self.model.adapted)

    def training_state(self) -> dict[str, Tensor]:
        state = super().training_state()
        state |= {f"now/{k}": torch.as_tensor(v, dtype=torch.float64) for k, v in self.now._asdict().items()}
        if self.reference is not None:
            state |= {f"reference/{k}": v for k, v in self.reference.module.state_dict().items()}
        return state if self.tracker is None else state | {f"tracker/{k}": v for k, v in self.tracker.state.items()}

    def load_reference(self, state: dict[str, Tensor]) -> None:
        """From a training state; what it is compared with, an evaluation needs too."""
        if self.reference is not None:
            self.reference.module.load_state_dict(_under("reference/", state))

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        now: dict[str, Any] = {k: state[f"now/{k}"].to(self.device, torch.float32) for k in self.now._fields}
        self.now = self.now._replace(**now | {"holder_p": float(state["now/holder_p"])})
        self.load_reference(state)
        if tracked := _under("tracker/", state):
            self.tracker = PromptTracker(len(tracked["success"]), longest=self.spec.episode_length, device=self.device)
            for name, tensor in self.tracker.state.items():
                tensor.copy_(tracked[name])


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
