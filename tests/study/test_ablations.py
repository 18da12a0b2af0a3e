"""What `benchmarks/ablations.py` makes new at the switch, and that it changes nothing besides."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.in_process import train_here
from tests.study.reports import compare
from token_superposition.study.compare import load_study
from token_superposition.training.trainer import Trainer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder that kept the checkpoint of its switch."""
    train_here(monkeypatch)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small_run["logging"]["keep_checkpoint_steps"] = [6]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_run))
    compare(load_study(tmp_path / "study.yaml", {}), tmp_path / "out", quiet=True, num_seeds=2)
    return tmp_path / "out"


def losses(study: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    ablations = importlib.import_module("ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ablations", str(study), "superposition", "--new", kind])
        ablations.main()
    return yaml.safe_load(capsys.readouterr().out)["final_validation_loss"]


def test_what_is_made_new_is_all_that_differs(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = {
        run.parent.name: yaml.safe_load(run.read_text())["final_validation_loss"]
        for run in sorted((study / "runs" / "superposition").glob("*/summary.json"))
    }
    assert len(carried) == 2
    ablations = importlib.import_module("ablations")
    real, seen = ablations.renew, []

    def renew(trainer: Trainer, fresh: Trainer, kind: str) -> None:
        def state() -> tuple[dict[str, Tensor], list[Tensor]]:
            values = [v for part in trainer.optimizers.parts for state in part.state.values() for v in state.values()]
            weights = {name: value.clone() for name, value in trainer.model.named_parameters()}
            return weights, [value.clone() for value in values]

        before = state()
        real(trainer, fresh, kind)
        seen.append((before, state()))

    monkeypatch.setattr(ablations, "renew", renew)
    new_optimizer = losses(study, "optimizer", capsys)
    new_embedding = losses(study, "embedding", capsys)
    assert new_optimizer.keys() == new_embedding.keys() == carried.keys()
    for name, loss in carried.items():
        assert len({loss, new_optimizer[name], new_embedding[name]}) == 3
    (weights, state), (same_weights, no_state) = seen[0]
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    assert any(bool(value.any()) for value in state)
    assert not any(bool(value.any()) for value in no_state)
    (weights, state), (other_weights, same_state) = seen[2]
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == [
        "model.model.embed_tokens.weight"
    ]
    assert all(map(torch.equal, state, same_state))

    monkeypatch.setattr(ablations, "renew", None)  # what is done is not done again
    assert losses(study, "optimizer", capsys) == new_optimizer


def test_with_nothing_new_a_run_ends_as_it_did(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ablations = importlib.import_module("ablations")
    monkeypatch.setattr(ablations, "renew", lambda *_: None)
    for name, loss in losses(study, "optimizer", capsys).items():
        summary = yaml.safe_load((study / "runs" / "superposition" / name / "summary.json").read_text())
        assert loss == summary["final_validation_loss"]


def test_a_run_without_its_switch_is_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("seed-0", "seed-1"):
        (study / "runs" / "superposition" / seed / "checkpoints" / "step-0000006").rename(study / seed)
    with pytest.raises(SystemExit) as stopped:
        losses(study, "embedding", capsys)
    assert stopped.value.code == 2
    assert "name step 6 in keep_checkpoint_steps" in capsys.readouterr().err
    assert not list((study / "runs").glob("*-new-*"))
