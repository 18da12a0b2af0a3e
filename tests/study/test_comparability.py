"""Runs of one study that became different ones on their way, and are not compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.study.reports import compare
from tests.training.runs import go_until
from token_superposition.errors import UserError
from token_superposition.files import write_record
from token_superposition.study import results
from token_superposition.study.compare import Study, make_study
from token_superposition.study.report.parts import Speedup, Unit
from token_superposition.study.results import build_report
from token_superposition.study.runner import plan_runs
from token_superposition.study.study_plan import dry_run
from token_superposition.study.trials import Trial, arm_trials
from token_superposition.training import run as run_module
from token_superposition.training.run_folder import RunFolder

UNLIKE = r"started with {} steps and keeps the switch and the warm-up that it had then, unlike .*{}, so the two cannot"


def stopped(study: Study, folder: Path, patch: pytest.MonkeyPatch, *, step: int = 7, seed: int = 0) -> None:
    """Leave the runs of a seed as a kill before that step does."""
    for name, config in study.arms.items():
        values = config.model_dump(mode="json", exclude_unset=True)
        go_until(step, values, folder / "runs" / name / f"seed-{seed}", patch, train__seed=seed)


def arms_of(study: Study, folder: Path) -> list[Trial]:
    return [trial for arm in study.arms for trial in arm_trials(study, arm, folder)]


def steps_of(report: dict[str, Any]) -> set[int]:
    return {seed["steps"] for arm in report["arms"] for seed in arm["seeds"]}


def studies(values: dict[str, Any], *totals: int) -> list[Study]:
    return [make_study(values, {"train.total_steps": total}) for total in totals]


@pytest.mark.parametrize(("total", "both"), [(24, "12,24"), (8, "8,12")])
def test_seeds_that_are_new_are_not_those_that_were_given_another_length(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, both: str
) -> None:
    study, other = studies(small_run, 12, total)
    stopped(study, tmp_path, monkeypatch)
    before = (tmp_path / "runs/superposition/seed-0/config.yaml").read_text()
    for ask in (dry_run, compare):
        with pytest.raises(UserError, match=UNLIKE.format(12, "seed-1")) as caught:
            ask(other, tmp_path, num_seeds=2)
        assert f"give 12, train both lengths (--budgets {both}), or name another folder" in str(caught.value)
    assert (tmp_path / "runs/superposition/seed-0/config.yaml").read_text() == before
    assert not (tmp_path / "runs/superposition/seed-1").exists()


def test_neither_are_seeds_that_were_started_with_yet_another(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = studies(small_run, 12, 14, 24)
    stopped(first, tmp_path, monkeypatch)
    stopped(second, tmp_path, monkeypatch, seed=1)
    with pytest.raises(UserError, match=UNLIKE.format(12, "seed-1")):
        dry_run(third, tmp_path, num_seeds=2)


@pytest.mark.usefixtures("in_process")
def test_a_study_that_was_made_longer_as_a_whole_takes_no_new_seeds(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run["train"]["warmup_ratio"] = 0.25
    study, longer = studies(small_run, 12, 24)
    stopped(study, tmp_path, monkeypatch)
    report = compare(longer, tmp_path, quiet=True)
    assert [arm["switch_step"] for arm in report["arms"]] == [0, 6]
    assert report["settings"]["warmup_steps"] == 3  # of 12 steps
    assert {seed["first_total_steps"] for arm in report["arms"] for seed in arm["seeds"]} == {12}
    assert compare(longer, tmp_path, quiet=True) == report
    with pytest.raises(UserError, match=UNLIKE.format(12, "seed-1")):
        dry_run(longer, tmp_path, num_seeds=2)
    with pytest.raises(UserError, match=r"this run was started with 24 steps, and 24 are done"):
        dry_run(study, tmp_path, num_seeds=1)


def test_a_warm_up_is_kept_too(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where superposition is the same number of steps at both lengths."""
    small_run["superposition"] = {"bag_size": 2, "superposition_steps": 6}
    small_run["train"]["warmup_ratio"] = 0.25
    study, longer = studies(small_run, 12, 24)
    stopped(study, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=UNLIKE.format(12, "seed-1")):
        dry_run(longer, tmp_path, num_seeds=2)


@pytest.mark.usefixtures("in_process")
def test_where_nothing_is_a_share_of_the_steps_what_is_done_goes_on_beside_new_seeds(
    small_run: dict[str, Any], tmp_path: Path
) -> None:
    small_run["superposition"] = {"bag_size": 2, "superposition_steps": 6}
    small_run["train"] |= {"warmup_ratio": None, "warmup_steps": 2, "decay_ratio": 0.0}
    study, longer = studies(small_run, 12, 24)
    assert steps_of(compare(study, tmp_path, quiet=True)) == {12}
    assert dry_run(longer, tmp_path, num_seeds=2)["steps_to_train"] == 12 + 12 + 24 + 24
    assert steps_of(compare(longer, tmp_path, num_seeds=2, quiet=True)) == {24}


@pytest.mark.usefixtures("in_process")
def test_where_superposition_is_a_share_all_that_is_done_goes_on_or_nothing(
    small_run: dict[str, Any], tmp_path: Path
) -> None:
    small_run["train"] |= {"warmup_ratio": None, "warmup_steps": 2, "decay_ratio": 0.0}
    study, longer = studies(small_run, 12, 24)
    compare(study, tmp_path, quiet=True)
    with pytest.raises(UserError, match=UNLIKE.format(12, "superposition/seed-1")):
        compare(longer, tmp_path, num_seeds=2, quiet=True)
    report = compare(longer, tmp_path, quiet=True)
    assert steps_of(report) == {24}
    assert report["arms"][1]["switch_step"] == 6


