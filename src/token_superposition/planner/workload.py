"""What is planned: the model, batch and corpus of a configuration, or of a model with a given parameter count.

The `superposition` section of a configuration is ignored, because the plan recommends one. Its model is built without
storage, as in `tst train --dry-run`. For a parameter count the model is counted by arithmetic, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from token_superposition.errors import UserError
from token_superposition.files import expanded, is_whole_number
from token_superposition.formatting import count_in_words
from token_superposition.planner.measured_runs import RunSize, Start, Unit, paper_runs
from token_superposition.planner.shapes import shape_for
from token_superposition.yaml_values import as_text

if TYPE_CHECKING:
    from token_superposition.models.flops import ModelCost
    from token_superposition.training.config import RunConfig
    from token_superposition.training.datasets import Corpora

DATA_PATH = "data/corpus"
_BYTE_VOCABULARY = 320
_SMALL = 30_000_000  # parameters; under it a vocabulary of 32,768 would be most of the model
_BATCHES = ((10**7, 2**14, 256), (10**8, 2**17, 1024), (10**9, 2**19, 2048), (3 * 10**9, 2**20, 2048))
_LARGE_BATCH = (2**21, 2048)  # positions a step, positions a row
_MICRO_BATCH = 8
_WARMUP_STEPS = 2000


@dataclass(frozen=True)
class Workload:
    """What is planned.

    Attributes:
        source: the file or option that it is from.
        values: the run's configuration, nested, without a superposition section.
        architecture, parameters, vocab_size: of the model.
        active_parameters: used per position; fewer than all in a mixture of experts.
        flops_per_position: forward and backward.
        positions_per_step, sequence_length: of the batch.
        total_steps: of the configuration; None for a parameter count.
        unit, start: the kind of its tokens; fresh or trained weights.
        corpus: the training text; None if not known.
        assumptions: what was not given, in words.
    """

    source: str
    values: dict[str, Any]
    architecture: str
    parameters: int
    active_parameters: int
    vocab_size: int
    flops_per_position: int
    positions_per_step: int
    sequence_length: int
    total_steps: int | None
    unit: Unit
    start: Start
    corpus: PlannedCorpus | None
    assumptions: list[str]

    @property
    def flops_per_step(self) -> int:
        """Of all positions of a step."""
        return self.flops_per_position * self.positions_per_step

    def scale(self, total_steps: int) -> RunSize:
        """Of a run of so many steps."""
        return RunSize(self.active_parameters, total_steps * self.positions_per_step)

    def config(self, total_steps: int) -> dict[str, Any]:
        """The configuration of a run of so many steps. For a parameter count, warm-up is the paper's, or a tenth."""
        train = {**self.values.get("train", {}), "total_steps": total_steps}
        if self.total_steps is None and train.get("warmup_steps") is None:
            train.setdefault("warmup_ratio", round(min(0.1, _WARMUP_STEPS / total_steps), 6))
        return {**self.values, "train": train}


def workload_of_config(path: Path, keys: Mapping[str, Any], corpus_tokens: int | None) -> Workload:
    """A run's YAML file, with keys that override it.

    Raises:
        UserError: for what `tst train` refuses, or if neither data nor a key gives the vocabulary.
    """
    from token_superposition.training.config import parse_config, read_yaml

    values, lines = read_yaml(path)
    values = {key: value for key, value in values.items() if key != "superposition"}
    config = parse_config(values, keys, source=str(path), lines=lines)
    return _counted(config, str(path), config.train.total_steps, corpus_tokens, [])


