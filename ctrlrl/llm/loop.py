"""The token loop: ask, let the learner answer, judge, let it learn. It knows no algorithm."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ctrlrl.llm.batches import Rollout, joined
from ctrlrl.llm.environment import TextEnv
from ctrlrl.llm.windows import Unfinished
from ctrlrl.types import Metrics

RECENT = 1000  # iterations that the episode metrics are means over at most, where nobody asks for them


class TokenLoop:
    """One `iterate` is one batch of responses and one update; `env_steps` counts responses."""

    clock = "env_steps"

    def __init__(self, learner: Any, env: TextEnv, *, total_steps: int):
        self.learner, self.env, self.total_steps = learner, env, total_steps
        self.env_steps = self.gradient_steps = 0
        self.n_prompts = env.spec.n_envs // learner.draws
        self.recent: deque[dict[str, float]] = deque(maxlen=RECENT)
        self.unfinished: Unfinished | None = None
        if learner.cfg.window is not None:
            self.unfinished = Unfinished(self.n_prompts, env.max_new_tokens, env.spec.device)
        self._weights = learner.cfg.weights(torch.empty(1, len(env.rewards.fns), device=env.spec.device))

    @property
    def done(self) -> bool:
        return self.env_steps >= self.total_steps

    def iterate(self) -> Metrics:
        learner = self.learner
        learner.set_progress(min(self.env_steps / self.total_steps, 1.0))
        begin = time.perf_counter()
        rollout = self.collect()
        middle = time.perf_counter()
        metrics = learner.ranks.averaged(learner.update(rollout))
        self.gradient_steps += int(metrics.pop("train/gradient_steps"))
        bad = [name for name, value in metrics.items() if not bool(torch.isfinite(value))]
        if bad:
            raise ValueError(
                f"training diverged: {bad[0]} is not finite after {self.env_steps} responses. Lower algo.learning_rate."
            )
        self.recent[-1] |= {"time/generate_s": middle - begin, "time/update_s": time.perf_counter() - middle}
        return metrics

    def collect(self) -> Rollout:
        """A batch of judged responses; prompts that teach nothing are replaced where the learner asks for it."""
        if self.unfinished is not None:
            batch = self.unfinished.round(self.learner, self.env, self._weights)
            self._tell(_sums(batch))
            return batch
        kept: list[Rollout] = []
        sums: list[Tensor] = []
        missing, last = self.n_prompts, self.learner.rounds - 1
        for turn in range(last + 1):
            batch = self._round(missing)
            sums.append(_sums(batch))
            if turn < last:
                telling = batch.telling()
                batch = batch.where(telling) if not bool(telling.all()) else batch
            if len(batch.reward):
                kept.append(batch)
            missing -= len(batch.reward) // self.learner.draws
            if missing == 0:
                break
        self._tell(torch.stack(sums).sum(0))  # once: another rank may have needed more rounds, or fewer
        batch = joined(kept)
        asked = self.learner.ask_again(batch)
        return batch if asked is None else self.learner.with_again(batch, self._again(batch, *asked))

    def _again(self, batch: Rollout, which: Tensor, temperature: float) -> Rollout:
        """Responses to some of a batch's prompts at another temperature; they count as responses."""
        learner, env = self.learner, self.env
        rows = batch.prompt[:: learner.draws][which].cpu()
        asked = env.asked(env.prompts, rows)
        responses = learner.respond(
            asked.ids, asked.mask, n=learner.draws, max_new_tokens=env.max_new_tokens, temperature=temperature
        )
        self.env_steps += len(responses.ids) * learner.ranks.size
        judged = env.judge(asked, responses)
        own = learner.engine is None
        return Rollout.of(rows, asked.ids, asked.mask, responses, judged, self._weights, own_log_prob=own)

    def _round(self, n_prompts: int) -> Rollout:
        learner, env = self.learner, self.env
        asked = env.ask(n_prompts, learner.prompt_weight(len(env.prompts)))
        longest = env.max_new_tokens
        responses = learner.respond(asked.ids, asked.mask, n=learner.draws, max_new_tokens=longest)
        rewards = env.judge(asked, responses)
        greedy = None
        if "greedy" in learner.needs:
            best = learner.respond(asked.ids, asked.mask, n=1, max_new_tokens=longest, greedy=True)
            greedy = (env.judge(asked, best).nan_to_num(0.0) * self._weights).sum(1)
        return Rollout.of(
            asked.rows,
            asked.ids,
            asked.mask,
            responses,
            rewards,
            self._weights,
            greedy_reward=greedy,
            own_log_prob=learner.engine is None,
        )

    def _tell(self, sums: Tensor) -> None:
        """What `_sums` gives, of all ranks."""
        ranks = self.learner.ranks
        n, reward, square, length, cut, tokens, *each = (ranks.mean_(sums) * ranks.size).tolist()
        self.env_steps += round(n)
        row = {"tokens": tokens}
        if n:
            std = max(square / n - (reward / n) ** 2, 0.0) ** 0.5
            row |= {
                "reward/mean": reward / n,
                "reward/std": std,
                "response/length": length / n,
                "response/cut": cut / n,
            }
            names = self.env.rewards.names
            for name, total, count in zip(names, each[: len(names)], each[len(names) :], strict=True):
                if len(names) > 1:
                    row[f"reward/{name}"] = total / max(count, 1.0)
        self.recent.append(row)

    def episode_metrics(self) -> dict[str, float]:
        """Means over the batches since they were last asked for."""
        if not self.recent:
            return {}
        rows = list(self.recent)
        self.recent.clear()
        tokens = sum(row.pop("tokens") for row in rows)
        seconds = sum(row.get("time/generate_s", 0.0) + row.get("time/update_s", 0.0) for row in rows)
        found = {name: [row[name] for row in rows if name in row] for row in rows for name in row}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {"time/tokens_per_s": round(tokens / max(seconds, 1e-9), 1)}

    def state_dict(self) -> dict[str, Tensor]:
        under_way = {} if self.unfinished is None else self.unfinished.state
        return {f"env/{name}": tensor for name, tensor in (self.env.state_dict() | under_way).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = {k.removeprefix("env/"): v for k, v in state.items() if k.startswith("env/")}
        self.env.load_state_dict(own)
        if self.unfinished is not None:
            for name, tensor in self.unfinished.state.items():
                tensor.copy_(own[name])


def _sums(batch: Rollout) -> Tensor:
    """Of the responses that are over: their number, rewards, squares, lengths, those cut; tokens; each reward's sum and
    number."""
    over = torch.ones_like(batch.ended) if batch.window is None else batch.ended
    told = torch.stack(
        [
            over.double(),
            batch.reward.double(),
            batch.reward.double().square(),
            batch.mask.sum(1).double(),
            (~batch.ended).double(),
        ]
    )
    parts = batch.rewards.double()
    valid = over.unsqueeze(1) & ~parts.isnan()
    written = (batch.mask if batch.window is None else batch.window).sum().double()
    each = [torch.where(valid, parts, 0.0).sum(0), valid.sum(0)]
    return torch.cat([torch.where(over, told, 0.0).sum(1), written.unsqueeze(0), *each])
