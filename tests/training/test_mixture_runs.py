"""Runs on a mixture: counters by source, validation by weight, exact resume, what is refused and what is warned of."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.study.reports import compare
from tests.training.runs import go, go_until, numbers, weights
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError
from token_superposition.study.compare import make_study
from token_superposition.training.config import parse_config
from token_superposition.training.datasets import mixed_result
from token_superposition.training.dry_run import describe, dry_run
from token_superposition.training.metrics import read_metrics
from token_superposition.training.trainer import Trainer
from token_superposition.training.validation import ValidationResult


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second data set, smaller, of digits."""
    folder = tmp_path_factory.mktemp("digits")
    generator = np.random.default_rng(1)
    (folder / "text").mkdir()
    for number in range(30):
        (folder / "text" / f"{number:02d}.txt").write_text("".join(generator.choice(list("0123456789"), 400)))
    prepare([folder / "text"], out=folder / "data", validation_fraction=0.1, quiet=True)
    return folder / "data"


@pytest.fixture
def mixed_run(small_run: dict[str, Any], digits: Path) -> dict[str, Any]:
    """Two thirds words, a third digits."""
    words = small_run["data"]["path"]
    sources = {"words": {"path": words, "weight": 2}, "digits": {"path": str(digits), "weight": 1}}
    return {**small_run, "data": {"sources": sources}}


def test_a_mixture_trains_and_counts_each_source(mixed_run: dict[str, Any], tmp_path: Path) -> None:
    summary = go(mixed_run, tmp_path / "run")
    assert summary["sources"].keys() == {"words", "digits"}
    # 48 rows: 16 of digits; in each phase half of them, of 32 and of 16 tokens.
    assert summary["sources"]["digits"]["raw_tokens"] == 8 * 32 + 8 * 16
    assert summary["sources"]["words"]["raw_tokens"] == 16 * 32 + 16 * 16
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    for line in lines:
        for key in ("raw_tokens", "unique_raw_tokens"):
            assert line[key] == sum(source[key] for source in line["sources"].values())
    assert lines[-1]["sources"] == summary["sources"]


def test_its_validation_loss_is_its_sources_by_weight(mixed_run: dict[str, Any], tmp_path: Path) -> None:
    summary = go(mixed_run, tmp_path / "run")
    words, digits = (summary["validation_sets"][name] for name in ("words", "digits"))
    expected = (2 * words["validation_loss"] + digits["validation_loss"]) / 3
    assert summary["validation_loss"] == pytest.approx(expected, rel=1e-12)
    assert summary["validation_tokens"] == words["validation_tokens"] + digits["validation_tokens"]
    assert words["validation_tokens"] == 672  # two thirds of 1,024, in rows of 16


def test_bits_per_byte_of_a_mixture_are_of_its_text() -> None:
    # A thousand tokens of four bytes at 2 nats and three thousand of one byte at 1 nat.
    parts = [ValidationResult(2.0, 0.0, 10, 40), ValidationResult(1.0, 0.0, 50, 50)]
    mixed = mixed_result(parts, [0.25, 0.75])
    assert mixed.loss == 1.25
    assert mixed.bits_per_byte == pytest.approx((1000 * 2 + 3000 * 1) / (1000 * 4 + 3000 * 1) / math.log(2))


@pytest.mark.usefixtures("in_process")
def test_a_dry_run_and_a_comparison_take_mixtures(mixed_run: dict[str, Any], tmp_path: Path) -> None:
    planned = dry_run(parse_config(mixed_run), tmp_path / "run")
    assert "digits: 384, 0." in describe(planned)
    report = compare(make_study(mixed_run), tmp_path / "study", quiet=True)
    assert report["data"]["train_tokens"] == planned["train_tokens"]
    summary = json.loads((tmp_path / "study/runs/superposition/seed-0/summary.json").read_text())
    assert planned["sources"] == summary["sources"]


