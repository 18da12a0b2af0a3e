"""Seed torch such that every seed of the documented range starts a different sequence of random numbers."""

from __future__ import annotations

import numpy as np
import torch

_WORDS = slice(3, 3 + 624)  # the state as int64: the seed, two numbers for the position in the sequence, 624 words


def seed_torch(seed: int) -> None:
    """Seed the torch generators of all devices.

    The CPU generator of torch uses only the lower 32 bits of a seed, so the seeds 0 and 2**32 would give the same
    weights. Therefore a seed of 2**32 or more is hashed into the whole state of the generator. A smaller seed gives the
    numbers of `torch.manual_seed`.

    Args:
        seed: from 0 to 2**63 - 1.
    """
    torch.manual_seed(seed)
    if seed < 2**32:
        return
    state = torch.get_rng_state()
    words = np.random.SeedSequence(seed).generate_state(624, np.uint32)
    state[: _WORDS.stop * 8].view(torch.int64)[_WORDS] = torch.from_numpy(words.astype(np.int64))
    torch.set_rng_state(state)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of the random numbers of one optimizer step, such as those of dropout.

    The numbers depend on nothing else, so that a resumed run needs no state of a generator, on any number of ranks.

    Args:
        seed: the run's seed.
        step: the step, counted from 0.
        rank: the data-parallel rank.

    Example:
        >>> step_seed(0, 10) == step_seed(0, 10), step_seed(0, 10) == step_seed(0, 11)
        (True, False)
    """
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint32)[0])
