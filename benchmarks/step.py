"""What a training step costs: superposition over recovery, and ours over a bare PyTorch loop.

    python benchmarks/step.py [--pairs 40] [--bag-size 2] [--threads 1] [--json]

At the demo's size, on text of its own making. Steps of the compared kinds take turns in one process (A B C,
A B C, ...), and every ratio is of two steps that stood next to each other, so a machine whose speed drifts
changes both. Reported are the median of the ratios and their quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from token_superposition.data.prepare import prepare
from token_superposition.model.build import build_model
from token_superposition.study.demo import demo_config
from token_superposition.train.config import parse_config
from token_superposition.train.trainer import Trainer


def write_corpus(folder: Path, megabytes: int) -> None:
    """Words drawn at random: text enough to train on, the same every time."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("etaoinshrdlu"), n)) for n in generator.integers(2, 9, 500)])
    for number in range(megabytes):
        (folder / f"{number}.txt").write_text(" ".join(generator.choice(words, 180_000)))


def make_trainer(data: Path, bag_size: int, threads: int) -> Trainer:
    """The demo's run; half of its steps superposed, so that either kind is at hand."""
    values = {**demo_config(), "data": {"path": str(data)}}
    overrides = {
        "superposition": {"bag_size": bag_size, "ratio": 0.5},
        "train.num_threads": threads,
        "train.device": "cpu",
        "train.dtype": "float32",
    }
    config = parse_config(values, overrides)
    return Trainer(config, config.schedule())


def bare_loop(trainer: Trainer) -> Callable[[Tensor, Tensor], None]:
    """An ordinary training step around the same Hugging Face model, as one would write it by hand."""
    config = trainer.config
    model = build_model(
        config.model.architecture,
        config.model.config,
        vocab_size=trainer.corpora.tokenizer.vocab_size,
        end_of_document_id=trainer.corpora.tokenizer.end_of_document_id,
        seed=0,
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(ids_BL: Tensor, targets_BL: Tensor) -> None:
        logits = model(input_ids=ids_BL, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), targets_BL.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def measure(pairs: int, bag_size: int, threads: int) -> dict[str, Any]:
    """Time the three kinds of step in turns."""
    with tempfile.TemporaryDirectory() as name:
        source, data = Path(name, "text"), Path(name, "data")
        source.mkdir()
        write_corpus(source, 20)
        prepare([source], out=data, quiet=True)
        trainer = make_trainer(data, bag_size, threads)
        bare = bare_loop(trainer)
        switch = trainer.schedule.switch_step
        times: dict[str, list[float]] = {"superposition": [], "recovery": [], "bare": []}
        for number in range(-5, pairs):
            superposed, plain = (trainer.stream.batch(max(number, 0) + start) for start in (0, switch))
            ids_BL, targets_BL = plain.ids.squeeze(-1), plain.targets.squeeze(-1).contiguous()
            taken = {
                "superposition": seconds(lambda batch=superposed: trainer.step(batch)),  # type: ignore[misc]
                "recovery": seconds(lambda batch=plain: trainer.step(batch)),  # type: ignore[misc]
                "bare": seconds(lambda ids=ids_BL, targets=targets_BL: bare(ids, targets)),  # type: ignore[misc]
            }
            if number >= 0:  # the first few warm up
                for kind, value in taken.items():
                    times[kind].append(value)
        ratios = {
            "superposition_over_recovery": [
                a / b for a, b in zip(times["superposition"], times["recovery"], strict=True)
            ],
            "recovery_over_bare_loop": [a / b for a, b in zip(times["recovery"], times["bare"], strict=True)],
        }
    return {
        "bag_size": bag_size,
        "threads": threads,
        "pairs": pairs,
        "seconds": {kind: spread(values) for kind, values in times.items()},
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--bag-size", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.pairs, options.bag_size, options.threads)
    if options.json:
        print(json.dumps(result))
        return
    for group in ("seconds", "ratios"):
        for name, value in result[group].items():
            quartiles = f"{value['lower_quartile']:.4f} to {value['upper_quartile']:.4f}"
            print(f"{name:30} {value['median']:.4f}  ({quartiles})")


if __name__ == "__main__":
    main()
