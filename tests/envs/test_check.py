"""check_env: a sound environment passes everything; one broken in one way fails exactly the checks of that way."""

import subprocess
import sys
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.check import CHECKS, check_env
from ctrlrl.envs.tensor_env import LOST
from ctrlrl.types import EnvSpec, ObsPart, TimeStep

LIMIT = 8
EDGE = 0.25  # m
STEPS = 40


@cache
def table(seed, device):
    """[count, lane] in [0, 1)."""
    return torch.rand(499, 512, generator=torch.Generator().manual_seed(seed)).to(device)


def numbers(seed, lane, count):
    return table(seed, lane.device)[count % 499, lane]


class Walker:
    """A point on a line, pushed by the action and by noise, from rest near 0: terminated beyond EDGE."""

    other_spec: ClassVar[dict] = {}

    def __init__(self, n_envs=16, seed=0, stagger=False, episode_length=LIMIT, device="cpu"):
        self.device = torch.device(device)
        self.spec = EnvSpec(2, 1, 0, 1, n_envs, episode_length, self.device)._replace(**self.other_spec)
        self.seed, self.stagger = seed, stagger
        self.lane = torch.arange(n_envs, device=self.device)
        self.x, self.v = (torch.zeros(n_envs, device=self.device) for _ in range(2))
        self.clock, self.episode, self.tick = (torch.zeros_like(self.lane) for _ in range(3))

    def reset(self, seed=None):
        if seed is not None:
            self.sow(seed)
            self.episode.zero_()
            self.tick.zero_()
        self.begin(torch.ones_like(self.lane, dtype=torch.bool))
        if self.stagger:
            self.clock = self.lane * self.spec.episode_length // self.spec.n_envs
        return self.observe()

    def sow(self, seed):
        self.seed = seed

    def start(self):
        return 0.1 * numbers(self.seed, self.lane, self.episode) - 0.05

    def noise(self):
        return 0.1 * numbers(self.seed + 1, self.lane, self.tick)

    def begin(self, done):
        self.x = torch.where(done, self.start(), self.x)
        self.v = torch.where(done, 0.0, self.v)
        self.clock = torch.where(done, 0, self.clock)
        self.episode = self.episode + done

    def observe(self):
        return torch.stack((self.x, self.v), 1)

    def push(self, action):
        return action[:, 0].clamp(-1.0, 1.0)

    def over(self):
        """terminated, truncated."""
        terminated = self.x.abs() > EDGE
        return terminated, (self.clock >= self.spec.episode_length) & ~terminated

    def step(self, action):
        force = self.push(action)
        self.v = 0.8 * self.v + 0.3 * force + self.noise()
        self.x = self.x + 0.2 * self.v
        self.tick, self.clock = self.tick + 1, self.clock + 1
        reward = -self.x.square() - 0.01 * force.square()
        terminated, truncated = self.over()
        final_obs = self.observe()
        self.begin(terminated | truncated)
        return TimeStep(self.observe(), final_obs, reward, terminated, truncated, {})

    def state_dict(self):
        names = ("x", "v", "clock", "episode", "tick")
        return {"seed": torch.tensor(self.seed), **{name: getattr(self, name).clone() for name in names}}

    def load_state_dict(self, state):
        for name, value in state.items():
            setattr(self, name, int(value) if name == "seed" else value.clone())

    def close(self):
        pass


class NextStep(Walker):
    """Resets one step later, and says so by the mask."""

    def reset(self, seed=None):
        self.pending = torch.zeros_like(self.lane, dtype=torch.bool)
        return super().reset(seed)

    def step(self, action):
        mask = ~self.pending
        force = self.push(action)
        self.begin(self.pending)
        self.v = torch.where(mask, 0.8 * self.v + 0.3 * force + self.noise(), self.v)
        self.x = torch.where(mask, self.x + 0.2 * self.v, self.x)
        self.tick, self.clock = self.tick + 1, self.clock + mask
        reward = torch.where(mask, -self.x.square() - 0.01 * force.square(), self.reset_reward())
        terminated, truncated = self.over()
        self.pending = terminated | truncated
        obs = self.observe()
        return TimeStep(obs, obs, reward, terminated, truncated, self.told(mask))

    def reset_reward(self):
        return torch.zeros_like(self.x)

    def told(self, mask):
        return {"mask": mask}

    def state_dict(self):
        return {**super().state_dict(), "pending": self.pending.clone()}


