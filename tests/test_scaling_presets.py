"""`experiment=scaling/...`: one command from 64 environments to a million, compared at equal numbers of iterations."""

import pytest

from ctrlrl import settings
from ctrlrl.config import TrainConfig

RECIPE, GROWING, SQRT = "scaling/recipe", "scaling/growing_minibatch", "scaling/growing_minibatch_sqrt_lr"


def preset(name: str, *words: str) -> TrainConfig:
    return settings.typed(settings.train_config([f"experiment={name}", *words]))


def inner_loop(cfg: TrainConfig) -> tuple[int, float]:
    """Gradient steps of one iteration, and their rate."""
    algo = cfg.algo.for_envs(cfg.n_envs)
    return algo.n_epochs * algo.minibatches(cfg.n_envs * algo.n_steps), algo.learning_rate


@pytest.mark.parametrize("n_envs", [64, 65536, 2**20])
def test_iterations_are_as_many_for_any_number_of_environments(n_envs):
    for name in (RECIPE, GROWING, SQRT):
        cfg = preset(name, f"n_envs={n_envs}")
        assert cfg.total_steps == 40 * n_envs * cfg.algo.n_steps


def test_the_three_presets_begin_alike_and_part_as_their_names_say():
    assert inner_loop(preset(RECIPE)) == inner_loop(preset(GROWING)) == inner_loop(preset(SQRT)) == (4, 1e-3)
    words = "n_envs=65536"
    assert inner_loop(preset(RECIPE, words)) == (4 * 1024, 1e-3)
    assert inner_loop(preset(GROWING, words)) == (4, 1e-3)
    assert inner_loop(preset(SQRT, words)) == (4, pytest.approx(32e-3))


def test_the_rule_holds_what_the_recipe_needs():
    """A fixed rate, no end of an epoch by KL, advantages by minibatch."""
    cfg = preset(RECIPE).algo
    assert (cfg.lr_schedule, cfg.desired_kl, cfg.target_kl, cfg.normalize_advantage) == (
        "constant",
        None,
        None,
        "minibatch",
    )


def test_a_typed_length_wins_over_the_presets_and_two_are_refused():
    assert preset(RECIPE, "iterations=3").total_steps == 3 * 64 * 16
    assert preset(RECIPE, "total_steps=5000").total_steps == 5000
    raw = settings.train_config([f"experiment={RECIPE}"])
    assert (raw.total_steps, raw.iterations) == (40 * 64 * 16, None), "config.yaml says it in steps"
    with pytest.raises(ValueError, match="iterations and total_steps"):
        preset(RECIPE, "iterations=3", "total_steps=5000")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n_envs=16"], "algo.minibatch_size=512 is more than the 256 rows"),
        (["algo.minibatch_size=null", "algo.n_minibatches=1025"], "algo.n_minibatches=1025 is more than the 1024 rows"),
        (["algo.minibatch_size=0"], "minibatch_size must be at least 1"),
        (["iterations=0"], "iterations must be at least 1"),
        (["algo.lr_exponent=2"], "lr_exponent"),
        (["algo.lr_base_envs=0"], "lr_base_envs must be at least 1"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_allocated(words, said):
    with pytest.raises(ValueError, match=said):
        preset(RECIPE, *words)


def test_iterations_of_an_algorithm_without_rollouts_are_refused():
    with pytest.raises(ValueError, match="iterations counts rollouts, and algo=bc"):
        settings.train_config(["algo=bc", "data=file", "data.path=x.npz", "iterations=4"])
