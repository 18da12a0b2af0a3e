"""Which bag size, ratio and slot weights, or none of it; each with its reason.

**The setting.** Of the settings that were measured on this kind of tokens, those whose mean gain is within noise of the
best are as good as each other, and of these the one that reads the fewest raw tokens is taken: the optimum is flat,
and data is what superposition is paid with. Sweeps come first: they have every setting of one run. Where the corpus is
too small to be read once, only settings that fit it are asked; then `output_only`, which reads no more than ordinary
training; and where even that has to repeat text, none: data is short then, not compute, and at equal data superposition
loses.

**The verdict.** `use`: near runs were measured, as short as this, and all that is known of them says that it gains.
`try`: nothing says that it loses, and not enough that it gains; compare first. `none`: runs as short as this lost, or
every run of its kind did, or there is too little text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from token_superposition.plan.stages import Mode, Schedule, SuperpositionSchedule
from token_superposition.planner.expectation import APART, Range, gain_range, mean_gain, speedup_range
from token_superposition.planner.measured import (
    NOISE,
    Cell,
    Comparison,
    Scale,
    Start,
    Study,
    Unit,
    best_of_each,
    of_kind,
    paper_runs,
)
from token_superposition.study.report.numbers import count_in_words, signed, three_figures

Verdict = Literal["use", "try", "none"]
_LARGEST_UNIFORM = 8  # above it the paper's power law of the slots is the better by 0.001 to 0.005 nats
_SHOWN = 4


@dataclass(frozen=True)
class Setting:
    """How a run is superposed; bag size 1 is not at all."""

    bag_size: int = 1
    ratio: float = 0.0
    mode: Mode = "full"
    slot_weights: str = "uniform"

    def schedule(self, total_steps: int) -> Schedule:
        """The stages of a run of so many steps."""
        return SuperpositionSchedule(
            total_steps, self.bag_size, self.ratio, mode=self.mode, slot_weights=self.slot_weights
        )

    @property
    def cell(self) -> Cell:
        """Where in the sweeps it is."""
        return self.bag_size, self.ratio


@dataclass(frozen=True)
class Need:
    """What is asked for advice.

    Attributes:
        scale, total_steps, positions_per_step: of the ordinary run.
        unit, start: of its tokens and weights.
        corpus_tokens: None where it is not known, and then taken as enough.
        less_cost: whether the saving is taken as a shorter run, rather than as a lower loss.
    """

    scale: Scale
    total_steps: int
    positions_per_step: int
    unit: Unit
    start: Start
    corpus_tokens: int | None
    less_cost: bool = False


@dataclass(frozen=True)
class Advice:
    """What to do, why, and what to expect of it.

    Attributes:
        verdict: see the module.
        setting: to train with; that of the user, where one was given.
        reasons: for the verdict and the setting, a sentence each.
        gain, gain_reason: nats at equal FLOPs, or why there is no range.
        speedup, speedup_reason: at equal loss, or why there is none.
        nearest: the comparisons nearest in scale.
    """

    verdict: Verdict
    setting: Setting
    reasons: list[str]
    gain: Range | None
    gain_reason: str | None
    speedup: Range | None
    speedup_reason: str | None
    nearest: list[Comparison]


def advise(need: Need, given: Setting | None = None) -> Advice:
    """Advice for a run; with a `given` setting that is judged, and not replaced."""
    measured = best_of_each(need.unit, need.start)
    against = _why_not(need, measured)
    setting, reasons = (given, []) if given is not None else choose(need)
    repeats = _what_repeats(need, setting)
    gain, gain_reason = _expected_gain(need, setting, against)
    speedup, speedup_reason = _expected_speedup(need, setting, against, gain)
    close = sorted(measured, key=lambda each: each.scale.distance(need.scale))[:_SHOWN]
    if against or setting.bag_size == 1:
        kept, said = (setting, against) if given is not None else (Setting(), against or reasons)
        return Advice("none", kept, said, gain, gain_reason, speedup, speedup_reason, close)
    short = _never_so_short(need, measured)
    gains = speedup is not None if gain is None else gain.low > NOISE
    reasons.append(_in_words_of(gain, gain_reason, speedup))
    if need.unit == "bytes":
        reasons.append("tokens are bytes: four are about one subword, and bytes may gain more than subwords do")
    verdict: Verdict = "use" if gains and not short and not repeats else "try"
    return Advice(verdict, setting, reasons + short + repeats, gain, gain_reason, speedup, speedup_reason, close)


def choose(need: Need) -> tuple[Setting, list[str]]:
    """The setting for a run, and what it rests on: the first of the three kinds above that its corpus suffices for."""
    kind = of_kind(need.unit, need.start)
    helpful = [study for study in kind if any(gain > (half or NOISE) for gain, half in study.gains.values())]
    helpful = [study for study in helpful if study.is_sweep] or helpful
    among = [study for study in helpful if study.scale.near(need.scale)] or helpful
    cells = sorted({cell for study in among for cell in study.gains if cell[0] <= _LARGEST_UNIFORM})
    best = _cheapest_of_the_best(cells, among, lambda _: True)
    if best is None:
        return Setting(), [f"nothing was measured that helps {_kind_words(need)}"]
    if _fits(need, setting_of(best)):
        more = 1 + best[1] * (best[0] - 1)
        return setting_of(best), [
            f"bags of {best[0]} for {best[1]:.0%} of the steps: within noise ({NOISE} nats) of the best measured "
            f"setting, and of those the one that reads least ({three_figures(more)} times the text)"
        ]
    fitting = _cheapest_of_the_best(cells, among, lambda cell: _fits(need, setting_of(cell)))
    corpus = count_in_words(need.corpus_tokens)
    short = f"the corpus of {corpus} tokens is too small to read bags of {best[0]} for {best[1]:.0%} of the steps once"
    if fitting is not None:
        return setting_of(fitting), [f"{short}; bags of {fitting[0]} for {fitting[1]:.0%} fit"]
    output_only = Setting(best[0], best[1], "output_only")
    if _fits(need, output_only):
        return output_only, [
            f"{short}, and no measured setting fits: output_only reads no more than ordinary training. The paper "
            "says that it helps, less than both halves together, and gives no figures"
        ]
    return Setting(), [_too_little_text(need)]


def setting_of(cell: Cell) -> Setting:
    """A setting of the sweeps, with the slot weights that suit its bag size."""
    return Setting(*cell, slot_weights="uniform" if cell[0] <= _LARGEST_UNIFORM else "power_law")


def _cheapest_of_the_best(
    cells: Sequence[Cell], among: Sequence[Study], allowed: Callable[[Cell], bool]
) -> Cell | None:
    """Of the allowed settings within noise of the best mean gain, the one that reads least; None where none gains."""
    means = {cell: gain for cell in cells if allowed(cell) and (gain := mean_gain(cell, among)) is not None}
    means = {cell: gain for cell, gain in means.items() if gain > NOISE}
    if not means:
        return None
    enough = max(means.values()) - NOISE
    return min((cell for cell in means if means[cell] >= enough), key=lambda cell: (cell[1] * (cell[0] - 1), cell))


def _fits(need: Need, setting: Setting) -> bool:
    """Whether the corpus is read at most once."""
    return need.corpus_tokens is None or _raw_tokens(need, setting) <= need.corpus_tokens


def _raw_tokens(need: Need, setting: Setting) -> int:
    """What the run reads, which is shorter where the saving is taken as cost."""
    steps = need.total_steps
    if need.less_cost and setting.mode == "full":
        speedup = speedup_range(need.scale, setting.cell, need.unit, need.start)
        steps = steps_at(steps, speedup.low) if speedup is not None else steps
    return setting.schedule(steps).raw_tokens(need.positions_per_step)


def steps_at(total_steps: int, speedup: float) -> int:
    """Steps of a run that is so many times shorter."""
    return max(1, round(total_steps / speedup))


def _why_not(need: Need, measured: Sequence[Comparison]) -> list[str]:
    """What speaks against superposition at all; nothing, mostly."""
    reasons = []
    if need.corpus_tokens is not None and need.total_steps * need.positions_per_step > need.corpus_tokens:
        reasons.append(_too_little_text(need))
    lost = [each for each in measured if each.lost]
    won = [each for each in measured if each.won]
    if not won:
        reasons.append(f"every measured run {_kind_words(need)} lost: {'; '.join(map(_in_words, lost))}")
        return reasons
    near = [each for each in lost if each.scale.near(need.scale)]
    # Of other sizes only what is short anywhere counts: a tiny model's long run says little of a large one's.
    longest = max(
        near or sorted(lost, key=lambda each: each.total_steps)[:1], key=lambda each: each.total_steps, default=None
    )
    shortest = min((each.total_steps for each in won if each.scale.near(need.scale)), default=None)
    if longest is None or need.total_steps > longest.total_steps:
        return reasons
    if shortest is None or need.total_steps < shortest:
        reasons.append(
            f"{need.total_steps:,} steps leave too few for recovery: {_in_words(longest)}, "
            f"and none so short {_kind_words(need)} is known to have gained"
        )
    return reasons


def _too_little_text(need: Need) -> str:
    runs = paper_runs()
    pairs = [
        (a, b)
        for a in runs
        for b in runs
        if a.model == b.model and a.arm == "tst" and b.arm == "baseline" and a.raw_tokens == b.raw_tokens
    ]
    losses = "; ".join(f"{a.model}: {a.final_loss:.3f} against {b.final_loss:.3f}" for a, b in pairs)
    return (
        f"ordinary training already reads the corpus of {count_in_words(need.corpus_tokens)} tokens more than once: "
        f"text is short, not compute, and at equal data superposition loses ({losses})"
    )


def _what_repeats(need: Need, setting: Setting) -> list[str]:
    """That a setting reads the corpus more than once, where it does."""
    if need.corpus_tokens is None or _fits(need, setting):
        return []
    times = three_figures(_raw_tokens(need, setting) / need.corpus_tokens)
    return [f"it reads the corpus {times} times, and no run that repeats text was measured"]


def _never_so_short(need: Need, measured: Sequence[Comparison]) -> list[str]:
    """Where near runs won, but none as short as this: that, and which short one lost."""
    won = [each for each in measured if each.won and each.scale.near(need.scale)]
    shortest = min((each.total_steps for each in won), default=0)
    if need.total_steps >= shortest * 10**-APART:
        return []
    lost = max((each for each in measured if each.lost), key=lambda each: each.total_steps, default=None)
    text = f"no near run of fewer than {shortest:,} steps is known to have gained, and this has {need.total_steps:,}"
    return [text + (f"; {_in_words(lost)}" if lost else "")]


def _in_words_of(gain: Range | None, reason: str | None, speedup: Range | None) -> str:
    """What is expected of the gain, as a reason for the verdict."""
    if gain is None and speedup is None:
        return f"there is no evidence for a run like this: {reason}"
    if gain is None:
        return f"at equal loss near runs took less compute; at equal FLOPs there is no range: {reason}"
    if gain.low <= NOISE:
        return f"what was measured near it allows {signed(gain.low)} to {signed(gain.high)} nats, so it may not help"
    return f"all that was measured near it gains: {signed(gain.low)} to {signed(gain.high)} nats at equal FLOPs"


def _expected_gain(need: Need, setting: Setting, against: Sequence[str]) -> tuple[Range | None, str | None]:
    reason = _no_figures(setting, against)
    if reason is not None:
        return None, reason
    found = gain_range(need.scale, setting.cell, need.unit, need.start)
    return found, None if found is not None else _nothing_near(need)


def _expected_speedup(
    need: Need, setting: Setting, against: Sequence[str], gain: Range | None
) -> tuple[Range | None, str | None]:
    reason = _no_figures(setting, against)
    if reason is not None:
        return None, reason
    if gain is not None and gain.low <= NOISE:
        return None, "it may not gain at all"
    found = speedup_range(need.scale, setting.cell, need.unit, need.start)
    return found, None if found is not None else f"none was measured near this size {_kind_words(need)}"


def _no_figures(setting: Setting, against: Sequence[str]) -> str | None:
    """Why nothing is to be expected of a setting at all; None where something is."""
    if setting.bag_size == 1:
        return "it is ordinary training"
    if against:
        return "superposition is not for this run"
    return f"no figures of mode {setting.mode} are known" if setting.mode != "full" else None


def _nothing_near(need: Need) -> str:
    kind = of_kind(need.unit, need.start)
    sizes = [study.scale for study in kind]
    if not sizes:
        return f"nothing was measured {_kind_words(need)}"
    closest = min(sizes, key=need.scale.distance)
    if closest.near(need.scale):
        return "what was measured near it has no interval, or is of other settings"
    return (
        f"the nearest measured run {_kind_words(need)} has {count_in_words(closest.parameters)} parameters and "
        f"{count_in_words(closest.positions)} positions, this one {count_in_words(need.scale.parameters)} and "
        f"{count_in_words(need.scale.positions)}: more than ten times apart"
    )


def _kind_words(need: Need) -> str:
    going_on = ", going on from trained weights" if need.start == "trained" else ""
    return f"on {need.unit}{going_on}"


def _in_words(each: Comparison) -> str:
    verb = "lost" if each.lost else "gained" if each.won else "was level by"
    size = f"{count_in_words(each.scale.parameters)} parameters, {each.total_steps:,} steps"
    return f"{each.name} ({size}) {verb} {three_figures(abs(each.gain))} nats"
