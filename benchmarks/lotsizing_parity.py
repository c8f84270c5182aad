"""Is an update of PDPPO the authors' (github.com/leokan92/pdppo)? The same weights and rollouts, then both update.

python benchmarks/lotsizing_parity.py PEER/code/Lot-sizing [--updates 8]

Before every update ours takes their weights, and all Adams start anew. 40 epochs grow a rounding: where it moves a
ratio over its clip, a gradient jumps. So a third learner updates beside them, theirs with its last layer's weights
changed by 1e-7 of themselves, and says how far apart two runs of one code come.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lotsizing_peer import UPDATE, make_theirs
from torch import Tensor, nn

from ctrlrl.envs.inventory import HORIZON, LotSizing
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.loops import make_learner
from ctrlrl.settings import train_config, typed
from ctrlrl.types import Rollout

SIZE = "15x5"
CHANGE = 1e-7


def linears(*modules: nn.Module) -> list[nn.Linear]:
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def anew(learner: Any) -> None:
    """Their three Adams without memory."""
    for name in ("actor", "critic", "critic_post"):
        rate = getattr(learner, f"optimizer_{name}").param_groups[0]["lr"]
        setattr(learner, f"optimizer_{name}", torch.optim.Adam(getattr(learner.policy, name).parameters(), lr=rate))


def collect(env: Any, learner: Any) -> Rollout:
    """Four of their episodes, in their buffer and as a rollout of ours [100, 4]."""
    for _ in range(UPDATE // HORIZON):
        state = env.reset()
        for _ in range(HORIZON):
            action, post_reward = learner.select_action(state, 1)
            state, reward, done, _ = env.step(action)
            learner.buffer.rewards.append(reward - post_reward.item())
            learner.buffer.is_terminals.append(done)

    def lanes(column: list[Any]) -> Tensor:
        rows = torch.stack([torch.as_tensor(x) for x in column[-UPDATE:]]).reshape(UPDATE // HORIZON, HORIZON, -1)
        return rows.transpose(0, 1).contiguous()

    kept = learner.buffer
    value, r_pre, r_x = (lanes(x).squeeze(-1).float() for x in (kept.state_values, kept.rewards, kept.post_rewards))
    ends = lanes(kept.is_terminals).squeeze(-1)
    extras = {"post_obs": lanes(kept.post_states), "reward_split": torch.stack((r_x, r_pre), -1)}
    return Rollout(
        lanes(kept.states), lanes(kept.actions), lanes(kept.logprobs), value, torch.zeros_like(value),
        r_x + r_pre, ends, torch.zeros_like(ends), extras,
    )  # fmt: skip


@torch.no_grad()
def outputs(policy: Any, obs: Tensor, post_obs: Tensor) -> tuple[Tensor, Tensor]:
    """Their probabilities [N, machines, options] and values [2, N]."""
    nvec = policy.action_dim.nvec
    logits = policy.actor(torch.relu(policy.fc2(torch.relu(policy.fc1(obs)))))
    probability = logits.view(-1, len(nvec), int(nvec[0])).softmax(-1)
    return probability, torch.stack((policy.critic(obs), policy.critic_post(post_obs))).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--updates", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    env, peer = make_theirs(options.peer, SIZE)
    cfg = typed(train_config(["algo=pdppo", "env=lotsizing", "algo.train_trunk=false"]))
    ours: Any = make_learner(cfg.algo, BatchedSim(LotSizing(), cfg.n_envs, seed=0).spec)
    theirs = linears(peer.policy.fc1, peer.policy.fc2, peer.policy.actor, peer.policy.critic, peer.policy.critic_post)
    for n in range(1, options.updates + 1):
        rollout = collect(env, peer)
        for mine, layer in zip(linears(ours.policy, ours.critic, ours.post_critic), theirs, strict=True):
            mine.weight.data.copy_(layer.weight.data)
            mine.bias.data.copy_(layer.bias.data)
        for step in ours.opt.values():
            for name, moment in step.state_dict().items():
                if name != "learning_rate":
                    moment.zero_()
        anew(peer)
        twin = copy.deepcopy(peer)
        anew(twin)
        weight = twin.policy.actor.weight
        weight.data *= 1.0 + CHANGE * torch.randn_like(weight)
        ours.update(rollout)
        for learner in (peer, twin):
            learner.update()
        rows = rollout.obs.flatten(0, 1), rollout.extras["post_obs"].flatten(0, 1)
        (probability, value), (other, _) = outputs(peer.policy, *rows), outputs(twin.policy, *rows)
        with torch.no_grad():
            mine, own = (
                ours.policy.logits(rows[0]).softmax(-1),
                torch.stack((ours.critic(rows[0]), ours.post_critic(rows[1]))),
            )
        print(
            f"update {n}, {len(peer.buffer.states)} rows: values {(own - value).abs().max():.0e} apart (up to "
            f"{value.abs().max():.0f}); probabilities ours {(mine - probability).abs().max():.0e}, theirs changed by "
            f"{CHANGE:.0e} {(other - probability).abs().max():.0e} apart",
            flush=True,
        )
        if n > 5:  # their loop drops the oldest rollout after an update, from the sixth on
            peer.buffer.clear(UPDATE)


if __name__ == "__main__":
    main()
