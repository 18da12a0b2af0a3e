"""The tables of the page, as cells: the arms, the budgets, the speed-ups, the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from token_superposition.formatting import (
    as_typed,
    compared,
    count,
    count_in_words,
    decimal,
    duration,
    interval,
    memory,
    plain,
    power_of_ten,
)
from token_superposition.schedule import describe_slot_weights
from token_superposition.study.report.facts import why_seconds_differ
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import Arm, Budget, Difference, ReadAt, Speedup
from token_superposition.study.report.sentences import bounds_words, saving, saving_interval

_FEW_ARMS = 4  # more are set closer, and their cells may break, so that a page holds them


@dataclass(frozen=True)
class Cell:
    """A cell: its text, further lines in small print, and the place of the arm whose mark it has."""

    text: str
    more: tuple[str, ...] = ()
    arm: int | None = None
    kind: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row: its heading and its cells; `kind` is its class."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table: caption, head, and groups of rows; `kind` and `holder` are classes."""

    caption: str
    head: Sequence[Cell]
    bodies: Sequence[Sequence[TableRow]]
    kind: str = ""
    holder: str = ""


_Write = Callable[[Arm], Cell | str]
_NONE = Cell("–")


def arms_table(report: Report) -> Table:
    """What each arm reached and used: means over seeds, a column for each arm."""
    longest = f" at {count(report.reference_steps)} steps, the longest budget" if report.has_budgets else ""
    over = f" Means over {report.num_seeds} seeds." if report.num_seeds > 1 else ""
    groups = (_results(report), _trained(report), _used(report))
    bodies = [[_arms_row(report, title, write) for title, write in group] for group in groups]
    bodies[0][0] = TableRow(bodies[0][0].cells, "key")
    return Table(
        f"The arms{longest}.{over} Raw tokens are what is read; positions are what the network computes.",
        [Cell(""), *(Cell(arm.name, arm=index) for index, arm in enumerate(report.arms))],
        bodies,
        _kind(report),
    )


def _kind(report: Report) -> str:
    return "many" if len(report.arms) > _FEW_ARMS else ""


def _arms_row(report: Report, title: str, write: _Write) -> TableRow:
    cells = [cell if isinstance(cell := write(arm), Cell) else Cell(cell) for arm in report.arms]
    return TableRow([Cell(title), *cells])


def _results(report: Report) -> list[tuple[str, _Write]]:
    found = {result.arm: result for result in report.differences}

    def span(arm: Arm) -> str:
        known = [run.final_validation_loss for run in arm.seeds if run.final_validation_loss is not None]
        return f"{decimal(min(known))} to {decimal(max(known))}" if known else "–"

    rows: list[tuple[str, _Write]] = [
        (f"Final validation loss, {report.unit}", lambda arm: decimal(arm.mean("final_validation_loss")))
    ]
    if report.num_seeds > 1:
        rows.append(("Lowest to highest seed", span))
    rows.append(("Difference to the baseline", lambda arm: _difference(report, found.get(arm.name))))
    if any(report.equal_data_of(arm) for arm in report.arms):
        rows.append(("Difference at equal data", lambda arm: _difference(report, report.equal_data_of(arm))))
    rows.append(("Bits per byte", lambda arm: decimal(arm.mean("bits_per_byte"))))
    return rows


def _difference(report: Report, found: Difference | None) -> Cell:
    """A difference, its interval, and what the seeds say of it."""
    if found is None:
        return _NONE
    ends = found.confidence_interval
    level = f"{found.confidence_level:.0%}: {interval(ends)}" if ends else "no interval"
    return Cell(compared(found.delta_nats, 4), (level, report.outcome_words(found)))


def _trained(report: Report) -> list[tuple[str, _Write]]:
    def superposed(arm: Arm) -> str:
        if not arm.switch_step:
            return "none"
        return f"{plain(arm.mode)}, {describe_slot_weights(arm.slot_weights)}".replace("_", " ")

    def spike(arm: Arm) -> str:
        found = report.switch_of(arm)
        return compared(found.spike_nats, 2) if found and found.spike_nats is not None else "–"

    best = {tried.name: tried.best for tried in report.sweep.arms} if report.sweep else {}

    def swept(key: str) -> _Write:
        return lambda arm: as_typed(best[arm.name][key])

    def crossing(arm: Arm) -> str:
        found = report.switch_of(arm)
        if found is None:
            return "–"
        if found.crossing_step is not None:
            return count(found.crossing_step)
        return "not reached" if found.ahead_at_end is False else "not known"

    rows: list[tuple[str, _Write]] = [
        ("Bag size, stage by stage", lambda arm: " → ".join(str(stage.bag_size) for stage in arm.stages)),
        ("Superposition: mode, slot weights", superposed),
        ("Share of steps in superposition", lambda arm: f"{100 * arm.ratio:.3g}%"),
        ("Switch to next-token at step", lambda arm: count(arm.switch_step) if arm.switch_step else "–"),
    ]
    if report.switch:
        rows += [("Loss against the baseline’s at the switch", spike), ("At or below the baseline from step", crossing)]
    rows.append(("Peak learning rate", lambda arm: plain(arm.learning_rate or report.settings.learning_rate)))
    if report.sweep:
        keys = [key for key in report.sweep.keys if key != "train.learning_rate"]
        rows += [(key, swept(key)) for key in keys]
    return rows


