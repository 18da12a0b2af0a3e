"""The door: the command `tst`.

Each command imports what it needs when it runs, so `tst --help` answers at once. Results go to standard
output (with `--json`, one JSON object as its last line), everything else to standard error. Exit codes: 0
done; 2 the user's input is wrong, or the machine refuses (a full disk), said in one line; 1 anything else;
130 interrupted, after a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from token_superposition import __version__
from token_superposition.bench.command import add_bench_command
from token_superposition.data.commands import add_data_commands
from token_superposition.errors import RunError, UserError, machine_trouble, one_line
from token_superposition.planner.command import add_plan_command
from token_superposition.use.commands import add_use_commands

if TYPE_CHECKING:
    from token_superposition.study.guard.run import GuardedRun
    from token_superposition.train.config import RunConfig

_EPILOG = "Documentation: the README and docs/ of the repository. Paper: arXiv 2605.06546."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tst` with the given arguments (those of the process without them); returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a request to stop, however it is made
    try:
        words, overrides = _split(_as_text(sys.argv[1:] if arguments is None else arguments))
        options = _parser().parse_args(words)
        command: Callable[[argparse.Namespace, dict[str, str]], tuple[dict[str, Any], str]] = options.run
        if overrides and not options.takes_keys:
            raise UserError(f"--{next(iter(overrides))}: this command takes no keys of a configuration")
        result, text = command(options, overrides)
        _print(json.dumps(result) if options.json else text)
    except UserError as error:
        return _failed(str(error), 2)
    except RunError as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        return 1
    except Exception as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        return _failed(trouble, 2)
    return 0


def _print(text: str) -> None:
    """The result, to standard output, also where that cannot write every character."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # What could not be written stays in Python's buffer, and would fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = "standard output"
        raise


def _failed(text: str, code: int) -> int:
    print(f"error: {one_line(text)}", file=sys.stderr)
    return code


def _as_text(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, where all of them are text that a file or a message can hold."""
    for argument in arguments:
        # Python passes on the bytes of a file's name that are no UTF-8 as halves of surrogate pairs.
        if "\0" in argument or argument.encode("utf-8", errors="ignore").decode("utf-8") != argument:
            raise UserError(f"the argument {argument!r} is not UTF-8 text")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tst",
        description="Pre-train language models with Token-Superposition Training.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"tst {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., tuple[dict[str, Any], str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run, takes_keys=False)
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        command.add_argument("--quiet", action="store_true", help="no progress on standard error")
        return command

    add_data_commands(add)
    _add_training(add)
    add_use_commands(add)
    add_bench_command(add)
    add_plan_command(add)
    return parser


def _add_training(add: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add("demo", _demo, "train a small model with and without superposition, and compare")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument("--steps", type=int, help="optimizer steps of each run (default: 4000)")
    demo.add_argument("--seeds", type=int, default=1, help="seeds of each arm (default: %(default)s)")
    demo.add_argument("--jobs", type=int, help="runs at once (default: as the cores bear)")
    _add_budgets(demo)
    _add_sweep(demo)

    overridable = "any key of the configuration can follow, such as --train.learning_rate 1e-3"
    train = add("train", _train, "train one run, or go on with it")
    train.epilog = overridable
    train.set_defaults(takes_keys=True)
    train.add_argument("config", type=Path, metavar="CONFIG.yaml")
    train.add_argument("--out", type=Path, help="run folder (default: runs/ and the configuration's name)")
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
        type=Path,
        metavar="BASELINE",
        help="a study's folder or report.json; or finished plain runs, each with a --guard of its own",
    )
    guard.add_argument("--guard-at", metavar="SHARES", help="where in the recovery (default: 0.1,0.25)")
    guard.add_argument("--if-behind", choices=("stop", "go-on"), help="what to do then (default: go-on)")
    guard.add_argument("--stop-below", type=float, metavar="P", help="probability of being ahead (default: 0.5)")

    compare = add("compare", _compare, "train a baseline and superposition at the same FLOPs, and report")
    compare.epilog = overridable
    compare.set_defaults(takes_keys=True)
    compare.add_argument("config", type=Path, metavar="CONFIG.yaml")
    compare.add_argument("--out", type=Path, help="folder (default: runs/, the configuration's name and -compare)")
    compare.add_argument("--seeds", type=int, default=1, help="seeds of each arm (default: %(default)s)")
    compare.add_argument("--jobs", type=int, help="runs at once (default: as the cores bear)")
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
    command.add_argument("--sweep-seeds", type=int, metavar="N", help="seeds to tune with, of their own (default: 1)")
    command.add_argument(
        "--sweep-budget", type=int, metavar="STEPS", help="tune at this one of --budgets for all (default: at each)"
    )


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.train.config import load_config
    from token_superposition.train.loop import train

    values = _values(overrides)
    if options.deterministic:
        values["train.deterministic"] = True
    if options.fail_on_checkpoint_error:
        values["logging.fail_on_checkpoint_error"] = True
    config = load_config(options.config, values)
    folder = options.out or Path("runs") / options.config.stem
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


def _guarded(options: argparse.Namespace, config: RunConfig, folder: Path) -> GuardedRun | None:
    for name in ("guard_at", "if_behind", "stop_below"):
        if options.guard is None and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --guard, such as --guard runs/shakespeare-compare")
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
    from token_superposition.study.compare import compare, load_study
    from token_superposition.study.sweep import parse_sweep, sweep_words

    study = load_study(options.config, _values(overrides), budgets=options.budgets, equal_data=options.equal_data)
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
    keys = [word for name, text in overrides.items() for word in (f"--{name}", text)]
    words = ["tst", "compare", str(options.config), "--seeds", str(options.seeds), "--out", str(folder)]
    words += budget_words(options.budgets, options.equal_data)
    words += [*sweep_words(options.sweep, num_sweep_seeds, options.sweep_budget), *keys]
    report = compare(
        study,
        folder,
        num_seeds=options.seeds,
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


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take keys of the configuration (`--train.seed 3`, `--train.seed=3`) out of the other arguments."""
    others, overrides = [], {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or "." not in name:
            others.append(word)
            continue
        following = value if equals else next(words, None)
        if following is None:
            raise UserError(f"{name} needs a value")
        overrides[name.removeprefix("--")] = following
    return others, overrides


def _values(overrides: dict[str, str]) -> dict[str, Any]:
    from token_superposition.train.config import parse_override

    return {name: parse_override(text) for name, text in overrides.items()}
