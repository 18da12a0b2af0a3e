"""`slot_weights: mutual_information`: measured once, fixed in the run, the same whoever goes on with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.study.reports import compare
from tests.training.runs import TIMES, go, go_until, numbers, weights
from tests.training.test_mixture_runs import digits, mixed_run  # noqa: F401
from token_superposition import slot_weights
from token_superposition.errors import UserError
from token_superposition.study.compare import make_study
from token_superposition.training import datasets as measuring
from token_superposition.training.config import parse_config
from token_superposition.training.datasets import Corpora
from token_superposition.training.dry_run import describe, dry_run
from token_superposition.training.loop import train
from token_superposition.training.trainer import Trainer


@pytest.fixture
def measured_run(small_run: dict[str, Any]) -> dict[str, Any]:
    small_run["superposition"] = {"bag_size": 4, "ratio": 0.5, "slot_weights": "mutual_information"}
    return small_run


def read(folder: Path, name: str) -> dict[str, Any]:
    text = (folder / name).read_text()
    values: dict[str, Any] = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    return values


def resolved(folder: Path) -> str:
    text: str = read(folder, "config.yaml")["superposition"]["slot_weights"]
    return text


def test_a_run_keeps_what_was_measured(measured_run: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = go(measured_run, folder)
    fixed = read(folder, "run.json")
    found = fixed["mutual_information"]
    assert found["distances"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(found["nats"]) == 8
    assert found["nats"][0] > found["nats"][1] > found["nats"][3] > 0
    name = f"mutual_information:{found['offset']:g},{found['scale']:g},{found['exponent']:g}"
    assert resolved(folder) == name == fixed["stages"][0]["slot_weights"] == summary["stages"][0]["slot_weights"]

    trainer = Trainer(*((config := parse_config(read(folder, "config.yaml"))), config.schedule()))
    used = trainer._slot_weights[trainer.schedule.stages[0]]
    assert used is not None
    law = [found["offset"] + found["scale"] * k ** found["exponent"] for k in (1, 2, 3, 4)]
    assert used.tolist() == pytest.approx([value / law[0] for value in law])


def test_it_trains_as_the_numbers_given_by_hand(measured_run: dict[str, Any], tmp_path: Path) -> None:
    go(measured_run, tmp_path / "measured")
    go(measured_run, tmp_path / "given", superposition__slot_weights=resolved(tmp_path / "measured"))
    go(measured_run, tmp_path / "uniform", superposition__slot_weights="uniform")
    assert numbers(tmp_path / "given") == numbers(tmp_path / "measured")
    assert numbers(tmp_path / "uniform") != numbers(tmp_path / "measured")
    assert "mutual_information" not in read(tmp_path / "given", "run.json")


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_a_run_goes_on_without_measuring_again(
    measured_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    go(measured_run, tmp_path / "whole")
    folder = tmp_path / "stopped"
    go_until(stop_after, measured_run, folder, monkeypatch)
    fixed = read(folder, "run.json")
    with monkeypatch.context() as patch:
        patch.setattr(Corpora, "measure_mutual_information", None)  # whoever calls it fails
        go(measured_run, folder)
        assert go(measured_run, folder)["steps"] == 12  # done
    assert read(folder, "run.json") == fixed
    assert numbers(folder) == numbers(tmp_path / "whole")
    ours, theirs = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    a, b = (read(place, "summary.json") for place in (folder, tmp_path / "whole"))
    assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


def test_other_numbers_are_another_run(measured_run: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(measured_run, folder)
    for other in ("mutual_information:0.5,1,-1", "power_law"):
        with pytest.raises(UserError, match=r"started with superposition.slot_weights 'mutual_information:0"):
            go(measured_run, folder, superposition__slot_weights=other)
    go(measured_run, folder, superposition__slot_weights=resolved(folder))
    (folder / "summary.json").unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(resolved(folder), "mutual_information"))
    with pytest.raises(UserError, match=r"run.json and config.yaml disagree"):
        go(measured_run, folder)


def test_stages_share_one_measurement(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [
        {"bag_size": 8, "ratio": 0.25, "slot_weights": "mutual_information"},
        {"bag_size": 4, "ratio": 0.25},
        {"bag_size": 2, "ratio": 0.25, "slot_weights": "mutual_information"},
    ]
    small_run["superposition"] = {"stages": stages}
    folder = tmp_path / "run"
    go_until(7, small_run, folder, monkeypatch)
    go(small_run, folder)
    assert read(folder, "run.json")["mutual_information"]["distances"] == list(range(1, 17))
    names = [stage["slot_weights"] for stage in read(folder, "run.json")["stages"]]
    assert names[0] == names[2]
    assert names[0].startswith("mutual_information:")
    assert names[1] == "uniform"
    eight, two = slot_weights(names[0], 8), slot_weights(names[2], 2)
    assert eight is not None
    assert two is not None
    assert torch.equal(eight[:2], two)


@pytest.mark.parametrize("keys", [{"bag_size": 1}, {"bag_size": 4, "ratio": 0.0}])
def test_without_superposition_nothing_is_measured(
    small_run: dict[str, Any], tmp_path: Path, keys: dict[str, Any]
) -> None:
    small_run["superposition"] = {**keys, "slot_weights": "mutual_information"}
    go(small_run, tmp_path / "run")
    go(small_run, tmp_path / "run")
    assert "mutual_information" not in read(tmp_path / "run", "run.json")


def test_a_mixture_is_measured_by_its_weights(
    measured_run: dict[str, Any],
    mixed_run: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    mixed = {**mixed_run, "superposition": measured_run["superposition"]}
    go(mixed, tmp_path / "run")
    go(measured_run, tmp_path / "words")
    both, words = (read(tmp_path / name, "run.json")["mutual_information"] for name in ("run", "words"))
    assert both["num_tokens"] == 16 * 2048  # two thirds words beside all there is of digits
    # Two tokens of a row are of one source at any distance, and that is much of what they share.
    which = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert both["nats"][-1] == pytest.approx(words["nats"][-1] * 2 / 3 + which, abs=0.05)
    with pytest.raises(UserError, match=r"is too short to measure"):
        go(mixed, tmp_path / "short", data__sources__digits__weight=3)
    assert not (tmp_path / "short").exists()


@pytest.mark.parametrize("how", [train, dry_run])
def test_data_without_decay_is_refused(
    measured_run: dict[str, Any],
    digits: Path,  # noqa: F811
    tmp_path: Path,
    how: Any,
) -> None:
    config = parse_config({**measured_run, "data": {"path": str(digits)}})
    with pytest.raises(UserError, match=r"^slot_weights: mutual_information: .* use power_law, or more text$"):
        how(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    study = make_study({**measured_run, "data": {"path": str(digits)}})
    with pytest.raises(UserError, match=r"superposition: slot_weights: mutual_information: .* too short"):
        compare(study, tmp_path / "study", quiet=True)
    assert not (tmp_path / "study" / "runs").exists()


def test_a_run_says_what_it_will_be(
    measured_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dry_run(parse_config(measured_run), tmp_path / "run")
    said = describe(result)
    assert result["config"]["superposition"]["slot_weights"].startswith("mutual_information:")
    assert "6 steps with bags of 4 (full, mutual_information (" in said
    assert not (tmp_path / "run").exists()
    train(parse_config(measured_run), tmp_path / "run")
    assert resolved(tmp_path / "run") == result["config"]["superposition"]["slot_weights"]
    assert "slot weights from the corpus: I(d) = " in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_study_has_an_arm_with_measured_weights(measured_run: dict[str, Any], tmp_path: Path) -> None:
    # With budgets: runs that begin alike share one measurement, or they would not be alike.
    study = make_study({**measured_run, "budgets": [10, 12]})
    report = compare(study, tmp_path / "study", quiet=True)
    again = compare(study, tmp_path / "study", quiet=True)  # nothing is trained: what was measured is what is asked
    assert again["arms"] == report["arms"]
    name = report["arms"][1]["slot_weights"]
    stages = [budget["stages"][0] for budget in report["arms"][1]["budgets"]]
    assert [stage["slot_weights"] for stage in stages] == [name, name]
    assert name.startswith("mutual_information:")
    assert "mutual information (" in (tmp_path / "study" / "report.html").read_text()


def test_only_what_is_asked_for_is_measured(measured_run: dict[str, Any]) -> None:
    given = parse_config(measured_run)
    corpora = measuring.Corpora.open(given.data)
    config, found = measuring.measure_slot_weights(given, corpora)
    assert found is not None
    assert measuring.measure_slot_weights(config, corpora) == (config, None)
