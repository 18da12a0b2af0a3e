"""`--out`: the plan as a run's YAML, which `tst train` takes as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError
from token_superposition.files import write_text

_MARK = "# Written by tst plan"


def check_place(path: Path) -> None:
    """Refuse a place that holds anything but an earlier plan; UserError says which."""
    if path.is_dir():
        raise UserError(f"--out: {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--out: {path}: there is no folder {path.parent}")
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.read(len(_MARK))
    if first != _MARK.encode():
        raise UserError(f"--out: {path}: is there, and no plan of ours; name another file, or move it away")


def write_run(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan's configuration, whole or not at all; what it rests on stands above it as comments."""
    lines = [f"{_MARK} for {plan['model']['parameters']:,} parameters. Verdict: {plan['verdict']}."]
    lines += [f"# {text[:1].upper()}{text[1:]}." for text in [*plan["reasons"], *_assumed(plan)]]
    text = yaml.safe_dump(plan["config"], sort_keys=False, allow_unicode=True)
    write_text(path, "\n".join(lines) + "\n" + text)


def _assumed(plan: dict[str, Any]) -> list[str]:
    return [f"assumed: {text}" for text in plan["assumptions"]]
