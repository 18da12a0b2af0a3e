"""A run that begins as another one did, from whose checkpoint it goes on: the same bits as trained from the start."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Disk, failing
from tests.training.runs import check_equal, go, go_until
from token_superposition.errors import UserError
from token_superposition.training.branch import make_branch
from token_superposition.training.checkpoint import checkpoint_steps, is_whole
from token_superposition.training.config import parse_config
from token_superposition.training.run import branch_config
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun
from token_superposition.training.trained import open_trained


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak, which takes longer than these runs."""
    monkeypatch.setattr("token_superposition.training.logger.matrix_peak", lambda *_: 1e9)


def stages(*parts: tuple[int, int]) -> dict[str, Any]:
    return {"stages": [{"bag_size": size, "steps": steps} for size, steps in parts]}


def with_stages(values: dict[str, Any], total: int, superposition: dict[str, Any], keep: list[int]) -> dict[str, Any]:
    values = copy.deepcopy(values)
    values["superposition"] = superposition
    values["train"] |= {"total_steps": total, "warmup_steps": 2, "decay_ratio": 0.25}
    values["train"].pop("warmup_ratio", None)
    values["logging"] |= {"keep_checkpoint_steps": keep, "keep_checkpoints": 1, "checkpoint_interval": 100}
    return values


def shared_steps(folder: Path) -> int:
    record = RunFolder(folder).read_record()
    return 0 if record is None else record.shared_steps


def branch(parent: Path, folder: Path, step: int, values: dict[str, Any]) -> None:
    config = branch_config(parse_config(values), StoredRun.read(RunFolder(parent)))
    make_branch(RunFolder(parent), folder, step, config)


# name: the parent's steps and stages, the child's, the step it leaves at
CASES: dict[str, tuple[int, dict[str, Any], int, dict[str, Any], int]] = {
    "a baseline's stable step": (16, {}, 10, {}, 8),
    "a cut in superposition": (16, stages((2, 4), (2, 4)), 10, stages((2, 4)), 4),
    "into more superposition": (10, stages((2, 3)), 16, stages((2, 3), (2, 5)), 3),
    "staged bag sizes": (20, stages((4, 3), (4, 2), (2, 4)), 12, stages((4, 3), (2, 3)), 3),
    "recovery that goes on": (20, stages((2, 5)), 12, stages((2, 5)), 9),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_branch_is_the_run_from_its_start(small_run: dict[str, Any], tmp_path: Path, case: str) -> None:
    total, parent_part, child_total, child_part, step = CASES[case]
    parent = with_stages(small_run, total, parent_part, [step])
    child = with_stages(small_run, child_total, child_part, [])
    go(parent, tmp_path / "parent")
    assert checkpoint_steps(tmp_path / "parent" / "checkpoints") == [step, total]
    before = {file: file.read_bytes() for file in (tmp_path / "parent").rglob("*") if file.is_file()}
    branch(tmp_path / "parent", tmp_path / "child", step, child)
    assert shared_steps(tmp_path / "child") == step
    assert open_trained(tmp_path / "child").origin.total_steps == child_total
    go(child, tmp_path / "child")
    assert shared_steps(tmp_path / "child") == step
    go(child, tmp_path / "whole")
    check_equal(tmp_path / "child", tmp_path / "whole")
    assert {file: file.read_bytes() for file in before} == before


def test_a_branch_of_a_branch_of_a_run_that_is_training(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With documents kept apart; and the first parent goes on, and is the same as ever."""
    small_run["data"] |= {"bag_boundary": "document"}
    first = with_stages(small_run, 24, stages((2, 3), (2, 3), (2, 4)), [6])
    second = with_stages(small_run, 18, stages((2, 3), (2, 3)), [11])
    third = with_stages(small_run, 14, stages((2, 3), (2, 3)), [])
    go_until(8, first, tmp_path / "first", monkeypatch)
    branch(tmp_path / "first", tmp_path / "second", 6, second)
    go_until(13, second, tmp_path / "second", monkeypatch)
    branch(tmp_path / "second", tmp_path / "third", 11, third)
    for name, values in (("third", third), ("second", second), ("first", first)):
        go(values, tmp_path / name)
        go(values, tmp_path / f"{name} whole")
        check_equal(tmp_path / name, tmp_path / f"{name} whole")


def test_a_branch_outlives_its_parent(small_run: dict[str, Any], tmp_path: Path) -> None:
    go(with_stages(small_run, 16, {}, [8]), tmp_path / "parent")
    child = with_stages(small_run, 10, {}, [])
    branch(tmp_path / "parent", tmp_path / "child", 8, child)
    shutil.rmtree(tmp_path / "parent")
    assert is_whole(tmp_path / "child" / "checkpoints" / "step-0000008")
    assert go(child, tmp_path / "child")["steps"] == 10


def test_where_links_fail_files_are_copied(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    go(with_stages(small_run, 16, {}, [8]), tmp_path / "parent")
    monkeypatch.setattr("os.link", no_links)
    branch(tmp_path / "parent", tmp_path / "child", 8, with_stages(small_run, 10, {}, []))
    checkpoint = tmp_path / "child" / "checkpoints" / "step-0000008"
    assert is_whole(checkpoint)
    assert all(file.stat().st_nlink == 1 for file in checkpoint.rglob("*") if file.is_file())


def test_a_branch_is_there_whole_or_not_at_all(small_run: dict[str, Any], tmp_path: Path) -> None:
    """Whatever change to the disk fails; and what a kill leaves is no obstacle."""
    go(with_stages(small_run, 16, {}, [8]), tmp_path / "parent")
    child = with_stages(small_run, 10, {}, [])
    place = tmp_path / "there"
    place.mkdir()
    for number in range(100):
        disk = Disk(lambda change, number=number: change == number)  # type: ignore[misc]
        try:
            with failing(disk, place):
                branch(tmp_path / "parent", place / "child", 8, child)
        except OSError:
            if not (place / "child").exists():
                assert not list(place.iterdir())
                continue
        break
    assert number > 10
    checkpoint = place / "child" / "checkpoints" / "step-0000008"
    assert is_whole(checkpoint)
    with pytest.raises(FileExistsError):
        branch(tmp_path / "parent", place / "child", 8, child)
    (place / ".child.tmp" / "checkpoints").mkdir(parents=True)  # a kill's
    (place / "child" / "run.json").unlink()
    (place / "child" / "config.yaml").unlink()
    for file in ("summary.json", "checkpoints", "metrics.jsonl"):
        path = place / "child" / file
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    branch(tmp_path / "parent", place / "child", 8, child)
    assert [path.name for path in place.iterdir()] == ["child"]
    assert go(child, place / "child")["steps"] == 10


def test_other_words_for_the_same_run_are_no_other_run(small_run: dict[str, Any], tmp_path: Path) -> None:
    """Cuts change nothing of a run that is done; neither does a warm-up in steps in place of a share."""
    small_run["train"] |= {"warmup_ratio": 0.25}
    go(small_run, tmp_path)
    summary = (tmp_path / "summary.json").stat().st_mtime_ns
    small_run["train"].pop("warmup_ratio")
    small_run["train"]["warmup_steps"] = 3
    small_run["superposition"] = stages((2, 2), (2, 4))
    assert go(small_run, tmp_path)["steps"] == 12
    assert (tmp_path / "summary.json").stat().st_mtime_ns == summary
    for key, value in (("train", {**small_run["train"], "warmup_steps": 2}), ("superposition", stages((2, 5)))):
        with pytest.raises(UserError, match=f"started with {key}"):
            go({**small_run, key: value}, tmp_path)
