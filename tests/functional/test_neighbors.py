import pytest
import torch
from torch import Tensor

from ctrlrl.functional import neighbors
from ctrlrl.functional.neighbors import Lists, k_nearest, keys, look_up, near_lists, nearest


def distances(query: Tensor, rows: Tensor) -> Tensor:
    """[Q, N] squared, by differences in float64."""
    return torch.stack([(rows.double() - q.double()).square().sum(-1) for q in query])


def random_rows(n: int = 3000, dim: int = 23) -> Tensor:
    return torch.randn(n, dim)


def clustered_rows(n: int = 3000, dim: int = 23) -> Tensor:
    """Three hundred tight clusters, some rows several times."""
    centers = 3.0 * torch.randn(300, dim)
    rows = centers[torch.randint(300, (n,))] + 0.01 * torch.randn(n, dim)
    rows[-200:] = rows[:200]
    return rows


def assert_nearest(found: neighbors.Nearest, query: Tensor, rows: Tensor, k: int) -> None:
    exact = distances(query, rows)
    best = exact.sort(-1).values[:, :k]
    torch.testing.assert_close(found.squared.double(), best, rtol=1e-5, atol=0)
    torch.testing.assert_close(exact.gather(1, found.index), best, rtol=1e-5, atol=0)
    assert all(len(set(row)) == k for row in found.index.tolist())


@pytest.mark.parametrize("make", [random_rows, clustered_rows])
@pytest.mark.parametrize("k", [1, 16])
def test_a_search_by_products_equals_brute_force(make, k):
    rows = make()
    query = torch.cat((rows[:50], rows[50:100] + 0.3 * torch.randn(50, 23), 5.0 * torch.randn(50, 23)))
    found = nearest(query, keys(rows), k)
    assert_nearest(found, query, rows, k)
    assert found.proven.all()


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("scores", [1, 4000, 2**19])
def test_neither_the_number_of_rows_nor_the_size_of_a_pass_matters(n, scores, monkeypatch):
    monkeypatch.setitem(neighbors.SCORES, "cpu", scores)
    rows, query = torch.randn(n, 4), torch.randn(20, 4)
    assert_nearest(nearest(query, keys(rows), 1), query, rows, 1)


def test_what_rounding_leaves_open_is_never_called_proven():
    far = torch.tensor([300.0, -200.0, 100.0])
    rows = far + 1e-3 * torch.randn(4000, 3)  # the products round by more than the rows lie apart
    query = far + 1e-3 * torch.randn(64, 3)
    found, exact = k_nearest(query, keys(rows), 1), distances(query, rows).amin(1)
    wrong = (found.squared[:, 0].double() - exact).abs() > 1e-5 * exact
    assert wrong.any()
    assert not (wrong & found.proven).any()
    assert_nearest(nearest(query, keys(rows), 1), query, rows, 1)


def test_rows_that_are_equal_to_the_query_are_proven_however_many():
    rows = torch.randn(3, 5).repeat(1000, 1)
    found = k_nearest(rows[:3], keys(rows), 16)
    assert found.proven.all()
    assert (found.squared == 0).all()


def test_lists_hold_the_nearest_states_in_order_and_all_of_a_small_set():
    states = clustered_rows(700, 5)
    lists = near_lists(states, 8, batch=100)
    best = distances(states, states).sort(-1).values[:, :8]
    torch.testing.assert_close(lists.squared.double(), best, rtol=1e-5, atol=0)
    assert near_lists(states[:5], 8).index.sort(-1).values.tolist() == [[0, 1, 2, 3, 4]] * 5


POLICIES = {  # action of row i from the data's
    "near": lambda action: (action + 0.1 * torch.randn_like(action)).clamp(-1, 1),
    "mid": lambda action: (action + 0.3 * torch.randn_like(action)).clamp(-1, 1),
    "random": lambda action: 2.0 * torch.rand_like(action) - 1.0,
}


def walk(n: int = 4000) -> tuple[Tensor, Tensor]:
    """States of a few trajectories that pass the same region again and again, actions a noisy function of them."""
    phase = torch.linspace(0.0, 200.0, n).unsqueeze(1) * torch.tensor([1.0, 1.618, 2.414])
    states = torch.cat((phase.sin(), phase.cos()), 1) + 0.02 * torch.randn(n, 6)
    return states, (states[:, :3] + 0.3 * torch.randn(n, 3)).clamp(-1, 1)


@pytest.mark.parametrize("make", [walk, lambda: (clustered_rows(4000, 6), torch.rand(4000, 3) * 2 - 1)])
def test_a_certified_look_up_is_exact_and_the_share_grows_towards_the_data(make):
    beta, (states, actions) = 2.0, make()
    lists, pairs = near_lists(states), torch.cat((beta * states, actions), 1)
    row = torch.randint(len(states), (500,))
    shares = {}
    for name, policy in POLICIES.items():
        action = policy(actions[row])
        query = torch.cat((beta * states[row], action), 1)
        exact = distances(query, pairs)
        match = look_up(lists, row, action, actions, beta=beta)
        shares[name] = match.proven.double().mean().item()
        sure = match.proven
        best = exact.amin(1)
        torch.testing.assert_close(match.squared.double()[sure], best[sure], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(
            exact.gather(1, match.index.unsqueeze(1))[:, 0], match.squared.double(), rtol=1e-5, atol=1e-9
        )
        dense = nearest(query, keys(pairs))  # what answers the others
        torch.testing.assert_close(dense.squared[:, 0].double(), best, rtol=1e-5, atol=1e-9)
    assert shares["near"] >= shares["mid"] > shares["random"]
    assert shares["near"] > 0.6
    assert 0.0 < shares["random"] < 1.0


def test_a_list_that_misses_the_nearest_pair_is_not_certified():
    states = torch.tensor([[0.0], [0.1], [1.0]])
    actions = torch.tensor([[0.0], [0.0], [2.0]])
    lists = Lists(torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([[0.0, 0.01]]))
    row = torch.zeros(2, dtype=torch.long)
    match = look_up(lists, row, torch.tensor([[2.0], [0.05]]), actions, beta=1.0)
    assert match.proven.tolist() == [False, True]  # the first is nearer to row 2: 1 < 4
    assert match.index[1] == 0
    assert states.shape[0] == len(actions)


def test_stacked_rows_are_looked_up_like_flat_ones():
    states, actions = walk(500)
    lists, row = near_lists(states), torch.randint(500, (3, 40))
    action = torch.rand(3, 40, 3)
    stacked = look_up(lists, row, action, actions, beta=2.0)
    flat = look_up(lists, row.flatten(), action.flatten(0, 1), actions, beta=2.0)
    for a, b in zip(stacked, flat, strict=True):
        assert torch.equal(a.flatten(), b)


def test_beta_decides_which_row_is_nearest():
    """The paper's distance by hand: 1.28 against 1.48 with beta 2, 0.80 against 0.40 with beta 1."""
    state, action = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    for beta, row, squared, constraint in ((2.0, 0, 1.28, 0.64), (1.0, 1, 0.40, 0.04)):
        pairs = torch.stack((beta * state, action), 1).double()
        found = nearest(torch.tensor([[beta * 0.4, 0.8]], dtype=torch.float64), keys(pairs))
        assert found.index.item() == row
        assert found.squared.item() == pytest.approx(squared, abs=1e-12)
        assert (0.8 - action[found.index.item()].item()) ** 2 == pytest.approx(constraint)
