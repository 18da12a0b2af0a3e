"""What is looked at before step 1: rows that would fail later, and rows whose order is not that of a text.

Where it is cheap, every row is looked at: the lengths of rows, and whether `position_ids` start again. Cheap is a list
of rows in memory, or the Arrow table of a `datasets.Dataset`. Of any other map-style data set, as many rows as can be
read in a few seconds are. Of a stream, the first two are; they are trained on all the same.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from token_superposition.errors import UserError
from token_superposition.integrations.folding import num_ids, packed, told
from token_superposition.models.checks import evaluating
from token_superposition.schedule import Stage

_Ints = NDArray[np.int64]
_MOST_PADDED = 1000  # rows that are looked at one by one
_MOST_ROWS = 10_000  # of a data set whose rows are computed when they are asked for
_MOST_SECONDS = 5.0


class Sample(NamedTuple):
    """A few rows that stand for the others, and their numbers.

    Attributes:
        opened: all rows of a stream that can be read only once, these included; None for any other data set.
    """

    numbers: list[int]
    rows: list[Any]
    opened: Iterator[Any] | None = None


def sample(rows: Any, column: str) -> Sample:
    """The first rows of a stream; of a map-style data set the first, the last, and one of another length, if there is.

    Raises:
        UserError: where there are no rows, or a row holds several packed documents.
    """
    if isinstance(rows, IterableDataset):
        return _first_rows(rows, column)
    if not len(rows):
        raise UserError("the training data has no rows")
    lengths, last_positions = _columns(rows, column)
    if lengths is not None and last_positions is not None:
        # Positions that start again never reach the row's length.
        again = (last_positions != lengths - 1) & (last_positions >= 0)
        for number in np.flatnonzero(again)[:_MOST_PADDED].tolist():
            if not _padded(rows[number]):
                raise packed(number)
    numbers = {0, len(rows) - 1}
    if lengths is not None and (lengths != lengths[0]).any():
        numbers.add(int((lengths != lengths[0]).argmax()))
    if lengths is None and (other := _look_through(rows, column)) is not None:
        numbers.add(other)
    return Sample(sorted(numbers), [rows[number] for number in sorted(numbers)])


def check_next_token_loss(trainer: Any, batch: Mapping[str, Any], numbers: list[int]) -> None:
    """Compute the loss of rows as they are after the switch; weights and modes stay what they were.

    Args:
        trainer: a `transformers.Trainer`.
        batch: collated rows.
        numbers: of these rows.

    Raises:
        UserError: where there is no loss.
    """
    model = trainer.model
    device = next(model.parameters()).device
    there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    where = f"rows {', '.join(map(str, numbers))} of the training data as they are after the switch"
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
    """What shows that a data set's rows are not in the order of their text; None where nothing does."""
    indices = getattr(rows, "_indices", None)  # of a datasets.Dataset
    if indices is not None:
        return _gaps("data set", indices.column(0).to_numpy())
    if isinstance(rows, Subset):
        return _gaps("subset", rows.indices) or disorder(rows.dataset)
    if isinstance(rows, ConcatDataset):
        return next(filter(None, map(disorder, rows.datasets)), None)
    return _shuffled_stream(getattr(rows, "_ex_iterable", None))


def _gaps(kind: str, taken: Any) -> str | None:
    """Whether rows of another data set are taken in another order, or few of them with the row after them."""
    steps = np.diff(np.asarray(taken, dtype=np.int64))
    if (steps < 0).any():
        return f"the {kind} was shuffled: it takes rows in another order"
    if len(steps) and (steps != 1).mean() > 0.5:
        return f"the {kind} takes rows that do not follow each other"
    return None


