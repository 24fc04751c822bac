"""What a connection writes, reads and commits, and what the cache is told of it."""

import contextlib
import queue
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django import db
from django.core.exceptions import FieldError
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Sum, Value
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase
from django.urls import path

import ormcache
from ormcache import counters, transactions
from ormcache.conf import current
from ormcache.exceptions import CacheError, CacheUnreachable
from ormcache.reasons import Reason
from tests import servers
from tests.factories import AuthorFactory, BookFactory
from tests.factories import using as factories_using
from tests.interleaving import (
    SECONDS,
    Background,
    pause_before,
    record_calls,
    route_of,
    session,
    store_of,
)
from tests.marks import on_database, on_databases, on_pairs, scenario
from tests.models import Author, Book, Tag
from tests.settings import WORKER_SUFFIX
from tests.watching import Watch, wait_for_quarantine

pytestmark = pytest.mark.usefixtures("emptied")

on_all = on_databases(transaction=True)
on_servers = on_databases("postgresql", "mariadb", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)
on_mariadb = on_databases("mariadb", transaction=True)
on_sqlite = on_databases("default", transaction=True)

OLD, NEW = "old", "new"
BUSY = "a write is being committed"
SNAPSHOT = "snapshot transaction"
WRITTEN_HERE = "table written in this transaction"
SESSION = "session was altered"
LOCKED = "transaction holds locks"
# Roles belong to the server, which all workers of pytest-xdist share.
NOBODY = f"tests_nobody{WORKER_SUFFIX}"
# psycopg.IsolationLevel, without which this module can be imported.
REPEATABLE_READ, SERIALIZABLE = 3, 4
NOBODY = f"tests_nobody{WORKER_SUFFIX}"
"""A role belongs to all databases of a server, which the workers share."""


@pytest.fixture
def author(using: str, cached: Watch) -> Author:
    with factories_using(using):
        return AuthorFactory(name=OLD)


class Names:
    """The question of most tests: the names of all authors."""

    def __init__(self, using: str) -> None:
        self.using = using

    def __call__(self) -> list[str]:
        return list(Author.objects.using(self.using).order_by("pk").values_list("name", flat=True))

    def in_database(self) -> list[str]:
        """The truth, past ormcache, as another connection sees it."""
        with session(self.using) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name FROM tests_author ORDER BY id")
            return [name for (name,) in cursor.fetchall()]


@pytest.fixture
def names(using: str) -> Names:
    return Names(using)


def rename(using: str, name: str = NEW) -> None:
    with transaction.atomic(using):
        update(using, name)


def update(using: str, name: str = NEW) -> None:
    Author.objects.using(using).update(name=name)


def execute(using: str, *statements: str) -> None:
    with connections[using].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def wait_for_lease(using: str) -> None:
    """Return when no intent holds the table of authors, which takes up to a lease."""
    deadline = time.monotonic() + SECONDS
    route = route_of(using)
    while store_of(using).read(route.namespace, "none", ["tests_author"]).vector is None:
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.02)


# --- committing and rolling back ---------------------------------------------------------------


@scenario(10)
@on_all
def test_a_transaction_sees_its_own_changes_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using))
    with transaction.atomic(using):
        update(using)
        assert names() == [NEW]
        assert calls == []
        with session(using):
            assert cached.hit(names) == [OLD]
    assert cached.warm(names) == [NEW]


@on_servers
def test_tables_that_a_transaction_did_not_write_are_cached_in_it(
    cached: Watch, using: str, author: Author
) -> None:
    def tags() -> list[str]:
        return list(Tag.objects.using(using).values_list("name", flat=True))

    with transaction.atomic(using):
        update(using)
        cached.warm(tags)


@scenario(11)
@on_all
def test_what_is_rolled_back_is_not_announced_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using))
    with pytest.raises(ZeroDivisionError), transaction.atomic(using):
        update(using)
        1 / 0  # noqa: B018
    with transaction.atomic(using):
        update(using)
        transaction.set_rollback(True, using)
    assert calls == []
    assert cached.hit(names) == [OLD]


@scenario(12)
@on_all
def test_what_a_savepoint_undid_is_announced_in_vain(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using):
            update(using)
            1 / 0  # noqa: B018
        Tag.objects.using(using).create(name="tag")
    assert cached.invalidated[-1] == ("tests_author", "tests_tag")
    assert cached.warm(names) == [OLD]


@scenario(13)
@on_all
def test_nested_blocks_are_announced_and_reported_once_at_the_end_of_the_outermost(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author
) -> None:
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    with transaction.atomic(using, durable=True):
        with transaction.atomic(using):
            update(using)
            with transaction.atomic(using, savepoint=False):
                Tag.objects.using(using).create(name="tag")
        update(using, "newer")
        assert calls == []
    assert calls == ["arm", "finish"]
    assert cached.invalidated[-1] == ("tests_author", "tests_tag")


