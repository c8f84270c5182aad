"""Log-probabilities of tokens in bounded memory, and the masks of generated text.

The logits of 8 responses of 1,024 tokens over 32,000 words are 1 GB, and a plain log-softmax holds several of their
size at once. Here they are made block by block, twice: once for the values and once more for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape

BLOCK = 2**22  # logits held at once
LOWEST = -1000.0  # nats; e to it is 0, and unlike that of -inf (a forbidden word) its product with 0 is 0
COLUMNS = 2**13  # words of a block: then it has 512 rows, enough for the products to run at full speed


def response_mask(tokens: Tensor, eos_token: int) -> Tensor:
    """[N, L] bool: tokens of a response [N, L] up to and including the first end-of-sequence token.

    Built from that token, not from padding: a tokenizer may pad with it.
    """
    ends = tokens == eos_token
    return ends.cumsum(1) - ends.long() == 0


def position_ids(attention_mask: Tensor) -> Tensor:
    """[N, L] int64: positions of left-padded rows, 0 at the first real token and at the padding before it."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def token_log_prob(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token, and the entropy of its distribution if asked for; [N, L] each, in nats.

    logits: [N, L, V] at the positions that predict `tokens` [N, L]: one before each. float32 arithmetic throughout, or
        that of logits if wider. temperature: that of sampling.
    Besides the logits and their gradient a block of them is held. Where the head is known, `head_log_prob` holds less.
    """
    _same_rows("token_log_prob", logits, tokens)
    log_prob, entropy = _OfLogits.apply(logits.flatten(0, -2), tokens.flatten(), temperature, with_entropy)
    return log_prob.view_as(tokens), entropy.view_as(tokens) if with_entropy else None


def head_log_prob(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`token_log_prob` of the logits hidden @ weight.T + bias, of which one block at a time is held.

    hidden: [N, L, H] at the positions that predict `tokens` [N, L]; weight: [V, H]; bias: [V]. Gradients reach all
    three. Products are taken in the dtype of hidden, also under autocast; sums in float32 or wider.
    """
    _same_rows("head_log_prob", hidden, tokens)
    flat = hidden.flatten(0, -2)
    log_prob, entropy = _OfHead.apply(flat, weight, bias, tokens.flatten(), temperature, with_entropy)
    return log_prob.view_as(tokens), entropy.view_as(tokens) if with_entropy else None


def _same_rows(where: str, x: Tensor, tokens: Tensor) -> None:
    if x.shape[:-1] != tokens.shape:
        same_shape(where, rows=x[..., 0], tokens=tokens)


