"""Scripts for Stable-Baselines3, as its documentation writes them, with one line changed: where PPO comes from."""

import gc
import runpy
import warnings
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
SCRIPTS = sorted((Path(__file__).parent / "sb3_scripts").glob("*.py"))
LINE = "from stable_baselines3 import PPO\n"


def run(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = folder / "script.py"
    path.write_text(script)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # such scripts leave their files open
        runpy.run_path(str(path), run_name="__main__")
        gc.collect()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_for_sb3_runs_with_one_line_changed(path, tmp_path, monkeypatch):
    script = path.read_text()
    assert script.count(LINE) == 1
    run(script.replace(LINE, "from ctrlrl import PPO\n"), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_are_right_for_sb3_itself(path, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(path.read_text(), tmp_path, monkeypatch)
