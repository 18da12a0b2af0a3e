"""From what pydantic finds wrong with a configuration to one line: where, which key, what, how to mend it.

Of several errors the first is said, but a key that does not exist comes before one that is missing: it is
usually the same one, misspelt.
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
    """The line to say.

    Args:
        error: pydantic's.
        model: what was checked against.
        values: what was checked.
        source: the file's name.
        prefix: before the key, where the values are a part of the file.
        lines: the file's nodes.
        overrides: keys that were given on the command line.
    """
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = _path(first, values)
    dotted = ".".join(path)
    what = _what(first, path, model)
    given = [key for key in overrides if f"{key}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{key}.")]
    if path and given:
        named = [key for key in given if key.rpartition(".")[2] in re.findall(r"\w+", what)]  # of several in a section
        place = f"--{dotted}" if dotted in given else f"--{(named or given)[-1]}: {dotted}"
    else:
        number = line_of(lines, path)
        place = source if number is None else f"{source}, line {number}"
        place += f": {prefix}{dotted}" if path else f": {prefix}".removesuffix(": ")
    return f"{place}: {what}"


def _path(error: ErrorDetails, values: Mapping[str, Any]) -> list[str]:
    """The key that is wrong. pydantic's path goes on into the members of a union: those are cut off."""
    path: list[str] = []
    place: Any = values
    for part in error["loc"]:
        in_list = isinstance(place, list | tuple) and isinstance(part, int) and part < len(place)
        if in_list or (isinstance(place, dict) and part in place):
            place = place[part]
        elif error["type"] == "missing":  # it is in the path, but not in the values
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
        return f"is missing{f'; it takes {meaning}' if meaning else ''}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        what = "is empty" if given is None else "is not a section of keys"
        return f"{what}; give it keys of its own, or leave it out{_shown(given)}"
    if "[key]" in error["loc"] or kind == "invalid_key":
        return f"a key in it is not a text{_shown(given)}; put it into quotes"
    if kind == "recursion_loop":
        return "contains itself"
    message = error["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}{_shown(given)}"


def _shown(value: Any) -> str:
    if not isinstance(value, str | int | float):
        return ""
    try:
        text = repr(value) if isinstance(value, str | bool) else as_text(value)
    except ValueError:  # an integer of more digits than Python writes
        return " (given: a number of thousands of digits)"
    return f" (given: {shortened(text)})"


def _nearest(path: Sequence[str], model: type[BaseModel]) -> str:
    """The nearest key there is: in the same section, else of that name elsewhere, else all of the section."""
    known = list(_known(model))
    section, leaf = _general(path[:-1], known), path[-1][:80]
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known)}  # the first of several of a name
    for names, cutoff in ((beside, 0.6), (list(elsewhere), 0.75), (beside, 0.4)):
        near = difflib.get_close_matches(leaf, names, n=1, cutoff=cutoff)
        if near:
            here = ".".join([*path[:-1], near[0]])
            return f"; did you mean '{here if near[0] in beside else elsewhere[near[0]]}'?"
    return f"; there {'are' if len(beside) > 1 else 'is'} {', '.join(beside)}"


def _general(path: Sequence[str], known: Sequence[str] | Mapping[str, str]) -> str:
    """The path as the keys name it: a number in a list, and a name in a dictionary, is 0."""
    general = ""
    for part in path:
        longer = f"{general}.{part}" if general else part
        general = longer if longer in known else f"{general}.0"
    return general


def _known(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every dotted path and what it means; the items of a list of sections have the number 0."""
    known: dict[str, str] = {}
    for name, field in model.model_fields.items():
        known[f"{prefix}{name}"] = field.description or ""
        for section in _sections(field.annotation):
            inside = f"{prefix}{name}." if section is field.annotation else f"{prefix}{name}.0."
            known |= _known(section, inside)
    return known


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type: itself, or what is in it, as in `list[StageConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
