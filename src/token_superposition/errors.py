"""Errors that the command line reports in one line instead of a traceback.

    UserError         the input cannot be used; exit code 2. The message says what is wrong, where (file, line, key,
                      value) and how to fix it.
    RunError          the input is valid, but the run cannot continue; exit code 1.
    OSError and such  the machine refuses, such as a full disk, a read-only folder or missing memory; exit code 2.
                      Python raises these exceptions anywhere. `machine_trouble` alone turns them into a message.

Every other exception is a bug in this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable

_SPACE = "free disk space, or use another path"
_RIGHTS = "change the permissions, or use another path"
_PATH = "use another path"
_DISK = "check the disk"

# The errors that a user can fix, and how. An error with any other number keeps its traceback.
_FIXES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use another path",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EEXIST: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.ENOTEMPTY: _PATH,
    errno.ENAMETOOLONG: _PATH,
    errno.ELOOP: _PATH,
    errno.EXDEV: _PATH,
    errno.ETXTBSY: _PATH,
    errno.EBUSY: _PATH,
    errno.ENOLCK: "the file system does not support locks; use another path",
    errno.EOPNOTSUPP: "the file system does not support this operation; use another path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs: the machine has too many files open",
    errno.ENOMEM: "the machine is out of memory",
    errno.EAGAIN: "the machine is out of processes or memory",
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ENODEV: _DISK,
    errno.ENXIO: _DISK,
}
_MOST_CHARACTERS = 4000
_QUOTED = re.compile(r"(?<!\w)(['\"])((?:(?!\1)[^/]){81,})\1(?!\w)")  # without "/": a path has to stay complete
_LONG_WORD = re.compile(r"\S{501,}")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """The user's input cannot be used. The message is one line. Exit code 2."""


class RunError(Exception):
    """A run cannot continue, although its input is valid. The message is one line. Exit code 1."""


class TrainingDivergedError(RunError):
    """Losses, gradients or weights are NaN or infinite. The message names the step."""


class CheckpointError(RunError):
    """A checkpoint could not be written, such as onto a full disk. The message names path and reason."""


class RunFailedError(RunError):
    """A run of a study failed. The message names the log of the run."""


def machine_trouble(error: BaseException) -> str | None:
    """One line for an error of the machine, with the name of the file; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno in _FIXES:
        # An error from a write to an open file lacks the name of the file; `files.naming` adds the name.
        where = f"{error.filename}: " if error.filename not in (None, "") else ""
        return f"{where}{error.strerror or type(error).__name__}; {_FIXES[error.errno]}"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        name = shortened(error.object)
        return f"{name!r}: the encoding of this system's file names is {error.encoding}; set PYTHONUTF8=1"
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); use a smaller train.micro_batch_size, sequence length or model"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or its accelerator is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(text: str) -> str:
    """A message as one short line.

    Line breaks and other control characters are escaped, such as `\\n`. A quoted value is cut to 80 characters. Any
    other word, such as the path of a file, is cut to 500 characters.
    """
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS // 2]} ... {text[-_MOST_CHARACTERS // 4 :]}"
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.strip())
    line = _QUOTED.sub(lambda found: f"{found[1]}{shortened(found[2])}{found[1]}", line)
    return _LONG_WORD.sub(lambda found: shortened(found[0]), line)


def shortened(text: str, most: int = 80) -> str:
    """A value as messages show it: at most its first `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word most similar to `word`, or `""` if no word is similar."""
    near = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
