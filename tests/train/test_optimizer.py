"""The learning rate and the parameter groups."""

from __future__ import annotations

import pytest
import torch

from token_superposition.train.config import TrainConfig
from token_superposition.train.optimizer import build_learning_rate, build_optimizer


def test_warmup_stable_decay() -> None:
    config = TrainConfig(total_steps=100, learning_rate=1.0, warmup_ratio=0.1, decay_ratio=0.2)
    rate = build_learning_rate(config)
    rates = [rate.at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx([k / 20 for k in range(20, 0, -1)])


def test_the_decay_ends_at_its_ratio_and_may_be_left_out() -> None:
    config = TrainConfig(
        total_steps=10, learning_rate=2.0, warmup_ratio=0, decay_ratio=1, final_learning_rate_ratio=0.1
    )
    assert build_learning_rate(config).at(9) == pytest.approx(2 * (0.1 + 0.9 / 10))
    flat = TrainConfig(total_steps=10, learning_rate=2.0, warmup_ratio=0, decay_ratio=0)
    assert {build_learning_rate(flat).at(step) for step in range(10)} == {2.0}


def test_norms_and_biases_take_no_weight_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1), torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }
