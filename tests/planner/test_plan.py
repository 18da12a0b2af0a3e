"""`tst plan`: its numbers are the schedule's and the paper's, its tables have sources, and its text states the plan."""

from __future__ import annotations

import csv
import re
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bad_input import examples
from tests.conftest import SHARED
from tests.planner.workloads import workload_of
from token_superposition.models.build import model_cost
from token_superposition.models.spec import ModelSpec
from token_superposition.models.step_memory import abstract
from token_superposition.planner.amounts import amount
from token_superposition.planner.hardware import Hardware, find_hardware
from token_superposition.planner.measured_runs import PaperRun, paper_runs, read_table
from token_superposition.planner.plan import PlanRequest, RunCost, make_plan
from token_superposition.planner.plan_text import describe
from token_superposition.planner.shapes import shape_for
from token_superposition.planner.workload import PlannedCorpus
from token_superposition.schedule import Schedule

NOTHING = Hardware(None, 1, None, None, None)


def planned(run: PaperRun) -> RunCost:
    """The plan of one of the paper's runs, at an MFU of 1."""
    workload = workload_of(
        parameters=run.parameters,
        active_parameters=int(run.scale.parameters),
        positions_per_step=run.positions_per_step,
        total_steps=run.total_steps,
    )
    keys = {"bag_size": run.bag_size, "superposition_steps": run.superposition_steps}
    plan = make_plan(PlanRequest(workload, find_hardware("b200"), mfu=1.0, given=keys))
    found = plan.without if run.arm == "baseline" else plan.same_cost.runs[0]
    assert found.total_steps == run.total_steps
    return found


@pytest.mark.parametrize("run", paper_runs(), ids=lambda run: f"{run.model}, {run.arm}, {run.total_steps}")
def test_raw_tokens_are_the_papers_to_their_printed_digits(run: PaperRun) -> None:
    unit = 10 ** (len(str(run.raw_tokens)) - len(str(run.raw_tokens).rstrip("0")))
    if run.raw_tokens == 2_000_000_000_000:
        unit //= 10  # printed as 2.0T
    # The paper rounds (41.9B is its 42B) but for 209.7B, which it prints as 209B: less than a unit of the last digit.
    assert abs(planned(run).raw_tokens - run.raw_tokens) < unit


def test_runs_of_one_model_have_hours_in_the_papers_proportion() -> None:
    for run in paper_runs():
        for other in (other for other in paper_runs() if other.model == run.model):
            ours = (planned(run).device_hours or 0) / (planned(other).device_hours or 1)
            assert ours == pytest.approx(run.b200_hours / other.b200_hours, rel=0.05), (run, other)


def test_the_tables_are_the_shared_evidence() -> None:
    folder = SHARED / "evidence"
    if not folder.exists():
        pytest.skip("the paper's tables are not beside this checkout")
    rows = list(csv.DictReader((folder / "paper_runs.csv").open()))
    for run, row in zip(paper_runs(), rows, strict=True):
        assert (run.model, run.final_loss) == (row["model"], float(row["final_loss"]))
        for key in ("total_steps", "superposition_steps", "bag_size", "raw_tokens", "b200_hours"):
            assert getattr(run, key) == float(row[key])
    ours = {}
    for row in read_table("evidence/paper_grid.csv"):
        at = (row["model"], row["total_steps"], row["slot_weights"])
        ours[*at, "1", "0"] = float(row["baseline"])
        ours |= {(*at, row["bag_size"], key[1:]): float(loss) for key, loss in row.items() if key.startswith("r0.")}
    theirs = list(csv.DictReader((folder / "paper_loss_grid.csv").open()))
    for row in theirs:
        ratio = "0" if row["bag_size"] == "1" else row["superposition_ratio"]
        at = (row["model"], row["total_steps"], row["slot_weights"])
        assert ours[*at, row["bag_size"], ratio] == float(row["final_loss"])
    assert len(theirs) == len(ours)


