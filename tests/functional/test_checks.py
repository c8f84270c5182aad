import pytest
import torch

from ctrlrl.functional.checks import in_range, same_shape
from ctrlrl.functional.surrogate import ppo_clip


def test_a_forgotten_value_axis_is_named_and_mended_in_the_message():
    with pytest.raises(ValueError, match="shapes must match") as error:
        ppo_clip(torch.zeros(4), torch.zeros(4, 1), clip_range=0.2)
    assert str(error.value) == (
        "ppo_clip: shapes must match, got log_ratio (4,), advantage (4, 1). "
        "A value head returns [..., 1]; use .squeeze(-1)."
    )


def test_the_squeeze_hint_is_given_only_where_it_helps():
    with pytest.raises(ValueError, match="shapes must match") as error:
        same_shape("f", a=torch.zeros(4), b=torch.zeros(5))
    assert str(error.value) == "f: shapes must match, got a (4,), b (5,)."


def test_equal_shapes_pass():
    same_shape("f", a=torch.zeros(2, 1), b=torch.ones(2, 1))


def test_closed_ends_belong_to_the_range_and_open_ends_do_not():
    in_range("f", low=0.0, high=1.0, a=0.0, b=1.0)
    in_range("f", low=0.0, high=1.0, open_ends=True, a=0.5)
    with pytest.raises(ValueError, match=r"^f\.b must lie in \[0, 1\], got 1\.5$"):
        in_range("f", low=0.0, high=1.0, a=0.5, b=1.5)
    for end in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^f\.a must lie in \(0, 1\), got "):
            in_range("f", low=0.0, high=1.0, open_ends=True, a=end)


def test_nan_lies_in_no_range():
    with pytest.raises(ValueError, match="got nan"):
        in_range("f", low=0.0, high=1.0, a=float("nan"))
