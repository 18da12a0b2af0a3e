"""`tst plan`: its numbers are the schedule's and the paper's, its ranges are the tables', and what it refuses."""

from __future__ import annotations

import csv
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.bad_input import examples, refused, tst
from tests.conftest import SHARED
from tests.planner.subjects import subject_of
from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError
from token_superposition.model.build import model_cost, sketch_model
from token_superposition.model.memory import abstract
from token_superposition.plan.stages import Schedule
from token_superposition.planner import pilot as pilot_module
from token_superposition.planner.amounts import amount
from token_superposition.planner.corpus import Corpus
from token_superposition.planner.forecast import Request, make_plan
from token_superposition.planner.hardware import Hardware, find_hardware
from token_superposition.planner.measured import PaperRun, paper_runs
from token_superposition.planner.setting import LARGEST_BAG
from token_superposition.planner.shapes import shape_for
from token_superposition.planner.speed import Speed
from token_superposition.planner.tables import read_table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NOTHING = Hardware(None, 1, None, None, None)


def plan_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The result of the command."""
    capsys.readouterr()
    said = tst("plan", *words, "--json", "--quiet")
    assert said.code == 0, said.err
    value = json.loads(said.out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


# The paper's figures.


def planned(run: PaperRun, hours_of: PaperRun | None = None) -> dict[str, Any]:
    """The plan of one of the paper's runs, calibrated on the hours of another."""
    subject = subject_of(
        parameters=run.parameters,
        active_parameters=int(run.scale.parameters),
        positions_per_step=run.positions_per_step,
        total_steps=run.total_steps,
    )
    keys = {"bag_size": run.bag_size, "superposition_steps": run.superposition_steps}
    measured = None if hours_of is None else (hours_of.b200_hours, hours_of.total_steps)
    plan = make_plan(Request(subject, find_hardware("b200"), measured=measured, given=keys))
    found = plan["without" if run.arm == "baseline" else "same_cost"]
    assert found["total_steps"] == run.total_steps
    return dict(found)


@pytest.mark.parametrize("run", paper_runs(), ids=lambda run: f"{run.model}, {run.arm}, {run.total_steps}")
def test_raw_tokens_are_the_papers_to_their_printed_digits(run: PaperRun) -> None:
    unit = 10 ** (len(str(run.raw_tokens)) - len(str(run.raw_tokens).rstrip("0")))
    if run.raw_tokens == 2_000_000_000_000:
        unit //= 10  # printed as 2.0T
    # The paper rounds (41.9B is its 42B) but for 209.7B, which it prints as 209B: less than a unit of the last digit.
    assert abs(planned(run)["raw_tokens"] - run.raw_tokens) < unit


def test_calibrated_on_any_run_the_hours_of_the_others_are_within_five_percent() -> None:
    pairs = [(a, b) for a in paper_runs() for b in paper_runs() if a.model == b.model]
    assert len(pairs) > 40
    for run, other in pairs:
        assert planned(run, other)["device_hours"] == pytest.approx(run.b200_hours, rel=0.05), (run, other)


def test_the_tables_are_the_shared_evidence() -> None:
    folder = SHARED / "evidence"
    if not folder.exists():
        pytest.skip("the paper's tables are not beside this checkout")
    rows = list(csv.DictReader((folder / "paper_runs.csv").open()))
    for run, row in zip(paper_runs(), rows, strict=True):
        assert (run.model, run.final_loss) == (row["model"], float(row["final_loss"]))
        for key in ("total_steps", "superposition_steps", "bag_size", "raw_tokens", "b200_hours"):
            assert getattr(run, key) == float(row[key])
    ours = {
        (row["model"], row["total_steps"], row["slot_weights"], row["bag_size"], key[1:]): float(value)
        for row in read_table("evidence/paper_grid.csv")
        for key, value in row.items()
        if key.startswith("r0.")
    }
    theirs = list(csv.DictReader((folder / "paper_loss_grid.csv").open()))
    superposed = [row for row in theirs if row["bag_size"] != "1"]
    assert len(ours) == len(superposed)
    for row in superposed:
        key = (row["model"], row["total_steps"], row["slot_weights"], row["bag_size"], row["superposition_ratio"])
        assert ours[key] == float(row["final_loss"])
    for row in theirs:
        if row["bag_size"] == "1":
            at = (row["model"], row["total_steps"], row["slot_weights"])
            same = [each for each in read_table("evidence/paper_grid.csv") if tuple(each.values())[:3] == at]
            assert {float(each["baseline"]) for each in same} == {float(row["final_loss"])}


