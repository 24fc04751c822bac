"""Writers that are killed, or stopped for a while, at each point of a commit."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches

from tests.crashing import Writer, wait_until
from tests.factories import AuthorFactory, BookFactory
from tests.factories import using as factories_using
from tests.interleaving import Background, route_of, session, store_of
from tests.marks import on_pairs, scenario
from tests.models import Author, Book
from tests.watching import Watch, wait_for_quarantine

OLD, NEW = "old", "new"
BUSY, OVERDUE = "a write is being committed", "a commit is overdue"

on_servers = on_pairs(("postgresql", "redis"), ("mariadb", "redis"), transaction=True)


@pytest.fixture
def space(cached: Watch, using: str, settings: Any) -> None:
    """A namespace of the test's own: it remembers the longest lease that it was ever asked for."""
    prefix = f"crashes{random.randrange(10**9)}"
    settings.ORMCACHE = {**settings.ORMCACHE, "KEY_PREFIX": prefix}
    wait_for_quarantine(using)


@pytest.fixture
def writer(space: None) -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


# --- killed ----------------------------------------------------------------------------------


KILLED_AT = ("before arm", "before COMMIT", "after COMMIT", "before finish")


class Readers:
    """Threads that read one number all the time, and know what it may be."""

    def __init__(self, using: str, book: Book) -> None:
        self._rows = Book.objects.using(using).filter(pk=book.pk)
        self.floor = self.ceiling = 0
        self.wrong: list[tuple[int, int, int]] = []
        self.is_over = threading.Event()

    def __call__(self) -> None:
        while not self.is_over.is_set():
            floor = self.floor
            answer = self._rows.get().pages
            # The ceiling is raised before anybody writes.
            if not floor <= answer <= self.ceiling:
                self.wrong.append((floor, answer, self.ceiling))
            # Others want to run, too.
            time.sleep(0.001)


def remaining(using: str, table: str) -> float:
    """Seconds until the table is cached again at the latest."""
    return store_of(using).read(route_of(using).namespace, "e" * 40, [table]).remaining


def end_leases(cache: str, table: str) -> None:
    """Let the time of all leases of the table pass at once."""
    client = caches[cache]._cache.get_client()  # type: ignore[attr-defined]
    for key in client.keys(f"ormcache:*:r:{table}"):
        intents = client.hget(key, "d")
        if intents:
            client.hset(key, "d", re.sub(rb"=\d+", b"=0", intents))


@scenario(28)
@pytest.mark.parametrize("times", [int(os.environ.get("ORMCACHE_TEST_KILLS", "16"))])
@on_servers
def test_writers_killed_at_each_point_leave_no_old_row_and_a_lease_at_most(
    cached: Watch, using: str, cache: str, settings: Any, writer: Writer, times: int
) -> None:
    with factories_using(using):
        book = BookFactory(pages=0)
    readers = Readers(using, book)

    def pages() -> int:
        return Book.objects.using(using).values_list("pages", flat=True).get(pk=book.pk)

    def in_database() -> int:
        with session(using) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pages FROM tests_book WHERE id = %s", [book.pk])
            return cursor.fetchone()[0]

    cached.warm(pages)
    threads = [Background(readers) for _ in range(2)]
    # No lease ends by itself: a machine may be busy for some seconds.
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 60}
    try:
        for number in range(1, times + 1):
            point = KILLED_AT[number % len(KILLED_AT)]
            is_committed = point in ("after COMMIT", "before finish")
            before = readers.floor
            readers.ceiling = number
            writer.begin(using, book, {"pages": number}, signals={point: signal.SIGKILL})
            assert writer.result() == -signal.SIGKILL
            if is_committed:
                readers.floor = number
            expected = number if is_committed else before
            assert in_database() == expected
            if point == "before arm":
                assert remaining(using, "tests_book") == 0
            else:
                assert 0 < remaining(using, "tests_book") <= 60
                assert pages() == expected
                end_leases(cache, "tests_book")
                assert remaining(using, "tests_book") == 0
            assert pages() == expected
    finally:
        readers.is_over.set()
    for thread in threads:
        thread.result()
    assert readers.wrong == []
    assert cached.outcomes.count("hit") > times


# --- stopped ---------------------------------------------------------------------------------


@pytest.fixture
def author(using: str, cached: Watch) -> Author:
    with factories_using(using):
        return AuthorFactory(name=OLD)


def ask(using: str, author: Author) -> Callable[[], str]:
    return lambda: Author.objects.using(using).values_list("name", flat=True).get(pk=author.pk)


