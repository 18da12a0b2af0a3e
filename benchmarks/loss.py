"""What the loss costs: our chunked loss, against ordinary cross-entropies over full logits.

    python benchmarks/loss.py [--rounds 9] [--threads 2] [--rows 1024 --vocab 128256 --width 576] [--json]

Forward and backward, from hidden states and the head's weight, in float32. The kinds take turns in one process; quoted
are medians and quartiles of ratios of neighbours. Memory is measured in a process for each kind: how far its resident
set rises above the inputs. The sum of s cross-entropies over full logits is what the paper's description costs as
it is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import machine, ratio, report, spread, take_turns
from torch import Tensor

from token_superposition import bag_embedding, linear_multi_hot_cross_entropy
from token_superposition.training.hardware import matrix_peak, peak_memory_bytes

BAG_SIZE = 16
MEMORY_KINDS = ("ours s=1", "ours s=16", "one cross-entropy", "16 cross-entropies")


def sum_of_cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The definition, as one would write it by hand."""
    logits = F.linear(hidden, weight)
    return torch.stack([F.cross_entropy(logits, targets[:, k]) for k in range(targets.shape[1])]).mean()


def make_kinds(rows: int, vocab: int, width: int) -> dict[str, Callable[[], None]]:
    """The kinds of work, by name."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, width), torch.randn(vocab, width).mul_(0.02)
    targets = torch.randint(0, vocab, (rows, BAG_SIZE))
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]

    def backward(loss: Callable[..., Tensor], wanted: Tensor) -> None:
        loss(*inputs, wanted).backward()
        for tensor in inputs:
            tensor.grad = None

    one = targets[:, :1].contiguous()
    return {
        "ours s=1": lambda: backward(linear_multi_hot_cross_entropy, one),
        "ours s=16": lambda: backward(linear_multi_hot_cross_entropy, targets),
        "one cross-entropy": lambda: backward(sum_of_cross_entropies, one),
        "16 cross-entropies": lambda: backward(sum_of_cross_entropies, targets),
    }


def embedding_kinds(rows: int, vocab: int, width: int) -> dict[str, Callable[[], None]]:
    """The input side: the mean of a bag's embeddings, ours against a gather and a mean."""
    torch.manual_seed(0)
    weight = torch.randn(vocab, width).mul_(0.02).requires_grad_()
    ids = torch.randint(0, vocab, (1, rows, BAG_SIZE))

    def backward(embed: Callable[[], Tensor]) -> None:
        embed().sum().backward()
        weight.grad = None

    return {
        "bag_embedding": lambda: backward(lambda: bag_embedding(ids, weight)),
        "gather and mean": lambda: backward(lambda: F.embedding(ids, weight).mean(dim=2)),
        "one embedding a row": lambda: backward(lambda: F.embedding(ids[..., 0], weight)),
    }


def extra_memory(kind: str, options: argparse.Namespace) -> int:
    """Bytes that the resident set rises by, in a process of its own."""
    size = ["--rows", str(options.rows), "--vocab", str(options.vocab), "--width", str(options.width)]
    command = [sys.executable, __file__, "--memory-of", kind, "--threads", str(options.threads), *size]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure of this file."""
    size = (options.rows, options.vocab, options.width)
    peak = matrix_peak(torch.device("cpu"), torch.float32, seconds=1.0)
    products = 3 * 2 * options.rows * options.vocab * options.width  # FLOPs, forward and backward
    times = take_turns(make_kinds(*size), options.rounds)
    embedding = take_turns(embedding_kinds(*size), options.rounds)
    memory = {kind: extra_memory(kind, options) for kind in MEMORY_KINDS}
    ratios = {
        "time: ours s=16 over 16 cross-entropies": ratio(times, "ours s=16", "16 cross-entropies"),
        "time: ours s=1 over one cross-entropy": ratio(times, "ours s=1", "one cross-entropy"),
        "time: the head's products at the matrix peak over one cross-entropy": spread(
            [products / peak / seconds for seconds in times["one cross-entropy"]]
        ),
        "time: ours s=16 over ours s=1": ratio(times, "ours s=16", "ours s=1"),
        "time: bag_embedding over gather and mean": ratio(embedding, "bag_embedding", "gather and mean"),
        "memory: ours s=16 over 16 cross-entropies": spread([memory["ours s=16"] / memory["16 cross-entropies"]]),
        "memory: ours s=1 over one cross-entropy": spread([memory["ours s=1"] / memory["one cross-entropy"]]),
        "memory: ours s=16 over ours s=1": spread([memory["ours s=16"] / memory["ours s=1"]]),
    }
    return {
        "rows": options.rows,
        "vocab_size": options.vocab,
        "width": options.width,
        "rounds": options.rounds,
        "matrix_peak_flops": peak,
        "seconds": {name: spread(values) for name, values in {**times, **embedding}.items()},
        "extra_memory_bytes": {kind: spread([float(size)]) for kind, size in memory.items()},
        "ratios": ratios,
        **machine(),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=MEMORY_KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        work = make_kinds(options.rows, options.vocab, options.width)[options.memory_of]
        before = peak_memory_bytes(torch.device("cpu"))
        work()
        print(peak_memory_bytes(torch.device("cpu")) - before)
        return
    report(measure(options), as_json=options.json)


if __name__ == "__main__":
    main()
