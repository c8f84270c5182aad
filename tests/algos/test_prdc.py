import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.prdc import PRDCConfig, PRDCLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.types import EnvSpec, Transition

SPEC = EnvSpec(4, 2, 0, 1, 1, 0, torch.device("cpu"))


def rows(n: int = 400) -> Transition:
    action = 2.0 * torch.rand(n, 2) - 1.0
    obs, next_obs = 3.0 + 2.0 * torch.randn(n, 4), 3.0 + 2.0 * torch.randn(n, 4)
    return Transition(obs, action, torch.randn(n), next_obs, torch.rand(n) < 0.2, {})


def made(data: Dataset, **settings: Any) -> PRDCLearner:
    torch.manual_seed(1)
    learner = PRDCLearner(PRDCConfig(hidden=[16, 16], batch_size=32, **settings), SPEC)
    learner.prefit(data.all())
    return learner


def brute(data: Dataset, learner: PRDCLearner, row: Tensor, action: Tensor) -> Tensor:
    """Squared distances [n, N] in float64, from the raw data."""
    all_rows, beta = data.all(), learner.cfg.beta
    obs = all_rows.obs.double()
    states = (obs - obs.mean(0)) / (obs.std(0, correction=0) + 1e-3)
    return (beta * (states[row].unsqueeze(1) - states)).square().sum(-1) + (
        (action.double().unsqueeze(1) - all_rows.action.double()).square().sum(-1)
    )


class Losses:
    """Stands for a gradient step: keeps the gradient and takes no step."""

    def __init__(self, params: list[torch.nn.Parameter]):
        self.params = params

    def __call__(self, loss: Tensor) -> None:
        self.grads = torch.autograd.grad(loss, self.params, retain_graph=True)


@pytest.mark.parametrize("list_length", [2, 16, 1000])
def test_the_neighbor_is_exact_whether_certified_or_not(list_length):
    data = Dataset.of(rows())
    learner = made(data, list_length=list_length)
    row = torch.randint(400, (200,))
    for action in (2.0 * torch.rand(200, 2) - 1.0, data.all().action[row] + 0.05):
        match, exact = learner.neighbor(row, action), brute(data, learner, row, action)
        torch.testing.assert_close(match.squared.double(), exact.amin(1), rtol=1e-4, atol=1e-6)
        assert torch.equal(match.row, exact.argmin(1))
    assert match.proven.all() or list_length < 1000


def test_the_certified_share_is_what_the_update_reports():
    data = Dataset.of(rows())
    for list_length, whole in ((1000, True), (2, False)):
        learner, batch = made(data, list_length=list_length, policy_delay=1), data.take(torch.arange(200))
        proven = learner.neighbor(batch.extras["index"], learner.nets.policy(learner.nets.normalizer(batch.obs)))
        share = learner.update(batch)["policy/certified"]
        assert share == proven.proven.float().mean()
        assert (share == 1.0) == whole


def test_the_search_of_a_gpu_finds_what_the_table_finds():
    data = Dataset.of(rows())
    learner, row, action = made(data), torch.randint(400, (3, 50)), 2.0 * torch.rand(3, 50, 2) - 1.0
    table = learner.neighbor(row, action)
    dense = learner._by_products(row, action)
    assert torch.equal(table.row, dense.row)
    torch.testing.assert_close(table.squared, dense.squared, rtol=1e-5, atol=1e-6)
    assert dense.proven.all()


def test_a_policy_that_repeats_the_data_has_no_constraint_loss():
    data = Dataset.of(rows())
    learner, row = made(data), torch.arange(400)
    match = learner.neighbor(row, data.all().action)
    assert torch.equal(match.row, row)
    assert (match.squared == 0).all()
    assert match.proven.all()


