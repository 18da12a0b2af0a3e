"""What the report shows of a sweep: the values each arm was given, how they were chosen, and everything that was tried.

In the figure a ring is what was tried and the filled mark is what the arm was given. Positive numbers are on a
logarithmic axis. Losses far above the rest would flatten the part that decides, so the top is cut: a loss above it is
written there with an arrow, a run that diverged with a cross. Of a grid, each panel shows the best over the other keys.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from token_superposition.formatting import as_typed, count, decimal, finite, joined, plural
from token_superposition.study.report.curves import Figure
from token_superposition.study.report.model import Report
from token_superposition.study.report.panel import CHARACTER, LINE, LONGEST_NAME, Panel, Scale, short, spread
from token_superposition.study.report.parts import Setting, SweepAt, SweepReport, Tried, quoted
from token_superposition.study.report.tables import Cell, Table, TableRow

_SIDE = 26.0  # between the frame and the first and last values


def by_budget(report: Report, sweep: SweepReport) -> list[SweepAt]:
    """The sweep at every budget, the shortest first, each with its `total_steps`."""
    last = report.reference_steps if sweep.total_steps is None else sweep.total_steps
    found = {last: SweepAt(total_steps=last, arms=sweep.arms)}
    found |= {each.total_steps: each for each in sweep.budgets if each.total_steps is not None}
    return [found[steps] for steps in sorted(found)]


def key_words(key: str) -> str:
    """`learning rate` for `train.learning_rate`."""
    return key.rpartition(".")[2].replace("_", " ")


def seeds_words(sweep: SweepReport) -> str:
    """`seed 1000`, `seeds 1000 to 1002`."""
    seeds = [run.seed for run in sweep.arms[0].settings[0].seeds]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def tuned_sentences(report: Report) -> list[str]:
    """What each arm was given and how it was chosen, if the best may be outside the range, and what was not tuned."""
    sweep = report.sweep
    if sweep is None:
        return []
    sweeps = by_budget(report, sweep)
    one_key, tries = len(sweep.keys) == 1, len(sweep.arms[0].settings)
    what = f"best {key_words(sweep.keys[0])} of {tries}" if one_key else f"best of {tries} settings"
    given = {tried.name: values_words(tried.best, name_keys=not one_key) for tried in sweep.arms}
    chosen = ", ".join(f"{values} for {quoted(name)}" for name, values in given.items())
    if len(set(given.values())) == 1:
        chosen = f"{next(iter(given.values()))} for {'both' if len(given) == 2 else 'all'}"
    at = ""
    if sweep.total_steps is not None:
        at = f" at {count(sweep.total_steps)} steps, for every budget"
    elif len(sweeps) > 1:
        at = f" at every budget; at {count(sweeps[-1].total_steps)} steps"
    others = "is not one of" if sweep.num_seeds == 1 else "are not among"
    lines = [
        f"Each arm has its own {what} tried{at}: {chosen}. The choice is by final validation loss on "
        f"{seeds_words(sweep)}, which {others} the seeds compared."
    ]
    edges: dict[tuple[str, str], list[str]] = {}
    for each in sweeps:
        where = f" at {count(each.total_steps)} steps" if len(sweeps) > 1 else ""
        for tried in each.arms:
            for key, end in tried.at_edge.items():
                edges.setdefault((key, f"{as_typed(tried.best[key])}, the {end} tried"), []).append(
                    quoted(tried.name) + where
                )
    lines += [
        f"The best {key_words(key)} of {joined(names)} is at the edge of the range ({place}): widen the sweep."
        for (key, place), names in edges.items()
    ]
    if longer := report.equal_data_steps:
        lines.append(
            f"The baseline for equal data ({joined([count(steps) for steps in longer])} steps) was trained at "
            f"{values_words(sweeps[-1].arms[0].best, name_keys=True)}, its best at {count(sweeps[-1].total_steps)} "
            "steps, and was not tuned at its own length: the comparison may flatter superposition."
        )
    lines += [
        f"{_sentence(values_words(setting.values, name_keys=True))} was not kept for {quoted(tried.name)}"
        f"{f' at {count(each.total_steps)} steps' if len(sweeps) > 1 else ''}: it diverged with seed "
        f"{joined([str(seed) for seed in setting.diverged_when_compared])}, which is compared."
        for each in sweeps
        for tried in each.arms
        for setting in tried.settings
        if setting.diverged_when_compared
    ]
    return lines


def untuned_sentence(report: Report) -> str:
    """What was tuned and over which values, and what was not."""
    sweep = report.sweep
    if sweep is None or "train.learning_rate" not in sweep.keys:
        same = len({arm.learning_rate for arm in report.arms}) == 1
        rates = (
            "Every arm used the same learning rate, and it was not tuned: the best rate of an arm may be another."
            if same
            else "Learning rates differ between arms, and they were not tuned here."
        )
        rates += " --sweep train.learning_rate=... finds the best rate of each arm."
        if sweep is None:
            return rates
    over = "; ".join(f"{key_words(key)} over {', '.join(map(as_typed, sweep.values[key]))}" for key in sweep.keys)
    text = f"Tuned for every arm, with as many tries each: {over}. Other settings were not tuned."
    if sweep.total_steps is not None:
        text += f" The values were chosen at {count(sweep.total_steps)} steps; the best at another budget may differ."
    return text if "train.learning_rate" in sweep.keys else f"{text} {rates}"


def runs_words(report: Report) -> str:
    """`, and 6 times more for the sweep (2 arms × 3 settings × 1 seed)`; empty without one."""
    sweep = report.sweep
    if sweep is None:
        return ""
    sweeps = by_budget(report, sweep)
    runs = sum(len(tried.settings) * sweep.num_seeds for each in sweeps for tried in each.arms)
    counts = [
        plural(len(sweep.arms), "arm"),
        plural(len(sweep.arms[0].settings), "setting"),
        plural(sweep.num_seeds, "seed"),
    ]
    if len(sweeps) > 1:
        counts.append(f"{len(sweeps)} budgets")
    return f", and {plural(runs, 'time')} more for the sweep ({' × '.join(counts)})"


def values_words(values: Mapping[str, Any], *, name_keys: bool) -> str:
    """`0.002`, or `learning rate 0.002 and weight decay 0.1`."""
    return joined([f"{key_words(key)} {as_typed(v)}" if name_keys else as_typed(v) for key, v in values.items()])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def tuning_table(report: Report, sweep: SweepReport) -> Table:
    """Every setting with its loss, those that diverged too."""
    order = {arm.name: index for index, arm in enumerate(report.arms)}
    first, *others = (Cell(_sentence(key_words(key)), kind="given") for key in sweep.keys)
    head = [first, *others, *(Cell(tried.name, arm=order[tried.name]) for tried in sweep.arms)]
    sweeps, bodies = by_budget(report, sweep), []
    for each in sweeps:
        rows = [TableRow([Cell(f"{count(each.total_steps)} steps")], "group")] if len(sweeps) > 1 else []
        for settings in zip(*(tried.settings for tried in each.arms), strict=True):
            values = [
                Cell(as_typed(settings[0].values[key]), kind="given" if n else "") for n, key in enumerate(sweep.keys)
            ]
            rows.append(TableRow([*values, *map(_cell, each.arms, settings)]))
        bodies.append(rows)
    mean = "Mean final" if sweep.num_seeds > 1 else "Final"
    caption = f"{mean} validation loss{_after(sweep)} of every setting tried, {report.unit}, on {seeds_words(sweep)}."
    return Table(caption, head, bodies, holder="tried")


def _cell(tried: Tried, setting: Setting) -> Cell:
    chosen = setting.values == tried.best
    text, notes = decimal(setting.mean_validation_loss), []
    if setting.diverged:
        failed = sum(seed.diverged for seed in setting.seeds)
        text = "diverged"
        if failed < len(setting.seeds):
            notes.append(f"{failed} of {plural(len(setting.seeds), 'seed')}")
    elif setting.diverged_when_compared:
        notes.append(f"diverged with seed {joined([str(seed) for seed in setting.diverged_when_compared])}")
    elif chosen:
        notes.append("chosen, at the edge" if tried.at_edge else "chosen")
    return Cell(text, tuple(notes), kind="chosen" if chosen else "")


def _after(sweep: SweepReport) -> str:
    return "" if sweep.total_steps is None else f" after {count(sweep.total_steps)} steps"


# The figure.


@dataclass(frozen=True)
class _Line:
    """An arm's losses over a key's values, None if it diverged; `chosen` is the place of the value it was given."""

    name: str
    index: int
    losses: Sequence[float | None]
    seeds: Sequence[Sequence[float | None]]
    chosen: int


def tuning_figure(report: Report, sweep: SweepReport) -> Figure | None:
    """A panel for every key and budget; None if every run diverged."""
    sweeps = by_budget(report, sweep)
    panels, cut, gaps = [], False, False
    for place, each in enumerate(sweeps):
        for number, key in enumerate(sweep.keys):
            lines = _lines(report, sweep, each, key)
            known = [loss for line in lines for loss in line.losses if loss is not None]
            gaps = gaps or len(known) < sum(len(line.losses) for line in lines)
            if known:
                cut = cut or max(known) > _top(lines)
                after = f", {count(each.total_steps)} steps" if len(sweeps) > 1 else ""
                name = f"sweep{place}-{number}" if len(sweeps) > 1 else f"sweep{number}"
                panels.append(_panel(report, sweep, lines, key, name, after))
    if not panels:
        return None
    words = [
        f"Final validation loss{_after(sweep)} at every value tried, on {seeds_words(sweep)}.",
        "Filled: the value chosen for the arm.",
    ]
    if len(sweep.keys) > 1:
        words.append("Each value is shown at the best of the other keys’ values.")
    elif sweep.num_seeds > 1:
        words.append("Bold: mean; thin: each seed.")
    words += ["Arrows: losses above the figure’s top."] if cut else []
    words += ["Crosses: the run diverged, which counts as worst."] if gaps else []
    return Figure(panels, " ".join(words))


def _lines(report: Report, sweep: SweepReport, at: SweepAt, key: str) -> list[_Line]:
    order, values = {arm.name: index for index, arm in enumerate(report.arms)}, sweep.values[key]
    alone = len(sweep.keys) == 1 and sweep.num_seeds > 1
    return [
        _Line(
            tried.name,
            order[tried.name],
            [_lowest([s for s in tried.settings if s.values[key] == value]) for value in values],
            [
                [loss if finite(loss := s.seeds[seed].final_validation_loss) else None for s in tried.settings]
                for seed in range(sweep.num_seeds if alone else 0)
            ],
            values.index(tried.best[key]),
        )
        for tried in at.arms
    ]


def _lowest(settings: Sequence[Setting]) -> float | None:
    kept = [s for s in settings if not s.diverged_when_compared] or settings
    known = [s.mean_validation_loss for s in kept if s.mean_validation_loss is not None]
    return min(filter(math.isfinite, known), default=None)


def _top(lines: Sequence[_Line]) -> float:
    """The highest loss shown: what decides is near the lowest, and the chosen values are always in sight."""
    known = [loss for line in lines for loss in line.losses if loss is not None]
    low = min(known)
    chosen = max(line.losses[line.chosen] or low for line in lines)
    return min(max(known), max(low + 4 * (statistics.median(known) - low), chosen + 0.25 * (chosen - low), low + 0.01))


def _panel(report: Report, sweep: SweepReport, lines: Sequence[_Line], key: str, name: str, after: str) -> str:
    values, title = sweep.values[key], _sentence(key_words(key))
    best = "; ".join(f"{line.name}: best at {as_typed(values[line.chosen])}" for line in lines)
    words = f"Final validation loss over {key_words(key)}. {best}."
    panel = Panel(name, title + after, words, [line.name for line in lines])
    low, high = min(loss for line in lines for loss in line.losses if loss is not None), _top(lines)
    room = 0.08 * max(high - low, 1e-3)
    off = any(loss is None or loss > high for line in lines for loss in line.losses)
    panel.set_y(low - room, high + (2.5 * room if off else room), f"Final validation loss ({report.unit})")
    places = _places(values, panel)
    panel.x_axis([(at, short(as_typed(v), 14)) for v, at in zip(values, places, strict=True)], title)
    ends: dict[int, list[tuple[_Line, float]]] = {}
    for line in lines:
        for seed in line.seeds:
            panel.line(line.index, _points(seed, places, panel), "seed")
        panel.line(line.index, _points(line.losses, places, panel))
        shown = [(n, loss) for n, loss in enumerate(line.losses) if loss is not None and loss <= high]
        for n, loss in shown:
            text = f"{line.name}, {as_typed(values[n])}: {decimal(loss)}"
            panel.point(line.index, places[n], panel.y(loss), text, ring=n != line.chosen)
        if shown:
            ends.setdefault(shown[-1][0], []).append((line, panel.y(shown[-1][1])))
    for n, found in ends.items():
        for (line, _), y in zip(found, spread([at for _, at in found], panel.bottom - 8, LINE), strict=True):
            panel.note(line.index, places[n] + 9, y + 4, short(line.name, LONGEST_NAME), kind="name")
    _write_above(panel, lines, places, high)
    return panel.svg()


def _places(values: Sequence[Any], panel: Panel) -> list[float]:
    """Where the values are: by their logarithm, as numbers, or side by side if they are no numbers."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    scaled = [float(value) for value in values] if numbers else [float(number) for number in range(len(values))]
    log = numbers and min(scaled) > 0
    scale = Scale(min(scaled), max(scaled), panel.x.start + _SIDE, panel.x.end - _SIDE, log)
    return [scale(value) for value in scaled]


def _points(losses: Sequence[float | None], places: Sequence[float], panel: Panel) -> list[tuple[float, float] | None]:
    return [None if loss is None else (at, panel.y(loss)) for loss, at in zip(losses, places, strict=True)]


def _write_above(panel: Panel, lines: Sequence[_Line], places: Sequence[float], high: float) -> None:
    """What is not in sight, at the top: losses above it, and crosses."""
    gap = min((after - before for before, after in itertools.pairwise(sorted(places))), default=math.inf)
    rows = [0] * len(places)
    for line in lines:
        for n, loss in enumerate(line.losses):
            if loss is not None and loss <= high:
                continue
            text = "× diverged" if loss is None else f"↑ {decimal(loss, 2)}"
            text = text if gap > len(text) * CHARACTER else text[0]  # values close together leave room for a sign
            first, last = n == 0 and len(text) > 1, n == len(places) - 1 and len(text) > 1
            at = places[n] + (_SIDE - 4 if last else 4 - _SIDE if first else 0)
            anchor = "end" if last else "start" if first else "middle"
            panel.note(line.index, at, panel.top + 11 + 14 * rows[n], text, anchor)
            rows[n] += 1
