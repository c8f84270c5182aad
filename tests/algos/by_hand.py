"""Linear networks on one-hot observations: a test sets every value, and every loss is a sum that paper can check."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.types import EnvSpec, Transition


def spec(obs_dim: int, action_dim: int = 1) -> EnvSpec:
    return EnvSpec(obs_dim, action_dim, 0, 1, 1, 0, torch.device("cpu"))


def made(algo: str, obs_dim: int, action_dim: int = 1, *, seed: int = 0, **settings: Any) -> Any:
    """A learner, linear unless `hidden` says otherwise, that leaves observations as they are."""
    torch.manual_seed(seed)
    kind = lookup(ALGORITHMS, algo, "algorithm")
    raw = {"normalize_obs": False} if hasattr(kind.config, "normalize_obs") else {}
    return kind(kind.config(**{"hidden": [], **raw, **settings}), spec(obs_dim, action_dim))


def rows(obs: Any, action: Any, *, n_obs: int, reward: Any = 0.0, next_obs: Any = None, **more: Any) -> Transition:
    """States by number; actions [N, A]. more: terminated [N] bool, and extras."""
    obs = torch.as_tensor(obs)
    n = len(obs)
    terminated = torch.as_tensor(more.pop("terminated", [False] * n))
    following = obs if next_obs is None else torch.as_tensor(next_obs)
    return Transition(
        F.one_hot(obs, n_obs).float(),
        torch.as_tensor(action).float().reshape(n, -1),
        torch.as_tensor(reward).float().expand(n).clone(),
        F.one_hot(following, n_obs).float(),
        terminated,
        {name: torch.as_tensor(x).float().reshape(n, -1) for name, x in more.items()},
    )


def noise_rows(n: int, n_obs: int, n_actions: int, *, seed: int = 0) -> Transition:
    """Random transitions with observations that are no table."""
    random = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, n, n_obs, generator=random)
    action, next_action = 2.0 * torch.rand(2, n, n_actions, generator=random) - 1.0
    terminated = torch.rand(n, generator=random) < 0.2
    reward = torch.randn(n, generator=random)
    return Transition(obs, action, reward, next_obs, terminated, {"next_action": next_action})


def write(net: nn.Module, table: Any, slope: Any = 0.0) -> None:
    """Let a linear network give table[i] (a number, or one a output) for state i, plus slope . action."""
    table = torch.as_tensor(table).float()
    layer = net[0]  # type: ignore[index]
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight[:, : len(table)] = table.reshape(len(table), -1).T
        layer.weight[:, len(table) :] = torch.as_tensor(slope)


def write_actions(net: nn.Module, actions: Any) -> None:
    """Let a tanh policy take actions[i] in state i."""
    write(net, torch.atanh(torch.as_tensor(actions).float()))


def freeze(learner: OffPolicyLearner, *names: str) -> None:
    for name in names:
        learner.opt[name].learning_rate.fill_(0.0)


def weights(learner: OffPolicyLearner, name: str) -> Tensor:
    """The parameters of one network as one vector, a copy."""
    return torch.cat([p.detach().reshape(-1) for p in getattr(learner.nets, name).parameters()])


def moved(before: dict[str, Tensor], learner: OffPolicyLearner) -> set[str]:
    """Names of the networks of `before` whose parameters are no longer the same to the bit."""
    return {name for name, value in before.items() if not torch.equal(value, weights(learner, name))}
