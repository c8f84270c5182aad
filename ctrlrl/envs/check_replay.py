"""Checks of `check_env` that walk more than once and compare: seeds, lanes, actions, instances, saved states."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.envs.check_report import PASSED, Outcome, failed, noted, skipped
from ctrlrl.envs.check_walk import (
    Difference,
    Subject,
    act,
    any_of,
    differs,
    first_difference,
    first_lanes,
    go_on,
    keep,
    random_actions,
    record,
    stack,
)

_ONE_LANE = "there is one lane"
_NEEDS_MAKE = "needs make(n_envs=..., seed=...)"


def _told(what: str, found: Difference) -> str:
    return f"{what}: {', '.join(found.fields)} changed"


def seeding(subject: Subject) -> Outcome:
    """reset(seed) gives the same observations whenever it is called."""
    off = any_of(subject.env.reset(subject.seed).cpu() != subject.walk.first, 1).nonzero()
    if not len(off):
        return PASSED
    mend = "start every random generator of the environment anew from the seed, and forget the old episodes"
    return failed("reset(seed) gives other observations the second time", f"lane {int(off[0])}", mend)


def seed_matters(subject: Subject) -> Outcome:
    """Another seed is another sequence of episodes, where anything is random at all."""
    env, base = subject.env, subject.walk
    firsts = [env.reset(subject.seed + k).detach().cpu().clone() for k in range(1, 4)]
    if any(not torch.equal(first, base.first) for first in firsts):
        return PASSED
    other = record(env, subject.replay, subject.seed + 1)
    if first_difference(base, other) is not None:
        return PASSED
    if not (differs(base.obs, base.first.expand_as(base.obs)) & base.begins).any():
        return skipped("no randomness was seen: every episode of a lane begins alike")
    return failed("another seed changes nothing, though episodes begin differently", mend="use the seed of reset(seed)")


def lanes_differ(subject: Subject) -> Outcome:
    if subject.spec.n_envs == 1:
        return skipped(_ONE_LANE)
    if not subject.varied:
        return skipped("no randomness was seen: every reset begins alike")
    for k in range(3):
        first = subject.env.reset(subject.seed + k)
        if (first != first[:1]).any():
            return PASSED
    return failed("all lanes begin alike", "the reset", "seed lane i with seed + i, or hash the seed with the lane")


def determinism(subject: Subject) -> Outcome:
    """The same seed and actions give the same trajectory, over the ends of episodes."""
    found = first_difference(subject.walk, record(subject.env, subject.replay, subject.seed))
    if found is None:
        return PASSED
    mend = "everything random, resets included, must come from generators that reset(seed) starts anew"
    return failed(_told("the same seed and actions went another way", found), found.where, mend)


def instances(subject: Subject) -> Outcome:
    """Two instances agree, and stepping one does not move the other."""
    if not subject.can_make:
        return skipped(_NEEDS_MAKE)
    n, seed = min(4, subject.spec.n_envs), subject.seed
    one, two, three = (subject.another(n, s) for s in (seed, seed, seed + 1))
    actions = random_actions(one.spec, len(subject.replay), seed)
    base = record(one, actions, seed)
    found = first_difference(base, record(two, actions, seed))
    if found:
        mend = "nothing but the seed may tell two instances apart"
        return failed(_told("a second instance with the same seed goes another way", found), found.where, mend)
    first, steps = two.reset(seed).detach().clone(), []
    three.reset(seed + 1)
    for action in actions:
        steps.append(keep(act(two, action)))
        act(three, action)
    found = first_difference(base, stack(first, steps))
    if found:
        mend = "keep state and random generators in the instance, not in the class or the module"
        return failed(_told("stepping another instance moved this one", found), found.where, mend)
    return PASSED


def independence(subject: Subject) -> Outcome:
    """What lane 0 does changes nothing in the other lanes."""
    if subject.spec.n_envs == 1:
        return skipped(_ONE_LANE)
    actions = subject.replay.clone()
    actions[:, 0] = opposite(subject, actions)[:, 0]
    base, other = subject.walk, record(subject.env, actions, subject.seed)
    found = first_difference(base, other, slice(1, None))
    if found is None:
        return PASSED
    begins = found.step > 0 and bool(base.begins[found.step - 1, found.lane])
    if begins and set(found.fields) <= ({"obs", "final_obs"} if base.masked else {"obs"}):
        what = "a new episode depends on what lane 0 did: the lanes draw from one generator"
        return noted(what, found.where, "give every lane a generator of its own to have lanes that repeat")
    mend = "no sum, mean, index or buffer may mix the lanes"
    return failed(_told("other actions in lane 0 alone moved another lane", found), found.where, mend)


def lane_count(subject: Subject) -> Outcome:
    """Lane k does the same whatever the number of lanes is. Not required of an environment."""
    if not subject.can_make:
        return skipped(_NEEDS_MAKE)
    few, many = subject.another(3, subject.seed), subject.another(8, subject.seed)
    actions = random_actions(many.spec, len(subject.replay), subject.seed)
    a, b = record(few, actions[:, :3], subject.seed), record(many, actions, subject.seed)
    found = first_difference(a, first_lanes(b, 3))
    if found is None:
        return PASSED
    return noted("what a lane does depends on the number of lanes", found.where, "results then change with n_envs")


def opposite(subject: Subject, actions: Tensor) -> Tensor:
    """Other actions than `actions` in every place where there is another."""
    s = subject.spec
    if s.action_dim:
        return torch.where(actions > 0, -1.0, 1.0)
    sizes = torch.tensor(s.nvec or s.n_actions)
    return (actions + 1) % sizes


def actions_matter(subject: Subject) -> Outcome:
    spec = subject.spec
    if max(spec.nvec or (spec.n_actions,)) == 1:
        return skipped("there is one action")
    base = subject.walk
    other = record(subject.env, opposite(subject, subject.replay), subject.seed)
    for lane in range(min(spec.n_envs, 8)):
        if first_difference(base, other, slice(lane, lane + 1)) is None:
            what = f"opposite actions change nothing in {len(subject.replay)} steps"
            return failed(what, f"lane {lane}", "check that the action reaches the physics of its own lane")
    return PASSED


def clipping(subject: Subject) -> Outcome:
    """Actions beyond -1 and 1 do what -1 and 1 do, in the reward too."""
    if not subject.spec.action_dim:
        return skipped("actions are discrete")
    bounds = subject.replay.sign()
    base = record(subject.env, bounds, subject.seed)
    found = first_difference(base, record(subject.env, 2.5 * bounds, subject.seed))
    if found is None:
        return PASSED
    mend = "begin step with action = action.clamp(-1, 1), and pay for the clamped one"
    return failed(_told("an action of 2.5 does not act as 1", found), found.where, mend)


def state_dict(subject: Subject) -> Outcome:
    """A saved state, loaded later or into another instance, goes on bit for bit."""
    env = subject.env
    env.reset(subject.seed)
    head = len(subject.replay) // 3
    for action in subject.replay[:head]:
        act(env, action)
    state = env.state_dict()
    if not state:
        return skipped("state_dict() is empty: the state cannot be had")
    wrong = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if wrong:
        return failed(f"state_dict()[{wrong[0]!r}] is no tensor", mend="a checkpoint holds tensors only")
    state = {k: v.clone() for k, v in state.items()}
    first, rest = torch.zeros(subject.spec.n_envs, 1), subject.replay[head:]
    base = go_on(env, first, rest)
    targets = [("the same instance", env)]
    if subject.can_make:
        another = subject.another(subject.spec.n_envs, subject.seed + 5)
        another.reset(subject.seed + 5)
        targets.append(("another instance", another))
    for name, target in targets:
        target.load_state_dict({k: v.clone() for k, v in state.items()})
        found = first_difference(base, go_on(target, first, rest))
        if found:
            what = f"{name} goes another way after load_state_dict"
            mend = "save everything a step reads: state, clocks, generators, previous values, masks"
            return failed(_told(what, found), f"{found.where} after it", mend)
    return PASSED


def host_reads(subject: Subject) -> Outcome:
    """On a GPU no step waits for the host."""
    env = subject.env
    if subject.spec.device.type != "cuda":
        return skipped("needs an environment on a CUDA device")
    env.reset(subject.seed)
    actions = subject.replay[:20].to(subject.spec.device)
    for action in actions:  # compilation, and what is made once
        env.step(action)
    torch.cuda.synchronize(subject.spec.device)
    old = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t, action in enumerate(actions):
            try:
                env.step(action)
            except RuntimeError as error:
                said = str(error).splitlines()[0]
                mend = "no .item(), .cpu(), nonzero() or `if tensor:` in step; torch.where does both branches"
                return failed(f"step reads the device: {said}", f"step {t + 1}", mend)
    finally:
        torch.cuda.set_sync_debug_mode(old)
    return PASSED
