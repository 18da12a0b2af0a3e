"""The plan itself: from a request to steps, FLOPs, tokens, hours and cost, with and without superposition.

A budget is that of the ordinary run; what it buys is whole steps, rounded down. The saving can be taken in two ways: as
a lower loss at the same cost, or as the same loss from a shorter run. Both are in the plan; `goal` says which of them
is recommended and written. The shorter run is planned at the cautious end of the speed-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from token_superposition.errors import UserError
from token_superposition.planner.advice import Advice, Verdict, advise
from token_superposition.planner.estimate import Range
from token_superposition.planner.measured_runs import Comparison
from token_superposition.planner.settings import Need, Setting, choose, steps_at
from token_superposition.planner.speed import Hardware, Speed, measured_mfu, speed_by_hours, speed_by_mfu
from token_superposition.planner.workload import Workload
from token_superposition.schedule import Schedule

BudgetKind = Literal["tokens", "flops", "hours", "money"]
Goal = Literal["loss", "cost"]
Pilot = Callable[[int], Speed]  # of a superposition step's bag size
_MOST_STEPS = 10**12


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for.

    Attributes:
        subject: model, batch and corpus.
        hardware: what it is trained on.
        budget: which kind, and how much; None takes the configuration's steps.
        goal: a lower `loss` at the same cost, or the same loss at less `cost`.
        mfu: share of the data-sheet peak; None for the measured one nearest in size.
        measured: hours and steps of a run of this model on these devices; comes before `mfu`.
        given: keys of a superposition section, which the plan then judges instead of recommending its own.
    """

    subject: Workload
    hardware: Hardware
    budget: tuple[BudgetKind, float] | None = None
    goal: Goal = "loss"
    mfu: float | None = None
    measured: tuple[float, int] | None = None
    given: Mapping[str, Any] | None = None


def make_plan(request: PlanRequest, pilot: Pilot | None = None) -> dict[str, Any]:
    """The plan, as `tst plan --json` prints it; docs/planning.md says what its keys are.

    Args:
        request: for what.
        pilot: measures what a step takes here, in place of what the request says of speed.

    Raises:
        UserError: for a budget that buys no step, or needs a price or a speed that is not known; for what no run can
            be, such as one of more tokens than anybody has, or that is shorter than its warm-up.
    """
    subject, hardware = request.subject, request.hardware
    speed = _speed(request, pilot)
    total_steps = steps_of_budget(request, speed)
    need = Need(
        scale=subject.scale(total_steps),
        total_steps=total_steps,
        positions_per_step=subject.positions_per_step,
        unit=subject.unit,
        start=subject.start,
        corpus=subject.corpus,
    )
    given = _given_setting(request, total_steps)
    same_cost, cheaper = advise(need, given), advise(replace(need, less_cost=True), given)

    def arm(setting: Setting, steps: int) -> dict[str, Any]:
        return count_run(setting.schedule(steps), subject, hardware, speed)

    without = arm(Setting(), total_steps)
    same_loss, saving = None, None
    verdict: Verdict | None = "none" if cheaper.verdict == "none" else None  # None: no shorter run can be planned
    steps = [total_steps, total_steps]
    if cheaper.speedup is not None and cheaper.verdict != "none":
        steps = [steps_at(total_steps, speedup) for speedup in (cheaper.speedup.low, cheaper.speedup.high)]
        same_loss = [arm(cheaper.setting, each) for each in steps]
        saving = _saving(without, same_loss, cheaper)
        verdict = cheaper.verdict if saving["share_low"] > 0 else "try"
    columns = {
        "same_cost": _advised(same_cost, same_cost.verdict, total_steps, []),
        "same_loss": _advised(cheaper, verdict, steps[0], _shorter(cheaper, same_loss is not None)),
    }
    takes_less = request.goal == "cost" and same_loss is not None
    chosen = columns["same_loss" if takes_less else "same_cost"]
    not_planned = columns["same_loss"]["reasons"][-1:] if request.goal == "cost" and same_loss is None else []
    return {
        "model": _model(subject),
        "budget": None if request.budget is None else {"kind": request.budget[0], "amount": request.budget[1]},
        "corpus_tokens": None if subject.corpus is None else subject.corpus.num_tokens,
        "hardware": _hardware(hardware, speed),
        "verdict": chosen["verdict"],
        "goal": request.goal,
        "reasons": list(dict.fromkeys([*chosen["reasons"], *not_planned])),
        "recommended": chosen,
        "advice": columns,
        "without": without,
        "same_cost": arm(same_cost.setting, total_steps),
        "same_loss": same_loss,
        "saving": saving,
        "gain_nats": _range(same_cost.gain, same_cost.gain_reason),
        "speedup": _range(cheaper.speedup, cheaper.speedup_reason),
        "evidence": [_evidence(each) for each in same_cost.nearest],
        "assumptions": subject.assumptions,
        "config": _config(request, (cheaper if takes_less else same_cost).setting, chosen["total_steps"]),
    }


