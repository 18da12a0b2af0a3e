"""A study's runs, trained in the test's own process: one of their own takes seconds to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from token_superposition.study import runner as queue
from token_superposition.study.job import Job
from token_superposition.training import logger as record
from token_superposition.training.config import load_config
from token_superposition.training.loop import train


def train_here(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on runs are trained here, one after another. Returns their names, as they are trained."""
    trained: list[str] = []

    def run_jobs(jobs: Sequence[Job], **_: Any) -> None:
        waiting = [job for job in jobs if not job.done]
        while waiting:
            job = next(job for job in waiting if job.ready)
            waiting.remove(job)
            job.prepare()
            trained.append(job.name)
            train(load_config(job.config), job.folder, quiet=True)

    patch.setattr(queue, "run_jobs", run_jobs)
    patch.setattr(record, "matrix_peak", lambda *_: 1e9)
    return trained
