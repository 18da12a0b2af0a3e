"""Folding of collated rows into bags: the Trainer's data collator pads and labels, and this module folds its output.

The rows of a batch of bags pass through the same collator as the rows of the recovery phase. The targets are therefore
the labels of the recovery phase (-100 is ignored), and the `attention_mask` of the collator marks tokens. Without a
mask, all slots after the last label of a row are padding: no loss of the recovery phase depends on these slots.

A slot without a token counts neither in the mean of its bag nor in the loss, as with document-safe bags. A row that
ends with padding ends a piece of text. The next row then starts with a new bag, and the last bag of the piece is short
and predicts nothing. Bags are adjacent; the end of a bag row may be empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from token_superposition.bags import PADDING, split_inputs_and_targets
from token_superposition.errors import UserError, one_line
from token_superposition.schedule import Stage

Collate = Callable[[list[Any]], Any]
HONOURED = frozenset({"input_ids", "labels", "attention_mask", "position_ids"})
# Inputs that are not named arguments of a model, but change its loss or its attention.
PACKED = frozenset({"shift_labels", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"})


class Group(NamedTuple):
    """Rows of the dataset for one bag row: the rows that it reads, and the row after them if there is one."""

    stage: Stage
    numbers: tuple[int, ...]
    rows: tuple[Any, ...]


class Table(NamedTuple):
    """Collated rows, each (R, L): ids, labels (not shifted, as in Hugging Face), and a mask of the tokens."""

    ids: Tensor
    labels: Tensor
    there: Tensor


class Folding:
    """Collates groups of rows into a batch of bags.

    Args:
        collate: the collator of the recovery phase, for a list of rows.
        column: the column of token ids.
        refused: names of model inputs that bags do not support.
        pad_id: the padding id, or None if it is unknown. Slots at the ends of a row that hold this id and have no label
            are padding, whatever the mask says.
    """

    def __init__(self, collate: Collate, column: str, refused: frozenset[str], pad_id: int | None) -> None:
        self.collate = collate
        self.column = column
        self.refused = refused
        self.pad_id = pad_id

    def __call__(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """`input_ids` (B, L, s), -100 in slots without a token, and aligned `labels` (B, L, k), int64.

        Raises:
            UserError: if rows cannot be collated or are not supported; names the row.
        """
        rows = [row for group in groups for row in group.rows]
        table = self.table(rows, [number for group in groups for number in group.numbers])
        first, folded = 0, []
        for group in groups:
            part = Table(*(column[first : first + len(group.rows)] for column in table))
            folded.append(fold_group(part, group.stage))
            first += len(group.rows)
        ids, labels = zip(*folded, strict=True)
        return {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}

    def table(self, rows: Sequence[Any], numbers: Sequence[int]) -> Table:
        """Collate rows into the form that bags need; raises like `__call__`."""
        features = [self._feature(row, number) for row, number in zip(rows, numbers, strict=True)]
        batch = collated(self.collate, features, numbers)
        given = {name for name, value in batch.items() if value is not None}
        if refused := sorted(given & self.refused):
            raise UserError(
                f"the training data has the column {refused[0]} (row {numbers[0]}), which the model reads, but bags "
                "do not support: remove the column"
            )
        ids_RL, labels_RL = batch["input_ids"].long(), batch["labels"].long()
        if ids_RL.dim() != 2 or len(ids_RL) != len(features):
            raise UserError(
                f"the data collator makes input_ids of shape {tuple(ids_RL.shape)} from {len(features)} rows, but bags "
                "need one row of token ids per row: use a collator that does not pack rows together"
            )
        if labels_RL.shape != ids_RL.shape:
            raise UserError(
                f"rows {numbers[0]} to {numbers[-1]} of the training data: labels of shape {tuple(labels_RL.shape)} do "
                f"not match input_ids of shape {tuple(ids_RL.shape)}: give one label per token (-100 for no label)"
            )
        table = Table(ids_RL, labels_RL, self._there(batch.get("attention_mask"), ids_RL, labels_RL, numbers))
        _check_positions(batch.get("position_ids"), table.there, numbers)
        return table

    def _feature(self, row: Any, number: int) -> Any:
        """The row in the form that the collator gets."""
        if self.column == "input_ids":
            return row
        if not isinstance(row, Mapping) or self.column not in row:
            raise UserError(
                f"row {number} of the training data has no column {self.column}: set token_column to a column"
            )
        ids = torch.as_tensor(row[self.column])
        labels = torch.as_tensor(row.get("labels", ids))
        if labels.shape != ids.shape:
            # The labels belong to the tokens of input_ids; the targets of bags are the ids of `column`.
            if (labels == PADDING).any():
                raise UserError(
                    f"row {number} of the training data: labels of -100 cannot be matched with the tokens of "
                    f"{self.column}, which has another length"
                )
            labels = ids
        if "attention_mask" not in row:
            return {"input_ids": ids, "labels": labels}
        mask = torch.as_tensor(row["attention_mask"])
        if mask.shape != ids.shape:
            if not mask.all():
                raise UserError(
                    f"row {number} of the training data: an attention_mask of 0 cannot be matched with the tokens of "
                    f"{self.column}, which has another length"
                )
            mask = torch.ones_like(ids)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def _there(self, mask_RL: Tensor | None, ids_RL: Tensor, labels_RL: Tensor, numbers: Sequence[int]) -> Tensor:
        counted_RL = labels_RL != PADDING
        if mask_RL is None:
            there_RL = counted_RL.flip(1).cumsum(1).flip(1) > 0
        else:
            if mask_RL.shape != ids_RL.shape:
                raise UserError(
                    f"attention_mask has shape {tuple(mask_RL.shape)}, which bags do not support: give one number per "
                    f"token, that is the shape {tuple(ids_RL.shape)}"
                )
            other_RL = (mask_RL != 0) & (mask_RL != 1)
            if other_RL.any():
                raise UserError(
                    f"row {numbers[int(other_RL.any(1).int().argmax())]} of the training data: attention_mask holds "
                    f"{mask_RL[other_RL][0].item():g}, which bags cannot honour: give 1 for a token and 0 for padding"
                )
            there_RL = mask_RL != 0
        if self.pad_id is not None:
            # A collator that finds rows without a mask makes one of ones (DataCollatorWithPadding), also for rows
            # that are padded already.
            filled_RL = counted_RL | (ids_RL != self.pad_id)
            there_RL &= (filled_RL.cumsum(1) > 0) & (filled_RL.flip(1).cumsum(1).flip(1) > 0)
        return there_RL


def collated(collate: Collate, rows: Sequence[Any], numbers: Sequence[int]) -> Mapping[str, Any]:
    """Collate rows; returns the tensors, which include `input_ids` and `labels`.

    Raises:
        UserError: if the collator fails, or its output lacks `input_ids` or `labels`; names the row.
    """
    try:
        batch = collate(list(rows))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        lengths = [num_ids(row) for row in rows]
        other = next((n for n, length in enumerate(lengths) if length != lengths[0]), None)
        if other is not None:
            raise UserError(
                f"row {numbers[other]} of the training data has {lengths[other]} token ids and row {numbers[0]} has "
                f"{lengths[0]}: give rows of one length, or a data collator that pads them (and their labels)"
            ) from error
        raise UserError(f"{_named(numbers)} of the training data cannot be collated: {told(error)}") from error
    given = {name: value for name, value in batch.items() if value is not None} if isinstance(batch, Mapping) else {}
    for name in ("input_ids", "labels"):
        if not isinstance(given.get(name), Tensor):
            found = ", ".join(sorted(given)) or "no inputs of the model"
            columns = f" (a row has {', '.join(map(str, rows[0]))})" if isinstance(rows[0], Mapping) else ""
            raise UserError(
                f"{_named(numbers)} of the training data: a batch has no {name}, only {found}{columns}; add the "
                "columns input_ids and labels, or use a data collator that makes them, such as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
    return given


def fold_group(table: Table, stage: Stage) -> tuple[Tensor, Tensor]:
    """Fold the rows of one group into bags.

    Args:
        table: the rows that the bags read, and the row after them if there is one.
        stage: the stage, with bag size and mode.

    Returns:
        Inputs (L, s) and targets (L, k), int64; -100 marks a slot without a token or target.
    """
    size, length = stage.input_bag_size, table.ids.shape[1]
    # The text continues in the next row if there is no padding between the rows.
    joined = (table.there[:-1, -1] & table.there[1:, 0]).tolist()
    starts = [0, *(row for row in range(1, size) if not joined[row - 1])]
    parts = [_tokens(table, slice(*rows)) for rows in pairwise([*starts, size])]
    if sum(math.ceil(len(ids) / size) for ids, _ in parts) > length:
        # Separate bags for each piece do not fit into the row. Let pieces share bags, so that no token is lost.
        parts = [(torch.cat([ids for ids, _ in parts]), torch.cat([labels for _, labels in parts]))]
    inputs_Ls = torch.full((length, size), PADDING)
    targets_Lk = torch.full((length, stage.num_targets), PADDING)
    place = 0
    for index, (ids_T, labels_T) in enumerate(parts):
        num_bags = math.ceil(len(ids_T) / size)
        if not num_bags:
            continue
        raw = torch.full((2, num_bags * size + stage.bag_size), PADDING)
        raw[0, : len(ids_T)], raw[1, : len(labels_T)] = ids_T, labels_T
        if index == len(parts) - 1 and len(joined) == size and joined[-1]:
            ahead_T = _tokens(table, slice(size, size + 1))[1][: stage.bag_size]
            raw[1, num_bags * size : num_bags * size + len(ahead_T)] = ahead_T
        (inputs, _), (_, targets) = (split_inputs_and_targets(row[None], stage.bag_size, stage.mode) for row in raw)
        inputs_Ls[place : place + num_bags], targets_Lk[place : place + num_bags] = inputs[0], targets[0]
        place += num_bags
    return inputs_Ls, targets_Lk


def _tokens(table: Table, rows: slice) -> tuple[Tensor, Tensor]:
    """The tokens of some rows and their labels, without padding."""
    there_RL = table.there[rows]
    return table.ids[rows][there_RL], table.labels[rows][there_RL]


def _check_positions(positions_RL: Any, there_RL: Tensor, numbers: Sequence[int]) -> None:
    if positions_RL is None:
        return
    plain = torch.arange(there_RL.shape[1])
    counted_RL = there_RL.cumsum(1) - 1  # positions for rows with padding on the left
    if positions_RL.shape != there_RL.shape:
        raise UserError(
            f"position_ids has shape {tuple(positions_RL.shape)}, which bags do not support: remove the column"
        )
    other_RL = there_RL & (positions_RL != plain) & (positions_RL != counted_RL)
    if other_RL.any():
        raise packed(numbers[int(other_RL.any(1).int().argmax())])


def packed(number: int) -> UserError:
    """The error for a row whose positions start again."""
    return UserError(
        f"row {number} of the training data: position_ids do not count 0, 1, 2, ... through the row, so the row "
        "has several packed documents, which bags cannot separate: use one document per row, or remove the column"
    )


def num_ids(row: Any, column: str = "input_ids") -> int | None:
    """The number of token ids of a row; None if it is unknown."""
    ids: Any = row.get(column) if isinstance(row, Mapping) else row
    return len(ids) if hasattr(ids, "__len__") else None


def told(error: Exception) -> str:
    """An error of another library as one short line."""
    return one_line(f"{type(error).__name__}: {error}")[:300]


def _named(numbers: Sequence[int]) -> str:
    if len(numbers) > 4:
        return f"rows {numbers[0]} to {numbers[-1]}"
    return f"row {numbers[0]}" if len(numbers) == 1 else f"rows {', '.join(map(str, numbers))}"