@pytest.mark.parametrize("step", [5, 6, 7, 10])
def test_a_killed_run_goes_on_bit_for_bit(
    mixed_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Trap 8, with a mixture: around the switch and later."""
    go(mixed_run, tmp_path / "whole")
    go_until(step, mixed_run, tmp_path / "stopped", monkeypatch)
    # The sources' order in the file is none of the run's.
    mixed_run["data"]["sources"] = dict(reversed(mixed_run["data"]["sources"].items()))
    go(mixed_run, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_source_may_move_and_its_weight_may_not(
    mixed_run: dict[str, Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_until(7, mixed_run, tmp_path / "run", monkeypatch)
    with pytest.raises(UserError, match=r"started with data.sources.digits.weight 1.0, but the value is now 2.0"):
        go(mixed_run, tmp_path / "run", data__sources__digits__weight=2)
    words = mixed_run["data"]["sources"]["words"]["path"]
    with pytest.raises(UserError, match=r"data.sources: .* is not the data that the run"):
        go(mixed_run, tmp_path / "run", data__sources__digits__path=words)
    shutil.copytree(digits, tmp_path / "moved")
    assert go(mixed_run, tmp_path / "run", data__sources__digits__path=str(tmp_path / "moved"))["steps"] == 12


def test_each_source_that_repeats_is_said_with_how_often_and_what_helps(
    mixed_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(mixed_run, tmp_path / "run", train__total_steps=96, train__sequence_length=64, train__batch_size=16)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "text repeats" in line]
    sources = json.loads((tmp_path / "run" / "summary.json").read_text())["sources"]
    assert sources["words"]["epochs"] < 1 < sources["digits"]["epochs"]
    assert len(warnings) == 1
    assert "of source digits, 4." in warnings[0]
    assert f"{sources['digits']['epochs']:.2f} epochs" in warnings[0]
    # Half of the steps read twice as much: plain inputs would come to two thirds.
    assert f"output_only would need {sources['digits']['epochs'] * 2 / 3:.2f} epochs" in warnings[0]
    assert "smaller bag_size or ratio" in warnings[0]


def test_the_advice_to_an_ordinary_run_is_not_superpositions(
    mixed_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del mixed_run["superposition"]
    go(mixed_run, tmp_path / "run", train__total_steps=96, train__sequence_length=64, train__batch_size=16)
    said = capsys.readouterr().err
    assert "text repeats; use more text or fewer steps" in said
    assert "output_only" not in said


def test_sources_of_different_tokenizers_are_refused(
    mixed_run: dict[str, Any], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TokenDataset.open

    class Others:
        name = "others"
        fingerprint = "another"

    def opened(folder: Any, split: str) -> TokenDataset:
        dataset = original(folder, split)
        if str(folder) == str(digits):
            dataset.tokenizer = Others()  # type: ignore[assignment]
        return dataset

    monkeypatch.setattr(TokenDataset, "open", opened)
    config = parse_config(mixed_run, {"train.dtype": "float32"})
    with pytest.raises(UserError, match=r"tokenizer 'bytes', .* with tokenizer 'others'; prepare both with the same"):
        Trainer(config, config.schedule())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.path: is missing; expected: dataset folder that `tst prepare` wrote"),
        ({"path": "x", "sources": {"a": {"path": "y"}}}, "data.path: give either path or sources"),
        ({"sources": {}}, "data.path: is missing"),
        ({"sources": {"a": {}}}, "data.sources.a.path: is missing; expected: dataset folder that `tst prepare` wrote"),
        ({"sources": {"a": {"wieght": 1}}}, "a.wieght: no such key; did you mean 'data.sources.a.weight'?"),
        ({"sources": {"a": {"path": "x", "weight": 0}}}, "data.sources.a.weight: input should be greater than 0"),
        ({"sources": {"a.b": {"path": "x"}}}, "data.sources: the name of a source has at most 100 letters, digits"),
        ({"sources": {"a": {"path": "x"}}, "validation_sets": {"a": "y"}}, "validation_sets.a: a source has this"),
    ],
)  # fmt: skip
def test_a_mixture_that_is_none_is_refused_in_a_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"data": data})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