@pytest.mark.usefixtures("in_process")
def test_a_run_that_keeps_another_warm_up_is_not_taken_for_one_of_several_budgets(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run["superposition"] = {"bag_size": 2, "superposition_steps": 6}
    small_run["train"] |= {"warmup_ratio": 0.25}
    study, longer = studies(small_run, 12, 24)
    stopped(study, tmp_path, monkeypatch)
    compare(longer, tmp_path, quiet=True)
    del small_run["train"]["total_steps"]
    found = dry_run(make_study({**small_run, "budgets": [16, 24]}), tmp_path, num_seeds=1)
    assert (found["runs"], found["runs_done"], found["steps_done"]) == (4, 0, 0)


def test_a_run_file_says_what_it_was_started_with(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    go_until(7, small_run, folder, monkeypatch)
    for total in (14, 24):
        go_until(8, small_run, folder, monkeypatch, train__total_steps=total)
    record = RunFolder(folder).read_record()
    assert record is not None
    assert record.first_total_steps == 12
    write_record(folder / "run.json", {**record.as_dict(), "first_total_steps": True})
    with pytest.raises(UserError, match=r"is damaged \(first_total_steps is not a number of steps\)"):
        RunFolder(folder).read_record()


def edited(run: Path, **train: Any) -> None:
    """A run as another machine would have begun it."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["train"] |= train
    (run / "config.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def anywhere(small_run: dict[str, Any]) -> dict[str, Any]:
    """A run that leaves it to `auto` where it is trained."""
    del small_run["train"]["device"], small_run["train"]["num_threads"]
    return small_run


ELSEWHERE = "computes on {} in {}, and .*{} on {} in {}, so the two cannot be compared; give --train.device {}"


def test_runs_begun_on_a_cpu_are_not_gone_on_with_beside_new_ones_on_a_gpu(
    anywhere: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = studies(anywhere, 12)
    stopped(study, tmp_path, monkeypatch, step=1)
    monkeypatch.setattr(run_module, "device_type", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr(run_module, "resolve_device", torch.device)
    said = ELSEWHERE.format("cuda", "bfloat16", "baseline/seed-0", "cpu", "float32", "cpu --train.dtype float32")
    with pytest.raises(UserError, match=f"seed-1: {said}"):
        plan_runs(arms_of(study, tmp_path), range(2), branches=False)
    assert len(plan_runs(arms_of(study, tmp_path), range(1), branches=False)) == 2
    like = make_study(anywhere, {"train.device": "cpu", "train.dtype": "float32"})
    assert len(plan_runs(arms_of(like, tmp_path), range(2), branches=False)) == 4


@pytest.mark.usefixtures("in_process")
def test_what_was_trained_elsewhere_is_not_reported_and_seconds_of_more_threads_are_not_compared(
    anywhere: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = studies(anywhere, 12)
    assert compare(study, tmp_path, quiet=True)["settings"]["num_threads"] == 1
    trials, run = arms_of(study, tmp_path), tmp_path / "runs/superposition/seed-0"
    units: list[Unit] = ["flops", "seconds"]
    both = [Speedup(baseline="baseline", arm="superposition", read_at="baseline_end", unit=unit) for unit in units]
    monkeypatch.setattr(results, "iso_loss_all", lambda _: both)
    monkeypatch.setattr(results, "choose_headline", lambda *_: (None, "one budget was trained"))
    assert build_report(study, trials, 1, {}).iso_loss_all == tuple(both)
    edited(run, num_threads=7)
    report = build_report(study, trials, 1, {})
    assert [arm.seeds[0].num_threads for arm in report.arms] == [1, 7]
    assert report.settings.num_threads is None
    assert report.iso_loss_all == tuple(both[:1])
    edited(run, device="cuda:0")
    with pytest.raises(UserError, match=ELSEWHERE.format("cuda:0", "float32", "baseline/seed-0", "cpu", "float32", "")):
        build_report(study, trials, 1, {})
    edited(run, device="cpu", dtype="bfloat16")
    with pytest.raises(UserError, match=ELSEWHERE.format("cpu", "bfloat16", "baseline/seed-0", "cpu", "float32", "")):
        build_report(study, trials, 1, {})


def test_an_arm_may_ask_for_another_precision(anywhere: dict[str, Any], tmp_path: Path) -> None:
    """The report lists it among what the arm changes."""
    arms = {"plain": {"superposition.bag_size": 1}, "other": {"superposition.bag_size": 2, "train.dtype": "bfloat16"}}
    study = make_study({**anywhere, "arms": arms})
    assert len(plan_runs(arms_of(study, tmp_path), range(2), branches=False)) == 4


def test_a_branch_is_trained_where_the_run_that_it_leaves_was(
    anywhere: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del anywhere["train"]["total_steps"]
    study = make_study(anywhere, budgets="10,20")
    _, trunk = trials = arm_trials(study, "baseline", tmp_path)
    values = trunk.config.model_dump(mode="json", exclude_unset=True)
    go_until(7, values, trunk.run(0).path, monkeypatch, logging__checkpoint_interval=1)
    monkeypatch.setattr(run_module, "resolve_device", lambda name: torch.device("cuda:0" if name == "auto" else name))
    assert [run.job.parent is None for run in plan_runs(trials, range(1), branches=True)] == [True, False]
