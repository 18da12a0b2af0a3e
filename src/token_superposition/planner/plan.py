"""The plan: steps, FLOPs, tokens, hours and cost of a run with and without superposition, and what to expect.

A budget is that of the ordinary run, and buys whole steps, rounded down. The saving can be used in two ways: a lower
loss at the same cost, or the same loss from a shorter run. The plan has both, and `goal` says which one is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from token_superposition.errors import UserError
from token_superposition.planner.advice import Advice, Estimate, Setting, Verdict, advise
from token_superposition.planner.hardware import Hardware, Speed, speed_of
from token_superposition.planner.measured_runs import Comparison
from token_superposition.planner.workload import Workload
from token_superposition.schedule import Schedule

BudgetKind = Literal["tokens", "flops", "hours", "money"]
Goal = Literal["loss", "cost"]
_MOST_STEPS = 10**12


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for.

    Attributes:
        workload: model, batch and corpus.
        hardware: what it is trained on.
        budget: kind and amount; None takes the configuration's steps.
        goal: a lower `loss` at the same cost, or the same loss at less `cost`.
        mfu: share of the data-sheet peak; None for the measured one nearest in size.
        given: keys of a superposition section, which the plan judges instead of recommending its own.
    """

    workload: Workload
    hardware: Hardware
    budget: tuple[BudgetKind, float] | None = None
    goal: Goal = "loss"
    mfu: float | None = None
    given: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunCost:
    """What a run takes. None means not known without hardware, price or corpus."""

    total_steps: int
    switch_step: int
    positions: int
    flops: int
    raw_tokens: int
    unique_raw_tokens: int
    epochs: float | None
    hours: float | None
    device_hours: float | None
    cost: float | None


