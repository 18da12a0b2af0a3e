"""Runs that keep documents apart: padding is counted, they resume exactly, and say where a model cannot."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.runs import go, go_until, numbers, weights
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError
from token_superposition.evaluation.export import export
from token_superposition.training.config import parse_config
from token_superposition.training.dry_run import describe, dry_run
from token_superposition.training.metrics import read_metrics
from token_superposition.training.preflight import check_run
from token_superposition.training.trainer import Trainer


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many documents, far shorter than a row."""
    folder = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(1)
    lines = ["".join(generator.choice(list("etaoin "), size)) for size in generator.integers(3, 40, 400)]
    (folder / "letters.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    prepare([folder / "letters.jsonl"], out=folder / "data", validation_fraction=0.2, quiet=True)
    return folder / "data"


@pytest.fixture(params=["row", "document"])
def letters_run(small_run: dict[str, Any], letters: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    data = {"path": str(letters), "bag_boundary": "document", "attention_boundary": request.param}
    return {**small_run, "data": data, "superposition": {"bag_size": 3, "ratio": 0.5}}


def test_padding_is_counted_and_logged(letters_run: dict[str, Any], tmp_path: Path) -> None:
    summary = go(letters_run, tmp_path / "run")
    config = parse_config(letters_run)
    stream = Trainer(parse_config(letters_run, {"train.dtype": "float32"}), config.schedule()).stream
    read = [int((batch.ids >= 0).sum()) for batch in stream.batches()]
    slots = [batch.ids.numel() for batch in stream.batches()]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 12
    for line in lines:
        assert line["raw_tokens"] == sum(read[: line["step"]])
        assert line["padding_tokens"] == sum(slots[: line["step"]]) - sum(read[: line["step"]])
    assert summary["padding_tokens"] == lines[-1]["padding_tokens"] == lines[5]["padding_tokens"] > 0
    planned = dry_run(config, tmp_path / "planned")
    for key in ("raw_tokens", "unique_raw_tokens", "padding_tokens", "epochs"):
        assert planned[key] == summary[key]
    assert f"{summary['padding_tokens']:,} slots are padding" in describe(planned)
    assert export(tmp_path / "run", tmp_path / "exported")["figures"]["raw_tokens"] == summary["raw_tokens"]


def test_the_plain_stream_pads_nothing(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert go(small_run, tmp_path / "run")["padding_tokens"] == 0


@pytest.mark.parametrize("step", [5, 6, 7, 10])
def test_a_killed_run_goes_on_bit_for_bit(
    letters_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Trap 8, with documents kept apart."""
    go(letters_run, tmp_path / "whole")
    go_until(step, letters_run, tmp_path / "stopped", monkeypatch)
    go(letters_run, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_micro_batches_are_the_same_step(letters_run: dict[str, Any], tmp_path: Path) -> None:
    """Trap 5: rows have targets in unequal numbers."""
    whole = go(letters_run, tmp_path / "whole", train__total_steps=4)
    parts = go(letters_run, tmp_path / "parts", train__total_steps=4, train__micro_batch_size=1)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_the_boundaries_change_what_is_trained(small_run: dict[str, Any], letters: Path, tmp_path: Path) -> None:
    small_run["data"] = {"path": str(letters)}
    losses = []
    for number, keys in enumerate([{}, {"bag_boundary": "document"},
                                   {"bag_boundary": "document", "attention_boundary": "document"}]):  # fmt: skip
        overrides = {f"data__{key}": value for key, value in keys.items()}
        losses.append(go(small_run, tmp_path / str(number), **overrides)["final_validation_loss"])
    assert len(set(losses)) == 3


@pytest.mark.parametrize("phase", ["superposition", "recovery"])
def test_no_document_sees_another_in_either_phase(letters_run: dict[str, Any], phase: str) -> None:
    """Change a token of one document: only with attention_boundary row may another document's loss move."""
    config = parse_config(letters_run, {"train.dtype": "float32"})
    trainer = Trainer(config, config.schedule())
    batch = trainer.stream.batch(0 if phase == "superposition" else 6)
    assert batch.position_ids is not None
    row = next(row for row, positions in enumerate(batch.position_ids) if int((positions == 0).sum()) > 1)
    ids, targets, position_ids = (part[row : row + 1] for part in (batch.ids, batch.targets, batch.position_ids))
    second = int((position_ids[0] == 0).nonzero()[1])
    assert second < 15
    changed, later = ids.clone(), targets.clone()
    changed[0, 0, 0] = (ids[0, 0, 0] + 1) % 100
    later[0, :second] = -100
    losses = [trainer.model(each, later, None, position_ids).loss for each in (ids, changed)]
    assert bool(losses[0] == losses[1]) == (config.data.attention_boundary == "document")


@pytest.mark.parametrize("architecture", ["bloom", "mamba2"])
def test_a_model_that_cannot_keep_documents_apart_is_refused(
    small_run: dict[str, Any], letters: Path, tmp_path: Path, architecture: str
) -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 2}
    config |= {"num_heads": 2, "head_dim": 16, "n_groups": 1} if architecture == "mamba2" else {"n_head": 2}
    small_run["model"] = {"architecture": architecture, "config": config, "scale_residual_init": False}
    small_run["data"] = {"path": str(letters), "bag_boundary": "document"}
    with pytest.raises(
        UserError, match=r"^data.attention_boundary: document: .* lets a document attend to the document before it"
    ):
        go(small_run, tmp_path / "run", data__attention_boundary="document")
    assert not (tmp_path / "run").exists()
    planned = parse_config(small_run, {"data.attention_boundary": "document"})
    for look_ahead in (partial(dry_run, planned, tmp_path / "run"), partial(check_run, planned)):
        with pytest.raises(UserError, match=r"^data.attention_boundary: document: .* or use another model"):
            look_ahead()
    assert go(small_run, tmp_path / "run", train__total_steps=2)["padding_tokens"] > 0  # bags it can
    assert dry_run(parse_config(small_run), tmp_path / "other")["padding_tokens"] > 0


def test_attention_alone_is_refused(small_run: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="data: attention_boundary: document needs bag_boundary: document"):
        parse_config(small_run, {"data.attention_boundary": "document"})
    with pytest.raises(UserError, match=r"data.bag_boundary: input should be 'stream' or 'document'"):
        parse_config(small_run, {"data.bag_boundary": "documents"})


def test_a_mixture_of_documents_trains(small_run: dict[str, Any], letters: Path, tmp_path: Path) -> None:
    words = small_run["data"]["path"]
    small_run["data"] = {"sources": {"a": {"path": words}, "b": {"path": str(letters)}}, "bag_boundary": "document"}
    summary = go(small_run, tmp_path / "run")
    padding = {name: source["padding_tokens"] for name, source in summary["sources"].items()}
    assert padding["b"] > padding["a"]  # shorter documents
    assert sum(padding.values()) == summary["padding_tokens"]
    tokens = TokenDataset.open(letters, "train").num_tokens
    assert summary["sources"]["b"]["epochs"] == summary["sources"]["b"]["raw_tokens"] / tokens
