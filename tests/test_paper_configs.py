"""The paper's runs as configurations: their sizes on the meta device, their raw tokens against its table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SHARED
from token_superposition.models.build import model_cost
from token_superposition.models.spec import ModelSpec
from token_superposition.training.config import RunConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DENSE = {"270m": 254e6, "600m": 561e6, "3b": 3.34e9}


def load(name: str) -> RunConfig:
    return load_config(CONFIGS / f"paper-{name}.yaml")


def build(name: str) -> Any:
    """The model without storage."""
    config = load(name)
    with torch.device("meta"):
        return ModelSpec(config.model.architecture, config.model.config, vocab_size=128_256, eos_id=0).build_unchecked()


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", list(DENSE))
def test_dense_shapes_have_the_papers_parameters(name: str) -> None:
    assert parameters(build(name)) == pytest.approx(DENSE[name], rel=0.01)


def test_the_mixture_has_ten_billion_parameters_and_one_active() -> None:
    model = build("10b-a1b")
    assert parameters(model) == pytest.approx(10e9, rel=0.05)
    embedding = model.get_input_embeddings().weight.numel()
    assert model_cost(model).multiplied_parameters + embedding == pytest.approx(1e9, rel=0.05)


@pytest.mark.parametrize("name", [*DENSE, "10b-a1b"])
def test_warm_up_decay_and_batch_are_the_papers(name: str) -> None:
    train = load(name).train
    assert train.num_warmup_steps == 2000
    assert train.decay_steps == pytest.approx(0.1 * train.total_steps, abs=1)
    assert train.positions_per_step == 2 ** (23 if name == "10b-a1b" else 21)


def test_raw_tokens_agree_with_the_papers_table() -> None:
    table = SHARED / "evidence" / "paper_runs.csv"
    if not table.exists():
        pytest.skip("the paper's table is not beside this checkout")
    rows = list(csv.DictReader(table.open()))
    for name in (*DENSE, "10b-a1b"):
        config = load(name)
        schedule = config.schedule()
        (row,) = [
            row
            for row in rows
            if row["model"].lower() == name and row["arm"] == "tst" and int(row["total_steps"]) == schedule.total_steps
        ]
        assert schedule.switch_step == int(row["superposition_steps"])
        assert schedule.bag_size == int(row["bag_size"])
        raw, printed = schedule.raw_tokens(config.train.positions_per_step), int(row["raw_tokens"])
        digits = len(row["raw_tokens"].rstrip("0"))
        assert float(f"{raw:.{digits - 1}e}") == printed
