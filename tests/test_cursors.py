"""Facts about SQLite's cursors: a statement ends when its rows have been fetched."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connections

from ormcache import signals
from tests.factories import AuthorFactory
from tests.interleaving import session
from tests.marks import on_databases
from tests.models import Author, Book
from tests.watching import Watch

on_sqlite = on_databases("default", transaction=True)
RETURNING = "UPDATE tests_author SET name = %s RETURNING id, name"


def elsewhere(question: Callable[[], Any]) -> Any:
    """The answer on a connection of its own."""
    answers: list[Any] = []

    def ask() -> None:
        with session("default"):
            answers.append(question())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


def names() -> list[str]:
    return [author.name for author in Author.objects.order_by("name")]


@on_sqlite
def test_reader_told_of_a_new_row_sees_it(cached: Watch) -> None:
    """INSERT … RETURNING is not committed before its row is fetched."""
    seen: list[Any] = []

    def ask(**kwargs: Any) -> None:
        seen.append(elsewhere(Author.objects.count))

    signals.tables_invalidated.connect(ask)
    try:
        Author.objects.create(name="new")
    finally:
        signals.tables_invalidated.disconnect(ask)
    assert seen == [1]
    assert Author.objects.count() == 1


@on_sqlite
def test_a_foreign_key_that_leads_nowhere_is_an_error_of_django(cached: Watch) -> None:
    """In autocommit it is checked when the row is fetched."""
    with pytest.raises(IntegrityError):
        Book.objects.create(title="nobody's", author_id=1_000_000)
    assert elsewhere(Book.objects.count) == 0


@on_sqlite
def test_rows_that_a_write_returns_are_fetched_with_it(cached: Watch) -> None:
    AuthorFactory(name="old")
    elsewhere(names)
    with connections["default"].cursor() as cursor:
        cursor.execute(RETURNING, ["new"])
        assert elsewhere(names) == ["new"]
        assert [name for _, name in cursor.fetchall()] == ["new"]
        assert cursor.fetchall() == []
    assert names() == ["new"]


@on_sqlite
@pytest.mark.parametrize(
    "fetch",
    [
        lambda cursor: cursor.fetchall(),
        lambda cursor: list(cursor),
        lambda cursor: [cursor.fetchone(), cursor.fetchone()],
        lambda cursor: [*cursor.fetchmany(1), *cursor.fetchmany(5)],
        lambda cursor: [*cursor.fetchmany(), *cursor.fetchmany()],
        lambda cursor: cursor.fetchmany(0),
        lambda cursor: cursor.fetchmany(-1),
        lambda cursor: [next(iter(cursor)), next(cursor.cursor)],
    ],
)
def test_fetched_rows_are_given_out_as_by_a_cursor(
    cached: Watch, fetch: Callable[[Any], list[Any]]
) -> None:
    AuthorFactory.create_batch(2)
    with connections["default"].cursor() as cursor:
        cursor.execute(RETURNING, ["new"])
        rows = fetch(cursor)
        assert [name for _, name in rows] == ["new", "new"]
        assert cursor.fetchone() is None
        assert [column[0] for column in cursor.description] == ["id", "name"]
        cursor.execute("SELECT count(*) FROM tests_author")
        assert cursor.fetchone() == (2,)


@on_sqlite
@pytest.mark.parametrize("kind", ["iterator", "raw"])
def test_connection_with_rows_left_reads_past_the_cache(cached: Watch, kind: str) -> None:
    """It sees the snapshot that the first of its statements has opened."""
    AuthorFactory(name="a"), AuthorFactory(name="b")
    cached.warm(names)
    with connections["default"].cursor() as cursor:
        if kind == "iterator":
            rows = Author.objects.iterator(chunk_size=1)
            next(rows)
        else:
            cursor.execute("SELECT * FROM tests_author")
            cursor.fetchone()
        with cached.expect("snapshot transaction"):
            names()
        if kind == "iterator":
            assert len(list(rows)) == 1
        else:
            assert len(cursor.fetchmany(5)) == 1
            assert cursor.fetchmany(5) == []
    assert cached.hit(names) == ["a", "b"]


@on_sqlite
def test_cursor_that_is_closed_or_forgotten_has_no_rows_left(cached: Watch) -> None:
    AuthorFactory.create_batch(3)
    cached.warm(names)
    cursor = connections["default"].cursor()
    cursor.execute("SELECT * FROM tests_author")
    cursor.close()
    cached.hit(names)
    cursor = connections["default"].cursor()
    cursor.execute("SELECT * FROM tests_author")
    del cursor
    cached.hit(names)
