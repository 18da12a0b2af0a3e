"""Types of configuration values, and the base class of the sections."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from token_superposition.arguments import is_device
from token_superposition.errors import UserError
from token_superposition.files import user_path
from token_superposition.schedule import parse_slot_weights
from token_superposition.yaml_values import as_text, boolean_word, plain

_MOST = 10**12  # largest value of any count; fits in int64


def _number(value: Any) -> Any:
    """Refuse `true` and `"3"`, which pydantic would convert to 1 and 3."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        raise ValueError("a number is needed, not a text")
    return value


def _device(value: str) -> str:
    if not is_device(value):
        raise ValueError("a device is auto, cpu, cuda, cuda:1 (or another number) or mps")
    return value


def _path(value: str) -> str:
    """Check a path here, because here the error message can include the line of the key."""
    try:
        path = user_path(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return str(path) if value.startswith("~") else value


def _model_values(value: Any) -> Any:
    """Convert `yes` and `no` to true and false in a model's own keys, whose types are unknown here."""
    if isinstance(value, dict):
        return {key: _model_values(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_model_values(below) for below in value]
    return boolean_word(plain(value))


def _slot_weights(value: Any) -> Any:
    if isinstance(value, str):
        parse_slot_weights(value)
    return value


def stages_in_short(value: Any) -> Any:
    """Convert the short form of stages to a list: `8:0.1,4:0.1` is 10% of the steps with bags of 8, then 10% of 4."""
    if not isinstance(value, str):
        return value
    found = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d*\.?\d+)\s*", stage) for stage in value.split(",")]
    if None in found:
        raise ValueError("give a list of bag sizes and shares of the steps, such as 8:0.1,4:0.1")
    return [{"bag_size": int(each[1]), "ratio": float(each[2])} for each in found if each]


PositiveInt = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_number)]
NotNegativeInt = Annotated[int, Field(ge=0, le=_MOST), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
NumThreads = Annotated[int, Field(ge=1, le=512), BeforeValidator(_number)]
Ratio = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(as_text)]  # `2024` and `010` can be names of folders and projects
Device = Annotated[Text, AfterValidator(_device)]
FolderPath = Annotated[Text, AfterValidator(_path)]
ModelValues = Annotated[dict[str, JsonValue], BeforeValidator(_model_values)]
SlotWeights = Annotated[str, BeforeValidator(_slot_weights)]


class Section(BaseModel):
    """Base class of the sections of a configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
