"""What a Trainer's checkpoint says of its superposition, and what a run that is resumed makes of it.

It is an entry in the checkpoint's `trainer_state.json`: the stages as the run was started with, what the order of its
rows depends on, and the counts of what was trained. A run that is resumed keeps the switch, however many steps it is
given now: a schedule derived again from a ratio would go back into superposition, or leave it too early.
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

KEY = "token_superposition"  # beside the states of callbacks
_STATE = "trainer_state.json"
_FACTS = {
    "rows_per_step": "rows a step (batch size, accumulation, processes)",
    "num_rows": "rows of training data",
    "data_seed": "data_seed",
}


@dataclass(frozen=True)
class Started:
    """How the run of a checkpoint was started.

    Attributes:
        schedule: its stages.
        facts: what the order of its rows depends on, by the keys of `_FACTS`; None for a stream's number of rows.
        positions, raw_tokens: trained so far, over all processes.
    """

    schedule: Schedule
    facts: Mapping[str, int | None]
    positions: int = 0
    raw_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `started` reads it back."""
        return {
            "stages": self.schedule.as_dicts(),
            "facts": dict(self.facts),
            "positions": self.positions,
            "raw_tokens": self.raw_tokens,
        }


def started(checkpoint: Path) -> Started | None:
    """How the run of a checkpoint was started; None where the checkpoint does not say, or is not there.

    Raises:
        UserError: where the checkpoint's state is damaged.
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
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); take another checkpoint") from None


def continued(before: Started, stage: Stage, wanted: Schedule | None, total_steps: int) -> Schedule:
    """The schedule of a run that is resumed.

    Args:
        before: what the checkpoint says.
        stage: how the arguments now ask for superposition; its number of steps does not count.
        wanted: the schedule that a new run with the arguments would have; None where there is none.
        total_steps: of the run now.

    Raises:
        UserError: where the arguments ask for other bags, or for an end before the switch.
    """
    first = before.schedule.stages[0]
    if first.bag_size > 1 and replace(first, steps=1) != replace(stage, steps=1):
        asked, was = (f"bag_size {s.bag_size}, mode {s.mode}, slot_weights {s.slot_weights}" for s in (stage, first))
        raise UserError(f"the checkpoint's run was started with {was}, and cannot go on with {asked}: give the first")
    switch = before.schedule.switch_step
    try:
        schedule = before.schedule.with_total_steps(total_steps)
    except ValueError:
        raise UserError(
            f"the checkpoint's run leaves superposition after step {switch}, so it cannot end after step "
            f"{total_steps}: give it more steps"
        ) from None
    if wanted is None or wanted.switch_step != switch:
        logger.warning(
            "the run leaves superposition after step %d, as it was started; superposition_ratio and "
            "superposition_steps do not move this switch when a run is resumed",
            switch,
        )
    return schedule


def warn_of_other_rows(before: Started, facts: Mapping[str, int | None]) -> None:
    """Say where the rows of the next steps are not those that the run would have read without the interruption."""
    changed = [
        f"{words} were {before.facts[name]} and are {facts[name]}"
        for name, words in _FACTS.items()
        if before.facts[name] != facts[name]
    ]
    if changed:
        logger.warning(
            "%s: the phase is kept, but the data does not go on where it stopped: some rows are read again, others not",
            "; ".join(changed),
        )
