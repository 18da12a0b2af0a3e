"""`tst compare`: the same run with and without superposition, over seeds and budgets, and a report.

Arms share initialisation, validation set, latent batch and every setting that their own keys do not
change. They cannot share the order of the data: superposition reads s times more text a step. At the same
number of steps they cost the same FLOPs.

What is compared stands in the study's file (`study_file`). With a sweep each arm is compared at its own best values
(`sweep`, `tune`). With budgets every arm is trained at each of them, and with equal data the baseline also on the raw
tokens that superposition read; the steps that runs have in common are trained once (`queue`, `branching`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from token_superposition.data.mutual_information import MutualInformation
from token_superposition.errors import UserError
from token_superposition.files import make_folder, naming, remove_empty
from token_superposition.progress import say, warn
from token_superposition.study.report.files import write_report
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import SweepReport
from token_superposition.study.results import build_report
from token_superposition.study.runner import train_trials
from token_superposition.study.study_config import Study, load_study, make_study
from token_superposition.study.study_options import check_request
from token_superposition.study.sweep import Sweep
from token_superposition.study.trials import Trial, arm_trials, equal_data_steps, with_equal_data
from token_superposition.study.tuning import tune
from token_superposition.training.datasets import Corpora
from token_superposition.training.init_from import InitialModel
from token_superposition.training.preflight import check_run
from token_superposition.training.run import run_warnings

__all__ = ["Study", "build_report", "check_request", "compare", "load_study", "make_study"]


def compare(
    study: Study,
    folder: Path,
    *,
    num_seeds: int = 1,
    sweep: Sweep | None = None,
    jobs: int | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Report:
    """Train every arm at every budget with every seed, and write `report.json` and `report.html`.

    Args:
        study: the arms and budgets.
        folder: where runs and report go; started again there, the study goes on.
        num_seeds: seeds of each arm: the configuration's and those after it.
        sweep: values to try first, so that each arm is compared at its own best.
        jobs: runs at once; as the machine bears, without it.
        quiet: no progress on standard error.
        command: what to type for the same again, for the report.

    Returns:
        The report, which is also in the folder.

    Raises:
        UserError: where an arm could not run, or another process is at work in the folder.
    """
    ready = make_ready(study, folder, num_seeds=num_seeds, jobs=jobs, quiet=quiet)
    study, trials, longer = ready.study, ready.trials, ready.longer
    _warn_all(ready.odd)
    tuned = None
    with _alone(folder):
        if sweep is None:
            runs_at_once = train_trials(trials, range(num_seeds), branches=study.branches, jobs=jobs, quiet=quiet)
        else:
            tuned = tune(study, sweep, folder, num_seeds=num_seeds, jobs=jobs, quiet=quiet)
            trials, runs_at_once = tuned.trials, tuned.runs_at_once
            # What a value of the sweep brought.
            _warn_all([text for text in what_is_odd_in(trials, ready.sources) if text not in ready.odd])
        report = build_report(study, trials, num_seeds, longer)
        more: dict[str, Any] = {"runs_at_once": runs_at_once}
        if tuned is not None:
            more["sweep"] = SweepReport.model_validate(tuned.report)
        if ready.measured:
            more["mutual_information"] = {arm: found.as_dict() for arm, found in ready.measured.items()}
        if command is not None:
            more["command"] = command
        report = report.model_copy(update=more)
        write_report(report, folder)
    return report


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a study's folder, which is made if it is not there: two would train the same runs.

    Raises:
        UserError: where another process holds it.
    """
    try:
        made = make_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); name another folder") from None
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            with naming(folder):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is training this study; wait for it, or name another folder (--out)"
            ) from None
        yield
    finally:
        os.close(lock)
        remove_empty(made)


@dataclass(frozen=True)
class Ready:
    """A study that can be trained.

    Attributes:
        study: with slot weights measured.
        sources: what each arm goes on from.
        measured: on the data, for the slot weights of the arms that ask for it.
        trials: of all arms, without a sweep.
        longer: steps of equal data, by arm.
        odd: what to say of the runs before they start.
    """

    study: Study
    sources: Mapping[str, InitialModel | None]
    measured: Mapping[str, MutualInformation]
    trials: list[Trial]
    longer: Mapping[str, int]
    odd: list[str]


def make_ready(study: Study, folder: Path, *, num_seeds: int, jobs: int | None, quiet: bool) -> Ready:
    """Refuse what could not run, before anything is written; arguments as in `compare`."""
    check_request(folder, num_seeds, jobs)
    study, sources, measured = _check_arms(study, None if quiet else say)
    longer = equal_data_steps(study)
    trials = with_equal_data([trial for arm in study.arms for trial in arm_trials(study, arm, folder)], longer)
    return Ready(study, sources, measured, trials, longer, what_is_odd_in(trials, sources))


def _check_arms(
    study: Study, say: Callable[[str], None] | None
) -> tuple[Study, dict[str, InitialModel | None], dict[str, MutualInformation]]:
    """Refuse an arm that could not run, before any starts; returns what each goes on from, and what was measured.

    Slot weights that come from the data are measured here, once for all runs: those that begin alike have to have the
    same numbers.
    """
    verified: set[str] = set()
    arms, sources, found = {}, {}, {}
    for name, given in study.arms.items():
        data, config = given.data, given
        if verified >= set(data.folders):  # once is enough
            config = given.model_copy(update={"data": data.model_copy(update={"verify": False})})
        try:
            measured, sources[name], information = check_run(config, say)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        arms[name] = given.model_copy(update={"superposition": measured.superposition})
        verified.update(data.folders)
        if information is not None:
            found[name] = information
            if say is not None:
                say(f"{name}: {information.describe(measured.schedule().bag_size)}")
    return replace(study, arms=arms), sources, found


def what_is_odd_in(trials: Sequence[Trial], sources: Mapping[str, InitialModel | None]) -> list[str]:
    """What to say of the runs before they start."""
    said = []
    for trial in trials:
        config = trial.config
        stream = Corpora.open(config.data).stream(config, config.schedule())
        name = trial.arm if trial.alone else f"{trial.arm}, {trial.total_steps} steps"
        said += [f"{name}: {text}" for text in run_warnings(config, stream, sources[trial.arm])]
    return said


def _warn_all(texts: Sequence[str]) -> None:
    for text in texts:
        warn(text)
