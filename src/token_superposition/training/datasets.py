"""What a run trains and validates on: one prepared folder, or a mixture of several by weight.

A mixture's validation loss is the mean of its sources', each on its own validation split, by the weights that it is
trained with; each source's own figures stand beside it, by its name.
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
from token_superposition.models.costs import bits_per_byte
from token_superposition.models.spec import ModelSpec
from token_superposition.schedule import MEASURED, Schedule
from token_superposition.training.config import DataConfig, ModelConfig, RunConfig
from token_superposition.training.validation import ValidationResult, Validator


class Corpora(NamedTuple):
    """A run's training data, by the sources' names; the name is empty where there is one."""

    datasets: dict[str, TokenDataset]
    weights: dict[str, float]

    @classmethod
    def open(cls, data: DataConfig) -> Corpora:
        """The training split of every source.

        Raises:
            UserError: where one is missing or damaged, or two are of different tokenizers.
        """
        datasets = {name: TokenDataset.open(source.path, "train") for name, source in data.mixture.items()}
        first, *others = datasets.values()
        for other in others:
            check_tokenizer(other, first)
        return cls(datasets, {name: source.weight for name, source in data.mixture.items()})

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all of them."""
        return self._all[0].tokenizer

    @property
    def num_tokens(self) -> int:
        """Of all of them."""
        return sum(dataset.num_tokens for dataset in self._all)

    @property
    def num_bytes(self) -> int:
        """Of text, of all of them."""
        return sum(dataset.num_bytes for dataset in self._all)

    @property
    def fingerprint(self) -> str:
        """Hex; equal for equal data wherever it lies."""
        if len(self._all) == 1:
            return self._all[0].fingerprint
        return hashlib.sha256("".join(dataset.fingerprint for dataset in self._all).encode()).hexdigest()

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return ", ".join(str(dataset.folder) for dataset in self._all)

    @property
    def _all(self) -> list[TokenDataset]:
        return list(self.datasets.values())

    def stream(self, config: RunConfig, schedule: Schedule) -> TokenStream:
        """The run's stream over it; UserError where a source is shorter than a row."""
        return TokenStream(
            [Source(name, dataset, self.weights[name]) for name, dataset in self.datasets.items()],
            schedule,
            sequence_length=config.train.sequence_length,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            documents_apart=config.data.bag_boundary == "document",
        )

    def model_spec(self, model: ModelConfig) -> ModelSpec:
        """The model of a configuration, for this data's tokenizer."""
        return ModelSpec.for_tokenizer(
            model.architecture, model.config, self.tokenizer, scale_residual_init=model.scale_residual_init
        )

    def measure_mutual_information(self, bag_size: int) -> MutualInformation:
        """What tokens share with those up to two bags on, of each source by its weight; UserError as there."""
        return measure_corpora(self._all, list(self.weights.values()), bag_size, place=self.place)


class Validators:
    """A run's validation: its own figure, and by name those of its sources and of the further sets.

    Raises:
        UserError: where a split is missing, shorter than a row, or of another tokenizer than the training data.
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
        """How many tokens the run's own figure is taken on where at most `max_tokens` are asked for."""
        return sum(each.num_tokens(int(max_tokens * self.shares[name])) for name, each in self.sources.items())

    def run(
        self, model: nn.Module, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[ValidationResult, dict[str, ValidationResult]]:
        """Next-token loss on the first `max_tokens` tokens of a set; of a mixture's, in all."""
        further = {name: each.run(model, max_tokens, device, dtype) for name, each in self.further.items()}
        parts = {
            name: each.run(model, int(max_tokens * self.shares[name]), device, dtype)
            for name, each in self.sources.items()
        }
        if len(parts) == 1:
            return next(iter(parts.values())), further
        return mixed_result(list(parts.values()), list(self.shares.values())), {**parts, **further}


def mixed_result(parts: list[ValidationResult], shares: list[float]) -> ValidationResult:
    """The figures of a text whose tokens are of several sources, in these shares."""
    loss = sum(share * part.loss for share, part in zip(shares, parts, strict=True))
    lost = [part.text_lost for part in parts]
    bytes_a_token = sum(share * part.num_bytes / part.num_tokens for share, part in zip(shares, parts, strict=True))
    return ValidationResult(
        loss,
        bits_per_byte(loss, bytes_a_token),
        sum(part.num_tokens for part in parts),
        sum(part.num_bytes for part in parts),
        None if None in lost else sum(share * (part or 0.0) for share, part in zip(shares, lost, strict=True)),
    )


def check_tokenizer(dataset: TokenDataset, reference: TokenDataset) -> None:
    """Refuse data of another tokenizer than the training data's."""
    if dataset.tokenizer.fingerprint != reference.tokenizer.fingerprint:
        raise UserError(
            f"{dataset.folder}: was prepared with tokenizer {dataset.tokenizer.name!r}, the training data in "
            f"{reference.folder} with another, {reference.tokenizer.name!r}; prepare both with the same"
        )


# `slot_weights: mutual_information` in a run: measured on its data once, when it starts, and the same from then on.
#
# One measurement serves every stage, out to twice the largest bag: the law is of the corpus, and a bag of s takes its
# first s values. What came out stands in the run's `config.yaml` and stages as `mutual_information:C0,a,k`, and the
# estimates in its `run.json`, so that a run that goes on, another machine and an export need no corpus to know it.


def measure_slot_weights(config: RunConfig) -> tuple[RunConfig, MutualInformation | None]:
    """The configuration with the numbers of the weights that are to be measured, and the measurement, if any was.

    Takes seconds where a superposition stage asks for it.

    Raises:
        UserError: where the data is too short for it, or shows no decay.
    """
    bag_sizes = [stage.bag_size for stage in config.schedule().stages if stage.slot_weights == MEASURED]
    if max(bag_sizes, default=1) == 1:
        return config, None
    found = Corpora.open(config.data).measure_mutual_information(max(bag_sizes))
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
    """Put the numbers that a run measured when it started where its configuration asks for them again.

    Args:
        settled: the `superposition` section that was given; changed in place.
        stored: that of the run.
    """
    givens, before = (part.get("stages") or [part] for part in (settled, stored))
    for given, old in zip(givens, before, strict=False):  # of other stages the run is refused anyway
        if given["slot_weights"] == MEASURED and old["slot_weights"].startswith(f"{MEASURED}:"):
            given["slot_weights"] = old["slot_weights"]
