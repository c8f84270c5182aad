"""ctrlrl: reinforcement learning for classic control, robots and offline data on one fast actor-critic core.

Names are lazy: `import ctrlrl` imports neither torch nor MuJoCo. It imports Gymnasium, to enter the ids that
`gymnasium.make_vec("ctrlrl/Pendulum", 4096)` takes.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODELS = (
    "PPO",
    "BPO",
    "CMORL",
    "ScalarizedPPO",
    "MTPPO",
    "PDPPO",
    "PolicyFlow",
    "FPO",
    "SAC",
    "CAPQL",
    "TD3",
    "RLPD",
    "EXPO",
    "BC",
    "TD3BC",
    "IQL",
    "PRDC",
    "A2PR",
    "ReBRAC",
    "AWAC",
    "CQL",
    "CalQL",
    "FQL",
    "PARL",
    "Diffusion",
    "Flow",
    "H2O",
    "BESO",
)
_LANGUAGE_MODELS = (
    "GRPO",
    "DrGRPO",
    "DAPO",
    "GSPO",
    "GBPO",
    "BPOTokens",
    "PPOTokens",
    "TPPO",
    "SPO",
    "HolderPO",
    "MCGRPO",
    "NGRPO",
    "BNPO",
    "GDPO",
    "BAPO",
    "R2VPO",
    "ETR",
    "TOPR",
    "ReMax",
    "RLOO",
    "ReinforcePP",
    "ReinforcePPBaseline",
    "AEPO",
    "CISPO",
    "SAPO",
    "GMPO",
    "OPO",
    "DPO",
    "DirectAdvantage",
    "SFT",
    "SimplePOTokens",
)
_NAMES = {
    **dict.fromkeys(_MODELS, "ctrlrl.api"),
    **dict.fromkeys(_LANGUAGE_MODELS, "ctrlrl.face.methods"),
    "load": "ctrlrl.api",
    "compose": "ctrlrl.api",
    "evaluate_policy": "ctrlrl.api",
    "make_env": "ctrlrl.api",
    "make_vec_env": "ctrlrl.api",
    "BaseCallback": "ctrlrl.api",
    "export": "ctrlrl.deploy",
}
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'ctrlrl' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


# Gymnasium has no plug-in hook, so its ids cost the import of it, 0.2 s. The command line has no use for them and does
# not pay: `ctrlrl --help` is as fast as it was.
if os.path.basename(sys.argv[0] if sys.argv else "") not in ("ctrlrl", "ctrlrl.exe"):
    from ctrlrl.registration import register as _register

    _register()
