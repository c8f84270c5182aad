"""A data set to learn from: the usable rows of recorded episodes, packed, with the columns an algorithm needs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ctrlrl.data.episodes import Episodes
from ctrlrl.data.table import Table
from ctrlrl.functional.returns import n_step_sums
from ctrlrl.types import Transition

BLOCK = 2**16  # rows of a pass over the whole table: bounds the memory of what is computed on the way


class Dataset:
    """A fixed set of N transitions. Every row knows its number: extras["index"], int64.

    Rewards and actions are as they are learned from; observations are raw, learners normalise them.
    """

    def __init__(
        self,
        table: Table,
        reward: tuple[float, float] = (1.0, 0.0),
        ends: Tensor | None = None,
        *,
        lowest: float | None = None,
    ):
        """reward: scale and shift that made its rewards of the environment's. lowest: of a step; None: of a row.

        ends: [E] int64, exclusive, where the rows that followed each other in an episode end; None: not known.
        """
        self.table, self.size, self.reward, self.ends = table, len(table.rows), reward, ends
        if self.size == 0:
            raise ValueError("the data set holds no transition to learn from")
        self.lowest = float(table["reward"].min()) if lowest is None else lowest

    @classmethod
    def of(cls, data: Transition) -> Dataset:
        """From tensors of N rows, e.g. a test's."""
        n, device = len(data.reward), data.reward.device
        extras = {k: v.shape[1] if v.ndim > 1 else 0 for k, v in data.extras.items() if k != "index"}
        table = Table(n, data.obs.shape[1], data.action.shape[1], extras, device)
        for name, column in {**data._asdict(), **data.extras}.items():
            if name in table.columns:
                table[name].copy_(column)
        return cls(table)

    @classmethod
    def of_episodes(
        cls,
        episodes: Episodes,
        *,
        needs: Iterable[str] = (),
        device: torch.device | str = "cpu",
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        clip_actions: float | None = None,
        gamma: float = 0.99,
        best_fraction: float = 1.0,
        n_steps: int = 1,
    ) -> Dataset:
        """The usable rows of a data set, rewards as scale * r + shift, actions of a known Box scaled to [-1, 1].

        needs: extra columns: "next_action" [N, A] (the next row's; an episode's last row, which has none, stays out
        unless it terminated), "return_to_go" [N] (discounted by gamma, of the transformed rewards).
        best_fraction: only rows of the episodes with the highest undiscounted returns, at least one episode.
        n_steps: a row's reward is the discounted sum of up to this many, its next observation what the last of them led
        to, and extras "discount" [N] what the value there counts; from 2 on.
        """
        about_episodes = {"data.best_fraction": best_fraction < 1.0, "algo.n_steps": n_steps > 1}
        for what in (*needs, *(key for key, asked in about_episodes.items() if asked)):
            episodes.must_be_in_order(what)
        actions = episodes.unit_actions()
        rewards = episodes.reward * np.float32(reward_scale) + np.float32(reward_shift)
        lowest = float(rewards[episodes.usable].min(initial=np.inf))
        rewards, last, discount = _spans(episodes, rewards, gamma, n_steps)
        makers = {"next_action": lambda: _next_action(actions, clip_actions)[last]}
        makers["return_to_go"] = lambda: _return_to_go(episodes, reward_scale, reward_shift, gamma)
        unknown = [name for name in needs if name not in makers]
        if unknown:
            raise ValueError(
                f"{episodes.facts.path}: the algorithm reads {unknown[0]!r}, which a data set does not hold"
            )
        extra = {name: makers[name]() for name in needs} | ({"discount": discount} if n_steps > 1 else {})
        usable = episodes.usable & _of_best(episodes, best_fraction)
        if "next_action" in extra:
            ends = np.zeros(episodes.n_rows, dtype=bool)
            ends[episodes.ends - 1] = True
            usable &= ~(ends & ~episodes.terminated)[last]
        keep = np.flatnonzero(usable)
        widths = {name: column.shape[1] if column.ndim > 1 else 0 for name, column in extra.items()}
        table = Table(len(keep), episodes.obs.shape[1], episodes.action.shape[1], widths, device)
        following = episodes.next_obs()
        seen = {"observations": episodes.obs, "actions": episodes.action, "rewards": episodes.reward}
        seen["next observations"] = following
        for begin in range(0, len(keep), BLOCK):
            rows = keep[begin : begin + BLOCK]
            for name, column in seen.items():
                _check_finite(column[rows], name, rows, episodes.facts.path)
            action = actions[rows]
            learned = {name: column[rows] for name, column in extra.items()}
            for name, column in learned.items():
                _check_finite(column, name, rows, episodes.facts.path)
            block = {
                "obs": episodes.obs[rows],
                "action": action if clip_actions is None else action.clip(-clip_actions, clip_actions),
                "reward": rewards[rows],
                "next_obs": following[last[rows]],
                "terminated": episodes.terminated[last[rows]],
                **learned,
            }
            for name, column in block.items():
                table[name][begin : begin + len(rows)] = torch.as_tensor(column, device=device)
        followed = torch.as_tensor(_ends(keep, episodes.ends), device=device) if episodes.facts.in_order else None
        return cls(table, (reward_scale, reward_shift), followed, lowest=lowest)

    def sample(self, n: int) -> Transition:
        """n rows with replacement, drawn on the device."""
        return self.take(torch.randint(self.size, (n,), device=self.table.rows.device))

    def take(self, index: Tensor) -> Transition:
        """Rows by number, [...] int64."""
        rows = torch.embedding(self.table.rows, index)  # as rows[index], which takes five times as long on a CPU
        data = self.table.read(rows)
        data.extras["index"] = index
        return data

    def all(self) -> Transition:
        """Every row once, in order, as views."""
        data = self.table.read(self.table.rows)
        data.extras["index"] = torch.arange(self.size, device=self.table.rows.device)
        return data


