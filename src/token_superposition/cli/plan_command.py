"""The command `tst plan`.

`tst --help` imports this module, so slow imports happen only when the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from token_superposition.arguments import path
from token_superposition.errors import UserError
from token_superposition.files import write_text
from token_superposition.planner.amounts import amount, between, dollars, num_devices, price, share, whole_amount

if TYPE_CHECKING:
    from token_superposition.planner.plan import Plan
    from token_superposition.planner.workload import Workload

_BUDGETS = ("tokens", "flops", "hours", "money")
_SECTION = "superposition."
_MARK = "# Written by tst plan"
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
    machine.add_argument(
        "--mfu",
        type=share,
        metavar="F",
        help="share of the peak FLOPs that training reaches (default: from measurements)",
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
    from token_superposition.planner.hardware import find_hardware
    from token_superposition.planner.plan import PlanRequest, check_given, make_plan
    from token_superposition.planner.plan_text import describe
    from token_superposition.yaml_files import parse_overrides

    _check(options)
    if options.out:
        _check_place(options.out)
    hardware = find_hardware(
        options.hardware, num_devices=options.num_devices, peak_flops=options.peak_flops, price=options.price
    )
    values = parse_overrides(overrides)
    given = {name.removeprefix(_SECTION): value for name, value in values.items() if name.startswith(_SECTION)}
    keys = {name: value for name, value in values.items() if not name.startswith(_SECTION)}
    check_given(given)
    budget: Any = next(((kind, value) for kind in _BUDGETS if (value := getattr(options, kind)) is not None), None)
    plan = make_plan(PlanRequest(_workload(options, keys), hardware, budget, options.goal, options.mfu, given))
    text = describe(plan)
    if options.out:
        _write_run(options.out, plan)
        text += f"\n\nrun in {options.out}: tst train {options.out} --dry-run"
    result = asdict(plan)
    del result["workload"]["values"]  # `config` has them, with the setting
    return result, text


def _workload(options: argparse.Namespace, keys: Mapping[str, Any]) -> Workload:
    from token_superposition.planner.workload import workload_of_config, workload_of_size

    if options.config is not None:
        return workload_of_config(options.config, keys, options.corpus_tokens)
    return workload_of_size(options.parameters, options.vocab_size, keys, options.corpus_tokens)


def _check(options: argparse.Namespace) -> None:
    if (options.config is None) == (options.parameters is None):
        raise UserError("give one of CONFIG.yaml and --parameters, such as --parameters 135M")
    if options.vocab_size is not None and options.parameters is None:
        raise UserError(
            "--vocab-size needs --parameters; with a configuration file give --model.config.vocab_size instead"
        )
    if options.mfu is not None and options.hardware is None and options.peak_flops is None:
        raise UserError("--mfu is a share of the peak FLOPs: give --hardware or --peak-flops too")


def _check_place(file: Path) -> None:
    """Refuse to write over anything but an earlier plan."""
    if file.is_dir():
        raise UserError(f"--out: {file}: is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"--out: {file}: there is no folder {file.parent}")
    if file.exists() and not file.read_bytes().startswith(_MARK.encode()):
        raise UserError(f"--out: {file}: exists and was not written by tst plan; name another file, or move it away")


def _write_run(file: Path, plan: Plan) -> None:
    """Write the plan's configuration, with the verdict and its reasons as comments above it."""
    import yaml

    lines = [f"{_MARK} for {plan.workload.parameters:,} parameters. Verdict: {plan.verdict}."]
    assumed = [f"assumed: {text}" for text in plan.workload.assumptions]
    lines += [f"# {text[:1].upper()}{text[1:]}." for text in [*plan.recommended.reasons, *assumed]]
    write_text(file, "\n".join(lines) + "\n" + yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True))
