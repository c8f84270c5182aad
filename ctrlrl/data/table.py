"""Transitions as packed rows on one device: one gather a batch, the columns are views of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ctrlrl.data.episodes import Episodes
from ctrlrl.functional.returns import n_step_sums
from ctrlrl.types import HybridBatch, Source, Transition, tree_map

BLOCK = 2**16  # rows of a pass over the whole table: bounds the memory of what is computed on the way


class Table:
    """obs | action | reward | next_obs | terminated | extras, float32. An extra of width 0 is one number a row, [N]."""

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        extras: Mapping[str, int],
        device: torch.device | str,
        *,
        reward_dim: int = 1,
    ):
        reward = reward_dim if reward_dim > 1 else 0
        widths = [
            ("obs", obs_dim),
            ("action", action_dim),
            ("reward", reward),
            ("next_obs", obs_dim),
            ("terminated", 0),
        ]
        self.obs_dim, self.action_dim, self.extras = obs_dim, action_dim, tuple(extras)
        self.columns: dict[str, slice | int] = {}
        at = 0
        for name, width in [*widths, *extras.items()]:
            self.columns[name] = slice(at, at + width) if width else at
            at += max(width, 1)
        self.rows = torch.empty(capacity, at, device=device)

    def __getitem__(self, name: str) -> Tensor:
        """The column [capacity, width] or [capacity], a view."""
        return self.rows[:, self.columns[name]]

    def read(self, rows: Tensor) -> Transition:
        """Rows [..., width] as a transition of views."""
        c = self.columns
        return Transition(
            rows[..., c["obs"]],
            rows[..., c["action"]],
            rows[..., c["reward"]],
            rows[..., c["next_obs"]],
            rows[..., c["terminated"]] > 0.5,
            {name: rows[..., c[name]] for name in self.extras},
        )


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
        actions = _in_units(episodes)
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
            block = {
                "obs": episodes.obs[rows],
                "action": action if clip_actions is None else action.clip(-clip_actions, clip_actions),
                "reward": rewards[rows],
                "next_obs": following[last[rows]],
                "terminated": episodes.terminated[last[rows]],
                **{name: column[rows] for name, column in extra.items()},
            }
            for name, column in block.items():
                table[name][begin : begin + len(rows)] = torch.as_tensor(column, device=device)
        followed = torch.as_tensor(_ends(keep, episodes.ends), device=device)
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


class ReplayBuffer:
    """The last `capacity` transitions of an environment, a ring of packed rows."""

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        extras: Mapping[str, int] | None = None,
        device: torch.device | str = "cpu",
        reward_dim: int = 1,
    ):
        if capacity < 1:
            raise ValueError(f"buffer_size must be at least 1, got {capacity}")
        self.table = Table(capacity, obs_dim, action_dim, extras or {}, device, reward_dim=reward_dim)
        self.capacity, self.added = capacity, 0  # rows ever added

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, data: Transition) -> None:
        """B new transitions [B, ...]; the oldest make room."""
        n = len(data.reward)
        if n > self.capacity:
            raise ValueError(f"buffer_size={self.capacity} is smaller than one step of {n} environments")
        begin = self.added % self.capacity
        first = min(n, self.capacity - begin)
        for name, column in {**data._asdict(), **data.extras}.items():
            if name in self.table.columns:
                stored = self.table[name]
                stored[begin : begin + first] = column[:first]
                stored[: n - first] = column[first:]
        self.added += n

    def fill(self, data: Transition) -> None:
        """Begin with the rows of a data set, the last ones where they are more than the capacity."""
        self.add(tree_map(lambda x: x[-self.capacity :], data))

    def sample(self, n: int) -> Transition:
        if self.added == 0:
            raise ValueError("the replay buffer is empty; collect transitions before the first update")
        index = torch.randint(len(self), (n,), device=self.table.rows.device)
        return self.table.read(torch.embedding(self.table.rows, index))  # as in Dataset.take

    def newest(self, n: int) -> Tensor:
        """The packed rows [<= n, width] that were added last, in the order in which they lie."""
        n, end = min(n, len(self)), (self.added - 1) % self.capacity + 1
        first = self.table.rows[max(0, end - n) : end]
        return first if n <= end else torch.cat((first, self.table.rows[end - n :]))

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.table.rows[: len(self)], "added": torch.tensor(self.added)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.added = int(state["added"])
        self.table.rows[: len(self)] = state["rows"].to(self.table.rows.device)


class Mixture:
    """Rows of several sources in fixed shares, interleaved in the order given: any slice of a batch holds the shares.

    extras that not every source has are left out.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]]):
        total = sum(share for _, share in parts)
        if not parts or min(share for _, share in parts) < 0 or total <= 0:
            raise ValueError(f"a mixture needs shares that are not negative and not all 0, got {[s for _, s in parts]}")
        self.sources = [source for source, _ in parts]
        self.shares = [share / total for _, share in parts]

    def sample(self, n: int) -> Transition:
        edges = [round(n * sum(self.shares[:i])) for i in range(len(self.shares) + 1)]
        counts = [b - a for a, b in pairwise(edges)]
        drawn = [source.sample(k) for source, k in zip(self.sources, counts, strict=True) if k]
        place = torch.cat([(torch.arange(k) + 0.5) / k for k in counts if k])  # where in the batch, as a fraction
        order = torch.argsort(place, stable=True).to(drawn[0].reward.device)
        shared = set.intersection(*(set(d.extras) for d in drawn))
        alike = [d._replace(extras={name: d.extras[name] for name in shared}) for d in drawn]
        return tree_map(lambda *parts: torch.cat(parts)[order], alike[0], *alike[1:])


class Pair:
    """A batch of each of two sources, kept apart: real transitions and simulated ones."""

    def __init__(self, real: Source, sim: Source):
        self.real, self.sim = real, sim

    def sample(self, n: int) -> HybridBatch:
        """n rows in all, half of each. extras that not both have are left out."""
        real, sim = self.real.sample(n - n // 2), self.sim.sample(n // 2)
        shared = set(real.extras) & set(sim.extras)
        return HybridBatch(*(d._replace(extras={name: d.extras[name] for name in shared}) for d in (real, sim)))


def return_range(episodes: Episodes) -> float:
    """Largest minus smallest episode return of the raw rewards of usable rows; IQL scales rewards by 1000 over it."""
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
    count = max(1, int(fraction * episodes.n_episodes))
    best = np.zeros(episodes.n_episodes, dtype=bool)
    best[np.argsort(-episodes.returns(), kind="stable")[:count]] = True
    return np.repeat(best, episodes.lengths())


def _in_units(episodes: Episodes) -> np.ndarray:
    """Actions [N, A] with the file's own bounds at -1 and 1."""
    low, high = (np.asarray(end, dtype=np.float32) for end in (episodes.facts.action_low, episodes.facts.action_high))
    if len(low) == 0 or ((low == -1.0) & (high == 1.0)).all():
        return episodes.action
    return 2.0 * (episodes.action - low) / (high - low) - 1.0


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
