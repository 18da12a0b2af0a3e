"""The queue of a study's runs: what each begins with, its configuration's file, its job.

Where there are several budgets, the runs of a seed make a tree and share their steps (`branching`). What has begun is
not changed: more budgets, arms or seeds later train only what is new.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from token_superposition.errors import RunFailedError, TrainingDivergedError, UserError
from token_superposition.files import make_folder, remove_empty, write_text
from token_superposition.formatting import plural
from token_superposition.interrupts import stop_requests
from token_superposition.progress import say, warn
from token_superposition.study.branching import Begun, Branch, Course, plan_branches, shared_steps
from token_superposition.study.comparability import check_lengths, check_machines
from token_superposition.study.job import Job
from token_superposition.study.resources import Share, share_machine
from token_superposition.study.study_progress import Display
from token_superposition.study.trials import Trial
from token_superposition.training.checkpoint import checkpoint_path, checkpoint_steps, is_whole
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.optim import build_learning_rate
from token_superposition.training.run import check_unchanged
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

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
    courses = [_course(trial, seed) for trial in trials]
    longest = {trial.base: trial for trial in reversed(trials)}
    plan = _plan(courses, [trial.run(seed) for trial in trials])
    made: dict[int, PlannedRun] = {}

    def make(number: int) -> PlannedRun:
        if number not in made:
            trial, branch = trials[number], plan[number]
            parent = None if branch.parent is None else make(branch.parent).job
            keep = set(branch.left_at)
            if trial is longest[trial.base]:
                keep.add(_left_by_a_longer_one(trial, courses[number]))
            made[number] = _plan_run(trial, seed, branch, sorted(keep - {0}), parent)
        return made[number]

    return [make(number) for number in range(len(trials))]


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
    stored = StoredRun.read(folder)
    begun, learning_rate = None, build_learning_rate(config.train)
    if stored is not None:
        learning_rate = stored.learning_rate
        checkpoints = frozenset(checkpoint_steps(folder.checkpoints))
        # One that diverged may have done so after the step in question, which only who goes there finds out.
        ended = folder.summary_file.exists() or folder.diverged_file.exists()
        begun = Begun(stored.record.schedule, checkpoints, ended)
    return Course(_group(config), config.schedule(), learning_rate, begun)


def _group(config: RunConfig) -> str:
    """All that shapes a run's steps, but for its stages and its learning rate."""
    values = config.model_dump(mode="json", exclude={"superposition"})
    for key in _SCHEDULE_KEYS:
        del values["train"][key]
    del values["logging"]["keep_checkpoint_steps"], values["data"]["verify"]
    return json.dumps(values, sort_keys=True)


def _left_by_a_longer_one(trial: Trial, course: Course) -> int:
    """Where a run of twice the steps would branch off: kept, so that a longer budget can be added later."""
    train = trial.config.train
    update = {"total_steps": 2 * train.total_steps, "warmup_ratio": None, "warmup_steps": train.num_warmup_steps}
    longer = trial.config.model_copy(update={"train": train.model_copy(update=update)})
    return shared_steps(course, Course(course.group, longer.schedule(), build_learning_rate(longer.train)))


def _plan_run(
    trial: Trial, seed: int, branch: Branch | None = None, keep: Sequence[int] = (), parent: Job | None = None
) -> PlannedRun:
    config, run = trial.seeded(seed), trial.run(seed)
    values = config.model_dump(mode="json", exclude_unset=True)
    stored = StoredRun.read(run)
    if branch is not None and stored is None and branch.schedule != config.schedule():
        values["superposition"] = {"stages": [asdict(stage) for stage in branch.schedule.stages[:-1]]}
    kept = {
        *keep,
        *config.logging.keep_checkpoint_steps,
        *(stored.config.logging.keep_checkpoint_steps if stored else ()),
    }
    if kept:
        values.setdefault("logging", {})["keep_checkpoint_steps"] = sorted(kept)
    check_unchanged(parse_config(values), run)  # before what is there is taken for what is asked
    step = branch.step if stored is None and branch is not None else 0
    if stored is not None:
        step = stored.record.shared_steps
    file = run.path.parent / f"{run.path.name}.yaml"
    return PlannedRun(Job(trial.name(seed), file, run.path, config.train.total_steps, step, parent), values)


