"""PA-RL's update against the self-checks of its definition, and against the same steps written out by hand."""

import math
from typing import Any

import pytest
import torch
from by_hand import made, noise_rows

from ctrlrl.algos.parl import PARLConfig
from ctrlrl.functional.conservative import conservative_gap
from ctrlrl.functional.edits import picked
from ctrlrl.functional.regression import td_target
from ctrlrl.policies.optimized import choice

SMALL = {"base_head": "mlp", "base_hidden": [8], "base_embed_dim": 8, "base_n_levels": 3, "base_sampling_steps": 3} | {
    "n_samples": 6,
    "n_kept": 3,
    "n_climbs": 2,
    "n_uniform": 4,
}


def parl(**settings: Any) -> Any:
    return made("parl", 3, 2, **{**SMALL, "hidden": [8], **settings})


def batch(n: int = 64, return_to_go: float = -math.inf) -> Any:
    rows = noise_rows(n, 3, 2, seed=7)
    return rows._replace(extras={"return_to_go": torch.full((n,), return_to_go)})


def parts(learner: Any) -> dict[str, torch.Tensor]:
    policy = learner.nets.policy
    named = {"critic": policy.critic, "target": learner.nets.target}
    named |= {"base": learner.nets.base, "acting base": policy.base.head}
    return {name: torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for name, net in named.items()}


@pytest.mark.parametrize("return_to_go", [-math.inf, 0.05, 1e3])
def test_one_sample_without_steps_is_cal_ql_around_the_base(return_to_go):
    """Every draw of the policy is the same action, n times over, as in the authors' code."""
    only = {"n_samples": 1, "n_kept": 1, "n_climbs": 0, "conservative_coef": 5.0, "n_critics": 3, "n_min": 3}
    learner, twin = parl(**only), parl(**only)
    data = batch(return_to_go=return_to_go)
    torch.manual_seed(3)
    learner.update(data)

    policy, n = twin.nets.policy, 4
    critic = torch.optim.Adam(policy.critic.parameters(), lr=3e-4)
    torch.manual_seed(3)
    with torch.no_grad():
        here, after = policy.base.act(data.obs).action, policy.base.act(data.next_obs).action
        torch.rand(3)  # the draw of critics, here of all
        target = twin.nets.target(data.next_obs, after).amin(0)
        target = td_target(data.reward, data.terminated, target, gamma=0.99)
        uniform = 2.0 * torch.rand(n, 64, 2) - 1.0
    q = policy.critic(data.obs, data.action)
    random = [policy.critic(data.obs, a) for a in uniform]
    mine = [policy.critic(data.obs, a).maximum(data.extras["return_to_go"]) for a in (after, here) for _ in range(n)]
    soft_max = torch.stack([*random, *mine, q]).logsumexp(0) - math.log(3 * n + 1)
    ((q - target).square().mean() + 5.0 * (soft_max - q).mean()).backward()
    critic.step()
    torch.testing.assert_close(parts(learner)["critic"], parts(twin)["critic"], rtol=1e-5, atol=1e-6)


def test_the_policys_action_counts_as_often_as_the_random_ones_together():
    learner, q = parl(), torch.randn(2, 7, 5)
    found = conservative_gap(q, learner.log_density(q), q[:, -1])
    copies = torch.cat((q[:, :4], q[:, 4:6].repeat_interleave(4, 1), q[:, 6:]), 1)
    torch.testing.assert_close(found, copies.logsumexp(1) - math.log(13) - q[:, -1])


def test_the_target_is_the_least_of_the_drawn_critics_at_the_optimised_next_action():
    learner, data = parl(n_min=2), batch()
    with torch.no_grad():
        action = learner.nets.policy.best(data.next_obs)
    torch.manual_seed(3)
    found = learner.target(data, action)
    torch.manual_seed(3)
    q = learner.nets.target(data.next_obs, action)[learner.members()].amin(0)
    torch.testing.assert_close(found, td_target(data.reward, data.terminated, q, gamma=0.99))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("keeps_data", [True, False])
