"""Atomic checkpoints with checksums.

The tensors are saved with torch's distributed checkpoint (DCP): every rank writes its own files and computes their
checksums, and another number of ranks can load them. A checkpoint is written to a folder with a temporary name. The
last file is `manifest.json`, with the size and checksum of every file. The folder is then renamed. A checkpoint without
a manifest is incomplete. A checkpoint with a file that does not match the manifest is damaged (DCP alone would load a
flipped bit silently). Instead of an incomplete or damaged checkpoint, the previous checkpoint is used.

The metadata of DCP is a pickle, so a run folder must come from a trusted source. Use the safetensors export to share a
model.
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
from token_superposition.training.distributed import World, is_lost_peer, lost_peer

_MANIFEST = "manifest.json"
_ALWAYS = {"state.json", "tensors/.metadata"}


class DamagedCheckpointError(Exception):
    """A checkpoint is incomplete or does not match its manifest; the message names the file."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` completed steps."""
    return folder / f"step-{step:07d}"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    keep_steps: Collection[int] = (),
    world: World | None = None,
) -> Path:
    """Write a checkpoint, then delete all checkpoints except the newest `keep` and those of `keep_steps`.

    Args:
        folder: the run's checkpoint folder.
        step: completed optimizer steps.
        tensors: nested dictionaries of tensors, for DCP.
        state: all other state, which must be serializable as JSON.
        keep: number of newest checkpoints to keep, including this one.
        keep_steps: steps whose checkpoints are also kept.
        world: the ranks of the run, which all call this function; None for one process.

    Raises:
        CheckpointError: on every rank, if any rank cannot write; earlier checkpoints do not change.
    """
    world = world or World()
    final = checkpoint_path(folder, step)
    temporary = folder / f".{final.name}.tmp"
    try:
        world.on_main(lambda: _make_empty(temporary, final))
        entries = _write_tensors(temporary, final, tensors, world)
        world.on_main(lambda: _complete(temporary, final, step, state, entries))
    except BaseException:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.is_main:
        discard_old(folder, keep, keep_steps)
    return final


def _make_empty(temporary: Path, final: Path) -> None:
    with _writing(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)


