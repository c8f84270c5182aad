"""Adapters of other simulators, against stand-ins that reset, flag and reuse their buffers as those do."""

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from stand_ins import (
    LIMIT,
    OBS,
    Ant,
    AnymalTerrain,
    BraxLike,
    DirectRLEnv,
    Groups,
    LeggedRobot,
    ManiSkillBase,
    ManiSkillVectorEnv,
    RslRl2,
    RslRl5,
    SB3VecEnv,
    SkrlWrapper,
    Terrain,
    policy,
    truth,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ctrlrl.config import EnvConfig
from ctrlrl.envs.adapters import adapt, kinds
from ctrlrl.tasks import as_vec_env, make_env
from ctrlrl.types import VecEnv

N = 5
# name -> (make, what a failure in the very last step counts as, whether the last observation is lost)
SIMULATORS = {
    "isaac gym, next step": (lambda: Ant(N), "truncated", False),
    "isaac gym, same step": (lambda: AnymalTerrain(N), "truncated", True),
    "isaac lab": (lambda: DirectRLEnv(N), "terminated", True),
    "isaac lab, bounds": (lambda: DirectRLEnv(N, low=-1.0), "terminated", True),
    "rsl_rl 5": (lambda: RslRl5(DirectRLEnv(N)), "truncated", True),
    "rsl_rl 2": (lambda: RslRl2(N), "truncated", True),
    "legged_gym": (lambda: LeggedRobot(N), "truncated", True),
    "maniskill": (lambda: ManiSkillVectorEnv(N), "terminated", False),
    "maniskill, new key": (lambda: ManiSkillVectorEnv(N, key="final_obs"), "terminated", False),
    "brax": (lambda: BraxLike(N, batch_size=N), "terminated", True),
    "brax, groups": (lambda: BraxLike(N, batch_size=N, groups=True), "terminated", True),
}


@pytest.fixture(params=SIMULATORS)
def simulator(request):
    return request.param


def transitions(env, n_steps):
    """Per lane, the unmasked rows as a rollout keeps them."""
    obs = env.reset(0).clone()
    kept = [[] for _ in range(env.spec.n_envs)]
    for _ in range(n_steps):
        step = env.step(policy(obs))
        mask = step.extras.get("mask", torch.ones(env.spec.n_envs, dtype=torch.bool))
        row = {name: getattr(step, name) for name in ("reward", "final_obs", "terminated", "truncated")} | {"obs": obs}
        for lane, lane_kept in enumerate(kept):
            if mask[lane]:
                lane_kept.append({name: tensor[lane].tolist() for name, tensor in row.items()})
        obs = step.obs.clone()
    return kept


def test_transitions_are_those_of_the_task_stepped_without_automatic_resets(simulator):
    make, both, lost = SIMULATORS[simulator]
    env = adapt(make())
    ends = {"terminated": 0, "truncated": 0}
    for lane, kept in enumerate(transitions(env, 60)):
        assert len(kept) > 40
        first = int(kept[0]["obs"][2])  # how often the adapter has reset before
        clock = round(kept[0]["obs"][1] * 8)  # Isaac Gym's first observation may come after a step without action
        expected = truth(lane, 70, both=both, same_start=simulator.startswith("brax"), first_episode=first)
        if simulator == "isaac gym, same step":
            assert clock in (0, 1)
            start = next(i for i, row in enumerate(expected) if row["truncated"] or row["terminated"]) + 1
            ended = next(i for i, row in enumerate(kept) if row["truncated"] or row["terminated"]) + 1
            kept, expected = kept[ended:], expected[start:]  # that first episode has other actions
        else:
            assert clock == 0
        for row, wanted in zip(kept, expected, strict=False):
            done = row["terminated"] or row["truncated"]
            if lost and row["truncated"]:
                wanted = wanted | {"final_obs": wanted["obs"]}
            elif lost and done:
                wanted = wanted | {"final_obs": row["final_obs"]}  # no formula may read it
            assert row == wanted
            ends["terminated"] += row["terminated"]
            ends["truncated"] += row["truncated"]
    assert ends["terminated"] > 3
    assert ends["truncated"] > 3


def test_the_task_sometimes_fails_in_the_very_step_of_the_time_limit():
    """So the test above also holds the rule that both ends at once are a termination."""
    pairs = [(truth(i, 40), truth(i, 40, both="truncated")) for i in range(N)]
    assert sum(a["terminated"] != b["terminated"] for one, other in pairs for a, b in zip(one, other, strict=True)) > 0


def test_shapes_dtypes_and_the_protocol(simulator):
    env = adapt(SIMULATORS[simulator][0]())
    assert isinstance(env, VecEnv)
    assert (env.spec.n_envs, env.spec.obs_dim, env.spec.action_dim, env.spec.n_actions) == (N, OBS, 1, 0)
    obs = env.reset(3)
    assert (obs.shape, obs.dtype) == ((N, OBS), torch.float32)
    for _ in range(2 * LIMIT):
        step = env.step(torch.zeros(N, 1))
        assert step.obs.shape == step.final_obs.shape == (N, OBS)
        assert (step.reward.shape, step.reward.dtype) == ((N,), torch.float32)
        for flags in (step.terminated, step.truncated):
            assert (flags.shape, flags.dtype) == ((N,), torch.bool)
        assert not (step.terminated & step.truncated).any()
    assert env.state_dict() == {}
    with pytest.raises(ValueError, match="no state to restore"):
        env.load_state_dict({"x": torch.zeros(1)})
    env.close()


class NoHostReads(TorchDispatchMode):
    """Raises where a tensor's value would have to reach the host, or a shape depend on it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"):
            raise AssertionError(f"host read: {name}")
        return func(*args, **(kwargs or {}))


def test_no_step_reads_the_device(simulator):
    env = adapt(SIMULATORS[simulator][0]())
    env.reset(0)
    with NoHostReads():
        for _ in range(2 * LIMIT):
            env.step(torch.zeros(N, 1))


OTHERS = {
    "gymnasium env": lambda: gym.make("CartPole-v1"),
    "gymnasium vector": lambda: SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2),
    "sb3": SB3VecEnv,
    "sb3 around isaac lab": lambda: SB3VecEnv(DirectRLEnv(2)),
    "ctrlrl": lambda: make_env(EnvConfig(name="pendulum"), 2, seed=0),
}


def test_one_rule_claims_a_simulator_and_none_anything_else(simulator):
    kind = kinds(SIMULATORS[simulator][0]())
    assert len(kind) == 1
    assert kind[0].startswith(simulator.split(",")[0].replace(" ", "_").replace("legged_gym", "rsl_rl")[:6])


@pytest.mark.parametrize("other", OTHERS)
def test_no_rule_claims_other_environments(other):
    env = OTHERS[other]()
    assert kinds(env) == []
    assert adapt(env) is None


def test_the_python_face_finds_the_adapter():
    env = as_vec_env(DirectRLEnv(2), seed=7)
    assert env.spec.n_envs == 2
    env.reset()
    assert env.env.seeds == [7, 7]


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(TypeError, match="isaac_gym takes no option 'groups'; it takes reset_timing, action_scale"):
        adapt(Ant(2), groups=("policy",))


# actions -------------------------------------------------------------------------------------------------------------


def test_unbounded_actions_go_out_as_sampled_times_the_scale():
    sample = torch.tensor([[3.0], [-0.5]])
    for task in (DirectRLEnv(2), LeggedRobot(2)):
        env = adapt(task, action_scale=0.5)
        env.reset()
        env.step(sample)
        torch.testing.assert_close(task.received[-1], 0.5 * sample)


@pytest.mark.parametrize("clip", [1.0, 100.0, float("inf")])
def test_isaac_gym_actions_are_clipped_at_the_tasks_own_limit_not_scaled_to_it(clip):
    task = Ant(2, clip_actions=clip)
    env = adapt(task)
    env.reset()
    env.step(torch.tensor([[3.0], [-0.5]]))
    assert task.received[-1].tolist() == [[min(3.0, clip)], [-0.5]]


def test_finite_bounds_take_the_unit_interval_to_them():
    task = DirectRLEnv(3, low=-4.0)
    env = adapt(task)
    env.reset()
    env.step(torch.tensor([[0.5], [-1.0], [7.0]]))
    assert task.received[-1].tolist() == [[2.0], [-4.0], [4.0]]
    with pytest.raises(ValueError, match="action_scale is for actions without bounds"):
        adapt(task, action_scale=2.0)


# Isaac Gym -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "timing"), [(Ant, "next step"), (AnymalTerrain, "same step"), (Terrain, "same step")])
def test_reset_timing_follows_the_class_and_says_so(task, timing):
    assert any(timing in line and "reset_timing" in line for line in adapt(task(2)).notices)


def test_reset_timing_can_be_said():
    env = adapt(Terrain(2), reset_timing="next_step")
    assert not env.same_step
    assert env.notices == ()
    with pytest.raises(ValueError, match="must be one of next_step, same_step, got 'now'"):
        adapt(Ant(2), reset_timing="now")


def test_a_step_that_only_resets_is_masked_and_pays_nothing():
    task = Ant(1)
    env = adapt(task)
    env.reset()
    for _ in range(LIMIT):
        step = env.step(torch.zeros(1, 1))
        assert bool(step.extras["mask"])
    assert bool(step.truncated)
    step = env.step(torch.ones(1, 1))
    assert float(task.rew_buf) != 0.0, "the task pays for the reset state"
    assert (bool(step.extras["mask"]), float(step.reward), bool(step.terminated | step.truncated)) == (
        False,
        0.0,
        False,
    )


def test_a_lane_that_ends_on_its_reset_state_is_reset_again():
    task = Ant(1)
    env = adapt(task)
    env.reset()
    task.reset_buf[:] = 1
    env._pending = torch.ones(1, dtype=torch.bool)
    task.plant.failed = lambda: torch.ones(1, dtype=torch.bool)
    first, second = env.step(torch.zeros(1, 1)), env.step(torch.zeros(1, 1))
    assert not first.extras["mask"].any()
    assert not first.terminated.any()
    assert not second.extras["mask"].any()


def test_a_second_reset_starts_every_lane_anew():
    for task in (Ant(N), AnymalTerrain(N)):
        env = adapt(task)
        env.reset()
        for _ in range(3):
            env.step(torch.zeros(N, 1))
        obs = env.reset()
        assert bool((obs[:, 1] <= 1 / 8).all())


def test_amp_tasks_are_refused():
    class HumanoidAMP(Ant):
        pass

    with pytest.raises(ValueError, match="AMP tasks are reset by their own learner"):
        adapt(HumanoidAMP(2))


# Isaac Lab and rsl_rl ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [DirectRLEnv, lambda n: RslRl5(DirectRLEnv(n))])
def test_a_critic_group_is_ignored_with_a_notice(make):
    env = adapt(make(2))
    assert any("'critic' is ignored" in line for line in env.notices)
    assert any("last observation of an episode is lost" in line for line in env.notices)


def test_groups_are_taken_side_by_side_in_the_order_asked():
    env = adapt(DirectRLEnv(2), groups=("critic", "policy"))
    assert env.spec.obs_dim == 9 + OBS
    assert torch.equal(env.reset()[:, 9:], env.env.plant.obs())
    with pytest.raises(ValueError, match=r"no group .*teacher.*it has .*policy.*critic"):
        adapt(DirectRLEnv(2), groups=("teacher",))


def test_a_finite_horizon_terminates_at_the_time_limit():
    env = adapt(DirectRLEnv(1, is_finite_horizon=True))
    env.reset()
    for _ in range(LIMIT):
        step = env.step(torch.zeros(1, 1))
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)
    assert any("time-out counts as a termination" in line for line in env.notices)


def test_without_time_outs_an_end_is_a_termination_and_a_notice_says_so():
    env = adapt(RslRl5(DirectRLEnv(1, is_finite_horizon=True)))
    assert any("does not tell time-outs" in line for line in env.notices)
    env.reset()
    flags = []
    for _ in range(LIMIT):
        step = env.step(torch.zeros(1, 1))
        flags.append((bool(step.terminated), bool(step.truncated)))
    assert flags == [(False, False)] * (LIMIT - 1) + [(True, False)]
    assert not any("does not tell" in line for line in adapt(LeggedRobot(1)).notices)


@pytest.mark.parametrize("make", [lambda: DirectRLEnv(3), lambda: RslRl5(DirectRLEnv(3)), lambda: LeggedRobot(3)])
def test_staggered_lanes_end_at_different_steps(make):
    task = make()
    env = adapt(task, stagger=True)
    env.reset()
    ends = [[] for _ in range(3)]
    for t in range(LIMIT):
        step = env.step(torch.zeros(3, 1))
        for lane in (step.terminated | step.truncated).nonzero().flatten().tolist():
            ends[lane].append(t)
    assert [lane[0] for lane in ends] == [LIMIT - 1, LIMIT - 1 - LIMIT // 3, LIMIT - 1 - 2 * LIMIT // 3]


def test_seeds_reach_a_simulator_that_takes_them():
    task = DirectRLEnv(2)
    env = adapt(RslRl5(task), seed=5)
    env.reset(6)
    assert [seed for seed in task.seeds if seed is not None] == [5, 6]


def test_real_tensordicts_are_read():
    tensordict = pytest.importorskip("tensordict", reason="pip install 'ctrlrl[dev]'")
    made = lambda groups: tensordict.TensorDict(groups, batch_size=[N])  # noqa: E731
    env, same = adapt(RslRl5(DirectRLEnv(N), make_groups=made)), adapt(RslRl5(DirectRLEnv(N), make_groups=Groups))
    assert transitions(env, 20) == transitions(same, 20)


def test_a_simulator_without_any_reset_says_so():
    class Stubborn(LeggedRobot):
        reset = property(lambda self: (_ for _ in ()).throw(AttributeError))

    env = adapt(Stubborn(2))
    assert any("it has no reset()" in line for line in env.notices)
    before = env.env.plant.episode.clone()
    env.reset()
    assert torch.equal(env.env.plant.episode, before)


def test_rewards_with_a_second_axis_are_refused():
    env = adapt(SkrlWrapper(DirectRLEnv(3)))
    env.reset()
    with pytest.raises(ValueError, match=r"rewards must have shape \(3,\), got \(3, 1\).*skrl"):
        env.step(torch.zeros(3, 1))


def test_an_exception_is_one_line_with_the_name():
    env = adapt(DirectRLEnv(2))
    env.reset()
    env.env.fault = FloatingPointError("the arm fell off\nsecond line")
    with pytest.raises(RuntimeError) as error:
        env.step(torch.zeros(2, 1))
    assert str(error.value) == ("DirectRLEnv: environment raised FloatingPointError: the arm fell off (after 0 steps)")


# ManiSkill and Brax --------------------------------------------------------------------------------------------------


def test_maniskill_success_is_told_at_ends_only():
    env = adapt(ManiSkillVectorEnv(2))
    env.reset()
    steps = [env.step(torch.zeros(2, 1)) for _ in range(LIMIT + 1)]
    assert "success" not in steps[0].extras
    assert steps[LIMIT - 1].extras["success"].tolist() == [1.0, 1.0]
    assert steps[LIMIT].extras["success"].isnan().all()


def test_maniskill_without_its_vector_wrapper_is_refused():
    with pytest.raises(ValueError, match="must stand in its vector wrapper"):
        adapt(ManiSkillBase(2))
    env = ManiSkillVectorEnv(2)
    env.auto_reset = False
    with pytest.raises(ValueError, match="auto_reset=True"):
        adapt(env)


def test_brax_must_be_batched_and_reset_itself():
    with pytest.raises(ValueError, match="give it a batch"):
        adapt(BraxLike(2))
    with pytest.raises(ValueError, match="has batch_size=2, not n_envs=3"):
        adapt(BraxLike(2, batch_size=2), n_envs=3)
    with pytest.raises(ValueError, match="not reset at an end"):
        adapt(BraxLike(2, batch_size=2, auto_reset=False))
    assert any("does not tell time-outs" in line for line in adapt(BraxLike(2, truncation=False), n_envs=2).notices)


def test_brax_actions_are_clipped_to_the_unit_interval():
    task = BraxLike(3, batch_size=3)
    env = adapt(task)
    env.reset()
    env.step(torch.tensor([[0.5], [-1.5], [7.0]]))
    assert task.received[-1].tolist() == [[0.5], [-1.0], [1.0]]


def test_brax_seeds_are_keys_and_fresh_episodes_take_new_ones():
    task = BraxLike(2, batch_size=2)
    env = adapt(task, seed=4)
    env.reset()
    env.step(torch.zeros(2, 1))
    env.reset()
    env.reset(11)
    assert task.keys == [4, 4, 5, 11]
