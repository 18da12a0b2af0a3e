"""`tst train --dry-run`: describe a run without training and without writing files.

The configuration, the data and the folder get the same checks as in the run. No memory is allocated for the model, so
the answer takes seconds for a model of any size on any machine.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from token_superposition.models.build import check_length, model_cost
from token_superposition.models.device import DTYPES
from token_superposition.models.step_memory import MemoryEstimate, abstract, estimate_memory
from token_superposition.schedule import describe_slot_weights
from token_superposition.training.config import RunConfig, TrainConfig
from token_superposition.training.datasets import Validators
from token_superposition.training.optim import states_kept
from token_superposition.training.preflight import check_attention, check_data
from token_superposition.training.run import Run, run_warnings
from token_superposition.training.run_folder import RunFolder

_BAGS_SHOWN = 12


def dry_run(config: RunConfig, path: Path) -> dict[str, Any]:
    """Check and describe a run.

    Returns:
        `config` (resolved), `parameters`, `stages`, `switch_step`, `flops_per_position`, `flops`, `positions`,
        `raw_tokens`, `unique_raw_tokens`, `epochs`, `padding_tokens`, `sources` (these counts per source), `memory`
        (bytes; see `MemoryEstimate`), `first_batch` (its shapes, and the first bags of its first row as pairs of input
        and target text) and `warnings`.

    Raises:
        UserError: if the run itself would raise it.
    """
    run = Run.open(RunFolder(path), config)
    check_data(run.config)
    run = run.measure_slot_weights()
    config, schedule, corpora = run.config, run.schedule, run.corpora
    train = config.train
    Validators(config, corpora)
    stream = corpora.stream(config, schedule)
    batch, coverage, sources = stream.batch(0), stream.coverage(), stream.coverages()
    check_attention(config, config.model.architecture, config.model.config)
    with abstract():
        model = corpora.model_spec(config.model).build_unchecked()
        check_length(model, train.sequence_length)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        flops_per_position = model_cost(model).flops_per_position(train.sequence_length)
        memory = step_memory(model, train, batch.ids.shape[-1], batch.targets.shape[-1], DTYPES[train.dtype])

    def decode(ids: Tensor) -> str:
        return corpora.tokenizer.decode(ids[ids >= 0].tolist())

    positions = schedule.positions(train.positions_per_step)
    return {
        "config": config.model_dump(mode="json"),
        "parameters": parameters,
        "stages": schedule.as_dicts(),
        "switch_step": schedule.switch_step,
        "steps": schedule.total_steps,
        "flops_per_position": flops_per_position,
        "flops": positions * flops_per_position,
        "positions": positions,
        **coverage.counters(),
        "train_tokens": corpora.num_tokens,
        "sources": {name: each.counters() for name, each in sources.items()} if len(sources) > 1 else {},
        "memory": {**asdict(memory), "total": memory.total},
        "first_batch": {
            "ids_shape": list(batch.ids.shape),
            "targets_shape": list(batch.targets.shape),
            "bags": [
                [decode(ids), decode(targets)]
                for ids, targets in zip(batch.ids[0, :_BAGS_SHOWN], batch.targets[0, :_BAGS_SHOWN], strict=True)
            ],
        },
        "warnings": run_warnings(config, stream, run.source),
    }


def step_memory(
    model: nn.Module, train: TrainConfig, bag_size: int, num_targets: int, dtype: torch.dtype
) -> MemoryEstimate:
    """Estimate the memory of a step; call this inside `abstract()`, with a model from `sketch`.

    Args:
        model, train: the run's model and `train` section.
        bag_size, num_targets: tokens that a position reads, and tokens that it predicts.
        dtype: data type of the computation.
    """
    return estimate_memory(
        model,
        ids_shape=(train.micro_batch_size or train.batch_size, train.sequence_length, bag_size),
        num_targets=num_targets,
        dtype=dtype,
        optimizer_states=states_kept(model, train),
        loss_backend=train.loss_backend,
        activation_checkpointing=train.activation_checkpointing,
    )


def describe(result: dict[str, Any]) -> str:
    """The result of `dry_run` as text."""
    memory, batch = result["memory"], result["first_batch"]
    stages = "; ".join(
        f"{stage['steps']:,} steps with bags of {stage['bag_size']} ({stage['mode']}, "
        f"{describe_slot_weights(stage['slot_weights'])})"
        if stage["bag_size"] > 1
        else f"{stage['steps']:,} steps of next-token training"
        for stage in result["stages"]
    )
    parts = ", ".join(f"{name} {_size(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations"))
    bags = "\n".join(f"  {given!r} -> {wanted!r}" for given, wanted in batch["bags"])
    return "\n".join(
        [
            yaml.safe_dump(result["config"], sort_keys=False, allow_unicode=True),
            f"parameters    {result['parameters']:,}",
            f"stages        {stages}",
            f"positions     {result['positions']:,}",
            f"raw tokens    {result['raw_tokens']:,} ({result['unique_raw_tokens']:,} unique): "
            f"{result['epochs']:.2f} epochs of {result['train_tokens']:,}"
            + (f"; {result['padding_tokens']:,} slots are padding" if result["padding_tokens"] else ""),
            *(
                f"              {name}: {each['raw_tokens']:,}, {each['epochs']:.2f} epochs"
                for name, each in result["sources"].items()
            ),
            f"FLOPs         {result['flops']:.3g} ({result['flops_per_position']:,} per position)",
            f"memory        about {_size(memory['total'])}"
            f"{' without activations' if memory['activations'] is None else ''}: {parts}",
            f"first batch   {batch['ids_shape']} ids, {batch['targets_shape']} targets; the start of its first row:",
            bags,
            *(f"warning: {text}" for text in result["warnings"]),
            "nothing was trained or written",
        ]
    )


def _size(size: int | None) -> str:
    if size is None:
        return "unknown for this family"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
