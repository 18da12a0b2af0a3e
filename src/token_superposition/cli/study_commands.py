"""The commands that train: `tst demo`, `tst train` (a guarded one is a study's business) and `tst compare`.

This module is read for `tst --help`, so what is heavy is imported when a command runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from token_superposition.arguments import integer, number, path
from token_superposition.data.manifest import loss_warning
from token_superposition.errors import UserError

if TYPE_CHECKING:
    from token_superposition.study.guard.guarded_run import GuardedRun
    from token_superposition.training.config import RunConfig


def add_study_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `add` makes the parser of a command from its name, function and text."""
    demo = add("demo", _demo, "train a small model with and without superposition, and compare")
    demo.add_argument("--out", type=path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument("--steps", type=integer, help="optimizer steps of each run (default: 4000)")
    demo.add_argument("--seeds", type=integer, default=1, help="seeds of each arm (default: %(default)s)")
    demo.add_argument("--jobs", type=integer, help="runs at once (default: as the machine bears)")
    _add_budgets(demo)
    _add_sweep(demo)

    train = add("train", _train, "train one run, or go on with it")
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.epilog = _keys_help()
    train.set_defaults(takes_keys=True)
    train.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of the YAML file and exit")
    train.add_argument(
        "config", type=path, metavar="CONFIG.yaml", help="a run's configuration, or a run's folder to continue"
    )
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
    compare.epilog = "All configuration keys can follow, such as --train.learning_rate 1e-3 (see tst train --help)."
    compare.set_defaults(takes_keys=True)
    compare.add_argument("config", type=path, metavar="CONFIG.yaml")
    compare.add_argument("--out", type=path, help="folder (default: runs/, the configuration's name and -compare)")
    compare.add_argument("--seeds", type=integer, help="seeds of each arm (default: the file's, or 1)")
    compare.add_argument("--jobs", type=integer, help="runs at once (default: as the machine bears)")
    compare.add_argument("--dry-run", action="store_true", help="say what would be trained, train and write nothing")
    compare.add_argument(
        "--price-per-hour", metavar="P", help="of a GPU or machine, such as 2.5: the report then has the cost in money"
    )
    _add_budgets(compare)
    _add_sweep(compare)


class _PrintSchema(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        from token_superposition.training.config_reference import json_schema

        print(json.dumps(json_schema(), indent=2))
        raise SystemExit(0)


def _keys_help() -> str:
    """The configuration keys as `training.config_reference` generated them; reading a file keeps `--help` fast."""
    return files("token_superposition.training").joinpath("config_keys.txt").read_text(encoding="utf-8")


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
    from token_superposition.progress import say
    from token_superposition.training.config import load_config
    from token_superposition.training.data_folders import check_folders
    from token_superposition.training.run_folder import RunFolder

    values = _values(overrides)
    if options.deterministic:
        values["train.deterministic"] = True
    if options.fail_on_checkpoint_error:
        values["logging.fail_on_checkpoint_error"] = True
    file, folder = _file_and_folder(options.config, options.out)
    config = load_config(file, values)
    if options.config.is_file() and folder == file.parent and not options.quiet:
        say(f"this is the configuration of the run in {folder}, which continues")
    _check_guard_options(options)
    RunFolder(folder).check_place()
    if not (folder / "config.yaml").exists():  # a run that is done needs its data no more
        check_folders(config)
    from token_superposition.training.loop import train

    guarded = _guarded(options, config, folder)
    if options.dry_run:
        from token_superposition.training.dry_run import describe, dry_run

        result = dry_run(config, folder)
        if guarded is None:
            return result, describe(result)
        return {**result, "guard": guarded.plan.as_dict()}, "\n".join([describe(result), *guarded.describe()])
    summary = train(config, folder, quiet=options.quiet) if guarded is None else guarded.train(quiet=options.quiet)
    text = (
        f"validation loss {summary['final_validation_loss']:.4f} nats per token, "
        f"{summary['bits_per_byte']:.4f} bits per byte\nrun in {folder}"
    )
    loss = loss_warning(summary.get("text_lost"))
    if loss is not None:
        print(f"warning: {loss}", file=sys.stderr)
    return summary, text


def _file_and_folder(given: Path, out: Path | None) -> tuple[Path, Path]:
    """A run's configuration file and its folder, for a file or a run's folder that was named.

    Raises:
        UserError: for a folder that is not a run, or one to continue in another folder.
    """
    if given.is_dir():
        if not ((given / "config.yaml").is_file() and (given / "run.json").is_file()):
            raise UserError(
                f"{given}: is a folder without a run to continue (no config.yaml and run.json); name a run's folder, "
                "or a configuration file to start a run"
            )
        if out is not None and out.resolve() != given.resolve():
            raise UserError(
                f"--out {out}: {given} continues in its own folder; leave --out out, or start a new run from its "
                f"configuration with: tst train {given / 'config.yaml'} --out {out}"
            )
        return given / "config.yaml", given
    if out is None and given.name == "config.yaml" and (given.parent / "run.json").is_file():
        return given, given.parent
    return given, out or Path("runs") / given.stem


def _check_guard_options(options: argparse.Namespace) -> None:
    for name in ("guard_at", "if_behind", "stop_below"):
        if options.guard is None and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --guard, such as --guard runs/small-compare")
    for place in options.guard or ():
        if not place.exists():
            raise UserError(f"--guard {place}: there is no such file or folder")


def _guarded(options: argparse.Namespace, config: RunConfig, folder: Path) -> GuardedRun | None:
    if options.guard is None:
        return None
    from token_superposition.study.guard.guarded_run import GuardRequest, prepare_guard

    below = 0.5 if options.stop_below is None else options.stop_below
    request = GuardRequest(
        options.guard, "0.1,0.25" if options.guard_at is None else options.guard_at, options.if_behind or "go-on", below
    )
    return prepare_guard(config, folder, request)


def _compare(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.study.prices import parse_price
    from token_superposition.study.study_config import budget_words, load_study
    from token_superposition.study.study_options import check_last_seed, check_request
    from token_superposition.study.sweep import parse_sweep, sweep_words
    from token_superposition.training.data_folders import check_folders

    study = load_study(options.config, _values(overrides), budgets=options.budgets, equal_data=options.equal_data)
    if options.price_per_hour is not None:
        study = replace(study, price_per_hour=parse_price(options.price_per_hour, "--price-per-hour"))
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
        from token_superposition.study.study_plan import describe, dry_run

        result = dry_run(study, folder, num_seeds=num_seeds, sweep=sweep)
        return result, describe(result)
    keys = [word for name, text in overrides.items() for word in (f"--{name}", text)]
    words = ["tst", "compare", str(options.config), "--seeds", str(num_seeds), "--out", str(folder)]
    words += budget_words(options.budgets, options.equal_data)
    words += [] if options.price_per_hour is None else ["--price-per-hour", options.price_per_hour]
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
    from token_superposition.formatting import wrapped
    from token_superposition.study.report import headline as verdict

    words = verdict(report)
    lines = [wrapped(line) for line in (words.headline, words.next_step)]
    lines += ["", *(wrapped(f"- {line}", "  ") for line in words.details)]
    return report, "\n".join([*lines, "", f"report: {folder / 'report.html'}"])


def _values(overrides: dict[str, str]) -> dict[str, Any]:
    from token_superposition.yaml_files import parse_overrides

    return parse_overrides(overrides)
