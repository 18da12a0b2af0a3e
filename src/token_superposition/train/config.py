"""The configuration of a run: one YAML file, every key overridable by its dotted path.

The classes below and those of `data_config` are the reference of all keys. Unknown keys, wrong types and values
out of range are a `UserError` of one line that names the file, the line, the key and, for a misspelt key, the
nearest known one (`complaints` writes it, `yaml_keys` reads files and dotted paths). `auto` stands for "decide on
this machine"; the run folder keeps what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from token_superposition.errors import UserError
from token_superposition.plan.stages import Mode, Schedule, Stage
from token_superposition.train.complaints import complaint
from token_superposition.train.data_config import DataConfig, SourceConfig
from token_superposition.train.values import (
    Device,
    FolderPath,
    Fraction,
    NotNegative,
    NotNegativeInt,
    NumThreads,
    Positive,
    PositiveInt,
    Ratio,
    Section,
    Seed,
    SlotWeights,
    stages_in_short,
)
from token_superposition.yaml_keys import changed_keys, line_of, parse_override, read_yaml, with_keys

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

# Of a study's file, which is a run's but for them.
STUDY_KEYS = {"arms": "are", "budgets": "are", "equal_data": "is", "seeds": "are"}
_MOST_RAW_TOKENS = 10**18


class ModelConfig(Section):
    """What is trained: any causal language model of transformers, from its configuration or with trained weights."""

    init_from: FolderPath | None = Field(
        None, description="a trained model to go on from, of which the rest is: a run, an export, a Hugging Face folder"
    )
    architecture: str = Field("llama", description="transformers' model_type")
    config: dict[str, JsonValue] = Field(default_factory=dict, description="that family's own configuration keys")
    scale_residual_init: bool | Literal["auto"] = Field(
        "auto", description="residual projections start smaller by sqrt(2*layers); auto: in families it is known for"
    )

    @model_validator(mode="after")
    def _fresh_or_trained(self) -> ModelConfig:
        if self.init_from is not None and self.scale_residual_init is True:
            raise ValueError("scale_residual_init is for fresh weights, and init_from brings others: leave it out")
        return self


class StageConfig(Section):
    """One superposition stage of a staged run; recovery takes the steps that are left."""

    bag_size: PositiveInt
    ratio: Ratio | None = None
    steps: PositiveInt | None = None
    mode: Mode = "full"
    slot_weights: SlotWeights = "uniform"

    @model_validator(mode="after")
    def _one_length(self) -> StageConfig:
        if (self.ratio is None) == (self.steps is None):
            raise ValueError("a stage takes one of ratio and steps")
        return self


class SuperpositionConfig(Section):
    """The superposition phase. Without this section a run is ordinary next-token training."""

    bag_size: PositiveInt = Field(1, description="tokens a bag; 1 turns superposition off")
    ratio: Ratio | None = Field(None, description="share of the steps in superposition; 0.25 if not given")
    superposition_steps: NotNegativeInt | None = Field(None, description="the same in steps")
    mode: Mode = "full"
    slot_weights: SlotWeights = "uniform"
    stages: Annotated[list[StageConfig] | None, BeforeValidator(stages_in_short)] = Field(
        None, min_length=1, max_length=1000, description="several bag sizes, in place of the above; or 8:0.1,4:0.1"
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> SuperpositionConfig:
        if self.ratio is not None and self.superposition_steps is not None:
            raise ValueError("give one of ratio and superposition_steps; null takes the other out")
        if self.stages is not None and self.model_fields_set - {"stages"}:
            other = ", ".join(sorted(self.model_fields_set - {"stages"}))
            raise ValueError(f"stages replaces {other}: give one of the two")
        if self.stages is None and self.model_fields_set and "bag_size" not in self.model_fields_set:
            given = ", ".join(sorted(self.model_fields_set))
            raise ValueError(f"{given} without bag_size means nothing: give bag_size too (1 turns superposition off)")
        return self

    @model_serializer(mode="wrap")
    def _without_what_stages_replace(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that what is written, such as a run's `config.yaml`, can be given again."""
        values = dump(self)
        return values if self.stages is None else {"stages": values["stages"]}


