"""Open files as streams of bytes: plain files, and files that are compressed as .gz, .xz or .zst.

A truncated or damaged stream raises `DamagedError` when it is read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from token_superposition.errors import UserError

_NAMES = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
_BUFFER = 2**20


class DamagedError(Exception):
    """Compressed data is truncated or damaged; the message names the compression, `reason` the cause."""

    def __init__(self, compression: str, reason: str) -> None:
        super().__init__(f"the {_NAMES[compression]} data is cut short or damaged")
        self.reason = reason


def split_compression(name: str) -> tuple[str, str]:
    """Return the name of a file in lower case without its compression suffix, and this suffix."""
    lower = name.lower()
    for suffix in _NAMES:
        if lower.endswith(suffix):
            return lower.removesuffix(suffix), suffix
    return lower, ""


@dataclass
class Stream:
    """The bytes of a file.

    Attributes:
        lines: the stream to read from, also by line; only the stream of a plain file supports `seek`.
    """

    lines: IO[bytes]
    _raw: IO[bytes]

    def tell(self) -> int:
        """Return the number of bytes of the file on disk that were read."""
        return self._raw.tell()


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[Stream]:
    """Open a file for reading; damage that is found inside the block raises `DamagedError`.

    Raises:
        UserError: if a format needs a package that is not installed.
    """
    compression = split_compression(path)[1]
    with Path(path).open("rb", buffering=_BUFFER) as raw:
        if not compression:
            yield Stream(raw, raw)
            return
        lines: Any = _OPENERS[compression](raw, path)
        try:
            yield Stream(lines, raw)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise DamagedError(compression, str(error) or type(error).__name__) from None
        except OSError as error:
            if error.errno is not None:  # an error of the disk; pyarrow reports damage as an OSError without a number
                raise
            raise DamagedError(compression, str(error)) from None


def _open_zstd(raw: IO[bytes], path: str) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs an extra: pip install 'token-superposition[parquet]'") from None

    class Zstd(io.RawIOBase):
        def __init__(self) -> None:
            self._stream = pyarrow.CompressedInputStream(raw, "zstd")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part: bytes = self._stream.read(len(buffer))
            buffer[: len(part)] = part
            return len(part)

    return io.BufferedReader(Zstd(), 2**16)  # the buffer finds damage, so a small buffer loses little data before it


_OPENERS: dict[str, Any] = {
    ".gz": lambda raw, _: gzip.open(raw),  # noqa: SIM115  (only raw must be closed)
    ".xz": lambda raw, _: lzma.open(raw),  # noqa: SIM115
    ".zst": _open_zstd,
}
