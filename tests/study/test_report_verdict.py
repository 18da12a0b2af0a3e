"""What the report says for each outcome."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.study.one_budget import fake_arm, fake_report
from tests.study.reports import (
    LOST,
    STEPS,
    SWITCH,
    UNDECIDED,
    WON,
    Page,
    make_arm,
    make_report,
    render_html,
    said,
    verdict,
)


def test_won_says_by_how_much_and_that_it_helped() -> None:
    words = verdict(make_report(WON))
    assert words.outcome == "won"
    assert "won: at the same compute its loss was 0.052 nats per byte better" in words.headline
    assert "in all 5 seeds" in words.headline
    assert "95% interval 0.045 to 0.059 better" in words.facts[0].text
    assert "5 seeds" in words.facts[0].text


def test_lost_says_so_in_the_headline_and_why_it_may_be() -> None:
    words = verdict(make_report(LOST))
    assert words.outcome == "lost"
    assert "lost: at the same compute its loss was 0.052 nats per byte worse" in words.headline
    assert "in all 5 seeds" in words.headline
    assert "interval 0.045 to 0.059 worse" in words.facts[0].text
    assert f"{STEPS - SWITCH} steps followed the switch" in said(make_report(LOST), "Why it may have lost")


def test_an_interval_that_holds_zero_decides_nothing() -> None:
    words = verdict(make_report(UNDECIDED))
    assert words.outcome == "undecided"
    assert "do not decide whether superposition helps" in words.headline
    assert "level" not in words.headline
    assert "includes zero" in words.facts[0].text


@pytest.mark.parametrize(("share", "lost"), [(0.2, True), (0.0, False)])
def test_text_that_the_tokenizer_lost_stands_beside_the_bits_per_byte(share: float, lost: bool) -> None:
    report = make_report(WON)
    report["data"]["text_lost"] = share
    assert ("lost 20.0% of the characters" in said(report)) == lost


@pytest.mark.parametrize("delta", [-0.5, 0.5])
def test_one_seed_is_undecided_whatever_the_difference(delta: float) -> None:
    words = verdict(make_report([delta]))
    assert words.outcome == "undecided"
    assert f"0.500 nats per byte {'better' if delta < 0 else 'worse'}" in words.headline
    assert "One seed does not decide" in words.headline
    assert "no interval" in said(make_report([delta]), "Equal compute")
    assert "--seeds 5" in words.next_step


def test_more_seeds_are_asked_for_where_they_are_few() -> None:
    for deltas in (WON, LOST, UNDECIDED):
        assert "--seeds 5" in verdict(make_report(deltas[:3])).next_step
        asked = "--seeds 10" in verdict(make_report(deltas)).next_step
        assert asked == (deltas == UNDECIDED)  # the others are decided


@pytest.mark.parametrize("deltas", [WON, LOST, UNDECIDED, WON[:1]])
def test_only_bytes_are_said_to_flatter(deltas: Sequence[float]) -> None:
    def flatters(tokenizer: str) -> bool:
        return "may flatter" in said(make_report(deltas, tokenizer=tokenizer))

    assert flatters("bytes")
    assert not flatters("gpt2")
    assert "may flatter" not in render_html(make_report(deltas, tokenizer="gpt2"))


def test_the_unit_is_the_tokenizer_s() -> None:
    assert "nats per token" in verdict(make_report(tokenizer="gpt2")).headline
    assert "nats per byte" not in render_html(make_report(tokenizer="gpt2"))
    assert "nats per token" not in render_html(make_report(tokenizer="bytes"))


@pytest.mark.parametrize(("bag_size", "factor"), [(2, "1.30"), (4, "1.90")])
def test_the_price_in_raw_text_is_said(bag_size: int, factor: str) -> None:
    assert f"{factor} times the raw data" in said(make_report(bag_size=bag_size), "Text read")
    assert f"× {factor}" in Page(render_html(make_report(bag_size=bag_size))).text


def test_text_that_was_read_again_is_said() -> None:
    report = make_report()
    assert "more than once" not in said(report)
    for seed in report["arms"][1]["seeds"]:
        seed["unique_raw_tokens"] //= 2
    assert "more than once" in said(report)


def test_a_difference_under_the_noise_is_called_that() -> None:
    assert "noise" in said(make_report([-0.001, -0.0011, -0.0012]))
    assert "noise" not in said(make_report(WON))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [0.0003, 0.0029])
def test_a_tiny_difference_that_all_seeds_share_is_level(sign: int, size: float) -> None:
    report = make_report([sign * (size + number * 0.00001) for number in (-2, -1, 0, 1, 2)])
    words = verdict(report)
    assert words.outcome == "level"
    side = "better" if sign < 0 else "worse"
    assert "ended level" in words.headline
    assert f"{size:.4f} nats per byte {side}, which is within the noise" in words.headline
    assert f"{size:.4f} nats per byte {side}" in words.facts[0].text
    assert "0.000 " not in words.facts[0].text
    assert "includes zero" not in words.facts[0].text
    assert "noise" in said(report, "Equal compute")
    assert not said(report, "Why it may have lost")
    assert f"Difference in validation loss {size:.4f} {side}" in Page(render_html(report)).text


@pytest.mark.parametrize("deltas", [[0.0001], [-0.02, 0.021, -0.0012]])
def test_level_is_not_said_where_seeds_do_not_decide(deltas: Sequence[float]) -> None:
    words = verdict(make_report(deltas))
    assert words.outcome == "undecided"
    assert "not decide" in words.headline
    assert "level" not in words.headline


def test_the_side_of_zero_that_an_interval_lies_on_can_be_read() -> None:
    words = verdict(make_report([-0.02793, -0.02, -0.01207]))
    assert words.outcome == "won"
    assert "95% interval 0.0003 to 0.0397 better" in words.facts[0].text


def test_the_best_of_several_arms_was_chosen() -> None:
    report = make_report()
    assert "best of" not in said(report)
    report["arms"].append(make_arm("bags of 4", [1.6] * 5, bag_size=4))
    report["equal_flops_all"].append({**report["equal_flops"], "arm": "bags of 4"})
    assert "best of 2" in said(report)


def of_arms(**deltas: Sequence[float]) -> dict[str, Any]:
    """A report of several arms, which ended this much above the baseline, a seed each."""
    theirs = [1.5 + 0.01 * number for number in range(len(next(iter(deltas.values()))))]
    arms = [("baseline", 1, theirs)]
    arms += [(name, 2, [loss + delta for loss, delta in zip(theirs, its, strict=True)]) for name, its in deltas.items()]
    return fake_report([fake_arm(name, bag_size, 0.3, finals) for name, bag_size, finals in arms])


def test_an_arm_that_won_is_not_hidden_by_a_lower_one_whose_seeds_lie_apart() -> None:
    report = of_arms(a=[-0.136, -0.016, -0.016], b=[-0.0445, -0.045, -0.0455], c=[-0.0402, -0.04, -0.0398])
    words = verdict(report)
    assert words.outcome == "won"
    assert "(“b”) won: at the same compute its loss was 0.045 nats per byte better" in words.headline
    assert "clearly better than the baseline: “c” (0.040 better)." in said(report)
    assert "undecided: “a” (0.056 better)." in said(report)
    assert not said(of_arms(b=[-0.0445, -0.045, -0.0455]), "Best of several")


def test_the_best_of_several_arms_is_held_to_a_wider_interval() -> None:
    barely = [-0.045, -0.085, -0.080]
    assert verdict(of_arms(a=barely)).outcome == "won"
    words = verdict(of_arms(a=barely, b=LOST[:3], c=LOST[:3]))
    assert words.outcome == "undecided"
    assert words.headline.startswith("For the best of 3 arms these seeds do not decide")
    assert "95% interval 0.016 to 0.124 better" in words.facts[0].text
    assert "includes zero" not in words.facts[0].text
    chosen = said(of_arms(a=barely, b=LOST[:3], c=LOST[:3]), "Best of several")
    assert "best of 3" in chosen
    assert "the 98.3% interval, 0.166 better to 0.026 worse, is not." in chosen
    sure = verdict(of_arms(a=WON, b=LOST))
    assert sure.outcome == "won"
    assert "the 97.5% interval, 0.044 to 0.061 better, is." in said(of_arms(a=WON, b=LOST))
    assert "wider" not in said(of_arms(a=LOST, b=LOST))


def test_a_run_that_diverged_is_not_compared() -> None:
    report = make_report([-0.05, math.nan, -0.04])
    words = verdict(report)
    assert words.outcome == "undecided"
    assert "cannot be compared" in words.headline
    assert "diverged" in words.headline
    assert "learning rate" in words.next_step
    Page(render_html(report))


def test_a_run_that_has_not_finished_is_to_be_continued() -> None:
    report = make_report(WON)
    report["arms"][1]["seeds"][2]["final_validation_loss"] = None
    report["command"] = "tst compare study.yaml --seeds 5"
    words = verdict(report)
    assert "cannot be compared" in words.headline
    assert "not finished" in words.headline
    assert "same command again" in words.next_step
    assert report["command"] in words.next_step


@pytest.mark.parametrize(
    ("at_once", "time"), [(1, "about 10 minutes"), (4, "about 3 minutes"), (100, "about 1 minute")]
)
def test_the_next_step_is_a_command_with_the_time_it_takes(at_once: int, time: str) -> None:
    report = make_report(WON[:1])  # both arms took 75.25 s: four seeds more are 602 s of runs
    report |= {"command": "tst compare 'my study.yaml' --seeds 1 --out runs/x", "runs_at_once": at_once}
    words = verdict(report).next_step
    assert words.endswith("tst compare 'my study.yaml' --seeds 5 --out runs/x")
    assert f"({time} on this machine)" in words


def test_steps_that_are_shared_are_not_trained_again_in_the_next_step() -> None:
    report = make_report(WON[:1])
    for arm in report["arms"]:
        arm["seeds"][0] |= {"wall_seconds": 3600.0, "shared_steps": STEPS // 2}
    assert "about 4 hours" in verdict(report).next_step
    del report["arms"][0]["seeds"][0]["wall_seconds"]
    assert "about" not in verdict(report).next_step


def test_people_read_no_signs_of_differences() -> None:
    for deltas in (WON, LOST, UNDECIDED, WON[:1], (0.001, 0.0011, 0.0012)):
        report = make_report(deltas)
        words = verdict(report)
        shown = re.sub(r"<(script|style|pre).*?</\1>", "", render_html(report), flags=re.S)
        for text in (words.headline, words.next_step, *(row.text for row in words.rows), Page(shown).text):
            assert not re.search(r"[+\-−]\d*\.\d", text)


@pytest.mark.parametrize(
    ("deltas", "said", "not_said"),
    [
        (WON, "clearly better", "undecided"),
        (LOST, "clearly worse", "undecided"),
        (UNDECIDED, "undecided", "level, within noise"),
        (WON[:1], "undecided", "clearly"),
        ((0.0010, 0.0011, 0.0012), "level, within noise", "undecided"),
    ],
)
def test_the_table_says_undecided_and_level_by_name(deltas: Sequence[float], said: str, not_said: str) -> None:
    page = Page(render_html(make_report(deltas))).text
    row = page[page.index("Difference to the baseline") :].partition("Bits per byte")[0]
    assert said in row
    assert not_said not in row
