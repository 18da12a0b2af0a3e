"""Requests to stop, by whatever signal."""

from __future__ import annotations

import signal
import threading

import pytest

from token_superposition.interrupts import STOP_SIGNALS, deferred_stop, stop_requests


def wait_through(*numbers: signal.Signals) -> int:
    """Receive the signals where a stop is deferred; returns how many, once it has raised KeyboardInterrupt."""
    reached = 0
    try:
        with deferred_stop() as wanted:
            assert not wanted()
            for number in numbers:
                signal.raise_signal(number)
                assert wanted()
                reached += 1
    except KeyboardInterrupt:
        return reached
    raise AssertionError


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_raises_or_waits(number: signal.Signals) -> None:
    with stop_requests(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert wait_through(number) == 1


def test_repetitions_do_not_break_what_the_first_request_started() -> None:
    with stop_requests() as requests:
        assert wait_through(signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM) == 3
        signal.raise_signal(signal.SIGTERM)
        requests.over = True
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_does_not_wait() -> None:
    assert wait_through(signal.SIGINT, signal.SIGINT) == 1


def test_what_is_ignored_or_handled_by_others_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, lambda n, _: seen.append(n))
    try:
        with stop_requests():  # as under nohup
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def test_in_another_thread_nothing_is_handled() -> None:
    def work() -> None:
        with deferred_stop() as wanted:
            assert not wanted()
        ended.append(True)

    ended: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended
