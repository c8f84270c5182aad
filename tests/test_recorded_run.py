"""Recorded responses behind the command line and the Python face: folder, resume, evaluation, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl.runs import load_run
from ctrlrl.train.checkpoint import read_folder
from tests.llm.recorded_texts import arrays, sums
from tests.llm.small_models import TOKENIZER, llama
from tests.test_token_run import ctrlrl, refused

TINY = "experiment=none env.hidden_size=16 env.n_layers=1 env.n_heads=2 env.init_std=0.1 n_envs=16 eval.every=0 "
TINY += "algo.learning_rate=0.01 log.every=0 log.progress=false run.report=false device=cpu data.holdout=0.2"


def train(file: Path, *words: str) -> int:
    return ctrlrl("train", "data=file", f"data.path={file}", *TINY.split(), *words)


@pytest.mark.parametrize("method", ["topr", "dpo", "direct_advantage"])
def test_a_run_learns_to_tell_held_out_pairs_apart_and_eval_agrees(tmp_path: Path, capsys, method: str):
    run, file = tmp_path / "run", sums(tmp_path)
    assert train(file, f"algo={method}", "gradient_steps=30", "eval.episodes=100", f"run.dir={run}") == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["env"], result["data"]) == ("finished", "tokens/recorded", str(file))
    assert (result["gradient_steps"], result["eval_episodes"]) == (30, 4)
    assert result["final_return_mean"] == result["success_rate"] == 1.0
    assert len(result["data_checksum"]) == 64
    header = (run / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"gradient_steps", "loss/policy", "time/tokens_per_s", "eval/return_mean"} <= set(header)
    reference: Any = load_run(run)[1].reference.module.state_dict()
    kept = read_folder(run / "checkpoints" / "last").training
    for name, tensor in reference.items():
        assert torch.equal(tensor, kept[f"learner/reference/{name}"]), name
    assert ctrlrl("eval", f"run={run}", "episodes=3") == 0
    assert json.loads((run / "eval.json").read_text())["returns"] == [1.0] * 3
    capsys.readouterr()


def test_a_resumed_run_ends_with_the_weights_of_one_that_went_through(tmp_path: Path):
    whole, parts, file = tmp_path / "whole", tmp_path / "parts", sums(tmp_path)
    assert train(file, "algo=topr", "gradient_steps=40", f"run.dir={whole}") == 0
    # 19: in the middle of an order of prompts, which must go on
    assert train(file, "algo=topr", "gradient_steps=19", f"run.dir={parts}") == 0
    assert ctrlrl("train", f"run.resume={parts}", "gradient_steps=40") == 0
    left, right = (read_folder(run / "checkpoints" / "last") for run in (whole, parts))
    for one, other in ((left.model, right.model), (left.training, right.training)):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
    np.savez(file, **arrays())
    assert ctrlrl("train", f"run.resume={parts}", "gradient_steps=60") == 2


def test_imitation_makes_the_model_that_preferences_then_change(tmp_path: Path, capsys):
    run, file, model = tmp_path / "sft", sums(tmp_path), tmp_path / "model"
    assert train(file, "algo=sft", "gradient_steps=30", "log.every_steps=10", f"run.dir={run}") == 0
    header, *rows = (line.split(",") for line in (run / "progress.csv").read_text().splitlines())
    losses = [float(row[header.index("loss/policy")]) for row in rows]
    assert losses[-1] < 0.8 * losses[0]
    assert ctrlrl("export", f"run={run}", "format=transformers", f"out={model}") == 0
    transformers = pytest.importorskip("transformers")
    words = transformers.AutoTokenizer.from_pretrained(model)
    assert words.decode(words.encode("zwölf #### 12", add_special_tokens=False)) == "zwölf #### 12"
    best = tmp_path / "dpo"
    assert train(file, "algo=dpo", f"env.model={model}", "gradient_steps=5", f"run.dir={best}") == 0
    reference = read_folder(best / "checkpoints" / "last").training["learner/reference/lm_head.weight"]
    assert torch.equal(reference, transformers.AutoModelForCausalLM.from_pretrained(model).lm_head.weight)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("algo=topr data=file data.path=nowhere.npz", "data.path=nowhere.npz: no such file"),
        ("algo=topr data=file data.path=FILE total_steps=5", "counts gradient_steps; give that instead"),
        ("algo=topr env=tokens/recorded", "data=none: recorded responses are learned with data=file"),
        ("algo=sft env=tokens/copy", "algo=sft imitates: give data=file"),
        ("algo=ppo_tokens data=file data.path=FILE", "advantage=gae needs responses of its own"),
        ("algo=topr data=file data.path=FILE env.model=nowhere", "env.model=nowhere: no such folder"),
        ("algo=topr data=file data.path=FILE env.context=3", "fits in 3 tokens"),
        ("algo=dpo algo.group_size=4 data=file data.path=FILE", "surrogate=dpo compares pairs: group_size=2"),
        ("algo=topr data=file data.path=EMPTY", "no prompt has two recorded responses to compare"),
        ("algo=topr data=file data.path=TEXT", "TEXT.npz: not an NPZ file"),
    ],
)
def test_what_does_not_fit_ends_with_2_and_one_line(capsys, tmp_path: Path, words: str, said: str):
    sums(tmp_path).rename(tmp_path / "FILE.npz")
    np.savez(tmp_path / "EMPTY.npz", **arrays() | {"solution_question_index": np.array([0, 1, 2, 3, 4])} | six())
    (tmp_path / "TEXT.npz").write_text("question,answer")
    for name in ("FILE", "EMPTY", "TEXT"):
        words = words.replace(f"path={name}", f"path={tmp_path}/{name}.npz")
    assert said in refused(capsys, "train", "experiment=none", *words.split(), f"run.dir={tmp_path}/run")


def six() -> dict:
    """Five questions, one for each of the five solutions."""
    texts = [b"1", b"2", b"3", b"4", b"5"]
    return {"question_utf8": np.frombuffer(b"".join(texts), np.uint8), "question_offsets": np.arange(6)}


ROWS = [{"prompt": f"^{w}>", "response": r, "reward": g} for w in ("ab", "fc", "de") for r, g in ((w, 1), ("aaa", 0))]


def test_the_python_face_learns_from_rows_and_from_a_file(tmp_path: Path):
    from ctrlrl import DPO, TOPR

    agent = TOPR(
        llama(),
        TOKENIZER,
        dataset=ROWS,
        eval_dataset=ROWS[:4],
        n_envs=16,
        learning_rate=1e-2,
        max_tokens=3,
        device="cpu",
    )
    agent.learn(30)
    assert agent.num_timesteps == agent.log_history[-1]["gradient_steps"] == 30
    assert agent.evaluate().returns.tolist() == [1.0, 1.0]
    assert agent.generate("^ab>")
    agent.save_pretrained(tmp_path / "model")
    other = DPO(str(tmp_path / "model"), dataset=ROWS, n_envs=16, learning_rate=1e-2, device="cpu").learn(iterations=5)
    assert other.num_timesteps == 5
    with pytest.warns(UserWarning, match="2 responses do not fit into 16 tokens"):
        DPO(llama(context=16), TOKENIZER, dataset=[*ROWS, *LONG], device="cpu")


LONG = [{"prompt": "^" + "a" * 16, "response": "b", "reward": g} for g in (0, 1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward_fns": len}, "reward_fns: recorded responses come with their rewards"),
        ({"dataset": [{"prompt": "a", "response": "b"}]}, "dataset: no column reward"),
        ({"kl": "reward", "kl_kind": "k1", "kl_coef": 0.1}, "kl=reward needs responses of its own"),
    ],
)
def test_the_python_face_refuses_by_name(given, said):
    from ctrlrl import TOPR

    with pytest.raises(ValueError, match=said):
        TOPR(llama(), TOKENIZER, **{"dataset": ROWS, "device": "cpu", **given})


def test_imitation_takes_no_prompts():
    from ctrlrl import SFT

    with pytest.raises(ValueError, match="SFT imitates: its dataset needs prompt, response and reward"):
        SFT(llama(), TOKENIZER, dataset=["^ab>"], device="cpu")
