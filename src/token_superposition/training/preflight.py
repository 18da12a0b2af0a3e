"""What can be found wrong with a run before it starts: before its folder is filled or its model is built.

`tst train` asks about its own run, a study about every arm before it starts the first.
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
_AHEAD = 3  # batches in memory: one is trained on, two are made ready


def check_data(config: RunConfig, say: Callable[[str], None] | None = None) -> None:
    """Verify the data, unless the configuration says not to, and that a step's batch fits into memory.

    Args:
        config: the run's configuration.
        say: takes a line now and then, where it takes long.

    Raises:
        UserError: for data that is damaged, or a batch larger than this machine.
    """
    check_batch(config)
    if config.data.verify:
        for path in config.data.folders:
            verify_folder(Path(path), say)


def check_batch(config: RunConfig) -> None:
    """Compare a step's token ids with the memory there is; UserError says both."""
    train = config.train
    row, bag_size = max(
        (stage.input_bag_size * train.sequence_length + stage.bag_size, stage.bag_size)
        for stage in config.schedule().stages
    )
    num_bytes = _AHEAD * train.batch_size * row * _ID_BYTES * 2  # inputs and targets
    memory = available_memory()
    if num_bytes > memory:
        raise UserError(
            f"train.batch_size: {train.batch_size} rows of {train.sequence_length} positions of {bag_size} tokens take "
            f"{gigabytes(num_bytes)} for their token ids alone, and this machine has {gigabytes(memory)} free; "
            "lower train.batch_size, train.sequence_length or the bag size"
        )


def check_attention(config: RunConfig, architecture: str, keys: Mapping[str, Any]) -> None:
    """Refuse a model whose attention cannot be kept within documents where it is to be, before it is built.

    A family of which that cannot be told in small is asked once more when its own model is there.
    """
    if config.data.attention_boundary == "document":
        reason = refuses_documents_apart(architecture, keys)
        if reason is not None:
            raise attention_refusal(reason)


def attention_refusal(reason: object) -> UserError:
    """What is said of such a model."""
    return UserError(
        f"data.attention_boundary: document: {reason}; leave it out (data.bag_boundary: document keeps bags "
        "and targets within documents all the same), or take another model.architecture"
    )


def check_run(
    config: RunConfig, say: Callable[[str], None] | None = None
) -> tuple[RunConfig, InitialModel | None, MutualInformation | None]:
    """All of it: device, data, lengths, model.

    Returns:
        The configuration with its slot weights measured, where they are to be; what it goes on from, if anything; and
        what was measured, if anything.

    Raises:
        UserError: where the data, the model and the configuration do not fit each other or this machine.
    """
    train = config.train
    device = resolve_device(train.device)
    corpora = Corpora.open(config.data)
    check_data(config, say)
    config, found = measure_slot_weights(config)
    corpora.stream(config, config.schedule())  # refuses what is too short
    Validators(config, corpora)
    source, part = open_source(config), config.model
    if source is not None:
        part = ModelConfig(**settle_model(part, source.architecture, source.keys, corpora.tokenizer))
    model = corpora.model_spec(part).meta(bytes_per_parameter=bytes_kept(device, loading=source is not None))
    if model is not None:
        check_length(model, train.sequence_length)
    check_attention(config, part.architecture, part.config)
    return config, source, found
