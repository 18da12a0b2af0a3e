"""Padding and labels in bags: targets are the row's own labels; a slot without a token is in no mean and no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast, default_data_collator

from tests.integrations.runs import L, Recorded, V, losses, rows
from tests.integrations.test_transformers import trainer
from token_superposition.errors import UserError
from token_superposition.integrations.folding import Folding, Group
from token_superposition.integrations.transformers import SuperpositionTrainer
from token_superposition.models.embedding import mean_embedding
from token_superposition.schedule import Stage

PAD = V - 1


class Recording(Recorded, SuperpositionTrainer):
    """Keeps what it was trained on."""


def padding_collator() -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(PAD)} | {"<pad>": PAD}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token="<pad>")
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def text(lengths: list[int]) -> list[list[int]]:
    """Rows of a text that counts up, and never holds the padding's id."""
    numbers = iter(range(10_000))
    return [[next(numbers) % PAD for _ in range(length)] for length in lengths]


def padded(row: list[int], *, pad: int = PAD, mask: bool, left: bool = False) -> dict[str, Any]:
    free = L - len(row)
    fill = (lambda values, more: [more] * free + values) if left else (lambda values, more: values + [more] * free)
    found = {"input_ids": fill(row, pad), "labels": fill(row, -100)}
    return {**found, "attention_mask": fill([1] * len(row), 0)} if mask else found


def fold(data: list[Any], stage: Stage, collate: Callable[..., Any] = default_data_collator, **options: Any) -> Any:
    folding = Folding(collate, options.pop("column", "input_ids"), frozenset(), options.pop("pad_id", None))
    return folding([Group(stage, tuple(range(len(data))), tuple(data))])


def fold_by_hand(pieces: list[list[int]], stage: Stage, ahead: list[int]) -> tuple[Tensor, Tensor]:
    """What the bags of pieces of text must be, one bag after the other."""
    size, inputs, targets = stage.input_bag_size, [], []
    for index, piece in enumerate(pieces):
        bags = [piece[start : start + size] for start in range(0, len(piece), size)]
        follows = piece + ahead if index == len(pieces) - 1 else piece
        for number, bag in enumerate(bags):
            inputs.append(bag + [-100] * (size - len(bag)))
            first = (number + 1) * size
            target = follows[first : first + stage.num_targets]
            targets.append(target + [-100] * (stage.num_targets - len(target)))
    free = L - len(inputs)
    return (
        torch.tensor(inputs + [[-100] * size] * free),
        torch.tensor(targets + [[-100] * stage.num_targets] * free),
    )


@pytest.mark.parametrize("mode", ["full", "output_only", "input_only"])
@pytest.mark.parametrize("mask", [True, False])
def test_a_row_that_ends_early_ends_a_piece_of_text(mode: Any, mask: bool) -> None:
    stage = Stage(4, 1, mode)
    lengths = [16, 6, 3, 16, 16] if mode != "output_only" else [16, 16]
    data = text(lengths)
    batch = fold([padded(row, mask=mask) for row in data], stage)
    pieces = [data[0] + data[1], data[2], data[3]] if mode != "output_only" else [data[0]]
    inputs, targets = fold_by_hand(pieces, stage, ahead=data[-1][: stage.num_targets])
    assert torch.equal(batch["input_ids"][0], inputs)
    assert torch.equal(batch["labels"][0], targets)


def test_padding_on_the_left_and_a_row_without_a_token() -> None:
    data = text([5, 0, 16, 16, 16])
    for mask, pad_id in ((True, None), (False, PAD)):
        batch = fold([padded(row, mask=mask, left=True) for row in data], Stage(4, 1), pad_id=pad_id)
        inputs, targets = fold_by_hand([data[0], data[2] + data[3]], Stage(4, 1), ahead=data[4][:4])
        assert torch.equal(batch["input_ids"][0], inputs)
        assert torch.equal(batch["labels"][0], targets)


@pytest.mark.parametrize("bag_size", [2, 3, 5])
def test_no_token_is_lost_where_short_bags_would_not_find_room(bag_size: int) -> None:
    data = text([L, *[L - 1] * (bag_size - 1)])
    batch = fold([padded(row, mask=True) for row in data], Stage(bag_size, 1))
    ids = batch["input_ids"][0]
    assert ids[ids >= 0].tolist() == [token for row in data for token in row]


def test_a_label_that_is_ignored_is_no_target_but_its_token_is_read() -> None:
    data = [{"input_ids": row, "labels": [-100] * 5 + row[5:]} for row in text([16, 16, 16])]
    batch = fold(data, Stage(2, 1))
    assert torch.equal(batch["input_ids"][0], torch.tensor(data[0]["input_ids"] + data[1]["input_ids"]).view(L, 2))
    expected = torch.tensor([row["labels"] for row in data]).flatten()[2 : 2 * L + 2].view(L, 2)
    assert torch.equal(batch["labels"][0], expected)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda row: np.array(row, dtype=np.int32)])
def test_rows_of_every_kind_give_the_same_bags(kind: Callable[[Any], Any]) -> None:
    plain = [{"input_ids": row, "labels": row} for row in text([16, 16, 16])]
    batch = fold([{name: kind(value) for name, value in row.items()} for row in plain], Stage(2, 1))
    assert all(torch.equal(batch[name], value) for name, value in fold(plain, Stage(2, 1)).items())


