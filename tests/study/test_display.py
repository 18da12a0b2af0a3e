"""What a study shows while its runs train."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from token_superposition.files import write_json
from token_superposition.schedule import Schedule, Stage
from token_superposition.study.job import Job
from token_superposition.study.study_progress import Display


def test_the_display_counts_what_is_trained_and_says_who_waits(tmp_path: Path) -> None:
    trunk = Job("trunk", tmp_path / "a.yaml", tmp_path / "a", 100)
    leaf = Job("leaf", tmp_path / "b.yaml", tmp_path / "b", 60, 40, trunk)
    assert leaf.last_step() == (40, "waits for trunk")
    said = io.StringIO()
    display = Display([trunk, leaf], quiet=False, console=Console(file=said, width=200))
    display.update()
    assert "0 of 120 steps" in said.getvalue()
    assert "left" not in said.getvalue()
    write_run(trunk.folder, [Stage(1, 100)], step=60)
    display.started, display.next_line = time.monotonic() - 600, 0.0
    display.update([trunk])
    assert "60 of 120 steps, 0 of 2 runs done, 10 min 00 s left" in said.getvalue()
    (tmp_path / "a" / "checkpoints" / "step-0000040").mkdir(parents=True)
    assert leaf.last_step() == (40, "starting")


def write_run(folder: Path, stages: Sequence[Stage], *, step: int) -> None:
    """What a run that is under way has written, as far as a display reads it."""
    folder.mkdir(parents=True)
    fixed = {"id": "a", "data_fingerprint": "b", "stages": [asdict(stage) for stage in stages]}
    write_json(folder / "run.json", fixed)
    (folder / "config.yaml").write_text("{}")
    schedule = Schedule(stages)
    stage = schedule.stages[0] if step <= schedule.starts[-1] else schedule.stages[-1]
    line = {"step": step, "loss": 2.5, "phase": stage.phase, "bag_size": stage.bag_size}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_queued_runs_and_the_phases_have_their_words(tmp_path: Path) -> None:
    jobs = [Job(name, tmp_path / f"{name}.yaml", tmp_path / name, 100) for name in ("base", "bags", "back", "later")]
    write_run(jobs[0].folder, [Stage(1, 100)], step=60)
    write_run(jobs[1].folder, [Stage(2, 30), Stage(1, 70)], step=20)
    write_run(jobs[2].folder, [Stage(2, 30), Stage(1, 70)], step=60)
    drawn = io.StringIO()
    console = Console(file=drawn, width=120, force_terminal=True, _environ={"TERM": "xterm"})
    display = Display(jobs, quiet=False, console=console)
    display.update(jobs[:3])
    display.close()
    lines = {line.split()[0]: line for line in Text.from_ansi(drawn.getvalue()).plain.splitlines() if line.split()}
    assert "next-token" in lines["base"]
    assert "superposition s=2" in lines["bags"]
    assert "recovery" in lines["back"]
    assert "queued" in lines["later"]
    assert "recovery" not in lines["base"]
    assert "0 of 4 runs done" in lines["study"]
    assert "starting" not in drawn.getvalue()


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=80, force_terminal=True, color_system=None, _environ={"TERM": "dumb"})
    display = Display([Job("one", tmp_path / "a.yaml", tmp_path / "a", 100)], quiet=False, console=console)
    display.update()
    display.close()
    assert "0 of 100 steps" in said.getvalue()
    assert said.getvalue().count("\n") == 1
    assert "\x1b" not in said.getvalue()
