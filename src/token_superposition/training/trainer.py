"""The parts of a run, and one optimizer step.

The trainer has no code for phases: each batch holds its stage, and the model takes bags of any size.

The loss of a step is the sum of the weighted cross-entropies divided by the sum of the weights, both over all
micro-batches. The targets determine the sum of the weights before the first forward pass. The mean loss of each
micro-batch is multiplied by the micro-batch's share of this sum.
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
from token_superposition.losses.multi_hot import target_weights
from token_superposition.losses.slot_weights import slot_weights
from token_superposition.models.build import check_length, model_cost
from token_superposition.models.device import DTYPES, resolve_device
from token_superposition.models.layers import checkpoint_activations, compile_layers, eager
from token_superposition.models.seeding import seed_torch
from token_superposition.models.size_limits import bytes_kept
from token_superposition.models.superposed import SuperposedLM
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import load_checkpoint
from token_superposition.training.config import RunConfig
from token_superposition.training.datasets import Corpora, Validators
from token_superposition.training.hardware import make_deterministic
from token_superposition.training.init_from import InitialModel
from token_superposition.training.optim import build_learning_rate, build_optimizers
from token_superposition.training.preflight import attention_refusal
from token_superposition.training.validation import ValidationResult


class StepResult(NamedTuple):
    """The result of a step, as scalars on the device, so that the host does not wait for the device.

    Attributes:
        loss: loss of the batch.
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

    Raises:
        UserError: if the data, the model and the configuration do not match.
    """

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        corpora: Corpora | None = None,
        source: InitialModel | None = None,
    ) -> None:
        train = config.train
        self.config = config
        self.schedule = schedule
        self.device = resolve_device(train.device)
        self.dtype = DTYPES[train.dtype]
        self.pinned = self.device.type == "cuda"  # on other devices an asynchronous copy may read freed memory
        if train.loss_backend in ("liger", "torch"):
            try:
                check_kernel(train.loss_backend)
            except ValueError as error:
                raise UserError(f"train.{error}") from None
        self.corpora = corpora = corpora or Corpora.open(config.data)
        self.stream = corpora.stream(config, schedule)
        self.validators = Validators(config, corpora)
        model = corpora.model_spec(config.model).build(
            train.seed, bytes_per_parameter=bytes_kept(self.device, loading=source is not None)
        )
        check_length(model, train.sequence_length)
        self.init_from = None if source is None else source.fill(model)
        self.cost = model_cost(model)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        try:
            self.model = SuperposedLM(model.to(self.device), z_loss=train.z_loss, loss_backend=train.loss_backend)
        except TypeError as error:
            raise UserError(f"model.architecture: {error}") from error
        if config.data.attention_boundary == "document":
            try:
                self.model.keep_documents_apart()
            except TypeError as error:
                raise attention_refusal(error) from error
        self.model.train()
        if train.activation_checkpointing:
            checkpoint_activations(model)
        if train.compile:  # after the checks, which use other shapes and would cause recompilation
            compile_layers(model)
        self.optimizers = build_optimizers(model, train, self.device)
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
        """Do one optimizer step; the step is skipped if the loss or the gradient is NaN or infinite."""
        weights = self._slot_weights[batch.stage]
        weight_sum = self._moved(target_weights(batch.targets, weights).sum())
        if weights is not None:
            weights = self._moved(weights)
        rows = self.config.train.micro_batch_size or len(batch.ids)
        loss, loads = torch.zeros((), device=self.device), []
        parts = [batch.ids, batch.targets, *([] if batch.position_ids is None else [batch.position_ids])]
        for micro in zip(*(part.split(rows) for part in parts), strict=True):
            ids, targets, *positions = map(self._moved, micro)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                output = self.model(ids, targets, weights, *positions)
            part = output.loss * (output.weight_sum / weight_sum.clamp(min=1e-30))
            part.backward()
            loss += part.detach()
            if output.expert_loads is not None:
                loads.append(output.expert_loads)
        limit = self.config.train.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.optimizers.parameters, float("inf") if limit is None else limit)
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self.optimizers.step(self.learning_rate.at(batch.step), skip=skipped)
        return StepResult(loss, norm, skipped, torch.stack(loads).sum(0) if loads else None)

    def _moved(self, tensor: Tensor) -> Tensor:
        """Copy to the device; on CUDA asynchronously, because a blocking copy would wait for all earlier kernels."""
        return tensor.to(self.device, non_blocking=self.pinned)

    def weights_are_finite(self) -> bool:
        """Whether every weight is finite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def validate(self, max_tokens: int) -> tuple[ValidationResult, dict[str, ValidationResult]]:
        """Next-token loss on the first tokens of the validation set, in every phase; and of other sets by name."""
        with eager():
            return self.validators.run(self.model.model, max_tokens, self.device, self.dtype)

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
        return self.model.backend_for((train.micro_batch_size or train.batch_size) * train.sequence_length)

    @property
    def flops_per_position(self) -> int:
        """Forward and backward FLOPs per latent position; the same in both phases."""
        return self.cost.flops_per_position(self.config.train.sequence_length)

    def tensors(self) -> dict[str, Any]:
        """All tensors of the run, in the structure of a checkpoint."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            generators["mps"] = torch.mps.get_rng_state()
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers.parts),
            "generators": generators,
        }

    def start(self) -> dict[str, Any]:
        """Seed the generators for dropout; returns the state of a new run as `load` does."""
        seed_torch(self.config.train.seed)
        return {"step": 0, "wall_seconds": 0.0, "skipped_steps": 0, "init_from": self.init_from}

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load the tensors of a checkpoint; returns the rest of its state."""
        tensors = self.tensors()
        state = load_checkpoint(checkpoint, tensors)
        set_model_state_dict(self.model, tensors["model"])
        set_optimizer_state_dict(self.model, self.optimizers.parts, tensors["optimizer"])
        torch.set_rng_state(tensors["generators"]["cpu"])
        if "cuda" in tensors["generators"]:
            torch.cuda.set_rng_state(tensors["generators"]["cuda"], self.device)
        if "mps" in tensors["generators"]:
            torch.mps.set_rng_state(tensors["generators"]["mps"])
        return state
