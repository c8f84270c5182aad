"""Where a run's rows go besides progress.csv: TensorBoard, Weights & Biases, MLflow; imported where asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from ctrlrl.disk import write_atomic

IDS = "trackers.json"  # in the run folder: which run of a service it is, so that a resumed run goes on there
PARAMS_AT_ONCE = 100  # MLflow's limit of one request


class Tracker(Protocol):
    """Made of a run folder and the run's settings by name; ValueError where it cannot be, one line with the mend."""

    def write(self, row: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in <folder>/tensorboard."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("log.tensorboard needs the tensorboard package: pip install 'ctrlrl[logging]'") from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; its own variables say where: WANDB_PROJECT (else ctrlrl), WANDB_MODE, ..."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise ValueError("log.wandb needs the wandb package: pip install 'ctrlrl[wandb]'") from None
        run_id = _ids(folder).get("wandb") or uuid4().hex[:8]
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "ctrlrl"),
                name=folder.name,
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            mend = "WANDB_MODE=offline keeps the rows in the run folder"
            raise ValueError(f"log.wandb: {first_line(error)}. {mend}") from None
        _remember(folder, "wandb", run_id)

    def write(self, row: Mapping[str, float], step: int) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; its own variables say where: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (else ctrlrl)."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError:
            raise ValueError("log.mlflow needs the mlflow package: pip install 'ctrlrl[mlflow]'") from None
        self._metric: Any = Metric
        try:
            self._client: Any = MlflowClient()
            self._run_id = _ids(folder).get("mlflow")
            if self._run_id is None:
                name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ctrlrl")
                found = self._client.get_experiment_by_name(name)
                experiment = found.experiment_id if found else self._client.create_experiment(name)
                self._run_id = self._client.create_run(experiment, run_name=folder.name).info.run_id
                params = [Param(key, str(value)) for key, value in settings.items()]
                for i in range(0, len(params), PARAMS_AT_ONCE):
                    self._client.log_batch(self._run_id, params=params[i : i + PARAMS_AT_ONCE])
                _remember(folder, "mlflow", self._run_id)
            else:
                self._client.update_run(self._run_id, status="RUNNING")
        except Exception as error:
            mend = "MLFLOW_TRACKING_URI says where its server is"
            raise ValueError(f"log.mlflow: {first_line(error)}. {mend}") from None

    def write(self, row: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run_id, metrics=[self._metric(k, float(v), now, step) for k, v in row.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
TRACES = {"tensorboard", "wandb", IDS}  # what they leave in a run folder


def _ids(folder: Path) -> dict[str, str]:
    file = folder / IDS
    try:
        return dict(json.loads(file.read_text())) if file.exists() else {}
    except (ValueError, TypeError):
        raise ValueError(f"{file}: damaged; without it a resumed run begins a new run there") from None


def _remember(folder: Path, name: str, run_id: str) -> None:
    write_atomic(folder / IDS, json.dumps(_ids(folder) | {name: run_id}).encode())


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
