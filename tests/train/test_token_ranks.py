"""Two processes that teach a language model together take the steps of one with all responses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import LIMIT, environment
from token_ranks_at_work import CASES, learned

from ctrlrl.core.ranks import ALONE
from ctrlrl.train.checkpoint import read_folder

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
TINY = "experiment=none env.hidden_size=16 env.n_layers=1 env.n_heads=2 algo.learning_rate=0.01 eval.episodes=4 "
TINY += "log.progress=false run.report=false device=cpu threads=1"


def together(out: Path, *words: str) -> None:
    """Run `python *words` as two ranks."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        env = environment(RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with open(out / f"errors{rank}", "w") as errors:
            started.append(
                subprocess.Popen([sys.executable, *words], env=env, stderr=errors, stdout=subprocess.DEVNULL)
            )
    try:
        for rank, process in enumerate(started):
            assert process.wait(LIMIT) == 0, (out / f"errors{rank}").read_text()
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_two_ranks_take_the_steps_of_one_process_with_all_responses(tmp_path: Path):
    """Weights, optimiser and metrics after four steps of every method. One test: two ranks start once."""
    together(tmp_path, os.fspath(Path(__file__).with_name("token_ranks_at_work.py")), os.fspath(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case in CASES:
        first, second = (found[case] for found in ranks)
        alone = learned(case, ALONE)
        assert first.keys() == alone.keys(), case
        for name, tensor in alone.items():
            where = f"{case}, {name}"
            assert torch.equal(first[name], second[name]), f"{where}: the ranks drift apart"
            torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, at=where: f"{at}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "n_envs"), [("grpo", 16), ("tppo", 16), ("dapo", 64)])
def test_the_command_line_runs_under_torchrun(tmp_path: Path, algo: str, n_envs: int):
    """Of dapo's ranks one often needs more rounds of prompts than the other."""
    words = f"train algo={algo} env=tokens/copy env.length=1 n_envs={n_envs} iterations=4 {TINY}".split()
    together(tmp_path, "-m", "ctrlrl.cli", *words, f"run.dir={tmp_path}/run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["n_envs"]) == ("finished", n_envs)
    assert result["env_steps"] >= 64
    training = read_folder(tmp_path / "run" / "checkpoints" / "last").training
    assert not torch.equal(training["rng/cpu"], training["rank1/rng/cpu"])
