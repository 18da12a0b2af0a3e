"""Runs that branch from the checkpoint of another run.

If two runs are equal up to a step, these steps need to be trained only once. The folder of the second run gets the
first run's checkpoint of that step (as hard links, which need no space) and the metrics up to the step. The second run
has its own configuration and stages. `tst train` continues such a folder like any interrupted run, with the same bits
as a run that was trained from the start. The caller must ensure that the two runs are equal up to the step.

The folder is written under a temporary name and then renamed, so it is complete or absent. `run.json` records the
parent run, so that shared steps are counted once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from token_superposition.errors import UserError
from token_superposition.files import make_folder, replace_folder, write_text
from token_superposition.training.checkpoint import branch_checkpoint, checkpoint_path, is_whole, read_state
from token_superposition.training.config import RunConfig
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import BranchPoint, RunFolder, RunRecord


def make_branch(parent: RunFolder, path: Path, step: int, config: RunConfig) -> None:
    """Make the folder of a run that starts from a checkpoint of another run.

    Args:
        parent: the other run, which may be training.
        path: folder of the new run; leftovers of a kill are replaced.
        step: completed steps of the parent's checkpoint.
        config: resolved configuration of the new run; up to `step`, its stages equal the parent's.

    Raises:
        UserError: if `path` has files that are not of a run, the parent was edited, or its checkpoint is damaged.
        FileNotFoundError: if the checkpoint does not exist.
        FileExistsError: if `path` already has a run.
    """
    source = checkpoint_path(parent.checkpoints, step)
    if source.exists() and not is_whole(source):
        raise UserError(f"{source}: this checkpoint is damaged, and {path} needs it; delete the checkpoint")
    values = {"stages": config.schedule().as_dicts(), "config": config.model_dump(mode="json")}
    state = {**read_state(source), **values}
    with _beside(path) as folder:
        lines = [line for line in read_metrics(parent.metrics_file) if line["step"] <= step and not line.get("final")]
        write_text(folder.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
        for file in parent.path.glob("tokenizer*.json"):
            shutil.copyfile(file, folder.path / file.name)
        folder.checkpoints.mkdir()
        branch_checkpoint(source, checkpoint_path(folder.checkpoints, step), state)
        _write_start(folder, parent, step, config)


def branch_diverged(parent: RunFolder, path: Path, step: int, config: RunConfig, message: str) -> None:
    """Make the folder of a run whose parent diverged before `step`; it records that the new run diverges too."""
    with _beside(path) as folder:
        folder.write_diverged(message)
        _write_start(folder, parent, step, config)


def _write_start(folder: RunFolder, parent: RunFolder, step: int, config: RunConfig) -> None:
    record = parent.read_record()
    if record is None:
        raise FileNotFoundError(parent.config_file)
    branch = BranchPoint(record.id, step)
    new = RunRecord.new(config.schedule(), record.data_fingerprint, branch=branch)
    folder.write_start(config.model_dump(mode="json"), new)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[RunFolder]:
    """Yield a temporary folder that replaces `path` when the block ends, and is deleted when the block raises."""
    RunFolder(path).check_place()
    if RunFolder(path).config_file.exists():
        raise FileExistsError(errno.EEXIST, "this folder already has a run", str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        yield RunFolder(temporary)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
