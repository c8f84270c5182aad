"""Seconds of a C-MORL run here, beside the released code's structure on the same machine, with the same steps.

    python benchmarks/front_structure.py env=mo_hopper_2obj id=mo-hopper-2obj-v5 pairs=3 out=rows.jsonl

The peer has the structure of the authors' code, not its packages: one policy after the other, eight processes that
each step one mo-gymnasium environment behind a pipe, a float64 network, evaluation episode by episode. One update of
a stage-one and one of a stage-two team, with their evaluations, are timed, and one of the peer for one policy;
the run's seconds follow from the number of updates. JSON lines, a row a pair, then the median ratio.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from ctrlrl.algos.cmorl import CMORLLearner
from ctrlrl.loops import training_loop
from ctrlrl.settings import train_config, typed
from ctrlrl.types import Rollout

PROCESSES = 8


def work(pipe: Any, task: str, seed: int) -> None:
    import mo_gymnasium

    env = mo_gymnasium.make(task)
    pipe.send(env.reset(seed=seed)[0])
    while (action := pipe.recv()) is not None:
        obs, reward, terminated, truncated, _ = env.step(action)
        last = obs
        if terminated or truncated:
            obs = env.reset()[0]
        pipe.send((obs, last, reward, terminated, truncated))


class Processes:
    """Eight environments, one a process."""

    def __init__(self, task: str):
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(PROCESSES)]
        self.pipes = [here for here, _ in pairs]
        self.all = [context.Process(target=work, args=(p, task, i), daemon=True) for i, (_, p) in enumerate(pairs)]
        for process in self.all:
            process.start()
        self.obs = np.stack([pipe.recv() for pipe in self.pipes])

    def step(self, action: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        for pipe, a in zip(self.pipes, action, strict=True):
            pipe.send(a)
        columns = [np.stack(x) for x in zip(*(pipe.recv() for pipe in self.pipes), strict=True)]
        self.obs = columns[0]
        return columns

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)


def peer_update(team: Any, envs: Processes, n_steps: int) -> None:
    """A rollout and an update of one policy in float64."""
    rows = []
    for _ in range(n_steps):
        obs = torch.as_tensor(envs.obs, dtype=torch.float64)
        out, value = team.act(obs), team.value(obs)
        _, last, reward, terminated, truncated = envs.step(out.action.clamp(-1.0, 1.0).numpy())
        following = team.value(torch.as_tensor(last, dtype=torch.float64))
        told = (reward, terminated, truncated)
        rows.append((obs, out.action, out.log_prob, value, following, *(torch.as_tensor(x) for x in told)))
    team.update(Rollout(*(torch.stack(column) for column in zip(*rows, strict=True)), {}))


def peer_evaluation(team: Any, env: Any, episodes: int, max_steps: int) -> None:
    for _ in range(episodes):
        obs, _ = env.reset()
        for _ in range(max_steps):
            action = team.act(torch.as_tensor(obs, dtype=torch.float64)[None], deterministic=True).action
            obs, _, terminated, truncated, _ = env.step(action[0].clamp(-1.0, 1.0).numpy())
            if terminated or truncated:
                break


def seconds(f: Any, *args: Any) -> float:
    begin = time.perf_counter()
    f(*args)
    return time.perf_counter() - begin


def main(words: list[str]) -> None:
    import mo_gymnasium

    options = {"env": "mo_hopper_2obj", "id": "mo-hopper-2obj-v5", "pairs": "3", "out": ""}
    options |= dict(word.split("=", 1) for word in words)
    torch.set_num_threads(1)
    cfg = typed(train_config(["algo=cmorl", f"env={options['env']}", "device=cpu"]))
    loop: Any = training_loop(cfg)
    learner: CMORLLearner = loop.learner
    algo, m = cfg.algo, loop.spec.reward_dim
    first, *later = learner.rounds
    n_first, n_later = len(learner.grid), algo.n_extended * m
    evaluations = first // algo.eval_every + 1

    def ours(team: Any) -> tuple[float, float]:
        learner.team = team
        round_ = loop._round(team.size)
        learn = seconds(lambda: team.update(round_.collect()))
        return learn, seconds(lambda: loop.returns(team, episodes=algo.eval_episodes, seed=0))

    teams = []
    for size in (n_first, n_later):
        teams.append(learner.make_team(size))
        teams[-1].weight.fill_(1.0 / m)
        ours(teams[-1])  # warm
    alone = learner.make_team(1)
    alone.nets.double()
    alone = type(alone)(algo, alone.nets, torch.full((1, m), 1.0 / m, dtype=torch.float64))
    envs, judge = Processes(options["id"]), mo_gymnasium.make(options["id"])
    peer_update(alone, envs, 16)
    rows = []
    for pair in range(int(options["pairs"])):
        (learn_1, judge_1), (learn_2, judge_2) = ours(teams[0]), ours(teams[1])
        mine = first * learn_1 + evaluations * judge_1 + sum(later) * (learn_2 + judge_2)
        learn = seconds(peer_update, alone, envs, algo.n_steps)
        judged = seconds(peer_evaluation, alone, judge, algo.eval_episodes, algo.eval_max_steps)
        peer = n_first * (first * learn + evaluations * judged) + n_later * sum(later) * (learn + judged)
        rows.append({"kind": "front", "env": options["env"], "pair": pair, "seconds": mine, "peer_seconds": peer})
        rows[-1] |= {"peer": "released structure", "ratio": peer / mine, "steps": cfg.total_steps}
    envs.close()
    rows.append({"kind": "front", "env": options["env"], "ratio": statistics.median(r["ratio"] for r in rows)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    sys.stdout.write(text)
    if options["out"]:
        with open(options["out"], "a") as file:
            file.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
