"""Transactions that are begun through the driver: Django's flags show nothing of them."""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

import ormcache
from ormcache import brackets, unseen
from ormcache.leases import keeper
from ormcache.reasons import Reason
from tests.authors import NEW, OLD, Names, execute, update
from tests.interleaving import SECONDS, Background, pause_after, session, switched_to
from tests.marks import on_pairs
from tests.models import Author
from tests.watching import Watch, wait_for_quarantine

pytestmark = pytest.mark.usefixtures("emptied", "author")

on_drivers = on_pairs(
    ("postgresql", "redis"),
    ("postgresql", "locmem"),
    ("default", "locmem"),
    transaction=True,
)
on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)
on_sqlite = on_pairs(("default", "locmem"), transaction=True)


@pytest.fixture(autouse=True)
def _nothing_is_left(using: str) -> Iterator[None]:
    """For the tests that come after these."""
    yield
    wait_for_quarantine(using, "tests_author")


def driver_of(using: str) -> Any:
    connections[using].ensure_connection()
    return connections[using].connection


def elsewhere(using: str, question: Callable[[], Any]) -> Any:
    """The answer to ``question`` on a connection of its own."""
    with session(using):
        return question()


@on_drivers
def test_nobody_is_given_or_stores_what_is_not_committed(
    cached: Watch, using: str, names: Names
) -> None:
    cached.warm(names)
    driver = driver_of(using)
    driver.execute("BEGIN")
    update(using)
    with cached.expect(Reason.UNSEEN):
        assert names() == [NEW]
    with cached.expect(Reason.BUSY):
        assert elsewhere(using, names) == [OLD]
    driver.rollback()
    assert cached.warm(names) == [OLD]


@on_drivers
def test_after_the_commit_the_old_answer_is_gone(cached: Watch, using: str, names: Names) -> None:
    cached.warm(names)
    driver = driver_of(using)
    driver.execute("BEGIN")
    update(using)
    elsewhere(using, names)
    driver.commit()
    # The connection itself sees that it is idle again, and nobody has to wait for a lease.
    assert cached.warm(names) == [NEW]
    assert elsewhere(using, lambda: cached.hit(names)) == [NEW]
    assert unseen.held == {}


@on_drivers
def test_what_is_announced_outlives_its_lease_while_the_transaction_is_open(
    cached: Watch, using: str, names: Names
) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN")
    update(using)
    intents = set(keeper._held)
    assert intents, "nothing renews it"
    elsewhere(using, names)
    assert set(keeper._held) == intents
    driver.commit()
    names()
    assert set(keeper._held).isdisjoint(intents)


@on_drivers
def test_a_read_is_not_stored_from_such_a_transaction(
    cached: Watch, using: str, names: Names
) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN")
    with cached.expect(Reason.UNSEEN):
        assert names() == [OLD]
    driver.rollback()
    cached.miss(names)


@on_postgresql
def test_an_old_snapshot_of_the_driver_is_not_stored(
    cached: Watch, using: str, names: Names
) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    driver.execute("SELECT 1 FROM tests_author")
    elsewhere(using, lambda: update(using))
    assert names() == [OLD]
    driver.execute("COMMIT")
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_psycopgs_own_block_can_be_rolled_back(cached: Watch, using: str, names: Names) -> None:
    driver = driver_of(using)
    cached.warm(names)
    with contextlib.suppress(KeyError), driver.transaction():
        update(using)
        names()
        raise KeyError
    assert cached.warm(names) == [OLD]


@on_postgresql
def test_a_failed_transaction_of_the_driver_fails_reads(
    cached: Watch, using: str, names: Names
) -> None:
    cached.warm(names)
    driver = driver_of(using)
    driver.execute("BEGIN")
    with contextlib.suppress(Exception):
        driver.execute("SELECT 1 / 0")
    with pytest.raises(Exception, match="aborted"):
        names()
    driver.rollback()
    cached.hit(names)


@on_drivers
def test_a_commit_on_djangos_cursor_ends_it(cached: Watch, using: str, names: Names) -> None:
    driver_of(using).execute("BEGIN")
    update(using)
    execute(using, "COMMIT")
    assert unseen.held == {}
    assert elsewhere(using, lambda: cached.warm(names)) == [NEW]


@on_drivers
def test_invalidate_lasts_until_it_ends(cached: Watch, using: str, names: Names) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN")
    driver.execute("UPDATE tests_author SET name = 'new'")
    ormcache.invalidate(Author, using=using)
    with cached.expect(Reason.BUSY):
        assert elsewhere(using, names) == [OLD]
    driver.commit()
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_copy_is_announced_until_it_ends(cached: Watch, using: str, names: Names) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN")
    with (
        connections[using].cursor() as cursor,
        cursor.copy("COPY tests_author (name) FROM STDIN") as copy,
    ):
        copy.write_row(("copied",))
    with cached.expect(Reason.BUSY):
        assert elsewhere(using, names) == [OLD]
    driver.commit()
    assert sorted(cached.warm(names)) == ["copied", OLD]


