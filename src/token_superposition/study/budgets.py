"""Several budgets: the numbers of optimizer steps that every arm is trained for.

The largest one is the reference: what is compared at equal compute is compared there. A configuration says ratios
of `train.total_steps`; at another budget superposition and decay are the same shares of that one. Warm-up is not: it
is as many steps at every budget as at the reference, for only runs that begin alike have steps to share.
"""

from __future__ import annotations

from typing import Any

from token_superposition.errors import UserError
from token_superposition.train.config import RunConfig, parse_config, parse_override

LEAST_STEPS = 10


def parse_budgets(given: Any, place: str) -> tuple[int, ...]:
    """The budgets in rising order.

    Args:
        given: a list, or what the command line has of it, `1000,2000,4000`.
        place: where it was given, for messages.

    Raises:
        UserError: where it is no list of different numbers of steps.
    """
    budgets = given
    if isinstance(given, str):
        try:
            budgets = parse_override(f"[{given}]")
        except UserError:
            budgets = None
    if not isinstance(budgets, list) or not budgets:
        raise UserError(f"{place}: needs numbers of steps with commas between them, such as 1000,2000,4000")
    for number, steps in enumerate(budgets):
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise UserError(f"{place}: {str(steps)[:60]!r} is not a whole number of steps")
        if steps < LEAST_STEPS:
            raise UserError(f"{place}: {steps} steps are too few: a budget has at least {LEAST_STEPS}")
        if steps in budgets[:number]:
            raise UserError(f"{place}: {steps} is there twice; give it once")
    return tuple(sorted(budgets))


def at_budget(config: RunConfig, total_steps: int, place: str = "budgets") -> RunConfig:
    """A configuration at another number of steps, with the warm-up that it has at its own.

    Args:
        config: at the reference budget.
        total_steps: the other number.
        place: what to name where it does not fit.

    Raises:
        UserError: where warm-up, superposition and decay do not fit into it.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    train = values.setdefault("train", {})
    train.pop("warmup_ratio", None)
    train |= {"total_steps": total_steps, "warmup_steps": config.train.num_warmup_steps}
    return parse_config(values, source=f"{place}: {total_steps} steps")


def budget_words(budgets: str | None, equal_data: bool) -> list[str]:
    """The options as one types them, for the command that a report shows."""
    return [*([] if budgets is None else ["--budgets", budgets]), *(["--equal-data"] if equal_data else [])]
