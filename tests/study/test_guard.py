"""Guarded runs: the same bits as without guards, whatever stops them; what is forecast, said and refused."""

from __future__ import annotations

import copy
import gc
import json
import math
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
from token_superposition.files import read_record, write_record
from token_superposition.schedule import Schedule
from token_superposition.study.compare import load_study
from token_superposition.study.guard import guarded_run as guard_run
from token_superposition.study.guard.guarded_run import GuardRequest, prepare_guard
from token_superposition.study.guard.placement import GuardPlan, parse_fractions, place_guards
from token_superposition.study.report.model import Report
from token_superposition.training.checkpoint import checkpoint_path
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
def plain(compared: Path) -> list[Path]:
    """Finished runs without superposition, of two lengths and two seeds: the study's."""
    return [compared / "runs" / "baseline" / f"{steps}-steps" / f"seed-{seed}" for steps in LENGTHS for seed in (0, 1)]


@pytest.fixture
def study(compared: Path, tmp_path: Path) -> Path:
    """A copy of the study's report, to be edited."""
    (tmp_path / "study").mkdir()
    return Path(shutil.copy(compared / "report.json", tmp_path / "study")).parent


def ask(baseline: Path | list[Path], **others: Any) -> GuardRequest:
    places = baseline if isinstance(baseline, list) else [baseline]
    return GuardRequest(places, **{"at": "0.1,0.25", "if_behind": "go-on", "stop_below": 0.5, **others})


def guarded(values: dict[str, Any], folder: Path, request: GuardRequest) -> dict[str, Any]:
    return prepare_guard(parse_config(values), folder, request).train(quiet=True)


def shifted(study: Path, nats: float, noise: float = 0.01) -> Path:
    """The study with a baseline that is so much worse, and as noisy as that."""
    file = study / "report.json"
    report = json.loads(file.read_text())
    for budget in report["arms"][0]["budgets"]:
        for seed in budget["seeds"]:
            seed["final_validation_loss"] = 5.0 + nats + (noise if seed["seed"] else -noise)
    file.write_text(json.dumps(report))
    return study


def check_same(run: Path, whole: Path) -> None:
    """All that a run of the same checkpoints is, and a summary that has `guard` besides."""
    copied = run.with_name(f"{run.name} without")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(run, copied)
    summary = json.loads((copied / "summary.json").read_text())
    assert summary.pop("guard")["guards"][0]["loss"] is not None
    (copied / "summary.json").write_text(json.dumps(summary))
    check_equal(copied, whole)


@pytest.fixture
def whole(values: dict[str, Any], tmp_path: Path) -> Path:
    """The run without guards."""
    kept = copy.deepcopy(values)
    kept["logging"]["keep_checkpoint_steps"] = [SWITCH]
    go(kept, tmp_path / "whole")
    return tmp_path / "whole"


