"""Tuning each arm: what is trained, what is chosen, and what becomes of runs that diverge.

Most of it with runs that are made up, so that their losses are known; the last test trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.study.reports import compare
from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.files import write_json
from token_superposition.study import runner as queue
from token_superposition.study.compare import Study, make_study
from token_superposition.study.job import Job
from token_superposition.study.sweep import parse_sweep
from token_superposition.study.tuning import Tuned, tune
from token_superposition.training.config import load_config
from token_superposition.training.run_folder import FIGURES

RATE = "train.learning_rate"
Loss = Callable[[bool, float, int], float | None]  # of superposition or not, a rate, a seed; None: it diverges


class Made:
    """Runs that end at once, with the losses a test wants."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.trained: list[list[str]] = []  # the runs of each queue that were not done before

    def run_jobs(self, jobs: Sequence[Job], *, may_diverge: bool = False, **_: object) -> None:
        assert may_diverge
        new = [job for job in jobs if not (job.done or job.diverged)]
        self.trained.append([job.name for job in new])
        for job in new:
            config = load_config(job.config)
            job.folder.mkdir(parents=True, exist_ok=True)
            loss = self.loss(config.superposition.bag_size > 1, config.train.learning_rate, config.train.seed)
            if loss is None:
                write_json(job.folder / "diverged.json", {"message": "diverged"})
            else:
                summary = {**dict.fromkeys(FIGURES, 1), "steps": job.total_steps, "final_validation_loss": loss}
                write_json(job.folder / "summary.json", summary)


@pytest.fixture
def study(small_run: dict[str, Any]) -> Study:
    return make_study(small_run)


def tuned(
    study: Study,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: Loss,
    values: str = "1e-3,2e-3,4e-3",
    *,
    num_seeds: int = 2,
    sweep_seeds: int = 1,
) -> tuple[Tuned, Made]:
    made = Made(loss)
    monkeypatch.setattr(queue, "run_jobs", made.run_jobs)
    sweep = parse_sweep([f"{RATE}={values}"], study.arms, num_seeds=sweep_seeds)
    return tune(study, sweep, folder, num_seeds=num_seeds, jobs=1, quiet=True), made


def plain(superposed: bool, rate: float, seed: int) -> float:
    """Best at 0.002, with superposition at 0.004; every seed a little off."""
    return 1 + abs(rate - (0.004 if superposed else 0.002)) + 1e-6 * seed


def rates(result: Tuned) -> list[float]:
    return [trial.config.train.learning_rate for trial in result.trials]


