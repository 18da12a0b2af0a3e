"""The parts of a run, and one optimizer step.

The trainer has no code for phases: each batch holds its stage, and the model takes bags of any size.

The loss of a step is the sum of the weighted cross-entropies divided by the sum of the weights, both over all
micro-batches of all ranks. The targets determine the sum of the weights before the first forward pass, and every
forward divides by it. DDP and FSDP2 average the gradients over the ranks, so each loss is multiplied by their number.

The random numbers of a step, such as those of dropout, depend on the seed, the step and the rank. A checkpoint
therefore holds no state of a generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from token_superposition.data.stream import Batch, Coverage
from token_superposition.errors import UserError
from token_superposition.losses.fused import check_kernel
from token_superposition.losses.linear import ChosenBackend
from token_superposition.losses.multi_hot import target_weights, weight_total
from token_superposition.losses.slot_weights import slot_weights
from token_superposition.models.device import resolve_device
from token_superposition.models.layers import eager
from token_superposition.models.seeding import step_seed
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import load_checkpoint
from token_superposition.training.config import RunConfig
from token_superposition.training.datasets import Corpora, Validators
from token_superposition.training.distributed import World
from token_superposition.training.hardware import make_deterministic
from token_superposition.training.init_from import InitialModel
from token_superposition.training.optim import build_learning_rate, build_optimizers
from token_superposition.training.parallel import ParallelModel
from token_superposition.training.validation import ValidationResult


class StepResult(NamedTuple):
    """The result of a step, as scalars on the device, so that the host does not wait for the device.

    Attributes:
        loss: loss of the batch, over all ranks.
        grad_norm: norm of the gradient before clipping.
        skipped: true if the loss or the norm is NaN or infinite; the weights then do not change.
        expert_loads: (layers, experts), summed over micro-batches; None without experts. See `SuperposedOutput`.
    """

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    expert_loads: Tensor | None = None


def prepare_process(config: RunConfig) -> None:
    """Set the CUDA device, the number of CPU threads and the determinism of this process as a run needs them.

    Args:
        config: the run's configuration, without any value `auto`.
    """
    device = resolve_device(config.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if isinstance(config.train.num_threads, int):
        torch.set_num_threads(config.train.num_threads)
    make_deterministic(config.train.deterministic)


class Trainer:
    """The data, model and optimizers of a run, built from its resolved configuration.

    Building a trainer does not change settings of the process; `prepare_process` does.

    Args:
        config: the run's configuration, without any value `auto`.
        schedule: the run's stages.
        corpora: the run's training data; None to open the data of the configuration.
        source: trained model with the initial weights; None for new weights, or for weights that `load` will restore.
        world: the ranks of the run; None for one process.

    Raises:
        UserError: if the data, the model and the configuration do not match.
    """

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        corpora: Corpora | None = None,
        source: InitialModel | None = None,
        world: World | None = None,
    ) -> None:
        train = config.train
        self.world = world = world or World()
        self.config = config
        self.schedule = schedule
        self.device = resolve_device(train.device)
        self.pinned = self.device.type == "cuda"  # on other devices an asynchronous copy may read freed memory
        if train.loss_backend in ("liger", "torch"):
            try:
                check_kernel(train.loss_backend)
            except ValueError as error:
                raise UserError(f"train.{error}") from None
        self.corpora = corpora = corpora or Corpora.open(config.data)
        self.stream = corpora.stream(config, schedule, world)
        self.validators = Validators(config, corpora)
        self.parallel = ParallelModel(corpora.model_spec(config.model), config, self.device, world, source)
        self.model = self.parallel.model
        self.dtype = self.parallel.dtype
        self.num_parameters = self.parallel.num_parameters
        self.optimizers = build_optimizers(self.model.model, train, self.device)
        self.learning_rate = build_learning_rate(train)
        self._slot_weights = {
            stage: slot_weights(stage.slot_weights, stage.num_targets) if stage.bag_size > 1 else None
            for stage in schedule.stages
        }

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The run's batches from `first_step` on; in pinned memory for CUDA."""
        for batch in self.stream.batches(first_step):
            if self.pinned:
                names = ("ids", "targets", "position_ids")
                parts = {name: part for name in names if (part := getattr(batch, name)) is not None}
                yield replace(batch, **{name: part.pin_memory() for name, part in parts.items()})
            else:
                yield batch

    def step(self, batch: Batch) -> StepResult:
        """Do one optimizer step on this rank's rows; all ranks skip it if the loss or the gradient is not finite."""
        torch.manual_seed(step_seed(self.config.train.seed, batch.step, self.world.rank))
        weights = self._slot_weights[batch.stage]
        divisor = self.world.step_sum(weight_total(target_weights(batch.targets, weights)))
        divisor = self._moved(divisor.float() if self.device.type == "mps" else divisor)
        if weights is not None:
            weights = self._moved(weights)
        rows = self.config.train.micro_batch_size or len(batch.ids)
        losses, loads = [], []
        parts = [batch.ids, batch.targets, *([] if batch.position_ids is None else [batch.position_ids])]
        micros = list(zip(*(part.split(rows) for part in parts), strict=True))
        share = 1 / (len(micros) * self.world.size)
        for number, micro in enumerate(micros, start=1):
            ids, targets, *positions = map(self._moved, micro)
            with self.parallel.micro_batch(last=number == len(micros)):
                output = self.parallel.root(ids, targets, weights, *positions, divisor=divisor, share=share)
                loss = output.loss
            (loss * self.world.size if self.world.size > 1 else loss).backward()
            losses.append(loss.detach())
            if output.expert_loads is not None:
                loads.append(output.expert_loads)
        loss = self.parallel.sum(torch.stack(losses).sum())
        norm = self.parallel.clip(self.optimizers.parameters, self.config.train.max_grad_norm)
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.optimizers.step(self.learning_rate.at(batch.step), skip=skipped)
        return StepResult(loss, norm, skipped, self.parallel.sum(torch.stack(loads).sum(0)) if loads else None)

    def _moved(self, tensor: Tensor) -> Tensor:
        """Copy to the device; on CUDA asynchronously, because a blocking copy would wait for all earlier kernels."""
        return tensor.to(self.device, non_blocking=self.pinned)

    def weights_are_finite(self) -> bool:
        """Whether every weight is finite."""
        return self.parallel.weights_are_finite()

    def validate(self, max_tokens: int) -> tuple[ValidationResult, dict[str, ValidationResult]]:
        """Next-token loss on the first tokens of the validation set, in every phase; and of other sets by name."""
        with eager():
            return self.validators.run(self.model, max_tokens, self.device, self.dtype, self.world)

    def counters(self, steps_done: int) -> dict[str, Any]:
        """Positions, tokens and FLOPs of the first `steps_done` steps; for a mixture also the tokens per source."""
        positions = self.schedule.positions(self.config.train.positions_per_step, steps_done)
        sources = self.stream.coverages(steps_done)
        return {
            "positions": positions,
            **Coverage.of_all(sources.values()).counters(),
            **({"sources": {name: each.counters() for name, each in sources.items()}} if len(sources) > 1 else {}),
            "flops": positions * self.flops_per_position,
        }

    @property
    def loss_backend(self) -> ChosenBackend:
        """How the loss is computed; the same in both phases."""
        train = self.config.train
        rows = train.micro_batch_size or train.batch_size // self.world.size
        return self.model.backend_for(rows * train.sequence_length)

    @property
    def flops_per_position(self) -> int:
        """Forward and backward FLOPs per latent position; the same in both phases."""
        return self.parallel.cost.flops_per_position(self.config.train.sequence_length)

    def tensors(self) -> dict[str, Any]:
        """All tensors of the run, in the structure of a checkpoint."""
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers.parts),
        }

    def start(self) -> dict[str, Any]:
        """The state of a new run, as `load` returns it."""
        return {"step": 0, "wall_seconds": 0.0, "skipped_steps": 0, "init_from": self.parallel.init_from}

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load the tensors of a checkpoint; returns the rest of its state."""
        tensors = self.tensors()
        state = load_checkpoint(checkpoint, tensors, self.world)
        set_model_state_dict(self.model, tensors["model"])
        set_optimizer_state_dict(self.model, self.optimizers.parts, tensors["optimizer"])
        return state
