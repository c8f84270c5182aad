"""The SB3-style face: PPO("MlpPolicy", env).learn(n), predict, save, load. `build` does the work for both faces."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from ctrlrl import build
from ctrlrl.face.agent import Agent
from ctrlrl.face.composed import Composed
from ctrlrl.face.environments import make_env, make_vec_env
from ctrlrl.face.evaluation import evaluate_policy
from ctrlrl.face.front import FrontAgent
from ctrlrl.face.hybrid import HybridAgent
from ctrlrl.face.offline import OfflineAgent
from ctrlrl.face.replay_arguments import given
from ctrlrl.face.replayed import ReplayAgent
from ctrlrl.face.saved import File, read
from ctrlrl.face.sb3_import import from_sb3
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.callbacks import BaseCallback
from ctrlrl.train.logger import configure

__all__ = [
    "A2PR",
    "AWAC",
    "BC",
    "BESO",
    "BPO",
    "CAPQL",
    "CMORL",
    "CQL",
    "EXPO",
    "FPO",
    "FQL",
    "H2O",
    "IQL",
    "MTPPO",
    "PARL",
    "PDPPO",
    "PPO",
    "PRDC",
    "RLPD",
    "SAC",
    "TD3",
    "TD3BC",
    "BaseCallback",
    "CalQL",
    "Diffusion",
    "Flow",
    "PolicyFlow",
    "ReBRAC",
    "ScalarizedPPO",
    "compose",
    "configure",
    "evaluate_policy",
    "load",
    "make_env",
    "make_vec_env",
]


class PPO(Agent):
    """Proximal policy optimisation, arXiv:1707.06347."""

    algo = "ppo"
    cnn_hidden = []  # noqa: RUF012

    @classmethod
    def from_sb3(
        cls,
        path: File,
        env: Any = None,
        device: str = "auto",
        *,
        n_envs: int = 1,
        obs_stats: Any = None,
        **changes: Any,
    ) -> Self:
        """A PPO saved by Stable-Baselines3 2.x, Adam's state included; nothing in the file is run (docs/export.md).

        obs_stats: an .npz with `mean`, `var` and `count` of VecNormalize's observations. changes: settings of its own.
        """
        return from_sb3(cls, path, env, device, n_envs=n_envs, obs_stats=obs_stats, changes=changes)


class BPO(Agent):
    """Bounded policy optimisation, arXiv:2604.18578."""

    algo = "bpo"


class MTPPO(Agent):
    """PPO with a critic of several discounts, arXiv:2604.13517."""

    algo = "mtppo"


class PDPPO(Agent):
    """Post-decision PPO with two critics, arXiv:2504.05150; by default, as in the paper, in one batch of all rows."""

    algo = "pdppo"

    def __init__(self, policy: Any, env: Any, *, batch_size: int = 2**31, **settings: Any):
        super().__init__(policy, env, batch_size=batch_size, **settings)


class PolicyFlow(Agent):
    """PPO for continuous normalising flows, arXiv:2602.01156."""

    algo = "policyflow"


class FPO(Agent):
    """Flow policy optimisation, arXiv:2507.21053."""

    algo = "fpo"


class CMORL(FrontAgent):
    """Policies along the Pareto front, arXiv:2410.02236: `predict(obs, preference=[0.3, 0.7])`."""

    algo = "cmorl"


class ScalarizedPPO(FrontAgent):
    """PPO for every preference on a grid: C-MORL's first stage alone."""

    algo = "scalarized_ppo"


class SAC(ReplayAgent):
    """Soft actor-critic, arXiv:1812.05905."""

    algo = "sac"

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: Any = 1,
        gradient_steps: int = 1,
        action_noise: Any = None,
        replay_buffer_class: Any = None,
        replay_buffer_kwargs: Any = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
        _init_setup_model: bool = True,
        **settings: Any,
    ):
        super().__init__(**settings, **given(locals()))


