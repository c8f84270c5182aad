"""`ctrlrl.compose([a, b], weights=[0.5, 0.5])`: trained chunk policies as one model with `predict`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from ctrlrl import build, judging
from ctrlrl.algos.gpc import GPCConfig, GPCLearner
from ctrlrl.face import saved
from ctrlrl.provenance import versions

Array = np.ndarray[Any, Any]


class Composed:
    """Acts as its parents do together; `predict` and `save` are those of a model, and `evaluate_policy` takes it.

    models:  trained models of diffusion or flow policies for one environment.
    weights: one for each; None = equal, in products 1 each, and in mode="and" found anew in every step.
    mode:    "convex", "product", "or" or "and", as `ComposedPolicy` has them.
    base:    mode="product": an unconditional model, trained with obs_columns=[].
    """

    algo = "gpc"

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[float] | None = None,
        *,
        mode: str = "convex",
        base: Any = None,
        exact: bool = False,
        n_action_steps: int | None = None,
    ):
        given = None if weights is None else [float(w) for w in weights]
        self.cfg = GPCConfig(mode=mode, weight=given, exact=exact, n_action_steps=n_action_steps)
        self.models, self.base = list(models), base
        for i, model in enumerate(self._everyone):
            if not hasattr(model, "learner"):
                raise TypeError(f"compose: model {i} is a {type(model).__name__}, wanted a trained ctrlrl model")
        named = [(f"model {i}", model.learner) for i, model in enumerate(self.models)]
        self.learner = GPCLearner(self.cfg, named, None if base is None else ("the base", base.learner))
        self._spaces, self.device = self._everyone[0]._spaces, self.learner.device
        for i, model in enumerate(self._everyone):
            self._spaces.same(model._spaces, f"compose: model {i}")
        self.observation_space, self.action_space = self._spaces

    @property
    def _everyone(self) -> list[Any]:
        return self.models if self.base is None else [*self.models, self.base]

    @property
    def weights(self) -> list[float]:
        return self.learner.weights

    def predict(
        self, observation: Any, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch, and the state for the next call: as the parents' `predict`."""
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self._spaces.predict(act, observation, self.device), act.memory

    def get_env(self) -> Any:
        return None

    def save(self, path: saved.File) -> None:
        """Write path.zip with all parents, from which `ctrlrl.load` makes the same composition."""
        parts = [build.agent_checkpoint(model.learner, saved.offline_facts(model)) for model in self._everyone]
        facts = {
            "algo": self.algo,
            "config": asdict(self.cfg),
            "based": self.base is not None,
            "parents": [part.state for part in parts],
            "batch_size": 0,
            "num_timesteps": 0,
            "spaces": self._spaces.to_json(),
            "versions": versions(),
        }
        model, training = (
            {f"{i}/{key}": t for i, part in enumerate(parts) for key, t in getattr(part, kind).items()}
            for kind in ("model", "training")
        )
        build.write_zip(path, build.Checkpoint(model, training, facts))

    @classmethod
    def load(cls, path: saved.File, load: Callable[[io.BytesIO], Any]) -> Self:
        """load: makes a model of a saved one."""
        checkpoint = saved.read(path)
        facts = checkpoint.state
        saved.check_config(facts["config"], GPCConfig, path)
        parents = facts.get("parents")
        if not isinstance(parents, list) or not all(isinstance(parent, dict) for parent in parents):
            raise ValueError(f"{path}: state.json: parents is {parents!r:.40}, wanted a list of models")
        models = []
        for i, own in enumerate(parents):
            model, training = (
                {key[len(f"{i}/") :]: t for key, t in tensors.items() if key.startswith(f"{i}/")}
                for tensors in (checkpoint.model, checkpoint.training)
            )
            packed = io.BytesIO()
            build.write_zip(packed, build.Checkpoint(model, training, own))
            packed.seek(0)
            models.append(load(packed))
        base = models.pop() if facts.get("based") else None
        cfg = facts["config"]
        kept = {name: cfg.get(name) for name in ("mode", "exact", "n_action_steps")}
        return cls(models, cfg.get("weight"), base=base, **kept)
