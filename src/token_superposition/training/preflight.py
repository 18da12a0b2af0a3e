"""Checks of a run before it starts, that is before its folder is written and its model is built.

`tst train` checks its own run. A study checks every arm before it starts the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from token_superposition.data.dataset import verify_folder
from token_superposition.data.mutual_information import MutualInformation
from token_superposition.errors import UserError
from token_superposition.models.build import check_length
from token_superposition.models.device import resolve_device
from token_superposition.models.size_limits import available_memory, bytes_kept, gigabytes
from token_superposition.models.tiny_model import refuses_documents_apart
from token_superposition.training.config import ModelConfig, RunConfig
from token_superposition.training.datasets import Corpora, Validators, measure_slot_weights
from token_superposition.training.init_from import InitialModel, open_source, settle_model

_ID_BYTES = 8
_AHEAD = 3  # batches in memory: one in training, two prefetched


def check_data(config: RunConfig, say: Callable[[str], None] | None = None) -> None:
    """Verify the data if `data.verify` is set, and check that the batch of a step fits into memory.

    Args:
        config: the run's configuration.
        say: function that prints progress lines of a long verification.

    Raises:
        UserError: if the data is damaged, or if a batch exceeds the memory of this machine.
    """
    check_batch(config)
    if config.data.verify:
        for path in config.data.folders:
            verify_folder(Path(path), say)


def check_batch(config: RunConfig) -> None:
    """Raise UserError if the token ids of a step exceed the available memory."""
    train = config.train
    row, bag_size = max(
        (stage.input_bag_size * train.sequence_length + stage.bag_size, stage.bag_size)
        for stage in config.schedule().stages
    )
    num_bytes = _AHEAD * train.batch_size * row * _ID_BYTES * 2  # inputs and targets
    memory = available_memory()
    if num_bytes > memory:
        raise UserError(
            f"train.batch_size: {train.batch_size} rows of {train.sequence_length} positions of {bag_size} tokens need "
            f"{gigabytes(num_bytes)} for their token ids alone, but this machine has only {gigabytes(memory)} free; "
            "lower train.batch_size, train.sequence_length or the bag size"
        )


def check_attention(config: RunConfig, architecture: str, keys: Mapping[str, Any]) -> None:
    """Refuse `attention_boundary: document` for a model that does not support it, before the model is built.

    If a small model of the family cannot answer this, the trainer repeats the check with the full model.
    """
    if config.data.attention_boundary == "document":
        reason = refuses_documents_apart(architecture, keys)
        if reason is not None:
            raise attention_refusal(reason)


def attention_refusal(reason: object) -> UserError:
    """The error for such a model."""
    return UserError(
        f"data.attention_boundary: document: {reason}; remove the key (data.bag_boundary: document still keeps bags "
        "and targets within documents), or use another model.architecture"
    )


def check_run(
    config: RunConfig, say: Callable[[str], None] | None = None
) -> tuple[RunConfig, InitialModel | None, MutualInformation | None]:
    """Check device, data, lengths and model of a run.

    Returns:
        The configuration, with measured slot weights if it needs them; the model that the run starts from, or None;
        and the measurement of the slot weights, or None.

    Raises:
        UserError: if data, model and configuration do not match each other or this machine.
    """
    train = config.train
    device = resolve_device(train.device)
    corpora = Corpora.open(config.data)
    check_data(config, say)
    config, found = measure_slot_weights(config, corpora)
    corpora.stream(config, config.schedule())  # raises UserError for data that is too short
    Validators(config, corpora)
    source, part = open_source(config, corpora.tokenizer), config.model
    if source is not None:
        part = ModelConfig(**settle_model(part, source.architecture, source.keys, corpora.tokenizer))
    model = corpora.model_spec(part).meta(bytes_per_parameter=bytes_kept(device, loading=source is not None))
    if model is not None:
        check_length(model, train.sequence_length)
    check_attention(config, part.architecture, part.config)
    return config, source, found