def ask_after_the_lease(cached: Watch, using: str, name: Callable[[], str]) -> None:
    """The writer, whose lease is over, has not committed: nobody sees what it wrote.

    PostgreSQL tells that its transaction is still open. With others, nobody knows.
    """
    if using == "postgresql":
        with cached.expect(OVERDUE, OVERDUE):
            assert name() == name() == OLD
    else:
        assert cached.warm(name) == OLD


def wait_for_lease(using: str) -> None:
    wait_until(lambda: not remaining(using, "tests_author"))


@scenario(29)
@on_servers
def test_a_writer_that_is_stopped_for_less_than_a_lease_still_holds_its_intent(
    cached: Watch, using: str, settings: Any, author: Author, writer: Writer
) -> None:
    name = ask(using, author)
    cached.warm(name)
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 60}
    writer.begin(using, author, {"name": NEW}, signals={"before COMMIT": signal.SIGSTOP})
    writer.wait_until_stopped()
    with cached.expect(BUSY):
        assert name() == OLD
    writer.go_on()
    assert writer.result() == 0
    # Nobody waits for its report, which a busy server may read after the next question of another.
    wait_until(lambda: not remaining(using, "tests_author"))
    assert cached.warm(name) == NEW


@scenario(29)
@on_servers
def test_a_writer_that_is_stopped_before_it_looks_at_the_clock_announces_its_commit_again(
    cached: Watch, using: str, author: Author, writer: Writer
) -> None:
    """What others have stored between the end of the lease and that is not served any more."""
    name = ask(using, author)
    cached.warm(name)
    signals = {"armed": signal.SIGSTOP, "after COMMIT": signal.SIGSTOP}
    writer.begin(using, author, {"name": NEW}, signals=signals)
    writer.wait_until_stopped()
    wait_for_lease(using)
    ask_after_the_lease(cached, using, name)
    writer.go_on()
    writer.wait_until_stopped()
    assert name() == NEW
    writer.go_on()
    assert writer.result() == 0
    # Nobody waits for its report, which a busy server may read after the next question of another.
    wait_until(lambda: not remaining(using, "tests_author"))
    assert cached.warm(name) == NEW


SECONDS_OF_PATIENCE = 1
TRANSACTION_TIMEOUTS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "options": f"-c idle_in_transaction_session_timeout={SECONDS_OF_PATIENCE}s",
    },
    "mariadb": {
        "init_command": f"SET SESSION idle_transaction_timeout = {SECONDS_OF_PATIENCE}",
    },
}


@scenario(29)
@on_servers
def test_a_writer_that_is_stopped_for_longer_is_refused_by_a_database_with_less_patience(
    cached: Watch, using: str, settings: Any, author: Author, writer: Writer
) -> None:
    name = ask(using, author)
    cached.warm(name)
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 2 * SECONDS_OF_PATIENCE}
    writer.begin(
        using,
        author,
        {"name": NEW},
        signals={"before COMMIT": signal.SIGSTOP},
        options=TRANSACTION_TIMEOUTS[using],
    )
    writer.wait_until_stopped()
    wait_for_lease(using)
    # PostgreSQL is asked whether the transaction is over.
    wait_until(lambda: cached.call(name) == (OLD, ["hit"]))
    writer.go_on()
    assert writer.result() == 1
    assert name() == OLD
    Author.objects.using(using).update(name=NEW)
    assert cached.warm(name) == NEW


@scenario(29)
@on_servers
def test_a_writer_that_is_stopped_for_longer_has_a_window_from_its_commit_to_its_report(
    cached: Watch, using: str, author: Author, writer: Writer
) -> None:
    """This is what the assumption A_L excludes. Nothing stale is left when the writer goes on.

    A transaction of PostgreSQL has no such window.
    """
    name = ask(using, author)
    cached.warm(name)
    signals = {"before COMMIT": signal.SIGSTOP, "before finish": signal.SIGSTOP}
    writer.begin(using, author, {"name": NEW}, signals=signals)
    writer.wait_until_stopped()
    wait_for_lease(using)
    ask_after_the_lease(cached, using, name)
    writer.go_on()
    wait_until(lambda: _in_database(using, author) == NEW)
    writer.wait_until_stopped()
    if using == "postgresql":
        assert name() == NEW
    else:
        assert cached.hit(name) == OLD
    writer.go_on()
    assert writer.result() == 0
    # Nobody waits for its report, which a busy server may read after the next question of another.
    wait_until(lambda: not remaining(using, "tests_author"))
    assert cached.warm(name) == NEW


def _in_database(using: str, author: Author) -> str:
    with session(using) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM tests_author WHERE id = %s", [author.pk])
        name: str = cursor.fetchone()[0]
        return name
