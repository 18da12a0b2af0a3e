"""The workplace: a hidden folder next to the output folder, which is renamed to the output folder at the end.

The output folder is therefore either complete or does not exist. A process holds a lock on the workplace while it
works. A killed process leaves its workplace to the next process, but not its lock.

Finished pieces stay finished. Each encoded piece has a file in the workplace that names its runs and is written
atomically. `plan.json` identifies the work. A process with the same work (the same sources by size and time, the same
settings and tokenizer) continues with the finished pieces; every other process starts again from nothing. The number of
processes and the skipping of bad documents do not matter for this. The workplace is kept if the work stops (an
interrupt, a full disk, a bad document) after at least one of several pieces was finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from token_superposition.data.prepare.spill import Run
from token_superposition.data.tokenizers import TOKENIZER_FILES
from token_superposition.errors import UserError
from token_superposition.files import make_folder, read_object, remove_empty, replace_folder, write_json

_PLAN_FILE = "plan.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK = (
    "the disk is full; preparing needs space for the tokens twice (for copies: three times), at 2 or 4 bytes each"
)
_ON = "free some space and start the command again: it continues where it stopped"


class Workplace:
    """The folder of a preparation; create it with `open_workplace`.

    Attributes:
        path: the folder.
        lock: the file descriptor that holds the lock.
        keep: whether the folder stays if the work stops.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.lock = lock
        self.keep = False

    def plan(self, plan: dict[str, Any], keep: set[str], *, with_bad: bool) -> dict[int, dict[str, Any]]:
        """Write the plan of the work, and return the results of finished pieces by their number.

        All other files in the folder are removed, except the files in `keep`, and the tokenizer if the plan is the
        same.

        Args:
            plan: the plan of the work.
            keep: the names of files to keep.
            with_bad: whether pieces with skipped bad documents count as finished.
        """
        fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        finished: dict[int, dict[str, Any]] = {}
        whole = set(keep)
        if self._read(self.path / _PLAN_FILE).get("fingerprint") == fingerprint:
            whole |= set(TOKENIZER_FILES)
            for file in sorted(self.path.glob("piece-*.json")):
                result = self._read(file)
                with contextlib.suppress(LookupError, TypeError, ValueError):  # a damaged piece is encoded again
                    whole_runs = all(Run(**run).is_whole(self.path) for run in result["runs"])
                    if whole_runs and (with_bad or result["skipped"]["first"] is None):
                        finished[int(file.stem.removeprefix("piece-"))] = result
        whole |= {path.name for number in finished for path in self._files(number, finished[number])}
        self.clear(keep=whole)
        write_json(self.path / _PLAN_FILE, {"fingerprint": fingerprint})
        return finished

    def finish(self, number: int, result: dict[str, Any]) -> None:
        """Write the result of a piece."""
        write_json(self._result_file(number), result, durable=False)  # its files are checked when it is read

    def clear(self, keep: set[str]) -> None:
        """Remove all files except those in `keep`."""
        for path in self.path.iterdir():
            if path.name not in keep:
                path.unlink()

    def _files(self, number: int, result: dict[str, Any]) -> Iterator[Path]:
        yield self._result_file(number)
        for run in result["runs"]:
            yield from Run(**run).files(self.path)

    def _result_file(self, number: int) -> Path:
        return self.path / f"piece-{number:06d}.json"

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            return read_object(file, "")
        except (FileNotFoundError, UserError):
            return {}


@contextlib.contextmanager
def open_workplace(out: Path) -> Iterator[Workplace]:
    """Open and lock the workplace of an output folder; `complete` ends the work.

    Raises:
        UserError: if the workplace cannot be created, another process uses it, or the disk is full.
    """
    final = Path(os.path.realpath(out))  # resolves links, so that the work is done on the disk of the output
    path = final.with_name(f".{final.name}.preparing")
    try:
        made = make_folder(path)
        lock = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another process may have finished and renamed the folder.
            ours = path.exists() and os.path.samestat(path.stat(), os.fstat(lock))
        except BlockingIOError:
            ours = False
        if not ours:
            raise UserError(f"{out}: another process is preparing this folder; wait for it")
        workplace = Workplace(path, lock)
        try:
            yield workplace
        except BaseException:
            if not workplace.keep:
                shutil.rmtree(path, ignore_errors=True)
                remove_empty(made)
            raise
    except OSError as error:
        if str(error.filename).startswith(str(path)):
            error.filename = str(out)  # the user does not know the hidden folder
        if error.errno not in _FULL:
            raise
        raise UserError(f"{out}: {_FULL_DISK}{f'; {_ON}' if path.exists() else ''}") from None
    finally:
        os.close(lock)


def complete(workplace: Workplace, out: Path, keep: set[str]) -> None:
    """Remove the temporary files, and rename the workplace to the output folder."""
    workplace.clear(keep)
    replace_folder(workplace.path, Path(os.path.realpath(out)))
