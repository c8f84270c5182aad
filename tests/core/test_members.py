"""Policies trained side by side: each must get what training it alone would have given it."""

import copy

import pytest
import torch
from torch import nn

from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.core.members import Members, MemberSteps, _standardized
from ctrlrl.core.random import Randomness
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import VectorCritic
from ctrlrl.nn.normalize import ObsNormalizer, RewardScaler
from ctrlrl.nn.stacked import stack
from ctrlrl.policies.standard import standard_policy
from ctrlrl.types import EnvSpec, Rollout, tree_map

S, B, T, N_OBS, M = 3, 4, 6, 5, 2
CPU = torch.device("cpu")
SPECS = {"continuous": EnvSpec(N_OBS, 2, 0, 1, B, 50, CPU), "discrete": EnvSpec(N_OBS, 0, 3, 1, B, 50, CPU)}
OPTIONS = {
    "n_steps": T,
    "n_epochs": 2,
    "n_minibatches": 3,
    "hidden": [8, 8],
    "normalize_obs": True,
    "normalize_reward": True,
    "clip_range_vf": 0.2,
    "max_grad_norm": 0.05,
    "ent_coef": 0.01,
}


class PPOMembers(Members):
    def policy_loss(self, log_ratio, batch: Batch, value):
        return ppo_clip(log_ratio, batch.advantage, clip_range=self.cfg.clip_range).mean(1)


def joined(learners: list[PPOLearner]) -> PPOMembers:
    """The members that begin as PPO's learners are now."""
    singles = []
    for learner in learners:
        critic = VectorCritic(N_OBS, [8, 8], 1, activation="tanh")
        critic.load_state_dict(learner.critic.state_dict())
        parts = {"policy": copy.deepcopy(learner.policy), "critic": critic}
        parts |= {"normalizer": copy.deepcopy(learner.normalizer), "reward_scaler": RewardScaler(1)}
        singles.append(nn.ModuleDict(parts))
    return PPOMembers(learners[0].cfg, stack(singles, Randomness().bernoulli_like), torch.ones(len(learners), 1))


def rollout(members: Members, kind: str, m: int = 1) -> Rollout:
    n = members.size * B
    obs = torch.randn(T + 1, n, N_OBS) * 3.0 + 1.0
    acted = [members.act(rows) for rows in obs[:-1]]
    value = members.value(obs)
    terminated = torch.rand(T, n) < 0.1
    truncated = (torch.rand(T, n) < 0.1) & ~terminated
    return Rollout(
        obs[:-1],
        torch.stack([a.action for a in acted]),
        torch.stack([a.log_prob for a in acted]),
        value[:-1],
        value[1:],
        torch.randn(T, n, m) * 4.0,
        terminated,
        truncated,
        {},
    )


def own(whole: Rollout, s: int) -> Rollout:
    """What member s would have collected alone, with a reward of one number."""
    cut = tree_map(lambda x: x[:, s * B : (s + 1) * B], whole)
    return cut._replace(**{k: getattr(cut, k).squeeze(-1) for k in ("value", "next_value", "reward")})


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("normalize", ["minibatch", "batch"])
def test_every_member_becomes_what_ppo_alone_makes_of_its_own_lanes(kind, normalize):
    torch.manual_seed(0)
    learners = [PPOLearner(PPOConfig(**OPTIONS, normalize_advantage=normalize), SPECS[kind]) for _ in range(S)]
    members = joined(learners)
    for seed in range(3):
        whole = rollout(members, kind)
        for s, learner in enumerate(learners):
            torch.manual_seed(seed)
            learner.update(own(whole, s))
        torch.manual_seed(seed)
        members.update(whole)
    rows = members.rows()
    for s, learner in enumerate(learners):
        for name, x in learner.nets.state_dict().items():
            got = rows[name][s]
            torch.testing.assert_close(got.reshape(x.shape), x, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_members_act_and_value_lane_by_lane_as_each_alone():
    torch.manual_seed(0)
    learners = [PPOLearner(PPOConfig(**OPTIONS), SPECS["continuous"]) for _ in range(S)]
    members = joined(learners)
    obs = torch.randn(T, S * B, N_OBS)
    for s, learner in enumerate(learners):
        lanes = slice(s * B, (s + 1) * B)
        torch.testing.assert_close(
            members.act(obs[0], deterministic=True).action[lanes], learner.act(obs[0, lanes], deterministic=True).action
        )
        torch.testing.assert_close(members.value(obs)[:, lanes, 0], learner.value(obs[:, lanes]))
        torch.testing.assert_close(members.value(obs[1])[lanes, 0], learner.value(obs[1, lanes]))


def test_what_one_member_sees_changes_no_other_one():
    torch.manual_seed(0)
    learners = [PPOLearner(PPOConfig(**OPTIONS), SPECS["continuous"]) for _ in range(S)]
    a, b = joined(learners), joined(learners)
    whole = rollout(a, "continuous")
    other = whole._replace(reward=whole.reward.clone(), obs=whole.obs.clone())
    other.reward[:, :B] *= -3.0
    other.obs[:, :B] += 1.0
    for team, data in ((a, whole), (b, other)):
        torch.manual_seed(1)
        team.update(data)
    for name, x in a.rows().items():
        assert torch.equal(x[1:], b.rows()[name][1:]), name
    assert not torch.equal(a.rows()["policy.log_std"][0], b.rows()["policy.log_std"][0])


def vector_members(weight: torch.Tensor, **options) -> PPOMembers:
    torch.manual_seed(0)
    spec = SPECS["continuous"]
    cfg = PPOConfig(**{**OPTIONS, "normalize_advantage": "batch", **options})
    kwargs = {"activation": "tanh"}

    def one() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "policy": standard_policy(spec, N_OBS, [8], log_std_init=0.0, orthogonal=True, **kwargs),
                "critic": VectorCritic(N_OBS, [8], M, **kwargs),
                "normalizer": ObsNormalizer(N_OBS),
                "reward_scaler": RewardScaler(M),
            }
        )

    return PPOMembers(cfg, stack([one()] * len(weight), Randomness().bernoulli_like), weight)


