"""`evaluate_policy`: whole episodes of any policy on any environment, counted as SB3 counts them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ctrlrl import build, judging, tasks
from ctrlrl.face.environments import Connection, connect, env_config, tells_episodes
from ctrlrl.face.watch import LaneInfos
from ctrlrl.train.evaluate import forked_rng
from ctrlrl.types import begins


def evaluate_policy(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
    *,
    seed: int = 0,
    preference: Any = None,
) -> tuple[Any, Any]:
    """(mean, std) of the undiscounted returns, or (list of returns, list of lengths). Episodes are split evenly.

    Of several objectives a return is an array [M]. preference: [M], what such a model acts for from now on; None: as it
    was told last, at first equal shares.

    model: an agent, or anything with SB3's `predict`. env: all that an agent takes; a Monitor's returns count where
    there is one. callback: called with (locals, globals) for every lane after every step.
    seed: of the environment's reset and of sampled actions; training's own random numbers are left alone.
    """
    if n_eval_episodes < 1:
        raise ValueError(f"evaluate_policy: n_eval_episodes must be at least 1, got {n_eval_episodes}")
    if isinstance(env, str):
        cfg = env_config(env)
        vec_env = tasks.make_env(cfg, min(n_eval_episodes, 64), seed=seed, stagger=False)
        connection = Connection(vec_env, tasks.spaces(cfg, vec_env.spec))
    else:
        connection = connect(env, 1, seed=None, device=torch.device("cpu"))
    vec_env = connection.env
    own = getattr(model, "_spaces", None)
    if own is not None and not own.fits(vec_env.spec):
        own.same(connection.spaces, "evaluate_policy")
    if preference is not None:
        judging.prefer(model.learner, preference)
    if vec_env.spec.reward_dim > 1 and (callback or render or reward_threshold is not None):
        raise ValueError("evaluate_policy: callback, render and reward_threshold are for tasks with one reward")
    plain = hasattr(model, "learner") and callback is None and not render and not tells_episodes(vec_env)
    training = getattr(model, "_connection", None)
    begun = getattr(model, "_online", None) or getattr(model, "_loop", None)
    before = vec_env.state_dict() if training is not None and training.env is vec_env and begun else None
    if before == {} and getattr(model, "is_learning", False):
        raise ValueError(
            "evaluate_policy: env is the one that the model is learning in, whose episodes this would end; give "
            "another of the same task"
        )
    stagger = getattr(vec_env, "stagger", False)
    if stagger:
        vec_env.stagger = False
    try:
        with forked_rng(seed):
            if plain:
                act = judging.acting(model.learner, deterministic=deterministic)
                found = build.evaluate(act, vec_env, episodes=n_eval_episodes, seed=seed)
                episode_rewards, episode_lengths = found.returns.tolist(), found.lengths.tolist()
            else:
                episode_rewards, episode_lengths = _run(
                    model, connection, n_eval_episodes, deterministic, render, callback, warn, seed
                )
    finally:
        if isinstance(env, str):
            vec_env.close()
        if stagger:
            vec_env.stagger = True
        if before:
            vec_env.load_state_dict(before)
        elif before is not None:  # its episodes under way are lost: the next learn starts new ones
            model._use(training)
    if reward_threshold is not None and np.mean(episode_rewards) <= reward_threshold:
        raise AssertionError(f"Mean reward below threshold: {np.mean(episode_rewards):.2f} < {reward_threshold:.2f}")
    if return_episode_rewards:
        return episode_rewards, episode_lengths
    mean, std = np.mean(episode_rewards, axis=0), np.std(episode_rewards, axis=0)
    return (float(mean), float(std)) if mean.ndim == 0 else (mean, std)


def _run(
    model: Any,
    connection: Connection,
    n_eval_episodes: int,
    deterministic: bool,
    render: bool,
    callback: Any,
    warn: bool,
    seed: int,
) -> tuple[list[float], list[int]]:
    """The general loop; a callback sees its variables, so they have the names of SB3's."""
    vec_env, spaces = connection.env, connection.spaces
    n_envs = vec_env.spec.n_envs
    is_monitor_wrapped = _monitored(connection)
    if warn and not is_monitor_wrapped:
        warnings.warn(
            "Evaluation environment is not wrapped with a Monitor, so wrappers may have changed the rewards and "
            "lengths that are reported. Wrap the single environments with Monitor first.",
            stacklevel=3,
        )
    episode_rewards: list[float] = []
    episode_lengths: list[int] = []
    episode_counts = np.zeros(n_envs, dtype=int)
    episode_count_targets = np.array([(n_eval_episodes + i) // n_envs for i in range(n_envs)])
    current = np.zeros((2, n_envs))
    infos_of = LaneInfos(vec_env, spaces, current, np.ones(n_envs, dtype=bool))
    states, episode_starts = None, np.ones(n_envs, dtype=bool)
    rows = vec_env.reset(seed)
    env = connection.face() if callback is not None or render else None
    while (episode_counts < episode_count_targets).any():
        observations = spaces.observations(rows)
        actions, states = model.predict(
            observations, state=states, episode_start=episode_starts, deterministic=deterministic
        )
        step = vec_env.step(torch.from_numpy(spaces.action_codec.encode(actions)).to(rows.device))
        rows, rewards = step.obs, step.reward.cpu().numpy()
        dones = (step.terminated | step.truncated).cpu().numpy().copy()
        sums = current + np.stack((rewards, np.ones(n_envs)))
        infos, begun = infos_of(step, dones), begins(step).cpu().numpy()
        for i in range(n_envs):
            if episode_counts[i] >= episode_count_targets[i]:
                continue
            reward, done, info = rewards[i], dones[i], infos[i]
            episode_starts[i] = begun[i]
            if callback is not None:
                callback(locals(), globals())
            if done and ("episode" in info or not is_monitor_wrapped):
                total, length = sums[:, i]
                end = info["episode"] if is_monitor_wrapped else {"r": total, "l": length}
                episode_rewards.append(float(end["r"]))
                episode_lengths.append(int(end["l"]))
                episode_counts[i] += 1
        if env is not None and render:
            env.render()
    return episode_rewards, episode_lengths


def _monitored(connection: Connection) -> bool:
    """Whether an ended episode's return stands in its info; an SB3 VecEnv needs a Monitor for that."""
    venv = getattr(connection.env, "venv", None)
    if venv is None:
        return True
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

    return is_vecenv_wrapped(venv, VecMonitor) or bool(venv.env_is_wrapped(Monitor)[0])
