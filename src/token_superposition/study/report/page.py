"""The page: one HTML file that needs nothing else, read from the top by somebody with half a minute.

The verdict comes first, in a sentence and four numbers, then figures and tables, then what the result holds for.
`page.html.j2` lays it out. It loads nothing, prints well, and says everything without its few lines of script.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, Template
from markupsafe import Markup, escape

from token_superposition.formatting import (
    compared,
    count,
    count_in_words,
    decimal,
    digits_of,
    interval,
    plural,
    power_of_ten,
)
from token_superposition.study.report import conditions, sentences, tables, tuning
from token_superposition.study.report.curves import COMPUTE, DATA, curves_figure
from token_superposition.study.report.figures import budgets_figure, seeds_figure
from token_superposition.study.report.model import Report
from token_superposition.study.report.panel import arm_class, marker
from token_superposition.study.report.parts import Difference
from token_superposition.study.report.verdict import command_words, verdict


class BigNumber(NamedTuple):
    """A number of the page's head, with its title above and small lines below."""

    title: str
    number: str
    lines: tuple[str, ...]


def render_html(report: Report) -> str:
    """The report as one HTML page."""
    sweep = report.sweep
    return (
        _template()
        .render(
            report=report,
            byline=f"{report.created} · {count_in_words(report.model.parameters)} parameters · "
            f"{plural(report.num_seeds, 'seed')} per arm",
            verdict=verdict(report),
            numbers=_big_numbers(report),
            has_budgets=report.has_budgets,
            budgets_figure=budgets_figure(report) if report.has_budgets else None,
            speedup_table=tables.speedup_table(report) if report.has_budgets and report.iso_loss_all else None,
            not_read=sentences.not_read(report),
            budgets_table=tables.budgets_table(report) if report.has_budgets else None,
            compute_figure=curves_figure(report, COMPUTE, "compute"),
            switches=sentences.switches(report),
            data_figure=curves_figure(report, DATA, "data"),
            arms_table=tables.arms_table(report),
            seeds_figure=seeds_figure(report) if report.num_seeds > 1 else None,
            seeds_table=tables.seeds_table(report) if report.num_seeds > 1 else None,
            tuning_figure=tuning.tuning_figure(report, sweep) if sweep else None,
            tuning_table=tuning.tuning_table(report, sweep) if sweep else None,
            trained=conditions.what_was_trained(report),
            arm_words=conditions.arm_words,
            config=json.dumps(report.model.config or {}, indent=2, ensure_ascii=False, default=str),
            limits=conditions.limits(report),
            command=command_words(report),
            files=conditions.files(report),
        )
        .lstrip()
    )


@cache
def _template() -> Template:
    """The template, with the style sheet and the script as plain text of the page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"css": Markup(_asset("page.css")), "js": Markup(_asset("page.js"))}
    environment.globals |= {"arm_class": arm_class, "mark": lambda arm: Markup(marker(arm, 6, 6))}
    environment.filters["unbroken"] = _unbroken
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return resources.files("token_superposition.study.report").joinpath(name).read_text(encoding="utf-8")


def _unbroken(text: str) -> Markup:
    """A text whose options and short names of arms do not break at their hyphens."""
    pattern = r"(?<= )--seeds(?= )|“[^”\s]{1,24}”"
    return Markup(re.sub(pattern, r'<span class="unbroken">\g<0></span>', str(escape(text))))


def _big_numbers(report: Report) -> list[BigNumber]:
    arm, base = report.best, report.baseline
    relative, compute = report.ratio(arm, "raw_tokens"), report.ratio(arm, "flops")
    same = compute is None or abs(compute - 1) < 0.01
    bits = BigNumber(
        "Bits per byte",
        decimal(arm.mean("bits_per_byte"), 3),
        (f"baseline {decimal(base.mean('bits_per_byte'), 3)}",),
    )
    read, theirs = count_in_words(arm.mean("raw_tokens")), count_in_words(base.mean("raw_tokens"))
    text = BigNumber(
        "Raw data read",
        f"× {decimal(relative, 2)}" if relative is not None else "–",
        (f"{read} {report.token_word}s", f"baseline {theirs}"),
    )
    flops = BigNumber(
        "Training compute",
        "equal" if same else f"× {decimal(compute, 2)}",
        (f"{power_of_ten(base.mean('flops'))} FLOPs", "each arm" if same else "in the baseline"),
    )
    data, speedup = report.equal_data_of(arm), _speedup(report)
    cells = [
        _difference(report, "Difference in validation loss", report.equal_flops),
        speedup or bits,
        *([_difference(report, "Difference at equal data", data)] if data else [bits] if speedup else []),
        text,
    ]
    if len(cells) < 4 or not same:
        return [*cells, flops]
    return [cells[0]._replace(title="Difference at equal compute"), *cells[1:]]


def _difference(report: Report, title: str, found: Difference) -> BigNumber:
    ends = found.confidence_interval
    sure = f"{found.confidence_level:.0%} interval {interval(ends)}" if ends else "no interval"
    return BigNumber(title, compared(found.delta_nats, digits_of(found.delta_nats)), (report.unit, sure))


def _speedup(report: Report) -> BigNumber | None:
    """The speed-up: its number, or what is known if it is out of range; None if nothing is."""
    found = report.readings(report.best.name, "baseline_end").get("flops")
    title, at = "Compute for the baseline’s loss", f"its loss at {count(report.reference_steps)} steps"
    if found is not None and found.speedup is None and found.bounds is None:
        found, title = report.shown_reading, "Compute for superposition’s loss"
    if found is None:
        return None
    ends = sentences.saving_interval(found)
    if found.speedup is None:
        return BigNumber(
            title, sentences.bounds_words(found), (at, *(["one seed, no interval"] if report.num_seeds == 1 else []))
        )
    number, words = sentences.saving(found)
    sure = f"{found.confidence_level:.0%} interval {ends}" if ends else "no interval"
    return BigNumber(title, f"{number}× {words.split()[0]}", (at, sure))
