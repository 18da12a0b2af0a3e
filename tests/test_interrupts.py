"""Requests to stop, by whatever signal."""

from __future__ import annotations

import signal
import threading

import pytest

from token_superposition.interrupts import STOP_SIGNALS, deferred_stop, stop_requests


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_raises_or_waits(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests():
        signal.raise_signal(number)
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_stop() as wanted:
        assert not wanted()
        signal.raise_signal(number)
        reached = wanted()
    assert reached


def test_repetitions_do_not_break_what_the_first_request_started() -> None:
    with stop_requests() as requests:
        with pytest.raises(KeyboardInterrupt), deferred_stop():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        requests.over = True
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_stop():
        signal.raise_signal(signal.SIGINT)
        reached = True
        signal.raise_signal(signal.SIGINT)
        raise AssertionError
    assert reached


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
