"""What the comparison says: a headline, the next step, five facts and notes, for the page and for the terminal.

Superposition has won or lost only if the interval over seeds is on one side of zero and the difference is more than
noise (`study.significance`). A loss is said in the headline. A difference without an interval is never called a gain.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from token_superposition.data.manifest import loss_warning
from token_superposition.formatting import (
    about_duration,
    compared,
    count,
    count_in_words,
    decimal,
    in_nats,
    interval,
    joined,
    three_figures,
)
from token_superposition.study.loss_spike import mean_gaps
from token_superposition.study.report import sentences
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import Difference, SeedRun, quoted
from token_superposition.study.report.tuning import tuned_sentences
from token_superposition.study.significance import (
    NOISE,
    Outcome,
    is_lower,
    outcome_of,
    widened,
    widened_level,
    would_have_won,
)

ENOUGH_SEEDS = 5
_NUMBERS = {5: "five", 10: "ten"}


class Row(NamedTuple):
    """A labelled sentence or two."""

    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """A comparison's result in words.

    Attributes:
        headline: the result in a sentence, for a reader who knows nothing of the method.
        next_step: what to do now, with the command and the time it takes.
        facts: the five facts: equal compute, equal loss, equal data, cost, text read.
        notes: what else a reader should know, the most important first.
        outcome: whether superposition won, lost or ended level, or none of these can be said.
    """

    headline: str
    next_step: str
    facts: tuple[Row, ...]
    notes: tuple[Row, ...]
    outcome: Outcome

    @property
    def rows(self) -> tuple[Row, ...]:
        """Facts and notes."""
        return self.facts + self.notes


def verdict(report: Report) -> Verdict:
    """The result of the arm that the report's `equal_flops` is about."""
    facts = (
        Row("Equal compute", _equal_compute(report)),
        Row("Equal loss", sentences.equal_loss(report)),
        Row("Equal data", sentences.equal_data(report)),
        Row("Cost", sentences.cost(report)),
        Row("Text read", _text_read(report)),
    )
    notes = [
        Row("Best of several", _choice(report)),
        Row("Length of the run", sentences.budgets(report)),
        Row("Why it may have lost", _why_lost(report)),
        Row("Tuning", " ".join(tuned_sentences(report))),
        Row("Seeds", _few_seeds(report)),
        Row("Bytes", _bytes(report)),
        Row("Lost text", _sentence(loss_warning(report.data.text_lost))),
    ]
    known = tuple(row for row in notes if row.text)
    return Verdict(_headline(report), next_step(report), facts, known, report.outcome)


def _sentence(text: str | None) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _headline(report: Report) -> str:
    result, base, came_out = report.equal_flops, report.baseline.name, report.outcome
    alone = result.arm == "superposition" and len(report.arms) == 2
    who = "superposition" if alone else f"superposition (“{result.arm}”)"
    than = "the baseline" if base == "baseline" else f"the baseline (“{base}”)"
    start, where = _capital(who), _compute_words(report)
    broken = report.broken_runs
    if broken is not None:
        why = "a run has not finished" if broken == "unfinished" else "a run diverged, so it has no finite loss"
        return f"{start} and {than} cannot be compared: {why}."
    size = in_nats(result.delta_nats or 0.0, report.unit)
    if came_out == "level":
        return f"{start} and {than} ended level {where}: {size}, which is within the noise of {NOISE} nats."
    seeds = report.num_seeds
    if came_out == "undecided":
        mean = "its loss was" if seeds == 1 else "on average its loss was"
        return f"{sentences.not_decided(report, result)} whether {who} helps: {mean} {size} than {than} {where}."
    agree = sum((delta < 0) == (came_out == "won") for delta in result.deltas)
    among = ("both seeds" if seeds == 2 else f"all {seeds} seeds") if agree == seeds else f"{agree} of {seeds} seeds"
    ended = f"{start} {came_out}: {where} its loss was {size} than {than}’s in {among}"
    reading = report.iso_loss
    if came_out == "won" and reading and reading.confidence_interval and reading.confidence_interval[0] > 1:
        return f"{ended}, and it reached the baseline’s loss with {' times '.join(sentences.saving(reading))}."
    return f"{ended}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _compute_words(report: Report) -> str:
    relative = report.ratio(report.best, "flops")
    if relative is None or abs(relative - 1) < 0.01:
        return "at the same compute"
    return f"with {three_figures(relative)} times the baseline’s compute"


