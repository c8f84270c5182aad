"""BESO's learner: which goals it learns from, what it refuses, and what may be changed after training."""

import copy
from typing import Any

import pytest
import torch

from ctrlrl.algos.beso import BESOConfig
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.windows import Windows
from ctrlrl.loops import make_learner
from ctrlrl.settings import train_config, typed
from ctrlrl.types import EnvSpec, ObsPart, Transition

SPEC = EnvSpec(3, 2, 0, 1, 1, 200, torch.device("cpu"))
ASKING = EnvSpec(3, 2, 0, 1, 1, 9, torch.device("cpu"), obs_parts=(ObsPart("achieved_goal", (1,)), ObsPart("x", (2,))))
SMALL: dict[str, Any] = {"hidden": [16, 16], "horizon": 4, "n_obs_steps": 4, "batch_size": 32}
HEADS = pytest.mark.parametrize("head", ["gpt", "mlp"])


def learner_of(spec: EnvSpec = SPEC, **changes: Any) -> Any:
    torch.manual_seed(0)
    return make_learner(BESOConfig(**{**SMALL, **changes}), spec)


def windows(learner: Any, lengths: tuple[int, ...] = (20, 9, 15)) -> Windows:
    n = sum(lengths)
    torch.manual_seed(2)
    obs, action = torch.randn(n, 3), 2.0 * torch.rand(n, 2) - 1.0
    data = Dataset.of(Transition(obs, action, torch.zeros(n), obs, torch.zeros(n, dtype=torch.bool), {}))
    data.ends = torch.tensor(lengths).cumsum(0)
    learner.prefit(data.all())
    return Windows(data, learner.cfg.window, learner.cfg.goals)


def told(learner: Any, batch: Transition) -> torch.Tensor:
    """The goals that the network is told of, [N, G, O + 1]."""
    n_goals = learner.cfg.n_goals
    return learner.condition(batch).unflatten(1, (-1, 4))[:, :n_goals]


@HEADS
def test_every_head_learns_a_step_and_acts(head):
    learner = learner_of(head=head, n_goals=2)
    source = windows(learner)
    losses = [float(learner.update(source.sample(32))["loss/policy"]) for _ in range(3)]
    assert all(0.0 < loss < 10.0 for loss in losses)
    action = learner.act(torch.randn(4, 3)).action
    assert action.shape == (4, 2)
    assert action.abs().max() <= 1.0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_whole_goals_are_hidden_from_a_share_of_the_windows(share):
    learner = learner_of(goal_dropout=share, n_goals=2, goal=[0.0, 0.0, 0.0])
    batch = windows(learner).sample(4000)
    hidden = (told(learner, batch) == 0.0).all(2)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert float(hidden[:, 0].float().mean()) == pytest.approx(share, abs=0.03)


def test_what_is_not_hidden_is_the_later_observation_in_the_columns_of_a_goal():
    learner = learner_of(goal_dropout=0.0, goal_columns=[2], goal=[0.0])
    batch = windows(learner).sample(50)
    wanted = learner.nets.policy.obs_normalizer(batch.extras["goal"])
    found = told(learner, batch)
    assert torch.equal(found[..., 2], wanted[..., 2])
    assert torch.equal(found[..., :2], torch.zeros(50, 1, 2))
    assert torch.equal(found[..., 3], torch.ones(50, 1))


def test_the_columns_of_a_goal_are_those_of_the_task_s_achieved_goal():
    policy = learner_of(ASKING).nets.policy
    assert policy.is_goal.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "words",
    [
        {"sampler": "heun"},
        {"sampler": "ancestral"},
        {"levels": "karras"},
        {"levels": "exponential"},
        {"sampling_steps": 5},
        {"sigma_min": 0.1},
        {"clip_steps": True, "sigma_max": 5.0},
        {"guidance": 2.0},
        {"guidance": 0.0},
        {"goal": [0.5, -0.5, 0.0]},
        {"sampler": "euler"},
        {"warm_start": [0.2, 0.1]},
    ],
)
def test_sampler_guidance_and_goal_are_settings_of_the_same_weights(words):
    learner = learner_of(goal=[0.1, 0.2, 0.3])
    source = windows(learner)
    for _ in range(20):
        learner.update(source.sample(32))
    changed = learner_of(**{"goal": [0.1, 0.2, 0.3], **words})
    changed.load_model_state(copy.deepcopy(learner.model_state()))
    obs = torch.randn(4, 3)
    same = torch.equal(*(each.act(obs, deterministic=True).action for each in (learner, changed)))
    assert same == (words in ({"sampler": "euler"}, {"warm_start": [0.2, 0.1]})), "a warm start changes no first plan"


