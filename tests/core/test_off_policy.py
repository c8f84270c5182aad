"""The off-policy core: targets, one backward for several steps, noise by seed, phases and normalised batches."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.random import Randomness
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional.masked import batch_mean
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import Metrics, Transition


def logical(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


# targets


def test_a_target_goes_the_fraction_tau_towards_the_network_whatever_its_layout_in_memory():
    online = QCritic(3, 2, [16, 8])  # its first layer lies column by column
    twin = copy.deepcopy(online)
    step = GradStep(online.parameters(), learning_rate=0.1)
    target = Target(twin, step)
    for tau in (0.25, 1.0, 0.0):
        step((online(torch.ones(4, 3), torch.ones(4, 2)) ** 2).mean())
        expected = tau * logical(online) + (1.0 - tau) * logical(twin)
        target.move(tau)
        torch.testing.assert_close(logical(twin), expected, rtol=0, atol=1e-7)


def test_a_target_has_no_gradient_and_does_not_share_memory():
    online = nn.Linear(3, 2)
    step = GradStep(online.parameters(), learning_rate=0.1)
    twin = copy.deepcopy(online)
    Target(twin, step)
    before = logical(twin)
    step(online(torch.ones(1, 3)).sum())
    assert torch.equal(logical(twin), before)
    assert not any(p.requires_grad for p in twin.parameters())


def test_a_target_of_another_network_is_refused():
    step = GradStep(nn.Linear(3, 2).parameters(), learning_rate=0.1)
    with pytest.raises(ValueError, match="exactly the network that it copies"):
        Target(nn.Linear(2, 3), step)


# one backward


def test_together_is_each_step_alone_where_no_loss_reaches_the_others_network():
    x = torch.randn(8, 3)
    pairs = []
    for _ in range(2):
        torch.manual_seed(1)
        nets = [nn.Linear(3, 4), nn.Linear(3, 2)]
        pairs.append((nets, [GradStep(net.parameters(), learning_rate=0.1 + 0.2 * k) for k, net in enumerate(nets)]))
    (alone, alone_steps), (joint, joint_steps) = pairs
    for _ in range(3):
        for net, step in zip(alone, alone_steps, strict=True):
            step(net(x).square().mean())
        together(sum(net(x).square().mean() for net in joint), joint_steps)
    for a, b in zip(alone, joint, strict=True):
        torch.testing.assert_close(logical(a), logical(b), rtol=0, atol=1e-7)


def test_a_vector_of_losses_is_summed_so_that_no_seed_sees_anothers():
    weight = nn.Parameter(torch.zeros(3, 2))  # one row a seed
    step = GradStep([weight], learning_rate=0.1)
    scale = torch.tensor([1.0, 10.0, 0.0])
    together((weight * scale[:, None]).sum(-1), [step])
    assert step.flat.grad.reshape(3, 2).tolist() == [[1.0, 1.0], [10.0, 10.0], [0.0, 0.0]]


# noise


def test_every_stream_draws_what_its_own_run_would_have_drawn():
    x = torch.zeros(2, 5, 3)
    for draw in ("randn_like", "rand_like"):
        streams = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        stacked = [getattr(Randomness(streams), draw)(x) for _ in range(2)]
        for s, seed in enumerate((3, 4)):
            torch.manual_seed(seed)
            for both in stacked:
                assert torch.equal(both[s], getattr(Randomness(), draw)(x[s]))


# the learner


@dataclass
class Config:
    normalize_obs: bool = True


class Watching(OffPolicyLearner):
    """Three phases; keeps what `step` was given."""

    def __init__(self, cfg: Config):
        self.seen: list[tuple[Transition, int]] = []
        super().__init__(cfg, Nets(normalizer=DataNormalizer(2), policy=DeterministicPolicy(2, 1, [4], dropout=0.5)))

    def optimizers(self) -> dict[str, GradStep]:
        return {"policy": GradStep(self.nets.policy.parameters(), learning_rate=0.1)}

    @property
    def period(self) -> int:
        return 3

    def step(self, batch: Transition, phase: int) -> Metrics:
        self.seen.append((batch, phase))
        loss = batch_mean(self.nets.policy(batch.obs).square().sum(-1))
        self.opt["policy"](loss)
        return detached(loss_policy=loss, value_of_this=batch.reward.sum())


def batch(scale: float = 1.0) -> Transition:
    obs = scale * torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]])
    return Transition(obs, torch.zeros(3, 1), torch.ones(3), obs + 1.0, torch.zeros(3, dtype=torch.bool), {})


def test_phases_run_round_and_go_on_after_a_resume():
    learner, other = Watching(Config()), Watching(Config())
    for _ in range(5):
        learner.update(batch())
    assert [phase for _, phase in learner.seen] == [0, 1, 2, 0, 1]
    other.load_training_state(learner.training_state())
    other.update(batch())
    assert [phase for _, phase in other.seen] == [2]


def denormals_are_zero() -> bool:
    return (torch.tensor([1e-40]) * 1.0).item() == 0.0


def test_numbers_too_small_for_float32_are_zero_within_an_update_and_nowhere_else():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    torch.set_flush_denormal(False)
    seen = []

    class Asked(Watching):
        def step(self, batch: Transition, phase: int) -> Metrics:
            seen.append(denormals_are_zero())
            if len(seen) == 2:
                raise RuntimeError("an update that fails")
            return super().step(batch, phase)

    learner = Asked(Config())
    learner.update(batch())
    with pytest.raises(RuntimeError, match="an update that fails"):
        learner.update(batch())
    assert seen == [True, True]
    assert not denormals_are_zero(), "the simulators and the user's own sums keep theirs"
    torch.set_flush_denormal(True)
    try:
        learner.update(batch())
        assert denormals_are_zero(), "who flushed before goes on doing so"
    finally:
        torch.set_flush_denormal(False)


def test_an_update_asks_for_the_wider_products(monkeypatch):
    monkeypatch.setattr("ctrlrl.core.process._wide_amd", lambda: True)
    asked = []

    class Asked(Watching):
        def step(self, batch: Transition, phase: int) -> Metrics:
            asked.append(torch.backends.mkldnn.matmul.fp32_precision)
            return super().step(batch, phase)

    Asked(Config()).update(batch())
    assert asked == ["bf16"]
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("on", [True, False])
def test_step_sees_both_observations_in_the_data_sets_units(on):
    learner = Watching(Config(normalize_obs=on))
    learner.prefit(batch())
    learner.update(batch())
    seen = learner.seen[0][0]
    deviation = (8.0 / 3.0) ** 0.5
    expected = [(x - 3.0) / (deviation + 1e-3) if on else x for x in (1.0, 3.0, 5.0)]
    assert seen.obs[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    shifted = [(x - 2.0) / (deviation + 1e-3) if on else x + 1.0 for x in (1.0, 3.0, 5.0)]
    assert seen.next_obs[:, 0].tolist() == pytest.approx(shifted, rel=1e-5)
    if on:
        assert (seen.obs[:, 1] == 0.0).all(), "a constant column stays finite"
        assert seen.next_obs[0, 1] == pytest.approx(1.0 / 1e-3)


def test_acting_normalises_and_drops_nothing_out():
    learner = Watching(Config())
    learner.prefit(batch())
    raw = batch().obs
    learner.act(raw)
    learner.update(batch())
    assert learner.nets.policy.training, "learning drops out again"
    first, second = (learner.act(raw).action for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, learner.nets.policy.eval()(learner.nets.normalizer(raw)))
    assert not first.requires_grad


def test_metrics_are_named_by_group_and_carry_no_gradient():
    metrics = Watching(Config()).update(batch())
    assert set(metrics) == {"loss/policy", "value/of_this"}
    assert not any(m.requires_grad for m in metrics.values())


def test_the_data_sets_moments_are_those_of_numpy_in_float64():
    obs = torch.randn(70_000, 2) * torch.tensor([1e-2, 30.0]) + torch.tensor([5.0, -1e4])  # more than one block
    normalizer = DataNormalizer(2)
    normalizer.fit(obs)
    exact = obs.double().numpy()
    assert normalizer.shift.tolist() == pytest.approx(exact.mean(0).tolist(), rel=1e-6)
    assert (1.0 / normalizer.scale - 1e-3).tolist() == pytest.approx(exact.std(0).tolist(), rel=1e-4)
