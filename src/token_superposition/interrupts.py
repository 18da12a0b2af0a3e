"""Requests to stop: Ctrl-C, and the signals that schedulers, supervisors and closed terminals send.

All of them are one request. It raises KeyboardInterrupt, except where work defers it to a point at which nothing is
lost. The request is often sent more than once (to the process and to its group; by a supervisor that repeats it), and
the repetition must not break the work that the first one started, such as writing a checkpoint. Only a second Ctrl-C
stops at once.
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

# Slurm warns with SIGUSR1 or SIGUSR2, Grid Engine with these or SIGXCPU; a lost terminal sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ALWAYS_OURS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST = 5.0  # seconds: in which repetitions are ignored, so that what a stop has to tidy up is tidied up
INTERRUPTED = 130


class Requests:
    """The requests to stop that this process was sent.

    Attributes:
        deferred: whether a request waits (`pending`) instead of raising.
        over: whether the work is done, so that a request changes nothing.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.pending = False
        self.over = False
        self._presses = 0  # of Ctrl-C
        self._raised = -float("inf")

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take a signal; the handler of all of them."""
        if self.over:
            return
        if number == signal.SIGINT:
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
        """Let requests raise again; returns whether one was pending, which is answered with this."""
        pending, self.pending = self.pending, False
        if pending:
            self._raised = time.monotonic()
        self.deferred = False
        return pending


_current: Requests | None = None


@contextlib.contextmanager
def stop_requests(*, ends_process: bool = False) -> Iterator[Requests]:
    """Handle the stop signals inside the block, if it is in the main thread and no block around it does.

    Handlers that somebody else set for SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU stay, and so does what is ignored: nohup
    ignores SIGHUP.

    Args:
        ends_process: the process ends after the block, so the signals are ignored from then on.
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
            elif handler is not None:  # None: set by code that is not Python
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred_stop() -> Iterator[Callable[[], bool]]:
    """Let a request to stop wait inside the block; yields a function that says whether there is one.

    Raises:
        KeyboardInterrupt: at the end of the block, if there is a request; inside the block at a second Ctrl-C.
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
    """Ignore all stop signals in this process: its parent gets them too, and ends it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
