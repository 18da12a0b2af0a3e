"""Checks of the token ids and labels of the training data before step 1, which name the row and the column.

A row with an id outside of the vocabulary, or without labels, would end the run at the step that reads it, perhaps
hours later and, on a GPU, with an error that names no row. The Arrow table of a `datasets.Dataset` and rows in memory
are read for a few seconds; these are all rows of most datasets. A stream is not read ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import IterableDataset

from token_superposition.bags import PADDING
from token_superposition.errors import UserError
from token_superposition.integrations.folding import Table

_MOST_SECONDS = 5.0
_MOST_ROWS = 100_000  # of a dataset that computes its rows on access
_MORE_ROWS = 64  # that are looked at if the first ones have no target
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_rows(rows: Any, column: str, vocab_size: int) -> None:
    """Check the ids and labels of the rows that can be read in a few seconds.

    Args:
        rows: the training data.
        column: the column of token ids.
        vocab_size: number of rows of the model's embedding.

    Raises:
        UserError: for an id or a label outside of the vocabulary, and for labels that are absent or too few.
    """
    if isinstance(rows, IterableDataset):
        return
    end = time.monotonic() + _MOST_SECONDS
    suspects = _arrow_suspects(rows, column, vocab_size, end)
    if suspects is None:
        suspects = iter(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ROWS)).astype(np.int64)).tolist())
    labelled = isinstance(rows[0], Mapping) and rows[0].get("labels") is not None
    for number in suspects:
        _check_row(rows[number], number, column, vocab_size, labelled)
        if time.monotonic() > end:
            break


def check_targets(table: Table, numbers: list[int], rows: Any, fold: Callable[[list[Any], list[int]], Table]) -> None:
    """Check that some rows have a target, and that their labels are not shifted already.

    Args:
        table: some collated rows.
        numbers: the numbers of these rows.
        rows: the training data, of which more rows are collated if these have no target.
        fold: collates rows with the given numbers.

    Raises:
        UserError: if no row has a target, or the labels are the ids moved by one place.
    """
    if _shifted(table):
        raise UserError(
            f"row {numbers[0]} of the training data: labels are the token ids moved by one place, but the model moves "
            "labels itself, so it would learn to predict the token after the next one: give labels equal to input_ids"
        )
    if _has_targets(table) or isinstance(rows, IterableDataset):
        return
    more = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MORE_ROWS)).astype(np.int64)).tolist()
    if not _has_targets(fold([rows[number] for number in more], more)):
        raise UserError(
            f"none of {len(more)} rows of the training data that were looked at (rows {more[0]} to {more[-1]}) has a "
            "token with a label: look for labels of -100 and an attention_mask of 0"
        )


def _has_targets(table: Table) -> bool:
    return bool(((table.labels != PADDING) & table.there)[:, 1:].any())


def _shifted(table: Table) -> bool:
    """Whether every row's labels are its next ids, and not its ids."""
    labels_RL, ids_RL = table.labels, table.ids
    counted_RL = (labels_RL != PADDING)[:, :-1]
    next_RL = (labels_RL[:, :-1] == ids_RL[:, 1:]) | ~counted_RL
    own_RL = (labels_RL[:, :-1] == ids_RL[:, :-1]) | ~counted_RL
    return bool((next_RL.all(1) & ~own_RL.all(1) & (counted_RL.sum(1) > 1)).all())


def _check_row(row: Any, number: int, column: str, vocab_size: int, labelled: bool) -> None:
    """Check one row; a row of another form than a mapping with ids is left to the collator."""
    if not isinstance(row, Mapping):
        return
    ids = _whole_numbers(row.get(column))
    if ids is None:
        return
    _check_range(ids, number, column, vocab_size)
    if not labelled:
        return
    if row.get("labels") is None:
        raise UserError(f"row {number} of the training data has no labels, but row 0 has")
    labels = _whole_numbers(row["labels"])
    if labels is None:
        return
    if column == "input_ids" and labels.shape != ids.shape:
        raise UserError(
            f"row {number} of the training data has {labels.numel()} labels and {ids.numel()} token ids: give one "
            "label per token (-100 for no label)"
        )
    _check_range(labels[labels != PADDING], number, "labels", vocab_size)


def _whole_numbers(values: Any) -> torch.Tensor | None:
    """The values as a tensor; None if they are not whole numbers."""
    try:
        tensor = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError):
        return None
    return tensor if tensor.dtype in _INTEGERS else None


def _check_range(values: torch.Tensor, number: int, name: str, vocab_size: int) -> None:
    if not values.numel():
        return
    lowest, highest = (value.item() for value in values.aminmax())
    if lowest < 0 or highest >= vocab_size:
        _refuse(number, name, int(lowest if lowest < 0 else highest), vocab_size)


def _refuse(number: int, name: str, value: int, vocab_size: int) -> NoReturn:
    raise UserError(
        f"row {number} of the training data: {name} holds {value}, but the model has the ids 0 to {vocab_size - 1}: "
        "use the tokenizer of the model, or resize the embeddings of the model"
    )


def _arrow_suspects(rows: Any, column: str, vocab_size: int, end: float) -> Iterator[int] | None:
    """The rows of a `datasets.Dataset` that may be bad, in order; None for any other dataset."""
    table: Any = getattr(rows, "data", None)
    form = getattr(rows, "format", None)
    names = getattr(table, "column_names", ())
    if column not in names or not isinstance(form, Mapping) or form.get("type") == "custom":
        return None
    import pyarrow as pa

    columns = [table.column(name) for name in (column, "labels") if name in names]
    try:
        bad = np.flatnonzero(_bad_rows(columns, vocab_size, end))
    except (pa.ArrowException, TypeError):  # columns that are not lists of numbers, which the batch shows
        return iter(())
    if rows._indices is not None:
        taken = rows._indices.column(0).to_numpy().astype(np.int64)
        bad = np.flatnonzero(np.isin(taken, bad))
    return iter(bad.tolist())


def _bad_rows(columns: list[Any], vocab_size: int, end: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each row of an Arrow table, whether a value is out of range or the lengths of its columns differ."""
    import pyarrow.compute as pc

    lengths = [pc.fill_null(pc.list_value_length(each), -1).to_numpy().astype(np.int64) for each in columns]
    bad = lengths[0] != lengths[-1]
    for each, counts in zip(columns, lengths, strict=True):
        first = 0
        for chunk in each.chunks:
            if time.monotonic() > end:
                break
            values = chunk.flatten()
            around = pc.min_max(values).as_py()
            last = first + len(chunk)
            if around["max"] is not None and (around["min"] < 0 or around["max"] >= vocab_size):
                array = values.to_numpy(zero_copy_only=False)
                wrong = ((array < 0) & (array != PADDING)) | (array >= vocab_size)
                owners = np.repeat(np.arange(first, last), np.maximum(counts[first:last], 0))
                bad[owners[wrong]] = True
            first = last
    return bad