def _write_tensors(temporary: Path, final: Path, tensors: dict[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """Write the tensors on all ranks; returns size and checksum of every file by its name in the checkpoint."""
    with world.together(), _writing(final), _quiet_dcp():
        if not temporary.is_dir():
            raise UserError(f"{temporary.parent}: this machine does not see the run folder; share it between machines")
        if world.group is None:
            dcp_save(tensors, checkpoint_id=temporary / "tensors", no_dist=True)
        else:
            dcp_save(tensors, checkpoint_id=temporary / "tensors", process_group=world.group)
        written = (temporary / "tensors").glob(f"__{world.rank}_*")
        files = [*written, *([temporary / "tensors" / ".metadata"] if world.is_main else [])]
        entries = {str(file.relative_to(temporary)): _synced_entry(file) for file in files}
    return {name: entry for part in world.gather(entries) for name, entry in part.items()}


def _complete(
    temporary: Path, final: Path, step: int, state: dict[str, Any], entries: dict[str, dict[str, Any]]
) -> None:
    """Write the state and the manifest, and give the checkpoint its name."""
    with _writing(final):
        write_json(temporary / "state.json", state)
        files = {**entries, "state.json": _synced_entry(temporary / "state.json")}
        write_json(temporary / _MANIFEST, {"step": step, "files": dict(sorted(files.items()))})
        sync_folder(temporary)
        replace_folder(temporary, final)


def _synced_entry(file: Path) -> dict[str, Any]:
    _sync_file(file)
    return {"bytes": file.stat().st_size, "blake2b": _digest(file)}


@contextlib.contextmanager
def _writing(final: Path) -> Iterator[None]:
    """Raise errors of the disk inside the block as CheckpointError that names the checkpoint."""
    try:
        yield
    except CheckpointException as error:  # DCP's, no Exception; wraps also KeyboardInterrupt
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from None
        lost = next((cause for cause in causes if is_lost_peer(cause)), None)
        if lost is not None:
            raise lost_peer(lost) from error
        raise CheckpointError(could_not_write(final, *causes)) from error
    except OSError as error:
        raise CheckpointError(could_not_write(final, error)) from error


def branch_checkpoint(source: Path, target: Path, state: dict[str, Any]) -> None:
    """Copy a checkpoint for another run, with another state; files are hard links if the file system has them.

    Args:
        source: an intact checkpoint; it may be deleted later without an effect on the copy.
        target: the folder of the copy, which must not exist.
        state: the state of the copy.
    """
    shutil.copytree(source, target, copy_function=_link)
    manifest = json.loads((source / _MANIFEST).read_text(encoding="utf-8"))
    # write_json replaces these two files instead of changing them, so the files of `source` do not change.
    file = target / "state.json"
    write_json(file, state)
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "blake2b": _digest(file)}
    write_json(target / _MANIFEST, manifest)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, including damaged ones."""
    return [_step_of(path) for path in _all_checkpoints(folder)]


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint exists and matches its manifest; this reads all its files."""
    try:
        _check(checkpoint)
    except DamagedCheckpointError:
        return False
    return True


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint, or None, and messages about newer checkpoints that are damaged."""
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
    """Delete all checkpoints except the newest `keep` and those of `keep_steps`.

    Errors are ignored: a newer checkpoint exists, and the next call tries the deletion again.
    """
    for old in _all_checkpoints(folder)[:-keep]:
        if _step_of(old) not in keep_steps:
            shutil.rmtree(old, ignore_errors=True)


def discard_newer(folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`; they are damaged, and would count among the newest that are kept.

    Temporary folders that a kill left behind are deleted too.
    """
    for path in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.replaced")):
        shutil.rmtree(path, ignore_errors=True)
    for path in _all_checkpoints(folder):
        if _step_of(path) > step:
            shutil.rmtree(path)


def load_checkpoint(path: Path, tensors: dict[str, Any], world: World | None = None) -> dict[str, Any]:
    """Read the tensors of a checkpoint into `tensors`, in place, and return the checkpoint's state.

    Each rank reads the parts that it holds, whatever number of ranks wrote the checkpoint.

    Raises:
        UserError: if the checkpoint belongs to another model.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        with _quiet_dcp():
            if world is None or world.group is None:
                dcp_load(tensors, checkpoint_id=path / "tensors", no_dist=True)
            else:
                dcp_load(tensors, checkpoint_id=path / "tensors", process_group=world.group)
    except CheckpointException as error:
        causes = "; ".join(str(cause) for cause, _ in error.failures.values())
        raise UserError(
            f"{path}: does not match the model in the run's config.yaml ({' '.join(causes.split())[:200]}); "
            "restore config.yaml"
        ) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, without its tensors."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


@contextlib.contextmanager
def _quiet_dcp() -> Iterator[None]:
    """Suppress DCP's warning that there is no process group, because a run may have one process."""
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
            raise ValueError("the manifest lacks files that every checkpoint has")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DamagedCheckpointError(f"{path}: has no readable {_MANIFEST}, so it is incomplete") from None
    for name, (num_bytes, digest) in files.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpointError(f"{file}: is missing")
        if file.stat().st_size != num_bytes:
            raise DamagedCheckpointError(f"{file}: has {file.stat().st_size} bytes, but {num_bytes} in its manifest")
        if _digest(file) != digest:
            raise DamagedCheckpointError(f"{file}: its content does not match its checksum")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the target is on another file system, or the file system has no hard links
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
    """The error for a run whose checkpoints are all damaged."""
    return UserError(
        f"{folder}: every checkpoint is damaged ({complaints[0]}); delete the run folder to train again from the start"
    )