class TrainConfig(Section):
    """How it is trained; the same in both phases."""

    total_steps: PositiveInt = 4000
    sequence_length: PositiveInt = Field(128, description="latent positions a row, in both phases")
    batch_size: PositiveInt = Field(16, description="rows an optimizer step")
    micro_batch_size: PositiveInt | None = Field(None, description="rows a forward; all at once if not given")
    seed: Seed = Field(0, description="of the initialisation and the order of the data")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for hidden matrices, AdamW for the rest")
    learning_rate: Positive = Field(3e-3, description="peak")
    warmup_ratio: Fraction | None = Field(None, description="share of the steps that warm up; 0.05 if not given")
    warmup_steps: NotNegativeInt | None = Field(None, description="the same in steps, whatever the total")
    decay_ratio: Fraction = Field(0.2, description="share of the steps that decay, at the end")
    final_learning_rate_ratio: Fraction = Field(0.0, description="end of the decay over the peak")
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    muon_momentum: Ratio = 0.95
    weight_decay: NotNegative = Field(0.1, description="of matrices; norms and biases take none")
    z_loss: NotNegative = Field(0.0, description="coefficient of logsumexp(logits)^2, added to the loss")
    loss_backend: Literal["auto", "plain", "chunked", "liger", "torch"] = Field(
        "auto", description="chunked: never hold all logits; auto: where they are many; liger, torch: others' kernels"
    )
    compile: bool = Field(False, description="torch.compile for the layers; not compiled again at the switch")
    activation_checkpointing: bool = Field(False, description="less memory, a forward more: layers computed twice")
    max_grad_norm: Positive | None = Field(1.0, description="clip the gradient's norm; null: never")
    max_skipped_steps: NotNegativeInt = Field(10, description="steps without a finite loss and gradient that are borne")
    deterministic: bool = Field(False, description="only algorithms that give the same bits every time, on a GPU too")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the computation")
    num_threads: NumThreads | Literal["auto"] = Field("auto", description="CPU threads; pins the result")

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("give one of warmup_ratio and warmup_steps; null takes the other out")
        if self.warmup_steps is None and self._warmup_share + self.decay_ratio > 1:
            raise ValueError("warmup_ratio and decay_ratio together are above 1")
        if self.warmup_steps is not None and self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} reach into the decay, the last {self.decay_steps} of "
                f"{self.total_steps} steps; lower warmup_steps or decay_ratio"
            )
        if self.loss_backend == "torch" and self.z_loss:
            raise ValueError("loss_backend torch has no z-loss; take auto")
        return self

    @property
    def num_warmup_steps(self) -> int:
        """Steps of rising learning rate."""
        return round(self._warmup_share * self.total_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay_steps(self) -> int:
        """Steps of falling learning rate, the run's last."""
        return round(self.decay_ratio * self.total_steps)

    @property
    def positions_per_step(self) -> int:
        """Latent positions an optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def _warmup_share(self) -> float:
        return 0.05 if self.warmup_ratio is None else self.warmup_ratio


class LoggingConfig(Section):
    """What is written while training; none of it changes the result."""

    log_interval: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    validation_interval: PositiveInt = Field(200, description="steps between validations")
    interim_validation_tokens: PositiveInt = Field(65_536, description="tokens of those validations")
    validation_tokens: PositiveInt = Field(262_144, description="tokens of the last one")
    checkpoint_interval: PositiveInt = Field(1000, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="how many of the newest are kept")
    keep_checkpoint_steps: list[PositiveInt] = Field(
        default_factory=list, description="steps after which a checkpoint is written too, and always kept"
    )
    fail_on_checkpoint_error: bool = Field(False, description="end where a checkpoint cannot be written")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="where the metrics go besides; each is an extra of that name"
    )
    project: str = Field("token-superposition", description="what wandb and trackio file the run under")


class RunConfig(Section):
    """A run, whole."""

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
                "train.loss_backend liger takes bags that are all full, and data.bag_boundary document leaves some "
                "short; take auto"
            )
        return self

    def schedule(self) -> Schedule:
        """The run's stages.

        Raises:
            ValueError: where the superposition phase leaves no step for recovery.
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
    """Read a run's YAML file and lay overrides over it.

    Args:
        path: the file.
        overrides: values by dotted path, such as `{"train.learning_rate": 1e-3}`.

    Raises:
        UserError: for a file that cannot be read, is not YAML, or a key or value that does not fit.
    """
    values, lines = read_yaml(path)
    for key in STUDY_KEYS:
        if key in values:
            number = line_of(lines, [key])
            raise UserError(f"{path}, line {number}: {key}: {STUDY_KEYS[key]} for tst compare; a run has none of them")
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
        source, prefix, lines: the file's name, what stands before a key in it, and its nodes, for messages.
    """
    merged = with_keys(values, overrides or {})
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        line = complaint(error, RunConfig, merged, source=source, prefix=prefix, lines=lines, overrides=overrides or {})
        raise UserError(line) from None
