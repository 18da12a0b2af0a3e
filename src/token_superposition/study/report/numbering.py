"""The numbers of the page's figures and tables: in the order in which they stand, those that are there."""

from __future__ import annotations

import math
from typing import Literal

from token_superposition.study.report.budget_facts import has_budgets
from token_superposition.study.report.facts import Report, differences, num_seeds

Figure = Literal["budgets", "compute", "data", "seeds", "sweep"]
Table = Literal["speedup", "budgets", "arms", "seeds", "sweep"]


def figure_number(report: Report, figure: Figure) -> int:
    """The number of a figure that is on the page."""
    several = any(len(r["deltas"]) > 1 and all(map(math.isfinite, r["deltas"])) for r in differences(report))
    there = {"budgets": has_budgets(report), "compute": True, "data": True, "seeds": several, "sweep": True}
    return _place(there, figure)


def table_number(report: Report, table: Table) -> int:
    """The number of a table that is on the page."""
    budgets = has_budgets(report)
    speedup = budgets and bool(report.get("iso_loss_all"))
    there = {"speedup": speedup, "budgets": budgets, "arms": True, "seeds": num_seeds(report) > 1, "sweep": True}
    return _place(there, table)


def _place(there: dict[str, bool], name: str) -> int:
    return [key for key, is_there in there.items() if is_there].index(name) + 1
