"""What would fail at the switch, or cost quality unseen, is said before the first step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from tests.conftest import tiny_model
from tests.integrations.runs import L, Recorded, Streaming, losses, rows
from tests.integrations.test_folding import padded, padding_collator, text
from tests.integrations.test_transformers import arguments, trainer
from token_superposition.errors import UserError
from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer


class Recording(Recorded, SuperpositionTrainer):
    """Keeps what it was trained on."""


class Stream(IterableDataset[Any]):
    """Rows as a stream."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


class Computed(Dataset[Any]):
    """Rows that are made when they are asked for: looking at all of them is not cheap."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Any:
        return self.data[number]


def arrow(data: list[Any]) -> Any:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    return datasets.Dataset.from_list([{k: torch.as_tensor(v).tolist() for k, v in row.items()} for row in data])


def interleaved(parts: list[Any]) -> Any:
    import datasets

    return datasets.interleave_datasets(parts)


def run_of(folder: Path, data: Any, **options: Any) -> Any:
    more = {name: options.pop(name) for name in ("data_collator", "token_column", "model") if name in options}
    return Recording(
        model=more.pop("model", None) or tiny_model("llama", tied=True),
        args=arguments(folder, **options),
        train_dataset=data,
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
        **more,
    )


def plain(number: int = 40) -> list[dict[str, Any]]:
    return [{"input_ids": row, "labels": row} for row in text([L] * number)]


def without_labels(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"]} for row in data]


def short(data: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [{k: v[:9] for k, v in row.items()} if n == number else row for n, row in enumerate(data)]


def packed(data: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    own, other = list(range(L)), [*range(9), *range(L - 9)]
    return [{**row, "position_ids": other if n == number else own} for n, row in enumerate(data)]


@pytest.mark.parametrize("kind", [list, Stream, Computed, arrow])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (without_labels, ["labels"]),
        (lambda data: [{"tokens": row["input_ids"]} for row in data], ["input_ids", "tokens"]),
        (lambda data: [(row["input_ids"], row["labels"]) for row in data], ["row"]),
        (lambda data: [{**row, "labels": row["labels"][:5]} for row in data], ["labels"]),
        (lambda data: [{**row, "labels": ["a"] * L} for row in data], ["row"]),
        (lambda data: [{**row, "shift_labels": row["labels"]} for row in data], ["shift_labels"]),
        (lambda data: packed(data, 0), ["row 0", "position_ids"]),
        (lambda _: [], ["no rows"]),
    ],
)
def test_what_fails_after_the_switch_is_refused_before_step_1(
    tmp_path: Path, kind: Callable[..., Any], spoil: Any, named: list[str]
) -> None:
    data = spoil(plain())
    if kind is arrow and (not data or isinstance(data[0], tuple) or data[0].get("labels") == ["a"] * L):
        pytest.skip("no such Arrow table")
    column = {"token_column": "tokens"} if data and "tokens" in data[0] else {}
    run = run_of(tmp_path, kind(data), remove_unused_columns="shift_labels" not in named, **column)
    with pytest.raises(UserError) as refused:
        run.train()
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in named)
    assert not hasattr(run, "seen")
    assert run.state.global_step == 0


@pytest.mark.parametrize("kind", [list, arrow, lambda data: arrow([data[0], *data]).select(range(1, 41)), Computed])
@pytest.mark.parametrize("number", [17, 39])
def test_one_odd_row_anywhere_is_named_before_step_1(tmp_path: Path, kind: Callable[..., Any], number: int) -> None:
    for data, word in ((short(plain(), number), "9 token ids"), (packed(plain(), number), "position_ids")):
        run = run_of(tmp_path, kind(data))
        with pytest.raises(UserError, match=f"row {number} .*{word}"):
            run.train()
        assert not hasattr(run, "seen")


def changed(data: list[dict[str, Any]], number: int, **columns: Any) -> list[dict[str, Any]]:
    """The data with other columns in one row; None removes a column."""
    row = {k: v for k, v in {**data[number], **columns}.items() if v is not None}
    return [row if n == number else other for n, other in enumerate(data)]


@pytest.mark.parametrize("kind", [list, arrow, lambda data: arrow([data[0], *data]).select(range(1, 41)), Computed])
@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"input_ids": [5000] * L}, "input_ids holds 5000"),
        ({"input_ids": [-1] * L}, "input_ids holds -1"),
        ({"labels": [5000] * L}, "labels holds 5000"),
        ({"labels": [-1] * L}, "labels holds -1"),
        ({"labels": [1] * (L - 3)}, f"{L - 3} labels and {L} token ids"),
        ({"labels": None}, "no labels"),
    ],
)
def test_ids_and_labels_that_no_step_can_read_are_named_before_step_1(
    tmp_path: Path, kind: Callable[..., Any], columns: dict[str, Any], word: str
) -> None:
    run = run_of(tmp_path, kind(changed(plain(), 23, **columns)))
    with pytest.raises(UserError, match=f"row 23 .*{word}"):
        run.train()
    assert not hasattr(run, "seen")


@pytest.mark.parametrize("kind", [list, Stream, arrow])
def test_labels_that_are_shifted_already_are_refused(tmp_path: Path, kind: Callable[..., Any]) -> None:
    data = [{**row, "labels": [*row["labels"][1:], -100]} for row in plain()]
    with pytest.raises(UserError, match="moved by one place"):
        run_of(tmp_path, kind(data)).train()


@pytest.mark.parametrize("columns", [{"labels": [-100] * L}, {"attention_mask": [0] * L}])
def test_data_without_a_target_is_refused_and_rows_without_one_are_not(tmp_path: Path, columns: dict[str, Any]) -> None:
    data = [{"attention_mask": [1] * L, **row} for row in plain()]
    with pytest.raises(UserError, match="none of 40 rows"):
        run_of(tmp_path / "none", [{**row, **columns} for row in data]).train()
    some = [row if number % 3 == 1 else {**row, **columns} for number, row in enumerate(data)]  # not rows 0 and 39
    assert run_of(tmp_path / "some", some).train().global_step


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", [short, packed])
def test_a_streams_odd_row_is_named_when_it_is_read(tmp_path: Path, spoil: Any, workers: int) -> None:
    run = run_of(tmp_path, Stream(spoil(plain(), 11)), dataloader_num_workers=workers)
    with pytest.raises(UserError, match=r"^row 11 ") as refused:
        run.train()
    assert "\n" not in str(refused.value)


class ReadOnce(IterableDataset[Any]):
    """A stream that goes on where it was whenever it is opened."""

    def __init__(self, data: list[Any]) -> None:
        self.rows = (row for row in data)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class ReadOnceAnew(ReadOnce):
    """The same by an iterator of its own, which closes the rows with it."""

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows


@pytest.mark.parametrize("kind", [ReadOnce, ReadOnceAnew])
def test_the_check_takes_no_row_from_a_stream_that_is_read_once(tmp_path: Path, kind: type) -> None:
    expected, run = run_of(tmp_path, Stream(plain()), max_steps=4), run_of(tmp_path, kind(plain()), max_steps=4)
    expected.train()
    run.train()
    assert losses(run) == losses(expected)
    short = run_of(tmp_path, kind(plain(10)))
    with pytest.raises(UserError, match="ended after 10 rows"):
        short.train()


class OwnOrder:
    """A class with a sampler of its own."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


