"""The schedule of a run: a list of stages, and the names of the slot weights that a stage uses.

A `Stage` is a number of optimizer steps that are trained with one bag size, one mode and one set of slot weights. A
`Schedule` is a list of stages, and `Schedule.lookup(step)` gives the stage of a step. The constructor
`Schedule.two_phase` makes the two phases of the paper: superposition for the first `ratio` of the steps, then
next-token recovery.

Only the schedule decides which phase a step is in. The stream, the model and the logs ask the schedule, or pass on its
answer. If another place compared a step with a ratio, then ranks and prefetched batches could disagree about the
switch.

Steps count from 0. `switch_step` is the first step of the recovery. It is a fixed number of steps, so a later change of
the total number of steps (`with_total_steps`) cannot move it.

A set of slot weights is named by a short text. `parse_slot_weights` checks such a name; `losses.slot_weights` makes the
weights. The configuration is checked with this module, so this module does not import torch.
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
    """A number of optimizer steps that are trained in the same way.

    Attributes:
        bag_size: s, the number of tokens in a bag; 1 is ordinary next-token training.
        steps: the number of optimizer steps of the stage.
        mode: `full` (the input is a bag, the target is the next bag), `output_only` (the input is one token, the target
            is the next s tokens) or `input_only` (the input is a bag, the target is the one token after the bag).
        slot_weights: the name of the weights of the s targets; see `token_superposition.slot_weights`.

    Raises:
        ValueError: if the bag size or the number of steps is below 1, or the mode is unknown.
        TypeError: if the bag size or the number of steps is not an integer.

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
            raise ValueError(f"bag_size must be at least 1, not {self.bag_size}")
        if self.steps < 1:
            raise ValueError(f"a stage needs at least 1 step, not {self.steps}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")

    @property
    def phase(self) -> Phase:
        """The phase of the stage: `recovery` at bag size 1 (next-token training), anywhere in the run."""
        return "recovery" if self.bag_size == 1 else "superposition"

    @property
    def input_bag_size(self) -> int:
        """The number of raw tokens that one position reads: s, or 1 in mode `output_only`."""
        return 1 if self.mode == "output_only" else self.bag_size

    @property
    def num_targets(self) -> int:
        """The number of raw tokens that one position predicts: s, or 1 in mode `input_only`."""
        return 1 if self.mode == "input_only" else self.bag_size


