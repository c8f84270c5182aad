"""Log-probabilities of a real causal model of transformers, against its own loss and under left padding."""

import pytest
import torch

from ctrlrl.llm.tokens import head_log_prob, position_ids, token_log_prob

pytest.importorskip("transformers")
from tiny_llama import model as tiny


def of_response(model, ids, attention, length):
    """Log-probs [N, L] of the last `length` tokens of ids."""
    kept = attention[:, :-1]
    hidden = model.model(ids[:, :-1], attention_mask=kept, position_ids=position_ids(kept)).last_hidden_state
    return head_log_prob(hidden[:, -length:], model.lm_head.weight, ids[:, -length:], with_entropy=False)[0]


def test_summed_log_probs_are_the_loss_of_the_model_itself_times_the_length():
    model = tiny().eval()
    ids = torch.randint(3, 22, (1, 9))
    labels = ids.clone()
    labels[:, :4] = -100
    own = model(ids, labels=labels).loss
    got = of_response(model, ids, torch.ones_like(ids), 5)
    torch.testing.assert_close(got.sum(), -5 * own, rtol=0, atol=1e-5)
    logits = model(ids).logits[:, 3:-1]
    torch.testing.assert_close(token_log_prob(logits, ids[:, 4:])[0], got, rtol=0, atol=1e-5)


def test_left_padding_changes_no_log_prob():
    model = tiny().eval()
    ids = torch.randint(3, 22, (2, 9))
    plain = of_response(model, ids, torch.ones_like(ids), 5)
    padded = torch.cat([torch.zeros(2, 6, dtype=torch.int64), ids], 1)
    attention = torch.cat([torch.zeros(2, 6, dtype=torch.int64), torch.ones_like(ids)], 1)
    torch.testing.assert_close(of_response(model, padded, attention, 5), plain, rtol=0, atol=1e-5)
