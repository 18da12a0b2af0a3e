"""The configuration of a run.

A run is configured by one YAML file. The command line can override each key by its dotted path. The classes in this
module, one per section, define all keys:

    data            DataConfig: the datasets for training and validation
    model           ModelConfig
    superposition   SuperpositionConfig
    train           TrainConfig: optimizer, batch, schedule and machine
    logging         LoggingConfig: metrics, validation and checkpoints

An unknown key, a wrong type or a value out of range raises a `UserError` of one line. The line names the file, the line
number and the key; for an unknown key it suggests the most similar key. `config_errors` writes this message, and
`yaml_files` reads files and dotted paths.

The value `auto` is resolved on the machine when the run starts. The run folder keeps the resolved value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from token_superposition.errors import UserError
from token_superposition.schedule import Mode, Schedule, Stage
from token_superposition.training.config_errors import complaint
from token_superposition.training.config_types import (
    Device,
    FolderPath,
    Fraction,
    ModelValues,
    NotNegative,
    NotNegativeInt,
    NumThreads,
    Positive,
    PositiveInt,
    Ratio,
    Section,
    Seed,
    SlotWeights,
    Text,
    stages_in_short,
)
from token_superposition.training.data_config import DataConfig, SourceConfig
from token_superposition.training.parallel_config import ParallelConfig
from token_superposition.yaml_files import changed_keys, line_of, parse_override, read_yaml, with_keys

__all__ = [
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "RunConfig",
    "SourceConfig",
    "StageConfig",
    "SuperpositionConfig",
    "TrainConfig",
    "changed_keys",
    "load_config",
    "parse_config",
    "parse_override",
    "read_yaml",
    "with_keys",
]

# Keys that only the file of a study has; all other keys of that file are those of a run.
STUDY_KEYS = {"arms": "are", "budgets": "are", "equal_data": "is", "seeds": "are"}
_MOST_RAW_TOKENS = 10**18
_MODE = "full: bags in, bags out; output_only: tokens in, bags out; input_only: bags in, the next token out"
_SLOT_WEIGHTS = (
    "weights of the s targets: uniform, power_law[:EXPONENT], exponential[:FACTOR], first_token, "
    "or mutual_information (measured on the data when the run starts)"
)


class ModelConfig(Section):
    """The model: any causal language model of transformers, new or with trained weights."""

    init_from: FolderPath | None = Field(
        None,
        description="folder of a trained model to start from: a run, an export or a Hugging Face folder; sets "
        "architecture and config",
    )
    architecture: Text = Field("llama", description="model family: the `model_type` of transformers")
    config: ModelValues = Field(
        default_factory=dict, description="configuration keys of that family, as in its config.json"
    )
    scale_residual_init: bool | Literal["auto"] = Field(
        "auto",
        description="divide the initial residual projections by sqrt(2 * layers); auto: for families whose "
        "projections are known",
    )

    @model_validator(mode="after")
    def _fresh_or_trained(self) -> ModelConfig:
        if self.init_from is not None and self.scale_residual_init is True:
            raise ValueError("scale_residual_init is for new weights, but init_from loads trained weights: remove it")
        return self


class StageConfig(Section):
    """One superposition stage of a staged run; recovery takes the steps that are left."""

    bag_size: PositiveInt = Field(description="tokens per bag (s)")
    ratio: Ratio | None = Field(None, description="share of the steps of the run; give ratio or steps")
    steps: PositiveInt | None = Field(None, description="the same as a number of steps")
    mode: Mode = Field("full", description=_MODE)
    slot_weights: SlotWeights = Field("uniform", description=_SLOT_WEIGHTS)

    @model_validator(mode="after")
    def _one_length(self) -> StageConfig:
        if (self.ratio is None) == (self.steps is None):
            raise ValueError("a stage needs either ratio or steps")
        return self


class SuperpositionConfig(Section):
    """The superposition phase. Without this section a run is ordinary next-token training."""

    bag_size: PositiveInt = Field(1, description="tokens per bag (s); 1 turns superposition off")
    ratio: Ratio | None = Field(
        None,
        description="share of the steps in superposition (r); 0.25 if neither ratio nor superposition_steps is given",
    )
    superposition_steps: NotNegativeInt | None = Field(None, description="the same as a number of steps")
    mode: Mode = Field("full", description=_MODE)
    slot_weights: SlotWeights = Field("uniform", description=_SLOT_WEIGHTS)
    stages: Annotated[list[StageConfig] | None, BeforeValidator(stages_in_short)] = Field(
        None,
        min_length=1,
        max_length=1000,
        description="several superposition stages in place of the keys above; short form: 8:0.1,4:0.1 (bag size:ratio)",
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> SuperpositionConfig:
        if self.ratio is not None and self.superposition_steps is not None:
            raise ValueError("give either ratio or superposition_steps; set the other to null")
        if self.stages is not None and self.model_fields_set - {"stages"}:
            other = ", ".join(sorted(self.model_fields_set - {"stages"}))
            raise ValueError(f"stages replaces {other}: remove one of the two")
        if self.stages is None and self.model_fields_set and "bag_size" not in self.model_fields_set:
            given = ", ".join(sorted(self.model_fields_set))
            raise ValueError(f"{given} has no effect without bag_size: give bag_size too (1 turns superposition off)")
        return self

    @model_serializer(mode="wrap")
    def _without_what_stages_replace(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that `stages` replaces, so that a written configuration can be read again."""
        values = dump(self)
        return values if self.stages is None else {"stages": values["stages"]}


