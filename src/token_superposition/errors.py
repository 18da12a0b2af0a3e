"""What is said instead of a traceback, each in one line.

The command line turns a `UserError` into a single line on standard error and exit code 2, without a
traceback. Its text says what is wrong, where (file, line, key, value) and how to mend it. A `RunError` is a
run that cannot go on though its input is right: one line too, exit code 1. What the machine refuses (a full
disk, a folder that may not be written, memory that is not there) comes up as Python's own exceptions from
wherever it happens, and `machine_trouble` is the one place that puts it into words. Whatever else is raised
is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable

_SPACE = "make room there, or name another place"
_RIGHTS = "allow it, or name another place"
_PATH = "name another place"
_DISK = "see what is wrong with the disk"

# What a person can mend, and how. Any other error number is for us to understand.
_MENDS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or name another place",
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
    errno.ENOLCK: "its file system knows no locks; name another place",
    errno.EOPNOTSUPP: "its file system cannot do that; name another place",
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
_QUOTED = re.compile(r"(?<!\w)(['\"])((?:(?!\1)[^/]){81,})\1(?!\w)")  # no path: the user has to see all of that
_LONG_WORD = re.compile(r"\S{501,}")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """What the user gave cannot be used; the message is one line for them to read."""


class RunError(Exception):
    """A run cannot go on, and no input is wrong; the message is one line. Exit code 1."""


class TrainingDivergedError(RunError):
    """Losses, gradients or weights are no longer numbers; the message names the step."""


class CheckpointError(RunError):
    """A checkpoint could not be written, such as onto a full disk; the message says where and why."""


class RunFailedError(RunError):
    """A run of a study ended by a fault of its own; the message names its log."""


def machine_trouble(error: BaseException) -> str | None:
    """What the machine refused, in one line that names the file; None for an error that is not of that kind."""
    if isinstance(error, OSError) and error.errno in _MENDS:
        # What is raised by writing to an open file does not know its name; see files.naming.
        where = f"{error.filename}: " if error.filename not in (None, "") else ""
        return f"{where}{error.strerror or type(error).__name__}; {_MENDS[error.errno]}"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        name = shortened(error.object)
        return f"{name!r}: the encoding of this system's file names is {error.encoding}; set PYTHONUTF8=1"
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); a smaller train.micro_batch_size, sequence or model needs less"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or its accelerator, has no more memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(text: str) -> str:
    """A message as one line of a length that people read.

    Line breaks and other characters that a terminal would act on are written out, as in `\\n`. A quoted value is cut to
    80 characters, and any other word, such as the path of a file, to 500.
    """
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS // 2]} ... {text[-_MOST_CHARACTERS // 4 :]}"
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.strip())
    line = _QUOTED.sub(lambda found: f"{found[1]}{shortened(found[2])}{found[1]}", line)
    return _LONG_WORD.sub(lambda found: shortened(found[0]), line)


def shortened(text: str, most: int = 80) -> str:
    """A value as messages show it: whole, or its first characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word nearest to `word`, or `""` where none is near."""
    near = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
