"""What reward functions give, and what of it is refused."""

import math

import pytest
import torch

from ctrlrl.llm.rewards import Rewards, correct_characters, exact_number, matches, number_in


def given(fn, n=2, **columns):
    return Rewards(fn)(["p"] * n, ["c"] * n, columns)


def test_the_number_behind_the_mark_counts_else_the_last_one():
    assert number_in("3 apples and 4 pears #### 1,234") == 1234.0
    assert number_in("first 3, then -4.50.") == -4.5
    assert number_in("none") is None


def test_exact_number_compares_values_not_texts():
    answers = ["so 2+2=4\n#### 4", "#### 72.0", "#### 1,000"]
    assert exact_number(["it is 4.0", "#### 71", "1000"], answers) == [1.0, 0.0, 1.0]
    assert exact_number(["no idea"], ["#### 4"]) == [0.0]
    assert exact_number([[{"role": "assistant", "content": "#### 4"}]], ["4"]) == [1.0]


def test_correct_characters_is_the_share_of_right_places_of_the_longer_text():
    assert correct_characters(["abcd", "abdc", "ab", "abcde", ""], ["abcd"] * 5) == [1.0, 0.5, 0.5, 0.8, 0.0]
    assert correct_characters([""], [""]) == [0.0]


def test_a_regular_expression_rewards_where_it_is_found():
    assert matches(r"^<think>.*</think>", 0.5)(completions=["<think>x</think>1", "1"]) == [0.5, 0.0]


def test_columns_reach_the_functions_that_name_them_or_take_all():
    seen = {}

    def named(prompts, completions, answer):
        return [float(a) for a in answer]

    def greedy(**everything):
        seen.update(everything)
        return [1.0, 2.0]

    found = given([named, greedy], answer=["3", "4"], other=[0, 0])
    assert found.tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert seen.keys() == {"prompts", "completions", "answer", "other", "completion_ids"}


def test_none_does_not_apply_and_a_row_without_any_reward_is_refused():
    def first(completions, **_):
        return [1.0, None]

    def second(completions, **_):
        return [None, None]

    found = given([first, lambda completions, **_: [2.0, 3.0]])
    assert found[0].tolist() == [1.0, 2.0]
    assert math.isnan(found[1, 0])
    with pytest.raises(ValueError, match="no reward function applies to completion 1: first, second gave None"):
        given([first, second])


def test_a_promise_is_waited_for_and_a_tensor_read():
    async def later(completions, **_):
        return [1.0, 0.0]

    assert given(later).tolist() == [[1.0], [0.0]]
    assert given(lambda completions, **_: torch.tensor([1.0, 0.0])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0], "gave 1 rewards for 2 completions"),
        (1.0, "gave float for 2 completions"),
        ([1.0, math.nan], "gave nan for completion 1"),
        ([math.inf, 1.0], "gave inf for completion 0"),
        (["good", 1.0], "gave something else than numbers, 'good' first"),
    ],
)
def test_rewards_of_the_wrong_length_or_not_finite_are_refused_by_name(answer, said):
    def careless(completions, **_):
        return answer

    with pytest.raises(ValueError, match=f"reward function careless: {said}"):
        given(careless)


def test_no_function_at_all_is_refused():
    with pytest.raises(ValueError, match="reward_fns"):
        Rewards([])