def cost_of_disorder(stage: Stage, length: int) -> str:
    """What bags made of rows in any order lose, in words."""
    group = stage.input_bag_size
    if group == 1:
        return f"the last {stage.bag_size} of {length} positions predict unrelated text"
    return (
        f"a bag row joins {group} rows of {length} tokens, so one bag in {max(1, length // group)} predicts unrelated "
        f"text, and the rows before are unrelated context"
    )


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn inside the block is drawn again after it: torch (this device included), numpy, Python."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _columns(rows: Any, column: str) -> tuple[_Ints | None, _Ints | None]:
    """The lengths of all rows and their last positions (-1 for an empty row); None for what is not cheap or there."""
    if isinstance(rows, (list, tuple)):
        found = [num_ids(row, column) for row in rows]
        known = [length for length in found if length is not None]
        if len(known) < len(found):
            return None, None
        lengths = np.array(known)
        if not all(isinstance(row, Mapping) and row.get("position_ids") is not None for row in rows):
            return lengths, None
        try:
            return lengths, np.array([_last_position(row) for row in rows])
        except (TypeError, ValueError):  # of another shape, which the batch shows
            return lengths, None
    table: Any = getattr(rows, "data", None)
    form = getattr(rows, "format", None)
    names = getattr(table, "column_names", ())
    if column not in names or not isinstance(form, Mapping) or form.get("type") == "custom":
        return None, None  # not a datasets.Dataset, or one whose rows are computed when they are asked for
    import pyarrow as pa

    try:
        lengths = _arrow_lengths(table.column(column))
        last_positions = _arrow_last(table.column("position_ids")) if "position_ids" in names else None
    except pa.ArrowException:  # a column that is no list of numbers
        return None, None
    if rows._indices is None:
        return lengths, last_positions
    taken = rows._indices.column(0).to_numpy().astype(np.int64)
    return lengths[taken], None if last_positions is None else last_positions[taken]


def _last_position(row: Any) -> int:
    """-1 of an empty row."""
    positions = row["position_ids"]
    return int(positions[-1]) if len(positions) else -1


def _look_through(rows: Any, column: str) -> int | None:
    """The number of a row whose length is not the first row's, found in a few seconds; None where there is none.

    Raises:
        UserError: where a row holds several packed documents.
    """
    first, end, found = num_ids(rows[0], column), time.monotonic() + _MOST_SECONDS, None
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ROWS)).astype(np.int64))
    for number in np.random.default_rng(0).permutation(numbers).tolist():
        row = rows[number]
        length = num_ids(row, column)
        if length != first:
            found = number
        if isinstance(row, Mapping) and row.get("position_ids") is not None and not _padded(row):
            with contextlib.suppress(TypeError, ValueError):  # of another shape, which the batch shows
                if _last_position(row) not in (-1, (length or 0) - 1):
                    raise packed(number)
        if time.monotonic() > end:
            break
    return found


def _first_rows(rows: Any, column: str) -> Sample:
    """The first two rows of a stream."""
    iterator = iter(rows)
    first = list(islice(iterator, 2))
    if not first:
        raise UserError("the training data has no rows")
    numbers = list(range(len(first)))
    again = iter(rows)
    following = list(islice(again, 1))
    if again is not iterator and following and _same_ids(following[0], first[0], column):
        return Sample(numbers, first)
    return Sample(numbers, first, _rest(first, following, again, iterator))


def _rest(first: list[Any], following: list[Any], again: Iterator[Any], kept: Iterator[Any]) -> Iterator[Any]:
    """The rows of a stream that can be read only once; `kept` stays open, or what both read from would be closed."""
    yield from first
    yield from following
    yield from again
    del kept


def _same_ids(row: Any, other: Any, column: str) -> bool:
    try:
        ids, others = (torch.as_tensor(each[column] if isinstance(each, Mapping) else each) for each in (row, other))
    except (LookupError, RuntimeError, TypeError, ValueError):
        return True  # no token ids: the batch shows it
    return torch.equal(ids, others)


def _arrow_lengths(column: Any) -> _Ints:
    import pyarrow.compute as pc

    lengths: _Ints = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return lengths


def _arrow_last(column: Any) -> _Ints:
    """The last number of every row, -1 of an empty one."""
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
    """Whether a row has slots that are padding, whose positions say nothing."""
    mask = row.get("attention_mask") if isinstance(row, Mapping) else None
    return mask is not None and not bool(torch.as_tensor(mask).bool().all())


def _shuffled_stream(source: Any) -> str | None:
    """Whether a `datasets.IterableDataset`, seen by its inner iterables, draws rows from a buffer or in turn."""
    if source is None:
        return None
    if "Shuffled" in type(source).__name__:
        return "the stream is shuffled"
    if "CyclingMultiSources" in type(source).__name__:
        return "the stream takes rows of several sources in turn"
    inner = getattr(source, "ex_iterables", None) or [getattr(source, "ex_iterable", None)]
    return next((found for found in map(_shuffled_stream, inner) if found), None)
