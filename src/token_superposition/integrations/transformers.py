"""The Hugging Face Trainer with superposition: the drop-in `SuperpositionTrainer`, and its mixin.

The Trainer does its usual work: optimizer, scheduler, gradient accumulation, mixed precision, processes, evaluation,
checkpoints and callbacks. This module adds or changes six parts:

- Data checks before step 1: some rows are collated, and their next-token loss is computed, so that errors of the
  recovery phase appear at once (`integrations.dataset_checks`).
- Training batches: the loader follows the schedule, so the batches of step t have the stage of step t
  (`integrations.bag_rows`). Neither a callback nor a collator could do this: a callback runs after the batch of its
  step was fetched, and a collator does not know the step. The loader of every epoch starts at the Trainer's
  `global_step`. A resumed run keeps its switch step, which its checkpoints record (`integrations.trainer_resume`).
- Forward pass: during `train` the model accepts bags through a hook inside its forward, so wrappers (DDP, FSDP,
  torch.compile) see an ordinary call (`models.patch`).
- Divisor of the loss: the Trainer counts `labels[..., 1:]`. For labels (B, L, s), this would omit a slot of each bag
  and make the loss larger by the factor s / (s - 1).
- Logs: they include phase, bag size and raw tokens, counted from the batches that were trained.
- Choice of the best model: evaluations of a model that predicts bags are ignored.

After the switch, every batch has the unchanged rows of the dataset from the unchanged collator, and the Trainer does
the step. A run has as many steps as without superposition, so it uses the same compute and more data.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from token_superposition.errors import UserError
from token_superposition.integrations.bag_rows import BagRows, BagStream, RunSampler
from token_superposition.integrations.dataset_checks import (
    check_next_token_loss,
    cost_of_disorder,
    disorder,
    random_state_kept,
    sample,
)
from token_superposition.integrations.folding import HONOURED, PACKED, Folding, Group, collated
from token_superposition.integrations.loss_check import check_loss, check_settings, who_overrides
from token_superposition.integrations.row_checks import check_rows, check_targets
from token_superposition.integrations.superposition_arguments import SuperpositionArguments as SuperpositionArguments
from token_superposition.integrations.trainer_progress import FollowSteps, TrainerProgress
from token_superposition.integrations.trainer_resume import KEY, Started, continued, started
from token_superposition.losses.multi_hot import target_weights
from token_superposition.losses.slot_weights import slot_weights
from token_superposition.models.patch import bags_accepted
from token_superposition.models.superposed import SuperposedLM
from token_superposition.schedule import Phase, Schedule, Stage

logger = logging.getLogger(__name__)


class SuperpositionMixin:
    """A mixin for your own subclass of `transformers.Trainer`: `class Mine(SuperpositionMixin, YourTrainer)`.

    Args:
        superposition: settings of superposition; unnecessary if the training arguments are an instance of
            `SuperpositionArguments`, as with `class Args(SuperpositionArguments, TrainingArguments)`.
        token_column: column of the training data with the token ids for bags. Steps after the switch always use
            `input_ids` and `labels`.

    The training data must be rows of token ids in the order of the text. The rows must have equal length, or the data
    collator must pad them.

    Raises:
        TypeError: if superposition does not support the model; see `SuperposedLM`.
        UserError: for settings that exclude each other. `train` raises it for unusable training data, and for a
            checkpoint that cannot be resumed.
    """

    def __init__(
        self,
        *arguments: Any,
        superposition: SuperpositionArguments | None = None,
        token_column: str = "input_ids",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        trainer: Any = self
        if superposition is None and isinstance(trainer.args, SuperpositionArguments):
            superposition = trainer.args
        if superposition is None:
            raise UserError("superposition: give SuperpositionArguments(bag_size=..., superposition_ratio=...)")
        self.superposition = superposition
        self.schedule: Schedule | None = None  # set when training starts, because the number of steps is unknown before
        self._token_column = token_column
        self._weights: Tensor | None = None
        self._run: TrainerProgress | None = None
        if superposition.bag_size == 1:
            return
        self._stage = Stage(superposition.bag_size, 1, superposition.mode, superposition.slot_weights)
        self._weights = slot_weights(self._stage.slot_weights, self._stage.num_targets)
        refused = {
            "label_smoothing_factor": trainer.label_smoother is not None,
            "compute_loss_func": trainer.compute_loss_func is not None,
            "model_init": trainer.model_init is not None,
            "several GPUs in one process (start one per GPU with torchrun or accelerate launch)": trainer.args.n_gpu
            > 1,
        }
        for name, given in refused.items():
            if given:
                raise UserError(f"{name}: is not supported with superposition")
        check_settings(trainer)
        self._transform = SuperposedLM(trainer.model).transform  # also refuses unsupported models
        trainer.add_callback(FollowSteps(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Like `Trainer.train`, with a check of the data before the first step.

        Raises:
            UserError: for training data that would fail before or after the switch, and for a checkpoint that cannot
                be resumed with the present arguments.
        """
        trainer: Any = self
        if self.superposition.bag_size == 1:
            return super().train(resume_from_checkpoint, *arguments, **options)  # type: ignore[misc]
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(trainer.args.output_dir)
        self._run = run = TrainerProgress(resumed=bool(folder), before=started(Path(folder)) if folder else None)
        if folder and run.before is None and Path(folder).is_dir():
            logger.warning("%s has no record of the end of superposition: the present arguments decide", folder)
        with bags_accepted(trainer.model, slot_weights=self._weights, transform=self._transform):
            self._look_ahead()  # first, because its messages name the row of the data
            check_loss(trainer)
            found = super().train(resume_from_checkpoint, *arguments, **options)  # type: ignore[misc]
        if self._superposed():
            logger.warning(
                "training ended after step %d, before any step of next-token training (it starts after step %d): the "
                "model predicts bags of tokens, not the next token; resume the run to finish it",
                trainer.state.global_step,
                self.schedule.switch_step if self.schedule is not None else 0,
            )
        return found

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the run, each with the stage of its step."""
        trainer: Any = self
        plain = super().get_train_dataloader()  # type: ignore[misc]
        if self.superposition.bag_size == 1:
            return plain
        args, rows, batch_size = trainer.args, trainer.train_dataset, trainer._train_batch_size
        run = self._run = self._run or TrainerProgress()
        _, run.steps_per_epoch, *_, total_steps = trainer.set_initial_training_values(args, plain)
        self.schedule = schedule = self._schedule(total_steps)
        if not schedule.switch_step and self.superposition.superposition_ratio > 0:
            logger.warning(
                "superposition_ratio %g of %d steps is less than one step, so the run is ordinary training: give "
                "superposition_steps",
                self.superposition.superposition_ratio,
                total_steps,
            )
        batches_per_step = args.gradient_accumulation_steps * args.world_size
        streamed = isinstance(rows, IterableDataset)
        seed = args.data_seed if args.data_seed is not None else args.seed
        run.facts = {
            "rows_per_step": batch_size * batches_per_step,
            "num_rows": None if streamed else len(rows),
            "data_seed": None if streamed else seed,
        }
        options = {
            "collate_fn": self._collate,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        if streamed:
            if args.dataloader_num_workers > 1:
                logger.warning("a streaming dataset is read by one worker, to keep the order of its text")
                options["num_workers"] = 1
            run.order = stream = BagStream(
                rows, schedule, rows_per_step=batch_size * batches_per_step, opened=run.opened
            )
            return trainer.accelerator.prepare(DataLoader(stream, batch_size=batch_size, **options))
        run.order = sampler = RunSampler(
            len(rows),
            schedule,
            batch_size=batch_size,
            batches_per_step=batches_per_step,
            steps_per_epoch=run.steps_per_epoch,
            seed=seed,
        )
        passes = sampler.stream.coverage().epochs
        if passes > 1:
            logger.warning(
                "the run reads its training data %.2f times, so the text repeats; mode output_only, a smaller bag "
                "size or ratio, fewer steps or more text would reduce this",
                passes,
            )
        return trainer.accelerator.prepare(DataLoader(BagRows(rows), batch_sampler=sampler, **options))

    def _schedule(self, total_steps: int) -> Schedule:
        """The stages of this run: from the record of its checkpoint if there is one, else from the arguments."""
        before = self._run.before if self._run is not None else None
        if before is None:
            return self.superposition.schedule(total_steps)
        try:
            wanted = self.superposition.schedule(total_steps)
        except ValueError:  # invalid superposition_steps; the record of the checkpoint has priority
            wanted = None
        return continued(before, self._stage, wanted, total_steps)

    def _look_ahead(self) -> None:
        """Collate some rows for both phases and compute their next-token loss; raises UserError if this fails."""
        trainer: Any = self
        rows, strategy = trainer.train_dataset, trainer.args.train_sampling_strategy
        if rows is None:
            return  # the Trainer reports this
        sampler = who_overrides(trainer, "_get_train_sampler")
        if strategy != "random" or sampler is not None:
            logger.warning(
                "%s is not used: rows that follow each other become bags, and the groups of rows are shuffled",
                f"the _get_train_sampler of {sampler}" if sampler else f"train_sampling_strategy {strategy}",
            )
        with random_state_kept():
            some = sample(rows, self._token_column)
            if self._run is not None:
                self._run.opened = some.opened
            batch = collated(self._plain_collator(), some.rows, some.numbers)
            table = self._folding().table(some.rows, some.numbers)
            check_targets(table, some.numbers, rows, self._folding().table)
            check_rows(rows, self._token_column, trainer.model.get_input_embeddings().weight.shape[0])
            length = table.ids.shape[1]
            check_next_token_loss(trainer, batch, some.numbers)
        if (why := disorder(rows)) is not None:
            logger.warning("%s: %s; give rows in the order of the text", why, cost_of_disorder(self._stage, length))

    def _plain_collator(self) -> Any:
        """The collator for rows of the dataset without superposition."""
        trainer: Any = self
        return trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")

    def _folding(self) -> Folding:
        trainer: Any = self
        known = inspect.signature(trainer.model.forward).parameters
        pad_id = getattr(trainer.processing_class, "pad_token_id", None)
        if pad_id is None:
            pad_id = getattr(trainer.model.config, "pad_token_id", None)
        return Folding(self._plain_collator(), self._token_column, frozenset(known) - HONOURED | PACKED, pad_id)

    def _collate(self, features: Sequence[Any]) -> Any:
        """Collate a batch of bags, or a batch of unchanged rows of the dataset."""
        if isinstance(features[0], Group):
            return self._folding()(features)
        return self._plain_collator()(features)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Like `Trainer.get_batch_samples`; also counts the fetched batches, which are trained next, for the logs."""
        try:
            samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        except UserError as error:
            _, of_worker, line = str(error).rpartition("UserError: ")  # an error of a worker includes its traceback
            if of_worker:
                raise UserError(line.strip()) from None
            raise
        if self._run is not None:
            self._count(self._run, samples, device)
        return samples, count

    def _count(self, run: TrainerProgress, samples: Sequence[Any], device: torch.device) -> None:
        trainer: Any = self
        counts = torch.zeros(2, dtype=torch.int64, device=device)  # positions and raw tokens
        for batch in samples:
            ids = batch["input_ids"]
            bags = _holds_bags(batch)
            phase: Phase = "superposition" if bags else "recovery"
            run.phases[phase] = max(ids.shape[-1], batch["labels"].shape[-1]) if bags else 1
            mask = ids >= 0 if bags else batch.get("attention_mask")
            read = ids.numel() if mask is None else (mask != 0).sum()
            counts += torch.stack([torch.as_tensor(n, device=device) for n in (ids.shape[0] * ids.shape[1], read)])
        if trainer.args.world_size > 1:
            counts = trainer.accelerator.gather(counts).view(-1, 2).sum(0)
        run.counts = counts if run.counts is None else run.counts + counts

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The divisor of a step's loss: for bags, the sum of the weights of all targets."""
        trainer: Any = self
        if not batch_samples or not _holds_bags(batch_samples[0]):
            return super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
        if not trainer.model_accepts_loss_kwargs:
            return None
        total = torch.stack([target_weights(batch["labels"], self._weights).sum() for batch in batch_samples]).sum()
        total = total.to(device)
        if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
            total = trainer.accelerator.gather(total).sum()
        return torch.where(total > 0, total, 1)  # if all targets of a step are ignored, its loss is 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Like `Trainer.compute_loss`; for bags with the loss function that `train` has set."""
        if _holds_bags(inputs):
            there_BLs = inputs["input_ids"] >= 0
            if not there_BLs.all():
                mask_BL = there_BLs.any(dim=-1).long()
                mask_BL[:, 0] = 1  # attention needs at least one visible position, even in a row without tokens
                inputs = {**inputs, "attention_mask": mask_BL}
            # An override after this mixin in the MRO could not read bags; `check_loss` has compared its loss.
            trainer: Any = self
            return Trainer.compute_loss(trainer, model, inputs, *arguments, **options)
        return super().compute_loss(model, inputs, *arguments, **options)  # type: ignore[misc]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count FLOPs per position, not per token of a bag."""
        if _holds_bags(inputs):
            inputs = {**inputs, "input_ids": inputs["input_ids"][..., 0]}
        return super().floating_point_ops(inputs)  # type: ignore[misc]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if _holds_bags(inputs):
            inputs = {**inputs, "attention_mask": inputs["input_ids"] >= 0}
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Like `Trainer.log`; a training line also has phase, bag size, positions and raw tokens."""
        if "loss" in logs and self._run is not None and self._run.phases:
            positions, raw_tokens = self._run.trained()
            more: dict[str, Any] = {
                "phase": " and ".join(self._run.phases),  # of all steps over which the loss is averaged
                "bag_size": list(self._run.phases.values())[-1],
                "positions": positions,
                "raw_tokens": raw_tokens,
            }
            self._run.phases = {}
            logs.update(more)
        super().log(logs, *arguments, **options)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like `Trainer.save_model`; the state of a checkpoint also gets the record of superposition."""
        self._note()
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _note(self) -> None:
        """Put the record that a resumed run needs into the state of the Trainer."""
        trainer: Any = self
        if self._run is not None and self.schedule is not None:
            noted = Started(self.schedule, self._run.facts, *self._run.trained())
            trainer.state.stateful_callbacks[KEY] = noted.as_dict()

    def _superposed(self) -> bool:
        """Whether the last completed step was a superposition step."""
        trainer: Any = self
        return self.schedule is not None and 0 < trainer.state.global_step <= self.schedule.switch_step

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As `Trainer._evaluate`; ReduceLROnPlateau and GreedyLR do not see a model that predicts bags."""
        skip_scheduler = skip_scheduler or self._superposed()
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)  # type: ignore[misc]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Like `Trainer._determine_best_metric`, but ignores evaluations of a model that predicts bags."""
        return not self._superposed() and super()._determine_best_metric(metrics, trial)  # type: ignore[misc]


class SuperpositionTrainer(SuperpositionMixin, Trainer):
    """`transformers.Trainer` with superposition; `SuperpositionMixin` documents the two additional arguments.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> trainer = SuperpositionTrainer(
        ...     model=LlamaForCausalLM(LlamaConfig(vocab_size=64, **size)),
        ...     args=TrainingArguments("trained", max_steps=4, report_to=[], disable_tqdm=True, use_cpu=True),
        ...     train_dataset=[{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (128, 16))],
        ...     superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
        ... )
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        4
    """


def _holds_bags(batch: Any) -> bool:
    labels = batch.get("labels") if hasattr(batch, "get") else None
    return isinstance(labels, Tensor) and labels.dim() == 3
