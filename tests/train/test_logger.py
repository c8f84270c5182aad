"""The logger's values, formats and files."""

import csv
import io
import json
import os
from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl.train.logger import (
    DEBUG,
    DISABLED,
    WARN,
    Figure,
    FormatUnsupportedError,
    HParam,
    HumanOutputFormat,
    Logger,
    Video,
    configure,
    make_output_format,
    training_logger,
)


class Kept:
    """A format that keeps what it was given."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], int]] = []
        self.lines: list[str] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append((dict(key_values), step))

    def write_sequence(self, sequence: list[str]) -> None:
        self.lines.append(" ".join(sequence))

    def close(self) -> None: ...


def test_the_last_value_or_the_mean_is_written_once():
    kept = Kept()
    logger = Logger(None, [kept])
    for value in (1.0, 2.0, 6.0):
        logger.record("last", value)
        logger.record_mean("mean", value)
    logger.record_mean("mean", None)
    logger.dump(7)
    logger.record_mean("mean", 5.0)
    logger.dump(8)
    assert kept.rows == [({"last": 6.0, "mean": 3.0}, 7), ({"mean": 5.0}, 8)]


def test_levels_silence_lines_and_disabled_everything():
    kept = Kept()
    logger = Logger(None, [kept])
    logger.debug("too quiet")
    logger.info("heard", 1)
    logger.set_level(WARN)
    logger.info("not now")
    logger.error("heard too")
    logger.set_level(DEBUG)
    logger.debug("now")
    logger.set_level(DISABLED)
    logger.record("x", 1)
    logger.dump()
    assert kept.lines == ["heard 1", "heard too", "now"]
    assert kept.rows == []


def test_the_table_is_that_of_sb3():
    sb3 = pytest.importorskip("stable_baselines3.common.logger")
    values = {"time/fps": 12, "rollout/ep_rew_mean": 21.123456, "plain": "text", "time/total_timesteps": 2048}
    values |= {"train/" + "long" * 12: 1e-5, "rollout/whole": np.float64(3.0)}
    texts = []
    for kind in (sb3.HumanOutputFormat, HumanOutputFormat):
        file = io.StringIO()
        kind(file).write(values, dict.fromkeys(values, ("",)))
        texts.append(file.getvalue())
    assert texts[0] == texts[1]


def test_excluded_values_do_not_reach_a_format(tmp_path):
    logger = configure(tmp_path, ["csv", "json", "log"])
    logger.record("seen", 1)
    logger.record("hidden", 2, exclude="csv")
    logger.record("secret", 3, exclude=("json", "log"))
    logger.dump()
    logger.close()
    assert (tmp_path / "progress.csv").read_text().splitlines() == ["secret,seen", "3,1"]
    assert json.loads((tmp_path / "progress.json").read_text()) == {"hidden": 2, "seen": 1}
    text = (tmp_path / "log.txt").read_text()
    assert "hidden" in text
    assert "secret" not in text


def test_a_key_that_comes_later_gets_a_column_and_text_is_quoted(tmp_path):
    logger = configure(tmp_path, ["csv"])
    logger.record("b", 1.5)
    logger.dump()
    logger.record("b", torch.tensor(2.5))
    logger.record("a", 'say "x, y"')
    logger.dump()
    logger.record("a", "z")
    logger.dump()
    logger.close()
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"b": "1.5", "a": ""}, {"b": "2.5", "a": 'say "x, y"'}, {"b": "", "a": "z"}]


@pytest.mark.parametrize("kind", ["log", "json", "csv"])
def test_media_are_for_tensorboard_only(kind, tmp_path):
    for value in (Video(torch.zeros(1), 1.0), Figure(None, True), HParam({}, {"x": 1.0})):
        logger = configure(tmp_path, [kind])
        logger.record("media", value)
        with pytest.raises(FormatUnsupportedError, match=r"media.*exclude="):
            logger.dump()
        logger.close()


def test_tensorboard_gets_scalars_texts_histograms_and_hyper_parameters(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = configure(tmp_path, ["tensorboard"])
    logger.record("one", np.float32(1.5))
    logger.record("text", "words")
    logger.record("many", np.arange(5.0))
    logger.record("hparams", HParam({"lr": 0.1}, {"one": 0.0}))
    logger.dump(3)
    logger.close()
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert [(e.step, e.value) for e in events.Scalars("one")] == [(3, 1.5)]
    assert tags["histograms"] == ["many"]
    assert tags["tensors"] == ["text/text_summary"]
    assert "_hparams_/experiment" in events.PluginTagToContent("hparams")


def test_where_and_what_come_from_the_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "here"))
    monkeypatch.setenv("SB3_LOG_FORMAT", "json,csv")
    logger = configure()
    logger.close()
    assert logger.get_dir() == str(tmp_path / "here")
    assert sorted(os.listdir(tmp_path / "here")) == ["progress.csv", "progress.json"]


def test_unknown_formats_are_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'xml'.*stdout, log, json, csv, tensorboard"):
        make_output_format("xml", tmp_path)


def test_runs_are_numbered_and_continued_in_the_last_folder(tmp_path):
    pytest.importorskip("tensorboard")
    for name in ("PPO_1", "PPO_9", "PPO_x", "OTHER_12"):
        (tmp_path / name).mkdir()
    for continues, folder in ((False, "PPO_10"), (True, "PPO_10"), (False, "PPO_11")):
        logger = training_logger(0, tmp_path, "PPO", continues=continues)
        assert logger.get_dir() == str(tmp_path / folder)
        logger.close()
    first = training_logger(0, tmp_path, "NEW", continues=True)
    assert first.get_dir() == str(tmp_path / "NEW_1")
    first.close()


def test_nothing_is_written_where_nothing_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logger = training_logger(0, None, "PPO", continues=False)
    logger.record("x", 1)
    logger.dump()
    assert (os.listdir(tmp_path), capsys.readouterr().out) == ([], "")
    training_logger(1, None, "PPO", continues=False).log("table")
    assert capsys.readouterr().out == "table\n"