def test_a_guarded_run_is_the_run(
    values: dict[str, Any], plain: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            summary = guarded(values, tmp_path / "run", ask(plain))
    finally:
        gc.enable()
    assert len(alive) == 4 * 5  # the run in three parts, two branches
    check_same(tmp_path / "run", whole)
    assert checkpoint_path(tmp_path / "run" / "checkpoints", SWITCH).exists()
    found = summary["guard"]
    assert found == json.loads((tmp_path / "run" / "guard.json").read_text())
    assert found == json.loads((tmp_path / "run" / "summary.json").read_text())["guard"]
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
    assert 0 < found["forecast"]["probability_ahead"] < 1
    assert found["cost"]["steps"] == 20
    assert found["cost_if_stopped"]["steps"] == GUARDS[1] + 20
    assert found["cost"]["flops"] == 20 * summary["flops"] / TOTAL
    before = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    assert guarded(values, tmp_path / "run", ask(plain)) == summary  # it is done
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == before


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
                guarded(values, folder, ask(study))
        done = sorted(path.parent.name for path in folder.glob("guard/*/summary.json"))
        with monkeypatch.context() as patch:
            again = counting(patch)
            guarded(values, folder, ask(study))
        check_same(folder, whole)
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
        patch.setattr(guard_run, name, kill)
        with pytest.raises(Stopped):
            prepare_guard(parse_config(values), tmp_path / "run", ask(study)).train(quiet=True)
    guarded(values, tmp_path / "run", ask(study))
    check_same(tmp_path / "run", whole)


def test_a_summary_without_its_guard_gets_it(values: dict[str, Any], study: Path, tmp_path: Path) -> None:
    """A kill between the run's summary and what is added to it."""
    summary = guarded(values, tmp_path / "run", ask(study))
    file = tmp_path / "run" / "summary.json"
    file.write_text(json.dumps({key: value for key, value in summary.items() if key != "guard"}))
    assert guarded(values, tmp_path / "run", ask(study)) == summary
    assert read_record(file, "") == summary


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
    shifted(study, 10, noise=3)
    code, out, said = tst("--guard", study)
    assert code == 0
    assert "validation loss" in out
    at = [number for number, line in enumerate(said) if line.startswith("guard after step") and "loss" in line]
    first, last = (said[number] for number in at)
    assert said[0].startswith(f"guards after steps 19 and 24 of {TOTAL} (10% and 25% of the recovery): branches of 10")
    assert "42% of the run on top" in said[0]
    assert said[1].startswith("if the last guard says stop, 44 steps are spent, 92% of the run (")
    assert said[1].endswith(f"FLOPs); the checkpoint at the switch, step {SWITCH}, is kept")
    assert said[2].endswith("4 runs of 26 to 40 steps; the run goes on whatever is found")
    assert "nats ahead; no forecast yet: one guard shows no direction" in first
    assert "nats ahead; forecast for the end: " in last
    assert "ahead with a probability of" in last


def test_behind_it_stops_if_it_is_to(
    tst: Tst,
    study: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shifted(study, -4)  # the baseline is far ahead
    code, out, said = tst("--guard", study, "--if-behind", "stop")
    assert (code, out) == (1, "")
    line = said[-1]
    kept = checkpoint_path(tmp_path / "run" / "checkpoints", SWITCH)
    assert line.startswith(f"error: {tmp_path / 'run'}: stopped after step 24: superposition is forecast to end ")
    for words in ("nats behind, with a probability of 0.0", "44 steps were spent, 92% of the run", str(kept)):
        assert words in line
    assert kept.exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    with monkeypatch.context() as patch:
        steps = counting(patch)
        again = tst("--guard", study, "--if-behind", "stop")
        assert (again[0], again[2][-1]) == (1, line)
        assert steps == []
        assert tst("--guard", study, "--if-behind", "stop", "--stop-below", "1e-9", "--dry-run")[0] == 0
    assert tst("--guard", study, "--if-behind", "go-on")[0] == 0
    check_same(tmp_path / "run", whole)


def test_ahead_it_goes_on(values: dict[str, Any], study: Path, tmp_path: Path) -> None:
    shifted(study, 10)
    summary = guarded(values, tmp_path / "run", ask(study, if_behind="stop"))
    assert summary["guard"]["forecast"]["probability_ahead"] > 0.9


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
        summary = guarded(values, tmp_path / "run", ask(study))
    guards = summary["guard"]["guards"]
    assert [guard["loss"] is None for guard in guards] == [True, False]
    assert summary["guard"]["forecast"]["bound"] == guards[1]["gap"]
    assert guarded(values, tmp_path / "run", ask(study)) == summary


def test_a_dry_run_says_what_a_failed_attempt_costs(tst: Tst, study: Path, tmp_path: Path) -> None:
    code, out, _ = tst("--guard", study, "--dry-run")
    assert code == 0
    assert "if the last guard says stop, 44 steps are spent" in out
    code, out, _ = tst("--guard", study, "--guard-at", "0.25", "--dry-run", "--json")
    assert json.loads(out)["guard"]["cost_if_stopped"]["steps"] == 24 + 10
    assert not (tmp_path / "run").exists()


def test_where_guards_lie_and_what_they_cost() -> None:
    """A branch decays over as large a share of its steps as the run does: 370 of 1,850 are a fifth."""
    train = TrainConfig(total_steps=4000, decay_ratio=0.2, warmup_steps=200)
    schedule = Schedule.two_phase(4000, 4, 0.3)
    guards = place_guards(train, schedule, parse_fractions("0.25,0.1"))
    assert [(guard.step, guard.branch_steps, guard.total_steps) for guard in guards] == [
        (1480, 370, 1850),
        (1900, 475, 2375),
    ]
    plan = GuardPlan(schedule, guards, 10)
    assert [plan.spent(number) for number in (0, 1)] == [1850, 1900 + 370 + 475]
    assert plan.as_dict()["cost"] == {"steps": 845, "share": 845 / 4000, "flops": 8450}
    assert plan.as_dict()["cost_if_stopped"] == {"steps": 2745, "share": 2745 / 4000, "flops": 27450}
    flat = place_guards(TrainConfig(total_steps=4000, decay_ratio=0, warmup_steps=200), schedule, (0.1,))
    assert flat[0].branch_steps == 10  # nothing decays, and the end is near


def test_a_study_is_read_as_its_runs_are(
    values: dict[str, Any], compared: Path, plain: list[Path], tmp_path: Path
) -> None:
    by_study, by_runs = (
        prepare_guard(parse_config(values), tmp_path / "run", ask(place)) for place in (compared, plain)
    )
    assert by_study.baseline.curve == by_runs.baseline.curve
    assert by_study.plan == by_runs.plan
    assert prepare_guard(parse_config(values), tmp_path / "run", ask(compared / "report.json")).plan == by_runs.plan


def test_other_data_of_the_same_size_is_other_data(tst: Tst, study: Path, compared: Path) -> None:
    run = Path("runs/baseline/26-steps/seed-0")
    (study / run).mkdir(parents=True)
    shutil.copy(compared / run / "config.yaml", study / run)
    fixed = json.loads((compared / run / "run.json").read_text())
    del fixed["checksum"]
    write_record(study / run / "run.json", {**fixed, "data_fingerprint": "0123"})
    code, _, said = tst("--guard", study)
    assert (code, len(said)) == (2, 1)
    assert "the data's fingerprint is '0123' there" in said[0]


def test_one_seed_forecasts_without_a_probability(values: dict[str, Any], plain: list[Path], tmp_path: Path) -> None:
    found = guarded(values, tmp_path / "run", ask([plain[0], plain[2]]))["guard"]
    assert found["forecast"]["gap_at_end"] is not None
    assert found["forecast"]["probability_ahead"] is None
    assert "one seed" in found["forecast"]["reasons"]["probability_ahead"]
    assert found["baseline"]["standard_deviation"] is None


def edit(study: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    report = json.loads((study / "report.json").read_text())
    change(report)
    (study / "report.json").write_text(json.dumps(report))


def drop_seeds(report: dict[str, Any]) -> None:
    for budget in report["arms"][0]["budgets"]:
        del budget["seeds"][1:]


REPORTS: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str], str]] = {
    "batch": (lambda r: r["settings"].update(batch_size=8), [], "positions a step (train.batch_size * train.sequence_"),
    "length": (lambda r: r["settings"].update(sequence_length=32), [], "train.sequence_length is 32 there and 16 here"),
    "size": (lambda r: r["model"].update(parameters=7), [], "the number of parameters is 7 there"),
    "model": (
        lambda r: r["model"]["config"].update(num_attention_heads=1),
        [],
        "model.config.num_attention_heads is 1",
    ),
    "start": (lambda r: r["model"].update(init_from={"path": "x"}), [], "a trained model to go on from is True there"),
    "optimizer": (lambda r: r["settings"].update(optimizer="muon"), [], "train.optimizer is 'muon' there and 'adamw'"),
    "decay": (lambda r: r["settings"].update(decay_ratio=0.5), [], "train.decay_ratio is 0.5 there and 0.25 here"),
    "end of the decay": (
        lambda r: r["settings"].update(final_learning_rate_ratio=0.5),
        [],
        "train.final_learning_rate_ratio is 0.5 there",
    ),
    "data type": (lambda r: r["settings"].update(dtype="bfloat16"), [], "train.dtype is 'bfloat16' there"),
    "tokenizer": (lambda r: r["data"].update(tokenizer="bpe"), [], "the tokenizer is 'bpe' there and 'bytes' here"),
    "data": (lambda r: r["data"].update(train_tokens=9), [], "training tokens is 9 there"),
    "validation": (lambda r: r["data"].update(validation_tokens_used=64), [], "logging.validation_tokens) is 64 there"),
    "one length": (lambda r: r["arms"][0]["budgets"].pop(), [], "a curve needs two or more"),
    "no number": (
        lambda r: r["arms"][0]["budgets"][0]["seeds"][0].update(final_validation_loss=float("nan")),
        [],
        "a curve needs two or more",
    ),
    "too long": (lambda r: r["arms"][0]["budgets"][0].update(total_steps=30), [], "branches end at 29 to 34"),
    "too short": (lambda r: r["arms"][0]["budgets"][1].update(total_steps=33), [], "for 26 to 33 steps"),
    "no arms": (lambda r: r.pop("arms"), [], "report.json: arms: "),
    "damaged": (lambda r: r["arms"][0]["budgets"][0].update(seeds=[3]), [], "arms.0.budgets.0.seeds.0: "),
    "superposed": (
        lambda r: r["arms"][0].update(switch_step=3),
        [],
        "its first arm, 'baseline', is no baseline",
    ),
    "one seed": (drop_seeds, ["--if-behind", "stop"], "has one seed: give a baseline of two seeds"),
}


