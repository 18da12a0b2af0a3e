"""Keys and values as people write them: YAML files, and keys by their dotted path.

A file is looked at as YAML nodes before it becomes values, for three mistakes that YAML itself lets pass: a
key that is given twice (the last would win, in silence), an alias that contains itself, and aliases of
aliases that a few lines blow up to gigabytes. Values are what JSON has too: dates, sets and bytes are read as
texts or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError

_MAX_BYTES = 2**20  # of a file; somebody has named a corpus, or a device
_MAX_NODES = 100_000  # values in a file, aliases written out


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number (YAML 1.1 wants a point and a sign in it), a date is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or not tag.endswith((":timestamp", ":binary", ":omap", ":pairs", ":set"))
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """A YAML file's keys, and its nodes, which know their lines.

    Raises:
        UserError: for a file that cannot be read, is not YAML, holds no keys or holds one twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        if len(data) <= _MAX_BYTES:
            raise UserError(f"{path}: is not UTF-8 text (byte {error.start}), so not a YAML file") from None
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path}: is over {_MAX_BYTES:,} bytes: not a configuration; name its YAML file")
    try:
        nodes = yaml.compose(text, _Loader)
        if nodes is not None:
            _check_nodes(nodes, str(path))
        values = yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply for a configuration") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a number of more digits than Python reads
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; see configs/ for examples")
    return values, nodes


def parse_override(text: str) -> Any:
    """A command-line value as YAML would read it: `3` a number, `[1, 2]` a list, `abc` a text."""
    shown = repr(text if len(text) <= 60 else text[:60] + "...")
    try:
        nodes = yaml.compose(text, _Loader)
        if nodes is not None:
            _check_nodes(nodes, shown)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{shown} cannot be read as a value") from None


def with_keys(values: Mapping[str, Any], keys: Mapping[str, Any], label: str = "--") -> dict[str, Any]:
    """Nested dictionaries with values set by dotted path; what was given stays as it is.

    Args:
        values: the dictionaries; lists in them are reached by number.
        keys: values by dotted path, such as `{"train.learning_rate": 1e-3}`.
        label: what stands before a key where it is complained about.

    Raises:
        UserError: for a path that leads through something that is no section.
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
    """The line, from 1, of the key at a path; None where the file does not have it."""
    number = None
    rest = list(path)
    while rest:
        if isinstance(node, yaml.SequenceNode) and rest[0].isdigit() and int(rest[0]) < len(node.value):
            node = node.value[int(rest.pop(0))]
            number = node.start_mark.line + 1 if node else None
            continue
        if not isinstance(node, yaml.MappingNode):
            return number
        for length in range(len(rest), 0, -1):  # an arm's keys are dotted paths themselves
            found = [pair for pair in node.value if pair[0].value == ".".join(rest[:length])]
            if found:
                break
        else:
            return number
        number, node, rest = found[0][0].start_mark.line + 1, found[0][1], rest[length:]
    return number


def child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The node under a key; None where there is none."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _set(values: dict[str, Any], dotted: str, value: Any, label: str) -> None:
    """Set a nested value; what is on the way is copied, so the caller's stays as it is."""
    keys = dotted.split(".")
    if not all(keys):
        raise UserError(f"{label}{dotted}: no such key (a part of it is empty)")
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


def _check_nodes(root: yaml.Node, where: str) -> None:
    sizes: dict[int, int] = {}  # of the nodes that have been looked at, aliases written out
    inside: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in inside:
            raise UserError(f"{where}, line {node.start_mark.line + 1}: an alias that contains itself")
        if id(node) not in sizes:
            inside.add(id(node))
            below = []
            if isinstance(node, yaml.SequenceNode):
                below = node.value
            elif isinstance(node, yaml.MappingNode):
                _check_twice(node, where)
                below = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(map(size, below))
            inside.remove(id(node))
        return sizes[id(node)]

    if size(root) > _MAX_NODES:
        raise UserError(f"{where}: holds over {_MAX_NODES:,} values: not a configuration")


def _check_twice(node: yaml.MappingNode, where: str) -> None:
    first: dict[Any, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if (key.tag, key.value) in first:
            before = first[key.tag, key.value]
            raise UserError(f"{where}, line {line}: {key.value}: is given twice (first on line {before}); keep one")
        first[key.tag, key.value] = line
