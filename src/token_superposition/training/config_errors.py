"""One line for an invalid configuration, from pydantic's errors: the place, the key, the problem and the fix.

If there are several errors, the line reports the first one. An unknown key has priority over a missing key, because
both usually come from the same misspelt key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from token_superposition.errors import shortened
from token_superposition.yaml_files import line_of
from token_superposition.yaml_values import as_text


def complaint(
    error: ValidationError,
    model: type[BaseModel],
    values: Mapping[str, Any],
    *,
    source: str,
    prefix: str = "",
    lines: yaml.Node | None = None,
    overrides: Mapping[str, Any],
) -> str:
    """The error message, without a line break.

    Args:
        error: the error of pydantic.
        model: the class that defines the keys.
        values: the invalid configuration.
        source: name of the file.
        prefix: prefix of the keys, if the values are a part of the file.
        lines: nodes of the file.
        overrides: keys from the command line.
    """
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = _path(first, values)
    dotted = ".".join(path)
    what = _what(first, path, model)
    given = [key for key in overrides if f"{key}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{key}.")]
    if path and given:
        named = [key for key in given if key.rpartition(".")[2] in re.findall(r"\w+", what)]  # keys in the message
        place = f"--{dotted}" if dotted in given else f"--{(named or given)[-1]}: {dotted}"
    else:
        number = line_of(lines, path)
        place = source if number is None else f"{source}, line {number}"
        place += f": {prefix}{dotted}" if path else f": {prefix}".removesuffix(": ")
    return f"{place}: {what}"


def _path(error: ErrorDetails, values: Mapping[str, Any]) -> list[str]:
    """The path of the invalid key, without the parts that pydantic adds for the members of a union."""
    path: list[str] = []
    place: Any = values
    for part in error["loc"]:
        in_list = isinstance(place, list | tuple) and isinstance(part, int) and part < len(place)
        if in_list or (isinstance(place, dict) and part in place):
            place = place[part]
        elif error["type"] == "missing":  # the missing key is in the path, but not in the values
            place = None
        else:
            break
        path.append(str(part))
    return path


def _what(error: ErrorDetails, path: Sequence[str], model: type[BaseModel]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"no such key{_nearest(path, model)}"
    if kind == "missing":
        known = _known(model)
        inner = [key for key in known if key.startswith(".".join(path) + ".")]
        meaning = known.get(_general(path, known)) or next((f"{key}, {known[key]}" for key in inner if known[key]), "")
        return f"is missing{f'; expected: {meaning}' if meaning else ''}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        what = "is empty" if given is None else "is not a section of keys"
        return f"{what}; add keys to the section, or remove it{_shown(given)}"
    if "[key]" in error["loc"] or kind == "invalid_key":
        return f"a key in this section is not a text{_shown(given)}; put the key in quotes"
    if kind == "recursion_loop":
        return "contains itself"
    message = error["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}{_shown(given)}"


def _shown(value: Any) -> str:
    if not isinstance(value, str | int | float):
        return ""
    try:
        text = repr(value) if isinstance(value, str | bool) else as_text(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return " (given: a number of thousands of digits)"
    return f" (given: {shortened(text)})"


def _nearest(path: Sequence[str], model: type[BaseModel]) -> str:
    """Suggest a similar key of the section, or of another section; otherwise list all keys of the section."""
    known = list(_known(model))
    section, leaf = _general(path[:-1], known), path[-1][:80]
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known)}  # the first of equal names
    for names, cutoff in ((beside, 0.6), (list(elsewhere), 0.75), (beside, 0.4)):
        near = difflib.get_close_matches(leaf, names, n=1, cutoff=cutoff)
        if near:
            here = ".".join([*path[:-1], near[0]])
            return f"; did you mean '{here if near[0] in beside else elsewhere[near[0]]}'?"
    return f"; the section has the key{'s' if len(beside) > 1 else ''} {', '.join(beside)}"


def _general(path: Sequence[str], known: Sequence[str] | Mapping[str, str]) -> str:
    """The path in the notation of `_known`: an index of a list, or a name in a dictionary, becomes 0."""
    general = ""
    for part in path:
        longer = f"{general}.{part}" if general else part
        general = longer if longer in known else f"{general}.0"
    return general


def _known(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """All dotted paths with their descriptions; items of lists and dictionaries of sections have the name 0."""
    known: dict[str, str] = {}
    for name, field in model.model_fields.items():
        known[f"{prefix}{name}"] = field.description or ""
        for section in _sections(field.annotation):
            inside = f"{prefix}{name}." if section is field.annotation else f"{prefix}{name}.0."
            known |= _known(section, inside)
    return known


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes in a type: the type itself, or its arguments, as in `list[StageConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
