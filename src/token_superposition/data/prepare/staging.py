"""The workplace: a hidden folder beside the output, in which everything is made, and which takes its place.

So an output folder is complete or not there. A process holds a lock on the workplace while it works; a killed
one leaves its workplace, but not its lock, to the next.

What is finished stays finished. For each piece that was encoded lies here a file that names its runs, written
whole or not at all; `plan.json` says for what. A process that is to do just the same (the same sources by
size and time, the same settings and tokenizer; the number of processes is no matter, nor whether bad documents
are skipped) goes on with what it finds, any other begins anew. The workplace is kept where the work stopped
(somebody stopped it, a disk was full, a document was bad) when one piece of several was finished.
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
    "the disk is full; preparing needs room for the tokens twice (of copies: three times), at 2 or 4 bytes each"
)
_ON = "make room and start it again: it goes on where it stopped"


class Workplace:
    """Make it with `open_workplace`.

    Attributes:
        path: the folder.
        lock: the descriptor that holds the lock.
        keep: whether the folder is to stay where the work is stopped.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.lock = lock
        self.keep = False

    def plan(self, plan: dict[str, Any], keep: set[str], *, with_bad: bool) -> dict[int, dict[str, Any]]:
        """Say what is going to be done; returns the results, by number, of pieces that are finished already.

        Args:
            plan: what is going to be done.
            keep: files that stay.
            with_bad: whether pieces in which something bad was skipped count as finished.

        What else is in the folder is removed, but for the files named in `keep`, and the tokenizer where it is of the
        same plan.
        """
        fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        finished: dict[int, dict[str, Any]] = {}
        whole = set(keep)
        if self._read(self.path / _PLAN_FILE).get("fingerprint") == fingerprint:
            whole |= set(TOKENIZER_FILES)
            for file in sorted(self.path.glob("piece-*.json")):
                result = self._read(file)
                with contextlib.suppress(LookupError, TypeError, ValueError):  # damaged: done again
                    whole_runs = all(Run(**run).is_whole(self.path) for run in result["runs"])
                    if whole_runs and (with_bad or result["skipped"]["first"] is None):
                        finished[int(file.stem.removeprefix("piece-"))] = result
        whole |= {path.name for number in finished for path in self._files(number, finished[number])}
        self.clear(keep=whole)
        write_json(self.path / _PLAN_FILE, {"fingerprint": fingerprint})
        return finished

    def finish(self, number: int, result: dict[str, Any]) -> None:
        """Note a piece's result."""
        write_json(self._result_file(number), result, durable=False)  # what it names is checked when it is read

    def clear(self, keep: set[str]) -> None:
        """Remove everything, but for some files."""
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
    """The workplace of an output folder, locked; `complete` ends the work.

    Raises:
        UserError: where it cannot be made, another process has it, or the disk is full.
    """
    final = Path(os.path.realpath(out))  # through a link, so that the work is done on the disk it leads to
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
            error.filename = str(out)  # nobody has heard of the hidden one
        if error.errno not in _FULL:
            raise
        raise UserError(f"{out}: {_FULL_DISK}{f'; {_ON}' if path.exists() else ''}") from None
    finally:
        os.close(lock)


def complete(workplace: Workplace, out: Path, keep: set[str]) -> None:
    """Remove what was only for the work, and give the workplace the output's name."""
    workplace.clear(keep)
    replace_folder(workplace.path, Path(os.path.realpath(out)))
