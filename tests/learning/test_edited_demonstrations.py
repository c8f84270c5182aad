"""EXPO beside the slow demonstrations that its base clones: it must do better than both."""

from typing import Any

import pytest
import torch

from ctrlrl.algos.expo import EXPOConfig
from ctrlrl.algos.generative_bc import FlowConfig
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.windows import Windows
from ctrlrl.envs.classic import PointMass
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.judging import acting
from ctrlrl.loops import make_learner, online_loop
from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import Transition

SCALE = 100.0  # of rewards: a step costs a hundredth of one, less than a new critic's noise
BASE: dict[str, Any] = {"hidden": [32, 32], "embed_dim": 8, "sampling_steps": 4, "batch_size": 128} | {
    "horizon": 1,
    "n_obs_steps": 1,
    "n_action_steps": 1,
    "learning_rate": 2e-3,
    "warmup_steps": 0,
}
SMALL: dict[str, Any] = {"hidden": [64, 64], "n_critics": 4, "n_samples": 4, "n_edits": 4, "edit_scale": 0.5} | {
    "gamma": 0.95,
    "tau": 0.02,
    "learning_rate": 1e-3,
    "initial_temperature": 0.1,
    "n_min": 4,
    "batch_size": 128,
    "learning_starts": 800,
    "utd": 0.25,
    "policy_delay": 1,
}


def slow(obs: torch.Tensor) -> torch.Tensor:
    """A controller with a fraction of the force that the task rewards, and a tremor."""
    position, velocity = obs[:, :2], obs[:, 2:]
    return (-0.3 * position - 0.6 * velocity + 0.1 * torch.randn_like(position)).clamp(-1.0, 1.0)


def demonstrations(n_envs: int = 40, n_steps: int = 100) -> Dataset:
    env = BatchedSim(PointMass(), n_envs, seed=5, stagger=False)
    obs, rows = env.reset(5).clone(), []
    for _ in range(n_steps):
        action = slow(obs)
        step = env.step(action)
        rows.append((obs, action, SCALE * step.reward, step.final_obs.clone(), step.terminated.clone()))
        obs = step.obs.clone()
    columns = [torch.stack(column, 1).flatten(0, 1) for column in zip(*rows, strict=True)]  # episode after episode
    ends = n_steps * torch.arange(1, n_envs + 1)
    return Dataset(Dataset.of(Transition(*columns, {})).table, (SCALE, 0.0), ends)


def score(act: Any) -> float:
    env = BatchedSim(PointMass(), 50, seed=9, stagger=False)
    return evaluate(act, env, episodes=50, seed=9).returns.mean().item()


class Controller:
    def __call__(self, obs: torch.Tensor) -> torch.Tensor:
        return slow(obs)

    def forget(self, begun: Any = None) -> None:
        pass


@pytest.mark.slow
def test_edits_and_choices_do_better_than_the_demonstrations_and_their_clone():
    torch.manual_seed(0)
    data, env = demonstrations(), BatchedSim(PointMass(), 8, seed=0, stagger=False)
    clone: Any = make_learner(FlowConfig(**BASE), env.spec)
    clone.prefit(data.all())
    windows = Windows(data, clone.cfg.window)
    for update in range(1200):
        clone.set_progress(update / 1200)
        clone.update(windows.sample(128))
    learner: Any = make_learner(EXPOConfig(**SMALL, **EXPOConfig.base_settings(clone.cfg, "the clone")), env.spec)
    learner.begin_with(clone.model_state())
    learner.prefit(data.all())
    loop = online_loop(learner, env, env_steps=5_600, seed=0, staggered=False, data=data, skilled=True)
    while not loop.done:
        loop.iterate()
    torch.manual_seed(1)
    shown, cloned, found = (score(act) for act in (Controller(), acting(clone), acting(learner, deterministic=False)))
    assert found > 0.85 * shown, "returns are costs: nearer to 0 is better"
    assert found > 0.85 * cloned
