"""Mixtures: each source within a row of its share, each with its own epochs, the same whoever reads them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ArrayTokens
from token_superposition import Schedule, Stage
from token_superposition.data.mixture import Interleaving, rounded_shares, weight_parts
from token_superposition.data.stream import Source, TokenStream

SIZES = (300, 500, 120)


def make(plan: list[Stage], weights: tuple[float, ...] = (5, 3, 2), **options: int) -> TokenStream:
    """Three corpora whose tokens are told apart by their thousands."""
    sources = [
        Source(name, ArrayTokens(np.arange(size) + 1000 * number), weight)
        for number, (name, size, weight) in enumerate(zip("abc", SIZES, weights, strict=True))
    ]
    options = {"sequence_length": 4, "batch_size": 4, "seed": 0, "block_windows": 5, **options}
    return TokenStream(sources, Schedule(plan), **options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=200)
@given(weights=st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_no_source_is_ever_a_whole_row_from_its_share(weights: list[int]) -> None:
    interleaving = Interleaving(weights)
    total = sum(weights)
    rows = np.arange(3 * interleaving.period)  # it repeats itself
    sources = interleaving.sources(rows)
    for source, weight in enumerate(weights):
        counts = np.concatenate([[0], (sources == source).cumsum()])
        # In whole numbers: |count - rows * weight / total| < 1.
        assert (np.abs(counts * total - np.arange(len(counts)) * weight) < total).all()
        assert np.array_equal(counts, interleaving.count(source, np.arange(len(counts))))


def test_the_papers_mixture_takes_turns() -> None:
    assert Interleaving([0.5, 0.5]).sources(np.arange(6)).tolist() == [0, 1, 0, 1, 0, 1]


@given(weights=st.lists(st.decimals("0.01", "9.99", places=2).map(float), min_size=1, max_size=4))
def test_weights_are_taken_as_they_are_written(weights: list[float]) -> None:
    parts = weight_parts(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    assert all(part * exact[0] == parts[0] * other for part, other in zip(parts, exact, strict=True))


def test_weights_of_many_parts_are_rounded() -> None:
    assert weight_parts([1 / 4, 3 / 4]) == [1, 3]
    assert weight_parts([2000, 8000]) == [1, 4]
    assert weight_parts([1, 9999]) == [1, 9999]
    assert weight_parts([1, 10_000]) == [1, 9999]
    assert weight_parts([0.1, 0.7, 0.2]) == [1, 7, 2]
    assert weight_parts([1e-3, 1]) == [1, 1000]
    assert weight_parts([1000, 7000, 123, 7000]) == [661, 4629, 81, 4629]
    assert weight_parts([1e-12, 1e-12, 1e12]) == [1, 1, 9998]
    assert rounded_shares([1, 3]) is None
    assert rounded_shares([1, 10_000]) == [0.0001, 0.9999]


@settings(deadline=None, max_examples=60)
@given(
    plan=st.lists(
        st.builds(
            Stage,
            bag_size=st.integers(1, 4),
            steps=st.integers(1, 20),
            mode=st.sampled_from(["full", "output_only", "input_only"]),
        ),
        min_size=1,
        max_size=3,
    ),
    weights=st.tuples(*[st.integers(1, 9)] * 3),
    rows=st.integers(1, 4),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_each_source_is_read_exactly_once_in_each_of_its_own_epochs(
    plan: list[Stage], weights: tuple[int, ...], rows: int, ranks: int, seed: int
) -> None:
    streams = [
        make(plan, weights, batch_size=rows * ranks, rank=rank, world_size=ranks, seed=seed) for rank in range(ranks)
    ]
    counts, rows_read = np.zeros(3000, dtype=int), np.zeros(3, dtype=int)
    for step in range(streams[0].schedule.total_steps):
        for stream in streams:
            ids = stream.batch(step).ids
            np.add.at(counts, ids.flatten().numpy(), 1)
            np.add.at(rows_read, ids[:, 0, 0].numpy() // 1000, 1)
        share = rows_read.sum() * np.array(weights) / sum(weights)
        assert (np.abs(rows_read - share) < 1).all()
        coverages = streams[0].coverages(step + 1)
        for number, (size, coverage) in enumerate(zip(SIZES, coverages.values(), strict=True)):
            read = counts[1000 * number :][:size]
            epochs = read.sum() // size
            assert set(read) <= {epochs, epochs + 1}
            assert coverage.raw_tokens == read.sum()
            assert coverage.unique_raw_tokens == (read > 0).sum()
            assert coverage.epochs == read.sum() / size
        assert streams[0].coverage(step + 1).raw_tokens == counts.sum()


def test_a_row_is_of_one_source() -> None:
    stream = make([Stage(2, 9), Stage(1, 9)])
    for batch in stream.batches():
        of = batch.ids.flatten(1) // 1000
        assert (of == of[:, :1]).all()
        places = stream.locate(batch.span.stage, np.arange(batch.span.first_row, batch.span.first_row + 4))
        assert [place.source for place in places] == of[:, 0].tolist()
        assert [place.start + 1000 * place.source for place in places] == batch.ids[:, 0, 0].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_going_on_from_any_step_on_any_number_of_ranks_gives_the_same_batches(ranks: int) -> None:
    plan = [Stage(4, 3), Stage(2, 3), Stage(1, 5)]
    whole = list(make(plan).batches())
    for first in range(len(whole)):
        for rank in range(ranks):
            for a, b in zip(make(plan, rank=rank, world_size=ranks).batches(first), whole[first:], strict=True):
                assert torch.equal(a.ids, b.ids.chunk(ranks)[rank])
                assert torch.equal(a.targets, b.targets.chunk(ranks)[rank])


def test_a_mixture_of_one_is_that_corpus() -> None:
    plan = Schedule([Stage(2, 9), Stage(1, 9)])
    corpus, options = ArrayTokens(np.arange(300)), {"sequence_length": 4, "batch_size": 4, "seed": 0}
    alone, mixed = (TokenStream(each, plan, **options) for each in (corpus, [Source("a", corpus, 0.3)]))
    for a, b in zip(alone.batches(), mixed.batches(), strict=True):
        assert torch.equal(a.ids, b.ids)