def test_the_constraint_is_a_mean_over_batch_and_dimensions_with_a_fixed_neighbor():
    data = Dataset.of(rows())
    learner = made(data, alpha=0.0, policy_delay=1)
    learner.opt["policy"] = Losses(list(learner.nets.policy.parameters()))  # type: ignore[assignment]
    batch = data.sample(32)
    metrics = learner.update(batch)
    obs = learner.nets.normalizer(batch.obs)
    action = learner.nets.policy(obs)
    index = brute(data, learner, batch.extras["index"], action.detach()).argmin(1)
    away = action - data.all().action[index]
    torch.testing.assert_close(metrics["loss/constraint"], away.square().mean().detach())
    expected = torch.autograd.grad(action, learner.opt["policy"].params, 2.0 * away.detach() / (32 * 2))
    for got, wanted in zip(learner.opt["policy"].grads, expected, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_the_policy_gradient_does_not_depend_on_the_scale_of_q():
    data, found = Dataset.of(rows()), []
    for scale in (1.0, 1000.0):
        learner = made(data, policy_delay=1)
        learner.opt["critic"] = lambda loss: None  # type: ignore[assignment]
        learner.opt["policy"] = Losses(list(learner.nets.policy.parameters()))  # type: ignore[assignment]
        with torch.no_grad():
            for head in learner.nets.critic.heads:
                head[-1].weight.mul_(scale)
                head[-1].bias.mul_(scale)
        learner.update(data.take(torch.arange(64)))
        found.append(torch.cat([g.flatten() for g in learner.opt["policy"].grads]))  # type: ignore[attr-defined]
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_targets_and_policy_move_on_every_second_update_only():
    data = Dataset.of(rows())
    learner = made(data)
    moved = []
    for _ in range(4):
        before = {k: v.clone() for k, v in learner.nets.state_dict().items()}
        learner.update(data.sample(32))
        after = learner.nets.state_dict()
        moved.append({k.split(".")[0] for k in after if not torch.equal(before[k], after[k])})
    assert moved[0] == moved[2] == {"critic"}
    assert moved[1] == moved[3] == {"critic", "policy", "target_policy", "target_critic"}


OTHER = {"gamma": 0.9, "tau": 0.1, "alpha": 4.0, "target_noise": 0.6, "target_noise_clip": 0.3}  # than the defaults


def authors_update(nets: Any, adam: dict[str, Any], data: Dataset, batch: Transition, at: int, a: PRDCLearner) -> dict:
    """The authors' sequence in plain torch with the settings OTHER, the neighbour by brute force."""
    norm = a.nets.normalizer
    s, s2, act = norm(batch.obs), norm(batch.next_obs), batch.action
    with torch.no_grad():
        noise = (0.6 * torch.randn_like(act)).clamp(-0.3, 0.3)
        a2 = (nets.target_policy(s2) + noise).clamp(-1, 1)
        y = batch.reward + 0.9 * (~batch.terminated) * nets.target_critic(s2, a2).min(0).values
    q1, q2 = nets.critic(s, act)
    out = {"loss/critic": ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()}
    adam["critic"].zero_grad()
    out["loss/critic"].backward()
    adam["critic"].step()
    if at % 2 == 0:
        pi = nets.policy(s)
        q = nets.critic(s, pi)[0]
        near = brute(data, a, batch.extras["index"], pi.detach()).argmin(1)
        out["loss/constraint"] = ((pi - data.all().action[near]) ** 2).mean()
        out["loss/policy"] = -(4.0 / q.abs().mean().detach()) * q.mean() + out["loss/constraint"]
        adam["policy"].zero_grad()
        out["loss/policy"].backward()
        adam["policy"].step()
        for name in ("critic", "policy"):
            pairs = zip(getattr(nets, name).parameters(), getattr(nets, f"target_{name}").parameters(), strict=True)
            for p, target in pairs:
                target.data.copy_(0.1 * p.data + 0.9 * target.data)
    return out


def test_updates_are_those_of_the_authors():
    data = Dataset.of(rows())
    learner = made(data, learning_rate=3e-3, **OTHER)
    nets = copy.deepcopy(learner.nets)
    adam = {n: torch.optim.Adam(getattr(nets, n).parameters(), lr=3e-3) for n in ("critic", "policy")}
    for at in range(1, 9):
        batch = data.sample(32)
        torch.manual_seed(at)
        ours = learner.update(batch)
        torch.manual_seed(at)
        theirs = authors_update(nets, adam, data, batch, at, learner)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value.detach(), rtol=1e-3, atol=1e-5)
    for name, p in nets.state_dict().items():
        torch.testing.assert_close(learner.nets.state_dict()[name], p, rtol=1e-2, atol=1e-3)


def test_the_table_is_read_from_the_cache_and_belongs_to_its_states(tmp_path, monkeypatch):
    data = Dataset.of(rows())
    monkeypatch.setattr(PRDCLearner, "cache", tmp_path)
    row, action = torch.arange(50), 2.0 * torch.rand(50, 2) - 1.0

    def searched(source: Dataset, **settings: Any) -> Tensor:
        return made(source, **settings).neighbor(row, action).row

    first = searched(data)
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("ctrlrl.algos.prdc.near_lists", None)
        assert torch.equal(searched(data), first)
    searched(Dataset.of(rows()))  # another set
    assert torch.equal(searched(data, list_length=4), first)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"tau": 2.0}, {"learning_rate": 0.0}, {"list_length": 0}])
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"PRDCConfig.*{next(iter(bad))}"):
        PRDCConfig(**bad)