def _equal_compute(report: Report) -> str:
    """The difference with its interval, or why there is none."""
    result, seeds = report.equal_flops, report.num_seeds
    if result.delta_nats is None or not result.known:
        return _sentence(f"not known: {result.reason or 'a loss is missing'}")
    size, ends = in_nats(result.delta_nats, report.unit), result.confidence_interval
    if ends is not None:
        level = f"{result.confidence_level:.0%} interval {interval(ends)}"
        text = f"{_capital(size)}, {level} (paired t over {seeds} seeds)."
        if ends[0] <= 0 <= ends[1]:
            text += " The interval includes zero."
    elif seeds == 1:
        text = f"{_capital(size)} in one seed, so there is no interval."
    else:
        text = f"{_capital(size)}, without an interval: {result.reason}."
    if abs(result.delta_nats) < NOISE:
        text += f" Below {NOISE} nats is noise, even in the paper’s large runs."
    return text


def _text_read(report: Report) -> str:
    arm, relative = report.best, report.ratio(report.best, "raw_tokens")
    read, unique = arm.mean("raw_tokens"), arm.mean("unique_raw_tokens")
    if relative is None or read is None:
        return "Not recorded."
    if abs(relative - 1) < 0.005:
        text = f"Both read the same amount of raw data ({count_in_words(read)} tokens)."
    else:
        theirs = count_in_words(report.baseline.mean("raw_tokens"))
        paper = "" if report.equal_data_of(arm) else ", and at equal data the paper finds it behind"
        text = (
            f"It read {decimal(relative, 2)} times the raw data ({count_in_words(read)} tokens against {theirs}): "
            f"superposition trades data for compute{paper}."
        )
    if unique is not None and unique < 0.98 * read:
        text += f" {count_in_words(unique)} of its tokens were new; it read the rest more than once."
    return text


def _choice(report: Report) -> str:
    """That the best of several arms was chosen by its result, what that costs in certainty, and how others did."""
    result, found = report.equal_flops, report.differences
    number = len(found)
    if number < 2:
        return ""
    text = f"This arm is the best of {number}, chosen by its result, which flatters it: confirm it with new seeds."
    if would_have_won(result):
        ends, level = widened(result, number), 100 * widened_level(result, number)
        text += (
            f" It counts as a gain only if a wider interval is all better: the {level:.3g}% interval, "
            f"{interval(ends)}, {'is' if ends[1] < 0 else 'is not'}."
        )
    won = [each for each in found if each.arm != result.arm and outcome_of(each, number) == "won"]
    lower = [each for each in found if each not in won and is_lower(each, result)]
    if won:
        text += f" Also clearly better than the baseline: {_with_differences(won)}."
    if lower:
        text += f" Better on average, but undecided: {_with_differences(lower)}."
    return text


def _with_differences(found: Sequence[Difference]) -> str:
    return joined([f"{quoted(each.arm)} ({compared(each.delta_nats)})" for each in found])