class Discrete(Walker):
    other_spec: ClassVar[dict] = {"action_dim": 0, "n_actions": 3}

    def push(self, action):
        self.refuse(action)
        return action.float() - 1.0

    def refuse(self, action):
        if (action < 0).any() or (action > 2).any():
            raise ValueError("actions must lie in 0...2")


class SeveralChoices(Walker):
    other_spec: ClassVar[dict] = {"action_dim": 0, "nvec": (3, 2)}

    def push(self, action):
        return (action[:, 0] - 1.0) * (action[:, 1] + 0.5)


class Resumable(Walker):
    """Starts where the seed says and always alike: nothing is random."""

    def start(self):
        return torch.zeros_like(self.x)

    def noise(self):
        return torch.zeros_like(self.x)


SOUND = [Walker, NextStep, Discrete, SeveralChoices, Resumable]


@pytest.mark.parametrize("n_envs", [1, 4, 300])
@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_environment_fails_nothing(kind, n_envs):
    report = check_env(kind(n_envs), make=kind, steps=STEPS)
    report.raise_if_failed()
    assert report.ok
    assert list(report.rows) == list(CHECKS)
    assert not report.names("noted")


def test_with_everything_at_hand_only_what_cannot_apply_is_skipped():
    report = check_env(Walker(), make=Walker, steps=STEPS)
    assert report.names("skipped") == ["mask", "discrete_range", "host_reads"]
    assert check_env(NextStep(), make=NextStep, steps=STEPS).names("skipped") == ["discrete_range", "host_reads"]


def test_what_needs_more_than_one_instance_is_skipped_by_name_and_with_its_reason():
    report = check_env(Walker(), steps=STEPS)
    assert report.names("skipped") == [
        *("mask", "stagger", "final_obs_true", "instances", "lane_count", "discrete_range", "host_reads"),
    ]
    assert report.rows["instances"].what == "needs make(n_envs=..., seed=...)"
    assert "stagger" in report.rows["final_obs_true"].what

    def plain(n_envs, seed):
        return Walker(n_envs, seed)

    assert check_env(Walker(), make=plain, steps=STEPS).names("skipped") == [
        *("mask", "stagger", "final_obs_true", "discrete_range", "host_reads"),
    ]


def changed(**fields):
    """A Walker whose steps are changed: name of the field -> function of (environment, time step)."""

    class Changed(Walker):
        def step(self, action):
            self.before = self.observe()
            out = super().step(action)
            self.over_now = out.terminated | out.truncated
            return out._replace(**{name: change(self, out) for name, change in fields.items()})

    return Changed


def some_start(step):
    return step.obs + torch.tensor([0.01, 0.0])


class SaysItIsLost(changed(final_obs=lambda e, s: spoil(s.final_obs, e.over_now, e.before))):
    notices = (f"SaysItIsLost: {LOST}",)


class FinalIsSomeStart(changed(final_obs=lambda e, s: spoil(s.final_obs, e.over_now, some_start(s)))):
    """Far from the starts when an episode ends: no step goes that far."""

    def observe(self):
        return torch.stack((self.x + 0.5 * self.clock, self.v), 1)


class TwoKindsOfAction(Walker):
    other_spec: ClassVar[dict] = {"n_actions": 2}


class NegativeLimit(Walker):
    other_spec: ClassVar[dict] = {"episode_length": -1}


class PartsDoNotFit(Walker):
    other_spec: ClassVar[dict] = {"obs_parts": (ObsPart("a", (3,)),)}


class NoClose(Walker):
    close = None


class StepTakesTwo(Walker):
    def step(self, action, speed):
        return super().step(action)


class Raises(Walker):
    def step(self, action):
        if self.tick[0] == 2:
            raise FloatingPointError("the arm fell off")
        return super().step(action)


class GymStyle(Walker):
    def step(self, action):
        return tuple(super().step(action))


class WrongFirst(Walker):
    def reset(self, seed=None):
        return super().reset(seed)[:, :1]


class ExtrasVanish(Walker):
    def step(self, action):
        out = super().step(action)
        return out._replace(extras={"success": out.reward} if out.terminated.any() else {})


class PromisesMore(Walker):
    other_spec: ClassVar[dict] = {"extras": ("success",)}


