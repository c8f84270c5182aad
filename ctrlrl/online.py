"""From a learner, an environment and perhaps a data set to the loop that learns from replayed steps."""

from __future__ import annotations

from ctrlrl.core.learner import Learner
from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.data.table import Dataset, Mixture, ReplayBuffer
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.train.online import OnlineLoop
from ctrlrl.types import EnvSpec, Source, VecEnv


def online_loop(
    learner: OffPolicyLearner,
    env: VecEnv,
    *,
    env_steps: int,
    seed: int | None,
    staggered: bool,
    data: Dataset | None = None,
    before: OfflineLoop | None = None,
    skilled: bool = False,
) -> OnlineLoop:
    """data: rows to learn from besides; rewards are kept as it has them. before: the updates on it that come first.

    skilled: the policy has learned something already.
    """
    cfg, spec = learner.cfg, env.spec
    buffer = ReplayBuffer(cfg.buffer_size, spec.obs_dim, spec.action_dim, device=learner.device)
    source: Source = buffer
    if data is not None and cfg.offline_share is None:
        buffer.fill(data.all())
    elif data is not None:
        source = Mixture([(data, cfg.offline_share), (buffer, 1.0 - cfg.offline_share)])
    return OnlineLoop(
        learner,
        env,
        buffer,
        source,
        cfg=cfg,
        batch_size=cfg.batch_size,
        env_steps=env_steps,
        seed=seed,
        staggered=staggered,
        before=before,
        skilled=skilled or before is not None,
        reward=(1.0, 0.0) if data is None else data.reward,
    )


def refuse_unless_online(kind: type[Learner], algo: str, spec: EnvSpec, env: str) -> None:
    """ValueError where an algorithm cannot go on in an environment."""
    if not getattr(kind, "online", False):
        raise ValueError(f"algo={algo} learns from a data set alone; leave total_steps out")
    if not spec.action_dim:
        raise ValueError(f"algo={algo} is for continuous actions, those of {env} are discrete")
