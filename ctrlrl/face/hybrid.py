"""A model that learns from real data and a simulator together: `H2O("MlpPolicy", env=sim, dataset=real).learn(n)`."""

from __future__ import annotations

from typing import Any, Self

from ctrlrl.face.offline import OfflineAgent


class HybridAgent(OfflineAgent):
    """As the offline models, but env is a simulator that `learn` steps, and the data set is of the real system."""

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Take `total_timesteps` steps of the simulator, with `utd` updates for each; a second call goes on.

        callback, log_interval: as SAC's `learn` takes them.
        """
        if self._episodes is None:
            raise ValueError(f"{type(self).__name__}.learn needs real data; give dataset=FILE or call set_dataset")
        return self.learn_online(total_timesteps, callback, log_interval, tb_log_name, progress_bar)
