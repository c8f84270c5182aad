"""Named values to standard output, text, JSON, CSV and TensorBoard: the words, files and table of SB3's logger."""

from __future__ import annotations

import csv
import json
import numbers
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np
import torch

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50
FORMATS = ("stdout", "log", "json", "csv", "tensorboard")
Excluded = Mapping[str, tuple[str, ...]]


@dataclass
class Video:
    frames: torch.Tensor  # [N, T, C, H, W] uint8
    fps: float


@dataclass
class Figure:
    figure: Any  # of matplotlib
    close: bool


@dataclass
class Image:
    image: Any
    dataformats: str  # "HWC", "CHW", ...


@dataclass
class HParam:
    hparam_dict: Mapping[str, bool | str | float | None]
    metric_dict: Mapping[str, float]


MEDIA = ("Video", "Figure", "Image", "HParam")  # by name: SB3's own classes count too


class FormatUnsupportedError(NotImplementedError):
    def __init__(self, kind: str, key: str, value: Any):
        what = type(value).__name__
        super().__init__(f"format {kind} cannot write the {what} {key!r}; record it with exclude={kind!r}")


@runtime_checkable
class KVWriter(Protocol):
    """What a format is; SB3's formats are of this kind."""

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None: ...
    def close(self) -> None: ...


def _kept(values: Mapping[str, Any], excluded: Excluded, *kinds: str, media: bool = False) -> dict[str, Any]:
    """The values a format writes, sorted by key."""
    kept = {k: values[k] for k in sorted(values) if not set(excluded.get(k) or ()) & set(kinds)}
    for key, value in kept.items():
        if not media and type(value).__name__ in MEDIA:
            raise FormatUnsupportedError(kinds[0], key, value)
    return kept


def _plain(value: Any) -> Any:
    """A number or list instead of an array or tensor."""
    if not hasattr(value, "dtype"):
        return value
    return value.item() if np.prod(value.shape, dtype=int) == 1 else value.tolist()