# Several runs at once, each in a process of its own.
#
# A run is `tst train` on a configuration file, so a study adds nothing to what a run is: a killed study leaves run
# folders that go on where they stopped, and what is done is not trained again. The parent only starts processes,
# reads the lines they log, and shows them. A run that begins as another one starts as soon as that one's checkpoint
# is there, while it goes on training.
#
# A run that diverges ends a study, in one line and after all others are done, unless the study asked to know: a sweep
# tries values that may be too much.


@stop_requests()
def run_jobs(jobs: Sequence[Job], *, share: Share, quiet: bool, may_diverge: bool = False) -> None:
    """Run every job that is not done, sharing the machine as `share` says.

    With `may_diverge` a run that diverges is one that has ended, now and when the study is started again. Without, the
    others are run to their ends first: hours of theirs need not be waited for again.

    Raises:
        UserError: where a run says that its input is wrong, in its words.
        TrainingDivergedError: where a run diverges that may not, in its words.
        RunFailedError: where a run fails otherwise; names its log.
        KeyboardInterrupt: after every running job has written its checkpoint.
    """
    jobs = list(jobs)
    waiting = [job for job in jobs if not (job.done or (may_diverge and job.diverged))]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    devices: dict[Job, str | None] = {}  # of those
    lost: TrainingDivergedError | None = None
    display = Display(jobs, quiet=quiet)
    try:
        while waiting or running:
            for job in _stranded(waiting, running):
                waiting.remove(job)
                if may_diverge and job.parent is not None and job.parent.diverged:
                    job.diverge()
                    continue
                if lost is not None and _begins_lost(job):
                    continue
                warn(f"{job.name}: what it would begin with was not written; it is trained from its start")
                jobs[jobs.index(job)] = alone = replace(job, parent=None, branch_step=0)
                waiting.append(alone)
            while len(running) < share.at_once and (ready := next((job for job in waiting if job.ready), None)):
                waiting.remove(ready)
                ready.prepare()
                devices[ready] = None if _names_device(ready) else share.free_device(devices.values())
                running[ready] = _start(ready, share.threads, devices[ready])
            time.sleep(0.3)
            display.update(running)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job], devices[job]
                    if may_diverge and job.diverged:
                        continue
                    try:
                        _check(job, process.returncode)
                    except TrainingDivergedError as error:
                        lost = lost or error
        display.update()
    except KeyboardInterrupt:
        display.close()
        done = sum(job.done for job in jobs)
        say(f"{done} of {plural(len(jobs), 'run')} done; start the same command again, and the study continues")
        raise
    finally:
        display.close()
        for process in running.values():  # reached with any only when something went wrong
            process.terminate()
        for process in running.values():
            process.wait()
    if lost is not None:
        raise lost


def _stranded(waiting: Sequence[Job], running: Collection[Job]) -> list[Job]:
    """Runs that wait for a checkpoint that nobody will write any more."""
    alive = {job.folder for job in (*waiting, *running)}
    return [job for job in waiting if job.parent and not job.ready and job.parent.folder not in alive]


def _begins_lost(job: Job) -> bool:
    """Whether a run that it would begin as, or one that that would begin as, has diverged."""
    return job.parent is not None and (job.parent.diverged or _begins_lost(job.parent))


def _names_device(job: Job) -> bool:
    """Whether a run was started on a device that it cannot be dealt, such as `cuda:3`, and has to go on there."""
    stored = StoredRun.read(RunFolder(job.folder))
    return stored is not None and stored.config.train.device not in ("auto", "cuda", "cuda:0")


def _start(job: Job, threads: int, device: str | None) -> subprocess.Popen[bytes]:
    """Train a run in a process of its own, which sees that device only, or without it all that this one sees."""
    command = [sys.executable, "-m", "token_superposition", "train", str(job.config)]
    command += ["--processes", "1", "--data.verify", "false"]  # the study has verified the data once for all runs
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with job.log.open("wb") as log:
        return subprocess.Popen(
            [*command, "--out", str(job.folder), "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # an interrupt of ours reaches it once, from us
        )


def _check(job: Job, code: int) -> None:
    if code == 0:
        return
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    if code == 2:
        raise UserError(f"{job.name}: {last}")
    if job.diverged:
        raise TrainingDivergedError(f"{job.name}: {last}")
    raise RunFailedError(f"{job.name} ended with exit code {code}: {last} (all of it: {job.log})")
