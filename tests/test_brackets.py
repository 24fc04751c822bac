"""What the cache is told before a commit and after it, and what if that fails."""

import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django import db
from django.core.exceptions import FieldError
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Value

from ormcache import brackets, bursts
from ormcache.conf import current
from ormcache.exceptions import CacheError
from tests.authors import NEW, OLD, Names, execute, rename, update, wait_for_lease
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.interleaving import (
    SECONDS,
    Background,
    kill,
    number_of,
    record_calls,
    session,
    store_of,
    wait_for_others,
)
from tests.marks import on_databases, on_pairs, scenario
from tests.models import Author, Tag
from tests.watching import Watch

pytestmark = pytest.mark.usefixtures("emptied")

on_all = on_databases(transaction=True)
on_servers = on_databases("postgresql", "mariadb", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)
on_sqlite = on_databases("default", transaction=True)


# --- errors while the cache is told ------------------------------------------------------------


class Interruption(BaseException):
    """What gevent's Timeout is: no Exception."""


@scenario(20)
@pytest.mark.parametrize("error", [DatabaseError, RuntimeError, KeyboardInterrupt, Interruption])
@on_all
def test_whatever_is_raised_by_the_announcement_rolls_the_transaction_back(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    error: type[BaseException],
) -> None:
    cached.warm(names)

    def fail(*args: Any) -> None:
        raise error("in arm")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", fail)
        with pytest.raises(error, match="in arm"):
            rename(using)
    assert names.in_database() == [OLD]
    connection = connections[using]
    assert connection.get_autocommit()
    assert not connection.in_atomic_block
    assert cached.hit(names) == [OLD]
    rename(using)
    assert cached.warm(names) == [NEW]


