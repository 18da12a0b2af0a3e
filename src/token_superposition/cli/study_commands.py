"""The commands that train: `tst demo`, `tst train` and `tst compare`.

`tst --help` imports this module, so slow imports happen only when a command runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from token_superposition.arguments import integer, path
from token_superposition.data.manifest import loss_warning
from token_superposition.errors import UserError
from token_superposition.torchrun import launched_by_torchrun, start_torchrun, torchrun_rank

if TYPE_CHECKING:
    from token_superposition.study.guard import GuardedRun
    from token_superposition.study.report.model import Report
    from token_superposition.training.config import RunConfig


def add_study_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the commands; `add` makes a parser from a command's name, function and help text."""
    demo = add("demo", _demo, "train a small model with and without superposition, and compare the results")
    demo.add_argument(
        "--out", type=path, default=Path("runs/demo"), help="folder to write the study to (default: %(default)s)"
    )
    demo.add_argument("--steps", type=integer, help="optimizer steps per run (default: 4000)")
    demo.add_argument("--seeds", type=integer, default=1, help="number of seeds per arm (default: %(default)s)")
    demo.add_argument("--jobs", type=integer, help="parallel runs (default: limited by cores and memory)")
    _add_budgets(demo)
    _add_sweep(demo)

    _add_train(add)

    compare = add("compare", _compare, "train with and without superposition at the same FLOPs, and write a report")
    compare.epilog = "All configuration keys can follow, such as --train.learning_rate 1e-3 (see tst train --help)."
    compare.set_defaults(takes_keys=True)
    compare.add_argument("config", type=path, metavar="CONFIG.yaml", help="configuration file of the study")
    compare.add_argument(
        "--out", type=path, help="folder of the study (default: runs/NAME-compare, from the configuration's name)"
    )
    compare.add_argument("--seeds", type=integer, help="number of seeds per arm (default: the file's, or 1)")
    compare.add_argument("--jobs", type=integer, help="parallel runs (default: limited by cores and memory)")
    compare.add_argument(
        "--dry-run", action="store_true", help="check and describe the study, then stop before training"
    )
    compare.add_argument(
        "--price-per-hour",
        metavar="P",
        help="price of a GPU or machine per hour, such as 2.5; adds the cost in money to the report",
    )
    _add_budgets(compare)
    _add_sweep(compare)


def _add_train(add: Callable[..., argparse.ArgumentParser]) -> None:
    train = add("train", _train, "start a training run, or continue it")
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.epilog = _keys_help()
    train.set_defaults(takes_keys=True)
    train.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of the YAML file and exit")
    train.add_argument(
        "config", type=path, metavar="CONFIG.yaml", help="a run's configuration, or a run's folder to continue"
    )
    train.add_argument(
        "--out", type=path, help="run folder (default: runs/NAME, where NAME is the name of the configuration file)"
    )
    train.add_argument("--dry-run", action="store_true", help="check and describe the run, then stop before training")
    train.add_argument(
        "--deterministic", action="store_true", help="make reruns bit-identical (sets train.deterministic)"
    )
    train.add_argument(
        "--fail-on-checkpoint-error",
        action="store_true",
        help="end the run if a checkpoint cannot be written (sets logging.fail_on_checkpoint_error)",
    )
    train.add_argument(
        "--processes",
        type=integer,
        metavar="N",
        help="train with N processes on this machine, started by torchrun (default: one per GPU if there are several)",
    )
    train.add_argument(
        "--guard",
        type=path,
        metavar="STUDY",
        help="forecast early in the recovery phase how the run will end, compared with the baseline of this study "
        "(the folder of tst compare --budgets, or its report.json)",
    )
    train.add_argument(
        "--guard-at", metavar="SHARES", help="when to forecast, as shares of the recovery steps (default: 0.1,0.25)"
    )


