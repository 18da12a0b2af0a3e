"""YAML text to Python values, with limits on size and depth.

The values have the types of JSON. The differences from YAML 1.1 prevent surprises in configurations:

- Numbers are decimal: `010` is ten, `1_000` is a thousand, `1e-3` is a number. `0x10` and `1:30` are texts.
- Every key is a text: an arm can have the name `on` or `2024`.
- `yes`, `no`, `on` and `off` are texts. A key that takes true or false converts them (`boolean_word`).
- Dates are texts. Tags are refused, except the tags of JSON's types.

A number keeps its written form if Python writes the number differently. A key that takes a text, such as the path of a
folder with the name `010`, gets the written form (`as_text`).

PyYAML's composer is recursive, and its version in C crashes the process for deeply nested text. This module therefore
builds the nodes from the events of the parser and counts the events.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from token_superposition.errors import UserError, shortened

MAX_VALUES = 20_000  # keys and values in a file, after aliases are replaced by their values
MAX_DEPTH = 100

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C is 20 times as fast
_UNNAMED = ' in "<unicode string>",'  # how the parser's messages refer to the text
_TAGS = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {word: word[0] in "tT" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}


class _Integer(int):
    """An integer with a written form that differs from Python's, such as `010`."""

    written: str


class _Float(float):
    """A number with a written form that differs from Python's, such as `1e3`."""

    written: str


