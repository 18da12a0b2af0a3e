"""What the report says and shows of several budgets, equal data and the switch."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest

from tests.study.reports import Page, render_html, said, verdict
from tests.study.synthetic import FAR, LATE, NEVER, STUDIES, finish, make_study, tuned
from token_superposition.study.report.panel import log_ticks, short_names

Report = dict[str, Any]


def text_of(report: Report) -> str:
    return re.sub(r" +(?=[,.:;])", "", Page(render_html(report)).text)


def table(report: Report, number: int) -> list[list[str]]:
    """A table's rows, the words of each."""
    page = render_html(report)
    part = page[page.index(f"<b>Table {number}.</b>") :]
    rows = re.findall(r"<tr.*?</tr>", part[: part.index("</table>")], re.S)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def drawing(report: Report, name: str) -> str:
    page = render_html(report)
    part = page[page.index(f'aria-labelledby="{name}-t') :]
    return part[: part.index("</svg>")]


@pytest.mark.parametrize("study", STUDIES)
def test_every_page_is_whole_and_numbered_in_order(study: str) -> None:
    report = STUDIES[study]()
    before = copy.deepcopy(report)
    html = render_html(report)
    page = Page(html)
    assert report == before
    assert html == render_html(json.loads(json.dumps(report)))
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for kind in ("Figure", "Table"):
        numbers = [int(found) for found in re.findall(rf"<b>{kind} (\d+)\.</b>", html)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert all(1 <= int(found) <= len(numbers) for found in re.findall(rf"{kind} (\d+)", page.text))
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|not recorded", page.text)
    assert not re.search(r"https?:|@import|url\((?!#)|src=|href=", html)
    words = verdict(report)
    assert all(line in page.text for line in (words.headline, *(row.text for row in words.rows)))


def test_the_headline_and_the_box_give_the_difference_and_the_speedup() -> None:
    report = make_study()
    number = f"{report['iso_loss']['speedup']:.2f}"
    low, high = report["iso_loss"]["confidence_interval"]
    assert verdict(report).headline.endswith(f"and it reached the baseline’s loss with {number} times less compute.")
    text = text_of(report)
    assert f"Compute for the baseline’s loss {number}× less its loss at 4,000 steps 95% interval {low:.2f} to" in text
    assert "Difference at equal compute 0.052 better" in text
    assert f"with {number} times less compute (95% interval {low:.2f} to {high:.2f}) and " in said(report)
    assert "times less measured time" in said(report)
    assert "busier" not in said(report)


@pytest.mark.parametrize(
    ("slow", "words"),
    [
        (0, "The baseline’s steps took 1.4. times as long as superposition’s, .* go by the compute"),
        (1, "Superposition’s steps took 1.5. times as long as the baseline’s"),
    ],
)
def test_measured_seconds_that_do_not_follow_from_the_flops_are_not_taken_at_their_word(slow: int, words: str) -> None:
    report = make_study()
    for budget in report["arms"][slow]["budgets"]:
        for seed in budget["seeds"]:
            seed["wall_seconds"] *= 1.5
    assert re.search(words, said(finish(report)))


def test_without_readings_in_seconds_there_is_no_measured_time() -> None:
    report = make_study()
    report["iso_loss_all"] = [each for each in report["iso_loss_all"] if each["unit"] == "flops"]
    assert "times less compute" in said(report)
    assert "measured time" not in text_of(report)
    number = int(re.search(r"<b>Table (\d+)\.</b> Speed-up", render_html(report))[1])  # type: ignore[index]
    assert [row[2] for row in table(report, number)[1:]] == ["–", "–"]


def test_steps_that_were_skipped_are_told_with_their_budget() -> None:
    report = make_study()
    report["arms"][1]["budgets"][0]["seeds"][0]["skipped_steps"] = 2
    assert "superposition at 1,000 steps, seed 0: 2." in text_of(report)


def test_the_file_that_repeats_a_run_is_named() -> None:
    named = "runs/ARM/STEPS-steps/seed-N/config.yaml (runs/ARM/seed-N/config.yaml for a run first trained alone)"
    assert named in text_of(make_study()).replace("( ", "(")
    assert "runs/ARM/SETTING/STEPS-steps/seed-N/config.yaml" in text_of(STUDIES["tuned"]())
    assert "STEPS-steps" not in text_of(STUDIES["one-budget"]())
    report = STUDIES["one-budget"]()
    assert "made longer" not in text_of(report)
    report["arms"][1]["seeds"][0]["first_total_steps"] = 1
    report["arms"][1].pop("budgets", None)
    assert "a run that was made longer or shorter" in text_of(report)


def test_the_arrow_runs_from_superposition_s_compute_to_the_baseline_s() -> None:
    report = make_study()
    figure = drawing(report, "budgets-loss")
    ((start, level, end),) = re.findall(r'class="arrow" d="M([\d.]+) ([\d.]+)H([\d.]+)"', figure)
    start, level, end = float(start), float(level), float(end)
    marks = [
        tuple(map(float, at)) for at in re.findall(r'<circle class="mark arm-0" cx="([\d.]+)" cy="([\d.]+)"', figure)
    ]
    assert (end, level) in marks  # the baseline's last budget
    assert start < end
    doubling = marks[2][0] - marks[1][0]  # the axis is logarithmic
    assert (end - start) / doubling == pytest.approx(math.log2(report["iso_loss"]["speedup"]), abs=0.01)
    assert f"{report['iso_loss']['speedup']:.2f}× less compute" in figure
    assert figure.count('class="band') == 2
    assert 'class="arrow"' not in drawing(STUDIES["out-of-range"](), "budgets-loss")


def test_a_speedup_below_one_is_turned_over() -> None:
    report = make_study(NEVER)
    reading = next(r for r in report["iso_loss_all"] if r["read_at"] == "superposition_end" and r["unit"] == "flops")
    more = f"{1 / reading['speedup']:.2f}"
    low, high = reading["confidence_interval"]
    assert f"{more}× more compute" in drawing(report, "budgets-loss")
    assert f"95% interval {1 / high:.2f} to {1 / low:.2f}" in drawing(report, "budgets-loss")
    assert f"which the baseline reaches in a shorter run, it took {more} times more compute" in said(report)
    assert table(report, 1)[2][1].split()[:2] == [f"{more}×", "more"]


def test_out_of_range_is_said_with_what_is_known() -> None:
    won, lost = STUDIES["out-of-range"](), make_study(NEVER)
    assert "Compute for the baseline’s loss over 4.00× less its loss at 4,000 steps" in text_of(won)
    assert "so the speed-up is more than 4.00; a shorter budget would tell." in said(won)
    assert "No speed-up is drawn" in text_of(won)
    assert "Compute for the baseline’s loss not reached its loss at 4,000 steps" in text_of(lost)
    assert "so the speed-up is less than 1.00; a longer budget would tell." in said(lost)
    assert "times less compute" not in verdict(won).headline


def test_a_bound_of_one_seed_is_said_to_be_that() -> None:
    won, lost = make_study(FAR, num_seeds=1), make_study(NEVER, num_seeds=1)
    assert "over 4.00× less its loss at 4,000 steps one seed, no interval" in text_of(won)
    assert "so in this one seed, which gives no interval, the speed-up is more than 4.00" in said(won)
    assert "not reached its loss at 4,000 steps one seed, no interval" in text_of(lost)
    assert "one seed, no interval" not in text_of(STUDIES["out-of-range"]())


def test_budgets_have_a_table_with_differences_tokens_and_rates() -> None:
    rows = table(tuned(make_study(LATE)), 2)
    assert rows[0][1:] == ["Final loss", "Difference", "Learning rate", "Raw bytes read", "Compute, FLOPs", "Wall time"]
    assert [row[0] for row in rows if len(row) == 1] == [
        "1,000 steps",
        "2,000 steps",
        "4,000 steps",
        "7,600 steps, for equal data",
    ]
    assert rows[3][0] == "superposition"
    assert rows[3][2].startswith("0.1391 worse")
    assert rows[3][3:5] == ["0.002", "3.89 million"]
    assert rows[-1][0].split() == ["superposition", "of", "4,000", "steps"]
    report = make_study(LATE)
    data = report["equal_data"]
    assert table(report, 2)[-1][2].startswith(f"{data['delta_nats']:.4f} worse")


def test_equal_data_says_what_was_bought_with_text() -> None:
    words = said(make_study())
    assert "Against a baseline of 7,600 steps (1.90 times the compute) that read as much text" in words
    assert "bought its gain at equal compute with text" in words
    assert "at equal data the paper finds it behind" not in words
    assert "Its gain is more than the additional text" in said(STUDIES["out-of-range"]())
    lost = said(make_study(NEVER))
    assert "that read as much text" in lost
    assert "bought its gain" not in lost
    assert "at equal data the paper finds it behind" in said(STUDIES["no-equal-data"]())
    assert "Equal data Not measured: it was not asked for (--equal-data)." in text_of(STUDIES["no-equal-data"]())


@pytest.mark.parametrize("sign", [-1, 1])
def test_equal_data_within_the_noise_is_level(sign: int) -> None:
    report = make_study()
    longer = next(budget for budget in report["arms"][0]["budgets"] if budget["kind"] == "equal_data")
    for number, (theirs, ours) in enumerate(zip(longer["seeds"], report["arms"][1]["seeds"], strict=True)):
        theirs["final_validation_loss"] = ours["final_validation_loss"] - sign * (0.001 + 0.00001 * number)
    side = "better" if sign < 0 else "worse"
    words = said(finish(report))
    assert f"superposition ended level with it (0.0010 nats per byte {side}, within the noise" in words
    assert "bought its gain at equal compute with text" in words
    assert "Its gain is more than the additional text" not in words
    assert f"Difference at equal data 0.0010 {side}" in text_of(report)


def test_equal_data_of_the_best_of_several_arms_is_held_to_a_wider_interval() -> None:
    report = make_study((("a", 2, 0.3, 3.0), ("b", 2, 0.3, 0.7), ("c", 2, 0.3, 0.7)), num_seeds=3, shared=0)
    longer = next(budget for budget in report["arms"][0]["budgets"] if budget["kind"] == "equal_data")
    for theirs, delta, ours in zip(longer["seeds"], (-0.045, -0.085, -0.08), report["arms"][1]["seeds"], strict=True):
        theirs["final_validation_loss"] = ours["final_validation_loss"] - delta
    assert verdict(finish(report)).outcome == "won"
    assert "(95% interval 0.016 to 0.124 better). For the best of 3 arms these seeds do not decide." in said(report)


def test_where_it_starts_to_win_is_said() -> None:
    late = said(make_study(LATE))
    assert "It is clearly better from 4,000 steps on." in late
    assert "It is clearly better at every budget." in said(make_study())
    for words in (
        "0.139 nats per byte worse at 1,000 steps (clearly worse)",
        "0.038 nats per byte better at 4,000 steps",
    ):
        assert words in late


def test_a_report_of_one_budget_stays_as_it_was() -> None:
    report = make_study(budgets=[4000], equal_data=False)
    text = text_of(report)
    assert "Budget by budget" not in text
    assert said(report, "Length of the run") == ""
    assert "Equal loss Not measured: one budget was trained" in text
    assert "Table 1. The arms. Means over 5 seeds." in text
    assert "Training compute equal" in text


def test_one_seed_claims_nothing() -> None:
    report = make_study(num_seeds=1)
    words = verdict(report)
    assert words.outcome == "undecided"
    assert "One seed does not decide" in words.headline
    assert "One seed gives no interval." in said(report)
    assert "clearly" not in said(report)
    assert "bought its gain" not in said(report)
    figure = drawing(report, "budgets-loss")
    assert "no interval" in figure
    assert 'class="band' not in figure
    assert "Bands" not in text_of(report)
    assert "Bands: from the lower seed to the higher." in text_of(make_study(num_seeds=2))


def test_a_speedup_that_may_be_none_is_not_claimed() -> None:
    report = STUDIES["noise"]()
    assert report["iso_loss"]["confidence_interval"][0] < 1
    assert "these seeds do not decide whether it saves compute" in said(report)
    assert "times less compute" not in verdict(report).headline
    assert "bought its gain" not in said(report)  # nothing was gained beyond doubt


def test_the_switch_is_told_for_every_arm() -> None:
    text = text_of(STUDIES["four-arms"]())
    assert text.count("superposition’s next-token loss was") == 3
    assert "“s=4, r=0.2”: At the switch (step 800) superposition’s next-token loss was 1.99 nats per byte worse" in text
    assert "From step 1,200, 400 steps after the switch, it stayed level with the baseline or better." in text
    lost = make_study(NEVER)
    assert "Superposition did not get ahead: at step 4,000 it was still 0.050 nats worse." in text_of(lost)
    assert "2,800 steps followed the switch" in said(lost, "Why it may have lost")


def test_all_runs_are_counted_and_their_lengths_said() -> None:
    text = text_of(tuned(make_study()))
    assert "Trained 35 times (2 arms × 3 budgets × 5 seeds, and the baseline 5 times for equal data)" in text
    assert "and 18 times more for the sweep (2 arms × 3 settings × 1 seed × 3 budgets)" in text
    assert "1,000, 2,000 or 4,000 (for equal data 7,600) optimizer steps" in text
    assert "linear decay over the last 20% of the steps" in text
    assert "peak learning rate as in the tables" in text


def test_the_sweep_of_every_budget_is_shown() -> None:
    report = tuned(make_study())
    words = said(report)
    assert "its own best learning rate of 3 tried at every budget; at 4,000 steps: 0.001 for both" in words
    assert "The best learning rate of baseline at 1,000 steps is at the edge of the range (0.004" in words
    rows = table(report, 5)
    assert [row[0] for row in rows if len(row) == 1] == ["1,000 steps", "2,000 steps", "4,000 steps"]
    assert sum("chosen" in cell for row in rows for cell in row) == 6
    for steps in ("1,000", "2,000", "4,000"):
        assert f"Learning rate, {steps} steps" in text_of(report)


def test_the_baseline_of_equal_data_is_said_not_to_be_tuned() -> None:
    report = tuned(make_study())
    assert "The baseline for equal data (7,600 steps) was trained at learning rate 0.001, its best at 4,000" in said(
        report
    )
    report["sweep"] |= report["sweep"].pop("budgets")[0]
    assert "at learning rate 0.004, its best at 1,000 steps, and was not tuned at its own length" in said(report)
    for other in (tuned(make_study(equal_data=False)), make_study()):
        assert "not tuned at its own length" not in said(other)


def test_a_sweep_at_one_budget_says_so() -> None:
    report = tuned(make_study())
    first = report["sweep"].pop("budgets")[0]
    report["sweep"] |= first
    words = said(report)
    assert "best learning rate of 3 tried at 1,000 steps, for every budget: 0.004 for baseline, 0.002" in words
    text = text_of(report)
    assert "The values were chosen at 1,000 steps; the best at another budget may differ." in text
    assert "6 times more for the sweep (2 arms × 3 settings × 1 seed)" in text
    assert "Final validation loss after 1,000 steps at every value tried" in text
    assert "Final validation loss after 1,000 steps of every setting tried" in text
    assert sum("chosen" in cell for row in table(report, 5) for cell in row) == 2


def test_losses_that_are_missing_leave_the_rest() -> None:
    report = make_study()
    report["arms"][1]["budgets"][0]["seeds"][0]["final_validation_loss"] = math.nan
    finish(report)
    page = Page(render_html(report))
    assert "not finite" in page.text
    assert report["iso_loss"]["speedup"] > 1
    assert "(without 1,000 steps, where a run has no finite loss or compute)" in page.text
    for arm in report["arms"]:
        for budget in arm["budgets"]:
            for run in budget["seeds"]:
                run["final_validation_loss"] = math.nan
    finish(report)
    assert "No final loss is finite, so there is nothing to draw." in Page(render_html(report)).text


def test_shorter_runs_do_not_flatten_what_decides() -> None:
    for panel, highest in (("budgets-gap", 0.3), ("budgets-loss", 2.0)):  # at 250 steps 0.98, and 3.3
        figure = drawing(STUDIES["six-budgets"](), panel)
        labels = [float(each.replace("−", "-")) for each in re.findall(r'text-anchor="end">([−\d.]+)</text>', figure)]
        assert max(labels) < highest
    assert "Runs under 1,000 steps may be above the frame, which is cut off." in text_of(STUDIES["six-budgets"]())
    assert "cut off" not in text_of(make_study()).split("Figure 2")[0]


def test_names_that_begin_alike_are_told_apart() -> None:
    assert short_names(["superposition with a", "b"], 20) == ["superposition with a", "b"]
    names = short_names(["superposition with bags of four", "superposition with bags of two"], 20)
    assert names == ["superposi…gs of four", "superposi…ags of two"]
    assert short_names(["superposition with bags of four"], 20) == ["superposition with…"]


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (6.2, 47), (0.9, 3.3), (12.1, 12.9), (3e12, 4e14)])
def test_log_ticks_are_inside_and_several(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert len(found) >= 2
    assert all(low <= tick <= high for tick in found)
    assert found == sorted(found)
