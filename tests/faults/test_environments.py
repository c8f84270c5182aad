"""Environments that hang or return nothing: the run ends with one line that names environment, step and mend."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from ctrlrl.cli import main
from ctrlrl.config import EnvConfig
from ctrlrl.envs.timeout import TimedEnv
from ctrlrl.tasks import make_env
from ctrlrl.train.checkpoint import read_folder


class Faulty(gym.Env[np.ndarray, np.ndarray]):
    """Goes wrong in its 20th step, or in its second reset."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, kind: str) -> None:
        self.kind, self.steps, self.resets = kind, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        if self.resets > 1 and self.kind == "reset-none":
            return None
        if self.resets > 1 and self.kind == "reset-hangs":
            time.sleep(60)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs: Any = np.zeros(2, np.float32)
        reward: Any = 0.0
        if self.steps == 20:
            match self.kind:
                case "none":
                    return None
                case "obs-none":
                    obs = None
                case "reward-none":
                    reward = None
                case "sleeps":
                    time.sleep(60)
                case "spins":
                    while True:
                        pass
                case "stubborn":
                    self.swallow()
                case "waits":
                    threading.Event().wait(60)
        return obs, reward, False, self.steps % 10 == 0, {}

    def swallow(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                time.sleep(60)
            except BaseException:
                if self.kind == "swallowed":
                    raise
                self.kind = "swallowed"


KINDS = ("none", "obs-none", "reward-none", "reset-none", "sleeps", "spins", "waits", "stubborn", "reset-hangs", "fine")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for kind in KINDS:
        gym.register(f"Faulty-{kind}-v0", entry_point=lambda kind=kind, **_: Faulty(kind), disable_env_checker=True)
    yield
    for kind in KINDS:
        del gym.registry[f"Faulty-{kind}-v0"]


def train(kind: str, folder: Path, *words: str) -> int:
    typed = (
        f"train algo=ppo env=gym env.id=Faulty-{kind}-v0 experiment=none n_envs=1 total_steps=64 algo.n_steps=8 "
        "algo.n_minibatches=1 algo.n_epochs=1 algo.hidden=[4] eval.every=0 eval.episodes=1 checkpoint.every=0 "
        f"log.progress=false run.report=false device=cpu run.dir={folder}"
    ).split()
    with pytest.raises(SystemExit) as info:
        main([*typed, *words])
    return int(info.value.code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", ["step 20"]),
        ("obs-none", ["observation"]),
        ("reward-none", ["reward"]),
        ("reset-none", ["reset", "step"]),
    ],
)
def test_none_in_the_place_of_something_is_one_line_and_the_checkpoint_stays(tmp_path, capsys, kind, words):
    assert train(kind, tmp_path / "a") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line = next(text for text in err.splitlines() if f"Faulty-{kind}-v0" in text)
    assert [w for w in words if w not in line] == []
    assert json.loads((tmp_path / "a/result.json").read_text())["status"] == "failed"
    steps = 8 if kind == "reset-none" else 16
    assert read_folder(tmp_path / "a/checkpoints/last").state["env_steps"] == steps


@pytest.mark.parametrize("kind", ["sleeps", "spins", "waits", "stubborn", "reset-hangs"])
def test_a_hang_ends_the_run_with_one_line_that_names_it(tmp_path, capsys, kind):
    begin = time.monotonic()
    assert train(kind, tmp_path / "a", "env.timeout=0.3") == 1
    assert time.monotonic() - begin < 20.0
    step = "step 10" if kind == "reset-hangs" else "step 20"  # the adapter resets inside the step that ends an episode
    err = capsys.readouterr().err
    assert f"Faulty-{kind}-v0: {step} did not return within env.timeout=0.3 seconds" in err
    assert json.loads((tmp_path / "a/result.json").read_text())["status"] == "failed"
    assert read_folder(tmp_path / "a/checkpoints/last").state["env_steps"] >= 8
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_healthy_environment_does_not_notice_the_limit(tmp_path):
    assert train("fine", tmp_path / "a", "env.timeout=30") == 0
    assert train("fine", tmp_path / "b") == 0
    first, second = (read_folder(tmp_path / name / "checkpoints/last").model for name in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_an_alarm_of_the_users_own_rings_on(tmp_path):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        env = make_env(EnvConfig(name="gym", id="Faulty-fine-v0", timeout=30.0), 1)
        env.reset(0)
        env.step(torch.zeros(1, 1))
        rung.clear()
        time.sleep(0.2)
        assert rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_native_simulators_pay_nothing_and_say_so():
    assert not isinstance(make_env(EnvConfig(name="pendulum", backend="gymnasium"), 1), TimedEnv)
    for backend in ("torch", "auto"):
        with pytest.raises(ValueError, match=r"env.timeout is for environments that Python code steps"):
            make_env(EnvConfig(name="pendulum", backend=backend, timeout=1.0), 1)


def test_outside_the_main_thread_the_limit_is_refused_and_not_forgotten():
    env = make_env(EnvConfig(name="gym", id="Faulty-fine-v0", timeout=1.0), 1)
    said: list[str] = []

    def run() -> None:
        try:
            env.reset(0)
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in said[0]
