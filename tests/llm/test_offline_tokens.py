"""Recorded responses: the file's layout, tokens and pairs, and what their losses do."""

import numpy as np
import pytest
import torch

from ctrlrl.functional.group import group_center
from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.losses import token_loss
from ctrlrl.llm.offline import direct_advantage_loss, dpo_loss, line_steps
from ctrlrl.llm.presets import preset
from ctrlrl.llm.recorded import Recorded, encode_labelled, load_labelled, pairs, text_columns
from ctrlrl.llm.tokens import token_log_prob

F64 = torch.float64
QUESTIONS = ["1+1?", "zwölf?"]
SOLUTIONS = ["2", "3", "zwölf", "", "2 of course"]
PROMPT, CORRECT = [0, 0, 1, 1, 0], [True, False, True, False, True]


def column(texts):
    parts = [t.encode() for t in texts]
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)])


def arrays():
    found = {"solution_question_index": np.array(PROMPT), "solution_is_correct": np.array(CORRECT)}
    for name, texts in (("question", QUESTIONS), ("solution", SOLUTIONS)):
        found[f"{name}_utf8"], found[f"{name}_offsets"] = column(texts)
    return found


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


def test_dpo_of_one_pair_by_its_numbers():
    log_prob = torch.tensor([[-1.0, -2.0], [-5.0, torch.nan]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-1.5, -2.5], [-4.5, torch.inf]], dtype=F64)
    mask = torch.tensor([[True, True], [True, False]])
    loss, metrics = dpo_loss(log_prob, ref, mask, (torch.tensor([0]), torch.tensor([1])), beta=0.1)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.620957, dtype=F64), rtol=0, atol=5e-7)
    torch.testing.assert_close(metrics["policy/margin"], torch.tensor(0.15, dtype=F64))
    assert metrics["policy/accuracy"] == 1.0
    (gradient,) = torch.autograd.grad(loss, log_prob)
    slope = -0.1 * torch.sigmoid(torch.tensor(-0.15, dtype=F64))
    torch.testing.assert_close(gradient, slope * torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=F64))


def test_without_pairs_there_is_no_loss_and_no_gradient():
    log_prob = torch.zeros(2, 2, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss, _ = dpo_loss(log_prob, log_prob.detach(), torch.ones(2, 2, dtype=torch.bool), (none, none), beta=0.1)
    assert loss == 0.0
    assert bool((torch.autograd.grad(loss, log_prob)[0] == 0).all())


def test_steps_are_lines():
    ids = torch.tensor([[5, 9, 6, 7, 9, 8], [9, 9, 5, 5, 5, 5]])
    assert line_steps(ids, torch.tensor([9])).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]]


def test_direct_advantage_sums_log_ratios_over_each_step():
    log_prob = torch.tensor([[0.1, 0.2, 0.3, torch.nan]], dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    step = torch.tensor([[0, 0, 1, 2]])
    advantage = torch.tensor([[1.0, -1.0, 77.0, torch.nan]], dtype=F64)
    loss, _ = direct_advantage_loss(log_prob, torch.zeros(1, 4, dtype=F64), advantage, mask, beta=2.0, step=step)
    wanted = 0.5 * ((0.3 - 0.5) ** 2 + (0.3 + 0.5) ** 2) / 2
    torch.testing.assert_close(loss.detach(), torch.tensor(wanted, dtype=F64))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, torch.tensor([[-0.1, -0.1, 0.4, 0.0]], dtype=F64))


def test_a_whole_response_may_be_one_step():
    log_prob = torch.randn(3, 4, dtype=F64)
    mask = torch.arange(4) < torch.tensor([[4], [2], [0]])
    advantage = torch.tensor([1.0, -1.0, 5.0], dtype=F64)
    loss, _ = direct_advantage_loss(log_prob, torch.zeros(3, 4, dtype=F64), advantage, mask, beta=0.5)
    total = torch.where(mask, log_prob, 0.0).sum(1)[:2]
    torch.testing.assert_close(loss, 0.5 * (total - 2 * advantage[:2]).square().mean())


def learned(method, data, steps=150):
    """Summed log-probs of all responses before and after learning a table of next tokens by previous token."""
    torch.manual_seed(0)
    table = torch.zeros(32, 32, dtype=F64, requires_grad=True)
    before = torch.cat([data.prompt_ids[:, -1:], data.ids[:, :-1]], 1)
    config = preset("topr", advantage="group_center", group_size=2)
    advantage = advantages(config, data.reward.double(), data.group, data.mask).advantage
    two = pairs(data.reward, data.group)

    def score():
        return token_log_prob(table[before], data.ids, with_entropy=False)[0]

    with torch.no_grad():
        ref = score()
    for _ in range(steps):
        if method == "topr":
            loss, _ = token_loss(config, score(), ref, advantage, data.mask)
        elif method == "dpo":
            loss, _ = dpo_loss(score(), ref, data.mask, two, beta=0.3)
        else:
            reference = group_center(data.reward.double(), data.group)  # Monte Carlo, of the reference itself
            loss, _ = direct_advantage_loss(score(), ref, reference, data.mask, beta=0.1)
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
