"""Token ids as users have them: every kind gives the same batches, and what cannot be used is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.corpora import corpus_texts, write_corpus
from token_superposition import Schedule
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.data.stream import Source, TokenStream
from token_superposition.errors import UserError

IDS = np.random.default_rng(0).integers(0, 200, 6000)
SCHEDULE = Schedule.two_phase(12, 4, 0.5)
SHAPE = {"sequence_length": 8, "batch_size": 4}


def batches(ids: Any, **options: Any) -> list[Any]:
    return list(TokenStream(ids, SCHEDULE, **{**SHAPE, **options}))


def memory_map(folder: Path) -> Any:
    IDS.astype("<u2").tofile(folder / "ids.bin")
    return np.memmap(folder / "ids.bin", dtype="<u2", mode="r")


def hub_rows(_: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    rows = IDS.reshape(-1, 10).tolist()
    return datasets.Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 10] * len(rows), "labels": rows})


@pytest.mark.parametrize(
    "make",
    [
        memory_map,
        hub_rows,
        lambda _: torch.from_numpy(IDS),
        lambda _: torch.from_numpy(IDS.reshape(-1, 10).astype(np.int32)),
        lambda _: IDS.tolist(),
        lambda _: IDS.reshape(-1, 10).tolist(),
        lambda _: [{"input_ids": torch.from_numpy(row)} for row in IDS.reshape(-1, 10)],
        lambda _: [Source("a", IDS)],
    ],
    ids=["memory map", "hub", "tensor", "2-D tensor", "list", "list of rows", "list of records", "source"],
)
def test_every_kind_of_ids_gives_the_same_batches(tmp_path: Path, make: Any) -> None:
    expected = batches(IDS)
    for batch, own in zip(batches(make(tmp_path)), expected, strict=True):
        assert batch.ids.dtype == batch.targets.dtype == torch.int64
        assert torch.equal(batch.ids, own.ids)
        assert torch.equal(batch.targets, own.targets)


def test_a_prepared_folder_is_its_training_split(tmp_path: Path) -> None:
    prepare([write_corpus(tmp_path / "text.jsonl", corpus_texts())], out=tmp_path / "data")
    for folder in (tmp_path / "data", str(tmp_path / "data")):
        found = TokenStream(folder, SCHEDULE, **SHAPE)
        own = TokenStream(TokenDataset.open(folder, "train"), SCHEDULE, **SHAPE)
        assert torch.equal(found.batch(3).ids, own.batch(3).ids)
        assert found.state_dict() == own.state_dict()


GOOD = [[1, 2, 3, 4]] * 600


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [*GOOD, [1, 2, 3]]}, "row 600"),
        ({"input_ids": GOOD, "attention_mask": [*[[1] * 4] * 599, [1, 1, 1, 0]]}, "row 599.*padding"),
        ({"input_ids": GOOD, "labels": [[1, 2, 3, 4], [-100, 2, 3, 4], *GOOD[2:]]}, "row 1 .*labels"),
        ({"text": ["one"]}, "no column 'input_ids'.*text"),
        ({"input_ids": []}, "no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named_before_the_first_batch(columns: dict[str, Any], message: str) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    with pytest.raises(UserError, match=message):
        TokenStream(datasets.Dataset.from_dict(columns), SCHEDULE, **SHAPE)


def test_a_padded_row_in_the_middle_is_refused_when_it_is_read() -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    mask = np.ones((3000, 2), dtype=int)
    mask[1500] = 0
    rows = datasets.Dataset.from_dict({"input_ids": IDS.reshape(-1, 2), "attention_mask": mask})
    with pytest.raises(UserError, match=r"row 1500 .*padding"):
        list(TokenStream(rows, Schedule.two_phase(80, 4, 0.5), **SHAPE))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (IDS / 2, UserError, "float64"),
        (IDS.reshape(10, 10, 60), UserError, "shape"),
        (IDS[:0], UserError, "at least one token"),
        ([[1, 2], [3]], UserError, "row 1"),
        (np.where(np.arange(6000) % 50 == 17, -100, IDS), UserError, "has the id -100"),
        (IDS[:20], UserError, "20 tokens"),
        ("nowhere", UserError, "nowhere"),
        (iter(IDS.tolist()), TypeError, "numpy array"),
        (None, TypeError, "NoneType"),
    ],
)
def test_other_things_are_refused_in_one_line(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        batches(ids)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 0}, "sequence_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"world_size": 3}, "batch_size 4 .* ranks, 3"),
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(IDS, **options)


def test_a_schedule_is_asked_for_where_something_else_is_given() -> None:
    with pytest.raises(TypeError, match="two_phase"):
        TokenStream(IDS, 4, **SHAPE)  # type: ignore[arg-type]