def test_preferences_weigh_advantages_in_the_rewards_own_units_whatever_scale_the_critic_learns_in():
    """A reward a thousand times as large counts a thousand times as much, though it is scaled to one for the critic."""
    members = vector_members(torch.tensor([[0.5, 0.5]]))
    whole = rollout(members, "continuous", M)
    whole = whole._replace(reward=whole.reward * torch.tensor([1.0, 1000.0]))
    seen = []
    members._flatten = lambda *a: seen.append(Members._flatten(members, *a)) or seen[0]
    members.update(whole)
    of_each = seen[0].extras["advantages"]
    torch.testing.assert_close(seen[0].advantage, of_each.mean(2))
    assert of_each[..., 1].std() > 200 * of_each[..., 0].std()
    assert seen[0].target[..., 1].std() < 5 * seen[0].target[..., 0].std()


def test_each_objective_is_scaled_by_its_own_running_deviation():
    members = vector_members(torch.eye(2))
    whole = rollout(members, "continuous", M)
    whole = whole._replace(reward=whole.reward * torch.tensor([1.0, 1000.0]))
    scaled, unit = members._scaled(whole)
    assert unit.shape == (2, 1, M)
    assert (unit[..., 1] / unit[..., 0] > 300).all()
    torch.testing.assert_close(scaled * unit.repeat_interleave(B, 0).squeeze(1), whole.reward, rtol=1e-5, atol=1e-3)


def test_a_step_with_one_members_gradient_above_the_norm_leaves_the_others_unclipped():
    params = [nn.Parameter(torch.zeros(2, 3, 4)), nn.Parameter(torch.zeros(2, 1, 4))]
    step = MemberSteps(params, learning_rate=0.1, max_grad_norm=1.0, eps=10.0)  # a large eps: Adam is then linear
    loss = torch.stack([0.01 * sum(p[0].sum() for p in params), 100.0 * sum(p[1].sum() for p in params)])
    step(loss)
    small = -0.1 * 0.01 / (0.01 + 10.0)
    large = -0.1 * 0.25 / (0.25 + 10.0)  # sixteen entries share a norm of 1
    for p in params:
        torch.testing.assert_close(p[0].detach(), torch.full_like(p[0], small), rtol=1e-4, atol=0)
        torch.testing.assert_close(p[1].detach(), torch.full_like(p[1], large), rtol=1e-4, atol=0)


def test_steps_that_were_only_a_reset_are_refused_by_name():
    members = vector_members(torch.eye(2))
    whole = rollout(members, "continuous", M)
    with pytest.raises(ValueError, match="reset within a step"):
        members.update(whole._replace(extras={"mask": torch.ones(T, 2 * B, dtype=torch.bool)}))


def test_a_minibatch_of_one_row_has_no_spread_to_divide_by():
    assert torch.equal(_standardized(torch.tensor([[3.0], [4.0]]), 1), torch.zeros(2, 1))
    assert _standardized(torch.tensor([[3.0, 5.0]]), 1)[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
