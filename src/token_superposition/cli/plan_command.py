"""The command `tst plan`.

`tst --help` imports this module, so slow imports happen only when the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from token_superposition.arguments import path
from token_superposition.errors import UserError
from token_superposition.planner.amounts import amount, between, dollars, num_devices, price, share, whole_amount

if TYPE_CHECKING:
    from token_superposition.planner.speed import Speed
    from token_superposition.planner.workload import Workload

_BUDGETS = ("tokens", "flops", "hours", "money")
_SECTION = "superposition."
_HOURS = between(1e-6, 1e7, "hours, such as 24")
_PEAK = between(1e9, 1e18, "FLOPs per second of one device, such as 989T")


def add_plan_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command; `add` makes a parser from a command's name, function and help text."""
    plan = add("plan", _plan, "estimate the cost of a run with and without superposition, and recommend settings")
    plan.epilog = (
        "All configuration keys can follow. If superposition keys such as --superposition.bag_size are given, "
        "the plan evaluates exactly these settings."
    )
    plan.set_defaults(takes_keys=True)
    plan.add_argument(
        "config", type=path, nargs="?", metavar="CONFIG.yaml", help="a run's configuration; or give --parameters"
    )
    plan.add_argument(
        "--parameters", type=whole_amount, metavar="N", help="parameters of a model of the usual shape, such as 135M"
    )
    plan.add_argument(
        "--vocab-size", type=whole_amount, metavar="V", help="vocabulary size of that model (only with --parameters)"
    )
    budget = plan.add_argument_group(
        "budget", "budget of the ordinary run without superposition (default: the configuration's steps)"
    )
    one = budget.add_mutually_exclusive_group()
    one.add_argument("--tokens", type=amount, metavar="N", help="number of positions to train on, such as 10B")
    one.add_argument("--flops", type=amount, metavar="N", help="training FLOPs, such as 6e20")
    one.add_argument("--hours", type=_HOURS, metavar="H", help="wall-clock hours with all devices in use")
    one.add_argument("--money", type=dollars, metavar="M", help="price of the run in dollars")
    machine = plan.add_argument_group("hardware")
    machine.add_argument("--hardware", metavar="NAME", help="device type: b200, h200, h100, a100, l40s and others")
    machine.add_argument(
        "--num-devices", type=num_devices, default=1, metavar="N", help="number of devices (default: 1)"
    )
    machine.add_argument("--price", type=price, metavar="P", help="dollars per device-hour (default: a list price)")
    machine.add_argument(
        "--peak-flops", type=_PEAK, metavar="N", help="peak FLOPs per second per device, dense bfloat16, such as 989T"
    )
    speed = machine.add_mutually_exclusive_group()
    speed.add_argument(
        "--mfu",
        type=share,
        metavar="F",
        help="share of the peak FLOPs that training reaches (default: from measurements)",
    )
    speed.add_argument("--pilot", action="store_true", help="measure the step time on this machine first")
    speed.add_argument(
        "--measured-hours",
        type=_HOURS,
        metavar="H",
        help="hours that an earlier run took on these devices (with --measured-steps)",
    )
    machine.add_argument(
        "--measured-steps", type=whole_amount, metavar="N", help="number of steps of that run (with --measured-hours)"
    )
    plan.add_argument(
        "--corpus-tokens", type=whole_amount, metavar="N", help="size of the corpus in tokens (default: the dataset's)"
    )
    plan.add_argument(
        "--goal",
        choices=("loss", "cost"),
        default="loss",
        help="what to improve: the loss or the cost (default: %(default)s)",
    )
    plan.add_argument("--out", type=path, metavar="FILE.yaml", help="file to write the recommended configuration to")


def _plan(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.planner.plan import PlanRequest, check_given, make_plan
    from token_superposition.planner.plan_text import describe
    from token_superposition.planner.run_file import check_place, write_run
    from token_superposition.planner.speed import find_hardware
    from token_superposition.yaml_files import parse_overrides

    _check(options)
    if options.out:
        check_place(options.out)
    hardware = find_hardware(
        options.hardware, num_devices=options.num_devices, peak_flops=options.peak_flops, price=options.price
    )
    values = parse_overrides(overrides)
    given = {name.removeprefix(_SECTION): value for name, value in values.items() if name.startswith(_SECTION)}
    keys = {name: value for name, value in values.items() if not name.startswith(_SECTION)}
    check_given(given)
    subject = _subject(options, keys)
    budget = next(((kind, value) for kind in _BUDGETS if (value := getattr(options, kind)) is not None), None)
    measured = None if options.measured_hours is None else (options.measured_hours, options.measured_steps)
    request = PlanRequest(subject, hardware, budget, options.goal, options.mfu, measured, given)  # type: ignore[arg-type]
    pilot = None
    if options.pilot:

        def pilot(bag_size: int) -> Speed:
            from token_superposition.planner.pilot import measure_speed

            return measure_speed(
                subject.values,
                bag_size,
                num_devices=hardware.num_devices,
                peak_flops=hardware.peak_flops_per_second,
                flops_per_step=subject.flops_per_step,
                quiet=options.quiet,
            )

    plan = make_plan(request, pilot)
    text = describe(plan)
    if options.out:
        write_run(options.out, plan)
        text += f"\n\nrun in {options.out}: tst train {options.out} --dry-run"
    return plan, text


def _subject(options: argparse.Namespace, keys: Mapping[str, Any]) -> Workload:
    from token_superposition.planner.workload import subject_of_config, subject_of_size

    if options.config is not None:
        return subject_of_config(options.config, keys, options.corpus_tokens)
    return subject_of_size(options.parameters, options.vocab_size, keys, options.corpus_tokens)


def _check(options: argparse.Namespace) -> None:
    if (options.config is None) == (options.parameters is None):
        raise UserError("give one of CONFIG.yaml and --parameters, such as --parameters 135M")
    if options.vocab_size is not None and options.parameters is None:
        raise UserError(
            "--vocab-size needs --parameters; with a configuration file give --model.config.vocab_size instead"
        )
    if (options.measured_hours is None) != (options.measured_steps is None):
        raise UserError(
            "--measured-hours and --measured-steps must be given together: the duration of a run and its steps"
        )
    if options.mfu is not None and options.hardware is None and options.peak_flops is None:
        raise UserError("--mfu is a share of the peak FLOPs: give --hardware or --peak-flops too")
