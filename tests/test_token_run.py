"""Language models behind the command line and the Python face: run folders, resume, evaluation, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from ctrlrl.cli import main
from ctrlrl.train.checkpoint import read_folder
from tests.llm.recorded_texts import packed
from tests.llm.small_models import TOKENIZER, WORDS, Bigram, letters, llama

TINY = "env=tokens/copy experiment=none env.hidden_size=16 env.n_layers=1 env.n_heads=2 n_envs=8 "
TINY += "algo.learning_rate=0.01 eval.episodes=4 log.every=0 log.progress=false run.report=false device=cpu"


def ctrlrl(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


def train(*words: str) -> int:
    return ctrlrl("train", *TINY.split(), *words)


def refused(capsys, *words: str) -> str:
    assert ctrlrl(*words) == 2
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) <= 2
    return told


def test_a_run_writes_its_folder_and_eval_reads_it(tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert train("algo=grpo", "algo.group_size=4", "iterations=3", f"run.dir={run}") == 0
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert (result["algo"], result["env"]) == ("grpo", "tokens/copy")
    assert (result["env_steps"], result["gradient_steps"]) == (24, 3)
    assert 0.0 <= result["final_return_mean"] <= 1.0
    assert 0.0 <= result["success_rate"] <= 1.0
    header, *rows = (run / "progress.csv").read_text().splitlines()
    assert header.startswith("env_steps,gradient_steps,wall_seconds")
    assert {"reward/mean", "response/length", "time/tokens_per_s", "policy/entropy"} <= set(header.split(","))
    assert len(rows) == 3
    assert ctrlrl("eval", f"run={run}", "episodes=6") == 0
    assert len(json.loads((run / "eval.json").read_text())["returns"]) == 6
    assert "success_rate" in capsys.readouterr().out
    out = tmp_path / "model"
    assert ctrlrl("export", f"run={run}", "format=transformers", f"out={out}") == 0
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    kept = read_folder(run / "checkpoints" / "last").model["policy.lm_head.weight"]
    assert torch.equal(model.lm_head.weight, kept)


@pytest.mark.parametrize("words", ["algo=grpo algo.group_size=4", "algo=ppo_tokens algo.n_epochs=2", "algo=spo"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_went_through(tmp_path: Path, words: str):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*words.split(), "iterations=4", f"run.dir={whole}") == 0
    assert train(*words.split(), "iterations=2", f"run.dir={parts}") == 0
    assert ctrlrl("train", f"run.resume={parts}", "total_steps=32") == 0
    left, right = (read_folder(run / "checkpoints" / "last") for run in (whole, parts))
    for one, other in ((left.model, right.model), (left.training, right.training)):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("algo=grpo env=pendulum", "env=pendulum has no prompts. Use one of env=tokens/copy"),
        ("algo=ppo env=tokens/copy", "env=tokens/copy is answered by a language model: use algo=grpo"),
        ("algo=grpo env=tokens/cpoy", "unknown env 'tokens/cpoy'; did you mean tokens/copy"),
        ("algo=grpo env=tokens/copy n_envs=12", "n_envs=12 must be a multiple of algo.group_size=8"),
        ("algo=grpo env=tokens/copy algo.group_size=1", "group_size=1, but advantage=group_z compares"),
        ("algo=grpo env=tokens/copy env.model=x", "env.model=x: this task has characters for tokens"),
        ("algo=grpo env=tokens/copy env.hidden_size=18", "env.hidden_size=18 must be a multiple of 2 x env.n_heads=4"),
        ("algo=grpo env=tokens/copy compile=graph", "compile=graph is not for algo=grpo"),
        (
            "algo=grpo env=tokens/copy data=file data.path=x",
            "recorded responses are learned with data=file",
        ),
        ("algo=grpo env=tokens/gsm8k", "env=tokens/gsm8k needs env.model=FOLDER"),
        ("algo=grpo env=tokens/copy algo.reward_weights=[1,2]", "reward_weights has 2 numbers for 1 rewards"),
    ],
)
def test_what_does_not_fit_ends_with_2_and_one_line(capsys, tmp_path: Path, words: str, said: str):
    assert said in refused(capsys, "train", "experiment=none", *words.split(), f"run.dir={tmp_path}/run")


def test_a_checkpoint_on_the_disk_learns_word_problems_from_a_file(tmp_path: Path, capsys):
    np = pytest.importorskip("numpy")
    folder, file, run = tmp_path / "model", tmp_path / "problems.npz", tmp_path / "run"
    llama(context=32).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    np.savez(file, **packed(question=[f"{i}+{i}=" for i in range(40)], answer=[f"#### {2 * i}" for i in range(40)]))
    words = f"algo=grpo env=tokens/gsm8k env.model={folder} data.path={file} algo.max_tokens=4 n_envs=8 iterations=2 "
    words += "eval.episodes=2 log.progress=false run.report=false device=cpu"
    assert ctrlrl("train", *words.split(), "env.instruction=", f"run.dir={run}") == 0
    assert json.loads((run / "result.json").read_text())["eval_episodes"] == 2
    assert ctrlrl("eval", f"run={run}", "episodes=1") == 0
    capsys.readouterr()
    assert "room for 28" in refused(capsys, "train", *words.split(), f"env.instruction={'x' * 40}", f"run.dir={run}2")


def prompts():
    return [{"prompt": f"^{word}>", "answer": word} for word in WORDS]


def test_the_python_face_learns_generates_evaluates_and_saves(tmp_path: Path):
    from ctrlrl import GBPO

    seen = []
    agent = GBPO(
        llama(), TOKENIZER, [letters, lambda completions, **_: [0.0] * len(completions)], prompts(), group_size=4,
        n_envs=16, max_tokens=3, learning_rate=1e-2, seed=0, device="cpu",
    )  # fmt: skip
    before = agent.learner.opt["policy"].flat.detach().clone()
    agent.learn(iterations=3, callback=lambda row: seen.append(row["env_steps"]) or len(seen) < 2)
    assert seen == [16, 32]
    assert agent.num_timesteps == 32
    assert "reward/letters" in agent.log_history[-1]
    assert not torch.equal(before, agent.learner.opt["policy"].flat)
    one = agent.generate("^ab>")
    assert agent.generate(["^ab>", "^fc>"], n=2)[:2] == [*one, *one]
    assert agent.evaluate(5).returns.shape == (5,)
    agent.save_pretrained(tmp_path)
    transformers = pytest.importorskip("transformers")
    opened = GBPO(str(tmp_path), None, letters, prompts(), max_tokens=3, device="cpu")
    assert torch.equal(opened.model.lm_head.weight, agent.model.lm_head.weight)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("ab")["input_ids"] == TOKENIZER("ab")["input_ids"]


def test_any_module_of_tokens_to_logits_learns():
    from ctrlrl import GRPO

    model = Bigram()
    torch.nn.init.zeros_(model.table.weight)
    agent = GRPO(
        model, TOKENIZER, lambda completions, **_: [float(c.count("a")) for c in completions], ["^>"], group_size=16,
        n_envs=64, max_tokens=1, learning_rate=0.1, kl="none", kl_coef=0.0, seed=0, device="cpu",
    )  # fmt: skip
    agent.learn(iterations=30)
    assert agent.generate("^>") == ["a"]
    with pytest.raises(ValueError, match="is not of transformers"):
        agent.save_pretrained("nowhere")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"learning_rat": 1.0}, TypeError, "did you mean learning_rate"),
        ({"dataset": None}, ValueError, "needs dataset"),
        ({"n_envs": 9}, ValueError, "n_envs=9 must be a multiple"),
        ({"model": 3}, TypeError, "model must be a torch module"),
        ({"tokenizer": None}, ValueError, "tokenizer: give that of the model"),
        ({"max_tokens": 30}, ValueError, "dataset: prompt 0 has 4 tokens, .* room for 2"),
        ({"reward_fns": []}, ValueError, "reward_fns: give at least one"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "reward_weights has 2 numbers for 1 rewards"),
    ],
)
def test_the_python_face_refuses_by_name(changes, error, said):
    from ctrlrl import GRPO

    given = {"model": llama(), "tokenizer": TOKENIZER, "reward_fns": letters, "dataset": prompts(), "max_tokens": 3}
    with pytest.raises(error, match=said):
        GRPO(**{**given, "device": "cpu", **changes})


def test_learn_takes_one_length():
    from ctrlrl import GRPO

    agent = GRPO(llama(), TOKENIZER, letters, prompts(), max_tokens=3, device="cpu")
    with pytest.raises(ValueError, match="either total_timesteps"):
        agent.learn()
