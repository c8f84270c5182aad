"""A data set as it was collected, whatever file it came from: loaders make it; writers, checks, `Dataset` read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Facts:
    """What a file says of itself."""

    format: str  # "d4rl", "rollouts", "ogbench", "minari", "adroit"
    path: str
    env_id: str | None = None  # Gymnasium id of the simulator
    data_id: str | None = None  # id in its collection, e.g. "hopper-medium-v2"
    versions: dict[str, str] = field(default_factory=dict)  # of the simulator that made it, where the file says
    ref_min: float | None = None  # mean return of a random and of an expert policy: normalised score 0 and 100
    ref_max: float | None = None
    checksum: str | None = None  # sha256 of the file or of its arrays, hex
    notices: tuple[str, ...] = ()  # what the loader had to decide, one line each
    action_low: tuple[float, ...] = ()  # bounds of the Box that actions lie in, where the file says; () = [-1, 1]
    action_high: tuple[float, ...] = ()
    has_rewards: bool = True  # false: the file has none, and all are 0
    in_order: bool = True  # false: transitions in any order, so which of them belong to an episode is not known
    origin: str | None = None  # the simulator that made it, where that is not env_id's own

    @property
    def simulator(self) -> str | None:
        """As files store it: "A ~ B" was made in A, another simulator of B's task."""
        return self.env_id if self.origin is None else f"{self.origin} ~ {self.env_id}"


@dataclass(frozen=True)
class Episodes:
    """E episodes one after another, N rows. Actions as stored, rewards raw.

    `terminated` is the bootstrap mask alone: in AntMaze and OGBench an episode goes on after it. Where an episode ends
    is `ends`, and only that.
    """

    obs: Array  # [N, O] float32, or [N, ...] uint8 images
    action: Array  # [N, A] float32, or [N] int64
    reward: Array  # [N] float32
    terminated: Array  # [N] bool: no bootstrap from what followed this row
    ends: Array  # [E] int64, exclusive: episode e is rows ends[e-1] ... ends[e]-1
    final_obs: Array  # [E, O] the observation after an episode's last row; meaningless where not has_final
    has_final: Array  # [E] bool
    usable: Array  # [N] bool: the rows that learning sees (D4RL's loader drops time-outs and the last row)
    extras: dict[str, Array]  # [N, ...] further columns: "infos/qpos", "source_terminal", ...
    episode_extras: dict[str, Array]  # [E, ...]: "episode_policy", "episode_seed", ...
    facts: Facts

    @property
    def n_rows(self) -> int:
        return len(self.reward)

    @property
    def n_episodes(self) -> int:
        return len(self.ends)

    def must_be_in_order(self, what: str) -> None:
        """ValueError where rows lie in no order. what: needs to know which of them belong to an episode."""
        if not self.facts.in_order:
            raise ValueError(
                f"{self.facts.path}: its rows are in no order, and {what} is about episodes: store the rows of an "
                "episode one after another, or leave that out"
            )

    def starts(self) -> Array:
        """[E] first row of each episode."""
        return np.concatenate(([0], self.ends[:-1])).astype(np.int64)

    def returns(self) -> Array:
        """[E] undiscounted sums of raw rewards, float64, rows that learning does not see included."""
        of = np.repeat(np.arange(self.n_episodes), self.lengths())
        return np.bincount(of, weights=self.reward, minlength=self.n_episodes)  # a NaN spoils its own episode alone

    def lengths(self) -> Array:
        return self.ends - self.starts()

    def unit_actions(self) -> Array:
        """[N, A] with the file's own bounds at -1 and 1."""
        low, high = (np.asarray(end, dtype=np.float32) for end in (self.facts.action_low, self.facts.action_high))
        if len(low) == 0 or ((low == -1.0) & (high == 1.0)).all():
            return self.action
        return 2.0 * (self.action - low) / (high - low) - 1.0

    def next_obs(self) -> Array:
        """[N, O] observation after each row; row i + 1 of the file where an episode's last observation is not known."""
        following = np.concatenate((self.obs[1:], self.obs[-1:]))
        last = self.ends[self.has_final] - 1
        following[last] = self.final_obs[self.has_final]
        return following

    def only(self, which: Array) -> Episodes:
        """The episodes of these numbers [K], in their order."""
        starts, lengths = self.starts()[which], self.lengths()[which]
        ends = np.cumsum(lengths)
        rows = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        per_row = ("obs", "action", "reward", "terminated", "usable")
        taken: dict[str, Any] = {name: getattr(self, name)[rows] for name in per_row}
        return replace(
            self,
            **taken,
            ends=ends,
            final_obs=self.final_obs[which],
            has_final=self.has_final[which],
            extras={name: column[rows] for name, column in self.extras.items()},
            episode_extras={name: column[which] for name, column in self.episode_extras.items()},
        )

    def first_steps(self, n: int) -> Episodes:
        """Of every episode the first n rows at most; where it is cut, the row after them is its last observation."""
        starts, lengths = self.starts(), np.minimum(self.lengths(), n)
        ends = np.cumsum(lengths)
        rows = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        cut = lengths < self.lengths()
        final_obs, has_final = self.final_obs.copy(), self.has_final | cut
        extras, episode_extras = dict(self.extras), dict(self.episode_extras)
        final_obs[cut] = self.obs[(starts + lengths)[cut]]
        if "timeouts" in extras:
            extras["timeouts"] = extras["timeouts"].copy()
            extras["timeouts"][(starts + lengths - 1)[cut]] = True
        if "episode_complete" in episode_extras:
            episode_extras["episode_complete"] = episode_extras["episode_complete"] & ~cut
        return replace(
            self,
            obs=self.obs[rows],
            action=self.action[rows],
            reward=self.reward[rows],
            terminated=self.terminated[rows],
            usable=self.usable[rows],
            ends=ends,
            final_obs=final_obs,
            has_final=has_final,
            extras={name: column[rows] for name, column in extras.items()},
            episode_extras=episode_extras,
        )


def join(parts: Sequence[Episodes]) -> Episodes:
    """One after another; facts, and the columns that there are, are those of the first."""
    first = parts[0]
    shift = np.cumsum([0, *(part.n_rows for part in parts[:-1])])
    columns = ("obs", "action", "reward", "terminated", "final_obs", "has_final", "usable")

    def joined(each: Sequence[dict[str, Array]]) -> dict[str, Array]:
        return {name: np.concatenate([found[name] for found in each]) for name in each[0]}

    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return replace(
        first,
        **arrays,
        ends=np.concatenate([part.ends + at for part, at in zip(parts, shift, strict=True)]),
        extras=joined([part.extras for part in parts]),
        episode_extras=joined([part.episode_extras for part in parts]),
    )
