"""What a connection writes and commits, and what the cache is told of it."""

import contextlib
import time
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from django import db
from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase
from django.urls import path

import ormcache
from ormcache import connection_state
from ormcache.reasons import Reason
from tests.authors import NEW, OLD, Names, execute, rename, update, wait_for_lease
from tests.interleaving import (
    SECONDS,
    kill,
    number_of,
    record_calls,
    session,
    store_of,
)
from tests.marks import on_databases, scenario
from tests.models import Author, Book, Tag
from tests.watching import Watch

pytestmark = pytest.mark.usefixtures("emptied")

on_all = on_databases(transaction=True)
on_servers = on_databases("postgresql", "mariadb", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)
on_mariadb = on_databases("mariadb", transaction=True)

BUSY = "a write is being committed"
SNAPSHOT = "snapshot transaction"


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


@pytest.mark.parametrize("begun", ["as SQL", "by atomic()"])
@on_postgresql
def test_what_a_text_writes_behind_a_rollback_takes_effect_with_the_text(
    cached: Watch, using: str, author: Author, names: Names, begun: str
) -> None:
    text = f"ROLLBACK; UPDATE tests_author SET name = '{NEW}'"
    cached.warm(names)
    if begun == "as SQL":
        execute(using, "BEGIN")
        execute(using, text)
    else:
        with transaction.atomic(using):
            execute(using, text)
    with session(using):
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


# --- what a connection does not do -------------------------------------------------------------


@on_postgresql
def test_asking_whether_a_transaction_is_open_opens_no_connection(using: str) -> None:
    with session(using) as connection:
        state = connection_state.state_of(connection)
        assert not connection_state.in_transaction(connection, state)
        assert connection.connection is None
        connection.settings_dict["AUTOCOMMIT"] = False
        assert connection_state.in_transaction(connection, state)
        assert connection.connection is None