@pytest.mark.parametrize("case", list(REPORTS))
def test_baselines_that_are_none(tst: Tst, study: Path, tmp_path: Path, case: str) -> None:
    change, options, words = REPORTS[case]
    edit(study, change)
    code, _, said = tst("--guard", study, *options)
    assert (code, len(said)) == (2, 1)
    assert words in said[0]
    assert str(study) in said[0]
    assert not (tmp_path / "run").exists()


REQUESTS: list[tuple[list[str], str]] = [
    (["--guard", "nowhere.json"], "--guard nowhere.json: this file or folder does not exist"),
    (["--guard", "run.yaml"], "run.yaml: is not JSON"),
    (["--guard", "STUDY", "--guard", "STUDY"], "is not a run's folder; give one study, or several finished runs"),
    (["--guard", "RUN", "--guard", "RUN"], "has the steps and the seed of"),
    (["--guard", "RUN"], "26 steps as its only length of run"),
    (["--guard", "STUDY", "--superposition.superposition_steps", "0"], "has no superposition to be guarded"),
    (["--guard", "STUDY", "--guard-at", "0.1,0.7"], "comes after step 38, where the learning rate decays already"),
    (["--guard", "STUDY", "--train.warmup_steps", "22"], "after step 19, within the 22 steps of warm-up"),
    (["--guard", "STUDY", "--guard-at", "0.1,0.105"], "0.1 and 0.105 of a recovery of 32 steps are the same step"),
    (
        ["--guard", "STUDY", "--train.total_steps", "29", "--guard-at", "0.1,0.5"],
        "would end at step 32, and the run at 29",
    ),
    (["--guard", "STUDY", "--guard-at", "0.1,2"], "--guard-at 0.1,2: needs different shares"),
    (["--guard", "STUDY", "--guard-at", ""], "needs different shares"),
    (["--guard", "STUDY", "--guard-at", "0.1", "--if-behind", "stop"], "needs two guards"),
    (["--guard", "STUDY", "--stop-below", "1"], "--stop-below is a probability"),
    (["--guard", "STUDY", "--stop-below", "nan"], "--stop-below: a number is needed"),
    (["--if-behind", "stop"], "--if-behind needs --guard"),
    (["--guard", "STUDY", "--if-behind", "weep"], "invalid choice"),
    (["--guard", "STUDY", "--data.path", "elsewhere"], "elsewhere"),
]


