"""Hugging Face Trainer with superposition: `SuperpositionTrainer`, a drop-in, and the mixin it is made of.

What the Trainer does stays the Trainer's: optimizer, scheduler, accumulation, mixed precision, processes, evaluation,
checkpoints, callbacks. Four things are ours, each at the latest place where it can be right:

- the training batches. A callback runs after the step's batch was fetched, and a collator does not know the
  step, so the loader itself follows the schedule: the batches of step t are those of t's stage, also after a
  resume, which skips batches of the right shape (`adapters.rows`).
- the forward. For the length of `train` the model takes bags, through a hook inside its own forward, so that what wraps
  it (DDP, FSDP, torch.compile) sees an ordinary call (`model.inplace`).
- the count that the loss is divided by. The Trainer counts `labels[..., 1:]`, which on (B, L, s) labels cuts off a
  slot of each bag and makes the loss s / (s - 1) too large.
- the logs, which say phase, bag size and raw tokens.

Once the switch is past, every batch is the data set's own, collated as it always was, and the step is the
Trainer's own. A run takes as many steps as it would without superposition: the same compute, more data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

from token_superposition.adapters.loss_check import check_loss, check_settings
from token_superposition.adapters.rows import BAGS, BagRows, BagStream, RunSampler
from token_superposition.errors import UserError
from token_superposition.model.inplace import bags_accepted
from token_superposition.model.superposed import SuperposedLM
from token_superposition.objective.loss import target_weights
from token_superposition.objective.slot_weights import slot_weights
from token_superposition.plan.stages import Mode, Schedule, Stage

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
        token_column: the training data's column of token ids.

    The training data is rows of token ids of one fixed length, in the order of the text.

    Raises:
        TypeError: for a model that cannot be superposed; see `SuperposedLM`.
        UserError: for settings that exclude each other.
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
        self._sequence_length = 0
        self._weights: Tensor | None = None
        if superposition.bag_size == 1:
            return
        stage = Stage(superposition.bag_size, 1, superposition.mode, superposition.slot_weights)
        self._weights = slot_weights(stage.slot_weights, stage.num_targets)
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

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As `Trainer.train`."""
        trainer: Any = self
        if self.superposition.bag_size == 1:
            return super().train(*arguments, **options)  # type: ignore[misc]
        with bags_accepted(trainer.model, slot_weights=self._weights, transform=self._transform):
            check_loss(trainer)
            return super().train(*arguments, **options)  # type: ignore[misc]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the run, each of the stage of its step."""
        trainer: Any = self
        plain = super().get_train_dataloader()  # type: ignore[misc]
        if self.superposition.bag_size == 1:
            return plain
        args = trainer.args
        _, steps_per_epoch, *_, total_steps = trainer.set_initial_training_values(args, plain)
        self.schedule = schedule = self.superposition.schedule(total_steps)
        batches_per_step = args.gradient_accumulation_steps * args.world_size
        options = {
            "collate_fn": self._collate,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        rows, batch_size = trainer.train_dataset, trainer._train_batch_size
        if isinstance(rows, IterableDataset):
            if args.dataloader_num_workers > 1:
                logger.warning("a streaming data set is read by one worker here, for its order is its text's")
                options["num_workers"] = 1
            stream = BagStream(rows, schedule, rows_per_step=batch_size * batches_per_step, column=self._token_column)
            return trainer.accelerator.prepare(DataLoader(stream, batch_size=batch_size, **options))
        seed = args.data_seed if args.data_seed is not None else args.seed
        sampler = RunSampler(
            len(rows),
            schedule,
            batch_size=batch_size,
            batches_per_step=batches_per_step,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
        )
        passes = sampler.stream.coverage().epochs
        if passes > 1:
            logger.warning(
                "the run reads its training data %.2f times: text repeats; mode output_only, a smaller bag size or "
                "ratio, fewer steps or more text would read it less often",
                passes,
            )
        return trainer.accelerator.prepare(
            DataLoader(BagRows(rows, sampler, self._token_column), batch_sampler=sampler, **options)
        )

    def _collate(self, features: Sequence[Any]) -> Any:
        """A batch of bags, or the data set's own rows as they would be collated without us."""
        trainer: Any = self
        if isinstance(features[0], dict) and BAGS in features[0]:
            return {name: torch.stack([row[name] for row in features]) for name in ("input_ids", "labels")}
        return trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")(features)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """What a step's loss is divided by: of bags, the weights of all their targets."""
        trainer: Any = self
        if self.superposition.bag_size > 1 and self.schedule is None:
            raise UserError(
                f"{type(self).__name__}: its get_train_dataloader does not call SuperpositionMixin's, so no step would "
                "be trained on bags: give the rows as train_dataset instead"
            )
        if not batch_samples or not _holds_bags(batch_samples[0]):
            return super()._get_num_items_in_batch(batch_samples, device)  # type: ignore[misc]
        if not trainer.model_accepts_loss_kwargs:
            return None
        total = torch.stack([target_weights(batch["labels"], self._weights).sum() for batch in batch_samples]).sum()
        total = total.to(device)
        if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
            total = trainer.accelerator.gather(total).sum()
        return total

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """As `Trainer.compute_loss`; bags take the loss function that `train` put in place."""
        trainer: Any = self
        if "input_ids" in inputs:
            self._sequence_length = inputs["input_ids"].shape[1]
        if _holds_bags(inputs):  # an override behind us could not read bags; `check_loss` has compared its loss
            return Trainer.compute_loss(trainer, model, inputs, *arguments, **options)
        return super().compute_loss(model, inputs, *arguments, **options)  # type: ignore[misc]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs count positions, not the tokens that are averaged into them."""
        if _holds_bags(inputs):
            inputs = {**inputs, "input_ids": inputs["input_ids"][..., 0]}
        return super().floating_point_ops(inputs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """As `Trainer.log`; a training line also says phase, bag size, positions and raw tokens."""
        trainer: Any = self
        if "loss" in logs and self.schedule is not None:
            done = trainer.state.global_step
            stage = self.schedule.lookup(max(done - 1, 0))
            args = trainer.args
            rows = trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size
            positions = rows * self._sequence_length
            more: dict[str, Any] = {
                "phase": stage.phase,
                "bag_size": stage.bag_size,
                "positions": self.schedule.positions(positions, done),
                "raw_tokens": self.schedule.raw_tokens(positions, done),
            }
            logs.update(more)
        super().log(logs, *arguments, **options)  # type: ignore[misc]


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