def test_the_tables_are_in_the_package_and_name_their_source() -> None:
    room = resources.files("token_superposition.planner")
    for name in ("hardware.csv", "evidence/paper_runs.csv", "evidence/paper_grid.csv", "evidence/own_runs.csv"):
        text = room.joinpath(name).read_text(encoding="utf-8")
        assert text.startswith("#")
        assert len(read_table(name)) > 5
    assert "2605.06546" in room.joinpath("evidence/paper_grid.csv").read_text(encoding="utf-8")


def test_power_law_wins_above_a_bag_size_of_eight_alone() -> None:
    def mean(weights: str, bag_size: int) -> float:
        (row,) = [
            row
            for row in read_table("evidence/paper_grid.csv")
            if (row["model"], row["slot_weights"], row["bag_size"]) == ("600M", weights, str(bag_size))
        ]
        return sum(float(row[f"r0.{tenth}"]) for tenth in range(1, 6)) / 5

    for bag_size in range(2, 14):
        better = mean("power_law", bag_size) < mean("uniform", bag_size) - 0.0005
        assert better == (bag_size > LARGEST_BAG)


# Hardware, shapes, amounts.


def test_hardware_is_the_tables_unless_the_user_knows_better() -> None:
    known = find_hardware("H100", num_devices=8)
    assert known.peak_flops_per_second == 989e12
    assert known.price_basis is not None
    assert "2026" in known.price_basis
    given = find_hardware("h100", peak_flops=1e15, price=2.5)
    assert (given.peak_flops_per_second, given.price, given.price_basis) == (1e15, 2.5, "as given")
    assert find_hardware("abacus", peak_flops=1e9).price is None
    for row in read_table("hardware.csv"):
        assert 50 < float(row["peak_tflops"]) < 10_000
        assert bool(row["price"]) == bool(row["price_basis"])


