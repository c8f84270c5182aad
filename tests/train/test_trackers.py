"""Rows of a run in TensorBoard, Weights & Biases and MLflow: the same numbers, one run there for one run here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ctrlrl import runs
from ctrlrl.settings import load_config, train_config
from ctrlrl.train.log import RunFolder

TINY = ["algo=ppo", "env=pendulum", "experiment=none", "n_envs=4", "algo.n_steps=8", "algo.n_minibatches=1"]
TINY += ["algo.n_epochs=1", "algo.hidden=[4]", "eval.episodes=1", "log.progress=false", "log.every=0", "device=cpu"]
ROWS = [{"env_steps": 8, "gradient_steps": 1, "loss/critic": 2.0}, {"env_steps": 16, "loss/critic": 0.5, "eval/x": 3.0}]


class Service:
    """Runs by id, as either package's server would hold them."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.away = False

    def begin(self, run_id: str, **facts: Any) -> None:
        self.runs.setdefault(run_id, {"rows": [], "begun": 0, "ended": 0, **facts})["begun"] += 1

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        (run,) = self.runs.values()
        return run["rows"]


@pytest.fixture
def wandb(monkeypatch):
    """What ctrlrl uses of the package."""
    service, package = Service(), ModuleType("wandb")

    def init(*, id: str, **facts: Any) -> Any:
        if service.away:
            raise RuntimeError("no network.\nsecond line")
        service.begin(id, **facts)

        def log(row: dict[str, float], step: int) -> None:
            if service.away:
                raise RuntimeError("connection lost\nsecond line")
            service.runs[id]["rows"].append((step, row))

        def finish() -> None:
            if service.away:
                raise RuntimeError("not sent")
            service.runs[id]["ended"] += 1

        return SimpleNamespace(log=log, finish=finish)

    package.init, package.Settings = init, lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    return service


