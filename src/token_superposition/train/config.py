"""The configuration of a run: one YAML file, every key overridable by its dotted path.

The classes below are the reference of all keys. Unknown keys, wrong types and values out of range are a
`UserError` of one line that names the file, the line, the key and, for a misspelt key, the nearest known
one. `auto` stands for "decide on this machine"; the run folder keeps what was decided.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from token_superposition.errors import UserError
from token_superposition.plan.stages import Mode, Schedule, Stage, SuperpositionSchedule


def _not_bool(value: Any) -> Any:
    """YAML's `true` is no number, though Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _slot_weights(value: Any) -> Any:
    from token_superposition.objective.slot_weights import parse_slot_weights

    if isinstance(value, str):
        parse_slot_weights(value)
    return value


PositiveInt = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
NotNegativeInt = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Ratio = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, allow_inf_nan=False)]
SlotWeights = Annotated[str, BeforeValidator(_slot_weights)]


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number (YAML 1.1 wants a point and a sign in it)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DataConfig(_Section):
    """What is trained on."""

    path: str = Field(description="folder that `tst prepare` wrote")
    validation_sets: dict[str, str] = Field(
        default_factory=dict, description="further validation sets: a name, and the prepared folder whose split it is"
    )


class ModelConfig(_Section):
    """What is trained: any causal language model of transformers, from its configuration."""

    architecture: str = Field("llama", description="transformers' model_type")
    config: dict[str, Any] = Field(default_factory=dict, description="that family's own configuration keys")
    scale_residual_init: bool | Literal["auto"] = Field(
        "auto", description="residual projections start smaller by sqrt(2*layers); auto: in families it is known for"
    )


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
    stages: list[StageConfig] | None = Field(None, description="several bag sizes, in place of the above")

    @model_validator(mode="after")
    def _no_contradiction(self) -> SuperpositionConfig:
        if self.ratio is not None and self.superposition_steps is not None:
            raise ValueError("give one of ratio and superposition_steps")
        if self.stages is not None and self.model_fields_set - {"stages"}:
            other = ", ".join(sorted(self.model_fields_set - {"stages"}))
            raise ValueError(f"stages replaces {other}: give one of the two")
        return self


class TrainConfig(_Section):
    """How it is trained; the same in both phases."""

    total_steps: PositiveInt = 4000
    sequence_length: PositiveInt = Field(128, description="latent positions a row, in both phases")
    batch_size: PositiveInt = Field(16, description="rows an optimizer step")
    micro_batch_size: PositiveInt | None = Field(None, description="rows a forward; all at once if not given")
    seed: NotNegativeInt = Field(0, description="of the initialisation and the order of the data")
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
    max_grad_norm: Positive | None = Field(1.0, description="clip the gradient's norm; null: never")
    max_skipped_steps: NotNegativeInt = Field(10, description="steps without a finite loss and gradient that are borne")
    deterministic: bool = Field(False, description="only algorithms that give the same bits every time, on a GPU too")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the computation")
    num_threads: PositiveInt | Literal["auto"] = Field("auto", description="CPU threads; pins the result")

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError("warmup_ratio and decay_ratio together are above 1")
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
        self.schedule()
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
    return parse_config(values, overrides or {}, source=str(path), lines=lines)


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """A YAML file's keys, and its nodes, which know their lines.

    Raises:
        UserError: for a file that cannot be read, is not YAML or holds no keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        values = yaml.load(text, _Loader)
        lines = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; see configs/ for examples")
    return values, lines


def parse_config(
    values: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    source: str = "configuration",
    lines: yaml.Node | None = None,
) -> RunConfig:
    """Check a configuration given as nested dictionaries; see `load_config`."""
    merged = with_keys(values, overrides or {})
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(_one_line(error, source, lines, overrides or {})) from None


def with_keys(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with values set by dotted path; what was given stays as it is."""
    merged = dict(values)
    for dotted, value in keys.items():
        _set(merged, str(dotted).split("."), value)
    return merged


def parse_override(text: str) -> Any:
    """A command-line value as YAML would read it: `3` a number, `[1, 2]` a list, `abc` a text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"{text!r} cannot be read as a value") from None


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths at which two nested dictionaries differ."""
    changed = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(f"{prefix}{key}")
    return changed


def _set(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested value; the dictionaries on the way are copied, so the caller's stay as they are."""
    for key in keys[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[keys[-1]] = value


def _known_keys() -> list[str]:
    """Every dotted path of the configuration."""
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    inner = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]  # type: ignore[union-attr]
    return [*sections, *inner]


def _one_line(error: ValidationError, source: str, lines: yaml.Node | None, overrides: Mapping[str, Any]) -> str:
    """The first thing wrong, as: where: key: what; how to mend it."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("constrained", "literal", "int"))]
    dotted = ".".join(path)
    number = _line_of(lines, path)
    if dotted in overrides:
        place = f"--{dotted}"
    else:
        place = f"{source}, line {number}: {dotted}" if number else f"{source}: {dotted}" if dotted else source
    if first["type"] == "extra_forbidden":
        known = _known_keys()
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.0)
        same = [key for key in known if key.rpartition(".")[2] == path[-1]]
        return f"{place}: no such key; did you mean '{(same or near)[0]}'?"
    if first["type"] == "missing":
        return f"{place}: is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) else ""
    return f"{place}: {message[:1].lower()}{message[1:]}{shown}"


def _line_of(node: yaml.Node | None, path: Sequence[str]) -> int | None:
    """The line, from 1, of the key at a path; None where the file does not have it."""
    number = None
    for part in path:
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            number = node.start_mark.line + 1 if node else None
            continue
        if not isinstance(node, yaml.MappingNode):
            return number
        found = [(key, value) for key, value in node.value if key.value == part]
        if not found:
            return number
        number, node = found[0][0].start_mark.line + 1, found[0][1]
    return number
