"""`--find-batch`: the largest micro-batch whose step fits into memory.

What can be used is a divisor of `train.batch_size`, so those are the candidates, and they are searched by bisection.
On CUDA a candidate fits where a step of it runs and leaves a margin: running out of memory there is an error like
any other. A CPU's memory is the machine's, so there nothing is tried that is not expected to fit: the estimate that
`tst train --dry-run` gives is compared with what is free, and the largest that should fit is then verified in a
process of its own, which ends itself where it needs more. For families without an estimate candidates are verified
from the smallest up.
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
from token_superposition.models.costs import abstract, estimate_memory
from token_superposition.models.device import DTYPES
from token_superposition.models.size_limits import available_memory, gigabytes
from token_superposition.training.datasets import Corpora
from token_superposition.training.optim import states_kept

MARGIN = 0.1  # of the memory, left free: fragments, other processes, longer validations


def find_batch(subject: BenchRun, progress: BenchProgress) -> dict[str, Any]:
    """The largest micro-batch that fits, at the subject's largest bag size.

    Returns:
        `bag_size`, `batch_size`, `micro_batch_size` (the divisor of it that fits), `memory_bytes` (what a step of it
        takes), `limit_bytes` (what it may take) and `tried` (a list of rows, bytes, and whether they fitted, in order;
        bytes is null where memory ran out).

    Raises:
        UserError: where not even one row fits.
    """
    train, bag_size = subject.config.train, subject.schedule.bag_size
    candidates = [rows for rows in range(1, train.batch_size + 1) if train.batch_size % rows == 0]
    room = _Gpu(subject, bag_size) if train.device.startswith("cuda") else _Machine(subject, bag_size)
    tried: list[dict[str, Any]] = []

    def fits(rows: int) -> bool:
        progress.phase(f"trying micro-batches of {rows}", 1)
        taken = room.take(rows)
        tried.append({"rows": rows, "bytes": taken, "fits": taken is not None and taken <= room.limit})
        progress.advance()
        return bool(tried[-1]["fits"])

    expected = {rows: room.expect(rows) for rows in candidates}
    if None in expected.values():
        found = largest(candidates, fits)
    else:
        hopeful = [rows for rows, num_bytes in expected.items() if num_bytes is not None and num_bytes <= room.limit]
        found = next((rows for rows in reversed(hopeful) if fits(rows)), None)
    if found is None:
        raise UserError(
            f"train.micro_batch_size: not even one row of {train.sequence_length} positions at bag size {bag_size} "
            f"fits into {gigabytes(room.limit)}; make the model or train.sequence_length smaller"
        )
    return {
        "bag_size": bag_size,
        "batch_size": train.batch_size,
        "micro_batch_size": found,
        "memory_bytes": next(each["bytes"] for each in tried if each["rows"] == found),
        "limit_bytes": room.limit,
        "tried": tried,
    }


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of rising candidates that fits, where all below one that fits do; None where none does.

    The first is tried first, then ones at least twice as large, then what lies between: nothing is tried that is
    much too large.
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
    """The memory of the CPU, or of MPS, which is the same."""

    def __init__(self, subject: BenchRun, bag_size: int) -> None:
        self._subject = subject
        self._bag_size = bag_size
        self.limit = int((1 - MARGIN) * available_memory())
        self._one, self._two = self._estimate(1), self._estimate(2)

    def expect(self, rows: int) -> int | None:
        """Bytes that a step of micro-batches of `rows` rows should take; None for a family it is not known of."""
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
        """Bytes that a step really takes; None where they are not there."""
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
        """Nothing is expected of a device that can be asked."""

    def take(self, rows: int) -> int | None:
        """Bytes that a step takes, the allocator's fragments included; None where they are not there."""
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
