"""Trains runs on several ranks, for the tests of distributed training.

The program is started once for many runs: it imports torch, and then forks the ranks of each run, which takes a
fraction of the seconds of an import. `torchrun` sets the same environment variables in its processes.

    python -m tests.training.distributed_worker JOBS.json

Each job is a dictionary with the keys of `Job`. Each rank writes `outcome-RANK.json` beside its run folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Imported here, so that the forked ranks need not: transformers imports each family when it is used.
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: F401

from token_superposition.interrupts import StoppedError
from token_superposition.models.spec import ModelSpec
from token_superposition.training import checkpoint, logger, parallel
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train
from token_superposition.training.trainer import Trainer

_SECONDS = 200


@dataclass(frozen=True)
class Job:
    """A run on some ranks.

    Attributes:
        folder: the run folder.
        values: the configuration.
        ranks: number of ranks.
        double: compute in float64.
        stop_after: as in `train`.
        mishap: what goes wrong on which rank: `[kind, rank, step]`; see `_mishap`.
    """

    folder: str
    values: dict[str, Any]
    ranks: int = 1
    double: bool = False
    stop_after: int | None = None
    mishap: list[Any] = field(default_factory=list)

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """What became of each rank: `summary`, `error` and `kind`; empty for a rank that was killed."""
        files = [Path(f"{self.folder}-outcome-{rank}.json") for rank in range(self.ranks)]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def write_jobs(jobs: list[Job], file: Path) -> None:
    """Write the jobs for the program."""
    file.write_text(json.dumps([asdict(job) for job in jobs]))


def main() -> None:
    """Do the jobs of a file one after the other."""
    torch.set_num_threads(1)
    for values in json.loads(Path(sys.argv[1]).read_text()):
        job = Job(**values)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [_fork(job, rank, port) for rank in range(job.ranks)]
        end = time.monotonic() + _SECONDS
        while ranks:
            for rank in list(ranks):
                if os.waitpid(rank, os.WNOHANG)[0]:
                    ranks.remove(rank)
                    end = min(end, time.monotonic() + 15)  # torchrun also ends the ranks that hang
            if time.monotonic() > end:
                for rank in ranks:
                    os.kill(rank, signal.SIGKILL)
            time.sleep(0.01)


def _fork(job: Job, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _rank(job, rank, port)
    finally:
        os._exit(0)


def _rank(job: Job, rank: int, port: int) -> None:
    if job.ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job.ranks),
            "LOCAL_WORLD_SIZE": str(job.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    logger.matrix_peak = lambda *_: 1e9  # type: ignore[assignment]
    if job.double:
        _compute_in_float64()
    values = json.loads(json.dumps(job.values))
    outcome: dict[str, Any] = {}
    with Path(f"{job.folder}-stderr-{rank}").open("w") as log:
        sys.stderr = log
        try:
            if job.mishap and job.mishap[1] == rank:
                _mishap(job.mishap[0], job.mishap[2], values)
            outcome["summary"] = train(parse_config(values), Path(job.folder), stop_after=job.stop_after)
        except StoppedError:
            outcome["kind"] = "StoppedError"
        except Exception as error:
            outcome |= {"error": str(error), "kind": type(error).__name__, "trace": traceback.format_exc()}
            outcome["of_all"] = getattr(error, "of_all_ranks", False)
    outcome["memory_growth"] = GROWTH
    Path(f"{job.folder}-outcome-{rank}.json").write_text(json.dumps(outcome))


def _compute_in_float64() -> None:
    build, meta = ModelSpec.build, ModelSpec.meta
    ModelSpec.build = lambda self, *a, **k: build(self, *a, **k).double()  # type: ignore[method-assign]

    def double_meta(self: ModelSpec, **options: Any) -> Any:
        model = meta(self, **options)
        return None if model is None else model.double()

    ModelSpec.meta = double_meta  # type: ignore[method-assign]


GROWTH: list[int] = []


def _measure_memory() -> None:
    """Measure by how many bytes the memory of this process grows at most while the model is built and sharded."""
    build = parallel.ParallelModel.__init__

    def resident(name: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return 1024 * int(line.split()[1])

    def measured(self: parallel.ParallelModel, *arguments: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = resident("VmRSS")
        build(self, *arguments)
        GROWTH.append(resident("VmHWM") - before)

    parallel.ParallelModel.__init__ = measured  # type: ignore[method-assign]


def _mishap(kind: str, at: int, values: dict[str, Any]) -> None:
    """Let something go wrong on this rank.

    `kill`, `hang`, `signal` (SIGUSR1) and `twice` (two SIGTERM) happen before the step `at`; `nan` makes the loss of
    step `at` NaN, and `nans` that of every later step too; `full` lets the disk refuse the checkpoint's tensors from
    step `at` on; `data` and `batch` give this rank another configuration; `memory` only measures.
    """
    if kind == "memory":
        _measure_memory()
        return
    if kind == "data":
        values["data"]["path"] += "-missing"
        return
    if kind == "batch":
        values["train"]["learning_rate"] = 0.5
        return
    original, write = Trainer.step, checkpoint._synced_entry
    now = [-1]

    def step(self: Trainer, batch: Any) -> Any:
        now[0] = batch.step
        if batch.step == at:
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hang":
                time.sleep(1000)
            if kind == "signal":
                os.kill(os.getpid(), signal.SIGUSR1)
            if kind == "twice":
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
        if not (kind == "nan" and batch.step == at) and not (kind == "nans" and batch.step >= at):
            return original(self, batch)
        forward = self.parallel.root.forward

        def poisoned(*arguments: Any, **options: Any) -> Any:
            output = forward(*arguments, **options)
            return output._replace(loss=output.loss * float("nan"))

        with mock.patch.object(self.parallel.root, "forward", poisoned):
            return original(self, batch)

    def full(file: Path) -> dict[str, Any]:
        if kind == "full" and now[0] + 1 == at:
            raise OSError(28, "No space left on device", str(file))
        return write(file)

    Trainer.step = step  # type: ignore[method-assign]
    checkpoint._synced_entry = full


if __name__ == "__main__":
    main()
