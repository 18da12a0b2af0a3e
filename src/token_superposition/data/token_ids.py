"""Open the user's token ids for the stream: arrays, rows of token ids, and prepared folders.

A row of a dataset is a part of the text, and the next row continues the text, so the rows are read as one sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.sampler import Tokens
from token_superposition.errors import UserError

_COLUMN = "input_ids"
_FIRST_ROWS = 1000  # checked before the first batch; the other rows are checked when they are read
_HASHED = 2**24  # the maximum number of tokens in the fingerprint of a corpus


def open_tokens(ids: Any) -> Tokens:
    """Return the tokens that the stream reads.

    Args:
        ids: the path of a prepared folder (its training split), a `TokenDataset`, a numpy array (also a memory map) or
            a tensor of integers (N,) or (rows, N), a list of rows of token ids of the same length, or a Hugging Face
            `datasets.Dataset` with such rows in its column `input_ids`.

    Raises:
        UserError: if ids are negative or not integers, rows differ in length or have padding, or a folder is not a
            prepared folder.
        TypeError: if `ids` has another type.
    """
    if isinstance(ids, str | Path):
        return TokenDataset.open(ids, "train")
    if isinstance(ids, torch.Tensor):
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, list):
        ids = _array_of(ids)
    if isinstance(ids, np.ndarray):
        return ArrayTokens(ids)
    if hasattr(ids, "column_names") and hasattr(ids, "with_format") and hasattr(ids, "__len__"):
        if isinstance(ids, dict):
            raise TypeError(f"give one split of the dataset, such as ids['{next(iter(ids), 'train')}']")
        return RowTokens(ids)
    if callable(getattr(ids, "read", None)) and hasattr(ids, "num_tokens"):
        return ids
    raise TypeError(
        f"ids is a {type(ids).__name__}; give a folder of `tst prepare`, a numpy array or tensor of token ids, or a "
        "datasets.Dataset of rows of token ids (save a streaming dataset first)"
    )


class ArrayTokens:
    """Token ids in an array (N,), or (rows, N) with consecutive rows.

    Raises:
        UserError: if the array is empty or does not hold integers.
    """

    def __init__(self, ids: NDArray[Any]) -> None:
        if not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"ids has dtype {ids.dtype}: token ids must be integers")
        if ids.ndim not in (1, 2) or not ids.size:
            raise UserError(f"ids has shape {ids.shape}: give an array (N,) or (rows, N) with at least one token")
        self.ids = ids.reshape(-1)

    @property
    def num_tokens(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return a copy of `length` ids from `start` on, int64."""
        return _not_negative(self.ids[start : start + length].astype(np.int64), start)


class RowTokens:
    """The token ids of a `datasets.Dataset` with rows of the same length that are consecutive in the text.

    Raises:
        UserError: if the dataset has no column `input_ids`, no rows, rows of different lengths, or rows with padding or
            with other labels than their ids (at the latest when such a row is read).
    """

    def __init__(self, dataset: Any) -> None:
        if _COLUMN not in dataset.column_names:
            raise UserError(f"the dataset has no column {_COLUMN!r} (columns: {', '.join(dataset.column_names)})")
        if not len(dataset):
            raise UserError("the dataset has no rows")
        kept = [name for name in (_COLUMN, "attention_mask", "labels") if name in dataset.column_names]
        self.dataset = dataset.select_columns(kept).with_format("numpy")
        self.row_length = len(self.dataset[0][_COLUMN])
        for first, last in ((0, min(_FIRST_ROWS, len(dataset))), (len(dataset) - 1, len(dataset))):
            self._rows(first, last)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all rows."""
        return len(self.dataset) * self.row_length

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return a copy of `length` ids from `start` on, int64."""
        first, last = start // self.row_length, -(-(start + length) // self.row_length)
        offset = start - first * self.row_length
        return self._rows(first, last)[offset : offset + length]

    def _rows(self, first: int, last: int) -> NDArray[np.int64]:
        rows = self.dataset[first:last]
        ids = [np.asarray(row) for row in rows[_COLUMN]]
        for number, row in enumerate(ids):
            where = f"row {first + number} of the dataset"
            if row.shape != (self.row_length,) or not np.issubdtype(row.dtype, np.integer):
                raise UserError(
                    f"{where} has {row.dtype} {row.shape} in {_COLUMN!r}, but row 0 has {self.row_length} token ids: "
                    "give rows of one length (concatenate the text and split it)"
                )
            if "attention_mask" in rows and not np.asarray(rows["attention_mask"][number]).all():
                raise UserError(f"{where} has padding (attention_mask 0): give rows without padding")
            if "labels" in rows and not np.array_equal(rows["labels"][number], row):
                raise UserError(f"{where} has labels that are not its {_COLUMN}: all tokens are trained on here")
        return _not_negative(np.concatenate(ids).astype(np.int64), first * self.row_length)


def fingerprint(corpus: Tokens) -> str:
    """Return the fingerprint of a prepared folder; for other corpora, a hash of the length and of a spread sample."""
    own = getattr(corpus, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.blake2b(str(corpus.num_tokens).encode(), digest_size=16)
    length = min(corpus.num_tokens, _HASHED)
    pieces = min(256, length)
    piece = length // pieces
    for start in np.linspace(0, corpus.num_tokens - piece, pieces).astype(np.int64).tolist():
        digest.update(corpus.read(start, piece).astype("<i8").tobytes())
    return digest.hexdigest()


def _array_of(rows: Sequence[Any]) -> NDArray[Any]:
    """Return a list of token ids, or of rows of token ids, as an array."""
    values = [row[_COLUMN] if isinstance(row, dict) and _COLUMN in row else row for row in rows]
    lengths = [np.shape(value) for value in values]
    for number, length in enumerate(lengths):
        if length != lengths[0]:
            raise UserError(
                f"row {number} of ids has shape {length}, but row 0 has {lengths[0]}: give rows of one length"
            )
    return np.asarray([np.asarray(value) for value in values])


def _not_negative(ids: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    if len(ids) and ids.min() < 0:
        place = int(np.argmin(ids))
        raise UserError(f"token {start + place:,} has the id {ids[place]}: token ids must not be negative")
    return ids
