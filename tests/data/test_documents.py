"""Document-safe bags: against a plain reference, exactly once an epoch, whoever reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ArrayTokens
from token_superposition import Schedule, Stage
from token_superposition.data.documents import DocumentRows
from token_superposition.data.stream import Batch, Source, TokenStream
from token_superposition.errors import UserError

END = 0
modes = st.sampled_from(["full", "output_only", "input_only"])
plans = st.lists(
    st.builds(Stage, bag_size=st.integers(1, 4), steps=st.integers(1, 6), mode=modes), min_size=1, max_size=3
)
documents = st.lists(st.integers(1, 30), min_size=1, max_size=30).filter(lambda lengths: sum(lengths) >= 20)


def corpus(lengths: list[int]) -> np.ndarray:
    """Documents of these lengths, each of its own numbers (so that a token tells its place) and an end token."""
    ids = np.arange(1, sum(lengths) + 1)
    ids[np.cumsum(lengths) - 1] = END
    return ids


def make(plan: list[Stage], lengths: list[int], **settings_: int) -> TokenStream:
    options = {"sequence_length": 4, "batch_size": 4, "seed": 0, "block_windows": 3, **settings_}
    return TokenStream(ArrayTokens(corpus(lengths)), Schedule(plan), documents_apart=True, **options)  # type: ignore[arg-type]


def bags_of(batch: Batch, lengths: list[int]) -> Iterator[tuple[int, int, int, list[int], list[int]]]:
    """For each position: its row, document, place of its first token there, the bag's ids and its targets."""
    ends = np.cumsum(lengths)
    for row, (ids_Ls, targets_Lk) in enumerate(zip(batch.ids.tolist(), batch.targets.tolist(), strict=True)):
        for ids, targets in zip(ids_Ls, targets_Lk, strict=True):
            place = ids[0] - 1 if ids[0] != END else -1  # the end token alone does not tell its document
            document = int(np.searchsorted(ends, place, side="right")) if place >= 0 else -1
            yield row, document, place - (ends[document] - lengths[document]), ids, targets


@settings(deadline=None, max_examples=150)
@given(plan=plans, lengths=documents, length=st.integers(1, 5), rows=st.integers(1, 4), seed=st.integers(0, 9))
def test_no_bag_and_no_target_crosses_the_end_of_a_document(
    plan: list[Stage], lengths: list[int], length: int, rows: int, seed: int
) -> None:
    try:
        stream = make(plan, lengths, sequence_length=length, batch_size=rows, seed=seed)
    except UserError:
        return  # too little text for a row
    text = corpus(lengths).tolist()
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    for batch in stream.batches():
        stage, size = batch.stage, batch.stage.input_bag_size
        assert batch.ids.shape == (rows, length, size)
        assert batch.targets.shape == (rows, length, stage.num_targets)
        assert batch.position_ids is not None
        for _, document, place, ids, targets in bags_of(batch, lengths):
            if document < 0:  # a bag of the end token alone: nothing before it, nothing after it
                assert set(ids[1:]) <= {-100}
                assert set(targets) == {-100}
                continue
            whole = text[starts[document] :][: lengths[document]]
            expected = whole[place : place + size]
            assert ids == expected + [-100] * (size - len(expected))
            ahead = whole[place + size :][: stage.num_targets]
            assert targets == ahead + [-100] * (stage.num_targets - len(ahead))


@settings(deadline=None, max_examples=150)
@given(
    plan=plans,
    lengths=documents,
    length=st.integers(1, 5),
    rows=st.integers(1, 3),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_token_is_an_input_exactly_once_an_epoch(
    plan: list[Stage], lengths: list[int], length: int, rows: int, ranks: int, seed: int
) -> None:
    """After any step, whatever the mix of bag sizes, batch sizes and ranks; padding is what is left of the slots."""
    options = {"sequence_length": length, "batch_size": rows * ranks, "seed": seed}
    try:
        streams = [make(plan, lengths, **options, rank=rank, world_size=ranks) for rank in range(ranks)]
    except UserError:
        return
    total, slots = sum(lengths), 0
    counts = np.zeros(total + 1, dtype=int)
    for step in range(streams[0].schedule.total_steps):
        for stream in streams:
            ids = stream.batch(step).ids.numpy()
            np.add.at(counts, ids[ids >= 0], 1)
            slots += ids.size
        read = counts.sum()
        epochs = read // total
        inner = np.delete(counts, np.cumsum(lengths))[1:]  # tokens told apart: all but the ends
        assert set(inner) <= {epochs, epochs + 1}
        assert epochs * len(lengths) <= counts[END] <= (epochs + 1) * len(lengths)
        coverage = streams[0].coverage(step + 1)
        assert coverage.raw_tokens == read
        assert coverage.unique_raw_tokens == min(read, total)
        assert coverage.padding_tokens == slots - read


def test_rows_equal_a_plain_reference() -> None:
    # One window (of 24 tokens) holds everything, so documents come in the order of the corpus.
    lengths = [5, 3, 1, 6]
    stream = make([Stage(2, 1), Stage(6, 1)], lengths, batch_size=2)
    batch = stream.batch(0)
    assert batch.ids.tolist() == [
        [[1, 2], [3, 4], [END, -100], [6, 7]],
        [[END, -100], [END, -100], [10, 11], [12, 13]],
    ]
    assert batch.targets.tolist() == [
        [[3, 4], [END, -100], [-100, -100], [END, -100]],
        [[-100, -100], [-100, -100], [12, 13], [14, END]],
    ]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 0, 0, 1]]


