"""The tree of runs that share their steps: whatever the runs, equal prefixes, and no step twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ArrayTokens
from token_superposition.data.stream import Source, TokenStream
from token_superposition.schedule import Schedule, Stage
from token_superposition.study.branching import Begun, Branch, Course, plan_branches, shared_steps
from token_superposition.training.optim import WarmupStableDecay


def course(
    total: int, *parts: tuple[int, int], decay: int | None = None, peak: float = 1.0, group: str = "a", warmup: int = 2
) -> Course:
    """A run of stages (bag size, steps), then recovery."""
    stages = [Stage(size, steps) for size, steps in parts]
    schedule = Schedule([*stages, Stage(1, total - sum(stage.steps for stage in stages))])
    return Course(group, schedule, WarmupStableDecay(peak, total, warmup, total // 5 if decay is None else decay))


@st.composite
def courses(draw: st.DrawFn) -> list[Course]:
    """Runs of a study as they come: arms by ratio, by steps, staged, at several budgets and learning rates."""
    budgets = draw(st.lists(st.integers(10, 80), min_size=1, max_size=4, unique=True))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.sampled_from([1, 2, 4]), max_size=3))
        ratios = [draw(st.floats(0.02, 0.3)) for _ in sizes]
        fixed = draw(st.booleans())
        share = draw(st.sampled_from([0.0, 0.1, 0.2, 0.5]))
        peak = draw(st.sampled_from([1.0, 2.0]))
        warmup = draw(st.sampled_from([0, 3]))
        for total in budgets:
            parts = [(size, round(ratio * (10 if fixed else total))) for size, ratio in zip(sizes, ratios, strict=True)]
            found.append(
                course(
                    total, *[part for part in parts if part[1]], decay=round(share * total), peak=peak, warmup=warmup
                )
            )
    return found


def signature(run: Course, number: int, step: int) -> Any:
    """All that shapes a step; a run's last one is its own."""
    schedule = run.stages
    if step == schedule.total_steps - 1:
        return number
    kind = replace(schedule.lookup(step), steps=1)
    last = step >= schedule.starts[-1]
    warmup = run.learning_rate.warmup_steps
    return schedule.input_period, kind, last, run.learning_rate.at(step), warmup, run.learning_rate.peak


def steps_in_all(runs: Sequence[Course]) -> int:
    """The size of the union of the runs' prefixes."""
    prefixes = set()
    for number, run in enumerate(runs):
        prefix: tuple[Any, ...] = ()
        for step in range(run.stages.total_steps):
            prefix = (*prefix, signature(run, number, step))
            prefixes.add(prefix)
    return len(prefixes)


def trained(runs: Sequence[Course], plan: Sequence[Branch]) -> int:
    return sum(run.stages.total_steps - branch.step for run, branch in zip(runs, plan, strict=True))


def pieces(schedule: Schedule, step: int) -> list[tuple[int, int | None, Stage]]:
    """What the order of the rows before a step hangs on: where stages begin and end, but for the last one's end."""
    ends = [*schedule.starts[1:], None]
    stages = [replace(stage, steps=1) for stage in schedule.stages]
    return [part for part in zip(schedule.starts, ends, stages, strict=True) if part[0] < step]


def check(runs: Sequence[Course], plan: Sequence[Branch]) -> None:
    for run, branch in zip(runs, plan, strict=True):
        assert branch.schedule.merged() == run.stages.merged()
        if branch.parent is None:
            assert branch.step == 0
            continue
        parent, its = runs[branch.parent], plan[branch.parent]
        assert its.step < branch.step < min(run.stages.total_steps, parent.stages.total_steps)
        assert branch.step in its.left_at
        assert pieces(branch.schedule, branch.step) == pieces(its.schedule, branch.step)
        assert branch.schedule.input_period == its.schedule.input_period
        for step in range(branch.step):
            assert run.learning_rate.at(step) == parent.learning_rate.at(step)
        if its.schedule.starts[-1] > branch.step:  # inside superposition both have a stage's end there
            assert branch.step in its.schedule.starts


@given(courses())
@settings(max_examples=150, deadline=None)
def test_whatever_the_runs_they_agree_and_nothing_is_trained_twice(runs: list[Course]) -> None:
    plan = plan_branches(runs)
    check(runs, plan)
    assert trained(runs, plan) == steps_in_all(runs)
    for a, one in enumerate(runs):
        for b, other in enumerate(runs):
            assert shared_steps(one, other) == shared_steps(other, one)
            if a != b:
                same = (signature(one, a, s) == signature(other, b, s) for s in range(one.stages.total_steps))
                assert shared_steps(one, other) == next(s for s, equal in enumerate(same) if not equal)


