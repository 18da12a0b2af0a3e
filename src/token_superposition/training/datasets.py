"""The datasets of a run: training data, validation data and measured slot weights.

Training data is one dataset folder, or a weighted mixture of several folders (`Corpora`).

Validation measures each source on its own validation split (`Validators`). The validation loss of a mixture is the
mean over its sources, with the weights of the training. The results of each source are also reported by name.

With `slot_weights: mutual_information`, the weights are measured on the training data once, when the run starts
(`measure_slot_weights`). One measurement covers all stages, up to twice the largest bag size, because the decay law
belongs to the corpus; a bag of size s uses the first s values. `config.yaml` and the stages of the run store the result
as `mutual_information:C0,a,k`, and `run.json` stores the estimates. A resumed run, another machine and an export
therefore need no corpus to know the weights.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import nn

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.mutual_information import MutualInformation, measure_corpora
from token_superposition.data.stream import Source, TokenStream
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError
from token_superposition.models.flops import bits_per_byte
from token_superposition.models.spec import ModelSpec
from token_superposition.schedule import MEASURED, Schedule
from token_superposition.training.config import DataConfig, ModelConfig, RunConfig
from token_superposition.training.distributed import World
from token_superposition.training.validation import ValidationResult, Validator


class Corpora(NamedTuple):
    """The training data of a run by source name; the name of a single source is empty."""

    datasets: dict[str, TokenDataset]
    weights: dict[str, float]

    @classmethod
    def open(cls, data: DataConfig) -> Corpora:
        """Open the training split of every source.

        Raises:
            UserError: if a source is missing or damaged, or if sources have different tokenizers.
        """
        datasets = {name: TokenDataset.open(source.path, "train") for name, source in data.mixture.items()}
        first, *others = datasets.values()
        for other in others:
            check_tokenizer(other, first)
        return cls(datasets, {name: source.weight for name, source in data.mixture.items()})

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all sources."""
        return self._all[0].tokenizer

    @property
    def num_tokens(self) -> int:
        """Number of training tokens of all sources."""
        return sum(dataset.num_tokens for dataset in self._all)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of training text of all sources."""
        return sum(dataset.num_bytes for dataset in self._all)

    @property
    def fingerprint(self) -> str:
        """A hash of the data in hex; the location of the data does not change it."""
        if len(self._all) == 1:
            return self._all[0].fingerprint
        return hashlib.sha256("".join(dataset.fingerprint for dataset in self._all).encode()).hexdigest()

    @property
    def place(self) -> str:
        """The folders of the data, for messages."""
        return ", ".join(str(dataset.folder) for dataset in self._all)

    @property
    def _all(self) -> list[TokenDataset]:
        return list(self.datasets.values())

    def stream(self, config: RunConfig, schedule: Schedule, world: World | None = None) -> TokenStream:
        """The token stream of the run, for this rank's rows; UserError if a source is shorter than a row."""
        return TokenStream(
            [Source(name, dataset, self.weights[name]) for name, dataset in self.datasets.items()],
            schedule,
            sequence_length=config.train.sequence_length,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            documents_apart=config.data.bag_boundary == "document",
            rank=0 if world is None else world.rank,
            world_size=1 if world is None else world.size,
        )

    def model_spec(self, model: ModelConfig) -> ModelSpec:
        """The model of a configuration, for this data's tokenizer."""
        return ModelSpec.for_tokenizer(
            model.architecture, model.config, self.tokenizer, scale_residual_init=model.scale_residual_init
        )

    def measure_mutual_information(self, bag_size: int) -> MutualInformation:
        """The mutual information of tokens at distances up to two bags, weighted by source; see `measure_corpora`."""
        return measure_corpora(self._all, list(self.weights.values()), bag_size, place=self.place)


