"""Every seed of the documented range gives other numbers, and small ones those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from token_superposition.data.sampler import permute
from token_superposition.models.seeding import seed_torch
from token_superposition.models.spec import ModelSpec


def _drawn(seed: int) -> list[float]:
    seed_torch(seed)
    return [*torch.randn(5).tolist(), *torch.rand(20).tolist()]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_small_seeds_keep_torch_s_numbers(seed: int) -> None:
    torch.manual_seed(seed)
    theirs = [*torch.randn(5).tolist(), *torch.rand(20).tolist()]
    assert _drawn(seed) == theirs


def test_no_two_seeds_give_the_same_numbers() -> None:
    seeds = [0, 1, 5, 2**32, 2**32 + 1, 2**33, 2**33 + 5, 2**62, 2**63 - 1]
    drawn = [tuple(_drawn(seed)) for seed in seeds]
    assert len(set(drawn)) == len(seeds)
    assert drawn == [tuple(_drawn(seed)) for seed in seeds]  # and each gives its own again
    seed_torch(2**40)
    many = torch.rand(100_000)
    assert abs(many.mean().item() - 0.5) < 0.01
    assert len(many.unique()) > 99_000


def test_seeds_that_share_32_bits_give_other_weights_and_another_order() -> None:
    architecture, config = TINY["llama"]
    weights, orders = [], []
    for seed in (3, 2**32 + 3, 2**40 + 3):
        keys = {**config, "hidden_size": 16, "intermediate_size": 16}
        model = ModelSpec(architecture, keys, vocab_size=64, eos_id=0).build(seed=seed)
        weights.append(tuple(next(model.parameters()).flatten()[:4].tolist()))
        orders.append(tuple(permute(np.arange(1000), 1000, seed, 0).tolist()))
    assert len(set(weights)) == 3
    assert len(set(orders)) == 3
