"""What `learn` of every class tells of itself: callbacks, and a logger with SB3's words and files."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from ctrlrl.train.callbacks import BaseCallback, as_callback
from ctrlrl.train.logger import Logger, training_logger

Learn = TypeVar("Learn", bound=Callable[..., Any])


def while_learning(learn: Learn) -> Learn:
    """A `learn` during which nobody else may step the model's environment."""

    @wraps(learn)
    def learns(model: Any, *args: Any, **kwargs: Any) -> Any:
        model.is_learning = True
        try:
            return learn(model, *args, **kwargs)
        finally:
            model.is_learning = False

    return learns  # type: ignore[return-value]


class Reporting:
    """num_timesteps: the clock of callbacks and logs. ep_info_buffer, ep_success_buffer: the last episodes."""

    verbose: int
    tensorboard_log: str | None
    _connection: Any
    is_learning = False  # within `learn`

    def _setup_reporting(self, verbose: int, tensorboard_log: str | None, stats_window_size: int = 100) -> None:
        self.verbose, self.tensorboard_log, self._stats_window_size = verbose, tensorboard_log, stats_window_size
        self.num_timesteps = self._num_timesteps_at_start = 0
        self.start_time = 0  # ns
        self.ep_info_buffer: deque[dict[str, Any]] | None = None
        self.ep_success_buffer: deque[float] | None = None
        self._logger: Any = Logger(None, [])
        self._custom_logger = False
        self._log_folders: dict[str, str] = {}  # of this model's runs, by their names

    def _start_clock(self, *, continues: bool) -> None:
        """Time and episodes of one `learn`."""
        self.start_time, self._num_timesteps_at_start = time.time_ns(), self.num_timesteps
        if not continues or self.ep_info_buffer is None:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)

    def _open_logger(self, name: str, *, continues: bool) -> None:
        if self._custom_logger:
            return
        self._logger.close()
        folder = self._log_folders.get(name)
        self._logger = training_logger(self.verbose, self.tensorboard_log, name, continues=continues, folder=folder)
        if self._logger.get_dir() is not None:
            self._log_folders[name] = self._logger.get_dir()

    def _called(self, callback: Any) -> Any:
        found = BaseCallback() if callback is None else as_callback(callback)
        with warnings.catch_warnings():
            if not hasattr(getattr(self._connection, "env", None), "venv"):
                # SB3's EvalCallback compares classes, and ours stands for the same task as SB3's
                warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
            found.init_callback(self)
        return found

    @property
    def logger(self) -> Any:
        return self._logger

    def set_logger(self, logger: Any) -> None:
        """Use this one (SB3's or ctrlrl's) whatever `verbose` and `tensorboard_log` say."""
        self._logger, self._custom_logger = logger, True

    def get_env(self) -> Any:
        """The environment as an SB3 VecEnv where SB3 is installed, else as a ctrlrl VecEnv; None without one."""
        return None if self._connection is None else self._connection.face()

    def get_vec_normalize_env(self) -> Any:
        return None if self._connection is None else self._connection.vec_normalize()
