"""The closed loop of a policy that predicts several actions at once: what it remembers between two steps.

Everything is batched over B environments and stays on the device. While all environments are at the same place of
their plans, the host knows it and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.samplers import shifted
from ctrlrl.types import Window

Plan = Callable[[Tensor], Tensor]  # the last observations [n, n_obs, O] -> a plan [n, horizon, A]
Follow = Callable[[Tensor, Tensor], Tensor]  # the same and a guess [n, horizon, A] -> a plan


class Memory(NamedTuple):
    obs: Tensor  # [B, n_obs, O] the last observations, the present one last
    plan: Tensor  # [B, horizon, A] the last prediction
    used: Tensor  # [B] int64: actions of it that were executed
    phase: int  # the same as one number where the host knows that it is one, else -1


def advance(
    memory: Memory | None, obs: Tensor, begins: Tensor | None, window: Window, plan: Plan, follow: Follow | None = None
) -> tuple[Tensor, Memory]:
    """The action [B, A] for the present observations [B, O], and the memory of it; one step of every environment.

    memory: None at the first step of all. begins: [B] bool, the environments whose episode begins with `obs`; None: no
    one's. An observation that begins an episode stands for those before it, and calls for a new plan; so does a plan
    of which n_actions were executed. follow: makes a plan out of the one before, `shifted`; n_actions is then 1.
    """
    n_obs, _, n_actions = window
    if memory is None:
        seen = obs.unsqueeze(1).expand(-1, n_obs, -1)
        return _act(Memory(seen, plan(seen), torch.zeros(obs.shape[0], dtype=torch.int64, device=obs.device), 0), n_obs)
    if len(memory.obs) != len(obs):
        raise ValueError(f"the policy's state is of {len(memory.obs)} environments, got {len(obs)} observations")
    seen = torch.cat((memory.obs[:, 1:], obs.unsqueeze(1)), 1)
    used, phase, chunk = memory.used, memory.phase, memory.plan
    if begins is not None:
        seen = torch.where(begins.view(-1, 1, 1), obs.unsqueeze(1), seen)
        used, phase = torch.where(begins, n_actions, used), -1
    if follow is not None:
        chunk = follow(seen, shifted(chunk))
        used, phase = torch.zeros_like(used), 0
        due = None if begins is None else begins.nonzero().squeeze(1)
    elif phase == n_actions:
        chunk, used, phase, due = plan(seen), torch.zeros_like(used), 0, None
    else:
        due = (used >= n_actions).nonzero().squeeze(1) if phase < 0 else None
    if due is not None and len(due):
        chunk = chunk.index_copy(0, due, plan(seen[due]))
        used = used.index_fill(0, due, 0)
        phase = 0 if len(due) == len(obs) else phase
    return _act(Memory(seen, chunk, used, phase), n_obs)


def _act(memory: Memory, n_obs: int) -> tuple[Tensor, Memory]:
    if memory.phase >= 0:
        action = memory.plan[:, n_obs - 1 + memory.phase]
    else:
        lanes = torch.arange(len(memory.used), device=memory.used.device)
        action = memory.plan[lanes, n_obs - 1 + memory.used]
    return action, memory._replace(used=memory.used + 1, phase=memory.phase + (memory.phase >= 0))