class Schedule:
    """The stages of a run, in order; `two_phase` and `staged` make the usual schedules.

    Raises:
        ValueError: if the list of stages is empty.

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
        """The number of optimizer steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def index_at(self, step: int) -> int:
        """Return the index of the stage that contains `step`.

        Raises:
            ValueError: if the run has no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the run's {self.total_steps} steps (they count from 0)")
        return max(index for index, start in enumerate(self.starts) if start <= step)

    def lookup(self, step: int) -> Stage:
        """Return the stage that contains `step`; raise ValueError if the run has no such step."""
        return self.stages[self.index_at(step)]

    def in_last_stage(self, step: int) -> bool:
        """Return whether `step` is in the last stage, which may be extended; raise ValueError for an unknown step."""
        return self.index_at(step) == len(self.stages) - 1

    def bag_size_at(self, step: int) -> int:
        """Return the bag size of `step`."""
        return self.lookup(step).bag_size

    @cached_property
    def switch_step(self) -> int:
        """The step after which all training is next-token training; 0 for a run without superposition.

        A run that ends in superposition never switches: its `switch_step` is `total_steps`.
        """
        last = max((i for i, stage in enumerate(self.stages) if stage.phase == "superposition"), default=-1)
        return sum(stage.steps for stage in self.stages[: last + 1])

    @cached_property
    def bag_size(self) -> int:
        """The largest bag size of the run."""
        return max(stage.bag_size for stage in self.stages)

    @cached_property
    def input_period(self) -> int:
        """The least common multiple of the input bag sizes of all stages."""
        return math.lcm(*(stage.input_bag_size for stage in self.stages))

    def positions(self, positions_per_step: int, step: int | None = None) -> int:
        """Return the number of latent positions before `step` (of the whole run if None); FLOPs use this count."""
        return positions_per_step * (self.total_steps if step is None else step)

    def raw_tokens(self, positions_per_step: int, step: int | None = None) -> int:
        """Return the number of raw tokens read as inputs before `step` (of the whole run if None)."""
        end = self.total_steps if step is None else step
        return sum(
            min(max(end - start, 0), stage.steps) * stage.input_bag_size * positions_per_step
            for start, stage in zip(self.starts, self.stages, strict=True)
        )

    def with_total_steps(self, total_steps: int) -> Schedule:
        """Return the schedule with another number of total steps; the switch step stays the same.

        Raises:
            ValueError: if the run does not end with recovery, or if no recovery step would remain.
        """
        change = total_steps - self.total_steps
        last = self.stages[-1]
        if change == 0:
            return self
        if last.phase != "recovery" or last.steps + change < 1:
            raise ValueError(
                f"a run that switches at step {self.switch_step} cannot have {total_steps} steps: "
                "only the length of its recovery can change"
            )
        return Schedule([*self.stages[:-1], Stage(1, last.steps + change, last.mode, last.slot_weights)])

    def merged(self) -> Schedule:
        """Return the same run; neighbouring stages that differ only in their number of steps become one stage."""
        stages: list[Stage] = []
        for stage in self.stages:
            if stages and replace(stages[-1], steps=stage.steps) == stage:
                stages[-1] = replace(stage, steps=stages[-1].steps + stage.steps)
            else:
                stages.append(stage)
        return Schedule(stages)

    def cut_at(self, steps: Iterable[int]) -> Schedule:
        """Return the same run, cut into stages that start at these steps and at each change of training.

        Raises:
            ValueError: if the run has no such step.
        """
        whole = self.merged()
        starts = sorted({*whole.starts, *steps})
        ends = [*starts[1:], whole.total_steps]
        return Schedule(
            [replace(whole.lookup(start), steps=end - start) for start, end in zip(starts, ends, strict=True)]
        )

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the stages as dictionaries for JSON; `Schedule.from_dicts` reads them back."""
        return [asdict(stage) for stage in self.stages]

    @classmethod
    def from_dicts(cls, stages: Sequence[Mapping[str, Any]]) -> Schedule:
        """Return the schedule that `as_dicts` wrote; the values may come from a damaged file, so they are checked.

        Raises:
            TypeError, ValueError: if `as_dicts` cannot have written these values.
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
        """Return the two phases of the paper: superposition for the first `ratio` of the steps, then recovery.

        Args:
            total_steps: the number of optimizer steps of the whole run.
            bag_size: s; 1 turns superposition off.
            ratio: the share of steps in superposition, in [0, 1); the switch is at `round(ratio * total_steps)`.
            superposition_steps: the number of steps in superposition; give either this or `ratio`.
            mode, slot_weights: of the superposition phase, as in `Stage`.

        Raises:
            ValueError: if a number is out of range, or if both or neither of `ratio` and `superposition_steps` are
                given.

        Source: arXiv 2605.06546, section 3 (superposition phase, recovery phase, hard switch).

        Example:
            >>> schedule = Schedule.two_phase(total_steps=20_000, bag_size=6, ratio=0.25)
            >>> schedule.switch_step, schedule.bag_size_at(4_999), schedule.bag_size_at(5_000)
            (5000, 6, 1)
        """
        _check_whole(total_steps=total_steps, bag_size=bag_size, superposition_steps=superposition_steps)
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, not {total_steps}")
        if (ratio is None) == (superposition_steps is None):
            raise ValueError("give one of ratio and superposition_steps")
        if superposition_steps is None:
            if ratio is None or not 0 <= ratio < 1:
                raise ValueError(f"ratio must be at least 0 and below 1, not {ratio}")
            superposition_steps = round(ratio * total_steps)
        if not 0 <= superposition_steps < total_steps:
            raise ValueError(
                f"superposition_steps must be at least 0 and below total_steps ({total_steps}), "
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
        """Return a schedule of any number of stages, each a `Stage` or a pair (bag size, number of steps).

        Raises:
            TypeError: if an argument is neither a `Stage` nor such a pair.
            ValueError: if there is no stage, or a number is out of range.

        Example:
            >>> schedule = Schedule.staged((8, 1_000), (4, 1_000), (1, 8_000))
            >>> schedule.total_steps, schedule.switch_step
            (10000, 2000)
        """
        made = [Stage(*stage) if isinstance(stage, tuple) and len(stage) == 2 else stage for stage in stages]
        for stage in made:
            if not isinstance(stage, Stage):
                raise TypeError(f"a stage must be a Stage or a pair (bag_size, steps), not {stage!r}")
        return cls(made)

    @classmethod
    def steps_for_raw_tokens(
        cls, raw_tokens: int, positions_per_step: int, bag_size: int, ratio: float, mode: Mode = "full"
    ) -> int:
        """Return the largest `total_steps` whose run reads at most `raw_tokens` raw tokens.

        Raises:
            ValueError: if one step already reads more raw tokens.
        """
        if positions_per_step < 1:
            raise ValueError(f"positions_per_step must be at least 1, not {positions_per_step}")

        more = 0 if mode == "output_only" else bag_size - 1

        def reads(total_steps: int) -> int:
            return positions_per_step * (total_steps + more * round(ratio * total_steps))

        low, high = 0, raw_tokens // positions_per_step  # one step reads at least one token per position
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if reads(middle) <= raw_tokens else (low, middle - 1)
        if low < 1:
            raise ValueError(f"{raw_tokens} raw tokens are less than one step of {positions_per_step} positions reads")
        return cls.two_phase(low, bag_size, ratio, mode=mode).total_steps


def _check_whole(**numbers: Any) -> None:
    for name, number in numbers.items():
        if number is not None and not isinstance(number, Integral):
            raise TypeError(f"{name} must be an integer, not {number!r}")


_DEFAULTS: dict[str, tuple[float, ...]] = {
    "uniform": (),
    "power_law": (1.0,),
    "exponential": (0.5,),
    "first_token": (),
    "mutual_information": (),
}
MEASURED = "mutual_information"


def parse_slot_weights(name: str) -> tuple[str, tuple[float, ...]]:
    """Split a name such as `power_law:1.25` into its kind and its parameters.

    The name `mutual_information` alone has no parameters: they are measured on the corpus later.

    Raises:
        ValueError: if the kind is unknown, a parameter is not a number or is out of range, or the number of parameters
            is wrong.
    """
    kind, colon, text = name.partition(":")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ValueError(f"slot_weights must be one of {known}, not {name!r}{did_you_mean(kind, _DEFAULTS)}")
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
        raise ValueError(f"the decay of slot_weights {name!r} must be above 0 and at most 1")
    if kind == "power_law" and not 0 <= parameters[0] < 100:
        raise ValueError(f"the exponent of slot_weights {name!r} must be at least 0 and below 100")
    if kind == MEASURED:
        offset, scale, exponent = parameters
        if not (0 <= offset < 1e6 and 0 < scale < 1e6 and -100 < exponent < 0):
            raise ValueError(
                f"the numbers of slot_weights {name!r} are out of range: C0 must be at least 0, a above 0 (both below "
                "a million), and k below 0 and above -100"
            )
    return kind, parameters


def describe_slot_weights(name: str) -> str:
    """Return the name as reports show it: `mutual_information (0.02 + 1.2 d^-1.3)`; other kinds are unchanged."""
    kind, parameters = parse_slot_weights(name)
    if kind != MEASURED or not parameters:
        return name
    offset, scale, exponent = parameters
    return f"{kind} ({offset:.3g} + {scale:.3g} d^{exponent:.3g})"
