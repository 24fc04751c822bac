"""Time limits and the like, told apart from errors of what they interrupt."""

import contextlib
import functools
import gc
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.core.cache import caches

from ormcache import counters, debts, flights, stores
from ormcache.interruptions import foreign, interruption, let_through
from ormcache.leases import Keeper
from ormcache.stores import Breaker, LocMemStore
from tests.handlers import TimeLimit, handling, interrupted
from tests.interleaving import Background

BREAKER, KEEPER, LOCMEM = Breaker(), Keeper(), LocMemStore(caches["locmem"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lock", "use"),
    [
        (lambda: flights._lock, lambda: flights.take_off(("", "", ""))[0].land()),
        (lambda: counters._lock, lambda: counters.count_read("nowhere", ("t",), "hit")),
        (lambda: counters._lock, lambda: counters.count_event("nowhere", ("t",), "fenced")),
        (lambda: debts.ledger._lock, lambda: debts.ledger.tables(("", ""))),
        (lambda: stores._lock, lambda: stores.store_for("locmem", "strict")),
        (lambda: BREAKER._lock, BREAKER.failed),
        (lambda: BREAKER._lock, BREAKER.allows),
        (lambda: BREAKER._lock, BREAKER.succeeded),
        (lambda: LOCMEM._lock, lambda: LOCMEM.read("", "", ["t"])),
        (lambda: LOCMEM._lock, lambda: LOCMEM.bump("", ["t"])),
        (lambda: LOCMEM._lock, lambda: LOCMEM.status("")),
        (lambda: KEEPER._starting, lambda: KEEPER.hold("", LOCMEM, "", [], 0.0)),
    ],
)
def test_the_handler_of_a_signal_may_come_while_its_thread_holds_a_lock(
    monkeypatch: pytest.MonkeyPatch, lock: Callable[[], Any], use: Callable[[], object]
) -> None:
    """It does in the main thread; in another one a test that fails does not hang."""
    monkeypatch.setattr(stores, "_stores", {})

    def work() -> None:
        with lock():
            use()

    Background(work).result()


def error_of(work: Callable[[], object]) -> BaseException:
    """What it raises, caught where a call would be guarded."""
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


def as_a_library_does() -> None:
    """redis-py takes each OSError for one of its socket."""
    try:
        interrupted()
    except OSError as error:
        raise redis.ConnectionError(f"while reading: {error}") from None


def throw(kind: type[BaseException]) -> None:
    raise kind


class Handler:
    def __call__(self, number: int, frame: Any) -> None:
        throw(TimeLimit)


def plain(number: int, frame: Any) -> None:
    raise TimeLimit


def with_variable_arguments(*args: Any) -> None:
    raise TimeLimit


@pytest.mark.parametrize(
    "handler",
    [
        plain,
        with_variable_arguments,
        Handler(),
        Handler().__call__,
        functools.partial(lambda own, *args: throw(own), TimeLimit),
    ],
    ids=["function", "arguments", "instance", "method", "partial"],
)
def test_what_the_handler_of_a_signal_raises_is_an_interruption(
    handler: Callable[..., Any],
) -> None:
    with handling(handler):
        error = error_of(interrupted)
    assert type(error) is TimeLimit
    assert interruption(error) is error
    with pytest.raises(TimeLimit):
        let_through(error)


@pytest.mark.parametrize(
    "kind", [TimeoutError, ValueError, OSError, redis.TimeoutError, Exception]
)
def test_whatever_class_it_has(kind: type[Exception]) -> None:
    with handling(lambda *args: throw(kind)):
        error = error_of(interrupted)
    assert interruption(error) is error
    assert foreign(error, "redis") is error


def test_an_interruption_that_a_library_took_for_an_error_of_its_socket_is_found() -> None:
    with handling(lambda *args: throw(TimeoutError)):
        error = error_of(as_a_library_does)
    assert type(error) is redis.ConnectionError
    assert type(interruption(error)) is TimeoutError


def test_an_interruption_that_the_caller_was_dealing_with_is_over() -> None:
    """What fails while an interruption is being handled is no interruption."""

    def fail() -> None:
        raise redis.ConnectionError("gone")

    with handling():
        try:
            interrupted()
        except TimeLimit:
            error = error_of(fail)
    assert type(error.__context__) is TimeLimit
    assert interruption(error) is None
    assert foreign(error, "redis") is None


def test_to_raise_an_interruption_makes_no_circle_of_references() -> None:
    """Its frames go with it at once, and with them a bracket that was interrupted."""

    class Frail:
        pass

    gone = []

    def wait() -> None:
        frail = Frail()
        weakref.finalize(frail, gone.append, True)
        try:
            interrupted()
        except Exception as error:
            let_through(error)

    gc.disable()
    try:
        with handling(), contextlib.suppress(TimeLimit):
            wait()
        assert gone == [True]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_is_an_interruption(kind: type[BaseException]) -> None:
    error = error_of(lambda: throw(kind))
    assert interruption(error) is error


def test_who_only_looks_at_the_callers_frame_is_no_handler() -> None:
    """As a wrapper around the client may, that notes from where it was called."""

    def watched() -> None:
        caller = sys._getframe(1)
        assert caller
        raise redis.ConnectionError("gone")

    error = error_of(watched)
    assert interruption(error) is None
    assert foreign(error, "redis") is None


def test_an_error_of_the_call_is_no_interruption() -> None:
    error = error_of(lambda: throw(TimeLimit))
    assert interruption(error) is None
    let_through(error)


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("gone"),
        redis.TimeoutError("Timeout reading from socket"),
        redis.ResponseError("OOM"),
        ConnectionResetError(104, "reset"),
        socket.gaierror(-2, "Name or service not known"),
        TimeoutError(110, "Connection timed out"),
        TimeoutError("The read operation timed out"),
        ValueError("invalid literal for int()"),
    ],
    ids=repr,
)
def test_errors_that_a_client_raises_are_not_foreign_to_it(error: Exception) -> None:
    def fail() -> None:
        raise error

    assert foreign(error_of(fail), "redis") is None


def test_a_timeout_of_a_real_socket_is_not_foreign() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.001)
        error = error_of(lambda: one.recv(1))
    assert type(error) is TimeoutError
    assert foreign(error, "redis") is None


@pytest.mark.parametrize(
    "error",
    [TimeLimit(), TimeoutError(), TimeoutError("too long"), type("Own", (TimeoutError,), {})()],
    ids=repr,
)
def test_what_no_client_raises_is_foreign_without_a_handler_too(error: Exception) -> None:
    """As by ``PyThreadState_SetAsyncExc``."""

    def fail() -> None:
        raise error

    assert foreign(error_of(fail), "redis") is error
