"""SQLite itself says which tables a statement reads and writes.

It asks its authorizer about each access while it prepares a statement, those of views, triggers
and foreign keys included.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from django.db import connection

_WRITES = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)


def _allow(*access: object) -> int:
    return sqlite3.SQLITE_OK


class Authorizer:
    """Notes what the default database accesses inside the `with` block."""

    def __init__(self) -> None:
        self.reads: list[set[str]] = []
        """The tables that each SELECT has read, in the order of execution."""
        self.written: set[str] = set()
        """The tables that any statement has written."""
        self._read: set[str] = set()

    def __enter__(self) -> "Authorizer":
        connection.ensure_connection()
        self._wrapper = connection.execute_wrapper(self._execute)
        self._wrapper.__enter__()
        self._listen()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        # None takes it away, but not on Python 3.10.
        connection.connection.set_authorizer(_allow)
        self._wrapper.__exit__(*exc_info)

    def _listen(self) -> None:
        # A new authorizer makes SQLite prepare again what the driver has kept.
        connection.connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, table: str | None, *details: str | None) -> int:
        if table is not None and not table.startswith("sqlite_"):
            if action == sqlite3.SQLITE_READ:
                self._read.add(table.casefold())
            elif action in _WRITES:
                self.written.add(table.casefold())
        return sqlite3.SQLITE_OK

    def _execute(self, execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        self._read = set()
        self._listen()
        result = execute(sql, *args)
        if sql.lstrip("( ").upper().startswith(("SELECT", "WITH")):
            self.reads.append(self._read)
        return result
