"""What the report says for each outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.study.one_budget import fake_arm, fake_report
from tests.study.reports import LOST, STEPS, SWITCH, UNDECIDED, WON, Page, make_arm, make_report
from token_superposition.study.report import render_html, verdict


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


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("size", "where"),
    [
        (0.0003, "ended level with the baseline, within 0.0005 nats per byte"),
        (0.0029, "ended level with the baseline, 0.0029 nats per byte {side} it"),
    ],
)
def test_a_tiny_difference_that_all_seeds_share_is_level(sign: int, size: float, where: str) -> None:
    report = make_report([sign * (size + number * 0.00001) for number in (-2, -1, 0, 1, 2)])
    words = verdict(report)
    assert words.outcome == "level"
    side = "below" if sign < 0 else "above"
    assert words.headline == (
        f"At equal compute superposition {where.format(side=side)}: too little to count as a gain or a loss."
    )
    written = f"{'−' if sign < 0 else '+'}{size:.4f}"
    assert f"The difference is {written} nats per byte" in words.details[0]
    assert "0.000 " not in words.details[0]
    assert "includes zero" not in words.details[0]
    assert any("noise" in text for text in words.details)
    assert not any("Superposition costs" in text for text in words.details)
    assert f"Difference in validation loss {written}" in Page(render_html(report)).text


@pytest.mark.parametrize("deltas", [[0.0001], [-0.02, 0.021, -0.0012]])
def test_level_is_not_said_where_seeds_do_not_decide(deltas: Sequence[float]) -> None:
    words = verdict(make_report(deltas))
    assert words.outcome == "undecided"
    assert "ended within 0.0005 nats per byte of the baseline, but" in words.headline
    assert "level" not in words.headline


def test_the_side_of_zero_that_an_interval_lies_on_can_be_read() -> None:
    words = verdict(make_report([-0.02793, -0.02, -0.01207]))
    assert words.outcome == "won"
    assert "95% interval −0.0397 to −0.0003" in words.details[0]


def test_the_best_of_several_arms_was_chosen() -> None:
    report = make_report()
    assert not any("best of" in text for text in verdict(report).details)
    report["arms"].append(make_arm("bags of 4", [1.6] * 5, bag_size=4))
    report["equal_flops_all"].append({**report["equal_flops"], "arm": "bags of 4"})
    assert any("best of 2" in text for text in verdict(report).details)


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
    assert "(“b”) ended 0.045 nats per byte below" in words.headline
    assert "Of the other arms, “c” (−0.040) ended clearly below the baseline." in words.details
    assert "Lower on average, but not decided by these seeds: “a” (−0.056)." in words.details
    alone = verdict(of_arms(b=[-0.0445, -0.045, -0.0455])).details
    assert not any("other arms" in text or "Lower on average" in text for text in alone)


def test_the_best_of_several_arms_is_held_to_a_wider_interval() -> None:
    barely = [-0.045, -0.085, -0.080]
    assert verdict(of_arms(a=barely)).outcome == "won"
    words = verdict(of_arms(a=barely, b=LOST[:3], c=LOST[:3]))
    assert words.outcome == "undecided"
    assert words.headline.endswith("below the baseline, but as the best of 3 arms these seeds do not decide it.")
    assert "95% interval −0.124 to −0.016" in words.details[0]
    assert "includes zero" not in words.details[0]
    said = " ".join(words.details)
    assert "best of 3 superposition arms, chosen by its result, so it counts as a gain only where a wider" in said
    assert "the 98.3% interval, −0.166 to +0.026, does not." in said
    sure = verdict(of_arms(a=WON, b=LOST))
    assert sure.outcome == "won"
    assert any("the 97.5% interval, −0.061 to −0.044, does." in text for text in sure.details)
    assert not any("wider" in text for text in verdict(of_arms(a=LOST, b=LOST)).details)


def test_a_run_that_diverged_is_not_compared() -> None:
    report = make_report([-0.05, math.nan, -0.04])
    words = verdict(report)
    assert words.outcome == "undecided"
    assert "cannot be compared" in words.headline
    Page(render_html(report))
