"""The mutual information of sources whose own is known, the law fitted to it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import ArrayTokens
from token_superposition import fit_mutual_information
from token_superposition.data.mutual_information import fit_power_law, measure_corpora, mutual_information
from token_superposition.errors import UserError

DISTANCES = [1, 2, 3, 4, 6, 8]
Matrix = NDArray[np.float64]
Ids = NDArray[np.int64]


def zipf(size: int) -> Matrix:
    weights = 1 / np.arange(1, size + 1)
    return weights / weights.sum()


def draw(generator: np.random.Generator, probabilities: Matrix, size: int) -> Ids:
    return np.searchsorted(probabilities.cumsum()[:-1], generator.random(size))


def chain(generator: np.random.Generator, size: int) -> Matrix:
    """Transitions with a few favourites for each state, over a Zipf background."""
    matrix = 0.4 * np.tile(zipf(size), (size, 1))
    for share in (0.3, 0.2, 0.1):
        matrix[np.arange(size), generator.permutation(size)] += share
    return matrix


def walk(generator: np.random.Generator, matrix: Matrix, pieces: int, length: int) -> Ids:
    """(pieces, length): runs of a Markov chain, each from its stationary state."""
    cumulative = matrix.cumsum(axis=1)
    state = np.zeros(pieces, dtype=np.int64)
    out = np.empty((pieces, length), dtype=np.int64)
    for step in range(-40, length):
        state = (cumulative[state] < generator.random(pieces)[:, None]).sum(axis=1).clip(max=len(matrix) - 1)
        out[:, max(step, 0)] = state
    return out


def information(matrix: Matrix) -> Matrix:
    """I(d) of a Markov chain, exactly, from the powers of its transitions."""
    stationary = np.linalg.matrix_power(matrix, 400)[0]
    powers = [np.linalg.matrix_power(matrix, d) for d in DISTANCES]
    return np.array([np.sum(stationary[:, None] * power * np.log(power / stationary)) for power in powers])


def plug_in(first: Ids, second: Ids) -> float:
    """Mutual information of the pairs as they were counted."""

    def entropy(ids: Ids) -> float:
        shares = np.unique(ids, return_counts=True)[1] / ids.size
        return float(-np.sum(shares * np.log(shares)))

    return entropy(first) + entropy(second) - entropy(first * 2**16 + second)


def copying(generator: np.random.Generator, marginal: Matrix, pieces: int, length: int, tail: float) -> Ids:
    """Each token is the one before it or a fresh one; how often differs by piece, so that the decay is a power law.

    With copying rates of density proportional to (1 - rate)**(tail - 1), tokens d apart are copies of each other with a
    probability of about d**-tail.
    """
    rates = 1 - ((np.arange(pieces) + 0.5) / pieces) ** (1 / tail)
    out = np.empty((pieces, length), dtype=np.int64)
    out[:, 0] = draw(generator, marginal, pieces)
    for step in range(1, length):
        copied = generator.random(pieces) < rates
        out[:, step] = np.where(copied, out[:, step - 1], draw(generator, marginal, pieces))
    return out


def copying_information(marginal: Matrix, pieces: int, tail: float) -> Matrix:
    """I(d) of `copying`, exactly."""
    rates = 1 - ((np.arange(pieces) + 0.5) / pieces) ** (1 / tail)
    nats = []
    for d in DISTANCES:
        copies = float(np.mean(rates**d))
        equal = copies * marginal + (1 - copies) * marginal**2
        apart = (1 - copies) * (1 - np.sum(marginal**2))
        nats.append(np.sum(equal * np.log(equal / marginal**2)) + apart * np.log(1 - copies))
    return np.array(nats)


def test_a_markov_chain_of_bytes_is_measured_within_a_hundredth() -> None:
    generator = np.random.default_rng(0)
    matrix = chain(generator, 256)
    truth = information(matrix)
    nats, noise = mutual_information(walk(generator, matrix, 1000, 1000), DISTANCES)
    assert nats == pytest.approx(truth, rel=0.01, abs=1e-3)
    assert 0 < noise < 1e-3


def test_a_large_vocabulary_keeps_the_shape_of_the_decay() -> None:
    """Each of 64 states of a chain says one of 512 words: 32,768 words, and the mutual information of the states."""
    generator = np.random.default_rng(0)
    matrix = chain(generator, 64)
    truth = information(matrix)
    states = walk(generator, matrix, 1000, 1000)
    pieces = states * 512 + draw(generator, zipf(512), states.size).reshape(states.shape)
    nats, _ = mutual_information(pieces, DISTANCES)
    naive = np.array([plug_in(pieces[:, :-d], pieces[:, d:]) for d in DISTANCES])
    assert naive[-1] > 100 * truth[-1] + 0.5  # what is corrected here
    assert np.all(nats <= truth + 0.001)
    assert nats[0] > 0.35 * truth[0]
    assert nats / nats[0] == pytest.approx(truth / truth[0], abs=0.04)


def test_repetition_leaves_no_false_tail() -> None:
    """Tokens stand about ten times in a row: their pairs repeat too, and tell nothing about tokens 100 apart."""
    generator = np.random.default_rng(0)
    starts = np.where(generator.random(500_000) < 0.1, np.arange(500_000), 0)
    ids = draw(generator, zipf(4096), 500_000)[np.maximum.accumulate(starts)]
    nats, _ = mutual_information(ids.reshape(500, 1000), [1, 100])
    assert nats[0] > 1
    assert abs(nats[1]) < 0.02


@pytest.mark.parametrize(("size", "off"), [(256, 0.05), (32_768, 0.25)])
def test_the_exponent_of_a_power_law_is_found(size: int, off: float) -> None:
    marginal = zipf(size)
    truth = copying_information(marginal, 1000, tail=1.2)
    nats, _ = mutual_information(copying(np.random.default_rng(0), marginal, 1000, 1000, tail=1.2), DISTANCES)
    *_, exponent = fit_power_law(DISTANCES, nats)
    *_, wanted = fit_power_law(DISTANCES, truth)
    assert exponent == pytest.approx(wanted, abs=off)


@pytest.mark.parametrize(("size", "num_tokens"), [(256, 200_000), (32_768, 200_000), (3, 40_000)])
def test_independent_tokens_share_nothing(size: int, num_tokens: int) -> None:
    ids = draw(np.random.default_rng(0), zipf(size), num_tokens)
    nats, noise = mutual_information(ids[: num_tokens // 1000 * 1000].reshape(-1, 1000), DISTANCES)
    assert np.abs(nats).max() < 6 * noise + 1e-3
    with pytest.raises(UserError, match=r"hardly falls with their distance .* use uniform or power_law"):
        fit_mutual_information(ids, 4)


def test_what_does_not_fall_is_refused() -> None:
    """Documents about one thing each: much in common, at every distance the same."""
    generator = np.random.default_rng(0)
    topics = np.repeat(generator.integers(0, 8, 64), 2048)
    with pytest.raises(UserError, match="hardly falls"):
        fit_mutual_information(topics * 32 + generator.integers(0, 32, len(topics)), 2)


@settings(max_examples=40, deadline=None)
@given(
    offset=st.just(0.0) | st.floats(0.001, 1),
    scale=st.floats(0.05, 5),
    exponent=st.floats(-4, -0.3),
    furthest=st.integers(8, 32),
)
def test_an_exact_power_law_is_found_again(offset: float, scale: float, exponent: float, furthest: int) -> None:
    d = np.arange(1, furthest + 1)
    found = fit_power_law(d.tolist(), offset + scale * d**exponent)
    assert found == pytest.approx((offset, scale, exponent), rel=2e-3, abs=2e-3 * scale)


@settings(max_examples=40, deadline=None)
@given(exponent=st.floats(-3, -0.7), seed=st.integers(0, 10**6))
def test_noise_moves_the_fit_little(exponent: float, seed: int) -> None:
    d = np.arange(1, 17)
    noise = np.random.default_rng(seed).normal(0, 0.005, len(d))  # as much as the curve's tail, which turns negative
    offset, scale, found = fit_power_law(d.tolist(), 0.01 + d**exponent + noise)
    assert offset >= 0
    assert scale >= 0
    assert found == pytest.approx(exponent, abs=0.3)
    assert offset + scale * d**found == pytest.approx(0.01 + d**exponent, abs=0.03)


def test_an_offset_is_never_negative() -> None:
    offset, scale, exponent = fit_power_law([1, 2, 3, 4, 5, 6, 7, 8], [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert offset == 0
    assert scale + offset == pytest.approx(0.8, abs=0.2)
    assert -1 < exponent < 0


def test_a_curve_that_rises_gives_a_scale_of_nothing() -> None:
    assert fit_power_law([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])[:2] == (pytest.approx(0.25), 0)


def text_like(num_tokens: int, seed: int = 0) -> Ids:
    generator = np.random.default_rng(seed)
    return walk(generator, chain(generator, 32), num_tokens // 2048 + 1, 2048).reshape(-1)[:num_tokens]


def test_tokens_of_ones_own_give_slot_weights() -> None:
    ids = text_like(100_000)
    found = fit_mutual_information(ids, 4)
    assert found == fit_mutual_information(ids.reshape(-1, 500), 4)  # rows that follow one another
    assert found == fit_mutual_information(ids.astype(np.uint16), 4)
    assert found.distances == (1, 2, 3, 4, 5, 6, 7, 8)
    assert found.slot_weights == f"mutual_information:{found.offset:g},{found.scale:g},{found.exponent:g}"
    assert found.at(1) == pytest.approx(found.nats[0], rel=0.05)
    worst = max(abs(found.at(d) - nats) for d, nats in zip(found.distances, found.nats, strict=True))
    assert found.residual == pytest.approx(worst / found.nats[0])
    assert found.as_dict()["residual"] == pytest.approx(found.residual, rel=1e-2)
    assert f"within {found.residual:.1%} of I(1)" in found.describe(4)


def test_distances_reach_two_bags_and_stay_few() -> None:
    assert fit_mutual_information(text_like(100_000), 2).distances[-1] == 8
    distances = fit_mutual_information(text_like(200_000), 64).distances
    assert distances[:16] == tuple(range(1, 17))
    assert distances[-1] == 128
    assert len(distances) < 50


def test_a_corpus_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokens is too short .* 16 pieces of 2,048 tokens.* 32,768 in total"):
        fit_mutual_information(text_like(32_000), 4)
    with pytest.raises(UserError, match="too short"):
        fit_mutual_information(np.zeros(0, dtype=np.int64), 4)


@pytest.mark.parametrize("ids", [[0.5, 1.0], [-1, 2], ["a"]])
def test_what_is_no_id_is_refused(ids: list[object]) -> None:
    with pytest.raises(ValueError, match="integers of at least 0"):
        fit_mutual_information(ids, 4)  # type: ignore[arg-type]


class Watched(ArrayTokens):
    """A corpus that knows how much was read of it, and up to where."""

    taken = 0
    furthest = 0

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        self.taken += length
        self.furthest = max(self.furthest, start + length)
        return super().read(start, length)


def test_sources_are_sampled_by_weight_and_throughout() -> None:
    web, code = Watched(text_like(400_000)), Watched(text_like(100_000, seed=1))
    found = measure_corpora([web, code], [3, 2], 2, place="both")
    assert found.num_tokens == web.taken + code.taken
    assert web.taken / code.taken == pytest.approx(1.5, rel=0.05)
    assert code.taken > 90_000  # the scarcer of the two, whole
    assert web.furthest == web.num_tokens
    with pytest.raises(UserError, match="both is too short"):
        measure_corpora([web, Watched(text_like(2000))], [1, 1], 2, place="both")
