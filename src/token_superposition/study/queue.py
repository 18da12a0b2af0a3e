"""The queue of a study's runs: what each begins with, its configuration's file, its job.

Where there are several budgets, the runs of a seed make a tree and share their steps (`branching`). What has begun is
not changed: more budgets, arms or seeds later train only what is new.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError
from token_superposition.files import make_folder, remove_empty, write_text
from token_superposition.plan.stages import Schedule
from token_superposition.run.branch import branch_step
from token_superposition.run.checkpoint import checkpoint_path, checkpoint_steps, is_whole
from token_superposition.run.folder import RunFolder
from token_superposition.study.alike import check_lengths, check_machines
from token_superposition.study.branching import Begun, Branch, Course, plan_branches, shared_steps
from token_superposition.study.job import Job
from token_superposition.study.machine import share_machine
from token_superposition.study.trials import Trial
from token_superposition.study.workers import run_jobs
from token_superposition.train.config import RunConfig, parse_config
from token_superposition.train.optimizer import build_learning_rate
from token_superposition.train.resume import check_unchanged, stored_config, trained_learning_rate

# What is compared step by step, and so may differ between runs that begin alike.
_SCHEDULE_KEYS = (
    "total_steps",
    "warmup_ratio",
    "warmup_steps",
    "decay_ratio",
    "final_learning_rate_ratio",
    "learning_rate",
)


def train_trials(
    trials: Sequence[Trial],
    seeds: Iterable[int],
    *,
    branches: bool,
    jobs: int | None,
    quiet: bool,
    may_diverge: bool = False,
) -> int:
    """Train every trial with every seed, in one queue; see `run_jobs`. Returns how many were trained at once.

    Args:
        trials: all that is to be trained.
        seeds: counted from the configurations'.
        branches: let runs share their steps.
        jobs: runs at once; as the machine bears, without it.
        quiet, may_diverge: as in `run_jobs`.
    """
    queue = plan_runs(trials, seeds, branches=branches)
    for planned in queue:
        planned.write()
    share = share_machine([trial.config for trial in trials], len(queue), jobs)
    run_jobs([planned.job for planned in queue], share=share, quiet=quiet, may_diverge=may_diverge)
    return min(share.at_once, len(queue))


@dataclass(frozen=True)
class PlannedRun:
    """A run's job, and what is to be in its configuration's file."""

    job: Job
    values: Mapping[str, Any]

    def write(self) -> None:
        """Write the file, in the folder of the run's trial."""
        place = self.job.config.parent
        try:
            made = make_folder(place)
        except OSError as error:
            raise UserError(f"{place}: cannot be made ({error.strerror}); name another folder") from None
        try:
            write_text(self.job.config, yaml.safe_dump(dict(self.values), sort_keys=False))
        except OSError:
            remove_empty(made)
            raise


def plan_runs(trials: Sequence[Trial], seeds: Iterable[int], *, branches: bool) -> list[PlannedRun]:
    """Every trial with every seed, in the order of the queue; nothing is written.

    Args:
        trials, seeds, branches: as in `train_trials`.

    Raises:
        UserError: where a run is there already, with another configuration, or they would not be trained alike.
    """
    queue: list[PlannedRun] = []
    seeds = list(seeds)
    for seed in seeds:  # a seed's arms side by side, so that they meet the same machine
        queue += _plan_branched(trials, seed) if branches else [_plan_run(trial, seed) for trial in trials]
    check_lengths([(trial.run(seed), trial.seeded(seed)) for trial in trials for seed in seeds])
    check_machines([(RunFolder(run.job.trunk.folder), parse_config(run.values)) for run in queue])
    return queue


def _plan_branched(trials: Sequence[Trial], seed: int) -> list[PlannedRun]:
    """The runs of a seed, the longest first: others wait for it."""
    trials = sorted(trials, key=lambda trial: -trial.total_steps)
    courses, folders = [_course(trial, seed) for trial in trials], [trial.run(seed) for trial in trials]
    longest = {trial.base: trial for trial in reversed(trials)}
    for trial in longest.values():
        for folder, course in _other_runs(trial, seed, {folder.path for folder in folders}):
            courses.append(course)
            folders.append(folder)
    plan = _plan(courses, folders)
    made: dict[int, PlannedRun] = {}

    def make(number: int) -> PlannedRun:
        if number >= len(trials):  # a run that nobody asks for now, to be left and not to be trained
            path = folders[number].path
            return PlannedRun(Job(str(path), path.with_suffix(".yaml"), path, courses[number].stages.total_steps), {})
        if number not in made:
            trial, branch = trials[number], plan[number]
            parent = None if branch.parent is None else make(branch.parent).job
            keep = set(branch.left_at)
            if trial is longest[trial.base]:
                keep.add(_left_by_a_longer_one(trial, courses[number]))
            made[number] = _plan_run(trial, seed, branch, sorted(keep - {0}), parent)
        return made[number]

    return [make(number) for number in range(len(trials))]


