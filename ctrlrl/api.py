"""The SB3-style face: PPO("MlpPolicy", env).learn(n), predict, save, load. `build` does the work for both faces."""

from __future__ import annotations

from typing import Any, Self

from ctrlrl.face.agent import Agent
from ctrlrl.face.environments import make_env, make_vec_env
from ctrlrl.face.evaluation import evaluate_policy
from ctrlrl.face.offline import OfflineAgent
from ctrlrl.face.saved import File, read
from ctrlrl.face.sb3_import import from_sb3
from ctrlrl.registry import unknown
from ctrlrl.train.callbacks import BaseCallback
from ctrlrl.train.logger import configure

__all__ = [
    "A2PR",
    "AWAC",
    "BC",
    "BESO",
    "BPO",
    "CQL",
    "FPO",
    "FQL",
    "IQL",
    "MTPPO",
    "PDPPO",
    "PPO",
    "PRDC",
    "TD3BC",
    "BaseCallback",
    "CalQL",
    "Diffusion",
    "Flow",
    "PolicyFlow",
    "ReBRAC",
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


class Diffusion(OfflineAgent):
    """Behaviour cloning by a diffusion over action chunks, arXiv:2303.04137."""

    algo = "diffusion"


class Flow(OfflineAgent):
    """Behaviour cloning by flow matching over action chunks, arXiv:2210.02747."""

    algo = "flow"


class BESO(OfflineAgent):
    """Goal-conditioned cloning by a score-based diffusion in three steps, arXiv:2304.02532."""

    algo = "beso"


_KINDS: tuple[type[Agent] | type[OfflineAgent], ...] = (
    PPO,
    BPO,
    MTPPO,
    PDPPO,
    PolicyFlow,
    FPO,
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
    Diffusion,
    Flow,
    BESO,
)
CLASSES = {kind.algo: kind for kind in _KINDS}


def load(path: File, env: Any = None, device: str = "auto", **changes: Any) -> Agent | OfflineAgent:
    """A saved model of whatever algorithm made it; arguments as those of its class's `load`."""
    algo = read(path).state["algo"]
    if algo not in CLASSES:
        raise ValueError(f"{path}: {unknown('algorithm', algo, CLASSES)}")
    return CLASSES[algo].load(path, env=env, device=device, **changes)