class _PrintSchema(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        from token_superposition.training.config_reference import json_schema

        print(json.dumps(json_schema(), indent=2))
        raise SystemExit(0)


def _keys_help() -> str:
    """The text that `training.config_reference` generated; reading it from a file keeps `--help` fast."""
    return files("token_superposition.training").joinpath("config_keys.txt").read_text(encoding="utf-8")


def _add_budgets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--budgets",
        metavar="STEPS",
        help="run lengths to compare, such as 1000,2000,4000; steps that several runs share are trained once",
    )
    command.add_argument(
        "--equal-data",
        action="store_true",
        help="also train a baseline on as many raw tokens as superposition reads; this takes more steps",
    )


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="tune each arm first, such as train.learning_rate=1e-3,2e-3,4e-3; repeat the option for a grid",
    )
    command.add_argument(
        "--sweep-seeds",
        type=integer,
        metavar="N",
        help="number of seeds for tuning, separate from the seeds of the comparison (default: 1)",
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
    if options.config.is_file() and folder == file.parent and not options.quiet and torchrun_rank() == 0:
        say(f"this is the configuration of the run in {folder}; the run continues")
    if options.guard is None and options.guard_at is not None:
        raise UserError("--guard-at needs --guard, such as --guard runs/small-compare")
    if options.guard is not None and not options.guard.exists():
        raise UserError(f"--guard {options.guard}: this file or folder does not exist")
    RunFolder(folder).check_place()
    if not (folder / "config.yaml").exists():  # a finished run no longer needs its data
        check_folders(config)
    from token_superposition.training.loop import train

    processes = _processes(options, config)
    if processes > 1:
        raise SystemExit(start_torchrun(options.words, processes))
    guarded = _guarded(options, config, folder)
    if options.dry_run:
        from token_superposition.training.dry_run import describe, dry_run

        result = dry_run(config, folder)
        if guarded is None:
            return result, describe(result)
        return {**result, "guard": asdict(guarded.report())}, f"{describe(result)}\n{guarded.describe()}"
    summary = train(config, folder, quiet=options.quiet) if guarded is None else guarded.train(quiet=options.quiet)
    text = (
        f"validation loss {summary['final_validation_loss']:.4f} nats per token, "
        f"{summary['bits_per_byte']:.4f} bits per byte\nrun in {folder}"
    )
    loss = loss_warning(summary.get("text_lost"))
    if loss is not None and torchrun_rank() == 0:
        print(f"warning: {loss}", file=sys.stderr)
    return summary, text


def _file_and_folder(given: Path, out: Path | None) -> tuple[Path, Path]:
    """The run's configuration file and its folder, from the command line's CONFIG.yaml and --out.

    Args:
        given: a configuration file, or the folder of a run to continue.
        out: the value of --out.

    Raises:
        UserError: if `given` is a folder that is not a run, or a run that --out would continue in another folder.
    """
    if given.is_dir():
        if not ((given / "config.yaml").is_file() and (given / "run.json").is_file()):
            raise UserError(
                f"{given}: this folder has no run to continue (no config.yaml and run.json); give the folder of a run, "
                "or a configuration file to start a run"
            )
        if out is not None and out.resolve() != given.resolve():
            raise UserError(
                f"--out {out}: {given} continues in its own folder; remove --out, or start a new run from its "
                f"configuration with: tst train {given / 'config.yaml'} --out {out}"
            )
        return given / "config.yaml", given
    if out is None and given.name == "config.yaml" and (given.parent / "run.json").is_file():
        return given, given.parent
    return given, out or Path("runs") / given.stem


def _processes(options: argparse.Namespace, config: RunConfig) -> int:
    """The number of processes that this process has to start; 1 if it trains itself."""
    wanted: int | None = options.processes
    if wanted is not None and wanted < 1:
        raise UserError(f"--processes {wanted}: use at least 1")
    if options.guard is not None and (launched_by_torchrun() or (wanted or 1) > 1):
        raise UserError("--guard works only in a run of one process; remove it, or use --processes 1")
    if launched_by_torchrun() or options.dry_run or options.guard is not None:
        return 1
    if wanted is None and config.train.device in ("auto", "cuda"):
        import torch

        wanted = torch.cuda.device_count()
    return wanted or 1


def _guarded(options: argparse.Namespace, config: RunConfig, folder: Path) -> GuardedRun | None:
    if options.guard is None:
        return None
    from token_superposition.study.guard import prepare_guard

    return prepare_guard(config, folder, options.guard, "0.1,0.25" if options.guard_at is None else options.guard_at)


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
        sweep = parse_sweep(options.sweep, study.arms, num_seeds=num_sweep_seeds, given=study.given)
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
    words += [*sweep_words(options.sweep, num_sweep_seeds), *keys]
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
        jobs=options.jobs,
        quiet=options.quiet,
    )
    return _with_verdict(report, options.out)


def _sweep_seeds(options: argparse.Namespace) -> int:
    if options.sweep_seeds is not None and not options.sweep:
        raise UserError("--sweep-seeds needs --sweep, such as --sweep train.learning_rate=1e-3,2e-3,4e-3")
    return 1 if options.sweep_seeds is None else int(options.sweep_seeds)


def _with_verdict(report: Report, folder: Path) -> tuple[dict[str, Any], str]:
    from token_superposition.formatting import wrapped
    from token_superposition.study.report.verdict import verdict

    words = verdict(report)
    lines = [wrapped(line) for line in (words.headline, words.next_step)]
    lines += ["", *(wrapped(f"- {line}", "  ") for line in (f"{row.label}: {row.text}" for row in words.rows))]
    return report.as_dict(), "\n".join([*lines, "", f"report: {folder / 'report.html'}"])


def _values(overrides: dict[str, str]) -> dict[str, Any]:
    from token_superposition.yaml_files import parse_overrides

    return parse_overrides(overrides)