def return_range(episodes: Episodes) -> float:
    """Largest minus smallest episode return of the raw rewards of usable rows; IQL scales rewards by 1000 over it."""
    episodes.must_be_in_order("data.return_range")
    reward = np.where(episodes.usable, episodes.reward, 0.0).astype(np.float64)
    _check_finite(reward, "rewards", np.arange(len(reward)), episodes.facts.path)
    total = np.concatenate(([0.0], np.cumsum(reward)))
    seen = np.logical_or.reduceat(episodes.usable, episodes.starts())
    returns = (total[episodes.ends] - total[episodes.starts()])[seen]
    spread = float(returns.max() - returns.min())
    if spread <= 0.0:
        raise ValueError(
            f"{episodes.facts.path}: data.return_range needs episodes of different returns, all have {returns[0]:g}"
        )
    return spread


def _check_finite(column: np.ndarray, name: str, rows: np.ndarray, path: str) -> None:
    """column: [n, ...], the values at `rows` of the file."""
    if column.dtype.kind == "f" and not (good := np.isfinite(column.reshape(len(rows), -1)).all(1)).all():
        raise ValueError(
            f"{path}: nan or inf in {name}, first at row {rows[good.argmin()]}: drop its episode. "
            "`ctrlrl data check` lists all."
        )


def _of_best(episodes: Episodes, fraction: float) -> np.ndarray:
    if fraction >= 1.0:
        return np.ones(episodes.n_rows, dtype=bool)
    _check_finite(episodes.reward, "rewards", np.arange(episodes.n_rows), episodes.facts.path)
    count = max(1, int(fraction * episodes.n_episodes))
    best = np.zeros(episodes.n_episodes, dtype=bool)
    best[np.argsort(-episodes.returns(), kind="stable")[:count]] = True
    return np.repeat(best, episodes.lengths())


def _ends(keep: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[E] exclusive ends, among the kept rows, of runs of neighbours in one episode; keep: [N] ascending."""
    episode = np.searchsorted(ends, keep, side="right")
    cut = np.flatnonzero((np.diff(keep) != 1) | (np.diff(episode) != 0)) + 1
    return np.append(cut, len(keep)).astype(np.int64)


def _spans(
    episodes: Episodes, rewards: np.ndarray, gamma: float, n_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every row the sum of up to n_steps rewards, the last row in it, and what the value behind counts.

    A sum ends with its episode, and before a row that is not usable.
    """
    rows = np.arange(episodes.n_rows)
    if n_steps == 1:
        return rewards, rows, np.full(len(rows), gamma, dtype=np.float32)
    stop = episodes.terminated.copy()
    stop[episodes.ends - 1] = True
    stop[:-1] |= ~episodes.usable[1:]
    total, length = n_step_sums(torch.from_numpy(rewards), torch.from_numpy(stop), gamma=gamma, n=n_steps)
    return total.numpy(), rows + length.numpy() - 1, (gamma ** length.numpy()).astype(np.float32)


def _next_action(actions: np.ndarray, clip: float | None) -> np.ndarray:
    action = np.concatenate((actions[1:], actions[-1:]))
    return action if clip is None else action.clip(-clip, clip)


def _return_to_go(episodes: Episodes, scale: float, shift: float, gamma: float) -> np.ndarray:
    """Discounted sum of the transformed rewards of usable rows to the episode's end, nothing after a terminated row.

    Rows that see nothing but the data set's lowest reward until the clock ends the episode go on failing for ever:
    r / (1 - gamma), as Cal-QL's authors have it for sparse rewards, arXiv:2303.05479.
    """
    reward = np.where(episodes.usable, episodes.reward.astype(np.float64) * scale + shift, 0.0)
    cut = episodes.terminated.copy()
    cut[episodes.ends - 1] = True
    decay = np.where(cut, 0.0, gamma)
    out, running = np.empty(episodes.n_rows, dtype=np.float32), 0.0
    for i in range(episodes.n_rows - 1, -1, -1):
        running = reward[i] + decay[i] * running
        out[i] = running
    if gamma < 1.0:
        lowest = episodes.reward[episodes.usable].min(initial=np.inf)
        last = np.flatnonzero(cut)
        first = np.concatenate(([0], last[:-1] + 1))
        failed = np.logical_and.reduceat((episodes.reward == lowest) | ~episodes.usable, first)
        failed &= ~episodes.terminated[last]
        out[np.repeat(failed, last - first + 1)] = (lowest * scale + shift) / (1.0 - gamma)
    return out
