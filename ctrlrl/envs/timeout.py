"""A time limit on every call into an environment that Python code steps: a hang becomes one line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor

from ctrlrl.types import EnvSpec, TimeStep, VecEnv

_AGAIN = 1.0  # seconds until the alarm rings again, should the environment have caught it


class _Late(BaseException):
    """Not an Exception: the environment's own `except Exception` must not swallow it."""


class TimedEnv:
    """A VecEnv whose `reset` and `step` may take `seconds` each; RuntimeError names environment, step and env.timeout.

    It works by SIGALRM, so only in the main thread, and only where the interpreter runs now and then: C code that never
    returns is not interrupted.
    """

    spec: EnvSpec

    def __init__(self, env: VecEnv, seconds: float):
        if not hasattr(signal, "setitimer"):
            raise ValueError("env.timeout needs SIGALRM, which this system does not have; set env.timeout=null")
        self.env, self.spec, self.seconds = env, env.spec, seconds
        self.name = getattr(env, "name", type(env).__name__)
        self._n_steps = 0
        self._armed = False

    def reset(self, seed: int | None = None) -> Tensor:
        return self._within(lambda: self.env.reset(seed), "reset")

    def step(self, action: Tensor) -> TimeStep:
        self._n_steps += 1
        return self._within(lambda: self.env.step(action), f"step {self._n_steps}")

    def state_dict(self) -> dict[str, Tensor]:
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.env.load_state_dict(state)

    def close(self) -> None:
        self.env.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def _within(self, call: Callable[[], Any], what: str) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("env.timeout works in the main thread only; train there, or set env.timeout=null")
        handler = signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        timer = signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN)
        try:
            result = call()
            self._armed = False
            return result
        except _Late:
            self._armed = False
            raise RuntimeError(
                f"{self.name}: {what} did not return within env.timeout={self.seconds:g} seconds. Mend the "
                "environment, or raise env.timeout."
            ) from None
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            raise _Late