def _used(report: Report) -> list[tuple[str, _Write]]:
    def against(key: str, write: Callable[[float | None], str]) -> Callable[[Arm], Cell]:
        def cell(arm: Arm) -> Cell:
            relative = report.ratio(arm, key) if arm is not report.baseline else None
            return Cell(write(arm.mean(key)), () if relative is None else (f"× {decimal(relative, 2)}",))

        return cell

    def seconds(arm: Arm) -> Cell:
        cell = against("wall_seconds", duration)(arm)
        return Cell(cell.text) if why_seconds_differ(report.arms) else cell

    return [
        ("Optimizer steps", lambda arm: count(arm.mean("steps"))),
        ("Positions", lambda arm: count(arm.mean("positions"))),
        ("Training FLOPs", against("flops", power_of_ten)),
        ("Raw tokens read", against("raw_tokens", count)),
        ("Unique raw tokens", against("unique_raw_tokens", count)),
        ("Wall time", seconds),
        ("Peak memory", lambda arm: memory(arm.mean("peak_memory_bytes"))),
    ]


def seeds_table(report: Report) -> Table:
    """Every seed's final loss and difference."""
    found, several = report.differences, len(report.differences) > 1
    head = [Cell("Seed"), *(Cell(arm.name, arm=index) for index, arm in enumerate(report.arms))]
    head += [Cell("difference", (each.arm,) if several else ()) for each in found]
    rows = []
    for place, run in enumerate(report.baseline.seeds):
        losses = [arm.seeds[place].final_validation_loss if place < len(arm.seeds) else None for arm in report.arms]
        deltas = [each.deltas[place] if place < len(each.deltas) else None for each in found]
        rows.append(
            TableRow(
                [
                    Cell(str(run.seed)),
                    *(Cell(decimal(loss)) for loss in losses),
                    *(Cell(compared(delta, 4)) for delta in deltas),
                ]
            )
        )
    means = [Cell(decimal(arm.mean("final_validation_loss"))) for arm in report.arms]
    mean = TableRow([Cell("Mean"), *means, *(Cell(compared(each.delta_nats, 4)) for each in found)], "key")
    caption = f"Final validation loss of every seed, {report.unit}. Arms share a seed’s initialisation."
    return Table(caption, head, [rows, [mean]], _kind(report), "seeds")


def budgets_table(report: Report) -> Table:
    """Every arm at every budget, a group of rows for each; then what was trained for equal data."""
    tokens = f"Raw {report.token_word}s read"
    heads = ("", "Final loss", "Difference", "Learning rate", tokens, "Compute, FLOPs", "Wall time")
    bodies = []
    for steps in report.compared_steps:
        rows = [TableRow([Cell(f"{count(steps)} steps")], "group")]
        for index, arm in enumerate(report.arms):
            budget = arm.budget_at(steps)
            if budget is not None and budget.kind == "budget":
                cell = _difference(report, report.difference_at(arm, steps)) if index else Cell("")
                rows.append(_budget_row(report, Cell(arm.name, arm=index), budget, cell))
        bodies.append(rows)
    for steps in report.equal_data_steps:
        rows = [TableRow([Cell(f"{count(steps)} steps, for equal data")], "group")]
        longer = report.baseline.budget_at(steps)
        if longer is not None:
            rows.append(_budget_row(report, Cell(report.baseline.name, arm=0), longer, Cell("")))
        for index, arm in enumerate(report.arms[1:], 1):
            found = report.equal_data_of(arm)
            if found is not None and found.total_steps == steps:
                name = Cell(arm.name, (f"of {count(arm.reference.total_steps)} steps",), arm=index)
                rows.append(_budget_row(report, name, arm.reference, _difference(report, found)))
        bodies.append(rows)
    caption = (
        f"The budgets. Differences are to the baseline at the same steps; at equal data, to the baseline that read as "
        f"much text. Losses in {report.unit}."
    )
    return Table(caption, [Cell(text) for text in heads], bodies, "budgets")


def _budget_row(report: Report, name: Cell, budget: Budget, difference: Cell) -> TableRow:
    cells = (
        Cell(decimal(budget.mean("final_validation_loss"))),
        difference,
        Cell(plain(budget.learning_rate or report.settings.learning_rate)),
        Cell(count_in_words(budget.mean("raw_tokens"))),
        Cell(power_of_ten(budget.mean("flops"))),
        Cell(duration(budget.mean("wall_seconds"))),
    )
    return TableRow([name, *cells])


def speedup_table(report: Report) -> Table:
    """Each arm's speed-up at both ends, in FLOPs and in seconds."""
    ends: tuple[tuple[ReadAt, str], ...] = (
        ("baseline_end", "at the baseline’s loss"),
        ("superposition_end", "at its own loss"),
    )
    rows = []
    for index, arm in enumerate(report.arms[1:], 1):
        for read_at, whose in ends:
            found = report.readings(arm.name, read_at)
            if found:
                flops = found["flops"]
                cells = (
                    _saves(flops),
                    _saves(found.get("seconds")),
                    Cell("–" if flops.loss is None else decimal(flops.loss)),
                    Cell(power_of_ten(flops.baseline_cost) if flops.baseline_cost else "–"),
                    Cell(power_of_ten(flops.arm_cost) if flops.arm_cost else "–"),
                )
                rows.append(TableRow([Cell(arm.name, (whose,), arm=index), *cells]))
    heads = ("", "Compute", "Time", "Loss", "Baseline’s FLOPs", "Its own FLOPs")
    caption = (
        "Speed-up at equal loss: what the baseline needs for a loss, divided by what superposition needs for it. It is "
        "read between budgets and never extrapolated. Compute is counted in FLOPs, time is measured."
    )
    return Table(caption, [Cell(text) for text in heads], [rows])


def _saves(reading: Speedup | None) -> Cell:
    if reading is None or (reading.speedup is None and reading.bounds is None):
        return _NONE
    if reading.speedup is None:
        return Cell(bounds_words(reading), ("see below",))
    number, words = saving(reading)
    return Cell(f"{number}× {words.split()[0]}", (saving_interval(reading) or "no interval",))
