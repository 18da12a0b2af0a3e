"""Configuration keys from YAML files and from the command line, addressed by dotted paths.

`yaml_values` parses the YAML text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError, shortened
from token_superposition.yaml_values import parse_yaml

_MAX_BYTES = 2**18  # of a file; a larger file is not a configuration, but perhaps a corpus or a device


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """Read a YAML file; returns its keys and its nodes, which have the line numbers.

    Raises:
        UserError: if the file cannot be read, is not YAML, has no keys or has a key twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UserError(f"{path}: is over {_MAX_BYTES:,} bytes, so not a configuration; give a YAML file")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: this file does not exist") from None
    except IsADirectoryError:
        inside = " (a run has config.yaml)" if (path / "config.yaml").is_file() else ""
        raise UserError(f"{path}: is a folder; give a YAML file{inside}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a YAML file, because byte {error.start} is not UTF-8 text") from None
    values, nodes = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: has no keys; see configs/ for examples")
    return values, nodes


def parse_override(text: str) -> Any:
    """Parse a command-line value as YAML: `3` is a number, `[1, 2]` a list and `abc` a text."""
    if len(text) > _MAX_BYTES:
        raise UserError(f"a value of {len(text):,} characters is too long")
    try:
        return parse_yaml(text, repr(shortened(text)))[0]
    except UserError as error:
        if "is not YAML" in str(error):
            raise UserError(f"{shortened(text)!r} cannot be read as a value") from None
        raise


def parse_overrides(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse the values of configuration keys from the command line, by dotted path; UserError names the key."""
    values = {}
    for name, text in texts.items():
        try:
            values[name] = parse_override(text)
        except UserError as error:
            raise UserError(f"--{name}: {error}") from None
    return values


def with_keys(values: Mapping[str, Any], keys: Mapping[str, Any], label: str = "--") -> dict[str, Any]:
    """A copy of nested dictionaries with some values set by dotted path; the arguments do not change.

    Args:
        values: the dictionaries; a number in a path is an index into a list.
        keys: values by dotted path, such as `{"train.learning_rate": 1e-3}`.
        label: prefix of a key in error messages.

    Raises:
        UserError: if a path passes through a value that is not a section.
    """
    merged = dict(values)
    for dotted, value in keys.items():
        _set(merged, str(dotted), value, label)
    return merged


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


def line_of(node: yaml.Node | None, path: Sequence[str]) -> int | None:
    """The line number, from 1, of the key at a path; None if the file does not have the key."""
    number = None
    rest = list(path)
    while rest:
        if isinstance(node, yaml.SequenceNode) and rest[0].isdigit() and int(rest[0]) < len(node.value):
            node = node.value[int(rest.pop(0))]
            number = node.start_mark.line + 1 if node else None
            continue
        if not isinstance(node, yaml.MappingNode):
            return number
        for length in range(len(rest), 0, -1):  # the keys of an arm can be dotted paths
            found = [pair for pair in node.value if pair[0].value == ".".join(rest[:length])]
            if found:
                break
        else:
            return number
        number, node, rest = found[0][0].start_mark.line + 1, found[0][1], rest[length:]
    return number


def child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The node under a key; None if the key does not exist."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _set(values: dict[str, Any], dotted: str, value: Any, label: str) -> None:
    """Set a nested value; containers along the path are copied, so that the caller's containers do not change."""
    keys = dotted.split(".")
    if not all(keys):
        raise UserError(f"{label}{dotted}: no such key (a part of the path is empty)")
    place: Any = values
    for number, key in enumerate(keys):
        above = ".".join(keys[:number])
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise UserError(f"{label}{dotted}: no such key: {above} is a list of {len(place)}, counted from 0")
            at: Any = int(key)
        elif isinstance(place, dict):
            at = key
        else:
            raise UserError(f"{label}{dotted}: no such key: {above} is a value, not a section")
        if number == len(keys) - 1:
            place[at] = value
            return
        below = place[at] if isinstance(place, list) else place.get(at)
        place[at] = {} if below is None else below.copy() if isinstance(below, dict | list) else below
        place = place[at]
