"""What is wrong with arguments, files and values is told before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

# Importing a module whose entry is None raises ImportError: a command that needs torch ends with a traceback.
_WITHOUT_TORCH = """
import contextlib, io, json, sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from token_superposition.cli import main
said = []
for words in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            said.append([main(words), err.getvalue()])
        except BaseException as error:
            said.append([repr(error), err.getvalue()])
print(json.dumps(said))
"""


def test_what_is_wrong_is_told_without_torch(tmp_path: Path, small_run: dict[str, Any], small_data: Path) -> None:
    good, bad_key, bad_value, no_data, study = (
        str(tmp_path / f"{name}.yaml") for name in ("good", "bad_key", "bad_value", "no_data", "study")
    )
    changes: dict[str, dict[str, Any]] = {
        good: {},
        bad_key: {"train": {"learning_rat": 1}},
        bad_value: {"superposition": {"bag_size": 2, "slot_weights": "power-law"}},
        no_data: {"data": {"path": str(tmp_path / "none")}},
        study: {"arms": {"a": {"superposition.bag_size": 1}, "b": {"superposition.bag_siz": 2}}},
    }
    for name, change in changes.items():
        Path(name).write_text(yaml.safe_dump({**small_run, **change}))
    folder = str(tmp_path / "folder")
    Path(folder).mkdir()
    missing = str(tmp_path / "missing")
    cases: list[tuple[list[str], str]] = [
        ([command, *rest, "--no-such"], f"see tst {command} --help")
        for command, rest in {
            "train": [good],
            "compare": [good],
            "plan": [good],
            "bench": [good],
            "demo": [],
            "prepare": [folder, "--out", missing],
            "eval": [folder, folder],
            "generate": [folder, "--prompt", "a"],
            "export": [folder, missing],
        }.items()
    ]
    for command in ("train", "compare", "plan", "bench"):
        cases += [
            ([command, missing], "does not exist"),
            ([command, folder], "no run to continue" if command == "train" else "is a folder"),
            ([command, bad_key], "learning_rate"),
            ([command, good, "--train.learning_rat", "1"], "learning_rate"),
            ([command, good, "--train.seed", "x"], "--train.seed"),
            ([command, good, "--train.seed", "{"], "--train.seed"),
        ]
    for command in ("train", "compare", "bench"):
        cases += [
            ([command, bad_value], "power_law"),
            ([command, good, "--superposition.slot_weights", "power_law:x"], "slot_weights"),
            ([command, good, "--data.path", missing], missing),
        ]
    for command in ("train", "compare"):
        cases += [([command, no_data], "none"), ([command, good, "--data.path", folder], "dataset.json")]
        cases += [([command, good, "--model.init_from", missing], "model.init_from")]
    cases += [
        (["plan", good, "--superposition.bag_siz", "2"], "bag_size"),
        (["plan", good, "--mfu", "2", "--hardware", "h100"], "--mfu"),
        (["plan", good, "--hardware", "h1000"], "--hardware"),
        (["plan", good, "--out", folder], "is a folder"),
        (["train", good, "--out", bad_key], "is a file"),
        (["train", good, "--out", str(small_data)], "is not a run folder"),
        (["train", good, "--guard", missing], missing),
        (["train", good, "--guard-at", "0.1"], "--guard"),
        (["compare", study], "superposition.bag_size"),
        (["compare", good, "--seeds", "0"], "--seeds"),
        (["compare", good, "--train.seed", str(2**63 - 1), "--seeds", "2"], "train.seed"),
        (["compare", good, "--budgets", "5"], "too few"),
        (["compare", good, "--sweep", "train.learning_rate=1"], "two values"),
        (["demo", "--steps", "1"], "--steps"),
        (["demo", "--sweep", "train.sed=1,2"], "no such key"),
        (["bench", good, "--out", folder], "is a folder"),
        (["bench", "--bag-sizes", "2,2"], "twice"),
        (["eval", missing, folder], "no such folder"),
        (["eval", folder, folder], "neither a run"),
        (["eval", folder, folder, "--device", "gpu"], "--device"),
        (["generate", missing, "--prompt", "a"], "no such folder"),
        (["generate", folder, "--prompt", "a", "--top-p", "2"], "--top-p"),
        (["generate", folder, "--prompt", "a", "--seed", str(2**63)], "--seed"),
        (["export", missing, folder], "no such folder"),
        (["export", folder, str(small_data)], "not empty"),
        (["export", folder, missing, "--max-shard-size", "big"], "--max-shard-size"),
        (["prepare", missing, "--out", folder + "/x"], "no such file"),
        (["prepare", folder, "--out", folder + "/x", "--seed", "-1"], "--seed"),
        (["prepare", folder, "--out", folder + "/x", "--tokenizer", missing], missing),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, json.dumps([words for words, _ in cases])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (words, part), (code, err) in zip(cases, json.loads(done.stdout), strict=True):
        assert code == 2, (words, code, err)
        assert part in err, (words, err)
        assert err.startswith("error: "), (words, err)
        assert err.count("\n") == 1, (words, err)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".yaml") == ["folder"]