def test_the_tables_are_in_the_package_and_name_their_source() -> None:
    room = resources.files("token_superposition.planner")
    evidence = ["evidence/paper_runs.csv", "evidence/paper_grid.csv", "evidence/own_runs.csv"]
    for name in ("hardware.csv", "mfu.csv", *evidence):
        assert room.joinpath(name).read_text(encoding="utf-8").startswith("#")
        assert len(read_table(name)) > (1 if name == "mfu.csv" else 5)
    assert "2605.06546" in room.joinpath("evidence/paper_grid.csv").read_text(encoding="utf-8")


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
        model = ModelSpec("llama", shape.config(512), vocab_size=vocab_size, eos_id=0).build_unchecked()
        assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
        assert model_cost(model) == shape.cost


@pytest.mark.parametrize(
    ("text", "value"), [("300M", 3e8), ("1.5T", 1.5e12), ("6e20", 6e20), ("4,000", 4000), ("10b", 1e10), (".5k", 500)]
)
def test_amounts(text: str, value: float) -> None:
    assert amount(text) == pytest.approx(value)


budgets = st.floats(1e9, 1e13)
corpora = st.one_of(st.none(), st.integers(10**6, 10**14))


@examples(60)
@given(budgets, budgets, st.sampled_from(["tokens", "flops", "hours", "money"]), st.integers(1, 512))
def test_more_budget_is_never_fewer_steps(one: float, other: float, kind: Any, devices: int) -> None:
    hardware = find_hardware("h100", num_devices=devices, price=2.0)
    scale = {"tokens": 1.0, "flops": 6e9, "hours": 1e-6, "money": 1e-6}[kind]
    steps = [
        make_plan(PlanRequest(workload_of(), hardware, (kind, value * scale))).without.total_steps
        for value in sorted((max(one, 3e10), max(other, 3e10)))
    ]
    assert steps[0] <= steps[1]


@examples(60)
@given(budgets, corpora, st.integers(1, 64), st.floats(0, 50), st.sampled_from(["loss", "cost"]))
def test_the_counts_hang_together(tokens: float, corpus: int | None, devices: int, price: float, goal: Any) -> None:
    workload = workload_of(corpus=None if corpus is None else PlannedCorpus.of_tokens(corpus))
    hardware = find_hardware("a100", num_devices=devices, price=price)
    plan = make_plan(PlanRequest(workload, hardware, ("tokens", tokens), goal))
    setting = plan.setting
    assert plan.without.total_steps == tokens // 2**21
    assert plan.without.raw_tokens == plan.without.positions
    for run in (plan.without, *plan.same_cost.runs, *plan.same_loss.runs):
        assert run.positions == run.total_steps * 2**21
        assert run.flops == run.positions * 6 * 10**9
        assert run.hours is not None
        assert run.device_hours == run.hours * devices
        assert run.cost == pytest.approx(run.hours * price * devices)
        assert run.epochs == (None if corpus is None else run.raw_tokens / corpus)
        assert run.unique_raw_tokens == min(run.raw_tokens, corpus or run.raw_tokens)
        if run.switch_step:
            schedule = Schedule.two_phase(run.total_steps, setting.bag_size, superposition_steps=run.switch_step)
            assert run.raw_tokens == schedule.raw_tokens(2**21)
    assert (plan.verdict == "none") == (setting.bag_size == 1)
    assert plan.verdict == "none" or corpus is None or plan.recommended.runs[0].raw_tokens <= corpus
    assert plan.config["train"]["total_steps"] == plan.recommended.runs[0].total_steps
    assert (plan.gain.low is None) == (plan.gain.high is None)


def test_hours_by_mfu_are_arithmetic() -> None:
    hardware = find_hardware("h100", num_devices=8, price=2.5)
    plan = make_plan(PlanRequest(workload_of(), hardware, ("tokens", 42e9), mfu=0.5))
    assert plan.speed is not None
    assert plan.speed.mfu == 0.5
    assert plan.without.hours == pytest.approx(plan.without.flops / (8 * 989e12 * 0.5) / 3600)