class TrainConfig(Section):
    """Optimizer, batch, schedule and machine; the same in both phases."""

    total_steps: PositiveInt = Field(4000, description="optimizer steps of the whole run")
    sequence_length: PositiveInt = Field(
        128, description="positions per row (L), in both phases; a superposition row reads s times as many tokens"
    )
    batch_size: PositiveInt = Field(16, description="rows per optimizer step, of all processes together")
    micro_batch_size: PositiveInt | None = Field(
        None, description="rows per forward pass of a process; null: all its rows of the step at once"
    )
    seed: Seed = Field(0, description="seed of the initial weights, the data order and dropout")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw, or muon for the hidden matrices with AdamW for the rest"
    )
    learning_rate: Positive = Field(3e-3, description="peak learning rate")
    warmup_ratio: Fraction | None = Field(
        None,
        description="share of the steps with a rising learning rate; 0.05 if neither warmup_ratio nor "
        "warmup_steps is given",
    )
    warmup_steps: NotNegativeInt | None = Field(None, description="the same as a number of steps")
    decay_ratio: Fraction = Field(
        0.2, description="share of the steps with a falling learning rate, at the end of the run"
    )
    final_learning_rate_ratio: Fraction = Field(
        0.0, description="learning rate at the end of the decay, divided by the peak"
    )
    betas: tuple[Ratio, Ratio] = Field((0.9, 0.95), description="beta 1 and beta 2 of AdamW")
    epsilon: Positive = Field(1e-8, description="epsilon of AdamW")
    muon_momentum: Ratio = Field(0.95, description="momentum of Muon")
    weight_decay: NotNegative = Field(0.1, description="weight decay of matrices; norms and biases have none")
    z_loss: NotNegative = Field(0.0, description="coefficient of logsumexp(logits)^2, which is added to the loss")
    loss_backend: Literal["auto", "plain", "chunked", "liger", "torch"] = Field(
        "auto",
        description="how the loss is computed; chunked never holds all logits in memory; auto chooses it for "
        "large vocabularies; "
        "liger and torch use the kernels of those libraries",
    )
    compile: bool = Field(False, description="use torch.compile for the layers; the switch causes no recompilation")
    activation_checkpointing: bool = Field(
        False, description="save memory by computing the forward pass of the layers twice"
    )
    max_grad_norm: Positive | None = Field(
        1.0, description="largest norm of the gradient before it is clipped; null: no clipping"
    )
    max_skipped_steps: NotNegativeInt = Field(
        10, description="steps with a NaN or infinite loss or gradient that are skipped before the run fails"
    )
    deterministic: bool = Field(
        False, description="use only algorithms that give the same bits in every run, on a GPU too"
    )
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="data type of the computation; weights and optimizer state are float32"
    )
    num_threads: NumThreads | Literal["auto"] = Field(
        "auto", description="number of CPU threads; another number can change the last bits of the result"
    )
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="how several processes share the model; see docs/scaling.md"
    )

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("give either warmup_ratio or warmup_steps; set the other to null")
        if self.warmup_steps is None and self._warmup_share + self.decay_ratio > 1:
            raise ValueError("the sum of warmup_ratio and decay_ratio is above 1; lower one of them")
        if self.warmup_steps is not None and self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} overlaps the decay, which is the last {self.decay_steps} of "
                f"{self.total_steps} steps; lower warmup_steps or decay_ratio"
            )
        if self.loss_backend == "torch" and self.z_loss:
            raise ValueError("loss_backend torch does not support z_loss; use auto")
        return self

    @property
    def num_warmup_steps(self) -> int:
        """Number of steps with a rising learning rate."""
        return round(self._warmup_share * self.total_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay_steps(self) -> int:
        """Number of steps with a falling learning rate, at the end of the run."""
        return round(self.decay_ratio * self.total_steps)

    @property
    def positions_per_step(self) -> int:
        """Latent positions per optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def _warmup_share(self) -> float:
        return 0.05 if self.warmup_ratio is None else self.warmup_ratio


class LoggingConfig(Section):
    """Metrics, validation and checkpoints; none of these keys changes the trained model."""

    log_interval: PositiveInt = Field(10, description="steps between training lines in metrics.jsonl")
    validation_interval: PositiveInt = Field(200, description="steps between validations")
    interim_validation_tokens: PositiveInt = Field(65_536, description="tokens per validation during training")
    validation_tokens: PositiveInt = Field(262_144, description="tokens of the final validation")
    checkpoint_interval: PositiveInt = Field(1000, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="number of newest checkpoints that are kept")
    keep_checkpoint_steps: list[PositiveInt] = Field(
        default_factory=list, description="steps after which an additional checkpoint is written and always kept"
    )
    fail_on_checkpoint_error: bool = Field(
        False, description="end the run if a checkpoint cannot be written; false: warn and continue"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="additional trackers for the metrics; each needs the extra of its name"
    )
    project: Text = Field("token-superposition", description="project name for wandb and trackio")


class RunConfig(Section):
    """The configuration of one run."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    superposition: SuperpositionConfig = Field(default_factory=SuperpositionConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @model_validator(mode="after")
    def _schedule_exists(self) -> RunConfig:
        raw_tokens = self.schedule().raw_tokens(self.train.positions_per_step)
        if raw_tokens > _MOST_RAW_TOKENS:
            raise ValueError(f"the run would read {raw_tokens:.0e} tokens; lower train.total_steps or train.batch_size")
        if self.train.loss_backend == "liger" and self.data.bag_boundary == "document":
            raise ValueError(
                "train.loss_backend liger supports only full bags, but data.bag_boundary document makes some bags "
                "shorter; use auto"
            )
        return self

    def schedule(self) -> Schedule:
        """The stages of the run.

        Raises:
            ValueError: if the superposition phase leaves no step for recovery.
        """
        part, total = self.superposition, self.train.total_steps
        if part.stages is None:
            ratio = part.ratio
            if ratio is None and part.superposition_steps is None:
                ratio = 0.25
            return Schedule.two_phase(
                total,
                part.bag_size,
                ratio,
                superposition_steps=part.superposition_steps,
                mode=part.mode,
                slot_weights=part.slot_weights,
            )
        stages = [
            Stage(stage.bag_size, steps, stage.mode, stage.slot_weights)
            for stage in part.stages
            if (steps := stage.steps or round((stage.ratio or 0) * total))
        ]
        recovery = total - sum(stage.steps for stage in stages)
        if recovery < 1:
            raise ValueError(f"superposition.stages leave no step of train.total_steps ({total}) for recovery")
        return Schedule([*stages, Stage(1, recovery)])


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read the YAML file of a run and apply overrides.

    Args:
        path: the file.
        overrides: values by dotted path, such as `{"train.learning_rate": 1e-3}`.

    Raises:
        UserError: if the file cannot be read or is not YAML, or if a key or value is invalid.
    """
    values, lines = read_yaml(path)
    for key in STUDY_KEYS:
        if key in values:
            number = line_of(lines, [key])
            raise UserError(f"{path}, line {number}: {key}: {STUDY_KEYS[key]} only for tst compare; remove the key")
    return parse_config(values, overrides or {}, source=str(path), lines=lines)


def parse_config(
    values: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    source: str = "configuration",
    prefix: str = "",
    lines: yaml.Node | None = None,
) -> RunConfig:
    """Check a configuration given as nested dictionaries; see `load_config`.

    Args:
        values: the dictionaries.
        overrides: values by dotted path.
        source, prefix, lines: name of the file, prefix of its keys, and its nodes, for messages.
    """
    merged = with_keys(values, overrides or {})
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        line = complaint(error, RunConfig, merged, source=source, prefix=prefix, lines=lines, overrides=overrides or {})
        raise UserError(line) from None
