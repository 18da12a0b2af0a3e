"""The reference of every configuration key, generated from the classes of `training.config`.

`tst train --help` and docs/configuration.md show the same rows. `tst train --schema` prints the JSON schema for
editors. The package contains the help text as a file, because the import of pydantic is too slow for `--help`.
`python -m token_superposition.training.config_reference` writes the file and the page. A test compares both with the
classes.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HELP_FILE = Path(__file__).with_name("config_keys.txt")
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
_WIDTH = 100


class KeyRow(NamedTuple):
    """One configuration key.

    Attributes:
        key: its dotted path, such as `train.learning_rate`.
        kind: the values that it accepts, as text.
        default: the default in JSON notation; empty for a required key.
        description: what it does.
    """

    key: str
    kind: str
    default: str
    description: str


def json_schema() -> dict[str, Any]:
    """The JSON schema of a run's YAML file, with which editors complete and check the file."""
    from token_superposition.training.config import RunConfig

    return {"$schema": SCHEMA_URL, "title": "token-superposition run", **RunConfig.model_json_schema()}


def sections() -> list[tuple[str, str, list[KeyRow]]]:
    """The name, the description and the keys of each section of the configuration, in the order of the classes."""
    schema = json_schema()
    found = []
    for name, value in schema["properties"].items():
        section = _resolved(value, schema)
        found.append((name, section["description"], list(_rows(name, section, schema))))
    return found


def help_text() -> str:
    """All keys as `tst train --help` prints them: type and default beside each key, the description below it."""
    lines = ["configuration keys (in the YAML file, or on the command line as --SECTION.KEY VALUE):"]
    for name, description, rows in sections():
        lines += ["", f"  {name}: {description}"]
        for row in rows:
            default = f", default {row.default}" if row.default else ", required"
            lines.append(f"    {row.key}  ({row.kind}{default})")
            lines += textwrap.wrap(row.description, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The page docs/configuration.md."""
    parts = [_PAGE_HEAD]
    for name, description, rows in sections():
        parts.append(
            f"\n## `{name}`\n\n{description}\n\n| key | values | default | what it does |\n|---|---|---|---|\n"
        )
        for row in rows:
            cells = (f"`{row.key}`", row.kind, f"`{row.default}`" if row.default else "required", row.description)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _rows(prefix: str, section: dict[str, Any], schema: dict[str, Any]) -> Iterator[KeyRow]:
    required = section.get("required", ())
    for name, value in section["properties"].items():
        key = f"{prefix}.{name}"
        yield KeyRow(key, _kind(value, schema), _default(name, value, required), value["description"])
        inner, place = _inner_section(value, schema)
        if inner is not None:
            yield from _rows(key + place, inner, schema)


def _inner_section(value: dict[str, Any], schema: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The section that a value is or contains, and its notation in a path; (None, "") for other values."""
    if "$ref" in value and "properties" in (found := _resolved(value, schema)):
        return found, ""
    for option in value.get("anyOf", [value]):
        for key, place in (("additionalProperties", ".NAME"), ("items", "[]")):
            inner = option.get(key)
            if isinstance(inner, dict) and "properties" in (found := _resolved(inner, schema)):
                return found, place
    return None, ""


def _resolved(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = value.get("$ref")
    return value if reference is None else schema["$defs"][reference.rsplit("/", 1)[1]]


def _default(name: str, value: dict[str, Any], required: Any) -> str:
    if "default" in value:
        return json.dumps(value["default"])
    if name in required:
        return ""
    return "[]" if value.get("type") == "array" else "{}"


def _kind(value: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(option, schema) for option in value["anyOf"]))
    if "enum" in value:
        return " | ".join(map(str, value["enum"]))
    if "const" in value:
        return str(value["const"])
    kind = value.get("type")
    if kind == "array":
        items = value.get("items", {})
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])} numbers"
        return "list of sections" if "properties" in _resolved(items, schema) else f"list of {_kind(items, schema)}"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}
    return words.get(str(kind), "mapping") + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    """The bounds of a number as text, without the large bounds that only keep numbers within int64."""
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in words.items() if key in value and value[key] < 10**9]
    return f" {', '.join(bounds)}" if bounds else ""


_PAGE_HEAD = """# Configuration reference

A run is one YAML file with the sections below. Only `data.path` (or `data.sources`) is required. Every key can also
be given on the command line by its dotted path, such as `--train.learning_rate 1e-3`; the command line wins. An unknown
key is an error that names the nearest known key. `auto` means: decided on this machine when the run starts, and then
kept in the run folder's `config.yaml`.

An editor that supports YAML schemas completes and checks the file:

```bash
tst train --schema > schema.json
```

Then put this line on top of the YAML file: `# yaml-language-server: $schema=schema.json`.

This page is generated from the code.
"""


def main() -> None:
    """Write the help file of the package and, in a checkout, docs/configuration.md."""
    HELP_FILE.write_text(help_text(), encoding="utf-8")
    docs = Path(__file__).parents[3] / "docs"
    if docs.is_dir():
        (docs / "configuration.md").write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
