"""Hugging Face Trainer with superposition: `SuperpositionTrainer`, a drop-in, and the mixin it is made of.

What the Trainer does stays the Trainer's: optimizer, scheduler, accumulation, mixed precision, processes, evaluation,
checkpoints, callbacks. Six things are ours, each at the latest place where it can be right:

- a look at the data before step 1: rows are collated and their next-token loss is computed as after the switch, so that
  what would fail there fails at once (`integrations.dataset_checks`).
- the training batches. A callback runs after the step's batch was fetched, and a collator does not know the
  step, so the loader itself follows the schedule: the batches of step t are those of t's stage
  (`integrations.bag_rows`). Every epoch's loader starts at the Trainer's `global_step`, and a run that is resumed
  keeps the switch that it was started with, which its checkpoints hold (`integrations.trainer_resume`).
- the forward. For the length of `train` the model takes bags, through a hook inside its own forward, so that what wraps
  it (DDP, FSDP, torch.compile) sees an ordinary call (`models.patch`).
- the count that the loss is divided by. The Trainer counts `labels[..., 1:]`, which on (B, L, s) labels cuts off a
  slot of each bag and makes the loss s / (s - 1) too large.
- the logs, which say phase, bag size and raw tokens, all counted from the batches that were trained.
- the choice of the best model: evaluations of a model that predicts bags do not count.

Once the switch is past, every batch is the data set's own, collated as it always was, and the step is the
Trainer's own. A run takes as many steps as it would without superposition: the same compute, more data.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from token_superposition.integrations.trainer_progress import FollowSteps, TrainerProgress
from token_superposition.integrations.trainer_resume import KEY, Started, continued, started
from token_superposition.losses.multi_hot import target_weights
from token_superposition.losses.slot_weights import slot_weights
from token_superposition.models.patch import bags_accepted
from token_superposition.models.superposed import SuperposedLM
from token_superposition.schedule import Mode, Phase, Schedule, Stage

logger = logging.getLogger(__name__)


@dataclass
class SuperpositionArguments:
    """What is added to `TrainingArguments`; `HfArgumentParser` takes both side by side.

    Attributes are explained by their help texts below. Without a `bag_size` above 1 the Trainer is the stock one.

    Example:
        >>> SuperpositionArguments(bag_size=6, superposition_ratio=0.25).schedule(total_steps=400).switch_step
        100
    """

    bag_size: int = field(default=1, metadata={"help": "Tokens a bag; 1 is ordinary training."})
    superposition_ratio: float = field(default=0.25, metadata={"help": "Share of the steps in superposition."})
    superposition_steps: int | None = field(default=None, metadata={"help": "The same in steps; takes precedence."})
    mode: Mode = field(default="full", metadata={"help": "full, output_only or input_only."})
    slot_weights: str = field(
        default="uniform",
        metadata={
            "help": "uniform, power_law[:1], exponential[:0.5], first_token or mutual_information:C0,a,k, "
            "which fit_mutual_information(tokens, bag_size).slot_weights gives."
        },
    )

    def schedule(self, total_steps: int) -> Schedule:
        """The stages of a run of that many steps; raises ValueError for numbers out of range."""
        ratio = self.superposition_ratio if self.superposition_steps is None else None
        return Schedule.two_phase(
            total_steps,
            self.bag_size,
            ratio,
            superposition_steps=self.superposition_steps,
            mode=self.mode,
            slot_weights=self.slot_weights,
        )


class SuperpositionMixin:
    """Put it before your own subclass of `transformers.Trainer`: `class Mine(SuperpositionMixin, YourTrainer)`.

    Args:
        superposition: what to do; not needed where the training arguments are themselves a
            `SuperpositionArguments`, as those of `class Args(SuperpositionArguments, TrainingArguments)` are.
        token_column: the training data's column of token ids that bags are made of. Steps after the switch use
            `input_ids` and `labels` whatever it is.

    The training data is rows of token ids in the order of the text, of one length, or padded by the data collator.

    Raises:
        TypeError: for a model that cannot be superposed; see `SuperposedLM`.
        UserError: for settings that exclude each other. `train` raises it for training data that cannot be used and
            for a checkpoint that the run cannot go on from.
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
        self.schedule: Schedule | None = None  # known when training starts, for only then are the steps
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
            "several GPUs in one process (start one a GPU: torchrun or accelerate launch)": trainer.args.n_gpu > 1,
        }
        for name, given in refused.items():
            if given:
                raise UserError(f"{name}: does not go with superposition")
        check_settings(trainer)
        self._transform = SuperposedLM(trainer.model).transform  # and refuses what would be trained wrongly
        trainer.add_callback(FollowSteps(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """As `Trainer.train`; the data is looked at before the first step.

        Raises:
            UserError: for training data that would fail now or after the switch, and for a checkpoint whose run
                cannot go on as it was started.
        """
        trainer: Any = self
        if self.superposition.bag_size == 1:
            return super().train(resume_from_checkpoint, *arguments, **options)  # type: ignore[misc]
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(trainer.args.output_dir)
        self._run = run = TrainerProgress(resumed=bool(folder), before=started(Path(folder)) if folder else None)
        if folder and run.before is None and Path(folder).is_dir():
            logger.warning("%s does not say when its run leaves superposition: the arguments now decide", folder)
        with bags_accepted(trainer.model, slot_weights=self._weights, transform=self._transform):
            check_loss(trainer)
            self._look_ahead()
            found = super().train(resume_from_checkpoint, *arguments, **options)  # type: ignore[misc]
        if self._superposed():
            logger.warning(
                "training ended after step %d, before any step of next-token training (they begin after step %d): the "
                "model predicts bags of tokens, not the next token; resume the run to finish it",
                trainer.state.global_step,
                self.schedule.switch_step if self.schedule is not None else 0,
            )
        return found

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the run, each of the stage of its step."""
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
                logger.warning("a streaming data set is read by one worker here, for its order is its text's")
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
                "the run reads its training data %.2f times: text repeats; mode output_only, a smaller bag size or "
                "ratio, fewer steps or more text would read it less often",
                passes,
            )
        return trainer.accelerator.prepare(DataLoader(BagRows(rows), batch_sampler=sampler, **options))

    def _schedule(self, total_steps: int) -> Schedule:
        """The stages of this run: of its checkpoint, where there is one that says."""
        before = self._run.before if self._run is not None else None
        if before is None:
            return self.superposition.schedule(total_steps)
        try:
            wanted = self.superposition.schedule(total_steps)
        except ValueError:  # superposition_steps that do not fit: the checkpoint's count
            wanted = None
        return continued(before, self._stage, wanted, total_steps)

    def _look_ahead(self) -> None:
        """Collate some rows for both phases and compute their next-token loss; refuse what does not come out."""
        trainer: Any = self
        rows, strategy = trainer.train_dataset, trainer.args.train_sampling_strategy
        if rows is None:
            return  # the Trainer says so
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
            length = self._folding().table(some.rows, some.numbers).ids.shape[1]
            check_next_token_loss(trainer, batch, some.numbers)
        if (why := disorder(rows)) is not None:
            logger.warning("%s: %s; give rows in the order of the text", why, cost_of_disorder(self._stage, length))

    def _plain_collator(self) -> Any:
        """What collates the data set's rows without superposition."""
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
        """A batch of bags, or the data set's own rows as they would be collated without us."""
        if isinstance(features[0], Group):
            return self._folding()(features)
        return self._plain_collator()(features)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As `Trainer.get_batch_samples`; what is fetched here is trained next, and counted for the logs."""
        try:
            samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        except UserError as error:
            _, of_worker, line = str(error).rpartition("UserError: ")  # a worker's comes with its traceback
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
        """What a step's loss is divided by: of bags, the weights of all their targets."""
        trainer: Any = self
        if not batch_samples or not _holds_bags(batch_samples[0]):
            return super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
        if not trainer.model_accepts_loss_kwargs:
            return None
        total = torch.stack([target_weights(batch["labels"], self._weights).sum() for batch in batch_samples]).sum()
        total = total.to(device)
        if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
            total = trainer.accelerator.gather(total).sum()
        return torch.where(total > 0, total, 1)  # all targets of a step can be ignored: its loss is 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """As `Trainer.compute_loss`; bags take the loss function that `train` put in place."""
        if _holds_bags(inputs):
            there_BLs = inputs["input_ids"] >= 0
            if not there_BLs.all():
                mask_BL = there_BLs.any(dim=-1).long()
                mask_BL[:, 0] = 1  # a row without a token must not leave attention nothing to attend to
                inputs = {**inputs, "attention_mask": mask_BL}
            # An override behind us could not read bags; `check_loss` has compared its loss.
            trainer: Any = self
            return Trainer.compute_loss(trainer, model, inputs, *arguments, **options)
        return super().compute_loss(model, inputs, *arguments, **options)  # type: ignore[misc]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs count positions, not the tokens that are averaged into them."""
        if _holds_bags(inputs):
            inputs = {**inputs, "input_ids": inputs["input_ids"][..., 0]}
        return super().floating_point_ops(inputs)  # type: ignore[misc]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if _holds_bags(inputs):
            inputs = {**inputs, "attention_mask": inputs["input_ids"] >= 0}
        super()._track_num_input_tokens(inputs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """As `Trainer.log`; a training line also says phase, bag size, positions and raw tokens."""
        if "loss" in logs and self._run is not None and self._run.phases:
            positions, raw_tokens = self._run.trained()
            more: dict[str, Any] = {
                "phase": " and ".join(self._run.phases),  # of all steps that the loss is the mean of
                "bag_size": list(self._run.phases.values())[-1],
                "positions": positions,
                "raw_tokens": raw_tokens,
            }
            self._run.phases = {}
            logs.update(more)
        super().log(logs, *arguments, **options)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; a checkpoint's state says how the run was started and what was trained."""
        self._note()
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _note(self) -> None:
        """Put into the Trainer's state what a run that is resumed needs."""
        trainer: Any = self
        if self._run is not None and self.schedule is not None:
            noted = Started(self.schedule, self._run.facts, *self._run.trained())
            trainer.state.stateful_callbacks[KEY] = noted.as_dict()

    def _superposed(self) -> bool:
        """Whether the model's last step was one of superposition."""
        trainer: Any = self
        return self.schedule is not None and 0 < trainer.state.global_step <= self.schedule.switch_step

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As `Trainer._evaluate`; ReduceLROnPlateau and GreedyLR do not see a model that predicts bags."""
        skip_scheduler = skip_scheduler or self._superposed()
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)  # type: ignore[misc]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer._determine_best_metric`, but no evaluation of a model that predicts bags counts."""
        return not self._superposed() and super()._determine_best_metric(metrics, trial)  # type: ignore[misc]


class SuperpositionTrainer(SuperpositionMixin, Trainer):
    """`transformers.Trainer` with superposition; see `SuperpositionMixin` for the two arguments it adds.

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