def _advised(advice: Advice, verdict: Verdict | None, steps: int, more: list[str]) -> dict[str, Any]:
    """The verdict and the setting of a column; without a verdict nothing is planned there."""
    schedule = advice.setting.schedule(steps)
    return {
        "verdict": verdict,
        "bag_size": schedule.bag_size,
        "ratio": schedule.switch_step / schedule.total_steps,
        "mode": schedule.stages[0].mode,
        "slot_weights": schedule.stages[0].slot_weights,
        "total_steps": schedule.total_steps,
        "switch_step": schedule.switch_step,
        "reasons": [*advice.reasons, *more],
    }


def _shorter(advice: Advice, planned: bool) -> list[str]:
    if advice.verdict == "none":
        return []
    if planned:
        return ["the run is planned at the cautious end of the speed-up"]
    return [f"no shorter run is planned: {advice.speedup_reason}"]


def _saving(without: dict[str, Any], same_loss: list[dict[str, Any]], advice: Advice) -> dict[str, Any]:
    """What the shorter run saves: in money where that is a cent or more, else in device-hours, else in FLOPs."""
    unit = next(key for key in ("cost", "device_hours", "flops") if without[key] and without[key] >= 0.01)
    low, high = (without[unit] - run[unit] for run in same_loss)
    return {
        "unit": unit,
        "low": low,
        "high": high,
        "share_low": low / without[unit],
        "share_high": high / without[unit],
        "caveats": advice.caveats,
    }


def count_run(schedule: Schedule, subject: Workload, hardware: Hardware, speed: Speed | None) -> dict[str, Any]:
    """What a run of these stages takes; None stands for what cannot be known without hardware, price or corpus."""
    positions = schedule.positions(subject.positions_per_step)
    raw_tokens = schedule.raw_tokens(subject.positions_per_step)
    corpus = subject.corpus
    hours = None if speed is None else speed.hours(schedule)
    return {
        "total_steps": schedule.total_steps,
        "switch_step": schedule.switch_step,
        "positions": positions,
        "flops": positions * subject.flops_per_position,
        "raw_tokens": raw_tokens,
        "unique_raw_tokens": raw_tokens if corpus is None else corpus.unique(raw_tokens),
        "epochs": None if corpus is None else raw_tokens / corpus.num_tokens,
        "hours": hours,
        "device_hours": None if hours is None else hours * hardware.num_devices,
        "cost": hardware.cost(hours),
    }


def steps_of_budget(request: PlanRequest, speed: Speed | None) -> int:
    """The whole steps that a budget buys of the ordinary run.

    Raises:
        UserError: where it buys none, or hours or money are given without what turns them into steps.
    """
    subject, hardware = request.subject, request.hardware
    if request.budget is None:
        if subject.total_steps is None:
            raise UserError("--parameters needs a budget: one of --tokens, --flops, --hours, --money")
        return subject.total_steps
    kind, amount = request.budget
    if kind == "tokens":
        steps = amount // subject.positions_per_step
    elif kind == "flops":
        steps = amount // subject.flops_per_step
    else:
        if speed is None:
            raise UserError(f"--{kind} needs to know the machine: give --hardware, --measured-hours or --pilot")
        hours = amount
        if kind == "money":
            if not hardware.price:
                raise UserError("--money needs what a device costs an hour: give --price")
            hours = amount / (hardware.price * hardware.num_devices)
        steps = hours * 3600 // speed.ordinary
    if steps < 1:
        raise UserError(
            f"--{kind}: {amount:g} is less than one step of {subject.positions_per_step:,} positions "
            f"({subject.flops_per_step:.3g} FLOPs); give more, or lower train.batch_size"
        )
    if steps > _MOST_STEPS:
        raise UserError(f"--{kind}: {amount:g} buys {steps:.1e} steps, more than any run has; give less")
    return int(steps)


def _speed(request: PlanRequest, pilot: Pilot | None) -> Speed | None:
    subject, hardware = request.subject, request.hardware
    if pilot is not None:
        return pilot(_expected_bag_size(request))
    if request.measured is not None:
        hours, steps = request.measured
        return speed_by_hours(
            hours,
            steps,
            flops_per_step=subject.flops_per_step,
            peak_flops=hardware.peak_flops_per_second,
            num_devices=hardware.num_devices,
        )
    if hardware.peak_flops_per_second is None:
        return None
    mfu, basis = request.mfu, "your MFU (--mfu)"
    if mfu is None:
        mfu, basis = measured_mfu(subject.active_parameters, subject.vocab_size, hardware.name)
    return speed_by_mfu(subject.flops_per_step, hardware.peak_flops_per_second, hardware.num_devices, mfu, basis)


