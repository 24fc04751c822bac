"""The circuit breaker, under a clock of the test's own."""

import types
from collections.abc import Callable
from typing import Any

import pytest

from ormcache.stores import breaker as module
from ormcache.stores.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = types.SimpleNamespace(monotonic=clock.monotonic)
    monkeypatch.setattr(module, "time", fake)
    return clock


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker()


def pause_after_failure(breaker: Breaker, clock: Clock) -> float:
    """Seconds until the breaker lets somebody through; he fails."""
    begun = clock.now
    while not breaker.allows():
        clock.now += 0.25
    breaker.failed()
    return clock.now - begun


def test_it_is_closed_at_first(breaker: Breaker) -> None:
    assert breaker.is_closed
    assert breaker.allows()
    assert breaker.allows(urgent=True)


def test_a_success_while_it_is_closed_changes_nothing(breaker: Breaker) -> None:
    breaker.succeeded()
    assert breaker.is_closed


def test_after_a_failure_nobody_is_let_through_for_half_a_second(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed()
    assert not breaker.is_closed
    for _ in range(2):
        assert not breaker.allows()
        assert not breaker.allows(urgent=True)
        clock.now += 0.25
    assert breaker.allows()


def test_then_one_caller_tries_and_the_others_wait(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    clock.now += 0.5
    assert breaker.allows()
    assert not breaker.allows()
    assert not breaker.allows()


def test_a_try_of_which_nothing_is_heard_is_followed_by_another(
    breaker: Breaker, clock: Clock
) -> None:
    """A caller may be killed between asking and telling."""
    breaker.failed()
    clock.now += 0.5
    assert breaker.allows()
    clock.now += 1
    assert breaker.allows()


def test_each_failed_try_doubles_the_pause_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    pauses = [pause_after_failure(breaker, clock) for _ in range(8)]
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15]


def test_a_success_closes_it_and_forgets_how_long_it_lasted(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed()
    for _ in range(5):
        pause_after_failure(breaker, clock)
    breaker.succeeded()
    assert breaker.is_closed
    breaker.failed()
    assert pause_after_failure(breaker, clock) == 0.5


def test_many_calls_that_fail_at_once_are_one_failure(breaker: Breaker, clock: Clock) -> None:
    """Twenty threads that wait for a server as it dies would keep the cache off for long."""
    assert all(breaker.allows() for _ in range(20))
    for _ in range(20):
        breaker.failed()
    assert pause_after_failure(breaker, clock) == 0.5


def test_an_urgent_call_waits_for_the_shortest_pause_only(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    for _ in range(4):
        pause_after_failure(breaker, clock)
    clock.now += 0.25
    assert not breaker.allows(urgent=True)
    clock.now += 0.25
    assert not breaker.allows()
    assert breaker.allows(urgent=True)


def test_an_urgent_call_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    for _ in range(4):
        pause_after_failure(breaker, clock)
    clock.now += 0.5
    assert breaker.allows(urgent=True)
    breaker.succeeded()
    assert breaker.allows()


def test_whoever_waited_for_the_lock_sees_what_became_of_it(
    breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes it between the look at it and the lock."""
    breaker.failed()
    lock: Any = breaker._lock

    class SlowLock:
        def __enter__(self) -> None:
            monkeypatch.setattr(breaker, "_lock", lock)
            breaker.succeeded()
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    monkeypatch.setattr(breaker, "_lock", SlowLock())
    ask: Callable[[], bool] = breaker.allows
    assert ask()
