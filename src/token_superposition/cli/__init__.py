"""The command line `tst`.

Each command imports its modules when it runs, so that `tst --help` answers at once. Results go to standard output.
With `--json` the last line of standard output is one JSON object. All other text goes to standard error.

Exit codes:

    0    the command is done
    1    any other failure
    2    the user's input is wrong, or the machine refuses, such as a full disk; one line reports the error
    130  interrupted, after a checkpoint was written; 0 under torchrun, which would restart the processes otherwise

Under torchrun, rank 0 prints the results and the errors of all ranks. An error that only one rank knows is printed by
this rank, with its number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from token_superposition import __version__
from token_superposition.cli.bench_command import add_bench_command
from token_superposition.cli.plan_command import add_plan_command
from token_superposition.cli.prepare_command import add_data_commands
from token_superposition.cli.study_commands import add_study_commands
from token_superposition.cli.use_commands import add_use_commands
from token_superposition.errors import RunError, UserError, did_you_mean, machine_trouble, one_line, shortened
from token_superposition.interrupts import StoppedError, stop_requests
from token_superposition.output_streams import losable_stderr, open_standard_streams, to_null_device
from token_superposition.torchrun import INTERRUPTED, launched_by_torchrun, torchrun_rank

_EPILOG = "Documentation: the README and docs/ of the repository. Paper: arXiv 2605.06546."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tst` with the given arguments, or with those of the process if none are given; returns the exit code."""
    open_standard_streams()
    with losable_stderr(), stop_requests(ends_process=arguments is None) as requests:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
            requests.over = True
            return code
        except KeyboardInterrupt as error:
            requests.over = True
            if isinstance(error, StoppedError) and launched_by_torchrun():
                return 0
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        finally:
            try:
                sys.stdout.flush()
            except OSError:
                to_null_device(sys.stdout)


def _run(arguments: Sequence[str]) -> int:
    try:
        words, overrides = _split(_as_text(arguments))
        options, unknown = _parser().parse_known_args(words)
        if unknown:
            raise UserError(_unknown_words(options.parser, unknown))
        command: Callable[[argparse.Namespace, dict[str, str]], tuple[dict[str, Any], str]] = options.run
        if launched_by_torchrun() and options.parser.prog != "tst train":
            raise UserError(f"{options.parser.prog} uses one process: start it without torchrun")
        options.words = list(arguments)
        if overrides and not options.takes_keys:
            raise UserError(
                f"--{next(iter(overrides))}: {options.parser.prog} takes no configuration keys "
                f"(see {options.parser.prog} --help)"
            )
        result, text = command(options, overrides)
        if torchrun_rank() == 0:
            _print(json.dumps(result) if options.json else text)
    except UserError as error:
        return _failed(error, str(error), 2)
    except RunError as error:
        return _failed(error, str(error), 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, closed the pipe before the result was written
        return 1
    except Exception as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        return _failed(error, trouble, 2)
    return 0


def _print(text: str) -> None:
    """Print the result to standard output, even if its encoding lacks some of the characters.

    A closed pipe is not an error here, because the command has done its work.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        to_null_device(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return
        error.filename = "standard output"
        raise


def _failed(error: Exception, text: str, code: int) -> int:
    """Print an error once: rank 0 prints what all ranks know, and what it knows alone."""
    rank, known_to_all = torchrun_rank(), getattr(error, "of_all_ranks", False)
    if rank == 0 or not known_to_all:
        print(f"error: {'' if rank == 0 else f'rank {rank}: '}{one_line(text)}", file=sys.stderr)
    return code


def _as_text(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, after a check that a file or a message can hold each of them; UserError otherwise."""
    for argument in arguments:
        # Python represents bytes of an argument that are not UTF-8 as halves of surrogate pairs.
        if "\0" in argument or argument.encode("utf-8", errors="ignore").decode("utf-8") != argument:
            raise UserError(f"the argument {shortened(ascii(argument))} is not UTF-8 text")
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
        command.set_defaults(run=run, takes_keys=False, parser=command)
        command.add_argument(
            "--json", action="store_true", help="print the result as one JSON object on standard output"
        )
        command.add_argument("--quiet", action="store_true", help="print no progress on standard error")
        return command

    add_data_commands(add)
    add_study_commands(add)
    add_use_commands(add)
    add_bench_command(add)
    add_plan_command(add)
    return parser


def _unknown_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """The error message for arguments that a command does not take; it names the most similar option."""
    known = [name for action in parser._actions for name in action.option_strings]
    first = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    near = did_you_mean(first, known) if first.startswith("-") else ""
    kind = "no such option" if first.startswith("-") else "one argument too many"
    return f"{parser.prog}: {shortened(first)}: {kind}{near} (see {parser.prog} --help)"


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate configuration keys (`--train.seed 3`, `--train.seed=3`) from the other arguments."""
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