def _expected_bag_size(request: PlanRequest) -> int:
    """What a pilot measures beside ordinary steps: a budget in hours is not known in steps before it has."""
    subject = request.subject
    steps = subject.total_steps or 1000
    # How long superposition lasts does not matter here, and may not fit into steps that are only taken for now.
    sized = {key: value for key, value in (request.given or {}).items() if key != "superposition_steps"}
    given = _given_setting(replace(request, given=sized), steps)
    if given is not None:
        return given.bag_size
    need = Need(subject.scale(steps), steps, subject.positions_per_step, subject.unit, subject.start, None)
    return choose(need)[0].bag_size


def check_given(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for keys or values that no superposition section has, before the model is counted."""
    from token_superposition.training.config import parse_config

    # These two are measured in steps, and how many steps the run has is not known yet.
    keys = {
        f"superposition.{key}": value for key, value in given.items() if key not in ("superposition_steps", "stages")
    }
    parse_config({"data": {"path": "data"}}, keys, source="--superposition")


def _given_setting(request: PlanRequest, total_steps: int) -> Setting | None:
    """The user's own setting, read as a run would read it."""
    if not request.given:
        return None
    from token_superposition.training.config import parse_config

    keys = {f"superposition.{key}": value for key, value in request.given.items()}
    config = parse_config(request.subject.config(total_steps), keys, source=request.subject.source)
    part, schedule = config.superposition, config.schedule()
    if schedule.switch_step == 0:
        return Setting()
    if part.stages is not None:
        raise UserError("--superposition.stages: a plan judges one bag size; give bag_size and ratio")
    ratio = schedule.switch_step / total_steps
    if part.superposition_steps is None:
        ratio = 0.25 if part.ratio is None else part.ratio
    return Setting(part.bag_size, ratio, part.mode, part.slot_weights)


def _model(subject: Workload) -> dict[str, Any]:
    return {
        "source": subject.source,
        "architecture": subject.architecture,
        "parameters": subject.parameters,
        "active_parameters": subject.active_parameters,
        "vocab_size": subject.vocab_size,
        "unit": subject.unit,
        "start": subject.start,
        "flops_per_position": subject.flops_per_position,
        "positions_per_step": subject.positions_per_step,
    }


def _hardware(hardware: Hardware, speed: Speed | None) -> dict[str, Any]:
    return {
        **asdict(hardware),
        "mfu": None if speed is None else speed.mfu,
        "step_seconds": None if speed is None else speed.ordinary,
        "superposition_step_seconds": None if speed is None else speed.superposed,
        "speed_basis": None if speed is None else speed.basis,
    }


def _evidence(measured: Comparison) -> dict[str, Any]:
    return {
        "name": measured.name,
        "unit": measured.unit,
        "parameters": measured.scale.parameters,
        "positions": measured.scale.positions,
        "total_steps": measured.total_steps,
        "bag_size": measured.bag_size,
        "ratio": measured.ratio,
        "seeds": measured.seeds,
        "gain_nats": round(measured.gain, 6),
        "half_width": measured.half_width,
        "source": measured.source,
    }


def _range(found: Range | None, reason: str | None) -> dict[str, Any]:
    if found is None:
        return {"low": None, "high": None, "extrapolated": None, "basis": None, "reason": reason}
    return {**asdict(found), "reason": None}


def _config(request: PlanRequest, setting: Setting, total_steps: int) -> dict[str, Any]:
    """The run's configuration, with what is recommended in it, as `tst train` takes it."""
    from token_superposition.training.config import parse_config

    values = _with_superposition(request, setting, total_steps)
    parse_config(values, source="the plan")
    return values


def _with_superposition(request: PlanRequest, setting: Setting, total_steps: int) -> dict[str, Any]:
    values = request.subject.config(total_steps)
    if setting.bag_size == 1:
        return values
    part: dict[str, Any] = {"bag_size": setting.bag_size}
    if "superposition_steps" in (request.given or {}):
        part["superposition_steps"] = setting.schedule(total_steps).switch_step
    else:
        part["ratio"] = setting.ratio
    part |= {"mode": setting.mode} if setting.mode != "full" else {}
    part |= {"slot_weights": setting.slot_weights}
    order = ("data", "model")
    return {
        **{key: values[key] for key in order if key in values},
        "superposition": part,
        **{key: value for key, value in values.items() if key not in order},
    }
