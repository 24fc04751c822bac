"""Questions of our own to a database: about isolation, table engines, replication.

They go to the driver's own cursor, because the user's query log, counters and wrappers are not
for them.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any


def ask(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    """The rows that ``sql`` gives on ``connection``, which is open.

    Raises ``django.db.Error`` as a query of the user's would.
    """
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def tell(connection: Any, sql: str) -> None:
    """Execute ``sql``, which gives no rows. Raises as :func:`ask` does."""
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        cursor.execute(sql)
