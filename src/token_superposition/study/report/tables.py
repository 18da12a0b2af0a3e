"""The report's tables: one column an arm, and with several seeds one row a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from token_superposition.plan.slot_weights import describe_slot_weights
from token_superposition.study.arms import Arm, why_seconds_differ
from token_superposition.study.report.budgets import difference_at_equal_data, has_budgets, reference_steps
from token_superposition.study.report.facts import (
    Report,
    baseline,
    differences,
    mean,
    num_seeds,
    outcome_words,
    ratio,
    unit,
)
from token_superposition.study.report.findings import switch_of
from token_superposition.study.report.marks import arm_class, marker
from token_superposition.study.report.numbers import (
    as_typed,
    compared,
    count,
    decimal,
    duration,
    finite,
    interval,
    memory,
    plain,
    power_of_ten,
)

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
