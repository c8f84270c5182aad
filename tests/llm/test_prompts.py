"""Prompts become left-padded tokens; what cannot be asked is refused by name."""

import pytest
import torch

from ctrlrl.llm.environment import context_of, longest_prompt, special_tokens
from ctrlrl.llm.prompts import Prompts, decode
from tests.llm.small_models import EOS, PAD, TOKENIZER, WORDS, env, llama


def made(prompts, columns=None, **options):
    return Prompts(prompts, columns or {}, TOKENIZER, pad=PAD, **options)


class Plain:
    """The least a tokenizer has."""

    eos_token_id = None
    pad_token_id = None

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Chat(Plain):
    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert tokenize
        return self.encode("".join(m["content"] for m in messages) + ":")


def test_rows_are_cut_to_the_longest_of_them_and_padded_on_the_left():
    prompts = made(["^a>", "^abc>", "^b>"])
    ids, mask = prompts.tokens(torch.tensor([0, 2]))
    assert mask is None
    assert ids.tolist() == TOKENIZER(["^a>", "^b>"])["input_ids"]
    ids, mask = prompts.tokens(torch.tensor([1, 0]))
    assert ids[1].tolist() == [PAD, PAD, *TOKENIZER("^a>")["input_ids"]]
    assert mask.tolist() == [[True] * 5, [False] * 2 + [True] * 3]


def test_chats_go_through_the_template_and_completions_mirror_them():
    prompts = Prompts([[{"role": "user", "content": "hi"}]], {}, Chat(), pad=0)
    assert prompts.ids.tolist() == [[ord(c) for c in "hi:"]]
    ids = torch.tensor([[ord("y"), ord("o"), 0]])
    told, rows = decode(Chat(), ids, torch.tensor([2]), prompts.prompts)
    assert told == [[{"role": "assistant", "content": "yo"}]]
    assert rows == [[ord("y"), ord("o")]]


def test_special_tokens_are_left_out_of_completions_and_an_empty_one_is_an_empty_text():
    ids = torch.tensor([[*TOKENIZER("ab")["input_ids"], EOS], [EOS, PAD, PAD]])
    assert decode(TOKENIZER, ids, torch.tensor([3, 1]), ["p", "p"])[0] == ["ab", ""]


@pytest.mark.parametrize(
    "dataset",
    [
        {"prompt": ["^a>", "^b>"], "answer": ["a", "b"]},
        [{"prompt": "^a>", "answer": "a"}, {"prompt": "^b>", "answer": "b"}],
    ],
)
def test_columns_and_rows_of_dicts_are_the_same_data_set(dataset):
    found = Prompts.of(dataset, TOKENIZER, pad=PAD)
    assert found.rows([1, 0]) == (["^b>", "^a>"], {"answer": ["b", "a"]})


def test_a_list_of_texts_has_no_columns():
    assert Prompts.of(["^a>"], TOKENIZER, pad=PAD).columns == {}


def test_what_cannot_be_asked_is_refused_by_name():
    with pytest.raises(ValueError, match=r"dataset: prompt 1 has 5 tokens, .* room for 4"):
        made(["^a>", "^abc>"], longest=4)
    with pytest.raises(ValueError, match="dataset: prompt 1 is empty"):
        made(["^a>", ""])
    with pytest.raises(ValueError, match="there is no prompt"):
        made([])
    with pytest.raises(ValueError, match="column answer has 1 values for 2 prompts"):
        made(["^a>", "^b>"], {"answer": ["a"]})
    with pytest.raises(ValueError, match="wanted a column `prompt`, got question"):
        Prompts.of({"question": ["x"]}, TOKENIZER, pad=PAD)


def test_the_context_leaves_room_for_prompt_and_response():
    assert longest_prompt(context_of(llama(context=32)), 4) == 28
    assert longest_prompt(context_of(torch.nn.Linear(1, 1)), 4) is None
    with pytest.raises(ValueError, match="max_tokens=32 leaves no room in the model's context of 32 tokens"):
        longest_prompt(32, 32)


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence():
    class Words(Plain):
        eos_token_id = 7

    assert special_tokens(Words()) == (7, 7)
    assert special_tokens(Plain()) == (None, 0)
    assert special_tokens(TOKENIZER) == (EOS, PAD)


def test_every_prompt_is_asked_once_before_one_is_asked_again():
    task = env()
    rows = torch.cat([task.ask(3).rows for _ in range(8)]).tolist()
    for begin in range(0, 24, len(WORDS)):
        assert sorted(rows[begin : begin + len(WORDS)]) == list(range(len(WORDS)))


def test_prompts_of_weight_0_are_never_asked():
    weight = torch.zeros(len(WORDS))
    weight[3] = 0.1
    assert env().ask(5, weight).rows.tolist() == [3] * 5
