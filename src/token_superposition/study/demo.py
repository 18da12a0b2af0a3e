"""`tst demo`: prepare and compare with defaults that show the method in about ten minutes on two cores."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError
from token_superposition.study.study_config import LEAST_STEPS, budget_words, make_study
from token_superposition.study.study_options import check_request
from token_superposition.study.sweep import parse_sweep, sweep_words

if TYPE_CHECKING:
    from token_superposition.study.report.model import Report


def demo_config() -> dict[str, Any]:
    """The demo's configuration, without its data."""
    text = resources.files("token_superposition.study").joinpath("demo.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def demo(
    folder: Path,
    *,
    steps: int | None = None,
    budgets: str | None = None,
    equal_data: bool = False,
    num_seeds: int = 1,
    sweep: Sequence[str] = (),
    num_sweep_seeds: int = 1,
    jobs: int | None = None,
    quiet: bool = False,
) -> Report:
    """Prepare the Python source on this machine, train both arms on it, and report into `folder`.

    Args:
        folder: where data, runs and report go.
        steps: optimizer steps of each run; the demo's own without it.
        budgets: several lengths in its place, such as `1000,2000`.
        equal_data: train the baseline on the raw tokens that superposition read too.
        sweep, num_sweep_seeds: keys with values to try first, as in `parse_sweep`, and the number of seeds.
        num_seeds, jobs, quiet: as in `compare`.

    Returns:
        The report, which is also in the folder.
    """
    if steps is not None and steps < LEAST_STEPS:
        raise UserError(f"--steps is at least {LEAST_STEPS}, not {steps}")
    if steps is not None and budgets is not None:
        raise UserError("--steps and --budgets both say how long the runs are; give one of the two")
    check_request(folder, num_seeds, jobs)
    data = folder / "data"
    overrides: dict[str, Any] = {"data.path": str(data)}
    if steps is not None:
        overrides["train.total_steps"] = steps
    study = make_study(demo_config(), overrides, source="demo.yaml", budgets=budgets, equal_data=equal_data)
    tried = None
    if sweep:
        tried = parse_sweep(sweep, study.arms, num_seeds=num_sweep_seeds, given=study.given)
    from token_superposition.study.compare import compare  # brings torch: what is asked for is checked first

    prepare(["python"], tokenizer="bytes", out=data, quiet=quiet)
    words = ["tst", "demo", "--seeds", str(num_seeds), "--out", str(folder)]
    words += [*budget_words(budgets, equal_data), *sweep_words(sweep, num_sweep_seeds)]
    command = shlex.join(words if steps is None else [*words, "--steps", str(steps)])
    return compare(study, folder, num_seeds=num_seeds, sweep=tried, jobs=jobs, quiet=quiet, command=command)
