"""The stream: every token once an epoch, the same whoever reads it, from any step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ArrayTokens
from token_superposition import Schedule, Stage
from token_superposition.data.prefetch import prefetch
from token_superposition.data.sampler import permute
from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError

modes = st.sampled_from(["full", "output_only", "input_only"])
plans = st.lists(
    st.builds(Stage, bag_size=st.integers(1, 4), steps=st.integers(1, 6), mode=modes), min_size=1, max_size=3
)


def make(plan: list[Stage], num_tokens: int = 1000, **settings_: int) -> TokenStream:
    options = {"sequence_length": 4, "batch_size": 4, "seed": 0, "block_windows": 5, **settings_}
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


@settings(deadline=None, max_examples=150)
@given(
    plan=plans,
    num_tokens=st.integers(20, 400),
    length=st.integers(1, 5),
    rows=st.integers(1, 4),
    ranks=st.integers(1, 3),
    blocks=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_every_token_is_an_input_exactly_once_an_epoch(
    plan: list[Stage], num_tokens: int, length: int, rows: int, ranks: int, blocks: int, seed: int
) -> None:
    """Whatever the mix of bag sizes, batch sizes and ranks; the counter is the plainest there is.

    After any step: with n epochs behind it, each token was read n or n + 1 times. None is left out, at a change of
    stages or at the corpus's end, and none comes again before all have come.
    """
    options = {"sequence_length": length, "batch_size": rows * ranks, "block_windows": blocks, "seed": seed}
    streams = [make(plan, num_tokens, **options, rank=rank, world_size=ranks) for rank in range(ranks)]
    counts = np.zeros(num_tokens, dtype=int)
    for step in range(streams[0].schedule.total_steps):
        for stream in streams:
            np.add.at(counts, stream.batch(step).ids.flatten().numpy(), 1)
        epochs = counts.sum() // num_tokens
        assert set(counts) <= {epochs, epochs + 1}
        coverage = streams[0].coverage(step + 1)
        assert coverage.raw_tokens == counts.sum()
        assert coverage.unique_raw_tokens == (counts > 0).sum()
        assert coverage.epochs == counts.sum() / num_tokens


def test_one_epoch_of_the_papers_two_phases_reads_each_token_once() -> None:
    # 1,000 tokens: 25 rows of 16 in bags of 4, then 150 rows of 4. Nothing is skipped, nothing is left.
    stream = make([Stage(4, 5), Stage(1, 30)], num_tokens=1000, batch_size=5)
    seen = torch.cat([batch.ids.flatten() for batch in stream.batches()])
    assert torch.equal(seen.sort().values, torch.arange(1000))


@pytest.mark.parametrize(("bag_size", "num_tokens"), [(2, 10_000), (8, 10_000), (8, 9_999)])
def test_rows_have_no_seams(bag_size: int, num_tokens: int) -> None:
    """Where bag sizes divide each other, a row is one piece of text, in later epochs too; but one an epoch."""
    stream = make([Stage(bag_size, 300), Stage(2, 100), Stage(1, 900)], num_tokens=num_tokens)
    broken = 0
    for batch in stream.batches():
        ids = batch.ids.flatten(1)
        broken += int((ids.diff() != 1).any(dim=1).sum())
    assert broken <= stream.coverage().epochs


@settings(deadline=None, max_examples=30)
@given(plan=plans, seed=st.integers(0, 99))
def test_targets_are_what_follows_physically(plan: list[Stage], seed: int) -> None:
    """But for a row across the edge of a window, which goes on in the next one: its text has a seam."""
    for batch in make(plan, seed=seed).batches():
        s = batch.bag_size
        whole = (batch.ids.flatten(1).diff() == 1).all(dim=1)
        last_input = batch.ids[:, :, -1:]
        expected = (last_input + torch.arange(1, s + 1)) % 1000  # after the corpus's last token comes its first
        if batch.stage.mode == "input_only":
            expected = expected[..., :1]
        assert torch.equal(batch.targets[whole], expected[whole])
        assert torch.equal(batch.targets[:, -1], expected[:, -1])  # what follows the row is no seam


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
        assert torch.equal(part.ids, whole.ids.chunk(ranks)[rank])
        assert torch.equal(part.targets, whole.targets.chunk(ranks)[rank])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_going_on_from_any_step_on_any_number_of_ranks_gives_the_same_batches(ranks: int) -> None:
    # Trap 8: no batch of the wrong phase's size is skipped, nothing starts again.
    plan = [Stage(4, 3), Stage(2, 3), Stage(1, 5)]
    whole = list(make(plan).batches())
    for first in range(len(whole)):
        for rank in range(ranks):
            for a, b in zip(make(plan, rank=rank, world_size=ranks).batches(first), whole[first:], strict=True):
                assert (a.step, a.stage, a.span) == (b.step, b.stage, b.span)
                assert torch.equal(a.ids, b.ids.chunk(ranks)[rank])


def test_recovery_goes_on_where_superposition_stopped() -> None:
    # Trap 8: the recovery that starts the corpus again is the commonest mistake.
    schedule = Schedule.two_phase(40, 2, 0.5)
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
    windows = batch.ids[:, 0, 0] // stream.rows[0].window
    assert len(set(windows.tolist())) == len(windows)


def test_they_do_so_in_a_step_of_more_rows_than_a_block_has_windows() -> None:
    stream = make([Stage(2, 2), Stage(1, 4)], num_tokens=10_000, block_windows=2, batch_size=8)
    for batch in stream.batches():
        windows = batch.ids[:, 0, 0] // stream.rows[0].window
        assert len(set(windows.tolist())) == 8


def test_latent_shapes_are_equal_in_both_phases() -> None:
    stream = make([Stage(4, 1), Stage(1, 1)])
    superposed, plain = stream.batches()
    assert superposed.ids.shape[:2] == plain.ids.shape[:2] == (4, 4)


def test_each_epoch_has_another_order() -> None:
    stream = make([Stage(1, 120)], num_tokens=960)
    first, second = (
        torch.stack([stream.batch(step).ids[:, 0, 0] for step in range(start, start + 60)]) for start in (0, 60)
    )
    assert (first == second).float().mean() < 0.1


def test_ranks_that_do_not_divide_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the number of ranks, 3"):
        make([Stage(1, 1)], world_size=3)


def test_a_corpus_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(UserError, match="has 7 tokens, but one row of this run needs 8"):
        make([Stage(2, 1)], num_tokens=7)
    batch = make([Stage(2, 1)], num_tokens=8).batch(0)
    assert torch.equal(batch.ids[0].flatten(), torch.arange(8))
    assert batch.targets[0, -1].tolist() == [0, 1]


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    def broken() -> object:
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken())  # type: ignore[arg-type]
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_a_longer_run_reads_the_same_text_first() -> None:
    short, long = (
        Schedule.two_phase(40, 2, superposition_steps=10),
        Schedule.two_phase(90, 2, superposition_steps=10),
    )
    streams = [
        TokenStream(ArrayTokens(np.arange(50_000)), schedule, sequence_length=4, batch_size=4, seed=0)
        for schedule in (short, long)
    ]
    for step in range(40):
        assert torch.equal(streams[0].batch(step).ids, streams[1].batch(step).ids)


@pytest.mark.parametrize("stop", [0, 3, 5, 6, 7, 11, 12])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_state_goes_on_with_the_next_batch_whatever_the_ranks(stop: int, ranks: int) -> None:
    """Through JSON, across the switch at step 6 and an epoch's end."""
    plan = [Stage(4, 6), Stage(1, 6)]
    whole = list(make(plan, num_tokens=300))
    first = make(plan, num_tokens=300)
    for _, batch in zip(range(stop), first, strict=False):
        assert torch.equal(batch.ids, whole[batch.step].ids)
    state = json.loads(json.dumps(first.state_dict()))
    parts = [make(plan, num_tokens=300, rank=rank, world_size=ranks) for rank in range(ranks)]
    for part in parts:
        part.load_state_dict(state)
        assert len(part) == 12 - stop
    rest = list(zip(*parts, strict=True))
    assert [batches[0].step for batches in rest] == list(range(stop, 12))
    for batches in rest:
        for rank, batch in enumerate(batches):
            assert torch.equal(batch.ids, whole[batch.step].ids.chunk(ranks)[rank])
            assert torch.equal(batch.targets, whole[batch.step].targets.chunk(ranks)[rank])
    assert list(parts[0]) == []