def workload_of_size(
    parameters: int, vocab_size: int | None, keys: Mapping[str, Any], corpus_tokens: int | None
) -> Workload:
    """A Llama of usual shape with about so many parameters and a usual batch; keys override its configuration.

    Raises:
        UserError: if no usual shape has so many parameters, or a key does not fit.
    """
    from token_superposition.training.config import parse_config

    path = expanded(str(as_text(keys.get("data.path", DATA_PATH))))
    assumptions = []
    if vocab_size is None:
        corpora = _corpora_at(path)
        if corpora is not None:
            vocab_size = corpora.tokenizer.vocab_size
        else:
            vocab_size = 32_768 if parameters >= _SMALL else 4_096
            assumptions.append(f"a vocabulary of {vocab_size:,} (--vocab-size)")
    shape = shape_for(parameters, vocab_size)
    positions, length = next((rest for most, *rest in _BATCHES if parameters < most), _LARGE_BATCH)
    rate, of_model = min(
        (abs(math.log(run.parameters / parameters)), run.learning_rate, run.model) for run in paper_runs()
    )[1:]
    asked = keys.get("train.sequence_length")
    longest = asked if isinstance(asked, int) and is_whole_number(asked, 1) else length
    values: dict[str, Any] = {
        "data": {"path": DATA_PATH},
        "model": {"architecture": "llama", "config": shape.config(longest)},
        "train": {
            "sequence_length": length,
            "batch_size": positions // length,
            "learning_rate": rate,
            "decay_ratio": 0.1,
        },
    }
    config = parse_config(values, keys, source="--parameters")
    train = config.train
    if "micro_batch_size" not in train.model_fields_set and train.batch_size % _MICRO_BATCH == 0:
        config = parse_config(
            config.model_dump(mode="json", exclude_unset=True), {"train.micro_batch_size": _MICRO_BATCH}
        )
    assumptions.append(
        f"a Llama of width {shape.hidden_size:,}, {shape.num_layers} layers, "
        f"{'tied' if shape.tied else 'untied'} embeddings: {count_in_words(shape.parameters)} parameters"
    )
    if "train.batch_size" not in keys:
        assumptions.append(
            f"steps of {train.batch_size:,} rows (--train.batch_size) of {train.sequence_length:,} positions"
        )
    if "train.learning_rate" not in keys:
        assumptions.append(f"a peak learning rate of {rate:g}, the paper's for its {of_model} model: tune it")
    if any(key.startswith("model") for key in keys):
        return _counted(config, "--parameters", None, corpus_tokens, assumptions)
    return _made(
        config,
        "--parameters",
        None,
        parameters=shape.parameters,
        active_parameters=shape.parameters,
        vocab_size=vocab_size,
        cost=shape.cost,
        corpora=_corpora_at(path),
        corpus_tokens=corpus_tokens,
        assumptions=assumptions,
    )


def _corpus(corpora: Corpora | None) -> PlannedCorpus | None:
    """How much text the prepared folders hold."""
    if corpora is None:
        return None
    total = sum(corpora.weights.values())
    named = corpora.datasets.items()
    return PlannedCorpus(
        tuple(PlannedSource(data.num_tokens, corpora.weights[name] / total, name) for name, data in named)
    )


def _corpora_at(path: str) -> Corpora | None:
    """The prepared folder at a path; None where there is none yet."""
    if not Path(path).exists():
        return None
    from token_superposition.training.config import DataConfig
    from token_superposition.training.datasets import Corpora

    return Corpora.open(DataConfig(path=path))


