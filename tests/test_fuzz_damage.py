"""Whatever happens to the files of a data set, a run or a study: gone on with, or one line that names the place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bad_input import World, examples, few_steps, judged

_places = st.floats(0, 1, exclude_max=True)  # as a share of the file
_JUNK = [None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "", "x", "../../x", [], [1], {}, {"a": 1}]


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """What is done to a file's bytes; None removes it."""
    kind = draw(
        st.sampled_from(["flip", "cut", "extend", "remove", "insert", "replace", "json", "json", "delete", "empty"])
    )
    where, length = draw(_places), draw(st.integers(1, 40))
    junk = draw(st.binary(min_size=1, max_size=40))
    bit = draw(st.integers(0, 7))
    keys = draw(st.lists(st.integers(0, 9), max_size=4))
    value = draw(st.sampled_from(_JUNK))
    removed = draw(st.booleans())

    def damage(data: bytes) -> bytes | None:
        at = int(where * len(data))
        if kind == "json" and data[:1] in (b"{", b"["):
            lines = data.split(b"\n") if data.count(b"\n{") else [data]  # .jsonl: one of its lines
            number = int(where * len(lines))
            if lines[number]:
                lines[number] = _changed(lines[number], keys, value, removed)
            return b"\n".join(lines)
        match kind:
            case "flip" if data:
                return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            case "cut":
                return data[:at]
            case "extend":
                return data + junk
            case "remove":
                return data[:at] + data[at + length :]
            case "insert":
                return data[:at] + junk + data[at:]
            case "replace":
                return data[:at] + junk + data[at + len(junk) :]
            case "empty":
                return b""
        return None

    return damage


def _changed(data: bytes, keys: list[int], value: Any, removed: bool) -> bytes:
    """JSON with another value, or none, somewhere inside."""
    root = json.loads(data)
    place = root
    for number in keys:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not names:
            break
        name = names[number % len(names)]
        if isinstance(place[name], dict | list) and place[name]:
            place = place[name]
            continue
        if removed:
            del place[name]
        else:
            place[name] = value
        break
    else:
        if isinstance(place, dict):
            place["step"] = value
    return json.dumps(root).encode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with few_steps():
        yield World(tmp_path_factory.mktemp("world"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def damaged(folder: Path, name: Path, damage: Any) -> bool:
    """Do it; whether the file is another one now."""
    before = (folder / name).read_bytes()
    after = damage(before)
    if after is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(after)
    return bool(after != before)


@examples(100)
@given(data=st.data(), damage=damages())
def test_a_damaged_data_set(world: World, data: st.DataObject, damage: Any) -> None:
    folder = world.copied(world.data)
    name = data.draw(st.sampled_from(files_of(world.data)))
    changed = damaged(folder, name, damage)
    out = world.work / "out"
    said = judged("train", world.config, "--out", out, "--quiet", "--data.path", folder)
    if changed and name.suffix == ".tokens":  # every byte of a shard is under a checksum
        assert said.code == 2, said
        assert str(folder / name) in said.err, said
    if said.code == 2:
        assert not out.exists(), said
    judged("prepare", world.text, "--out", folder, "--quiet")
    again = judged("prepare", world.text, "--out", folder, "--quiet", "--overwrite")
    assert again.code == 0 or name.name == "dataset.json", again


@examples(140)
@given(data=st.data(), damage=damages(), done=st.booleans())
def test_a_damaged_run(world: World, data: st.DataObject, damage: Any, done: bool) -> None:
    folder = world.copied(world.run)
    name = data.draw(st.sampled_from(files_of(world.run)))
    damaged(folder, name, damage)
    if not done:
        (folder / "summary.json").unlink(missing_ok=True)
    said = judged("train", world.config, "--out", folder, "--quiet")
    assert said.code in (0, 2), said
    assert folder.exists()


@examples(60)
@given(data=st.data(), damage=damages())
def test_a_damaged_study(world: World, data: st.DataObject, damage: Any) -> None:
    folder = world.copied(world.study)
    name = data.draw(st.sampled_from([name for name in files_of(world.study) if "checkpoints" not in name.parts]))
    damaged(folder, name, damage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("token_superposition.study.runner.run_jobs", _only_done)
        said = judged("compare", world.config, "--out", folder, "--quiet")
    assert said.code in (0, 2, 130), said
    shutil.rmtree(folder)


def _only_done(jobs: Any, **_: Any) -> None:
    if not all(job.done for job in jobs):
        raise KeyboardInterrupt  # here a process would be started
