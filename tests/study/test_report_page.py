"""The report: what it says for each outcome, and a page that holds together."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_superposition.study.report import render_html, verdict, write_report
from token_superposition.study.report.curves import all_series
from token_superposition.study.report.marks import spread
from token_superposition.study.report.numbers import count_in_words, duration, power_of_ten, signed
from token_superposition.study.report.scale import Scale, tick_labels, ticks
from token_superposition.study.statistics import paired_difference

WON = (-0.05, -0.06, -0.045, -0.055, -0.052)
LOST = (0.05, 0.06, 0.045, 0.055, 0.052)
UNDECIDED = (-0.05, 0.06, -0.02, 0.03, -0.01)

STEPS, SWITCH, POSITIONS, FLOPS = 400, 120, 2048, 5_000_000


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
            "seed": number,
            "final_validation_loss": final,
            "bits_per_byte": final / math.log(2),
            "steps": STEPS,
            "positions": STEPS * POSITIONS,
            "raw_tokens": raw[STEPS] * POSITIONS,
            "unique_raw_tokens": raw[STEPS] * POSITIONS,
            "flops": STEPS * POSITIONS * FLOPS,
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


def make_report(
    deltas: Sequence[float] = WON, *, tokenizer: str = "bytes", arm: str = "superposition", bag_size: int = 2
) -> dict[str, Any]:
    """A report whose arm ends `deltas` above the baseline, a seed each."""
    theirs = [1.5 + 0.01 * number for number in range(len(deltas))]
    ours = [loss + delta for loss, delta in zip(theirs, deltas, strict=True)]
    found = paired_difference(ours, theirs)
    difference = {
        "baseline": "baseline",
        "arm": arm,
        "delta_nats": found.mean,
        "confidence_interval": None if found.interval is None else list(found.interval),
        "confidence_level": 0.95,
        "deltas": list(found.differences),
        "reason": found.reason,
    }
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


# The verdict.


def test_won_says_by_how_much_and_that_it_helped() -> None:
    words = verdict(make_report(WON))
    assert words.outcome == "won"
    assert "At equal compute superposition ended 0.052 nats per byte below the baseline" in words.headline
    assert "it helped" in words.headline
    assert "did not help" not in words.headline
    assert "95% interval −0.059 to −0.045" in words.details[0]
    assert "5 seeds" in words.details[0]


def test_lost_says_so_in_the_headline_and_why_it_may_be() -> None:
    words = verdict(make_report(LOST))
    assert words.outcome == "lost"
    assert "0.052 nats per byte above the baseline" in words.headline
    assert "did not help" in words.headline
    assert "interval +0.045 to +0.059" in words.details[0]
    assert any(f"too few next-token steps follow it; here {STEPS - SWITCH} did" in text for text in words.details)


def test_an_interval_that_holds_zero_decides_nothing() -> None:
    words = verdict(make_report(UNDECIDED))
    assert words.outcome == "undecided"
    assert "do not decide it" in words.headline
    assert "help" not in words.headline
    assert "includes zero" in words.details[0]


@pytest.mark.parametrize("delta", [-0.5, 0.5])
def test_one_seed_is_undecided_whatever_the_difference(delta: float) -> None:
    words = verdict(make_report([delta]))
    assert words.outcome == "undecided"
    assert f"0.500 nats per byte {'below' if delta < 0 else 'above'} the baseline" in words.headline
    assert "one seed does not decide it" in words.headline
    assert "help" not in words.headline
    assert any("no interval" in text for text in words.details)
    assert any("--seeds 5" in text for text in words.details)


def test_more_seeds_are_asked_for_where_they_are_few() -> None:
    for deltas in (WON, LOST, UNDECIDED):
        assert not any("--seeds" in text for text in verdict(make_report(deltas)).details)
        assert any("--seeds 5" in text for text in verdict(make_report(deltas[:3])).details)


@pytest.mark.parametrize("deltas", [WON, LOST, UNDECIDED, WON[:1]])
def test_only_bytes_are_said_to_flatter(deltas: Sequence[float]) -> None:
    def flatters(tokenizer: str) -> bool:
        return any("may flatter" in text for text in verdict(make_report(deltas, tokenizer=tokenizer)).details)

    assert flatters("bytes")
    assert not flatters("gpt2")
    assert "may flatter" not in render_html(make_report(deltas, tokenizer="gpt2"))


def test_the_unit_is_the_tokenizer_s() -> None:
    assert "nats per token" in verdict(make_report(tokenizer="gpt2")).headline
    assert "nats per byte" not in render_html(make_report(tokenizer="gpt2"))
    assert "nats per token" not in render_html(make_report(tokenizer="bytes"))


@pytest.mark.parametrize(("bag_size", "factor"), [(2, "1.30"), (4, "1.90")])
def test_the_price_in_raw_text_is_said(bag_size: int, factor: str) -> None:
    details = verdict(make_report(bag_size=bag_size)).details
    assert any(f"{factor} times the raw data" in text for text in details)
    assert f"× {factor}" in Page(render_html(make_report(bag_size=bag_size))).text


def test_text_that_was_read_again_is_said() -> None:
    report = make_report()
    assert not any("more than once" in text for text in verdict(report).details)
    for seed in report["arms"][1]["seeds"]:
        seed["unique_raw_tokens"] //= 2
    assert any("more than once" in text for text in verdict(report).details)


def test_a_difference_under_the_noise_is_called_that() -> None:
    assert any("noise" in text for text in verdict(make_report([-0.001, -0.0011, -0.0012])).details)
    assert not any("noise" in text for text in verdict(make_report(WON)).details)


def test_the_best_of_several_arms_was_chosen() -> None:
    report = make_report()
    assert not any("best of" in text for text in verdict(report).details)
    report["arms"].append(make_arm("bags of 4", [1.6] * 5, bag_size=4))
    report["equal_flops_all"].append({**report["equal_flops"], "arm": "bags of 4"})
    assert any("best of 2" in text for text in verdict(report).details)


def test_a_run_that_diverged_is_not_compared() -> None:
    report = make_report([-0.05, math.nan, -0.04])
    words = verdict(report)
    assert words.outcome == "undecided"
    assert "cannot be compared" in words.headline
    Page(render_html(report))


# The page.


@pytest.mark.parametrize("deltas", [WON, LOST, UNDECIDED, WON[:1], LOST[:1]])
def test_the_page_is_whole_and_loads_nothing(deltas: Sequence[float]) -> None:
    report = make_report(deltas)
    text = render_html(report)
    page = Page(text)
    assert page.panels == 4
    assert not {"link", "img", "iframe", "object", "base"} & set(page.seen)
    for forbidden in ("http://", "https://", "<script ", "@import", "url(//", "import(", "fetch("):
        assert forbidden not in text.lower()
    assert text.count("<script") == 1  # inline, the same for every report, and not needed
    assert not {"src", "href", "onload", "onclick"} & {key for key, _ in page.attributes}
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|not finite|not recorded", page.text)
    words = verdict(report)
    for said in (words.headline, *words.details):
        assert said in page.text
    assert page.text.index(words.headline) < page.text.index("Loss over compute")


def test_the_ids_of_a_page_are_unique_and_what_is_named_exists() -> None:
    text = render_html(make_report())
    attributes = Page(text).attributes
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids)) > 0
    named = set(re.findall(r"url\(#([^)]+)\)", text))
    named |= {name for key, value in attributes if key == "aria-labelledby" for name in str(value).split()}
    assert named == set(ids)


def test_a_name_is_a_text_and_not_a_tag() -> None:
    name = '<b>&"x'
    text = render_html(make_report(arm=name))
    assert name not in text
    assert "&lt;b&gt;&amp;&quot;x" in text
    assert Page(text).text.count(name) >= 6  # at the lines, in the tables


def test_other_texts_are_escaped_too() -> None:
    report = make_report()
    report["title"] = report["data"]["path"] = report["reasons"]["iso_loss"] = "<i>&"
    assert "<i>" not in render_html(report)
    Page(render_html(report))


def test_what_was_not_measured_is_on_the_page_with_its_reason() -> None:
    text = Page(render_html(make_report())).text
    assert "Equal data: not measured, because no arm had the same text" in re.sub(r" +(?=[,:])", "", text)
    assert "Equal loss (speed-up): not measured, because one budget was trained" in re.sub(r" +(?=[,:])", "", text)


def test_the_switch_is_marked() -> None:
    assert Page(render_html(make_report())).text.count("switch to next-token") >= 2
    report = make_report()
    for arm in report["arms"]:
        arm["switch_step"] = 0
    assert "switch to next-token" not in Page(render_html(report)).text


def test_seeds_are_listed_where_there_are_several() -> None:
    assert "Final validation loss of every seed" in render_html(make_report(WON))
    assert "Final validation loss of every seed" not in render_html(make_report(WON[:1]))


def test_the_same_report_gives_the_same_page_and_is_left_as_it_was() -> None:
    report = make_report()
    before = copy.deepcopy(report)
    assert render_html(report) == render_html(before) == render_html(report)
    assert report == before


def test_the_page_is_the_same_from_the_json() -> None:
    report = make_report()
    assert render_html(json.loads(json.dumps(report))) == render_html(report)


def test_more_arms_than_colours() -> None:
    report = make_report()
    finals = [seed["final_validation_loss"] for seed in report["arms"][1]["seeds"]]
    for number in range(8):
        report["arms"].append(make_arm(f"more {number}", finals, bag_size=2 + number))
        report["equal_flops_all"].append({**report["equal_flops"], "arm": f"more {number}"})
    page = Page(render_html(report))
    assert all(f"more {number}" in page.text for number in range(8))


@pytest.mark.parametrize("deltas", [WON, WON[:1]])
def test_curves_of_different_lengths(deltas: Sequence[float]) -> None:
    report = make_report(deltas)
    del report["arms"][0]["seeds"][0]["curve"][5:]
    del report["arms"][1]["seeds"][-1]["curve"][2:]
    page = Page(render_html(report))
    assert page.panels == 2  # the end of so few points is not drawn again, larger
    assert "enlarged" not in page.text


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_empty_curves(which: list[int]) -> None:
    report = make_report()
    for number in which:
        for seed in report["arms"][number]["seeds"]:
            seed["curve"] = []
    page = Page(render_html(report))
    assert page.panels == (0 if len(which) == 2 else 4)
    assert ("nothing to draw" in page.text) == (len(which) == 2)
    assert ("Without a curve" in page.text) == (len(which) == 1)


def test_one_empty_curve_of_several() -> None:
    report = make_report()
    report["arms"][1]["seeds"][2]["curve"] = []
    assert Page(render_html(report)).panels == 4


def test_equal_losses_everywhere_still_make_a_chart() -> None:
    report = make_report()
    for arm in report["arms"]:
        for seed in arm["seeds"]:
            for point in seed["curve"]:
                point["validation_loss"] = 2.0
    assert Page(render_html(report)).panels == 4


def test_both_files_are_written(tmp_path: Path) -> None:
    report = make_report()
    folder = tmp_path / "new"
    write_report(report, folder)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(report)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


# The figure's parts, and how numbers are written.


def test_the_mean_is_over_the_steps_all_seeds_have() -> None:
    report = make_report(WON[:2])
    del report["arms"][0]["seeds"][1]["curve"][3:]
    del report["arms"][0]["seeds"][0]["curve"][0]
    baseline = all_series(report, "flops")[0]
    assert [point.step for point in baseline.mean] == [40, 80]
    for point in baseline.mean:
        losses = [p.loss for line in baseline.seeds for p in line if p.step == point.step]
        assert point.loss == pytest.approx(sum(losses) / 2)


def test_the_switch_is_placed_on_each_axis() -> None:
    by_flops, by_raw = (all_series(make_report(), key) for key in ("flops", "raw_tokens"))
    assert by_flops[0].switch is None
    assert by_flops[1].switch == SWITCH * POSITIONS * FLOPS
    assert by_raw[1].switch == 2 * SWITCH * POSITIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (power_of_ten(2.466e14), "2.47 × 10¹⁴"),
        (power_of_ten(9.999e14), "1.00 × 10¹⁵"),
        (power_of_ten(512), "512"),
        (count_in_words(8_192_000), "8.19 million"),
        (count_in_words(999_999), "1.00 million"),
        (count_in_words(2_048), "2,048"),
        (count_in_words(1e12), "1.00 trillion"),
        (signed(-0.0874), "−0.087"),
        (signed(0.05), "+0.050"),
        (signed(-0.0001), "0.000"),
        (duration(252), "4 min 12 s"),
        (duration(3599.7), "1 h 00 min"),
        (duration(7500), "2 h 05 min"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(1e-2, 1e22))
def test_a_power_of_ten_reads_back(value: float) -> None:
    mantissa, _, power = power_of_ten(value).partition(" × 10")
    digits = power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) or "0"
    assert float(mantissa.replace(",", "")) * 10 ** int(digits) == pytest.approx(value, rel=0.0051)


def test_a_scale_maps_its_ends() -> None:
    scale = Scale(2, 4, start=100, end=20)
    assert (scale(2), scale(3), scale(4)) == (100, 60, 20)
    assert ticks(2, 4, 4) == [2, 2.5, 3, 3.5, 4]


@given(low=st.floats(-100, 100), width=st.floats(1e-3, 1e18), about=st.integers(2, 12))
def test_ticks_are_round_and_inside(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    assert math.floor(about / 1.6) <= len(found) <= about * 1.6 + 1
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    for before, after in itertools.pairwise(found):
        step = after - before
        share = step / 10 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert any(share == pytest.approx(round_one, rel=1e-5) for round_one in (1, 2, 5)), step
        assert before / step == pytest.approx(round(before / step), abs=1e-3)  # a multiple of it


@given(low=st.floats(0, 10), width=st.floats(1e-3, 1e6))
def test_the_labels_of_ticks_are_their_values(low: float, width: float) -> None:
    found = ticks(low, low + width)
    labels = tick_labels(found)
    assert len(set(labels)) == len(found) >= 2
    assert [float(label) for label in labels] == pytest.approx(found, abs=1e-6 * width)


@given(st.lists(st.floats(0, 250), min_size=1, max_size=12))
def test_names_do_not_run_into_one_another(wanted: list[float]) -> None:
    placed = spread(wanted, 250, 15)
    ordered = sorted(placed)
    assert all(after - before >= 15 - 1e-6 for before, after in itertools.pairwise(ordered))
    assert ordered[-1] <= 250 + 1e-6
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert all(placed[i] <= placed[j] for i, j in itertools.pairwise(order))
