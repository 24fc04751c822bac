"""The rows of the table ``ormcache_fence``, by which a write is announced in SQL.

They are committed together with what they announce. Other programs write them, and ormcache itself
does where the cache cannot be told beforehand (policy "fence"). :mod:`ormcache.fence` reads them.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from django import db

from ormcache import engines
from ormcache.exceptions import NoFence
from ormcache.questions import ask, tell
from ormcache.stores import EVERYTHING

_T = TypeVar("_T")

TABLE = "ormcache_fence"

_LONGEST = 255
"""Characters, of the column."""
_EXISTS = {
    # The catalog shows every schema, also those that are not searched.
    "postgresql": (
        "SELECT count(*), coalesce(bool_or(to_regclass('ormcache_fence') = c.oid), false) "
        "FROM pg_catalog.pg_class c "
        "WHERE c.relname = 'ormcache_fence' AND c.relkind IN ('r', 'p')"
    ),
    "sqlite": (
        "SELECT count(*), count(*) FROM sqlite_master "
        "WHERE name = 'ormcache_fence' AND type = 'table'"
    ),
    "mysql": (
        "SELECT count(*), count(*) FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_name = 'ormcache_fence'"
    ),
}


class Found(enum.Enum):
    """Where the table is."""

    NOWHERE = enum.auto()
    ONE = enum.auto()
    """There is one, and this session finds it."""
    SEVERAL = enum.auto()
    """Several schemas have one, and this session finds one of them."""
    HIDDEN = enum.auto()
    """In a schema in which this session does not look."""


def look_for(connection: Any) -> Found:
    """Where the table is, for the session of ``connection``. Raises ``django.db.Error``."""
    question = _EXISTS.get(connection.vendor)
    if question is None:
        return Found.NOWHERE
    ((count, is_visible),) = ask(connection, question)
    if not count:
        return Found.NOWHERE
    if not is_visible:
        return Found.HIDDEN
    return Found.ONE if count == 1 else Found.SEVERAL


def check(connection: Any, namespace: str) -> None:
    """Raise NoFence unless a row that is written now surely reaches all who look for it."""
    with _as_no_fence():
        found = look_for(connection)
        if found is Found.NOWHERE:
            raise NoFence(f"there is no table {TABLE}: run `manage.py migrate ormcache`")
        if found is not Found.ONE:
            raise NoFence(f"there is not exactly one table {TABLE}, where all look")
        if engines.without_transactions(connection, namespace, {TABLE}):
            raise NoFence(f"the table {TABLE} takes no part in transactions")


def insert(connection: Any, tables: Collection[str]) -> None:
    """Write a row for each of ``tables``, in the transaction that is open.

    Raises NoFence if that fails; PostgreSQL has then aborted the transaction.
    """
    names = sorted(tables)
    if any(len(name) > _LONGEST for name in names):
        names = [EVERYTHING]
    value = "(?)" if connection.vendor == "sqlite" else "(%s)"
    values = ", ".join([value] * len(names))
    with _as_no_fence():
        tell(connection, f"INSERT INTO {TABLE} (table_name) VALUES {values}", names)


@contextlib.contextmanager
def _as_no_fence() -> Any:
    try:
        yield
    except db.Error as error:
        raise NoFence(f"{TABLE}: {error}") from error


def commit_with(
    connection: Any, tables: Callable[[], Sequence[str]], operation: Callable[[], _T]
) -> _T:
    """Run ``operation`` and write the rows in one transaction, on a connection in autocommit.

    Args:
        connection: that of the statement, with no transaction open.
        tables: what to announce. Asked again when ``operation`` is over, it may have more.
        operation: executes a statement that may stand in a transaction.

    Raises what ``operation`` raises, and NoFence if the rows cannot be written: then all is rolled
    back. An error of the COMMIT leaves the outcome open, of both together.
    """
    tell(connection, "BEGIN")
    try:
        # First: who asks the session for the last id that was given out means his own statement.
        known = set(tables())
        insert(connection, known)
        result = operation()
        more = set(tables()) - known
        if more:
            insert(connection, more)
        tell(connection, "COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    return result


def _roll_back(connection: Any) -> None:
    """A session that stays in a transaction would keep all that follows from being committed."""
    if connection.connection is None:
        return
    if connection.vendor == "sqlite" and not connection.connection.in_transaction:
        # It rolls back by itself where it finds no space, for example.
        return
    try:
        tell(connection, "ROLLBACK")
    except db.Error:
        with contextlib.suppress(Exception):
            connection.close()
