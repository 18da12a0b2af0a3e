"""A run that begins as another one did: its folder is made from the other's checkpoint.

Two runs that agree in everything up to a step need to be trained up to there once. The second one's folder gets the
first one's checkpoint of that step (hard links: it costs no space), the metrics up to it, and a configuration and
stages of its own. Nothing else is special about it: `tst train` goes on there as in any run that was interrupted, and
comes to the same bits as if it had been trained from the start. That the two agree is for the caller to know.

The folder is filled under another name beside its own and then renamed: it is there whole or not at all. `run.json`
says where the run comes from, so that steps are counted once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from token_superposition.errors import UserError
from token_superposition.files import is_whole_number, make_folder, replace_folder, write_text
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import branch_checkpoint, checkpoint_path, is_whole, read_state
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import RunFolder


def make_branch(parent: RunFolder, path: Path, step: int, config: dict[str, Any], schedule: Schedule) -> None:
    """Make the folder of a run that goes on from another's checkpoint.

    Args:
        parent: the other run, which may be training.
        path: the new run's folder; what a kill left there is replaced.
        step: the other's checkpoint, by its completed steps.
        config: the new run's resolved configuration.
        schedule: its stages, up to `step` those of the other.

    Raises:
        UserError: where the place holds other things than a run, the other run has been edited, or its checkpoint is
            damaged.
        FileNotFoundError: where there is no such checkpoint.
        FileExistsError: where a run has begun in the place.
    """
    source = checkpoint_path(parent.checkpoints, step)
    if source.exists() and not is_whole(source):
        raise UserError(f"{source}: this checkpoint is damaged, and {path} would begin with it; remove it")
    state = {**read_state(source), "stages": schedule.as_dicts(), "config": config}
    with _beside(path) as folder:
        lines = [line for line in read_metrics(parent.metrics_file) if line["step"] <= step and not line.get("final")]
        write_text(folder.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
        for file in parent.path.glob("tokenizer*.json"):
            shutil.copyfile(file, folder.path / file.name)
        folder.checkpoints.mkdir()
        branch_checkpoint(source, checkpoint_path(folder.checkpoints, step), state)
        _write_config(folder, parent, step, config, schedule)


def branch_diverged(
    parent: RunFolder, path: Path, step: int, config: dict[str, Any], schedule: Schedule, message: str
) -> None:
    """The same where the other run diverged before that step, as this one then does too: a folder that says so."""
    with _beside(path) as folder:
        folder.write_diverged(message)
        _write_config(folder, parent, step, config, schedule)


def branch_step(folder: RunFolder) -> int:
    """The steps that a run has from another one; 0 where it began on its own, or has not begun."""
    branch = (folder.read_fixed() or {}).get("branch")
    step = branch.get("step") if isinstance(branch, dict) else None
    return step if isinstance(step, int) and is_whole_number(step) else 0


def _write_config(folder: RunFolder, parent: RunFolder, step: int, config: dict[str, Any], schedule: Schedule) -> None:
    fixed = parent.read_fixed()
    if fixed is None:
        raise FileNotFoundError(parent.config_file)
    folder.write_config(
        config,
        {
            "id": uuid4().hex[:8],
            "stages": schedule.as_dicts(),
            "data_fingerprint": fixed["data_fingerprint"],
            "branch": {"parent": fixed["id"], "step": step},
        },
    )


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[RunFolder]:
    """A folder to fill, which takes the place of `path` when the block ends, and is gone when it raises."""
    RunFolder(path).check_place()
    if RunFolder(path).config_file.exists():
        raise FileExistsError(errno.EEXIST, "a run has begun here", str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        yield RunFolder(temporary)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
