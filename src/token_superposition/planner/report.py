"""The plan for people: what is recommended, a table of what it takes, what that rests on, what speaks against it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from token_superposition.study.report.numbers import (
    count,
    count_in_words,
    plural,
    power_of_ten,
    signed,
    three_figures,
)

_VERDICTS = {
    "use": "Use superposition.",
    "try": "Try superposition, beside a baseline (tst compare): it is not known to help here.",
    "none": "Do not use superposition here.",
}
_WIDTH = 118


def describe(plan: dict[str, Any]) -> str:
    """The plan as plain text."""
    parts = [_heading(plan), "", _verdict(plan), "", _table(plan), "", *_expected(plan), "", *_evidence(plan)]
    if plan["assumptions"]:
        parts += ["", *_wrapped("assumed: " + "; ".join(plan["assumptions"]) + ".")]
    return "\n".join(parts)


def _heading(plan: dict[str, Any]) -> str:
    model, hardware = plan["model"], plan["hardware"]
    active = ""
    if model["active_parameters"] < 0.99 * model["parameters"]:
        active = f" ({count_in_words(model['active_parameters'])} of them active)"
    lines = [
        f"{model['architecture']}, {count_in_words(model['parameters'])} parameters{active}, "
        f"{count_in_words(model['positions_per_step'])} positions a step, tokens are {model['unit']}"
    ]
    machine = "hardware not named: no hours and no cost (--hardware)"
    if hardware["speed_basis"] is not None:
        name = hardware["name"] or "this machine"
        machine = f"{hardware['num_devices']} x {name}, by {hardware['speed_basis']}"
        if hardware["mfu"] is not None and "MFU" not in hardware["speed_basis"]:
            machine += f": an MFU of {hardware['mfu']:.2f}"
    if hardware["price"] is not None:
        machine += f"; ${hardware['price']:,.2f} a device and hour ({hardware['price_basis']})"
    return "\n".join([*lines, *_wrapped(machine)])


def _verdict(plan: dict[str, Any]) -> str:
    lines = [_VERDICTS[plan["verdict"]]]
    advised = plan["recommended"]
    if advised["bag_size"] > 1:
        lines.append(
            f"bag_size {advised['bag_size']}, ratio {advised['ratio']:.3g}, slot_weights {advised['slot_weights']}"
            + (f", mode {advised['mode']}" if advised["mode"] != "full" else "")
            + f": {count(advised['total_steps'])} steps, switch at step {count(advised['switch_step'])}"
        )
    for reason in plan["reasons"]:
        lines += _wrapped(f"- {reason}", "  ")
    return "\n".join(lines)


def _table(plan: dict[str, Any]) -> str:
    columns = [("without", [plan["without"]])]
    if plan["recommended"]["bag_size"] > 1:
        columns.append(("with, same cost", [plan["same_cost"]]))
    if plan["same_loss"]:
        columns.append(("with, same loss", plan["same_loss"]))
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        ("steps", "total_steps", count),
        ("switch at step", "switch_step", count),
        ("positions", "positions", count_in_words),
        ("FLOPs", "flops", power_of_ten),
        ("hours", "hours", three_figures),
        ("device-hours", "device_hours", three_figures),
        ("cost, $", "cost", lambda value: f"{value:,.2f}"),
        ("raw tokens", "raw_tokens", count_in_words),
        ("of them different", "unique_raw_tokens", count_in_words),
        ("epochs", "epochs", three_figures),
    ]
    grid = Table("", *(name for name, _ in columns), box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for label, key, written in rows:
        if plan["without"][key] is not None:
            grid.add_row(label, *(" to ".join(written(run[key]) for run in runs) for _, runs in columns))
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _expected(plan: dict[str, Any]) -> list[str]:
    lines = []
    for label, key, written in (
        ("same cost", "gain_nats", lambda gain: f"{signed(gain['low'])} to {signed(gain['high'])} nats a token better"),
        ("same loss", "speedup", lambda times: f"{times['low']:.1f} to {times['high']:.1f} times less compute"),
    ):
        found = plan[key]
        if found["low"] is not None:
            far = ", extrapolated" if found["extrapolated"] else ""
            lines += _wrapped(f"at the {label}: {written(found)}{far}. It rests on {found['basis']}.")
        elif any(found["reason"] in reason for reason in plan["reasons"]):
            lines += [f"at the {label}: no range can be given"]
        else:
            lines += _wrapped(f"at the {label}: no range can be given ({found['reason']})")
    return lines


def _evidence(plan: dict[str, Any]) -> list[str]:
    lines = ["nearest runs measured, their best setting:"]
    for each in plan["evidence"]:
        setting = "setting not written down"
        if each["bag_size"] is not None:
            setting = f"s={each['bag_size']}, ratio {each['ratio']:g}"
        sure = f" +-{each['half_width']:.3f}" if each["half_width"] is not None and each["seeds"] > 1 else ""
        lines += _wrapped(
            f"- {each['name']}: {count_in_words(each['parameters'])} parameters, {each['total_steps']:,} steps, "
            f"{count_in_words(each['positions'])} positions ({each['unit']}), {setting}: "
            f"{signed(each['gain_nats'])}{sure} nats, {plural(each['seeds'], 'seed')} ({each['source']})",
            "  ",
        )
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most the width; those after the first are indented."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
