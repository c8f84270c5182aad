"""Learning from judged responses: one learner for every method that a TokenConfig describes. It never sees a task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.learner import Learner
from ctrlrl.core.update import GradStep, run_epochs
from ctrlrl.functional.ratio import silenced, truncated_importance
from ctrlrl.llm.algebra import advantages, controls, next_controls, summed, token_loss, value_loss
from ctrlrl.llm.batches import Rollout, Rows, bunched, parts, trimmed
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.estimators import AdvantageOut
from ctrlrl.llm.generate import Engine, Responses, sample, sampled_elsewhere
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.llm.objectives import RATIOS, Bounds, adaptive_bounds
from ctrlrl.llm.tokens import head_log_prob, token_log_prob
from ctrlrl.llm.tracker import PromptTracker
from ctrlrl.types import EnvSpec, Metrics, tree_map


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
    ):
        """model: a causal language model of transformers, with or without PEFT, or a module tokens -> logits.

        engine: who samples instead of the model itself (`generate.sampled_elsewhere`). reference: what the KL is to;
        None: the model as it is now.
        """
        self.cfg, self.spec, self.eos, self.pad, self.engine = cfg, spec, eos, pad, engine
        self.model = LanguageModel(model, checkpoint=cfg.gradient_checkpointing)
        self.nets = nn.ModuleDict({"policy": model})
        self.opt = {"policy": self._step([p for p in model.parameters() if p.requires_grad], "policy")}
        self.reference = self._reference(reference) if cfg.needs_reference else None
        if cfg.needs_critic:
            self._add_critic(spec.device)
        self.tracker: PromptTracker | None = None
        self.now = controls(cfg, like=self.opt["policy"].flat)
        self.progress = 0.0
        self.dtype = "float32"

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

    def _add_critic(self, device: torch.device) -> None:
        """Values of the policy's own states, which it does not change; the last layer begins at zero."""
        if not self.model.split:
            raise ValueError(
                f"algo={self.cfg.name} learns values from a model's hidden states, which this one does not tell apart "
                "from its logits. Use a model of transformers, or a method without a critic."
            )
        output: Any = self.model.output
        width = output.weight.shape[1]
        last = nn.Linear(2 * width, self.cfg.value_heads)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), last).to(device)
        self.nets.add_module("value", head)
        self.opt["value"] = self._step(list(head.parameters()), "value")

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
        self, ids: Tensor, mask: Tensor | None, *, n: int, max_new_tokens: int, greedy: bool = False
    ) -> Responses:
        """`n` responses to each of the prompts [P, L]; greedy: the model's own likeliest ones."""
        options: dict[str, Any] = {"n": n, "max_new_tokens": max_new_tokens, "eos": self.eos, "pad": self.pad}
        temperature = 0.0 if greedy else self.cfg.temperature
        if self.engine is not None and not greedy:
            return sampled_elsewhere(self.engine, ids, mask, temperature=temperature, **options)
        with self._precision():
            return sample(self.model, ids, mask, temperature=temperature, **options)

    # learning

    def set_progress(self, done: float) -> None:
        self.progress = done
        if self.cfg.lr_schedule == "linear":
            for name, step in self.opt.items():
                step.learning_rate.fill_(self._rate(name) * (1.0 - done))

    def set_dtype(self, dtype: str) -> None:
        """bfloat16 products around float32 weights."""
        self.dtype = dtype

    def _precision(self) -> AbstractContextManager[Any]:
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def update(self, batch: Rollout) -> Metrics:
        rows, metrics = self._prepared(batch)
        cfg = self.cfg
        rows = self._bunched(rows)
        found, n_steps = run_epochs(rows, self._learn, n_epochs=cfg.n_epochs, n_minibatches=cfg.n_minibatches)
        return {**metrics, **found, "train/gradient_steps": torch.tensor(float(n_steps))}

    @torch.no_grad()
    def _prepared(self, batch: Rollout) -> tuple[Rows, Metrics]:
        """What of a batch is known before the first step: old and reference log-probs, values, advantages."""
        cfg, x = self.cfg, batch
        if self.ranks.size == 1:
            batch = x = trimmed(batch)
        rows = Rows(x.prompt_ids, x.prompt_mask, x.ids, x.mask, x.reward)
        several = cfg.n_epochs * cfg.n_minibatches > 1
        in_reward = cfg.kl == "reward" and cfg.needs_reference
        old = value = None
        if several or cfg.needs_critic or in_reward or cfg.needs_tracker or x.log_prob is not None:
            old, value = self._scored(rows, self.model)
        ref = self._reference_log_prob(rows) if cfg.needs_reference else None
        out = self._advantages(batch, old, ref, value)
        weight = None
        if x.log_prob is not None and old is not None:
            weight = truncated_importance(old, x.log_prob, x.mask, limit=cfg.generator_limit)
        if self.tracker is not None and old is not None:
            self.tracker.step(batch, old, lambda past: self._scored(past, self.model)[0])
        mask = x.mask if out.keep is None else x.mask & out.keep.unsqueeze(1)
        # T-PPO: only responses that ended have returns to learn values from
        finished = mask & x.ended.unsqueeze(1) if cfg.advantage == "egae" else mask
        rows = rows._replace(
            mask=mask,
            advantage=out.advantage,
            target=out.target,
            returns=out.returns,
            value_old=value,
            value_mask=finished if cfg.needs_critic else None,
            log_prob_old=old if several else None,
            log_prob_ref=ref if cfg.kl == "loss" else None,
            weight=weight,
        )
        return rows, {"groups/equal_share": (~x.telling()).float().mean(), "advantage/std": out.advantage.std()}

    def _advantages(self, batch: Rollout, old: Tensor | None, ref: Tensor | None, value: Tensor | None) -> AdvantageOut:
        """Of this rank's rows, made from those of all ranks: some estimators compare the whole batch."""
        ranks, n = self.ranks, len(batch.reward)

        def whole(x: Any) -> Any:
            if x is None or ranks.size == 1:
                return x
            stacked = ranks.stacked(x.byte()).bool() if x.dtype == torch.bool else ranks.stacked(x)
            return stacked.flatten(0, 1)

        state = None
        if self.tracker is not None:
            success, failure = self.tracker.counts(batch.prompt)
            state = (whole(success), whole(failure))
        out = advantages(
            self.cfg,
            whole(batch.rewards),
            whole(batch.group + ranks.index * n),
            whole(batch.mask),
            log_prob_old=whole(old),
            log_prob_ref=whole(ref),
            value=whole(value),
            truncated=~whole(batch.ended),
            greedy_reward=whole(batch.greedy_reward),
            state=state,
        )
        return tree_map(lambda x: x[ranks.index * n : (ranks.index + 1) * n], out) if ranks.size > 1 else out

    def _learn(self, rows: Rows) -> Metrics:
        """One optimiser step; its micro-batches and ranks divide by the counts of the whole of it."""
        n_tokens = self.ranks.mean_(rows.mask.sum().float()).clamp(min=1.0)
        n_sequences = self.ranks.mean_(rows.mask.any(-1).sum().float()).clamp(min=1.0)
        bounds = self._bounds(rows)
        grads: dict[str, Tensor] = {}
        found: list[Metrics] = []
        for part in self._micro(rows):
            log_prob, entropy, states = self._forward(part, self.model, learning=True)
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
        values = self._values(states)
        return value_loss(self.cfg, values, part.value_old, part.returns, part.value_mask, n_tokens=count)

    def _forward(self, rows: Any, model: LanguageModel, *, learning: bool = False) -> tuple[Tensor, Any, Tensor]:
        """Log-probs and entropies [N, L] of the responses, and the states [N, L, D] before each of their tokens."""
        temperature = self.cfg.temperature
        with self._precision():
            states = model.response_states(rows.prompt_ids, rows.prompt_mask, rows.ids, learning=learning)
            if model.split and type(model.output) is nn.Linear:
                weight, bias = model.output.weight, model.output.bias
                log_prob, entropy = head_log_prob(states, weight, rows.ids, bias=bias, temperature=temperature)
            else:
                log_prob, entropy = token_log_prob(model.head(states), rows.ids, temperature=temperature)
        return log_prob, entropy, states

    def _values(self, states: Tensor) -> Tensor:
        """[N, L], or [N, L, 2]."""
        return self.nets.get_submodule("value")(states.detach().float()).squeeze(-1)

    def _bunched(self, rows: Rows) -> Rows:
        n = rows.ids.shape[0]
        return bunched(rows, min(self.cfg.micro_batch_size or n, max(n // self.cfg.n_minibatches, 1)))

    def _micro(self, rows: Rows) -> Iterator[Any]:
        return parts(rows, self.cfg.micro_batch_size)

    @torch.no_grad()
    def _scored(self, rows: Any, model: LanguageModel) -> tuple[Tensor, Tensor | None]:
        """Log-probs [N, L] of responses [N, L] and, with a critic, values."""
        found, values = [], []
        told = Rows(rows.prompt_ids, rows.prompt_mask, rows.ids, rows.mask, rows.mask)
        for part in self._micro(self._bunched(told)):
            log_prob, _, states = self._forward(part, model)
            found.append(log_prob)
            if "value" in self.opt:
                values.append(self._values(states))
        return torch.cat(found), torch.cat(values) if values else None

    def _reference_log_prob(self, rows: Rows) -> Tensor:
        if self.reference is None:
            with self.model.without_adapters():
                return self._scored(rows, self.model)[0]
        whole = self._micro(self._bunched(rows))
        return torch.cat([self._forward(part, self.reference)[0] for part in whole])

    @torch.no_grad()
    def _bounds(self, rows: Rows) -> Bounds | None:
        """Those of the ratio where a method chooses them for the whole step, which its parts do not see."""
        pieces = list(self._micro(rows))
        if self.cfg.surrogate != "clip_bounds" or (self.ranks.size == 1 and len(pieces) == 1):
            return None
        seen = []
        for part in pieces:
            now = self._forward(part, self.model)[0]
            log_ratio = silenced(now, now if part.log_prob_old is None else part.log_prob_old, part.mask)
            ratio = RATIOS[self.cfg.ratio](self.cfg, log_ratio, part.mask, self.now.holder_p)
            advantage = part.advantage if part.advantage.ndim == 2 else part.advantage.unsqueeze(1)
            seen.append((ratio, advantage.expand_as(ratio), part.mask.to(ratio.dtype)))
        ratio, advantage, mask = (self.ranks.stacked(torch.cat(x)).flatten(0, 1) for x in zip(*seen, strict=True))
        return adaptive_bounds(self.cfg, ratio, advantage, mask.bool())

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

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        now: dict[str, Any] = {k: state[f"now/{k}"].to(self.device, torch.float32) for k in self.now._fields}
        self.now = self.now._replace(**now | {"holder_p": float(state["now/holder_p"])})
        if self.reference is not None:
            self.reference.module.load_state_dict(_under("reference/", state))
        if tracked := _under("tracker/", state):
            self.tracker = PromptTracker(len(tracked["success"]), longest=self.spec.episode_length, device=self.device)
            for name, tensor in self.tracker.state.items():
                tensor.copy_(tracked[name])


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
