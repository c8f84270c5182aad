"""`ctrlrl` with policies that predict chunks: their sampler at evaluation, collecting from them, and bad words."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctrlrl.cli import main
from ctrlrl.data.load import load

TINY = "data=file env=pendulum experiment=none gradient_steps=50 algo.batch_size=16 algo.hidden=[8,8]".split()
TINY += "algo.horizon=8 algo.n_action_steps=4 eval.episodes=2 eval.every=0 log.progress=false".split()
TINY += ["run.report=false", "device=cpu"]


def said(capsys, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as info:
        main(words)
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out + err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    with pytest.raises(SystemExit) as info:
        main(["data", "collect", f"out={path}", *"env=pendulum policy=random steps=800 progress=false".split()])
    assert not info.value.code
    return path


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    with pytest.raises(SystemExit) as info:
        main(["train", "algo=diffusion", f"data.path={data}", f"run.dir={folder}", *TINY])
    assert not info.value.code
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("algo.sampler=ddpm",),
        ("algo.sampling_steps=2", "algo.spacing=trailing"),
        ("algo.warm_start=[2,1,0]", "algo.n_action_steps=1"),
    ],
)
def test_an_evaluation_takes_another_sampler(run, capsys, words):
    assert said(capsys, "eval", f"run={run}", "episodes=2", *words)[0] == 0
    found = json.loads((run / "eval.json").read_bytes())
    assert found["overrides"] == list(words)
    assert said(capsys, "eval", f"run={run}", "episodes=2")[0] == 0
    plain = json.loads((run / "eval.json").read_bytes())
    assert plain["overrides"] == []
    assert plain["returns"] != found["returns"]


def test_settings_that_the_weights_do_not_fit_are_refused_by_name(run, capsys):
    code, told = said(capsys, "eval", f"run={run}", "episodes=2", "algo.hidden=[16,8]")
    assert code == 2
    assert "does not fit" in told
    assert "algo.hidden=[16,8]" in told
    code, told = said(capsys, "eval", f"run={run}", "episodes=2", "algo.samplr=ddpm")
    assert code == 2
    assert "did you mean algo.sampler" in told
    code, told = said(capsys, "eval", f"run={run}", "episodes=2", "algo.warm_start=[2,1,0]")
    assert code == 2
    assert "n_action_steps must be 1, got 4" in told


def test_a_chunked_policy_collects_a_data_set(run, tmp_path, capsys):
    words = [f"run={run}", f"out={tmp_path / 'made.npz'}", "steps=800", "noise=0.0,-1", "progress=false"]
    code, told = said(capsys, "data", "collect", *words)
    assert code == 0, told
    made = load(tmp_path / "made.npz")
    assert made.n_rows == 800
    assert np.isfinite(made.action).all()


def test_a_run_is_exported_with_another_sampler_and_the_example_drives_it(run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "policy.onnx"
    assert said(capsys, "export", f"run={run}", f"out={out}", "algo.sampling_steps=2")[0] == 0
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    wanted = {"algo": "diffusion", "env": "pendulum", "n_obs_steps": "2", "horizon": "8", "n_action_steps": "4"}
    assert {k: about[k] for k in (*wanted, "network_calls")} == wanted | {"network_calls": "2"}
    script = Path(__file__).parent.parent / "examples" / "deploy_chunks_onnx.py"
    done = subprocess.run([sys.executable, script, out, "Pendulum-v1"], capture_output=True, text=True, check=True)
    assert -2000.0 < float(done.stdout.removeprefix("return ")) < 0.0
    code, told = said(capsys, "export", f"run={run}", f"out={out}", "algo.hidden=[16,8]")
    assert code == 2
    assert "does not fit" in told


def test_warm_starts_are_set_against_full_sampling(run, capsys):
    script = Path(__file__).parent.parent / "benchmarks" / "real_time_iteration.py"
    words = [str(run), "--episodes", "2", "--levels", "2", "0"]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=True)
    full, warm = (json.loads(line) for line in done.stdout.splitlines()[:2])
    assert (full["calls_first"], full["calls_later"], full["calls_per_decision"]) == (10, 10, 10.0)
    assert (warm["calls_first"], warm["calls_later"]) == (10, 2)
    assert warm["calls_per_decision"] == pytest.approx((10 + 199 * 2) / 200)
    assert done.stdout.splitlines()[-1] == "4.9x fewer network evaluations per decision"
    assert full["return_mean"] != warm["return_mean"]


def test_a_data_set_without_one_window_is_refused_with_both_numbers(data, capsys, tmp_path):
    words = ["train", "algo=flow", f"data.path={data}", f"run.dir={tmp_path / 'x'}", *TINY, "algo.horizon=300"]
    code, told = said(capsys, *words)
    assert code == 2
    assert "has 200 usable steps, one window needs 296" in told
    code, told = said(capsys, *words[:-1], "algo.n_action_steps=8")
    assert code == 2
    assert "horizon=8 is shorter than the 9 rows" in told
