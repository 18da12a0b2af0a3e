"""The stream: every token once an epoch, the same whoever reads it, from any step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ArrayTokens
from token_superposition import Schedule, Stage, SuperpositionSchedule
from token_superposition.data.permutation import permute
from token_superposition.data.prefetch import prefetch
from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError

modes = st.sampled_from(["full", "output_only", "input_only"])
plans = st.lists(
    st.builds(Stage, bag_size=st.integers(1, 4), steps=st.integers(1, 6), mode=modes), min_size=1, max_size=3
)


def make(plan: list[Stage], num_tokens: int = 1000, **settings_: int) -> TokenStream:
    options = {"sequence_length": 4, "rows_per_step": 4, "seed": 0, "block_windows": 5, **settings_}
    return TokenStream(ArrayTokens(np.arange(num_tokens)), Schedule(plan), **options)  # type: ignore[arg-type]


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_the_permutation_is_one(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(size))


def test_seeds_and_epochs_give_other_orders() -> None:
    index = np.arange(1000)
    orders = [permute(index, 1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        assert np.mean(a == index) < 0.02
        assert all(np.mean(a == b) < 0.02 for b in orders[:i])
    # Neighbours do not stay neighbours.
    assert np.mean(np.abs(np.diff(orders[0])) == 1) < 0.02


@settings(deadline=None, max_examples=60)
@given(plan=plans, blocks=st.integers(1, 7), length=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_token_is_an_input_exactly_once_an_epoch(plan: list[Stage], blocks: int, length: int, seed: int) -> None:
    """Long enough to pass over the corpus several times; the counter is the plainest there is."""
    stream = make(plan, num_tokens=400, sequence_length=length, block_windows=blocks, seed=seed)
    counts = np.zeros(400, dtype=int)
    for batch in stream.batches():
        np.add.at(counts, batch.ids.flatten().numpy(), 1)
    coverage = stream.coverage()
    covered = stream.num_windows * stream.window
    assert not counts[covered:].any()
    assert coverage.tail_tokens == 400 - covered
    assert coverage.raw_tokens == counts.sum()
    assert coverage.unique_raw_tokens == (counts > 0).sum()
    if len(plan) == 1:  # without a skipped rest, counts differ by at most one: each epoch is complete first
        full_epochs = coverage.raw_tokens // covered
        assert set(counts[:covered]) <= {full_epochs, full_epochs + 1}
    touched = coverage.raw_tokens + coverage.skipped_tokens
    assert coverage.epochs == pytest.approx(touched / covered)
    if touched <= covered:
        assert counts.max() == 1


def test_no_epoch_begins_before_the_one_before_is_read() -> None:
    # 13 windows in blocks of 5: a third block of 5 would reach into the next epoch.
    stream = make([Stage(2, 30)], num_tokens=13 * 8 + 2, block_windows=5, rows_per_step=1)
    epochs = torch.cat([batch.ids.flatten() for batch in stream.batches()])[: 2 * 13 * 8].view(2, -1)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(13 * 8))


def test_what_a_stage_leaves_of_its_block_is_counted_at_an_epochs_end_too() -> None:
    plan = [Stage(1, 1), Stage(2, 1), Stage(3, 1)]  # the second stage's block is the epoch's last: 8 windows
    stream = make(plan, num_tokens=400, sequence_length=5, block_windows=5)
    seen = torch.cat([batch.ids.flatten() for batch in stream.batches()])
    coverage = stream.coverage()
    assert len(seen.unique()) == coverage.unique_raw_tokens < coverage.raw_tokens == len(seen)
    assert coverage.skipped_tokens == 13 * 30 - 20 - 40


def test_one_epoch_over_several_stages_reads_each_token_once() -> None:
    # 10 windows of 8 tokens a block; every stage ends with its block.
    plan = [Stage(2, 10), Stage(1, 20), Stage(2, 10, "output_only")]
    stream = make(plan, num_tokens=10_000, block_windows=10, rows_per_step=1)
    seen = torch.cat([batch.ids.flatten() for batch in stream.batches()])
    assert len(seen.unique()) == len(seen) == 80 + 80 + 40
    assert stream.coverage().skipped_tokens == 0


@settings(deadline=None, max_examples=30)
@given(plan=plans, seed=st.integers(0, 99))
def test_targets_are_what_follows_physically(plan: list[Stage], seed: int) -> None:
    for batch in make(plan, seed=seed).batches():
        s = batch.bag_size
        last_input = batch.ids[:, :, -1:]
        expected = last_input + torch.arange(1, s + 1)
        if batch.stage.mode == "input_only":
            expected = expected[..., :1]
        assert torch.equal(batch.targets, expected)
        starts = batch.ids[:, 0, 0]
        assert torch.equal(batch.ids.flatten(1), starts.unsqueeze(1) + torch.arange(batch.ids[0].numel()))


@settings(deadline=None, max_examples=30)
@given(plan=plans, ranks=st.sampled_from([1, 2, 4]), step=st.integers(0, 17))
def test_ranks_read_the_same_rows_between_them(plan: list[Stage], ranks: int, step: int) -> None:
    # Trap 10: every rank's batch of a step is of the same stage.
    alone = make(plan)
    step %= alone.schedule.total_steps
    whole = alone.batch(step)
    parts = [make(plan, rank=rank, world_size=ranks).batch(step) for rank in range(ranks)]
    assert {part.stage for part in parts} == {whole.stage}
    for rank, part in enumerate(parts):
        assert torch.equal(part.ids, whole.ids[rank::ranks])
        assert torch.equal(part.targets, whole.targets[rank::ranks])


def test_going_on_from_any_step_gives_the_same_batches() -> None:
    # Trap 8: no batch of the wrong phase's size is skipped, nothing starts again.
    plan = [Stage(4, 3), Stage(2, 3), Stage(1, 5)]
    whole = list(make(plan).batches())
    for first in range(len(whole)):
        for a, b in zip(make(plan).batches(first), whole[first:], strict=True):
            assert (a.step, a.stage, a.span) == (b.step, b.stage, b.span)
            assert torch.equal(a.ids, b.ids)


def test_recovery_goes_on_where_superposition_stopped() -> None:
    # Trap 8: the recovery that starts the corpus again is the commonest mistake.
    schedule = SuperpositionSchedule(40, 2, 0.5)
    stream = make(list(schedule.stages), num_tokens=10_000)
    first = torch.cat([stream.batch(step).ids.flatten() for step in range(20)])
    second = torch.cat([stream.batch(step).ids.flatten() for step in range(20, 40)])
    assert not set(first.tolist()) & set(second.tolist())


def test_prefetched_batches_carry_their_own_stage() -> None:
    # Trap 9: read ahead across the switch, each batch still has the shape of its own stage.
    plan = [Stage(3, 4), Stage(1, 4)]
    batches = list(prefetch(make(plan).batches(), depth=8))
    assert [batch.bag_size for batch in batches] == [3] * 4 + [1] * 4
    assert [batch.ids.shape[-1] for batch in batches] == [3] * 4 + [1] * 4
    assert [batch.step for batch in batches] == list(range(8))


def test_neighbouring_rows_come_from_different_windows() -> None:
    stream = make([Stage(1, 20)], num_tokens=10_000, block_windows=16)
    batch = stream.batch(3)
    windows = batch.ids[:, 0, 0] // stream.window
    assert len(set(windows.tolist())) == len(windows)


def test_latent_shapes_are_equal_in_both_phases() -> None:
    stream = make([Stage(4, 1), Stage(1, 1)])
    superposed, plain = stream.batches()
    assert superposed.ids.shape[:2] == plain.ids.shape[:2] == (4, 4)


def test_a_corpus_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="has 8 tokens, but one window of this run takes 10"):
        make([Stage(2, 1)], num_tokens=8)
    assert make([Stage(2, 1)], num_tokens=10).num_windows == 1


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    def broken() -> object:
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken())  # type: ignore[arg-type]
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


@pytest.mark.parametrize(("tokens", "length", "bag_size"), [(1_060_000, 256, 4), (10_000_000, 512, 8)])
def test_the_switch_leaves_little_of_a_small_corpus_unread(tokens: int, length: int, bag_size: int) -> None:
    schedule = SuperpositionSchedule(100, bag_size, 0.3)
    rows = int(0.6 * tokens / schedule.raw_tokens(length))
    corpus = ArrayTokens(np.arange(tokens))
    stream = TokenStream(corpus, schedule, sequence_length=length, rows_per_step=rows, seed=0)
    coverage = stream.coverage()
    assert coverage.epochs < 1
    assert coverage.skipped_tokens <= max(0.01 * tokens, rows * stream.window)
    assert stream.blocks.size >= rows


def test_a_longer_run_reads_the_same_text_first() -> None:
    short, long = (
        SuperpositionSchedule(40, 2, superposition_steps=10),
        SuperpositionSchedule(90, 2, superposition_steps=10),
    )
    streams = [
        TokenStream(ArrayTokens(np.arange(50_000)), schedule, sequence_length=4, rows_per_step=4, seed=0)
        for schedule in (short, long)
    ]
    for step in range(40):
        assert torch.equal(streams[0].batch(step).ids, streams[1].batch(step).ids)
