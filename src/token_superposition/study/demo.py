"""`tst demo`: prepare and compare with defaults that show the method in about ten minutes on two cores."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError
from token_superposition.study.compare import check_request, compare, make_study


def demo_config() -> dict[str, Any]:
    """The demo's configuration, without its data."""
    text = resources.files("token_superposition.study").joinpath("demo.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def demo(
    folder: Path,
    *,
    steps: int | None = None,
    num_seeds: int = 1,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prepare the Python source on this machine, train both arms on it, and report into `folder`.

    Args:
        folder: where data, runs and report go.
        steps: optimizer steps of each run; the demo's own without it.
        num_seeds, jobs, quiet: as in `compare`.

    Returns:
        The report, as in `report.json`.
    """
    if steps is not None and steps < 10:
        raise UserError(f"--steps is at least 10, not {steps}")
    check_request(folder, num_seeds, jobs)
    data = folder / "data"
    overrides: dict[str, Any] = {"data.path": str(data)}
    if steps is not None:
        overrides["train.total_steps"] = steps
    study = make_study(demo_config(), overrides, source="demo.yaml")  # before the minutes that preparing may take
    prepare(["python"], tokenizer="bytes", out=data, quiet=quiet)
    command = f"tst demo --seeds {num_seeds} --out {folder}" + ("" if steps is None else f" --steps {steps}")
    return compare(study, folder, num_seeds=num_seeds, jobs=jobs, quiet=quiet, command=command)
