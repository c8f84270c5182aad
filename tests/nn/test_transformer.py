"""Who sees whom in the transformer heads, how they start, and torch's own layer as an oracle."""

import math

import pytest
import torch

from ctrlrl.nn.transformer import Block, GPTHead, TransformerHead, without_decay


def test_a_decoder_block_is_torchs_pre_norm_decoder_layer():
    torchs = torch.nn.TransformerDecoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    block = Block(16, 4, 0.0, 0.0, cross=True)
    to_memory = torch.nn.Linear(16, 32)
    pairs = {
        block.qkv: (torchs.self_attn.in_proj_weight, torchs.self_attn.in_proj_bias),
        block.join: (torchs.self_attn.out_proj.weight, torchs.self_attn.out_proj.bias),
        block.query: (torchs.multihead_attn.in_proj_weight[:16], torchs.multihead_attn.in_proj_bias[:16]),
        to_memory: (torchs.multihead_attn.in_proj_weight[16:], torchs.multihead_attn.in_proj_bias[16:]),
        block.join_memory: (torchs.multihead_attn.out_proj.weight, torchs.multihead_attn.out_proj.bias),
        block.mlp[0]: (torchs.linear1.weight, torchs.linear1.bias),
        block.mlp[3]: (torchs.linear2.weight, torchs.linear2.bias),
    }
    with torch.no_grad():
        for p in torchs.parameters():
            p.copy_(torch.randn_like(p) / 3)
        for layer, (weight, bias) in pairs.items():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        for ours, theirs in zip(block.norms, (torchs.norm1, torchs.norm2, torchs.norm3), strict=True):
            ours.load_state_dict(theirs.state_dict())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    causal, visible = torch.ones(5, 5).tril().bool(), torch.ones(5, 3).tril(1).bool()
    expected = torchs(x, memory, tgt_mask=~causal, memory_mask=~visible)
    torch.testing.assert_close(block(x, causal, to_memory(memory), visible), expected, rtol=0, atol=1e-5)


def test_the_transformers_steps_see_earlier_steps_the_level_and_the_observations_up_to_their_own():
    """2.3: query t sees memory j iff t >= j - 1; memory 0 is the level."""
    head = TransformerHead(5, 3, 6, n_obs_steps=3, width=16, n_layers=1, n_heads=2).eval()
    assert head.visible.tolist() == [[j <= t + 1 for j in range(4)] for t in range(5)]
    x, condition = torch.randn(1, 5, 3), torch.randn(1, 6)
    here = head(x, 3, condition)
    later = x.clone()
    later[:, 3] += 1.0
    changed = (head(later, 3, condition) != here).any(-1)[0]
    assert changed.tolist() == [False, False, False, True, True]
    newest = condition.clone()
    newest[:, 4:] += 1.0
    changed = (head(x, 3, newest) != here).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, True]
    assert (head(x, 4, condition) != here).any(-1).all()


def test_gpts_actions_see_goals_and_earlier_pairs_only():
    head = GPTHead(4, 3, 12, n_goals=2, width=16, n_layers=1, n_heads=2).eval()
    x, condition = torch.randn(1, 4, 3), torch.randn(1, 12)
    here = head(x, 0.3, condition)

    def changed(x, condition):
        return (head(x, 0.3, condition) != here).any(-1)[0].tolist()

    later = x.clone()
    later[:, 2] += 1.0
    assert changed(later, condition) == [False, False, True, True]
    for state, seen in ((0, [True] * 4), (1, [True] * 4), (2, [True] * 4), (4, [False, False, True, True])):
        other = condition.clone()
        other[:, 2 * state : 2 * state + 2] += 1.0
        assert changed(x, other) == seen, state


def test_an_action_of_gpt_stands_where_its_state_does():
    head = GPTHead(2, 3, 6, n_goals=1, width=16, n_layers=1, n_heads=2).eval()
    seen = []
    head.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, condition = torch.randn(1, 2, 3), torch.randn(1, 6)
    head(x, math.e, condition)
    goal, first, second = head.embed_state(condition.view(1, 3, 2)).unbind(1)
    place, (one, two) = head.positions, head.embed_x(x).unbind(1)
    level = head.embed_level(torch.tensor([[0.25]]))
    tokens = [level, goal + place[0], first + place[1], one + place[1], second + place[2], two + place[2]]
    torch.testing.assert_close(seen[0], torch.stack(tokens, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "gpt"])
def test_transformers_start_small_and_spare_biases_norms_and_positions_from_decay(name):
    build = {
        "transformer": lambda: TransformerHead(16, 3, 40, n_obs_steps=2, width=64, n_layers=2),
        "gpt": lambda: GPTHead(16, 3, 36, n_goals=2, width=60, n_layers=2),
    }
    head = build[name]()
    spared = without_decay(head)
    for n, p in head.named_parameters():
        if "positions" in n or (n.endswith("weight") and p.ndim == 2):
            assert 0.015 < p.std().item() < 0.025, n
        elif n.endswith("bias"):
            assert not p.any(), n
        else:
            assert p.eq(1.0).all(), n
        assert (n in spared) == (n.endswith("bias") or "positions" in n or "norms" in n or n == "last.0.weight"), n


def test_conditions_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a condition of 7 numbers does not split into n_obs_steps = 2 states"):
        TransformerHead(4, 3, 7, n_obs_steps=2)
    with pytest.raises(ValueError, match=r"7 numbers does not split into n_goals \+ horizon = 6 states"):
        GPTHead(4, 3, 7, n_goals=2)
    with pytest.raises(ValueError, match="divisible by its heads, got 30 and 4"):
        TransformerHead(4, 3, 6, n_obs_steps=2, width=30, n_heads=4)