@pytest.mark.parametrize(("words", "expected"), REQUESTS)
def test_requests_that_are_refused(
    tst: Tst,
    study: Path,
    plain: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"STUDY": str(study), "RUN": str(plain[0])}
    code, _, said = tst(*[places.get(word, word) for word in words])
    assert (code, len(said)) == (2, 1)
    assert expected in said[0]
    assert not (tmp_path / "run").exists()


def test_runs_that_are_no_baseline(
    tst: Tst,
    values: dict[str, Any],
    plain: list[Path],
    whole: Path,
    tmp_path: Path,
) -> None:
    assert "is no baseline: it has superposition" in tst("--guard", plain[0], "--guard", whole)[2][0]
    values["superposition"] = {"bag_size": 1}
    go(values, tmp_path / "faster", train__total_steps=LENGTHS[0], train__learning_rate=0.02, train__seed=7)
    values["superposition"] = {"bag_size": 2, "superposition_steps": SWITCH}
    runs = [word for run in (*plain, tmp_path / "faster") for word in ("--guard", run)]
    assert "has another learning rate or warm-up" in tst(*runs)[2][0]
    (tmp_path / "faster" / "summary.json").unlink()
    assert "this run is not done" in tst(*runs)[2][0]


def test_a_run_that_is_past_its_guards(tst: Tst, values: dict[str, Any], study: Path, tmp_path: Path) -> None:
    go(values, tmp_path / "run")
    code, _, said = tst("--guard", study)
    assert (code, len(said)) == (2, 1)
    assert "this run is at step 48 and has no checkpoint of step 16 any more" in said[0]
