"""Learners that leave a front behind: an archive of policies, trained side by side in rounds, one acting a preference.

A paper says how many members the next round has and how they begin (`begin`), and what one of them is (`make_team`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlrl.core.archive import Archive
from ctrlrl.core.learner import Learner
from ctrlrl.core.members import Members
from ctrlrl.functional.pareto import front_measures, simplex_grid
from ctrlrl.types import EnvSpec, Metrics, PolicyOutput, Rollout

NETS = "nets/"  # how the rows of a policy's networks are named in the archive
DIVISIONS = {1: 1, 2: 100, 3: 10}  # of the grid that expected utility is the mean over; 2 for more objectives


class FrontLearner(Learner):
    """The loop sets a budget, asks for rounds until there are none, and tells the members' returns when they are due.

    rounds: updates of every round. n_begun: rounds begun so far; n_updates: updates in the present one.
    front: what the archive is worth now, as metrics.
    """

    loop = "population"
    multi_objective = True
    team_state: ClassVar[tuple[str, ...]] = ()  # tensors of a team that a resume needs besides its networks
    cfg: Any

    def __init__(self, cfg: Any, spec: EnvSpec):
        self.cfg, self.spec, self.n_objectives = cfg, spec, spec.reward_dim
        self.reference = reference_of(cfg.reference, spec)
        self.preferences = simplex_grid(spec.reward_dim, cfg.eval_divisions or DIVISIONS.get(spec.reward_dim, 2))
        self.archive = Archive(self.reference, cfg.archive_size)
        self.front: Metrics = {}
        self._measure()  # here, so that a package that is missing is missed before the training
        self.rounds: list[int] = []
        self.n_begun = self.n_updates = 0
        self.team: Any = None
        self._teams: dict[int, Any] = {}
        self._compile = "eager"
        self._acting: Members | None = None

    @property
    def device(self) -> torch.device:
        return self.spec.device

    # what a paper decides --------------------------------------------------------------------------------------------

    def make_team(self, size: int) -> Any:
        """So many members with fresh networks; a Members."""
        raise NotImplementedError

    def plan(self, total_steps: int, n_envs: int) -> list[int]:
        """Updates of every round. total_steps: of all members' environments while they learn."""
        raise NotImplementedError

    def begin(self, round_: int) -> int:
        """Make `team` the members of a round, and return their number; 0 ends the run."""
        raise NotImplementedError

    def kept(self, team: Any) -> dict[str, Tensor]:
        """Rows [S, ...] of all that the archive keeps of a team's policies."""
        return {NETS + name: x for name, x in team.rows().items()}

    # what the loop asks ----------------------------------------------------------------------------------------------

    def set_budget(self, total_steps: int, n_envs: int) -> None:
        """total_steps: those of all policies' environments while they learn; evaluations are not counted."""
        self.rounds = self.plan(total_steps, n_envs)

    def begin_round(self) -> int:
        """The members of the next round; 0 where there is none."""
        size = 0 if self.n_begun >= len(self.rounds) else self.begin(self.n_begun)
        if not size:
            self.rounds = self.rounds[: self.n_begun]
            return 0
        self.n_begun, self.n_updates = self.n_begun + 1, 0
        return size

    @property
    def round_over(self) -> bool:
        return self.n_begun == 0 or self.n_updates >= self.rounds[self.n_begun - 1]

    @property
    def evaluation_due(self) -> bool:
        return self.n_updates % self.cfg.eval_every == 0 or self.round_over

    @property
    def finished(self) -> bool:
        return self.n_begun >= len(self.rounds) and self.round_over

    def update(self, batch: Rollout) -> Metrics:
        metrics: Metrics = self.team.update(batch)
        self.n_updates += 1
        return metrics

    def offer(self, returns: Tensor) -> None:
        """Mean returns [S, M] of the present members by an evaluation; ValueError where a run ends without a policy."""
        self.archive.insert(returns, self.kept(self.team))
        if self.finished and not len(self.archive):
            raise ValueError(self.archive.why_empty())
        self.team.judge(returns)
        self._acting = None
        self._measure()

    def _measure(self) -> None:
        found = front_measures(self.archive.returns, self.archive.reference, self.preferences)
        self.front = {f"front/{name}": x for name, x in found.items()}

    # teams -----------------------------------------------------------------------------------------------------------

    def use(self, size: int, rows: dict[str, Tensor] | None = None) -> Any:
        """The team of that size with the networks, and optimizers if any, of the rows; None: as it was made."""
        if size not in self._teams:
            self._teams[size] = self.make_team(size)
            self._teams[size].set_compile(self._compile)
        self.team = team = self._teams[size]  # one a size: a compiled one is compiled once
        if rows is not None:
            team.load_rows({k.removeprefix(NETS): x for k, x in rows.items() if k.startswith(NETS)})
        for name, x in team.opt.state_dict().items():
            found = None if rows is None else rows.get(f"adam/{name}")
            x.zero_() if found is None else x.copy_(found)
        team.forget_episodes()
        return team

    def set_progress(self, done: float) -> None:
        share = 1.0 - done if self.cfg.lr_schedule == "linear" else 1.0
        self.team.opt.learning_rate.fill_(self.cfg.learning_rate * share)

    def set_compile(self, mode: str) -> None:
        self._compile = mode

    # the policies that were found ------------------------------------------------------------------------------------

    @property
    def n_policies(self) -> int:
        return len(self.archive)

    def policies(self, index: Tensor) -> Any:
        """Archived policies side by side, to act."""
        team, rows = self.make_team(len(index)), self.archive.rows
        team.load_rows({k.removeprefix(NETS): x[index.to(x.device)] for k, x in rows.items() if k.startswith(NETS)})
        return team

    def prefer(self, preference: Any) -> int:
        """Act from now on as the archived policy that is best for a preference [M]; its index."""
        index = self.archive.best_for(checked_preference(preference, self.n_objectives))
        self._acting = self.policies(torch.tensor([index]))
        return index

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """For the preference told last; for equal shares where none was, or the archive has changed since."""
        if self._acting is None:
            self.prefer([1.0 / self.n_objectives] * self.n_objectives)
        assert self._acting is not None
        return self._acting.act(obs, deterministic=deterministic)

    # state -----------------------------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, Tensor]:
        """Every archived policy with its normalizer, [n, ...] each; nothing where the archive is empty."""
        own = {f"archive/{name}": x for name, x in self.archive.rows.items()}
        return own | {"archive/returns": self.archive.returns} if own else {}

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        found = {k.removeprefix("archive/"): x for k, x in state.items() if k.startswith("archive/")}
        returns = found.pop("returns", torch.zeros(0, self.n_objectives, dtype=torch.float64))
        wanted = self.kept(self.make_team(1)) if found else {}
        for name, x in wanted.items():
            shape = (len(returns), *x.shape[1:])
            if name not in found or found[name].shape != shape:
                got = tuple(found[name].shape) if name in found else "missing"
                raise ValueError(f"archive/{name} is {got}, wanted {shape}")
        self.archive.returns = returns.double()
        self.archive.rows = {name: found[name].to(self.device) for name in wanted}
        self._acting = None
        self._measure()

    def training_state(self) -> dict[str, Tensor]:
        """Nothing before the first round."""
        if not self.n_begun:
            return {}
        team = self.team
        state = {f"archive/{name}": x for name, x in self.archive.state_dict().items()}
        state |= {f"team/{NETS}{name}": x for name, x in team.rows().items()}
        state |= {f"team/adam/{name}": x for name, x in team.opt.state_dict().items()}
        state |= {f"team/{name}": getattr(team, name) for name in self.team_state}
        if team.discounted_return is not None:
            state["team/discounted_return"] = team.discounted_return
        return state | {"rounds": torch.tensor([self.n_begun, self.n_updates])}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        if "rounds" not in state:
            return
        self.n_begun, self.n_updates = state["rounds"].tolist()
        self.archive.load_state_dict({k[8:]: x for k, x in state.items() if k.startswith("archive/")})
        own = {k[5:]: x for k, x in state.items() if k.startswith("team/")}
        team = self.use(len(own["adam/step"]), own)
        for name in self.team_state:
            getattr(team, name).copy_(own[name])
        if "discounted_return" in own:
            team.discounted_return = own["discounted_return"].to(self.device, copy=True)


