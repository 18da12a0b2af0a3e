"""Kept results: their reports stay readable, and what `benchmarks/keep_results.py` keeps is enough to go on with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.reports import compare, make_report
from token_superposition.errors import UserError
from token_superposition.study.compare import load_study
from token_superposition.study.report.files import read_report, write_report
from token_superposition.study.report.model import Report

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks" / "keep_results.py"
KEPT = sorted((ROOT / "results").glob("*/report.json"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.parent.name)
def test_a_kept_report_is_read_and_written_the_same(file: Path, tmp_path: Path) -> None:
    report = read_report(file)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(file.read_text())
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_the_schema_describes_the_keys_of_a_kept_report() -> None:
    schema = Report.model_json_schema()
    kept = json.loads(KEPT[0].read_text())
    assert set(kept) <= set(schema["properties"])
    assert "below zero is better" in schema["$defs"]["Difference"]["properties"]["delta_nats"]["description"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"schema_version": 3}, "schema_version"),
        ({"arms": []}, "arms"),
        ({"title": None}, "title"),
        ({"settings": {}}, r"settings\.total_steps"),
        ({"equal_flops": {"baseline": "a", "arm": "b", "delta_nats": "x"}}, r"equal_flops\.delta_nats"),
    ],
)
def test_another_report_is_refused_in_one_line_with_the_key(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**make_report(), **change}))
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: {key}: .*; start the command .* again") as caught:
        read_report(file)
    assert "\n" not in str(caught.value)


def test_a_kept_study_goes_on_without_its_weights(
    small_run: dict[str, Any], tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = tmp_path / "elsewhere" / "study.yaml", tmp_path / "elsewhere" / "out"
    study.parent.mkdir()
    study.write_text(yaml.safe_dump(small_run))
    before = compare(load_study(study, {}), folder, quiet=True)
    assert in_process == ["baseline, seed 0", "superposition, seed 0"]
    (tmp_path / "repository" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    Path("data/corpus").symlink_to(small_run["data"]["path"])

    command = [sys.executable, str(PROGRAM), str(study), str(folder), "results/small", "--data", "data/corpus"]
    subprocess.run(command, check=True)
    kept = Path("results/small")
    for file in kept.rglob("*"):
        if file.is_file():
            assert str(tmp_path) not in file.read_text()
            assert small_run["data"]["path"] not in file.read_text()
    assert not list(kept.rglob("checkpoints"))

    after = compare(load_study(kept / "study.yaml", {}), kept, quiet=True, num_seeds=2)
    assert in_process[2:] == ["baseline, seed 1", "superposition, seed 1"]  # and nothing again
    for old, new in zip(before["arms"], after["arms"], strict=True):
        assert new["seeds"][0] == old["seeds"][0]
