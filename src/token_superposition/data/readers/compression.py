"""Files as streams of bytes, whatever they are compressed with: .gz, .xz, .zst or nothing.

A stream that ends before its own end, or is damaged, raises `DamagedError` where it is read.
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
    """Compressed data is cut short or damaged; the message says which, `reason` what was found."""

    def __init__(self, compression: str, reason: str) -> None:
        super().__init__(f"the {_NAMES[compression]} data is cut short or damaged")
        self.reason = reason


def split_compression(name: str) -> tuple[str, str]:
    """A file's name in lower case without the suffix of its compression, and that suffix."""
    lower = name.lower()
    for suffix in _NAMES:
        if lower.endswith(suffix):
            return lower.removesuffix(suffix), suffix
    return lower, ""


@dataclass
class Stream:
    """Bytes out of a file.

    Attributes:
        lines: to be read, by the line too; of a plain file, it can be moved in.
    """

    lines: IO[bytes]
    _raw: IO[bytes]

    def tell(self) -> int:
        """Bytes of the file on the disk that have been read."""
        return self._raw.tell()


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[Stream]:
    """Open a file for reading; damage found while the block reads is raised as `DamagedError`.

    Raises:
        UserError: where a format needs a package that is not installed.
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
            if error.errno is not None:  # the disk's; pyarrow says damage as an OSError without a number
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

    return io.BufferedReader(Zstd(), 2**16)  # damage is found by the buffer: little before it is lost


_OPENERS: dict[str, Any] = {
    ".gz": lambda raw, _: gzip.open(raw),  # noqa: SIM115  (nothing to close but raw)
    ".xz": lambda raw, _: lzma.open(raw),  # noqa: SIM115
    ".zst": _open_zstd,
}