@pytest.mark.parametrize("rows_are", [dict, list])
def test_rows_of_several_lengths_take_the_collators_padding(rows_are: type) -> None:
    data = text([16, 5, 9])
    given = [{"input_ids": row} for row in data] if rows_are is dict else data
    batch = fold(given, Stage(2, 1), padding_collator())
    inputs, targets = fold_by_hand([data[0] + data[1]], Stage(2, 1), ahead=[])
    assert torch.equal(batch["input_ids"][0], inputs)
    assert torch.equal(batch["labels"][0], targets)


def packing(features: list[Any]) -> dict[str, Tensor]:
    ids = torch.cat([torch.tensor(feature["input_ids"]) for feature in features])[None]
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        ({"position_ids": [*range(10), *range(6)]}, {}, ["row 1", "position_ids"]),
        ({"input_ids": [1] * 7, "labels": [1] * 7}, {}, ["row 1", "7 token ids"]),
        ({"attention_mask": [1] * 8 + [2] * 8}, {}, ["row 1", "attention_mask", "2"]),
        ({"attention_mask": [0.0] * 12 + [-1e9] * 4}, {}, ["row 1", "attention_mask", "-1e+09"]),
        ({"labels": [1] * 9}, {}, ["row"]),
        ({}, {"collate": packing}, ["collator"]),
        ({"tokens": [1] * 8, "labels": [-100] * 16}, {"column": "tokens"}, ["row 1", "labels", "tokens"]),
        ({"tokens": [1] * 8, "attention_mask": [0] * 16}, {"column": "tokens"}, ["row 1", "attention_mask", "tokens"]),
    ],
)
def test_what_bags_cannot_honour_is_refused_by_row_and_column(
    change: dict[str, Any], options: dict[str, Any], named: list[str]
) -> None:
    data: list[dict[str, Any]] = [
        {"input_ids": row, "labels": row, "tokens": row, "position_ids": list(range(L))} for row in text([16, 16, 16])
    ]
    fold([{name: row[name] for name in ("input_ids", "labels", "position_ids")} for row in data], Stage(2, 1))
    if isinstance(mask := change.get("attention_mask"), list) and len(mask) == L and "column" not in options:
        data = [{**row, "attention_mask": [type(mask[0])(1)] * L} for row in data]
    data[1] |= change
    with pytest.raises(UserError) as refused:
        fold(data, Stage(2, 1), **options)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in named)


@pytest.mark.parametrize("left", [True, False])
def test_a_mask_of_ones_does_not_make_tokens_of_labelled_padding(left: bool) -> None:
    """A collator that pads makes such a mask for rows that come padded and without one."""
    data = [padded(row, mask=False, left=left) for row in text([16, 9, 12])]
    ones = [{**row, "attention_mask": [1] * L} for row in data]
    expected = fold([padded(row, mask=True, left=left) for row in text([16, 9, 12])], Stage(2, 1))
    found = fold(ones, Stage(2, 1), pad_id=PAD)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("mask", [True, False])
def test_what_stands_in_padding_does_not_move_a_loss(tmp_path: Path, mask: bool) -> None:
    """Neither as an input nor as a target; all slots of some bags, bag rows and batches are padding."""
    found = []
    for pad in (PAD, 0):
        lengths = [(5 * number) % (L + 1) for number in range(64)]
        lengths[:20] = [0] * 20
        data = [padded(row, pad=pad, mask=mask) for row in text(lengths)]
        run: Any = trainer(tmp_path, data=data, cls=Recording, bag_size=4, max_steps=6)
        run.train()
        found.append(losses(run))
        assert all(np.isfinite(found[-1]))
        logged = [line for line in run.state.log_history if "loss" in line]
        read = sum(int((batch["input_ids"] >= 0).sum()) for batch in run.seen[:3])
        assert logged[2]["raw_tokens"] == read < 3 * 2 * 4 * L
    assert found[0][:3] == found[1][:3]


def test_a_mean_over_bags_without_a_token_has_a_gradient() -> None:
    """Also of an embedding module that does more than look its weight up."""

    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 3

    ids_BLs = torch.tensor([[[-100, 5], [4, 3], [-100, -100]]])
    for module, scale in ((nn.Embedding(9, 4), 1), (Scaled(9, 4), 3)):
        mean_BLd = mean_embedding(module, ids_BLs, padded=True)
        expected = torch.stack([module.weight[5], (module.weight[4] + module.weight[3]) / 2, torch.zeros(4)]) * scale
        torch.testing.assert_close(mean_BLd[0], expected)
        mean_BLd.sum().backward()
        assert module.weight.grad is not None
        assert module.weight.grad.isfinite().all()
        assert not module.weight.grad[0].any()


def test_rows_without_padding_have_the_bags_of_before(tmp_path: Path) -> None:
    """No mask is given to the model, so that its kernels stay the same."""
    run: Any = trainer(tmp_path, data=rows(), cls=Recording, max_steps=4)
    masks: list[bool] = []
    run.model.register_forward_pre_hook(
        lambda _, __, options: masks.append("attention_mask" in options), with_kwargs=True
    )
    run.train()
    assert not any(masks)
