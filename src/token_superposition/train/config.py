"""The configuration of a run: one YAML file, every key overridable by its dotted path.

The classes below are the reference of all keys. Unknown keys, wrong types and values out of range are a
`UserError` of one line that names the file, the line, the key and, for a misspelt key, the nearest known
one (`complaints` writes it, `yaml_keys` reads files and dotted paths). `auto` stands for "decide on this
machine"; the run folder keeps what was decided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from token_superposition.errors import UserError
from token_superposition.plan.stages import Mode, Schedule, Stage, SuperpositionSchedule
from token_superposition.train.complaints import complaint
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

_MOST = 10**12  # of anything that is counted: nobody needs more, and int64 holds it
_MOST_RAW_TOKENS = 10**18
_DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def _number(value: Any) -> Any:
    """YAML's `true` and `"3"` are no numbers, though Python would take them for 1 and 3."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        raise ValueError("a number is needed, not a text")
    return value


def _device(value: str) -> str:
    if not _DEVICES.fullmatch(value):
        raise ValueError("a device is auto, cpu, cuda, cuda:1 (or another number) or mps")
    return value


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("the path of a folder is needed")
    return value


def _slot_weights(value: Any) -> Any:
    from token_superposition.objective.slot_weights import parse_slot_weights

    if isinstance(value, str):
        parse_slot_weights(value)
    return value


