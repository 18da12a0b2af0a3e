"""Continuing the run in a folder: by its name, after damage, after edits, with a kill's leftovers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.runs import check_equal, go, go_until, numbers
from token_superposition.cli import main
from token_superposition.errors import UserError
from token_superposition.training import threads
from token_superposition.training.branch import make_branch
from token_superposition.training.config import parse_config
from token_superposition.training.run import resolve_machine
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.trained import open_trained


@pytest.fixture
def stopped(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed in its eighth step; its last checkpoint is after the sixth."""
    go_until(7, small_run, tmp_path / "stopped", monkeypatch)
    return tmp_path / "stopped"


@pytest.mark.parametrize("named", ["folder", "config.yaml"])
def test_a_run_continues_by_its_folder(whole: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(stopped.parent)
    word = "stopped" if named == "folder" else "stopped/config.yaml"
    assert main(["train", word, "--logging.log_interval", "1", "--quiet"]) == 0
    check_equal(stopped, whole)
    assert not (stopped.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "empty"], "empty: this folder has no run"),
        (["train", "stopped", "--out", "other"], "tst train stopped/config.yaml --out other"),
        (["train", "stopped", "--train.learning_rate", "0.5"], "train.learning_rate"),
        (["train", "stopped", "--train.lerning_rate", "0.5"], "did you mean"),
    ],
)
def test_a_folder_that_cannot_continue_is_refused_in_one_line(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(stopped.parent)
    (stopped.parent / "empty").mkdir()
    before = sorted(stopped.parent.rglob("*"))
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(stopped.parent.rglob("*")) == before


def test_a_config_of_a_run_starts_another_run_in_a_folder_that_is_named(whole: Path, tmp_path: Path) -> None:
    assert main(["train", str(whole / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert numbers(tmp_path / "again") == numbers(whole)


def test_how_the_machine_is_used_may_change_with_a_warning(
    small_run: dict[str, Any], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(small_run, stopped, train__num_threads=2, train__micro_batch_size=1)["steps"] == 12
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [line.split()[1] for line in warnings] == ["train.micro_batch_size", "train.num_threads"]
    kept = yaml.safe_load((stopped / "config.yaml").read_text())["train"]
    assert (kept["num_threads"], kept["micro_batch_size"]) == (2, 1)
    torch.set_num_threads(1)


# ---- edits that checksums do not cover -----------------------------------------------------------------


def edit(file: Path, key: str, value: Any) -> None:
    """Change a value of a YAML file by its dotted path; None takes the key out."""
    values = yaml.safe_load(file.read_text())
    *path, last = key.split(".")
    place = values
    for name in path:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    file.write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.config.rope_theta", 20_000.0),  # a key that was not given
        ("model.config.tie_word_embeddings", False),
        ("model.config.max_position_embeddings", None),
        ("train.sequence_length", 32),
    ],
)
def test_a_changed_configuration_is_not_taken_for_the_model_that_was_trained(whole: Path, key: str, value: Any) -> None:
    edit(whole / "config.yaml", key, value)
    with pytest.raises(UserError, match=f"{key} is .* trained with") as caught:
        open_trained(whole)  # what eval, generate and export do
    assert "\n" not in str(caught.value)
    (whole / "summary.json").unlink()
    assert main(["train", str(whole), "--quiet"]) == 2


def test_what_may_change_may_also_be_edited(whole: Path) -> None:
    edit(whole / "config.yaml", "logging.log_interval", 7)
    edit(whole / "config.yaml", "train.num_threads", 2)
    assert open_trained(whole).origin.step == 12


def test_changed_stages_are_not_taken_for_those_that_were_trained(small_run: dict[str, Any], stopped: Path) -> None:
    fixed = json.loads((stopped / "run.json").read_text())
    del fixed["checksum"]  # as in a run of version 0.1
    fixed["stages"][0]["steps"] += 1
    fixed["stages"][1]["steps"] -= 1
    (stopped / "run.json").write_text(json.dumps(fixed))
    with pytest.raises(UserError, match="stages differ from those"):
        go(small_run, stopped)


def test_counts_in_the_metrics_are_computed_again(small_run: dict[str, Any], whole: Path, stopped: Path) -> None:
    file = stopped / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["raw_tokens"] += 1
        line["epochs"] = 9.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(small_run, stopped)
    assert numbers(stopped) == numbers(whole)


# ---- what a power cut and a kill leave -----------------------------------------------------------------


def _remove_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def _remove_tensors(checkpoint: Path) -> None:
    next((checkpoint / "tensors").glob("*.distcp")).unlink()


def _remove_all(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize("damage", [_remove_manifest, _remove_tensors, _remove_all])
def test_a_finished_run_gets_its_lost_weights_back(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(whole, tmp_path / "lost")
    damage(tmp_path / "lost" / "checkpoints" / "step-0000012")
    with pytest.raises(UserError, match="this checkpoint is damaged"):
        make_branch(RunFolder(tmp_path / "lost"), tmp_path / "branch", 12, parse_config(small_run))
    assert not (tmp_path / "branch").exists()
    assert go(small_run, tmp_path / "lost")["steps"] == 12
    check_equal(tmp_path / "lost", whole)
    for path in (tmp_path / "lost" / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        go(small_run, tmp_path / "lost")


def test_what_a_kill_leaves_is_removed_at_the_next_start(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while a checkpoint is written or replaced, and while old ones are removed."""
    folder = tmp_path / "killed"
    go_until(10, small_run, folder, monkeypatch)
    for name in (".step-0000011.tmp", ".step-0000009.replaced"):
        shutil.copytree(folder / "checkpoints" / "step-0000003", folder / "checkpoints" / name)
    (folder / f".summary.json.{os.getpid()}.tmp").write_text("half")
    keep = {"logging__keep_checkpoints": 1, "logging__keep_checkpoint_steps": [3]}
    go_until(10, small_run, folder, monkeypatch, **keep)  # before the next checkpoint would remove them
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-0000003", "step-0000009"]
    assert not list(folder.glob(".*"))


# ---- threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speedup", "expected", "remarks"), [(5.0, 1, 1), (1.05, 8, 0), (0.2, 8, 0)], ids=["busy", "equal", "idle"]
)
def test_auto_takes_one_thread_where_that_is_clearly_faster(
    small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, speedup: float, expected: int, remarks: int
) -> None:
    tried: list[int] = []

    def work_done(_: int, most: int) -> float:
        tried.append(most)
        return speedup

    monkeypatch.setattr(threads, "_work_done", work_done)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads.choose_threads.cache_clear()
    try:
        auto = parse_config(small_run, {"train.num_threads": "auto"})
        for _ in range(2):
            assert resolve_machine(auto).train.num_threads == expected
        assert len(threads.choose_threads().remarks()) == remarks
        assert resolve_machine(auto, parse_config(small_run, {"train.num_threads": 3})).train.num_threads == 3
        assert tried == [8]  # once per process
        threads.choose_threads.cache_clear()
        monkeypatch.setenv("OMP_NUM_THREADS", "8")  # as a study gives them
        assert resolve_machine(auto).train.num_threads == 8
        assert tried == [8]
    finally:
        threads.choose_threads.cache_clear()


def test_the_trial_leaves_the_threads_and_the_generator_as_they_were() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        assert threads._work_done(1, 2) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
