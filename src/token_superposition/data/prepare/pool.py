"""Encode pieces with several processes: pieces are sent in order, and results return as they are finished.

Starting a process takes a quarter of a second. If this is a large part of the work, the pieces are encoded in the main
process. If encoding is only copying, hashing and decompressing, threads do it, because Python releases its lock during
these. If the tokenizer has its own threads, the pieces are encoded one after another.

If several pieces fail, the error of the first piece in order is raised, whichever failed first. A corpus with two
errors therefore always gives the same message.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import token_superposition
from token_superposition.data.prepare.encode import EncodeProgress, Encoder
from token_superposition.data.prepare.worker import write_settings
from token_superposition.data.readers import Piece
from token_superposition.errors import RunError, UserError

Numbered = tuple[int, Piece]
_FEW_BYTES, _FEW_BYTES_COSTLY = 2**29, 2**22
_PROGRAM = "from token_superposition.data.prepare.worker import main; main()"


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_pieces(
    encoder: Encoder,
    pieces: Sequence[Numbered],
    processes: int,
    num_bytes: int,
    lock: int,
    report: Callable[[int, EncodeProgress], None],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Encode pieces, and yield the number and the result of each piece as soon as it is finished.

    Args:
        encoder: the encoder.
        pieces: the pieces with their numbers, in ascending order.
        processes: the number of processes; if there are fewer pieces, the rest become threads of the tokenizer.
        num_bytes: the bytes of all sources on disk.
        lock: a file descriptor that the processes keep open, so that its lock lasts until the last process ends.
        report: called with the number of a piece and its progress.

    Raises:
        UserError: if a source has an error.
        OSError: if the operating system reports an error.
        RunError: if a process was killed.
    """
    workers = min(processes, len(pieces))
    costly = encoder.tokenizer.is_costly
    if workers <= 1 or (costly and num_bytes < _FEW_BYTES_COSTLY):
        with tokenizer_threads(processes):
            for number, piece in pieces:
                yield number, encoder.encode(number, piece, partial(report, number))
        return
    if not costly and num_bytes < _FEW_BYTES:
        with ThreadPoolExecutor(workers) as threads:
            futures = [
                (number, threads.submit(encoder.encode, number, piece, partial(report, number)))
                for number, piece in pieces
            ]
            try:
                for number, future in futures:
                    yield number, future.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        return
    write_settings(encoder)
    with _Processes(workers, max(1, processes // workers), encoder.folder, lock) as pool:
        waiting = list(reversed(pieces))
        busy: dict[int, int] = {}  # the piece of each process
        failed: dict[int, Exception] = {}
        for worker in range(workers):
            busy[worker] = pool.send(worker, waiting.pop())
        while busy:
            worker, answer = pool.answers.get()
            if answer is None:
                raise pool.death(worker)
            number = answer["number"]
            if "progress" in answer:
                report(number, EncodeProgress(**answer["progress"]))
                continue
            del busy[worker]
            if "result" in answer:
                yield number, answer["result"]
            elif "wrong" in answer:
                failed[number] = UserError(answer["wrong"])
            else:
                failed[number] = OSError(*answer["refused"])
            if waiting and not failed:
                busy[worker] = pool.send(worker, waiting.pop())
        if failed:
            raise failed[min(failed)]


@contextlib.contextmanager
def tokenizer_threads(threads: int) -> Iterator[None]:
    """Limit Hugging Face tokenizers in this process to a number of threads; with 1, they start no threads."""
    before = {name: os.environ.get(name) for name in _thread_variables(1)}
    os.environ.update(_thread_variables(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _thread_variables(threads: int) -> dict[str, str]:
    return {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false", "RAYON_NUM_THREADS": str(threads)}


class _Processes:
    """Processes of `worker`; `answers` holds (process number, answer), and (process number, None) at its end."""

    def __init__(self, count: int, threads: int, folder: Path, lock: int) -> None:
        self.answers: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[str]] = []
        root = str(Path(token_superposition.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **_thread_variables(threads)}
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=(lock,),
                text=True,
                encoding="utf-8",
            )
            self._processes.append(process)
            threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def send(self, worker: int, numbered: Numbered) -> int:
        """Send a piece to a process, and return the number of the piece."""
        number, piece = numbered
        stream = self._processes[worker].stdin
        with contextlib.suppress(BrokenPipeError):  # the process has ended, and `answers` says so
            if stream is not None:
                stream.write(json.dumps({"number": number, "piece": asdict(piece)}) + "\n")
                stream.flush()
        return number

    def death(self, worker: int) -> RunError:
        """Return the error for a process that ended unexpectedly."""
        code = self._processes[worker].wait()
        if code < 0:
            name = signal.Signals(-code).name
            return RunError(
                f"an encoding process was killed ({name}), maybe because memory ran out; try fewer --processes"
            )
        return RunError(f"an encoding process ended with exit code {code}; its output is above")

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ValueError, OSError):  # the stream was closed during a read
            for line in process.stdout or ():
                self.answers.put((number, json.loads(line)))
        self.answers.put((number, None))
