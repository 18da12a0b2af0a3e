"""The commands that train: `tst demo`, `tst train` (a guarded one is a study's business) and `tst compare`.

This module is read for `tst --help`, so what is heavy is imported when a command runs.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from token_superposition.arguments import integer, number, path
from token_superposition.errors import UserError

if TYPE_CHECKING:
    from token_superposition.study.guard.run import GuardedRun
    from token_superposition.train.config import RunConfig


def add_study_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `add` makes the parser of a command from its name, function and text."""
    demo = add("demo", _demo, "train a small model with and without superposition, and compare")
    demo.add_argument("--out", type=path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument("--steps", type=integer, help="optimizer steps of each run (default: 4000)")
    demo.add_argument("--seeds", type=integer, default=1, help="seeds of each arm (default: %(default)s)")
    demo.add_argument("--jobs", type=integer, help="runs at once (default: as the machine bears)")
    _add_budgets(demo)
    _add_sweep(demo)

    overridable = "any key of the configuration can follow, such as --train.learning_rate 1e-3"
    train = add("train", _train, "train one run, or go on with it")
    train.epilog = overridable
    train.set_defaults(takes_keys=True)
    train.add_argument("config", type=path, metavar="CONFIG.yaml")
    train.add_argument("--out", type=path, help="run folder (default: runs/ and the configuration's name)")
    train.add_argument("--dry-run", action="store_true", help="say what the run would be, train and write nothing")
    train.add_argument("--deterministic", action="store_true", help="bit-equal reruns (train.deterministic)")
    train.add_argument(
        "--fail-on-checkpoint-error",
        action="store_true",
        help="end where a checkpoint cannot be written (logging.fail_on_checkpoint_error)",
    )
    guard = train.add_argument_group("guard", "forecast early in the recovery whether superposition will end ahead")
    guard.add_argument(
        "--guard",
        action="append",
        type=path,
        metavar="BASELINE",
        help="a study's folder or report.json; or finished plain runs, each with a --guard of its own",
    )
    guard.add_argument("--guard-at", metavar="SHARES", help="where in the recovery (default: 0.1,0.25)")
    guard.add_argument("--if-behind", choices=("stop", "go-on"), help="what to do then (default: go-on)")
    guard.add_argument("--stop-below", type=number, metavar="P", help="probability of being ahead (default: 0.5)")

    compare = add("compare", _compare, "train a baseline and superposition at the same FLOPs, and report")
    compare.epilog = overridable
    compare.set_defaults(takes_keys=True)
    compare.add_argument("config", type=path, metavar="CONFIG.yaml")
    compare.add_argument("--out", type=path, help="folder (default: runs/, the configuration's name and -compare)")
    compare.add_argument("--seeds", type=integer, help="seeds of each arm (default: the file's, or 1)")
    compare.add_argument("--jobs", type=integer, help="runs at once (default: as the machine bears)")
    compare.add_argument("--dry-run", action="store_true", help="say what would be trained, train and write nothing")
    _add_budgets(compare)
    _add_sweep(compare)


def _add_budgets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--budgets",
        metavar="STEPS",
        help="lengths of run, such as 1000,2000,4000; what they share is trained once",
    )
    command.add_argument(
        "--equal-data",
        action="store_true",
        help="train the baseline on the raw tokens that superposition read too, for more steps",
    )


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="tune each arm first, such as train.learning_rate=1e-3,2e-3,4e-3; several make a grid",
    )
    command.add_argument(
        "--sweep-seeds", type=integer, metavar="N", help="seeds to tune with, of their own (default: 1)"
    )
    command.add_argument(
        "--sweep-budget", type=integer, metavar="STEPS", help="tune at this one of --budgets for all (default: at each)"
    )


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.train.config import load_config
    from token_superposition.train.files_there import check_folders

    values = _values(overrides)
    if options.deterministic:
        values["train.deterministic"] = True
    if options.fail_on_checkpoint_error:
        values["logging.fail_on_checkpoint_error"] = True
    config = load_config(options.config, values)
    folder = options.out or Path("runs") / options.config.stem
    _check_guard_options(options)
    if not (folder / "config.yaml").exists():  # a run that is done needs its data no more
        check_folders(config)
    from token_superposition.train.loop import train

    guarded = _guarded(options, config, folder)
    if options.dry_run:
        from token_superposition.train.dry_run import describe, dry_run

        result = dry_run(config, folder)
        if guarded is None:
            return result, describe(result)
        return {**result, "guard": guarded.plan.as_dict()}, "\n".join([describe(result), *guarded.describe()])
    summary = train(config, folder, quiet=options.quiet) if guarded is None else guarded.train(quiet=options.quiet)
    text = (
        f"validation loss {summary['final_validation_loss']:.4f} nats per token, "
        f"{summary['bits_per_byte']:.4f} bits per byte\nrun in {folder}"
    )
    return summary, text