@pytest.mark.parametrize(("parameters", "vocab_size"), [(2 * 10**6, 320), (135 * 10**6, 32_768), (3 * 10**9, 128_256)])
def test_a_shape_is_counted_as_the_model_that_is_built(parameters: int, vocab_size: int) -> None:
    shape = shape_for(parameters, vocab_size)
    assert shape.parameters == pytest.approx(parameters, rel=0.05)
    with abstract():
        model = sketch_model("llama", shape.config(512), vocab_size=vocab_size, end_of_document_id=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
        assert model_cost(model) == shape.cost


@pytest.mark.parametrize(
    ("text", "value"), [("300M", 3e8), ("1.5T", 1.5e12), ("6e20", 6e20), ("4,000", 4000), ("10b", 1e10), (".5k", 500)]
)
def test_amounts(text: str, value: float) -> None:
    assert amount(text) == pytest.approx(value)


# What holds for every plan.

budgets = st.floats(1e9, 1e13)
corpora = st.one_of(st.none(), st.integers(10**6, 10**14))


@examples(60)
@given(budgets, budgets, st.sampled_from(["tokens", "flops", "hours", "money"]), st.integers(1, 512))
def test_more_budget_is_never_fewer_steps(one: float, other: float, kind: Any, devices: int) -> None:
    hardware = find_hardware("h100", num_devices=devices, price=2.0)
    scale = {"tokens": 1.0, "flops": 6e9, "hours": 1e-6, "money": 1e-6}[kind]
    steps = [
        make_plan(Request(subject_of(), hardware, (kind, value * scale)))["without"]["total_steps"]
        for value in sorted((max(one, 3e10), max(other, 3e10)))
    ]
    assert steps[0] <= steps[1]


@examples(60)
@given(budgets, corpora, st.integers(1, 64), st.floats(0, 50), st.sampled_from(["loss", "cost"]))
def test_the_counts_hang_together(tokens: float, corpus: int | None, devices: int, price: float, goal: Any) -> None:
    subject = subject_of(corpus=None if corpus is None else Corpus.of_tokens(corpus))
    hardware = find_hardware("a100", num_devices=devices, price=price)
    plan = make_plan(Request(subject, hardware, ("tokens", tokens), goal))
    assert plan["without"]["total_steps"] == tokens // 2**21
    assert plan["without"]["raw_tokens"] == plan["without"]["positions"]
    advised = plan["recommended"]
    for run in (plan["without"], plan["same_cost"], *(plan["same_loss"] or [])):
        assert run["positions"] == run["total_steps"] * 2**21
        assert run["flops"] == run["positions"] * 6 * 10**9
        assert run["device_hours"] == run["hours"] * devices
        assert run["cost"] == pytest.approx(run["hours"] * price * devices)
        assert run["epochs"] == (None if corpus is None else run["raw_tokens"] / corpus)
        assert run["unique_raw_tokens"] == min(run["raw_tokens"], corpus or run["raw_tokens"])
        if run["switch_step"]:
            schedule = Schedule.two_phase(
                run["total_steps"], advised["bag_size"], superposition_steps=run["switch_step"], mode=advised["mode"]
            )
            assert run["raw_tokens"] == schedule.raw_tokens(2**21)
    if plan["verdict"] == "none":
        assert advised["bag_size"] == 1
    elif corpus is not None:
        chosen = next(
            run
            for run in ([plan["same_cost"], *(plan["same_loss"] or [])])
            if run["total_steps"] == advised["total_steps"]
        )
        assert chosen["raw_tokens"] <= corpus
    assert plan["gain_nats"]["low"] is None or plan["gain_nats"]["low"] <= plan["gain_nats"]["high"]
    assert (plan["gain_nats"]["low"] is None) == (plan["gain_nats"]["reason"] is not None)


def test_hours_by_mfu_are_arithmetic() -> None:
    hardware = find_hardware("h100", num_devices=8, price=2.5)
    plan = make_plan(Request(subject_of(), hardware, ("tokens", 42e9), mfu=0.5))
    run = plan["without"]
    assert run["hours"] == pytest.approx(run["flops"] / (8 * 989e12 * 0.5) / 3600)
    assert plan["hardware"]["mfu"] == 0.5


def test_a_superposition_step_takes_what_the_pilot_says() -> None:
    asked = []

    def pilot(bag_size: int) -> Speed:
        asked.append(bag_size)
        return Speed(10.0, 12.0, None, "measured here")

    plan = make_plan(Request(subject_of(), NOTHING, ("hours", 100.0)), pilot)
    assert plan["without"]["total_steps"] == 36_000
    superposed = plan["same_cost"]["switch_step"]
    assert superposed > 0
    assert plan["same_cost"]["hours"] == pytest.approx((36_000 * 10 + 2 * superposed) / 3600)
    assert asked == [plan["recommended"]["bag_size"]]
    assert plan["without"]["cost"] is None


@pytest.mark.parametrize("given", [{"ratio": 0.0}, {"superposition_steps": 0}])
def test_superposition_for_no_step_is_ordinary_training(given: dict[str, Any]) -> None:
    plan = make_plan(Request(subject_of(), NOTHING, given={"bag_size": 6, **given}))
    assert (plan["verdict"], plan["recommended"]["bag_size"]) == ("none", 1)
    assert "superposition" not in plan["config"]


def test_steps_of_superposition_need_not_fit_into_what_the_pilot_takes_for_now() -> None:
    asked = []

    def pilot(bag_size: int) -> Speed:
        asked.append(bag_size)
        return Speed(10.0, 10.0, None, "test")

    given = {"bag_size": 5, "superposition_steps": 6_000}
    subject = subject_of(total_steps=None)
    plan = make_plan(Request(subject, NOTHING, ("tokens", 20_000 * 2**21), given=given), pilot)
    assert (asked, plan["recommended"]["switch_step"]) == ([5], 6_000)


def test_no_run_is_faster_than_its_devices() -> None:
    hours = 20_000 * subject_of().flops_per_step / find_hardware("b200").peak_flops_per_second / 3600
    assert (
        make_plan(Request(subject_of(), find_hardware("b200"), measured=(hours * 1.01, 20_000)))["hardware"]["mfu"] < 1
    )
    with pytest.raises(UserError, match=r"^a run of 20,000 steps that took .* is 40 times the peak of 1 x 2.25e\+15"):
        make_plan(Request(subject_of(), find_hardware("b200"), measured=(hours / 40, 20_000)))


# The command.


@pytest.fixture
def config(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    return file


def test_the_papers_3b_from_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    setting = ("--superposition.bag_size", 6, "--superposition.ratio", 0.3)
    speed = ("--hardware", "b200", "--measured-hours", 247, "--measured-steps", 20_000)
    plan = plan_of(capsys, CONFIGS / "paper-3b.yaml", *setting, *speed, "--train.total_steps", 50_000)
    assert plan["model"]["parameters"] == pytest.approx(3.34e9, rel=0.01)
    assert plan["without"]["device_hours"] == pytest.approx(622, rel=0.05)
    assert round(plan["without"]["raw_tokens"] / 1e9) == 105
    assert 0.3 < plan["hardware"]["mfu"] < 0.5
    assert plan["verdict"] == "use"


def test_a_plan_becomes_a_run(config: Path, small_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    setting = ("--superposition.bag_size", 4, "--superposition.ratio", 0.25)
    plan = plan_of(capsys, config, "--tokens", 64 * 20, *setting, "--out", "plan.yaml")
    dry = tst("train", "plan.yaml", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    run = json.loads(dry.out.splitlines()[-1])
    assert run["parameters"] == plan["model"]["parameters"]
    assert run["flops"] == plan["same_cost"]["flops"]
    assert run["raw_tokens"] == plan["same_cost"]["raw_tokens"]
    assert run["switch_step"] == plan["recommended"]["switch_step"] == 5
    assert run["epochs"] == pytest.approx(plan["same_cost"]["epochs"], abs=1e-6)
    assert run["train_tokens"] == plan["corpus_tokens"]
    assert run["config"]["train"]["warmup_ratio"] == small_run["train"]["warmup_ratio"]
    text = tst("plan", config, "--tokens", 64 * 20, "--out", "plan.yaml").out  # an earlier plan makes way
    assert "Do not use superposition here." in text
    assert "superposition" not in yaml.safe_load(Path("plan.yaml").read_text())
    assert "raw tokens" in text


def test_of_a_mixture_plan_and_run_count_the_same(
    config: Path, small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(chr(97 + number) * 50)
    little = tmp_path / "little"
    prepare([text], out=little, validation_fraction=0.1, quiet=True)
    sources = {"words": {"path": small_run["data"]["path"]}, "few": {"path": str(little)}}
    config.write_text(yaml.safe_dump({**small_run, "data": {"sources": sources}}))
    plan = plan_of(capsys, config, "--train.total_steps", 40, "--out", "plan.yaml")
    assert "already reads source few (" in plan["reasons"][0]
    assert "50% of what is read) more than once" in plan["reasons"][0]
    assert plan["without"]["unique_raw_tokens"] < 0.8 * plan["without"]["raw_tokens"]
    run = json.loads(tst("train", "plan.yaml", "--dry-run", "--json").out.splitlines()[-1])
    for key in ("raw_tokens", "unique_raw_tokens", "epochs"):
        assert run[key] == pytest.approx(plan["without"][key], rel=0.02)


def test_warm_up_in_steps_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--parameters", "1B", "--tokens", "42B", "--train.warmup_steps", 1000)
    plan = plan_of(capsys, *words, "--out", tmp_path / "plan.yaml")
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text())["train"]["warmup_steps"] == 1000
    assert "warmup_ratio" not in plan["config"]["train"]


def test_a_model_of_a_size_becomes_a_run_on_ones_own_data(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("--data.path", small_data, "--train.batch_size", 2, "--train.sequence_length", 16)
    plan = plan_of(capsys, "--parameters", "200k", "--tokens", 320, *keys, "--out", "plan.yaml")
    assert (plan["model"]["vocab_size"], plan["model"]["unit"]) == (320, "bytes")
    assert plan["without"]["total_steps"] == 10
    assert any("a Llama of width" in text for text in plan["assumptions"])
    dry = tst("train", "plan.yaml", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert json.loads(dry.out.splitlines()[-1])["parameters"] == plan["model"]["parameters"]


def test_the_less_costly_run_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--parameters", "1B", "--tokens", "60B", "--goal", "cost", "--hardware", "h100", "--num-devices", 8)
    plan = plan_of(capsys, *words, "--out", tmp_path / "plan.yaml")
    low, high = plan["same_loss"]
    assert plan["without"]["total_steps"] > low["total_steps"] > high["total_steps"]
    assert plan["without"]["cost"] > low["cost"] > high["cost"]
    written = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert written["train"]["total_steps"] == plan["recommended"]["total_steps"] == low["total_steps"]
    assert written["superposition"]["bag_size"] == plan["recommended"]["bag_size"]
    assert "cautious end" in (tmp_path / "plan.yaml").read_text()


def test_the_pilot_measures_this_machine(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pilot_module, "SECONDS", 0.0)
    setting = ("--superposition.bag_size", 2, "--superposition.ratio", 0.5)
    words = ("--tokens", 64 * 100, "--pilot", "--price", 3, "--train.micro_batch_size", 2, *setting)
    plan = plan_of(capsys, config, *words)
    assert plan["hardware"]["step_seconds"] > 0
    assert "measured here" in plan["hardware"]["speed_basis"]
    assert "2 micro-batches of 2 rows a step" in plan["hardware"]["speed_basis"]
    seconds = 50 * (plan["hardware"]["step_seconds"] + plan["hardware"]["superposition_step_seconds"])
    assert plan["same_cost"]["hours"] == pytest.approx(seconds / 3600)
    assert plan["same_cost"]["cost"] == pytest.approx(3 * seconds / 3600)
    assert [path.name for path in Path.cwd().iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parameters", "1B"], "--parameters needs a budget: one of --tokens, --flops, --hours, --money"),
        ([], "give one of CONFIG.yaml and --parameters"),
        (["--parameters", "1B", "--tokens", "0"], "argument --tokens: an amount above 0"),
        (["--parameters", "1B", "--tokens", "nan"], "'nan' is not an amount above 0; write 300M, 10B"),
        (["--parameters", "1B", "--tokens", "10Q"], "'10Q' is not an amount"),
        (["--parameters", "1B", "--tokens", "1B", "--hours", "3"], "--hours: not allowed with argument --tokens"),
        (["--parameters", "1B", "--tokens", "1B", "--hardware", "h10"], "'h10' is not known; did you mean 'h100'?"),
        (["--parameters", "1B", "--tokens", "1B", "--hardware", "abacus"], "(known: b200, h200, h100"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "-1"], "argument --price: a price of at least 0"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "40"], "above 0 and at most 1 is needed, such as 0.4"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "0.4"], "--mfu is a share of a peak: give --hardware"),
        (["--parameters", "1B", "--tokens", "1B", "--num-devices", "0"], "argument --num-devices"),
        (["--parameters", "1B", "--tokens", "100"], "100 is less than one step of 1,048,576 positions"),
        (["--parameters", "1B", "--tokens", "1e29"], "more than any run has"),
        (["--parameters", "1B", "--hours", "3"], "--hours needs to know the machine"),
        (["--parameters", "1B", "--money", "3", "--hardware", "mi300x"], "--money needs what a device costs an hour"),
        (["--parameters", "1B", "--tokens", "10B", "--corpus-tokens", "100"], "is smaller than one row"),
        (["--parameters", "100", "--tokens", "10B"], "no usual shape has about 100 parameters"),
        (["--parameters", "1e25", "--tokens", "10B"], "no usual shape has about"),
        (["--parameters", "1B", "--tokens", "10B", "--measured-hours", "3"], "--measured-steps go together"),
        (["--parameters", "1B", "--tokens", "10B", "--train.lerning_rate", "3"], "mean 'train.learning_rate'"),
        (["--parameters", "1B", "--tokens", "10B", "--train.sequence_length", "x"], "train.sequence_length"),
        (["--parameters", "1B", "--tokens", "10B", "--superposition.ratio", "2"], "superposition.ratio"),
        (["--parameters", "1B", "--tokens", "42B", "--train.warmup_steps", "1000000"], "train.warmup_steps"),
        (["--parameters", "1B", "--tokens", "10B", "--out", "."], "is a folder; name a file"),
        (["--parameters", "1B", "--tokens", "10B", "--out", "no/where.yaml"], "there is no folder no"),
        (["nowhere.yaml"], "there is no such file"),
        (["small.yaml", "--parameters", "1B"], "give one of CONFIG.yaml and --parameters"),
        (["small.yaml", "--vocab-size", "99"], "--vocab-size goes with --parameters"),
        (["small.yaml", "--data.path", "nowhere"], "nowhere is not there, so the vocabulary is not known"),
        (["small.yaml", "--model.config.hiden_size", "3"], "did you mean 'hidden_size'"),
        (["small.yaml", "--train.sequence_length", "100"], "max_position_embeddings"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(config: Path, words: list[str], said: str) -> None:
    assert said in refused("plan", *words)
    assert [path.name for path in config.parent.iterdir()] == ["small.yaml"]


def test_nobody_elses_file_is_written_over(config: Path) -> None:
    before = config.read_text()
    assert "is there, and no plan of ours" in refused("plan", config, "--out", config)
    assert config.read_text() == before