def test_a_sampler_that_is_not_used_and_a_phase_without_a_step_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mine(OwnOrder, SuperpositionTrainer): ...

    run = Mine(
        model=tiny_model("llama", tied=True),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=rows(),
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.4),
    )
    capsys.readouterr()
    run.train()
    said = capsys.readouterr().err
    assert "_get_train_sampler of OwnOrder" in said
    assert "superposition_ratio 0.4" in said


def test_a_collator_that_pads_takes_rows_of_several_lengths(tmp_path: Path) -> None:
    data = [{"input_ids": row} for row in text([3 + number % (L - 3) for number in range(60)])]
    for kind in (list, Stream, arrow):
        run = run_of(tmp_path, kind(data), data_collator=padding_collator())
        run.train()
        assert all(np.isfinite(losses(run)))
        assert [batch["labels"].dim() for batch in run.seen] == [3] * 4 + [2] * 4


def test_a_padded_row_may_have_other_positions(tmp_path: Path) -> None:
    data = [
        {**padded(row, mask=True, left=True), "position_ids": [1] * (L - len(row)) + list(range(len(row)))}
        for row in text([L, 9] * 20)
    ]
    run_of(tmp_path, data).train()


def test_formats_of_an_arrow_table_give_the_same_batches(tmp_path: Path) -> None:
    table = arrow([{**row, "n": torch.tensor(number)} for number, row in enumerate(rows())])
    expected = run_of(tmp_path, rows(), max_steps=4)
    expected.train()
    for form in (None, "numpy", "torch"):
        run = run_of(tmp_path, table.with_format(form), max_steps=4)
        run.train()
        assert losses(run) == losses(expected)


def test_looking_ahead_changes_nothing(tmp_path: Path) -> None:
    """Random state, modes and buffers are what they were when the run begins."""
    model = tiny_model("gpt2", tied=True)
    drop = torch.nn.Dropout(0.5)
    model.transformer.drop = drop
    model.train()
    drop.eval()
    data = rows()

    class Random(Computed):
        def __getitem__(self, number: int) -> Any:
            torch.rand(1), np.random.rand(), random.random()
            return super().__getitem__(number)

    run = run_of(tmp_path, Random(data), model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    run._look_ahead()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert model.training
    assert not drop.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: arrow(data).shuffle(seed=0), True),
        (lambda data: arrow(data).select(range(len(data) - 1, -1, -1)), True),
        (lambda data: arrow(data).filter(lambda _, number: number % 3 > 0, with_indices=True), False),
        (lambda data: arrow(data).to_iterable_dataset().shuffle(seed=0).map(lambda row: row), True),
        (lambda data: arrow(data).to_iterable_dataset(), False),
        (lambda data: Subset(data, torch.randperm(len(data)).tolist()), True),
        (lambda data: Subset(arrow(data).shuffle(seed=0), range(50)), True),
        (lambda data: Subset(data, range(50)), False),
        (lambda data: Subset(data, range(0, 64, 2)), True),
        (lambda data: ConcatDataset([arrow(data), arrow(data).shuffle(seed=0)]), True),
        (lambda data: ConcatDataset([arrow(data), arrow(data)]), False),
        (lambda data: arrow(data).shard(4, 1, contiguous=False), True),
        (lambda data: arrow(data).shard(4, 1, contiguous=True), False),
        (lambda data: interleaved([arrow(data).to_iterable_dataset()] * 2), True),
        (lambda _: Streaming(), False),
    ],
)
def test_rows_out_of_order_are_said_with_what_they_cost(
    tmp_path: Path, make: Callable[[Any], Any], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, make(rows()))
    capsys.readouterr()
    run._look_ahead()
    assert ("one in 8 bags predicts unrelated" in capsys.readouterr().err) == said


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_a_sampling_strategy_that_is_not_used_is_said(
    tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path, train_sampling_strategy=strategy)
    capsys.readouterr()
    run._look_ahead()
    assert (f"train_sampling_strategy {strategy}" in capsys.readouterr().err) == (strategy != "random")
