"""EnvPool behind its adapter, against Gymnasium's own steps from the same states."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from ctrlrl.build import build
from ctrlrl.config import EnvConfig
from ctrlrl.envs.adapters import adapt, kinds
from ctrlrl.envs.envpool import EnvPoolEnv
from ctrlrl.settings import train_config, typed
from ctrlrl.tasks import as_vec_env, make_env
from ctrlrl.types import VecEnv

envpool = pytest.importorskip("envpool", reason="pip install 'ctrlrl[envpool]'")
N = 4


def angle(obs, i):
    return np.arctan2(obs[i + 1], obs[i])


STATE_OF = {  # id -> the simulator's state of an observation
    "CartPole-v1": lambda o: o,
    "Pendulum-v1": lambda o: np.array([angle(o, 0), o[2]]),
    "MountainCar-v0": lambda o: o,
    "MountainCarContinuous-v0": lambda o: o,
    "Acrobot-v1": lambda o: np.array([angle(o, 0), angle(o, 2), o[4], o[5]]),
}


def actions(spec, n_steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    if spec.n_actions:
        return torch.randint(spec.n_actions, (n_steps, spec.n_envs), generator=g)
    return torch.rand(n_steps, spec.n_envs, spec.action_dim, generator=g) * 2.4 - 1.2  # beyond the bounds: it clips


def walk(env, n_steps, seed):
    obs, rows = env.reset(seed).clone(), []
    for action in actions(env.spec, n_steps):
        step = env.step(action)
        rows.append((obs, action, step))
        obs = step.obs.clone()
    return rows


@pytest.mark.parametrize("task", STATE_OF)
def test_every_unmasked_transition_is_gymnasiums_step_from_the_same_state(task):
    reference = gym.make(task).unwrapped
    env = EnvPoolEnv(task, n_envs=N, seed=3)
    reference.reset(seed=0)
    low, high = (getattr(reference.action_space, name, None) for name in ("low", "high"))
    n_checked = 0
    for obs, action, step in walk(env, 60, 3):
        for lane in range(N):
            if not step.extras["mask"][lane]:
                continue
            reference.state = np.array(STATE_OF[task](obs[lane].double().numpy()))
            if hasattr(reference, "steps_beyond_terminated"):
                reference.steps_beyond_terminated = None
            own = (
                int(action[lane])
                if env.spec.n_actions
                else low + (action[lane].clamp(-1, 1).numpy() + 1) / 2 * (high - low)
            )
            wanted, reward, terminated, _, _ = reference.step(own)
            np.testing.assert_allclose(step.final_obs[lane], wanted, atol=2e-4)
            assert float(step.reward[lane]) == pytest.approx(float(reward), abs=2e-3)
            assert bool(step.terminated[lane]) == terminated
            n_checked += 1
    assert n_checked > 200
    env.close()


@pytest.mark.parametrize(("task", "limit"), [("Pendulum-v1", 200), ("MountainCar-v0", 200)])
def test_a_time_limit_truncates_and_the_step_after_is_only_a_reset(task, limit):
    env = EnvPoolEnv(task, n_envs=2, seed=0)
    assert env.spec.episode_length == limit
    rows = walk(env, 2 * limit + 5, 0)
    truncated = torch.stack([step.truncated for *_, step in rows])
    mask = torch.stack([step.extras["mask"] for *_, step in rows])
    times = torch.arange(2 * limit + 5)
    assert torch.equal(truncated, ((times == limit - 1) | (times == 2 * limit)).unsqueeze(1).expand(-1, 2))
    assert torch.equal(~mask, ((times == limit) | (times == 2 * limit + 1)).unsqueeze(1).expand(-1, 2))
    assert not any(step.terminated.any() for *_, step in rows)
    fresh, ended = rows[limit][2].obs, rows[limit - 1][2].obs
    assert (rows[limit][2].reward == 0).all()
    assert not torch.equal(fresh, ended)
    env.close()


def test_a_seed_fixes_everything_and_a_seeded_reset_forgets_what_was():
    def told(env, seed):
        return torch.stack([torch.cat((s.obs, s.reward[:, None]), 1) for *_, s in walk(env, 30, seed)])

    first, again = EnvPoolEnv("CartPole-v1", n_envs=N, seed=3), EnvPoolEnv("CartPole-v1", n_envs=N, seed=5)
    wanted = told(first, 3)
    assert not torch.equal(told(again, 5), wanted)
    assert torch.equal(told(again, 3), wanted)
    assert torch.equal(told(again, 3), wanted)
    assert len({tuple(row) for row in first.reset(9).tolist()}) == N, "lanes differ"


def test_a_users_pool_is_taken_and_says_that_it_keeps_its_seeds():
    pool = envpool.make("Pendulum-v1", env_type="gymnasium", num_envs=N, seed=1)
    assert kinds(pool) == ["envpool"]
    env = as_vec_env(pool, seed=3)
    assert isinstance(env, EnvPoolEnv)
    assert isinstance(env, VecEnv)
    assert len(env.notices) == 1
    assert "reset(seed) keeps them" in env.notices[0]
    assert env.reset(3).shape == (N, 3)
    step = env.step(torch.zeros(N, 1))
    assert (step.obs.dtype, step.reward.dtype, step.terminated.dtype) == (torch.float32, torch.float32, torch.bool)


def test_what_was_returned_is_not_overwritten():
    env = EnvPoolEnv("Pendulum-v1", n_envs=N, seed=1)
    steps = [step for *_, step in walk(env, 20, 1)]
    kept = [step.obs.clone() for step in steps]
    walk(env, 20, 2)
    assert all(torch.equal(step.obs, was) for step, was in zip(steps, kept, strict=True))


def test_pools_that_do_not_fit_are_refused_in_a_line():
    with pytest.raises(ValueError, match="every step must answer for all 4 lanes, got batch_size=2"):
        adapt(envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, batch_size=2))
    with pytest.raises(ValueError, match="make the pool with env_type='gymnasium'"):
        adapt(envpool.make("CartPole-v1", env_type="dm", num_envs=4))
    with pytest.raises(ValueError, match=r"env\.id=CartPole-v9: EnvPool does not have it"):
        EnvPoolEnv("CartPole-v9")
    with pytest.raises(ValueError, match="step came before reset"):
        EnvPoolEnv("CartPole-v1").step(torch.zeros(1, dtype=torch.int64))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match=r"pip install 'ctrlrl\[envpool\]'"):
        make_env(EnvConfig(name="cartpole", backend="envpool"), 2)


@pytest.mark.parametrize("words", [["env=gym", "env.id=CartPole-v1"], ["env=pendulum"]], ids=" ".join)
def test_training_runs_on_the_backend_and_writes_its_notices(words, tmp_path):
    own = ["env.backend=envpool", "n_envs=4", "total_steps=128", "algo.n_steps=16", "algo.n_minibatches=2"]
    cfg = typed(train_config([*words, *own, "eval.episodes=2", "log.progress=false", "experiment=none"]))
    trainer = build(cfg, tmp_path)
    assert isinstance(trainer.loop.env, EnvPoolEnv)
    result = trainer.train()
    assert result["status"] == "finished"
    assert result["eval_episodes"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["notices"] == []
