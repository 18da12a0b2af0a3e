"""The `train.parallel` section: how the processes of torchrun share a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from token_superposition.training.config_types import Positive, PositiveInt, Section


class ParallelConfig(Section):
    """How several processes share the model; without torchrun there is one process, and no key has an effect."""

    mode: Literal["auto", "ddp", "fsdp", "hsdp"] = Field(
        "auto",
        description="ddp: every process holds the whole model; fsdp: the processes share its parts; hsdp: groups of "
        "processes share the parts, and each group has a copy; auto: ddp if three copies of weights, gradients and "
        "optimizer state fit into the memory of a GPU, else fsdp",
    )
    shard: PositiveInt | None = Field(
        None, description="processes that share the parts of one copy, for hsdp; null: the processes of one machine"
    )
    replicate: PositiveInt | None = Field(
        None, description="number of copies, for hsdp; null: all processes divided by shard"
    )
    timeout_seconds: Positive = Field(
        600.0, description="seconds after which a process that does not answer ends the run; the start has 1800"
    )
