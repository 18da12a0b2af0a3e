"""`--find-batch`: the largest micro-batch whose step fits into memory.

A micro-batch size must divide `train.batch_size`, so the candidates are its divisors.

On CUDA, the search tries candidates. A candidate fits if a step runs and leaves a margin of free memory. Out of memory
on CUDA is an ordinary exception.

On a CPU, out of memory would affect the whole machine, so the search tries only candidates that should fit. It compares
the estimate of `tst train --dry-run` with the free memory. It then verifies the largest candidate that should fit in a
separate process, which ends itself if it needs more memory. For model families without an estimate, it verifies
candidates from the smallest upwards.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from token_superposition.bench.bench_progress import BenchProgress
from token_superposition.bench.bench_run import BenchRun
from token_superposition.bench.memory import measure_memory, micro_batches_tried
from token_superposition.errors import UserError
from token_superposition.models.build import check_length
from token_superposition.models.device import DTYPES
from token_superposition.models.size_limits import available_memory, gigabytes
from token_superposition.models.step_memory import abstract, estimate_memory
from token_superposition.training.datasets import Corpora
from token_superposition.training.optim import states_kept

MARGIN = 0.1  # share of the memory that stays free for fragmentation, other processes and longer validations


def find_batch(subject: BenchRun, progress: BenchProgress) -> dict[str, Any]:
    """Find the largest micro-batch that fits, at the largest bag size of the run.

    Returns:
        `bag_size`, `batch_size`, `micro_batch_size` (the largest divisor of `batch_size` that fits), `memory_bytes`
        (memory of its step), `limit_bytes` (memory limit) and `tried` (a list of `rows`, `bytes` and `fits` in the
        order of the attempts; `bytes` is null if memory ran out).

    Raises:
        UserError: if not even one row fits.
    """
    train, bag_size = subject.config.train, subject.schedule.bag_size
    candidates = [rows for rows in range(1, train.batch_size + 1) if train.batch_size % rows == 0]
    memory = _Gpu(subject, bag_size) if train.device.startswith("cuda") else _Machine(subject, bag_size)
    tried: list[dict[str, Any]] = []

    def fits(rows: int) -> bool:
        progress.phase(f"trying micro-batches of {rows}", 1)
        taken = memory.take(rows)
        tried.append({"rows": rows, "bytes": taken, "fits": taken is not None and taken <= memory.limit})
        progress.advance()
        return bool(tried[-1]["fits"])

    expected = {rows: memory.expect(rows) for rows in candidates}
    if None in expected.values():
        found = largest(candidates, fits)
    else:
        hopeful = [rows for rows, num_bytes in expected.items() if num_bytes is not None and num_bytes <= memory.limit]
        found = next((rows for rows in reversed(hopeful) if fits(rows)), None)
    if found is None:
        raise UserError(
            f"train.micro_batch_size: not even one row of {train.sequence_length} positions at bag size {bag_size} "
            f"fits into {gigabytes(memory.limit)}; use a smaller model or train.sequence_length"
        )
    return {
        "bag_size": bag_size,
        "batch_size": train.batch_size,
        "micro_batch_size": found,
        "memory_bytes": next(each["bytes"] for each in tried if each["rows"] == found),
        "limit_bytes": memory.limit,
        "tried": tried,
    }


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending candidates that fits, or None; all candidates below a fitting candidate must fit.

    The search tries the first candidate, then candidates that are at least twice as large, and then bisects. It thus
    avoids candidates that are much too large.
    """
    low, high = -1, len(candidates)  # candidates[low] fits, candidates[high] does not
    while low + 1 < high:
        middle = (low + high) // 2
        if high == len(candidates):
            middle = min(bisect_left(candidates, 2 * candidates[low]), high - 1) if low >= 0 else 0
        if fits(candidates[middle]):
            low = middle
        else:
            high = middle
    return candidates[low] if low >= 0 else None


class _Machine:
    """The memory of the machine, for CPU and for MPS."""

    def __init__(self, subject: BenchRun, bag_size: int) -> None:
        self._subject = subject
        self._bag_size = bag_size
        self.limit = int((1 - MARGIN) * available_memory())
        self._one, self._two = self._estimate(1), self._estimate(2)

    def expect(self, rows: int) -> int | None:
        """Estimated bytes of a step with micro-batches of `rows` rows; None for a family without an estimate."""
        if self._one is None or self._two is None:
            return None
        return self._one + (rows - 1) * (self._two - self._one)

    def _estimate(self, rows: int) -> int | None:
        config, stage = self._subject.config, self._subject.schedule.stages[-1]
        spec = Corpora.open(config.data).model_spec(config.model)
        with abstract():
            model = spec.build_unchecked()
            check_length(model, config.train.sequence_length)
            estimate = estimate_memory(
                model,
                ids_shape=(rows, config.train.sequence_length, stage.input_bag_size),
                num_targets=stage.num_targets,
                dtype=DTYPES[config.train.dtype],
                optimizer_states=states_kept(model, config.train),
                loss_backend=config.train.loss_backend,
                activation_checkpointing=config.train.activation_checkpointing,
            )
        return None if estimate.activations is None else estimate.total

    def take(self, rows: int) -> int | None:
        """Measured bytes of a step; None if memory is insufficient."""
        return measure_memory(self._subject, bag_size=self._bag_size, rows=rows, limit=self.limit)


class _Gpu:
    """The memory of a CUDA device."""

    def __init__(self, subject: BenchRun, bag_size: int) -> None:
        self._subject = subject
        self._bag_size = bag_size
        self._trainer = subject.at_rows(1, 1, bag_size).trainer()
        device = self._trainer.device
        self.limit = int((1 - MARGIN) * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)))

    def expect(self, rows: int) -> None:
        """None: candidates are tried on the device, so no estimate is needed."""

    def take(self, rows: int) -> int | None:
        """Measured bytes of a step, including fragmentation; None if memory is insufficient."""
        trainer = self._trainer
        num_rows = rows * micro_batches_tried(self._subject, rows)
        trainer.config = self._subject.at_rows(rows, num_rows // rows, self._bag_size).config
        torch.cuda.reset_peak_memory_stats(trainer.device)
        try:
            for number in range(2):
                one = trainer.stream.batch(number)
                ids, targets = (part.expand(num_rows, -1, -1).contiguous() for part in (one.ids, one.targets))
                trainer.step(replace(one, ids=ids, targets=targets))
            torch.cuda.synchronize(trainer.device)
            return torch.cuda.max_memory_reserved(trainer.device)
        except torch.OutOfMemoryError:
            return None
        finally:
            trainer.model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
