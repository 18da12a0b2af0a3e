"""Guarded runs: the same bits as without guards, whatever stops them; what is forecast, said and refused."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import small_run_on
from tests.in_process import train_here
from tests.study.reports import compare
from tests.training.runs import Stopped, check_equal, go
from token_superposition.cli import main
from token_superposition.errors import TrainingDivergedError
from token_superposition.files import write_record
from token_superposition.schedule import Schedule
from token_superposition.study import guard as guard_module
from token_superposition.study.compare import load_study
from token_superposition.study.guard import parse_shares, place_guards, prepare_guard
from token_superposition.study.report.model import Report
from token_superposition.training.config import TrainConfig, parse_config
from token_superposition.training.trainer import Trainer

Tst = Callable[..., tuple[int, str, list[str]]]

SWITCH, TOTAL, GUARDS = 16, 48, (19, 24)  # guards after a tenth and a quarter of 32 steps of recovery
LENGTHS = (26, 40)  # the baseline's; the branches end at 29 and 34


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak, which takes longer than these runs."""
    monkeypatch.setattr("token_superposition.training.logger.matrix_peak", lambda *_: 1e9)


def make_values(data: Path) -> dict[str, Any]:
    values = small_run_on(data)
    values["superposition"] = {"bag_size": 2, "superposition_steps": SWITCH}
    values["train"] |= {"total_steps": TOTAL, "warmup_steps": 2, "decay_ratio": 0.25}
    values["train"].pop("warmup_ratio")
    values["logging"] |= {"keep_checkpoints": 1, "checkpoint_interval": 100, "validation_interval": 16}
    return values


@pytest.fixture
def values(small_data: Path) -> dict[str, Any]:
    return make_values(small_data)


@pytest.fixture(scope="module")
def compared(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two budgets and two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "study.yaml").write_text(yaml.safe_dump(make_values(small_data)))
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        patch.setattr("token_superposition.study.compare.write_report", write_json_only)
        budgets = ",".join(map(str, LENGTHS))
        study = load_study(folder / "study.yaml", {"train.total_steps": max(LENGTHS)}, budgets=budgets)
        compare(study, folder / "study", num_seeds=2, quiet=True)
    return folder / "study"


def write_json_only(report: Report, folder: Path) -> None:
    """The page, whose figures want longer curves, is not what is read."""
    (folder / "report.json").write_text(json.dumps(report.as_dict()))


@pytest.fixture
def study(compared: Path, tmp_path: Path) -> Path:
    """A copy of the study's report, to be edited."""
    (tmp_path / "study").mkdir()
    return Path(shutil.copy(compared / "report.json", tmp_path / "study")).parent


def guarded(values: dict[str, Any], folder: Path, study: Path) -> dict[str, Any]:
    return prepare_guard(parse_config(values), folder, study, "0.1,0.25").train(quiet=True)


@pytest.fixture
def whole(values: dict[str, Any], tmp_path: Path) -> Path:
    """The run without guards."""
    go(values, tmp_path / "whole")
    return tmp_path / "whole"


