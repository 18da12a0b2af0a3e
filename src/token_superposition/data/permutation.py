"""A stateless seeded permutation of 0 .. n - 1.

A shuffled list of a corpus's windows would cost memory and start-up time that grow with the corpus, and
would have to be remembered across a resume. A Feistel network needs neither: it is a bijection on the
next power of four by construction, and walking its cycle until a value under n comes up ("cycle walking")
makes it a bijection on 0 .. n - 1. Any element is computed on its own from (seed, epoch, index).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a seeded permutation of 0 .. size - 1 sends each index.

    Args:
        index: integers in [0, size), any shape.
        size: how many there are, at least 1.
        seed, epoch: each pair is another permutation.

    Returns:
        int64 of the same shape.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch, size]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        value[outside] = _feistel(value[outside], half_bits, keys)
        outside = value >= size
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