class MaskNeverFalse(NextStep):
    def told(self, mask):
        return {"mask": torch.ones_like(mask)}


class MaskOneLate(NextStep):
    late = None

    def told(self, mask):
        told, self.late = (torch.ones_like(mask) if self.late is None or self.tick[0] == 1 else self.late), mask
        return {"mask": told}

    def state_dict(self):
        return {}


class NoMask(NextStep):
    def told(self, mask):
        return {}


class PaysForReset(NextStep):
    def reset_reward(self):
        return torch.ones_like(self.x)


class KeepsVelocity(Walker):
    def begin(self, done):
        old = self.v
        super().begin(done)
        self.v = torch.where(done & (self.tick > 0), old, self.v)


class HiddenVelocity(KeepsVelocity):
    """The observation of a fresh start hides what is left of the old episode."""

    def observe(self):
        return torch.stack((self.x, torch.where(self.clock == 0, 0.0, self.v)), 1)


class PaysForTheJump(Walker):
    """The reward is the way since the last position, which the reset does not move."""

    last = None

    def reset(self, seed=None):
        obs = super().reset(seed)
        self.last = self.x.clone()
        return obs

    def step(self, action):
        out = super().step(action)
        reward = 10.0 * (out.final_obs[:, 0] - self.last)
        self.last = out.final_obs[:, 0]
        return out._replace(reward=reward)

    def state_dict(self):
        return {**super().state_dict(), "last": self.last.clone()}


class NeverResets(Walker):
    def begin(self, done):
        if done.all():
            super().begin(done)
        self.clock = torch.where(done, 0, self.clock)


class SameEpisodeAgain(Walker):
    def start(self):
        return 0.1 * numbers(self.seed, self.lane, torch.zeros_like(self.lane)) - 0.05


class SameSecondEpisode(Walker):
    """The episodes after the first are all one."""

    def start(self):
        return 0.1 * numbers(self.seed, self.lane, self.episode.clamp(max=1)) - 0.05


class SameSecondEpisodeOfAll(Walker):
    """One that all lanes share; seen where no lane ends twice, too."""

    def start(self):
        lane = torch.where(self.episode > 0, 0, self.lane)
        return 0.1 * numbers(self.seed, lane, self.episode.clamp(max=1)) - 0.05


class OneStepLate(Walker):
    def over(self):
        terminated = self.x.abs() > EDGE
        return terminated, (self.clock > self.spec.episode_length) & ~terminated


class ClockRunsOn(Walker):
    """Only a truncation restarts the clock."""

    def begin(self, done):
        clock = self.clock
        super().begin(done)
        self.clock = torch.where(done & (clock < self.spec.episode_length) & (self.tick > 0), clock, self.clock)


class LimitIsTermination(Walker):
    def over(self):
        terminated, truncated = super().over()
        return terminated | truncated, torch.zeros_like(truncated)


class FallsAtTheLimit(Walker):
    """Lane 0 falls in the very step of one limit; all other episodes end before it."""

    def over(self):
        at_limit = self.clock == self.spec.episode_length
        second = (self.lane == 0) & (self.episode == 2)
        terminated = torch.where(second, at_limit, self.clock == self.spec.episode_length - 1)
        return terminated, torch.zeros_like(terminated)


class NoStagger(Walker):
    def __init__(self, n_envs=16, seed=0, stagger=False, episode_length=LIMIT):
        super().__init__(n_envs, seed, False, episode_length)


class GoesOn(Walker):
    """A seeded reset goes on with the old sequence of episodes."""

    def reset(self, seed=None):
        self.sow(seed)
        return super().reset(None)

    def sow(self, seed):
        self.seed = self.seed if seed is None else seed


class IgnoresSeed(Walker):
    def sow(self, seed):
        pass

    def __init__(self, n_envs=16, seed=0, stagger=False, episode_length=LIMIT):
        super().__init__(n_envs, 0, stagger, episode_length)


class OneSeedForAllLanes(Walker):
    def start(self):
        return 0.1 * numbers(self.seed, torch.zeros_like(self.lane), self.episode) - 0.05


class GlobalNoise(Walker):
    def noise(self):
        return 0.1 * torch.rand(self.spec.n_envs)


class OldEpisodeCount(Walker):
    """The first observations of a seeded reset repeat, the later ones do not."""

    old = 0

    def start(self):
        self.old += 1
        shift = torch.where(self.tick > 0, self.old, 0)
        return 0.1 * numbers(self.seed, self.lane, self.episode + shift) - 0.05


