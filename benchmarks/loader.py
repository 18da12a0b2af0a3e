"""How fast the loader is: shuffled rows of bags, from the page cache to int64 tensors that a model takes.

    python benchmarks/loader.py [--bag-size 16] [--megabytes 500] [--repeats 9] [--json]

A corpus of random tokens, two bytes each, is written in the format of `tst prepare` into a temporary folder and read
once, so that it is in the page cache. Then whole batches are made as a run makes them (`TokenStream.batch`: which
rows, reading, conversion, inputs and targets apart), in one thread, at several shapes that take turns. Reported
are the median and the quartiles over the repeats, by the clock and by the time that the thread had a core for: on a
machine that others use, only the second is the loader's. Raw tokens are those read as inputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from token_superposition.data.dataset import ShardWriter, TokenDataset
from token_superposition.data.manifest import DATASET_FILE, DATASET_FORMAT, DATASET_VERSION, shard_name
from token_superposition.data.stream import TokenStream
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.files import write_json
from token_superposition.schedule import Schedule, Stage

_SHAPES = {"demo": (128, 16), "1024 positions": (1024, 32), "2048 positions": (2048, 16), "a large step": (2048, 128)}
_SECONDS = 0.5  # of a repeat
_STEPS = 10**6


def write_corpus(folder: Path, num_tokens: int) -> TokenDataset:
    """Random tokens as a prepared folder, read once."""
    tokenizer, generator = ByteTokenizer(), np.random.default_rng(0)
    tokenizer.save(folder)
    splits = {}
    for split, length in (("train", num_tokens), ("validation", 2**16)):
        with ShardWriter(folder / shard_name(split, 0), tokenizer) as shard:
            for start in range(0, length, 2**24):
                shard.add(generator.integers(0, 2**16, min(2**24, length - start), dtype=np.uint16), 0)
        counts = {"tokens": length, "bytes": 0, "documents": shard.num_documents}
        splits[split] = {**counts, "shards": [{"file": shard_name(split, 0), **counts}]}
    description = {"format": DATASET_FORMAT, "version": DATASET_VERSION, "splits": splits, "random_ids": 2**16}
    write_json(folder / DATASET_FILE, description)
    dataset = TokenDataset.open(folder, "train")
    for start in range(0, num_tokens, 2**24):
        dataset.read(start, min(2**24, num_tokens - start))
    return dataset


class Speed(NamedTuple):
    """Rows a second, by the clock and of the thread's own time."""

    clock: float
    core: float


def rows_a_second(stream: TokenStream, first_step: int) -> tuple[Speed, int]:
    """How fast some steps' batches are made, and how many steps there were."""
    step, start, core = first_step, time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < _SECONDS:
        batch = stream.batch(step)
        assert batch.ids.is_contiguous()
        assert batch.ids.dtype == batch.targets.dtype == torch.int64
        step += 1
    rows = (step - first_step) * stream.batch_size
    return Speed(rows / (time.perf_counter() - start), rows / (time.thread_time() - core)), step - first_step


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def figures(shape: str, bag_size: int, speeds: list[Speed]) -> dict[str, Any]:
    """What was measured at a shape."""
    length, rows = _SHAPES[shape]
    return {
        "shape": shape,
        "sequence_length": length,
        "rows": rows,
        "rows_per_second": spread([speed.clock for speed in speeds]),
        "raw_tokens_per_second": spread([speed.clock * length * bag_size for speed in speeds]),
        "raw_tokens_per_core_second": spread([speed.core * length * bag_size for speed in speeds]),
        "batch_seconds": spread([rows / speed.clock for speed in speeds]),
    }


def measure(bag_size: int, megabytes: int, repeats: int) -> dict[str, Any]:
    """Time every shape, in turns."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        dataset = write_corpus(Path(name), megabytes * 500_000)
        streams = {
            shape: TokenStream(
                dataset,
                Schedule([Stage(bag_size, _STEPS), Stage(1, 1)]),
                sequence_length=length,
                batch_size=rows,
                seed=0,
            )
            for shape, (length, rows) in _SHAPES.items()
        }
        steps = dict.fromkeys(streams, 0)
        speeds: dict[str, list[Speed]] = {shape: [] for shape in streams}
        for number in range(-1, repeats):
            for shape, stream in streams.items():
                speed, done = rows_a_second(stream, steps[shape])
                steps[shape] += done
                if number >= 0:  # the first warms up
                    speeds[shape].append(speed)
    return {
        "bag_size": bag_size,
        "megabytes": megabytes,
        "repeats": repeats,
        "shapes": [figures(shape, bag_size, values) for shape, values in speeds.items()],
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag-size", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=500, help="of the corpus")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.bag_size, options.megabytes, options.repeats)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'shape':15} positions x rows  raw tokens/s (quartiles)     of a core's second       ms a batch")
    for each in result["shapes"]:
        place = f"{each['shape']:15} {each['sequence_length']:>9} x {each['rows']:<5}"
        speeds = [millions(each[name]) for name in ("raw_tokens_per_second", "raw_tokens_per_core_second")]
        print(f"{place} {speeds[0]:28} {speeds[1]:24} {1e3 * each['batch_seconds']['median']:>10.3f}")


def millions(values: dict[str, float]) -> str:
    """Median and quartiles in millions."""
    low, middle, high = (f"{values[name] / 1e6:,.0f}M" for name in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