def test_each_arm_is_compared_at_its_own_best(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, made = tuned(study, tmp_path, monkeypatch, plain)
    assert rates(result) == [0.002, 0.004]
    baseline, superposition = result.report["arms"]
    assert (baseline["best"], superposition["best"]) == ({RATE: 0.002}, {RATE: 0.004})
    assert result.trials[0].base == tmp_path / "runs" / "baseline" / f"{RATE}=0.002"

    # One queue for the sweep, on a seed of its own; then the seeds compared, at the best alone.
    first, second = made.trained
    assert len(first) == 6
    assert all(name.endswith("seed 1000") for name in first)
    assert second == [
        f"{arm}, {RATE}={rate}, seed {seed}"
        for seed in (0, 1)
        for arm, rate in (("baseline", 0.002), ("superposition", 0.004))
    ]
    assert [setting["values"] for setting in baseline["settings"]] == [{RATE: rate} for rate in (0.001, 0.002, 0.004)]
    assert baseline["settings"][0]["seeds"] == [
        {"seed": 1000, "final_validation_loss": plain(False, 0.001, 1000), "diverged": False}
    ]


def test_the_seeds_compared_have_no_part_in_the_choice(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(superposed: bool, rate: float, seed: int) -> float:
        return plain(superposed, rate, seed) + (5 if seed < 1000 and rate == 0.002 else 0)

    result, _ = tuned(study, tmp_path, monkeypatch, unlucky)
    assert rates(result) == [0.002, 0.004]


def test_the_best_at_the_edge_is_said(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = tuned(study, tmp_path, monkeypatch, plain)
    assert [arm["at_edge"] for arm in result.report["arms"]] == [{}, {RATE: "highest"}]
    assert f"superposition: the best {RATE} is the highest tried" in capsys.readouterr().err
    lower, _ = tuned(study, tmp_path, monkeypatch, plain, "2e-3,4e-3,8e-3")
    assert [arm["at_edge"] for arm in lower.report["arms"]] == [{RATE: "lowest"}, {}]


def test_nothing_lies_below_zero(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "run_jobs", Made(plain).run_jobs)
    sweep = parse_sweep(["train.weight_decay=0,0.1"], study.arms)  # which the made-up losses do not depend on
    result = tune(study, sweep, tmp_path, num_seeds=1, jobs=1, quiet=True)
    assert [arm["best"] for arm in result.report["arms"]] == [{"train.weight_decay": 0}] * 2
    assert [arm["at_edge"] for arm in result.report["arms"]] == [{}, {}]


def test_more_values_and_more_seeds_train_the_new_runs_only(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(study, tmp_path, monkeypatch, plain)
    again, made = tuned(study, tmp_path, monkeypatch, plain)
    assert made.trained == [[], []]
    wider, made = tuned(study, tmp_path, monkeypatch, plain, "8e-3,1e-3,2e-3,4e-3", num_seeds=3)
    assert [len(queue) for queue in made.trained] == [2, 2]
    assert all("=0.008, seed 1000" in name for name in made.trained[0])
    assert all(name.endswith("seed 2") for name in made.trained[1])
    assert rates(wider) == rates(again)
    assert [arm["at_edge"] for arm in wider.report["arms"]] == [{}, {}]
    more, made = tuned(study, tmp_path, monkeypatch, plain, sweep_seeds=2)
    assert [len(queue) for queue in made.trained] == [6, 0]
    assert [seed["seed"] for seed in more.report["arms"][0]["settings"][0]["seeds"]] == [1000, 1001]


def test_a_setting_that_diverges_is_worst_and_never_trained_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(superposed: bool, rate: float, seed: int) -> float | None:
        return None if rate == 0.004 and seed == 1001 else plain(superposed, rate, seed)

    result, _ = tuned(study, tmp_path, monkeypatch, diverging, sweep_seeds=2)
    assert rates(result) == [0.002, 0.002]
    highest = result.report["arms"][1]["settings"][2]
    assert [seed["diverged"] for seed in highest["seeds"]] == [False, True]
    assert highest["seeds"][1]["final_validation_loss"] is None
    assert highest["mean_validation_loss"] is None
    assert result.report["arms"][1]["at_edge"] == {}  # what lies beyond was tried
    _, made = tuned(study, tmp_path, monkeypatch, diverging, sweep_seeds=2)
    assert made.trained == [[], []]


def test_a_choice_that_diverges_when_compared_gives_way_to_the_next(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(superposed: bool, rate: float, seed: int) -> float | None:
        return None if rate == 0.004 and seed == 1 else plain(superposed, rate, seed)

    result, made = tuned(study, tmp_path, monkeypatch, diverging)
    assert rates(result) == [0.002, 0.002]
    assert [len(queue) for queue in made.trained] == [6, 4, 2]
    settings = result.report["arms"][1]["settings"]
    assert [setting["diverged_when_compared"] for setting in settings] == [[], [], [1]]
    again, made = tuned(study, tmp_path, monkeypatch, diverging)
    assert again == result
    assert not any(made.trained)


def test_an_arm_that_diverges_everywhere_ends_the_study(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingDivergedError, match=r"^superposition: diverged at every setting") as caught:
        tuned(study, tmp_path, monkeypatch, lambda superposed, rate, seed: None if superposed else rate + seed)
    assert "\n" not in str(caught.value)


@pytest.fixture
def study_of_budgets(small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two budgets, whose runs are trained by themselves, and the baseline on equal data, 30 steps."""
    monkeypatch.setattr(Study, "branches", False)
    del small_run["train"]["total_steps"]
    return make_study(small_run, budgets="10,20", equal_data=True)


def test_every_budget_is_tuned_by_itself_and_equal_data_goes_with_the_longest(
    study_of_budgets: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, made = tuned(study_of_budgets, tmp_path, monkeypatch, plain, num_seeds=1)
    assert [len(queue) for queue in made.trained] == [12, 5]
    assert rates(result) == [0.002, 0.002, 0.004, 0.004, 0.002]
    assert [budget["total_steps"] for budget in result.report["budgets"]] == [10, 20]


def test_seeds_that_would_meet_those_of_the_sweep_are_refused(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--seeds is at most 1000"):
        tuned(study, tmp_path, monkeypatch, plain, num_seeds=1001)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("forked")
def test_a_sweep_of_real_runs(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["train"]["max_grad_norm"] = None
    study = make_study(small_run)
    sweep = parse_sweep([f"{RATE}=1e-2,1e30"], study.arms)
    report = compare(study, tmp_path, sweep=sweep, jobs=2, quiet=True)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert [arm["learning_rate"] for arm in report["arms"]] == [1e-2, 1e-2]
    for arm, tried in zip(report["arms"], report["sweep"]["arms"], strict=True):
        lower, higher = tried["settings"]
        assert lower["seeds"][0]["final_validation_loss"] > 0
        assert higher["seeds"] == [{"seed": 1000, "final_validation_loss": None, "diverged": True}]
        place = tmp_path / "runs" / arm["name"]
        assert json.loads((place / f"{RATE}=1e+30" / "seed-1000" / "diverged.json").read_text())["message"]
        summary = json.loads((place / f"{RATE}=0.01" / "seed-0" / "summary.json").read_text())
        assert [seed["final_validation_loss"] for seed in arm["seeds"]] == [summary["final_validation_loss"]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Tuning each arm" in page
    logs = sorted((tmp_path / "runs").glob("*/*/*.log"))
    assert len(logs) == 6
    times = [log.stat().st_mtime_ns for log in logs]
    assert compare(study, tmp_path, sweep=sweep, jobs=2, quiet=True) == report
    assert [log.stat().st_mtime_ns for log in logs] == times  # nothing was started
