"""Which runs share which steps: pure arithmetic on stages and learning rates.

Two runs that agree in everything that shapes their first k steps need these trained once: the second one begins as a
branch of the first (`training.branch`). Of runs that begin alike this makes a tree, in which every step is trained
once.
The longest run is the trunk, for the others wait for it.

The order of a stage's rows depends on how long the stage is (`data.sampler`): only a run's last stage reads the same
however long it becomes. So where a run is left inside another stage, that stage is cut in two there, in every run that
passes: equal prefixes are then equal by construction. A run that has begun cannot be cut any more. It can be left
where its stages begin or in its last one, and only where it has a checkpoint or has yet to come.

A branch has at least one step of its own, for a run's last step is written down in another way than one in its midst.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from token_superposition.schedule import Schedule, Stage
from token_superposition.training.optim import WarmupStableDecay


@dataclass(frozen=True)
class Begun:
    """What there is of a run: it is as it is.

    Attributes:
        schedule: its stages, cuts included.
        checkpoints: the steps it has checkpoints of.
        ended: whether it will write no more of them.
    """

    schedule: Schedule
    checkpoints: frozenset[int]
    ended: bool

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of that step, or will be."""
        return step in self.checkpoints or (not self.ended and step > max(self.checkpoints, default=0))


@dataclass(frozen=True)
class Course:
    """What a run does, step by step.

    Attributes:
        group: all else that shapes it; runs of different groups share nothing.
        schedule: its stages, as asked for.
        learning_rate: of its steps.
        begun: what there is of it; None for a new one.
    """

    group: Hashable
    schedule: Schedule
    learning_rate: WarmupStableDecay
    begun: Begun | None = None

    @property
    def stages(self) -> Schedule:
        """As it has begun, or as asked for."""
        return self.schedule if self.begun is None else self.begun.schedule


@dataclass(frozen=True)
class Branch:
    """How a run is to be trained.

    Attributes:
        schedule: its stages, cuts included.
        parent: the number of the run it begins as; None where it begins on its own, or has begun.
        step: how many steps it has from that.
        left_at: the steps after which others leave it.
    """

    schedule: Schedule
    parent: int | None = None
    step: int = 0
    left_at: tuple[int, ...] = ()


def shared_steps(a: Course, b: Course) -> int:
    """How many steps two runs have in common from their start; fewer than either has."""
    if a.group != b.group or a.stages.input_period != b.stages.input_period:
        return 0
    return min(
        a.learning_rate.shared_steps(b.learning_rate),
        _same_stages(a.stages, b.stages),
        a.stages.total_steps - 1,
        b.stages.total_steps - 1,
    )


def plan_branches(courses: Sequence[Course]) -> list[Branch]:
    """For each run, in the order given, the run it begins as and its stages."""
    order = sorted(
        range(len(courses)), key=lambda number: (courses[number].begun is None, -courses[number].stages.total_steps)
    )
    nodes: dict[int, _Node] = {}
    for number in order:
        node = _Node(courses[number])
        ways = [(other.leave(shared_steps(other.course, node.course)), name) for name, other in nodes.items()]
        if node.course.begun is None and ways:
            step, parent = max(ways, key=lambda way: (way[0], nodes[way[1]].has(way[0])))
            if step > 0:
                node.branch_off(nodes[parent], parent, step)
        nodes[number] = node
    return [nodes[number].result() for number in range(len(courses))]


class _Node:
    """A run in the tree."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.parent: _Node | None = None
        self.parent_number: int | None = None
        self.step = 0
        self.own_starts = set(course.stages.starts)  # of stages, from `step` on
        self.left_at: set[int] = set()

    def leave(self, wanted: int) -> int:
        """The last step, up to the one wanted, at which this run can be left; 0 where it cannot."""
        begun = self.course.begun
        if begun is None:
            return wanted if wanted > self.step else 0  # before that it is another run that is left
        starts = begun.schedule.starts
        steps = {wanted, *starts, *begun.checkpoints}
        good = [step for step in steps if step <= wanted and begun.has(step) and (step in starts or step >= starts[-1])]
        return max(good, default=0)

    def has(self, step: int) -> bool:
        """Whether it can be left at once there."""
        return self.course.begun is not None and step in self.course.begun.checkpoints

    def branch_off(self, parent: _Node, number: int, step: int) -> None:
        """Begin as another run."""
        self.parent, self.parent_number, self.step = parent, number, step
        self.own_starts = {start for start in self.own_starts if start > step}
        if not self.course.schedule.in_last_stage(step - 1):
            self.own_starts.add(step)
            parent.own_starts.add(step)
        parent.left_at.add(step)

    def starts(self) -> set[int]:
        """The first steps of all its stages."""
        before = self.parent.starts() if self.parent else set()
        return {start for start in before if start < self.step} | self.own_starts

    def result(self) -> Branch:
        begun, left_at = self.course.begun, tuple(sorted(self.left_at))
        if begun is not None:
            return Branch(begun.schedule, left_at=left_at)
        schedule = self.course.schedule.cut_at(self.starts())
        return Branch(schedule, self.parent_number, self.step, left_at)


def _same_stages(a: Schedule, b: Schedule) -> int:
    """Steps in stages of the same kind; a last stage, whose rows know no end, is of a kind of its own."""

    def kind(schedule: Schedule, step: int) -> tuple[Stage, bool]:
        return replace(schedule.lookup(step), steps=1), schedule.in_last_stage(step)

    total = min(a.total_steps, b.total_steps)
    for step in sorted({*a.starts, *b.starts}):
        if step < total and kind(a, step) != kind(b, step):
            return step
    return total