class TD3(ReplayAgent):
    """Twin delayed deterministic policy gradient, arXiv:1802.09477; as in SB3 without exploration noise by default."""

    algo = "td3"

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: Any = 1,
        gradient_steps: int = 1,
        action_noise: Any = None,
        replay_buffer_class: Any = None,
        replay_buffer_kwargs: Any = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
        _init_setup_model: bool = True,
        **settings: Any,
    ):
        super().__init__(**settings, **given(locals()))


class CAPQL(ReplayAgent):
    """One policy for all preferences between several objectives, ICLR 2023: `predict(obs, preference=[0.3, 0.7])`.

    reference: the worst return that counts in each objective.
    """

    algo = "capql"


class RLPD(ReplayAgent):
    """SAC whose batches are half a data set, arXiv:2302.02948: `RLPD("MlpPolicy", env, dataset="hopper.npz")`."""

    algo = "rlpd"

    def __init__(self, policy: Any, env: Any, *, gradient_steps: int = 20, **settings: Any):
        super().__init__(policy, env, gradient_steps=gradient_steps, **settings)


class EXPO(ReplayAgent):
    """Edits and choices by value around a cloned base, arXiv:2507.07986: `EXPO("MlpPolicy", env, dataset="x.npz")`.

    base: a `Diffusion` or `Flow` of single actions to begin with.
    """

    algo = "expo"

    def __init__(
        self, policy: Any, env: Any, *, base: OfflineAgent | None = None, gradient_steps: int = 20, **settings: Any
    ):
        super().__init__(policy, env, gradient_steps=gradient_steps, **_of_base(self, base) | settings)
        _begin_with(self, base)


class BC(OfflineAgent):
    """Behaviour cloning; `best_fraction=0.1` makes it 10%BC."""

    algo = "bc"


class TD3BC(OfflineAgent):
    """TD3 with a cloning term, arXiv:2106.06860."""

    algo = "td3bc"


class IQL(OfflineAgent):
    """Implicit Q-learning, arXiv:2110.06169."""

    algo = "iql"


class PRDC(OfflineAgent):
    """Policy regularisation with dataset constraint, arXiv:2306.06569."""

    algo = "prdc"


class A2PR(OfflineAgent):
    """Adaptive advantage-guided policy regularisation, arXiv:2405.19909."""

    algo = "a2pr"


class ReBRAC(OfflineAgent):
    """Revisited behaviour-regularised actor-critic, arXiv:2305.09836."""

    algo = "rebrac"


class AWAC(OfflineAgent):
    """Advantage-weighted actor-critic, arXiv:2006.09359."""

    algo = "awac"


class CQL(OfflineAgent):
    """Conservative Q-learning, arXiv:2006.04779."""

    algo = "cql"


class CalQL(OfflineAgent):
    """Calibrated Q-learning, arXiv:2303.05479."""

    algo = "calql"


class FQL(OfflineAgent):
    """Flow Q-learning, arXiv:2502.02538."""

    algo = "fql"


class PARL(OfflineAgent):
    """Policy-agnostic RL, arXiv:2412.06685: a cloned base learns the actions that its values find best.

    base: a `Diffusion` or `Flow` of single actions to begin with; None: the base clones the data set besides.
    """

    algo = "parl"

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: Any = None,
        dataset: Any = None,
        *,
        base: OfflineAgent | None = None,
        **settings: Any,
    ):
        super().__init__(policy, env, dataset, **_of_base(self, base) | settings)
        _begin_with(self, base)


class Diffusion(OfflineAgent):
    """Behaviour cloning by a diffusion over action chunks, arXiv:2303.04137."""

    algo = "diffusion"


class Flow(OfflineAgent):
    """Behaviour cloning by flow matching over action chunks, arXiv:2210.02747."""

    algo = "flow"


class H2O(HybridAgent):
    """SAC on real data and a simulator that is not like reality, arXiv:2206.13464."""

    algo = "h2o"


class BESO(OfflineAgent):
    """Goal-conditioned cloning by a score-based diffusion in three steps, arXiv:2304.02532."""

    algo = "beso"


