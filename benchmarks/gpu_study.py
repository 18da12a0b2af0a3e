"""What superposition saves at 30M parameters on one GPU, in calls of at most nine minutes that go on from each other.

    python benchmarks/gpu_study.py --out study > study.json             and again, until it says "complete": true
    python benchmarks/gpu_study.py --out study --from earlier > ...     on another machine, with an earlier state.tar.gz
    python benchmarks/gpu_study.py --out study --toy                    the same logic at toy size, also on a CPU

Two studies of `tst compare`, on a BPE of 4,096 and on bytes: a baseline against s = 4 and s = 6 for 20% of the steps,
all else equal. They take turns, a seed of each at a time, so that both have a result early, subwords first: of bytes
more is known. What is done is never trained again. Before the time is up a study is stopped as Ctrl-C stops it, and one
JSON object is printed, whatever happened: each study's report as far as there is one (its curves are in the state), and
how far each run is.

Text: the English Wikipedia of `shared/data` in or beside the repository (needs pyarrow), else its children's books,
else the Python source of the machine. A study is named by its data's fingerprint: other text is another study, never
the same one gone on with.

Sizes. A Llama of width 512 with 9 layers, tied embeddings: 28.6M parameters on bytes, 30.6M with the BPE. A position
takes 197.5M FLOPs (six a parameter, and attention), a step of 64 rows of 512 positions 6.5e12. On an H200 a step took
36 to 44 ms (19 to 23% of the matrix peak), and a run of 2,000 steps, with start, compilation and validation, 117 s; so
a call of 520 s ends a seed of the BPE at `--steps 2000` and begins the bytes. At 3,000 steps a run is some 155 s by
that, and three seeds are 18 runs, three quarters of an hour. 3,000 steps are 98M positions, 1.0 epochs of Wikipedia's
bytes and 3.6 of its BPE tokens; s = 6 reads twice that, so the BPE's figures are of text that repeats. The learning
rate is tuned for no arm unless `--sweep` is given, which goes to `tst compare` as it is.

One run after the other: two at once would share one GPU that the batch of one fills, would make the measured seconds
mean nothing, and would leave two unfinished runs in place of one when the time is up.

State. `OUT/state.tar.gz`, which is all that need travel, holds finished runs (their metrics and results, no weights)
and reports: under a megabyte in all. A checkpoint of such a run is 0.37 GB (weights and two moments in float32),
too much to carry, and going on from less would not be the same run; so runs are short enough that a call ends several,
and the one that is cut off is carried on only where OUT itself is still there. Finished runs keep no checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import yaml
from processes import tree
from study_state import STATE, is_reported, pack, progress, read_report, run_folders, tidy, unpack, without_curves

from token_superposition.errors import UserError, one_line
from token_superposition.files import write_text

ROOT = Path(__file__).resolve().parents[1]
GRACE = 12.0  # seconds for a step and a checkpoint, after which a process is killed
ARMS = {
    "baseline": {"superposition.bag_size": 1},
    "s4": {"superposition.bag_size": 4, "superposition.ratio": 0.2},
    "s6": {"superposition.bag_size": 6, "superposition.ratio": 0.2},
}


class Size(NamedTuple):
    """A model, a batch, and how long."""

    width: int
    layers: int
    heads: int
    rows: int
    length: int
    steps: int
    vocabulary: int
    seeds: int
    interim_validation_tokens: int
    validation_tokens: int

    def study(self, data: Path, steps: int, *, on_gpu: bool) -> dict[str, Any]:
        """The study's file."""
        return {
            "data": {"path": str(data.resolve())},
            "model": {
                "architecture": "llama",
                "config": {
                    "hidden_size": self.width,
                    "intermediate_size": self.width * 43 // 16,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": self.heads,
                    "max_position_embeddings": self.length,
                    "tie_word_embeddings": True,
                },
            },
            "arms": ARMS,
            "train": {
                "total_steps": steps,
                "sequence_length": self.length,
                "batch_size": self.rows,
                "learning_rate": 1e-3,
                "device": "cuda" if on_gpu else "cpu",
                "dtype": "bfloat16" if on_gpu else "float32",
                "compile": on_gpu,
                **({} if on_gpu else {"num_threads": 1}),
            },
            "logging": {
                "log_interval": max(1, steps // 150),
                "validation_interval": max(1, steps // 10),  # the switch is one of them, so the spike is seen
                "interim_validation_tokens": self.interim_validation_tokens,
                "validation_tokens": self.validation_tokens,
                "checkpoint_interval": steps,  # at the switch, at the end, and when the time is up
                "keep_checkpoints": 1,
            },
        }


REAL = Size(512, 9, 8, 64, 512, 3000, 4096, 3, 65_536, 262_144)
TOY = Size(16, 1, 2, 4, 16, 60, 300, 1, 1024, 4096)


class Clock:
    """When to stop: at a time, or when somebody asks."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds
        self.asked = False

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def over(self) -> bool:
        """Whether to stop now."""
        return self.asked or self.spent() >= self.seconds

    def listen(self) -> None:
        """Take SIGINT and SIGTERM for the end of the time."""

        def ask(*_: object) -> None:
            self.asked = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)


class TimeIsUpError(Exception):
    """There is no time left for what was to be done."""


def tst(words: Sequence[str], log: Path, clock: Clock) -> None:
    """A command of `tst`, from this repository, in a process of its own.

    Raises:
        TimeIsUpError: after it was stopped as Ctrl-C does, and killed with all its processes where that took too long.
        UserError: where it failed; in its words.
    """
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    if clock.over():
        raise TimeIsUpError
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "token_superposition", *words, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C reaches it once, from us
        )
    while process.poll() is None and not clock.over():
        time.sleep(0.1)
    if process.poll() is None:
        process.terminate()  # not SIGINT, which a shell's background job ignores
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            for pid in reversed(tree(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        raise TimeIsUpError
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        said = one_line(lines[-1].removeprefix("error: "))[:500]
        raise UserError(f"tst {words[0]} ended with exit code {process.returncode}: {said}")


def texts(out: Path, *, toy: bool) -> Iterator[tuple[str, str]]:
    """Names and sources to prepare, the best first."""
    if toy:
        from timing import write_corpus

        if not (out / "text").is_dir():
            write_corpus(out / "text", 3)
        yield "made", str(out / "text")
        return
    names = {"wikipedia": "wikipedia-en.train.parquet", "books": "gutenberg-children.train.jsonl.gz"}
    for name, file in names.items():
        for folder in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
            if (folder / file).is_file() and (name != "wikipedia" or importlib.util.find_spec("pyarrow")):
                yield name, str(folder / file)
    yield "python", "python"


def prepare(out: Path, tokenizer: str, clock: Clock, *, toy: bool) -> tuple[str, Path, list[str]]:
    """Prepare the first text that can be; its name, the data's folder, and why others could not be.

    Raises:
        TimeIsUpError, UserError: the last where no text can be prepared.
    """
    said: list[str] = []
    for name, source in texts(out, toy=toy):
        data = out / "data" / f"{name}-{tokenizer.replace(':', '-')}"
        try:
            words = ["prepare", source, "--tokenizer", tokenizer, "--out", str(data), "--quiet"]
            tst(words, out / "logs" / f"{data.name}.log", clock)
        except UserError as error:
            said.append(f"{name}: {error}")
            continue
        return name, data, said
    raise UserError("; ".join(said))


def train(options: argparse.Namespace, size: Size, clock: Clock, result: dict[str, Any], *, on_gpu: bool) -> None:
    """Every study, a seed more each round, as far as the time goes; fills in `result`.

    Raises:
        TimeIsUpError: when it is.
    """
    out: Path = options.out
    for num_seeds in range(1, options.seeds + 1):
        for kind, tokenizer in (("bpe", f"bpe:{size.vocabulary}"), ("bytes", "bytes")):
            found = result["planned"].setdefault(kind, {})
            if "failed" in found:
                continue
            try:
                if "study" not in found:
                    say(options, clock, f"{kind}: text")
                    text, data, skipped = prepare(out, tokenizer, clock, toy=options.toy)
                    dataset = open_data(data)
                    name = f"{kind}-{options.steps}-{dataset.fingerprint[:8]}"
                    found |= {"study": name, "text": text, "tokens": dataset.num_tokens, "texts_failed": skipped}
                    file = out / "studies" / f"{name}.yaml"
                    write_text(file, yaml.safe_dump(size.study(data, options.steps, on_gpu=on_gpu), sort_keys=False))
                study = out / "studies" / found["study"]
                if not is_reported(study, num_seeds, tuned=bool(options.sweep)):
                    say(options, clock, f"{study.name}: seeds {num_seeds}")
                    words = ["compare", f"{study}.yaml", "--out", str(study), "--seeds", str(num_seeds), "--quiet"]
                    words += [word for each in options.sweep for word in ("--sweep", each)]
                    tst(words, out / "logs" / f"{study.name}.log", clock)
                found["seeds"] = num_seeds
            except UserError as error:  # the other study may still go on
                found["failed"] = str(error)


def open_data(folder: Path) -> Any:
    """The training split of a prepared folder."""
    from token_superposition.data.dataset import TokenDataset

    return TokenDataset.open(folder, "train")


def say(options: argparse.Namespace, clock: Clock, text: str) -> None:
    """A line of progress."""
    if not options.json:
        print(f"{clock.spent():5.0f} s  {text}", file=sys.stderr, flush=True)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 and one line where it asks for what cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of data, runs, reports and the state")
    parser.add_argument("--from", dest="earlier", type=Path, help=f"an earlier call's {STATE}, or the folder it is in")
    parser.add_argument("--seconds", type=float, default=520.0, help=f"when to stop; it takes {GRACE:.0f} s at most")
    parser.add_argument("--steps", type=int, help=f"of each run (default: {REAL.steps}); others are other studies")
    parser.add_argument("--seeds", type=int, help=f"of each arm (default: {REAL.seeds})")
    parser.add_argument("--sweep", action="append", default=[], help="as of tst compare: tune each arm first")
    parser.add_argument("--toy", action="store_true", help="toy size, on whatever there is")
    parser.add_argument("--json", action="store_true", help="no progress on standard error")
    options = parser.parse_args(arguments)
    size = TOY if options.toy else REAL
    options.steps, options.seeds = (
        size.steps if options.steps is None else options.steps,
        size.seeds if options.seeds is None else options.seeds,
    )
    if options.steps < 10 or options.seeds < 1:
        parser.error("--steps is at least 10, --seeds at least 1")
    if options.earlier is not None and options.earlier.is_dir():
        options.earlier = options.earlier / STATE
    if options.earlier is not None and not options.earlier.is_file():
        parser.error(f"--from: {options.earlier} is not there")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Go on with the studies, and print JSON; returns the exit code: 0 also where there is more to do."""
    options = read_options(arguments)
    clock = Clock(options.seconds)
    clock.listen()
    import torch  # after the clock has started: on a cold machine this takes a while

    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.toy:
        print("error: no CUDA device here; --toy runs the same logic at toy size on a CPU", file=sys.stderr)
        return 2
    out: Path = options.out
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "toy": options.toy,
        "seeds": options.seeds,
        "complete": False,
        "stopped": False,
        "planned": {},
    }
    try:
        (out / "studies").mkdir(parents=True, exist_ok=True)
        if options.earlier is not None:
            unpack(options.earlier, out)
        train(options, TOY if options.toy else REAL, clock, result, on_gpu=on_gpu)
        result["complete"] = all(found.get("seeds") == options.seeds for found in result["planned"].values())
    except TimeIsUpError:
        result["stopped"] = True
    except Exception as error:  # a machine lent for minutes: what is there is worth having
        result["failed"] = one_line(f"{type(error).__name__}: {error}")[:500]
    try:
        tidy(out / "studies")
        result["state"] = {"path": str(pack(out)), "bytes": (out / STATE).stat().st_size}
        result["studies"] = {
            study.name: {
                "report": without_curves(read_report(study)),
                "runs": [progress(study, run) for run in run_folders(study)],
            }
            for study in sorted((out / "studies").glob("*/"))
        }
    except Exception as error:
        result.setdefault("failed", one_line(f"{type(error).__name__}: {error}")[:500])
    result["seconds_in_all"] = clock.spent()
    print(json.dumps(result), flush=True)
    return 1 if "failed" in result or any("failed" in found for found in result["planned"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