def _why_lost(report: Report) -> str:
    """If superposition ended above the baseline by more than noise: what measurements say about why."""
    delta, arm = report.equal_flops.delta_nats, report.best
    if delta is None or not delta >= NOISE:
        return ""
    text = (
        f"Superposition needs next-token steps to recover; {count(arm.recovery_steps)} steps followed the switch. Try "
        "more steps, smaller bags or a smaller ratio."
    )
    gaps = [(step, gap) for step, gap in mean_gaps(report.baseline, arm) if step > arm.switch_step]
    if len(gaps) >= 4 and gaps[-1][1] > 0:
        (step, middle), (_, end) = gaps[len(gaps) // 2 - 1], gaps[-1]
        change = f"{middle:.3f} nats worse at step {count(step)}, {end:.3f} at the end of the curves"
        if middle > 1.5 * end:
            text += f" The difference was still shrinking ({change}): a longer recovery may turn it."
        elif middle < 1.1 * end:
            text += f" The difference was no longer shrinking ({change}): a longer recovery alone may not turn it."
    if arm.ratio > 0.4:
        text += f" {arm.ratio:.0%} of the steps were in superposition; the paper recommends 20% to 40%."
    return text


def _few_seeds(report: Report) -> str:
    seeds = report.num_seeds
    if seeds == 1:
        return (
            f"One seed cannot tell the method from luck. The paper takes less than {NOISE} nats for noise in runs of "
            "270 million parameters and more. Small runs vary more: 0.01 to 0.03 nats between five seeds in our study "
            "of 0.4 million parameters."
        )
    return "" if seeds >= ENOUGH_SEEDS else f"A result that others should rely on needs five seeds; this has {seeds}."


def _bytes(report: Report) -> str:
    if report.data.tokenizer != "bytes":
        return ""
    return "The tokens are bytes, which may flatter superposition. Do not rely on the result for subword tokens."


def next_step(report: Report) -> str:
    """One sentence that says what to do now, mostly with the command for it."""
    broken = report.broken_runs
    if broken == "unfinished":
        return f"Next step: start the same command again, it continues the runs: {command_words(report)}"
    if broken == "diverged":
        return "Next step: lower the learning rate of the arm that diverged, or remove the arm, and compare again."
    seeds, came_out = report.num_seeds, report.outcome
    if seeds < ENOUGH_SEEDS:
        return _more_seeds(report, ENOUGH_SEEDS)
    if came_out == "undecided":
        return _more_seeds(report, 2 * seeds)
    if came_out == "won" and not report.has_budgets:
        listed = ",".join(str(report.reference_steps * part // 4) for part in (1, 2, 4))
        command = command_words(report, "--budgets", listed)
        return f"Next step: measure how much compute it saves, with runs of several lengths: {command}"
    if came_out == "won":
        arm = report.best
        return (
            f"Next step: train the full run with the settings of {arm.quoted} (superposition.bag_size {arm.bag_size}, "
            f"superposition.ratio {arm.ratio:.3g}); tst plan says what that costs and saves."
        )
    return "Next step: train without superposition at this length, or compare again with more steps or smaller bags."


def _more_seeds(report: Report, number: int) -> str:
    new = number - report.num_seeds
    seconds, time = _seconds_of_a_seed(report), ""
    if seconds is not None:
        runs = new * sum(len(arm.all_budgets) for arm in report.arms)
        time = f" ({about_duration(new * seconds / min(report.runs_at_once or 1, runs))} on this machine)"
    words = _NUMBERS.get(number, str(number))
    return f"Next step: run {words} seeds{time}: {command_words(report, '--seeds', str(number))}"


def _seconds_of_a_seed(report: Report) -> float | None:
    """What all runs of one more seed take, as a mean over the seeds that were run; None if it was not measured."""
    total = 0.0
    for arm in report.arms:
        for budget in arm.all_budgets:
            seconds = [_own_seconds(run) for run in budget.seeds]
            known = [each for each in seconds if each is not None and math.isfinite(each)]
            if not known or len(known) < len(seconds):
                return None
            total += math.fsum(known) / len(known)
    return total


def _own_seconds(run: SeedRun) -> float | None:
    """Without the steps that it shares with another run, which are trained once."""
    if run.wall_seconds is None or not run.steps:
        return None
    return run.wall_seconds * (1 - (run.shared_steps or 0) / run.steps)


def command_words(report: Report, option: str | None = None, value: str = "") -> str:
    """The command that made the report, with another value of an option."""
    words = shlex.split(report.command or f"tst compare CONFIG.yaml --seeds {report.num_seeds} --out FOLDER")
    if option in words[:-1]:
        words[words.index(option) + 1] = value
    elif option is not None:
        words += [option, value]
    return shlex.join(words)
