"""The report's tables: one column an arm, and with several seeds one row a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from token_superposition.formatting import (
    as_typed,
    compared,
    count,
    count_in_words,
    decimal,
    duration,
    finite,
    interval,
    memory,
    plain,
    power_of_ten,
)
from token_superposition.schedule import describe_slot_weights
from token_superposition.study.arms import Arm, why_seconds_differ
from token_superposition.study.report.budget_facts import (
    as_difference,
    budget_at,
    compared_steps,
    difference_at,
    difference_at_equal_data,
    equal_data_steps,
    has_budgets,
    reference_steps,
)
from token_superposition.study.report.facts import (
    Report,
    baseline,
    differences,
    mean,
    num_seeds,
    outcome_words,
    ratio,
    token_word,
    unit,
)
from token_superposition.study.report.findings import Reading, readings, saving, saving_interval, switch_of
from token_superposition.study.report.plot import arm_class, marker

_Cell = Callable[[Arm], str]

_FEW_ARMS = 4  # more stand closer, and their cells may break, so that a page holds them


def arm_heading(index: int, name: str) -> str:
    """An arm's name with its marker, in its colour."""
    mark = f'<svg viewBox="0 0 12 12" aria-hidden="true">{marker(index, 6, 6)}</svg>'
    return f'<span class="arm-name {arm_class(index)}">{mark}{escape(name)}</span>'


def arms_table(report: Report, number: int) -> str:
    """What each arm reached and what it used, means over seeds."""
    seeds = num_seeds(report)
    over = f"Means over {seeds} seeds. " if seeds > 1 else ""
    longest = f" at {count(reference_steps(report))} steps, the longest budget" if has_budgets(report) else ""
    heads = "".join(
        f'<th scope="col">{arm_heading(index, arm["name"])}</th>' for index, arm in enumerate(report["arms"])
    )
    bodies = "".join(
        f"<tbody>{''.join(_row(report, *row) for row in rows)}</tbody>"
        for rows in (_results(report), _trained(report), _used(report))
    )
    return (
        f'<div class="scroll"><table{_kind(report)}><caption><b>Table {number}.</b> The arms{longest}. {over}'
        "Raw tokens are what is read; positions are what the network computes, and what FLOPs count.</caption>"
        f'<thead><tr><th scope="col"></th>{heads}</tr></thead>{bodies}</table></div>'
    )


def _kind(report: Report) -> str:
    """The table's class."""
    return ' class="many"' if len(report["arms"]) > _FEW_ARMS else ""


def _row(report: Report, title: str, cell: _Cell, kind: str = "") -> str:
    cells = "".join(f"<td>{cell(arm)}</td>" for arm in report["arms"])
    return f'<tr{kind}><th scope="row">{escape(title)}</th>{cells}</tr>'


def _results(report: Report) -> list[tuple[str, _Cell, str]]:
    found = {result["arm"]: result for result in differences(report)}

    def difference(arm: Arm) -> str:
        result = found.get(arm["name"])
        if result is None:
            return "–"
        return _difference_cell(report, result, f"{result['confidence_level']:.0%} interval")

    def at_equal_data(arm: Arm) -> str:
        result = difference_at_equal_data(report, arm)
        if result is None:
            return "–"
        return _difference_cell(report, result)

    def span(arm: Arm) -> str:
        losses = [seed["final_validation_loss"] for seed in arm["seeds"]]
        if not all(map(finite, losses)):
            return "–"
        return f"{decimal(min(losses))} to {decimal(max(losses))}"

    rows: list[tuple[str, _Cell, str]] = [
        (f"Final validation loss, {unit(report)}", lambda a: decimal(mean(a, "final_validation_loss")), ' class="key"'),
        ("Difference to the baseline", difference, ""),
        ("Bits per byte", lambda a: decimal(mean(a, "bits_per_byte")), ""),
    ]
    if any(difference_at_equal_data(report, arm) for arm in report["arms"]):
        rows.insert(2, ("Difference at equal data", at_equal_data, ""))
    if num_seeds(report) > 1:
        rows.insert(1, ("Lowest to highest seed", span, ""))
    return rows


def _difference_cell(report: Report, result: Mapping[str, Any], level: str = "") -> str:
    """A difference, its interval, and what the seeds say of it."""
    ends = result["confidence_interval"]
    lines = [level, interval(ends)] if ends else ["no interval"]
    lines.append(outcome_words(report, result))
    return compared(result["delta_nats"], 4) + "".join(more(line) for line in lines if line)


def more(text: str) -> str:
    """A further line in a cell, in small print."""
    return f'<span class="more">{escape(text)}</span>'


