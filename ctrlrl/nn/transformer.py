"""Transformers over the steps of an action chunk: Diffusion Policy's decoder, and BESO's GPT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.nn.heads import Head
from ctrlrl.nn.levels import SinusoidalEmbedding, level_rows
from ctrlrl.nn.mish import Mish

START_STD = 0.02


class TransformerHead(Head):
    """Pre-norm decoder: chunk steps attend to earlier ones, to the level and to the observations up to their own time.

    The observation in force at a chunk's row t is t, the level comes before all. Source: Diffusion Policy,
    arXiv:2303.04137, and its code (TransformerForDiffusion, causal, without condition layers or embedding dropout).
    """

    causal: Tensor
    visible: Tensor

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        n_obs_steps: int,
        width: int = 256,
        n_layers: int = 8,
        n_heads: int = 4,
        dropout: float = 0.01,
        code: str = "steps",
    ):
        """condition_dim: of n_obs_steps observations, one after the other. code: as `SinusoidalEmbedding` has it."""
        super().__init__()
        self.n_obs_steps, self.n_layers = n_obs_steps, n_layers
        self.embed_level = SinusoidalEmbedding(width, code=code)
        self.embed_obs = nn.Linear(_split_evenly(condition_dim, n_obs_steps, "n_obs_steps"), width)
        self.embed_x = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(torch.empty(horizon, width))
        self.memory_positions = nn.Parameter(torch.empty(1 + n_obs_steps, width))
        self.encode = nn.Sequential(nn.Linear(width, 4 * width), Mish(), nn.Linear(4 * width, width))
        self.memory = nn.Linear(width, n_layers * 2 * width)  # keys and values of all layers
        self.blocks = nn.ModuleList(
            Block(width, n_heads, dropout, dropout, hidden_dropout=dropout, cross=True) for _ in range(n_layers)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        step, seen = torch.arange(horizon).unsqueeze(1), torch.arange(1 + n_obs_steps)
        self.register_buffer("causal", torch.ones(horizon, horizon, dtype=torch.bool).tril(), persistent=False)
        self.register_buffer("visible", seen - 1 <= step, persistent=False)
        start_small(self)

    def context(self, condition: Tensor) -> Tensor:
        """Keys and values of the observations, [B, n_obs_steps, n_layers * 2 * width]."""
        obs = self.embed_obs(condition.unflatten(1, (self.n_obs_steps, -1)))
        return self.memory(self.encode(obs + self.memory_positions[1:]))

    def at(self, x: Tensor, level: Tensor | float, context: Tensor) -> Tensor:
        token = self.embed_level(level_rows(level, x)) + self.memory_positions[0]
        of_level = self.memory(self.encode(token)).unsqueeze(1).expand(x.shape[0], -1, -1)
        memories = torch.cat((of_level, context), 1).chunk(self.n_layers, -1)
        h = self.embed_x(x) + self.positions
        for block, memory in zip(self.blocks, memories, strict=True):
            h = block(h, self.causal, memory, self.visible)
        return self.last(h)


class GPTHead(Head):
    """BESO's score network: tokens of level, goals, state 1, action 1, ..., state H, action H; each sees the earlier.

    level: the noise deviation. An action shares its state's position. Source: BESO, arXiv:2304.02532, and its code
    (DiffusionGPT), less a position that is never used.
    """

    causal: Tensor

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        n_goals: int,
        width: int = 240,
        n_layers: int = 4,
        n_heads: int = 12,
        attention_dropout: float = 0.05,
        dropout: float = 0.05,
    ):
        """condition_dim: of n_goals goal states and then `horizon` states, one after the other."""
        super().__init__()
        self.n_goals, self.n_states = n_goals, n_goals + horizon
        self.embed_level = nn.Linear(1, width)
        self.embed_state = nn.Linear(_split_evenly(condition_dim, self.n_states, "n_goals + horizon"), width)
        self.embed_x = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(torch.empty(self.n_states, width))
        self.blocks = nn.ModuleList(Block(width, n_heads, attention_dropout, dropout) for _ in range(n_layers))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        n_tokens = 1 + n_goals + 2 * horizon
        self.register_buffer("causal", torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril(), persistent=False)
        start_small(self)

    def context(self, condition: Tensor) -> Tensor:
        """The tokens of goals and states, [B, n_goals + H, width]."""
        return self.embed_state(condition.unflatten(1, (self.n_states, -1))) + self.positions

    def at(self, x: Tensor, level: Tensor | float, context: Tensor) -> Tensor:
        code = level_rows(level, x).log().unsqueeze(-1) / 4.0
        first = self.embed_level(code).unsqueeze(1).expand(x.shape[0], -1, -1)
        actions = self.embed_x(x) + self.positions[self.n_goals :]
        pairs = torch.stack((context[:, self.n_goals :], actions), 2).flatten(1, 2)
        h = torch.cat((first, context[:, : self.n_goals], pairs), 1)
        for block in self.blocks:
            h = block(h, self.causal)
        return self.last(h[:, 1 + self.n_goals :].unflatten(1, (-1, 2))[:, :, 1])


class Block(nn.Module):
    """Pre-norm self-attention, attention to a memory where `cross`, and two layers, each added to what came in."""

    def __init__(
        self,
        width: int,
        n_heads: int,
        attention_dropout: float,
        dropout: float,
        *,
        hidden_dropout: float = 0.0,
        cross: bool = False,
    ):
        super().__init__()
        if width % n_heads:
            raise ValueError(f"a transformer's width must be divisible by its heads, got {width} and {n_heads}")
        self.n_heads, self.attention_dropout = n_heads, attention_dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.qkv = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        if cross:
            self.query = nn.Linear(width, width)
            self.join_memory = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(hidden_dropout), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """x: [B, T, W]. memory: keys and values [B, S, 2 W]. Masks [T, T] and [T, S], True where one may look."""
        query, key, value = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.drop(self.join(self._attend(query, key, value, mask)))
        if memory is not None:
            key, value = memory.chunk(2, -1)
            x = x + self.drop(self.join_memory(self._attend(self.query(self.norms[1](x)), key, value, memory_mask)))
        return x + self.drop(self.mlp(self.norms[-1](x)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout).transpose(1, 2).flatten(2)


def start_small(net: nn.Module) -> None:
    """Weights and positions from N(0, 0.02^2), biases 0, LayerNorms the identity: minGPT's start."""
    for name, p in net.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=START_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


def without_decay(net: nn.Module) -> list[str]:
    """Names of the parameters that weight decay spares: biases, normalization layers, position embeddings."""
    return [name for name, p in net.named_parameters() if p.ndim < 2 or name.rpartition(".")[2].endswith("positions")]


def _split_evenly(condition_dim: int, parts: int, word: str) -> int:
    if parts < 1 or condition_dim % parts:
        raise ValueError(f"a condition of {condition_dim} numbers does not split into {word} = {parts} states")
    return condition_dim // parts
