"""Bag rows of a data set: aligned, each row once a pass, the same after a resume."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from token_superposition import Schedule, Stage
from token_superposition.adapters.rows import BagRows, BagStream, RunSampler, bag_feature
from token_superposition.errors import UserError

L = 8


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of an ordered sequence: row n holds n * L ... n * L + L - 1."""
    return [{"input_ids": list(range(n * L, (n + 1) * L)), "n": n} for n in range(number)]


def sampler(num_rows: int, schedule: Schedule, **options: int) -> RunSampler:
    options = {"batch_size": 2, "batches_per_step": 1, "steps_per_epoch": schedule.total_steps, "seed": 0, **options}
    return RunSampler(num_rows, schedule, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["full", "output_only", "input_only"])
@pytest.mark.parametrize("bag_size", [2, 3, 4])
def test_what_a_bag_predicts_follows_it_in_the_text(mode: Any, bag_size: int) -> None:
    stage = Stage(bag_size, 1, mode)
    group = [row["input_ids"] for row in rows(stage.input_bag_size + 1)]
    feature = bag_feature(group, stage)
    ids_Ls, targets_Lk = feature["input_ids"], feature["labels"]
    assert ids_Ls.shape == (L, stage.input_bag_size)
    assert torch.equal(ids_Ls.flatten(), torch.arange(stage.input_bag_size * L))
    expected = ids_Ls[:, -1:] + torch.arange(1, stage.num_targets + 1)
    assert torch.equal(targets_Lk, expected)


def test_without_a_row_after_the_group_only_the_last_bag_is_ignored() -> None:
    feature = bag_feature([row["input_ids"] for row in rows(2)], Stage(2, 1))
    assert (feature["labels"][-1] == -100).all()
    assert (feature["labels"][:-1] != -100).all()


def test_rows_of_several_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="differ in length"):
        bag_feature([[1, 2, 3], [4, 5]], Stage(2, 1))


@settings(deadline=None, max_examples=40)
@given(
    bag_size=st.integers(2, 4),
    steps=st.integers(4, 40),
    ratio=st.floats(0.1, 0.7),
    num_rows=st.integers(12, 60),
    seed=st.integers(0, 9),
)
def test_every_row_is_read_once_a_pass(bag_size: int, steps: int, ratio: float, num_rows: int, seed: int) -> None:
    schedule = Schedule.two_phase(steps, bag_size, ratio)
    keys = [key for batch in sampler(num_rows, schedule, seed=seed) for key in batch]
    read = Counter(number for key in keys for number in key.numbers[: key.stage.bag_size])
    epochs = read.total() // num_rows
    assert {read[number] for number in range(num_rows)} <= {epochs, epochs + 1}
    assert sampler(num_rows, schedule, seed=seed).stream.coverage().raw_tokens == read.total()


def test_epochs_of_the_trainer_go_on_where_the_one_before_stopped() -> None:
    schedule = Schedule.two_phase(10, 2, 0.3)
    whole = list(sampler(40, schedule))
    parts = sampler(40, schedule, steps_per_epoch=4)
    pieces = []
    for epoch in range(3):
        parts.set_epoch(epoch)
        pieces += list(parts)
    assert pieces == whole
    assert [key.stage.bag_size for key, _ in whole] == [2] * 3 + [1] * 7


def test_recovery_yields_the_data_sets_own_rows() -> None:
    schedule = Schedule.two_phase(4, 2, 0.5)
    data, keys = rows(20), sampler(20, schedule)
    features = [[BagRows(data, keys, "input_ids")[key] for key in batch] for batch in keys]
    assert features[0][0]["input_ids"].shape == (L, 2)
    assert features[-1][0] in data  # columns and all


def test_a_stream_is_read_front_to_back_and_nothing_is_lost_at_the_switch() -> None:
    schedule = Schedule.two_phase(4, 2, 0.5)
    features = list(BagStream(rows(100), schedule, rows_per_step=2, column="input_ids"))
    bags, plain = features[:4], features[4:]
    assert torch.cat([feature["input_ids"].flatten() for feature in bags]).tolist() == list(range(8 * L))
    assert [row["n"] for row in plain] == [8, 9, 10, 11]
    for feature in bags:
        assert torch.equal(feature["labels"], feature["input_ids"] + 2)


def test_a_stream_begins_again_when_it_ends() -> None:
    features = list(BagStream(rows(3), Schedule([Stage(1, 7)]), rows_per_step=1, column="input_ids"))
    assert [row["n"] for row in features] == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(UserError, match="no rows"):
        next(iter(BagStream([], Schedule([Stage(1, 1)]), rows_per_step=1, column="input_ids")))


def test_fewer_rows_than_a_group_are_refused() -> None:
    with pytest.raises(UserError, match="has 3 rows, but a group of this run takes 4"):
        sampler(3, Schedule.two_phase(4, 4, 0.5))
