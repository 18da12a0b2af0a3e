"""The exceptions that are one line for the user to read.

The command line turns a `UserError` into a single line on standard error and exit code 2, without a
traceback. Its text says what is wrong, where (file, line, key, value) and how to mend it. A `RunError` is a run
that cannot go on though its input is right: one line too, exit code 1. Whatever else is raised is a fault of
ours, or of the machine, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user gave cannot be used; the message is one line for them to read."""


class RunError(Exception):
    """A run cannot go on, and no input is wrong; the message is one line. Exit code 1."""


class TrainingDivergedError(RunError):
    """Losses, gradients or weights are no longer numbers; the message names the step."""


class CheckpointError(RunError):
    """A checkpoint could not be written, such as onto a full disk; the message says where and why."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word nearest to `word`, or `""` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
