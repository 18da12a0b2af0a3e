"""The state of a call of `Trainer.train`: the loaded checkpoint, the order of rows, and the counts of trained data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from token_superposition.errors import UserError
from token_superposition.integrations.bag_rows import BagStream, RunSampler
from token_superposition.integrations.trainer_resume import Started, warn_of_other_rows
from token_superposition.schedule import Phase

logger = logging.getLogger(__name__)


@dataclass
class TrainerProgress:
    """The state of one call of `train`.

    Attributes:
        resumed: whether the call resumes from a checkpoint.
        before: the record in the checkpoint.
        first_epoch: whether no epoch of this call has started.
        steps_per_epoch: steps per epoch of the Trainer.
        facts: the values that determine the order of rows.
        opened: the rows of a stream that can be read only once, after the check before the first step opened it.
        order: the source of the next rows, from its `first_step` on.
        counts: (2,) int64, positions and raw tokens of the steps of this call; on the device until they are read.
        phases: the phases of the steps since the last log line, with their last bag size.
    """

    resumed: bool = False
    before: Started | None = None
    first_epoch: bool = True
    steps_per_epoch: int = 1
    facts: dict[str, int | None] = field(default_factory=dict)
    opened: Iterator[Any] | None = None
    order: RunSampler | BagStream | None = None
    counts: Tensor | None = None
    phases: dict[Phase, int] = field(default_factory=dict)

    def trained(self) -> tuple[int, int]:
        """Positions and raw tokens since the start of the run."""
        positions, raw_tokens = (0, 0) if self.counts is None else self.counts.tolist()
        if self.before is not None:
            positions, raw_tokens = positions + self.before.positions, raw_tokens + self.before.raw_tokens
        return positions, raw_tokens


class FollowSteps(TrainerCallback):
    """Keeps the batches at the step of the Trainer, because a loader does not know the first step of a resumed run."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Compare the loaded state with this run, and reset a best model that predicts bags."""
        run: TrainerProgress = self.trainer._run
        if self.trainer.schedule is None:
            raise UserError(
                f"{type(self.trainer).__name__}: its get_train_dataloader does not call SuperpositionMixin's, so no "
                "step would be trained on bags: give the rows as train_dataset instead"
            )
        switch = self.trainer.schedule.switch_step
        run.first_epoch, run.counts, run.phases = True, None, {}  # the Trainer may start again with smaller batches
        if run.before is not None:
            warn_of_other_rows(run.before, run.facts)
        if state.best_metric is not None and (state.best_global_step or state.global_step) <= switch:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if args.metric_for_best_model is not None and state.global_step < switch:
            logger.warning(
                "evaluations up to step %d measure a model that predicts bags: they do not count for "
                "metric_for_best_model, load_best_model_at_end, early stopping and a learning rate that follows them",
                switch,
            )
        self.trainer._note()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the batches of this epoch at the next step."""
        run: TrainerProgress = self.trainer._run
        if run.order is None:
            return
        run.order.first_step = state.global_step
        if run.resumed and run.first_epoch and not args.ignore_data_skip:  # Trainer skips these steps' batches
            run.order.first_step -= state.global_step % run.steps_per_epoch
        run.first_epoch = False
