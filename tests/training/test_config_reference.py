"""The configuration reference: every key is described, and what is kept as a file agrees with the classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from token_superposition.cli import main
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.config_reference import HELP_FILE, help_text, json_schema, markdown, sections

DOCS = Path(__file__).parents[2] / "docs"
REGENERATE = "run python -m token_superposition.training.config_reference"


def test_the_help_file_and_the_page_agree_with_the_configuration() -> None:
    assert HELP_FILE.read_text(encoding="utf-8") == help_text(), REGENERATE
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == markdown(), REGENERATE


def test_every_key_of_the_configuration_has_a_row_with_a_description() -> None:
    rows = {row.key: row for _, _, keys in sections() for row in keys}
    values = parse_config({"data": {"path": "x"}}).model_dump()
    for section, keys in values.items():
        if section == "superposition":
            continue
        assert {f"{section}.{key}" for key in keys} <= rows.keys()
    assert {"data.sources.NAME.weight", "superposition.stages[].bag_size", "superposition.mode"} <= rows.keys()
    assert all(row.description and row.kind for row in rows.values())


def test_train_help_shows_keys_with_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "train.learning_rate  (number > 0, default 0.003)" in shown


def test_schema_option_prints_a_schema_that_states_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--schema"])
    schema = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert schema == json_schema()
    assert schema["$defs"]["TrainConfig"]["properties"]["batch_size"]["minimum"] == 1
    assert set(schema["properties"]) == set(RunConfig.model_fields)