class _Running:
    """Log-sum-exp of rows that come in blocks of columns, with the sum for the entropy, and the tokens' own logits."""

    def __init__(self, tokens: Tensor, dtype: torch.dtype):
        self.tokens = tokens
        new = torch.zeros(len(tokens), dtype=dtype, device=tokens.device)
        self.highest, self.total, self.weighted, self.own = new + torch.finfo(dtype).min, new, new.clone(), new.clone()

    def add(self, rows: slice, first: int, x: Tensor, with_entropy: bool) -> None:
        """x: scaled logits of `rows`, columns from `first` on; overwritten."""
        here, column = _columns(self.tokens[rows], first, x.shape[1])
        self.own[rows] += torch.where(here, x.gather(1, column).squeeze(1), 0.0)
        before, total = self.highest[rows], self.total[rows]
        highest = torch.maximum(before, x.amax(-1))
        drop = before - highest
        shrink = drop.exp()
        below = x.sub_(highest.unsqueeze(-1)).clamp_(min=LOWEST)
        e = below.exp()
        if with_entropy:
            # sum of e^b b with b = x - highest, so that large logits cost no digits
            self.weighted[rows] = shrink * (self.weighted[rows] + total * drop) + below.mul_(e).sum(-1)
        self.total[rows] = shrink * total + e.sum(-1)
        self.highest[rows] = highest

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and log-sum-exp of every row."""
        size = self.total.log()
        log_sum = self.highest + size
        return self.own - log_sum, size - self.weighted / self.total, log_sum


def _columns(tokens: Tensor, first: int, n: int) -> tuple[Tensor, Tensor]:
    """Which tokens lie in columns first ... first + n - 1, [P] bool, and where in there, [P, 1]."""
    column = tokens - first
    return (column >= 0) & (column < n), column.clamp(0, n - 1).unsqueeze(1)


def _slope(
    x: Tensor, rows: slice, first: int, saved: tuple[Tensor, ...], grads: tuple[Tensor, Tensor | None]
) -> Tensor:
    """The gradient of a block of scaled logits x; overwrites it."""
    tokens, log_sum, entropy = saved
    grad, grad_entropy = grads
    log_p = x.sub_(log_sum[rows].unsqueeze(1)).clamp_(min=LOWEST)
    p = log_p.exp()
    slope = p * -grad[rows].unsqueeze(1)
    if grad_entropy is not None:
        log_p.add_(entropy[rows].unsqueeze(1)).mul_(p)
        slope.addcmul_(log_p, grad_entropy[rows].unsqueeze(1), value=-1.0)
    here, column = _columns(tokens[rows], first, x.shape[1])
    return slope.scatter_add_(1, column, torch.where(here, grad[rows], 0.0).unsqueeze(1))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, max(1, size)))


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> Any:
        running = _Running(tokens, _wide(logits.dtype))
        for rows in _slices(len(tokens), max(1, BLOCK // logits.shape[1])):
            running.add(rows, 0, logits[rows].to(running.own.dtype, copy=True).div_(temperature), with_entropy)
        log_prob, entropy, log_sum = running.result()
        ctx.save_for_backward(logits, tokens, log_sum, entropy)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, *saved = ctx.saved_tensors
        slope = torch.empty_like(logits)
        own = (grads[0], grads[1] if ctx.with_entropy else None)
        for rows in _slices(len(logits), max(1, BLOCK // logits.shape[1])):
            x = logits[rows].to(saved[1].dtype, copy=True).div_(ctx.temperature)
            slope[rows] = _slope(x, rows, 0, tuple(saved), own).div_(ctx.temperature)
        return slope, None, None, None


class _OfHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> Any:
        running = _Running(tokens, _wide(hidden.dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for words in _slices(len(weight), COLUMNS):
                part, shift = weight[words].to(hidden.dtype), None if bias is None else bias[words]
                for rows in _slices(len(tokens), max(1, BLOCK // len(part))):
                    x = _logits(hidden[rows], part, shift, temperature)
                    running.add(rows, words.start, x, with_entropy)
        log_prob, entropy, log_sum = running.result()
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum, entropy)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, *saved = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        dtype = saved[1].dtype
        own = (grads[0], grads[1] if ctx.with_entropy else None)
        hidden_grad = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if of_hidden else None
        weight_grad = torch.empty_like(weight) if of_weight else None
        bias_grad = torch.empty_like(bias) if of_bias else None
        for words in _slices(len(weight), COLUMNS):
            part, shift = weight[words].to(hidden.dtype), None if bias is None else bias[words]
            total = torch.zeros(part.shape if of_weight else (0,), dtype=dtype, device=hidden.device)
            along = torch.zeros(len(part), dtype=dtype, device=hidden.device)
            for rows in _slices(len(hidden), max(1, BLOCK // len(part))):
                x = _logits(hidden[rows], part, shift, ctx.temperature)
                slope = _slope(x, rows, words.start, tuple(saved), own).div_(ctx.temperature)
                along += slope.sum(0)
                narrow = slope.to(hidden.dtype)
                if hidden_grad is not None:
                    hidden_grad[rows] += narrow @ part
                if weight_grad is not None:
                    total += narrow.T @ hidden[rows]
            if weight_grad is not None:
                weight_grad[words] = total
            if bias_grad is not None:
                bias_grad[words] = along
        return (
            hidden_grad if hidden_grad is None else hidden_grad.to(hidden.dtype),
            weight_grad,
            bias_grad,
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    x = (hidden @ weight.T).to(_wide(hidden.dtype))
    if bias is not None:
        x = x + bias
    return x if temperature == 1.0 else x.div_(temperature)
