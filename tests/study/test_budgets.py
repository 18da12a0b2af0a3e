"""Studies of several budgets: what is trained, that nothing is trained twice, and what a kill does to them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.in_process import ForkedProcess
from tests.study.reports import compare
from tests.training.runs import shared_steps
from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.files import write_json
from token_superposition.study import runner
from token_superposition.study.compare import load_study, make_study
from token_superposition.study.job import Job
from token_superposition.study.resources import Share
from token_superposition.study.runner import train_trials
from token_superposition.study.study_config import Study
from token_superposition.study.sweep import parse_sweep
from token_superposition.study.trials import arm_trials, equal_data_steps, with_equal_data
from token_superposition.training.optim import build_learning_rate
from token_superposition.training.run_folder import RunFolder


@pytest.fixture
def values(small_run: dict[str, Any]) -> dict[str, Any]:
    """A run of which all steps are logged, and nothing is kept that need not be."""
    small_run["train"] |= {"warmup_steps": 2, "decay_ratio": 0.25}
    small_run["superposition"]["ratio"] = 0.25
    del small_run["train"]["warmup_ratio"], small_run["train"]["total_steps"]
    small_run["logging"] |= {"keep_checkpoints": 1, "checkpoint_interval": 100, "validation_interval": 10}
    return small_run


def runs(folder: Path) -> dict[str, RunFolder]:
    """Every run of a study, by its place."""
    found = sorted((folder / "runs").glob("**/run.json"))
    return {str(file.parent.relative_to(folder / "runs")): RunFolder(file.parent) for file in found}


def steps_trained(folder: Path) -> int:
    """Steps that any process did: a line that was copied has the very times of the first one."""
    return len(
        {
            line
            for run in runs(folder).values()
            for line in run.metrics_file.read_text().splitlines()
            if '"loss"' in line
        }
    )


def tree(folder: Path) -> dict[str, int]:
    return {place: shared_steps(run) for place, run in runs(folder).items()}


def without_times(report: Any) -> Any:
    if isinstance(report, dict):
        times = ("wall_seconds", "peak_memory_bytes", "command", "cost", "runs_at_once", "shared_steps")
        return {key: without_times(value) for key, value in report.items() if key not in times}
    if isinstance(report, list):
        return [
            without_times(value) for value in report if not isinstance(value, dict) or value.get("unit") != "seconds"
        ]
    return report


@pytest.mark.usefixtures("in_process")
def test_a_study_of_budgets_and_more_of_it_later(values: dict[str, Any], tmp_path: Path) -> None:
    study = make_study({**values, "budgets": [24, 12]}, equal_data=True)
    report = compare(study, tmp_path, jobs=2, quiet=True)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report

    # The tree: 24 steps of superposition read 30 steps' tokens, so the baseline's trunk is 30 steps long.
    assert tree(tmp_path) == {
        "baseline/12-steps/seed-0": 10,
        "baseline/24-steps/seed-0": 19,
        "baseline/30-steps/seed-0": 0,
        "superposition/12-steps/seed-0": 3,
        "superposition/24-steps/seed-0": 0,
    }
    assert steps_trained(tmp_path) == 30 + (12 - 10) + (24 - 19) + 24 + (12 - 3)
    baseline, superposition = report["arms"]
    kinds = [[(each["total_steps"], each["kind"]) for each in arm["budgets"]] for arm in report["arms"]]
    assert kinds == [[(12, "budget"), (24, "budget"), (30, "equal_data")], [(12, "budget"), (24, "budget")]]
    for arm in report["arms"]:
        for budget in arm["budgets"]:
            assert {"stages", "switch_step", "ratio", "learning_rate", "seeds"} <= budget.keys()
            (seed,) = budget["seeds"]
            assert seed["steps"] == budget["total_steps"]
            assert seed["curve"][0]["step"] == 0
            assert seed["curve"][-1]["step"] == budget["total_steps"]
        assert arm["seeds"] == arm["budgets"][1]["seeds"]
    assert [stage["steps"] for stage in superposition["stages"]] == [6, 18]  # whatever its cuts
    assert [budget["switch_step"] for budget in superposition["budgets"]] == [3, 6]

    # Figures: the reference's, and at equal data the longer baseline's.
    finals = {arm["name"]: [b["seeds"][0]["final_validation_loss"] for b in arm["budgets"]] for arm in report["arms"]}
    assert report["equal_flops"]["delta_nats"] == finals["superposition"][1] - finals["baseline"][1]
    assert report["equal_data"] == report["equal_data_all"][0]
    assert report["equal_data"]["delta_nats"] == finals["superposition"][1] - finals["baseline"][2]
    assert (report["equal_data"]["total_steps"], report["equal_data"]["raw_tokens"]) == (30, 30 * 64)
    assert superposition["seeds"][0]["raw_tokens"] == 30 * 64
    assert "equal_data" not in report["reasons"]
    speedups = [(each["read_at"], each["unit"]) for each in report["iso_loss_all"]]
    assert sorted(speedups) == sorted(itertools.product(("baseline_end", "superposition_end"), ("flops", "seconds")))
    assert (report["iso_loss"] is None) == ("iso_loss" in report["reasons"])
    assert [facts["arm"] for facts in report["switch"]] == ["superposition"]
    assert report["schema_version"] == 2

    # A longer budget later leaves what is there where it can, and nothing else is touched.
    before = {run.summary_file: run.summary_file.stat().st_mtime_ns for run in runs(tmp_path).values()}
    longer = make_study({**values, "budgets": [12, 24, 48]})
    more = compare(longer, tmp_path, jobs=2, quiet=True)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert tree(tmp_path)["superposition/48-steps/seed-0"] == 6
    assert more["arms"][0]["budgets"][:2] == baseline["budgets"][:2]
    assert more["equal_data"] is None
    assert more["reasons"]["equal_data"]
    # The same as if the long run had been alone: the branch of a branch is what it would be.
    whole = compare(make_study(values, {"train.total_steps": 48}), tmp_path / "whole", jobs=2, quiet=True)
    ours, theirs = (arm["seeds"][0]["final_validation_loss"] for arm in (more["arms"][0], whole["arms"][0]))
    assert ours == theirs


@pytest.mark.usefixtures("in_process")
def test_a_longer_budget_later_branches_off_where_the_decay_begins(values: dict[str, Any], tmp_path: Path) -> None:
    for budgets in ([12, 24], [12, 24, 48]):
        compare(make_study({**values, "budgets": budgets}), tmp_path, quiet=True)
    assert tree(tmp_path)["baseline/48-steps/seed-0"] == 19


@pytest.mark.usefixtures("in_process")
def test_a_longer_reference_that_changes_the_warm_up_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    values["train"]["warmup_ratio"] = 0.1
    del values["train"]["warmup_steps"]
    compare(make_study({**values, "budgets": [10, 20]}), tmp_path, quiet=True)
    larger = make_study({**values, "budgets": [10, 40]})
    with pytest.raises(
        UserError, match=r"10-steps/seed-0: this run was started with train\.warmup_steps 2, but the value is now"
    ):
        compare(larger, tmp_path, quiet=True)


@pytest.mark.usefixtures("in_process")
def test_every_arm_is_tuned_at_every_budget(values: dict[str, Any], tmp_path: Path) -> None:
    study = make_study({**values, "budgets": [12, 24]}, equal_data=True)
    sweep = parse_sweep(["train.learning_rate=1e-3,1e-2"], study.arms)
    report = compare(study, tmp_path, sweep=sweep, jobs=2, quiet=True)
    tried = report["sweep"]
    assert [budget["total_steps"] for budget in tried["budgets"]] == [12, 24]
    assert tried["arms"] == tried["budgets"][1]["arms"]
    for number, budget in enumerate(tried["budgets"]):
        for arm, its in zip(report["arms"], budget["arms"], strict=True):
            assert len(its["settings"]) == 2
            best = min(its["settings"], key=lambda setting: setting["mean_validation_loss"])
            assert its["best"] == best["values"]
            assert arm["budgets"][number]["learning_rate"] == best["values"]["train.learning_rate"]
    baseline = report["arms"][0]
    assert baseline["budgets"][2]["kind"] == "equal_data"
    assert baseline["budgets"][2]["learning_rate"] == baseline["learning_rate"]
    # Runs of one learning rate share their trunk, in the sweep and afterwards.
    steps = tree(tmp_path)
    for rate in ("0.001", "0.01"):
        assert steps[f"baseline/train.learning_rate={rate}/12-steps/seed-1000"] == 10
        assert steps[f"superposition/train.learning_rate={rate}/12-steps/seed-1000"] == 3


# What a kill waits for: the trunk's checkpoint, from which no branch may have been made yet; the first branch.
KILLS = ("baseline/24-steps/seed-0/checkpoints/step-*", "superposition/12-steps/seed-0/config.yaml")


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_killed_and_started_again_it_comes_to_the_same_report(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**values, "budgets": [12, 24]}))

    def start(out: Path) -> ForkedProcess:
        words = ["token_superposition", "compare", str(file), "--out", str(out), "--jobs", "2", "--quiet"]
        with Path(os.devnull).open("wb") as nowhere:
            return ForkedProcess(words, stdout=nowhere)

    out = tmp_path / "killed"
    for sign in KILLS:
        study = start(out)
        while study.poll() is None and not list((out / "runs").glob(sign)):
            time.sleep(0.01)
        children = (
            Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text().split() if study.poll() is None else []
        )
        study.kill()
        study.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        for run in (out / "runs").glob("*/*/seed-0"):  # until the system has let go of it
            while True:
                with contextlib.suppress(UserError), RunFolder(run):
                    break
                time.sleep(0.01)
        branch = out / "runs" / "superposition" / "12-steps" / "seed-0"
        if not branch.exists():
            (branch.parent / ".seed-0.tmp" / "checkpoints").mkdir(parents=True, exist_ok=True)
    done = {run.summary_file: run.summary_file.stat().st_mtime_ns for run in runs(out).values() if run.read_summary()}
    assert start(out).wait() == 0
    compare(load_study(file, {}), tmp_path / "whole", quiet=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert without_times(ours) == without_times(theirs)
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.glob("runs/**/*.tmp"))


def test_a_child_that_is_interrupted_ends_the_study_in_one_line(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**values, "budgets": [12, 100_000]}))
    words = [sys.executable, "-m", "token_superposition", "compare", str(file), "--out", str(tmp_path / "out")]
    study = subprocess.Popen(
        [*words, "--jobs", "1", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = tmp_path / "out" / "runs" / "baseline" / "100000-steps" / "seed-0" / "metrics.jsonl"
    while study.poll() is None and not (first.exists() and '"loss"' in first.read_text()):
        time.sleep(0.05)
    (child,) = Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)
    out, err = study.communicate()
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert study.returncode == 1
    assert out == ""
    assert len(errors) == 1
    assert errors[0].startswith("error: baseline, 100000 steps, seed 0 ended with exit code 130: interrupted")
    assert "seed-0.log" in errors[0]


@pytest.mark.usefixtures("in_process")
def test_a_checkpoint_that_is_lost_costs_steps_and_nothing_else(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study({**values, "budgets": [12, 24]})
    report = compare(study, tmp_path, jobs=2, quiet=True)
    for name in ("baseline", "superposition"):
        shutil.rmtree(tmp_path / "runs" / name / "12-steps" / "seed-0")
    tensors = next((tmp_path / "runs/superposition/24-steps/seed-0/checkpoints/step-0000003/tensors").glob("*.distcp"))
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    shutil.rmtree(tmp_path / "runs" / "baseline" / "24-steps" / "seed-0" / "checkpoints" / "step-0000010")
    again = compare(study, tmp_path, jobs=2, quiet=True)
    assert without_times(again) == without_times(report)
    assert tree(tmp_path)["superposition/12-steps/seed-0"] == 0
    assert tree(tmp_path)["baseline/12-steps/seed-0"] == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("forked")
def test_a_run_that_waits_is_trained_from_its_start_where_its_parent_wrote_nothing(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["logging"]["validation_interval"] = 100
    study = make_study({**values, "budgets": [12, 24]})
    (short, long) = trials = arm_trials(study, "baseline", tmp_path)
    plan = runner._plan_run

    def forget(trial: Any, seed: int, branch: Any, _: Any, parent: Any) -> runner.PlannedRun:
        return plan(trial, seed, branch, (), parent)

    monkeypatch.setattr(runner, "_plan_run", forget)
    train_trials(trials, [0], branches=True, jobs=2, quiet=True)
    assert short.loss(0) is not None
    assert long.loss(0) is not None
    assert shared_steps(short.run(0)) == 0
    assert "baseline, 12 steps, seed 0: what it would begin with was not written" in capsys.readouterr().err


@pytest.mark.usefixtures("forked")
def test_what_begins_as_a_run_that_diverged_has_diverged(values: dict[str, Any], tmp_path: Path) -> None:
    values["train"] |= {"learning_rate": 1e30, "max_grad_norm": None, "max_skipped_steps": 1}
    study = make_study({**values, "budgets": [12, 24]})
    trials = arm_trials(study, "baseline", tmp_path)
    for _ in range(2):
        train_trials(trials, [0], branches=True, jobs=1, quiet=True, may_diverge=True)
        assert [trial.diverged([0]) for trial in trials] == [[0], [0]]
        assert "which diverged in the steps that both share" in trials[0].run(0).diverged_file.read_text()
    assert not trials[0].run(0).metrics_file.exists()


def test_what_begins_as_a_lost_run_is_left_out_down_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        returncode = 1

        def poll(self) -> int:
            return self.returncode

    started = []

    def start(job: Job, *_: Any) -> Ended:
        started.append(job.name)
        job.folder.mkdir()
        job.log.write_text("error: the run has diverged")
        write_json(job.folder / "diverged.json", {"message": "it has diverged"})
        return Ended()

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(Job, "ready", property(lambda job: job.parent is None))
    monkeypatch.setattr(Job, "prepare", lambda _: None)
    first = Job("first", tmp_path / "first.yaml", tmp_path / "first", 8)
    second = Job("second", tmp_path / "second.yaml", tmp_path / "second", 8, 4, first)
    third = Job("third", tmp_path / "third.yaml", tmp_path / "third", 8, 6, second)
    with pytest.raises(TrainingDivergedError, match=r"^first: the run has diverged$"):
        runner.run_jobs([first, second, third], share=Share(1, 1), quiet=True)
    assert started == ["first"]


BAD = [
    ({"budgets": [12, 12]}, "budgets: 12 is there twice"),
    ({"budgets": [12, 24, 9]}, "budgets: 9 steps are too few: a budget has at least 10"),
    ({"budgets": [12.5]}, "budgets: '12.5' is not a whole number"),
    ({"budgets": [True]}, "budgets: 'True' is not a whole number"),
    ({"budgets": []}, "budgets: needs numbers of steps"),
    ({"budgets": 12}, "budgets: needs numbers of steps"),
    ({"budgets": {"a": 1}}, "budgets: needs numbers of steps"),
    ({"budgets": [10**13]}, "train.total_steps"),
    ({"budgets": [12, 24], "warmup": 10}, "budgets: 12 steps: train: warmup_steps 10 overlaps the decay"),
    ({"equal_data": 1}, "equal_data: is true or false"),
]


@pytest.mark.parametrize(("keys", "said"), BAD)
def test_budgets_that_make_no_study_are_refused(values: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    values["train"]["warmup_steps"] = keys.pop("warmup", 2)
    with pytest.raises(UserError) as caught:
        make_study({**values, **keys}, source="study.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["12,12", "9", "", "12,", "many", "[12]", "1e3"])
def test_so_are_those_of_the_command_line(values: dict[str, Any], option: str) -> None:
    if option == "12,":  # YAML allows a comma at the end
        assert make_study(values, budgets=option).budgets == (12,)
        return
    with pytest.raises(UserError, match=r"^--budgets: "):
        make_study(values, budgets=option)


def study_of(values: dict[str, Any], **keys: Any) -> Study:
    return make_study({**values, **keys})


def test_budgets_are_sorted_and_the_largest_is_the_reference(values: dict[str, Any]) -> None:
    values["train"]["warmup_ratio"] = 0.1
    del values["train"]["warmup_steps"]
    study = study_of(values, budgets=[40, 20])
    assert study.budgets == (20, 40)
    assert {config.train.total_steps for config in study.arms.values()} == {40}
    assert [config.train.num_warmup_steps for config in study.at_budgets(study.arms["baseline"])] == [4, 4]
    assert make_study({**values, "budgets": [10]}, budgets="30,20").budgets == (20, 30)
    assert make_study(values, {"train.total_steps": 20}, budgets="20,30").budgets == (20, 30)
    with pytest.raises(UserError, match="none of the budgets"):
        make_study(values, {"train.total_steps": 25}, budgets="20,30")


@pytest.mark.parametrize("total", [10, 20, 160, 10_000])
@pytest.mark.parametrize("warmup", [{"warmup_ratio": 0.1}, {"warmup_steps": 4}])
def test_budgets_take_the_place_of_the_total_of_the_file(
    values: dict[str, Any], total: int, warmup: dict[str, Any]
) -> None:
    del values["train"]["warmup_steps"]
    values["train"] |= {"total_steps": total, **warmup}
    for study in (study_of(values, budgets=[40, 20]), make_study(values, budgets="20,40")):
        for arm, ratio in (("baseline", 0.0), ("superposition", 0.25)):
            assert study.arms[arm].train.total_steps == 40
            for config, steps in zip(study.at_budgets(study.arms[arm]), (20, 40), strict=True):
                schedule, rate = config.schedule(), build_learning_rate(config.train)
                assert (schedule.total_steps, schedule.switch_step) == (steps, ratio * steps)
                assert (rate.warmup_steps, rate.decay_steps) == (4, 0.25 * steps)


def test_equal_data_is_counted_by_arm(values: dict[str, Any], tmp_path: Path) -> None:
    arms = {
        "plain": {"superposition.bag_size": 1},
        "two": {"superposition.bag_size": 2, "superposition.ratio": 0.5},
        "four": {"superposition.bag_size": 4, "superposition.ratio": 0.5},
        "output": {"superposition.bag_size": 4, "superposition.mode": "output_only"},
        "again": {"superposition.bag_size": 2, "superposition.ratio": 0.5, "train.learning_rate": 1e-3},
    }
    values["superposition"] = {}
    study = study_of(values, arms=arms, budgets=[10, 20], equal_data=True)
    steps = equal_data_steps(study)
    assert steps == {"two": 30, "four": 50, "output": 20, "again": 30}
    trials = with_equal_data([trial for arm in study.arms for trial in arm_trials(study, arm, tmp_path)], steps)
    longer = [(trial.arm, trial.total_steps) for trial in trials if trial.kind == "equal_data"]
    assert longer == [("plain", 30), ("plain", 50)]  # the output's is the reference, and two arms share one


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.config.hidden_size", 32),
        ("model.architecture", "qwen3"),
        ("train.sequence_length", 8),
        ("train.batch_size", 8),
        ("train.total_steps", 30),
        ("logging.validation_tokens", 512),
        ("logging.interim_validation_tokens", 512),
        ("data.validation_sets", {"other": "data/other"}),
    ],
)
def test_arms_that_differ_in_what_must_be_equal_are_refused(values: dict[str, Any], key: str, value: Any) -> None:
    values["train"]["total_steps"] = 24
    arms = {"a": {"superposition.bag_size": 1}, "b": {"superposition.bag_size": 2, key: value}}
    with pytest.raises(
        UserError, match=rf"arms\.b: {key.partition('.validation_sets')[0]}.*give it outside of arms"
    ) as caught:
        make_study({**values, "superposition": {}, "arms": arms}, source="study.yaml")
    assert "\n" not in str(caught.value)