def test_the_next_stage_goes_on_inside_a_document() -> None:
    stream = make([Stage(3, 1), Stage(2, 1)], [17], sequence_length=3, batch_size=1)
    first, second = stream.batches()
    assert first.ids.tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]
    assert first.targets.tolist() == [[[4, 5, 6], [7, 8, 9], [10, 11, 12]]]
    assert second.ids.tolist() == [[[10, 11], [12, 13], [14, 15]]]
    assert second.targets.tolist() == [[[12, 13], [14, 15], [16, END]]]


def test_positions_restart_with_each_document_and_row() -> None:
    lengths = [7, 2, 9, 1, 4, 13, 5] * 3
    for batch in make([Stage(2, 6), Stage(1, 9)], lengths).batches():
        assert batch.position_ids is not None
        by_row = itertools.groupby(zip(bags_of(batch, lengths), batch.position_ids.flatten().tolist(), strict=True),
                                   key=lambda pair: pair[0][0])  # fmt: skip
        for _, pairs in by_row:
            before, expected = None, 0
            for (_, document, _, ids, _), position in pairs:
                if document < 0:  # the end token: of the document before it, or one of its own
                    assert position in (0, expected)
                    before, expected = None, 0
                    continue
                expected = expected if document == before else 0
                assert position == expected
                expected, before = expected + 1, document
                if END in ids:
                    before, expected = None, 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_going_on_from_any_step_on_any_number_of_ranks_gives_the_same_batches(ranks: int) -> None:
    plan, lengths = [Stage(4, 3), Stage(2, 3), Stage(1, 5)], [7, 2, 9, 1, 4, 13, 5] * 3
    whole = list(make(plan, lengths).batches())
    for first in range(len(whole)):
        for rank in range(ranks):
            stream = make(plan, lengths, rank=rank, world_size=ranks)
            for a, b in zip(stream.batches(first), whole[first:], strict=True):
                for name in ("ids", "targets", "position_ids"):
                    assert torch.equal(getattr(a, name), getattr(b, name).chunk(ranks)[rank])


def test_a_longer_run_reads_the_same_text_first() -> None:
    lengths = [7, 2, 9, 1, 4, 13, 5] * 9
    short, long = (make([Stage(2, 5), Stage(1, steps)], lengths) for steps in (9, 40))
    for step in range(14):
        assert torch.equal(short.batch(step).ids, long.batch(step).ids)


def test_other_epochs_and_seeds_give_other_orders() -> None:
    lengths = [7] * 40
    orders = [
        torch.cat([b.ids.flatten() for b in make([Stage(1, 70)], lengths, batch_size=1, seed=seed).batches()])
        for seed in (0, 1)
    ]
    assert not torch.equal(*orders)
    assert not torch.equal(orders[0][:140], orders[1][:140])

    epochs = torch.cat([b.ids.flatten() for b in make([Stage(1, 140)], lengths, batch_size=1).batches()]).chunk(2)
    assert (epochs[0] == epochs[1]).float().mean() < 0.3  # a seventh are ends


def test_neighbouring_rows_come_from_different_windows() -> None:
    lengths = [16] * 200  # a window each
    stream = make([Stage(4, 2), Stage(1, 20)], lengths, block_windows=16)
    for batch in stream.batches(2):
        documents_read = (batch.ids[:, 0, 0] - 1) // 16
        assert len(set(documents_read.tolist())) == 4


def test_a_mixture_keeps_documents_apart_too() -> None:
    texts = [corpus([7, 2, 9] * 5), corpus([4, 13, 5] * 5)]
    texts[1][texts[1] != END] += 1000
    sources = [Source(name, ArrayTokens(text)) for name, text in zip("ab", texts, strict=True)]
    options = {"sequence_length": 4, "batch_size": 4, "seed": 0}
    stream = TokenStream(sources, Schedule([Stage(2, 5), Stage(1, 20)]), documents_apart=True, **options)
    counts = {"a": 0, "b": 0}
    for batch in stream.batches():
        assert batch.position_ids is not None
        real = batch.ids >= 0
        for name, rows in (("a", (0, 2)), ("b", (1, 3))):
            counts[name] += int(real[list(rows)].sum())
    assert {name: each.raw_tokens for name, each in stream.coverages().items()} == counts


def test_what_follows_the_last_end_is_a_document_too() -> None:
    text = ArrayTokens(np.array([5, 5, END, END, 5, 5, 5]))
    options = {"sequence_length": 1, "window": 2, "block_windows": 1, "seed": 0}
    assert DocumentRows(text, [Stage(1, 1)], [None], **options).ends.tolist() == [3, 4, 7]  # type: ignore[arg-type]


def test_too_few_bags_for_a_row_are_refused() -> None:
    with pytest.raises(UserError, match=r"has 9 tokens, 3 bags of 4 with documents kept apart, but one row .* needs 4"):
        make([Stage(4, 1)], [8, 1])
