"""Tasks of lm-evaluation-harness on a loaded model (extra `eval`).

The harness provides the tasks and downloads their data. It gets the unchanged model and tokenizer. This package does
not repeat the settings of the harness: the file of a task determines the evaluation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from token_superposition.errors import UserError, did_you_mean
from token_superposition.evaluation.load import UsableModel

_ROWS = 16
_SEED = 1234  # default of the harness, for few-shot examples and for tasks that sample
_BOOTSTRAPS = 1000


def load_tasks(names: Sequence[str], *, include_path: Path | None = None, quiet: bool = False) -> Any:
    """Load tasks of the harness and their data; separate from `run_tasks`, so that errors appear early.

    Args:
        names: names of tasks, groups of tasks, or tags.
        include_path: a folder with the user's own task files (YAML).
        quiet: show no progress bars.

    Raises:
        UserError: if the extra is missing, or if a task is unknown or cannot be loaded.
    """
    if any(importlib.util.find_spec(module) is None for module in ("lm_eval", "accelerate")):
        raise UserError("--tasks: needs an extra: pip install 'token-superposition[eval]'")
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path: {include_path} is not a folder")
    with _without_remarks(quiet):
        from lm_eval.tasks import TaskManager

        try:
            manager = TaskManager(include_path=None if include_path is None else str(include_path))
            unknown = [name for name in names if name not in manager.all_tasks]
            found = None if unknown else manager.load(list(names))
        except Exception as error:  # an invalid task file or missing data can raise any exception
            line = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--tasks {','.join(names)}: cannot be loaded: {line}") from error
    if found is None:
        near = did_you_mean(unknown[0], manager.all_tasks)
        raise UserError(f"--tasks: lm-evaluation-harness has no task {unknown[0]!r}{near}")
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"--tasks: {name} runs code that the model generates; use lm_eval directly on an exported folder"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return found


def run_tasks(
    loaded: UsableModel, found: Any, *, batch_size: int | None = None, quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on tasks that `load_tasks` found.

    Returns:
        For each task, and for each group that the harness aggregates: the metrics and their standard errors under the
        names of the harness, and `samples`, the number of samples.
    """
    with _without_remarks(quiet):
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            backend="causal",
            batch_size=batch_size or _ROWS,
            max_length=loaded.context_length,
        )
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        with loaded.autocast():
            results = evaluate(harness, found, log_samples=False, bootstrap_iters=_BOOTSTRAPS)
    scores: dict[str, Any] = {**results["results"], **results.get("groups", {})}
    counts = results["n-samples"]
    return {
        name: {**_metrics(values), "samples": counts[name]["effective"] if name in counts else values.get("sample_len")}
        for name, values in scores.items()
    }


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The metrics, with the name `acc,none` changed to `acc`; any other filter stays in the name."""
    return {
        name.removesuffix(",none"): value
        for name, value in values.items()
        if "," in name and isinstance(value, int | float)
    }


@contextlib.contextmanager
def _without_remarks(quiet: bool) -> Iterator[None]:
    """Suppress the harness's messages about defaults, and its progress bars unless standard error is a terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if quiet or not sys.stderr.isatty():
            with contextlib.redirect_stderr(io.StringIO()):
                yield
        else:
            yield
    finally:
        logger.setLevel(level)