@on_postgresql
def test_a_transaction_that_only_reads_is_not_announced(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish", "bump")
    with transaction.atomic(using):
        names()
    assert calls == []


@scenario(14)
@on_databases("default", "postgresql", transaction=True)
def test_a_commit_that_a_deferred_constraint_refuses_is_over(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    def books() -> int:
        return Book.objects.using(using).count()

    assert cached.warm(books) == 0
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    with pytest.raises(IntegrityError), transaction.atomic(using):
        Book.objects.using(using).create(title="of nobody", author_id=10**6)
    assert calls == ["arm", "finish"]
    assert cached.warm(books) == 0


@on_all
def test_an_autocommit_statement_that_a_constraint_refuses_is_over(
    cached: Watch, using: str
) -> None:
    tags = Tag.objects.using(using)
    tags.create(name="tag")
    with pytest.raises(IntegrityError):
        execute(using, "INSERT INTO tests_tag (name) VALUES ('tag')")
    assert cached.warm(tags.count) == 1


@on_postgresql
def test_a_hook_that_fails_after_the_commit_does_not_undo_the_report(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using):
        update(using)
        transaction.on_commit(lambda: 1 / 0, using)
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_touch_in_a_transaction_invalidates_now_and_at_the_commit(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    with transaction.atomic(using):
        ormcache.invalidate(Tag, using=using)
        assert "tests_tag" in cached.invalidated[-1]
        cached.clear()
    assert "tests_tag" in cached.invalidated[-1]


# --- connections that break --------------------------------------------------------------------


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


@scenario(15)
@on_servers
def test_a_connection_killed_before_its_commit_leaves_the_intent_to_its_lease(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    original = BaseDatabaseWrapper._commit

    def commit(connection: Any) -> None:
        kill(using, number_of(connection))
        original(connection)

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit)
    with pytest.raises(OperationalError):
        rename(using)
    assert calls == ["arm"]
    with cached.expect(BUSY):
        assert names() == [OLD]
    wait_for_lease(using)
    assert names.in_database() == [OLD]
    assert cached.warm(names) == [OLD]
    monkeypatch.undo()
    rename(using)
    assert cached.warm(names) == [NEW]


@scenario(15)
@on_servers
def test_a_commit_whose_answer_is_lost_leaves_the_intent_to_its_lease(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    original = BaseDatabaseWrapper._commit

    def commit(connection: Any) -> None:
        original(connection)
        kill(using, number_of(connection))
        with connection.wrap_database_errors:
            connection.connection.cursor().execute("SELECT 1")

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit)
    with pytest.raises(OperationalError):
        rename(using)
    assert calls == ["arm"]
    with cached.expect(BUSY):
        assert names() == [NEW]
    wait_for_lease(using)
    assert cached.warm(names) == [NEW]


@scenario(16)
@on_all
def test_closing_the_connection_in_a_transaction_forgets_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        update(using)
        connections[using].close()
    # Django knows of a new beginning only when it connects again.
    with cached.expect("broken transaction"):
        assert names() == [OLD]
    assert cached.hit(names) == [OLD]
    cached.clear()
    with transaction.atomic(using):
        Tag.objects.using(using).create(name="tag")
    assert cached.invalidated == [("tests_tag",)]
    assert cached.hit(names) == [OLD]
    rename(using)
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_closing_the_connection_with_autocommit_off_forgets_what_it_wrote(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    transaction.set_autocommit(False, using)
    update(using)
    connections[using].close()
    assert cached.hit(names) == [OLD]
    cached.clear()
    Tag.objects.using(using).create(name="tag")
    assert cached.invalidated == [("tests_tag",)]


@scenario(17)
@on_all
def test_after_a_begin_that_failed_the_same_thread_invalidates_as_ever(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    connection = connections[using]
    begin = "_start_transaction_under_autocommit" if using == "default" else "_set_autocommit"

    def fail(*args: Any) -> None:
        raise OperationalError("the server has gone away")

    with monkeypatch.context() as patch:
        patch.setattr(connection, begin, fail)
        with pytest.raises(OperationalError), transaction.atomic(using):
            pytest.fail("the block was entered")
    assert cached.hit(names) == [OLD]
    update(using)
    assert cached.warm(names) == [NEW]
    rename(using, "newer")
    assert cached.warm(names) == ["newer"]


# --- without atomic() --------------------------------------------------------------------------


@pytest.fixture
def autocommit_off(using: str, cached: Watch) -> Iterator[None]:
    transaction.set_autocommit(False, using)
    yield
    transaction.rollback(using)
    transaction.set_autocommit(True, using)


@scenario(18)
@on_all
def test_with_autocommit_off_commit_publishes(
    cached: Watch, using: str, author: Author, names: Names, autocommit_off: None
) -> None:
    with session(using):
        cached.warm(names)
    update(using)
    with session(using):
        assert cached.hit(names) == [OLD]
    transaction.commit(using)
    with session(using):
        assert cached.warm(names) == [NEW]


@on_all
def test_with_autocommit_off_rollback_publishes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    autocommit_off: None,
) -> None:
    with session(using):
        cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "fill")
    update(using)
    assert names() == [NEW]
    transaction.rollback(using)
    assert calls == []
    with session(using):
        assert cached.hit(names) == [OLD]


@on_all
def test_with_autocommit_off_a_block_is_published_when_the_database_does_so(
    cached: Watch, using: str, author: Author, names: Names, autocommit_off: None
) -> None:
    """On SQLite the block is a savepoint that begins the transaction, so its end is a COMMIT."""
    with session(using):
        cached.warm(names)
    rename(using)
    with session(using):
        assert names() == ([NEW] if using == "default" else [OLD])
    transaction.commit(using)
    with session(using):
        names()
        assert cached.hit(names) == [NEW]


@scenario(18)
@on_databases("default", "mariadb", transaction=True)
def test_switching_autocommit_on_publishes_what_was_pending(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    """These databases commit by that."""
    cached.warm(names)
    transaction.set_autocommit(False, using)
    update(using)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    transaction.set_autocommit(True, using)
    assert calls == ["arm", "finish"]
    assert names.in_database() == [NEW]
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_switching_autocommit_on_is_refused_by_postgresql_while_something_is_pending(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    transaction.set_autocommit(False, using)
    update(using)
    with pytest.raises(db.ProgrammingError):
        transaction.set_autocommit(True, using)
    assert names() == [NEW]
    transaction.rollback(using)
    transaction.set_autocommit(True, using)
    assert cached.warm(names) == [OLD]


@on_databases("default", "mariadb", transaction=True)
def test_a_hook_that_fails_when_autocommit_is_switched_on_leaves_nothing_pending(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    transaction.set_autocommit(False, using)
    connections[using].run_on_commit.append((set(), lambda: 1 / 0, False))
    transaction.commit(using)
    update(using)
    with pytest.raises(ZeroDivisionError):
        transaction.set_autocommit(True, using)
    wait_for_lease(using)
    assert cached.warm(names) == [NEW]


@on_all
def test_a_transaction_begun_and_committed_as_sql_is_one(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    execute(using, "BEGIN")
    update(using)
    with session(using):
        assert names() == [OLD]
        assert cached.hit(names) == [OLD]
    assert names() == [NEW]
    execute(using, "COMMIT")
    assert cached.warm(names) == [NEW]


@on_all
def test_a_transaction_rolled_back_as_sql_leaves_nothing_behind(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    execute(using, "BEGIN")
    update(using)
    assert names() == [NEW]
    execute(using, "ROLLBACK")
    names()
    assert cached.hit(names) == [OLD]
    update(using)
    assert cached.warm(names) == [NEW]


@pytest.mark.parametrize("end", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
@on_servers
def test_a_transaction_that_is_chained_to_the_next_does_not_publish_the_next(
    cached: Watch, using: str, author: Author, names: Names, end: str
) -> None:
    with session(using):
        execute(using, "BEGIN", end)
        update(using)
        with session(using):
            cached.warm(names)
        execute(using, "COMMIT")
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_transactions_ended_and_begun_by_one_text_are_told_apart(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    with session(using):
        execute(using, "BEGIN; COMMIT; BEGIN")
        update(using)
        with session(using):
            cached.warm(names)
        execute(using, "COMMIT")
    assert cached.warm(names) == [NEW]


@on_mariadb
def test_autocommit_switched_off_as_sql_stays_off(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    with session(using):
        execute(using, "SET autocommit = 0")
        for value, before in (("a", OLD), ("b", "a")):
            update(using, value)
            with session(using):
                assert names() == [before]
                assert cached.hit(names) == [before]
            execute(using, "COMMIT")
            with session(using):
                assert cached.warm(names) == [value]


@on_mariadb
def test_a_second_begin_commits_what_the_first_began(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        update(using)
        execute(using, "START TRANSACTION")
        with session(using):
            assert cached.warm(names) == [NEW]


@on_mariadb
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_after_a_distributed_transaction_statements_take_effect_at_once_again(
    cached: Watch, using: str, author: Author, names: Names, end: str
) -> None:
    with session(using):
        cached.warm(names)
        execute(using, "XA START 'x'")
        update(using)
        with session(using):
            assert cached.hit(names) == [OLD]
        execute(using, "XA END 'x'", "XA PREPARE 'x'", f"XA {end} 'x'")
        names()
        assert cached.hit(names) == [NEW if end == "COMMIT" else OLD]
        update(using, "newer")
        assert cached.warm(names) == ["newer"]


@on_postgresql
def test_a_prepared_transaction_is_published_by_whoever_commits_it(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    execute(using, "BEGIN")
    update(using)
    execute(using, "PREPARE TRANSACTION 'x'")
    try:
        # Whoever commits it may not say so: meanwhile the table is not cached.
        with cached.expect(Reason.BUSY):
            assert names() == [OLD]
    finally:
        with session(using):
            execute(using, "COMMIT PREPARED 'x'")
    assert names() == [NEW]
    deadline = time.monotonic() + SECONDS
    while cached.call(names) != ([NEW], ["hit"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("statement", ["CREATE TABLE tests_extra (id int)", "TRUNCATE tests_tag"])
@on_mariadb
def test_a_statement_that_commits_by_itself_publishes_what_was_pending(
    cached: Watch, using: str, author: Author, names: Names, statement: str
) -> None:
    cached.warm(names)
    try:
        with transaction.atomic(using):
            update(using)
            execute(using, "SET foreign_key_checks = 0", statement)
            with session(using):
                assert cached.warm(names) == [NEW]
            transaction.set_rollback(True, using)
    finally:
        execute(using, "DROP TABLE IF EXISTS tests_extra", "SET foreign_key_checks = 1")
    assert names() == [NEW]


@pytest.fixture
def myisam(using: str, cached: Watch) -> Iterator[None]:
    """The table of tags takes no part in transactions."""
    execute(using, "SET foreign_key_checks = 0")
    execute(using, "CREATE TABLE tests_kept LIKE tests_tag")
    execute(using, "RENAME TABLE tests_tag TO tests_innodb, tests_kept TO tests_tag")
    execute(using, "ALTER TABLE tests_tag ENGINE = MyISAM")
    yield
    execute(using, "DROP TABLE tests_tag", "RENAME TABLE tests_innodb TO tests_tag")
    execute(using, "SET foreign_key_checks = 1")


@on_mariadb
def test_a_table_without_transactions_is_invalidated_at_once(
    cached: Watch, using: str, myisam: None
) -> None:
    def tags() -> list[str]:
        return list(Tag.objects.using(using).values_list("name", flat=True))

    assert cached.warm(tags) == []
    with transaction.atomic(using):
        Tag.objects.using(using).create(name="kept")
        with session(using):
            assert cached.warm(tags) == ["kept"]
        transaction.set_rollback(True, using)
    assert cached.hit(tags) == ["kept"]


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


# --- requests and tests ------------------------------------------------------------------------


def writing_view(request: HttpRequest) -> HttpResponse:
    update(request.GET["using"])
    if "fail" in request.GET:
        raise ZeroDivisionError
    return HttpResponse("written")


def reading_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(",".join(Names(request.GET["using"])()))


urlpatterns = [path("write/", writing_view), path("read/", reading_view)]


@scenario(21)
@on_all
def test_a_request_is_a_transaction(
    monkeypatch: pytest.MonkeyPatch, settings: Any, cached: Watch, using: str, author: Author
) -> None:
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(connections[using].settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connections.settings[using], "ATOMIC_REQUESTS", True)
    client = Client(raise_request_exception=False)

    def read() -> bytes:
        return client.get("/read/", {"using": using}).content

    assert read() == b"old"
    cached.clear()
    calls = record_calls(monkeypatch, store_of(using), "arm")
    assert client.get("/write/", {"using": using, "fail": 1}).status_code == 500
    assert calls == []
    # SQLite takes a snapshot with every transaction.
    with cached.expect(SNAPSHOT if using == "default" else "hit"):
        assert read() == b"old"
    assert client.get("/write/", {"using": using}).content == b"written"
    assert calls == ["arm"]
    assert read() == b"new"


@scenario(22)
@on_all
def test_rows_of_a_test_case_never_reach_the_cache(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish", "bump", "fill")
    seen = []

    class Case(TestCase):
        databases = {using}

        @classmethod
        def setUpTestData(cls) -> None:
            Author.objects.using(using).create(name="of the class")

        def test(self) -> None:
            seen.append(names())
            with self.captureOnCommitCallbacks(using=using, execute=True):
                rename(using)
                transaction.on_commit(lambda: seen.append(names()), using)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.wasSuccessful(), result
    assert seen == [[OLD, "of the class"], [NEW, NEW]]
    assert calls == []
    assert cached.hit(names) == [OLD]


# --- isolation ---------------------------------------------------------------------------------


Opened = Callable[[], contextlib.AbstractContextManager[None]]


def by_option(using: str, **options: Any) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        with session(using, OPTIONS=options), transaction.atomic(using):
            yield

    return opened


def in_block(using: str, *statements: str) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        with transaction.atomic(using):
            execute(using, *statements)
            yield

    return opened


def as_sql(using: str, *statements: str) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        execute(using, *statements)
        yield
        execute(using, "COMMIT")

    return opened


def by_default_of(what: str, level: str) -> Opened:
    """A default of the server's, which new sessions take over."""

    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        name = connections["postgresql"].settings_dict["NAME"]
        target = what.format(name=name)
        execute("postgresql", f"ALTER {target} SET default_transaction_isolation = '{level}'")
        try:
            with session("postgresql"), transaction.atomic("postgresql"):
                yield
        finally:
            execute("postgresql", f"ALTER {target} RESET default_transaction_isolation")

    return opened


@contextlib.contextmanager
def by_driver() -> Iterator[None]:
    connections["postgresql"].ensure_connection()
    connections["postgresql"].connection.isolation_level = REPEATABLE_READ
    with transaction.atomic("postgresql"):
        yield


SNAPSHOTS: dict[str, Opened] = {
    "postgresql: option": by_option("postgresql", isolation_level=REPEATABLE_READ),
    "postgresql: serializable option": by_option("postgresql", isolation_level=SERIALIZABLE),
    "postgresql: role": by_default_of("ROLE CURRENT_USER", "repeatable read"),
    "postgresql: database": by_default_of("DATABASE {name}", "serializable"),
    "postgresql: SET TRANSACTION": in_block(
        "postgresql", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    ),
    "postgresql: SET": in_block("postgresql", "SET transaction_isolation = 'serializable'"),
    "postgresql: set_config": as_sql(
        "postgresql",
        "SELECT set_config('default_transaction_isolation', 'repeatable read', false)",
        "BEGIN",
    ),
    "postgresql: SET SESSION": as_sql(
        "postgresql",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "BEGIN",
    ),
    "postgresql: BEGIN": as_sql("postgresql", "BEGIN ISOLATION LEVEL REPEATABLE READ"),
    "postgresql: START": as_sql("postgresql", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    "postgresql: CHAIN": as_sql(
        "postgresql",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "LOCK TABLE tests_note",
        "COMMIT AND CHAIN",
    ),
    "postgresql: driver": by_driver,
    "mariadb: option": by_option("mariadb", isolation_level="repeatable read"),
    "mariadb: no option": by_option("mariadb", isolation_level=None),
    "mariadb: SET TRANSACTION": as_sql(
        "mariadb", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "BEGIN"
    ),
    "mariadb: SET SESSION": as_sql(
        "mariadb", "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "BEGIN"
    ),
    "mariadb: variable": as_sql("mariadb", "SET tx_isolation = 'REPEATABLE-READ'", "BEGIN"),
    "default: block": in_block("default"),
    "default: BEGIN": as_sql("default", "BEGIN"),
}


def on_snapshots(function: Any) -> Any:
    """Run the test with each way to open a transaction that keeps its snapshot."""
    return pytest.mark.parametrize(
        ("using", "opened"),
        [
            pytest.param(using, opened, id=way, marks=on_database(using, transaction=True))
            for way, opened in SNAPSHOTS.items()
            for using in [way.partition(":")[0]]
        ],
    )(function)


@pytest.fixture
def write_ahead(using: str, cached: Watch) -> Iterator[None]:
    """SQLite's readers do not stop its writers."""
    if using == "default":
        execute(using, "PRAGMA journal_mode = wal")
    yield
    if using == "default":
        execute(using, "PRAGMA journal_mode = delete")


@scenario(23)
@scenario(24)
@on_snapshots
def test_a_transaction_with_a_snapshot_reads_from_it_and_stores_nothing(
    cached: Watch,
    using: str,
    opened: Opened,
    author: Author,
    names: Names,
    write_ahead: None,
) -> None:
    def in_snapshot() -> None:
        answer, outcomes = cached.call(names)
        assert answer == [OLD]
        # set_config() and the like may have changed anything.
        assert outcomes in ([SNAPSHOT], [SESSION])

    cached.warm(names)
    with session(using), opened():
        in_snapshot()
        with session(using):
            rename(using)
        in_snapshot()
        with session(using):
            assert cached.warm(names) == [NEW]
        in_snapshot()


@pytest.mark.parametrize(
    ("using", "options"),
    [
        pytest.param(using, options, marks=on_database(using, transaction=True))
        for using, options in [
            ("postgresql", {"isolation_level": REPEATABLE_READ}),
            ("mariadb", {"isolation_level": "repeatable read"}),
            ("mariadb", {"isolation_level": None}),
        ]
    ],
)
def test_outside_transactions_the_isolation_level_does_not_matter(
    cached: Watch, using: str, options: dict[str, Any], author: Author, names: Names
) -> None:
    """Each statement takes a snapshot of its own."""
    with session(using, OPTIONS=options):
        names()
        assert cached.hit(names) == [OLD]
        rename(using)
        assert cached.warm(names) == [NEW]


@scenario(26)
@pytest.mark.parametrize("way", ["option", "SET", "variable"])
@on_mariadb
def test_an_uncommitted_row_that_a_transaction_reads_is_served_to_nobody(
    cached: Watch, using: str, author: Author, names: Names, way: str
) -> None:
    statements = {
        "option": "SELECT 1",
        "SET": "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        "variable": "SET tx_isolation = 'READ-UNCOMMITTED'",
    }
    options = {"isolation_level": "read uncommitted"} if way == "option" else {}
    with session(using), transaction.atomic(using):
        update(using)
        with session(using, **({"OPTIONS": options} if options else {})):
            execute(using, statements[way])
            why = "reads uncommitted rows" if way == "option" else SESSION
            with cached.expect(why, why):
                assert names() == [NEW]
                with transaction.atomic(using):
                    assert names() == [NEW]
        with session(using):
            assert cached.warm(names) == [OLD]
        transaction.set_rollback(True, using)
    assert cached.hit(names) == [OLD]


@scenario(24)
@on_sqlite
def test_sqlite_still_refuses_to_write_on_an_outdated_snapshot(
    cached: Watch, using: str, author: Author, names: Names, write_ahead: None
) -> None:
    cached.warm(names)
    with (
        session(using),
        pytest.raises(OperationalError, match="locked"),
        transaction.atomic(using),
    ):
        assert names() == [OLD]
        with session(using):
            rename(using)
        update(using, "lost update")
    assert cached.warm(names) == [NEW]


@on_sqlite
def test_a_read_in_a_transaction_still_holds_off_sqlites_writers(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    """With a rollback journal, a reader's lock is what prevents lost updates."""
    cached.warm(names)
    with session(using), transaction.atomic(using):
        assert names() == [OLD]
        with (
            session(using, OPTIONS={"timeout": 0.05}),
            pytest.raises(OperationalError, match="locked"),
        ):
            rename(using)
        update(using, NEW)
    assert cached.warm(names) == [NEW]


@scenario(25)
@on_postgresql
def test_postgresql_still_finds_serializable_transactions_that_cannot_be_serialized(
    cached: Watch, using: str
) -> None:
    """Two transactions, each of which reads what the other one writes."""
    with factories_using(using):
        first, second = BookFactory(pages=1), BookFactory(pages=1)

    def total() -> int:
        return Book.objects.using(using).aggregate(total=Sum("pages"))["total"]

    def take(book: Book) -> None:
        if total() >= 2:
            Book.objects.using(using).filter(pk=book.pk).update(pages=0)

    cached.warm(total)
    serializable = {"OPTIONS": {"isolation_level": SERIALIZABLE}}
    with pytest.raises(OperationalError) as caught:  # noqa: SIM117
        with session(using, **serializable), transaction.atomic(using):
            assert total() == 2
            with session(using, **serializable), transaction.atomic(using):
                take(second)
            Book.objects.using(using).filter(pk=first.pk).update(pages=0)
    assert caught.value.__cause__.sqlstate == "40001"
    assert cached.warm(total) == 1


# --- locks -------------------------------------------------------------------------------------


@scenario(27)
@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=pytest.mark.slow)])
@on_pairs(
    ("postgresql", "redis"),
    ("postgresql", "memcached"),
    ("mariadb", "redis"),
    transaction=True,
)
def test_no_increment_is_lost_under_select_for_update(
    cached: Watch, using: str, times: int
) -> None:
    with factories_using(using):
        book = BookFactory(pages=0)
    rows = Book.objects.using(using).filter(pk=book.pk)

    def increment() -> None:
        for _ in range(times):
            with transaction.atomic(using):
                rows.select_for_update().get()
                pages = rows.values_list("pages", flat=True).get()
                rows.update(pages=pages + 1)

    threads = [Background(increment) for _ in range(2)]
    for thread in threads:
        thread.result()
    assert cached.warm(lambda: rows.get().pages) == 2 * times


LOCKS = {
    "postgresql": (
        "SELECT 1 FROM tests_author FOR SHARE",
        "LOCK TABLE tests_author IN SHARE MODE",
        "SELECT pg_advisory_xact_lock(1)",
    ),
    "mariadb": ("SELECT 1 FROM tests_author LOCK IN SHARE MODE", "SELECT GET_LOCK('x', 1)"),
}


@on_servers
def test_a_transaction_that_holds_locks_reads_from_the_database_until_it_ends(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    for statement in LOCKS[using]:
        with transaction.atomic(using):
            cached.hit(names)
            execute(using, statement)
            with cached.expect(LOCKED):
                names()
        cached.hit(names)


# --- sessions ----------------------------------------------------------------------------------


@pytest.fixture
def tenants(using: str, cached: Watch, author: Author, settings: Any) -> Iterator[None]:
    """Two schemas with authors of their own, and a role that sees none of them.

    Row-level security is vouched for, or nothing would be cached.
    """
    settings.ORMCACHE = {**settings.ORMCACHE, "DEPENDS_ON": {"tests_author": []}}
    execute(
        using,
        *(
            statement.format(name)
            for name in ("one", "two")
            for statement in (
                "CREATE SCHEMA {0}",
                "CREATE TABLE {0}.tests_author (LIKE public.tests_author)",
                "INSERT INTO {0}.tests_author (id, name) VALUES (1, '{0}')",
            )
        ),
        f"CREATE ROLE {NOBODY}",
        f"GRANT SELECT ON tests_author TO {NOBODY}",
        "ALTER TABLE tests_author ENABLE ROW LEVEL SECURITY",
    )
    yield
    execute(
        using,
        "DROP SCHEMA one CASCADE",
        "DROP SCHEMA two CASCADE",
        "ALTER TABLE tests_author DISABLE ROW LEVEL SECURITY",
        f"DROP OWNED BY {NOBODY}",
        f"DROP ROLE {NOBODY}",
    )


@on_postgresql
def test_each_search_path_has_its_own_answers(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with session(using):
        for name in ("one", "two"):
            execute(using, f"SET search_path TO {name}, public")
            assert cached.warm(names) == [name]
            update(using, name.upper())
            assert cached.warm(names) == [name.upper()]
        execute(using, "SET search_path TO one, public")
        assert names() == ["ONE"]
    assert names() == [OLD]


@on_postgresql
def test_a_search_path_set_in_a_transaction_that_is_rolled_back_is_not_believed(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with session(using):
        execute(using, "SET search_path TO one")
        assert cached.warm(names) == ["one"]
        with transaction.atomic(using):
            execute(using, "SET search_path TO two")
            assert cached.warm(names) == ["two"]
            transaction.set_rollback(True, using)
        with cached.expect(SESSION):
            assert names() == ["one"]
        execute(using, "SET search_path TO two")
        assert cached.hit(names) == ["two"]


@on_postgresql
def test_a_search_path_set_behind_a_savepoint_that_is_rolled_back_is_not_believed(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using), transaction.atomic(using):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using):
            execute(using, "SET search_path TO one")
            assert cached.warm(names) == ["one"]
            1 / 0  # noqa: B018
        with cached.expect(SESSION):
            assert names() == [OLD]


@on_postgresql
def test_a_search_path_set_in_a_transaction_that_commits_stays(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using):
        with transaction.atomic(using):
            execute(using, "SET search_path TO one")
        assert cached.warm(names) == ["one"]
        execute(using, "BEGIN", "ROLLBACK")
        assert cached.hit(names) == ["one"]


@on_postgresql
def test_a_local_search_path_is_not_cached_and_ends_with_the_transaction(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        execute(using, "SET LOCAL search_path TO one")
        with cached.expect(SESSION):
            assert names() == ["one"]
    assert cached.hit(names) == [OLD]


@on_postgresql
def test_each_parameter_of_a_search_path_has_its_own_answers(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using) as connection, connection.cursor() as cursor:
        for name in ("one", "two"):
            cursor.execute("SET search_path TO %s, public", [name])
            assert cached.warm(names) == [name]
        cursor.execute(sql="SET search_path TO %s, public", params=("one",))
        assert names() == ["one"]
        with cached.expect(SESSION):
            cursor.execute("SET search_path TO %(name)s", {"name": "one"})
            assert names() == ["one"]


@on_postgresql
def test_a_schema_may_be_called_local(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    execute(using, "CREATE SCHEMA local", "CREATE TABLE local.tests_author (LIKE tests_author)")
    cached.warm(names)
    with session(using):
        execute(using, "SET search_path TO local")
        assert cached.warm(names) == []
    execute(using, "DROP SCHEMA local CASCADE")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT set_config('search_path', 'one', true)", ["one"]),
        ("SET LOCAL ROLE {nobody}", []),
        ("SET LOCAL app.tenant = 'one'", [OLD]),
    ],
)
@on_postgresql
def test_what_is_set_for_a_transaction_is_not_cached_and_ends_with_it(
    cached: Watch,
    using: str,
    names: Names,
    tenants: None,
    statement: str,
    expected: list[str],
) -> None:
    cached.warm(names)
    for end in (False, True):
        with transaction.atomic(using):
            assert cached.hit(names) == [OLD]
            execute(using, statement.format(nobody=NOBODY))
            with cached.expect(SESSION):
                assert names() == expected
            transaction.set_rollback(end, using)
        assert cached.hit(names) == [OLD]
    execute(using, "BEGIN", statement.format(nobody=NOBODY))
    with cached.expect(SESSION):
        assert names() == expected
    execute(using, "COMMIT")
    assert cached.hit(names) == [OLD]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT set_config('search_path', 'one', false)", ["one"]),
        ("SET ROLE {nobody}", []),
        ("SET SESSION AUTHORIZATION {nobody}", []),
    ],
)
@pytest.mark.parametrize("is_in_block", [False, True])
@on_postgresql
def test_a_session_that_sees_something_else_is_not_cached(
    cached: Watch,
    using: str,
    names: Names,
    tenants: None,
    statement: str,
    expected: list[str],
    is_in_block: bool,
) -> None:
    cached.warm(names)
    with session(using):
        with transaction.atomic(using) if is_in_block else contextlib.nullcontext():
            execute(using, statement.format(nobody=NOBODY))
            with cached.expect(SESSION):
                assert names() == expected
        with cached.expect(SESSION):
            assert names() == expected
    with session(using):
        assert cached.hit(names) == [OLD]


@on_mariadb
def test_a_session_that_uses_another_database_is_not_cached(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    execute(using, "CREATE DATABASE tests_other")
    try:
        with session(using):
            execute(
                using,
                "CREATE TABLE tests_other.tests_author AS SELECT * FROM tests_author WHERE 0",
                "USE tests_other",
            )
            with cached.expect(SESSION):
                assert names() == []
    finally:
        execute(using, "DROP DATABASE tests_other")
    assert names() == [OLD]


# --- announcements that are sent ahead ---------------------------------------------------------

on_redis = on_pairs(("postgresql", "redis"), transaction=True)


@pytest.fixture
def announced(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author
) -> list[str]:
    """What the store is told of commits from now on."""
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
    return caught.value, transactions.outcome_is_known(connection, caught.value)


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
            return transactions.outcome_is_known(connections[using], error)
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
        assert not transactions.outcome_is_known(connections[using], error)


@on_sqlite
def test_the_outcome_of_a_failing_disk_is_not_known(using: str) -> None:
    error = OperationalError("disk I/O error")
    assert not transactions.outcome_is_known(connections[using], error)


@pytest.mark.parametrize("state", ["08006", "40003", "53100", "57P01", "58030", "XX000", None])
@on_postgresql
def test_postgresqls_own_trouble_leaves_the_outcome_open(using: str, state: str | None) -> None:
    error, cause = OperationalError(), Exception()
    cause.sqlstate = state
    error.__cause__ = cause
    assert not transactions.outcome_is_known(connections[using], error)


# --- the cache cannot be told ------------------------------------------------------------------


@pytest.fixture
def broken(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> Iterator[Callable[[], None]]:
    """The cache holds the names and cannot be told of anything until the function is called."""
    cached.warm(names)
    store, breaker = store_of(using), route_of(using).breaker
    # Its pauses would only make the test wait.
    monkeypatch.setattr(breaker, "failed", lambda: None)

    def fail(*args: Any) -> None:
        raise CacheError("out of reach")

    with monkeypatch.context() as patch:
        for method in ("arm", "bump"):
            patch.setattr(store, method, fail)
        yield patch.undo


@scenario(30)
@on_all
def test_a_write_that_the_cache_cannot_be_told_of_is_refused(
    settings: Any,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    with pytest.raises(CacheUnreachable, match="tests_author"):
        rename(using)
    with pytest.raises(CacheUnreachable, match="tests_author"):
        update(using)
    assert issubclass(CacheUnreachable, OperationalError)
    assert names.in_database() == [OLD]
    assert connections[using].get_autocommit()
    assert cached.hit(names) == [OLD]
    broken()
    rename(using)
    assert cached.warm(names) == [NEW]


@pytest.fixture
def let_through(settings: Any, cached: Watch) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}


@scenario(30)
@pytest.mark.parametrize("write", [rename, update])
@on_all
def test_a_write_that_is_let_through_is_not_answered_from_the_cache_until_it_was_told(
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
    write: Callable[[str], None],
) -> None:
    write(using)
    assert names.in_database() == [NEW]
    with cached.expect("cache unreachable", "cache unreachable"):
        assert names() == names() == [NEW]
    assert counters.snapshot([using])[using]["tests_author"]["unannounced"] >= 1
    broken()
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_tables_that_were_not_written_are_served_while_others_are_owed(
    let_through: None, cached: Watch, using: str, author: Author, broken: Callable[[], None]
) -> None:
    def tags() -> int:
        return Tag.objects.using(using).count()

    rename(using)
    cached.warm(tags)
    broken()


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_is_owed_is_not_paid_before_the_commit(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """The cache comes back between the announcement that failed and the COMMIT."""
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    commit.wait()
    broken()
    for _ in range(2):
        assert names() == [OLD]
    commit.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_may_still_be_committed_is_not_paid_within_a_lease(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """The connection is lost at COMMIT: nobody knows whether the server goes on with it."""

    def lose(connection: Any) -> None:
        raise OperationalError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "_commit", lose)
        with pytest.raises(OperationalError, match="lost"):
            rename(using)
    broken()
    with cached.expect("cache unreachable", "cache unreachable"):
        assert names() == names() == [OLD]
    monkeypatch.setattr(
        transactions, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + current().LEASE)
    )
    assert cached.warm(names) == [OLD]


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_is_written_while_a_debt_is_paid_stays_owed(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    rename(using, "first")
    store, route = store_of(using), route_of(using)

    def bump(*args: Any) -> None:
        # The announcement of this one fails, too.
        rename(using, "second")

    with monkeypatch.context() as patch:
        patch.setattr(store, "bump", bump)
        assert not transactions.pay(route)
    assert transactions.owed(route) == {"tests_author"}
    broken()
    assert transactions.pay(route)
    assert cached.warm(names) == ["second"]


@on_postgresql
def test_the_next_write_that_the_cache_hears_of_pays_what_is_owed(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """Other processes need it, even if this one never reads."""
    rename(using)
    broken()
    Tag.objects.using(using).create(name="tag")
    assert transactions.owed(route_of(using)) == frozenset()
    assert cached.warm(names) == [NEW]


@pytest.fixture
def own_redis(settings: Any, using: str) -> Iterator[servers.RedisServer]:
    """A Redis server for this test alone, behind the cache alias `own`."""
    with servers.RedisServer() as server:
        settings.CACHES = {
            **settings.CACHES,
            "own": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://{servers.HOST}:{server.port}/0",
            },
        }
        settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "own"}
        wait_for_quarantine(using)
        yield server


@pytest.fixture
def own_watch(own_redis: servers.RedisServer, using: str) -> Iterator[Watch]:
    with factories_using(using):
        AuthorFactory(name=OLD)
    with Watch(using) as watch:
        yield watch


def recovered(cached: Watch, question: Callable[[], Any]) -> Any:
    """The answer, as soon as it comes from the cache again."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer, outcomes = cached.call(question)
        if outcomes == ["hit"]:
            return answer
        assert time.monotonic() < deadline, "nothing is cached any more"
        time.sleep(0.05)


@scenario(30)
@on_postgresql
def test_with_a_dead_redis_writes_are_refused_and_reads_go_to_the_database(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    own_watch.warm(names)
    own_redis.kill()
    with pytest.raises(CacheUnreachable):
        rename(using)
    assert connections[using].get_autocommit()
    with own_watch.expect("cache unreachable"):
        assert names() == [OLD]
    own_redis.start()
    assert recovered(own_watch, names) == [OLD]
    rename(using)
    assert own_watch.warm(names) == [NEW]


@scenario(30)
@on_postgresql
def test_with_a_dead_redis_writes_may_be_let_through(
    let_through_own: None,
    own_redis: servers.RedisServer,
    own_watch: Watch,
    using: str,
    names: Names,
) -> None:
    own_watch.warm(names)
    own_redis.kill()
    rename(using)
    with own_watch.expect("cache unreachable"):
        assert names() == [NEW]
    own_redis.start()
    assert recovered(own_watch, names) == [NEW]


@pytest.fixture
def let_through_own(own_redis: servers.RedisServer, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}


@on_postgresql
def test_a_hung_redis_holds_up_a_write_for_no_longer_than_the_socket_timeout(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    own = {"SOCKET_TIMEOUT": 0.1, "ON_CACHE_FAILURE": "raise"}
    settings.ORMCACHE = {**settings.ORMCACHE, **own}
    own_watch.warm(names)
    own_redis.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(CacheUnreachable):
            rename(using)
        assert time.monotonic() - begun < 3
    finally:
        own_redis.resume()
    assert names.in_database() == [OLD]


@on_postgresql
def test_switched_off_ormcache_does_not_stop_writes_when_the_cache_is_dead(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False}
    own_redis.kill()
    rename(using)
    with own_watch.expect("switched off"):
        assert names() == [NEW]


@on_postgresql
def test_switched_off_ormcache_still_tells_others_of_writes(
    settings: Any, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    usual = settings.ORMCACHE
    settings.ORMCACHE = {**usual, "ENABLED": False}
    rename(using)
    settings.ORMCACHE = usual
    assert cached.warm(names) == [NEW]


# --- what a connection does not do -------------------------------------------------------------


@on_postgresql
def test_asking_whether_a_transaction_is_open_opens_no_connection(using: str) -> None:
    with session(using) as connection:
        state = transactions.state_of(connection)
        assert not transactions.in_transaction(connection, state)
        assert connection.connection is None
        connection.settings_dict["AUTOCOMMIT"] = False
        assert transactions.in_transaction(connection, state)
        assert connection.connection is None


@on_postgresql
def test_the_isolation_of_the_server_is_asked_once_per_session_and_not_logged(
    cached: Watch, using: str, author: Author, names: Names, django_assert_num_queries: Any
) -> None:
    with session(using) as connection:
        for _ in range(2):
            with transaction.atomic(using):
                with django_assert_num_queries(1, connection=connection):
                    execute(using, "SELECT 1")
                names()
        with (
            transaction.atomic(using),
            django_assert_num_queries(0, connection=connection),
        ):
            assert cached.hit(names) == [OLD]
