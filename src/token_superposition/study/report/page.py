"""The page: one HTML file that needs nothing else, read from the top by somebody with half a minute.

The verdict comes first, in a sentence and four numbers, then the curves, the tables, and what all of it does
and does not show. It fetches nothing, prints well, and says everything without its few lines of script.
"""

from __future__ import annotations

import re
from html import escape
from importlib import resources

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
from token_superposition.study.report.budget_facts import (
    FEWEST_FOR_INTERVAL,
    difference_at_equal_data,
    has_budgets,
    reference_steps,
)
from token_superposition.study.report.budget_figure import losses_panel
from token_superposition.study.report.curves import Series, all_series
from token_superposition.study.report.dot_plot import difference_strip
from token_superposition.study.report.facts import (
    Report,
    arm_named,
    baseline,
    best,
    mean,
    num_seeds,
    ratio,
    token_word,
    unit,
)
from token_superposition.study.report.findings import (
    budget_caption,
    not_read,
    readings,
    saving,
    saving_interval,
    shown_reading,
    switch_sentences,
)
from token_superposition.study.report.gap_figure import gaps_panel
from token_superposition.study.report.headline import verdict
from token_superposition.study.report.numbering import figure_number, table_number
from token_superposition.study.report.plot import Axis, Window, end_window, panel, whole_window
from token_superposition.study.report.settings_text import how_to_reproduce, what_it_shows, what_was_trained
from token_superposition.study.report.tables import arms_table, bounds_words, budgets_table, seeds_table, speedup_table
from token_superposition.study.report.tuning_section import sweep_section

_COMPUTE = Axis("flops", "Training compute", "FLOPs")
_DATA = Axis("raw_tokens", "Raw tokens read", "")


