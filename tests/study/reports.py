"""Reports made up for tests, and a reader of their page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from token_superposition.study import compare as study_compare
from token_superposition.study.loss_spike import switch_facts
from token_superposition.study.report import files, page
from token_superposition.study.report import verdict as sentences
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import Arm, Difference
from token_superposition.study.report.verdict import Verdict
from token_superposition.study.significance import headline_of
from token_superposition.study.speedup import choose_headline, iso_loss_all

WON = (-0.05, -0.06, -0.045, -0.055, -0.052)
LOST = (0.05, 0.06, 0.045, 0.055, 0.052)
UNDECIDED = (-0.05, 0.06, -0.02, 0.03, -0.01)

STEPS, SWITCH, POSITIONS, FLOPS = 400, 120, 2048, 5_000_000


# A report is made as the values of its JSON, which tests change; these read it as a user's file is read.


def compare(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The values of the report of a study, as they are in its report.json."""
    return study_compare.compare(*args, **kwargs).as_dict()


def parse(report: dict[str, Any]) -> Report:
    return files.parse_report(report, "report.json")


def render_html(report: dict[str, Any]) -> str:
    return page.render_html(parse(report))


def verdict(report: dict[str, Any]) -> Verdict:
    return sentences.verdict(parse(report))


def said(report: dict[str, Any], label: str | None = None) -> str:
    """Facts and notes of the verdict, or the one of that label; empty if it is not there."""
    return " ".join(row.text for row in verdict(report).rows if label in (None, row.label))


def write_report(report: dict[str, Any], folder: Path) -> None:
    files.write_report(parse(report), folder)


def to_arms(arms: Sequence[dict[str, Any]]) -> list[Arm]:
    return [Arm.model_validate(arm) for arm in arms]


def headline_dict(differences: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = headline_of([Difference.model_validate(each) for each in differences])
    return next(each for each in differences if each["arm"] == found.arm)


def with_readings(report: dict[str, Any]) -> str | None:
    """Add the speed-ups that follow from the arms; returns why there is no headline."""
    found = iso_loss_all(to_arms(report["arms"]))
    headline, reason = choose_headline(found, report["equal_flops"]["arm"])
    report["iso_loss_all"] = [each.model_dump() for each in found]
    report["iso_loss"] = headline and headline.model_dump()
    return reason


def switch_dicts(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each.model_dump() for each in switch_facts(to_arms(arms))]


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
    return Difference.of(baseline, theirs, arm, ours).model_dump(mode="json", exclude_unset=True)


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