@torch.no_grad()
def test_the_base_learns_one_of_the_best_candidates_or_the_climbed_action_of_the_data(keeps_data, temperature):
    learner, data = parl(distill_data=keeps_data, distill_temperature=temperature), batch()
    policy = learner.nets.policy
    kept, value = policy.candidates(data.obs)
    torch.manual_seed(3)
    found = learner.better(data, kept, value)
    if keeps_data:
        own, worth = policy.climb(data.obs, data.action.unsqueeze(0))
        kept, value = torch.cat((kept[:2], own)), torch.cat((value[:2], worth))
    torch.manual_seed(3)
    assert torch.equal(found, picked(kept, choice(value, temperature)))
    equal = (found.unsqueeze(0) == kept).all(-1)
    assert (equal.sum(0) >= 1).all()
    if temperature == 0.0:
        assert torch.equal(policy.values(data.obs, found.unsqueeze(0))[0], value.amax(0))


def test_the_base_clones_until_the_environment_comes_and_a_base_from_a_run_rests():
    learner, data = parl(), batch()
    taught = []
    learner.teach_base = lambda obs, action: taught.append(action) or torch.zeros(())
    learner.update(data)
    assert torch.equal(taught[0], data.action)
    assert float(learner.opt["base"].learning_rate) == pytest.approx(3e-4)
    learner.cloned = True
    assert "loss/base" not in learner.update(data)
    learner.begin_online()
    learner.update(data)
    assert len(taught) == 2
    assert not torch.equal(taught[1], data.action)
    assert float(learner.opt["base"].learning_rate) == pytest.approx(5e-5)


def test_after_clone_updates_the_base_learns_better_actions_offline_too():
    learner, data, taught = parl(clone_updates=2), batch(), []
    learner.teach_base = lambda obs, action: taught.append(torch.equal(action, data.action)) or torch.zeros(())
    for _ in range(4):
        learner.update(data)
    assert taught == [True, True, False, False]


def test_the_stage_of_the_lessons_is_saved():
    learner, other = parl(), parl()
    learner.begin_online()
    learner.cloned = True
    other.load_training_state(learner.training_state())
    assert (other.begun, other.cloned) == (True, True)


def test_each_loss_moves_its_own_network_alone_and_no_gradient_passes_through_the_sampler():
    learner, data = parl(), batch()
    learner.begin_online()
    before = parts(learner)
    learner.opt["base"].learning_rate.fill_(0.0)
    learner.lesson = "distill"
    learner.update(data)
    moved = {name for name, now in parts(learner).items() if not torch.equal(now, before[name])}
    assert moved == {"critic", "target"}
    before = parts(learner)
    learner.opt["critic"].learning_rate.fill_(0.0)
    learner.opt["base"].learning_rate.fill_(1e-2)
    learner.update(data)
    after = parts(learner)
    assert torch.equal(after["critic"], before["critic"])
    wanted = before["acting base"].lerp(after["base"], 0.002)
    torch.testing.assert_close(after["acting base"], wanted, rtol=1e-5, atol=1e-7)
    assert not torch.equal(after["base"], before["base"])


def test_taught_by_a_known_value_the_base_moves_towards_its_top():
    """-(a - 0.6)^2: nothing in the data is there."""
    learner = parl(
        base_kind="flow", base_sampler="euler", base_hidden=[32], learning_rate=1e-2, base_tau=0.1, climb_size=0.1
    )
    learner.nets.policy.values = lambda obs, a, least=False: -(a - 0.6).square().sum(-1)
    data = batch(128)
    data = data._replace(action=0.2 * data.action)

    def distance() -> float:
        with torch.no_grad():
            return float((learner.nets.policy.base.draws(data.obs, 8) - 0.6).square().mean())

    for _ in range(150):
        learner.teach_base(data.obs, data.action)
    cloned = distance()
    for _ in range(150):
        with torch.no_grad():
            kept, value = learner.nets.policy.candidates(data.obs)
            better = learner.better(data, kept, value)
        learner.teach_base(data.obs, better)
    assert distance() < 0.3 * cloned


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch deprecates
def test_compiled_updates_are_the_eager_ones():
    ends = []
    for mode in ("eager", "compile"):
        learner = parl(clone_updates=1)
        learner.set_compile(mode)
        torch.manual_seed(3)
        for _ in range(3):
            learner.update(batch(return_to_go=0.1))
        ends.append(parts(learner))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_kept": 7}, r"n_kept must lie in 1 \.\.\. n_samples=6, got 7"),
        ({"n_min": 11}, r"n_min must lie in 1 \.\.\. n_critics=10, got 11"),
        ({"n_climbs": -1}, "n_climbs must be at least 0"),
        ({"base_kind": "flow"}, "base_sampler of base_kind=flow must be euler or midpoint"),
        ({"distill_temperature": -1.0}, "distill_temperature"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        PARLConfig(**{**SMALL, **settings})
