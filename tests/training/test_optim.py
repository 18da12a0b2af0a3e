"""The learning rate, the parameter groups, and steps that are skipped."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from tests.conftest import tiny_model
from token_superposition.training.config import TrainConfig
from token_superposition.training.optim import build_learning_rate, build_optimizers


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
    (optimizer,) = build_optimizers(model, TrainConfig(weight_decay=0.1), torch.device("cpu")).parts
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_adamw_is_fused_and_asks_nobody_whether_to_skip(device: str, fused: bool) -> None:
    optimizers = build_optimizers(torch.nn.Linear(3, 2), TrainConfig(), torch.device(device))
    assert [group["fused"] for part in optimizers.parts for group in part.param_groups] == [fused, fused]
    assert optimizers._skips_on_device == fused


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_muon_takes_the_matrices_between_embedding_and_head(family: str, tied: bool) -> None:
    model = tiny_model(family, tied=tied)
    muon, adamw = build_optimizers(
        model, TrainConfig(optimizer="muon", muon_momentum=0.9, weight_decay=0.2), torch.device("cpu")
    ).parts
    assert isinstance(muon, torch.optim.Muon)
    (group,) = muon.param_groups
    assert (group["momentum"], group["weight_decay"], group["adjust_lr_fn"]) == (0.9, 0.2, "match_rms_adamw")
    groups = {id(p): part for part in (muon, adamw) for group in part.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        outside = any(word in name for word in ("embed", "lm_head", "wte", "wpe", "norm", "ln_", "bias", "experts"))
        assert (groups[id(parameter)] is adamw) == outside, name
    assert len(groups) == sum(len(g["params"]) for part in (muon, adamw) for g in part.param_groups)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_leaves_weights_and_state_as_they_are(name: Literal["adamw", "muon"]) -> None:
    model = tiny_model("llama", tied=True)
    optimizers = build_optimizers(model, TrainConfig(optimizer=name), torch.device("cpu"))

    def step(skip: bool) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if skip else 0.5)
        optimizers.step(1e-2, skip=torch.tensor(skip))
        assert all(parameter.grad is None for parameter in model.parameters())

    step(False)
    weights, states = copy.deepcopy(model.state_dict()), [copy.deepcopy(part.state_dict()) for part in optimizers.parts]
    step(True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    for part, before in zip(optimizers.parts, states, strict=True):
        torch.testing.assert_close(part.state_dict()["state"], before["state"], rtol=0, atol=0)
    step(False)
    assert not any(torch.equal(t, weights[key]) for key, t in model.state_dict().items() if "norm" not in key)