class HumanOutputFormat:
    """A table for people, to a file or a path."""

    def __init__(self, filename_or_file: str | Path | TextIO, max_length: int = 36):
        self.max_length = max_length
        self.own_file = isinstance(filename_or_file, (str, Path))
        self._file: Any = open(filename_or_file, "w") if self.own_file else filename_or_file  # type: ignore[arg-type]  # noqa: SIM115

    @property
    def file(self) -> TextIO:
        return self._file

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        rows, tag = [], ""
        for key, value in _kept(key_values, key_excluded, "stdout", "log").items():
            here = key[: key.find("/") + 1] if key.find("/") > 0 else ""
            if here and here != tag:
                rows.append((self._short(here), ""))
            tag = here
            is_real = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
            text = f"{float(value):<8.3g}" if is_real else str(_plain(value))
            rows.append((self._short(f"   {key[len(tag) :]}" if tag else key), self._short(text)))
        if not rows:
            return
        left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
        line = "-" * (left + right + 7)
        table = [line, *(f"| {key:<{left}} | {text:<{right}} |" for key, text in rows), line]
        self.file.write("\n".join(table) + "\n")
        self.file.flush()

    def write_sequence(self, sequence: Sequence[str]) -> None:
        self.file.write(" ".join(sequence) + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.own_file:
            self.file.close()

    def _short(self, text: str) -> str:
        return text if len(text) <= self.max_length else text[: self.max_length - 3] + "..."


class StandardOutput(HumanOutputFormat):
    """Whatever sys.stdout is at the moment of writing."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    @property
    def file(self) -> TextIO:
        return sys.stdout


class JSONOutputFormat:
    """One JSON object a line."""

    def __init__(self, filename: str | Path):
        self.file = open(filename, "w")  # noqa: SIM115

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        row = {key: _plain(value) for key, value in _kept(key_values, key_excluded, "json").items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class CSVOutputFormat:
    """One row a dump; the whole file is written anew when a key appears for the first time."""

    def __init__(self, filename: str | Path):
        self.file = open(filename, "w", newline="")  # noqa: SIM115
        self.keys: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        row = {key: _plain(value) for key, value in _kept(key_values, key_excluded, "csv").items()}
        new = [key for key in row if key not in self.keys]
        self._rows.append(row)
        self.keys += new
        writer = csv.DictWriter(self.file, self.keys, lineterminator="\n")
        if new:
            self.file.seek(0)
            self.file.truncate()
            writer.writeheader()
        writer.writerows(self._rows if new else [row])
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoardOutputFormat:
    """Scalars, texts, histograms and media; `writer` is torch's SummaryWriter."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("tensorboard_log needs the tensorboard package: pip install 'ctrlrl[logging]'") from None
        self.writer: Any = SummaryWriter(log_dir=str(folder))

    def write(self, key_values: dict[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        for key, value in _kept(key_values, key_excluded, "tensorboard", media=True).items():
            self._add(key, value, step)
        self.writer.flush()

    def _add(self, key: str, value: Any, step: int) -> None:
        kind = type(value).__name__
        if kind == "Video":
            self.writer.add_video(key, value.frames, step, value.fps)
        elif kind == "Figure":
            self.writer.add_figure(key, value.figure, step, close=value.close)
        elif kind == "Image":
            self.writer.add_image(key, value.image, step, dataformats=value.dataformats)
        elif kind == "HParam":
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(dict(value.hparam_dict), metric_dict=dict(value.metric_dict)):
                self.writer.file_writer.add_summary(summary)
        elif isinstance(value, str):
            self.writer.add_text(key, value, step)
        elif hasattr(value, "shape") and len(value.shape):
            self.writer.add_histogram(key, torch.as_tensor(value), step)
        else:
            self.writer.add_scalar(key, _plain(value), step)

    def close(self) -> None:
        self.writer.close()


def make_output_format(kind: str, folder: str | Path) -> KVWriter:
    """stdout, log (log.txt), json (progress.json), csv (progress.csv) or tensorboard, in `folder`."""
    if kind not in FORMATS:
        raise ValueError(f"unknown log format {kind!r}; known: {', '.join(FORMATS)}")
    if kind == "stdout":
        return StandardOutput()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if kind == "log":
        return HumanOutputFormat(path / "log.txt")
    if kind == "json":
        return JSONOutputFormat(path / "progress.json")
    if kind == "csv":
        return CSVOutputFormat(path / "progress.csv")
    # callbacks written for SB3 look for its class with isinstance
    loaded = sys.modules.get("stable_baselines3.common.logger")
    theirs = (loaded.TensorBoardOutputFormat,) if loaded else ()
    return type("TensorBoardOutputFormat", (TensorBoardOutputFormat, *theirs), {})(folder)


class Logger:
    """Values recorded by key, written by every format at `dump`. An excluded format does not see a value."""

    def __init__(self, folder: str | None, output_formats: Sequence[Any]):
        self.name_to_value: dict[str, Any] = defaultdict(float)
        self.name_to_count: dict[str, int] = defaultdict(int)
        self.name_to_excluded: dict[str, tuple[str, ...]] = {}
        self.level = INFO
        self.dir = folder
        self.output_formats = list(output_formats)

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        """Keep a value until the next dump; the last one counts."""
        self.name_to_value[key] = value
        self.name_to_excluded[key] = (exclude,) if isinstance(exclude, str) else tuple(exclude or ("",))

    def record_mean(self, key: str, value: float | None, exclude: str | tuple[str, ...] | None = None) -> None:
        """As `record`, but the mean of all values since the last dump; None is no value."""
        if value is None:
            return
        count = self.name_to_count[key]
        self.record(key, (self.name_to_value[key] * count + value) / (count + 1), exclude)
        self.name_to_count[key] = count + 1

    def dump(self, step: int = 0) -> None:
        if self.level == DISABLED:
            return
        for writer in self.output_formats:
            writer.write(self.name_to_value, self.name_to_excluded, step)
        self.name_to_value.clear()
        self.name_to_count.clear()
        self.name_to_excluded.clear()

    def log(self, *args: Any, level: int = INFO) -> None:
        """A line of text, unless the logger's level is higher."""
        if self.level <= level:
            for writer in self.output_formats:
                if hasattr(writer, "write_sequence"):
                    writer.write_sequence([str(arg) for arg in args])

    def debug(self, *args: Any) -> None:
        self.log(*args, level=DEBUG)

    def info(self, *args: Any) -> None:
        self.log(*args, level=INFO)

    def warn(self, *args: Any) -> None:
        self.log(*args, level=WARN)

    def error(self, *args: Any) -> None:
        self.log(*args, level=ERROR)

    def set_level(self, level: int) -> None:
        self.level = level

    def get_dir(self) -> str | None:
        return self.dir

    def close(self) -> None:
        for writer in self.output_formats:
            writer.close()


def configure(folder: str | Path | None = None, format_strings: Sequence[str] | None = None) -> Logger:
    """A logger into `folder` (else $SB3_LOGDIR, else a new one among the temporary files).

    format_strings: of FORMATS; None takes $SB3_LOG_FORMAT, else stdout, log and csv.
    """
    where = folder or os.getenv("SB3_LOGDIR") or Path(tempfile.gettempdir(), time.strftime("ctrlrl-%Y%m%d-%H%M%S"))
    if format_strings is None:
        format_strings = os.getenv("SB3_LOG_FORMAT", "stdout,log,csv").split(",")
    kinds = [kind for kind in format_strings if kind]
    Path(where).mkdir(parents=True, exist_ok=True)
    logger = Logger(str(where), [make_output_format(kind, where) for kind in kinds])
    if set(kinds) - {"stdout"}:
        logger.log(f"Logging to {where}")
    return logger


def training_logger(
    verbose: int,
    tensorboard_log: str | os.PathLike[str] | None,
    name: str,
    *,
    continues: bool,
    folder: str | None = None,
) -> Logger:
    """The logger of one `learn`: a table where verbose, TensorBoard under {tensorboard_log}/{name}_{k}.

    continues: into `folder`, or else the last run's, instead of a new one.
    """
    kinds = ["stdout"] if verbose else []
    if tensorboard_log is None:
        return Logger(None, [make_output_format(kind, "") for kind in kinds])
    if continues and folder is not None:
        return configure(folder, [*kinds, "tensorboard"])
    taken = [path.name.rpartition("_") for path in Path(tensorboard_log).glob("*_*")]
    last = max((int(k) for stem, _, k in taken if stem == name and k.isdigit()), default=0)
    run = last if continues and last else last + 1
    return configure(Path(tensorboard_log, f"{name}_{run}"), [*kinds, "tensorboard"])