def test_guidance_without_the_null_condition_is_refused():
    with pytest.raises(ValueError, match=r"guidance=1.5 is guidance without the null condition: goal_dropout=0.0"):
        BESOConfig(guidance=1.5, goal_dropout=0.0)
    BESOConfig(guidance=1.0, goal_dropout=0.0)
    BESOConfig(guidance=1.5, goal_dropout=0.1)


def test_a_task_without_a_goal_and_a_policy_that_needs_one_are_refused_together():
    with pytest.raises(ValueError, match=r"asks for no goal and algo.goal is empty.* algo.goal=\[...\] of 3 numbers"):
        learner_of(goal_dropout=0.0)
    learner_of(goal_dropout=0.0, goal=[1.0, 2.0, 3.0])


def test_settings_that_clash_are_refused_with_both_numbers():
    for words, message in (
        ({"horizon": 4, "n_obs_steps": 2}, "horizon=4 and n_obs_steps=2 must be equal"),
        ({"sigma_min": 1.0, "sigma_max": 0.5}, "sigma_max=0.5 must be above sigma_min=1.0"),
        ({"sampler": "ddpm"}, "sampler must be one of ddim, euler, heun, ancestral, got 'ddpm'"),
        ({"levels": "cosine"}, "levels must be one of karras, exponential, linear"),
        ({"head": "unet"}, "head must be one of gpt, mlp, got 'unet'"),
        ({"goal_from": "start"}, "goal_from must be one of future, end"),
        ({"warm_start": [0.1, 0.2]}, r"warm_start must fall within \(0, sigma_max=1\], got \[0.1, 0.2\]"),
        ({"warm_start": [1.5, 0.2]}, r"warm_start must fall within \(0, sigma_max=1\], got \[1.5, 0.2\]"),
        ({"warm_start": [0.1, 0.0]}, r"warm_start must fall within"),
        ({"hidden": [8, 16]}, r"head=gpt have one width, got \[8, 16\]"),
        ({"n_goals": 0}, "n_goals must be at least 1, got 0"),
        ({"goal_dropout": 1.5}, "goal_dropout must lie in"),
        ({"guidance": -1.0}, "guidance must"),
        ({"sigma_max": float("inf")}, "sigma_max=inf"),
    ):
        with pytest.raises(ValueError, match=message):
            BESOConfig(**{**SMALL, **words})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@HEADS
def test_compiled_updates_are_the_eager_ones(head):
    found, weights = [], []
    for mode in ("eager", "compile"):
        learner = learner_of(head=head, dropout=0.0, attention_dropout=0.0)
        source = windows(learner)
        learner.set_compile(mode)
        torch.manual_seed(1)
        found.append([float(learner.update(source.sample(32))["loss/policy"]) for _ in range(3)])
        weights.append(torch.cat([p.detach().flatten() for p in learner.nets.policy.head.parameters()]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


PUBLISHED = {  # BESO, arXiv:2304.02532, the configurations of its code
    "blockpush": {"horizon": 5, "n_obs_steps": 5, "n_goals": 1, "hidden": 4 * [240], "n_heads": 12, "dropout": 0.05}
    | {"attention_dropout": 0.05, "sigma_min": 0.05, "sampler": "ddim", "weight_decay": 0.0},
    "kitchen": {"horizon": 4, "n_obs_steps": 4, "n_goals": 2, "hidden": 6 * [360], "n_heads": 6, "dropout": 0.0}
    | {"attention_dropout": 0.3, "sigma_min": 0.005, "sampler": "ancestral", "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_holds_the_published_setting(name):
    words = [f"experiment=beso/{name}", "env=pendulum", "data=file", "data.path=x"]
    algo = typed(train_config(words)).algo
    shared = {"sigma_max": 1.0, "data_std": 0.5, "levels": "linear", "sampling_steps": 3, "goal_dropout": 0.1}
    shared |= {"learning_rate": 1e-4, "batch_size": 1024, "ema_max": 0.999, "guidance": 1.0, "goal_from": "future"}
    expected = {**shared, **PUBLISHED[name]}
    assert {key: getattr(algo, key) for key in expected} == expected
