"""Are our updates the authors'? The same weights, the same rows and the same noise; then every loss of every update.

python benchmarks/offline_parity.py --algo iql --data hopper-medium.npz --peer-dir CORL --updates 60

Prints the largest relative difference of each logged loss. A difference of formula or of order shows at the first or
second update; rounding alone grows slowly, because Adam's first steps follow the sign of tiny gradients.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from offline_protocol import LOSSES, POINTS, REPOSITORY, OursSide, PeerSide, load, settings
from torch import nn


def linears(*modules: nn.Module) -> list[nn.Linear]:
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def layers(algo: str, nets: Any, theirs: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """All linear layers of both sides, in one order. A2PR's two heads of the encoder are one layer of ours."""
    if algo == "iql":
        mine = linears(nets.policy, nets.value, nets.critic, nets.target)
        return mine, linears(theirs.actor, theirs.vf, theirs.qf, theirs.q_target)
    mine = linears(nets.policy, nets.target_policy, nets.critic, nets.target_critic)
    if algo == "td3bc":
        critics = (theirs.critic_1, theirs.critic_2, theirs.critic_1_target, theirs.critic_2_target)
        return mine, linears(theirs.actor, theirs.actor_target, *critics)
    other = linears(theirs.actor, theirs.actor_target, theirs.critic, theirs.critic_target)
    if algo == "a2pr":
        vae = theirs.vae
        moments = nn.Linear(vae.mean.in_features, 2 * vae.mean.out_features)
        moments.weight.data = torch.cat((vae.mean.weight.data, vae.log_std.weight.data))
        moments.bias.data = torch.cat((vae.mean.bias.data, vae.log_std.bias.data))
        mine += linears(nets.value, nets.vae.encoder, nets.vae.moments, nets.vae.decoder)
        other += [*linears(theirs.value), vae.e1, vae.e2, moments, vae.d1, vae.d2, vae.d3]
    return mine, other


def compare(algo: str, path: Path, peer_dir: str, n: int) -> dict[str, float]:
    columns, env_id = load(path, algo)
    peer = PeerSide(REPOSITORY[algo], algo, peer_dir, columns, seed=0, **settings(algo, path.stem))
    ours = OursSide(algo, path, env_id, 0, "float32")
    for mine, theirs in zip(*layers(algo, ours.learner.nets, peer._parts.learner), strict=True):
        mine.weight.data.copy_(theirs.weight.data)
        mine.bias.data.copy_(theirs.bias.data)
    generator, worst = np.random.default_rng(0), {}
    for step in range(n):
        rows = generator.integers(0, len(columns["rewards"]), 256)
        torch.manual_seed(step)
        with mock.patch("numpy.random.randint", return_value=rows):  # what their buffers draw with
            logged = peer.update()
        torch.manual_seed(step)
        ours.learner.set_progress(step / POINTS[algo][-1])
        metrics = ours.learner.update(ours.loop.source.take(torch.from_numpy(rows)))
        for name, (key, factor) in LOSSES[algo].items():
            if name in logged and key in metrics:
                a, b = factor * metrics[key].item(), float(logged[name])
                worst[name] = max(worst.get(name, 0.0), abs(a - b) / max(abs(b), 1e-8))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=list(POINTS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="a rollout file")
    parser.add_argument("--peer-dir", required=True, help="a checkout of the authors' repository")
    parser.add_argument("--updates", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, difference in compare(options.algo, options.data, options.peer_dir, options.updates).items():
        print(f"{options.algo} {name}: at most {difference:.1e} apart over {options.updates} updates")


if __name__ == "__main__":
    main()
