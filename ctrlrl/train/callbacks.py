"""Callbacks of `learn`: objects with SB3's methods (SB3's own among them), functions, and lists of both.

No SB3 is needed: an object is a callback by having `on_step`, and BaseCallback is a base for one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Locals = dict[str, Any]


class BaseCallback:
    """Override the methods with an underscore; `_on_step` returns False to end training at once.

    model, training_env, logger: of the training under way. n_calls: vector steps seen; num_timesteps: environment
    steps. locals: what happened in the step (new_obs, actions, rewards, dones, infos, ...). Where a model learns from a
    data set alone a step is an update, and locals has its metrics.
    """

    model: Any

    def __init__(self, verbose: int = 0):
        self.verbose = verbose
        self.n_calls = self.num_timesteps = 0
        self.locals: Locals = {}
        self.globals: Locals = {}
        self.parent: Any = None

    @property
    def training_env(self) -> Any:
        return self.model.get_env()

    @property
    def logger(self) -> Any:
        return self.model.logger

    def init_callback(self, model: Any) -> None:
        self.model = model
        self._init_callback()

    def on_training_start(self, locals_: Locals, globals_: Locals) -> None:
        self.locals, self.globals = locals_, globals_
        self.num_timesteps = self.model.num_timesteps
        self._on_training_start()

    def on_rollout_start(self) -> None:
        self._on_rollout_start()

    def update_locals(self, locals_: Locals) -> None:
        self.locals.update(locals_)
        self.update_child_locals(locals_)

    def on_step(self) -> bool:
        self.n_calls += 1
        self.num_timesteps = self.model.num_timesteps
        return self._on_step()

    def on_rollout_end(self) -> None:
        self._on_rollout_end()

    def on_training_end(self) -> None:
        self._on_training_end()

    def _init_callback(self) -> None: ...
    def _on_training_start(self) -> None: ...
    def _on_rollout_start(self) -> None: ...
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None: ...
    def _on_training_end(self) -> None: ...
    def update_child_locals(self, locals_: Locals) -> None: ...


class FunctionCallback(BaseCallback):
    """A function of (locals, globals) at every step; what is false ends training, but None (no return) does not."""

    def __init__(self, function: Callable[[Locals, Locals], bool | None]):
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return _goes_on(self.function(self.locals, self.globals))


class CallbackList(BaseCallback):
    """Several callbacks in their order; all are called even where one of them ends training."""

    def __init__(self, callbacks: Sequence[Any]):
        super().__init__()
        self.callbacks = [as_callback(one) for one in callbacks]

    def _init_callback(self) -> None:
        for callback in self.callbacks:
            callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        for callback in self.callbacks:
            callback.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_start()

    def _on_step(self) -> bool:
        answers = [bool(callback.on_step()) for callback in self.callbacks]
        return all(answers)

    def _on_rollout_end(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_end()

    def _on_training_end(self) -> None:
        for callback in self.callbacks:
            callback.on_training_end()

    def update_child_locals(self, locals_: Locals) -> None:
        for callback in self.callbacks:
            callback.update_locals(locals_)


def as_callback(given: Any) -> Any:
    """A callback object of what `learn(callback=...)` takes; TypeError for anything else."""
    if isinstance(given, (list, tuple)):
        return CallbackList(given)
    if hasattr(given, "on_step") and hasattr(given, "init_callback"):
        return given
    if callable(given):
        return FunctionCallback(given)
    raise TypeError(f"callback must be a callback object, a function or a list of them, got {type(given).__name__}")


def of_metrics(given: Any, where: str) -> Callable[[dict[str, float]], bool]:
    """A function of one update's metrics as one that says whether training goes on; None always does."""
    if given is not None and not callable(given):
        kind = type(given).__name__
        raise TypeError(f"{where}: callback must be a function of the metrics of one update, a dict, got {kind}")
    return lambda row: given is None or _goes_on(given(row))


def _goes_on(answer: bool | None) -> bool:
    return True if answer is None else bool(answer)
