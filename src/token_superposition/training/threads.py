"""The number of CPU threads of a new run with `train.num_threads: auto`.

Torch uses one thread per core. On a machine that also runs other work, threads wait for each other at the end of every
operation, and a single thread can be several times faster. A short measurement decides.
"""

from __future__ import annotations

import functools
import os
import time
from typing import NamedTuple

import torch

_ROUNDS = 5
_SECONDS = 0.04  # duration of a round with one number of threads
_CLEARLY = 1.2
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ThreadChoice(NamedTuple):
    """The chosen number of threads.

    Attributes:
        num_threads: the number.
        speedup: speed of one thread divided by the speed of all threads; None if it was not measured.
    """

    num_threads: int
    speedup: float | None = None

    def remarks(self) -> list[str]:
        """Messages for the user; empty if all cores are used, as expected."""
        if self.speedup is None or self.speedup < _CLEARLY:
            return []
        return [
            f"this machine is busy: one CPU thread is {self.speedup:.1f} times as fast as all threads, so the run uses "
            "one thread (--train.num_threads sets another number)"
        ]


@functools.cache
def choose_threads() -> ThreadChoice:
    """One thread if it is clearly faster than all threads, otherwise all; measured once per process.

    Nothing is measured if the environment sets the number of threads, as a study does for its runs.
    """
    most = torch.get_num_threads()
    if most == 1 or any(name in os.environ for name in _VARIABLES):
        return ThreadChoice(most)
    speedup = _work_done(1, most)
    return ThreadChoice(1 if speedup >= _CLEARLY else most, speedup)


def _work_done(one: int, most: int) -> float:
    """The speed with `one` thread, divided by the speed with `most` threads.

    Rounds alternate, so that both measurements see the same load of the machine.
    """
    left, right = torch.ones(256, 512), torch.ones(512, 512)
    product = torch.empty(256, 512)
    steps = {one: 0.0, most: 0.0}
    try:
        for _ in range(_ROUNDS):
            for threads in steps:
                torch.set_num_threads(threads)
                torch.mm(left, right, out=product)  # starts the threads
                start, done = time.perf_counter(), 0
                while (spent := time.perf_counter() - start) < _SECONDS or not done:
                    torch.mm(left, right, out=product)
                    product.mul_(0.5).tanh_()
                    done += 1
                steps[threads] += done / spent
    finally:
        torch.set_num_threads(most)
    return steps[one] / steps[most]
