"""`from_sb3`: an agent of a zip that Stable-Baselines3's PPO, SAC or TD3 saved; nothing in the zip is executed."""

from __future__ import annotations

from typing import Any, TypeVar

from ctrlrl import build
from ctrlrl.face.model import Model
from ctrlrl.face.saved import File, filled_by
from ctrlrl.train.sb3_replay import read_replayed
from ctrlrl.train.sb3_weights import restore, restore_statistics
from ctrlrl.train.sb3_zip import read_sb3

Kind = TypeVar("Kind", bound=Model)


def from_sb3(
    kind: type[Kind], path: File, env: Any, device: Any, *, n_envs: int, obs_stats: Any, changes: dict[str, Any]
) -> Kind:
    where = str(path)
    agent = read_sb3(path, changes)
    settings = {"batch_size": agent.batch_size, "seed": agent.seed, **agent.config, **changes}
    if obs_stats is not None:
        settings["normalize_obs"] = True
    model = kind(agent.policy, None, device=device, **settings)
    _prepare(model, agent, env, n_envs, where)
    restore(model.learner, agent.weights, {} if agent.moments is None else {"actor_critic": agent.moments}, where)
    if obs_stats is not None:
        restore_statistics(model.learner, obs_stats)
    model.num_timesteps, model._n_updates = agent.num_timesteps, agent.n_updates
    return model


def replayed_from_sb3(kind: Any, path: File, env: Any, device: Any, *, n_envs: int, changes: dict[str, Any]) -> Any:
    """Of SAC's or TD3's class `kind`."""
    where = str(path)
    agent = read_replayed(path, kind.algo, changes)
    model = kind(agent.policy, None, device=device, **{**agent.settings, **changes})
    _prepare(model, agent, env, n_envs, where)
    restore(model.learner, agent.weights, agent.moments, where)
    model.num_timesteps, model._n_updates = agent.num_timesteps, agent.n_updates
    model.learner.n_updates = agent.n_updates  # where the delayed policy stands
    return model


def _prepare(model: Any, agent: Any, env: Any, n_envs: int, where: str) -> None:
    """Spaces and networks of the agent that was read, in its environment or, without one, for its spaces alone."""
    spaces = build.Spaces(agent.observation_space, agent.action_space)
    if env is None:
        model._spaces, (model.observation_space, model.action_space) = spaces, spaces
        model._n_envs = agent.n_envs
    else:
        model._meet(env, n_envs)
        spaces.same(model._spaces, where)
    with filled_by(agent.weights, where):
        model._setup_model()
