"""Requests to stop: Ctrl-C, and the signals that schedulers, supervisors and closed terminals send.

All of these signals are the same request. A request raises KeyboardInterrupt, unless the running code defers the
request to a point at which no work is lost. Requests often arrive more than once, because a signal goes to the process
and to its group, or because a supervisor repeats the signal. The repetition must not break the work that the first
request started, such as writing a checkpoint. Only a second Ctrl-C stops at once. Under torchrun a Ctrl-C is a
request like the others, because torchrun forwards it and stops the processes itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from token_superposition.torchrun import INTERRUPTED, launched_by_torchrun

# Slurm warns with SIGUSR1 or SIGUSR2. Grid Engine also uses SIGXCPU. A closed terminal sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ALWAYS_OURS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST = 5.0  # seconds in which repeated requests are ignored, so that the cleanup after the first can finish


class StoppedError(KeyboardInterrupt):
    """A request to stop was followed: a checkpoint is written, and nothing is lost."""


class Requests:
    """The requests to stop that this process received.

    Attributes:
        deferred: whether a request sets `pending` instead of raising KeyboardInterrupt.
        pending: whether a deferred request was received.
        over: whether the work is done; requests are then ignored.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.pending = False
        self.over = False
        self._presses = 0  # number of Ctrl-C
        self._raised = -float("inf")

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; the handler of every stop signal."""
        if self.over:
            return
        if number == signal.SIGINT and not launched_by_torchrun():
            self._presses += 1
            if self._presses > 2:
                os._exit(INTERRUPTED)
            if self._presses == 2:
                raise KeyboardInterrupt
        if self.deferred:
            self.pending = True
        elif time.monotonic() - self._raised > _ONE_REQUEST:
            self._raised = time.monotonic()
            raise KeyboardInterrupt

    def end_deferral(self) -> bool:
        """Let requests raise again; returns whether a request was pending, and clears it."""
        pending, self.pending = self.pending, False
        if pending:
            self._raised = time.monotonic()
        self.deferred = False
        return pending


_current: Requests | None = None


@contextlib.contextmanager
def stop_requests(*, ends_process: bool = False) -> Iterator[Requests]:
    """Handle the stop signals inside the block, if this is the main thread and no outer block handles them.

    Handlers that other code set for SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU stay. Ignored signals stay ignored: nohup
    ignores SIGHUP.

    Args:
        ends_process: whether the process ends after the block; the signals are then ignored after the block.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or Requests()
        return
    _current = requests = Requests()
    before: dict[signal.Signals, Any] = {}
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        if number in _ALWAYS_OURS or handler == signal.SIG_DFL:
            before[number] = handler
            signal.signal(number, requests.handle)
    try:
        yield requests
    finally:
        _current = None
        for number, handler in before.items():
            if ends_process:
                signal.signal(number, signal.SIG_IGN)
            elif handler is not None:  # None: code outside Python set the handler
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred_stop() -> Iterator[Callable[[], bool]]:
    """Defer requests to stop inside the block; yields a function that returns whether a request was received.

    Raises:
        KeyboardInterrupt: at the end of the block, if a request was received; inside the block, at a second Ctrl-C.
    """
    with stop_requests() as requests:
        requests.deferred = True
        try:
            yield lambda: requests.pending
        finally:
            pending = requests.end_deferral()
        if pending:
            raise KeyboardInterrupt


def ignore_stop_signals() -> None:
    """Ignore all stop signals in this process, because its parent also receives them and then ends this process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
