"""Verifying a prepared data set before a run trains on it: every checksum, on every core.

Opening a split finds what is missing, cut short or of another tokenizer. A flipped bit shows only when all of
it is read, which for some gigabytes takes seconds and is done whenever a run starts. A checksum is computed
outside Python's lock, so threads are enough. `data.verify: false` leaves it out, for corpora of terabytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from token_superposition.data.description import SPLITS
from token_superposition.data.shards import TokenDataset

_SECONDS_BETWEEN_LINES = 5.0


def verify_folder(folder: Path, say: Callable[[str], None] | None = None) -> None:
    """Open and verify both splits of a prepared folder; see `verify`."""
    verify([TokenDataset.open(folder, split) for split in SPLITS], say)


def verify(datasets: Sequence[TokenDataset], say: Callable[[str], None] | None = None) -> None:
    """Verify several splits, on every core: checksums are computed outside Python's lock.

    Args:
        datasets: what to read.
        say: takes a line now and then, where it takes long.

    Raises:
        UserError: at the first block that is not as it should be.
    """
    blocks = [block for dataset in datasets for block in dataset.blocks()]
    total = sum(size for size, _ in blocks)
    start, done = time.monotonic(), 0
    said = start
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            for (size, _), _ in zip(blocks, pool.map(lambda block: block[1](), blocks), strict=True):
                done += size
                now = time.monotonic()
                if say is not None and now - said > _SECONDS_BETWEEN_LINES:
                    said = now
                    say(
                        f"verifying {datasets[0].folder}: {done / 1e9:,.1f} of {total / 1e9:,.1f} GB, "
                        f"{(now - start) * (total - done) / done:,.0f} s left (data.verify: false leaves it out)"
                    )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