@given(courses(), st.data())
@settings(max_examples=150, deadline=None)
def test_runs_that_have_begun_stay_as_they_are(runs: list[Course], data: st.DataObject) -> None:
    """More runs later: those that are there are left where that can be done, and the new ones agree with them."""
    old = data.draw(st.integers(0, len(runs)))
    first = plan_branches(runs[:old])
    there = []
    for run, branch in zip(runs[:old], first, strict=True):
        total = run.stages.total_steps
        done = data.draw(st.integers(branch.step, total))
        kept = frozenset({step for step in (*branch.left_at, branch.step, done) if 0 < step <= done})
        there.append(replace(run, begun=Begun(branch.schedule, kept, done == total)))
    mixed = [*there, *runs[old:]]
    plan = plan_branches(mixed)
    check(mixed, plan)
    for run, branch in zip(there, plan, strict=False):
        assert branch.parent is None
        assert run.begun is not None
        assert branch.schedule == run.begun.schedule
    for branch in plan[old:]:
        if branch.parent is not None and branch.parent < old:
            begun = there[branch.parent].begun
            assert begun is not None
            assert begun.has(branch.step)
    assert trained(mixed[old:], plan[old:]) <= sum(run.stages.total_steps for run in mixed[old:])


@given(courses(), st.booleans(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_branch_reads_the_rows_that_its_parent_read(runs: list[Course], apart: bool, seed: int) -> None:
    """Through epochs, windows and documents, in a mixture."""
    generator = np.random.default_rng(seed)
    texts = [ArrayTokens(generator.integers(0, 9, size)) for size in (700, 1100)]
    sources = [Source("a", texts[0], 2), Source("b", texts[1], 1)]
    plan = plan_branches(runs)

    def stream(branch: Branch) -> TokenStream:
        return TokenStream(
            sources,
            branch.schedule,
            sequence_length=8,
            batch_size=3,
            seed=seed,
            block_windows=4,
            documents_apart=apart,
        )

    for branch in plan:
        if branch.parent is None:
            continue
        ours, theirs = stream(branch), stream(plan[branch.parent])
        for step in range(branch.step):
            a, b = ours.batch(step), theirs.batch(step)
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.targets, b.targets)
            assert a.span == b.span
        assert ours.coverages(branch.step) == theirs.coverages(branch.step)


def test_a_baseline_s_trunk_and_superposition_s_tree() -> None:
    """Budgets 40, 80, 160 of two arms, as one would draw it."""
    runs = [course(total) for total in (40, 80, 160)]
    runs += [course(total, (2, total // 4)) for total in (40, 80, 160)]
    plan = plan_branches(runs)
    assert [(branch.parent, branch.step) for branch in plan[:3]] == [(2, 33), (2, 65), (None, 0)]
    assert [(branch.parent, branch.step) for branch in plan[3:]] == [(5, 10), (5, 20), (None, 0)]
    cut = [[(stage.bag_size, stage.steps) for stage in branch.schedule.stages] for branch in plan[3:]]
    assert cut == [[(2, 10), (1, 30)], [(2, 10), (2, 10), (1, 60)], [(2, 10), (2, 10), (2, 20), (1, 120)]]
    assert plan[2].left_at == (33, 65)
    assert trained(runs, plan) == (160 + 7 + 15) + (160 + 30 + 60)


def test_what_differs_shares_nothing() -> None:
    runs = [course(40), course(80, group="b"), course(80, peak=2.0), course(80, warmup=3), course(80, (2, 10))]
    assert all(branch.parent is None for branch in plan_branches(runs))


def test_arms_of_one_bag_size_share_their_superposition() -> None:
    plan = plan_branches([course(100, (4, 20)), course(100, (4, 30)), course(100, (4, 20), (2, 10))])
    assert [(branch.parent, branch.step) for branch in plan] == [(None, 0), (0, 20), (0, 20)]
    assert [stage.steps for stage in plan[1].schedule.stages] == [20, 10, 70]


def test_a_longer_budget_later_leaves_where_it_can() -> None:
    kept = frozenset({33, 65, 129, 160})
    done = course(160)
    done = replace(done, begun=Begun(done.schedule, kept, ended=True))
    (_, longer) = plan_branches([done, course(320)])
    assert (longer.parent, longer.step) == (0, 129)
    lost = replace(done, begun=Begun(done.schedule, kept - {129}, ended=True))
    assert plan_branches([lost, course(320)])[1].step == 65
    none = replace(done, begun=Begun(done.schedule, frozenset({160}), ended=True))
    assert plan_branches([none, course(320)])[1].parent is None
    # Superposition that was not cut is left at its end only, and not where the new run would have liked.
    whole = course(160, (2, 40))
    whole = replace(whole, begun=Begun(whole.schedule, frozenset({20, 40, 160}), ended=True))
    assert [(b.parent, b.step) for b in plan_branches([whole, course(80, (2, 20))])] == [(None, 0), (None, 0)]
    assert plan_branches([whole, course(320, (2, 80))])[1].step == 40
