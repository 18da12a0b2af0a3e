"""Bag rows of a data set: aligned, each row once a pass, the same after a resume."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from token_superposition import Schedule, Stage
from token_superposition.errors import UserError
from token_superposition.integrations.bag_rows import BagRows, BagStream, RunSampler
from token_superposition.integrations.folding import Folding, Group

L = 8


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of an ordered sequence: row n holds n * L ... n * L + L - 1."""
    return [{"input_ids": list(range(n * L, (n + 1) * L)), "n": n} for n in range(number)]


def folded(groups: list[Group]) -> dict[str, Tensor]:
    """A batch of bags; every token is its own label."""

    def collate(features: list[Any]) -> dict[str, Tensor]:
        ids = torch.tensor([feature["input_ids"] for feature in features])
        return {"input_ids": ids, "labels": ids}

    return Folding(collate, "input_ids", frozenset(), None)(groups)


def group_of(stage: Stage, data: list[dict[str, Any]]) -> Group:
    return Group(stage, tuple(range(len(data))), tuple(data))


def sampler(num_rows: int, schedule: Schedule, **options: int) -> RunSampler:
    options = {"batch_size": 2, "batches_per_step": 1, "steps_per_epoch": schedule.total_steps, "seed": 0, **options}
    return RunSampler(num_rows, schedule, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["full", "output_only", "input_only"])
@pytest.mark.parametrize("bag_size", [2, 3, 4])
def test_what_a_bag_predicts_follows_it_in_the_text(mode: Any, bag_size: int) -> None:
    stage = Stage(bag_size, 1, mode)
    batch = folded([group_of(stage, rows(stage.input_bag_size + 1))])
    ids_Ls, targets_Lk = batch["input_ids"][0], batch["labels"][0]
    assert ids_Ls.shape == (L, stage.input_bag_size)
    assert torch.equal(ids_Ls.flatten(), torch.arange(stage.input_bag_size * L))
    expected = ids_Ls[:, -1:] + torch.arange(1, stage.num_targets + 1)
    assert torch.equal(targets_Lk, expected)


def test_without_a_row_after_the_group_only_the_last_bag_is_ignored() -> None:
    labels_Lk = folded([group_of(Stage(2, 1), rows(2))])["labels"][0]
    assert (labels_Lk[-1] == -100).all()
    assert (labels_Lk[:-1] != -100).all()


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
        parts.first_step = 4 * epoch
        pieces += list(parts)
    assert pieces == whole
    assert [key.stage.bag_size for key, _ in whole] == [2] * 3 + [1] * 7


def test_recovery_yields_the_data_sets_own_rows() -> None:
    schedule = Schedule.two_phase(4, 2, 0.5)
    data, keys = rows(20), sampler(20, schedule)
    features = [[BagRows(data)[key] for key in batch] for batch in keys]
    assert folded(features[0])["input_ids"].shape == (2, L, 2)
    assert features[-1][0] in data  # columns and all


@pytest.mark.parametrize("first_step", [0, 1])
def test_a_stream_is_read_front_to_back_and_nothing_is_lost_at_the_switch(first_step: int) -> None:
    """Where it starts at a later step, the data starts at its front and the step has its own stage."""
    stream = BagStream(rows(100), Schedule.two_phase(4, 2, 0.5), rows_per_step=2)
    stream.first_step = first_step
    features = list(stream)
    num_bags = 4 - 2 * first_step
    bags, plain = folded(features[:num_bags]), features[num_bags:]
    assert bags["input_ids"].flatten().tolist() == list(range(num_bags * 2 * L))
    assert [row["n"] for row in plain] == list(range(2 * num_bags, 2 * num_bags + 4))
    assert torch.equal(bags["labels"], bags["input_ids"] + 2)


def test_a_stream_begins_again_when_it_ends() -> None:
    features = list(BagStream(rows(3), Schedule([Stage(1, 7)]), rows_per_step=1))
    assert [row["n"] for row in features] == [0, 1, 2, 0, 1, 2, 0]
    groups = list(BagStream(rows(4), Schedule([Stage(2, 3)]), rows_per_step=1))
    assert [group.numbers for group in groups] == [(0, 1, 2), (2, 3), (0, 1, 2)]  # nothing follows row 3
    with pytest.raises(UserError, match="no rows"):
        next(iter(BagStream([], Schedule([Stage(1, 1)]), rows_per_step=1)))


def test_fewer_rows_than_a_group_are_refused() -> None:
    with pytest.raises(UserError, match="has 3 rows, but a group of this run needs 4"):
        sampler(3, Schedule.two_phase(4, 4, 0.5))
