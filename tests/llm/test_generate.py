"""Sampling with a cache says what the model says without one, and masks end at the first end of sequence."""

import math

import pytest
import torch

from ctrlrl.llm.generate import sample, sampled_elsewhere
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.llm.prompts import Prompts
from tests.llm.small_models import EOS, PAD, TOKENIZER, Bigram, gpt2, llama


def asked(*texts):
    made = Prompts(list(texts), {}, TOKENIZER, pad=PAD)
    return made.tokens(torch.arange(len(made)))


def said(model, *texts, **options):
    ids, mask = asked(*texts)
    given = {"n": 1, "max_new_tokens": 6, "eos": EOS, "pad": PAD, "temperature": 0.0, **options}
    return sample(LanguageModel(model), ids, mask, **given)


def by_hand(model, text, n):
    """The likeliest continuation, token by token and without a cache."""
    ids = TOKENIZER(text)["input_ids"]
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return torch.tensor(ids[-n:])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_greedy_decoding_with_a_cache_is_the_argmax_without_one_also_behind_padding(make):
    model = make().eval()
    found = said(model, "^a>", "^abcdef>", "^fed>", eos=None)
    for row, text in zip(found.ids, ("^a>", "^abcdef>", "^fed>"), strict=True):
        assert torch.equal(row, by_hand(model, text, 6))


def test_a_module_of_tokens_to_logits_generates_without_a_cache():
    torch.manual_seed(1)
    model = Bigram()
    found = said(model, "^a>", "^b>", eos=None)
    token = TOKENIZER(">")["input_ids"][0]
    for t in range(6):
        token = int(model.table.weight[token].argmax())
        assert found.ids[:, t].tolist() == [token, token]


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_what_counts_ends_with_the_first_end_of_sequence_even_where_it_pads(pad):
    torch.manual_seed(0)
    model = Bigram()
    with torch.no_grad():
        model.table.weight[:, EOS] += 2.0
    found = said(model, *["^a>"] * 40, temperature=1.0, pad=pad)
    for ids, mask, ended in zip(found.ids.tolist(), found.mask.tolist(), found.ended.tolist(), strict=True):
        length = ids.index(EOS) + 1 if EOS in ids else 6
        assert mask == [t < length for t in range(6)]
        assert ended == (EOS in ids)
        assert all(token == pad for token in ids[length:])
    assert 0 < found.ended.sum() < 40 or found.ended.all()
    assert torch.equal(found.lengths, found.mask.sum(1))


def test_log_probs_of_a_sample_are_those_of_reading_it():
    model, temperature = llama(), 0.7
    found = said(model, "^a>", "^abcdef>", n=8, temperature=temperature)
    for i, text in enumerate(["^a>"] * 8 + ["^abcdef>"] * 8):
        ids = TOKENIZER(text)["input_ids"] + found.ids[i].tolist()
        logits = model(torch.tensor([ids])).logits[0, -7:-1] / temperature
        wanted = logits.log_softmax(-1)[torch.arange(6), found.ids[i]]
        torch.testing.assert_close(found.log_prob[i], wanted.where(found.mask[i], 0.0), rtol=1e-4, atol=1e-5)


def test_first_tokens_are_drawn_from_the_models_distribution():
    torch.manual_seed(0)
    model, n = Bigram(), 20_000
    found = said(model, "^a>", n=n, max_new_tokens=1, temperature=1.0, eos=None)
    p = model.table.weight[TOKENIZER(">")["input_ids"][0]].softmax(-1).detach()
    share = found.ids[:, 0].bincount(minlength=len(p)) / n
    assert (share - p).abs().max() < 4.0 * math.sqrt(0.25 / n)


def test_responses_to_one_prompt_are_neighbours():
    model = llama()
    greedy = said(model, "^a>", "^fed>", n=3)
    assert torch.equal(greedy.ids[0], greedy.ids[2])
    assert torch.equal(greedy.ids[3], by_hand_or_ended(model, "^fed>", 6))


def by_hand_or_ended(model, text, n):
    ids = by_hand(model, text, n)
    ends = (ids == EOS).nonzero()
    if len(ends):
        ids[int(ends[0]) + 1 :] = PAD
    return ids


def elsewhere(answer, **options):
    ids, mask = asked("^a>", "^b>")
    given = {"n": 2, "max_new_tokens": 3, "eos": EOS, "pad": PAD, **options}
    return sampled_elsewhere(lambda **asked: answer, ids, mask, **given)


def test_an_engines_ids_count_to_the_first_end_of_sequence():
    ids = torch.tensor([[5, EOS, EOS], [5, 6, 7], [EOS, 0, 0], [5, 6, EOS]])
    found = elsewhere(ids)
    assert found.mask.sum(1).tolist() == [2, 3, 1, 3]
    assert found.ended.tolist() == [True, False, True, True]
    assert found.log_prob is None


def test_an_engine_may_say_which_tokens_its_model_wrote():
    ids, own = torch.full((4, 3), 5), torch.tensor([[1, 0, 1]] * 4)
    found = elsewhere((ids, torch.full((4, 3), -1.0), own))
    assert torch.equal(found.mask, own.bool())
    assert found.log_prob.tolist() == [[-1.0, 0.0, -1.0]] * 4


def test_an_engines_wrong_answers_are_refused_by_name():
    with pytest.raises(ValueError, match=r"engine: wanted ids of shape \(4, at most 3\), got \(3, 3\)"):
        elsewhere(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"engine: log_prob has shape \(4, 2\)"):
        elsewhere((torch.full((4, 3), 5), torch.zeros(4, 2)))
    with pytest.raises(ValueError, match="not finite"):
        elsewhere((torch.full((4, 3), 5), torch.full((4, 3), math.nan)))
