"""The one exception that stands for a user's mistake.

The command line turns a `UserError` into a single line on standard error and exit code 2, without a
traceback. Its text says what is wrong, where (file, line, key, value) and how to mend it. Whatever else is
raised is a fault of ours, or of the machine, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user gave cannot be used; the message is one line for them to read."""


class TrainingDivergedError(Exception):
    """A loss or a gradient is no longer a number; the message is one line and names the step."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word nearest to `word`, or `""` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
