"""Windows of episodes: what a policy that predicts several actions at once learns from. Only row numbers are made."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.data.dataset import Dataset
from ctrlrl.data.table import Table
from ctrlrl.types import FutureGoals, Transition, Window


class Windows:
    """All windows of a data set's episodes; row n_obs - 1 of a window is the present one.

    Of an episode of L rows they begin at rows -(n_obs - 1) ... L - horizon + (n_actions - 1): its first row is repeated
    before it, its last one after it. Source: Diffusion Policy's sampler, arXiv:2303.04137 and its code.

    goals: come with every window as extras["goal"] [..., n, O], as in BESO's loader, arXiv:2304.02532. Random ones are
    drawn anew every time. A window with too few rows behind it has the last row as its goal; there the loader gives 0.
    """

    def __init__(self, data: Dataset, window: Window, goals: FutureGoals | None = None):
        n_obs, horizon, n_actions = window
        if data.ends is None:
            raise ValueError("the data set does not tell where its episodes end, and windows must not cross an end")
        self.data, self.window, self.goals = data, window, goals
        self.lengths = data.ends.diff(prepend=data.ends.new_zeros(1))
        self.firsts = data.ends - self.lengths
        shortest = horizon - n_actions - n_obs + 2
        self.counts = (self.lengths - shortest + 1).clamp(min=0)
        self.until = self.counts.cumsum(0)  # windows of the episodes up to and with each
        self.size = int(self.until[-1])
        if self.size == 0:
            raise ValueError(
                f"the longest episode of the data set has {int(self.lengths.max())} usable steps, one window needs "
                f"{shortest} (horizon - n_action_steps - n_obs_steps + 2). Lower algo.horizon={horizon}."
            )
        self.offsets = torch.arange(horizon, device=data.ends.device) - (n_obs - 1)

    @property
    def table(self) -> Table:
        return self.data.table

    def rows(self, index: Tensor) -> Tensor:
        """Windows by number [...] int64 -> the rows of the data set that they cover [..., horizon]."""
        episode, now = self._place(index)
        return self._within(episode, now.unsqueeze(-1) + self.offsets)

    def goal_rows(self, index: Tensor, goals: FutureGoals) -> Tensor:
        """Windows by number [...] int64 -> the rows of the data set that are their goals [..., n]."""
        episode, now = self._place(index)
        behind = now + self.window.horizon - self.window.n_obs + 1
        begin = self.lengths[episode] - goals.n  # the latest
        if not goals.at_end:
            choices = (begin - behind + 1).clamp(min=1)
            begin = behind + (torch.rand(index.shape, device=index.device) * choices).long()
        return self._within(episode, begin.unsqueeze(-1) + torch.arange(goals.n, device=index.device))

    def _place(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The episode of a window, and which row of it is the present one."""
        episode = torch.searchsorted(self.until, index, right=True)
        return episode, index - (self.until[episode] - self.counts[episode])

    def _within(self, episode: Tensor, place: Tensor) -> Tensor:
        """Rows [..., n] of an episode [...] as rows of the data set; before its first one and after its last, these."""
        place = place.clamp(min=0).minimum(self.lengths[episode].unsqueeze(-1) - 1)
        return self.firsts[episode].unsqueeze(-1) + place

    def sample(self, n: int) -> Transition:
        """n windows with replacement, drawn on the device."""
        return self.take(torch.randint(self.size, (n,), device=self.offsets.device))

    def take(self, index: Tensor) -> Transition:
        """Windows by number [...]: obs [..., n_obs, O], action [..., horizon, A]; the rest of the present row."""
        rows = torch.embedding(self.table.rows, self.rows(index))
        n_obs, whole = self.window.n_obs, self.table.read(rows)
        data = self.table.read(rows[..., n_obs - 1, :])
        data.extras["index"] = index
        if self.goals is not None:
            data.extras["goal"] = self.table.read(
                torch.embedding(self.table.rows, self.goal_rows(index, self.goals))
            ).obs
        return data._replace(obs=whole.obs[..., :n_obs, :], action=whole.action)

    def all(self) -> Transition:
        """Every row of the data set once, in order, as views: statistics are taken of rows, not of windows."""
        return self.data.all()
