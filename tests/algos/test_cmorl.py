"""C-MORL: the two barriers, the rounds and their arithmetic, the archive's use, and what is refused."""

import math

import pytest
import torch

from ctrlrl.algos.cmorl import CMORLConfig, CMORLLearner, ScalarizedPPOConfig, ScalarizedPPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.core.front import checked_preference
from ctrlrl.loops import make_learner
from ctrlrl.types import EnvSpec, Rollout

CPU = torch.device("cpu")
SMALL = {"n_steps": 8, "n_minibatches": 2, "n_epochs": 1, "hidden": [8]}


def spec(m=2):
    return EnvSpec(3, 2, 0, m, 4, 20, CPU)


def learner(m=2, kind=CMORLLearner, **settings):
    torch.manual_seed(0)
    config = {CMORLLearner: CMORLConfig, ScalarizedPPOLearner: ScalarizedPPOConfig}[kind]
    return kind(config(**{**SMALL, "reference": [-10.0] * m, **settings}), spec(m))


def batch(team, n=32, m=2):
    torch.manual_seed(1)
    s = team.size
    advantages = torch.randn(s, n, m)
    scalar = (advantages * team.weight.unsqueeze(1)).sum(-1)
    zero = torch.zeros(s, n)
    return Batch(zero, zero, zero, zero, scalar, torch.randn(s, n, m) + 0.5, {"advantages": advantages})


def rollout(team, ended=None):
    """Eight steps of four lanes a member, with rewards of noise."""
    torch.manual_seed(2)
    obs, reward = torch.randn(8, 4 * team.size, 3), torch.randn(8, 4 * team.size, 2)
    out = [team.act(o) for o in obs]
    told = (torch.stack([getattr(o, name) for o in out]) for name in ("action", "log_prob"))
    never = torch.zeros(obs.shape[:2], dtype=torch.bool)
    zeros = torch.zeros_like(reward)
    return Rollout(obs, *told, zeros, zeros, reward, never if ended is None else ended, never, {})


def extended(ipo="paper", returns=((10.0, 5.0), (10.0, 5.0)), objective=(0, 1), **settings):
    made = learner(ipo=ipo, **settings)
    team = made.make_team(len(objective))
    team.extend(torch.tensor(objective), torch.tensor(returns))
    return team


# the paper's barrier


def test_at_ratio_one_the_barrier_is_the_log_of_the_relative_gap_of_the_other_objectives():
    team = extended()
    team.achieved.copy_(torch.tensor([[99.0, 4.8], [9.5, 0.0]]))
    got = team._floors(torch.zeros(2, 32), batch(team))
    # floors 9 and 4.5 in units of 10 and 5; what a member raises itself has no floor
    torch.testing.assert_close(got, torch.tensor([math.log(0.3 / 5.0), math.log(0.5 / 10.0)]), rtol=1e-5, atol=0)


