"""Where a call of `Trainer.train` stands: what it went on from, which rows come next, what was trained."""

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
    """What one call of `train` has to remember.

    Attributes:
        resumed: whether the call goes on from a checkpoint.
        before: what the checkpoint says.
        first_epoch: whether no epoch of this call has begun.
        steps_per_epoch: what the Trainer takes for an epoch.
        facts: what the order of rows depends on.
        opened: the rows of a stream that the look at the data has opened, where it can be read only once.
        order: what says which rows come next, from its `first_step` on.
        counts: (2,) int64, positions and raw tokens of the steps of this call; on the device until somebody asks.
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
        """Positions and raw tokens since the run was started."""
        positions, raw_tokens = (0, 0) if self.counts is None else self.counts.tolist()
        if self.before is not None:
            positions, raw_tokens = positions + self.before.positions, raw_tokens + self.before.raw_tokens
        return positions, raw_tokens


class FollowSteps(TrainerCallback):
    """Keeps the batches at the Trainer's own step; a loader alone cannot know where a resume starts."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Compare the state that was loaded, and forget a best model that predicts bags."""
        run: TrainerProgress = self.trainer._run
        if self.trainer.schedule is None:
            raise UserError(
                f"{type(self.trainer).__name__}: its get_train_dataloader does not call SuperpositionMixin's, so no "
                "step would be trained on bags: give the rows as train_dataset instead"
            )
        switch = self.trainer.schedule.switch_step
        run.first_epoch, run.counts, run.phases = True, None, {}  # the Trainer may begin again with smaller batches
        if run.before is not None:
            warn_of_other_rows(run.before, run.facts)
        if state.best_metric is not None and (state.best_global_step or state.global_step) <= switch:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if args.metric_for_best_model is not None and state.global_step < switch:
            logger.warning(
                "evaluations up to step %d are of a model that predicts bags: they do not count for "
                "metric_for_best_model, load_best_model_at_end, early stopping and a learning rate that follows them",
                switch,
            )
        self.trainer._note()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start this epoch's batches at the step that comes next."""
        run: TrainerProgress = self.trainer._run
        if run.order is None:
            return
        run.order.first_step = state.global_step
        if run.resumed and run.first_epoch and not args.ignore_data_skip:  # the Trainer skips these steps' batches
            run.order.first_step -= state.global_step % run.steps_per_epoch
        run.first_epoch = False
