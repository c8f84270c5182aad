"""`check_env`: whether an environment keeps every rule that training relies on, and if not, which, where and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym

from ctrlrl.envs import check_episode, check_form, check_replay
from ctrlrl.envs.adapters import adapt
from ctrlrl.envs.check_report import Outcome, Report, failed, skipped
from ctrlrl.envs.check_walk import Subject, generators_kept
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.sb3 import SB3Env, is_sb3
from ctrlrl.types import EnvSpec, VecEnv

_LANES = 4  # of an environment made here, from an id or a function


class Check(NamedTuple):
    run: Callable[[Subject], Outcome]
    needs: tuple[str, ...] = ()  # without these it could not tell, and is skipped


_FORM = ("shapes", "dtypes", "devices", "extras")
_REPLAY = (*_FORM, "determinism")

CHECKS = {
    "spec": Check(check_form.spec),
    "runs": Check(check_form.runs, ("spec",)),
    "shapes": Check(check_form.shapes, ("runs",)),
    "dtypes": Check(check_form.dtypes, ("shapes",)),
    "devices": Check(check_form.devices, ("shapes",)),
    "extras": Check(check_form.extras, ("runs",)),
    "finite": Check(check_form.finite, _FORM),
    "flags": Check(check_episode.flags, _FORM),
    "mask": Check(check_episode.mask, _FORM),
    "final_obs": Check(check_episode.final_obs, _FORM),
    "fresh_start": Check(check_episode.fresh_start, _FORM),
    "episodes_differ": Check(check_episode.episodes_differ, _FORM),
    "time_limit": Check(check_episode.time_limit, _FORM),
    "stagger": Check(check_episode.stagger, _FORM),
    "seeding": Check(check_replay.seeding, _FORM),
    "seed_matters": Check(check_replay.seed_matters, _FORM),
    "lanes_differ": Check(check_replay.lanes_differ, _FORM),
    "determinism": Check(check_replay.determinism, (*_FORM, "seeding")),
    "final_obs_true": Check(check_episode.final_obs_true, (*_REPLAY, "final_obs")),
    "instances": Check(check_replay.instances, _REPLAY),
    "independence": Check(check_replay.independence, _REPLAY),
    "lane_count": Check(check_replay.lane_count, _REPLAY),
    "actions_matter": Check(check_replay.actions_matter, _REPLAY),
    "clipping": Check(check_replay.clipping, _REPLAY),
    "state_dict": Check(check_replay.state_dict, (*_REPLAY, "instances")),
    "action_untouched": Check(check_form.action_untouched, ("runs", "clipping")),
    "discrete_range": Check(check_form.discrete_range, _FORM),
    "host_reads": Check(check_replay.host_reads, _FORM),
}


def check_env(env: Any, *, make: Callable[..., Any] | None = None, steps: int = 2500, seed: int = 0) -> Report:
    """Walk through an environment and report, check by check, what holds; `print(report)`, `report.raise_if_failed()`.

    env:   a ctrlrl VecEnv; a Gymnasium id, a function that makes one environment, a gym.Env or vector environment; an
           SB3 VecEnv; or a simulator that `ctrlrl.envs.adapters.adapt` knows. It is stepped and reset, and stays open.
    make:  make(n_envs=..., seed=...) -> such an environment, for the checks that need several. With a parameter named
           `stagger` the start clocks and the truth of final observations are checked too, and one named
           `episode_length` lets short time limits be tried where lanes seldom live to the long one.
    steps: the most that one walk takes. The longest sees two time limits, and is shorter for very large observations.
    seed:  of the walks.

    Checks that could not be done are listed as skipped, each with its reason. The global random generators stay as
    they were.
    """
    if steps < 10:
        raise ValueError(f"check_env: steps must be at least 10, got {steps}")
    own = isinstance(env, str | type) or (callable(env) and not hasattr(env, "step"))
    if own:
        if make is not None:
            raise ValueError("check_env: an id or a function is its own make; give an environment, or leave out make")
        make = _maker(env)
    with generators_kept():
        under_test = make(n_envs=_LANES, seed=seed) if own and make is not None else _vec_env(env)
        again = None if make is None else lambda **words: _vec_env(make(**words))
        takes = () if make is None else inspect.signature(make).parameters
        subject = Subject(under_test, again, takes=takes, steps=steps, seed=seed)
        try:
            rows = _run(subject)
        finally:
            subject.close()
            if own:
                under_test.close()
    return Report(_title(under_test, rows), rows)


def _vec_env(env: Any) -> VecEnv:
    if isinstance(getattr(env, "spec", None), EnvSpec) or (isinstance(env, VecEnv) and not isinstance(env, gym.Env)):
        return env
    return SB3Env(env) if is_sb3(env) else adapt(env) or GymnasiumEnv(env)


def _maker(env: Any) -> Callable[..., VecEnv]:
    probe = GymnasiumEnv(env)
    limit = probe.spec.episode_length
    probe.close()

    def plain(n_envs: int, seed: int) -> VecEnv:
        return GymnasiumEnv(env, n_envs=n_envs, seed=seed)

    def staggered(n_envs: int, seed: int, stagger: bool = False) -> VecEnv:
        return GymnasiumEnv(env, n_envs=n_envs, seed=seed, stagger=stagger)

    return staggered if limit else plain


def _run(subject: Subject) -> dict[str, Outcome]:
    rows: dict[str, Outcome] = {}
    unknown: set[str] = set()  # checks that failed, and those that could not be done because of them
    for name, check in CHECKS.items():
        missing = [need for need in check.needs if need in unknown]
        if missing:
            rows[name] = skipped(f"needs {missing[0]}")
        else:
            rows[name] = _outcome(check, subject)
        if missing or rows[name].status == "failed":
            unknown.add(name)
    return rows


def _outcome(check: Check, subject: Subject) -> Outcome:
    try:
        return check.run(subject)
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        mend = "return what Gymnasium asks for" if "to unpack" in said else "an environment may not raise here"
        return failed(f"{type(error).__name__}: {said}", mend=mend)


def _title(env: Any, rows: dict[str, Outcome]) -> str:
    name = getattr(env, "name", None) or type(env).__name__
    lanes = f", {env.spec.n_envs} lanes" if rows["spec"].status == "passed" else ""
    return f"check_env: {name}{lanes}"
