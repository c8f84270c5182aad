"""seeds=8: every seed of a stacked run is the seed of a run of its own."""

from typing import Any

import pytest
import torch
from torch import nn

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.core.stacked import StackedSource, extract, stream
from ctrlrl.core.update import GradStep
from ctrlrl.data.dataset import Dataset
from ctrlrl.nn.stacked import stack
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.seeds import refuse_unless_stackable, stacked
from ctrlrl.types import EnvSpec, Transition

KINDS = {name: lookup(ALGORITHMS, name, "algorithm") for name in ALGORITHMS}
STACKABLE = [name for name, kind in KINDS.items() if getattr(kind, "stackable", False)]
SPEC = EnvSpec(3, 2, 0, 1, 1, 200, torch.device("cpu"))
SEEDS = (3, 0, 7)
UPDATES, BATCH = 50, 16


def data(n: int = 200) -> Dataset:
    random = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, n, 3, generator=random)
    action, next_action = torch.rand(2, n, 2, generator=random) * 1.8 - 0.9
    reward, to_go = torch.randn(2, n, generator=random)
    extras = {"next_action": next_action, "return_to_go": to_go}
    return Dataset.of(Transition(obs, action, reward, next_obs, torch.arange(n) % 20 == 19, extras))


def maker(algo: str, **changes: Any) -> Any:
    kind = KINDS[algo]
    sizes = {"hidden": [8, 8], "critic_hidden": [8, 8], "vae_hidden": [8, 8], **changes}
    small = {k: v for k, v in sizes.items() if k in kind.config.__dataclass_fields__}
    return lambda: kind(kind.config(**small), SPEC)


def alone(make: Any, seed: int, updates: int = UPDATES) -> Any:
    rows = data()
    torch.manual_seed(seed)
    learner = make()
    learner.prefit(rows.all())
    for i in range(updates):
        learner.set_progress(i / UPDATES)
        metrics = learner.update(rows.sample(BATCH))
    return learner, metrics


def together(make: Any, seeds: tuple[int, ...] = SEEDS, updates: int = UPDATES) -> Any:
    learner, source = stacked(make, seeds, data())
    for i in range(updates):
        learner.set_progress(i / UPDATES)
        metrics = learner.update(source.sample(BATCH))
    return learner, source, metrics


def numbers(learner: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in {**learner.model_state(), **learner.training_state()}.items()}


@pytest.fixture
def double():
    """float64: in float32 a unit may be on in one form and off in the other, and Adam makes a whole step of that."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], rtol: float = 1e-3, atol: float = 1e-4
) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        # Adam divides by the size of the gradient, so that the last digits of small ones show after 50 updates
        torch.testing.assert_close(found[key], value, rtol=rtol, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


CASES = [(name, {}) for name in STACKABLE] + [
    ("iql", {"joint": True}),
    ("iql", {"joint": True, "deterministic_policy": True, "init": "torch"}),
    ("iql", {"policy_dropout": 0.3}),
    ("iql", {"policy_tau": 0.1}),
]


@pytest.mark.parametrize(("algo", "changes"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_every_seed_is_that_of_its_own_run(algo, changes, double):
    make = maker(algo, **changes)
    learner, _, metrics = together(make)
    single = make()
    for place, seed in enumerate(SEEDS):
        own, own_metrics = alone(make, seed)
        extract(learner, place, single)
        assert_close(numbers(single), numbers(own), rtol=1e-10, atol=1e-10)
        assert metrics.keys() == own_metrics.keys()
        for name, value in own_metrics.items():
            torch.testing.assert_close(metrics[name][place], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("algo", "changes"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_the_first_updates_agree_in_float32_too(algo, changes):
    make = maker(algo, **changes)
    learner, single = together(make, updates=2)[0], make()
    for place, seed in enumerate(SEEDS):
        extract(learner, place, single)
        assert_close(numbers(single), numbers(alone(make, seed, updates=2)[0]))


def test_the_seeds_differ():
    learner, _, _ = together(maker("iql"), updates=2)
    assert not torch.allclose(learner.nets.value.net[0].weight[0], learner.nets.value.net[0].weight[1])


def test_a_seed_does_not_depend_on_those_beside_it():
    make = maker("td3bc")
    a, b = make(), make()
    extract(together(make, (3, 0, 7))[0], 1, a)
    extract(together(make, (0, 5))[0], 0, b)
    assert_close(numbers(a), numbers(b))


def test_rows_are_drawn_as_by_the_seeds_own_run():
    streams = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        streams.append(stream(torch.device("cpu")))
    source = StackedSource(data(), streams)
    first, second = source.sample(10), source.sample(10)
    for place, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        for batch in (first, second):
            own = data().sample(10)
            assert torch.equal(batch.extras["index"][place], own.extras["index"])
            assert torch.equal(batch.obs[place], own.obs)


def test_a_state_put_back_goes_on_bit_for_bit():
    make = maker("td3bc")
    learner, source, _ = together(make, updates=3)
    model, training = ({k: v.clone() for k, v in s.items()} for s in (learner.model_state(), learner.training_state()))
    other, rows, _ = together(make, updates=1)
    other.load_model_state(model)
    other.load_training_state(training)
    for one, its in ((learner, source), (other, rows)):
        for _ in range(3):
            one.update(its.sample(BATCH))
    for key, value in numbers(learner).items():
        assert torch.equal(numbers(other)[key], value), key


def test_an_extracted_learner_goes_on_alone():
    make = maker("iql")
    learner, source, _ = together(make, updates=5)
    single = make()
    extract(learner, 2, single)
    batches = [source.sample(BATCH) for _ in range(5)]
    for batch in batches:
        learner.update(batch)
        single.update(Transition(*(x[2] for x in batch[:-1]), {k: v[2] for k, v in batch.extras.items()}))
    after = make()
    extract(learner, 2, after)
    assert_close(numbers(after), numbers(single))


def test_stacked_networks_take_a_further_axis():
    nets = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1)) for _ in SEEDS]
    for net in nets:
        nn.init.normal_(net[1].weight)
    x = torch.randn(3, 5, 6, 3)
    y = stack(nets, lambda x, p: x)(x)
    torch.testing.assert_close(y, torch.stack([net(part) for net, part in zip(nets, x, strict=True)]))


def test_what_cannot_be_stacked_is_refused_by_name():
    with pytest.raises(ValueError, match="BatchNorm1d has no stacked form"):
        stack([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)], lambda x, p: x)
    with pytest.raises(ValueError, match="seeds=2: PPO trains one seed a run"):
        refuse_unless_stackable(KINDS["ppo"], 2)


def test_a_clip_by_the_norm_of_a_network_is_refused():
    class Clipped(KINDS["bc"]):
        def optimizers(self):
            return {"policy": GradStep(self.nets.policy.parameters(), learning_rate=1e-3, max_grad_norm=1.0)}

    with pytest.raises(ValueError, match="Clipped clips by the norm"):
        stacked(lambda: Clipped(Clipped.config(), SPEC), (0, 1), data())


def test_acting_gives_every_seeds_action():
    make = maker("bc")
    learner, _, _ = together(make, updates=1)
    obs, single = torch.randn(5, 3), make()
    action = learner.act(obs, deterministic=True).action
    for place in range(len(SEEDS)):
        extract(learner, place, single)
        torch.testing.assert_close(action[place], single.act(obs, deterministic=True).action)


def test_stacking_is_declared_by_off_policy_learners_alone():
    assert STACKABLE
    assert all(issubclass(KINDS[name], OffPolicyLearner) for name in STACKABLE)
