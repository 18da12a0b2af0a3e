"""Studies: which arms a file makes, and a whole comparison of tiny runs."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.reports import compare
from tests.training.runs import go_until
from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.study.compare import Study, load_study, make_study

ARM_KEYS = {"name", "stages", "mode", "slot_weights", "bag_size", "ratio", "seeds"}
SEED_KEYS = {
    "seed",
    "final_validation_loss",
    "bits_per_byte",
    "steps",
    "positions",
    "raw_tokens",
    "unique_raw_tokens",
    "flops",
    "wall_seconds",
}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"superposition.bag_size": 1},
    "bags of 2": {"superposition.bag_size": 2},
    "bags of 4": {"superposition.bag_size": 4, "superposition.ratio": 0.25, "train.learning_rate": 2e-2},
}


def load(values: dict[str, Any], folder: Path, **overrides: Any) -> Study:
    """A study through a file."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study(file, {key.replace("__", "."): value for key, value in overrides.items()})


def refused(values: dict[str, Any], folder: Path, **overrides: Any) -> str:
    """What a study is refused with: one line that names the file or the option."""
    with pytest.raises(UserError) as caught:
        load(values, folder, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_arms_are_the_run_with_and_without_superposition(small_run: dict[str, Any], tmp_path: Path) -> None:
    study = load(small_run, tmp_path)
    assert list(study.arms) == ["baseline", "superposition"]
    baseline, superposition = study.arms.values()
    assert baseline.schedule().switch_step == 0
    assert baseline.schedule().total_steps == superposition.schedule().total_steps == 12
    assert (superposition.schedule().bag_size, superposition.schedule().switch_step) == (2, 6)
    assert baseline.model_copy(update={"superposition": superposition.superposition}) == superposition


def test_an_override_holds_for_every_arm(small_run: dict[str, Any], tmp_path: Path) -> None:
    study = load(small_run, tmp_path, train__total_steps=20, superposition__bag_size=4)
    baseline, superposition = study.arms.values()
    assert baseline.train.total_steps == superposition.train.total_steps == 20
    assert (baseline.schedule().switch_step, superposition.schedule().bag_size) == (0, 4)
    named = load({**small_run, "arms": ARMS}, tmp_path, train__weight_decay=0.5, superposition__mode="output_only")
    assert {config.train.weight_decay for config in named.arms.values()} == {0.5}
    assert [config.superposition.mode for config in named.arms.values()] == ["output_only"] * 3


@pytest.mark.parametrize(
    ("key", "value", "arm", "own"),
    [
        ("train.learning_rate", 0.5, "bags of 4", "train.learning_rate"),
        ("superposition.ratio", 0.5, "bags of 4", "superposition.ratio"),
        ("superposition.bag_size", 8, "plain", "superposition.bag_size"),
        ("superposition", {"bag_size": 8}, "plain", "superposition.bag_size"),
        ("superposition.mode", "output_only", "nested", "superposition"),
    ],
)
def test_an_override_of_what_an_arm_sets_is_refused(
    small_run: dict[str, Any], tmp_path: Path, key: str, value: Any, arm: str, own: str
) -> None:
    arms = {**ARMS, "nested": {"superposition": {"bag_size": 8}}} if arm == "nested" else ARMS
    message = refused({**small_run, "arms": arms}, tmp_path, **{key: value})
    assert f"study.yaml: arms.{arm}: {own}: is set here, and --{key} would put one value in its place" in message


def test_two_arms_that_would_be_one_are_refused(small_run: dict[str, Any], tmp_path: Path) -> None:
    arms = {**ARMS, "again": {"superposition": {"bag_size": 2, "superposition_steps": 6}}}  # half of the steps
    said = "study.yaml: arms.again: is the same as arms.bags of 2: they would be one run under two names"
    assert said in refused({**small_run, "arms": arms}, tmp_path)
    del small_run["train"]["total_steps"]
    several = load({**small_run, "arms": arms, "budgets": [12, 24]}, tmp_path)  # 6 steps are half of one of them only
    assert list(several.arms) == ["plain", "bags of 2", "bags of 4", "again"]


def test_named_arms_change_their_own_keys_only(small_run: dict[str, Any], tmp_path: Path) -> None:
    study = load({**small_run, "arms": ARMS}, tmp_path)
    assert {name: config.schedule().bag_size for name, config in study.arms.items()} == {
        "plain": 1,
        "bags of 2": 2,
        "bags of 4": 4,
    }
    assert study.arms["bags of 2"].schedule().switch_step == 6
    assert study.arms["bags of 4"].schedule().switch_step == 3
    assert [config.train.learning_rate for config in study.arms.values()] == [1e-2, 1e-2, 2e-2]


def test_the_baseline_comes_first_wherever_it_stands(small_run: dict[str, Any]) -> None:
    study = make_study({**small_run, "arms": dict(reversed(ARMS.items()))})
    assert list(study.arms) == ["plain", "bags of 4", "bags of 2"]


@pytest.mark.parametrize("superposition", [{}, {"bag_size": 1}, {"bag_size": 2, "ratio": 0.0}])
def test_without_superposition_there_is_nothing_to_compare(
    small_run: dict[str, Any], tmp_path: Path, superposition: dict[str, Any]
) -> None:
    message = refused({**small_run, "superposition": superposition}, tmp_path)
    assert "nothing to compare" in message
    assert "study.yaml" in message


@pytest.mark.parametrize(
    "arms",
    [
        ["plain", "bags"],
        "plain",
        {},
        {"plain": {"superposition.bag_size": 1}},
        {"plain": {"superposition.bag_size": 1}, "bags": 2},
        {"plain": {"superposition.bag_size": 1}, "bags": None},
    ],
)
def test_arms_that_are_no_mapping_of_two_are_refused(small_run: dict[str, Any], tmp_path: Path, arms: Any) -> None:
    message = refused({**small_run, "arms": arms}, tmp_path)
    assert "study.yaml: arms" in message
    assert "at least two" in message or "arms.bags: needs the keys" in message


def test_one_arm_is_the_baseline(small_run: dict[str, Any], tmp_path: Path) -> None:
    two = {**small_run, "arms": {**ARMS, "again": {"superposition.bag_size": 1}}}
    assert "exactly one arm has no superposition" in refused(two, tmp_path)
    none = {**small_run, "arms": {name: ARMS[name] for name in ("bags of 2", "bags of 4")}}
    assert "true of no arm" in refused(none, tmp_path)


def test_a_misspelt_key_of_an_arm_names_the_arm_and_the_file(small_run: dict[str, Any], tmp_path: Path) -> None:
    arms = {**ARMS, "bags of 4": {"superposition.bag_sise": 4}}
    message = refused({**small_run, "arms": arms}, tmp_path)
    assert "bags of 4" in message
    assert "study.yaml" in message
    assert "superposition.bag_size" in message  # the nearest


def test_a_wrong_value_of_an_arm_names_the_arm(small_run: dict[str, Any], tmp_path: Path) -> None:
    arms = {**ARMS, "bags of 4": {"superposition.bag_size": 0}}
    assert "bags of 4" in refused({**small_run, "arms": arms}, tmp_path)


@pytest.mark.parametrize("name", ["../away", "a/b", "", " x", "a\nb"])
def test_a_name_that_is_no_folder_is_refused(small_run: dict[str, Any], tmp_path: Path, name: str) -> None:
    message = refused({**small_run, "arms": {**ARMS, name: {"superposition.bag_size": 8}}}, tmp_path)
    assert "arms." in message


@pytest.mark.parametrize("options", [{"num_seeds": 0}, {"jobs": 0}, {"num_seeds": -1}])
def test_less_than_one_seed_or_job_is_refused(
    small_run: dict[str, Any], tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(UserError, match="at least 1"):
        compare(make_study(small_run), tmp_path / "out", quiet=True, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("forked")
def test_a_comparison_and_the_same_again(small_run: dict[str, Any], tmp_path: Path) -> None:
    study = make_study(small_run)
    report = compare(study, tmp_path, num_seeds=2, jobs=2, quiet=True)

    # What DESIGN promises of report.json.
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [arm["name"] for arm in report["arms"]] == ["baseline", "superposition"]
    for arm in report["arms"]:
        assert set(arm) >= ARM_KEYS
        assert [seed["seed"] for seed in arm["seeds"]] == [0, 1]
        for seed in arm["seeds"]:
            assert set(seed) >= SEED_KEYS
            assert seed["steps"] == 12
            assert seed["positions"] == 12 * 4 * 16
            assert seed["wall_seconds"] > 0
            assert seed["skipped_steps"] == 0
    baseline, superposition = report["arms"]
    assert (baseline["bag_size"], baseline["ratio"]) == (1, 0)
    assert (superposition["bag_size"], superposition["ratio"], superposition["mode"]) == (2, 0.5, "full")
    assert superposition["slot_weights"] == "uniform"
    assert [(stage["bag_size"], stage["steps"]) for stage in superposition["stages"]] == [(2, 6), (1, 6)]
    assert report["model"]["parameters"] > 0
    assert report["data"]["tokenizer"] == "bytes"
    assert [arm["changed"] for arm in report["arms"]] == [{}, {}]

    # Equal compute, unequal text, one start, other seeds otherwise.
    flops = [seed["flops"] for arm in report["arms"] for seed in arm["seeds"]]
    assert len(set(flops)) == 1
    assert flops[0] > 0
    for ours, theirs in zip(superposition["seeds"], baseline["seeds"], strict=True):
        assert (ours["raw_tokens"], theirs["raw_tokens"]) == (18 * 4 * 16, 12 * 4 * 16)
        assert ours["curve"][0]["step"] == theirs["curve"][0]["step"] == 0
        assert ours["curve"][0]["validation_loss"] == theirs["curve"][0]["validation_loss"]
        assert ours["final_validation_loss"] != theirs["final_validation_loss"]
        assert [point["step"] for point in ours["curve"]] == [0, 4, 6, 8, 12]  # the switch has its point
        assert [point["step"] for point in theirs["curve"]] == [0, 4, 8, 12]
    first, second = baseline["seeds"]
    assert first["curve"][0]["validation_loss"] != second["curve"][0]["validation_loss"]

    # The result: superposition less baseline, by seed.
    result = report["equal_flops"]
    deltas = [
        ours["final_validation_loss"] - theirs["final_validation_loss"]
        for ours, theirs in zip(superposition["seeds"], baseline["seeds"], strict=True)
    ]
    assert result["delta_nats"] == pytest.approx(sum(deltas) / 2)
    low, high = result["confidence_interval"]
    assert low < result["delta_nats"] < high
    assert high - low == pytest.approx(12.7062047362 * abs(deltas[0] - deltas[1]), rel=1e-6)
    for key in ("iso_loss", "equal_data"):
        assert report[key] is None
        assert report["reasons"][key]

    # The same again trains nothing; one seed of it trains nothing either, and has no interval.
    summaries = sorted((tmp_path / "runs").glob("*/seed-*/summary.json"))
    assert len(summaries) == 4
    times = [file.stat().st_mtime_ns for file in summaries]
    assert compare(study, tmp_path, num_seeds=2, jobs=2, quiet=True) == report
    one = compare(study, tmp_path, num_seeds=1, quiet=True)
    assert [file.stat().st_mtime_ns for file in summaries] == times
    assert one["equal_flops"]["confidence_interval"] is None
    assert one["equal_flops"]["reason"]
    assert one["equal_flops"]["delta_nats"] == pytest.approx(deltas[0])


@pytest.mark.usefixtures("forked")
def test_a_run_that_refuses_its_input_is_the_user_s_error(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["model"]["architecture"] = "lama"
    with pytest.raises(UserError) as caught:
        compare(make_study(small_run), tmp_path / "out", jobs=1, quiet=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "did you mean 'llama'" in message
    assert message.startswith("baseline: model.architecture")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.usefixtures("forked")
def test_a_run_that_diverges_ends_the_comparison_in_one_line(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["train"].update(learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(TrainingDivergedError, match=r"^baseline, seed 0: .* the run has diverged") as caught:
        compare(make_study(small_run), tmp_path / "out", jobs=1, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.usefixtures("forked")
def test_runs_beside_one_that_diverges_are_trained_to_their_ends(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["train"].update(max_grad_norm=None)
    arms = {
        "wild": {"superposition.bag_size": 2, "train.learning_rate": 1e30},
        "plain": {"superposition.bag_size": 1},
        "bags of 2": {"superposition.bag_size": 2},
    }
    with pytest.raises(TrainingDivergedError, match=r"^wild, seed 0: "):
        compare(make_study({**small_run, "arms": arms}), tmp_path / "out", jobs=1, quiet=True)
    done = {file.parent.parent.name for file in (tmp_path / "out" / "runs").glob("*/seed-0/summary.json")}
    assert done == {"plain", "bags of 2"}
    del arms["wild"]
    report = compare(make_study({**small_run, "arms": arms}), tmp_path / "out", jobs=1, quiet=True)
    assert [arm["name"] for arm in report["arms"]] == ["plain", "bags of 2"]


def test_the_file_may_say_how_many_seeds(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert load(small_run, tmp_path).num_seeds is None
    assert load({**small_run, "seeds": 3}, tmp_path).num_seeds == 3
    for wrong in (0, 1001, "three", True, 2.5):
        assert "study.yaml: seeds: is a whole number from 1 to 1000, not" in refused(
            {**small_run, "seeds": wrong}, tmp_path
        )


@pytest.mark.usefixtures("in_process")
def test_what_an_arm_changes_is_in_the_report(small_run: dict[str, Any], tmp_path: Path) -> None:
    arms = {
        "plain": {"superposition.bag_size": 1},
        "other": {"superposition.bag_size": 2, "train.optimizer": "muon", "train.weight_decay": 0.0},
    }
    report = compare(make_study({**small_run, "arms": arms}), tmp_path, jobs=2, quiet=True)
    assert report["settings"]["optimizer"] == "adamw"
    assert [arm["changed"] for arm in report["arms"]] == [
        {},
        {"train.optimizer": "muon", "train.weight_decay": 0.0},
    ]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Its own settings: train.optimizer muon, train.weight_decay 0" in page
    assert "validation set, batch and every setting but those" in page


@pytest.mark.usefixtures("in_process")
def test_slot_weights_that_were_measured_are_in_the_report(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["superposition"] = {"bag_size": 2, "ratio": 0.5, "slot_weights": "mutual_information"}
    report = compare(make_study(small_run), tmp_path, jobs=2, quiet=True)
    found = report["mutual_information"]["superposition"]
    assert len(found["distances"]) == len(found["nats"]) == 8
    numbers = f"{found['offset']:g},{found['scale']:g},{found['exponent']:g}"
    assert report["arms"][1]["slot_weights"] == f"mutual_information:{numbers}"


def test_arms_share_their_seeds_and_their_data(small_run: dict[str, Any]) -> None:
    arms = {"a": {"superposition.bag_size": 1}, "b": {"train.seed": 7}}
    with pytest.raises(UserError, match=r"arms.b: train.seed: arms share their seeds, their data"):
        make_study({**small_run, "arms": arms})


@pytest.mark.usefixtures("in_process")
def test_the_report_tells_the_switch_that_was_trained(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run made longer on its way keeps its switch, whatever the ratio says now."""
    study, longer = (make_study(small_run, {"train.total_steps": total}) for total in (12, 24))
    for name, config in study.arms.items():
        go_until(
            7, config.model_dump(mode="json", exclude_unset=True), tmp_path / "runs" / name / "seed-0", monkeypatch
        )
    report = compare(longer, tmp_path, jobs=1, quiet=True)
    assert [arm["switch_step"] for arm in report["arms"]] == [0, 6]
    assert report["arms"][1]["ratio"] == 0.25


@pytest.mark.usefixtures("in_process")
def test_two_processes_do_not_train_one_study(small_run: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="out: another process is training this study; wait for it"):
        compare(load(small_run, tmp_path), folder, quiet=True)
    assert list(folder.iterdir()) == []
    os.close(other)
    assert compare(load(small_run, tmp_path), folder, quiet=True)["equal_flops"]["delta_nats"] is not None