def _counted(
    config: RunConfig, source: str, total_steps: int | None, corpus_tokens: int | None, assumptions: list[str]
) -> Workload:
    """With the model counted on tensors without storage."""
    from token_superposition.models.build import check_length, model_cost
    from token_superposition.models.spec import ModelSpec
    from token_superposition.models.step_memory import abstract
    from token_superposition.training.datasets import Corpora
    from token_superposition.training.init_from import open_source, settle_model

    missing = [folder for folder in config.data.folders if not Path(folder).exists()]
    corpora = None if missing else Corpora.open(config.data)
    architecture, model_keys = config.model.architecture, config.model.config
    trained = None
    if config.model.init_from is not None:
        tokenizer = (corpora or Corpora.open(config.data)).tokenizer
        trained = open_source(config, tokenizer)
    if trained is not None:
        settled = settle_model(config.model, trained.architecture, trained.keys, tokenizer)
        architecture, model_keys = settled["architecture"], settled["config"]
    vocab_size = model_keys.get("vocab_size") if corpora is None else corpora.tokenizer.vocab_size
    if not isinstance(vocab_size, int):
        raise UserError(
            f"{source}: {missing[0]} is not there, so the vocabulary is not known; prepare the data, or give "
            "--model.config.vocab_size"
        )
    if corpora is None:
        spec = ModelSpec(architecture, model_keys, vocab_size=vocab_size, eos_id=0)
    else:
        spec = ModelSpec.for_tokenizer(architecture, model_keys, corpora.tokenizer)
    with abstract():
        model: Any = spec.build_unchecked()
        check_length(model, config.train.sequence_length)
        cost = model_cost(model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        looked_up = 0 if embedding is head else embedding.numel()
    return _made(
        config,
        source,
        total_steps,
        parameters=parameters,
        active_parameters=min(parameters, cost.multiplied_parameters + looked_up),
        vocab_size=int(model.config.vocab_size),
        cost=cost,
        corpora=corpora,
        corpus_tokens=corpus_tokens,
        assumptions=assumptions,
    )


def _made(
    config: RunConfig,
    source: str,
    total_steps: int | None,
    *,
    parameters: int,
    active_parameters: int,
    vocab_size: int,
    cost: ModelCost,
    corpora: Corpora | None,
    corpus_tokens: int | None,
    assumptions: list[str],
) -> Workload:
    train = config.train
    corpus = _corpus(corpora) if corpus_tokens is None else PlannedCorpus.of_tokens(corpus_tokens)
    if corpus is None:
        assumptions = [*assumptions, "as much text as the run reads (--corpus-tokens)"]
    for part in corpus.sources if corpus is not None else ():
        if part.num_tokens <= train.sequence_length:
            called = f"source {part.name}" if part.name else "a corpus"
            raise UserError(
                f"{called} of {part.num_tokens:,} tokens is smaller than one row, which takes "
                f"{train.sequence_length + 1:,} (train.sequence_length {train.sequence_length:,}): give more text, or "
                "lower train.sequence_length"
            )
    bytes_known = vocab_size <= _BYTE_VOCABULARY if corpora is None else corpora.tokenizer.name == "bytes"
    return Workload(
        source=source,
        values=config.model_dump(mode="json", exclude_unset=True),
        architecture=config.model.architecture,
        parameters=parameters,
        active_parameters=active_parameters,
        vocab_size=vocab_size,
        flops_per_position=cost.flops_per_position(train.sequence_length),
        positions_per_step=train.positions_per_step,
        sequence_length=train.sequence_length,
        total_steps=total_steps,
        unit="bytes" if bytes_known else "subwords",
        start="fresh" if config.model.init_from is None else "trained",
        corpus=corpus,
        assumptions=assumptions,
    )


@dataclass(frozen=True)
class PlannedSource:
    """Tokens of one source, and its share of what a run reads."""

    num_tokens: int
    share: float = 1.0
    name: str = ""

    @property
    def once(self) -> float:
        """Raw tokens of all sources that a run reads until it has read this source once."""
        return self.num_tokens / self.share


@dataclass(frozen=True)
class PlannedCorpus:
    """The text of a run. A mixture repeats text as soon as its scarcest source is read once."""

    sources: tuple[PlannedSource, ...]

    @classmethod
    def of_tokens(cls, num_tokens: int) -> PlannedCorpus:
        """A single corpus."""
        return cls((PlannedSource(num_tokens),))

    @property
    def num_tokens(self) -> int:
        """Of all sources."""
        return sum(source.num_tokens for source in self.sources)

    @property
    def scarcest(self) -> PlannedSource:
        """The source that is read again first."""
        return min(self.sources, key=lambda source: source.once)

    def holds(self, raw_tokens: int) -> bool:
        """Whether so many tokens can be read without reading any text twice."""
        return raw_tokens <= self.scarcest.once

    def unique(self, raw_tokens: int) -> int:
        """The number of different tokens among so many."""
        return sum(min(round(raw_tokens * source.share), source.num_tokens) for source in self.sources)

    def __str__(self) -> str:
        """The scarcest source, in words."""
        scarcest = self.scarcest
        tokens = count_in_words(scarcest.num_tokens)
        if len(self.sources) == 1:
            return f"the corpus of {tokens} tokens"
        return f"source {scarcest.name} ({tokens} tokens, {scarcest.share:.0%} of what is read)"
