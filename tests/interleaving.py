"""Threads and sessions in an order that the test decides."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connections

from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.routers.namespaces import Route
from ormcache.stores import Store

SECONDS = 40
"""After so long, a test that waits for another thread fails.

MariaDB lets others wait 50 seconds for the rows that a thread has locked which waits itself.
"""


# --- threads ---------------------------------------------------------------------------------


class Pause:
    """A point in the code that a thread reaches, and does not pass before it may."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._ended = threading.Event()

    def here(self) -> None:
        self._reached.set()
        assert self._ended.wait(SECONDS), "nobody ended the pause"

    def wait(self) -> None:
        """Return when the thread is at the point."""
        assert self._reached.wait(SECONDS), "no thread came to the point"

    def end(self) -> None:
        self._ended.set()


class Background(threading.Thread):
    """Runs a function in a thread with connections of its own; `result` has what became of it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._args = function, args
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()
            caches.close_all()

    def result(self, seconds: float = SECONDS) -> Any:
        self.join(seconds)
        assert not self.is_alive(), "the thread does not end"
        if self._error is not None:
            raise self._error
        return self._value


def pause_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Pause:
    """Stop the first `Background` thread that calls `owner.name`, before the call."""
    return _pause(monkeypatch, owner, name, is_before=True)


def pause_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Pause:
    """Stop the first `Background` thread that calls `owner.name`, after the call."""
    return _pause(monkeypatch, owner, name, is_before=False)


def _pause(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, is_before: bool) -> Pause:
    pause = Pause()
    original = getattr(owner, name)
    once = threading.Lock()

    def paused(*args: Any, **kwargs: Any) -> Any:
        is_it = isinstance(threading.current_thread(), Background) and once.acquire(blocking=False)
        if is_it and is_before:
            pause.here()
        result = original(*args, **kwargs)
        if is_it and not is_before:
            pause.here()
        return result

    monkeypatch.setattr(owner, name, paused)
    return pause


def released_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> threading.Semaphore:
    """A semaphore that each call of `owner.name` releases before it begins."""
    calls = threading.Semaphore(0)
    original = getattr(owner, name)

    def released(*args: Any, **kwargs: Any) -> Any:
        calls.release()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, released)
    return calls


# --- sessions --------------------------------------------------------------------------------


@contextlib.contextmanager
def session(using: str, **settings: Any) -> Iterator[Any]:
    """Inside, this thread uses another connection to the same database.

    Transactions of the usual one stay open meanwhile. `settings` replace those of the alias.
    """
    usual = connections[using]
    other = usual.copy()
    other.settings_dict.update(settings)
    connections[using] = other
    try:
        yield other
    finally:
        other.close()
        connections[using] = usual


@contextlib.contextmanager
def switched_to(connection: Any) -> Iterator[None]:
    """Inside, this thread uses `connection`, which stays open."""
    usual = connections[connection.alias]
    connections[connection.alias] = connection
    try:
        yield
    finally:
        connections[connection.alias] = usual


# --- the store -------------------------------------------------------------------------------


def route_of(using: str) -> Route:
    return state_of(connections[using]).route(connections[using], current())


def store_of(using: str) -> Store:
    store = route_of(using).store
    assert store is not None
    return store


def record_calls(monkeypatch: pytest.MonkeyPatch, store: Store, *methods: str) -> list[str]:
    """The names of the store's methods, as they are called from now on."""
    calls: list[str] = []

    def recording(name: str) -> Callable[..., Any]:
        original = getattr(store, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return recorded

    for name in methods or ("read", "fill", "arm", "finish", "bump"):
        monkeypatch.setattr(store, name, recording(name))
    return calls


def number_of(connection: Any) -> int:
    """What the server calls the session."""
    driver = connection.connection
    if connection.vendor == "postgresql":
        return driver.info.backend_pid
    return driver.thread_id()


def kill(using: str, number: int) -> None:
    """End a session at the server, and return when it is gone."""
    end, look = {
        "postgresql": (
            "SELECT pg_terminate_backend(%s)",
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s",
        ),
        "mariadb": ("KILL %s", "SELECT 1 FROM information_schema.processlist WHERE id = %s"),
    }[using]
    with session(using) as other, other.cursor() as cursor:
        cursor.execute(end, [number])
        deadline = time.monotonic() + SECONDS
        cursor.execute(look, [number])
        while cursor.fetchone():
            assert time.monotonic() < deadline, "the session does not end"
            cursor.execute(look, [number])


def wait_for_others(using: str) -> None:
    """Until no other session of PostgreSQL's database is at work on an UPDATE."""
    with session(using) as own, own.cursor() as cursor:
        deadline = time.monotonic() + SECONDS
        while True:
            cursor.execute(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database() "
                "AND state = 'active' AND query LIKE 'UPDATE %%' AND pid <> pg_backend_pid()"
            )
            at_work = cursor.fetchall()
            if not at_work:
                return
            assert time.monotonic() < deadline, f"still at work: {at_work}"
