"""Learning from recorded, labelled solutions: TOPR, DPO and direct advantage on one file, judged on held-out problems.

python benchmarks/offline_tokens.py FILE.npz [--methods topr,dpo,direct_advantage] [--model FOLDER] [--steps 200]
    [--warm 200] [--batch 16] [--longest 700] [--seeds 0] [--out FILE]

Without --model a small Llama over bytes is made and first imitates all solutions for --warm steps; that, or the given
model, is the reference. kind=score: the share of held-out pairs, one right and one wrong solution of a problem, of
which the right one gained more log-probability a token; 0.5 is chance. A tenth of the problems is held out.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ctrlrl.llm.algebra import token_loss
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ctrlrl.bench.rows import append, identity, line
from ctrlrl.functional.group import group_center, group_size
from ctrlrl.functional.masked import masked_mean
from ctrlrl.llm.offline import direct_advantage_loss, dpo_loss
from ctrlrl.llm.presets import preset
from ctrlrl.llm.recorded import Recorded, encode_labelled, load_labelled, pairs
from ctrlrl.llm.tokens import head_log_prob, position_ids

METHODS = ("topr", "dpo", "direct_advantage")
END, PAD = 256, 257


def prepared(args: argparse.Namespace) -> tuple[Any, Recorded, Recorded]:
    """The model before any preference, and the responses to learn from and to judge by."""
    data = load_labelled(args.file)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, local_files_only=True)
        words = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
        pad = words.eos_token_id if words.pad_token_id is None else words.pad_token_id

        def encode(text: str) -> list[int]:
            return list(words.encode(text, add_special_tokens=False))

        rows, left_out = encode_labelled(data, encode, eos=words.eos_token_id, pad=pad, longest=args.longest)
    else:
        size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=258, **size, **heads))
        rows, left_out = encode_labelled(data, lambda text: list(text.encode()), eos=END, pad=PAD, longest=args.longest)
    several = group_size(rows.group) > 1
    edge = int(rows.group.max()) * 9 // 10
    learn, judge = ((several & part).nonzero().squeeze(1) for part in (rows.group <= edge, rows.group > edge))
    sys.stderr.write(f"{len(learn)} responses to learn from, {len(judge)} to judge by, {left_out} too long\n")
    return model.eval(), rows.rows(learn), rows.rows(judge)


def scored(model: Any, batch: Recorded) -> Tensor:
    """Log-probs [N, L] of the responses."""
    ids = torch.cat([batch.prompt_ids, batch.ids], 1)[:, :-1]
    seen = torch.cat([batch.prompt_mask, batch.mask], 1)[:, :-1]
    out = model.model(ids, attention_mask=seen.long(), position_ids=position_ids(seen)).last_hidden_state
    last = out[:, -batch.ids.shape[1] :]
    return head_log_prob(last, model.lm_head.weight, batch.ids, with_entropy=False)[0]


def of_groups(data: Recorded, n: int) -> Recorded:
    """All responses to as many random prompts as give about n rows, cut to their longest."""
    groups = torch.randperm(int(data.group.max()) + 1)[: max(1, n // 4)]
    part = data.rows(torch.isin(data.group, groups).nonzero().squeeze(1))
    before, after = int(part.prompt_mask.sum(1).max()), int(part.mask.sum(1).max())
    return part._replace(
        prompt_ids=part.prompt_ids[:, -before:],
        prompt_mask=part.prompt_mask[:, -before:],
        ids=part.ids[:, :after],
        mask=part.mask[:, :after],
    )


def learn(model: Any, data: Recorded, method: str, args: argparse.Namespace, steps: int) -> None:
    reference = copy.deepcopy(model)
    config = preset("topr", group_size=4)
    adam = torch.optim.AdamW(model.parameters(), lr=args.warm_rate if method == "imitate" else args.rate)
    for _ in range(steps):
        batch = of_groups(data, args.batch)
        with torch.no_grad():
            ref = scored(reference, batch)
        now, advantage = scored(model, batch), group_center(batch.reward, batch.group)
        if method == "imitate":
            loss = -masked_mean(now, batch.mask)
        elif method == "topr":
            loss = token_loss(config, now, ref, advantage, batch.mask)[0]
        elif method == "dpo":
            loss = dpo_loss(now, ref, batch.mask, pairs(batch.reward, batch.group), beta=args.beta)[0]
        else:
            loss = direct_advantage_loss(now, ref, advantage, batch.mask, beta=args.beta)[0]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()


@torch.no_grad()
def judged(model: Any, reference: Any, data: Recorded) -> float:
    gains = []
    for rows in torch.arange(len(data.ids)).split(16):
        part = Recorded(*(x[rows] for x in data))
        gain = torch.where(part.mask, scored(model, part) - scored(reference, part), 0.0)
        gains.append(gain.sum(1) / part.mask.sum(1))
    gain = torch.cat(gains)
    chosen, rejected = pairs(data.reward, data.group)
    return float((gain[chosen] > gain[rejected]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--model", type=Path)
    for name, default in (("steps", 200), ("warm", 200), ("batch", 16), ("longest", 700)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("rate", 1e-4), ("warm-rate", 1e-3), ("beta", 0.1)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for seed in map(int, args.seeds.split(",")):
        torch.manual_seed(seed)
        reference, learned_from, held_out = prepared(args)
        if not args.model:
            learn(reference, learned_from, "imitate", args, args.warm)
        for method in args.methods.split(","):
            torch.manual_seed(seed)
            model, start = copy.deepcopy(reference), time.perf_counter()
            learn(model, learned_from, method, args, args.steps)
            row = {
                "kind": "score",
                "env": args.file.name,
                "algo": method,
                "seed": seed,
                "unit": "share of held-out pairs",
                "value": judged(model, reference, held_out),
                "pairs": len(pairs(held_out.reward, held_out.group)[0]),
                "steps": args.steps,
                "wall_seconds": round(time.perf_counter() - start, 1),
                **identity(),
            }
            sys.stdout.write(line(row) + "\n")
            sys.stdout.flush()
            if args.out:
                append([row], args.out)


if __name__ == "__main__":
    main()
