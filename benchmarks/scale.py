"""Training speed on 1, 2, ... processes: positions per second and efficiency, in both phases.

    python benchmarks/scale.py CONFIG.yaml [--processes 1,2,4,8] [--mode auto] [--steps 60] [--rows-per-process 16]

Each number of processes trains the same configuration with the same rows per process (weak scaling), started by
`tst train --processes`. Half of the steps are superposed. The efficiency is the speed divided by the speed of one
process times the number of processes. On one CPU the processes share the cores, so the efficiency says nothing there;
the program runs to check that it will run on GPUs. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import machine

from token_superposition.training.metrics import read_metrics

LOG_INTERVAL = 5


def speeds(config: Path, processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """The median positions per second of each phase, and the layout of the model."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        keys: dict[str, Any] = {
            "train.total_steps": options.steps,
            "train.batch_size": options.rows_per_process * processes,
            "train.parallel.mode": options.mode if processes > 1 else "auto",
            "superposition.ratio": 0.5,
            "logging.log_interval": LOG_INTERVAL,
            "logging.validation_interval": options.steps,
            "logging.checkpoint_interval": options.steps,
        }
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "token_superposition", "train", str(config), "--out", str(run), "--json"]
        done = subprocess.run(
            [*command, "--processes", str(processes), *words], stdout=subprocess.PIPE, text=True, check=True
        )
        lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
        found: dict[str, Any] = {"parallel": json.loads(done.stdout.splitlines()[-1]).get("parallel", "single")}
        for phase in ("superposition", "recovery"):
            # The first line of a phase includes the warm-up of the process or of the new shapes.
            measured = [line for line in lines if line["phase"] == phase][1:]
            found[phase] = {
                "positions_per_second": statistics.median(line["positions_per_second"] for line in measured),
                "mfu": statistics.median(line["mfu"] for line in measured),
            }
        return found


def main() -> None:
    """Measure every number of processes, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with 1 first (default: %(default)s)")
    parser.add_argument("--mode", default="auto", help="train.parallel.mode (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows-per-process", type=int, default=16)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rows_per_process": options.rows_per_process, "processes": {}}
    for number in map(int, options.processes.split(",")):
        found = speeds(options.config, number, options)
        for phase in ("superposition", "recovery"):
            alone = result["processes"].get("1", found)[phase]["positions_per_second"]
            found[phase]["efficiency"] = found[phase]["positions_per_second"] / (alone * number)
        result["processes"][str(number)] = found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
