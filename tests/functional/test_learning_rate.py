import math

from ctrlrl.functional.learning_rate import cosine, warmup_cosine


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    share = [warmup_cosine(k, warmup=4, total=12) for k in range(13)]
    assert share[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert math.isclose(share[8], 0.5)
    assert math.isclose(share[6], 0.5 + 0.5 * math.cos(math.pi / 4))
    assert share[12] == 0.0


def test_without_an_end_in_sight_it_stays_and_without_warm_up_it_starts_at_once():
    assert warmup_cosine(10, warmup=4, total=math.inf) == 1.0
    assert warmup_cosine(0, warmup=0, total=100) == 1.0
    assert warmup_cosine(200, warmup=0, total=100) == 0.0


def test_the_cosine_ends_at_zero_and_climbs_back():
    shares = [cosine(done) for done in (0.0, 1 / 3, 1.0, 5 / 3, 2.0)]
    assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(shares, (1.0, 0.75, 0.0, 0.75, 1.0), strict=True))