class Validators:
    """Validation of a run on its sources and on the additional validation sets.

    Raises:
        UserError: if a split is missing, is shorter than a row, or has another tokenizer than the training data.
    """

    def __init__(self, config: RunConfig, corpora: Corpora) -> None:
        train, reference = config.train, next(iter(corpora.datasets.values()))

        def make(folder: str) -> Validator:
            split = TokenDataset.open(folder, "validation")
            check_tokenizer(split, reference)
            batch_size = train.micro_batch_size or train.batch_size
            return Validator(split, sequence_length=train.sequence_length, batch_size=batch_size)

        total = sum(corpora.weights.values())
        self.shares = {name: weight / total for name, weight in corpora.weights.items()}
        self.sources = {name: make(source.path) for name, source in config.data.mixture.items()}
        self.further = {name: make(path) for name, path in config.data.validation_sets.items()}

    def num_tokens(self, max_tokens: int) -> int:
        """Number of tokens on which the run's validation loss is measured, for a limit of `max_tokens`."""
        return sum(each.num_tokens(int(max_tokens * self.shares[name])) for name, each in self.sources.items())

    def run(
        self, model: nn.Module, max_tokens: int, device: torch.device, dtype: torch.dtype, world: World | None = None
    ) -> tuple[ValidationResult, dict[str, ValidationResult]]:
        """Next-token loss on the first tokens of each set; returns the run's result, and other results by name.

        `max_tokens` is the limit per set; the sources of a mixture share one limit.
        """
        further = {name: each.run(model, max_tokens, device, dtype, world) for name, each in self.further.items()}
        parts = {
            name: each.run(model, int(max_tokens * self.shares[name]), device, dtype, world)
            for name, each in self.sources.items()
        }
        if len(parts) == 1:
            return next(iter(parts.values())), further
        return mixed_result(list(parts.values()), list(self.shares.values())), {**parts, **further}


def mixed_result(parts: list[ValidationResult], shares: list[float]) -> ValidationResult:
    """The validation result of a mixture, from the results of its sources and their shares of the tokens."""
    loss = sum(share * part.loss for share, part in zip(shares, parts, strict=True))
    lost = [part.text_lost for part in parts]
    bytes_per_token = sum(share * part.num_bytes / part.num_tokens for share, part in zip(shares, parts, strict=True))
    return ValidationResult(
        loss,
        bits_per_byte(loss, bytes_per_token),
        sum(part.num_tokens for part in parts),
        sum(part.num_bytes for part in parts),
        None if None in lost else sum(share * (part or 0.0) for share, part in zip(shares, lost, strict=True)),
    )


def check_tokenizer(dataset: TokenDataset, reference: TokenDataset) -> None:
    """Raise UserError if a dataset has another tokenizer than the reference dataset."""
    if dataset.tokenizer.fingerprint != reference.tokenizer.fingerprint:
        raise UserError(
            f"{dataset.folder}: was prepared with tokenizer {dataset.tokenizer.name!r}, but the training data in "
            f"{reference.folder} with tokenizer {reference.tokenizer.name!r}; prepare both with the same tokenizer"
        )


def measure_slot_weights(config: RunConfig, corpora: Corpora) -> tuple[RunConfig, MutualInformation | None]:
    """Measure the slot weights if a superposition stage needs this, which takes seconds.

    Returns:
        The configuration with measured slot weights, and the measurement; the unchanged configuration and None if no
        stage needs a measurement.

    Raises:
        UserError: if the data is too short for the measurement, or shows no decay.
    """
    bag_sizes = [stage.bag_size for stage in config.schedule().stages if stage.slot_weights == MEASURED]
    if max(bag_sizes, default=1) == 1:
        return config, None
    found = corpora.measure_mutual_information(max(bag_sizes))
    part = config.superposition
    if part.stages is None:
        part = part.model_copy(update={"slot_weights": found.slot_weights})
    else:
        stages = [
            stage.model_copy(update={"slot_weights": found.slot_weights}) if stage.slot_weights == MEASURED else stage
            for stage in part.stages
        ]
        part = part.model_copy(update={"stages": stages})
    return config.model_copy(update={"superposition": part}), found


def take_measured(settled: dict[str, Any], stored: dict[str, Any]) -> None:
    """Replace `mutual_information` in a given configuration by the values that the run measured at its start.

    Args:
        settled: the given `superposition` section; changed in place.
        stored: the `superposition` section of the run.
    """
    givens, before = (part.get("stages") or [part] for part in (settled, stored))
    for given, old in zip(givens, before, strict=False):  # a run with other stages is refused elsewhere
        if given["slot_weights"] == MEASURED and old["slot_weights"].startswith(f"{MEASURED}:"):
            given["slot_weights"] = old["slot_weights"]
