"""The kinds of values that a configuration's keys take, and what its sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from token_superposition.arguments import is_device
from token_superposition.errors import UserError
from token_superposition.files import user_path
from token_superposition.schedule import parse_slot_weights
from token_superposition.yaml_values import as_text, boolean_word, plain

_MOST = 10**12  # of anything that is counted: nobody needs more, and int64 holds it


def _number(value: Any) -> Any:
    """YAML's `true` and `"3"` are no numbers, though Python would take them for 1 and 3."""
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
    """Checked here, and not where the folder is opened, because the line of the key is known here."""
    try:
        path = user_path(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return str(path) if value.startswith("~") else value


def _model_values(value: Any) -> Any:
    """A model's own keys, whose types are not known here: `yes` and `no` have to mean true and false."""
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
    """`8:0.1,4:0.1`, bags of 8 for a tenth of the steps and then of 4 for another, as the list it stands for."""
    if not isinstance(value, str):
        return value
    found = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d*\.?\d+)\s*", stage) for stage in value.split(",")]
    if None in found:
        raise ValueError("a list of bag sizes and shares of the steps is needed, such as 8:0.1,4:0.1")
    return [{"bag_size": int(each[1]), "ratio": float(each[2])} for each in found if each]


PositiveInt = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_number)]
NotNegativeInt = Annotated[int, Field(ge=0, le=_MOST), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
NumThreads = Annotated[int, Field(ge=1, le=512), BeforeValidator(_number)]
Ratio = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(as_text)]  # `2024` and `010` are names of folders and projects too
Device = Annotated[Text, AfterValidator(_device)]
FolderPath = Annotated[Text, AfterValidator(_path)]
ModelValues = Annotated[dict[str, JsonValue], BeforeValidator(_model_values)]
SlotWeights = Annotated[str, BeforeValidator(_slot_weights)]


class Section(BaseModel):
    """A section of a configuration: no other keys than its own."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
