"""A base policy's actions, the best by value of many, climbed up their value, and a choice. PA-RL, arXiv:2412.06685."""

from __future__ import annotations

from torch import Tensor, nn

from ctrlrl.functional.distributions import categorical_sample
from ctrlrl.functional.edits import climbed, picked
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.policies.diffusion import ChunkPolicy
from ctrlrl.types import PolicyOutput


class OptimizedPolicy(nn.Module):
    """The best of the n_kept best of n_samples actions of the base, each after n_climbs gradient steps up its value.

    critic: says the value, the mean of its members. climb_least: the steps climb their least instead.
    temperature: 0 = the best; else drawn with probability softmax(Q / temperature).
    """

    def __init__(
        self,
        base: ChunkPolicy,
        critic: QEnsemble,
        *,
        n_samples: int,
        n_kept: int,
        n_climbs: int,
        climb_size: float,
        climb_least: bool = False,
        temperature: float = 0.0,
    ):
        super().__init__()
        self.base, self.critic = base, critic
        self.n_samples, self.n_kept, self.n_climbs = n_samples, n_kept, n_climbs
        self.climb_size, self.climb_least, self.temperature = climb_size, climb_least, temperature

    def values(self, obs: Tensor, action: Tensor, *, least: bool = False) -> Tensor:
        """Mean or least over the critics, of [C, N, A] under [N, O]: [C, N]."""
        q = self.critic(obs.expand(len(action), *obs.shape).flatten(0, 1), action.flatten(0, 1))
        return (q.amin(0) if least else q.mean(0)).unflatten(0, (len(action), -1))

    def climb(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [C, N, A] made better by value, and the mean of the critics there [C, N]."""
        best, most = climbed(
            action,
            lambda a: self.values(obs, a, least=self.climb_least),
            step_size=self.climb_size,
            n_steps=self.n_climbs,
        )
        return best, self.values(obs, best) if self.climb_least else most

    def candidates(self, obs: Tensor, *, deterministic: bool = False) -> tuple[Tensor, Tensor]:
        """Actions [n_kept, N, A] from the best start to the worst, and their values [n_kept, N] after the climb.

        Deterministic: the base's action of noise 0 alone.
        """
        action = self.base.draws(obs, 1 if deterministic else self.n_samples, deterministic=deterministic)
        if len(action) > 1:
            kept = self.values(obs, action).topk(self.n_kept, 0).indices
            action = action.gather(0, kept.unsqueeze(-1).expand(-1, -1, action.shape[-1]))
        return self.climb(obs, action)

    def best(self, obs: Tensor) -> Tensor:
        """[N, A]."""
        action, value = self.candidates(obs)
        return picked(action, value.argmax(0))

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        action, value = self.candidates(obs, deterministic=deterministic)
        return PolicyOutput(picked(action, choice(value, self.temperature)), None, {})


def choice(value: Tensor, temperature: float) -> Tensor:
    """Of C candidates [C, N]: [N] int64, the best or, at a temperature, drawn by softmax(value / temperature)."""
    return categorical_sample(value.T / temperature) if temperature else value.argmax(0)
