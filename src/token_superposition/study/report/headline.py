"""What the comparison says, in plain words, for the page's head and for the terminal.

Superposition has won or lost only where the interval over seeds lies on one side of zero and the difference is more
than noise (`study.significance`). A comparison that superposition lost says so first and then gives the reasons that
our own measurements support; what it never does is call a difference a gain without an interval.

Paper: Peng, Gigant, Quesnelle, arXiv 2605.06546. Own studies: docs/results.md. Prototype: a byte-level Llama of 0.4M
parameters on Python source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from token_superposition.data.manifest import loss_warning
from token_superposition.formatting import (
    compared,
    count,
    count_in_words,
    decimal,
    in_nats,
    interval,
    joined,
    plural,
    three_figures,
)
from token_superposition.study.arms import quoted
from token_superposition.study.loss_spike import mean_gaps
from token_superposition.study.report.budget_facts import difference_at_equal_data
from token_superposition.study.report.facts import (
    Report,
    baseline,
    best,
    differences,
    mean,
    num_seeds,
    outcome,
    ratio,
    recovery_steps,
    unit,
)
from token_superposition.study.report.findings import (
    budget_sentences,
    cost_sentences,
    equal_data_sentences,
    not_decided,
    saves_compute,
    saving,
    speedup_sentences,
    switch_of,
)
from token_superposition.study.report.next_step import ENOUGH_SEEDS, broken_runs, next_step
from token_superposition.study.report.tuning_section import tuned_sentences
from token_superposition.study.significance import (
    NOISE,
    Difference,
    Outcome,
    is_lower,
    outcome_of,
    widened,
    widened_level,
    would_have_won,
)

BYTE_CAVEAT = (
    "The tokens are bytes, which may flatter superposition: four bytes are about one BPE token, and bytes may "
    "gain more than subwords do. Do not rely on it for subword tokens."
)


@dataclass(frozen=True)
class Verdict:
    """A comparison's result in words.

    Attributes:
        headline: what came out, in a sentence for a reader who knows nothing of the method.
        next_step: what to do now, with the command and the time it takes.
        details: further sentences, the most important first.
        outcome: whether superposition won, lost or ended level, or none of these can be said.
    """

    headline: str
    next_step: str
    details: list[str]
    outcome: Outcome


def verdict(report: Report) -> Verdict:
    """The result of the arm that the report's `equal_flops` is about."""
    details = [
        *_certainty(report),
        *_choice(report),
        *speedup_sentences(report),
        *cost_sentences(report),
        *equal_data_sentences(report),
        *budget_sentences(report),
        *_reasons_for_a_loss(report),
        *tuned_sentences(report),
        *_data_read(report),
        *([BYTE_CAVEAT] if report["data"]["tokenizer"] == "bytes" else []),
        *([f"{lost[0].upper()}{lost[1:]}."] if (lost := loss_warning(report["data"].get("text_lost"))) else []),
    ]
    return Verdict(_headline(report), next_step(report), details, outcome(report))


def compute_words(report: Report) -> str:
    """`at the same compute`, where that is so."""
    relative = ratio(report, best(report), "flops")
    if relative is None or abs(relative - 1) < 0.01:
        return "at the same compute"
    return f"with {three_figures(relative)} times the baseline's compute"


def _headline(report: Report) -> str:
    name, base, result = report["equal_flops"]["arm"], baseline(report)["name"], report["equal_flops"]
    who = "superposition" if name == "superposition" and len(report["arms"]) == 2 else f"superposition (“{name}”)"
    than = "the baseline" if base == "baseline" else f"the baseline (“{base}”)"
    start, where = f"{who[:1].upper()}{who[1:]}", compute_words(report)
    broken = broken_runs(report)
    if broken is not None:
        why = "a run has not finished" if broken == "unfinished" else "a run diverged, so it has no finite loss"
        return f"{start} and {than} cannot be compared: {why}."
    seeds, size = num_seeds(report), in_nats(result["delta_nats"], unit(report))
    if outcome(report) == "level":
        return f"{start} and {than} ended level {where}: {size}, which is within the noise of {NOISE} nats."
    against = "" if base == "baseline" else f" than {than}"
    if outcome(report) == "undecided":
        undecided = not_decided(report, result)
        mean_of = "it was" if seeds == 1 else "on average it was"
        return f"{undecided[:1].upper()}{undecided[1:]} whether {who} helps: {mean_of} {size}{against} {where}."
    won = outcome(report) == "won"
    agree = sum((delta < 0) == won for delta in result["deltas"])
    among = ("both seeds" if seeds == 2 else f"all {seeds} seeds") if agree == seeds else f"{agree} of {seeds} seeds"
    ended = f"{start} reached a {'lower' if won else 'higher'} loss in {among}: {size}{against} {where}"
    if won and saves_compute(report):
        return f"{ended}, and it reached the baseline’s loss with {' times '.join(saving(report['iso_loss']))}."
    return f"{ended}. It {'helped' if won else 'did not help'} here."