@dataclass(frozen=True)
class Column:
    """One way to use the saving.

    Attributes:
        verdict: `use`, `try` or `none`; None if no run can be planned.
        runs: one run, or for the same loss those at both ends of the speed-up, the longer first; empty without a range.
        reasons: for the verdict.
    """

    verdict: Verdict | None
    runs: tuple[RunCost, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Saving:
    """What the shorter run saves, in `unit`, and as a share of the ordinary run."""

    unit: Literal["cost", "device_hours", "flops"]
    low: float
    high: float
    share_low: float
    share_high: float
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The result of `tst plan`; `dataclasses.asdict` gives what `--json` prints.

    Attributes:
        workload, hardware, speed: what was planned; `speed` is None without a peak.
        budget, goal: as requested.
        verdict: that of the column of the goal.
        setting: the recommended setting, or the one that was given; bag size 1 is ordinary training.
        without: the ordinary run.
        same_cost, same_loss: superposition at the same cost, and for the same loss.
        gain: nats per token at the same cost; positive is better.
        speedup: at equal loss.
        saving: of the shorter run; None without a measured speed-up.
        evidence: the nearest measured runs.
        config: the configuration of the recommended run.
    """

    workload: Workload
    hardware: Hardware
    speed: Speed | None
    budget: tuple[BudgetKind, float] | None
    goal: Goal
    verdict: Verdict
    setting: Setting
    without: RunCost
    same_cost: Column
    same_loss: Column
    gain: Estimate
    speedup: Estimate
    saving: Saving | None
    evidence: tuple[Comparison, ...]
    config: dict[str, Any]

    @property
    def recommended(self) -> Column:
        """The column that `config` is of: the goal's, if a run is planned there."""
        return self.same_loss if self.goal == "cost" and self.same_loss.runs else self.same_cost


def make_plan(request: PlanRequest) -> Plan:
    """Make the plan.

    Raises:
        UserError: if a budget buys no step, or needs a price or a speed that is not known, or if no such run can be
            configured.
    """
    workload, hardware = request.workload, request.hardware
    speed = speed_of(
        hardware,
        flops_per_step=workload.flops_per_step,
        parameters=workload.active_parameters,
        vocab_size=workload.vocab_size,
        mfu=request.mfu,
    )
    total_steps = steps_of_budget(request, speed)
    advice = advise(workload, total_steps, _given_setting(request, total_steps))

    def cost(setting: Setting, steps: int) -> RunCost:
        return count_run(setting.schedule(steps), workload, hardware, speed)

    without = cost(Setting(), total_steps)
    same_cost = Column(advice.verdict, (cost(advice.setting, total_steps),), advice.reasons)
    same_loss, saving = Column("none" if advice.verdict == "none" else None, (), (advice.speedup.basis,)), None
    if advice.speedup.low is not None and advice.speedup.high is not None and advice.verdict != "none":
        lengths = [max(1, round(total_steps / speedup)) for speedup in (advice.speedup.low, advice.speedup.high)]
        runs = tuple(cost(advice.setting, steps) for steps in lengths)
        saving = _saving(without, runs, advice)
        doubtful = saving.caveats or advice.speedup.low <= 1
        same_loss = Column("try" if doubtful else advice.verdict, runs, advice.reasons)
    chosen = same_loss if request.goal == "cost" and same_loss.runs else same_cost
    assert chosen.verdict is not None
    return Plan(
        workload=workload,
        hardware=hardware,
        speed=speed,
        budget=request.budget,
        goal=request.goal,
        verdict=chosen.verdict,
        setting=advice.setting,
        without=without,
        same_cost=same_cost,
        same_loss=same_loss,
        gain=advice.gain,
        speedup=advice.speedup,
        saving=saving,
        evidence=advice.nearest,
        config=_config(request, advice.setting, chosen.runs[0].total_steps),
    )


def _saving(without: RunCost, runs: tuple[RunCost, ...], advice: Advice) -> Saving:
    """The saving in money if that is a cent or more, or else in device-hours, or else in FLOPs."""
    caveats = list(advice.caveats)
    short = "never measured at so few steps"
    if short not in caveats and runs[0].total_steps < advice.shortest:
        caveats.append(short)
    elif short not in caveats and runs[1].total_steps < advice.shortest:
        caveats.append("the larger saving was never measured at so few steps")
    units: tuple[Literal["cost", "device_hours", "flops"], ...] = ("cost", "device_hours", "flops")
    unit = next(key for key in units if (getattr(without, key) or 0) >= 0.01)
    whole = getattr(without, unit)
    low, high = (whole - getattr(run, unit) for run in runs)
    return Saving(unit, low, high, low / whole, high / whole, tuple(caveats))


def count_run(schedule: Schedule, workload: Workload, hardware: Hardware, speed: Speed | None) -> RunCost:
    """What a run of these stages takes."""
    positions = schedule.positions(workload.positions_per_step)
    raw_tokens = schedule.raw_tokens(workload.positions_per_step)
    corpus = workload.corpus
    hours = None if speed is None else schedule.total_steps * speed.step_seconds / 3600
    device_hours = None if hours is None else hours * hardware.num_devices
    return RunCost(
        total_steps=schedule.total_steps,
        switch_step=schedule.switch_step,
        positions=positions,
        flops=positions * workload.flops_per_position,
        raw_tokens=raw_tokens,
        unique_raw_tokens=raw_tokens if corpus is None else corpus.unique(raw_tokens),
        epochs=None if corpus is None else raw_tokens / corpus.num_tokens,
        hours=hours,
        device_hours=device_hours,
        cost=None if device_hours is None or hardware.price is None else device_hours * hardware.price,
    )


def steps_of_budget(request: PlanRequest, speed: Speed | None) -> int:
    """The whole steps that a budget buys of the ordinary run.

    Raises:
        UserError: if it buys none, or if hours or money are given without what turns them into steps.
    """
    workload, hardware = request.workload, request.hardware
    if request.budget is None:
        if workload.total_steps is None:
            raise UserError("--parameters needs a budget: one of --tokens, --flops, --hours, --money")
        return workload.total_steps
    kind, amount = request.budget
    if kind == "tokens":
        steps = amount // workload.positions_per_step
    elif kind == "flops":
        steps = amount // workload.flops_per_step
    else:
        if speed is None:
            raise UserError(f"--{kind} needs to know the machine: give --hardware or --peak-flops")
        hours = amount
        if kind == "money":
            if not hardware.price:
                raise UserError("--money needs what a device costs an hour: give --price")
            hours = amount / (hardware.price * hardware.num_devices)
        steps = hours * 3600 // speed.step_seconds
    if steps < 1:
        raise UserError(
            f"--{kind}: {amount:g} is less than one step of {workload.positions_per_step:,} positions "
            f"({workload.flops_per_step:.3g} FLOPs); give more, or lower train.batch_size"
        )
    if steps > _MOST_STEPS:
        raise UserError(f"--{kind}: {amount:g} buys {steps:.1e} steps, more than any run has; give less")
    return int(steps)


def check_given(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for keys or values that no superposition section has, before the model is counted."""
    from token_superposition.training.config import parse_config

    # These two are measured in steps, and the number of steps is not known yet.
    keys = {
        f"superposition.{key}": value for key, value in given.items() if key not in ("superposition_steps", "stages")
    }
    parse_config({"data": {"path": "data"}}, keys, source="--superposition")


def _given_setting(request: PlanRequest, total_steps: int) -> Setting | None:
    """The user's own setting, read as a run reads it."""
    if not request.given:
        return None
    from token_superposition.training.config import parse_config

    keys = {f"superposition.{key}": value for key, value in request.given.items()}
    config = parse_config(request.workload.config(total_steps), keys, source=request.workload.source)
    part, schedule = config.superposition, config.schedule()
    if schedule.switch_step == 0:
        return Setting()
    if part.stages is not None:
        raise UserError("--superposition.stages: a plan judges one bag size; give bag_size and ratio")
    ratio = schedule.switch_step / total_steps
    if part.superposition_steps is None:
        ratio = 0.25 if part.ratio is None else part.ratio
    return Setting(part.bag_size, ratio, part.mode, part.slot_weights)


def _config(request: PlanRequest, setting: Setting, total_steps: int) -> dict[str, Any]:
    """The run's configuration with the setting in it, checked as `tst train` checks it."""
    from token_superposition.training.config import parse_config

    values = request.workload.config(total_steps)
    if setting.bag_size > 1:
        part: dict[str, Any] = {"bag_size": setting.bag_size}
        if "superposition_steps" in (request.given or {}):
            part["superposition_steps"] = setting.schedule(total_steps).switch_step
        else:
            part["ratio"] = setting.ratio
        part |= {"mode": setting.mode} if setting.mode != "full" else {}
        part |= {"slot_weights": setting.slot_weights} if setting.slot_weights != "uniform" else {}
        values["superposition"] = part
    parse_config(values, source="the plan")
    return values
