"""What budgets, equal data, cost and the switch say, in sentences.

A speed-up of 1.43 is written "1.43 times less compute", one below 1 the other way round. What could not be measured is
said with its reason, as the report has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from token_superposition.formatting import better_or_worse, count, decimal, in_nats, interval, three_figures
from token_superposition.study.prices import MUCH_FASTER
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import Cost, Difference, Saving, Speedup, quoted
from token_superposition.study.significance import NOISE, ONE_SEED, outcome_of, would_have_won


def saving(reading: Speedup) -> tuple[str, str]:
    """`1.43` and `less compute`, or `1.25` and `more time` if superposition needs more."""
    speedup, what = reading.speedup or math.nan, "compute" if reading.unit == "flops" else "time"
    return (decimal(speedup, 2), f"less {what}") if speedup >= 1 else (decimal(1 / speedup, 2), f"more {what}")


def saving_interval(reading: Speedup) -> str | None:
    """`1.21 to 1.70`, the way round that `saving` is; None without an interval."""
    ends = reading.confidence_interval
    if not ends:
        return None
    low, high = ends if (reading.speedup or 0) >= 1 else (1 / ends[1], 1 / ends[0])
    return f"{decimal(low, 2)} to {decimal(high, 2)}"


def bounds_words(reading: Speedup) -> str:
    """`over 1.60× less`, `not reached`: what is known of a speed-up that is out of range."""
    low, high = reading.bounds or (None, None)
    limit = high if low is None else low
    if limit is None or (high is not None and reading.read_at == "baseline_end"):
        return "not reached"
    size = f"{decimal(limit, 2)}× less" if limit >= 1 else f"{decimal(1 / limit, 2)}× more"
    return f"{'over' if (low is not None) == (limit >= 1) else 'under'} {size}"


def equal_loss(report: Report) -> str:
    """The best arm's speed-up at the baseline's loss, or why it cannot be read and what can be read instead."""
    name = report.best.name
    found, own = report.readings(name, "baseline_end"), report.readings(name, "superposition_end")
    if "flops" not in found or not report.has_budgets:
        return f"Not measured: {report.reasons.get('iso_loss', 'no reason was recorded')}."
    if found["flops"].speedup is not None:
        steps = count(report.reference_steps)
        return (
            f"It reached the baseline’s loss at {steps} steps ({decimal(found['flops'].loss, 3)}) with {_read(found)}"
        )
    text = f"The speed-up at the baseline’s final loss cannot be read: {found['flops'].reason}."
    flops = own.get("flops")
    if flops is not None and flops.speedup is not None:
        run = "longer" if flops.speedup >= 1 else "shorter"
        text += (
            f" At superposition’s own final loss ({decimal(flops.loss, 3)}), which the baseline reaches in a {run} "
            f"run, it took {_read(own)}"
        )
    return text


def _read(found: Mapping[str, Speedup]) -> str:
    """`1.43 times less compute (95% interval 1.21 to 1.70) and 1.40 times less measured time (...).`, with caveats."""
    parts = []
    known = [found[key] for key in ("flops", "seconds") if key in found and found[key].speedup is not None]
    for reading in known:
        number, words = saving(reading)
        range_words = saving_interval(reading)
        level = f" ({reading.confidence_level:.0%} interval {range_words})" if range_words else ""
        parts.append(f"{number} times {words.replace('time', 'measured time')}{level}")
    flops, ends = found["flops"], found["flops"].confidence_interval
    sure = ""
    if ends is None:
        sure = " One seed gives no interval." if flops.reason == ONE_SEED else f" No interval: {flops.reason}."
    elif ends[0] <= 1 <= ends[1]:
        sure = " The interval includes 1, so these seeds do not decide whether it saves compute."
    return f"{' and '.join(parts)}.{sure}{_busyness(known)}"


def _busyness(known: Sequence[Speedup]) -> str:
    """What to think of measured seconds that do not follow from the FLOPs: a step costs both arms the same."""
    if len(known) < 2 or known[0].speedup is None or known[1].speedup is None:
        return ""
    faster = known[1].speedup / known[0].speedup
    if 1 / MUCH_FASTER <= faster <= MUCH_FASTER:
        return ""
    slow, quick = ("The baseline", "superposition") if faster > 1 else ("Superposition", "the baseline")
    return (
        f" {slow}’s steps took {decimal(max(faster, 1 / faster), 2)} times as long as {quick}’s, which FLOPs do not "
        "explain: go by the compute (tst bench measures both)."
    )


def not_read(report: Report) -> list[str]:
    """Why speed-ups are missing from their table, in seconds only if FLOPs have one."""
    lines = []
    for reading in report.iso_loss_all:
        flops = report.readings(reading.arm, reading.read_at)["flops"]
        if reading.speedup is None and (reading.unit == "flops" or flops.speedup is not None):
            whose = "the baseline’s" if reading.read_at == "baseline_end" else "superposition’s"
            seconds = ", in seconds" if reading.unit == "seconds" else ""
            lines.append(f"{quoted(reading.arm)} at {whose} loss{seconds}: {reading.reason}.")
    return lines


def equal_data(report: Report) -> str:
    """The best arm against the baseline that read as much text."""
    found = report.equal_data_of(report.best)
    if found is None or found.delta_nats is None or not found.known:
        return f"Not measured: {report.reasons.get('equal_data', 'no reason was recorded')}."
    came_out = outcome_of(found, len(report.differences))
    size = in_nats(found.delta_nats, report.unit)
    ended = f"{size} {'from' if size.endswith('apart') else 'than'} it"
    if came_out == "level":
        ended = f"level with it ({size}, within the noise of {NOISE} nats)"
    ends = found.confidence_interval
    level = f"{found.confidence_level:.0%} interval {interval(ends)}" if ends else "no interval"
    against = "a baseline that read as much text"
    if found.total_steps is not None:
        times = three_figures(found.total_steps / report.reference_steps)
        against = f"a baseline of {count(found.total_steps)} steps ({times} times the compute) that read as much text"
    text = f"Against {against}, superposition ended {ended} ({level})."
    if came_out == "won":
        return f"{text} Its gain is more than the additional text."
    if came_out == "undecided":
        return f"{text} {not_decided(report, found)}."
    return f"{text} It bought its gain at equal compute with text." if report.outcome == "won" else text


def not_decided(report: Report, difference: Difference) -> str:
    """Why it is not said that superposition won or lost."""
    if would_have_won(difference):
        return f"For the best of {len(report.differences)} arms these seeds do not decide"
    return f"{'One seed does' if len(difference.deltas) == 1 else 'These seeds do'} not decide"


def cost(report: Report) -> str:
    """Hours and money of one run of every arm, and what the best arm saves."""
    if report.cost is None:
        return "Not recorded."
    found = report.cost
    arms = [
        f"{quoted(arm.name)} {_hours_and_money(arm.hours, arm.money, found)}"
        for arm in found.arms
        if arm.hours is not None
    ]
    lines = [f"One run took: {', '.join(arms)}."] if arms else []
    if found.saving is not None:
        verb, more = ("saves", "") if found.saving.hours >= 0 else ("costs", " more")
        money = None if found.saving.money is None else abs(found.saving.money)
        amount = _hours_and_money(abs(found.saving.hours), money, found)
        lines.append(
            f"For the baseline’s final loss superposition {verb} {amount}{more} per run, "
            f"{abs(found.saving.share):.0%} of the baseline’s cost ({_saving_range(found.saving)})."
        )
    elif found.price_per_hour is not None:
        lines.append(f"What superposition saves in money is not known: {found.reason}.")
    return " ".join(lines) or "Not recorded."


def _saving_range(found: Saving) -> str:
    """`95% interval 12% to 30% less`, or why there is none."""
    if found.share_interval is None:
        return "no interval, so it may be luck"
    low, high = found.share_interval
    if low < 0 < high:
        return f"undecided: the 95% interval goes from {-low:.0%} more to {high:.0%} less"
    near, far = sorted((abs(low), abs(high)))
    return f"95% interval {near:.0%} to {far:.0%} {'less' if low >= 0 else 'more'}"


def _hours_and_money(hours: float, money: float | None, found: Cost) -> str:
    """`1.25 GPU-hours ($3.13)`."""
    text = f"{hours:.2g} {found.unit}" if hours < 0.1 else f"{three_figures(hours)} {found.unit}"
    if money is None:
        return text
    return f"{text} (${money:,.2f})" if money >= 0.1 else f"{text} (${money:.2g})"


def budgets(report: Report) -> str:
    """The best arm's difference at every budget, and from which length on it wins; empty of one budget."""
    arm, number = report.best, len(report.differences)
    found = [(steps, report.difference_at(arm, steps)) for steps in report.compared_steps]
    known = [(steps, each) for steps, each in found if each is not None and each.known]
    if len(known) < 2:
        return ""
    words = [
        f"{in_nats(each.delta_nats or 0.0, report.unit)} at {count(steps)} steps ({report.outcome_words(each)})"
        for steps, each in known
    ]
    text = f"Superposition ended {', '.join(words)}."
    won = [outcome_of(each, number) == "won" for _, each in known]
    if all(won):
        return f"{text} It is clearly better at every budget."
    if won[-1]:
        since = len(won) - won[::-1].index(False)
        return f"{text} It is clearly better from {count(known[since][0])} steps on."
    return text


def switches(report: Report) -> list[str]:
    """What happened to every superposition arm at its switch; only what validations near it support."""
    lines = []
    for found in report.switch:
        words = [f"{quoted(found.arm)}:"] if len(report.arms) > 2 else []
        if found.spike_nats is not None and found.spike_nats > 0:
            over = ""
            if found.spike_steps is not None:
                over = f"; after {count(found.spike_steps)} steps less than a tenth of that was left"
            words.append(
                f"At the switch (step {count(found.switch_step)}) superposition’s next-token loss was "
                f"{better_or_worse(found.spike_nats, report.unit, 2)} than the baseline’s{over}."
            )
        if found.crossing_step is not None:
            words.append(
                f"From step {count(found.crossing_step)}, {count(found.crossing_recovery_steps)} steps after the "
                "switch, it stayed level with the baseline or better."
            )
        if found.reason:
            words.append(f"{found.reason[:1].upper()}{found.reason[1:]}.")
        lines.append(" ".join(words))
    return lines
