"""Checks of the training data before step 1: rows that would fail later, and rows in a random order.

Every row is checked if this is fast, that is for a list of rows in memory or the Arrow table of a `datasets.Dataset`.
The checks cover the lengths of rows and `position_ids` that start again. Of any other dataset, only the first and the
last row are checked.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, Subset

from token_superposition.errors import UserError
from token_superposition.integrations.folding import num_ids, packed, told
from token_superposition.models.checks import evaluating
from token_superposition.schedule import Stage

_Ints = NDArray[np.int64]
_MOST_PADDED = 1000  # largest number of rows that are checked one by one


class Sample(NamedTuple):
    """A few representative rows and their numbers."""

    numbers: list[int]
    rows: list[Any]


def sample(rows: Any, column: str) -> Sample:
    """The first rows of a stream; or of a map-style dataset the first row, the last row and one of another length.

    Raises:
        UserError: if there are no rows, or a row contains several packed documents.
    """
    if isinstance(rows, IterableDataset):
        first = list(islice(rows, 2))
        if not first:
            raise UserError("the training data has no rows")
        return Sample(list(range(len(first))), first)
    if not len(rows):
        raise UserError("the training data has no rows")
    lengths, last_positions = _columns(rows, column)
    if lengths is not None and last_positions is not None:
        # Positions that start again do not end at the length of the row minus 1.
        again = (last_positions != lengths - 1) & (last_positions >= 0)
        for number in np.flatnonzero(again)[:_MOST_PADDED].tolist():
            if not _padded(rows[number]):
                raise packed(number)
    numbers = {0, len(rows) - 1}
    if lengths is not None and (lengths != lengths[0]).any():
        numbers.add(int((lengths != lengths[0]).argmax()))
    return Sample(sorted(numbers), [rows[number] for number in sorted(numbers)])


def check_next_token_loss(trainer: Any, batch: Mapping[str, Any], numbers: list[int]) -> None:
    """Check that the model computes a next-token loss for rows, as after the switch; the model does not change.

    Args:
        trainer: a `transformers.Trainer`.
        batch: collated rows.
        numbers: numbers of these rows.

    Raises:
        UserError: if the computation fails or returns no loss.
    """
    model = trainer.model
    device = next(model.parameters()).device
    there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    where = f"rows {', '.join(map(str, numbers))} of the training data in next-token training"
    try:
        with evaluating(model), torch.no_grad(), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, there)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the model gives no loss for {where}: {told(error)}") from error
    if not isinstance(loss, torch.Tensor):
        raise UserError(f"the model gives no loss for {where}")


def disorder(rows: Any) -> str | None:
    """The reason why the rows of a dataset are not in the order of their text; None if there is no sign of this."""
    indices = getattr(rows, "_indices", None)  # attribute of a datasets.Dataset
    if indices is not None:
        numbers = indices.column(0).to_numpy()
        return "the dataset was shuffled" if (np.diff(numbers.astype(np.int64)) < 0).any() else None
    if isinstance(rows, Subset):
        if (np.diff(np.asarray(rows.indices, dtype=np.int64)) < 0).any():
            return "the subset changes the order of the rows"
        return disorder(rows.dataset)
    return _shuffled_stream(getattr(rows, "_ex_iterable", None))


def cost_of_disorder(stage: Stage, length: int) -> str:
    """The disadvantage of bags from unordered rows, as text."""
    group = stage.input_bag_size
    if group == 1:
        return f"the last {stage.bag_size} of {length} positions predict unrelated text"
    return (
        f"a bag row joins {group} rows of {length} tokens, so one in {max(1, length // group)} bags predicts unrelated "
        f"text, and the rows before it are unrelated context"
    )


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random state of torch (including this device), numpy and Python after the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _columns(rows: Any, column: str) -> tuple[_Ints | None, _Ints | None]:
    """Lengths of all rows, and their last positions (-1 for an empty row); None if unavailable or slow."""
    if isinstance(rows, (list, tuple)):
        found = [num_ids(row, column) for row in rows]
        known = [length for length in found if length is not None]
        if len(known) < len(found):
            return None, None
        lengths = np.array(known)
        if not all(isinstance(row, Mapping) and row.get("position_ids") is not None for row in rows):
            return lengths, None
        last = [int(row["position_ids"][-1]) if len(row["position_ids"]) else -1 for row in rows]
        return lengths, np.array(last)
    table: Any = getattr(rows, "data", None)
    form = getattr(rows, "format", None)
    names = getattr(table, "column_names", ())
    if column not in names or not isinstance(form, Mapping) or form.get("type") == "custom":
        return None, None  # not a datasets.Dataset, or one that computes rows on access
    import pyarrow as pa

    try:
        lengths = _arrow_lengths(table.column(column))
        last_positions = _arrow_last(table.column("position_ids")) if "position_ids" in names else None
    except pa.ArrowException:  # a column that is not a list of numbers
        return None, None
    if rows._indices is None:
        return lengths, last_positions
    taken = rows._indices.column(0).to_numpy().astype(np.int64)
    return lengths[taken], None if last_positions is None else last_positions[taken]


def _arrow_lengths(column: Any) -> _Ints:
    import pyarrow.compute as pc

    lengths: _Ints = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return lengths


def _arrow_last(column: Any) -> _Ints:
    """The last number of every row; -1 for an empty row."""
    found = [np.empty(0, dtype=np.int64)]
    for chunk in column.chunks:
        lengths = _arrow_lengths(chunk)
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        ends = lengths.cumsum()
        last = np.full(len(lengths), -1, dtype=np.int64)
        last[lengths > 0] = values[ends[lengths > 0] - 1]
        found.append(last)
    return np.concatenate(found)


def _padded(row: Any) -> bool:
    """Whether a row has padding, whose positions have no meaning."""
    mask = row.get("attention_mask") if isinstance(row, Mapping) else None
    return mask is not None and not bool(torch.as_tensor(mask).bool().all())


def _shuffled_stream(source: Any) -> str | None:
    """A reason if the inner iterables of a `datasets.IterableDataset` include a shuffle buffer; else None."""
    if source is None:
        return None
    if "Shuffled" in type(source).__name__:
        return "the stream is shuffled"
    inner = getattr(source, "ex_iterables", None) or [getattr(source, "ex_iterable", None)]
    return next((found for found in map(_shuffled_stream, inner) if found), None)
