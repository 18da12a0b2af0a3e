"""What the report says of a sweep: the values each arm was given, how they were chosen, and all that was tried.

The sentences go into the verdict and the caveats, so that no figure is read without them; the section has a
figure and a table with every setting, those that diverged too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from token_superposition.formatting import as_typed, count, decimal, joined, plural
from token_superposition.study.arms import quoted
from token_superposition.study.report.budget_facts import equal_data_steps, reference_steps
from token_superposition.study.report.facts import Report, unit
from token_superposition.study.report.numbering import table_number
from token_superposition.study.report.tables import arm_heading
from token_superposition.study.report.tuning_figure import has_gaps, is_cut, key_words, panels

Tried = Mapping[str, Any]  # an arm's part of the sweep
Setting = Mapping[str, Any]  # one of the settings it was tried at
_AT_ONE_BUDGET = "The values were chosen at {} steps; at another budget an arm’s best may be another."


def by_budget(report: Report) -> list[Mapping[str, Any]]:
    """The sweep of every budget, the shortest first, each with its `total_steps`; of one budget, the sweep itself."""
    sweep = report["sweep"]
    last = int(sweep.get("total_steps", reference_steps(report)))
    listed = {int(each["total_steps"]): {**sweep, **each} for each in sweep.get("budgets") or []}
    return [each for _, each in sorted({last: {**sweep, "total_steps": last}, **listed}.items())]


def tuned_sentences(report: Report) -> list[str]:
    """What each arm was given and how it was chosen, where the best may lie outside, and what was not tuned."""
    sweep = report.get("sweep")
    if sweep is None:
        return []
    sweeps = by_budget(report)
    number = len(sweep["arms"][0]["settings"])
    one_key = len(sweep["keys"]) == 1
    what = f"best {key_words(sweep['keys'][0])} of {number}" if one_key else f"best of {number} settings"
    given = {tried["name"]: _given(tried["best"], name_keys=not one_key) for tried in sweep["arms"]}
    if len(set(given.values())) == 1:
        chosen = f"{next(iter(given.values()))} for {'both' if len(given) == 2 else 'all'}"
    else:
        chosen = ", ".join(f"{values} for {quoted(name)}" for name, values in given.items())
    at_each, at_last = "", ""
    if "total_steps" in sweep:
        at_each = f" at {count(sweep['total_steps'])} steps, for every budget"
    elif len(sweeps) > 1:
        at_each, at_last = ", at every budget anew", f"at {count(sweeps[-1]['total_steps'])} steps "
    lines = [
        f"Each arm was given its own {what} that were tried{at_each}: {at_last}{chosen}. The choice is by final "
        f"validation loss on {_seeds(sweep)}, which {'is' if sweep['num_seeds'] == 1 else 'are'} not among the seeds "
        "compared."
    ]
    edges: dict[tuple[str, str], list[str]] = {}
    for each in sweeps:
        where = f" at {count(each['total_steps'])} steps" if len(sweeps) > 1 else ""
        for tried in each["arms"]:
            for key, end in tried["at_edge"].items():
                at = f"{as_typed(tried['best'][key])}, the {end} tried"
                edges.setdefault((key, at), []).append(quoted(tried["name"]) + where)
    lines += [
        f"The best {key_words(key)} of {joined(names)} lies at the edge of the range ({at}): the best may lie outside, "
        "so widen the sweep."
        for (key, at), names in edges.items()
    ]
    if longer := equal_data_steps(report):
        lines.append(
            f"The baseline for equal data ({joined([count(steps) for steps in longer])} steps) was trained at "
            f"{_given(sweeps[-1]['arms'][0]['best'], name_keys=True)}, its best at {count(sweeps[-1]['total_steps'])} "
            "steps, and not tuned anew: what is compared with it may flatter superposition."
        )
    return lines


def tuned_caveats(report: Report) -> list[str]:
    """What was tuned and over which values, as HTML; whether the learning rate was not."""
    sweep = report.get("sweep")
    lines = []
    if sweep is not None:
        over = "; ".join(
            f"{key_words(key)} over {', '.join(map(as_typed, sweep['values'][key]))}" for key in sweep["keys"]
        )
        untuned = ", but not for the baseline of equal data" if equal_data_steps(report) else ""
        lines.append(
            f"<b>Tuned for every arm:</b> {escape(over)}, with the same number of tries each{untuned}. Other settings "
            "were tuned for none, and their best may differ between arms."
            + (f" {_AT_ONE_BUDGET.format(count(sweep['total_steps']))}" if "total_steps" in sweep else "")
        )
    if sweep is None or "train.learning_rate" not in sweep["keys"]:
        same = len({arm.get("learning_rate") for arm in report["arms"]}) == 1
        table = table_number(report, "arms")
        lines.append(
            "<b>One learning rate.</b> Every arm used the same; it was not tuned for either, and the best one may "
            "differ (<code>--sweep train.learning_rate=…</code> finds it for each)."
            if same
            else f"<b>Learning rates differ</b> between arms (Table {table}); it is fair where each is its arm’s best, "
            "which was not looked for here (<code>--sweep train.learning_rate=…</code> does)."
        )
    return lines


def runs_words(report: Report) -> str:
    """`, and 6 times more for the sweep (2 arms × 3 settings × 1 seed)`; empty without one."""
    sweep = report.get("sweep")
    if sweep is None:
        return ""
    sweeps = by_budget(report)
    arms, settings, seeds = len(sweep["arms"]), len(sweep["arms"][0]["settings"]), sweep["num_seeds"]
    counts = f"{plural(arms, 'arm')} × {plural(settings, 'setting')} × {plural(seeds, 'seed')}"
    if len(sweeps) > 1:
        counts += f" × {len(sweeps)} budgets"
    elif "total_steps" in sweep:
        counts += f", {count(sweep['total_steps'])} steps each"
    runs = sum(len(tried["settings"]) * each["num_seeds"] for each in sweeps for tried in each["arms"])
    return f", and {plural(runs, 'time')} more for the sweep ({counts})"


def sweep_section(report: Report, *, figure: int, table: int) -> str:
    """The sweep's figure and table as HTML; empty without a sweep.

    Args:
        report: the report's dictionary.
        figure, table: their numbers in the page.
    """
    sweep = report.get("sweep")
    if sweep is None:
        return ""
    sweeps = by_budget(report)
    drawings = [
        panel
        for place, each in enumerate(sweeps)
        for panel in panels(
            {**report, "sweep": each},
            name=f"sweep{place}-" if len(sweeps) > 1 else "sweep",
            heading=f", {count(each['total_steps'])} steps" if len(sweeps) > 1 else "",
        )
    ]
    caption = f"<figcaption><b>Figure {figure}.</b> {escape(_caption(report))}</figcaption>"
    inner = f'<div class="panels">{"".join(drawings)}</div>' if len(drawings) > 1 else "".join(drawings)
    drawn = f'<figure>{inner}<p class="readout"></p>{caption}</figure>' if drawings else ""
    beside = "pair" if len(drawings) == 1 and len(sweep["arms"]) == 2 else "above"
    notes = "".join(f"<p>{escape(line)}</p>" for line in _passed_over(report))
    return f'<div class="{beside}">{drawn}{_table(report, table)}</div>{notes}'


def _caption(report: Report) -> str:
    sweep = report["sweep"]
    lines = [
        f"Final validation loss{_after(sweep)} at every value tried, on {_seeds(sweep)}. Filled: the value chosen for "
        "the arm."
    ]
    if len(sweep["keys"]) > 1:
        lines.append("Each value is shown at the best of the other keys’ values.")
    elif sweep["num_seeds"] > 1:
        lines.append("Bold: mean; thin: each seed.")
    sweeps = [{**report, "sweep": each} for each in by_budget(report)]
    if any(map(is_cut, sweeps)):
        lines.append("Arrows: losses above the figure’s top.")
    if any(map(has_gaps, sweeps)):
        lines.append("Crosses: the run diverged, which counts as worst.")
    return " ".join(lines)


def _table(report: Report, number: int) -> str:
    sweep = report["sweep"]
    order = {arm["name"]: index for index, arm in enumerate(report["arms"])}
    keys = "".join(f'<th scope="col" class="given">{escape(_sentence(key_words(key)))}</th>' for key in sweep["keys"])
    arms = "".join(f'<th scope="col">{arm_heading(order[a["name"]], a["name"])}</th>' for a in sweep["arms"])
    sweeps = by_budget(report)
    bodies = []
    for each in sweeps:
        rows = [
            _setting_row(each, settings)
            for settings in zip(*(tried["settings"] for tried in each["arms"]), strict=True)
        ]
        if len(sweeps) > 1:
            width = len(sweep["keys"]) + len(sweep["arms"])
            title = f"{count(each['total_steps'])} steps"
            rows.insert(0, f'<tr class="group"><th scope="rowgroup" colspan="{width}">{title}</th></tr>')
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    mean = "Mean final" if sweep["num_seeds"] > 1 else "Final"
    return (
        f'<div class="scroll tried"><table><caption><b>Table {number}.</b> {mean} validation loss{_after(sweep)} of '
        f"every setting tried, {escape(unit(report))}, on {_seeds(sweep)}.</caption>"
        f"<thead><tr>{keys}{arms}</tr></thead>"
        f"{''.join(bodies)}</table></div>"
    )


def _setting_row(sweep: Mapping[str, Any], settings: Sequence[Setting]) -> str:
    first, *others = (as_typed(settings[0]["values"][key]) for key in sweep["keys"])
    cells = "".join(_cell(tried, setting) for tried, setting in zip(sweep["arms"], settings, strict=True))
    more = "".join(f'<td class="given">{escape(value)}</td>' for value in others)
    return f'<tr><th scope="row">{escape(first)}</th>{more}{cells}</tr>'


def _cell(tried: Tried, setting: Setting) -> str:
    chosen = setting["values"] == tried["best"]
    text, notes = decimal(setting["mean_validation_loss"]), []
    if _diverged(setting):
        failed = [seed for seed in setting["seeds"] if seed["diverged"]]
        text = "diverged"
        if len(failed) < len(setting["seeds"]):
            notes.append(f"{len(failed)} of {plural(len(setting['seeds']), 'seed')}")
    elif setting["diverged_when_compared"]:
        notes.append(f"diverged with seed {joined([str(seed) for seed in setting['diverged_when_compared']])}")
    elif chosen:
        notes.append("chosen, at the edge" if tried["at_edge"] else "chosen")
    more = "".join(f'<span class="more">{escape(note)}</span>' for note in notes)
    return f"<td{' class=chosen' if chosen else ''}>{escape(text)}{more}</td>".replace("class=chosen", 'class="chosen"')


def _passed_over(report: Report) -> list[str]:
    """Settings that the sweep found good but that diverged with a seed that is compared."""
    sweeps = by_budget(report)
    return [
        f"{_sentence(_given(setting['values'], name_keys=True))} did not stay the choice for {quoted(tried['name'])}"
        + (f" at {count(each['total_steps'])} steps: " if len(sweeps) > 1 else ": ")
        + f"it diverged with seed {joined([str(seed) for seed in setting['diverged_when_compared']])}, which is "
        "compared."
        for each in sweeps
        for tried in each["arms"]
        for setting in tried["settings"]
        if setting["diverged_when_compared"]
    ]


def _diverged(setting: Setting) -> bool:
    return any(seed["diverged"] for seed in setting["seeds"])


def _after(sweep: Mapping[str, Any]) -> str:
    """How long the sweep's runs were, where that is one budget's length and others take its choice."""
    return f" after {count(sweep['total_steps'])} steps" if "total_steps" in sweep else ""


def _seeds(sweep: Mapping[str, Any]) -> str:
    """`seed 1000`, `seeds 1000 to 1002`; of the first arm, as arms nearly always share them."""
    seeds = [seed["seed"] for seed in sweep["arms"][0]["settings"][0]["seeds"]]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _given(values: Mapping[str, Any], *, name_keys: bool) -> str:
    """`0.002`, or `learning rate 0.002 and weight decay 0.1`."""
    return joined([f"{key_words(key)} {as_typed(v)}" if name_keys else as_typed(v) for key, v in values.items()])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
