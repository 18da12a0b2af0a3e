"""Several runs at once, each in a process of its own.

A run is `tst train` on a configuration file, so a study adds nothing to what a run is: a killed study
leaves run folders that go on where they stopped, and what is done is not trained again. The parent only
starts processes, reads the lines they log, and shows them. A run that begins as another one starts as soon as that
one's checkpoint is there, while it goes on training.

A run that diverges ends a study, in one line and after all others are done, unless the study asked to know: a sweep
tries values that may be too much.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from token_superposition.errors import RunFailedError, TrainingDivergedError, UserError
from token_superposition.interrupts import stop_requests
from token_superposition.run.folder import RunFolder
from token_superposition.study.display import Display
from token_superposition.study.job import Job
from token_superposition.study.machine import Share
from token_superposition.study.report.numbers import plural
from token_superposition.train.progress import say, warn
from token_superposition.train.resume import stored_config


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
    stored = stored_config(RunFolder(job.folder))
    return stored is not None and stored.train.device not in ("auto", "cuda", "cuda:0")


def _start(job: Job, threads: int, device: str | None) -> subprocess.Popen[bytes]:
    """Train a run in a process of its own, which sees that device only, or without it all that this one sees."""
    command = [sys.executable, "-m", "token_superposition", "train", str(job.config)]
    command += ["--data.verify", "false"]  # the study has done it, once for all runs
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
