"""Reads and writes the files of a report: `report.json`, and `report.html`, the page made from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from token_superposition.errors import UserError
from token_superposition.files import read_object, write_json, write_text
from token_superposition.study.report.model import SCHEMA_VERSION, Report
from token_superposition.study.report.page import render_html

_READABLE = (1, SCHEMA_VERSION)
_FIX = "start the command of the study again, which writes the report anew from its finished runs"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report.as_dict())
    write_text(folder / "report.html", render_html(report))


def parse_report(values: Mapping[str, Any], source: str) -> Report:
    """The report from the values of a `report.json`.

    Args:
        values: the file's content.
        source: the file, for messages.

    Raises:
        UserError: if the values are not those of a report that this version reads.
    """
    version = values.get("schema_version")
    if version not in _READABLE:
        listed = " and ".join(map(str, _READABLE))
        raise UserError(f"{source}: schema_version: {version!r} is not one of those read here ({listed}); {_FIX}")
    try:
        report = Report.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: {key}: {first['msg'][:1].lower()}{first['msg'][1:]}; {_FIX}") from None
    names = [arm.name for arm in report.arms]
    if report.equal_flops.arm not in names[1:]:
        raise UserError(f"{source}: equal_flops.arm: {report.equal_flops.arm!r} is not an arm of the report; {_FIX}")
    return report


def read_report(file: Path) -> Report:
    """The report in a `report.json`.

    Raises:
        UserError: if it cannot be read, or was not written by this version or 0.1.
        FileNotFoundError: if it does not exist.
    """
    return parse_report(read_object(file, _FIX), str(file))
