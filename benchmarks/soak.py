"""Does a run survive? Kills at random moments, and write faults.

    python benchmarks/soak.py [--kills 200] [--faults 10000] [--seed 0] [--json]

Kills: a toy run is trained in a process of its own, killed with SIGKILL after a random time, and started again,
over and over; whenever one comes to its end its weights, metrics and result are compared with those of a run that
was never stopped, to the last bit, and the next run begins. Whatever was a whole checkpoint before a kill must be
one after it, so that nothing is lost but the steps since.

Faults: checkpoints, JSON files and metrics are written to a disk that fails at one random change of each (opening,
writing, flushing, renaming, making, removing). After each, what was there before must be whole and what is there
must be old or new, never a mixture; no line of the metrics may be lost.

It ends with exit code 1 at the first thing that is not as it should be; so what it prints at its end are counts of
what held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from timing import write_corpus  # noqa: E402

from tests.faults import Disk, failing  # noqa: E402
from token_superposition.data.prepare import prepare  # noqa: E402
from token_superposition.errors import CheckpointError  # noqa: E402
from token_superposition.files import write_json  # noqa: E402
from token_superposition.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint  # noqa: E402
from token_superposition.training.config import parse_config  # noqa: E402
from token_superposition.training.loop import train  # noqa: E402
from token_superposition.training.metrics import MetricsFile, read_metrics  # noqa: E402

STEPS, INTERVAL = 300, 20
TIMED = {"positions_per_second", "seconds_per_step", "mfu", "data_wait_fraction", "wall_seconds", "peak_memory_bytes"}


def check(holds: bool, what: str) -> None:
    """End with exit code 1 where something does not hold."""
    if not holds:
        raise SystemExit(f"soak: {what}")


def toy_run(data: Path) -> dict[str, Any]:
    """A run of some seconds with a switch in its middle and a checkpoint every few steps."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "data": {"path": str(data)},
        "model": {"architecture": "llama", "config": {**size, "max_position_embeddings": 64}},
        "superposition": {"bag_size": 4, "ratio": 0.5},
        "train": {"total_steps": STEPS, "sequence_length": 16, "batch_size": 4, "device": "cpu", "num_threads": 1},
        "logging": {
            "log_interval": 1,
            "validation_interval": 50,
            "interim_validation_tokens": 256,
            "validation_tokens": 1024,
            "checkpoint_interval": INTERVAL,
        },
    }


def work(values: dict[str, Any], folder: Path) -> None:
    """A process: train, or go on."""
    train(parse_config(values), folder, quiet=True)


def result(folder: Path) -> dict[str, Any]:
    """All of a finished run that must be equal."""
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(folder / "metrics.jsonl")]
    summary = json.loads((folder / "summary.json").read_text())
    path, complaints = newest_checkpoint(folder / "checkpoints")
    check(path is not None and not complaints, f"{folder}: {complaints}")
    tensors = sorted((path or folder).glob("tensors/*.distcp"))
    return {
        "metrics": lines,
        "summary": {k: v for k, v in summary.items() if k not in TIMED},
        "weights": [file.read_bytes() for file in tensors],
    }


def soak_kills(kills: int, seed: int) -> dict[str, Any]:
    """Kill and go on, `kills` times."""
    generator, fork = random.Random(seed), multiprocessing.get_context("fork")
    done, starts, lost, longest = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "text").mkdir()
        write_corpus(place / "text", 25)
        prepare([place / "text"], out=place / "data", quiet=True)
        values = toy_run(place / "data")
        started = time.perf_counter()
        work(values, place / "whole")
        seconds = time.perf_counter() - started
        expected, folder, killed = result(place / "whole"), place / "run", 0
        while killed < kills:
            before, _ = newest_checkpoint(folder / "checkpoints")
            process = fork.Process(target=work, args=(values, folder))
            process.start()
            starts += 1
            process.join(generator.uniform(0, 0.8 * seconds))
            if process.is_alive():
                process.kill()
                process.join()
                killed += 1
                after, complaints = newest_checkpoint(folder / "checkpoints")
                check(not complaints, f"after kill {killed}: {complaints}")
                check(before is None or (after is not None and after.name >= before.name), "a checkpoint is gone")
                reached = max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
                steps = reached - (int(after.name[5:]) if after else 0)
                lost, longest = lost + steps, max(longest, steps)
                continue
            check(process.exitcode == 0, f"a start ended with exit code {process.exitcode}")
            check(result(folder) == expected, f"run {done + 1} differs from one that was never stopped")
            done += 1
            shutil.rmtree(folder)
    return {
        "kills": killed,
        "starts": starts,
        "runs_finished": done,
        "checkpoint_interval": INTERVAL,
        "most_steps_lost": longest,
        "mean_steps_lost": lost / killed,
    }


def soak_faults(faults: int, seed: int) -> dict[str, Any]:
    """One random fault in each write, `faults` times."""
    generator = random.Random(seed)
    injected, reported, step = 0, 0, 1
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        checkpoints, file = place / "checkpoints", place / "state.json"
        save_checkpoint(checkpoints, step, {"weight": torch.full((64,), step)}, {"step": step}, keep=2)
        write_json(file, {"value": 0})
        metrics, good, value, lines = MetricsFile(place / "metrics.jsonl", -1), step, 0, 0
        while injected < faults:
            kind = generator.choice(["checkpoint", "json", "metrics"])
            at = generator.randrange({"checkpoint": 30, "json": 5, "metrics": 1}[kind])
            disk = Disk(lambda change, at=at: change == at)  # type: ignore[misc]
            step += 1
            with failing(disk, place):
                try:
                    if kind == "checkpoint":
                        save_checkpoint(checkpoints, step, {"weight": torch.full((64,), step)}, {"step": step}, keep=2)
                        good = step
                    elif kind == "json":
                        write_json(file, {"value": step})
                        value = step
                    else:
                        metrics.write({"step": step})
                except (CheckpointError, OSError):
                    reported += 1
            lines += kind == "metrics"
            injected += disk.faults  # none where the write had fewer changes than that
            number = injected
            path, complaints = newest_checkpoint(checkpoints)
            check(path is not None and not complaints, f"fault {number} in {kind}: {complaints}")
            read = {"weight": torch.zeros(64, dtype=torch.int64)}
            found = load_checkpoint(path or place, read)["step"]
            check(found in (good, step), f"fault {number}: the newest checkpoint is of step {found}")
            check(bool((read["weight"] == found).all()), f"fault {number}: a checkpoint is a mixture")
            good = max(good, found)
            content = json.loads(file.read_text())["value"]
            check(content in (value, step), f"fault {number}: state.json holds {content}")
            value = content
        metrics.sync()
        metrics.close()
        there = sum(1 for _ in read_metrics(place / "metrics.jsonl"))
        check(there == lines, f"{there} of {lines} lines of the metrics are there")
    return {"faults": injected, "reported": reported, "metrics_lines": lines}


def main() -> None:
    """Both, and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, soak, count in (("kills", soak_kills, options.kills), ("faults", soak_faults, options.faults)):
            started = time.perf_counter()
            found[name] = {**soak(count, options.seed), "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
