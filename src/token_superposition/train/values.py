"""The kinds of values that a configuration's keys take, and what its sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_MOST = 10**12  # of anything that is counted: nobody needs more, and int64 holds it
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


def stages_in_short(value: Any) -> Any:
    """`8:0.1,4:0.1`, bags of 8 for a tenth of the steps and then of 4 for another, as the list it stands for."""
    if isinstance(value, int | float):  # 60 times 8, to YAML
        raise ValueError("a single stage, such as 8:0.1, is given as bag_size and ratio")
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
Device = Annotated[str, AfterValidator(_device)]
FolderPath = Annotated[str, AfterValidator(_path)]
SlotWeights = Annotated[str, BeforeValidator(_slot_weights)]


class Section(BaseModel):
    """A section of a configuration: no other keys than its own."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