@on_postgresql
def test_a_search_path_that_is_set_in_it_is_not_believed(
    cached: Watch, using: str, names: Names
) -> None:
    driver = driver_of(using)
    driver.execute("BEGIN")
    execute(using, "SET search_path = pg_catalog, public")
    driver.rollback()
    try:
        with cached.expect(Reason.SESSION):
            names()
    finally:
        connections[using].close()


@on_drivers
@pytest.mark.parametrize("is_collected", [False, True])
def test_the_lease_ends_what_a_connection_has_left_behind(
    cached: Watch,
    using: str,
    names: Names,
    is_collected: bool,
    settings: Any,
    request: pytest.FixtureRequest,
) -> None:
    """It is not used any more, or there is none: a thread has ended without closing it."""
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 2}
    # To collect all the rest, too, may take longer than the lease.
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    other: Any = connections[using].copy()
    with switched_to(other):
        driver = driver_of(using)
        driver.execute("BEGIN")
        update(using)
        driver.commit()
        if is_collected:
            driver.close()
    if is_collected:
        other = None
        gc.collect()
    try:
        answer, outcome = cached.call(names)
        assert answer == [NEW]
        # On a slow machine the lease may be over already.
        assert outcome in ([str(Reason.BUSY)], [str(Reason.OVERDUE)])
        assert unseen.held == {} or outcome == [str(Reason.OVERDUE)]
        # PostgreSQL is asked by the reads that find it overdue.
        deadline = time.monotonic() + SECONDS
        while cached.call(names) != ([NEW], ["hit"]):
            assert time.monotonic() < deadline, "the lease does not end"
            time.sleep(0.05)
    finally:
        if other is not None:
            other.close()


@on_pairs(("postgresql", "locmem"), ("postgresql", "redis"), transaction=True)
def test_a_transaction_in_the_middle_of_a_statement_is_not_over(
    cached: Watch, using: str, names: Names
) -> None:
    """libpq tells a reader in another thread only that it is at work."""
    cached.warm(names)
    has_written, may_end = threading.Event(), threading.Event()

    def write() -> None:
        driver = driver_of(using)
        driver.execute("BEGIN")
        update(using)
        has_written.set()
        driver.execute("SELECT pg_sleep(2)")
        driver.execute("COMMIT")
        assert may_end.wait(SECONDS)

    writer = Background(write)
    assert has_written.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while (got := cached.call(names))[0] == [OLD]:
        assert got[1] in ([str(Reason.BUSY)], [str(Reason.OVERDUE)]), got
        assert time.monotonic() < deadline, "it does not commit"
        time.sleep(0.05)
    may_end.set()
    writer.result()
    wait_for_quarantine(using, "tests_author")


@on_drivers
def test_a_writer_that_was_stopped_before_its_statement_announces_it_again(
    cached: Watch, using: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its transaction had no id: it was taken for over, and the old answer stored."""
    wait_for_quarantine(using, "tests_author")
    # Of a process that is stopped, no thread renews anything.
    monkeypatch.setattr(keeper, "hold", lambda *args: None)
    cached.warm(names)
    has_written, may_commit = threading.Event(), threading.Event()

    def write() -> None:
        driver = driver_of(using)
        driver.execute("BEGIN")
        update(using)
        has_written.set()
        assert may_commit.wait(SECONDS)
        driver.execute("COMMIT")

    pause = pause_after(monkeypatch, brackets, "announce")
    writer = Background(write)
    pause.wait()
    deadline = time.monotonic() + SECONDS
    while cached.call(names) != ([OLD], ["hit"]):
        assert time.monotonic() < deadline, "the announcement does not end"
        time.sleep(0.05)
    pause.end()
    assert has_written.wait(SECONDS)
    may_commit.set()
    writer.result()
    assert cached.call(names)[0] == [NEW]


@on_postgresql
def test_what_is_over_is_not_renewed_though_nobody_here_asks_for_it(
    cached: Watch, using: str
) -> None:
    """The thread goes on without its connection, and other processes wait for it."""
    before, is_over, may_end = set(keeper._held), threading.Event(), threading.Event()

    def work() -> None:
        with driver_of(using).transaction():
            update(using)
            assert set(keeper._held) - before
            keeper.renew()
            assert set(keeper._held) - before, "it is still open"
        is_over.set()
        assert may_end.wait(SECONDS)

    worker = Background(work)
    assert is_over.wait(SECONDS)
    keeper.renew()
    assert not set(keeper._held) - before
    may_end.set()
    worker.result()
    wait_for_quarantine(using, "tests_author")


@on_sqlite
def test_a_driver_that_was_closed_does_not_fail_a_hit(
    cached: Watch, using: str, names: Names
) -> None:
    cached.warm(names)
    inside = connections[using]
    driver = driver_of(using)
    assert driver is inside.connection
    with session(using) as other:
        other.ensure_connection()
        other.connection.close()
        assert cached.hit(names) == [OLD]
