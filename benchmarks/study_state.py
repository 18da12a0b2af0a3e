"""What `gpu_study.py` finds in its studies' folders, and what of it travels to another machine.

A run is its folder below a study's `runs`. It has ended when it has its result, or has diverged; from then on it needs
no checkpoint, and is some ten kilobytes of metrics that can be carried anywhere.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError, one_line
from token_superposition.files import atomic_file
from token_superposition.training.metrics import read_metrics

STATE = "state.tar.gz"
ENDED = ("summary.json", "diverged.json")  # a run with one of these is not trained any more


def run_folders(study: Path) -> list[Path]:
    """Folders of the study's runs that have begun."""
    return sorted(file.parent for file in study.glob("runs/**/metrics.jsonl"))


def has_ended(run: Path) -> bool:
    """Whether it is not trained any more."""
    return any((run / name).exists() for name in ENDED)


def progress(study: Path, run: Path) -> dict[str, Any]:
    """How far a run is, and with what."""
    found: dict[str, Any] = {"run": str(run.relative_to(study / "runs")), "state": "unfinished"}
    lines = list(read_metrics(run / "metrics.jsonl"))
    if (run / "summary.json").exists():
        found["state"] = "finished"
        lines.append(json.loads((run / "summary.json").read_text()))
    elif has_ended(run):
        found["state"] = "diverged"
    keys = ("step", "phase", "loss", "validation_loss", "final_validation_loss", "bits_per_byte", "raw_tokens")
    more = ("unique_raw_tokens", "positions_per_second", "mfu", "wall_seconds", "peak_memory_bytes", "parameters")
    for line in lines:
        found |= {key: line[key] for key in keys + more if key in line}
    return found


def without_curves(value: Any) -> Any:
    """A report that is short enough to print."""
    if isinstance(value, dict):
        return {key: without_curves(each) for key, each in value.items() if key != "curve"}
    return [without_curves(each) for each in value] if isinstance(value, list) else value


def read_report(study: Path) -> dict[str, Any] | None:
    """The study's report; None before there is one."""
    file = study / "report.json"
    return json.loads(file.read_text()) if file.exists() else None


def is_reported(study: Path, num_seeds: int, *, tuned: bool) -> bool:
    """Whether the study's report is of so many seeds already."""
    report = read_report(study)
    return report is not None and len(report["arms"][0]["seeds"]) >= num_seeds and ("sweep" in report) == tuned


def tidy(studies: Path) -> None:
    """Remove the checkpoints of runs that have ended."""
    for study in studies.glob("*/"):
        for run in filter(has_ended, run_folders(study)):
            shutil.rmtree(run / "checkpoints", ignore_errors=True)


def pack(out: Path) -> Path:
    """Write what is carried to another machine."""
    with atomic_file(out / STATE) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for study in sorted((out / "studies").glob("*/")):
            reports = [study / name for name in ("report.json", "report.html")]
            for path in [*filter(Path.exists, reports), *filter(has_ended, run_folders(study))]:
                archive.add(path, path.relative_to(out))
    return out / STATE


def unpack(archive: Path, out: Path) -> None:
    """Take over an earlier call's finished runs and reports; what is there already stays.

    Raises:
        UserError: where it is no such archive.
    """
    with tempfile.TemporaryDirectory(dir=out) as name:
        place = Path(name)
        try:
            with tarfile.open(archive) as file:
                file.extractall(place, filter="data")
        except (OSError, tarfile.TarError, EOFError) as error:
            raise UserError(f"--from: {archive} is no {STATE} of an earlier call ({one_line(str(error))})") from None
        for study in place.glob("studies/*/"):
            for path in [*run_folders(study), *study.glob("report.*")]:
                target = out / path.relative_to(place)
                if target.is_dir() and not has_ended(target):
                    shutil.rmtree(target)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
