"""What the benchmarks share: kinds of work that take turns, ratios of neighbours, a text of its own making."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Work = Callable[[], Any]


class Size(NamedTuple):
    """A model and a batch."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    rows: int
    length: int

    @property
    def model(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": 3 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "tie_word_embeddings": self.vocab_size < 1000,
        }


def take_turns(kinds: Mapping[str, Work], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each kind in each round; the kinds stand next to each other, and the first one changes."""
    names = list(kinds)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            kinds[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], name: str, over: str) -> dict[str, float]:
    """Median and quartiles of one kind over another, round by round: a drift of the machine changes both."""
    return spread([a / b for a, b in zip(times[name], times[over], strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def show(title: str, figures: Mapping[str, Mapping[str, float]], digits: int = 4) -> None:
    """A table of medians and quartiles."""
    print(title)
    for name, value in figures.items():
        middle, low, high = (f"{value[key]:,.{digits}f}" for key in ("median", "lower_quartile", "upper_quartile"))
        print(f"  {name:44} {middle}  ({low} to {high})")


def report(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was measured: seconds, ratios, and extra memory."""
    if as_json:
        print(json.dumps(result))
        return
    show("seconds", result["seconds"])
    show("ratios", result["ratios"])
    mebibytes = {
        name: {key: size / 2**20 for key, size in value.items()} for name, value in result["extra_memory_bytes"].items()
    }
    show("extra memory, MiB", mebibytes, digits=0)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}


def write_corpus(folder: Path, megabytes: int) -> None:
    """Words drawn at random: text enough to train on, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("etaoinshrdlu"), n)) for n in generator.integers(2, 9, 500)])
    for number in range(megabytes):
        (folder / f"{number}.txt").write_text(" ".join(generator.choice(words, 180_000)))
