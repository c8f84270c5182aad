import pytest
import torch

from ctrlrl.core.archive import Archive


def archive(*points, reference=(0.0, 0.0), size=200):
    made = Archive(torch.tensor(reference), size)
    if points:
        offer(made, *points)
    return made


def offer(made, *points, start=0):
    made.insert(torch.tensor(points, dtype=torch.float64), {"w": torch.arange(start, start + len(points)).float()})


def kept(made):
    return sorted(map(tuple, made.returns.tolist()))


def test_what_is_dominated_or_below_the_reference_is_dropped_with_its_rows():
    made = archive((1, 3), (2, 2), (1, 1), (5, -1), (3, 1))
    assert kept(made) == [(1, 3), (2, 2), (3, 1)]
    assert made.rows["w"].tolist() == [0, 1, 4]


def test_later_policies_push_dominated_ones_out_and_rows_stay_beside_their_returns():
    made = archive((1, 3), (2, 2))
    offer(made, (2, 3), (0.5, 4), start=10)
    assert {tuple(r): w for r, w in zip(made.returns.tolist(), made.rows["w"].tolist(), strict=True)} == {
        (2, 3): 10,
        (0.5, 4): 11,
    }


def test_of_equal_returns_the_older_policy_stays():
    made = archive((1, 2), (1, 2))
    offer(made, (1, 2), start=7)
    assert made.rows["w"].tolist() == [0]


def test_beyond_its_size_it_keeps_those_with_the_most_room():
    made = archive((0, 10), (1, 9), (1.1, 8.9), (5, 5), (10, 0), size=4)
    assert kept(made) == [(0, 10), (1, 9), (5, 5), (10, 0)] or kept(made) == [(0, 10), (1.1, 8.9), (5, 5), (10, 0)]


def test_selection_takes_the_widest_gaps_first_and_nothing_twice_in_a_run():
    made = archive((0, 10), (4, 6), (5, 5), (10, 0))
    first = made.select(3)
    assert {tuple(r) for r in made.returns[first].tolist()} >= {(0, 10), (10, 0)}
    assert len(made.select(3)) == 1
    assert len(made.select(3)) == 0


def test_a_vector_selected_once_stays_excluded_after_it_has_left_and_come_back():
    made = archive((1, 1))
    made.select(1)
    offer(made, (2, 2), start=1)
    made.returns = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert len(made.select(1)) == 0


def test_the_policy_for_a_preference_is_the_best_weighted_sum():
    made = archive((1, 3), (2.4, 2.4), (3, 1))
    for preference, want in (((1, 0), (3, 1)), ((0, 1), (1, 3)), ((0.5, 0.5), (2.4, 2.4))):
        assert tuple(made.returns[made.best_for(torch.tensor(preference))].tolist()) == want


@pytest.mark.parametrize(
    ("points", "reference", "said"),
    [
        ([(5, -3), (6, -2)], (0, 0), "objective 1 wants at least 0, and the best of 2 policies reached -2"),
        ([(1, -1), (-1, 1), (-2, 1)], (0, 0), "objective 0 wants at least 0, and 2 of 3 policies fell short"),
    ],
)
def test_an_empty_archive_names_the_objective_to_blame(points, reference, said):
    made = archive(*points, reference=tuple(float(x) for x in reference))
    assert len(made) == 0
    with pytest.raises(ValueError, match=said) as error:
        made.best_for(torch.tensor([0.5, 0.5]))
    assert "algo.reference" in str(error.value)


def test_before_any_evaluation_it_says_so():
    with pytest.raises(ValueError, match="holds no policy: none has been evaluated"):
        archive().best_for(torch.tensor([0.5, 0.5]))


def test_state_round_trip_keeps_the_history():
    made, other = archive((1, 3), (3, 1)), archive()
    made.select(1)
    other.load_state_dict(made.state_dict())
    other.returns, other.rows = made.returns, made.rows
    assert len(other.select(2)) == 1
