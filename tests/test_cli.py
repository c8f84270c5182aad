"""The command line in this process: exit codes, one-line errors, run folders, resume, evaluation."""

import csv
import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ctrlrl.cli import main
from ctrlrl.settings import presets
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.on_policy import OnPolicyLoop

TINY = (
    "algo=ppo env=pendulum experiment=none n_envs=4 total_steps=256 algo.n_steps=32 algo.n_minibatches=2 "
    "algo.n_epochs=2 algo.hidden=[8] eval.episodes=2 eval.every=128 log.every=0 log.progress=false "
    "run.report=false device=cpu"
).split()


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def ctrlrl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CTRLRL_TRACEBACK", raising=False)

    def call(*words: str) -> Said:
        with pytest.raises(SystemExit) as info:
            main(words)
        out, err = capsys.readouterr()
        return Said(info.value.code if isinstance(info.value.code, int) else 0, out, err)

    return call


def refused(said: Said, *words: str, code: int = 2) -> None:
    assert said.code == code, said
    lines = said.err.strip().splitlines()
    assert 1 <= len(lines) <= 2, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err


# the run folder ------------------------------------------------------------------------------------------------------


def test_train_writes_the_run_folder_and_a_summary(ctrlrl, tmp_path):
    said = ctrlrl("train", *TINY, "run.dir=runs/a", "seed=3")
    assert said.code == 0, said.err
    folder = tmp_path / "runs" / "a"
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.yaml", "overrides.txt", "progress.csv", "checkpoints", "result.json"}
    for name in ("last", "best"):
        files = {p.name for p in (folder / "checkpoints" / name).iterdir()}
        assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert (folder / "overrides.txt").read_text().split() == [*TINY, "run.dir=runs/a", "seed=3"]
    with open(folder / "progress.csv", newline="") as f:
        rows = list(csv.reader(f))
    assert rows[0][:3] == ["env_steps", "gradient_steps", "wall_seconds"]
    assert [r[0] for r in rows[1:]] == ["128", "256"]
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["env_steps"], result["seed"]) == ("finished", 256, 3)
    for word in ("final_return_mean", "steps_per_second", "runs/a"):
        assert word in said.out


def test_the_folders_of_two_runs_without_a_name_differ(ctrlrl, tmp_path):
    ctrlrl("train", *TINY, "total_steps=128")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("ppo-pendulum-s0-")


def same_weights(a: Path, b: Path) -> bool:
    first, second = (read_folder(p / "checkpoints" / "last").model for p in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_config_yaml_and_overrides_reproduce_the_run_bit_for_bit(ctrlrl, tmp_path):
    from ctrlrl import runs, settings

    ctrlrl("train", *TINY, "run.dir=a", "seed=5")
    typed_again = (tmp_path / "a" / "overrides.txt").read_text().split()
    ctrlrl("train", *typed_again, "run.dir=b")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    raw = settings.load_config(tmp_path / "a" / "config.yaml", ["run.dir=c"])
    runs.start(raw, [])[0].train()
    assert same_weights(tmp_path / "a", tmp_path / "c")
    saved = [OmegaConf.to_container(OmegaConf.load(tmp_path / n / "config.yaml")) for n in "ac"]
    for config in saved:
        config["run"].pop("dir")  # type: ignore[union-attr,call-overload,index]
    assert saved[0] == saved[1]
    ctrlrl("train", *TINY, "run.dir=d", "seed=6")
    assert not same_weights(tmp_path / "a", tmp_path / "d")


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    inner, count = OnPolicyLoop.iterate, [0]

    def iterate(self: OnPolicyLoop) -> Any:
        count[0] += 1
        if count[0] == after:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self)

    monkeypatch.setattr(OnPolicyLoop, "iterate", iterate)


