"""The record of superposition in a Trainer's checkpoint, and how a resumed run uses it.

The record is an entry in the checkpoint's `trainer_state.json`. It holds the stages at the start of the run, the values
that determine the order of rows, and the counts of trained data. A resumed run keeps the switch step even if its number
of steps changes: a schedule computed again from a ratio could return to superposition, or leave it too early.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.schedule import Schedule, Stage

logger = logging.getLogger(__name__)

KEY = "token_superposition"  # among the states of callbacks
_STATE = "trainer_state.json"
_FACTS = {
    "rows_per_step": "rows per step (batch size, gradient accumulation, processes)",
    "num_rows": "rows of training data",
    "data_seed": "data_seed",
}


@dataclass(frozen=True)
class Started:
    """The settings and counts of the run of a checkpoint.

    Attributes:
        schedule: stages of the run.
        facts: the values that determine the order of rows, by the keys of `_FACTS`; None for a stream's number of rows.
        positions, raw_tokens: trained so far, over all processes.
    """

    schedule: Schedule
    facts: Mapping[str, int | None]
    positions: int = 0
    raw_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values, which `started` reads."""
        return {
            "stages": self.schedule.as_dicts(),
            "facts": dict(self.facts),
            "positions": self.positions,
            "raw_tokens": self.raw_tokens,
        }


def started(checkpoint: Path) -> Started | None:
    """Read the record of a checkpoint; None if the checkpoint does not exist or has no record.

    Raises:
        UserError: if the state of the checkpoint is damaged.
    """
    path = checkpoint / _STATE
    if not path.is_file():
        return None
    try:
        kept = (json.loads(path.read_text(encoding="utf-8")).get("stateful_callbacks") or {}).get(KEY)
        if kept is None:
            return None
        facts = {name: kept["facts"].get(name) for name in _FACTS}
        return Started(Schedule.from_dicts(kept["stages"]), facts, int(kept["positions"]), int(kept["raw_tokens"]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); use another checkpoint") from None


def continued(before: Started, stage: Stage, wanted: Schedule | None, total_steps: int) -> Schedule:
    """The schedule of a resumed run.

    Args:
        before: the record of the checkpoint.
        stage: the superposition stage of the present arguments; its number of steps is ignored.
        wanted: the schedule of a new run with the present arguments; None if they give no valid schedule.
        total_steps: the present number of steps of the run.

    Raises:
        UserError: if the arguments change the bags, or end the run before the switch.
    """
    first = before.schedule.stages[0]
    if first.bag_size > 1 and replace(first, steps=1) != replace(stage, steps=1):
        asked, was = (f"bag_size {s.bag_size}, mode {s.mode}, slot_weights {s.slot_weights}" for s in (stage, first))
        raise UserError(f"the checkpoint's run was started with {was}, and cannot continue with {asked}")
    switch = before.schedule.switch_step
    try:
        schedule = before.schedule.with_total_steps(total_steps)
    except ValueError:
        raise UserError(
            f"the checkpoint's run leaves superposition after step {switch}, so it cannot end after step "
            f"{total_steps}: use more steps"
        ) from None
    if wanted is None or wanted.switch_step != switch:
        logger.warning(
            "the run leaves superposition after step %d, as set at its start; superposition_ratio and "
            "superposition_steps do not change the switch of a resumed run",
            switch,
        )
    return schedule


def warn_of_other_rows(before: Started, facts: Mapping[str, int | None]) -> None:
    """Warn if the next rows differ from the rows that the run would have read without the interruption."""
    changed = [
        f"{words}: {before.facts[name]} before, now {facts[name]}"
        for name, words in _FACTS.items()
        if before.facts[name] != facts[name]
    ]
    if changed:
        logger.warning(
            "%s: the phase is kept, but the data does not continue at the same row: some rows are read again or never",
            "; ".join(changed),
        )