def _certainty(report: Report) -> list[str]:
    """The interval, or why there is none, and what would make it better."""
    result, seeds = report["equal_flops"], num_seeds(report)
    delta, ends = result["delta_nats"], result["confidence_interval"]
    if delta is None or not math.isfinite(delta):
        return [f"No interval: {result['reason']}." if result["reason"] else "No interval can be had."]
    difference = f"Superposition was {in_nats(delta, unit(report))}"
    lines = []
    if ends is not None:
        level = f"{result['confidence_level']:.0%}"
        lines.append(f"{difference}, {level} interval {interval(ends)} (paired t over {plural(seeds, 'seed')}).")
        if ends[0] <= 0 <= ends[1]:
            lines[0] += " The interval includes zero."
        if seeds < ENOUGH_SEEDS:
            lines.append(f"A result that others should rely on needs five seeds; this one has {seeds}.")
    elif seeds == 1:
        lines += [
            f"{difference} in one seed, so there is no interval.",
            f"Below {NOISE} nats the paper speaks of noise, for runs of 270 million parameters and more. Small "
            "runs differ more: in our own study of 0.4 million parameters five seeds of one arm and length ended 0.01 "
            "to 0.03 apart, three of a prototype 0.02 to 0.04.",
        ]
    else:
        lines.append(f"{difference}, without an interval: {result['reason']}.")
    if seeds > 1 and abs(delta) < NOISE:
        lines.append(f"A difference below {NOISE} nats counts as noise even in the paper's large runs.")
    return lines


def _reasons_for_a_loss(report: Report) -> list[str]:
    """Where superposition ended above the baseline by more than noise: what measurements say about why."""
    delta, arm = report["equal_flops"]["delta_nats"], best(report)
    if delta is None or not delta >= NOISE:
        return []
    first = (
        f"Superposition costs when too few next-token steps follow it; here {count(recovery_steps(arm))} did. In our "
        "own studies (bytes, 0.4 million parameters) bags of 2 for 30% of the steps were behind at 1,000 steps, level "
        "at 2,000 and ahead from 4,000, and bags of 6 and of 8 still behind at 4,000. Try more steps, smaller bags or "
        "a smaller share of the steps."
    )
    lines = [first]
    gaps = [(step, gap) for step, gap in mean_gaps(baseline(report), arm) if step > arm["switch_step"]]
    if len(gaps) >= 4 and gaps[-1][1] > 0:
        (step, middle), (_, end) = gaps[len(gaps) // 2 - 1], gaps[-1]
        change = f"{middle:.3f} nats worse at step {count(step)}, {end:.3f} at the curves’ end"
        if middle > 1.5 * end:
            lines.append(f"The difference was still shrinking ({change}): a longer recovery may turn it.")
        elif middle < 1.1 * end:
            lines.append(f"The difference was no longer shrinking ({change}): a longer recovery alone may not turn it.")
    switch = switch_of(report, arm)
    if switch is not None and switch["crossing_step"] is None and gaps:
        lines.append(
            f"At no validation of the {count(recovery_steps(arm))} steps after the switch did it get ahead and stay so."
        )
    if arm["ratio"] > 0.4:
        lines.append(f"It spent {arm['ratio']:.0%} of the steps in superposition; the paper recommends 20% to 40%.")
    return lines


def _choice(report: Report) -> list[str]:
    """That the best of several arms was picked after the fact, what that costs in certainty, and how others did."""
    result, found = report["equal_flops"], differences(report)
    number = len(found)
    if number < 2:
        return []
    best_of = f"This is the best of {number} superposition arms, chosen by its result"
    if would_have_won(result):
        ends, level = widened(result, number), 100 * widened_level(result, number)
        best_of += (
            f", so it counts as a gain only where a wider interval is all better: the {level:.3g}% interval, "
            f"{interval(ends)}, {'is' if ends[1] < 0 else 'is not'}"
        )
    lines = [f"{best_of}. Choosing flatters the difference: confirm it with seeds that were not part of the choice."]
    won = [each for each in found if each["arm"] != result["arm"] and outcome_of(each, number) == "won"]
    lower = [each for each in found if each not in won and is_lower(each, result)]
    if won:
        lines.append(f"Other arms that are clearly better than the baseline: {_with_differences(won)}.")
    if lower:
        lines.append(f"Better on average, but undecided with these seeds: {_with_differences(lower)}.")
    return lines


def _with_differences(found: Sequence[Difference]) -> str:
    return joined([f"{quoted(each['arm'])} ({compared(each['delta_nats'])})" for each in found])


def _data_read(report: Report) -> list[str]:
    arm, relative = best(report), ratio(report, best(report), "raw_tokens")
    read, unique = mean(arm, "raw_tokens"), mean(arm, "unique_raw_tokens")
    if relative is None or read is None:
        return []
    theirs = mean(baseline(report), "raw_tokens")
    words = f"{count_in_words(read)} tokens against {count_in_words(theirs)}"
    if abs(relative - 1) < 0.005:
        lines = [f"Both read the same amount of raw data ({count_in_words(read)} tokens)."]
    else:
        measured = difference_at_equal_data(report, arm) is not None
        paper = "" if measured else ", and at equal data the paper finds it behind"
        lines = [
            f"It read {decimal(relative, 2)} times the raw data ({words}): superposition trades data for "
            f"compute{paper}."
        ]
    if unique is not None and unique < 0.98 * read:
        lines.append(f"{count_in_words(unique)} of its tokens were new; the rest it read more than once.")
    return lines