def render_html(report: Report) -> str:
    """The report as one HTML page."""
    sections = [
        ("Budget by budget", _budgets(report)),
        ("Loss over compute", _over_compute(report)),
        ("Loss over data", _figure(report, _DATA, figure_number(report, "data"))),
        ("The arms in numbers", arms_table(report, table_number(report, "arms"))),
        ("Seed by seed", _seeds(report)),
        ("Tuning each arm", _sweep(report)),
        ("What was trained", what_was_trained(report)),
        ("What this does and does not show", what_it_shows(report)),
        ("Run it again", how_to_reproduce(report)),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{text}</section>" for title, text in sections if text)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report['title'])}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n"
        f"{_head(report)}\n{body}\n{_footer()}\n</main>\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    words, seeds = verdict(report), num_seeds(report)
    details = "".join(f"<li>{_unbroken(escape(line))}</li>" for line in words.details)
    model = f"{count_in_words(report['model']['parameters'])} parameters"
    return (
        f"<header><h1>{escape(report['title'])}</h1>\n"
        f'<p class="byline">{escape(report["created"])} · {model} · {plural(seeds, "seed")} an arm</p>\n'
        f'<p class="headline">{_unbroken(escape(words.headline))}</p>\n'
        f'<p class="next">{_unbroken(escape(words.next_step))}</p>\n{_big_numbers(report)}\n'
        f"<ul>{details}</ul></header>"
    )


def _unbroken(text: str) -> str:
    """A line of text whose option and short names of arms do not break at their hyphens."""
    return re.sub(r"(?<= )--seeds(?= )|“[^”\s]{1,24}”", r'<span class="unbroken">\g<0></span>', text)


def _big_numbers(report: Report) -> str:
    result, arm, base = report["equal_flops"], best(report), baseline(report)
    ends = result["confidence_interval"]
    sure = f"{result['confidence_level']:.0%} interval {interval(ends)}" if ends else "no interval"
    relative, flops = ratio(report, arm, "raw_tokens"), mean(base, "flops")
    compute = ratio(report, arm, "flops")
    same = compute is None or abs(compute - 1) < 0.01
    read, theirs = count_in_words(mean(arm, "raw_tokens")), count_in_words(mean(base, "raw_tokens"))
    bits = (
        "Bits per byte",
        decimal(mean(arm, "bits_per_byte"), 3),
        f"baseline {decimal(mean(base, 'bits_per_byte'), 3)}",
    )
    first = ("Difference in validation loss", _big_difference(result["delta_nats"]), f"{unit(report)}\n{sure}")
    cells: list[tuple[str, str, str] | None] = [
        first,
        _speedup(report) or bits,
        _equal_data(report) or (bits if _speedup(report) else None),
        (
            "Raw data read",
            f"× {decimal(relative, 2)}" if relative is not None else "–",
            f"{read} {token_word(report)}s\nbaseline {theirs}",
        ),
        (
            "Training compute",
            "equal" if same else f"× {decimal(compute, 2)}",
            f"{power_of_ten(flops)} FLOPs\n{'each arm' if same else 'in the baseline'}",
        ),
    ]
    if same and all(cells):
        cells.pop()  # equal, as the title of the first then says
        cells[0] = ("Difference at equal compute", *first[1:])
    items = "".join(
        f'<div><dt>{escape(title)}</dt><dd class="big">{escape(big)}</dd>{_lines(small)}</div>'
        for title, big, small in filter(None, cells)
    )
    return f'<dl class="figures">{items}</dl>'


def _speedup(report: Report) -> tuple[str, str, str] | None:
    """The speed-up for the head: its number, or what is known where it is out of range; None where nothing is."""
    found = readings(report, best(report)["name"], "baseline_end").get("flops")
    title, steps = "Compute for the baseline’s loss", count(reference_steps(report))
    if found is not None and found["speedup"] is None and found["bounds"] is None:
        found, title = shown_reading(report), "Compute for superposition’s loss"
    if found is None:
        return None
    if found["speedup"] is None:
        sure = "\none seed, no interval" if num_seeds(report) == 1 else ""
        return title, bounds_words(found), f"its loss at {steps} steps{sure}"
    number, words = saving(found)
    ends = saving_interval(found)
    sure = f"{found['confidence_level']:.0%} interval {ends}" if ends else "no interval"
    return title, f"{number}× {words.split()[0]}", f"its loss at {steps} steps\n{sure}"


def _big_difference(delta: float | None) -> str:
    return compared(delta, digits_of(delta))


def _equal_data(report: Report) -> tuple[str, str, str] | None:
    found = difference_at_equal_data(report, best(report))
    if found is None:
        return None
    ends = found["confidence_interval"]
    sure = f"{found['confidence_level']:.0%} interval {interval(ends)}" if ends else "no interval"
    return "Difference at equal data", _big_difference(found["delta_nats"]), f"{unit(report)}\n{sure}"


def _lines(text: str) -> str:
    return "".join(f"<dd>{escape(line)}</dd>" for line in text.splitlines())


def _over_compute(report: Report) -> str:
    words = "".join(f"<p>{escape(line)}</p>" for line in switch_sentences(report))
    figure = _figure(report, _COMPUTE, figure_number(report, "compute"))
    return figure + (f'<div class="tables">{words}</div>' if words else "")


def _figure(report: Report, axis: Axis, number: int) -> str:
    series = all_series(report, axis.key)
    if not series:
        return "<p>No run recorded a validation curve, so there is nothing to draw.</p>"
    whole = whole_window(series)
    end = end_window(series, whole)
    first = panel(series, axis, whole, name=f"f{number}a", heading="The whole run", unit=unit(report), box=end)
    second = panel(series, axis, end, name=f"f{number}b", heading="The end, enlarged", unit=unit(report)) if end else ""
    return (
        f'<figure><div class="panels">{first}{second}</div><p class="readout"></p>'
        f"<figcaption><b>Figure {number}.</b> {escape(_caption(report, axis, series, whole, end))}"
        "</figcaption></figure>"
    )


def _budgets(report: Report) -> str:
    """Final losses at every budget, the speed-up read off, and the tables of both; empty with one budget."""
    if not has_budgets(report):
        return ""
    number = figure_number(report, "budgets")
    drawn = [losses_panel(report), gaps_panel(report)]
    figure = (
        f'<figure><div class="panels">{"".join(drawn)}</div><p class="readout"></p>'
        f"<figcaption><b>Figure {number}.</b> {escape(budget_caption(report))}</figcaption></figure>"
        if any(drawn)
        else "<p>No final loss is finite, so there is nothing to draw.</p>"
    )
    table = budgets_table(report, table_number(report, "budgets"))
    speedups = speedup_table(report, table_number(report, "speedup")) if report.get("iso_loss_all") else ""
    notes = "".join(f'<p class="small">{escape(line)}</p>' for line in not_read(report))
    return f'{figure}<div class="tables">{speedups}{notes}</div><div class="tables">{table}</div>'


def _caption(report: Report, axis: Axis, series: list[Series], whole: Window, end: Window | None) -> str:
    longest = f" in the runs of {count(reference_steps(report))} steps" if has_budgets(report) else ""
    lines = [
        f"Next-token validation loss{longest}, in the superposition phase too, over "
        + ("training compute." if axis is _COMPUTE else "raw tokens read.")
    ]
    if axis is _DATA:
        lines.append("Dots carry the level of an arm that ends earlier to the right edge.")
    if num_seeds(report) > 1:
        what = "95% interval of the mean" if num_seeds(report) >= FEWEST_FOR_INTERVAL else "range of the seeds"
        lines.append(f"Bold: mean; thin: each seed; shaded: {what}.")
    lines.append("The dashed line is the switch" + ("; the box is the part enlarged." if end else "."))
    if whole.clipped:
        lines.append("The whole run is cut off at the top; only its first steps lie above.")
    if end and end.clipped:
        lines.append("The enlarged part is cut off at the top too.")
    missing = [arm["name"] for arm in report["arms"] if arm["name"] not in {s.name for s in series}]
    if missing:
        lines.append(f"Without a curve: {', '.join(missing)}.")
    finals = [mean(arm_named(report, s.name), "final_validation_loss") for s in series]
    if any(final is None or abs(s.mean[-1].loss - final) > 0.0005 for s, final in zip(series, finals, strict=True)):
        ends = ", ".join(f"{s.name} at {decimal(s.mean[-1].loss, 3)}" for s in series)
        lines.append(
            "Curves are scored on fewer validation tokens than the final losses of Table "
            f"{table_number(report, 'arms')}, so they end elsewhere: {ends}."
        )
    return " ".join(lines)


def _seeds(report: Report) -> str:
    if num_seeds(report) < 2:
        return ""
    table, strip = seeds_table(report, table_number(report, "seeds")), difference_strip(report)
    if not strip:
        return table
    number = figure_number(report, "seeds")
    caption = (
        f"<figcaption><b>Figure {number}.</b> Difference to the baseline. Rings: one seed each; filled: their mean, "
        "with its confidence interval.</figcaption>"
    )
    beside = "pair" if len(report["arms"]) == 2 else "above"  # a table of many columns wants the whole width
    return f'<div class="{beside}"><figure>{strip}{caption}</figure>{table}</div>'


def _sweep(report: Report) -> str:
    return sweep_section(report, figure=figure_number(report, "sweep"), table=table_number(report, "sweep"))


def _footer() -> str:
    return (
        "<footer><p>Written by <code>tst compare</code> of token-superposition. The method: Peng, Gigant and "
        "Quesnelle, Token-Superposition Training, arXiv 2605.06546.</p></footer>"
    )


def _asset(name: str) -> str:
    return resources.files("token_superposition.study.report").joinpath(name).read_text(encoding="utf-8")