@pytest.fixture
def mlflow(monkeypatch):
    service, package, entities = Service(), ModuleType("mlflow"), ModuleType("mlflow.entities")

    class MlflowClient:
        def get_experiment_by_name(self, name: str) -> Any:
            return None

        def create_experiment(self, name: str) -> str:
            return f"experiment {name}"

        def create_run(self, experiment: str, run_name: str) -> Any:
            run_id = f"run {len(service.runs)}"
            service.begin(run_id, experiment=experiment, name=run_name, config={})
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def update_run(self, run_id: str, status: str) -> None:
            service.begin(run_id)

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            if service.away:
                raise RuntimeError("connection lost\nsecond line")
            assert len(params) <= 100
            service.runs[run_id]["config"] |= {p.key: p.value for p in params}
            if metrics:
                row = {m.key: m.value for m in metrics}
                service.runs[run_id]["rows"].append((metrics[0].step, row))

        def set_terminated(self, run_id: str) -> None:
            if service.away:
                raise RuntimeError("not sent")
            service.runs[run_id]["ended"] += 1

    package.MlflowClient, package.entities = MlflowClient, entities  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return service


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_gets_every_row_under_the_clock_and_the_runs_settings(name, tmp_path, request, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    service = request.getfixturevalue(name)
    words = [*TINY, f"log.{name}=true", "total_steps=96", "algo.gamma=0.5", f"run.dir={tmp_path / 'run'}"]
    trainer, folder = runs.start(train_config(words), words)
    trainer.train()
    (run,) = service.runs.values()
    written = RunFolder(folder)
    written.resume(96)
    expected = [(row["env_steps"], {k: v for k, v in row.items() if k != "env_steps"}) for row in written.rows]
    assert [step for step, _ in expected] == [32, 64, 96]
    assert run["rows"] == expected
    assert (run["name"], run["begun"], run["ended"]) == ("run", 1, 1)
    assert (run["config"]["algo.gamma"], run["config"]["n_envs"]) in ((0.5, 4), ("0.5", "4"))
    assert "ctrlrl" in run.get("project", run.get("experiment"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_resumed_run_goes_on_in_the_same_run_there(name, tmp_path, request):
    service = request.getfixturevalue(name)
    words = [*TINY, f"log.{name}=true", "total_steps=32", f"run.dir={tmp_path / 'run'}"]
    trainer, folder = runs.start(train_config(words), words)
    trainer.train()
    runs.resume(folder, ["total_steps=64"]).train()
    assert [step for step, _ in service.rows()] == [32, 64]
    (run,) = service.runs.values()
    assert (run["begun"], run["ended"]) == (2, 2)
    assert json.loads((folder / "trackers.json").read_text()).keys() == {name}
    (folder / "trackers.json").write_text("[1")
    with pytest.raises(ValueError, match=r"trackers\.json: damaged"):
        runs.resume(folder, ["total_steps=96"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_goes_away_ends_no_run(name, tmp_path, request):
    service = request.getfixturevalue(name)
    folder = RunFolder(tmp_path, trackers=[name])
    folder.write_row(ROWS[0])
    service.away = True
    with pytest.warns(UserWarning, match=f"log.{name}: connection lost; from here on rows go to progress.csv alone"):
        folder.write_row(ROWS[1])
    folder.write_row({**ROWS[1], "env_steps": 24})
    folder.close()
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 4
    assert [step for step, _ in service.rows()] == [8]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_away_at_the_end_is_told_of_too(name, tmp_path, request):
    service = request.getfixturevalue(name)
    folder = RunFolder(tmp_path, trackers=[name])
    folder.write_row(ROWS[0])
    service.away = True
    with pytest.warns(UserWarning, match=f"log.{name}: not sent"):
        folder.close()


def test_one_that_is_away_from_the_start_is_told_before_anything_runs(wandb, tmp_path):
    wandb.away = True
    with pytest.raises(ValueError, match=r"^log\.wandb: no network\. WANDB_MODE=offline keeps the rows"):
        RunFolder(tmp_path, trackers=["wandb"])


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "tensorboard")])
def test_a_package_that_is_missing_is_named_with_its_extra(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ValueError, match=rf"log\.{name} needs the {name} package: pip install 'ctrlrl\["):
        RunFolder(tmp_path, trackers=[name])


def test_each_seed_of_a_stacked_run_is_a_run_of_its_own_there(wandb, tmp_path):
    words = ["algo=bc", "experiment=none", "data=file", "data.path=hopper-medium.npz", "env=none", "seeds=2", "seed=5"]
    words += ["algo.hidden=[4]", "algo.batch_size=4", "gradient_steps=50", "log.wandb=true", "log.every=0"]
    words += ["log.progress=false", "device=cpu", f"run.dir={tmp_path / 'run'}"]
    trainer, _ = runs.start(train_config(words), words)
    trainer.train()
    assert [(run["name"], run["config"]["seed"], run["ended"]) for run in wandb.runs.values()] == [
        ("seed_5", 5, 1),
        ("seed_6", 6, 1),
    ]


def test_tensorboard_events_hold_the_rows(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = RunFolder(tmp_path, trackers=["tensorboard"])
    for row in ROWS:
        folder.write_row(row)
    folder.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic")] == [(8, 2.0), (16, 0.5)]
    assert events.Tags()["scalars"] == ["gradient_steps", "loss/critic", "eval/x"]


def test_the_real_wandb_keeps_an_offline_run_in_the_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder(tmp_path, trackers=["wandb"], settings={"algo.gamma": 0.5})
    for row in ROWS:
        folder.write_row(row)
    folder.close()
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))


def test_the_real_mlflow_holds_the_rows(tmp_path, monkeypatch):
    package = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Path(tmp_path, "server").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = RunFolder(tmp_path, trackers=["mlflow"], settings={"algo.gamma": 0.5} | {f"x.{i}": i for i in range(120)})
    for row in ROWS:
        folder.write_row(row)
    folder.close()
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    client = package.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss/critic")] == [(8, 2.0), (16, 0.5)]
    assert client.get_run(run_id).data.params["algo.gamma"] == "0.5"


def test_the_keys_are_part_of_the_saved_configuration(tmp_path, wandb):
    words = [*TINY, "log.wandb=true", "total_steps=32", f"run.dir={tmp_path / 'run'}"]
    _, folder = runs.start(train_config(words), words)
    assert load_config(folder / "config.yaml").log.wandb is True
