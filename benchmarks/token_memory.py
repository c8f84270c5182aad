"""Peak memory of token log-probabilities with their gradient: in blocks against a plain log-softmax of all logits.

python benchmarks/token_memory.py [--words 32000] [--length 1024] [--batch 8] [--hidden 256] [--entropy] [--out FILE]

Every way runs alone in a fresh process, forward and backward, to hidden states and head. kind=memory: the growth of the
peak from just before, in MiB; ratio = ours / plain. On a GPU the allocator is asked instead of the system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.bench.rows import append, identity
from ctrlrl.disk import strict_json
from ctrlrl.llm.tokens import head_log_prob, token_log_prob

WAYS = ("head", "logits", "plain")


def log_prob(way: str, hidden: Tensor, head: Tensor, tokens: Tensor, entropy: bool) -> list[Tensor]:
    if way == "head":
        out = head_log_prob(hidden, head, tokens, with_entropy=entropy)
        return [x for x in out if x is not None]
    logits = hidden @ head.T
    if way == "logits":
        return [x for x in token_log_prob(logits, tokens, with_entropy=entropy) if x is not None]
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return [chosen, -(log_p.exp() * log_p).sum(-1)] if entropy else [chosen]


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    hidden = torch.randn(args.batch, args.length, args.hidden, device=device, requires_grad=True)
    head = torch.randn(args.words, args.hidden, device=device).mul_(args.hidden**-0.5).requires_grad_()
    tokens = torch.randint(args.words, (args.batch, args.length), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        before = resident()
    start = time.perf_counter()
    out = log_prob(way, hidden, head, tokens, args.entropy)
    sum(x.sum() for x in out).backward()
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"value": peak - before, "wall_seconds": seconds, "sum": float(out[0].sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("words", 32000), ("length", 1024), ("batch", 8), ("hidden", 256), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--entropy", action="store_true", help="with the entropy of every distribution")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", choices=WAYS, help="measure this way in this process")
    args = parser.parse_args()
    if args.alone:
        sys.stdout.write(json.dumps(measure(args.alone, args)) + "\n")
        return
    found = {}
    for way in WAYS:
        words = [sys.executable, __file__, "--alone", way, *sys.argv[1:]]
        found[way] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    size = f"{args.batch} x {args.length} tokens, {args.words} words" + (", with entropy" if args.entropy else "")
    rows = [
        {
            "kind": "memory",
            "env": size,
            "algo": f"tokens/{way}",
            "threads": args.threads,
            "device": args.device,
            "dtype": "float32",
            "unit": "MiB peak",
            "peer": f"log_softmax of all logits, torch {torch.__version__}",
            "peer_value": found["plain"]["value"],
            "ratio": found[way]["value"] / found["plain"]["value"],
            **found[way],
            **identity(),
        }
        for way in WAYS[:2]
    ]
    sys.stdout.writelines(strict_json(row) + "\n" for row in rows)
    if args.out:
        append(rows, args.out)


if __name__ == "__main__":
    main()
