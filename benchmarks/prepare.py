"""What preparing costs: `tst prepare` against `datasets.map`, and the memory of a long stream.

    python benchmarks/prepare.py PARQUET [--rounds 5] [--vocabulary 32768]
    python benchmarks/prepare.py --stream-gigabytes 5 [--copies 0.99]

Both sides go from the same .parquet to tokens on the disk with two processes, in turn, round by round, so that
a machine whose speed drifts changes both; every time is of the whole call, in this process, with its caches
empty. The tokenizer is trained beforehand. `datasets` has to be told how to make tokens: a function that
returns lists, as tokenizers do, and for bytes also one that returns NumPy arrays, which few people write.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from processes import tree

from token_superposition.data.prepare import prepare
from token_superposition.data.readers import Corpus
from token_superposition.data.tokenizers.subwords import train_bpe

PROCESSES = 2
TRAINED_ON = 3000  # documents


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--stream-gigabytes", type=float)
    parser.add_argument("--copies", type=float, default=0.0, help="share of the stream's lines that are one text")
    parser.add_argument("--workplace", type=Path, help="folder for what is written (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.workplace) as name:
        place = Path(name)
        if options.stream_gigabytes:
            result = stream(place, options.stream_gigabytes, options.copies)
        else:
            result = against_datasets(place, options.parquet, options.rounds, options.vocabulary)
    print(json.dumps(result, indent=2))


def against_datasets(place: Path, parquet: Path, rounds: int, vocabulary: int) -> dict[str, Any]:
    """Medians and quartiles of MB/s (of text), and our MB/s over theirs, round by round."""
    os.environ["HF_HOME"] = str(place / "hf")
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    texts = [document.text.decode() for document in Corpus([parquet]).documents()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    train_bpe(texts[:TRAINED_ON], vocabulary).save(place)
    bpe = PreTrainedTokenizerFast.from_pretrained(place)

    def lists(batch: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [list(text.encode()) for text in batch["text"]]}

    def arrays(batch: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [np.frombuffer(text.encode(), dtype=np.uint8) for text in batch["text"]]}

    def subwords(batch: dict[str, Any]) -> dict[str, Any]:
        return {"ids": bpe(batch["text"], return_attention_mask=False, verbose=False)["input_ids"]}

    def mapped(function: Callable[..., Any]) -> None:
        cache = place / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        table = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(cache))
        table.map(function, batched=True, num_proc=PROCESSES, remove_columns=table.column_names)

    def prepared(tokenizer: str) -> None:
        prepare([parquet], out=place / "out", tokenizer=tokenizer, processes=PROCESSES, quiet=True)

    arms: dict[str, Callable[[], None]] = {
        "bytes, tst": lambda: prepared("bytes"),
        "bytes, map returning lists": lambda: mapped(lists),
        "bytes, map returning arrays": lambda: mapped(arrays),
        "bpe, tst": lambda: prepared(str(place)),
        "bpe, map": lambda: mapped(subwords),
    }
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of map's processes; ours see to it themselves
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            shutil.rmtree(place / "out", ignore_errors=True)
            started = time.monotonic()
            arm()
            speeds[name].append(megabytes / (time.monotonic() - started))
            print(f"{name}: {speeds[name][-1]:.1f} MB/s", file=sys.stderr, flush=True)
    pairs = (
        ("bytes, tst", "bytes, map returning lists"),
        ("bytes, tst", "bytes, map returning arrays"),
        ("bpe, tst", "bpe, map"),
    )
    return {
        "megabytes_of_text": megabytes,
        "rounds": rounds,
        "processes": PROCESSES,
        "megabytes_per_second": {name: spread(values) for name, values in speeds.items()},
        "ratios_of_medians": {
            f"{ours} over {theirs}": statistics.median(speeds[ours]) / statistics.median(speeds[theirs])
            for ours, theirs in pairs
        },
        "ratios_by_round": {
            f"{ours} over {theirs}": spread([a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)])
            for ours, theirs in pairs
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def stream(place: Path, gigabytes: float, copies: float) -> dict[str, Any]:
    """Prepare a generated stream of .jsonl with `bytes`; the most memory that the command and its processes had."""
    command = [sys.executable, "-m", "token_superposition", "prepare", "-", "--format", "jsonl", "--json", "--quiet"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--out", str(place / "out"), "--processes", str(PROCESSES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(map(resident_bytes, tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        generate(process.stdin, int(gigabytes * 1e9), copies)
        process.stdin.close()
        result = json.loads(process.stdout.read())
        process.wait()
    finally:
        done.set()
        watcher.join()
    return {
        "gigabytes": gigabytes,
        "copies": copies,
        "documents": result["documents"],
        "tokens": result["tokens"],
        "seconds": time.monotonic() - started,
        "peak_megabytes_of_all_processes": peak[0] / 1e6,
    }


def generate(file: Any, num_bytes: int, copies: float) -> None:
    """Lines of .jsonl, each another text of some thousand characters, but for copies of a short one."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("etaoinshrdlu"), size)) for size in generator.integers(2, 9, 2000)]
    pages = [" ".join(generator.choice(words, 800)) for _ in range(200)]
    copied = json.dumps({"text": " ".join(words[:20])}).encode() + b"\n"
    written = number = 0
    while written < num_bytes:
        line = json.dumps({"text": f"{number} {pages[number % len(pages)]}"}).encode() + b"\n"
        for each in (line, copied * round(copies / (1 - copies))):
            file.write(each)
            written += len(each)
        number += 1


def resident_bytes(pid: int) -> int:
    """Memory that a process has, shared pages included."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