def test_a_guarded_run_is_the_run(
    values: dict[str, Any], study: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; one model at a time is in memory; a branch is the run of its length."""
    alive: list[weakref.ref[Any]] = []
    begin = Trainer.__init__

    def init(self: Trainer, *arguments: Any) -> None:
        assert not [each for each in alive if each() is not None]
        begin(self, *arguments)
        alive.extend(map(weakref.ref, (self, self.model, next(self.model.parameters()), self.optimizers)))

    gc.collect()
    gc.disable()  # so that nothing goes by chance
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "__init__", init)
            summary = guarded(values, tmp_path / "run", study)
    finally:
        gc.enable()
    assert len(alive) == 4 * 5  # the run in three parts, two branches
    check_equal(tmp_path / "run", whole)
    found = summary["guard"]
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "run" / "guard.json").read_text())
    assert [(guard["step"], guard["branch_steps"]) for guard in found["guards"]] == [(step, 10) for step in GUARDS]
    for guard in found["guards"]:
        assert guard["gap"] == guard["loss"] - guard["baseline_loss"]
        alone = copy.deepcopy(values)
        alone["train"] |= {"total_steps": guard["step"] + 10, "decay_ratio": 10 / (guard["step"] + 10)}
        assert go(alone, tmp_path / str(guard["step"]))["final_validation_loss"] == guard["loss"]
    (first, second), end = [guard["gap"] for guard in found["guards"]], TOTAL - SWITCH
    recovery = [step + 10 - SWITCH for step in GUARDS]  # those of the branches
    slope = (second - first) / math.log(recovery[1] / recovery[0])
    assert found["forecast"]["gap_at_end"] == pytest.approx(second + slope * math.log(end / recovery[1]))
    low, high = found["forecast"]["interval"]
    assert low < found["forecast"]["gap_at_end"] < high
    assert guarded(values, tmp_path / "run", study) == summary  # it is done


def counting(patch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Every step that is trained from here on; the one of that number is never done, as by a kill."""
    original, steps = Trainer.step, list[int]()

    def step(self: Trainer, batch: Any) -> Any:
        if len(steps) == stop_at:
            raise Stopped
        steps.append(batch.step)
        return original(self, batch)

    patch.setattr(Trainer, "step", step)
    return steps


def test_killed_anywhere_it_goes_on_and_repeats_no_guard(
    values: dict[str, Any], study: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the first guard; at its branch's last step; in the second branch; after both.
    for number in (18, 28, 36, 60):
        folder = tmp_path / f"killed {number}"
        with monkeypatch.context() as patch:
            counting(patch, number)
            with pytest.raises(Stopped):
                guarded(values, folder, study)
        done = sorted(path.parent.name for path in folder.glob("guard/*/summary.json"))
        with monkeypatch.context() as patch:
            again = counting(patch)
            guarded(values, folder, study)
        check_equal(folder, whole)
        assert len(again) <= TOTAL + 10 * (2 - len(done))
        if number >= 40:  # both guards were done: only the run's own steps, from the last guard's checkpoint on
            assert again == list(range(GUARDS[1], TOTAL))


@pytest.mark.parametrize("name", ["make_branch", "write_json"])
def test_killed_between_its_runs(
    values: dict[str, Any], study: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(guard_module, name, kill)
        with pytest.raises(Stopped):
            guarded(values, tmp_path / "run", study)
    guarded(values, tmp_path / "run", study)
    check_equal(tmp_path / "run", whole)


@pytest.fixture
def tst(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tst:
    """`tst train` of the run: its exit code, output, and lines on standard error."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        words = ["train", tmp_path / "run.yaml", "--out", tmp_path / "run", *arguments]
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return call


def test_what_is_said(tst: Tst, study: Path) -> None:
    code, out, said = tst("--guard", study)
    assert code == 0
    assert "validation loss" in out
    first, last = (line for line in said if re.match("guard after step .*nats", line))
    assert said[0].startswith(f"guards after steps 19 and 24 of {TOTAL}: branches of 10 and 10 steps, 42% more steps")
    assert "a forecast needs two guards" in first
    assert re.search(r"forecast for the end: .*nats (better|worse) \(95% interval: ", last)


def test_a_guard_that_diverges_does_not_end_the_run(
    values: dict[str, Any], study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def step(self: Trainer, batch: Any) -> Any:
        if self.schedule.total_steps == GUARDS[0] + 10 and batch.step > GUARDS[0]:
            raise TrainingDivergedError("it came to no numbers")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        summary = guarded(values, tmp_path / "run", study)
    guards = summary["guard"]["guards"]
    assert [guard["loss"] is None for guard in guards] == [True, False]
    assert summary["guard"]["forecast"] is None
    assert guarded(values, tmp_path / "run", study) == summary


def test_a_dry_run_says_what_the_guards_cost(tst: Tst, study: Path, tmp_path: Path) -> None:
    code, out, _ = tst("--guard", study, "--dry-run")
    assert code == 0
    assert "42% more steps than the run" in out
    code, out, _ = tst("--guard", study, "--guard-at", "0.25", "--dry-run", "--json")
    assert [(each["step"], each["branch_steps"]) for each in json.loads(out)["guard"]["guards"]] == [(24, 10)]
    assert not (tmp_path / "run").exists()


def test_where_guards_lie_and_what_they_cost() -> None:
    """A branch decays over as large a share of its steps as the run does: 370 of 1,850 are a fifth."""
    train = TrainConfig(total_steps=4000, decay_ratio=0.2, warmup_steps=200)
    schedule = Schedule.two_phase(4000, 4, 0.3)
    guards = place_guards(train, schedule, parse_shares("0.25,0.1"))
    assert [(guard.step, guard.branch_steps, guard.total_steps) for guard in guards] == [
        (1480, 370, 1850),
        (1900, 475, 2375),
    ]
    flat = place_guards(TrainConfig(total_steps=4000, decay_ratio=0, warmup_steps=200), schedule, (0.1,))
    assert flat[0].branch_steps == 10  # nothing decays, and the end is near


def test_other_data_of_the_same_size_is_other_data(tst: Tst, study: Path, compared: Path) -> None:
    run = Path("runs/baseline/26-steps/seed-0")
    (study / run).mkdir(parents=True)
    shutil.copy(compared / run / "config.yaml", study / run)
    fixed = json.loads((compared / run / "run.json").read_text())
    del fixed["checksum"]
    write_record(study / run / "run.json", {**fixed, "data_fingerprint": "0123"})
    code, _, said = tst("--guard", study)
    assert (code, len(said)) == (2, 1)
    assert "the fingerprint of the data is '0123' there" in said[0]


def edit(study: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    report = json.loads((study / "report.json").read_text())
    change(report)
    (study / "report.json").write_text(json.dumps(report))


REPORTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "batch": (lambda r: r["settings"].update(batch_size=8), "train.batch_size * train.sequence_length is 128 there"),
    "length": (lambda r: r["settings"].update(sequence_length=32, batch_size=2), "train.sequence_length is 32 there"),
    "size": (lambda r: r["model"].update(parameters=7), "the number of parameters is 7 there"),
    "model": (lambda r: r["model"]["config"].update(num_attention_heads=1), "model.config.num_attention_heads is 1"),
    "start": (lambda r: r["model"].update(init_from={"path": "x"}), "model.init_from is True there"),
    "optimizer": (lambda r: r["settings"].update(optimizer="muon"), "train.optimizer is 'muon' there and 'adamw'"),
    "decay": (lambda r: r["settings"].update(decay_ratio=0.5), "train.decay_ratio is 0.5 there and 0.25 here"),
    "data type": (lambda r: r["settings"].update(dtype="bfloat16"), "train.dtype is 'bfloat16' there"),
    "tokenizer": (lambda r: r["data"].update(tokenizer="bpe"), "the tokenizer is 'bpe' there and 'bytes' here"),
    "data": (lambda r: r["data"].update(train_tokens=9), "the number of training tokens is 9 there"),
    "validation": (lambda r: r["data"].update(validation_tokens_used=64), "number of validation tokens is 64 there"),
    "one length": (lambda r: r["arms"][0]["budgets"].pop(), "runs of 26 steps with finite losses"),
    "no number": (
        lambda r: r["arms"][0]["budgets"][0]["seeds"][0].update(final_validation_loss=float("nan")),
        "runs of 40 steps with finite losses",
    ),
    "too long": (lambda r: r["arms"][0]["budgets"][0].update(total_steps=30), "branches end at 29 to 34"),
    "too short": (lambda r: r["arms"][0]["budgets"][1].update(total_steps=33), "runs of 26, 33 steps"),
    "damaged": (lambda r: r["arms"][0]["budgets"][0].update(seeds=[3]), "arms.0.budgets.0.seeds.0: "),
    "superposed": (lambda r: r["arms"][0].update(switch_step=3), "its first arm, 'baseline', has superposition"),
}


@pytest.mark.parametrize("case", list(REPORTS))
def test_baselines_that_are_none(tst: Tst, study: Path, tmp_path: Path, case: str) -> None:
    change, words = REPORTS[case]
    edit(study, change)
    code, _, said = tst("--guard", study)
    assert (code, len(said)) == (2, 1)
    assert words in said[0]
    assert str(study) in said[0]
    assert not (tmp_path / "run").exists()


REQUESTS: list[tuple[list[str], str]] = [
    (["--guard", "nowhere.json"], "--guard nowhere.json: this file or folder does not exist"),
    (["--guard", "run.yaml"], "run.yaml: is not JSON"),
    (["--guard", "."], "--guard report.json: does not exist"),
    (["--guard-at", "0.1"], "--guard-at needs --guard"),
    (["--guard", "STUDY", "--superposition.superposition_steps", "0"], "this run has no superposition"),
    (
        ["--guard", "STUDY", "--guard-at", "0.1,0.7"],
        "at step 38: the learning rate decays from step 37",
    ),
    (["--guard", "STUDY", "--train.warmup_steps", "22"], "step 19: the warm-up ends at step 22"),
    (["--guard", "STUDY", "--guard-at", "0.1,0.105"], "step 19: another guard is at the same step"),
    (
        ["--guard", "STUDY", "--train.total_steps", "29", "--guard-at", "0.1,0.5"],
        "would end at step 32, and the run ends at 29",
    ),
    (["--guard", "STUDY", "--guard-at", "0.1,2"], "--guard-at 0.1,2: different shares"),
    (["--guard", "STUDY", "--guard-at", ""], "different shares"),
    (["--guard", "STUDY", "--data.path", "elsewhere"], "elsewhere"),
]


@pytest.mark.parametrize(("words", "expected"), REQUESTS)
def test_requests_that_are_refused(
    tst: Tst, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = tst(*[str(study) if word == "STUDY" else word for word in words])
    assert (code, len(said)) == (2, 1)
    assert expected in said[0]
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_past_its_guards(tst: Tst, values: dict[str, Any], study: Path, tmp_path: Path) -> None:
    go(values, tmp_path / "run")
    code, _, said = tst("--guard", study)
    assert (code, len(said)) == (2, 1)
    assert "this run is at step 48 and no longer has the checkpoint of step 19" in said[0]
