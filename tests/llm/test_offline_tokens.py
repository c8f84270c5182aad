"""Recorded responses: the file's layout, tokens and pairs, and what their losses do."""

import json

import numpy as np
import pytest
import torch

from ctrlrl.functional.preference import direct_advantage
from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.losses import token_loss
from ctrlrl.llm.presets import preset
from ctrlrl.llm.recorded import Recorded, encode_labelled, is_recorded, labelled, pairs
from ctrlrl.llm.text_files import load_labelled, text_columns
from ctrlrl.llm.tokens import token_log_prob
from tests.llm.recorded_texts import PROMPT, QUESTIONS, SOLUTIONS, arrays

F64 = torch.float64
ROWS = {"prompt": ["a", "b", "a"], "response": ["x", "y", "z"], "reward": [1, 0.5, 0]}
AS_DICTS = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "labelled.npz", **arrays())
    return tmp_path / "labelled.npz"


def letters(text):
    return [3 + b % 29 for b in text.encode()]


def test_texts_and_labels_come_back_as_they_were_written(path):
    data = load_labelled(path)
    assert data.prompts == QUESTIONS
    assert data.responses == SOLUTIONS
    assert data.prompt.tolist() == PROMPT
    assert data.reward.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


def without(key):
    return {k: v for k, v in arrays().items() if k != key}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (without("solution_utf8"), r"no solution_utf8; the file holds"),
        (without("solution_is_correct"), r"wanted solution_is_correct with one entry for each of the 5 solutions"),
        ({**arrays(), "solution_question_index": np.array([0, 0, 1, 2, 0])}, r"must name one of the 2 questions"),
        ({**arrays(), "question_offsets": np.array([0, 4, 3])}, r"question_offsets must rise from 0 to the 11 bytes"),
    ],
)
def test_another_layout_is_refused_by_name(tmp_path, found, message):
    np.savez(tmp_path / "x.npz", **found)
    with pytest.raises(ValueError, match=message):
        load_labelled(tmp_path / "x.npz")


def test_json_lines_are_read_alike(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in AS_DICTS), encoding="utf-8")
    assert load_labelled(file).responses == ROWS["response"]
    assert text_columns(file, "prompt", "response") == [ROWS["prompt"], ROWS["response"]]
    for text, said in (
        ("{", "line 1 is no JSON"),
        ("", "the file is empty"),
        ('{"a": 1}\n{"b": 1}', "line 2 has other keys than the first one, a"),
        ('{"prompt": 1}', "some line has no text prompt"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            text_columns(file, "prompt")
    (tmp_path / "x.npz").write_text("question,answer")
    with pytest.raises(ValueError, match="not an NPZ file; JSON lines end in"):
        load_labelled(tmp_path / "x.npz")


def test_other_columns_of_text_are_read_alike(path):
    assert text_columns(path, "question") == [QUESTIONS]


def test_tokens_are_padded_on_the_outside_and_end_with_the_end_token(path):
    found, left_out = encode_labelled(load_labelled(path), letters, eos=2, pad=2, longest=40)
    assert left_out == 0
    assert found.prompt_ids.shape == (5, 7)
    for i in range(5):
        assert found.prompt_ids[i][found.prompt_mask[i]].tolist() == letters(QUESTIONS[PROMPT[i]])
        assert found.ids[i][found.mask[i]].tolist() == [*letters(SOLUTIONS[i]), 2]
    assert not found.prompt_mask[0, :3].any()
    assert found.group.tolist() == PROMPT


def test_responses_that_are_too_long_are_left_out_and_counted(path):
    found, left_out = encode_labelled(load_labelled(path), letters, eos=2, pad=0, longest=13)
    assert left_out == 2  # "zwölf" after "zwölf?", and "2 of course"
    assert found.reward.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="fits in 2 tokens"):
        encode_labelled(load_labelled(path), letters, eos=2, pad=0, longest=2)


def test_pairs_are_all_of_one_prompt_with_different_rewards():
    reward, group = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]), torch.tensor(PROMPT)
    got = set(zip(*(x.tolist() for x in pairs(reward, group)), strict=True))
    assert got == {(0, 1), (4, 1), (2, 3)}


# losses


def loss_of(method, log_prob, ref, advantage, mask, **changes):
    return token_loss(preset(method, **changes), log_prob, ref, advantage, mask)[0]


def test_dpo_of_one_pair_by_its_numbers():
    log_prob = torch.tensor([[-1.0, -2.0], [-5.0, torch.nan]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-1.5, -2.5], [-4.5, torch.inf]], dtype=F64)
    mask = torch.tensor([[True, True], [True, False]])
    loss = loss_of("dpo", log_prob, ref, torch.tensor([0.5, -0.5], dtype=F64), mask)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.620957, dtype=F64), rtol=0, atol=5e-7)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    slope = -0.1 * torch.sigmoid(torch.tensor(-0.15, dtype=F64))
    torch.testing.assert_close(gradient, slope * torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=F64))


def test_the_better_one_of_a_pair_may_come_second_and_a_tie_teaches_nothing():
    log_prob = torch.randn(4, 3, dtype=F64, requires_grad=True)
    ref, mask = torch.randn(4, 3, dtype=F64), torch.ones(4, 3, dtype=torch.bool)
    advantage = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=F64)
    (gradient,) = torch.autograd.grad(loss_of("dpo", log_prob, ref, advantage, mask), log_prob)
    assert not gradient[2:].any()
    swapped = [1, 0, 2, 3]
    again = torch.autograd.grad(loss_of("dpo", log_prob[swapped], ref[swapped], advantage[swapped], mask), log_prob)[0]
    torch.testing.assert_close(again, gradient)


