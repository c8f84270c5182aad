import pytest
import torch
from torch import Tensor

from ctrlrl.functional import boxes as boxes_module
from ctrlrl.functional import neighbors
from ctrlrl.functional.boxes import CELL, boxes, near_lists, nearest_within
from ctrlrl.functional.neighbors import Lists, k_nearest, keys, look_up


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


def distant_rows(n: int = 3000, dim: int = 23) -> Tensor:
    """One cluster far from the origin: a product of two rows rounds by more than they lie apart."""
    return 200.0 + 1e-3 * torch.randn(n, dim)


def queries(rows: Tensor) -> Tensor:
    """Of the rows, near them, and far from them."""
    near, far = rows[30:60] + 0.3 * torch.randn(30, rows.shape[1]), 5.0 * torch.randn(30, rows.shape[1])
    return torch.cat((rows[:30], near, far))


def assert_nearest(index: Tensor, squared: Tensor, exact: Tensor) -> None:
    k = index.shape[1]
    best = exact.sort(-1).values[:, :k]
    torch.testing.assert_close(squared.double(), best, rtol=1e-5, atol=0)
    torch.testing.assert_close(exact.gather(1, index), best, rtol=1e-5, atol=0)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("make", [random_rows, clustered_rows])
@pytest.mark.parametrize("k", [1, 16])
def test_a_search_by_products_equals_brute_force(make, k):
    rows = make()
    query = queries(rows)
    found = k_nearest(query, keys(rows), k)
    assert found.proven.all()
    assert_nearest(found.row, found.squared, distances(query, rows))


def test_searches_take_products_in_whole_float32_whatever_the_user_allows(monkeypatch):
    matmul, seen = torch.backends.mkldnn.matmul, []
    before, amin = matmul.fp32_precision, torch.amin

    def watched(*args, **kwargs):
        seen.append(matmul.fp32_precision)
        return amin(*args, **kwargs)

    monkeypatch.setattr(torch, "amin", watched)  # what both take of their products
    rows = torch.randn(1000, 4)
    searches = (
        lambda: k_nearest(rows[:20], keys(rows), 1),
        lambda: nearest_within(boxes(rows), rows[:20], torch.full((20,), 100.0), 1),
    )
    matmul.fp32_precision = "bf16"
    try:
        for search in searches:
            seen.clear()
            search()
            assert set(seen) == {"ieee"}
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("n", [1, 31, 33, 1000])
@pytest.mark.parametrize("scores", [1, 4000, 2**19])
def test_neither_the_number_of_rows_nor_the_size_of_a_pass_matters(n, scores, monkeypatch):
    monkeypatch.setitem(neighbors.SCORES, "cpu", scores)
    rows, query = torch.randn(n, 4), torch.randn(20, 4)
    found = k_nearest(query, keys(rows), 1)
    assert_nearest(found.row, found.squared, distances(query, rows))


def test_what_rounding_leaves_open_is_never_called_proven():
    """From clusters that products resolve to one whose rows lie closer together than a product is precise."""
    n_wrong = 0
    for spread in (3e-2, 1e-2, 3e-3, 1e-3, 3e-4):
        rows = 3.0 + spread * torch.randn(4000, 3)
        query = 3.0 + spread * torch.randn(256, 3)
        found, exact = k_nearest(query, keys(rows), 1), distances(query, rows).amin(1)
        wrong = (found.squared[:, 0].double() - exact).abs() > 1e-5 * exact
        n_wrong += int(wrong.sum())
        assert not (wrong & found.proven).any()
    assert n_wrong > 100


def test_rows_that_are_equal_to_the_query_are_proven_however_many():
    rows = torch.randn(3, 5).repeat(1000, 1)
    found = k_nearest(rows[:3], keys(rows), 16)
    assert found.proven.all()
    assert (found.squared == 0).all()


@pytest.mark.parametrize("make", [random_rows, clustered_rows, distant_rows])
@pytest.mark.parametrize("k", [1, 5])
def test_a_search_by_boxes_equals_brute_force_for_any_limit_that_holds(make, k):
    rows = make()
    query = queries(rows)
    exact, ready = distances(query, rows), boxes(rows)
    kth = exact.sort(-1).values[:, k - 1].float()
    for limit in (kth, 1.5 * kth + 1e-3, torch.full_like(kth, float("inf"))):
        assert_nearest(*nearest_within(ready, query, limit, k), exact)


@pytest.mark.parametrize("n", [1, 15, 127, 128, 129, 1000])
def test_boxes_hold_every_row_once_whatever_their_number(n):
    rows = torch.randn(n, 3)
    ready = boxes(rows)
    assert ready.order[ready.cells[:, -1].flatten().isfinite()].sort().values.tolist() == list(range(n))
    assert_nearest(*nearest_within(ready, rows, torch.full((n,), 100.0), min(n, 3)), distances(rows, rows))


def test_a_limit_computed_before_the_states_were_scaled_is_still_a_limit():
    """beta^2 |s - s_j|^2 and |beta s - beta s_j|^2 differ by rounding, in dense data by more than a last digit."""
    beta, states = 7.5, 3.0 + 2e-3 * torch.randn(2000, 6)
    query = states[:100] + 1e-3 * torch.randn(100, 6)
    limit = (beta**2 * distances(query, states).amin(1)).float()
    index, squared = nearest_within(boxes(beta * states), beta * query, limit)
    assert squared.isfinite().all()
    assert_nearest(index, squared, distances(beta * query, beta * states))


