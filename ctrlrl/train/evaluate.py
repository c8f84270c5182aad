"""Evaluate a policy on whole episodes, the same number from every environment: short episodes weigh no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.types import VecEnv, begins, forgetting


class Evaluation(NamedTuple):
    returns: Tensor  # [episodes] float64, undiscounted; [episodes, M] of several objectives
    lengths: Tensor  # [episodes] int64
    success: Tensor | None  # [episodes] 0 or 1, where the environment reports it
    held_out_action_error: Tensor | None = None  # 0-dim, mean square over rows that were held out from learning
    held_out_loss: Tensor | None = None  # 0-dim, what training lowers, there
    front: dict[str, Tensor] | None = None  # of a set of policies: their mean return vectors "returns" [n, M] and what
    # these are worth together, 0-dim: "hypervolume", "expected_utility", "sparsity"

    @classmethod
    def nothing(cls) -> Evaluation:
        """Of no episode."""
        return cls(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64), None)

    def tensors(self) -> dict[str, Tensor]:
        """All there is, under the names that a checkpoint keeps."""
        own = {k: v for k, v in self._asdict().items() if k != "front" and v is not None}
        return own | {f"front/{k}": v for k, v in (self.front or {}).items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Evaluation:
        """From what `tensors` gave."""
        own: dict[str, Any] = {"success": None} | {k: v for k, v in tensors.items() if not k.startswith("front/")}
        front = {k.removeprefix("front/"): v for k, v in tensors.items() if k.startswith("front/")}
        return cls(**own, front=front or None)


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """A generator of its own, so that evaluating more often never changes training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def evaluate(
    act: Callable[[Tensor], Tensor],
    env: VecEnv,
    *,
    episodes: int,
    seed: int,
    on_step: Callable[[], None] | None = None,
    max_steps: int = 1_000_000,
) -> Evaluation:
    """Run `episodes` whole episodes from fresh resets; the environment must not stagger its clocks.

    act: observations [B, O] to actions; see `forgetting`. episodes is split over the lanes as evenly as it goes.
    on_step: called before every step, e.g. to record a frame.
    """
    if episodes < 1:
        raise ValueError(f"evaluation: episodes must be at least 1, got {episodes}")
    n = env.spec.n_envs
    quota = torch.tensor([(episodes + i) // n for i in range(n)])
    finished = torch.zeros(n, dtype=torch.int64)
    m = env.spec.reward_dim
    running = torch.zeros(n, dtype=torch.float64) if m == 1 else torch.zeros(n, m, dtype=torch.float64)
    length = torch.zeros(n, dtype=torch.int64)
    rows: list[tuple[int, int, Any, int, float]] = []  # lane, nth, return, length, success
    forget = forgetting(act)
    with forked_rng(seed):
        obs = env.reset(seed)
        forget(None)
        for _ in range(max_steps):
            if on_step is not None:
                on_step()
            step = env.step(act(obs))
            obs = step.obs
            valid = step.extras["mask"].cpu() if "mask" in step.extras else torch.ones(n, dtype=torch.bool)
            running += step.reward.double().cpu()
            length += valid
            done, begun = (step.terminated | step.truncated).cpu(), begins(step).cpu()
            if begun.any():
                forget(begun)
            if not done.any():
                continue
            for lane in done.nonzero().squeeze(1).tolist():
                if finished[lane] < quota[lane]:
                    told = float(step.extras["success"][lane]) if "success" in step.extras else float("nan")
                    rows.append((lane, int(finished[lane]), running[lane].tolist(), int(length[lane]), told))
                finished[lane] += 1
            running[done], length[done] = 0.0, 0
            if bool((finished >= quota).all()):
                break
        else:
            raise ValueError(
                f"evaluation: no lane finished {episodes} episodes within {max_steps} steps; set a time limit."
            )
    getattr(env, "check", lambda: None)()
    rows.sort()
    success = torch.tensor([row[4] for row in rows])
    return Evaluation(
        torch.tensor([row[2] for row in rows], dtype=torch.float64),
        torch.tensor([row[3] for row in rows]),
        # who tells of successes alone says nothing of the others
        None if success.isnan().all() else success.nan_to_num(0.0),
    )
