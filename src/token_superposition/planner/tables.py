"""The package's small tables: CSV files whose first lines, after #, say where the figures come from."""

from __future__ import annotations

import csv
from importlib import resources


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table in this room, such as `hardware.csv` or `evidence/own_runs.csv`."""
    text = resources.files("token_superposition.planner").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
