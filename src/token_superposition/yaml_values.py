"""From YAML text to values, within limits that no configuration reaches.

Values are what JSON has too. The differences to YAML 1.1, all of them for people who write configurations:

- Numbers are decimal: `010` is ten, `1_000` is a thousand, `1e-3` is a number. `0x10` and `1:30` are texts.
- Every key is a text: an arm can have the name `on` or `2024`.
- `yes`, `no`, `on` and `off` are texts. A key that takes true or false understands them (`boolean_word`).
- Dates are texts. Tags other than those of JSON's values are refused.

A number remembers how it was written where this is not how Python writes it. A key that takes a text, such as the
path of a folder called `010`, gets the written form (`as_text`).

PyYAML's own composer calls itself for every level of nesting, and the one in C ends the process at some depth. The
nodes are therefore made here from the parser's events, which are counted while they come.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from token_superposition.errors import UserError, shortened

MAX_VALUES = 20_000  # keys and values in a file, every alias replaced by what it stands for
MAX_DEPTH = 100

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is 20 times as fast
_UNNAMED = ' in "<unicode string>",'  # what the parser calls the text
_TAGS = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {word: word[0] in "tT" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}


class _Integer(int):
    """An integer that was written in another form than Python's, such as `010`."""

    written: str


class _Float(float):
    """A number that was written in another form than Python's, such as `1e3`."""

    written: str


def parse_yaml(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The value that a YAML text stands for, and its nodes, which know their lines.

    Args:
        text: one YAML document.
        where: the name of its file, for messages.

    Raises:
        UserError: for a text that is not YAML, that is beyond the limits, or that holds a key twice, an alias of
            itself or a tag.
    """
    try:
        root = _Composer(where).compose(text)
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        raise UserError(f"{where}: is not YAML: {' '.join(str(error).split()).replace(_UNNAMED, '')[:200]}") from None
    return (None if root is None else _Builder(where).value(root)), root


def as_text(value: Any) -> Any:
    """A number as it was written; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return getattr(value, "written", None) or str(value)


def plain(value: Any) -> Any:
    """The same value, nested, with Python's own numbers in the place of those that know how they were written."""
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [plain(below) for below in value]
    if isinstance(value, _Integer):
        return int(value)
    return float(value) if isinstance(value, _Float) else value


def boolean_word(value: Any) -> Any:
    """True or false for `yes`, `on`, `no` and `off`; any other value as it is."""
    return _BOOLEAN_WORDS.get(value.lower(), value) if isinstance(value, str) else value


class _Composer:
    """Nodes from the events of the parser, with a limit on their number and on their depth."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[yaml.CollectionNode] = []
        self._keys: list[yaml.Node | None] = []  # of each open mapping, the key whose value is to come
        self._anchors: dict[str, yaml.Node] = {}
        self._root: yaml.Node | None = None
        self._count = 0

    def compose(self, text: str) -> yaml.Node | None:
        """The root of the only document; None where there is none."""
        documents = 0
        for event in yaml.parse(text, Loader=_PARSER):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UserError(f"{self._where}{_line(event)}: holds several YAML documents; keep one")
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
    """Values from nodes; every alias is built anew and counted, so aliases of aliases end at the limit."""

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
                raise self._refused(key, "a key is a list or a section; a key is a text")
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
        """The sections that `<<` names, the one that wins first."""
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
            raise self._refused(node, f"{shortened(text)!r} does not fit its tag !!{kind}; leave the tag out")
        return float(text.replace("_", "")) if kind == "float" and isinstance(value, int) else value

    def _resolved(self, node: yaml.ScalarNode) -> Any:
        """What a text without quotes stands for."""
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
        return self._refused(node, f"the YAML tag {shortened(tag)} is not allowed here; leave it out")

    def _refused(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self._where}{_line(node)}: {what}")


def _line(marked: Any) -> str:
    return f", line {marked.start_mark.line + 1}"


def _too_many(where: str) -> UserError:
    return UserError(f"{where}: holds over {MAX_VALUES:,} values: not a configuration")
