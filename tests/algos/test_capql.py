"""CAPQL: the update by hand, preferences in the replay, acting for one of them, and what it promises as a learner."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl import judging
from ctrlrl.algos.capql import CAPQLConfig, CAPQLLearner
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.regression import td_target
from ctrlrl.loops import make_learner, training_loop
from ctrlrl.tasks import make_env
from ctrlrl.types import EnvSpec, Transition

OBS, ACT, M, N = 3, 2, 3, 16
SPEC = EnvSpec(OBS, ACT, 0, M, 1, 100, torch.device("cpu"), objectives=("a", "b", "c"))


def settings(**changes: Any) -> CAPQLConfig:
    return CAPQLConfig(**{"hidden": [8, 8], "batch_size": N, "reference": [-1.0] * M, **changes})


def made(spec: EnvSpec = SPEC, **changes: Any) -> CAPQLLearner:
    torch.manual_seed(0)
    learner: Any = make_learner(settings(**changes), spec)
    return learner


def batch(seed: int = 0) -> Transition:
    g = torch.Generator().manual_seed(seed)
    weight = torch.rand(N, M, generator=g)
    return Transition(
        torch.randn(N, OBS, generator=g),
        torch.rand(N, ACT, generator=g) * 2 - 1,
        torch.randn(N, M, generator=g),
        torch.randn(N, OBS, generator=g),
        torch.arange(N) % 4 == 0,
        {"preference": weight / weight.sum(1, keepdim=True)},
    )


def sampled(nets: Any, obs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    seen = torch.cat((obs, weight), 1)
    mean, log_std = nets.policy(seen)
    return seen, *tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))


def test_the_target_of_every_objective_is_its_smaller_critic_with_the_same_concave_term():
    learner, rows = made(alpha=0.3), batch()
    torch.manual_seed(5)
    found = learner.target(rows, rows.extras["preference"])
    torch.manual_seed(5)
    seen, action, log_prob = sampled(learner.nets, rows.next_obs, rows.extras["preference"])
    q = learner.nets.target(seen, action)
    assert q.shape == (2, N, M)
    following = torch.minimum(q[0], q[1]) - 0.3 * log_prob.unsqueeze(1)
    torch.testing.assert_close(found, td_target(rows.reward, rows.terminated, following, gamma=0.99).detach())
    assert torch.equal(found[rows.terminated], rows.reward[rows.terminated])


def test_one_update_is_the_authors_with_plain_adam():
    """Critics on the mean over rows and objectives, then the policy on the weighted smaller critic."""
    learner, twin = made(learning_rate=1e-2), made(learning_rate=1e-2)
    rows = batch()
    weight = rows.extras["preference"]
    torch.manual_seed(3)
    metrics = learner.update(rows)

    nets = twin.nets
    policy, critic = (
        torch.optim.Adam(net.parameters(), lr=1e-2) for net in (nets.policy, nets.critic.requires_grad_(True))
    )
    torch.manual_seed(3)
    target = twin.target(rows, weight)
    q = nets.critic(torch.cat((rows.obs, weight), 1), rows.action)
    loss = sum(torch.nn.functional.mse_loss(one, target) for one in q)
    torch.testing.assert_close(metrics["loss/critic"], loss.detach())
    loss.backward()
    critic.step()
    policy.zero_grad()
    seen, action, log_prob = sampled(nets, rows.obs, weight)
    worth = (nets.critic(seen, action).amin(0) * weight).sum(1)
    loss = (0.2 * log_prob - worth).mean()
    torch.testing.assert_close(metrics["loss/policy"], loss.detach())
    loss.backward()
    policy.step()
    for mine, theirs in ((learner.nets.critic, nets.critic), (learner.nets.policy, nets.policy)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_it_acts_for_the_preference_it_was_told_for_equal_shares_without_and_tries_all_when_it_learns():
    learner, obs = made(), torch.randn(6, OBS)
    equal = learner.act_for(obs, torch.full((6, M), 1 / M), deterministic=True).action
    assert torch.equal(learner.act(obs, deterministic=True).action, equal)
    assert learner.act(obs).extras["preference"].tolist() == [pytest.approx([1 / M] * M)] * 6
    tried = learner.explore(obs).extras["preference"]
    assert len(tried.unique(dim=0)) == 6
    torch.testing.assert_close(tried.sum(1), torch.ones(6))
    learner.prefer([0.2, 0.8, 0.0])
    told = learner.act(obs, deterministic=True)
    assert told.extras["preference"].tolist() == [pytest.approx([0.2, 0.8, 0.0])] * 6
    assert not torch.equal(told.action, equal)
    assert len(learner.explore(obs).extras["preference"].unique(dim=0)) == 6, "also where it was told one"
    learner.update(batch())
    assert learner.act(obs).extras["preference"].tolist() == [pytest.approx([1 / M] * M)] * 6


def test_policies_side_by_side_are_one_preference_a_block_of_lanes():
    learner, obs = made(eval_divisions=2), torch.randn(6, OBS)
    assert learner.n_policies == 6
    both = learner.policies(torch.tensor([0, 5])).act(obs, deterministic=True).action
    for block, i in ((slice(0, 3), 0), (slice(3, 6), 5)):
        learner.prefer(learner.preferences[i])
        torch.testing.assert_close(both[block], learner.act(obs[block], deterministic=True).action)


def test_a_narrow_cone_keeps_preferences_near_equal_shares():
    drawn = made(preference_angle=22.5).drawn(2000)
    cosine = drawn.sum(1) / (drawn.norm(dim=1) * math.sqrt(M))
    assert float(torch.rad2deg(torch.acos(cosine.clamp(max=1.0))).max()) == pytest.approx(22.5, abs=0.2)
    assert float(made().drawn(2000).min()) < 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_steps": 3}, "n_steps must be 1"),
        ({"reference": [0.0]}, r"algo.reference must hold .* 3 objectives \(a, b, c\)"),
        ({"preference_angle": 40.0}, r"algo.preference_angle must be at most 35.3 for 3 objectives"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        made(**changes)


def test_a_task_with_one_reward_is_refused_by_name():
    with pytest.raises(ValueError, match="algo=capql is for several objectives"):
        make_learner(settings(), SPEC._replace(reward_dim=1, objectives=()))


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_state_round_trip_continues_bit_for_bit(mode):
    learner, copy = made(), made()
    for one in (learner, copy):
        one.set_compile(mode)
    learner.update(batch(1))
    copy.load_model_state({k: v.clone() for k, v in learner.model_state().items()})
    copy.load_training_state({k: v.clone() for k, v in learner.training_state().items()})
    for one in (learner, copy):
        torch.manual_seed(4)
        metrics = one.update(batch(2))
        assert all(v.ndim == 0 and bool(torch.isfinite(v)) for v in metrics.values())
    for a, b in zip(learner.model_state().values(), copy.model_state().values(), strict=True):
        assert torch.equal(a, b)


def config(folder: Path, **changes: Any) -> TrainConfig:
    algo = CAPQLConfig(
        hidden=[16], batch_size=16, learning_starts=32, reference=[-1.0, -1.0], eval_divisions=4, **changes
    )
    return TrainConfig(
        algo=algo,
        env=EnvConfig(name="mo_bandit"),
        n_envs=4,
        total_steps=400,
        log=LogConfig(every=0.0, progress=False),
        eval=EvalConfig(every=200, episodes=2),
        checkpoint=CheckpointConfig(every=1e9),
    )


def test_the_replay_keeps_vectors_and_the_preference_of_every_step(tmp_path):
    loop: Any = training_loop(config(tmp_path))
    loop.iterate()
    rows = loop.buffer.table.read(loop.buffer.table.rows[: len(loop.buffer)])
    assert rows.reward.shape == (len(loop.buffer), 2)
    torch.testing.assert_close(rows.extras["preference"].sum(1), torch.ones(len(rows.reward)))
    x, y = rows.action.T
    want = torch.stack((-(x**2 + y**2), -((x - 1) ** 2 + y**2)), 1)
    torch.testing.assert_close(rows.reward, want, atol=1e-6, rtol=1e-5)
    assert len(rows.extras["preference"].unique(dim=0)) == len(rows.reward)


def test_a_run_leaves_a_front_judged_for_every_preference(tmp_path):
    build(config(tmp_path), tmp_path / "run").train()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["front"]) == 5
    assert result["objectives"] == ["near_origin", "near_one"]
    assert 0.0 <= result["hypervolume"] <= 5 / 6
    assert "eval/hypervolume" in (tmp_path / "run" / "progress.csv").read_text().splitlines()[0]


def test_a_front_is_judged_again_and_again_in_the_same_environments(tmp_path, monkeypatch):
    made: list[int] = []

    def counted(task: Any, n: int, **options: Any) -> Any:
        made.append(n)
        return make_env(task, n, **options)

    monkeypatch.setattr(judging, "make_env", counted)
    cfg = config(tmp_path)
    learner = training_loop(cfg).learner
    judge = judging.evaluator(learner, cfg, episodes=2, seed=3)
    first, second = (judge().front["returns"] for _ in range(2))
    assert torch.equal(first, second)
    assert made == [5 * 2]


def test_a_front_is_judged_without_noise_or_not_at_all(tmp_path):
    cfg = config(tmp_path)
    cfg.eval.deterministic = False
    with pytest.raises(ValueError, match=r"eval\.deterministic=false: the policies of algo=capql"):
        judging.evaluator(training_loop(cfg).learner, cfg, episodes=2, seed=3)