def test_the_barrier_pulls_along_each_other_objectives_advantage_with_the_horizons_weight():
    team = extended()
    team.horizon.fill_(7.0)
    data = batch(team)
    log_ratio = torch.zeros(2, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(team._floors(log_ratio, data).sum(), log_ratio)
    other = torch.stack((data.extras["advantages"][0, :, 1], data.extras["advantages"][1, :, 0]))
    gap, unit = torch.tensor([[0.5], [1.0]]), 1.0  # achieved - floor; the unit cancels
    torch.testing.assert_close(slope, 7.0 * other / 32 / gap * unit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("t", "pull"), [(5.0, 100.0), (20.0, 100.0), (1e4, 5e4)])
def test_below_its_floor_a_member_is_pulled_back_hard_and_not_to_infinity(t, pull):
    """At least five times as hard as its objective pulls, once the barrier is divided by t."""
    team = extended(returns=((10.0, 5.0),), objective=(0,), barrier_sharpness=t)
    team.achieved.copy_(torch.tensor([[10.0, 1.0]]))
    data = batch(team)
    log_ratio = torch.zeros(1, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(team._floors(log_ratio, data).sum(), log_ratio)
    torch.testing.assert_close(slope, pull * data.extras["advantages"][..., 1] / 32 / 5.0, rtol=1e-4, atol=1e-6)


def test_stage_one_has_no_barrier_and_stage_two_weighs_it_by_one_over_t():
    team = extended(barrier_sharpness=4.0)
    data, log_ratio, nothing = batch(team), torch.zeros(2, 32), torch.zeros(())
    inside = team.policy_loss(log_ratio, data, nothing)
    barrier = team._floors(log_ratio, data)
    team.climb(team.weight.clone())
    torch.testing.assert_close(team.policy_loss(log_ratio, data, nothing) - barrier / 4.0, inside)


def test_the_horizon_of_the_barrier_is_the_discounted_length_of_an_episode():
    team = extended(eval_gamma=0.5, eval_max_steps=3)
    ended = torch.zeros(8, 8, dtype=torch.bool)
    ended[3::4, :4] = True  # member 0: episodes of 4 steps, of which 3 count; member 1: none ends
    team.update(rollout(team, ended))
    torch.testing.assert_close(team.horizon.squeeze(1), torch.tensor([1.75, 1.75]))


# the line search that keeps every iterate above its floors


def doing(team):
    """What the members do, by the numbers that decide it."""
    return [*team.policy.state_dict().values(), *team.normalizer.state_dict().values()]


def taken(team, returns):
    """What a member did before an update, after it, and once it was told these returns."""
    states = [[x.clone() for x in doing(team)]]
    team.update(rollout(team))
    states.append([x.clone() for x in doing(team)])
    team.judge(torch.tensor(returns))
    return [*states, [x.clone() for x in doing(team)]]


@pytest.mark.parametrize("below", [4.4, math.nan])
def test_a_member_outside_goes_back_and_one_inside_stays_where_it_is(below):
    team = extended()  # floors: 4.5 of objective 1 for member 0, 9 of objective 0 for member 1
    before, after, now = taken(team, [[0.0, below], [9.1, 0.0]])
    for old, new, kept in zip(before, after, now, strict=True):
        assert torch.equal(kept[0], old[0])
        assert torch.equal(kept[1], new[1])
    assert any(not torch.equal(old[0], new[0]) for old, new in zip(before, after, strict=True))
    assert team.achieved.tolist() == [[10.0, 5.0], [pytest.approx(9.1), 0.0]]
    assert team.share.flatten().tolist() == [0.5, 1.0]


def test_the_next_step_is_half_as_long_and_one_that_stays_inside_is_followed_by_twice_it():
    whole, half = extended(), extended()
    half.share.copy_(torch.tensor([[0.5], [1.0]]))
    torch.manual_seed(3)
    before, long, _ = taken(whole, [[10.0, 5.0], [10.0, 5.0]])
    torch.manual_seed(3)
    _, short, _ = taken(half, [[10.0, 5.0], [10.0, 5.0]])
    n = len(whole.policy.state_dict())  # the normalizer is not shortened
    for old, a, b in zip(before[:n], long, short, strict=False):
        torch.testing.assert_close(b[0] - old[0], 0.5 * (a[0] - old[0]), rtol=1e-4, atol=1e-6)
        assert torch.equal(b[1], a[1])
    assert half.share.flatten().tolist() == [1.0, 1.0]


def test_neither_stage_one_nor_released_goes_back():
    stage_one = extended()
    stage_one.climb(stage_one.weight.clone())
    for team in (stage_one, extended("released")):
        _, after, now = taken(team, [[-99.0, -99.0], [-99.0, -99.0]])
        assert all(torch.equal(a, b) for a, b in zip(after, now, strict=True))
        assert team.achieved.eq(-99.0).all()


# the released barrier: its four quirks


def test_released_drops_a_row_and_not_a_column():
    """Row `objective` of the minibatch has no say; every objective has, the raised one too."""
    team = extended("released")
    data = batch(team)
    log_ratio = torch.zeros(2, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(team._released(log_ratio, data).sum(), log_ratio)
    assert slope[0, 0] == 0.0
    assert slope[1, 1] == 0.0
    assert (slope != 0.0).sum() == 62
    positive = (data.target.mean(1) > 0.0).sum(1)  # of two objectives; 1 / (1 - beta) for each that is positive
    torch.testing.assert_close(slope[0, 1], 10.0 * positive[0] / 2 / 31)


def test_released_does_not_see_negative_returns():
    team = extended("released")
    data = batch(team)
    data = data._replace(target=-data.target.abs())
    log_ratio = torch.zeros(2, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(team._released(log_ratio, data).sum(), log_ratio)
    assert not slope.any()


def test_released_does_not_know_the_floors():
    team = extended("released")
    data, log_ratio = batch(team), torch.full((2, 32), 0.05)
    before = team._released(log_ratio, data)
    team.floor.fill_(1e6)
    torch.testing.assert_close(team._released(log_ratio, data), before)


def offered(made, returns):
    """An archive with these returns, from a stage one that is over."""
    made.set_budget(10**6, 4)
    made.begin_round()
    made.n_updates = made.rounds[0]
    team = made.use(len(returns))
    made.offer(torch.tensor(returns, dtype=torch.float64))
    return team


def test_paper_extends_every_policy_along_every_objective_side_by_side():
    made = learner(init_steps=10**5, n_extended=2)
    offered(made, [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)])
    assert made.begin_round() == 4
    assert made.team.objective.tolist() == [0, 1, 0, 1]
    assert made.team.achieved.tolist() == [[1, 9], [1, 9], [9, 1], [9, 1]]
    rows = made.archive.rows
    for name, x in made.team.rows().items():
        assert torch.equal(x, rows[f"nets/{name}"][[0, 0, 1, 1]]), name
    assert not made.team.opt.exp_avg.any()


def test_released_extends_one_objective_after_the_other_from_where_the_last_one_ended():
    made = learner(init_steps=10**5, n_extended=2, ipo="released", extension_updates=3)
    offered(made, [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)])
    assert made.begin_round() == 2
    first = made.team
    assert first.objective.tolist() == [0, 0]
    with torch.no_grad():
        first.opt.flat.add_(1.0)  # what training would change
        first.opt.step.fill_(33.0)
    there = first.opt.flat.clone()
    made.n_updates = 3
    assert made.begin_round() == 2
    assert made.team.objective.tolist() == [1, 1]
    assert torch.equal(made.team.opt.flat, there)
    assert made.team.opt.step.tolist() == [33.0, 33.0]


def test_released_keeps_the_optimizer_of_every_archived_policy():
    made = learner(init_steps=10**5, n_extended=1, ipo="released")
    offered(made, [(1.0, 9.0)])
    made.team.opt.step.fill_(5.0)
    made.offer(torch.tensor([[2.0, 9.5]]))
    made.begin_round()
    assert made.team.opt.step.tolist() == [5.0]


def test_a_run_ends_where_nothing_new_is_left_to_extend():
    made = learner(init_steps=10**5, n_extended=5)
    offered(made, [(1.0, 9.0)])
    assert made.begin_round() == 2
    made.n_updates = 20
    assert made.begin_round() == 0
    assert made.finished


@pytest.mark.parametrize(
    ("own", "first", "second"),
    [(None, [0.01 * (1 - i / 10) for i in range(8)], 0.001), (0.003, [0.01 * (1 - i / 8) for i in range(8)], 0.003)],
)
def test_a_schedule_runs_over_both_stages_or_ends_with_the_first_one(own, first, second):
    made = learner(init_steps=96 * 8, learning_rate=0.01, extension_learning_rate=own)
    made.set_budget(10**5, 4)
    made.begin_round()
    rates = []
    for made.n_updates in range(8):
        made.set_progress(made.n_updates / 10)
        rates.append(made.team.opt.learning_rate.item())
    assert rates == pytest.approx(first)
    made.n_updates = 8
    made.offer(torch.tensor([(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)]))
    made.begin_round()
    made.set_progress(0.9)
    assert made.team.opt.learning_rate.item() == pytest.approx(second)


# budgets


def test_the_budget_counts_every_environment_of_every_policy():
    made = learner(n_extended=2, extension_updates=20, init_steps=96 * 7)
    made.set_budget(96 * 7 + 128 * 50, 4)  # 3 policies x 32 steps an update; then 2 x 2 x 32
    assert made.rounds == [7, 20, 20, 10]


def test_paper_arithmetic_of_hopper():
    made = learner(n_steps=512, weight_step=0.2, n_extended=5, init_steps=8_000_000)
    made.set_budget(12_000_000, 8)  # nominal 1.5 M and 1 M steps: the authors count one of eight processes
    assert made.rounds[0] == 1_000_000 // 6 // 512
    assert sum(made.rounds[1:]) == 500_000 // 5 // 512 // 2
    assert made.rounds[1:] == [20, 20, 20, 20, 17]


def test_released_has_a_round_for_every_objective():
    made = learner(n_extended=2, extension_updates=20, init_steps=96, ipo="released")
    made.set_budget(96 + 128 * 30, 4)
    assert made.rounds == [1, 20, 20, 10, 10]


def test_scalarized_ppo_has_one_round_for_the_whole_budget():
    made = learner(kind=ScalarizedPPOLearner)
    made.set_budget(96 * 11, 4)
    assert made.rounds == [11]
    assert made.begin_round() == 3
    assert made.team.weight.tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]


def test_stage_one_is_evaluated_every_tenth_update_and_at_its_end_and_stage_two_always():
    made = learner(init_steps=96 * 13)
    made.set_budget(10**5, 4)
    made.begin_round()
    due = []
    for made.n_updates in range(1, 14):
        due.append(made.evaluation_due)
    assert [i + 1 for i, x in enumerate(due) if x] == [10, 13]
    made.n_begun, made.n_updates = 2, 3
    assert made.evaluation_due


@pytest.mark.parametrize("surrogate", ["ppo", "bpo"])
def test_the_surrogate_is_a_setting(surrogate):
    team = extended(surrogate=surrogate)
    data, log_ratio = batch(team), torch.zeros(2, 32, requires_grad=True)
    team.climb(team.weight.clone())
    (slope,) = torch.autograd.grad(team.policy_loss(log_ratio, data, torch.zeros(())).sum(), log_ratio)
    torch.testing.assert_close(slope, -data.advantage / 32)  # at ratio 1 both climb the advantage
    (beyond,) = torch.autograd.grad(
        team.policy_loss(log_ratio := torch.full((2, 32), 0.5, requires_grad=True), data, torch.zeros(())).sum(),
        log_ratio,
    )
    pulled_back = (beyond * data.advantage > 0.0) & (data.advantage > 0.0)
    assert bool(pulled_back.any()) == (surrogate == "bpo")


# preferences and bad input


def test_a_preference_plays_the_archived_policy_with_the_largest_weighted_sum():
    made = learner()
    team = offered(made, [(1.0, 9.0), (9.0, 1.0), (5.5, 5.5)])
    obs = torch.randn(7, 3)
    for preference, place in (([0.1, 0.9], 0), ([0.9, 0.1], 1), ([0.5, 0.5], 2)):
        assert made.prefer(preference) == place
        alone = team.policy.act(team.normalizer(obs.expand(3, -1, -1)), deterministic=True).action[place]
        torch.testing.assert_close(made.act(obs, deterministic=True).action, alone)


@pytest.mark.parametrize(
    ("preference", "said"),
    [
        ([0.5, 0.6], "sums to 1.1, not to 1"),
        ([-0.5, 1.5], "an entry is negative"),
        ([math.nan, 1.0], "not a number"),
        ([1.0], "has 1 entries, the task has 2 objectives"),
        ([0.2, 0.3, 0.5], "has 3 entries, the task has 2 objectives"),
    ],
)
def test_what_is_no_preference_is_refused(preference, said):
    with pytest.raises(ValueError, match=said):
        checked_preference(preference, 2)


def test_a_stage_one_that_leaves_the_archive_empty_names_the_objective_to_blame():
    made = learner(reference=[0.0, 100.0], init_steps=10**5)
    offered(made, [(1.0, 9.0), (9.0, 1.0)])
    with pytest.raises(ValueError, match="objective 1 wants at least 100, and the best of 2 policies reached 9"):
        made.begin_round()
    alone = learner(kind=ScalarizedPPOLearner, reference=[0.0, 100.0])
    with pytest.raises(ValueError, match="objective 1 wants at least 100"):
        offered(alone, [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)])


