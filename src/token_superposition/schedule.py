"""A run as a list of stages, and the only place that knows which phase a step is in.

A `Stage` is a number of optimizer steps trained with one bag size, mode and set of slot weights. A
`Schedule` is the list of them with `lookup(step)`. The paper's two phases (superposition for the first
`ratio` of the steps, then next-token recovery) are one constructor, `Schedule.two_phase`. Everything
downstream (stream, model, logs) asks the schedule or carries what it answered: nobody compares a step with
a ratio a second time, which is how ranks and prefetched batches come to disagree about the switch.

Steps count from 0. `switch_step` is the first step of the recovery; it is a number of steps fixed when the
schedule is made, so that a later change of the total cannot move it (`with_total_steps`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal, get_args

from token_superposition.errors import did_you_mean

Mode = Literal["full", "output_only", "input_only"]
Phase = Literal["superposition", "recovery"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Stage:
    """A number of optimizer steps trained in one way.

    Attributes:
        bag_size: s, the tokens of a bag; 1 is ordinary next-token training.
        steps: optimizer steps the stage lasts.
        mode: `full` (bags in, the next bag out), `output_only` (plain inputs, the next s tokens out) or
            `input_only` (bags in, the one token after the bag out).
        slot_weights: how the s targets are weighted; see `token_superposition.slot_weights`.

    Raises:
        ValueError: for a bag size or a number of steps under 1, or an unknown mode.
        TypeError: for a bag size or a number of steps that is no whole number.

    Example:
        >>> Stage(bag_size=4, steps=100).phase, Stage(bag_size=1, steps=300).phase
        ('superposition', 'recovery')
    """

    bag_size: int
    steps: int
    mode: Mode = "full"
    slot_weights: str = "uniform"

    def __post_init__(self) -> None:
        _check_whole(bag_size=self.bag_size, steps=self.steps)
        if self.bag_size < 1:
            raise ValueError(f"bag_size is at least 1, not {self.bag_size}")
        if self.steps < 1:
            raise ValueError(f"a stage lasts at least 1 step, not {self.steps}")
        if self.mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {self.mode!r}")

    @property
    def phase(self) -> Phase:
        """`recovery` is ordinary next-token training, wherever in the run it stands."""
        return "recovery" if self.bag_size == 1 else "superposition"

    @property
    def input_bag_size(self) -> int:
        """Raw tokens a position reads: s, or 1 where the inputs are plain."""
        return 1 if self.mode == "output_only" else self.bag_size

    @property
    def num_targets(self) -> int:
        """Raw tokens a position predicts: s, or 1 where the target is one token."""
        return 1 if self.mode == "input_only" else self.bag_size


class Schedule:
    """The stages of a run, in order; `two_phase` and `staged` make the usual ones.

    Raises:
        ValueError: without a stage.

    Example:
        >>> schedule = Schedule([Stage(4, 100), Stage(1, 300)])
        >>> schedule == Schedule.two_phase(total_steps=400, bag_size=4, ratio=0.25)
        True
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("a schedule needs at least one stage")
        self.stages: tuple[Stage, ...] = tuple(stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.stages == other.stages

    def __hash__(self) -> int:
        return hash(self.stages)

    def __repr__(self) -> str:
        return f"Schedule({list(self.stages)!r})"

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first step of each stage."""
        starts, step = [], 0
        for stage in self.stages:
            starts.append(step)
            step += stage.steps
        return tuple(starts)

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def index_at(self, step: int) -> int:
        """The index of the stage that `step` belongs to.

        Raises:
            ValueError: where the run has no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the run's {self.total_steps} steps (they count from 0)")
        return max(index for index, start in enumerate(self.starts) if start <= step)

    def lookup(self, step: int) -> Stage:
        """The stage that `step` belongs to; raises ValueError where the run has no such step."""
        return self.stages[self.index_at(step)]

    def in_last_stage(self, step: int) -> bool:
        """Whether a step is in the last stage, which may get longer; raises ValueError where the run has none such."""
        return self.index_at(step) == len(self.stages) - 1

    def bag_size_at(self, step: int) -> int:
        """The bag size that `step` trains with."""
        return self.lookup(step).bag_size

    @cached_property
    def switch_step(self) -> int:
        """The first step from which all the rest is next-token training; 0 for a run without superposition.

        A run that ends in superposition has its `total_steps` here: it never switches.
        """
        last = max((i for i, stage in enumerate(self.stages) if stage.phase == "superposition"), default=-1)
        return sum(stage.steps for stage in self.stages[: last + 1])

    @cached_property
    def bag_size(self) -> int:
        """The largest bag size of the run."""
        return max(stage.bag_size for stage in self.stages)

    @cached_property
    def input_period(self) -> int:
        """The least common multiple of the bag sizes that inputs are folded by."""
        return math.lcm(*(stage.input_bag_size for stage in self.stages))

    def positions(self, positions_per_step: int, step: int | None = None) -> int:
        """Latent positions computed before `step` (in all, without it): what FLOPs are counted by."""
        return positions_per_step * (self.total_steps if step is None else step)

    def raw_tokens(self, positions_per_step: int, step: int | None = None) -> int:
        """Raw tokens read as inputs before `step` (in all, without it)."""
        end = self.total_steps if step is None else step
        return sum(
            min(max(end - start, 0), stage.steps) * stage.input_bag_size * positions_per_step
            for start, stage in zip(self.starts, self.stages, strict=True)
        )

    def with_total_steps(self, total_steps: int) -> Schedule:
        """The same run made longer or shorter at its end; the switch stays where it is.

        Raises:
            ValueError: where the run has no recovery to change, or would end inside or before its switch.
        """
        change = total_steps - self.total_steps
        last = self.stages[-1]
        if change == 0:
            return self
        if last.phase != "recovery" or last.steps + change < 1:
            raise ValueError(
                f"a run that switches at step {self.switch_step} cannot be given {total_steps} steps: "
                "only its recovery can change"
            )
        return Schedule([*self.stages[:-1], Stage(1, last.steps + change, last.mode, last.slot_weights)])

    def merged(self) -> Schedule:
        """The same run with neighbours that differ in nothing made one stage: what is trained, whatever its cuts."""
        stages: list[Stage] = []
        for stage in self.stages:
            if stages and replace(stages[-1], steps=stage.steps) == stage:
                stages[-1] = replace(stage, steps=stages[-1].steps + stage.steps)
            else:
                stages.append(stage)
        return Schedule(stages)

    def cut_at(self, steps: Iterable[int]) -> Schedule:
        """The same run with stages that begin at these steps, and where one kind follows another.

        Raises:
            ValueError: where the run has no such step.
        """
        whole = self.merged()
        starts = sorted({*whole.starts, *steps})
        ends = [*starts[1:], whole.total_steps]
        return Schedule(
            [replace(whole.lookup(start), steps=end - start) for start, end in zip(starts, ends, strict=True)]
        )

    def as_dicts(self) -> list[dict[str, Any]]:
        """The stages as JSON-able dictionaries; `Schedule.from_dicts` reads them back."""
        return [asdict(stage) for stage in self.stages]

    @classmethod
    def from_dicts(cls, stages: Sequence[Mapping[str, Any]]) -> Schedule:
        """The schedule that `as_dicts` wrote; what was read from a file may be anything.

        Raises:
            TypeError, ValueError: where it is not what `as_dicts` writes.
        """
        kinds: dict[str, type] = {"bag_size": int, "steps": int, "mode": str, "slot_weights": str}
        for stage in stages:
            for key, kind in kinds.items():
                if type(stage.get(key, kind())) is not kind:
                    raise TypeError(f"{key} is {stage[key]!r}")
        return Schedule([Stage(**stage) for stage in stages])

    @classmethod
    def two_phase(
        cls,
        total_steps: int,
        bag_size: int,
        ratio: float | None = None,
        *,
        superposition_steps: int | None = None,
        mode: Mode = "full",
        slot_weights: str = "uniform",
    ) -> Schedule:
        """The paper's two phases: superposition for the first `ratio` of the steps, then recovery.

        Args:
            total_steps: optimizer steps of the whole run.
            bag_size: s; 1 turns superposition off.
            ratio: the share of steps in superposition, in [0, 1); the switch is at `round(ratio * total_steps)`.
            superposition_steps: the same as a number of steps; give one of the two.
            mode, slot_weights: of the superposition phase, as in `Stage`.

        Raises:
            ValueError: for numbers out of range, or both or neither of `ratio` and `superposition_steps`.

        Source: arXiv 2605.06546, section 3 (superposition phase, recovery phase, hard switch).

        Example:
            >>> schedule = Schedule.two_phase(total_steps=20_000, bag_size=6, ratio=0.25)
            >>> schedule.switch_step, schedule.bag_size_at(4_999), schedule.bag_size_at(5_000)
            (5000, 6, 1)
        """
        _check_whole(total_steps=total_steps, bag_size=bag_size, superposition_steps=superposition_steps)
        if total_steps < 1:
            raise ValueError(f"total_steps is at least 1, not {total_steps}")
        if (ratio is None) == (superposition_steps is None):
            raise ValueError("give one of ratio and superposition_steps")
        if superposition_steps is None:
            if ratio is None or not 0 <= ratio < 1:
                raise ValueError(f"ratio is at least 0 and under 1, not {ratio}")
            superposition_steps = round(ratio * total_steps)
        if not 0 <= superposition_steps < total_steps:
            raise ValueError(
                f"superposition_steps is at least 0 and under total_steps ({total_steps}), "
                f"not {superposition_steps}: the run must end with recovery"
            )
        stages = [Stage(1, total_steps - superposition_steps)]
        superposed = Stage(bag_size, max(superposition_steps, 1), mode, slot_weights)
        if superposition_steps == 0 or bag_size == 1:
            stages = [Stage(1, total_steps)]
        else:
            stages.insert(0, superposed)
        return cls(stages)

    @classmethod
    def staged(cls, *stages: Stage | tuple[int, int]) -> Schedule:
        """A run of any number of stages, each a `Stage` or its bag size and its number of steps.

        Raises:
            TypeError: for anything else.
            ValueError: without a stage, or for numbers out of range.

        Example:
            >>> schedule = Schedule.staged((8, 1_000), (4, 1_000), (1, 8_000))
            >>> schedule.total_steps, schedule.switch_step
            (10000, 2000)
        """
        made = [Stage(*stage) if isinstance(stage, tuple) and len(stage) == 2 else stage for stage in stages]
        for stage in made:
            if not isinstance(stage, Stage):
                raise TypeError(f"a stage is a Stage or a pair (bag_size, steps), not {stage!r}")
        return cls(made)

    @classmethod
    def steps_for_raw_tokens(
        cls, raw_tokens: int, positions_per_step: int, bag_size: int, ratio: float, mode: Mode = "full"
    ) -> int:
        """The largest `total_steps` whose run reads at most `raw_tokens` raw tokens.

        Raises:
            ValueError: where not even one step fits.
        """
        if positions_per_step < 1:
            raise ValueError(f"positions_per_step is at least 1, not {positions_per_step}")

        more = 0 if mode == "output_only" else bag_size - 1

        def reads(total_steps: int) -> int:
            return positions_per_step * (total_steps + more * round(ratio * total_steps))

        low, high = 0, raw_tokens // positions_per_step  # one step reads at least one token a position
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if reads(middle) <= raw_tokens else (low, middle - 1)
        if low < 1:
            raise ValueError(f"{raw_tokens} raw tokens are under one step of {positions_per_step} positions")
        return cls.two_phase(low, bag_size, ratio, mode=mode).total_steps


def _check_whole(**numbers: Any) -> None:
    for name, number in numbers.items():
        if number is not None and not isinstance(number, Integral):
            raise TypeError(f"{name} is a whole number, not {number!r}")


# How a set of slot weights is named, and what a name means; `losses.slot_weights` makes the weights.
#
# Configurations are checked with this module, so it does not import torch.


_DEFAULTS: dict[str, tuple[float, ...]] = {
    "uniform": (),
    "power_law": (1.0,),
    "exponential": (0.5,),
    "first_token": (),
    "mutual_information": (),
}
MEASURED = "mutual_information"


def parse_slot_weights(name: str) -> tuple[str, tuple[float, ...]]:
    """Split `power_law:1.25` into its kind and its parameters; `mutual_information` alone has none yet.

    Raises:
        ValueError: for an unknown kind, parameters that are not numbers or not as many, or one out of range.
    """
    kind, colon, text = name.partition(":")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ValueError(f"slot_weights is one of {known}, not {name!r}{did_you_mean(kind, _DEFAULTS)}")
    if not colon:
        return kind, _DEFAULTS[kind]
    if kind in ("uniform", "first_token"):
        raise ValueError(f"slot_weights {kind!r} takes no parameter, but {name!r} has one")
    try:
        parameters = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"the parameter of slot_weights {name!r} is not a number") from None
    if len(parameters) != (3 if kind == MEASURED else 1):
        many = f"three numbers, as in {MEASURED}:0.02,1.2,-1.3" if kind == MEASURED else "one number"
        raise ValueError(f"slot_weights {kind!r} takes {many}, not {text!r}")
    if kind == "exponential" and not 0 < parameters[0] <= 1:
        raise ValueError(f"the decay of slot_weights {name!r} is above 0 and at most 1")
    if kind == "power_law" and not 0 <= parameters[0] < 100:
        raise ValueError(f"the exponent of slot_weights {name!r} is at least 0 and under 100")
    if kind == MEASURED:
        offset, scale, exponent = parameters
        if not (0 <= offset < 1e6 and 0 < scale < 1e6 and -100 < exponent < 0):
            raise ValueError(
                f"the numbers of slot_weights {name!r} are C0 of at least 0, a above 0 (both under a million) and k "
                "below 0 and above -100"
            )
    return kind, parameters


def describe_slot_weights(name: str) -> str:
    """The name as reports say it: `mutual_information (0.02 + 1.2 d^-1.3)`; other kinds' as it is."""
    kind, parameters = parse_slot_weights(name)
    if kind != MEASURED or not parameters:
        return name
    offset, scale, exponent = parameters
    return f"{kind} ({offset:.3g} + {scale:.3g} d^{exponent:.3g})"
