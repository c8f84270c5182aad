"""Learning from recorded responses, and how it is judged: on pairs that it has not seen. It knows no algorithm."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.llm.recorded import Recorded, pairs
from ctrlrl.llm.recording import Batches, Recording
from ctrlrl.types import Metrics

CHUNK = 10  # updates between two looks at the losses
AT_ONCE = 32  # responses that are judged together


class RecordedLoop:
    """One `iterate` is up to CHUNK updates."""

    clock = "gradient_steps"

    def __init__(self, learner: Any, texts: Recording, *, gradient_steps: int, facts: Any = None):
        """facts: what the run says of its file."""
        setting = learner.cfg.needs_sampling
        if setting is not None:
            raise ValueError(f"algo={learner.cfg.name}: {setting} needs responses of its own, and these are recorded")
        self.learner, self.env, self.facts, self.total_steps = learner, texts, facts, gradient_steps
        self.env_steps = self.gradient_steps = 0
        self.batches = Batches(learner.cfg, texts.train, texts.spec.n_envs, texts.spec.device)
        self._tokens, self._seconds = 0, 0.0

    @property
    def done(self) -> bool:
        return self.gradient_steps >= self.total_steps

    def iterate(self) -> Metrics:
        """Means over the chunk."""
        learner, begin, found = self.learner, time.perf_counter(), []
        end = min(self.gradient_steps + CHUNK, self.total_steps)
        while self.gradient_steps < end:
            learner.set_progress(self.gradient_steps / self.total_steps)
            batch = self.batches.sample()
            metrics = learner.update(batch)
            self.gradient_steps += int(metrics.pop("train/gradient_steps"))
            self._tokens += int(batch.mask.sum())
            found.append(metrics)
        means = learner.ranks.averaged({k: torch.stack([m[k] for m in found]).mean() for k in found[0]})
        bad = [name for name, value in means.items() if not bool(torch.isfinite(value))]
        if bad:
            raise ValueError(
                f"training diverged: {bad[0]} is not finite before update {self.gradient_steps}. "
                "Lower algo.learning_rate."
            )
        self._seconds += time.perf_counter() - begin
        return means

    def episode_metrics(self) -> dict[str, float]:
        """Of the time since they were last asked for."""
        speed = self._tokens * self.learner.ranks.size / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        return {"time/tokens_per_s": round(speed, 1)}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"env/{name}": tensor for name, tensor in self.batches.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.batches.load_state_dict({k.removeprefix("env/"): v for k, v in state.items() if k.startswith("env/")})


class ToldApart(NamedTuple):
    """K pairs of a better and a worse response to one prompt."""

    right: Tensor  # [K] bool: the better one gained more log-probability a token since the reference
    length: Tensor  # [K] tokens of the better one


@torch.no_grad()
def told_apart(learner: Any, data: Recorded, *, most: int, seed: int) -> ToldApart:
    """Of all pairs in the data, or of `most` random ones."""
    chosen, rejected = pairs(data.reward, data.group)
    if not len(chosen):
        raise ValueError("the responses to judge by hold no pair of different reward; raise data.holdout")
    index = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:most]
    chosen, rejected = chosen[index], rejected[index]
    rows = torch.unique(torch.cat([chosen, rejected]))
    gain = torch.zeros(len(data.reward))
    for part in rows.split(AT_ONCE):
        batch = Recorded(*(x[part].to(learner.device) for x in data))
        change = learner.score.log_probs(batch)[0] - learner.score.reference_log_probs(batch)
        length = batch.mask.sum(1)
        gain[part] = (torch.where(batch.mask, change, 0.0).sum(1) / length).cpu()
    return ToldApart(gain[chosen] > gain[rejected], data.mask[chosen].sum(1))
