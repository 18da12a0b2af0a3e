"""Read a prompt from standard input and write generated text to a terminal; this module needs no torch."""

from __future__ import annotations

import io
import sys

from token_superposition.errors import UserError

# A model may generate any byte. These would move the cursor of a terminal, ring its bell or change its colours.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def write_piece(piece: str) -> None:
    """Write a piece of text to standard output at once; on a terminal without control characters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal with another encoding shows the characters that it has
    sys.stdout.write(piece.translate(_CONTROL) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def read_prompt() -> str:
    """Read the prompt from standard input; UserError if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt -: standard input is not UTF-8 text (byte {error.start}: {error.reason})") from None