def test_a_state_goes_on_in_a_longer_run() -> None:
    stream = make([Stage(4, 6), Stage(1, 6)], num_tokens=3000)
    next(iter(stream))
    longer = make([Stage(4, 6), Stage(1, 20)], num_tokens=3000)
    longer.load_state_dict(stream.state_dict())
    assert torch.equal(next(iter(longer)).ids, make([Stage(4, 6), Stage(1, 6)], num_tokens=3000).batch(1).ids)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_tokens": 301}, "corpus"),
        ({"plan": [Stage(4, 5), Stage(1, 7)]}, "schedule"),
        ({"plan": [Stage(2, 6), Stage(1, 6)]}, "schedule"),
        ({"batch_size": 8}, "batch_size"),
        ({"sequence_length": 2}, "sequence_length"),
        ({"seed": 1}, "seed"),
    ],
)
def test_a_state_of_another_run_is_refused(options: dict[str, Any], named: str) -> None:
    state = make([Stage(4, 6), Stage(1, 6)], num_tokens=300).state_dict()
    other = make(**{"plan": [Stage(4, 6), Stage(1, 6)], "num_tokens": 300, **options})
    with pytest.raises(UserError, match=f"its {named} is"):
        other.load_state_dict(state)
    assert other.step == 0


@pytest.mark.parametrize("damage", [{"step": -1}, {"step": 13}, {"step": None}, {"more": 1}])
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    stream = make([Stage(4, 6), Stage(1, 6)], num_tokens=300)
    with pytest.raises(UserError):
        stream.load_state_dict({**stream.state_dict(), **damage})
    with pytest.raises(UserError, match="not a state"):
        stream.load_state_dict({})


def test_a_batch_moves_with_all_of_its_tensors() -> None:
    batch = make([Stage(2, 1)], num_tokens=300).batch(0).to("meta")
    assert batch.ids.device.type == batch.targets.device.type == "meta"
    assert batch.position_ids is None
