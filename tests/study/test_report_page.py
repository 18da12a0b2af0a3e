"""The report's page holds together."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.study.reports import (
    LOST,
    UNDECIDED,
    WON,
    Page,
    make_arm,
    make_report,
    render_html,
    verdict,
    write_report,
)


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
    for line in (words.headline, *(row.text for row in words.rows)):
        assert line in page.text
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
    assert "Equal data Not measured: no arm had the same text." in text
    assert "Equal loss Not measured: one budget was trained." in text


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


def test_seconds_are_not_compared_where_runs_had_different_numbers_of_threads() -> None:
    report = make_report()
    assert report["settings"]["num_threads"] == 1
    assert re.search(r"Wall time [^×]+ × 1\.00 Peak memory", Page(render_html(report)).text)
    for arm, threads in zip(report["arms"], (1, 4), strict=True):
        for seed in arm["seeds"]:
            seed["num_threads"] = threads
    report["settings"]["num_threads"] = None
    text = Page(render_html(report)).text
    assert "Seconds are not compared: the runs had different numbers of threads (1 or 4)." in text
    assert re.search(r"Wall time [^×]+ Peak memory", text)


def test_steps_that_were_skipped_are_told() -> None:
    report = make_report()
    for arm in report["arms"]:
        for seed in arm["seeds"]:
            seed["skipped_steps"] = 0
    assert "Steps skipped" not in Page(render_html(report)).text
    report["arms"][0]["seeds"][1]["skipped_steps"] = 1
    report["arms"][1]["seeds"][3]["skipped_steps"] = 10
    text = Page(render_html(report)).text
    assert "not finite: baseline, seed 1: 1; superposition, seed 3: 10." in text


def test_both_files_are_written(tmp_path: Path) -> None:
    report = make_report()
    folder = tmp_path / "new"
    write_report(report, folder)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(report)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