def parse_yaml(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """Parse a YAML text; returns its value and its nodes, which have the line numbers.

    Args:
        text: one YAML document.
        where: the name of the file, for messages.

    Raises:
        UserError: if the text is not YAML, exceeds the limits, has a key twice, has an alias that contains itself, or
            has a tag.
    """
    try:
        root = _Composer(where).compose(text)
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # UnicodeEncodeError: half of a surrogate pair
        raise UserError(f"{where}: is not YAML: {' '.join(str(error).split()).replace(_UNNAMED, '')[:200]}") from None
    return (None if root is None else _Builder(where).value(root)), root


def as_text(value: Any) -> Any:
    """The written form of a number; any other value unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return getattr(value, "written", None) or str(value)


def plain(value: Any) -> Any:
    """The same nested value, with plain Python numbers in place of numbers that keep their written form."""
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [plain(below) for below in value]
    if isinstance(value, _Integer):
        return int(value)
    return float(value) if isinstance(value, _Float) else value


def boolean_word(value: Any) -> Any:
    """True or false for `yes`, `on`, `no` and `off`; any other value unchanged."""
    return _BOOLEAN_WORDS.get(value.lower(), value) if isinstance(value, str) else value


class _Composer:
    """Builds nodes from the events of the parser, with a limit on their number and on their depth."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[yaml.CollectionNode] = []
        self._keys: list[yaml.Node | None] = []  # for each open mapping, the key whose value comes next
        self._anchors: dict[str, yaml.Node] = {}
        self._root: yaml.Node | None = None
        self._count = 0

    def compose(self, text: str) -> yaml.Node | None:
        """The root node of the only document; None for an empty text."""
        documents = 0
        for event in yaml.parse(text, Loader=_PARSER):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UserError(f"{self._where}{_line(event)}: has several YAML documents; keep one")
            elif isinstance(event, yaml.CollectionEndEvent):
                self._open.pop()
                self._keys.pop()
            elif isinstance(event, yaml.NodeEvent):
                self._add(event)
        return self._root

    def _add(self, event: Any) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _too_many(self._where)
        node = self._node(event)
        if not self._open:
            self._root = node
        elif isinstance(self._open[-1], yaml.SequenceNode):
            self._open[-1].value.append(node)
        elif self._keys[-1] is None:
            self._keys[-1] = node
        else:
            self._open[-1].value.append((self._keys[-1], node))
            self._keys[-1] = None
        if isinstance(node, yaml.CollectionNode) and not isinstance(event, yaml.AliasEvent):
            self._open.append(node)
            self._keys.append(None)
            if len(self._open) > MAX_DEPTH:
                raise UserError(f"{self._where}: is nested too deeply for a configuration")

    def _node(self, event: Any) -> yaml.Node:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise UserError(
                    f"{self._where}{_line(event)}: the alias *{shortened(str(event.anchor))} has no anchor before it"
                )
            return self._anchors[event.anchor]
        node: yaml.Node
        start: Any = event.start_mark
        if isinstance(event, yaml.ScalarEvent):
            tag = "plain" if event.implicit[0] else event.tag or f"{_TAGS}str"
            node = yaml.ScalarNode(tag, event.value, start, None, event.style)
        else:
            kind = yaml.SequenceNode if isinstance(event, yaml.SequenceStartEvent) else yaml.MappingNode
            node = kind(event.tag or "plain", [], start)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node


class _Builder:
    """Builds values from nodes. Each use of an alias is built and counted again, so nested aliases hit the limit."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._inside: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _too_many(self._where)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._inside:
            raise self._refused(node, "an alias that contains itself")
        if len(self._inside) >= MAX_DEPTH:
            raise UserError(f"{self._where}: is nested too deeply for a configuration")
        self._inside.add(id(node))
        is_list = isinstance(node, yaml.SequenceNode)
        if node.tag not in ("plain", "!", f"{_TAGS}{'seq' if is_list else 'map'}"):
            raise self._tagged(node)
        built = [self.value(below) for below in node.value] if is_list else self._mapping(node)
        self._inside.remove(id(node))
        return built

    def _mapping(self, node: yaml.Node) -> dict[str, Any]:
        lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        for key, below in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(key, "a key is a list or a section; use a text as the key")
            line = key.start_mark.line + 1
            if key.value in lines:
                raise self._refused(
                    key, f"{shortened(key.value)}: is given twice (first on line {lines[key.value]}); keep one"
                )
            lines[key.value] = line
            if key.tag == "plain" and key.value == "<<":
                merged = self._merged(below)
            else:
                values[key.value] = self.value(below)
        for section in merged:
            for name, value in section.items():
                values.setdefault(name, value)
        return values

    def _merged(self, node: yaml.Node) -> list[dict[str, Any]]:
        """The sections that `<<` merges; an earlier section has priority."""
        value = self.value(node)
        sections = value if isinstance(value, list) else [value]
        if not all(isinstance(section, dict) for section in sections):
            raise self._refused(node, "<<: takes a section, or a list of sections")
        return sections

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if node.tag in (f"{_TAGS}str", "!"):
            return text
        if node.tag == "plain":
            return self._resolved(node)
        kind = node.tag.removeprefix(_TAGS)
        value = self._resolved(node)
        types: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "null": (type(None),),
        }
        if kind not in types:
            raise self._tagged(node)
        if not isinstance(value, types[kind]) or (kind != "bool" and isinstance(value, bool)):
            raise self._refused(node, f"{shortened(text)!r} does not match its tag !!{kind}; remove the tag")
        return float(text.replace("_", "")) if kind == "float" and isinstance(value, int) else value

    def _resolved(self, node: yaml.ScalarNode) -> Any:
        """The value of a text without quotes."""
        text: str = node.value
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.fullmatch(text):
            try:
                whole = int(text)
                if str(whole) == text:
                    return whole
            except ValueError:
                raise self._refused(node, f"a number of {len(text):,} digits is too long") from None
            kept = _Integer(whole)
            kept.written = text
            return kept
        if not (_FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text)):
            return text
        number = float(text) if _FLOAT.fullmatch(text) else float(text.replace(".", ""))  # .inf and .nan
        if repr(number) == text:
            return number
        kept_float = _Float(number)
        kept_float.written = text
        return kept_float

    def _tagged(self, node: yaml.Node) -> UserError:
        tag = f"!!{node.tag.removeprefix(_TAGS)}" if node.tag.startswith(_TAGS) else node.tag
        return self._refused(node, f"the YAML tag {shortened(tag)} is not allowed here; remove the tag")

    def _refused(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self._where}{_line(node)}: {what}")


def _line(marked: Any) -> str:
    return f", line {marked.start_mark.line + 1}"


def _too_many(where: str) -> UserError:
    return UserError(f"{where}: has over {MAX_VALUES:,} values, so it is not a configuration")