def test_a_query_with_nan_finds_nothing_and_disturbs_no_other():
    rows = torch.randn(300, 3)
    query = rows[:4].clone()
    query[1, 2] = float("nan")
    index, squared = nearest_within(boxes(rows), query, torch.tensor([1.0, float("nan"), 1.0, 1.0]))
    assert index[[0, 2, 3], 0].tolist() == [0, 2, 3]
    assert squared[1].isnan().all()


def test_a_row_whose_square_is_beyond_float32_hides_no_other():
    states = torch.randn(1000, 3)
    for size in (2e19, 1e25):
        states[7] = size
        index, squared = nearest_within(boxes(states), states, torch.full((1000,), 1e-6))
        assert index[:, 0].tolist() == list(range(1000))
        assert (squared == 0).all()


def test_boxes_look_at_few_rows_and_draw_no_random_numbers(monkeypatch):
    states, _ = walk(20000)
    state = torch.get_rng_state()
    ready = boxes(states)
    assert torch.equal(state, torch.get_rng_state())
    query = states[:32]
    limit = distances(query, states).sort(-1).values[:, 15].float()
    pairs = {}
    for level in ("_seen", "_rows_within"):
        watch(monkeypatch, level, pairs)
    nearest_within(ready, query, limit, 16)
    assert pairs["_seen"] * CELL < 0.04 * len(query) * len(states)
    assert pairs["_rows_within"] < pairs["_seen"]


def watch(monkeypatch, level: str, pairs: dict[str, int]) -> None:
    """Keep how many pairs (cell, query) come to a level of the search."""
    real = getattr(boxes_module, level)

    def watched(*args):
        pairs[level] = pairs.get(level, 0) + len(args[-1])
        return real(*args)

    monkeypatch.setattr(boxes_module, level, watched)


@pytest.mark.parametrize(
    "make", [lambda: clustered_rows(700, 5), lambda: torch.randn(600, 2), lambda: distant_rows(300)]
)
def test_lists_hold_the_nearest_states_in_order(make):
    states = make()
    lists = near_lists(states, 8)
    assert_nearest(lists.row.long(), lists.squared, distances(states, states))


def test_lists_of_equal_or_of_few_states_are_complete():
    lists = near_lists(torch.ones(40, 3), 16)
    assert (lists.squared == 0).all()
    assert near_lists(torch.randn(5, 3), 8).row.sort(-1).values.tolist() == [[0, 1, 2, 3, 4]] * 5


def test_lists_longer_than_the_first_cells_hold_are_complete(monkeypatch):
    monkeypatch.setattr("ctrlrl.functional.boxes.FIRST", 1)
    states = torch.randn(600, 2)
    lists = near_lists(states, 300)
    wanted = distances(states, states).sort(-1).values[:, :300].float()
    torch.testing.assert_close(lists.squared, wanted, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize(
    "make", [walk, lambda: (clustered_rows(4000, 6) + 0.1 * torch.randn(4000, 6), torch.rand(4000, 3) * 2 - 1)]
)
def test_a_certified_look_up_is_exact_and_the_share_grows_towards_the_data(make):
    beta, (states, actions) = 2.0, make()
    lists, pairs = near_lists(states), torch.cat((beta * states, actions), 1)
    row, ready, shares = torch.randint(len(states), (200,)), boxes(pairs), {}
    for name, policy in POLICIES.items():
        action = policy(actions[row])
        query = torch.cat((beta * states[row], action), 1)
        exact = distances(query, pairs)
        match = look_up(lists, row, action, actions, beta=beta)
        shares[name] = match.proven.double().mean().item()
        sure, best = match.proven, exact.amin(1)
        torch.testing.assert_close(match.squared.double()[sure], best[sure], rtol=1e-5, atol=1e-9)
        chosen = exact.gather(1, match.row.unsqueeze(1))[:, 0]
        torch.testing.assert_close(chosen, match.squared.double(), rtol=1e-5, atol=1e-9)
        rest = ~sure
        index, squared = nearest_within(ready, query[rest], match.squared[rest])  # what answers the others
        assert_nearest(index, squared, exact[rest])
    assert shares["near"] >= shares["mid"] > shares["random"]
    assert shares["near"] > 0.6
    assert shares["random"] < 1.0


def test_a_list_that_misses_the_nearest_pair_is_not_certified():
    """States 0, 0.1 and 1 with actions 0, 0 and 2; the list of state 0 holds the first two."""
    actions = torch.tensor([[0.0], [0.0], [2.0]])
    lists = Lists(torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([[0.0, 0.01]]))
    row = torch.zeros(2, dtype=torch.long)
    match = look_up(lists, row, torch.tensor([[2.0], [0.05]]), actions, beta=1.0)
    assert match.proven.tolist() == [False, True]  # action 2 is nearer to the third: 1 against 4
    assert match.row[1] == 0


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
        pairs = torch.stack((beta * state, action), 1)
        query = torch.tensor([[beta * 0.4, 0.8]])
        index, found = nearest_within(boxes(pairs), query, torch.tensor([9.0]))
        assert index.item() == k_nearest(query, keys(pairs), 1).row.item() == row
        assert found.item() == pytest.approx(squared, rel=1e-6)
        assert (0.8 - action[index.item()].item()) ** 2 == pytest.approx(constraint)