def _trained(report: Report) -> list[tuple[str, _Cell]]:
    def superposed(arm: Arm) -> str:
        if not arm["switch_step"]:
            return "none"
        return f"{plain(arm['mode'])}, {describe_slot_weights(arm['slot_weights'])}".replace("_", " ")

    def bags(arm: Arm) -> str:
        sizes = [str(stage["bag_size"]) for stage in arm["stages"]]
        return escape(" → ".join(sizes))

    sweep = report.get("sweep") or {"keys": [], "arms": []}
    best = {tried["name"]: tried["best"] for tried in sweep["arms"]}

    def swept(key: str) -> _Cell:
        return lambda arm: escape(as_typed(best[arm["name"]][key]))

    def spike(arm: Arm) -> str:
        found = switch_of(report, arm)
        return compared(found["spike_nats"], 2) if found and found["spike_nats"] is not None else "–"

    def crossing(arm: Arm) -> str:
        found = switch_of(report, arm)
        if found is None:
            return "–"
        if found["crossing_step"] is not None:
            return count(found["crossing_step"])
        return "not reached" if found.get("ahead_at_end") is False else "not known"

    at_switch: list[tuple[str, _Cell]] = [
        ("Loss against the baseline’s at the switch", spike),
        ("At or below the baseline’s from step", crossing),
    ]
    keys = [key for key in sweep["keys"] if key != "train.learning_rate"]  # which has its row in any case
    return [
        ("Bag size, stage by stage", bags),
        ("Superposition: mode, slot weights", lambda a: escape(superposed(a))),
        ("Share of steps in superposition", lambda a: f"{100 * a['ratio']:.3g}%"),
        ("Switch to next-token at step", lambda a: count(a["switch_step"]) if a["switch_step"] else "–"),
        *(at_switch if report.get("switch") else []),
        ("Peak learning rate", lambda a: plain(a.get("learning_rate", report["settings"].get("learning_rate")))),
        *((key, swept(key)) for key in keys),
    ]


def _used(report: Report) -> list[tuple[str, _Cell]]:
    def wall_time(arm: Arm) -> str:
        if why_seconds_differ(report["arms"]):
            return escape(duration(mean(arm, "wall_seconds")))
        return against("wall_seconds", duration)(arm)

    def against(key: str, write: Callable[[float | None], str]) -> _Cell:
        def cell(arm: Arm) -> str:
            relative = ratio(report, arm, key) if arm is not baseline(report) else None
            against_it = more(f"× {decimal(relative, 2)}") if relative is not None else ""
            return escape(write(mean(arm, key))) + against_it

        return cell

    return [
        ("Optimizer steps", lambda a: count(mean(a, "steps"))),
        ("Positions", lambda a: count(mean(a, "positions"))),
        ("Training FLOPs", against("flops", power_of_ten)),
        ("Raw tokens read", against("raw_tokens", count)),
        ("Unique raw tokens", against("unique_raw_tokens", count)),
        ("Wall time", wall_time),
        ("Peak memory", lambda a: memory(mean(a, "peak_memory_bytes"))),
    ]


def seeds_table(report: Report, number: int) -> str:
    """Every seed's final loss and difference; empty with one seed."""
    if num_seeds(report) < 2:
        return ""
    found = differences(report)
    order = {arm["name"]: index for index, arm in enumerate(report["arms"])}
    heads = "".join(f'<th scope="col">{arm_heading(order[a["name"]], a["name"])}</th>' for a in report["arms"])
    heads += "".join(
        '<th scope="col">difference'
        + (f'<span class="more">{arm_heading(order[r["arm"]], r["arm"])}</span>' if len(found) > 1 else "")
        + "</th>"
        for r in found
    )
    losses = [[seed["final_validation_loss"] for seed in arm["seeds"]] for arm in report["arms"]]
    rows = "".join(
        f'<tr><th scope="row">{escape(str(seed["seed"]))}</th>'
        + "".join(f"<td>{decimal(_at(column, place))}</td>" for column in losses)
        + "".join(f"<td>{compared(_at(r['deltas'], place), 4)}</td>" for r in found)
        + "</tr>"
        for place, seed in enumerate(baseline(report)["seeds"])
    )
    means = "".join(f"<td>{decimal(mean(arm, 'final_validation_loss'))}</td>" for arm in report["arms"])
    means += "".join(f"<td>{compared(r['delta_nats'], 4)}</td>" for r in found)
    return (
        f'<div class="scroll seeds"><table{_kind(report)}><caption><b>Table {number}.</b> Final validation loss of '
        f"every seed, {escape(unit(report))}. Arms share a seed’s initialisation, so differences are taken seed by "
        "seed.</caption>"
        f'<thead><tr><th scope="col">Seed</th>{heads}</tr></thead><tbody>{rows}</tbody>'
        f'<tbody><tr class="key"><th scope="row">Mean</th>{means}</tr></tbody></table></div>'
    )


def _at(values: list[float], place: int) -> float | None:
    return values[place] if place < len(values) else None


# The tables of the budgets: every arm at every length it was trained, and the speed-ups read off between them.


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
            rows.append(_budget_row(report, index, arm, budget, _difference(report, arm, steps) if index else ""))
        elif equal_data:
            data = difference_at_equal_data(report, arm)
            if data is not None and data.get("total_steps") == steps:
                longest = budget_at(arm, compared_steps(report)[-1])
                if longest is not None:
                    note = f"of {count(longest['total_steps'])} steps"
                    cell = _interval_cell(report, data)
                    rows.append(_budget_row(report, index, arm, longest, cell, note))
    heading = f'<tr class="group"><th scope="rowgroup" colspan="{len(_HEADS) + 1}">{escape(title)}</th></tr>'
    return f"<tbody>{heading}{''.join(rows)}</tbody>"


def _budget_row(
    report: Report, index: int, arm: Arm, budget: Mapping[str, Any], difference: str, note: str = ""
) -> str:
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
