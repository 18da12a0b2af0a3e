"""Paths as people write them, in options and in configuration files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from token_superposition.errors import UserError, shortened


def user_path(text: str) -> Path:
    """The path that a text names; `~` and `~user` stand for home folders.

    Raises:
        UserError: for an empty text, a home folder that is not known, or characters that this system's file names
            cannot have.
    """
    if not text or "\0" in text:
        raise UserError("the path of a folder is needed")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        name = shortened(text.partition("/")[0])
        raise UserError(f"the home folder {name!r} is not known; write ./{name} for a folder of that name") from None
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{shortened(text)!r} has characters that file names cannot have here, because their encoding is "
            f"{error.encoding}; set PYTHONUTF8=1"
            if sys.getfilesystemencoding() != "utf-8"
            else f"{shortened(text)!r} is not text that a file name can have"
        ) from None
    return path


def expanded(text: str) -> str:
    """A word that may be a path or something else, such as the name of a tokenizer, with `~` replaced."""
    return str(user_path(text)) if text.startswith("~") else text
