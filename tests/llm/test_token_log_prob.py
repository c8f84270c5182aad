"""Blockwise log-probabilities against the plain way, with gradients; masks and positions."""

import pytest
import torch

from ctrlrl.llm import tokens as module
from ctrlrl.llm.tokens import head_log_prob, position_ids, response_mask, token_log_prob


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 12)  # 3 rows of 4 columns: several blocks both ways, the last ones short
    monkeypatch.setattr(module, "COLUMNS", 4)


def problem(dtype=torch.float64, words=11):
    torch.manual_seed(0)
    hidden = torch.randn(2, 4, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, 5, dtype=dtype, requires_grad=True)
    bias = torch.randn(words, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(words, (2, 4))


def plain(logits, tokens, temperature):
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("way", ["head", "logits"])
def test_values_and_gradients_are_those_of_a_full_log_softmax(way, temperature):
    hidden, weight, bias, tokens = problem()
    torch.manual_seed(1)
    a, b = torch.randn(2, 2, 4, dtype=torch.float64)

    def grads(log_prob, entropy):
        return torch.autograd.grad((a * log_prob + b * entropy).sum(), (hidden, weight, bias))

    wanted = plain(hidden @ weight.T + bias, tokens, temperature)
    if way == "head":
        got = head_log_prob(hidden, weight, tokens, bias=bias, temperature=temperature)
    else:
        got = token_log_prob(hidden @ weight.T + bias, tokens, temperature=temperature)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads(*got), grads(*wanted), rtol=0, atol=1e-12)


def test_without_entropy_the_gradient_is_that_of_the_log_probability():
    hidden, weight, _, tokens = problem()
    log_prob, entropy = head_log_prob(hidden, weight, tokens, with_entropy=False)
    assert entropy is None
    got = torch.autograd.grad(log_prob.square().sum(), (hidden, weight))
    wanted = torch.autograd.grad(plain(hidden @ weight.T, tokens, 1.0)[0].square().sum(), (hidden, weight))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_state_the_same():
    hidden, weight, bias, tokens = problem()
    log_prob, _ = head_log_prob(hidden, weight.detach(), tokens, bias=bias.detach())
    (got,) = torch.autograd.grad(log_prob.sum(), (hidden,))
    (wanted,) = torch.autograd.grad(plain(hidden @ weight.T + bias, tokens, 1.0)[0].sum(), (hidden,))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_large_logits_neither_overflow_nor_lose_the_small_ones():
    logits = torch.tensor([[[1000.0, 999.0, -1000.0, 0.0, 1000.0]]])
    log_prob, entropy = token_log_prob(logits, torch.tensor([[1]]))
    torch.testing.assert_close((log_prob, entropy), plain(logits, torch.tensor([[1]]), 1.0))


def test_forbidden_words_count_nothing_also_where_they_fill_a_block():
    bias = torch.zeros(9, dtype=torch.float64)
    bias[2:] = -torch.inf
    bias.requires_grad_()
    hidden, weight = torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(9, 3, dtype=torch.float64)
    log_prob, entropy = head_log_prob(hidden, weight, torch.tensor([[0, 0]]), bias=bias)
    torch.testing.assert_close(log_prob, torch.full((1, 2), 0.5, dtype=torch.float64).log())
    torch.testing.assert_close(entropy, -log_prob)
    (log_prob.sum() + entropy.sum()).backward()
    wanted = torch.zeros(9, dtype=torch.float64)
    wanted[:2] = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(bias.grad, wanted)


def test_bfloat16_hidden_states_are_summed_in_float32():
    hidden, weight, _, tokens = problem(torch.bfloat16)
    got, _ = head_log_prob(hidden, weight, tokens)
    wanted, _ = plain((hidden @ weight.T).float(), tokens, 1.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    got.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_tokens_of_another_shape_are_refused():
    hidden, weight, _, tokens = problem()
    with pytest.raises(ValueError, match=r"head_log_prob: shapes must match"):
        head_log_prob(hidden, weight, tokens[:, 1:])


def test_the_mask_ends_with_the_first_end_of_sequence_token_also_where_padding_is_the_same_token():
    tokens = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 2, 6]])
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert torch.equal(response_mask(tokens, 2), wanted)


def test_positions_of_left_padded_rows_start_at_their_first_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
