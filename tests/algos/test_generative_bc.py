"""Cloning by diffusion and flow: the averaged weights, the schedule, the normalisers, and what is refused."""

import copy
from typing import Any

import pytest
import torch

from ctrlrl.algos.generative_bc import HEADS, DiffusionConfig, FlowConfig
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.loops import make_learner
from ctrlrl.settings import train_config, typed
from ctrlrl.types import EnvSpec, Transition, Window

SPEC = EnvSpec(3, 2, 0, 1, 1, 200, torch.device("cpu"))
CONFIGS = {"diffusion": DiffusionConfig, "flow": FlowConfig}
SMALL: dict[str, Any] = {"hidden": [16, 16], "horizon": 8, "n_action_steps": 4, "batch_size": 32, "warmup_steps": 0}

both = pytest.mark.parametrize("algo", CONFIGS)


def learner_of(algo: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return make_learner(CONFIGS[algo](**{**SMALL, **changes}), SPEC)


def rows(n: int = 256, scale: float = 0.5) -> Transition:
    obs = 3.0 * torch.randn(n, 3) + 1.0
    action = scale * (2.0 * torch.rand(n, 2) - 1.0)
    return Transition(obs, action, torch.zeros(n), obs, torch.zeros(n, dtype=torch.bool), {})


def windows(window: Window, n: int = 32) -> Transition:
    obs, action = torch.randn(n, window.n_obs, 3), torch.rand(n, window.horizon, 2) - 0.5
    return Transition(obs, action, torch.zeros(n), obs[:, -1], torch.zeros(n, dtype=torch.bool), {})


def vector(module: torch.nn.Module) -> torch.Tensor:
    """All parameters."""
    return torch.cat([p.detach().flatten() for p in module.parameters()]).double()


@both
def test_the_acting_weights_are_the_averages_of_the_specification(algo):
    learner = learner_of(algo)
    learner.prefit(rows())
    average = None
    for step in range(6):
        learner.update(windows(learner.cfg.window))
        decay = min(max(1.0 - (1.0 + step) ** -0.75, 0.0), 0.9999)
        online = vector(learner.nets.online)
        average = online if average is None else decay * average + (1.0 - decay) * online
        torch.testing.assert_close(vector(learner.nets.policy.head), average, rtol=0, atol=1e-6)
    assert (vector(learner.nets.policy.head) - online).abs().max() > 1e-4


@both
def test_acting_asks_the_averaged_weights_alone(algo):
    learner = learner_of(algo)
    learner.prefit(rows())
    obs = torch.randn(5, 3)
    before = learner.act(obs, deterministic=True).action
    for p in learner.nets.online.parameters():
        p.data.add_(1.0)
    assert torch.equal(learner.act(obs, deterministic=True).action, before)
    for p in learner.nets.policy.head.parameters():
        p.data.add_(0.1)
    assert not torch.equal(learner.act(obs, deterministic=True).action, before)


@both
def test_the_learning_rate_follows_its_schedule(algo):
    learner = learner_of(algo, warmup_steps=3)
    learner.prefit(rows())
    for step in range(10):
        learner.set_progress(step / 10)
        rate = float(learner.opt["policy"].learning_rate)
        assert rate == pytest.approx(3e-4 * warmup_cosine(step, warmup=3, total=10), rel=1e-6)
        learner.update(windows(learner.cfg.window))


@both
def test_the_ranges_of_the_data_become_the_unit_box_and_are_part_of_the_model(algo):
    learner = learner_of(algo)
    data = rows()
    learner.prefit(data)
    policy = learner.nets.policy
    for normalizer, column in ((policy.obs_normalizer, data.obs), (policy.action_normalizer, data.action)):
        unit = normalizer(column)
        torch.testing.assert_close(unit.amin(0), -torch.ones(unit.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(unit.amax(0), torch.ones(unit.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(normalizer.inverse(unit), column, rtol=0, atol=1e-5)
    other = learner_of(algo)
    other.load_model_state(learner.model_state())
    assert torch.equal(other.nets.policy.action_normalizer.scale, policy.action_normalizer.scale)


@both
def test_what_is_learned_takes_no_actions_outside_its_range(algo):
    learner = learner_of(algo)
    learner.prefit(data := rows())
    learner.update(windows(learner.cfg.window))
    scale = learner.nets.policy.action_normalizer.scale.clone()
    learner.prefit(data)
    assert torch.equal(learner.nets.policy.action_normalizer.scale, scale)
    wide = data._replace(action=torch.cat((data.action[:-1], torch.tensor([[0.0, 0.8]]))))
    with pytest.raises(ValueError, match=r"number 1 reaches 0.8, above the 0.49\d+ at which.* Train a new policy"):
        learner.prefit(wide)
    with pytest.raises(ValueError, match=r"number 0 reaches -0.9, below the -0.49\d+ at which"):
        learner.prefit(data._replace(action=torch.cat((data.action, torch.tensor([[-0.9, 0.0]])))))


@both
def test_a_chunk_shorter_than_what_is_executed_is_refused_with_both_numbers(algo):
    with pytest.raises(ValueError, match="horizon=8 is shorter than the 9 rows"):
        CONFIGS[algo](horizon=8, n_obs_steps=2, n_action_steps=8)
    assert CONFIGS[algo](horizon=9, n_obs_steps=2, n_action_steps=8).window == Window(2, 9, 8)


def test_a_flow_says_the_velocity_or_the_data():
    with pytest.raises(ValueError, match=r"FlowConfig\.prediction must be velocity or data, got 'noise'"):
        FlowConfig(prediction="noise")


def test_warm_starts_are_refused_where_they_mean_nothing():
    with pytest.raises(ValueError, match="n_action_steps must be 1, got 8"):
        DiffusionConfig(warm_start=[2, 1, 0])
    with pytest.raises(ValueError, match=r"must fall within 0 ... 99"):
        DiffusionConfig(warm_start=[0, 1], n_action_steps=1)
    with pytest.raises(ValueError, match=r"must rise within \[0, 1\)"):
        FlowConfig(warm_start=[0.5, 1.0], n_action_steps=1)


@pytest.mark.parametrize(
    ("algo", "words"),
    [
        ("diffusion", {"sampler": "ddpm"}),
        ("diffusion", {"sampling_steps": 3, "spacing": "trailing"}),
        ("diffusion", {"warm_start": [2, 1, 0], "n_action_steps": 1}),
        ("flow", {"sampler": "midpoint", "sampling_steps": 2}),
        ("flow", {"warm_start": [0.9], "n_action_steps": 1}),
    ],
)
def test_sampler_and_steps_are_settings_of_the_same_weights(algo, words):
    learner = learner_of(algo)
    learner.prefit(rows())
    learner.update(windows(learner.cfg.window))
    changed = learner_of(algo, **words)
    changed.load_model_state(copy.deepcopy(learner.model_state()))
    obs, memory = torch.randn(4, 3), None
    for _ in range(3):
        out, memory = changed.act_in_episode(obs, memory, deterministic=True)
        assert out.action.shape == (4, 2)
    same = changed.act(obs, deterministic=True).action, learner.act(obs, deterministic=True).action
    assert torch.equal(*same) == ("warm_start" in words), "a warm start changes no first plan"


@both
@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_a_step(algo, head):
    learner = learner_of(algo, head=head, hidden=[8, 8], n_heads=2, dropout=0.1)
    learner.prefit(rows())
    losses = [float(learner.update(windows(learner.cfg.window))["loss/policy"]) for _ in range(3)]
    assert all(0.0 < loss < 10.0 for loss in losses)
    assert learner.act(torch.randn(4, 3)).action.shape == (4, 2)


def test_weight_decay_shrinks_weights_and_spares_biases():
    learner = learner_of("flow", weight_decay=1.0, learning_rate=0.1)
    learner.prefit(rows())
    before = {k: p.detach().clone() for k, p in learner.nets.online.named_parameters()}
    for step in learner.opt.values():
        step.apply(torch.zeros_like(step.flat))
    for name, p in learner.nets.online.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.9 if p.ndim > 1 else 1.0), msg=name)


@both
@pytest.mark.parametrize(
    "name", ["horizon", "n_obs_steps", "n_action_steps", "n_heads", "batch_size", "sampling_steps"]
)
def test_sizes_are_at_least_one(algo, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CONFIGS[algo](**{name: 0})


@both
def test_one_width_is_asked_of_blocks_that_add_up(algo):
    with pytest.raises(ValueError, match=r"head=transformer have one width, got \[32, 64\]"):
        CONFIGS[algo](head="transformer", hidden=[32, 64])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@both
def test_compiled_updates_are_the_eager_ones(algo):
    found, weights = [], []
    for mode in ("eager", "compile"):
        learner = learner_of(algo)
        learner.prefit(rows())
        learner.set_compile(mode)
        torch.manual_seed(1)
        found.append([float(learner.update(windows(learner.cfg.window))["loss/policy"]) for _ in range(3)])
        weights.append(vector(learner.nets.policy.head))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


TRANSFORMER = {"head": "transformer", "betas": [0.9, 0.95], "warmup_steps": 1000, "learning_rate": 1e-4}
PUBLISHED = {  # Diffusion Policy, arXiv:2303.04137, the configurations of its code
    "unet_lowdim": {"horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "head": "unet", "hidden": [256, 512, 1024]}
    | {"embed_dim": 256, "betas": [0.95, 0.999], "weight_decay": 1e-6, "warmup_steps": 500, "learning_rate": 1e-4},
    "transformer_blockpush": {"horizon": 5, "n_obs_steps": 3, "n_action_steps": 1, "hidden": 8 * [256]}
    | {"dropout": 0.3, "weight_decay": 1e-3, **TRANSFORMER},
    "transformer_pusht": {"horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "hidden": 8 * [256]}
    | {"dropout": 0.01, "weight_decay": 1e-1, **TRANSFORMER},
    "transformer_kitchen": {"horizon": 16, "n_obs_steps": 4, "n_action_steps": 8, "hidden": 8 * [768]}
    | {"dropout": 0.1, "weight_decay": 1e-3, **TRANSFORMER},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_holds_the_published_setting(name):
    words = [f"experiment=diffusion/{name}", "env=pendulum", "data=file", "data.path=x"]
    algo = typed(train_config(words)).algo
    shared = {"n_levels": 100, "prediction": "noise", "sampler": "ddpm", "batch_size": 256, "n_heads": 4}
    expected = {**shared, **PUBLISHED[name]}
    assert {key: getattr(algo, key) for key in expected} == expected


@both
def test_the_small_u_net_is_a_preset_of_both(algo):
    words = [f"experiment={algo}/unet_small", "env=pendulum", "data=file", "data.path=x"]
    assert typed(train_config(words)).algo.hidden == [32, 64, 128]
