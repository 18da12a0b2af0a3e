"""What budgets, equal data and the switch say, in sentences for the verdict and for the page.

A speed-up of 1.43 is written "1.43 times less compute"; one below 1 the other way round, so that a reader never has to
turn a number over. What could not be measured is said with its reason, as the report gives it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from token_superposition.formatting import better_or_worse, count, decimal, in_nats, interval, three_figures
from token_superposition.study.arms import Arm, quoted
from token_superposition.study.prices import MUCH_FASTER
from token_superposition.study.report.budget_facts import (
    FEWEST_FOR_INTERVAL,
    as_difference,
    compared_steps,
    difference_at,
    difference_at_equal_data,
    equal_data_steps,
    has_budgets,
    is_cut,
    placed,
    shortest_in_full,
)
from token_superposition.study.report.facts import Report, baseline, best, differences, outcome, outcome_words, unit
from token_superposition.study.significance import (
    NOISE,
    ONE_SEED,
    Difference,
    PairedDifference,
    outcome_of,
    would_have_won,
)

Reading = Mapping[str, Any]
_CLOSES, _STAYS = 2 / 3, 0.9  # of how far behind it was one budget before


def saving(reading: Reading) -> tuple[str, str]:
    """`1.43` and `less compute`, or `1.25` and `more time` where superposition needs more."""
    speedup, what = reading["speedup"], "compute" if reading.get("unit", "flops") == "flops" else "time"
    return (decimal(speedup, 2), f"less {what}") if speedup >= 1 else (decimal(1 / speedup, 2), f"more {what}")


def saving_interval(reading: Reading) -> str | None:
    """`1.21 to 1.70`, the way round that `saving` is; None without an interval."""
    ends = reading.get("confidence_interval")
    if not ends:
        return None
    low, high = ends if reading["speedup"] >= 1 else (1 / ends[1], 1 / ends[0])
    return f"{decimal(low, 2)} to {decimal(high, 2)}"


def readings(report: Report, arm: str, read_at: str) -> dict[str, Reading]:
    """An arm's readings at one end, by their unit."""
    listed = report.get("iso_loss_all") or []
    return {r["unit"]: r for r in listed if r["arm"] == arm and r["read_at"] == read_at}


def shown_reading(report: Report) -> Reading | None:
    """The reading that the figure shows: the headline, or else that at superposition's end."""
    if report.get("iso_loss"):
        headline: Reading = report["iso_loss"]
        return headline
    reading = readings(report, best(report)["name"], "superposition_end").get("flops")
    return reading if reading and reading["speedup"] is not None else None


def saves_compute(report: Report) -> bool:
    """Whether the headline's speed-up is one, whatever the seeds."""
    headline = report.get("iso_loss")
    return bool(headline and headline["confidence_interval"] and headline["confidence_interval"][0] > 1)


def speedup_sentences(report: Report) -> list[str]:
    """The best arm's speed-up at the baseline's loss, or why it cannot be read and what can be read instead."""
    name = best(report)["name"]
    at_baseline, at_end = (readings(report, name, end) for end in ("baseline_end", "superposition_end"))
    if not at_baseline or not has_budgets(report):
        return []
    first, second = at_baseline["flops"], at_end["flops"]
    if first["speedup"] is not None:
        steps = count(compared_steps(report)[-1])
        return [
            f"It reached the baseline’s loss at {steps} steps ({decimal(first['loss'], 3)}) with "
            f"{_amount(at_baseline)}.{_sureness(first)}{_busyness(at_baseline)}"
        ]
    lines = [f"The speed-up at the baseline’s final loss cannot be read off: {first['reason']}."]
    if second["speedup"] is not None:
        run = "longer" if second["speedup"] >= 1 else "shorter"
        lines.append(
            f"Read at superposition’s own final loss ({decimal(second['loss'], 3)}), which the baseline reaches in a "
            f"{run} run, it took {_amount(at_end)}.{_sureness(second)}{_busyness(at_end)}"
        )
    return lines


def _amount(found: Mapping[str, Reading]) -> str:
    """`1.43 times less compute (95% interval 1.21 to 1.70) and 1.40 times less measured time (...)`."""
    parts = []
    for key in ("flops", "seconds"):
        reading = found.get(key)
        if reading and reading["speedup"] is not None:
            number, words = saving(reading)
            words = words.replace("time", "measured time")
            ends = saving_interval(reading)
            level = f" ({reading['confidence_level']:.0%} interval {ends})" if ends else ""
            parts.append(f"{number} times {words}{level}")
    return " and ".join(parts)


def _busyness(found: Mapping[str, Reading]) -> str:
    """What to think of measured seconds that do not follow from the FLOPs: a step costs both arms the same."""
    seconds = found.get("seconds")
    if not seconds or seconds["speedup"] is None:
        return ""
    faster = seconds["speedup"] / found["flops"]["speedup"]
    if faster > MUCH_FASTER:
        return (
            f" The baseline’s steps took {decimal(faster, 2)} times as long as superposition’s, which the method does "
            "not explain: the machine was busier with them. Go by the compute."
        )
    if faster < 1 / MUCH_FASTER:
        return (
            f" Superposition’s steps took {decimal(1 / faster, 2)} times as long as the baseline’s: the machine was "
            "busier with them, or bags cost time there (tst bench measures both)."
        )
    return ""


