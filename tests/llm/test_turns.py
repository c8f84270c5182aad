"""Several turns: what comes from outside is read by the model and does not count."""

import torch

from ctrlrl.llm.generate import sampled_elsewhere
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.llm.prompts import Prompts
from ctrlrl.llm.turns import several_turns
from tests.llm.small_models import EOS, PAD, TOKENIZER, llama


def ending(seed=0):
    """A model that likes to end."""
    model = llama(seed)
    model.lm_head.weight.data[EOS] += 0.5 * model.lm_head.weight.data.std()
    return model


def talked(reply, *, max_turns=2, texts=("^a>", "^fed>"), n=8, max_new_tokens=12):
    torch.manual_seed(0)
    module = ending()
    prompts = Prompts(list(texts), {}, TOKENIZER, pad=PAD)
    ids, mask = prompts.tokens(torch.arange(len(texts)))
    engine = several_turns(LanguageModel(module), TOKENIZER, reply, max_turns=max_turns, eos=EOS, pad=PAD)
    given = {"n": n, "max_new_tokens": max_new_tokens, "eos": EOS, "pad": PAD}
    return module, sampled_elsewhere(engine, ids, mask, **given)


def test_answers_follow_the_first_end_of_sequence_and_do_not_count():
    _, found = talked(lambda texts: ["=99"] * len(texts))
    answer = TOKENIZER("=99")["input_ids"]
    turned = 0
    for ids, mask in zip(found.ids.tolist(), found.mask.tolist(), strict=True):
        if EOS in ids and ids.index(EOS) + 4 < 12:
            at = ids.index(EOS) + 1
            assert ids[at : at + 3] == answer
            assert mask[: at + 4] == [True] * at + [False] * 3 + [True]
            turned += 1
    assert turned > 1


def test_log_probs_are_those_of_reading_the_whole_conversation():
    module, found = talked(lambda texts: ["=99"] * len(texts))
    for i, (ids, mask) in enumerate(zip(found.ids, found.mask, strict=True)):
        prompt = TOKENIZER("^a>" if i < 8 else "^fed>")["input_ids"]
        logits = module(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        torch.testing.assert_close(found.log_prob[i], wanted.where(mask, 0.0), rtol=1e-4, atol=1e-4)


def test_no_answer_ends_a_conversation_and_a_cut_one_has_not_ended():
    seen = []

    def silent(texts):
        seen.extend(texts)
        return [None] * len(texts)

    _, found = talked(silent, max_turns=5)
    assert found.ended.tolist() == [EOS in ids for ids in found.ids.tolist()]
    assert len(seen) == sum(EOS in ids[:-1] for ids in found.ids.tolist()) > 1
    _, cut = talked(lambda texts: ["="] * len(texts), max_turns=9)
    for ids, mask, ended in zip(cut.ids.tolist(), cut.mask.tolist(), cut.ended.tolist(), strict=True):
        last = max(t for t in range(len(mask)) if mask[t])
        assert ended == (ids[last] == EOS)
