"""The plan for people: what is recommended, a table of what it takes, what that rests on, what speaks against it."""

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

_GOALS = {"same_cost": "Lower loss at the same compute", "same_loss": "Same loss with less compute"}
_VERDICTS = {
    "use": "use superposition.",
    "try": "try superposition beside a baseline (tst compare). It is not known to help this run.",
    "none": "do not use superposition.",
    None: "no saving can be given.",
}
_WIDTH = 118


def describe(plan: dict[str, Any]) -> str:
    """The plan as plain text."""
    parts = [_heading(plan), "", *_verdicts(plan), "", _table(plan), "", *_evidence(plan)]
    if plan["assumptions"]:
        parts += ["", *_wrapped("assumed: " + "; ".join(plan["assumptions"]) + ".")]
    return "\n".join(parts)


def _heading(plan: dict[str, Any]) -> str:
    model, hardware = plan["model"], plan["hardware"]
    devices = hardware["num_devices"]
    active = ""
    if model["active_parameters"] < 0.99 * model["parameters"]:
        active = f" ({count_in_words(model['active_parameters'])} of them active)"
    lines = [
        f"{model['architecture']}, {count_in_words(model['parameters'])} parameters{active}, "
        f"{count_in_words(model['positions_per_step'])} positions a step, tokens are {model['unit']}"
    ]
    if hardware["speed_basis"] is None:
        lines.append("no hardware is given, so no hours and no cost are known (--hardware)")
    else:
        price = ""
        if hardware["price"] is not None:
            price = f", ${hardware['price']:,.2f} per device and hour ({hardware['price_basis']})"
        lines.append(f"{devices:,} x {hardware['name'] or 'this machine'}{price}")
        mfu = ""
        if hardware["mfu"] is not None and not hardware["speed_basis"].startswith("MFU"):
            mfu = f"MFU {three_figures(hardware['mfu'])}: "
        lines.append(f"speed: {mfu}{hardware['speed_basis']}")
    if devices > 1:
        lines.append(f"{devices:,} devices: through Hugging Face Trainer; `tst train` uses one")
    return "\n".join(part for line in lines for part in _wrapped(line, "  "))


def _verdicts(plan: dict[str, Any]) -> list[str]:
    """What to do for each way to take the saving, the goal first; each reason is said once."""
    order = ["same_cost", "same_loss"] if plan["goal"] == "loss" else ["same_loss", "same_cost"]
    if all(advised["verdict"] == "none" for advised in plan["advice"].values()):
        reasons = dict.fromkeys(reason for name in order for reason in plan["advice"][name]["reasons"])
        return ["Do not use superposition here.", *(line for each in reasons for line in _wrapped(f"- {each}", "  "))]
    lines: list[str] = []
    said: set[str] = set()
    for name in order:
        advised = plan["advice"][name]
        lines.append(f"{_GOALS[name]}: {_VERDICTS[advised['verdict']]}")
        if advised["verdict"] in ("use", "try"):
            lines += [line for figure in _figures(plan, name) for line in _wrapped(f"  {figure}", "    ")]
            lines.append(
                f"  bag_size {advised['bag_size']}, ratio {advised['ratio']:.3g}, "
                f"slot_weights {advised['slot_weights']}, mode {advised['mode']}: "
                f"{count(advised['total_steps'])} steps, switch at step {count(advised['switch_step'])}"
            )
        for reason in advised["reasons"] if advised["verdict"] else advised["reasons"][-1:]:
            if reason not in said:
                lines += _wrapped(f"  - {reason}", "    ")
            said.add(reason)
    return lines


def _figures(plan: dict[str, Any], name: str) -> list[str]:
    """The figure of a verdict with its caveat beside it, and the basis of the figure; or that there is none."""
    found = plan["gain_nats" if name == "same_cost" else "speedup"]
    if found["low"] is None:
        return ["no range of the gain can be given"]
    if name == "same_loss":
        return [saving_in_words(plan), f"basis: {found['basis']}"]
    words = better_or_worse_range(-found["high"], -found["low"], "nats per token")
    far = ", extrapolated beyond the measured runs" if found["extrapolated"] else ""
    return [f"{words}{far}", f"basis: {found['basis']}"]


def saving_in_words(plan: dict[str, Any]) -> str:
    """The saving in one line, such as `saves $78 to $133 (35% to 61%) of $219, never measured at so few steps`."""
    saving = plan["saving"]
    of = plan["without"][saving["unit"]]

    def written(value: float) -> str:
        if saving["unit"] == "cost":
            return f"${value:,.0f}" if of >= 100 else f"${value:,.2f}"
        return f"{three_figures(value)} device-hours" if saving["unit"] == "device_hours" else power_of_ten(value)

    low, high, flops = saving["low"], saving["high"], " FLOPs" if saving["unit"] == "flops" else ""
    share = f"({saving['share_low']:.0%} to {saving['share_high']:.0%})"
    if high <= 0:
        words = "saves nothing"
    elif low <= 0:
        words = f"may save nothing, and at most {written(high)} ({saving['share_high']:.0%}) of {written(of)}{flops}"
    else:
        words = f"saves {written(low)} to {written(high)} {share} of {written(of)}{flops}"
    return ", ".join([words, *saving["caveats"]])


def _table(plan: dict[str, Any]) -> str:
    columns = [("without", None, [plan["without"]])]
    advice = plan["advice"]
    if advice["same_cost"]["bag_size"] > 1:
        columns.append(("same compute", advice["same_cost"]["verdict"], [plan["same_cost"]]))
    caveats = plan["saving"]["caveats"] if plan["saving"] else []
    if plan["same_loss"]:
        columns.append(("same loss" + (" *" if caveats else ""), advice["same_loss"]["verdict"], plan["same_loss"]))
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
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
    grid = Table("", *(name for name, _, _ in columns), box=None, pad_edge=False)
    for column in grid.columns[1:]:
        column.justify, column.no_wrap = "right", True
    words = {None: "", "use": "use", "try": "try", "none": "do not use"}
    if len(columns) > 1:
        grid.add_row("verdict", *(words[verdict] for _, verdict, _ in columns))
    for label, key, written in rows:
        if plan["without"][key] is not None:
            grid.add_row(label, *(" to ".join(written(run[key]) for run in runs) for _, _, runs in columns))
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(grid)
    note = _wrapped(f"* {', '.join(caveats)}", "  ") if caveats else []
    return "\n".join([*(line.rstrip() for line in text.getvalue().splitlines()), *note])


def _evidence(plan: dict[str, Any]) -> list[str]:
    lines = ["nearest runs measured, their best setting:"]
    for each in plan["evidence"]:
        setting = "setting not written down"
        if each["bag_size"] is not None:
            setting = f"s={each['bag_size']}, ratio {each['ratio']:g}"
        sure = f" (95% interval: {each['half_width']:.3f} to each side)" if each["half_width"] is not None else ""
        lines += _wrapped(
            f"- {each['name']}: {count_in_words(each['parameters'])} parameters, {each['total_steps']:,} steps, "
            f"{count_in_words(each['positions'])} positions ({each['unit']}), {setting}: "
            f"{better_or_worse(-each['gain_nats'])}{sure}, {plural(each['seeds'], 'seed')} ({each['source']})",
            "  ",
        )
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most the width; those after the first are indented."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