def test_ctrl_c_gives_130_and_resume_ends_where_the_uninterrupted_run_does(ctrlrl, tmp_path, monkeypatch):
    ctrlrl("train", *TINY, "total_steps=512", "run.dir=whole")
    interrupt(monkeypatch, 2)
    said = ctrlrl("train", *TINY, "total_steps=512", "run.dir=parts")
    assert said.code == 130
    assert "run.resume=parts" in said.err
    assert json.loads(Path("parts/result.json").read_text())["status"] == "interrupted"
    said = ctrlrl("train", "run.resume=parts")
    assert said.code == 0, said.err
    assert json.loads(Path("parts/result.json").read_text())["status"] == "finished"
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_resume_takes_a_longer_budget(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    assert ctrlrl("train", "run.resume=a", "total_steps=512").code == 0
    result = json.loads(Path("a/result.json").read_text())
    assert (result["env_steps"], result["status"]) == (512, "finished")


def test_a_resumed_run_takes_settings_alone_and_keeps_what_its_results_name(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    before = Path("a/config.yaml").read_bytes()
    refused(ctrlrl("train", "run.resume=a", "total_steps"), "expected key=value, got 'total_steps'")
    refused(ctrlrl("eval", "run=a", "eval.every"), "expected key=value, got 'eval.every'")
    refused(ctrlrl("train", "run.resume=a", "seed=5", "total_steps=512"), "seed=5", "the run began with 0")
    refused(
        ctrlrl("train", "run.resume=a", "dtype=bfloat16", "total_steps=512"), "dtype=bfloat16", "began with float32"
    )
    assert Path("a/config.yaml").read_bytes() == before
    assert ctrlrl("train", "run.resume=a", "seed=0", "+total_steps=512").code == 0


def test_eval_writes_eval_json_and_a_table(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    said = ctrlrl("eval", "run=a", "episodes=3", "seed=7")
    assert said.code == 0, said.err
    found = json.loads(Path("a/eval.json").read_text())
    assert len(found["returns"]) == len(found["lengths"]) == 3
    assert found["return_mean"] == pytest.approx(np.mean(found["returns"]))
    assert (found["episodes"], found["seed"], found["lengths"]) == (3, 7, [200, 200, 200])
    assert "return_mean" in said.out
    ctrlrl("eval", "run=a", "episodes=3", "seed=7")
    assert json.loads(Path("a/eval.json").read_text()) == found
    ctrlrl("eval", "run=a", "episodes=3", "seed=7", "checkpoint=best")
    assert json.loads(Path("a/eval.json").read_text())["checkpoint"] == "best"


def test_the_final_evaluation_of_a_run_is_what_eval_finds_with_its_seed(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    ctrlrl("eval", "run=a", "episodes=2", "seed=10000")
    final = json.loads(Path("a/result.json").read_text())["final_return_mean"]
    assert json.loads(Path("a/eval.json").read_text())["return_mean"] == pytest.approx(final, abs=1e-9)


def test_train_ends_with_a_report_and_a_missing_renderer_is_one_line(ctrlrl, tmp_path):
    pytest.importorskip("matplotlib")
    said = ctrlrl("train", *TINY, "env=pointmass", "run.report=true", "run.dir=a")
    assert said.code == 0, said.err
    assert "env=pointmass has no renderer; no video was made" in said.err.splitlines()
    assert (tmp_path / "a" / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a" / "report.html").read_text()
    assert "pointmass" in page
    said = ctrlrl("report", "a", "out=both.html")
    assert (said.code, said.out.strip()) == (0, "both.html")
    refused(ctrlrl("report", "nowhere"), "nowhere")


# help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["info", "check", "convert", "collect"])
def test_every_action_of_data_tells_its_keys(ctrlrl, action):
    said = ctrlrl("data", action, "--help")
    assert said.code == 0
    own = next(line for line in said.out.splitlines() if line.startswith(f"keys of {action} "))
    assert ("steps=null" if action == "collect" else "data.id=null") in own


def test_cfg_of_a_resumed_run_is_that_runs(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    said = ctrlrl("train", "run.resume=a", "total_steps=512", "--cfg", "job")
    found, was = OmegaConf.create(said.out), OmegaConf.load("a/config.yaml")
    assert (found.total_steps, found.algo, found.env) == (512, was.algo, was.env)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["train", "--help"]])
def test_help_lists_what_can_be_typed(ctrlrl, words):
    said = ctrlrl(*words)
    assert said.code == 0
    for verb in ("train", "eval", "report", "bench", "doctor"):
        assert verb in said.out
    if words[:1] == ["train"]:
        for name in ("ppo", "bpo", "halfcheetah", "pendulum", "ppo/halfcheetah"):
            assert name in said.out


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("eval", "episodes=20"),
        ("eval", "compose.episodes=50"),
        ("sweep", "data_dir=data"),
        ("export", "format=null"),
        ("report", "out=report.html"),
        ("bench", "pairs=5"),
    ],
)
def test_every_verb_tells_its_keys(ctrlrl, verb, keys):
    said = ctrlrl(verb, "--help")
    assert said.code == 0
    assert keys in said.out.partition(f"keys of {verb}:")[2]


def test_an_id_alone_means_that_gymnasium_environment(ctrlrl, tmp_path):
    for words in ([], ["experiment=none"]):
        said = ctrlrl("train", *words, "env.id=CartPole-v1", "--cfg", "job")
        cfg = OmegaConf.create(said.out)
        assert (cfg.env.name, cfg.env.id) == ("gym", "CartPole-v1")


def test_a_resumed_run_keeps_what_its_buffer_was_made_with(ctrlrl):
    words = ["algo=rlpd", "env=hopper-v4", "data=file", "data.path=hopper-medium.npz", "run.dir=a", "total_steps=40"]
    words += ["algo.hidden=[8]", "algo.n_critics=2", "algo.batch_size=8", "algo.learning_starts=20", "n_envs=2"]
    words += ["experiment=none", "algo.utd=0.1", "eval.episodes=1", "eval.every=0", "run.report=false"]
    assert ctrlrl("train", *words).code == 0
    for word in ("data.reward_shift=-1", "algo.offline_share=null", "algo.n_steps=2", "env.gravity_scale=2"):
        refused(ctrlrl("train", "run.resume=a", word, "total_steps=60"), word.partition("=")[0], "begin a new run.dir")
    assert ctrlrl("train", "run.resume=a", "algo.learning_rate=1e-4", "total_steps=60").code == 0


def test_returns_to_go_in_a_buffer_keep_their_discount(ctrlrl):
    words = ["algo=calql", "env=hopper-v4", "data=file", "data.path=hopper-medium.npz", "run.dir=a", "total_steps=4"]
    words += ["gradient_steps=1", "algo.hidden=[4]", "algo.batch_size=4", "n_envs=2", "experiment=none"]
    assert ctrlrl("train", *words, "eval.episodes=1", "eval.every=0", "run.report=false").code == 0
    refused(ctrlrl("train", "run.resume=a", "algo.gamma=0.9", "total_steps=8"), "algo.gamma=0.9", "made with 0.99")


def test_a_resumed_run_learns_at_the_rate_that_is_asked_for(ctrlrl, tmp_path):
    words = ["algo=sac", "env=pendulum", "experiment=none", "n_envs=1", "total_steps=40", "algo.learning_starts=10"]
    words += ["algo.hidden=[4]", "algo.batch_size=8", "eval.episodes=1", "eval.every=0", "log.progress=false"]
    assert ctrlrl("train", *words, "run.dir=a", "run.report=false").code == 0
    assert ctrlrl("train", "run.resume=a", "algo.learning_rate=1e-9", "total_steps=60").code == 0
    state = read_folder(tmp_path / "a" / "checkpoints" / "last").training
    rates = [value.item() for name, value in state.items() if name.endswith("/learning_rate")]
    assert len(rates) == 3
    assert rates == pytest.approx([1e-9] * 3)


def test_a_bench_row_that_cannot_be_kept_is_found_before_measuring(ctrlrl, tmp_path):
    (tmp_path / "file").write_text("")
    said = ctrlrl("bench", "throughput", "env=pendulum", "n_envs=2", "pairs=1", "seconds=5", "out=file/rows.jsonl")
    assert said.code == 2
    assert "file" in said.err
    assert "pair 1" not in said.err


@pytest.mark.parametrize(("trouble", "code"), [(errno.ENOENT, 2), (errno.EACCES, 2), (errno.ENOSPC, 1)])
def test_an_output_that_cannot_be_written_was_typed_wrong_and_a_full_disk_was_not(ctrlrl, monkeypatch, trouble, code):
    def refuse(*_: Any) -> None:
        raise OSError(trouble, os.strerror(trouble), "nope/r.html")

    monkeypatch.setattr("ctrlrl.report.markdown.write_report", refuse)
    refused(ctrlrl("report", "a", "out=nope/r.html"), f"nope/r.html: {os.strerror(trouble)}", code=code)


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"]], ids=" ".join)
def test_cfg_job_prints_a_config_that_composes_and_starts_nothing(ctrlrl, tmp_path, option):
    said = ctrlrl("train", "algo=bpo", *option, "env=cartpole", "algo.gamma=0.5")
    assert said.code == 0, said.err
    cfg = OmegaConf.create(said.out)
    assert (cfg.algo.name, cfg.env.name, cfg.algo.gamma) == ("bpo", "cartpole", 0.5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--cfg"], "--cfg: --cfg job prints the configuration; there is no other"),
        (["--cfg=hydra"], "--cfg=hydra: --cfg job prints the configuration; there is no other"),
        (["--config-dir=x"], "--config-dir=x: options are --help and --cfg job; all else is typed key=value"),
        (["--info"], "--info: options are --help and --cfg job; all else is typed key=value"),
    ],
)
def test_options_that_there_are_not_are_refused_by_name(ctrlrl, option, told):
    refused(ctrlrl("train", "algo=bpo", "env=cartpole", *option), told)


def test_a_preset_is_taken_for_its_pair_and_typed_values_win(ctrlrl):
    auto = OmegaConf.create(ctrlrl("train", "algo=ppo", "env=halfcheetah", "--cfg", "job").out)
    none = OmegaConf.create(ctrlrl("train", "algo=ppo", "env=halfcheetah", "experiment=none", "--cfg", "job").out)
    over = OmegaConf.create(ctrlrl("train", "env=halfcheetah", "algo.n_steps=7", "n_envs=3", "--cfg", "job").out)
    assert (auto.experiment, none.experiment) == ("ppo/halfcheetah", "none")
    assert auto.algo.normalize_obs
    assert not none.algo.normalize_obs
    assert (over.algo.n_steps, over.n_envs, over.algo.normalize_obs) == (7, 3, True)


def test_one_composition_leaves_no_trace_in_the_next():
    from ctrlrl import settings

    first = settings.train_config(["algo=ppo", "env=pendulum"])
    settings.train_config(["algo=ppo", "env=pendulum", "algo.hidden=[7]", "++eval.env.gravity_scale=2"])
    assert settings.train_config(["algo=ppo", "env=pendulum"]) == first


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in presets()}))
def test_every_preset_composes_and_passes_its_checks(folder):
    from ctrlrl import settings

    for name in presets():
        if name.split("/")[0] == folder:
            settings.typed(settings.train_config([f"experiment={name}"]))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["algo=ppo", "gradient_steps=10"], "counts total_steps"),
        (["algo=rlpd", "data=file", "data.path=x", "gradient_steps=10", "total_steps=10"], "counts total_steps"),
        (["algo=bc", "data=file", "data.path=x.npz", "total_steps=10"], "counts gradient_steps"),
    ],
)
def test_the_other_clock_is_refused(words, wanted):
    from ctrlrl import settings

    with pytest.raises(ValueError, match=wanted):
        settings.train_config(words)


