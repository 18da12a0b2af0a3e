"""The report of realistic studies: what it says of each outcome, what its figures show, a page that is whole."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.study.one_budget import BASE, LOST, STUDIES, TOTAL, WON, fake_arm, fake_report, four_arms, two_arms
from tests.study.reports import Page, parse, render_html, said, verdict, write_report
from token_superposition.study.report.curves import all_series, end_window, whole_window


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_whole_page_that_fetches_nothing(study: str, tmp_path: Path) -> None:
    report = STUDIES[study]()
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(page)
    assert not re.search(r"https?:|@import|url\((?!#)|src=|href=", page)
    assert report["reasons"]["equal_data"] in page
    assert report["reasons"]["iso_loss"] in page
    assert "may flatter superposition" in page
    assert "-0." not in re.sub(r"<(script|style|path|svg|pre).*?>.*?</\1>|<[^>]*>", "", page, flags=re.S)  # true minus


@pytest.mark.parametrize(
    ("study", "outcome", "words"),
    [
        ("won", "won", "Superposition won: at the same compute its loss was 0.047 nats per byte better"),
        ("lost", "lost", "Superposition lost: at the same compute its loss was 0.032 nats per byte worse"),
        ("split", "undecided", "These seeds do not decide"),
        ("won-one-seed", "undecided", "One seed does not decide"),
        ("lost-one-seed", "undecided", "One seed does not decide"),
    ],
)
def test_the_headline_says_what_came_out(study: str, outcome: str, words: str) -> None:
    said = verdict(STUDIES[study]())
    assert said.outcome == outcome
    assert "at the same compute" in said.headline
    assert words in said.headline


def test_one_seed_is_told_what_to_do() -> None:
    words = verdict(two_arms(WON, 1))
    assert "--seeds 5" in words.next_step
    assert all(text in " ".join(row.text for row in words.rows) for text in ("no interval", "0.003", "0.01 to 0.03"))


def test_a_loss_says_whether_the_gap_was_still_closing() -> None:
    flat, closing = two_arms(LOST, 5, 8), two_arms(LOST, 5, 8)
    for seed in closing["arms"][1]["seeds"]:
        for point in seed["curve"]:
            point["validation_loss"] += 0.1 * (1 - point["step"] / TOTAL)
    assert "no longer shrinking" in said(flat)
    assert "still shrinking" in said(closing)
    assert "shrinking" not in said(two_arms(WON, 5))


def test_unequal_compute_is_not_called_equal() -> None:
    report = two_arms(WON, 5)
    for seed in report["arms"][1]["seeds"]:
        seed["flops"] *= 1.25
    assert "with 1.25 times the baseline’s compute" in verdict(report).headline
    page = render_html(report)
    assert "Not at equal compute" in page
    assert "Equal compute: measured" not in page


def test_the_best_of_several_arms_is_named_and_said_to_be_chosen() -> None:
    found = verdict(four_arms())
    assert "(“s=2, r=0.3”)" in found.headline
    assert "best of 3" in " ".join(row.text for row in found.notes)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("key", ["flops", "raw_tokens"])
def test_the_final_difference_can_be_seen(study: str, key: str) -> None:
    series = all_series(parse(STUDIES[study]()), key)
    whole = whole_window(series)
    end = end_window(series, whole)
    ends = [s.mean[-1].loss for s in series]
    if study != "split":  # whose arms end together
        assert (max(ends) - min(ends)) / (end.y[1] - end.y[0]) > 0.08  # 20 of the panel's 246 units
    assert all(end.y[0] < loss < end.y[1] for loss in ends)
    assert end.x[0] < min(s.mean[-1].x for s in series) <= end.x[1]


def test_the_first_steps_are_cut_off_but_superposition_is_not() -> None:
    series = all_series(parse(two_arms(WON, 5)), "flops")
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
    assert not whole_window(all_series(parse(report), "flops")).clipped


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
    Page(page)


@pytest.mark.parametrize("seeds", [1, 2])
def test_curves_may_be_short_missing_or_not_finite(seeds: int) -> None:
    report = two_arms(WON, seeds)
    baseline, superposition = report["arms"]
    del baseline["seeds"][0]["curve"][12:]
    superposition["seeds"][0]["curve"][3]["validation_loss"] = math.nan
    superposition["seeds"][-1]["curve"][4]["validation_loss"] = None
    Page(render_html(report))
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
