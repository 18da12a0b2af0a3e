"""How the ranks of a run share its model: DDP, FSDP2 (`fully_shard`) or HSDP.

The order of the construction matters, and most mistakes are silent:

1. The checks of `SuperposedLM` run the whole model, so they come before sharding.
2. Sharded weights are never initialized on each rank: on gloo every rank would get the same numbers. Rank 0 builds the
   model on the CPU, so its weights equal those of a run of one process bit for bit, and broadcasts them. The other
   ranks build it without storage.
3. Buffers that are not in the state dict, such as the frequencies of rotary embeddings, are broadcast too. After
   `to_empty` they would be zero.
4. The optimizers are built last, because sharding replaces the parameters.

`SuperposedLM` is the root of FSDP2: the embedding, the head and the loss use their weights inside its forward.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from token_superposition.errors import UserError
from token_superposition.models.build import check_length, model_cost
from token_superposition.models.device import DTYPES
from token_superposition.models.flops import ModelCost
from token_superposition.models.layers import checkpoint_activations, compile_layers, layers_of
from token_superposition.models.size_limits import TRAINED_BYTES, bytes_kept
from token_superposition.models.spec import ModelSpec
from token_superposition.models.superposed import SuperposedLM
from token_superposition.training.config import RunConfig
from token_superposition.training.distributed import World
from token_superposition.training.init_from import InitialModel
from token_superposition.training.parallel_config import ParallelConfig
from token_superposition.training.preflight import attention_refusal

# DDP's option for buffers, which are the same on all ranks, has a new name since torch 2.13.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
_COPIES = 3  # with DDP, activations and communication need about as much memory as two more copies of the state


@dataclass(frozen=True)
class Layout:
    """How many copies of the model there are, and how many ranks share the parts of each copy.

    Attributes:
        mode: `single` for one process.
        replicate, shard: their product is the number of ranks.
    """

    mode: Literal["single", "ddp", "fsdp", "hsdp"]
    replicate: int = 1
    shard: int = 1

    @property
    def words(self) -> str:
        """The layout as text for messages."""
        return {
            "single": "one process",
            "ddp": "each has the whole model (ddp)",
            "fsdp": "they share the parts of the model (fsdp)",
            "hsdp": f"{self.replicate} copies of the model, each shared by {self.shard} (hsdp)",
        }[self.mode]

    @property
    def sharded(self) -> bool:
        """Whether the ranks hold different parts of the model."""
        return self.mode in ("fsdp", "hsdp")


def choose_layout(config: ParallelConfig, size: int, *, per_machine: int, fits: bool) -> Layout:
    """The layout of a run.

    Args:
        config: the section of the configuration.
        size: number of ranks.
        per_machine: number of ranks on this machine.
        fits: whether three copies of the model's state fit into the memory of a device.

    Raises:
        UserError: if the numbers of the configuration do not multiply to the number of ranks.
    """
    if size == 1:
        return Layout("single")
    mode = ("ddp" if fits else "fsdp") if config.mode == "auto" else config.mode
    if mode != "hsdp":
        for name in ("shard", "replicate"):
            value, own = getattr(config, name), size if (name == "shard") == (mode == "fsdp") else 1
            if value is not None and value != own:
                raise UserError(
                    f"train.parallel.{name}: {value} does not agree with mode {mode} and {size} processes, which means "
                    f"{own}; remove the key, or use mode hsdp"
                )
        return Layout("ddp", size, 1) if mode == "ddp" else Layout("fsdp", 1, size)
    shard = config.shard or (size // config.replicate if config.replicate else per_machine)
    replicate = config.replicate or size // shard
    if replicate * shard != size:
        raise UserError(
            f"train.parallel: {replicate} copies (replicate) of {shard} processes each (shard) are "
            f"{replicate * shard}, but there are {size} processes"
        )
    return Layout("hsdp", replicate, shard)


def check_batch_divides(batch_size: int, micro_batch_size: int | None, size: int) -> None:
    """Check that every rank gets equally many rows, in whole micro-batches.

    Raises:
        UserError: names the numbers of processes or the batch sizes that divide.
    """
    if batch_size % size:
        near = sorted({batch_size // size * size or size, (batch_size // size + 1) * size})
        divisors = [n for n in range(1, min(batch_size, 4 * size) + 1) if batch_size % n == 0]
        raise UserError(
            f"train.batch_size: {batch_size} rows cannot be divided among {size} processes; use "
            f"{' or '.join(map(str, divisors))} processes, or a batch_size of {' or '.join(map(str, near))}"
        )
    rows = batch_size // size
    if micro_batch_size is not None and rows % micro_batch_size:
        fitting = [n for n in range(1, rows + 1) if rows % n == 0]
        raise UserError(
            f"train.micro_batch_size: {micro_batch_size} does not divide the {rows} rows of each of {size} processes; "
            f"use {' or '.join(map(str, fitting))}"
        )


class ParallelModel:
    """The superposed model of a run, on all its ranks.

    Attributes:
        model: the superposed model; its parameters are sharded if the layout is.
        root: the module to call for a forward with gradients.
        layout: how the ranks share the model.
        init_from: the record of the initial model on rank 0; None for new weights.
        cost: what a position costs.
        num_parameters: of the whole model.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: RunConfig,
        device: torch.device,
        world: World,
        source: InitialModel | None = None,
    ) -> None:
        self.world, self.device = world, device
        self.init_from: dict[str, Any] | None = None
        with world.together():
            outline = spec.meta(bytes_per_parameter=bytes_kept(device, loading=source is not None))
        self.layout = world.on_main(lambda: _layout(config, world, device, outline))
        whole = self.layout.sharded
        self.dtype = DTYPES[config.train.dtype]
        built: SuperposedLM | None = None
        with world.together():
            if not whole or world.is_main:
                built = self._build(spec, config, source, torch.device("cpu") if whole else device)
        if whole:
            built = self._shard(built, outline, config)
        assert built is not None
        self.model: SuperposedLM = built
        counted: Any = outline if whole else built.model
        self.cost: ModelCost = model_cost(counted)
        self.num_parameters = sum(parameter.numel() for parameter in built.model.parameters())
        self.root: Any = built
        built.train()
        if not whole:
            _prepare_layers(built.model, config)
        if self.layout.mode == "ddp":
            options: dict[str, Any] = {_SYNC_BUFFERS: False}
            self.root = DistributedDataParallel(
                built,
                device_ids=[device.index] if device.type == "cuda" else None,
                **options,
                gradient_as_bucket_view=True,
            )

    def _build(
        self, spec: ModelSpec, config: RunConfig, source: InitialModel | None, device: torch.device
    ) -> SuperposedLM:
        """The whole model on a device, checked."""
        train = config.train
        model = spec.build(train.seed, bytes_per_parameter=bytes_kept(device, loading=source is not None))
        check_length(model, train.sequence_length)
        if source is not None:
            self.init_from = source.fill(model)
        try:
            superposed = SuperposedLM(model.to(device), z_loss=train.z_loss, loss_backend=train.loss_backend)
        except TypeError as error:
            raise UserError(f"model.architecture: {error}") from error
        if config.data.attention_boundary == "document":
            try:
                superposed.keep_documents_apart()
            except TypeError as error:
                raise attention_refusal(error) from error
        return superposed

    def _shard(self, whole: SuperposedLM | None, outline: nn.Module | None, config: RunConfig) -> SuperposedLM:
        """The model with each rank's part of the weights of `whole`, which rank 0 has built."""
        train, world = config.train, self.world
        with world.together():
            if outline is None or not layers_of(outline):
                raise UserError(
                    f"train.parallel.mode: {config.model.architecture} cannot be sharded, because its layers are not "
                    "known or it cannot be built without storage; use ddp"
                )
        transform = world.on_main(lambda: whole.transform if whole is not None else None)
        dtype = world.on_main(lambda: next(whole.parameters()).dtype if whole is not None else None)
        model: Any = outline.to(dtype)
        superposed = SuperposedLM(model, verify=False, z_loss=train.z_loss, loss_backend=train.loss_backend)
        superposed.transform = transform
        superposed.documents_apart = config.data.attention_boundary == "document"
        _prepare_layers(model, config)
        options: dict[str, Any] = {"mesh": self._mesh()}
        if self.dtype != torch.float32:  # cast_forward_inputs would round the slot weights and the divisor
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for layer in layers_of(model):
            fully_shard(layer, **options)
        fully_shard(superposed, **options)
        register_fsdp_forward_method(superposed, "logits")
        superposed.to_empty(device=self.device)
        set_model_state_dict(
            model,
            whole.model.state_dict() if whole is not None else {},
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
        )
        found = {} if whole is None else dict(whole.model.named_buffers())
        for name, buffer in model.named_buffers():
            if whole is not None:
                buffer.copy_(found[name])
            dist.broadcast(buffer, src=0)
        return superposed

    def _mesh(self) -> DeviceMesh:
        kind, layout = self.device.type, self.layout
        if layout.mode == "fsdp":
            return init_device_mesh(kind, (layout.shard,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (layout.replicate, layout.shard), mesh_dim_names=("replicate", "shard"))

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """One forward and backward; gradients are added up over the ranks only in the last micro-batch of a step."""
        if self.layout.sharded:
            self.root.set_requires_gradient_sync(last)
        without = self.root.no_sync() if self.layout.mode == "ddp" and not last else contextlib.nullcontext()
        mixed = self.dtype != torch.float32 and not self.layout.sharded  # FSDP2 casts the weights itself
        with without, torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
            yield

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor on the device over all ranks; the host does not wait."""
        if self.layout.mode != "single":
            dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the gradients so that their norm is at most `limit`; returns the norm before."""
        most = float("inf") if limit is None else limit
        if not self.layout.sharded:
            return torch.nn.utils.clip_grad_norm_(parameters, most)
        # The norm of DTensors costs ten times as much as the norm of their local parts.
        grads = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        squares = torch.stack(torch._foreach_norm(grads)).square().sum()
        dist.all_reduce(squares, group=self._shard_group)
        norm = squares.sqrt()
        torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @property
    def _shard_group(self) -> dist.ProcessGroup:
        weight: Any = next(self.model.parameters())
        group: dist.ProcessGroup = weight.device_mesh.get_group("shard")
        return group

    def weights_are_finite(self) -> bool:
        """Whether every weight of every rank is finite; the same on all ranks."""
        fine = all(bool(torch.isfinite(_local(parameter)).all()) for parameter in self.model.parameters())
        return bool(self.world.sum(torch.tensor(0.0 if fine else 1.0)) == 0)


def _layout(config: RunConfig, world: World, device: torch.device, outline: nn.Module | None) -> Layout:
    fits = True
    if device.type == "cuda" and outline is not None:
        needed = _COPIES * TRAINED_BYTES * sum(parameter.numel() for parameter in outline.parameters())
        fits = needed <= torch.cuda.get_device_properties(device).total_memory
    return choose_layout(config.train.parallel, world.size, per_machine=world.per_machine, fits=fits)


def _prepare_layers(model: nn.Module, config: RunConfig) -> None:
    if config.train.activation_checkpointing:
        checkpoint_activations(model)
    if config.train.compile:  # after the checks, which use other shapes and would cause recompilation
        compile_layers(model)


def _local(tensor: Tensor | Any) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