class EachInstanceItsOwn(Walker):
    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        EachInstanceItsOwn.made += 1
        self.own = 1000 * EachInstanceItsOwn.made

    def noise(self):
        return 0.1 * numbers(self.seed + self.own, self.lane, self.tick)


class SharedTick(Walker):
    """All instances count their noise together."""

    shared = 0

    def reset(self, seed=None):
        SharedTick.shared = 0
        return super().reset(seed)

    def noise(self):
        SharedTick.shared += 1
        tick = torch.full_like(self.tick, SharedTick.shared)
        return 0.1 * numbers(self.seed, self.lane, tick)

    def state_dict(self):
        return {}


class MeanForce(Walker):
    def push(self, action):
        force = super().push(action)
        return 0.9 * force + 0.1 * force.mean()


class CrossedLanes(Walker):
    def push(self, action):
        return super().push(action).flip(0)


class OneGenerator(Walker):
    """The lanes take their starts from one sequence, in the order in which they end."""

    drawn = 0

    def reset(self, seed=None):
        self.drawn = 0 if seed is not None else self.drawn
        return super().reset(seed)

    def begin(self, done):
        self.turn = self.drawn + done.cumsum(0)
        self.drawn += int(done.sum())
        super().begin(done)

    def start(self):
        return 0.1 * numbers(self.seed, torch.zeros_like(self.lane), self.turn) - 0.05

    def state_dict(self):
        return {}


class NoiseByNumber(Walker):
    def noise(self):
        return super().noise() / self.spec.n_envs


class Deaf(Walker):
    def push(self, action):
        return torch.zeros(self.spec.n_envs)


class OneDeafLane(Walker):
    def push(self, action):
        return super().push(action) * (self.lane != 2)


class NoClip(Walker):
    def push(self, action):
        return action[:, 0]


class PaysBeforeClipping(Walker):
    def step(self, action):
        out = super().step(action)
        return out._replace(reward=out.reward - 0.1 * action[:, 0].abs())


class RefusesToClip(Walker):
    def push(self, action):
        if (action.abs() > 1).any():
            raise ValueError("actions must lie in [-1, 1]")
        return action[:, 0]


class WritesToTheAction(Walker):
    def push(self, action):
        return action.clamp_(-1.0, 1.0)[:, 0]


class IndexesByAction(Discrete):
    def refuse(self, action):
        [1, 2, 3][int(action[0])]


class DividesByAction(Discrete):
    def push(self, action):
        return torch.tensor([-1.0, 0.0, 1.0, torch.nan])[action]


class ForgetsClock(Walker):
    def state_dict(self):
        return {k: v for k, v in super().state_dict().items() if k != "clock"}


class ForgetsSeed(Walker):
    def state_dict(self):
        return {k: v for k, v in super().state_dict().items() if k != "seed"}


def spoil(rows: Tensor, where: Tensor, value) -> Tensor:
    return torch.where(where.unsqueeze(1) if rows.ndim > 1 else where, value, rows)


