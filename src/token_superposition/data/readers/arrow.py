"""Read Arrow files (extra `parquet`): columns of text, and folders that `datasets` wrote with `save_to_disk`.

A saved `Dataset` is a folder with state.json, which names its .arrow files in order. A saved `DatasetDict` is a folder
with dataset_dict.json and a saved `Dataset` for each split; its split `train` is read unless another split is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from token_superposition.data.readers.document import (
    SKIP_HINT,
    Document,
    Piece,
    ReadOptions,
    Skipped,
    dotted_names,
    is_too_long,
    no_column,
    path_of,
)
from token_superposition.errors import UserError
from token_superposition.files import read_object

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_AGAIN = "save the dataset again"
_MAGIC = b"ARROW1"  # the first bytes of a file with an index; a file without them is a stream of batches


def is_saved(folder: str) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any(Path(folder, name).is_file() for name in (_STATE, _SPLITS))


def saved_files(folder: str, split: str | None) -> list[str]:
    """Return the .arrow files of a saved dataset, in order.

    Raises:
        UserError: if a split or a file is missing.
    """
    place = Path(folder)
    is_split = (place / _SPLITS).is_file()
    if is_split:
        splits = read_object(place / _SPLITS, _AGAIN).get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise UserError(f"{place / _SPLITS}: names no splits; {_AGAIN}")
        wanted = split or ("train" if len(splits) > 1 else splits[0])
        if wanted not in splits:
            listed = ", ".join(splits)
            raise UserError(f"{folder}: has no split {wanted!r} (splits: {listed}); write hf:{folder}:{splits[0]}")
        place = place / Path(wanted).name
    try:
        state = read_object(place / _STATE, _AGAIN)
    except FileNotFoundError:
        raise UserError(f"{place / _STATE}: is missing; {_AGAIN}") from None
    if split is not None and not is_split and split != (state.get("_split") or "train"):
        raise UserError(f"{folder}: is a saved dataset without splits; name it without {split!r}")
    listed_files = state.get("_data_files")
    names = [each.get("filename") for each in listed_files] if isinstance(listed_files, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place / _STATE}: names no data files; {_AGAIN}")
    if state.get("_indices_data_files"):
        raise UserError(f"{place}: was saved by an old version of datasets, with its rows chosen by an index; {_AGAIN}")
    paths = [place / Path(name).name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: is missing, but {place / _STATE} names it; {_AGAIN}")
    return list(map(str, paths))


def read_arrow(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """Yield the documents of an .arrow file, one per row."""
    (path,) = piece.files
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading arrow needs an extra: pip install 'token-superposition[parquet]'") from None
    row = 0
    try:
        with Path(path).open("rb") as file:
            for batch in _batches(file):
                names = column_of(batch.schema, path, reading.text_key)
                for text in texts_of(column_in(batch, names)):
                    if is_good(text, f"{path}:{row}", reading, skipped):
                        yield Document(text, f"{path}:{row}")
                    row += 1
                skipped.bytes_done = file.tell()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{path}: is not arrow, or is cut short or damaged after row {row} ({reason}); fix it, {SKIP_HINT}"
        reading.bad(skipped, "files_damaged", message)


def _batches(file: Any) -> Iterator[Any]:
    import pyarrow

    is_indexed = file.read(len(_MAGIC)) == _MAGIC
    file.seek(0)
    if is_indexed:
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(file)


def column_of(schema: Any, path: str, text_key: str) -> list[str]:
    """Return the path of names to the text column: one name, or several names for a nested column.

    Raises:
        UserError: if there is no such column, if there are several, or if the column does not hold text.
    """
    import pyarrow

    columns = _nested(schema)
    try:
        names = path_of(columns, text_key)
    except KeyError:
        raise UserError(no_column(path, text_key, dotted_names(columns))) from None
    kind = schema
    for name in names:
        fields = [field for field in kind if field.name == name]
        if len(fields) > 1:
            raise UserError(f"{path}: has {len(fields)} columns {name!r}; give each column its own name")
        kind = fields[0].type
    if pyarrow.types.is_struct(kind):
        found = ", ".join(f"{text_key}.{field.name}" for field in kind)
        raise UserError(f"{path}: column {text_key!r} holds other columns; name one of them with --text-key ({found})")
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view", "null"):
        raise UserError(f"{path}: column {text_key!r} is {kind}, not string")
    return names


def _nested(fields: Any) -> dict[str, Any]:
    import pyarrow

    return {each.name: _nested(each.type) if pyarrow.types.is_struct(each.type) else None for each in fields}


def column_in(batch: Any, names: list[str]) -> Any:
    """Return the column of a batch at the path `names`."""
    column = batch.column(names[0])
    for name in names[1:]:
        column = column.flatten()[column.type.get_field_index(name)]  # an outer null gives null
    return column


def texts_of(column: Any) -> Iterator[bytes]:
    """Yield the values of a column of strings as bytes; a null is empty."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if str(column.type) == "string_view":
        column = column.cast(pyarrow.large_string())
    column = column.cast(pyarrow.large_binary())  # at most new offsets; the texts are not copied
    if column.null_count:
        column = column.fill_null(b"")
    _, ends, data = column.buffers()
    if data is None:  # all values are empty
        yield from [b""] * len(column)
        return
    places = np.frombuffer(ends, dtype=np.int64)[column.offset :][: len(column) + 1].tolist()
    text = memoryview(data)
    for start, stop in itertools.pairwise(places):
        yield bytes(text[start:stop])


def is_good(text: bytes, origin: str, reading: ReadOptions, skipped: Skipped) -> bool:
    """Return whether a value is UTF-8 and not too long."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{origin}: is not UTF-8 (byte {error.start} of the text)"
        reading.bad(skipped, "documents_not_utf8", message)
        return False
    return not is_too_long(len(text), origin, reading, skipped)