@pytest.mark.parametrize("algo", ["cmorl", "scalarized_ppo"])
def test_one_reward_is_refused_by_name(algo):
    config = CMORLConfig if algo == "cmorl" else ScalarizedPPOConfig
    with pytest.raises(ValueError, match=f"algo={algo} is for several objectives"):
        make_learner(config(reference=[0.0]), spec(1))


def test_a_vector_reward_is_refused_by_algorithms_of_one_and_the_right_ones_are_named():
    from ctrlrl.algos.ppo import PPOConfig

    with pytest.raises(ValueError, match=r"algo=ppo learns from one reward.*pays 2 \(speed, effort\).*algo=cmorl"):
        make_learner(PPOConfig(), spec(2)._replace(objectives=("speed", "effort")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference": []}, "algo.reference must hold the worst return that counts in each of 2 objectives"),
        ({"reference": [0.0]}, "got \\[0.0\\]"),
        ({"reference": [0.0, float("nan")]}, "algo.reference must hold"),
        ({"weight_low": 0.7, "weight_high": 0.6}, "weight_low=0.7, algo.weight_high=0.6: no preference"),
        ({"extension_learning_rate": -1.0}, "extension_learning_rate"),
        ({"beta": 1.0}, "beta"),
        ({"ipo": "other"}, "ipo must be paper or released"),
        ({"surrogate": "spo"}, "surrogate must be ppo or bpo"),
        ({"weight_step": 0.0}, "weight_step"),
        ({"target_kl": 0.1}, "target_kl"),
        ({"barrier_sharpness": 0.0}, "barrier_sharpness"),
        ({"n_extended": 0}, "n_extended"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        learner(**settings)


def test_a_budget_without_a_single_update_says_what_to_change():
    made = learner(init_steps=10)
    with pytest.raises(ValueError, match="Raise total_steps"):
        made.set_budget(1000, 4)
    with pytest.raises(ValueError, match="init_steps=10000 is more than total_steps=1000"):
        learner(init_steps=10_000).set_budget(1000, 4)
    with pytest.raises(ValueError, match="4 steps of stage two are less than one update"):
        learner(init_steps=996).set_budget(1000, 4)


def test_weights_of_another_shape_are_refused_by_name():
    made = learner()
    offered(made, [(1.0, 9.0)])
    other = learner(hidden=[9])
    with pytest.raises(ValueError, match=r"archive/nets/policy\.mean\.0\.weight is"):
        other.load_model_state(made.model_state())


def test_several_discrete_actions_at_once_are_refused_by_name():
    several = EnvSpec(3, 0, 0, 2, 4, 50, CPU, nvec=(2, 3))
    with pytest.raises(ValueError, match="algo=cmorl: several discrete actions at once are not taken"):
        make_learner(CMORLConfig(reference=[0.0, 0.0]), several)