BROKEN = {
    # environment: what fails, and no other
    "two kinds of action": (TwoKindsOfAction, {"spec"}),
    "negative limit": (NegativeLimit, {"spec"}),
    "obs_parts of another size": (PartsDoNotFit, {"spec"}),
    "no close": (NoClose, {"spec"}),
    "step takes two arguments": (StepTakesTwo, {"spec"}),
    "raises": (Raises, {"runs"}),
    "a tuple instead of a TimeStep": (GymStyle, {"runs"}),
    "reset of another shape": (WrongFirst, {"shapes"}),
    "reward [B, 1]": (changed(reward=lambda e, s: s.reward.unsqueeze(1)), {"shapes"}),
    "final_obs None": (changed(final_obs=lambda e, s: None), {"shapes"}),
    "float64": (changed(reward=lambda e, s: s.reward.double()), {"dtypes"}),
    "flags of uint8": (changed(truncated=lambda e, s: s.truncated.to(torch.uint8)), {"dtypes"}),
    "reward elsewhere": (changed(reward=lambda e, s: s.reward.to("meta")), {"devices"}),
    "extras come and go": (ExtrasVanish, {"extras"}),
    "extras without lanes": (changed(extras=lambda e, s: {"loss": s.reward.mean()}), {"extras"}),
    "extras promised and never given": (PromisesMore, {"extras"}),
    "NaN": (changed(reward=lambda e, s: spoil(s.reward, e.clock == 5, torch.nan)), {"finite"}),
    "both flags": (changed(truncated=lambda e, s: s.truncated | s.terminated), {"flags"}),
    "mask never False": (MaskNeverFalse, {"mask", "time_limit"}),  # the reset counts as a step of the episode
    "mask one step late": (MaskOneLate, {"mask", "fresh_start"}),  # what it marks is no fresh start
    "no mask": (NoMask, {"final_obs", "fresh_start", "time_limit"}),  # an end shows no start, a reset is a step
    "reward for a reset": (PaysForReset, {"mask"}),
    "final_obs is obs": (changed(final_obs=lambda e, s: s.obs), {"final_obs"}),
    "final_obs is stale": (changed(final_obs=lambda e, s: spoil(s.final_obs, e.over_now, e.before)), {"final_obs"}),
    "final_obs is some start": (FinalIsSomeStart, {"final_obs"}),
    "final_obs is some start, nearby": (
        changed(final_obs=lambda e, s: spoil(s.final_obs, e.over_now, some_start(s))),
        {"final_obs_true"},
    ),
    "final_obs without an end": (changed(final_obs=lambda e, s: s.final_obs + 0.01), {"final_obs"}),
    "final_obs is off": (
        changed(final_obs=lambda e, s: spoil(s.final_obs, e.over_now, 1.01 * s.final_obs)),
        {"final_obs_true"},
    ),
    "velocity survives the reset": (KeepsVelocity, {"fresh_start"}),
    "velocity survives unseen": (HiddenVelocity, {"fresh_start"}),
    "reward from the old episode": (PaysForTheJump, {"fresh_start"}),
    "never resets": (NeverResets, {"final_obs", "fresh_start"}),  # so obs is final_obs at every end
    "truncated one step late": (OneStepLate, {"time_limit"}),
    "clock runs on after a termination": (ClockRunsOn, {"time_limit"}),
    "time limit as termination": (LimitIsTermination, {"time_limit"}),
    "stagger ignored": (NoStagger, {"stagger"}),
    "seeded reset goes on": (GoesOn, {"seeding"}),
    "seed ignored": (IgnoresSeed, {"seed_matters"}),
    "one seed for all lanes": (OneSeedForAllLanes, {"lanes_differ"}),
    "global generator": (GlobalNoise, {"determinism"}),
    "resets do not repeat": (OldEpisodeCount, {"determinism"}),
    "instances differ": (EachInstanceItsOwn, {"instances"}),
    "instances share state": (SharedTick, {"instances"}),
    "mean over the lanes": (MeanForce, {"independence"}),
    "crossed lanes": (CrossedLanes, {"independence"}),
    "deaf to actions": (Deaf, {"actions_matter"}),
    "one lane deaf to actions": (OneDeafLane, {"actions_matter"}),
    "no clipping": (NoClip, {"clipping"}),
    "reward of the unclipped action": (PaysBeforeClipping, {"clipping"}),
    "refuses instead of clipping": (RefusesToClip, {"clipping"}),
    "writes to the action": (WritesToTheAction, {"action_untouched"}),
    "IndexError for a wrong action": (IndexesByAction, {"discrete_range"}),
    "NaN for a wrong action": (DividesByAction, {"discrete_range"}),
    "state without the clock": (ForgetsClock, {"state_dict"}),
    "state without the seed": (ForgetsSeed, {"state_dict"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_in_one_way_fails_exactly_its_checks(name):
    kind, failing = BROKEN[name]
    report = check_env(kind(), make=kind, steps=STEPS)
    assert set(report.names("failed")) == failing, str(report)
    with pytest.raises(ValueError, match="checks failed") as raised:
        report.raise_if_failed()
    for check in failing:
        assert f"\n  {check}: " in str(raised.value)
        assert report.rows[check].what
        assert report.rows[check].mend


def test_every_check_that_can_fail_here_has_an_environment_that_fails_it():
    proved = set().union(*(failing for _, failing in BROKEN.values()))
    assert set(CHECKS) - proved == {"episodes_differ", "lane_count", "host_reads"}  # the tests below


@pytest.mark.parametrize(
    ("kind", "noted"),
    [
        (SameEpisodeAgain, ["episodes_differ"]),
        (SameSecondEpisode, ["episodes_differ"]),
        (SameSecondEpisodeOfAll, ["episodes_differ"]),
        (NoiseByNumber, ["lane_count"]),
        (OneGenerator, ["independence", "lane_count"]),
        (SaysItIsLost, ["final_obs", "final_obs_true"]),
    ],
)
def test_what_training_survives_is_noted_and_does_not_fail(kind, noted):
    report = check_env(kind(), make=kind, steps=STEPS)
    assert report.names("noted") == noted
    report.raise_if_failed()


def test_beginnings_are_compared_across_lanes_where_no_lane_ends_twice():
    found = check_env(SameSecondEpisodeOfAll(stagger=True), steps=LIMIT + 2).rows["episodes_differ"]
    assert found.what == "every episode after a lane's first begins alike"
    assert check_env(Walker(stagger=True), steps=LIMIT + 2).rows["episodes_differ"].status == "passed"


def test_one_true_termination_in_the_step_of_the_limit_is_not_taken_for_the_clock():
    found = check_env(FallsAtTheLimit(), make=FallsAtTheLimit, steps=STEPS).rows["time_limit"]
    assert found.status == "skipped"
    assert found.what == "too few episodes (1) terminated in the step of the limit to blame the clock"


def test_the_report_names_lane_step_number_and_mend():
    def odd(env, step):
        return spoil(step.reward, (env.lane == 2) & (env.tick == 3), torch.inf)

    report = check_env(changed(reward=odd)(), steps=STEPS)
    assert report.rows["finite"][1:3] == ("reward is not finite", "lane 2, step 3")
    text = str(report)
    assert text.startswith("check_env: Changed, 16 lanes\n")
    assert "\n  finite            failed   reward is not finite (lane 2, step 3)\n" in text
    assert "mend: mend the physics, or terminate before the state diverges" in text
    assert text.endswith(f"{len(report.names('passed'))} passed, 1 failed, {len(report.names('skipped'))} skipped")
    assert repr(report) == text

    found = check_env(KeepsVelocity(), steps=STEPS).rows["fresh_start"]
    assert "do not begin like a reset: obs[1] is" in found.what
    assert "resets give 0 ... 0" in found.what


def test_a_check_whose_ground_is_missing_is_skipped_and_says_which():
    report = check_env(GlobalNoise(), steps=STEPS)
    assert report.rows["clipping"] == ("skipped", "needs determinism", "", "")
    assert report.rows["action_untouched"].what == "needs clipping"


def test_the_environment_stays_open_and_the_callers_random_numbers_stay_the_same():
    class Closes(Walker):
        n_closed = 0

        def close(self):
            Closes.n_closed += 1

    def one(n_envs, seed):
        return Closes(n_envs, seed)

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_env(GlobalNoise(), steps=STEPS)
    assert torch.equal(torch.rand(3), expected)
    check_env(Closes(), steps=STEPS)
    assert Closes.n_closed == 0
    check_env(Closes(), make=one, steps=STEPS)
    assert Closes.n_closed > 0


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 10, got 3"):
        check_env(Walker(), steps=3)
    with pytest.raises(ValueError, match="an id or a function is its own make"):
        check_env("CartPole-v1", make=Walker)

    def stubborn(n_envs, seed):
        return Walker(2, seed)

    found = check_env(Walker(), make=stubborn, steps=STEPS).rows["instances"]
    assert found[:2] == ("failed", "ValueError: make(n_envs=4) gave 2 lanes")


def test_importing_the_package_loads_neither_torch_nor_the_kit():
    code = "import sys, ctrlrl.envs; print(sorted({'torch', 'ctrlrl.envs.check'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    from ctrlrl.envs import check_env as public

    assert public is check_env


@pytest.mark.gpu
def test_a_step_that_reads_the_device_is_found_on_a_gpu():
    class Reads(Walker):
        def push(self, action):
            if self.clock.max() >= 0:
                return super().push(action)
            return action[:, 0]

    assert check_env(Walker(device="cuda"), steps=STEPS).rows["host_reads"].status == "passed"
    report = check_env(Reads(device="cuda"), steps=STEPS)
    assert report.names("failed") == ["host_reads"]
    assert "step reads the device" in report.rows["host_reads"].what