PositiveInt = Annotated[int, BeforeValidator(_number), Field(ge=1, le=_MOST)]
NotNegativeInt = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_MOST)]
Seed = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**63)]
NumThreads = Annotated[int, BeforeValidator(_number), Field(ge=1, le=512)]
Ratio = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
SlotWeights = Annotated[str, BeforeValidator(_slot_weights)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class SourceConfig(_Section):
    """One source of a mixture."""

    path: Annotated[str, AfterValidator(_path)] = Field(description="the folder that `tst prepare` wrote")
    weight: Positive = Field(1.0, description="its share of the rows, in proportion to the others'")


class DataConfig(_Section):
    """What is trained on."""

    sources: dict[str, SourceConfig] = Field(
        default_factory=dict, description="a mixture, in place of `path`: a name, and each source's path and weight"
    )
    path: Annotated[str, AfterValidator(_path)] | None = Field(
        None, description="the folder that `tst prepare` wrote", validate_default=True
    )
    bag_boundary: Literal["stream", "document"] = Field(
        "stream", description="document: no bag and no target crosses the end of a document; short bags are padded"
    )
    attention_boundary: Literal["row", "document"] = Field(
        "row", description="document: positions see their own document only; needs bag_boundary document"
    )
    verify: bool = Field(True, description="read all of it when a run starts and compare its checksums")
    validation_sets: dict[str, str] = Field(
        default_factory=dict, description="further validation sets: a name, and the prepared folder whose split it is"
    )

    @field_validator("sources")
    @classmethod
    def _weights(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        from token_superposition.data.mixture import weight_parts

        for name in sources:
            if not re.fullmatch(r"[\w+-][\w+ -]{0,99}", name):
                raise ValueError(f"a source's name has at most 100 letters, digits and + - _, not {name[:100]!r}")
        if sources:
            weight_parts([source.weight for source in sources.values()])
        return dict(sorted(sources.items()))  # the order in the file is none of the run's

    @field_validator("path")
    @classmethod
    def _one_kind(cls, path: str | None, info: ValidationInfo) -> str | None:
        if "sources" in info.data and (path is None) != bool(info.data["sources"]):
            if path is None:
                raise PydanticCustomError("missing", "is missing")
            raise ValueError("sources stands in its place: give one of the two")
        return path

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.attention_boundary == "document" and self.bag_boundary != "document":
            raise ValueError(
                "attention_boundary: document needs bag_boundary: document, or bags would see two documents at once"
            )
        twice = sorted(self.sources.keys() & self.validation_sets.keys())
        if twice:
            raise ValueError(f"validation_sets.{twice[0]}: a source has this name, and is validated anyway")
        return self

    @property
    def mixture(self) -> dict[str, SourceConfig]:
        """The sources by name; of one folder, a single one without a name."""
        if self.path is None:
            return self.sources
        return {"": SourceConfig(path=self.path, weight=1.0)}

    @property
    def folders(self) -> list[str]:
        """Every folder that the run reads, each once."""
        paths = [source.path for source in self.mixture.values()]
        return list(dict.fromkeys([*paths, *self.validation_sets.values()]))


class ModelConfig(_Section):
    """What is trained: any causal language model of transformers, from its configuration or with trained weights."""

    init_from: Annotated[str, AfterValidator(_path)] | None = Field(
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


class StageConfig(_Section):
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


class SuperpositionConfig(_Section):
    """The superposition phase. Without this section a run is ordinary next-token training."""

    bag_size: PositiveInt = Field(1, description="tokens a bag; 1 turns superposition off")
    ratio: Ratio | None = Field(None, description="share of the steps in superposition; 0.25 if not given")
    superposition_steps: NotNegativeInt | None = Field(None, description="the same in steps")
    mode: Mode = "full"
    slot_weights: SlotWeights = "uniform"
    stages: list[StageConfig] | None = Field(
        None, min_length=1, max_length=1000, description="several bag sizes, in place of the above"
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> SuperpositionConfig:
        if self.ratio is not None and self.superposition_steps is not None:
            raise ValueError("give one of ratio and superposition_steps")
        if self.stages is not None and self.model_fields_set - {"stages"}:
            other = ", ".join(sorted(self.model_fields_set - {"stages"}))
            raise ValueError(f"stages replaces {other}: give one of the two")
        if self.stages is None and self.model_fields_set and "bag_size" not in self.model_fields_set:
            given = ", ".join(sorted(self.model_fields_set))
            raise ValueError(f"{given} without bag_size means nothing: give bag_size too (1 turns superposition off)")
        return self


class TrainConfig(_Section):
    """How it is trained; the same in both phases."""

    total_steps: PositiveInt = 4000
    sequence_length: PositiveInt = Field(128, description="latent positions a row, in both phases")
    batch_size: PositiveInt = Field(16, description="rows an optimizer step")
    micro_batch_size: PositiveInt | None = Field(None, description="rows a forward; all at once if not given")
    seed: Seed = Field(0, description="of the initialisation and the order of the data")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for hidden matrices, AdamW for the rest")
    learning_rate: Positive = Field(3e-3, description="peak")
    warmup_ratio: Fraction = Field(0.05, description="share of the steps that warm up")
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
    device: Annotated[str, AfterValidator(_device)] = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the computation")
    num_threads: NumThreads | Literal["auto"] = Field("auto", description="CPU threads; pins the result")

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError("warmup_ratio and decay_ratio together are above 1")
        if self.loss_backend == "torch" and self.z_loss:
            raise ValueError("loss_backend torch has no z-loss; take auto")
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps of rising learning rate."""
        return round(self.warmup_ratio * self.total_steps)

    @property
    def decay_steps(self) -> int:
        """Steps of falling learning rate, the run's last."""
        return round(self.decay_ratio * self.total_steps)

    @property
    def positions_per_step(self) -> int:
        """Latent positions an optimizer step."""
        return self.batch_size * self.sequence_length


class LoggingConfig(_Section):
    """What is written while training; none of it changes the result."""

    log_interval: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    validation_interval: PositiveInt = Field(200, description="steps between validations")
    interim_validation_tokens: PositiveInt = Field(65_536, description="tokens of those validations")
    validation_tokens: PositiveInt = Field(262_144, description="tokens of the last one")
    checkpoint_interval: PositiveInt = Field(1000, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="how many of the newest are kept")
    fail_on_checkpoint_error: bool = Field(False, description="end where a checkpoint cannot be written")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="where the metrics go besides; each is an extra of that name"
    )
    project: str = Field("token-superposition", description="what wandb and trackio file the run under")


class RunConfig(_Section):
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
            return SuperpositionSchedule(
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
    if "arms" in values:
        number = line_of(lines, ["arms"])
        raise UserError(f"{path}, line {number}: arms: are for tst compare; a run has none of them")
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
