"""Parquet (extra `parquet`): a document a row, by row groups, a batch of rows at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from token_superposition.data.sources.document import (
    SKIP_HINT,
    Document,
    Piece,
    Reading,
    Skipped,
    is_too_long,
    no_column,
)
from token_superposition.errors import UserError

_BATCH_ROWS = 256  # a row may be a whole book


def row_groups(path: str) -> list[int]:
    """Bytes of each row group, as they will be in memory.

    Raises:
        UserError: where the file cannot be read, or pyarrow is missing.
    """
    with _opened(path) as table:
        return [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]


def read_parquet(piece: Piece, reading: Reading, skipped: Skipped) -> Iterator[Document]:
    """The documents of some row groups."""
    (path,) = piece.files
    try:
        with _opened(path) as table:
            check_column(table.schema_arrow, path, reading.text_key)
            groups = range(piece.start or 0, table.num_row_groups if piece.stop is None else piece.stop)
            rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            row, total = sum(rows[: groups.start]), max(1, sum(rows[groups.start : groups.stop]))
            batches = table.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=list(groups), columns=[reading.text_key], use_threads=False
            )
            done = 0
            for batch in batches:
                for index, text in enumerate(texts_of(batch.column(reading.text_key))):
                    origin = f"{path}:{row + index}"
                    if is_good(text, origin, reading, skipped):
                        yield Document(text, origin)
                row += len(batch)
                done += len(batch)
                skipped.bytes_done = piece.size * done // total
    except UserError as error:
        if not isinstance(error, _DamagedParquetError):
            raise
        reading.bad(skipped, "files_damaged", str(error))


def texts_of(column: Any) -> Iterator[bytes]:
    """The values of a column of strings, as they are on the disk; a null is empty."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if str(column.type) == "string_view":
        column = column.cast(pyarrow.large_string())
    column = column.cast(pyarrow.large_binary())  # new offsets at most: the texts stay where they are
    if column.null_count:
        column = column.fill_null(b"")
    _, ends, data = column.buffers()
    if data is None:  # nothing but empty ones
        yield from [b""] * len(column)
        return
    places = np.frombuffer(ends, dtype=np.int64)[column.offset :][: len(column) + 1].tolist()
    text = memoryview(data)
    for start, stop in itertools.pairwise(places):
        yield bytes(text[start:stop])


def is_good(text: bytes, origin: str, reading: Reading, skipped: Skipped) -> bool:
    """Whether a value is UTF-8 and not too long."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{origin}: is not UTF-8 (byte {error.start} of the text)"
        reading.bad(skipped, "documents_not_utf8", message)
        return False
    return not is_too_long(len(text), origin, reading, skipped)


def check_column(schema: Any, path: str, text_key: str) -> None:
    """Raise `UserError` where a schema has no column of text of that name."""
    import pyarrow

    if text_key not in schema.names:
        raise no_column(path, text_key, schema.names)
    kind = schema.field(text_key).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view", "null"):
        raise UserError(f"{path}: column {text_key!r} is {kind}, not string")


class _DamagedParquetError(UserError):
    """Said in one line like any other, but what is damaged can be skipped."""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs an extra: pip install 'token-superposition[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _DamagedParquetError(
            f"{path}: is not parquet, or is cut short or damaged ({reason}); mend it, {SKIP_HINT}"
        ) from None
