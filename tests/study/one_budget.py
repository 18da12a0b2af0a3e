"""Studies of one budget whose curves look as real ones do, made up: won, lost, undecided, several arms.

`python -m tests.study.one_budget FOLDER` writes their reports to look at.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

from tests.study.reports import difference_of, headline_dict, seed_result, write_report

TOTAL, ROWS, LENGTH, FLOPS = 4000, 16, 128, 3_024_000


def curve(stages: list[dict[str, Any]], final: float, seed: int) -> list[dict[str, Any]]:
    """A validation curve as real runs have it: near log(256) at first, a plateau in superposition, then the fall."""
    noise = random.Random(seed)
    points, step, raw, switch = [], 0, 0, sum(s["steps"] for s in stages[:-1])
    total = switch + stages[-1]["steps"]
    for stage in stages:
        first = step
        while step < first + stage["steps"] or (stage is stages[-1] and step == total):
            left = 1 - step / total
            loss = final + 4.27 * math.exp(-step / 70) + 0.5 * left**3 + 0.13 * min(1.0, left / 0.2)
            if step and step <= switch:
                loss = 3.55 + 0.75 * math.exp(-step / 400) + noise.gauss(0, 0.05)
            elif switch:
                loss += 1.5 * math.exp(-(step - switch) / 120)
            if step != total:
                loss += noise.gauss(0, 0.006)
            points.append((step, raw, stage["bag_size"], loss))
            step += 200
            raw += 200 * ROWS * LENGTH * stage["bag_size"]
    return [
        {
            "step": step,
            "phase": "superposition" if bag > 1 else "recovery",
            "bag_size": bag,
            "flops": step * ROWS * LENGTH * FLOPS,
            "raw_tokens": raw,
            "validation_loss": loss,
        }
        for step, raw, bag, loss in points
    ]


def fake_arm(name: str, bag_size: int, ratio: float, finals: list[float], total: int = TOTAL) -> dict[str, Any]:
    switch = round(ratio * total) if bag_size > 1 else 0
    stages = [{"bag_size": 1, "steps": total - switch, "mode": "full", "slot_weights": "uniform"}]
    if switch:
        stages.insert(0, {"bag_size": bag_size, "steps": switch, "mode": "full", "slot_weights": "uniform"})
    raw = ROWS * LENGTH * (total + switch * (bag_size - 1))
    return {
        "name": name,
        "stages": stages,
        "mode": "full",
        "slot_weights": "uniform",
        "bag_size": bag_size,
        "ratio": switch / total,
        "switch_step": switch,
        "learning_rate": 3e-3,
        "seeds": [
            {
                **seed_result(
                    seed,
                    final,
                    steps=total,
                    positions=total * ROWS * LENGTH,
                    raw_tokens=raw,
                    flops=total * ROWS * LENGTH * FLOPS,
                ),
                "wall_seconds": (281.3 + 3.1 * seed + 4 * bag_size) * total / TOTAL,
                "peak_memory_bytes": 612_368_384,
                "curve": curve(stages, final, 100 * bag_size + seed),
            }
            for seed, final in enumerate(finals)
        ],
    }


def compare_fakes(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    base, *others = [[seed["final_validation_loss"] for seed in arm["seeds"]] for arm in arms]
    return [
        difference_of(arms[0]["name"], base, arm["name"], losses) for arm, losses in zip(arms[1:], others, strict=True)
    ]


def fake_report(arms: list[dict[str, Any]]) -> dict[str, Any]:
    results = compare_fakes(arms)
    return {
        "schema_version": 1,
        "title": "Token superposition or not: llama, 4,000 steps",
        "created": "2026-01-31",
        "model": {"architecture": "llama", "parameters": 385_000, "config": {"hidden_size": 96}},
        "data": {
            "path": "runs/demo/data",
            "tokenizer": "bytes",
            "train_tokens": 29_800_000,
            "train_bytes": 29_700_000,
            "validation_tokens_used": 262_144,
        },
        "settings": {
            "total_steps": TOTAL,
            "batch_size": ROWS,
            "sequence_length": LENGTH,
            "learning_rate": 3e-3,
            "warmup_steps": 200,
            "decay_steps": 800,
            "weight_decay": 0.1,
            "device": "cpu",
            "dtype": "float32",
        },
        "arms": arms,
        "equal_flops": headline_dict(results),
        "equal_flops_all": results,
        "equal_data": None,
        "iso_loss": None,
        "reasons": {
            "equal_data": "this version trains no arm that is given the raw tokens superposition read",
            "iso_loss": "this version trains one budget; a speed-up at equal loss needs several",
        },
    }


BASE = [1.2801, 1.2732, 1.2911, 1.2688, 1.2847]
WON = [1.2213, 1.2419, 1.2352, 1.2260, 1.2371]
LOST = [1.3094, 1.3065, 1.3190, 1.3072, 1.3135]
SPLIT = [1.2920, 1.2611, 1.2850, 1.2790, 1.2702]


def two_arms(finals: list[float], seeds: int, bag_size: int = 2) -> dict[str, Any]:
    return fake_report(
        [fake_arm("baseline", 1, 0, BASE[:seeds]), fake_arm("superposition", bag_size, 0.3, finals[:seeds])]
    )


def four_arms() -> dict[str, Any]:
    return fake_report(
        [
            fake_arm("baseline", 1, 0, BASE[:3]),
            fake_arm("s=2, r=0.3", 2, 0.3, WON[:3]),
            fake_arm("s=4, r=0.2", 4, 0.2, [1.2320, 1.2560, 1.2580]),
            fake_arm("an arm with a long name, s=8, r=0.3", 8, 0.3, LOST[:3]),
        ]
    )


STUDIES = {
    "won": lambda: two_arms(WON, 5),
    "won-one-seed": lambda: two_arms(WON, 1),
    "lost": lambda: two_arms(LOST, 5, 8),
    "lost-one-seed": lambda: two_arms(LOST, 1, 8),
    "split": lambda: two_arms(SPLIT, 3),
    "four-arms": four_arms,
}


if __name__ == "__main__":
    for study_name, make in STUDIES.items():
        write_report(make(), Path(sys.argv[1]) / study_name)