def _sureness(reading: Reading) -> str:
    ends = reading["confidence_interval"]
    if ends is None:
        return (
            " One seed gives no interval." if reading["reason"] == ONE_SEED else f" No interval: {reading['reason']}."
        )
    return (
        " The interval includes 1, so these seeds do not decide whether it saves compute."
        if ends[0] <= 1 <= ends[1]
        else ""
    )


def ending(report: Report, difference: Difference, other: str) -> str:
    """Where superposition ended: `0.052 nats per byte better than it`, `level with it (...)`."""
    delta, level = difference["delta_nats"], outcome_of(difference, len(differences(report))) == "level"
    size = in_nats(delta, unit(report))
    if level:
        return f"level with {other} ({size}, which is within the noise of {NOISE} nats)"
    return f"{size} from {other}" if size.endswith("apart") else f"{size} than {other}"


def cost_sentences(report: Report) -> list[str]:
    """Hours and money of one run of every arm, and what the best arm saves; nothing in a report of before."""
    cost = report.get("cost")
    if not cost:
        return []
    arms = [
        f"{quoted(arm['name'])} {_hours_and_money(arm['hours'], arm['money'], cost['unit'])}"
        for arm in cost["arms"]
        if arm["hours"] is not None
    ]
    lines = [f"One run took: {', '.join(arms)}."] if arms else []
    saving = cost["saving"]
    if saving is not None:
        verb = "saves" if saving["hours"] >= 0 else "costs"
        amount = _hours_and_money(abs(saving["hours"]), saving["money"] and abs(saving["money"]), cost["unit"])
        more = "" if verb == "saves" else " more"
        lines.append(
            f"For the baseline’s final loss superposition {verb} {amount}{more} a run, {abs(saving['share']):.0%} of "
            f"the baseline’s cost ({_saving_range(saving)})."
        )
    elif cost["price_per_hour"] is not None:
        lines.append(f"What superposition saves in money is not known: {cost['reason']}.")
    return lines


def _saving_range(saving: Mapping[str, Any]) -> str:
    """`95% interval: saves 12% to 30%`, or why there is none."""
    ends = saving["share_interval"]
    if not ends:
        return "no interval, so it may be luck"
    low, high = ends
    if low < 0 < high:
        return f"undecided: the 95% interval goes from {-low:.0%} more to {high:.0%} less"
    ends = sorted(map(abs, ends))
    return f"95% interval {ends[0]:.0%} to {ends[1]:.0%} {'less' if low >= 0 else 'more'}"


def _hours_and_money(hours: float, money: float | None, unit_words: str) -> str:
    """`1.25 GPU-hours ($3.13)`."""
    text = f"{hours:.2g} {unit_words}" if hours < 0.1 else f"{three_figures(hours)} {unit_words}"
    if money is None:
        return text
    return f"{text} (${money:,.2f})" if money >= 0.1 else f"{text} (${money:.2g})"


def not_decided(report: Report, difference: Difference) -> str:
    """Why it is not said that superposition won or lost."""
    if would_have_won(difference):
        return f"for the best of {len(differences(report))} arms these seeds do not decide"
    return f"{'one seed does' if len(difference['deltas']) == 1 else 'these seeds do'} not decide"


def equal_data_sentences(report: Report) -> list[str]:
    """The best arm against the baseline that read as much text."""
    found = difference_at_equal_data(report, best(report))
    if found is None or found["delta_nats"] is None or not math.isfinite(found["delta_nats"]):
        return []
    ends, came_out = found["confidence_interval"], outcome_of(found, len(differences(report)))
    level = f"{found['confidence_level']:.0%} interval {interval(ends)}" if ends else "no interval"
    start = f"At equal data, {_longer(report, found)}, superposition ended {ending(report, found, 'it')} ({level})"
    if came_out == "won":
        return [start + ": its gain is more than the additional text."]
    if came_out in ("lost", "level"):
        gained = outcome(report) == "won"
        return [start + (": what it gained at equal compute, it bought with text." if gained else ".")]
    return [f"{start}: {not_decided(report, found)} it."]


def _longer(report: Report, found: Mapping[str, Any]) -> str:
    steps = found.get("total_steps")
    if steps is None:
        return "against a baseline that read as much text"
    times = steps / compared_steps(report)[-1]
    return (
        f"against a baseline of {count(steps)} steps ({three_figures(times)} times the compute) that read as much text"
    )