def test_each_column_has_a_verdict_of_its_own_whatever_the_goal() -> None:
    hardware = find_hardware("h100", price=3.0)
    by_loss, by_cost = (
        make_plan(PlanRequest(workload_of(), hardware, ("tokens", 50e9), goal)) for goal in ("loss", "cost")
    )
    # The shorter run has fewer steps than any near run that gained; the long run has more.
    assert (by_loss.same_cost, by_loss.same_loss) == (by_cost.same_cost, by_cost.same_loss)
    assert (by_loss.same_cost.verdict, by_loss.same_loss.verdict) == ("use", "try")
    assert (by_loss.verdict, by_cost.verdict) == ("use", "try")
    assert by_cost.recommended == by_cost.same_loss
    for plan in (by_loss, by_cost):
        text = describe(plan)
        row = next(line.split() for line in text.splitlines() if line.startswith("verdict"))
        assert row == ["verdict", "use", "try"]
        # Every figure of the saving has its caveat beside it.
        (line,) = (line for line in text.splitlines() if "saves $" in line)
        assert re.search(r"saves \$[\d,]+ to \$[\d,]+ \(\d+% to \d+%\)", line)
        assert "never measured at so few steps" in line
        assert "* never measured at so few steps" in text


def test_the_saving_is_the_difference_of_the_runs() -> None:
    plan = make_plan(PlanRequest(workload_of(), find_hardware("h100", price=3.0), ("tokens", 60e9)))
    low, high = plan.same_loss.runs
    saving = plan.saving
    assert saving is not None
    assert saving.unit == "cost"
    assert saving.low == pytest.approx((plan.without.cost or 0) - (low.cost or 0))
    assert saving.share_high == pytest.approx(1 - high.total_steps / plan.without.total_steps, abs=1e-3)
    free = make_plan(PlanRequest(workload_of(), find_hardware("h100", price=0.0), ("tokens", 60e9)))
    assert free.saving is not None
    assert free.saving.unit == "device_hours"
    unknown = make_plan(PlanRequest(workload_of(), NOTHING, ("tokens", 60e9)))
    assert unknown.saving is not None
    assert unknown.saving.unit == "flops"
    assert unknown.saving.share_low == pytest.approx(saving.share_low)


def test_without_a_measured_speed_up_no_saving_is_stated() -> None:
    workload = workload_of(active_parameters=135_000_000, positions_per_step=2**19)
    plan = make_plan(PlanRequest(workload, find_hardware("h100"), ("tokens", 10e9), "cost"))
    assert plan.saving is plan.same_loss.verdict is None
    assert plan.same_loss.runs == ()
    assert plan.recommended == plan.same_cost
    text = describe(plan)
    assert "no saving can be given" in text
    assert "saves" not in text


def test_the_mfu_is_a_measured_one_unless_the_user_gives_another() -> None:
    row = read_table("mfu.csv")[0]
    hardware = find_hardware("h200")
    same = workload_of(active_parameters=int(row["parameters"]), vocab_size=int(row["vocab_size"]))
    plan = make_plan(PlanRequest(same, hardware, ("tokens", 50e9)))
    # The table's MFU is a share of the matrix peak, and the plan's of the data sheet's: the speed is the measured one.
    flops_per_second = float(row["mfu"]) * float(row["matrix_peak_tflops"]) * 1e12
    assert plan.without.hours == pytest.approx(plan.without.flops / flops_per_second / 3600)
    assert plan.speed is not None
    assert "measured on one H200 with 254 million parameters" in plan.speed.basis
    assert "differ" not in plan.speed.basis
    other = make_plan(PlanRequest(workload_of(), find_hardware("h100")))
    assert "your model and device differ" in " ".join(describe(other).split())
    own = describe(make_plan(PlanRequest(same, hardware, ("tokens", 50e9), mfu=0.4)))
    assert "MFU 0.400 of the data-sheet peak: your MFU" in own
    assert "measured on" not in own


def test_differences_are_stated_in_words_without_a_sign() -> None:
    lost = workload_of(active_parameters=30_565_888, positions_per_step=2**15)
    own = workload_of(unit="bytes", active_parameters=390_816, positions_per_step=2048)
    for workload in (workload_of(), lost, own):
        text = describe(make_plan(PlanRequest(workload, NOTHING, ("tokens", 5_000 * workload.positions_per_step))))
        assert re.search(r"nats( per token)? (better|worse)", text)
        assert not re.search(r"[+\u2212-]\d\.\d", text)


@pytest.mark.parametrize("given", [{"ratio": 0.0}, {"superposition_steps": 0}])
def test_superposition_for_no_step_is_ordinary_training(given: dict[str, Any]) -> None:
    plan = make_plan(PlanRequest(workload_of(), NOTHING, given={"bag_size": 6, **given}))
    assert (plan.verdict, plan.setting.bag_size) == ("none", 1)
    assert "superposition" not in plan.config