def test_long_responses_are_not_clamped():
    """The log-ratio of a response may be far beyond what an exponential takes."""
    log_prob = torch.full((2, 100), -1.0, dtype=F64, requires_grad=True)
    mask, advantage = torch.ones(2, 100, dtype=torch.bool), torch.tensor([1.0, -1.0], dtype=F64)
    loss = loss_of("direct_advantage", log_prob, torch.zeros(2, 100, dtype=F64), advantage, mask, beta=0.01)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.25 * (200.0**2 + 0.0), dtype=F64))
    assert torch.autograd.grad(loss, log_prob)[0][0].all()


def test_direct_advantage_is_the_mean_over_responses_of_their_squared_errors():
    log_prob, mask = torch.randn(3, 4, dtype=F64), torch.arange(4) < torch.tensor([[4], [2], [0]])
    advantage = torch.tensor([1.0, -1.0, 5.0], dtype=F64)
    loss = loss_of("direct_advantage", log_prob, torch.zeros(3, 4, dtype=F64), advantage, mask, beta=0.5)
    total = torch.where(mask, log_prob, 0.0).sum(1)[:2]
    torch.testing.assert_close(loss, direct_advantage(total, advantage[:2], beta=0.5).mean())


def learned(method, data, steps=150):
    """Summed log-probs of all responses before and after learning a table of next tokens by previous token."""
    torch.manual_seed(0)
    table = torch.zeros(32, 32, dtype=F64, requires_grad=True)
    before = torch.cat([data.prompt_ids[:, -1:], data.ids[:, :-1]], 1)
    changes = {"dpo": {"beta": 0.3}, "direct_advantage": {"beta": 0.1}}.get(method, {"group_size": 2})
    config = preset(method, **changes)
    advantage = advantages(config, data.reward.double(), data.group, data.mask).advantage
    # neighbours are the pairs that DPO compares
    rows = torch.stack(pairs(data.reward, data.group), 1).flatten() if method == "dpo" else torch.arange(len(data.ids))

    def score():
        return token_log_prob(table[before], data.ids, with_entropy=False)[0]

    with torch.no_grad():
        ref = score()
    for _ in range(steps):
        loss, _ = token_loss(config, score()[rows], ref[rows], advantage[rows], data.mask[rows])
        (gradient,) = torch.autograd.grad(loss, table)
        table = (table - 0.3 * gradient).detach().requires_grad_()
    return [torch.where(data.mask, x, 0.0).sum(1).detach() for x in (ref, score())]


@pytest.mark.parametrize("method", ["topr", "dpo", "direct_advantage"])
def test_right_recorded_answers_become_likelier_than_wrong_ones(method, path):
    data, _ = encode_labelled(load_labelled(path), letters, eos=2, pad=0, longest=40)
    assert isinstance(data, Recorded)
    before, after = learned(method, data)
    change = after - before
    chosen, rejected = pairs(data.reward, data.group)
    assert bool((change[chosen] > change[rejected] + 1.0).all())


def test_topr_lifts_what_is_right_and_stops_pushing_what_is_gone(path):
    data, _ = encode_labelled(load_labelled(path), letters, eos=2, pad=0, longest=40)
    before, after = learned("topr", data, steps=200)
    right = data.reward > 0
    assert bool((after[right] > before[right]).all())
    assert bool((after[~right] > before[~right] - 10.0).all())


def test_rows_of_a_recording_are_numbered_anew(path):
    data, _ = encode_labelled(load_labelled(path), letters, eos=2, pad=0, longest=40)
    part = data.rows(torch.tensor([3, 2]))
    assert part.group.tolist() == [0, 0]
    assert part.reward.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rows", [ROWS, AS_DICTS])
def test_rows_with_responses_are_a_recording(rows):
    assert is_recorded(rows)
    data = labelled(rows)
    assert data.prompts == ["a", "b"]
    assert data.responses == ["x", "y", "z"]
    assert data.prompt.tolist() == [0, 1, 0]
    assert data.reward.tolist() == [1.0, 0.5, 0.0]


def test_rows_with_a_chosen_and_a_rejected_response_are_a_recording_too():
    chat = [{"role": "user", "content": "hi"}]
    data = labelled([{"prompt": chat, "chosen": "x", "rejected": "y"}, {"prompt": "b", "chosen": "u", "rejected": "v"}])
    assert data.prompts == [chat, "b"]
    assert data.responses == ["x", "u", "y", "v"]
    assert data.prompt.tolist() == [0, 1, 0, 1]
    assert data.reward.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_prompts_alone_are_no_recording():
    assert not is_recorded(["a", "b"])
    assert not is_recorded([{"prompt": "a", "answer": "b"}])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"prompt": ["a"], "response": ["x"]}, "no column reward; .* Here are prompt, response"),
        ({**ROWS, "reward": [1, float("nan"), 0]}, "the reward of row 1 is not finite"),
        ({**ROWS, "reward": [1, 0]}, "column reward has 2 values for 3 prompts"),
    ],
)
def test_rows_that_are_no_recording_are_refused_by_name(rows, said):
    with pytest.raises(ValueError, match=said):
        labelled(rows)
