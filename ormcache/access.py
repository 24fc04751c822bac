"""What Django checks before a query goes to the database: a hit must pass it, too.

Otherwise code that breaks on a miss would work on a hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import db
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from ormcache.interruptions import let_through


@async_unsafe
def not_in_a_coroutine() -> None:
    """Raise SynchronousOnlyOperation in a coroutine, as ``connection.cursor`` does."""


def check_access(connection: Any) -> None:
    """Raise what Django would raise if the query went to the database.

    Otherwise code that breaks on a miss would work on a hit: synchronous reads in a coroutine,
    a connection used by a foreign thread, a query in a SimpleTestCase.
    """
    not_in_a_coroutine()
    connection.validate_thread_sharing()
    connection.validate_no_broken_transaction()
    ban = connection.__dict__.get("cursor")
    if ban is not None and type(ban).__name__ == "_DatabaseFailure":
        ban()
    if _connects(connection) is not None:
        # Test runners replace ensure_connection() to forbid the database: let them speak.
        connection.ensure_connection()


_pristine: Callable[..., Any] | None = None


def remember_pristine(ensure_connection: Callable[..., Any]) -> None:
    """Note Django's own ``BaseDatabaseWrapper.ensure_connection``."""
    global _pristine
    _pristine = ensure_connection


def _connects(connection: Any) -> Callable[..., Any] | None:
    """The replacement of ``ensure_connection``, if it was replaced."""
    method = getattr(type(connection), "ensure_connection", None)
    return None if method is _pristine else method


def is_guarded() -> bool:
    """Whether a test runner watches who connects to a database."""
    return BaseDatabaseWrapper.ensure_connection is not _pristine


def is_forbidden(alias: str) -> bool:
    """Whether a test case does not allow queries on ``alias``; it may raise when asked."""
    if not is_guarded():
        return False
    connection: Any = connections[alias]
    if type(connection.__dict__.get("cursor")).__name__ == "_DatabaseFailure":
        return True
    if connection.connection is None:
        try:
            connection.ensure_connection()
        except db.Error:
            return False
        except Exception as error:
            let_through(error)
            return True
    return False