def _of_base(agent: Agent | OfflineAgent, base: Any) -> dict[str, Any]:
    """The settings that a pretrained base decides."""
    if base is None:
        return {}
    where = type(agent).__name__
    if not isinstance(base, OfflineAgent):
        raise TypeError(f"{where}: base must be a Diffusion or a Flow, got {type(base).__name__}")
    settings: dict[str, Any] = lookup(ALGORITHMS, agent.algo, "algorithm").config.base_settings(
        base.cfg, f"{where}: base"
    )
    return settings


def _begin_with(agent: Agent | OfflineAgent, base: Any) -> None:
    """Take over the weights of a pretrained base, if there is one for the same spaces."""
    if base is not None:
        where = f"{type(agent).__name__}: base"
        if not base.gradient_steps:
            raise ValueError(f"{where} has learned nothing; base=Flow(...).learn(20_000)")
        if not hasattr(agent, "learner"):
            raise ValueError(f"{where} is for an environment's policy, and there is none yet; give env too")
        base._spaces.same(agent._spaces, where)
        was, now = (None if a._connection is None else a._connection.task for a in (base, agent))
        if was is not None and now is not None:
            build.same_world(was.id or was.name, now.id or now.name, where)
        build.take_over(agent.learner, base.learner.model_state(), f"{type(agent).__name__}: base", "base_...")


_KINDS: tuple[type[Agent] | type[OfflineAgent] | type[FrontAgent], ...] = (
    PPO,
    BPO,
    MTPPO,
    PDPPO,
    PolicyFlow,
    FPO,
    CMORL,
    ScalarizedPPO,
    SAC,
    CAPQL,
    TD3,
    RLPD,
    EXPO,
    BC,
    TD3BC,
    IQL,
    PRDC,
    A2PR,
    ReBRAC,
    AWAC,
    CQL,
    CalQL,
    FQL,
    PARL,
    Diffusion,
    Flow,
    H2O,
    BESO,
)
CLASSES = {kind.algo: kind for kind in _KINDS}


def compose(
    models: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    mode: str = "convex",
    base: Any = None,
    exact: bool = False,
    n_action_steps: int | None = None,
) -> Composed:
    """Trained diffusion and flow policies as one, without training: GPC, arXiv:2510.01068; see `Composed`.

    models, base: models, or files that `load` reads.
    """
    opened = [load(model) if isinstance(model, (str, PathLike)) else model for model in models]
    free = load(base) if isinstance(base, (str, PathLike)) else base
    return Composed(opened, weights, mode=mode, base=free, exact=exact, n_action_steps=n_action_steps)


def load(path: File, env: Any = None, device: str = "auto", **changes: Any) -> Any:
    """A saved model of whatever algorithm made it; arguments as those of its class's `load`.

    path: a file, or the folder of a run that has found a front. Of such a folder, and of a composition (with `device`),
          nothing else can be asked: TypeError.
    """
    given = [name for name, value in {"env": env, **changes}.items() if value is not None]
    if isinstance(path, (str, PathLike)) and Path(path).is_dir():
        from ctrlrl.runs import load_run

        if given or device != "auto":
            raise TypeError(f"load: {(given or ['device'])[0]} is not taken for a run folder, {path}: it is as it was")
        cfg, learner = load_run(Path(path))
        kind = CLASSES.get(cfg.algo.name)
        if kind is None or not issubclass(kind, FrontAgent):
            raise ValueError(
                f"{path} is a run folder of algo={cfg.algo.name}; load takes files, ctrlrl eval run=... folders"
            )
        return kind.of_run(cfg, learner)
    algo = read(path).state["algo"]
    if algo == Composed.algo:
        if given:
            raise TypeError(
                f"load: {given[0]} is not taken for a composition, {path}: load its parents and compose them"
            )
        return Composed.load(path, lambda file: load(file, device=device))
    if algo not in CLASSES:
        raise ValueError(f"{path}: {unknown('algorithm', algo, CLASSES)}")
    return CLASSES[algo].load(path, env=env, device=device, **changes)
