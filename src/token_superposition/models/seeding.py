"""Seeding torch: every seed of the documented range starts another sequence of random numbers."""

from __future__ import annotations

import numpy as np
import torch

_WORDS = slice(3, 3 + 624)  # of the state as int64: the seed, two numbers that say what comes next, 624 words


def seed_torch(seed: int) -> None:
    """Seed torch's generators of every device.

    torch's generator of the CPU takes the lower 32 bits of a seed alone, so 0 and 2**32 would give the same weights.
    Larger seeds are therefore hashed into all of its state. Smaller ones give the numbers of `torch.manual_seed`.

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