@on_all
def test_an_error_in_the_announcement_of_an_autocommit_statement_keeps_it_from_running(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    def fail(*args: Any) -> None:
        raise KeyboardInterrupt("in arm")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", fail)
        with pytest.raises(KeyboardInterrupt, match="in arm"):
            execute(using, "UPDATE tests_author SET name = 'new'")
    assert names.in_database() == [OLD]


@on_databases("default", "mariadb", transaction=True)
def test_an_error_in_the_announcement_keeps_autocommit_from_publishing(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("in arm")

    transaction.set_autocommit(False, using)
    update(using)
    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", fail)
        with pytest.raises(RuntimeError, match="in arm"):
            transaction.set_autocommit(True, using)
    transaction.set_autocommit(True, using)
    assert names.in_database() == [OLD]


@on_all
def test_an_interrupted_commit_is_announced_once_more_when_the_connection_is_tidied_up(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    """For such an error atomic() does not roll back; MySQL and SQLite commit after it."""
    cached.warm(names)

    def interrupted(connection: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "_commit", interrupted)
        error = db.ProgrammingError if using == "postgresql" else KeyboardInterrupt
        with pytest.raises(error):
            rename(using)
    connections[using].close()
    wait_for_lease(using)
    expected = names.in_database()
    assert expected == [OLD if using == "postgresql" else NEW]
    assert cached.warm(names) == expected


@on_all
def test_an_interrupted_commit_of_nothing_leaves_no_transaction_behind(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    def interrupted(connection: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt), transaction.atomic(using):
            pass
    cached.warm(names)
    update(using)
    assert cached.warm(names) == [NEW]


# --- announcements that are sent ahead ---------------------------------------------------------

on_redis = on_pairs(("postgresql", "redis"), transaction=True)


@pytest.fixture
def announced(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author
) -> list[str]:
    """What the store is told of commits from now on, each on its own."""
    monkeypatch.setattr(bursts, "_PAUSE", -1.0)
    return record_calls(monkeypatch, store_of(using), "start_arm", "arm", "finish")


class Slow(Value):
    """A value that takes half of the lease to compile."""

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(current().LEASE / 2)
        return super().as_sql(*args, **kwargs)


@on_redis
def test_an_autocommit_statement_is_announced_while_it_is_compiled(
    cached: Watch, using: str, names: Names, announced: list[str]
) -> None:
    update(using)
    assert announced == ["start_arm", "finish"]
    assert cached.warm(names) == [NEW]


@on_redis
def test_a_statement_that_is_announced_and_never_sent_leaves_nothing_behind(
    cached: Watch, using: str, names: Names, announced: list[str]
) -> None:
    assert Author.objects.using(using).filter(pk__in=[]).update(name=NEW) == 0
    with pytest.raises(FieldError):
        Author.objects.using(using).update(name=F("no_such_field"))
    assert "arm" not in announced
    assert announced.count("start_arm") == announced.count("finish")
    assert cached.warm(names) == [OLD]


@on_redis
def test_a_statement_that_takes_long_to_compile_is_announced_again(
    cached: Watch, using: str, names: Names, announced: list[str]
) -> None:
    Author.objects.using(using).update(name=Slow(NEW))
    assert announced == ["start_arm", "arm", "finish"]
    assert cached.warm(names) == [NEW]


@on_redis
def test_an_announcement_that_was_lost_on_its_way_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    names: Names,
    announced: list[str],
) -> None:
    def lose() -> None:
        raise CacheError("connection reset")

    monkeypatch.setattr(store_of(using), "start_arm", lambda *args: lose)
    update(using)
    assert announced == ["arm", "finish"]
    assert cached.warm(names) == [NEW]


@on_redis
def test_in_a_transaction_nothing_is_announced_before_the_commit(
    cached: Watch, using: str, names: Names, announced: list[str]
) -> None:
    with transaction.atomic(using):
        update(using)
        AuthorFactory.build(name="another").save(using=using)
        assert announced == []
    assert announced == ["arm", "finish"]


# --- is the outcome known? ---------------------------------------------------------------------


def outcome_of(using: str, *statements: str) -> tuple[db.Error, bool]:
    """The error that the last statement raises, and whether nothing of it is still to come."""
    connection = connections[using]
    with pytest.raises(db.Error) as caught:
        execute(using, *statements)
    return caught.value, brackets.outcome_is_known(connection, caught.value)


@pytest.mark.parametrize(
    ("error", "statement"),
    [
        (IntegrityError, "INSERT INTO tests_tag (name) VALUES ('tag')"),
        (db.ProgrammingError, "UPDATE tests_no_such_table SET name = 'x'"),
        (db.ProgrammingError, "UPDATE UPDATE"),
    ],
)
@on_databases("default", "postgresql", transaction=True)
def test_a_statement_that_the_database_refuses_is_over(
    cached: Watch, using: str, error: type[db.Error], statement: str
) -> None:
    Tag.objects.using(using).create(name="tag")
    caught, is_known = outcome_of(using, statement)
    # SQLite calls what it cannot parse an OperationalError.
    assert isinstance(caught, OperationalError if using == "default" != error else error) or (
        using == "default"
    )
    assert is_known


@on_servers
def test_a_value_out_of_range_is_over(cached: Watch, using: str) -> None:
    caught, is_known = outcome_of(
        using, "INSERT INTO tests_tag (name) VALUES ('" + 51 * "x" + "')"
    )
    assert isinstance(caught, db.DataError)
    assert is_known


@on_all
def test_a_lock_that_is_not_given_is_over(cached: Watch, using: str, author: Author) -> None:
    impatient = {
        "default": "PRAGMA busy_timeout = 50",
        "postgresql": "SET lock_timeout = 50",
        "mariadb": "SET innodb_lock_wait_timeout = 1",
    }
    with session(using), transaction.atomic(using):
        update(using)
        with session(using):
            caught, is_known = outcome_of(
                using, impatient[using], "UPDATE tests_author SET name = 'x'"
            )
    assert isinstance(caught, OperationalError)
    assert is_known


@on_servers
def test_a_deadlock_is_over(cached: Watch, using: str) -> None:
    with factories_using(using):
        keys = [AuthorFactory().pk, AuthorFactory().pk]
    barrier = threading.Barrier(2)

    def cross(first: int, second: int) -> bool | None:
        try:
            with transaction.atomic(using):
                Author.objects.using(using).filter(pk=first).update(name=NEW)
                barrier.wait(SECONDS)
                Author.objects.using(using).filter(pk=second).update(name=NEW)
        except OperationalError as error:
            return brackets.outcome_is_known(connections[using], error)
        return None

    threads = [Background(cross, *keys), Background(cross, *keys[::-1])]
    outcomes = [thread.result() for thread in threads]
    assert sorted(outcomes, key=str) == [None, True]


@on_servers
def test_the_outcome_on_a_connection_that_was_killed_is_not_known(
    cached: Watch, using: str, author: Author
) -> None:
    with session(using) as connection:
        execute(using, "SELECT 1")
        kill(using, number_of(connection))
        for _ in range(2):
            # The second time the driver itself knows that the connection is gone.
            _, is_known = outcome_of(using, "UPDATE tests_author SET name = 'x'")
            assert not is_known


@on_servers
def test_the_outcome_of_a_statement_whose_connection_is_killed_meanwhile_is_not_known(
    cached: Watch, using: str
) -> None:
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait() -> bool:
        connections[using].ensure_connection()
        numbers.put(number_of(connections[using]))
        sleep = "pg_sleep" if using == "postgresql" else "SLEEP"
        return outcome_of(using, f"SELECT {sleep}(60)")[1]

    thread = Background(wait)
    kill(using, numbers.get(timeout=SECONDS))
    assert not thread.result()


@on_postgresql
def test_the_outcome_of_a_cancelled_statement_is_not_known(cached: Watch, using: str) -> None:
    """An operator may cancel the COMMIT of a server that waits for its standby: it is done."""
    with session(using):
        caught, is_known = outcome_of(using, "SET statement_timeout = 50", "SELECT pg_sleep(60)")
    assert caught.__cause__.sqlstate == "57014"
    assert not is_known


@on_all
def test_the_outcome_of_what_was_interrupted_is_not_known(using: str) -> None:
    for error in (KeyboardInterrupt(), RuntimeError(), MemoryError()):
        assert not brackets.outcome_is_known(connections[using], error)


@on_sqlite
def test_the_outcome_of_a_failing_disk_is_not_known(using: str) -> None:
    error = OperationalError("disk I/O error")
    assert not brackets.outcome_is_known(connections[using], error)


@pytest.mark.parametrize("state", ["08006", "40003", "53100", "57P01", "58030", "XX000", None])
@on_postgresql
def test_postgresqls_own_trouble_leaves_the_outcome_open(using: str, state: str | None) -> None:
    error, cause = OperationalError(), Exception()
    cause.sqlstate = state
    error.__cause__ = cause
    assert not brackets.outcome_is_known(connections[using], error)


# --- statements that are given up -----------------------------------------------------------


@pytest.fixture
def alarm() -> Iterator[None]:
    """In a moment a signal arrives, whose handler raises an Interruption."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interruption

    usual = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, usual)


@pytest.mark.parametrize("has_cancel_safe", [True, False])
@on_postgresql
def test_a_statement_in_autocommit_that_is_given_up_does_not_take_effect_later(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    has_cancel_safe: bool,
    request: pytest.FixtureRequest,
) -> None:
    import psycopg

    with session(using) as other, transaction.atomic(using):
        other.cursor().execute("SELECT 1 FROM tests_author FOR UPDATE")
        with session(using) as own:
            own.ensure_connection()
            if not has_cancel_safe:
                # As before psycopg 3.2.
                monkeypatch.delattr(psycopg.Connection, "cancel_safe")
            request.getfixturevalue("alarm")
            with pytest.raises(Interruption):
                update(using)
    # Now it would get the lock.
    wait_for_others(using)
    assert names.in_database() == [OLD]
