"""Measure the mutual information between tokens at distance d in a corpus, and fit a power law to it.

The plug-in estimate is mostly bias if there are few pairs for the size of the vocabulary: independent tokens then seem
to share more than text does at a distance of a few tokens. This module uses two corrections. They were chosen by the
remaining error of the shape, on sources with known mutual information (Markov chains, hidden chains of many words,
copying chains; some are in the tests) and on text:

- Each entropy is Grassberger's estimate ("Entropy estimates from insufficient samplings", 2003). Its bias is a fraction
  of the bias of the plug-in estimate.
- The mutual information that unrelated pairs seem to have is subtracted. It is the same estimate over pairs whose
  second token comes from another piece of the sample. Whole pieces are exchanged and not single tokens, so that such
  pairs repeat as often as the pairs of one piece (names, phrases). Shuffled tokens would leave a false tail.

An estimate from only the most frequent tokens has almost no bias and is a lower bound, but it falls too fast.
Therefore all tokens count. The remaining error is nearly the same share at every d, so it hardly changes slot weights.

The law is fitted by ordinary least squares. This keeps the near, large slots exact and the tail within a few hundredths
of the first weight. The law is linear at a given exponent, so only the exponent is searched: the search needs no start
value and cannot end in a local minimum.

In a mixture, tokens also share that they come from the same source, at any distance. This is part of the offset.

The sample is up to 10 million tokens in evenly spaced pieces: many places of the corpus, and no randomness. Pairs never
cross the end of a piece, and every distance has the same number of pairs. Pairs are counted by sorting, so time and
memory do not depend on the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from token_superposition.data.sampler import permute
from token_superposition.errors import UserError

_MOST_TOKENS = 10_000_000
_PIECE = 2048  # tokens, about one document; longer pieces would cover fewer places
_FEWEST_PIECES = 16
_FEWEST_DISTANCES = 8  # a bag size of 2 needs four distances, too few to fit three numbers
_NULLS = 5
_LEAST_NATS = 5e-3  # the minimum of I(1); a corpus below it is not text
_LEAST_FALL = 0.1  # the minimum fall over the measured distances, as a share of I(1)
_EXPONENTS = -np.geomspace(0.01, 16, 400)


class TokenSource(Protocol):
    """A sequence of token ids, such as `TokenDataset`."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens."""

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the tokens start .. start + length - 1."""


@dataclass(frozen=True)
class _Array:
    """Token ids in memory."""

    ids: NDArray[Any]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        return self.ids[start : start + length].astype(np.int64)


@dataclass(frozen=True)
class MutualInformation:
    """The measured mutual information, and the power law `offset + scale * d**exponent` that was fitted to it.

    Attributes:
        offset, scale, exponent: rounded to six digits, as in `slot_weights`.
        distances, nats: the distances d, and the estimates of I(d) in nats.
        noise: nats; the standard deviation of the estimate for pairs with no mutual information.
        num_tokens: the number of tokens in the sample.
    """

    offset: float
    scale: float
    exponent: float
    distances: tuple[int, ...]
    nats: tuple[float, ...]
    noise: float
    num_tokens: int

    @property
    def slot_weights(self) -> str:
        """The name of these weights in a configuration, such as `mutual_information:0.02,1.2,-1.3`."""
        return f"mutual_information:{self.offset:g},{self.scale:g},{self.exponent:g}"

    def at(self, distance: float) -> float:
        """Return the fitted law at a distance, in nats."""
        return self.offset + self.scale * distance**self.exponent

    @property
    def residual(self) -> float:
        """The largest error of the law, as a share of I(1); large if the estimates do not follow a power law."""
        off = max(abs(self.at(d) - nats) for d, nats in zip(self.distances, self.nats, strict=True))
        return off / self.nats[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {
            "offset": self.offset,
            "scale": self.scale,
            "exponent": self.exponent,
            "distances": list(self.distances),
            "nats": [float(f"{value:.6g}") for value in self.nats],
            "noise": float(f"{self.noise:.6g}"),
            "residual": float(f"{self.residual:.3g}"),
            "num_tokens": self.num_tokens,
        }

    def describe(self, bag_size: int) -> str:
        """Return one line of text, with the weights of a bag of this size."""
        weights = [self.at(slot) / self.at(1) for slot in range(1, min(bag_size, 8) + 1)]
        return (
            f"I(d) = {self.offset:.3g} + {self.scale:.3g} * d^{self.exponent:.3g} nats, over {self.num_tokens:,} "
            f"tokens, within {self.residual:.1%} of I(1) at every distance; weights "
            f"{', '.join(f'{weight:.2g}' for weight in weights)}{', ...' * (bag_size > len(weights))}"
        )


def fit_mutual_information(tokens: ArrayLike, bag_size: int) -> MutualInformation:
    """Measure the mutual information of token ids and fit the law; its `slot_weights` fit this bag size.

    Args:
        tokens: ids in the order of the text; consecutive rows may be given as a 2-D array.
        bag_size: s; distances up to 2s are measured, and at least up to 8.

    Raises:
        ValueError: if the ids are not integers of at least 0.
        UserError: if there are too few tokens, or if their mutual information does not fall with the distance.

    Example:
        >>> import numpy as np
        >>> draw = np.random.default_rng(0)
        >>> keep = draw.random(200_000) < 0.6  # a token repeats the token before it, or is drawn again
        >>> last = np.maximum.accumulate(np.where(keep, 0, np.arange(200_000)))
        >>> fit_mutual_information(draw.integers(0, 16, 200_000)[last], bag_size=4).slot_weights[:19]
        'mutual_information:'
    """
    array = np.asarray(tokens).reshape(-1)
    if not np.issubdtype(array.dtype, np.integer) or (len(array) and int(array.min()) < 0):
        raise ValueError("token ids must be integers of at least 0")
    return measure_corpora([_Array(array)], [1.0], bag_size, place="tokens")


def measure_corpora(
    corpora: Sequence[TokenSource], weights: Sequence[float], bag_size: int, *, place: str
) -> MutualInformation:
    """Measure corpora in proportion to their weights, and fit the law.

    Args:
        corpora: one corpus, or the sources of a mixture.
        weights: the weights of the sources; only their proportions matter.
        bag_size: the largest bag size of the run.
        place: the place of the corpora, for messages.

    Raises:
        UserError: if the corpora are too short, or if their mutual information does not fall with the distance.
    """
    distances = _distances(2 * bag_size)
    pieces = _sample(corpora, weights, max(_PIECE, 8 * distances[-1]), place)
    nats, noise = mutual_information(pieces, distances)
    offset, scale, exponent = (float(f"{number:.6g}") for number in fit_power_law(distances, nats))
    found = MutualInformation(offset, scale, exponent, tuple(distances), tuple(nats.tolist()), noise, pieces.size)
    fall = found.at(1) - found.at(distances[-1])
    if not (nats[0] > _LEAST_NATS + 5 * noise and fall > max(_LEAST_FALL * nats[0], 5 * noise)):
        raise UserError(
            f"slot_weights: mutual_information: in {place} the mutual information of tokens hardly falls with their "
            f"distance ({nats[0]:.2g} nats at 1, {nats[-1]:.2g} at {distances[-1]}, with noise of {noise:.1g}, over "
            f"{pieces.size:,} tokens), so no law can be fitted; use uniform or power_law, or more text"
        )
    return found


def mutual_information(pieces: NDArray[Any], distances: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    """Return the mutual information of the tokens of a piece at each distance.

    Args:
        pieces: (pieces, length) non-negative ids; the length is larger than the largest distance.
        distances: the distances d, each at least 1.

    Returns:
        (distances,) nats, and their noise in nats: the standard deviation over unrelated pairs.
    """
    present = np.unique(pieces)
    codes = np.searchsorted(present, pieces).astype(np.uint32)
    length = pieces.shape[1] - max(distances)
    pair: type[np.unsignedinteger[Any]] = np.uint32 if len(present) ** 2 <= 2**32 else np.uint64
    first: NDArray[Any] = np.multiply(codes[:, :length].ravel(), len(present), dtype=pair)
    first_entropy = _entropy(np.bincount(codes[:, :length].ravel()))

    def shared(second: NDArray[Any]) -> float:
        pairs = first + second
        pairs.sort()
        ends = np.flatnonzero(pairs[1:] != pairs[:-1])
        counts = np.diff(ends, prepend=-1, append=len(pairs) - 1)
        return first_entropy + _entropy(np.bincount(second)) - _entropy(counts)

    order = np.argsort(permute(np.arange(len(pieces)), len(pieces), 0, 0))
    nulls = []
    for turn in range(1, _NULLS + 1):
        other = np.empty_like(order)
        other[order] = np.roll(order, turn)  # never the piece itself
        nulls.append(shared(codes[other, :length].ravel()))
    nats = np.array([shared(codes[:, d : d + length].ravel()) for d in distances])
    return nats - np.mean(nulls), float(np.std(nulls, ddof=1))


def fit_power_law(distances: Sequence[int], values: ArrayLike) -> tuple[float, float, float]:
    """Fit `offset + scale * d**exponent` by least squares, and return `offset`, `scale` and `exponent`.

    Args:
        distances: the distances d.
        values: (distances,); values near 0 may be negative because of noise.

    Returns:
        An offset of at least 0, a scale of at least 0 (0 if the values do not fall), an exponent in [-16, -0.01].
    """
    d, y = np.asarray(distances, dtype=np.float64), np.asarray(values, dtype=np.float64)
    low, high = 0, len(_EXPONENTS) - 1
    best = int(np.argmin([_linear(d, y, k)[2] for k in _EXPONENTS]))
    left, right = _EXPONENTS[max(best - 1, low)], _EXPONENTS[min(best + 1, high)]
    golden = (5**0.5 - 1) / 2
    for _ in range(60):
        inner, outer = right - golden * (right - left), left + golden * (right - left)
        if _linear(d, y, inner)[2] <= _linear(d, y, outer)[2]:
            right = outer
        else:
            left = inner
    exponent = float((left + right) / 2)
    offset, scale, _ = _linear(d, y, exponent)
    return offset, scale, exponent


def _linear(d: NDArray[np.float64], y: NDArray[np.float64], exponent: float) -> tuple[float, float, float]:
    """Return the best offset and scale, both at least 0, at an exponent, and the sum of squared errors."""
    x = d**exponent
    spread = x - x.mean()
    scale = max(0.0, float(spread @ y / (spread @ spread)))
    offset = float(y.mean() - scale * x.mean())
    if offset < 0:
        offset, scale = 0.0, max(0.0, float(x @ y / (x @ x)))
    return offset, scale, float(np.sum((offset + scale * x - y) ** 2))


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return Grassberger's estimate of an entropy, in nats, from the count of each outcome."""
    times = np.bincount(counts[counts > 0])  # the number of outcomes with count n
    n = np.flatnonzero(times)
    # G(n) = digamma((2 * (n // 2) + 1) / 2) + log(2)
    sums = np.concatenate([[0.0], np.cumsum(2 / (2 * np.arange(n[-1] // 2) + 1))])
    g = sums[n // 2] - np.euler_gamma - np.log(2)
    total = float(n @ times[n])
    return float(np.log(total) - (n * times[n]) @ g / total)


def _distances(furthest: int) -> list[int]:
    """Return all distances up to 16, and then eight per octave, which is enough for a smooth curve."""
    furthest = max(furthest, _FEWEST_DISTANCES)
    apart = [*range(1, min(furthest, 16) + 1)]
    if furthest > 16:
        octaves = np.log2(furthest / 16)
        apart += np.unique(np.geomspace(16, furthest, round(8 * octaves) + 2).round().astype(int))[1:].tolist()
    return apart


def _sample(corpora: Sequence[TokenSource], weights: Sequence[float], length: int, place: str) -> NDArray[np.uint32]:
    """Return (pieces, length): evenly spaced pieces of each corpus, in proportion to its weight."""
    shares = [weight / sum(weights) for weight in weights]
    most = [corpus.num_tokens / length / share for corpus, share in zip(corpora, shares, strict=True)]
    total = min(_MOST_TOKENS / length, *most)
    pieces = []
    for corpus, share in zip(corpora, shares, strict=True):
        number = min(round(total * share), corpus.num_tokens // length)
        step = (corpus.num_tokens - length) / max(number - 1, 1)
        pieces += [corpus.read(int(index * step), length).astype(np.uint32) for index in range(number)]
    if len(pieces) < _FEWEST_PIECES:
        raise UserError(
            f"slot_weights: mutual_information: {place} is too short to measure: {_FEWEST_PIECES} pieces of "
            f"{length:,} tokens are needed, {_FEWEST_PIECES * length:,} in total and from each source its share; use "
            "power_law, or more text"
        )
    return np.stack(pieces)
