"""The plan for people: verdicts with their figures, a table of what each run takes, the nearest measured runs."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from token_superposition.formatting import (
    better_or_worse,
    better_or_worse_range,
    count,
    count_in_words,
    plural,
    power_of_ten,
    three_figures,
)
from token_superposition.planner.measured_runs import Comparison
from token_superposition.planner.plan import Column, Plan, RunCost

_VERDICTS = {
    "use": "use superposition.",
    "try": "try superposition beside a baseline (tst compare). It is not known to help this run.",
    "none": "do not use superposition.",
    None: "no saving can be given.",
}
_ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("steps", "total_steps", count),
    ("switch at step", "switch_step", count),
    ("positions", "positions", count_in_words),
    ("FLOPs", "flops", power_of_ten),
    ("hours", "hours", three_figures),
    ("device-hours", "device_hours", three_figures),
    ("cost, $", "cost", lambda value: f"{value:,.2f}" if value >= 0.005 or not value else "under 0.01"),
    ("raw tokens", "raw_tokens", count_in_words),
    ("of them different", "unique_raw_tokens", count_in_words),
    ("epochs", "epochs", three_figures),
]
_WIDTH = 118


def describe(plan: Plan) -> str:
    """The plan as plain text."""
    lines = [
        *_heading(plan),
        "",
        *_verdicts(plan),
        "",
        *_table(plan),
        "",
        "nearest measured runs, best setting of each:",
    ]
    for run in plan.evidence:
        lines += _wrapped(f"- {_run_in_words(run)}", "  ")
    if plan.workload.assumptions:
        lines += ["", *_wrapped("assumed: " + "; ".join(plan.workload.assumptions) + ".")]
    return "\n".join(lines)


def _heading(plan: Plan) -> list[str]:
    model, hardware = plan.workload, plan.hardware
    active = ""
    if model.active_parameters < 0.99 * model.parameters:
        active = f" ({count_in_words(model.active_parameters)} of them active)"
    lines = [
        f"{model.architecture}, {count_in_words(model.parameters)} parameters{active}, "
        f"{count_in_words(model.positions_per_step)} positions a step, tokens are {model.unit}"
    ]
    if plan.speed is None:
        lines.append("no hardware is given, so no hours and no cost are known (--hardware)")
    else:
        price = ""
        if hardware.price is not None:
            price = f", ${hardware.price:,.2f} per device and hour ({hardware.price_basis})"
        lines.append(f"{hardware.num_devices:,} x {hardware.name or 'device'}{price}")
        lines.append(f"MFU {three_figures(plan.speed.mfu)} of the data-sheet peak: {plan.speed.basis}")
    if hardware.num_devices > 1:
        lines.append(
            f"{hardware.num_devices:,} devices: with torchrun (docs/scaling.md); their efficiency was not measured"
        )
    return [part for line in lines for part in _wrapped(line, "  ")]


def _verdicts(plan: Plan) -> list[str]:
    """The verdict of each column with its figure and its reasons, the goal's first; each reason once."""
    if plan.same_cost.verdict == "none":
        reasons = [line for each in plan.same_cost.reasons for line in _wrapped(f"- {each}", "  ")]
        return ["Do not use superposition here.", *reasons]
    gain = "no range of the gain can be given"
    if plan.gain.low is not None and plan.gain.high is not None:
        gain = better_or_worse_range(-plan.gain.high, -plan.gain.low, "nats per token")
        gain += f" (measured: {plan.gain.basis})"
    saving = [] if plan.saving is None else [saving_in_words(plan), f"speed-up measured: {plan.speedup.basis}"]
    parts = [
        ("Lower loss at the same compute", plan.same_cost, [gain]),
        ("Same loss with less compute", plan.same_loss, saving),
    ]
    lines: list[str] = []
    said: set[str] = set()
    for title, column, figures in parts if plan.goal == "loss" else reversed(parts):
        lines.append(f"{title}: {_VERDICTS[column.verdict]}")
        for figure in figures:
            lines += _wrapped(f"  {figure}", "    ")
        lines += [f"  {_setting_in_words(plan, run)}" for run in column.runs[:1]]
        for reason in column.reasons:
            lines += [] if reason in said else _wrapped(f"  - {reason}", "    ")
            said.add(reason)
    return lines


def _setting_in_words(plan: Plan, run: RunCost) -> str:
    setting = plan.setting
    return (
        f"bag_size {setting.bag_size}, ratio {setting.ratio:.3g}, slot_weights {setting.slot_weights}, mode "
        f"{setting.mode}: {count(run.total_steps)} steps, switch at step {count(run.switch_step)}"
    )


def saving_in_words(plan: Plan) -> str:
    """The saving in one line, such as `saves $78 to $133 (35% to 61%) of $219, never measured at so few steps`."""
    saving = plan.saving
    assert saving is not None
    whole = getattr(plan.without, saving.unit)

    def written(value: float) -> str:
        if saving.unit == "cost":
            return f"${value:,.0f}" if whole >= 100 else f"${value:,.2f}"
        return f"{three_figures(value)} device-hours" if saving.unit == "device_hours" else power_of_ten(value)

    flops = " FLOPs" if saving.unit == "flops" else ""
    share = f"({saving.share_low:.0%} to {saving.share_high:.0%})"
    words = f"saves {written(saving.low)} to {written(saving.high)} {share} of {written(whole)}{flops}"
    return ", ".join(["saves nothing" if saving.high <= 0 else words, *saving.caveats])


def _table(plan: Plan) -> list[str]:
    caveats = plan.saving.caveats if plan.saving else ()
    columns: list[tuple[str, Column]] = []
    if plan.setting.bag_size > 1:
        columns.append(("same compute", plan.same_cost))
    if plan.same_loss.runs:
        columns.append(("same loss" + (" *" if caveats else ""), plan.same_loss))
    grid = Table("", "without", *(name for name, _ in columns), box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify, column.no_wrap = "right", True
    if columns:
        words = {"use": "use", "try": "try", "none": "do not use", None: ""}
        grid.add_row("verdict", "", *(words[column.verdict] for _, column in columns))
    for label, key, written in _ROWS:
        if getattr(plan.without, key) is not None:
            all_runs = [(plan.without,), *(column.runs for _, column in columns)]
            cells = [list(dict.fromkeys(written(getattr(run, key)) for run in runs)) for runs in all_runs]
            grid.add_row(label, *(" to ".join(cell) for cell in cells))
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(grid)
    note = _wrapped(f"* {', '.join(caveats)}", "  ") if caveats else []
    return [*(line.rstrip() for line in text.getvalue().splitlines()), *note]


def _run_in_words(run: Comparison) -> str:
    setting = "setting not recorded" if run.cell is None else f"s={run.bag_size}, ratio {run.ratio:g}"
    error = "" if run.half_width is None else f" (95% interval: {run.half_width:.3f} to each side)"
    return (
        f"{run.name}: {count_in_words(run.scale.parameters)} parameters, "
        f"{three_figures(run.scale.tokens_per_parameter)} tokens per parameter, {run.total_steps:,} steps, {setting}: "
        f"{better_or_worse(-run.gain)}{error}, {plural(run.seeds, 'seed')} ({run.source})"
    )


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most the width; those after the first are indented."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