def _check_guard_options(options: argparse.Namespace) -> None:
    for name in ("guard_at", "if_behind", "stop_below"):
        if options.guard is None and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --guard, such as --guard runs/shakespeare-compare")
    for place in options.guard or ():
        if not place.exists():
            raise UserError(f"--guard {place}: there is no such file or folder")


def _guarded(options: argparse.Namespace, config: RunConfig, folder: Path) -> GuardedRun | None:
    if options.guard is None:
        return None
    from token_superposition.study.guard.run import Request, prepare_guard

    below = 0.5 if options.stop_below is None else options.stop_below
    request = Request(
        options.guard, "0.1,0.25" if options.guard_at is None else options.guard_at, options.if_behind or "go-on", below
    )
    return prepare_guard(config, folder, request)


def _compare(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.study.budgets import budget_words
    from token_superposition.study.request import check_last_seed, check_request
    from token_superposition.study.study_file import load_study
    from token_superposition.study.sweep import parse_sweep, sweep_words
    from token_superposition.train.files_there import check_folders

    study = load_study(options.config, _values(overrides), budgets=options.budgets, equal_data=options.equal_data)
    num_seeds = options.seeds if options.seeds is not None else study.num_seeds or 1
    num_sweep_seeds = _sweep_seeds(options)
    sweep = None
    if options.sweep:
        sweep = parse_sweep(
            options.sweep,
            study.arms,
            num_seeds=num_sweep_seeds,
            budget=options.sweep_budget,
            budgets=study.budgets,
            given=study.given,
        )
    folder = options.out or Path("runs") / f"{options.config.stem}-compare"
    check_request(folder, num_seeds, options.jobs)
    check_last_seed(study, num_seeds, sweep)
    for config in study.arms.values():
        check_folders(config)
    if options.dry_run:
        from token_superposition.study.dry_run import describe, dry_run

        result = dry_run(study, folder, num_seeds=num_seeds, sweep=sweep)
        return result, describe(result)
    keys = [word for name, text in overrides.items() for word in (f"--{name}", text)]
    words = ["tst", "compare", str(options.config), "--seeds", str(num_seeds), "--out", str(folder)]
    words += budget_words(options.budgets, options.equal_data)
    words += [*sweep_words(options.sweep, num_sweep_seeds, options.sweep_budget), *keys]
    from token_superposition.study.compare import compare

    report = compare(
        study,
        folder,
        num_seeds=num_seeds,
        sweep=sweep,
        jobs=options.jobs,
        quiet=options.quiet,
        command=shlex.join(words),
    )
    return _with_verdict(report, folder)


def _demo(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.study.demo import demo

    report = demo(
        options.out,
        steps=options.steps,
        budgets=options.budgets,
        equal_data=options.equal_data,
        num_seeds=options.seeds,
        sweep=options.sweep,
        num_sweep_seeds=_sweep_seeds(options),
        sweep_budget=options.sweep_budget,
        jobs=options.jobs,
        quiet=options.quiet,
    )
    return _with_verdict(report, options.out)


def _sweep_seeds(options: argparse.Namespace) -> int:
    for option, value in (("--sweep-seeds", options.sweep_seeds), ("--sweep-budget", options.sweep_budget)):
        if value is not None and not options.sweep:
            raise UserError(f"{option} needs --sweep, such as --sweep train.learning_rate=1e-3,2e-3,4e-3")
    return 1 if options.sweep_seeds is None else int(options.sweep_seeds)


def _with_verdict(report: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    from token_superposition.study.report import verdict

    words = verdict(report)
    return report, "\n".join([words.headline, *words.details, "", f"report: {folder / 'report.html'}"])


def _values(overrides: dict[str, str]) -> dict[str, Any]:
    from token_superposition.yaml_keys import parse_overrides

    return parse_overrides(overrides)
