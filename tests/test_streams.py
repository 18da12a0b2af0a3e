"""Standard streams that are closed, full or gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from token_superposition.output_streams import losable_stderr

_PROGRAM = """
import os, sys
from token_superposition.cli import main
for descriptor in {closed}:
    os.close(descriptor)
    setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)
code = main(["train", {config!r}])
with open({other!r}, "w") as file:
    assert file.fileno() > 2
raise SystemExit(code)
"""


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_messages_never_go_into_a_file_that_took_the_place_of_a_closed_stream(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    program = _PROGRAM.format(closed=closed, config=str(tmp_path / "none.yaml"), other=str(tmp_path / "other"))
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 2
    assert (tmp_path / "other").read_bytes() == b""


@pytest.mark.parametrize("gone", ["pipe", "disk"])
def test_what_standard_error_does_not_take_is_dropped(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    if gone == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with losable_stderr():
            for _ in range(3):
                print("lost", file=sys.stderr, flush=True)
        assert sys.stderr is stream
        stream.flush()  # nothing is left that would fail when the process ends


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "none.yaml"]])
def test_a_closed_pipe_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        ended = subprocess.run(
            [sys.executable, "-m", "token_superposition", *words], stdout=stream, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == (2 if "train" in words else 0)
    assert b"Exception" not in ended.stderr