def budget_sentences(report: Report) -> list[str]:
    """The best arm's difference at every budget, and where it starts to win or whether the gap closes."""
    arm = best(report)
    found = [(steps, difference_at(report, arm, steps)) for steps in compared_steps(report)]
    known = [(steps, each) for steps, each in found if each is not None and math.isfinite(each.mean)]
    if len(known) < 2:
        return []
    words = [
        f"{in_nats(each.mean, unit(report))} at {count(steps)} steps ({outcome_words(report, as_difference(each))})"
        for steps, each in known
    ]
    line = f"Budget by budget, superposition ended {', '.join(words)}."
    won = [outcome_of(as_difference(each), len(differences(report))) == "won" for _, each in known]
    if all(won):
        line += " It is clearly better at every budget."
    elif won[-1]:
        since = len(won) - won[::-1].index(False)
        line += f" It is clearly better from {count(known[since][0])} steps on."
    elif not any(won) and all(each.interval is not None for _, each in known):
        line += _trend(report, known)
    return [line]


def _trend(report: Report, known: Sequence[tuple[int, PairedDifference]]) -> str:
    """Whether a gap closes faster than losses flatten: counted in the compute that the baseline's own fall is worth.

    A run that needs a fixed multiple of the compute has a gap that shrinks with every budget and never closes.
    """
    points = {point.steps: point for point in placed(baseline(report))}
    behind = []
    for (before, _), (steps, each) in itertools.pairwise(known):
        if before not in points or steps not in points:
            return ""
        fall = points[before].loss - points[steps].loss
        if fall <= 0 or each.mean <= 0:
            return ""
        behind.append(each.mean / fall * math.log(points[steps].flops / points[before].flops))
    if len(behind) < 2:
        return ""
    if behind[-1] < _CLOSES * behind[-2]:
        return " The gap closes faster than the losses flatten: a longer run may turn it."
    if behind[-1] > _STAYS * behind[-2]:
        return " The gap shrinks no faster than the losses flatten: a longer run alone may not turn it."
    return ""


def switch_sentences(report: Report) -> list[str]:
    """What happened to every superposition arm at its switch."""
    lines = []
    for found in report.get("switch") or []:
        spike, lasted, crossing = found["spike_nats"], found["spike_steps"], found["crossing_step"]
        words = [f"{quoted(found['arm'])}:"] if len(report["arms"]) > 2 else []
        if spike is not None and spike > 0:
            over = f"; after {count(lasted)} steps less than a tenth of that was left" if lasted is not None else ""
            words.append(
                f"At the switch (step {count(found['switch_step'])}) superposition’s next-token loss was "
                f"{better_or_worse(spike, unit(report), 2)} than the baseline’s{over}."
            )
        if crossing is not None:
            words.append(
                f"From step {count(crossing)}, {count(found['crossing_recovery_steps'])} steps after the switch, its "
                "curve stayed as good as the baseline’s, or better."
            )
        if found["reason"]:
            words.append(f"{found['reason'][:1].upper()}{found['reason'][1:]}.")
        lines.append(" ".join(words))
    return lines


def switch_of(report: Report, arm: Arm) -> Mapping[str, Any] | None:
    """What the report says of an arm's switch."""
    return next((found for found in report.get("switch") or [] if found["arm"] == arm["name"]), None)


def not_read(report: Report) -> list[str]:
    """Why speed-ups are missing from their table: a sentence a reading, in seconds only where FLOPs have one."""
    lines = []
    for reading in report.get("iso_loss_all") or []:
        arm, read_at = reading["arm"], reading["read_at"]
        in_flops = readings(report, arm, read_at)["flops"]
        if reading["speedup"] is None and (reading["unit"] == "flops" or in_flops["speedup"] is not None):
            whose = "the baseline’s" if read_at == "baseline_end" else "superposition’s"
            who = f"{quoted(arm)}, at {whose} loss" if len(report["arms"]) > 2 else f"At {whose} loss"
            seconds = ", in seconds" if reading["unit"] == "seconds" else ""
            lines.append(f"{who}{seconds}: {reading['reason']}.")
    return lines


def budget_caption(report: Report) -> str:
    """What the figure of the budgets shows."""
    seeds = max(len(arm["seeds"]) for arm in report["arms"])
    lines = ["Left: final validation loss at every budget, over training compute on a logarithmic axis."]
    if seeds >= FEWEST_FOR_INTERVAL:
        lines.append("Bands: 95% intervals of each mean over seeds.")
    elif seeds > 1:
        lines.append("Bands: from the lower seed to the higher.")
    if equal_data_steps(report):
        lines.append("Rings: the baseline trained on as much text as superposition reads.")
    if is_cut(report):
        lines.append(f"Runs under {count(shortest_in_full(report))} steps may lie above the top, which is cut off.")
    reading = shown_reading(report)
    if reading:
        whose = "the baseline’s" if reading["read_at"] == "baseline_end" else "superposition’s"
        who = "superposition" if len(report["arms"]) == 2 else quoted(reading["arm"])
        lines.append(
            f"The arrow lies at {whose} final loss and runs from the compute that {who} needs for it to the baseline’s."
        )
    elif report.get("iso_loss_all"):
        lines.append("No speed-up is drawn: it lies outside what was trained.")
    lines.append("Right: the difference to the baseline at each, taken seed by seed.")
    return " ".join(lines)
