"""Checkpoints that are whole or not there.

Tensors go through torch's distributed checkpoint (DCP), which needs no process group on one process and
reshards on several. A checkpoint is filled in a folder with a temporary name; last comes `manifest.json`
with every file's size and checksum, then the folder takes its name. No manifest, no checkpoint; a file
that does not fit its manifest (DCP itself would load a flipped bit silently) makes the checkpoint damaged,
and the one before it is used.

DCP's metadata is a pickle: run folders are trusted state. What people exchange is the safetensors export.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from token_superposition.errors import CheckpointError, UserError
from token_superposition.files import could_not_write, replace_folder, sync_folder, write_json

_MANIFEST = "manifest.json"
_ALWAYS = {"state.json", "tensors/.metadata"}


class DamagedCheckpointError(Exception):
    """A checkpoint that is incomplete or does not fit its manifest; the message says where."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` completed steps lies."""
    return folder / f"step-{step:07d}"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    keep_steps: Collection[int] = (),
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` and those of `keep_steps`.

    Args:
        folder: the run's checkpoint folder.
        step: completed optimizer steps.
        tensors: nested dictionaries of tensors, for DCP.
        state: everything else, JSON-able.
        keep: how many checkpoints stay, this one included.
        keep_steps: steps whose checkpoints stay besides.

    Raises:
        CheckpointError: where it cannot be written; what was there before stays as it was.
    """
    final = checkpoint_path(folder, step)
    try:
        _write(folder, final, step, tensors, state)
    except CheckpointException as error:  # DCP's own, no Exception; wraps whatever was raised, a Ctrl-C too
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        raise CheckpointError(could_not_write(final, *causes)) from error
    except OSError as error:
        raise CheckpointError(could_not_write(final, error)) from error
    discard_old(folder, keep, keep_steps)
    return final


def _write(folder: Path, final: Path, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _one_process():
            dcp_save(tensors, checkpoint_id=temporary / "tensors", no_dist=True)
        write_json(temporary / "state.json", state)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for file in files:
            _sync_file(file)
        manifest = {
            "step": step,
            "files": {
                str(file.relative_to(temporary)): {"bytes": file.stat().st_size, "blake2b": _digest(file)}
                for file in files
            },
        }
        write_json(temporary / _MANIFEST, manifest)
        sync_folder(temporary)
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def branch_checkpoint(source: Path, target: Path, state: dict[str, Any]) -> None:
    """The checkpoint `source` for another run: the same files (hard links where the disk has them), another state.

    Args:
        source: a whole checkpoint; it may go while the other stays.
        target: where the other is to be; nothing is there yet.
        state: what takes the place of its state.
    """
    shutil.copytree(source, target, copy_function=_link)
    manifest = json.loads((source / _MANIFEST).read_text(encoding="utf-8"))
    # Both are written anew under a name of their own and renamed: the links' other ends stay as they are.
    file = target / "state.json"
    write_json(file, state)
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "blake2b": _digest(file)}
    write_json(target / _MANIFEST, manifest)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that there are checkpoints of, whole or not."""
    return [_step_of(path) for path in _all_checkpoints(folder)]


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is there and fits its manifest; it is read to find out."""
    try:
        _check(checkpoint)
    except DamagedCheckpointError:
        return False
    return True


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those newer than it."""
    complaints = []
    for path in reversed(_all_checkpoints(folder)):
        try:
            _check(path)
        except DamagedCheckpointError as error:
            complaints.append(str(error))
            continue
        return path, complaints
    return None, complaints


def discard_old(folder: Path, keep: int, keep_steps: Collection[int] = ()) -> None:
    """Remove all checkpoints but the newest `keep` and those of `keep_steps`.

    One that cannot be removed stays: it is older than a good one, and is removed with the next.
    """
    for old in _all_checkpoints(folder)[:-keep]:
        if _step_of(old) not in keep_steps:
            shutil.rmtree(old, ignore_errors=True)


def discard_newer(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`: damaged ones, which would count among the newest that are kept.

    What a kill left of checkpoints that were being written or replaced is removed too.
    """
    for path in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.replaced")):
        shutil.rmtree(path, ignore_errors=True)
    for path in _all_checkpoints(folder):
        if _step_of(path) > step:
            shutil.rmtree(path)


def load_checkpoint(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's tensors into `tensors`, in place, and return its state.

    Raises:
        UserError: where they are of another model.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        with _one_process():
            dcp_load(tensors, checkpoint_id=path / "tensors", no_dist=True)
    except CheckpointException as error:
        causes = "; ".join(str(cause) for cause, _ in error.failures.values())
        raise UserError(
            f"{path}: does not fit the model of the run's config.yaml ({' '.join(causes.split())[:200]}); "
            "put that file back as it was"
        ) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state, without its tensors."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Without DCP's warning that there is no process group: that is what we ask for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _all_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint folder, oldest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _check(path: Path) -> None:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["blake2b"]) for name, entry in manifest["files"].items()}
        if not files.keys() >= _ALWAYS:
            raise ValueError("it does not name what every checkpoint has")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DamagedCheckpointError(f"{path}: has no readable {_MANIFEST}, so it is incomplete") from None
    for name, (num_bytes, digest) in files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"{file}: is missing")
        if file.stat().st_size != num_bytes:
            raise DamagedCheckpointError(f"{file}: has {file.stat().st_size} bytes, its manifest says {num_bytes}")
        if _digest(file) != digest:
            raise DamagedCheckpointError(f"{file}: its content does not fit its checksum")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that knows no links
        shutil.copyfile(source, target)
        _sync_file(Path(target))


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_whole_checkpoint(folder: Path, complaints: list[str]) -> UserError:
    """What to say where a run's every checkpoint is damaged."""
    return UserError(
        f"{folder}: every checkpoint is damaged ({complaints[0]}); remove the run folder to train again from the start"
    )
