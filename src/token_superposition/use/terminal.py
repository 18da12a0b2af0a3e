"""Where generated text meets a terminal, and a prompt standard input."""

from __future__ import annotations

import io
import sys

from token_superposition.errors import UserError

# A model may write any byte. On a terminal these would move the cursor, ring the bell or change colours.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def write_piece(piece: str) -> None:
    """Show a piece of text at once; on a terminal without control characters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding shows what it can
    sys.stdout.write(piece.translate(_CONTROL) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def read_prompt() -> str:
    """All of standard input, as it is."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt -: standard input is not UTF-8 text (byte {error.start}: {error.reason})") from None
