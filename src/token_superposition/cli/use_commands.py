"""The commands of this room: `tst eval`, `tst generate`, `tst export`.

This module is read for `tst --help`, so what is heavy is imported when a command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from token_superposition.arguments import device, integer, number, path, seed, whole_number
from token_superposition.errors import UserError

if TYPE_CHECKING:
    from token_superposition.evaluation.load import UsableModel


def add_use_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `add` makes the parser of a command from its name, function and text."""
    evaluate = add("eval", _eval, "score a model on validation sets and on tasks")
    evaluate.add_argument("model", type=path, metavar="MODEL", help="a run, or a Hugging Face folder")
    evaluate.add_argument(
        "data", nargs="*", metavar="DATA", help="[name=]prepared folder, text file, folder, .jsonl ..."
    )
    evaluate.add_argument("--split", default="validation", help="of prepared folders (default: %(default)s)")
    evaluate.add_argument("--max-tokens", type=whole_number, default=262_144, help="of each set (default: %(default)s)")
    evaluate.add_argument("--sequence-length", type=whole_number, help="positions a row (default: as in training)")
    evaluate.add_argument("--batch-size", type=whole_number, help="rows a forward (default: as in training)")
    evaluate.add_argument("--text-key", default="text", help="column of .jsonl and .parquet (default: %(default)s)")
    evaluate.add_argument("--tasks", type=_names, default=[], help="of lm-evaluation-harness, such as arc_easy,piqa")
    evaluate.add_argument("--include-path", type=path, help="folder of task files of your own")

    generate = add("generate", _generate, "continue a text")
    generate.add_argument("model", type=path, metavar="MODEL", help="a run, or a Hugging Face folder")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue; - reads standard input")
    generate.add_argument("--max-new-tokens", type=integer, default=256, help="(default: %(default)s)")
    generate.add_argument("--temperature", type=number, default=0.8, help="0: the likeliest (default: %(default)s)")
    generate.add_argument("--top-p", type=number, default=1.0, help="(default: %(default)s)")
    generate.add_argument("--seed", type=seed, default=0, help="the same gives the same text (default: %(default)s)")

    export = add("export", _export, "write a run as a Hugging Face folder")
    export.add_argument("model", type=path, metavar="RUN", help="the run's folder")
    export.add_argument("out", type=path, metavar="OUT", help="folder to write")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    export.add_argument("--max-shard-size", default="5GB", help="of a weight file (default: %(default)s)")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")

    for command in (evaluate, generate, export):
        command.add_argument("--allow-superposed", action="store_true", help="even from the superposition phase")
    for command in (evaluate, generate):
        command.add_argument(
            "--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)"
        )
        command.add_argument("--trust-remote-code", action="store_true", help="run code that lies in the folder")


def _eval(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.evaluation.evaluation_options import check_model, check_sets, parse_sets

    sets = parse_sets(options.data)
    if not sets and not options.tasks:
        raise UserError("nothing to score: name validation sets, or tasks with --tasks (see tst eval --help)")
    check_model(options.model)
    check_sets(sets, options.split)
    if options.include_path is not None and not options.include_path.is_dir():
        raise UserError(f"--include-path: {options.include_path} is not a folder")
    from token_superposition.evaluation.evaluate import evaluate, lines_of
    from token_superposition.evaluation.harness import load_tasks, run_tasks

    loaded = _load(options)
    found = None
    if options.tasks:
        found = load_tasks(options.tasks, include_path=options.include_path, quiet=options.quiet)
    scored = evaluate(
        loaded,
        sets,
        split=options.split,
        max_tokens=options.max_tokens,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        text_key=options.text_key,
    )
    tasks = {}
    if found is not None:
        tasks = run_tasks(loaded, found, batch_size=options.batch_size, quiet=options.quiet)
    step = loaded.origin.step if loaded.origin else None
    result = {"model": str(options.model), "step": step, "sets": scored, "tasks": tasks, "warnings": loaded.warnings}
    return result, "\n".join(lines_of(scored, tasks))


def _generate(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.evaluation.evaluation_options import check_model, check_sampling
    from token_superposition.evaluation.generate import read_prompt, write_piece

    check_sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    check_model(options.model)
    prompt = read_prompt() if options.prompt == "-" else options.prompt
    from token_superposition.evaluation.generate import generate

    loaded = _load(options)
    result = generate(
        loaded,
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        write=None if options.json else write_piece,
    )
    _warn(result["warnings"][len(loaded.warnings) :])
    return result, ""  # the text is there already; this ends its line


def _export(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.evaluation.evaluation_options import check_export

    check_export(options.model, options.out, max_shard_size=options.max_shard_size, overwrite=options.overwrite)
    from token_superposition.evaluation.export import export

    result = export(
        options.model,
        options.out,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        allow_superposed=options.allow_superposed,
        overwrite=options.overwrite,
    )
    _warn(result["warnings"])
    files, megabytes = len(result["files"]), result["bytes"] / 1e6
    step = f"step {result['step']:,} of {result['total_steps']:,}"
    return result, f"{step}, {files} files, {megabytes:.1f} MB, {result['dtype']}\nexported to {options.out}"


def _load(options: argparse.Namespace) -> UsableModel:
    from token_superposition.evaluation.load import load_model
    from token_superposition.models.device import resolve_device

    loaded = load_model(
        options.model,
        device=resolve_device(options.device, "--device"),
        allow_superposed=options.allow_superposed,
        trust_remote_code=options.trust_remote_code,
    )
    _warn(loaded.warnings)
    return loaded


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _names(text: str) -> list[str]:
    """Names between commas."""
    return [name for word in text.split(",") if (name := word.strip())]