def _other_runs(trial: Trial, seed: int, known: Collection[Path]) -> Iterator[tuple[RunFolder, Course]]:
    """Runs of the same arm, setting and seed at other budgets, which another study has left: they can be begun as."""
    config = trial.seeded(seed)
    name = f"seed-{config.train.seed}"
    for path in sorted({*trial.base.glob(f"*-steps/{name}"), trial.base / name} - set(known)):
        folder = RunFolder(path)
        stored, fixed = stored_config(folder), folder.read_fixed()
        if stored is None or fixed is None:
            continue
        schedule = {key: getattr(stored.train, key) for key in _SCHEDULE_KEYS}
        same = config.model_copy(
            update={"superposition": stored.superposition, "train": config.train.model_copy(update=schedule)}
        )
        with contextlib.suppress(UserError):  # for all else that differs
            check_unchanged(same, folder)
            begun = Begun(Schedule.from_dicts(fixed["stages"]), frozenset(checkpoint_steps(folder.checkpoints)), True)
            yield folder, Course(_group(config), begun.schedule, trained_learning_rate(stored, fixed), begun)


def _plan(courses: list[Course], folders: Sequence[RunFolder]) -> list[Branch]:
    """The tree, in which nothing begins with a checkpoint that is damaged."""
    while True:
        plan = plan_branches(courses)
        damaged = False
        for branch in plan:
            begun = None if branch.parent is None else courses[branch.parent].begun
            if branch.parent is None or begun is None or branch.step not in begun.checkpoints:
                continue
            if not is_whole(checkpoint_path(folders[branch.parent].checkpoints, branch.step)):
                fewer = replace(begun, checkpoints=begun.checkpoints - {branch.step})
                courses[branch.parent] = replace(courses[branch.parent], begun=fewer)
                damaged = True
        if not damaged:
            return plan


def _course(trial: Trial, seed: int) -> Course:
    config, folder = trial.seeded(seed), trial.run(seed)
    stored, fixed = stored_config(folder), folder.read_fixed()
    begun, learning_rate = None, build_learning_rate(config.train)
    if stored is not None and fixed is not None:
        learning_rate = trained_learning_rate(stored, fixed)
        checkpoints = frozenset(checkpoint_steps(folder.checkpoints))
        # One that diverged may have done so after the step in question, which only who goes there finds out.
        ended = folder.summary_file.exists() or folder.diverged_file.exists()
        begun = Begun(Schedule.from_dicts(fixed["stages"]), checkpoints, ended)
    return Course(_group(config), config.schedule(), learning_rate, begun)


def _group(config: RunConfig) -> str:
    """All that shapes a run's steps, but for its stages and its learning rate."""
    values = config.model_dump(mode="json", exclude={"superposition"})
    for key in _SCHEDULE_KEYS:
        del values["train"][key]
    del values["logging"]["keep_checkpoint_steps"], values["data"]["verify"]
    return json.dumps(values, sort_keys=True)


def _left_by_a_longer_one(trial: Trial, course: Course) -> int:
    """Where the same run with twice the steps would leave this one: kept for the day when somebody asks for it."""
    train = trial.config.train
    update = {"total_steps": 2 * train.total_steps, "warmup_ratio": None, "warmup_steps": train.num_warmup_steps}
    longer = trial.config.model_copy(update={"train": train.model_copy(update=update)})
    return shared_steps(course, Course(course.group, longer.schedule(), build_learning_rate(longer.train)))


def _plan_run(
    trial: Trial, seed: int, branch: Branch | None = None, keep: Sequence[int] = (), parent: Job | None = None
) -> PlannedRun:
    config, run = trial.seeded(seed), trial.run(seed)
    values = config.model_dump(mode="json", exclude_unset=True)
    stored = stored_config(run)
    if branch is not None and stored is None and branch.schedule != config.schedule():
        values["superposition"] = {"stages": [asdict(stage) for stage in branch.schedule.stages[:-1]]}
    kept = {*keep, *config.logging.keep_checkpoint_steps, *(stored.logging.keep_checkpoint_steps if stored else ())}
    if kept:
        values.setdefault("logging", {})["keep_checkpoint_steps"] = sorted(kept)
    check_unchanged(parse_config(values), run)  # before what is there is taken for what is asked
    step = branch_step(run) if branch is None or stored is not None else branch.step
    file = run.path.parent / f"{run.path.name}.yaml"
    return PlannedRun(Job(trial.name(seed), file, run.path, config.train.total_steps, step, parent), values)
