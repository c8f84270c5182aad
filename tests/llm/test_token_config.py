"""What a TokenConfig refuses, what it tells a user, and what the functions behind it refuse."""

from dataclasses import asdict, fields

import pytest
import torch
from four_responses import GROUP, MASK, OLD, REWARD, plain

from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.losses import token_loss
from ctrlrl.llm.presets import CONFIGS, EXPERIMENTAL, PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_token_config_with_a_few_other_defaults(name):
    config = preset(name)
    assert isinstance(config, TokenConfig)
    assert (config.name, config.source) == (name, PRESETS[name][0])
    assert config.source.startswith("arXiv:")
    changed = {f.name for f in fields(TokenConfig) if getattr(config, f.name) != getattr(TokenConfig(), f.name)}
    assert changed - {"name"} <= PRESETS[name][1].keys()
    assert CONFIGS[name](**asdict(config)) == config


def test_an_unchecked_method_says_so():
    for name in PRESETS:
        told = any("experimental" in line for line in preset(name).notices())
        assert told == (name in EXPERIMENTAL)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_a_hydra_schema(name):
    omegaconf = pytest.importorskip("omegaconf")
    assert omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.structured(CONFIGS[name])) == preset(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "group"}, r"\.advantage must be one of gae, .*got 'group'"),
        ({"surrogate": "ppo"}, r"\.surrogate must be one of"),
        ({"clip_range": 0.0}, r"\.clip_range must be above 0"),
        ({"gamma": 1.5}, r"\.gamma must lie in \[0, 1\]"),
        ({"group_size": 0}, r"\.group_size must be at least 1"),
        ({"group_size": 1}, r"group_size=1, but advantage=group_z compares.*single=raw"),
        ({"group_size": 1, "single": "raw", "advantage": "gbpo"}, r"single=raw takes advantage=group_z"),
        ({"advantage": "median_mad"}, r"group_size must be odd for advantage=median_mad, got 8"),
        ({"advantage": "gae", "ratio": "sequence"}, r"ratio=sequence is one a response, advantage=gae one a token"),
        ({"surrogate": "bounded"}, r"surrogate=bounded needs advantage=gbpo or value_median"),
        ({"surrogate": "clip_elastic"}, r"surrogate=clip_elastic needs advantage=group_z_elastic"),
        ({"surrogate": "gmpo", "ratio": "sequence"}, r"surrogate=gmpo takes ratio=token"),
        ({"kl": "loss", "kl_kind": "k1", "kl_coef": 0.1}, r"kl_kind=k1 in the loss has no gradient"),
        ({"kl": "reward", "kl_kind": "k3", "kl_coef": 0.1}, r"kl=reward takes kl_kind=k1"),
        ({"kl_coef": 0.1}, r"kl_coef=0.1 does nothing with kl=none"),
        ({"positive_share": 0.25}, r"positive_share=0.25 holds an entropy: give ent_target"),
        (
            {"positive_share": 0.25, "ent_target": 0.5, "advantage": "remax"},
            r"positive_share=0.25 exchanges single responses, not with advantage=remax",
        ),
        ({"off_policy_limit": 0.1, "advantage": "reinforce_pp"}, r"off_policy_limit=0.1 asks for the sign of one adv"),
        ({"overlong_buffer": 257}, r"overlong_buffer must lie in 1 \.\.\. max_tokens=256 or be null"),
        ({"bounds_low": [0.9, 0.6]}, r"bounds_low must be two numbers"),
        ({"whiten": "tokens", "ratio": "sequence"}, r"ratio=sequence is one a response, whiten=tokens makes"),
        (
            {"positive_share": 0.5, "ent_target": 0.5, "surrogate": "bounded", "advantage": "gbpo"},
            r"positive_share=0.5: surrogate=bounded needs targets of its own",
        ),
        ({"bounds_step": 0.0}, r"bounds_step must be above 0"),
        (
            {"window": 4, "advantage": "egae", "group_size": 1, "overlong": "mask"},
            r"window=4: what is unfinished goes on, so overlong=mask has no place",
        ),
        ({"advantage": "gdpo", "overlong": "soft"}, r"Give the penalty as a reward function"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenConfig(**changes)


def test_a_user_is_told_of_doubtful_pairs():
    wide = preset("gspo", clip_range=0.2).notices()
    assert any("clip_range=0.2 is wide" in line for line in wide)
    assert not preset("gspo").notices()
    assert not preset("gspo", clip_range=0.2, max_tokens=8).notices()
    by_length = preset("rloo", aggregation="token_mean").notices()
    assert any("weighs responses by their length" in line for line in by_length)


def test_settings_say_what_a_method_needs():
    needs = {name for name in PRESETS if preset(name).needs_critic}
    assert needs == {"ppo_tokens", "tppo", "bpo_tokens"}
    assert preset("bpo_tokens").value_heads == 2
    assert [n for n in PRESETS if preset(n).needs_greedy] == ["remax"]
    assert [n for n in PRESETS if preset(n).needs_tracker] == ["spo"]
    assert preset("grpo").needs_reference
    assert not preset("grpo", kl_coef=0.0).needs_reference


def ask(config=None, reward=REWARD, group=GROUP, mask=MASK, **more):
    return advantages(plain("grpo") if config is None else config, reward, group, mask, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": REWARD[:3]}, r"rewards and group have N rows, got mask \(4, 4\)"),
        ({"mask": MASK.long()}, r"mask must be bool"),
        ({"group": GROUP + 4}, r"group must hold numbers in 0 \.\.\. 3"),
        ({"group": torch.tensor([0, 0, 1, 2])}, r"some prompt has one response, but advantage=group_z"),
        ({"reward": torch.full((4,), torch.nan)}, r"some response has no finite reward"),
        ({"reward": REWARD / 0.0}, r"some response has no finite reward"),
        ({"config": plain("ppo_tokens")}, r"advantage=gae needs value"),
        ({"config": plain("bnpo"), "reward": 2.0 * REWARD - 1.0}, r"advantage=beta_norm takes rewards in \[0, 1\]"),
        ({"config": plain("remax")}, r"advantage=remax needs greedy_reward"),
        ({"config": plain("spo")}, r"advantage=tracker needs state"),
        ({"config": plain("rloo", kl="reward", kl_coef=0.1)}, r"kl=reward needs log_prob_old and log_prob_ref"),
        ({"config": plain("grpo", reward_weights=[1.0, 2.0])}, r"reward_weights has 2 numbers for 1 rewards"),
    ],
)
def test_batches_that_do_not_fit_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ask(**arguments)


def test_losses_without_what_they_need_are_refused_by_name():
    a = torch.zeros(4).double()
    with pytest.raises(ValueError, match="kl=loss needs log_prob_ref"):
        token_loss(plain("grpo", kl="loss", kl_coef=0.1), OLD, OLD, a, MASK)
    with pytest.raises(ValueError, match="need entropy"):
        token_loss(plain("grpo", ent_coef=0.1), OLD, OLD, a, MASK)
    with pytest.raises(ValueError, match="entropy_share < 1 needs entropy"):
        token_loss(plain("grpo", entropy_share=0.5), OLD, OLD, a, MASK)
    with pytest.raises(ValueError, match="token_loss: shapes must match"):
        token_loss(plain("grpo"), OLD, OLD[:, 1:], a, MASK)
    with pytest.raises(ValueError, match="mask must be bool"):
        token_loss(plain("grpo"), OLD, OLD, a, MASK.float())
