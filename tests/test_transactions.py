"""What a connection writes, reads and commits, and what the cache is told of it."""

import contextlib
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django import db
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max, Sum
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase
from django.urls import path

import ormcache
from ormcache import counters, transactions
from ormcache.exceptions import CacheError, CacheUnreachable
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
    switched_to,
)
from tests.marks import needs, on_databases, on_pairs
from tests.models import Author, Book, Tag
from tests.watching import Watch, wait_for_quarantine

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


@pytest.fixture
def author(using: str, cached: Watch) -> Author:
    with factories_using(using):
        return AuthorFactory(name=OLD)


class Names:
    """The question of most tests: the names of all authors."""

    def __init__(self, using: str) -> None:
        self.using = using

    def __call__(self) -> list[str]:
        return list(
            Author.objects.using(self.using).order_by("pk").values_list("name", flat=True)
        )

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


def wait_for_lease(question: Callable[[], Any], cached: Watch) -> None:
    """Ask until no intent is in the way, for which a lease is given."""
    deadline = time.monotonic() + SECONDS
    while BUSY in cached.call(question)[1]:
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.02)


# --- committing and rolling back ---------------------------------------------------------------


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


@on_all
def test_a_transaction_that_only_reads_is_not_announced(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish", "bump")
    with transaction.atomic(using):
        names()
    assert calls == []


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


@on_all
def test_a_hook_that_fails_after_the_commit_does_not_undo_the_report(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using):
        update(using)
        transaction.on_commit(lambda: 1 / 0, using)
    assert cached.warm(names) == [NEW]


@on_all
def test_touch_in_a_transaction_invalidates_now_and_at_the_commit(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    with transaction.atomic(using):
        ormcache.invalidate(Tag, using=using)
        assert "tests_tag" in cached.invalidated[-1]
        cached.clear()
    assert "tests_tag" in cached.invalidated[-1]


# --- connections that break --------------------------------------------------------------------


def kill(connection: Any) -> None:
    """End the session at the server, and return when it is gone."""
    if connection.vendor == "postgresql":
        number = connection.connection.info.backend_pid
        end, look = "SELECT pg_terminate_backend(%s)", "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    else:
        number = connection.connection.thread_id()
        end, look = "KILL %s", "SELECT 1 FROM information_schema.processlist WHERE id = %s"
    with session(connection.alias) as other, other.cursor() as cursor:
        cursor.execute(end, [number])
        deadline = time.monotonic() + SECONDS
        while cursor.execute(look, [number]) is not None and cursor.fetchone():
            assert time.monotonic() < deadline, "the session does not end"


@on_servers
def test_a_connection_killed_before_its_commit_leaves_the_intent_to_its_lease(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    original = BaseDatabaseWrapper._commit

    def commit(connection: Any) -> None:
        kill(connection)
        original(connection)

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit)
    with pytest.raises(OperationalError):
        rename(using)
    assert calls == ["arm"]
    with cached.expect(BUSY):
        assert names() == [OLD]
    wait_for_lease(names, cached)
    assert names.in_database() == [OLD]
    assert cached.warm(names) == [OLD]
    monkeypatch.undo()
    rename(using)
    assert cached.warm(names) == [NEW]


@on_servers
def test_a_commit_whose_answer_is_lost_leaves_the_intent_to_its_lease(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "finish")
    original = BaseDatabaseWrapper._commit

    def commit(connection: Any) -> None:
        original(connection)
        kill(connection)
        with connection.wrap_database_errors:
            connection.connection.cursor().execute("SELECT 1")

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit)
    with pytest.raises(OperationalError):
        rename(using)
    assert calls == ["arm"]
    with cached.expect(BUSY):
        assert names() == [NEW]
    wait_for_lease(names, cached)
    assert cached.warm(names) == [NEW]


@on_all
def test_closing_the_connection_in_a_transaction_forgets_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        update(using)
        connections[using].close()
    assert cached.hit(names) == [OLD]
    cached.clear()
    with transaction.atomic(using):
        Tag.objects.using(using).create(name="tag")
    assert cached.invalidated == [("tests_tag",)]
    assert cached.hit(names) == [OLD]
    rename(using)
    assert cached.warm(names) == [NEW]


@on_all
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
def test_with_autocommit_off_a_block_publishes_nothing_but_the_commit_after_it(
    cached: Watch, using: str, author: Author, names: Names, autocommit_off: None
) -> None:
    with session(using):
        cached.warm(names)
    rename(using)
    with session(using):
        assert cached.hit(names) == [OLD]
    transaction.commit(using)
    with session(using):
        assert cached.warm(names) == [NEW]


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


@on_all
def test_a_hook_that_fails_when_autocommit_is_switched_on_leaves_nothing_pending(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    if using == "postgresql":
        pending = []
    else:
        pending = ["tests_author"]
    transaction.set_autocommit(False, using)
    Tag.objects.using(using).create(name="tag")
    connections[using].run_on_commit.append((set(), lambda: 1 / 0, False))
    transaction.commit(using)
    if pending:
        update(using)
    with pytest.raises(ZeroDivisionError):
        transaction.set_autocommit(True, using)
    wait_for_lease(names, cached)
    assert cached.warm(names) == [NEW if pending else OLD]


@on_all
def test_a_transaction_begun_and_committed_as_sql_is_one(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    execute(using, "BEGIN")
    update(using)
    with session(using):
        assert cached.hit(names) == [OLD]
    assert names() == [NEW]
    execute(using, "COMMIT")
    assert cached.warm(names) == [NEW]


@on_all
def test_a_transaction_rolled_back_as_sql_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    calls = record_calls(monkeypatch, store_of(using), "arm", "fill")
    execute(using, "BEGIN")
    update(using)
    assert names() == [NEW]
    execute(using, "ROLLBACK")
    assert calls == []
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


@on_servers
def test_transactions_ended_and_begun_by_one_text_are_told_apart(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    if using == "mariadb":
        pytest.param  # the driver takes one statement at a time
        texts = ["BEGIN", "COMMIT", "BEGIN"]
    else:
        texts = ["BEGIN; COMMIT; BEGIN"]
    with session(using):
        execute(using, *texts)
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
        for value in ("a", "b"):
            update(using, value)
            with session(using):
                assert cached.warm(names) != [value]
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
        assert cached.warm(names) == [NEW if end == "COMMIT" else OLD]
        update(using, "newer")
        assert cached.warm(names) == ["newer"]


@on_postgresql
def test_a_prepared_transaction_is_published_by_whoever_commits_it(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    execute(using, "BEGIN")
    update(using)
    execute(using, "PREPARE TRANSACTION 'x'")
    assert cached.warm(names) == [OLD]
    with session(using):
        execute(using, "COMMIT PREPARED 'x'")
    assert cached.warm(names) == [NEW]


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
    assert cached.warm(names) == [NEW]


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
    assert cached.warm(tags) == ["kept"]


# --- errors while the cache is told ------------------------------------------------------------


class Interruption(BaseException):
    """What gevent's Timeout is: no Exception."""


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@on_all
def test_an_error_in_the_announcement_of_an_autocommit_statement_keeps_it_from_running(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    error: type[BaseException],
) -> None:
    def fail(*args: Any) -> None:
        raise error("in arm")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", fail)
        with pytest.raises(error, match="in arm"):
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
    wait_for_lease(names, cached)
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


@contextlib.contextmanager
def block(using: str, *statements: str) -> Iterator[None]:
    with transaction.atomic(using):
        execute(using, *statements)
        yield


@contextlib.contextmanager
def block_as_sql(using: str, begin: str, *before: str) -> Iterator[None]:
    execute(using, *before, begin)
    yield
    execute(using, "COMMIT")


@contextlib.contextmanager
def altered(using: str, change: str, undo: str) -> Iterator[None]:
    """A default of the server's that only new sessions take over."""
    execute(using, change)
    try:
        with session(using), transaction.atomic(using):
            yield
    finally:
        with session(using):
            execute(using, undo)


def _options(using: str, **options: Any) -> Callable[[str], Any]:
    @contextlib.contextmanager
    def opened(using: str) -> Iterator[None]:
        with session(using, OPTIONS=options), transaction.atomic(using):
            yield

    return opened


SNAPSHOTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "repeatable read by option": (
        "postgresql",
        _options("postgresql", isolation_level=2),
    ),
    "serializable by option": ("postgresql", _options("postgresql", isolation_level=3)),
    "set transaction": (
        "postgresql",
        lambda using: block(using, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
    ),
    "set transaction_isolation": (
        "postgresql",
        lambda using: block(using, "SET transaction_isolation = 'serializable'"),
    ),
    "set_config": (
        "postgresql",
        lambda using: block(
            using, "SELECT set_config('transaction_isolation', 'repeatable read', true)"
        ),
    ),
    "session characteristics": (
        "postgresql",
        lambda using: block_as_sql(
            using,
            "BEGIN",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        ),
    ),
    "begin isolation level": (
        "postgresql",
        lambda using: block_as_sql(using, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
    ),
    "start transaction isolation level": (
        "postgresql",
        lambda using: block_as_sql(using, "START TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    ),
    "role": (
        "postgresql",
        lambda using: altered(
            using,
            "ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'repeatable read'",
            "ALTER ROLE CURRENT_USER RESET default_transaction_isolation",
        ),
    ),
    "database": (
        "postgresql",
        lambda using: altered(
            using,
            "ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'".format(
                name=connections[using].settings_dict["NAME"]
            ),
            "ALTER DATABASE {name} RESET default_transaction_isolation".format(
                name=connections[using].settings_dict["NAME"]
            ),
        ),
    ),
    "mariadb by option": ("mariadb", _options("mariadb", isolation_level="repeatable read")),
    "mariadb serializable by option": (
        "mariadb",
        _options("mariadb", isolation_level="serializable"),
    ),
    "mariadb's own default": ("mariadb", _options("mariadb", isolation_level=None)),
    "mariadb set transaction": (
        "mariadb",
        lambda using: block_as_sql(
            using, "BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
        ),
    ),
    "mariadb set session": (
        "mariadb",
        lambda using: block_as_sql(
            using, "BEGIN", "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"
        ),
    ),
    "mariadb variable": (
        "mariadb",
        lambda using: block_as_sql(using, "BEGIN", "SET tx_isolation = 'REPEATABLE-READ'"),
    ),
    "sqlite": ("default", lambda using: transaction.atomic(using)),
    "sqlite as sql": ("default", lambda using: block_as_sql(using, "BEGIN")),
}


def on_snapshots() -> Any:
    def decorate(function: Any) -> Any:
        function = pytest.mark.parametrize(
            ("using", "opened"),
            [
                pytest.param(
                    using,
                    opened,
                    id=name,
                    marks=[
                        pytest.mark.django_db(
                            transaction=True, databases=list({"default", using})
                        ),
                        *([needs(using)] if using != "default" else []),
                    ],
                )
                for name, (using, opened) in SNAPSHOTS.items()
            ],
        )(function)
        return function

    return decorate


@pytest.fixture
def write_ahead(using: str, cached: Watch) -> Iterator[None]:
    """SQLite's readers do not stop its writers."""
    if using != "default":
        yield
        return
    execute(using, "PRAGMA journal_mode = wal")
    yield
    execute(using, "PRAGMA journal_mode = delete")


@on_snapshots()
def test_a_transaction_with_a_snapshot_reads_from_it_and_stores_nothing(
    cached: Watch,
    using: str,
    opened: Callable[[str], Any],
    author: Author,
    names: Names,
    write_ahead: None,
) -> None:
    with session(using):
        names()
        with opened(using):
            assert names() == [OLD]
            with session(using):
                # SERIALIZABLE on MariaDB locks what it reads.
                if "serializable" not in str(connections[using].isolation_level if False else ""):
                    pass
            with session(using):
                writable = _try_to_rename(using)
            assert names() == [OLD]
            assert "hit" not in cached.outcomes
            assert cached.outcomes[-2:] != ["miss", "miss"]
    expected = [NEW] if writable else [OLD]
    assert names.in_database() == expected
    assert cached.warm(names) == expected


def _try_to_rename(using: str) -> bool:
    """Returns whether no lock was in the way."""
    if connections[using].vendor == "mysql":
        execute(using, "SET SESSION innodb_lock_wait_timeout = 1")
    try:
        rename(using)
    except OperationalError:
        return False
    return True
