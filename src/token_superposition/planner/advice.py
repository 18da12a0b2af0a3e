"""Whether to superpose a run, and what to expect of it; each with its reason.

`use`: near runs were measured, as short as this, and all that is known of them says that it gains. `try`: nothing says
that it loses, and not enough that it gains; compare first. `none`: runs as short as this lost, or all that is known of
near ones says so, or none of its kind gained, or there is too little text. Which setting is judged, where the user gave
none, `setting` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from token_superposition.formatting import better_or_worse_range, count_in_words, three_figures
from token_superposition.planner.estimate import APART, Range, gain_range, speedup_range
from token_superposition.planner.measured_runs import Comparison, best_of_each, of_kind
from token_superposition.planner.settings import (
    Need,
    Setting,
    choose,
    fits,
    kind_words,
    raw_tokens,
    steps_at,
    too_little_text,
)
from token_superposition.study.significance import NOISE

Verdict = Literal["use", "try", "none"]
Doubt = tuple[str, str]  # a few words that can stand beside a figure, and the whole reason
_SHOWN = 4
_NOT_FOR_IT = "superposition is not for this run"


@dataclass(frozen=True)
class Advice:
    """What to do, why, and what to expect of it.

    Attributes:
        verdict: see the module.
        setting: to train with; that of the user, where one was given.
        reasons: for the verdict and the setting, a sentence each.
        gain, gain_reason: nats at equal FLOPs (positive is better), or why there is no range.
        speedup, speedup_reason: at equal loss, or why there is none.
        caveats: a few words each, to stand beside every figure of a saving; empty where nothing limits the figure.
        nearest: the comparisons nearest in scale.
    """

    verdict: Verdict
    setting: Setting
    reasons: list[str]
    gain: Range | None
    gain_reason: str | None
    speedup: Range | None
    speedup_reason: str | None
    caveats: list[str]
    nearest: list[Comparison]


def advise(need: Need, given: Setting | None = None) -> Advice:
    """Advice for a run; with a `given` setting that is judged, and not replaced."""
    measured = best_of_each(need.unit, need.start)
    against = _why_not(need, measured)
    setting, reasons = (given, []) if given is not None else choose(need)
    gain, gain_reason = _expected_gain(need, setting, against)
    if gain is not None and gain.high < -NOISE:
        against = [f"what was measured near it loses: {gain_in_words(gain)} at equal FLOPs"]
        if given is None:
            gain, gain_reason = None, _NOT_FOR_IT
    speedup, speedup_reason = _expected_speedup(need, setting, against, gain)
    close = sorted(measured, key=lambda each: each.scale.distance(need.scale))[:_SHOWN]
    if against or setting.bag_size == 1:
        kept = given if given is not None else Setting()
        said = against or reasons or ["a bag_size of 1, or superposition for no step, is ordinary training"]
        return Advice("none", kept, said, gain, gain_reason, speedup, speedup_reason, [], close)
    steps = steps_at(need.total_steps, speedup.low) if need.less_cost and speedup is not None else need.total_steps
    doubts = [
        *(_none_near_gained(need, measured) or _never_so_short(need, measured, steps)),
        *_what_repeats(need, setting),
    ]
    gains = gain is not None and gain.low > NOISE
    reasons.append(_in_words_of(gain, gain_reason, speedup))
    if need.unit == "bytes":
        reasons.append("tokens are bytes: four are about one subword, and bytes may gain more than subwords do")
    caveats = [caveat for caveat, _ in doubts]
    if not gains:
        caveats.append("no gain at equal compute is known for it")
    if speedup is not None and not doubts and _never_so_short(need, measured, steps_at(need.total_steps, speedup.high)):
        caveats.append("the larger saving was never measured at so few steps")
    if speedup is not None and speedup.extrapolated:
        caveats.append("extrapolated beyond the measured runs")
    return Advice(
        "use" if gains and not doubts else "try",
        setting,
        reasons + [reason for _, reason in doubts],
        gain,
        gain_reason,
        speedup,
        speedup_reason,
        caveats,
        close,
    )


def gain_in_words(gain: Range) -> str:
    """The range of a gain, such as `0.067 to 0.134 nats better`."""
    return better_or_worse_range(-gain.high, -gain.low)


def _why_not(need: Need, measured: Sequence[Comparison]) -> list[str]:
    """What speaks against superposition at all; nothing, mostly."""
    reasons = []
    if need.corpus is not None and not need.corpus.holds(need.total_steps * need.positions_per_step):
        reasons.append(too_little_text(need))
    lost = [each for each in measured if each.lost]
    won = [each for each in measured if each.won]
    if not won:
        said = "; ".join(map(_in_words, measured))
        reasons.append(f"no measured run {kind_words(need)} gained: {said or 'there is none'}")
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
            f"and none so short {kind_words(need)} is known to have gained"
        )
    return reasons


def _what_repeats(need: Need, setting: Setting) -> list[Doubt]:
    """That a setting reads text more than once, where it does."""
    if need.corpus is None or fits(need, setting):
        return []
    times = three_figures(raw_tokens(need, setting) / need.corpus.scarcest.once)
    unknown = "no run that repeats text was measured"
    return [(unknown, f"it reads {need.corpus} {times} times, and {unknown}")]


def _none_near_gained(need: Need, measured: Sequence[Comparison]) -> list[Doubt]:
    """Where near runs were measured and none of them won: that, with each of them."""
    near = [each for each in measured if each.scale.near(need.scale)]
    if not near or any(each.won for each in near):
        return []
    none = "no run near this one is known to have gained"
    return [(none, f"{none}: {'; '.join(map(_in_words, near))}")]


def _never_so_short(need: Need, measured: Sequence[Comparison], steps: int) -> list[Doubt]:
    """Where near runs won, but none of so few steps: that, and which short one lost."""
    won = [each for each in measured if each.won and each.scale.near(need.scale)]
    shortest = min((each.total_steps for each in won), default=0)
    if steps >= shortest * 10**-APART:
        return []
    lost = max((each for each in measured if each.lost), key=lambda each: each.total_steps, default=None)
    text = f"no near run of fewer than {shortest:,} steps is known to have gained, and this has {steps:,}"
    return [("never measured at so few steps", text + (f"; {_in_words(lost)}" if lost else ""))]


def _in_words_of(gain: Range | None, reason: str | None, speedup: Range | None) -> str:
    """What is expected of the gain, as a reason for the verdict."""
    if gain is None and speedup is None:
        return f"there is no evidence for a run like this: {reason}"
    if gain is None:
        return f"at equal loss near runs took less compute; at equal FLOPs there is no range: {reason}"
    if gain.low <= NOISE:
        return f"what was measured near it allows {gain_in_words(gain)}, so it may not help"
    if gain.extrapolated:
        return f"what was measured near it, extrapolated to its size, gives {gain_in_words(gain)} at equal FLOPs"
    return f"all that was measured near it gains: {gain_in_words(gain)} at equal FLOPs"


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
    nothing = f"none that holds for this setting was measured near this size {kind_words(need)}"
    return found, None if found is not None else nothing


def _no_figures(setting: Setting, against: Sequence[str]) -> str | None:
    """Why nothing is to be expected of a setting at all; None where something is."""
    if setting.bag_size == 1:
        return "it is ordinary training"
    if against:
        return _NOT_FOR_IT
    if setting.mode != "full":
        return f"no figures of mode {setting.mode} are known"
    if setting.slot_weights != "uniform":
        return f"the figures are of uniform slot weights, and this has {setting.slot_weights}"
    return None


def _nothing_near(need: Need) -> str:
    kind = of_kind(need.unit, need.start)
    sizes = [study.scale for study in kind]
    if not sizes:
        return f"nothing was measured {kind_words(need)}"
    closest = min(sizes, key=need.scale.distance)
    if closest.near(need.scale):
        return "what was measured near it is of other settings, and no sweep near it says how they compare"
    return (
        f"the nearest measured run {kind_words(need)} has {count_in_words(closest.parameters)} parameters and "
        f"{count_in_words(closest.positions)} positions, this one {count_in_words(need.scale.parameters)} and "
        f"{count_in_words(need.scale.positions)}: more than ten times apart"
    )


def _in_words(each: Comparison) -> str:
    size = f"{count_in_words(each.scale.parameters)} parameters, {each.total_steps:,} steps"
    nats = f"{three_figures(abs(each.gain))} nats"
    if each.lost or each.won:
        return f"{each.name} ({size}) {'lost' if each.lost else 'gained'} {nats}"
    return f"{each.name} ({size}) was {'ahead' if each.gain > 0 else 'behind'} by {nats}, within noise"
