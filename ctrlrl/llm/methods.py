"""Every method of `presets` as a learner of its own name; they differ in their configuration alone."""

from __future__ import annotations

from ctrlrl.llm.learner import TokenLearner
from ctrlrl.llm.presets import CONFIGS

LEARNERS: dict[str, type[TokenLearner]] = {
    name: type(config.__name__.replace("Config", "Learner"), (TokenLearner,), {"config": config})
    for name, config in CONFIGS.items()
}


def __getattr__(name: str) -> type[TokenLearner]:
    """The registry names a learner as an attribute of this module."""
    if name not in LEARNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return LEARNERS[name]
