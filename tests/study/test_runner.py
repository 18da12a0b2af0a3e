"""The processes that a study's runs are trained in: what each of them is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from token_superposition.schedule import Schedule
from token_superposition.study import runner as workers
from token_superposition.study.job import Job
from token_superposition.study.resources import Share
from token_superposition.study.runner import run_jobs
from token_superposition.training.config import parse_config
from token_superposition.training.run_folder import RunFolder, RunRecord


class Started:
    """Stands for the processes: all of them, in order, with their environments."""

    def __init__(self, turns: dict[str, int] | None = None) -> None:
        self.turns = turns or {}  # how often a run is still found training; once without
        self.environments: dict[str, dict[str, str]] = {}

    def __call__(self, command: list[str], *, env: dict[str, str], **_: Any) -> Process:
        name = Path(command[command.index("--out") + 1]).name
        self.environments[name] = env
        return Process(self.turns.get(name, 1))

    @property
    def devices(self) -> dict[str, str | None]:
        return {name: each.get("CUDA_VISIBLE_DEVICES") for name, each in self.environments.items()}


class Process:
    """One that ends well after so many looks."""

    returncode = 0

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def poll(self) -> int | None:
        self.turns -= 1
        return None if self.turns >= 0 else 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(workers.time, "sleep", lambda _: None)
    processes = Started()
    monkeypatch.setattr(workers.subprocess, "Popen", processes)
    return processes


def jobs(folder: Path, names: str) -> list[Job]:
    return [Job(name, folder / f"{name}.yaml", folder / name, 8) for name in names]


def test_runs_at_once_see_a_device_each_and_a_free_one_goes_to_the_next(started: Started, tmp_path: Path) -> None:
    started.turns = {"a": 5, "b": 1, "c": 1, "d": 1}
    run_jobs(jobs(tmp_path, "abcd"), share=Share(2, 3, ("GPU-1f2e", "GPU-77aa")), quiet=True)
    assert started.devices == {"a": "GPU-1f2e", "b": "GPU-77aa", "c": "GPU-77aa", "d": "GPU-77aa"}
    assert {each["OMP_NUM_THREADS"] for each in started.environments.values()} == {"3"}


def test_more_runs_than_devices_share_them_evenly(started: Started, tmp_path: Path) -> None:
    run_jobs(jobs(tmp_path, "abcde"), share=Share(5, 1, ("2", "3")), quiet=True)
    assert started.devices == {"a": "2", "b": "3", "c": "2", "d": "3", "e": "2"}


def test_where_there_is_no_choice_runs_see_what_the_study_sees(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs(jobs(tmp_path, "a"), share=Share(1, 1), quiet=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    run_jobs(jobs(tmp_path, "b"), share=Share(1, 1), quiet=True)
    assert started.devices == {"a": None, "b": "1,2"}


@pytest.mark.parametrize(("recorded", "seen"), [("cuda:0", "0"), ("cuda", "0"), ("cuda:3", None)])
def test_a_run_that_was_started_on_another_device_finds_it_again(
    started: Started,
    small_run: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: str,
    seen: str | None,
) -> None:
    """A branch too: its folder, made before it is started, says what the run says that it begins as."""
    values = parse_config({**small_run, "train": {**small_run["train"], "device": recorded}}).model_dump(mode="json")

    def prepare(job: Job) -> None:
        job.folder.mkdir()
        RunFolder(job.folder).write_start(values, RunRecord.new(Schedule.two_phase(2, 1, 0.0), ""))

    monkeypatch.setattr(Job, "prepare", prepare)
    run_jobs(jobs(tmp_path, "a"), share=Share(2, 1, ("0", "1")), quiet=True)
    assert started.devices == {"a": seen}