def reference_of(values: Any, spec: EnvSpec) -> Tensor:
    """[M] float64; ValueError where `algo.reference` does not have a number for each objective."""
    if len(values) != spec.reward_dim or not all(math.isfinite(x) for x in values):
        names = f" ({', '.join(spec.objectives)})" if spec.objectives else ""
        raise ValueError(
            f"algo.reference must hold the worst return that counts in each of {spec.reward_dim} objectives"
            f"{names}, e.g. [{','.join(['-100'] * spec.reward_dim)}], got {list(values)}"
        )
    return torch.tensor(values, dtype=torch.float64)


def checked_preference(preference: Any, objectives: int) -> Tensor:
    """[M] float64, as given; ValueError for what is no preference."""
    weight = torch.as_tensor(preference, dtype=torch.float64).reshape(-1)
    shown = [round(x, 6) for x in weight.tolist()]
    if len(weight) != objectives:
        raise ValueError(f"preference={shown} has {len(weight)} entries, the task has {objectives} objectives")
    if not bool((weight >= 0.0).all()):
        raise ValueError(f"preference={shown}: an entry is negative or not a number; all lie in [0, 1]")
    if abs(float(weight.sum()) - 1.0) > 1e-6:
        raise ValueError(f"preference={shown} sums to {float(weight.sum()):g}, not to 1")
    return weight
