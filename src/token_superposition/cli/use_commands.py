"""The commands that use a trained model: `tst eval`, `tst generate` and `tst export`.

`tst --help` imports this module, so slow imports happen only when a command runs.
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
    """Declare the commands; `add` makes a parser from a command's name, function and help text."""
    evaluate, generate, export = _add_eval(add), _add_generate(add), _add_export(add)
    for command in (evaluate, generate, export):
        command.add_argument(
            "--allow-superposed",
            action="store_true",
            help="accept a model from the superposition phase, which still predicts bags",
        )
    for command in (evaluate, generate):
        command.add_argument(
            "--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)"
        )
        command.add_argument(
            "--trust-remote-code", action="store_true", help="run Python code that the model folder contains"
        )


def _add_eval(add: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    evaluate = add("eval", _eval, "evaluate a model on validation sets and on tasks")
    evaluate.add_argument("model", type=path, metavar="MODEL", help="a run folder or a Hugging Face model folder")
    evaluate.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="validation sets: [NAME=]PATH of a dataset folder, a text file, a folder of texts, .jsonl and others",
    )
    evaluate.add_argument(
        "--split", default="validation", help="split of the dataset folders to use (default: %(default)s)"
    )
    evaluate.add_argument(
        "--max-tokens", type=whole_number, default=262_144, help="number of tokens per set (default: %(default)s)"
    )
    evaluate.add_argument("--sequence-length", type=whole_number, help="positions per row (default: as in training)")
    evaluate.add_argument("--batch-size", type=whole_number, help="rows per forward pass (default: as in training)")
    evaluate.add_argument(
        "--text-key", default="text", help="column that holds the text in .jsonl and .parquet (default: %(default)s)"
    )
    evaluate.add_argument(
        "--tasks", type=_names, default=[], help="tasks of lm-evaluation-harness, such as arc_easy,piqa"
    )
    evaluate.add_argument("--include-path", type=path, help="folder with your own task files")
    return evaluate


def _add_generate(add: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    generate = add("generate", _generate, "generate text that continues a prompt")
    generate.add_argument("model", type=path, metavar="MODEL", help="a run folder or a Hugging Face model folder")
    generate.add_argument(
        "--prompt", required=True, metavar="TEXT", help="text to continue; - reads it from standard input"
    )
    generate.add_argument(
        "--max-new-tokens", type=integer, default=256, help="largest number of new tokens (default: %(default)s)"
    )
    generate.add_argument(
        "--temperature",
        type=number,
        default=0.8,
        help="sampling temperature; 0 always takes the most probable token (default: %(default)s)",
    )
    generate.add_argument(
        "--top-p",
        type=number,
        default=1.0,
        help="sample from the most probable tokens whose probabilities sum to this (default: %(default)s)",
    )
    generate.add_argument(
        "--seed", type=seed, default=0, help="seed of the sampling; equal seeds give equal text (default: %(default)s)"
    )
    return generate


def _add_export(add: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    export = add("export", _export, "write the model of a run as a Hugging Face model folder")
    export.add_argument("model", type=path, metavar="RUN", help="run folder")
    export.add_argument("out", type=path, metavar="OUT", help="folder to write")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="data type of the weights (default: %(default)s)",
    )
    export.add_argument("--max-shard-size", default="5GB", help="largest size of a weight file (default: %(default)s)")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    return export


def _eval(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    from token_superposition.evaluation.evaluation_options import check_model, check_sets, parse_sets

    sets = parse_sets(options.data)
    if not sets and not options.tasks:
        raise UserError("nothing to evaluate: give validation sets, or tasks with --tasks (see tst eval --help)")
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
    from token_superposition.evaluation.terminal import read_prompt, write_piece

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
    return result, ""  # the text was printed while it was generated; this ends its line


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
    """The names in a list that is separated by commas."""
    return [name for word in text.split(",") if (name := word.strip())]
