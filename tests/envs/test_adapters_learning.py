"""Learning through an adapter, and a run that tells a user what its environment does not give."""

import json

import numpy as np
import pytest
import torch
from stand_ins import LIMIT, OBS, Ant, DirectRLEnv, LeggedRobot, Plant

from ctrlrl import PPO, evaluate_policy, judging, loops
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.build import build
from ctrlrl.envs.adapters import adapt
from ctrlrl.judging import acting
from ctrlrl.loops import make_learner, on_policy_loop
from ctrlrl.settings import train_config, typed
from ctrlrl.train.evaluate import evaluate

TASKS = {"isaac gym": Ant, "isaac lab": DirectRLEnv, "legged_gym": LeggedRobot}


@pytest.mark.parametrize("task", TASKS)
def test_ppo_learns_to_hold_the_plant(task, monkeypatch):
    """x' = 0.9 x + 0.5 a from |x| <= 0.5 pays -x'^2: a = -1.8 x pays nothing."""
    zero = torch.zeros(64)
    monkeypatch.setattr(Plant, "obs", lambda self: torch.stack((self.x, self.clock / 8.0, zero, zero), 1))
    torch.manual_seed(0)
    env = adapt(TASKS[task](64))
    cfg = PPOConfig(n_steps=12, n_minibatches=4, n_epochs=6, learning_rate=1e-2, hidden=[], vf_hidden=[32], gamma=0.9)
    learner = make_learner(cfg, env.spec)
    before = evaluate(acting(learner), env, episodes=64, seed=0)
    loop = on_policy_loop(learner, env, total_steps=20 * 12 * 64, seed=0, staggered=False)
    while not loop.done:
        loop.iterate()
    after = evaluate(acting(learner), env, episodes=64, seed=0)
    assert float(after.returns.mean()) > 0.2 * float(before.returns.mean()), (
        before.returns.mean(),
        after.returns.mean(),
    )
    obs = env.reset(1)
    nearly = learner.act(obs, deterministic=True).action + 1.8 * obs[:, :1]
    assert float(nearly.abs().max()) < 0.5


def test_the_python_face_trains_predicts_and_evaluates_on_a_simulator():
    model = PPO("MlpPolicy", Ant(4), n_steps=16, batch_size=32, seed=0)
    with pytest.warns(UserWarning, match="resets are taken to happen in the next step"):
        model.learn(128)
    model.learn(64)  # a notice is said once
    action, _ = model.predict(np.zeros((4, OBS), np.float32), deterministic=True)
    assert action.shape == (4, 1)
    assert np.abs(action).max() <= 1.0
    returns, lengths = evaluate_policy(model, Ant(4), 8, return_episode_rewards=True)
    assert len(returns) == 8
    assert max(lengths) <= LIMIT


def test_a_run_prints_notices_and_keeps_them_in_its_result(tmp_path, monkeypatch, capsys):
    for room in (loops, judging):
        monkeypatch.setattr(room, "make_env", lambda cfg, n_envs, **_: adapt(DirectRLEnv(n_envs)))
    words = ["env=pendulum", "n_envs=4", "total_steps=64", "algo.n_steps=16", "algo.n_minibatches=2", "eval.episodes=2"]
    trainer = build(typed(train_config([*words, "log.progress=false", "experiment=none"])), tmp_path)
    trainer.train()
    kept = json.loads((tmp_path / "result.json").read_text())["notices"]
    assert any("last observation of an episode is lost" in line for line in kept)
    said = " ".join(capsys.readouterr().err.split())
    assert all(" ".join(line.split()) in said for line in kept)
