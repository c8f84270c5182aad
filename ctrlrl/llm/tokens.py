"""Log-probabilities of tokens in bounded memory, and the masks of generated text."""

from __future__ import annotations

from torch import Tensor


def response_mask(tokens: Tensor, eos_token: int) -> Tensor:
    """[N, L] bool: tokens of a response [N, L] up to and including the first end-of-sequence token.

    Built from that token, not from padding: a tokenizer may pad with it.
    """
    ended = (tokens == eos_token).cumsum(1)
    return (ended == 0) | ((ended == 1) & (tokens == eos_token))


def position_ids(attention_mask: Tensor) -> Tensor:
    """[N, L] int64: positions of left-padded rows, 0 at the first real token (and at the padding before it)."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def token_log_prob(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and the entropy of its distribution, float32 [N, L] each, in nats.

    logits: [N, L, V] at the positions that predict `tokens` [N, L]: one before each. temperature: that of sampling.
    """
    log_p = (logits.float() / temperature).log_softmax(-1)
    return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def head_log_prob(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, bias: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`token_log_prob` of the logits hidden @ weight.T + bias, which are never held whole.

    hidden: [N, L, H]; weight: [V, H]; bias: [V].
    """
    logits = hidden @ weight.T
    return token_log_prob(logits if bias is None else logits + bias, tokens, temperature=temperature)
