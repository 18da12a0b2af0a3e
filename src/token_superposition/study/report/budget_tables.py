"""The tables of the budgets: every arm at every length it was trained, and the speed-ups read off between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from token_superposition.study.arms import Arm
from token_superposition.study.report.budgets import (
    as_difference,
    budget_at,
    compared_steps,
    difference_at,
    difference_at_equal_data,
    equal_data_steps,
)
from token_superposition.study.report.facts import Report, mean, outcome_words, token_word, unit
from token_superposition.study.report.findings import Reading, readings, saving, saving_interval
from token_superposition.study.report.numbers import (
    compared,
    count,
    count_in_words,
    decimal,
    duration,
    interval,
    plain,
    power_of_ten,
)
from token_superposition.study.report.tables import arm_heading, more

_HEADS = ("Final loss", "Difference", "Learning rate", "Raw {token}s read", "Compute, FLOPs", "Wall time")


def budgets_table(report: Report, number: int) -> str:
    """Every arm at every budget, a group of rows a budget; then what was trained for equal data."""
    heads = "".join(f'<th scope="col">{text.format(token=token_word(report))}</th>' for text in _HEADS)
    groups = [_group(report, steps, f"{count(steps)} steps", equal_data=False) for steps in compared_steps(report)]
    groups += [
        _group(report, steps, f"{count(steps)} steps, for equal data", equal_data=True)
        for steps in equal_data_steps(report)
    ]
    seeds = "Means over seeds; d" if any(len(arm["seeds"]) > 1 for arm in report["arms"]) else "D"
    return (
        f'<div class="scroll"><table class="budgets"><caption><b>Table {number}.</b> The budgets. {seeds}ifferences '
        "are to the baseline at the same steps, in the last group to the baseline that read as much text. Losses in "
        f'{escape(unit(report))}.</caption><thead><tr><th scope="col"></th>{heads}</tr></thead>{"".join(groups)}'
        "</table></div>"
    )


def _group(report: Report, steps: int, title: str, *, equal_data: bool) -> str:
    rows = []
    for index, arm in enumerate(report["arms"]):
        budget = budget_at(arm, steps)
        if budget is not None and (budget["kind"] != "budget") == equal_data:
            rows.append(_row(report, index, arm, budget, _difference(report, arm, steps) if index else ""))
        elif equal_data:
            data = difference_at_equal_data(report, arm)
            if data is not None and data.get("total_steps") == steps:
                longest = budget_at(arm, compared_steps(report)[-1])
                if longest is not None:
                    note = f"of {count(longest['total_steps'])} steps"
                    cell = _interval_cell(report, data)
                    rows.append(_row(report, index, arm, longest, cell, note))
    heading = f'<tr class="group"><th scope="rowgroup" colspan="{len(_HEADS) + 1}">{escape(title)}</th></tr>'
    return f"<tbody>{heading}{''.join(rows)}</tbody>"


def _row(report: Report, index: int, arm: Arm, budget: Mapping[str, Any], difference: str, note: str = "") -> str:
    rate = budget.get("learning_rate") or arm.get("learning_rate") or report["settings"].get("learning_rate")
    cells = (
        decimal(mean(budget, "final_validation_loss")),
        difference,
        escape(plain(rate)),
        escape(count_in_words(mean(budget, "raw_tokens"))),
        escape(power_of_ten(mean(budget, "flops"))),
        escape(duration(mean(budget, "wall_seconds"))),
    )
    return (
        f'<tr><th scope="row">{arm_heading(index, arm["name"])}{more(note) if note else ""}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _difference(report: Report, arm: Arm, steps: int) -> str:
    found = difference_at(report, arm, steps)
    if found is None or not math.isfinite(found.mean):
        return "–"
    return _interval_cell(report, as_difference(found))


def _interval_cell(report: Report, found: Mapping[str, Any]) -> str:
    ends = found["confidence_interval"]
    return (
        compared(found["delta_nats"], 4)
        + more(interval(ends) if ends else "no interval")
        + more(outcome_words(report, found))
    )


def speedup_table(report: Report, number: int) -> str:
    """Each arm's speed-up at both ends, in FLOPs and in seconds."""
    rows = []
    for index, arm in enumerate(report["arms"][1:], 1):
        for read_at, whose in (("baseline_end", "at the baseline’s loss"), ("superposition_end", "at its own loss")):
            found = readings(report, arm["name"], read_at)
            if found:
                rows.append(_speedup_row(arm_heading(index, arm["name"]), whose, found))
    heads = ("Compute", "Time", "Loss", "Baseline’s FLOPs", "Its own FLOPs")
    return (
        f'<div class="scroll"><table><caption><b>Table {number}.</b> Speed-up at equal loss: what the baseline needs '
        "for a loss over what superposition needs for it, read off between budgets and never beyond them. The loss is "
        "that of an arm’s longest budget. Compute is counted in FLOPs, time as measured here.</caption>"
        '<thead><tr><th scope="col"></th>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _speedup_row(heading: str, whose: str, found: Mapping[str, Reading]) -> str:
    flops = found["flops"]
    cells = (
        _saves(flops),
        _saves(found.get("seconds")),
        decimal(flops["loss"]) if flops["loss"] is not None else "–",
        escape(power_of_ten(flops["baseline_cost"])) if flops["baseline_cost"] else "–",
        escape(power_of_ten(flops["arm_cost"])) if flops["arm_cost"] else "–",
    )
    return f'<tr><th scope="row">{heading}{more(whose)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _saves(reading: Reading | None) -> str:
    if reading is None:
        return "–"
    if reading["speedup"] is None:
        return escape(bounds_words(reading)) + more("see below") if reading["bounds"] else "–"
    number, words = saving(reading)
    ends = saving_interval(reading)
    return f"{number}× {escape(words.split()[0])}{more(ends or 'no interval')}"


def bounds_words(reading: Reading) -> str:
    """`over 1.60× less`, `not reached`: what is known of a speed-up that is out of range."""
    low, high = reading["bounds"]
    if high is not None and reading["read_at"] == "baseline_end":
        return "not reached"
    limit = low if low is not None else high
    size = f"{decimal(limit, 2)}× less" if limit >= 1 else f"{decimal(1 / limit, 2)}× more"
    return f"{'over' if (low is not None) == (limit >= 1) else 'under'} {size}"
