"""What a user types to compose runs: the search and its files, fresh seeds, settings of the runs, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import ctrlrl
from ctrlrl.cli import main

SMALL = ["algo.hidden=[8]", "algo.warmup_steps=0", "algo.sampling_steps=3"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return done.value.code  # type: ignore[return-value]


@pytest.fixture(scope="module")
def half_blind():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import half_blind

        half_blind.register()
        yield half_blind


@pytest.fixture(scope="module")
def runs(half_blind, tmp_path_factory) -> Path:
    """A few updates of a diffusion and a flow that see one column each, and of one diffusion that sees none."""
    folder = tmp_path_factory.mktemp("composed")
    half_blind.demonstrations(folder / "goals.npz", 200)
    for name, columns, algo in (("a", [0], "diffusion"), ("b", [1], "flow"), ("free", [], "diffusion")):
        half_blind.train(folder / "goals.npz", folder / name, columns, *SMALL, "log.progress=false", algo=algo, steps=5)
    return folder


def pair(runs: Path) -> str:
    return f"compose=[{runs}/a,{runs}/b]"


def read(folder: Path) -> dict:
    return json.loads((folder / "compose.json").read_text())


def test_a_search_tries_every_weight_and_judges_the_best_on_fresh_seeds(runs, tmp_path, capsys):
    words = ("compose.weight=search", "compose.grid=[0,0.5,1]", "compose.episodes=6", f"compose.dir={tmp_path}")
    assert call("eval", pair(runs), *words, "episodes=8", "seed=7") == 0
    out, err = capsys.readouterr()
    assert "3 weights x 6 roll-outs" in out
    assert "3 weights x 6 roll-outs from seed 50000 on" in err
    assert err.count("success") == 3
    found = read(tmp_path)
    search = found["search"]
    assert search["weights"] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert found["weights"] == search["best"]
    assert [len(x["returns"]) for x in (found["composed"], *found["alone"])] == [8, 8, 8]
    assert (found["seed"], found["episodes"], search["seed"], search["episodes"]) == (7, 8, 50_000, 6)
    at = search["weights"].index(search["best"])
    assert search["success_rate"][at] == max(search["success_rate"])
    assert (tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"


def test_weight_one_is_that_parent_on_the_same_seeds(runs, tmp_path):
    for weight, parent in ((1, 0), (0, 1)):
        assert call("eval", pair(runs), f"compose.weight={weight}", f"compose.dir={tmp_path}", "episodes=5") == 0
        found = read(tmp_path)
        assert found["composed"] == found["alone"][parent]
        assert found["composed"] != found["alone"][1 - parent]
        assert found["search"] is None
    assert call("eval", f"run={runs}/b", "episodes=5") == 0
    assert json.loads((runs / "b" / "eval.json").read_text())["returns"] == found["composed"]["returns"]


def test_the_results_stand_beside_the_first_run_by_default(runs, tmp_path, capsys):
    assert call("eval", pair(runs), "episodes=2", f"video={tmp_path}/x.mp4") == 0
    assert "no video" in capsys.readouterr().out, "this task cannot be drawn, and nothing else is lost"
    assert read(runs / "a+b")["weights"] == [0.5, 0.5]
    assert not (runs / "a+b" / "weights.png").exists()


def test_other_modes_and_other_settings_of_the_runs(runs, tmp_path):
    into = (f"compose.dir={tmp_path}", "episodes=2")
    assert call("eval", pair(runs), "compose.mode=product", f"compose.base={runs}/free", *into) == 0
    assert read(tmp_path)["weights"] == [1.0, 1.0]
    search = ("compose.weight=search", "compose.grid=[0.5,1]", "compose.episodes=2")
    assert call("eval", pair(runs), "compose.mode=product", f"compose.base={runs}/free", *search, *into) == 0
    assert read(tmp_path)["search"]["weights"] == [[0.5, 0.5], [1.0, 1.0]]
    assert (tmp_path / "weights.png").exists()
    for words in (("compose.mode=or", "compose.weight=0.3"), ("compose.mode=and", "compose.exact=true")):
        assert call("eval", pair(runs), *words, *into) == 0
    returns = []
    for steps in (1, 7):
        assert call("eval", pair(runs), f"algo.sampling_steps={steps}", *into) == 0
        returns.append(read(tmp_path)["composed"]["returns"])
    assert returns[0] != returns[1]
    assert call("eval", pair(runs), "eval.env.timeout=60", *into) == 0
    assert read(tmp_path)["overrides"] == ["eval.env.timeout=60"]


def test_three_runs_are_searched_without_a_picture(runs, tmp_path):
    words = ("compose.weight=search", "compose.grid=[0.25,0.5]", "compose.episodes=2", f"compose.dir={tmp_path}")
    assert call("eval", f"compose=[{runs}/a,{runs}/b,{runs}/free]", *words, "episodes=2", "seed=3") == 0
    assert read(tmp_path)["search"]["weights"] == [
        [0.25, 0.25, 0.5],
        [0.25, 0.5, 0.25],
        [0.5, 0.25, 0.25],
        [0.5, 0.5, 0],
    ]
    assert not (tmp_path / "weights.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compose.weight=1.4",), "weights must be at least 0 and add up to 1, got 1.4, -0.4"),
        (("compose.weigth=1",), "unknown key compose.weigth; did you mean compose.weight"),
        (("compose.weight=search", "seed=50063"), "compose.seed=50000 and seed=50063 begin the same episodes"),
        (("compose.n_action_steps=2",), "compose.n_action_steps=2 is more than the 1 actions of a chunk of"),
        (("compose.mode=product",), "takes compose.base"),
        (("compose.mode=or", "algo.sampling_steps=5"), "algo.sampling_steps=5: compose.mode=or does not read it"),
        (("compose.mode=and", "compose.exact=true", "algo.warm_start=[2,1]"), "compose.exact=true does not read it"),
        (("episodes=0",), "episodes must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(runs, capsys, words, message):
    assert call("eval", pair(runs), *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_runs_that_do_not_compose_are_refused(runs, half_blind, tmp_path, capsys):
    assert call("eval", f"compose=[{runs}/a]") == 2
    assert "at least 2 run folders, got 1" in capsys.readouterr().err
    assert call("eval", f"compose=[{runs}/a,{runs}/nowhere]") == 2
    assert "nowhere/config.yaml: no such file" in capsys.readouterr().err
    half_blind.demonstrations(tmp_path / "other.npz", 200, seed=5)
    half_blind.train(tmp_path / "other.npz", tmp_path / "c", [1], *SMALL, "log.progress=false", steps=2)
    assert call("eval", f"compose=[{runs}/a,{tmp_path}/c]") == 2
    err = capsys.readouterr().err
    data = [np.load(path)["actions"] for path in (runs / "goals.npz", tmp_path / "other.npz")]
    ends = [[part.min(0), part.max(0)] for part in data]
    told = [
        f"number {d} {name} at {a[d]:.6g} in {runs}/a, at {b[d]:.6g} in {tmp_path}/c"
        for name, a, b in zip(("begins", "ends"), *ends, strict=True)
        for d in (0, 1)
    ]
    assert any(line in err for line in told), err


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(half_blind, runs):
    made = []
    for kind, columns in ((ctrlrl.Diffusion, [0]), (ctrlrl.Flow, [0, 1])):
        settings = {"hidden": [8], "horizon": 6, "n_action_steps": 3, "sampling_steps": 3, "warmup_steps": 0}
        made.append(kind("MlpPolicy", "Pendulum-v1", seed=0, obs_columns=columns, action_range="box", **settings))
    return made


def test_models_compose_in_python_and_predict_with_a_state(models):
    composed = ctrlrl.compose(models, weights=[0.5, 0.5])
    obs = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    action, state = composed.predict(obs, deterministic=True)
    assert action.shape == (4, 1)
    second, state = composed.predict(obs, state, deterministic=True)
    assert not np.array_equal(second, action), "the second action of the plan"
    again, _ = composed.predict(obs, state, np.ones(4, bool), deterministic=True)
    assert np.array_equal(again, action), "an episode that begins has a new plan"
    single, _ = composed.predict(obs[0], deterministic=True)
    assert single.shape == (1,)
    for i in (0, 1):
        alone = ctrlrl.compose(models, weights=[1.0 - i, float(i)]).predict(obs, deterministic=True)[0]
        assert np.array_equal(alone, models[i].predict(obs, deterministic=True)[0])
    mean, _ = ctrlrl.evaluate_policy(composed, "pendulum", 2)
    assert np.isfinite(mean)


def test_a_composition_is_saved_with_its_parents(models, tmp_path):
    composed = ctrlrl.compose(models, weights=[0.3, 0.7], n_action_steps=2)
    composed.save(tmp_path / "both")
    loaded = ctrlrl.load(tmp_path / "both")
    obs = np.ones((2, 3), np.float32)
    assert loaded.weights == [0.3, 0.7]
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], composed.predict(obs, deterministic=True)[0])
    models[0].save(tmp_path / "one")
    from_file = ctrlrl.compose([str(tmp_path / "one"), models[1]], weights=[0.3, 0.7], n_action_steps=2)
    assert np.array_equal(from_file.predict(obs, deterministic=True)[0], composed.predict(obs, deterministic=True)[0])


def test_models_that_do_not_compose_are_refused(models):
    other = ctrlrl.Flow("MlpPolicy", "MountainCarContinuous-v0", seed=0, hidden=[8])
    with pytest.raises(ValueError, match="observations have 3 numbers in model 0, 2 in model 1"):
        ctrlrl.compose([models[0], other])
    with pytest.raises(ValueError, match="model 1 is of algo=bc, which is no policy of chunks"):
        ctrlrl.compose([models[0], ctrlrl.BC("MlpPolicy", "Pendulum-v1", seed=0)])
    with pytest.raises(ValueError, match="model 1 is of algo=gpc"):
        ctrlrl.compose([models[0], ctrlrl.compose(models)])
    with pytest.raises(TypeError, match="model 1 is a int, wanted a trained ctrlrl model"):
        ctrlrl.compose([models[0], 3])
