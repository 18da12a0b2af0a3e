"""Reports made up for tests, and a reader of their page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

from token_superposition.study.significance import paired_difference

WON = (-0.05, -0.06, -0.045, -0.055, -0.052)
LOST = (0.05, 0.06, 0.045, 0.055, 0.052)
UNDECIDED = (-0.05, 0.06, -0.02, 0.03, -0.01)

STEPS, SWITCH, POSITIONS, FLOPS = 400, 120, 2048, 5_000_000


def seed_result(seed: int, final: float, *, steps: int, positions: int, raw_tokens: int, flops: int) -> dict[str, Any]:
    """What a report has of a run, but for its times, its memory and its curve."""
    return {
        "seed": seed,
        "final_validation_loss": final,
        "bits_per_byte": final / math.log(2),
        "steps": steps,
        "positions": positions,
        "raw_tokens": raw_tokens,
        "unique_raw_tokens": raw_tokens,
        "flops": flops,
    }


def make_arm(name: str, finals: Sequence[float], *, bag_size: int) -> dict[str, Any]:
    """An arm of 400 steps whose loss falls to `finals`; with a bag size above 1 the switch is at step 120."""
    switch = SWITCH if bag_size > 1 else 0
    stages = [
        {"bag_size": size, "steps": steps, "mode": "full", "slot_weights": "uniform"}
        for size, steps in ((bag_size, switch), (1, STEPS - switch))
        if steps
    ]
    raw = [min(step, switch) * bag_size + max(0, step - switch) for step in range(STEPS + 1)]
    seeds = [
        {
            **seed_result(
                number,
                final,
                steps=STEPS,
                positions=STEPS * POSITIONS,
                raw_tokens=raw[STEPS] * POSITIONS,
                flops=STEPS * POSITIONS * FLOPS,
            ),
            "wall_seconds": 75.25,
            "peak_memory_bytes": 600 * 2**20,
            "curve": [
                {
                    "step": step,
                    "phase": "superposition" if step < switch else "recovery",
                    "bag_size": bag_size if step < switch else 1,
                    "flops": step * POSITIONS * FLOPS,
                    "raw_tokens": raw[step] * POSITIONS,
                    "validation_loss": final + 4 * math.exp(-step / 60),
                }
                for step in range(0, STEPS + 1, 40)
            ],
        }
        for number, final in enumerate(finals)
    ]
    return {
        "name": name,
        "stages": stages,
        "mode": "full",
        "slot_weights": "uniform",
        "bag_size": bag_size,
        "ratio": switch / STEPS,
        "switch_step": switch,
        "learning_rate": 3e-3,
        "parameters": 389_000,
        "validation_tokens": 262_144,
        "seeds": seeds,
    }


def difference_of(baseline: str, theirs: Sequence[float], arm: str, ours: Sequence[float]) -> dict[str, Any]:
    """What a report has of an arm's final losses less the baseline's, seed by seed."""
    found = paired_difference(ours, theirs)
    return {
        "baseline": baseline,
        "arm": arm,
        "delta_nats": found.mean,
        "confidence_interval": None if found.interval is None else list(found.interval),
        "confidence_level": 0.95,
        "deltas": list(found.differences),
        "reason": found.reason,
    }


def make_report(
    deltas: Sequence[float] = WON, *, tokenizer: str = "bytes", arm: str = "superposition", bag_size: int = 2
) -> dict[str, Any]:
    """A report whose arm ends `deltas` above the baseline, a seed each."""
    theirs = [1.5 + 0.01 * number for number in range(len(deltas))]
    ours = [loss + delta for loss, delta in zip(theirs, deltas, strict=True)]
    difference = difference_of("baseline", theirs, arm, ours)
    return {
        "schema_version": 1,
        "title": "Token superposition or not: llama, 400 steps",
        "created": "2026-01-02",
        "model": {"architecture": "llama", "parameters": 389_000, "config": {"hidden_size": 96}},
        "data": {
            "path": "runs/demo/data",
            "tokenizer": tokenizer,
            "train_tokens": 30_000_000,
            "train_bytes": 29_900_000,
            "validation_tokens_used": 262_144,
        },
        "settings": {
            "total_steps": STEPS,
            "batch_size": 16,
            "sequence_length": 128,
            "learning_rate": 3e-3,
            "warmup_steps": 20,
            "decay_steps": 80,
            "weight_decay": 0.1,
            "device": "cpu",
            "dtype": "float32",
            "num_threads": 1,
        },
        "arms": [make_arm("baseline", theirs, bag_size=1), make_arm(arm, ours, bag_size=bag_size)],
        "equal_flops": difference,
        "equal_flops_all": [difference],
        "equal_data": None,
        "iso_loss": None,
        "reasons": {"equal_data": "no arm had the same text", "iso_loss": "one budget was trained"},
    }


class Page(HTMLParser):
    """Reads a page; a tag that is not closed where it should be is an AssertionError."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "div", "span", "p"), f"<{tag}/> is left open by HTML"
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def panels(self) -> int:
        """How many panels of curves there are."""
        return self.attributes.count(("class", "panel"))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
