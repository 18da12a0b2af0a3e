"""The report of realistic studies: what it says of each outcome, what its figures show, a page that is whole.

`python tests/study/test_report.py FOLDER` writes the studies' reports to look at.
"""

from __future__ import annotations

import math
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.study.reports import seed_result
from token_superposition.study.report import render_html, verdict, write_report
from token_superposition.study.report.curves import all_series
from token_superposition.study.report.figure import end_window, whole_window
from token_superposition.study.statistics import paired_difference

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
    base = [seed["final_validation_loss"] for seed in arms[0]["seeds"]]
    results = []
    for arm in arms[1:]:
        found = paired_difference([seed["final_validation_loss"] for seed in arm["seeds"]], base)
        results.append(
            {
                "baseline": arms[0]["name"],
                "arm": arm["name"],
                "delta_nats": found.mean,
                "confidence_interval": list(found.interval) if found.interval else None,
                "confidence_level": 0.95,
                "deltas": list(found.differences),
                "reason": found.reason,
            }
        )
    return results


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
        "equal_flops": min(results, key=lambda result: result["delta_nats"]),
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


class Tags(HTMLParser):
    """Closes every tag it opens, or fails; keeps the text that is read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "div", "span", "p")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_whole_page_that_fetches_nothing(study: str, tmp_path: Path) -> None:
    report = STUDIES[study]()
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    Tags(page)
    assert not re.search(r"https?:|@import|url\((?!#)|src=|href=", page)
    assert report["reasons"]["equal_data"] in page
    assert report["reasons"]["iso_loss"] in page
    assert "may flatter superposition" in page
    assert "-0." not in re.sub(r"<(script|style|path|svg|pre).*?>.*?</\1>|<[^>]*>", "", page, flags=re.S)  # true minus


@pytest.mark.parametrize(
    ("study", "outcome", "words"),
    [
        ("won", "won", "0.047 nats per byte below the baseline: it helped here."),
        ("lost", "lost", "0.032 nats per byte above the baseline: it did not help here."),
        ("split", "undecided", "these seeds do not decide it"),
        ("won-one-seed", "undecided", "0.059 nats per byte below the baseline, but one seed does not decide it."),
        ("lost-one-seed", "undecided", "0.029 nats per byte above the baseline, but one seed does not decide it."),
    ],
)
def test_the_headline_says_what_came_out(study: str, outcome: str, words: str) -> None:
    said = verdict(STUDIES[study]())
    assert said.outcome == outcome
    assert said.headline.startswith("At equal compute superposition ended")
    assert words in said.headline


def test_one_seed_is_told_what_to_do() -> None:
    said = " ".join(verdict(two_arms(WON, 1)).details)
    for words in ("no interval", "--seeds 5", "0.003", "0.02 to 0.04"):
        assert words in said


def test_a_loss_says_whether_the_gap_was_still_closing() -> None:
    flat, closing = two_arms(LOST, 5, 8), two_arms(LOST, 5, 8)
    for seed in closing["arms"][1]["seeds"]:
        for point in seed["curve"]:
            point["validation_loss"] += 0.1 * (1 - point["step"] / TOTAL)
    assert any("no longer shrinking" in line for line in verdict(flat).details)
    assert any("still shrinking" in line for line in verdict(closing).details)
    assert not any("shrinking" in line for line in verdict(two_arms(WON, 5)).details)


def test_unequal_compute_is_not_called_equal() -> None:
    report = two_arms(WON, 5)
    for seed in report["arms"][1]["seeds"]:
        seed["flops"] *= 1.25
    assert verdict(report).headline.startswith("With 1.25 times the baseline's compute")
    page = render_html(report)
    assert "Not at equal compute" in page
    assert "Equal compute: measured" not in page


def test_the_best_of_several_arms_is_named_and_said_to_be_chosen() -> None:
    said = verdict(four_arms())
    assert "(“s=2, r=0.3”)" in said.headline
    assert any("best of 3" in line for line in said.details)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("key", ["flops", "raw_tokens"])
def test_the_final_difference_can_be_seen(study: str, key: str) -> None:
    series = all_series(STUDIES[study](), key)
    whole = whole_window(series)
    end = end_window(series, whole)
    ends = [s.mean[-1].loss for s in series]
    if study != "split":  # whose arms end together
        assert (max(ends) - min(ends)) / (end.y[1] - end.y[0]) > 0.08  # 20 of the panel's 246 units
    assert all(end.y[0] < loss < end.y[1] for loss in ends)
    assert end.x[0] < min(s.mean[-1].x for s in series) <= end.x[1]


def test_the_first_steps_are_cut_off_but_superposition_is_not() -> None:
    series = all_series(two_arms(WON, 5), "flops")
    window = whole_window(series)
    plateau = [point.loss for point in series[1].mean if 0 < point.step <= 1200]
    assert window.clipped
    assert window.y[1] < series[0].mean[0].loss
    assert max(plateau) < window.y[1]
    assert "cut off at the top" in render_html(two_arms(WON, 5))


def test_nothing_is_cut_off_a_curve_of_few_points() -> None:
    report = two_arms(WON, 1)
    for arm in report["arms"]:
        arm["seeds"][0]["curve"] = [p for p in arm["seeds"][0]["curve"] if p["step"] % 2000 == 0]
    assert not whole_window(all_series(report, "flops")).clipped


def test_curves_that_end_apart_from_the_final_losses_say_where() -> None:
    report = two_arms(WON, 1)
    assert "end elsewhere" not in render_html(report)
    for arm in report["arms"]:
        arm["seeds"][0]["final_validation_loss"] -= 0.16  # of more validation tokens
    assert "so they end elsewhere: baseline at 1.280, superposition at 1.221." in render_html(report)


def test_a_nasty_name_stays_a_name() -> None:
    name = "</title><script>alert('x')</script>&"
    report = fake_report([fake_arm("baseline", 1, 0, BASE[:2]), fake_arm(name, 2, 0.3, WON[:2])])
    report["title"] = report["data"]["path"] = report["reasons"]["iso_loss"] = name
    report["model"]["config"] = {name: name}
    page = render_html(report)
    assert "alert(&#x27;x&#x27;)" in page
    assert "<script>alert" not in page
    Tags(page)


@pytest.mark.parametrize("seeds", [1, 2])
def test_curves_may_be_short_missing_or_not_finite(seeds: int) -> None:
    report = two_arms(WON, seeds)
    baseline, superposition = report["arms"]
    del baseline["seeds"][0]["curve"][12:]
    superposition["seeds"][0]["curve"][3]["validation_loss"] = math.nan
    superposition["seeds"][-1]["curve"][4]["validation_loss"] = None
    Tags(render_html(report))
    del superposition["seeds"][0]["curve"]
    assert ("Without a curve: superposition" in render_html(report)) == (seeds == 1)
    for seed in baseline["seeds"] + superposition["seeds"]:
        seed["curve"] = []
    assert "nothing to draw" in render_html(report)


def test_what_was_not_recorded_is_said_to_be_missing() -> None:
    report = two_arms(WON, 1)
    report["settings"]["device"] = None
    report["arms"][0]["seeds"][0]["peak_memory_bytes"] = None
    page = render_html(report)
    assert "None" not in page
    assert page.count("not recorded") == 2


def test_the_command_is_shown_where_it_is_known() -> None:
    report = two_arms(WON, 5)
    assert "tst compare CONFIG.yaml --seeds 5" in render_html(report)
    assert "tst demo --seeds 5" in render_html({**report, "command": "tst demo --seeds 5"})


if __name__ == "__main__":
    for study_name, make in STUDIES.items():
        write_report(make(), Path(sys.argv[1]) / study_name)
