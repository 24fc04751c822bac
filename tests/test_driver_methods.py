"""Methods that a driver's cursor has besides those of the DB-API.

What is copied and streamed with psycopg is told in `test_writes.py`, with other ways to write.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from django.test.utils import CaptureQueriesContext

from tests.factories import AuthorFactory
from tests.marks import DATABASES, on_databases
from tests.models import Author, Tag
from tests.watching import Watch

SQLITE = DATABASES[0]


class Psycopg2Cursor:
    """As much of psycopg2 as writes past ``execute``."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def copy_from(self, file: Any, table: str, columns: Any = None) -> None:
        for line in file:
            self._cursor.execute(f"INSERT INTO {table} (name) VALUES (?)", [line.strip()])

    def copy_expert(self, sql: str, file: Any) -> None:
        self.copy_from(file, "tests_tag")


_COPY = "COPY tests_tag FROM STDIN"


@pytest.mark.parametrize("wrapper", [CursorWrapper, CursorDebugWrapper])
@pytest.mark.parametrize(
    "copy",
    [
        lambda cursor: cursor.copy_from(io.StringIO("new\n"), "tests_tag", columns=["name"]),
        lambda cursor: cursor.copy_expert(_COPY, io.StringIO("new\n")),
        lambda cursor: cursor.copy_from(table="tests_tag", file=io.StringIO("new\n")),
        lambda cursor: cursor.copy_expert(file=io.StringIO("new\n"), sql=_COPY),
    ],
    ids=["copy_from", "copy_expert", "copy_from by name", "copy_expert by name"],
)
@on_databases(SQLITE, transaction=True)
def test_copies_of_psycopg2_are_seen(
    cached: Watch, using: str, copy: Callable[[Any], None], wrapper: type[CursorWrapper]
) -> None:

    def tags() -> list[Any]:
        return list(Tag.objects.using(using).values_list())

    cached.warm(tags)
    connection = connections[using]
    with contextlib.closing(connection.connection.cursor()) as cursor:
        copy(wrapper(Psycopg2Cursor(cursor), connection))
    assert len(cached.warm(tags)) == 1


@on_databases(SQLITE, transaction=True)
def test_a_cursor_that_logs_fetches_the_rows_that_end_a_statement(
    cached: Watch, using: str
) -> None:
    AuthorFactory()

    def authors() -> list[Any]:
        return list(Author.objects.using(using).order_by("pk").values_list())

    cached.warm(authors)
    for fetch in ("fetchone", "fetchmany", "fetchall"):
        with CaptureQueriesContext(connections[using]), connections[using].cursor() as cursor:
            cursor.execute(f"UPDATE tests_author SET name = '{fetch}' RETURNING name")
            getattr(cursor, fetch)()
        assert cached.warm(authors)[0][1] == fetch


def test_a_method_that_a_driver_does_not_have_is_not_made_up() -> None:
    cursor = CursorWrapper(object(), connections[SQLITE])
    with pytest.raises(AttributeError):
        cursor.copy  # noqa: B018
