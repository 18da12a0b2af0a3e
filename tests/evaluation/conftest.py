"""A small run as it is when done, in the middle of its recovery and in superposition, and its export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import small_run_on
from token_superposition.evaluation.export import export
from token_superposition.evaluation.load import UsableModel, load_model
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train

CPU = torch.device("cpu")


def stopped_after(step: int, run: Path, folder: Path) -> Path:
    """The run as it was after that step (a checkpoint of its: 3, 6, 9; superposition lasts until step 6)."""
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    return folder


@pytest.fixture(scope="session")
def done_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(parse_config(small_run_on(small_data)), folder, quiet=True)
    return folder


@pytest.fixture
def unfinished_run(done_run: Path, tmp_path: Path) -> Path:
    return stopped_after(9, done_run, tmp_path / "unfinished")


@pytest.fixture
def superposed_run(done_run: Path, tmp_path: Path) -> Path:
    return stopped_after(6, done_run, tmp_path / "superposed")


@pytest.fixture(scope="session")
def exported(done_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "small"
    export(done_run, folder)
    return folder


@pytest.fixture
def loaded(done_run: Path) -> UsableModel:
    return load_model(done_run, device=CPU)
