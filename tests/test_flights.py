"""Who waits for whom when many miss the same at once, and who does not."""

import os
from collections.abc import Callable, Iterator
from threading import Semaphore
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from ormcache import flights, reads
from ormcache.reasons import Reason
from tests.authors import NEW, OLD, Names, rename
from tests.handlers import handling, interrupted
from tests.interleaving import SECONDS, Background, Pause, pause_before, released_before
from tests.marks import on_databases, on_pairs
from tests.models import Author
from tests.watching import Watch

pytestmark = pytest.mark.usefixtures("emptied")

on_two = on_pairs(("default", "locmem"), ("postgresql", "redis"), transaction=True)
NAME = ("namespace", "entry", "registers")


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> Semaphore:
    """Released by each who is about to wait for a flight."""
    return released_before(monkeypatch, flights.Flight, "wait")


@pytest.fixture
def connected(using: str, names: Names) -> Callable[[], list[str]]:
    """The names of all authors, asked for on a connection that is open."""

    def ask() -> list[str]:
        connections[using].ensure_connection()
        return names()

    return ask


@pytest.fixture
def first(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, author: Author, connected: Callable[[], Any]
) -> Iterator[tuple[Background, Pause]]:
    """A reader who has missed, and who is stopped before it asks the database.

    Whoever waits for it does so for longer than the test does.
    """
    monkeypatch.setattr(flights, "_PATIENCE", 3 * SECONDS)
    pause = pause_before(monkeypatch, reads.Read, "from_database")
    reader = Background(connected)
    pause.wait()
    yield reader, pause
    pause.end()
    reader.join(SECONDS)


# --- flights -----------------------------------------------------------------------------------


def test_the_second_waits_for_what_the_first_has_loaded() -> None:
    flight, is_first = flights.take_off(NAME)
    assert is_first

    def follow() -> bytes | None:
        joined, leads = flights.take_off(NAME)
        assert joined is flight
        assert not leads
        return joined.wait()

    follower = Background(follow)
    flight.payload = b"answer"
    flight.land()
    assert follower.result() == b"answer"
    assert flights._under_way == {}


def test_the_next_after_a_landing_takes_off_anew() -> None:
    flight, _ = flights.take_off(NAME)
    flight.land()
    other, is_first = flights.take_off(NAME)
    other.land()
    assert is_first
    assert other is not flight


def test_nobody_waits_for_himself() -> None:
    """A wrapper around the query, or a receiver, may ask the same."""
    outer, _ = flights.take_off(NAME)
    inner, is_first = flights.take_off(NAME)
    assert is_first
    inner.land()
    assert flights._under_way == {NAME: outer}
    outer.land()


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "_PATIENCE", 0.01)
    flight, _ = flights.take_off(NAME)
    try:
        assert Background(lambda: flights.take_off(NAME)[0].wait()).result() is None
    finally:
        flight.land()


def test_a_child_process_waits_for_none_of_its_parent() -> None:
    flight, _ = flights.take_off(NAME)
    child = os.fork()
    if not child:
        status = 1
        try:
            is_free = flights._lock.acquire(blocking=False)
            status = 0 if is_free and flights.take_off(NAME)[1] else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    flight.land()
    assert status == 0


# --- reads -------------------------------------------------------------------------------------


@on_two
def test_values_are_not_shared(
    followers: Semaphore, cached: Watch, first: Any, connected: Any
) -> None:
    leader, pause = first
    follower = Background(connected)
    assert followers.acquire(timeout=SECONDS)
    pause.end()
    assert leader.result() == follower.result() == [OLD]
    assert leader.result() is not follower.result()
    assert sorted(cached.outcomes) == ["hit", "miss"]


@on_two
def test_who_comes_after_a_write_does_not_wait_for_who_came_before(
    cached: Watch, using: str, first: Any, connected: Any
) -> None:
    leader, pause = first
    rename(using)
    assert Background(connected).result() == [NEW]
    pause.end()
    leader.result()
    assert cached.outcomes == ["miss", "miss"]
    assert connected() == [NEW]


@on_two
def test_if_the_first_fails_the_others_ask_for_themselves(
    monkeypatch: pytest.MonkeyPatch,
    followers: Semaphore,
    cached: Watch,
    using: str,
    author: Author,
    connected: Any,
) -> None:
    fetch = reads.Read.from_database
    pause = Pause()
    has_failed: list[bool] = []

    def fail_once(read: reads.Read, run: Any) -> Any:
        if has_failed:
            return fetch(read, run)
        has_failed.append(True)
        pause.here()
        raise OperationalError("lost")

    monkeypatch.setattr(reads.Read, "from_database", fail_once)
    leader = Background(connected)
    pause.wait()
    follower = Background(connected)
    assert followers.acquire(timeout=SECONDS)
    pause.end()
    with pytest.raises(OperationalError, match="lost"):
        leader.result()
    assert follower.result() == [OLD]
    assert flights._under_way == {}


@on_two
def test_an_answer_that_must_not_be_stored_is_given_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
    followers: Semaphore,
    cached: Watch,
    first: Any,
    connected: Any,
) -> None:
    leader, pause = first
    follower = Background(connected)
    assert followers.acquire(timeout=SECONDS)
    monkeypatch.setattr(reads, "why_not_store", lambda *args, **kwargs: (Reason.VIEW, ""))
    pause.end()
    assert leader.result() == follower.result() == [OLD]
    assert cached.outcomes == ["miss", "miss"]


@on_databases("postgresql", transaction=True)
def test_nobody_waits_in_a_transaction(
    cached: Watch, using: str, first: Any, connected: Any
) -> None:
    """It may hold the connection that the first is waiting for."""

    def in_a_transaction() -> list[str]:
        with transaction.atomic(using):
            # Asked, as whether it is a snapshot is not known before.
            return connected()

    assert Background(in_a_transaction).result() == [OLD]


@on_two
def test_where_every_hit_is_verified_everybody_asks_the_database(
    cached: Watch, settings: Any, first: Any, connected: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 1}
    assert Background(connected).result() == [OLD]


# --- signals -----------------------------------------------------------------------------------


def test_the_handler_of_a_signal_may_miss_while_a_flight_takes_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = flights.Flight.__init__
    inner: list[bool] = []

    def handler(*args: Any) -> None:
        monkeypatch.setattr(flights.Flight, "__init__", original)
        flight, is_first = flights.take_off(NAME)
        inner.append(is_first)
        flight.land()

    def struck(self: Any, name: Any) -> None:
        interrupted()
        original(self, name)

    monkeypatch.setattr(flights.Flight, "__init__", struck)

    def take_off() -> bool:
        flight, is_first = flights.take_off(NAME)
        flight.land()
        return is_first

    with handling(handler):
        assert take_off()
    assert inner == [True]
    assert flights._under_way == {}