# what a user mistypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["trian", "train"]),
        (["train", "algo=pppo"], ["pppo", "ppo"]),
        (["train", "env=halfchetah"], ["halfchetah", "halfcheetah"]),
        (["train", "experiment=ppo/halfcheeta"], ["ppo/halfcheeta", "ppo/halfcheetah"]),
        (["train", "algo.gama=0.9"], ["algo.gama", "algo.gamma"]),
        (["train", "total_step=5"], ["total_step", "total_steps"]),
        (
            ["train", "algo=iql", "data=d4rl", "data.id=hopper-medium-v2", "data.path=x.hdf5", "env=hopper-v4"],
            ["data.path=x.hdf5: data=d4rl finds the file", "data=file data.path=x.hdf5 data.id=hopper-medium-v2"],
        ),
        (["train", "eval.episode=5"], ["eval.episode", "eval.episodes"]),
        (["train", "env.bakend=torch"], ["env.bakend", "env.backend"]),
        (["train", "n_envs=many"], ["n_envs", "many"]),
        (["train", "algo.learning_rate=fast"], ["algo.learning_rate", "fast"]),
        (["train", "algo.hidden=64"], ["algo.hidden"]),
        (["train", "log.progress=perhaps"], ["log.progress", "perhaps"]),
        (["train", "n_envs=0"], ["n_envs must be at least 1"]),
        (
            ["train", "algo=ppo", "env=cartpole", "n_envs=2", "algo.n_steps=16", "experiment=none"],
            ["algo.n_minibatches=32 makes minibatches of one row out of the 32 rows", "Lower it, or raise n_envs"],
        ),
        (["train", "algo=ppo", "algo.name=bpo"], ["algo.name=bpo", "algo=bpo"]),
        (["train", "algo.gamma=1.5"], ["train: algo.gamma must lie in", "1.5"]),
        (["train", "algo.activation=sine"], ["activation", "tanh", "sine"]),
        (["train", "total_steps=0"], ["total_steps"]),
        (["train", "eval.episodes=0"], ["eval.episodes"]),
        (["train", "dtype=int8"], ["dtype", "bfloat16"]),
        (["train", "compile=fast"], ["compile", "graph"]),
        (["train", "compile=graph", "device=cpu"], ["compile=graph", "compile=eager"]),
        (["train", "device=tpuu"], ["device", "tpuu"]),
        (["train", "env=lqr", "env.backend=mujoco"], ["env.backend=mujoco", "lqr", "torch"]),
        (["train", "env.backend=warp"], ["env.backend", "warp"]),
        (["train", "env=gym"], ["env.id"]),
        (["train", "env=gym", "env.id=NoSuchTask-v0"], ["NoSuchTask"]),
        (["train", "halfcheetah"], ["key=value", "halfcheetah"]),
        (["train", "--fast"], ["key=value", "--fast"]),
        (["train", "run.resume=nowhere"], ["nowhere", "run.resume"]),
        (["train", "+foo=1"], ["foo"]),
        (["train", "++total_step=5"], ["total_step", "total_steps"]),
        (["train", "-m", "seed=0,1"], ["ctrlrl sweep"]),
        (["train", "env=cartpole", "env.id=Pendulum-v1"], ["env.id=Pendulum-v1", "env=cartpole", "env=gym"]),
        (["train", "algo=sac", "data.path=x.npz"], ["data.path=x.npz", "add data=file"]),
        (["train", "data.reward_scale=0.1"], ["data.reward_scale=0.1", "data=file data.path=FILE"]),
        (["eval", "run=x", "video=film.txt"], ["video=film.txt", ".mp4"]),
        (["doctor", "foo=1"], ["doctor takes no words", "foo=1"]),
        (["bench", "throughput", "seconds=-1"], ["seconds must be above 0"]),
        (["bench", "throughput", "pairs=0"], ["pairs must be at least 1"]),
        (["bench", "memory", "vs=sb3"], ["vs=sb3", "leave it out"]),
        (["train", "algo.n_steps=[1"], ["algo.n_steps"]),
        (["eval"], ["run=FOLDER"]),
        (["eval", "run="], ["run=FOLDER"]),
        (["export", "run="], ["run=FOLDER"]),
        (["train", "run.resume="], ["run.resume=FOLDER"]),
        (["eval", "run=nowhere"], ["nowhere"]),
        (["eval", "run=x", "episode=3"], ["episode", "episodes"]),
        (["eval", "run=x", "episodes=few"], ["episodes", "few"]),
        (["eval", "x"], ["key=value", "run"]),
        (["report"], ["run folders"]),
        (["train", "algo=sac", "env=pendulum", "experiment=ppo/pendulum"], ["experiment=ppo/pendulum", "algo=sac"]),
        (["train", "seed=0,1"], ["seed=0,1", "ctrlrl sweep"]),
        (["train", "resume=runs/x"], ["run.resume"]),
        (["train", "env=LunarLander-v3"], ["env=gym env.id=LunarLander-v3"]),
        (["eval", "run=x", "preference=0.3,0.7"], ["preference=[0.3,0.7]"]),
        (["eval", "compose=runs/a,runs/b"], ["=[runs/a,runs/b]"]),
        (["sweep"], ["sweep=NAME"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_in_one_line_with_the_mend(ctrlrl, tmp_path, words, said):
    refused(ctrlrl(*words), *said)
    assert not list(tmp_path.rglob("*.csv")), "nothing may have started"


def test_a_taken_run_folder_is_refused_and_left_alone(ctrlrl, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    refused(ctrlrl("train", *TINY, "run.dir=a"), "run.dir=a is taken", "run.resume=a")
    refused(ctrlrl("train", "run.resume=a", "algo=bpo"), "algo=bpo", "keeps its algorithm", "run.dir")
    refused(ctrlrl("train", "run.resume=a", "env=cartpole"), "env=cartpole", "keeps its", "environment")
    refused(ctrlrl("train", "run.resume=a", "experiment=ppo/hopper"), "experiment=ppo/hopper", "keeps its", "preset")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert ctrlrl("train", *TINY, "run.dir=empty").code == 0


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_by_eval_and_resume(ctrlrl, file):
    ctrlrl("train", *TINY, "run.dir=a")
    path = Path("a/checkpoints/last") / file
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    refused(ctrlrl("eval", "run=a"), "checkpoints/last", "damaged", "best")
    refused(ctrlrl("train", "run.resume=a"), "checkpoints/last", "damaged")
    assert ctrlrl("eval", "run=a", "checkpoint=best", "episodes=1").code == 0
    path.unlink()
    refused(ctrlrl("eval", "run=a"), file)


def test_a_damaged_config_is_named(ctrlrl):
    ctrlrl("train", *TINY, "run.dir=a")
    text = Path("a/config.yaml").read_text()
    Path("a/config.yaml").write_text(text.replace("n_envs: 4", "n_envs: four"))
    refused(ctrlrl("eval", "run=a"), "config.yaml")
    Path("a/config.yaml").write_text("{")
    refused(ctrlrl("eval", "run=a"), "config.yaml")
    Path("a/config.yaml").write_text(text.replace("- 8", "- 9"))
    refused(ctrlrl("eval", "run=a"), "does not fit")
    refused(ctrlrl("train", "run.resume=a"), "does not fit")


# environments that misbehave -----------------------------------------------------------------------------------------


class Trouble(gym.Env[np.ndarray, np.ndarray]):
    """A two-number task that goes wrong in its 100th step, as asked."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, kind: str) -> None:
        self.kind, self.steps = kind, 0
        bound = np.inf if kind == "unbounded" else 1.0
        self.action_space = gym.spaces.Box(-bound, bound, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs, reward = np.zeros(2, np.float32), 0.0
        if self.steps == 100:
            if self.kind == "raises":
                raise KeyError("the gripper fell off")
            if self.kind == "nan":
                obs[1] = np.nan
            if self.kind == "inf":
                reward = np.inf
            if self.kind == "shape":
                obs = np.zeros(3, np.float32)
        return obs, reward, False, self.steps % 10 == 0, {}


@pytest.fixture
def trouble() -> Any:
    for kind in ("unbounded", "raises", "nan", "inf", "shape"):
        gym.register(f"Trouble-{kind}-v0", entry_point=lambda kind=kind, **_: Trouble(kind), disable_env_checker=True)
    yield
    for kind in ("unbounded", "raises", "nan", "inf", "shape"):
        del gym.registry[f"Trouble-{kind}-v0"]


def test_an_unbounded_action_box_is_refused_before_the_run(ctrlrl, tmp_path, trouble):
    refused(ctrlrl("train", *TINY, "env=gym", "env.id=Trouble-unbounded-v0", "run.dir=a"), "finite bounds", "Wrap it")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", ["Trouble-raises-v0", "KeyError", "gripper"]),
        ("nan", ["Trouble-nan-v0", "observation", "nan"]),
        ("inf", ["Trouble-inf-v0", "reward", "inf"]),
        ("shape", ["Trouble-shape-v0", "(2,)", "(3,)"]),
    ],
)
def test_an_environment_that_fails_in_the_run_gives_1_and_keeps_the_checkpoint(ctrlrl, trouble, kind, said):
    words = [*TINY, "env=gym", f"env.id=Trouble-{kind}-v0", "n_envs=1", "checkpoint.every=0", "run.dir=a"]
    refused(ctrlrl("train", *words), *said, code=1)
    assert json.loads(Path("a/result.json").read_text())["status"] == "failed"
    assert read_folder(Path("a/checkpoints/last")).state["env_steps"] == 96


def test_a_read_only_place_for_the_run_folder_is_named(ctrlrl, tmp_path, monkeypatch):
    """Root may write everywhere, so the refusal of the file system is played."""
    (tmp_path / "locked").mkdir()
    inner = os.mkdir

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        inner(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    refused(ctrlrl("train", *TINY, "run.dir=locked/a"), "run.dir=locked/a", "Permission denied")


def test_a_run_folder_below_a_file_is_refused(ctrlrl, tmp_path):
    (tmp_path / "file").write_text("")
    refused(ctrlrl("train", *TINY, "run.dir=file/a"), "run.dir=file/a cannot be made", "name a folder")


def test_a_full_disk_in_the_run_gives_1_and_names_the_file(ctrlrl, monkeypatch):
    inner, count = os.fsync, [0]

    def fsync(fd: int) -> None:
        count[0] += 1
        if count[0] > 26:  # into the middle of the checkpoint after 256 steps
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    refused(ctrlrl("train", *TINY, "checkpoint.every=0", "run.dir=a"), "No space left on device", "a/", code=1)
    assert read_folder(Path("a/checkpoints/last")).state["env_steps"] == 128


def test_a_traceback_is_shown_on_request(ctrlrl, monkeypatch):
    monkeypatch.setenv("CTRLRL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="n_envs"):
        main(["train", "n_envs=0"])
