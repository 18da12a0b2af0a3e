"""The command `tst bench`.

`tst --help` imports this module, so slow imports happen only when the command runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from token_superposition.arguments import number, path, whole_number
from token_superposition.errors import UserError

if TYPE_CHECKING:
    from token_superposition.bench.bench_progress import BenchProgress
    from token_superposition.bench.bench_run import BenchRun

_SECONDS = 60.0
_MOST_STEPS = 100_000


def add_bench_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command; `add` makes a parser from a command's name, function and help text."""
    bench = add("bench", _bench, "measure the time and memory of a training step at each bag size on this machine")
    bench.epilog = "All configuration keys can follow, such as --train.batch_size 8 (see tst train --help)."
    bench.set_defaults(takes_keys=True)
    bench.add_argument(
        "config", type=path, nargs="?", metavar="CONFIG.yaml", help="a run's configuration (default: the demo's)"
    )
    bench.add_argument(
        "--bag-sizes",
        type=_bag_sizes,
        default=[1, 2, 4, 8, 16],
        metavar="SIZES",
        help="bag sizes to measure, separated by commas (default: 1,2,4,8,16)",
    )
    length = bench.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole_number, metavar="N", help="number of timed steps per bag size")
    length.add_argument(
        "--seconds", type=_seconds, metavar="S", help="measure for about this many seconds (default: 60)"
    )
    bench.add_argument(
        "--find-batch",
        action="store_true",
        help="find the largest train.micro_batch_size that fits in memory, without timing",
    )
    bench.add_argument("--out", type=path, metavar="FILE.json", help="file to write the result to")


def _bench(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.bench.bench_options import config_of
    from token_superposition.files import write_json
    from token_superposition.yaml_files import parse_overrides

    _check(options)
    keys = parse_overrides(overrides)
    config_of(options.config, keys)
    from token_superposition.bench.bench_progress import BenchProgress
    from token_superposition.bench.bench_run import opened
    from token_superposition.bench.step_table import batch_lines, table

    with opened(options.config, keys, options.bag_sizes) as subject, BenchProgress(quiet=options.quiet) as progress:
        if subject.random_data:
            progress.say(subject.random_data)
        if options.find_batch:
            from token_superposition.bench.find_batch import find_batch

            result = find_batch(subject, progress)
        else:
            result = _measure(subject, progress, options.steps, options.seconds)
    if options.out:
        write_json(options.out, result)
    text = batch_lines(result) if options.find_batch else table(result)
    return result, f"{text}\nresult in {options.out}" if options.out else text


def _measure(subject: BenchRun, progress: BenchProgress, steps: int | None, seconds: float | None) -> dict[str, Any]:
    """Measure peak, step times and memory, in an order in which no measurement disturbs another."""
    import torch

    from token_superposition.bench.memory import measure_memory, memory_basis
    from token_superposition.bench.rounds import matrix_peak_of_sizes, measure
    from token_superposition.bench.step_table import device_name, reading, row_of

    train, schedule = subject.config.train, subject.schedule
    trainer = subject.trainer()  # raises early if the run is impossible; sets the number of threads
    peaks = [matrix_peak_of_sizes(trainer.device, trainer.dtype)]
    expected = trainer.flops_per_position * train.positions_per_step / peaks[0][0]
    if expected > _SECONDS:
        progress.say(
            f"warning: a step of {train.positions_per_step:,} positions takes over {expected:,.0f} s on this machine; "
            "a smaller --train.batch_size gives the same ratios in less time"
        )
    rounds = measure(trainer, progress, steps=steps, seconds=_SECONDS if seconds is None else seconds)
    peaks.append(matrix_peak_of_sizes(trainer.device, trainer.dtype))
    peak, peak_size = max(peaks)
    memory = {stage.bag_size: rounds.peak_bytes.get(stage.bag_size) for stage in schedule.stages}
    if trainer.device.type == "cpu":
        progress.phase("measuring memory", len(memory))
        for bag_size in memory:
            memory[bag_size] = measure_memory(
                subject, bag_size=bag_size, rows=train.micro_batch_size or train.batch_size
            )
            progress.advance()
    turns = rounds.turns[schedule.stages[0].bag_size]
    result: dict[str, Any] = {
        "architecture": subject.config.model.architecture,
        "parameters": trainer.num_parameters,
        "device": str(trainer.device),
        "device_name": device_name(trainer.device),
        "dtype": train.dtype,
        "num_threads": train.num_threads,
        "torch": torch.__version__,
        "sequence_length": train.sequence_length,
        "batch_size": train.batch_size,
        "micro_batch_size": train.micro_batch_size,
        "positions_per_step": train.positions_per_step,
        "flops_per_position": trainer.flops_per_position,
        "peak_flops_per_second": peak,
        "peak_matrix_size": peak_size,
        "random_data": subject.random_data,
        "memory_basis": memory_basis(trainer.device.type),
        "rounds": len(turns),
        "steps_per_round": turns[0].steps,
        "bag_sizes": [
            row_of(
                stage,
                rounds,
                positions_per_step=train.positions_per_step,
                flops_per_position=trainer.flops_per_position,
                peak_flops_per_second=peak,
                peak_memory_bytes=memory[stage.bag_size],
            )
            for stage in schedule.stages
        ],
    }
    return {**result, "reading": reading(result)}


def _check(options: argparse.Namespace) -> None:
    if options.find_batch and (options.steps or options.seconds):
        raise UserError("--find-batch measures memory, not time: remove --steps and --seconds")
    if options.steps and options.steps > _MOST_STEPS:
        raise UserError(f"--steps: at most {_MOST_STEPS:,}, not {options.steps:,}")
    if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
        what = "is a folder; name a file" if options.out.is_dir() else f"there is no folder {options.out.parent}"
        raise UserError(f"--out: {options.out}: {what}")
    if options.out:
        try:  # report this before a minute of measuring, not after it
            with tempfile.TemporaryFile(dir=options.out.parent):
                pass
        except OSError as error:
            raise UserError(f"--out: {options.out}: cannot be written ({error.strerror}); name another file") from None


def _bag_sizes(text: str) -> list[int]:
    """Parse whole numbers separated by commas; none may occur twice."""
    sizes = []
    for word in text.split(","):
        if not (word.strip().isascii() and word.strip().isdecimal() and 0 < len(word) < 10 and int(word) > 0):
            raise argparse.ArgumentTypeError(f"{word.strip()!r} is not a bag size; give whole numbers, such as 1,2,4")
        sizes.append(int(word))
    if len(set(sizes)) < len(sizes):
        raise argparse.ArgumentTypeError(f"{text!r} contains a bag size twice; give each bag size once")
    return sorted(sizes)


def _seconds(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a time above 0 is needed, not {text}")
    return value
