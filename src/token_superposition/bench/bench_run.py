"""The run that is measured: model, optimizer and data at several bag sizes.

A `BenchRun` is one configuration whose schedule has a stage for each bag size. One trainer with one set of weights does
the steps of all bag sizes, with the same latent shape, memory and kernels. The learning rate is almost zero, so that
every step of every bag size uses nearly the same weights.

Without data, the measurement uses random tokens. They are in a temporary folder in the format of `tst prepare`, so the
measurement includes the normal loader.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from token_superposition.bench.bench_options import config_of
from token_superposition.data.dataset import ShardWriter, token_dtype
from token_superposition.data.manifest import (
    DATASET_FILE,
    DATASET_FORMAT,
    DATASET_VERSION,
    shard_name,
)
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError
from token_superposition.files import is_whole_number, write_json
from token_superposition.models.device import resolve_device
from token_superposition.schedule import MEASURED, Schedule, Stage
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.preflight import check_batch
from token_superposition.training.run import resolve_machine
from token_superposition.training.trainer import Trainer, prepare_process

STAGE_STEPS = 10**6  # more steps than any measurement needs
_LEARNING_RATE = 1e-9
_TOKENS = 2**24  # size of a random corpus, unless one window of the run is larger
_MOST_TOKENS = 2**28


@dataclass(frozen=True)
class BenchRun:
    """A run to measure.

    Attributes:
        config: the resolved configuration, without any value `auto`; its data exists.
        schedule: a stage of STAGE_STEPS steps for each bag size, in ascending order.
        random_data: text that says why random tokens are used; None if the data of the configuration is used.
    """

    config: RunConfig
    schedule: Schedule
    random_data: str | None

    def at_rows(self, rows: int, num_micro_batches: int, bag_size: int) -> BenchRun:
        """The same run at one bag size, with `num_micro_batches` micro-batches of `rows` rows per step."""
        sizes = {"train.batch_size": rows * num_micro_batches, "train.micro_batch_size": rows}
        config = parse_config(self.config.model_dump(mode="json", exclude_unset=True), sizes)
        stages = [stage for stage in self.schedule.stages if stage.bag_size == bag_size]
        return BenchRun(config, Schedule(stages), self.random_data)

    def trainer(self) -> Trainer:
        """Build the trainer of the run; UserError if its parts do not match each other or this machine."""
        prepare_process(self.config)
        return Trainer(self.config, self.schedule)

    def as_dict(self) -> dict[str, Any]:
        """The run as JSON values, for `from_dict`."""
        config = self.config.model_dump(mode="json", exclude_unset=True)
        return {"config": config, "stages": self.schedule.as_dicts(), "random_data": self.random_data}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchRun:
        """The run from the values of `as_dict` of another process."""
        return cls(parse_config(values["config"]), Schedule.from_dicts(values["stages"]), values["random_data"])


@contextlib.contextmanager
def opened(path: Path | None, overrides: Mapping[str, Any], bag_sizes: Sequence[int]) -> Iterator[BenchRun]:
    """Yield a run at several bag sizes, ready for measurement; its temporary files are deleted after the block.

    Args:
        path: configuration file of a run; None for the demo.
        overrides: values by dotted path.
        bag_sizes: the bag sizes to measure.

    Raises:
        UserError: if the configuration is invalid, or the data exists but cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="tst-bench-") as name:
        place = Path(name)
        given = config_of(path, overrides, place / "none")
        resolve_device(given.train.device)
        config = resolve_machine(_at_bag_sizes(given, bag_sizes))
        schedule = Schedule([_stage(config, bag_size) for bag_size in sorted(bag_sizes)])
        check_batch(config)
        random_data = None
        missing = [folder for folder in given.data.folders if not Path(folder).exists()]
        if missing:
            vocab_size = _write_random(place / "data", config, schedule)
            random_data = "no configuration was given" if path is None else f"{missing[0]} does not exist"
            random_data += f": using random tokens with a vocabulary of {vocab_size:,}"
            if path is not None and "vocab_size" not in config.model.config:
                random_data += " (of the byte tokenizer; --model.config.vocab_size sets another)"
            values = config.model_dump(mode="json", exclude_unset=True)
            config = parse_config({**values, "data": {"path": str(place / "data")}})
        yield BenchRun(config, schedule, random_data)


def _at_bag_sizes(config: RunConfig, bag_sizes: Sequence[int]) -> RunConfig:
    """The configuration with the bag sizes to measure, and without additional validation sets."""
    given = config.superposition
    kind = given.stages[0] if given.stages else given
    largest = max(bag_sizes)
    superposition: dict[str, Any] = {"bag_size": largest}
    if largest > 1:
        # The time of a step does not depend on the kind of weights, so unmeasured weights are replaced.
        weights = "power_law" if kind.slot_weights == MEASURED else kind.slot_weights
        superposition |= {"superposition_steps": 1, "mode": kind.mode, "slot_weights": weights}
    values = config.model_dump(mode="json", exclude_unset=True)
    train = {"total_steps": len(bag_sizes) * STAGE_STEPS, "learning_rate": _LEARNING_RATE}
    values["train"] = {**values.get("train", {}), **train}
    values["data"].pop("validation_sets", None)
    return parse_config({**values, "superposition": superposition}, source="--bag-sizes")


def _stage(config: RunConfig, bag_size: int) -> Stage:
    if bag_size == 1:
        return Stage(1, STAGE_STEPS)
    return Stage(bag_size, STAGE_STEPS, config.superposition.mode, config.superposition.slot_weights)


def _write_random(folder: Path, config: RunConfig, schedule: Schedule) -> int:
    """Write a dataset folder of random tokens; returns the size of their vocabulary.

    The tokenizer is the byte tokenizer for any vocabulary, because a measurement never converts ids to text. An id has
    two bytes, so for a larger vocabulary only the first 65,536 ids occur.
    """
    tokenizer, length = ByteTokenizer(), config.train.sequence_length
    named = config.model.config.get("vocab_size")
    vocab_size = named if isinstance(named, int) and is_whole_number(named, 1) else tokenizer.vocab_size
    window = length * schedule.input_period + schedule.bag_size
    if window > _MOST_TOKENS:
        raise UserError(
            f"--bag-sizes: a window of {length} positions times the bag sizes' least common multiple "
            f"{schedule.input_period:,} is {window:,} tokens; use sizes that divide each other, such as 1,2,4,8"
        )
    folder.mkdir()
    tokenizer.save(folder)
    generator = np.random.default_rng(0)
    most = min(vocab_size, 2**16)
    splits = {}
    for split, num_tokens in (("train", max(_TOKENS, 2 * window)), ("validation", 2 * (length + 1))):
        with ShardWriter(folder / shard_name(split, 0), tokenizer) as shard:
            shard.add(generator.integers(0, most, num_tokens, dtype=token_dtype(most)), num_tokens)
        counts = {"tokens": num_tokens, "bytes": num_tokens, "documents": 1}
        splits[split] = {**counts, "shards": [{"file": shard_name(split, 0), **counts}]}
    description = {"format": DATASET_FORMAT, "version": DATASET_VERSION, "splits": splits, "random_ids": most}
    write_json(folder / DATASET_FILE, description)
    return vocab_size
