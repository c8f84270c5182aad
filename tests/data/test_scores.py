"""Normalised scores against values worked out by hand from D4RL's published pairs."""

from __future__ import annotations

import pytest

from ctrlrl.data.scores import SCORES, normalized_score, reference


@pytest.mark.parametrize(
    ("name", "returns", "score"),
    [
        ("halfcheetah-medium-v2", 6000.0, 50.5847),
        ("hopper-medium-replay-v2", 1000.0, 31.3489),
        ("walker2d-expert-v0", 2000.0, 43.5311),
        ("pen-human-v1", 1000.0, 30.3209),
        ("maze2d-umaze-v1", 0.0, -17.2814),
        ("antmaze-large-diverse-v2", 0.25, 25.0),
        ("antmaze-umaze-v1", 1.0, 100.0),
        ("kitchen-partial-v0", 3.0, 75.0),
        ("Hopper-v4", 1000.0, 31.3489),
        ("Hopper-v5", 1000.0, 31.3489),
        ("hopper", 1000.0, 31.3489),
        ("halfcheetah-v4", 6000.0, 50.5847),
        ("AdroitHandPen-v1", 1000.0, 30.3209),
    ],
)
def test_scores_are_those_of_the_published_table(name, returns, score):
    assert normalized_score(name, returns) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("name", SCORES)
def test_the_reference_returns_score_nought_and_a_hundred(name):
    low, high = SCORES[name]
    assert (normalized_score(name, low), normalized_score(name, high)) == (0.0, pytest.approx(100.0))


def test_every_id_of_d4rls_table_is_there_and_the_two_families_it_registers_elsewhere():
    elsewhere = {n for n in SCORES if n.startswith("antmaze") and n.endswith("-v1")}
    elsewhere |= {f"maze2d-{size}{dense}-v0" for size in ("umaze", "medium", "large") for dense in ("", "-dense")}
    assert len(set(SCORES) - elsewhere) == 147
    assert len(elsewhere) == 12


@pytest.mark.parametrize(
    "name",
    [
        None,
        "Humanoid-v4",
        "Swimmer-v5",
        "hopper-medium",
        "hopper-medium-v3",
        "D4RL/door/human-v2",
        "PointMaze_UMaze-v3",
    ],
)
def test_what_has_no_reference_has_no_score(name):
    assert reference(name) is None
    assert normalized_score(name, 1000.0) is None
