"""Read Parquet files (extra `parquet`): one document per row, read by row groups and in batches of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from token_superposition.data.readers.arrow import column_in, column_of, is_good, texts_of
from token_superposition.data.readers.document import SKIP_HINT, Document, Piece, ReadOptions, Skipped
from token_superposition.errors import UserError

_BATCH_ROWS = 256  # a row may be a whole book


def row_groups(path: str) -> list[int]:
    """Return the uncompressed bytes of each row group.

    Raises:
        UserError: if the file cannot be read, or pyarrow is missing.
    """
    with _opened(path) as table:
        return [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]


def read_parquet(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """Yield the documents of the row groups of a piece."""
    (path,) = piece.files
    try:
        with _opened(path) as table:
            names = column_of(table.schema_arrow, path, reading.text_key)
            groups = range(piece.start or 0, table.num_row_groups if piece.stop is None else piece.stop)
            rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            row, total = sum(rows[: groups.start]), max(1, sum(rows[groups.start : groups.stop]))
            batches = table.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=list(groups), columns=[".".join(names)], use_threads=False
            )
            done = 0
            for batch in batches:
                for index, text in enumerate(texts_of(column_in(batch, names))):
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


class _DamagedParquetError(UserError):
    """A UserError about a damaged file, which `on_error="skip"` can skip."""


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
            f"{path}: is not parquet, or is cut short or damaged ({reason}); fix it, {SKIP_HINT}"
        ) from None
