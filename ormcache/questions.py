"""Questions of our own to a database: about isolation, table engines, replication.

They go to the driver's own cursor, because the user's query log, counters and wrappers are not
for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from django import db


def ask(
    connection: Any, sql: str, parameters: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    """The rows that ``sql`` gives on ``connection``, which is open.

    Raises ``django.db.Error`` as a query of the user's would.
    """
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        _execute(cursor, sql, parameters)
        return list(cursor.fetchall())


def tell(connection: Any, sql: str, parameters: Sequence[Any] | None = None) -> None:
    """Execute ``sql``, which gives no rows. Raises as :func:`ask` does."""
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        _execute(cursor, sql, parameters)


@contextmanager
def savepoint(connection: Any) -> Iterator[None]:
    """What is asked inside may fail without aborting the transaction that is open.

    Only PostgreSQL aborts it, and there this costs two round trips. Raises as :func:`ask` does.
    """
    if connection.vendor != "postgresql":
        yield
        return
    tell(connection, "SAVEPOINT ormcache")
    try:
        yield
    except db.Error:
        tell(connection, "ROLLBACK TO SAVEPOINT ormcache")
        raise
    finally:
        tell(connection, "RELEASE SAVEPOINT ormcache")


def _execute(cursor: Any, sql: str, parameters: Sequence[Any] | None) -> None:
    # SQLite does not take None, and without parameters % is no special sign.
    if parameters is None:
        cursor.execute(sql)
    else:
        cursor.execute(sql, parameters)
