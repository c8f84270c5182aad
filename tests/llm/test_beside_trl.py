"""Our losses beside those of TRL's own trainers: their batch, their loss, a real model, all gradients.

Their trainer samples, judges and scores a batch; ours gets its tokens and rewards. Then the model is moved, so that
ratios leave 1 and clips act, and both say what the loss is. Importing TRL takes long, hence slow.
"""

import copy

import pytest
import torch

from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.losses import token_loss
from ctrlrl.llm.presets import preset
from ctrlrl.llm.tokens import head_log_prob, position_ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LENGTH = 8
PROMPTS = ["^abca>", "^ab>", "^fedc>", "^3+9="]
OFF = {"kl": "none", "kl_coef": 0.0, "overlong": "none", "dynamic_sampling": False, "max_tokens": LENGTH}

CASES = {  # theirs, ours
    "grpo": (
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
        ("grpo", {"kl": "loss", "kl_coef": 0.04}),
    ),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, ("dr_grpo", {})),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, ("dapo", {})),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
        ("gspo", {"clip_range": 0.02, "clip_range_high": 0.03}),
    ),
    "batch_z": ({"loss_type": "grpo", "scale_rewards": "batch"}, ("grpo", {"advantage": "batch_z"})),
    "gdpo": ({"loss_type": "dapo", "multi_objective_aggregation": "normalize_then_sum"}, ("gdpo", {})),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.1, "scale_rewards": "none"},
        ("cispo", {"advantage": "group_center", "clip_range_high": 0.1}),
    ),
    "sapo": ({"loss_type": "sapo"}, ("sapo", {})),
    "kl_off_policy": (
        {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True},
        ("grpo", {"aggregation": "token_mean", "kl": "loss", "kl_coef": 0.1, "kl_off_policy": True}),
    ),
    "entropy_share": (
        {"loss_type": "dapo", "top_entropy_quantile": 0.2, "epsilon_high": 0.28},
        ("dapo", {"entropy_share": 0.2}),
    ),
    "off_policy_limit": (
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.02},
        ("grpo", {"off_policy_limit": 0.02}),
    ),
    "rloo": ({"beta": 0.05}, ("rloo", {"kl": "reward", "kl_coef": 0.05})),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("trl")
    from tiny_llama import model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    model().save_pretrained(path)
    return path


def trained(name, folder, changes, judged):
    """Their trainer around a fresh copy of the model, and the batch that it made."""
    import trl
    from datasets import Dataset
    from tiny_llama import tokenizer
    from transformers import LlamaForCausalLM

    def variety(completions, **columns):
        judged.append([len(set(text)) / LENGTH for text in completions])
        return judged[-1]

    def letters(completions, **columns):
        judged.append([sum(c.isalpha() for c in text) / LENGTH for text in completions])
        return judged[-1]

    config, trainer = (trl.RLOOConfig, trl.RLOOTrainer) if name == "rloo" else (trl.GRPOConfig, trl.GRPOTrainer)
    args = config(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=LENGTH,
        num_iterations=2,
        seed=3,
        **changes,
    )
    rewards = [variety, letters] if name == "gdpo" else variety
    rows = [{"prompt": text} for text in PROMPTS]
    model = LlamaForCausalLM.from_pretrained(folder)
    made = trainer(model, rewards, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    made.current_gradient_accumulation_steps = 1
    model.train()
    return made, made._generate_and_score_completions([row for row in rows for _ in range(4)])


def scored(model, batch):
    """Our log-probs and entropies [N, L] of the batch's completions."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)[:, :-1]
    hidden = model.model(ids[:, :-1], attention_mask=attention, position_ids=position_ids(attention))
    length = batch["completion_ids"].shape[1]
    last = hidden.last_hidden_state[:, -length:]
    return head_log_prob(last, model.lm_head.weight, batch["completion_ids"])


@pytest.mark.parametrize("name", CASES)
def test_loss_advantages_and_every_gradient_are_those_of_trl(name, folder):
    changes, (method, ours) = CASES[name]
    judged = []
    trainer, batch = trained(name, folder, changes, judged)
    model, mask = trainer.model, batch["completion_mask"].bool()
    assert 0.5 < mask.float().mean() < 1.0  # some end early
    config = preset(method, **{**OFF, **ours})
    with torch.no_grad():
        old, _ = scored(model, batch)
        ref, _ = scored(copy.deepcopy(model), batch)  # theirs is a copy of the start, too
    if "old_per_token_logps" in batch:
        close(torch.where(mask, old, 0.0), torch.where(mask, batch["old_per_token_logps"], 0.0))
    else:
        close(torch.where(mask, old, 0.0).sum(1), batch["old_logps"])
    rewards = torch.tensor(judged).T
    group = torch.arange(16) // 4
    out = advantages(config, rewards, group, mask, log_prob_old=old, log_prob_ref=ref)
    close(out.advantage, batch["advantages"])
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    theirs = trainer._compute_loss(model, batch)
    their_grads = torch.autograd.grad(theirs, tuple(model.parameters()))
    log_prob, entropy = scored(model, batch)
    mine, metrics = token_loss(config, log_prob, old, out.advantage, mask, log_prob_ref=ref, entropy=entropy)
    my_grads = torch.autograd.grad(mine, tuple(model.parameters()))
    assert metrics["ratio/max"] > 1.05  # off the policy
    close(mine, theirs)
    for one, other in zip(my_grads, their_grads, strict=True):
        close(one, other)
    assert max(g.abs().max() for g in their_grads) > 1e-3


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
