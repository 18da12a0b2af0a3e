"""How many CPU threads a new run computes with, where `train.num_threads` is `auto`.

Torch takes a thread for every core. On a machine that others use too, threads wait for each other at the end of every
operation, and one thread alone can be several times faster. A short trial tells.
"""

from __future__ import annotations

import functools
import os
import time
from typing import NamedTuple

import torch

_ROUNDS = 5
_SECONDS = 0.04  # of each round with each number of threads
_CLEARLY = 1.2
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ThreadChoice(NamedTuple):
    """The number of threads to compute with.

    Attributes:
        num_threads: the number.
        speedup: how many times faster one thread was than all; None if it was not tried.
    """

    num_threads: int
    speedup: float | None = None

    def remarks(self) -> list[str]:
        """What to tell the user: nothing where all cores are used, as expected."""
        if self.speedup is None or self.speedup < _CLEARLY:
            return []
        return [
            f"this machine is busy: one CPU thread is {self.speedup:.1f} times faster than all of them, so the run "
            "uses one (--train.num_threads gives another number)"
        ]


@functools.cache
def choose_threads() -> ThreadChoice:
    """One thread if it is clearly faster than all of them, otherwise all; tried once per process.

    Nothing is tried where the environment says how many threads there are to be, as a study does for its runs.
    """
    most = torch.get_num_threads()
    if most == 1 or any(name in os.environ for name in _VARIABLES):
        return ThreadChoice(most)
    speedup = _work_done(1, most)
    return ThreadChoice(1 if speedup >= _CLEARLY else most, speedup)


def _work_done(one: int, most: int) -> float:
    """How many times more work is done with `one` thread than with `most` in the same time.

    Rounds alternate, so that both meet the same load of the machine.
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
