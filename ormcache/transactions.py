"""The methods of a connection that end its transaction or begin a session.

What was written becomes visible to others here: :mod:`~ormcache.brackets` tells the cache
before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django import db

from ormcache import brackets, sessions, unseen
from ormcache.brackets import Bracket, Brackets
from ormcache.connection_state import (
    ConnectionState,
    in_transaction,
    is_aborted,
    is_begun_unseen,
    state_of,
)
from ormcache.questions import ask
from ormcache.routers import health
from ormcache.snapshots import is_undisturbed


def commit(original: Callable[[], None], connection: Any) -> None:
    """``BaseDatabaseWrapper.commit``: the bracket ends before Django runs on_commit hooks."""
    _publish(original, connection, lambda: False)


def _publish(
    operation: Callable[[], None], connection: Any, has_published: Callable[[], bool]
) -> None:
    """Run ``operation``, which commits what the connection has written.

    ``has_published``: whether it did so though it raised an error.
    """
    state = state_of(connection)
    if connection.in_atomic_block:
        # Django refuses to commit there.
        operation()
        return
    bracket = _announce_commit(connection, state) if state.dirty else None
    was_aborted = is_aborted(connection)
    try:
        operation()
    except BaseException as error:
        if has_published():
            state.ended()
        if bracket is not None:
            bracket.end(known=has_published() or brackets.outcome_is_known(connection, error))
        raise
    if was_aborted:
        # The server has answered ROLLBACK.
        state.rolled_back(connection)
    state.ended()
    if bracket is not None:
        bracket.end()


def _announce_commit(connection: Any, state: ConnectionState) -> Bracket | Brackets:
    try:
        fencing = brackets.fence_open_transaction(connection, state)
        return brackets.announce(connection, state, state.dirty, fencing)
    except db.DatabaseError:
        # atomic() rolls back for these; by hand it is the caller's choice.
        raise
    except BaseException:
        # For any other error atomic() goes on to set_autocommit(True), and MySQL and SQLite
        # would commit there what was never announced.
        connection.rollback()
        raise


def rollback(original: Callable[[], None], connection: Any) -> None:
    """``BaseDatabaseWrapper.rollback``: nothing was announced, so nothing is to be told."""
    original()
    state_of(connection).rolled_back(connection)


def close(original: Callable[[], None], connection: Any) -> None:
    """``BaseDatabaseWrapper.close``: the server rolls back and forgets what it was told.

    Not left to connect(): a read is looked up before it may have to connect.
    """
    state, driver = state_of(connection), connection.connection
    if driver is not None:
        # Before another thread can get it from the pool.
        sessions.keep(connection.alias, driver, state.told(connection))
    try:
        original()
    finally:
        if connection.connection is None or connection.closed_in_transaction:
            state.connected()
            if state.unseen:
                # A server that was lost may still be at work on a COMMIT.
                unseen.left(state, known=connection.vendor == "sqlite")
        if driver is not None:
            sessions.forget(connection.alias, driver)


def connect(original: Callable[[], None], connection: Any) -> None:
    """``BaseDatabaseWrapper.connect``: a new session, or one from a pool."""
    state = state_of(connection)
    state.connected()
    try:
        original()
    except (db.Error, connection.Database.Error):
        health.failed(connection.alias)
        raise
    health.connected(connection.alias)
    if state.is_new:
        # A backend with a connect() of its own.
        _begin_session(connection, state)


def set_autocommit(original: Callable[[], None], connection: Any, autocommit: bool) -> None:
    """``BaseDatabaseWrapper.set_autocommit``: True commits what is open on MySQL and SQLite."""
    state = state_of(connection)
    was_on = connection.autocommit
    if (
        connection.connection is None
        or not autocommit
        or (was_on and connection.vendor == "mysql")
    ):
        # MySQL goes on with a transaction that was begun as SQL.
        original()
    else:
        # Then Django runs the hooks of an earlier commit().
        _publish(original, connection, lambda: connection.autocommit and not was_on)
        afterwards, state.afterwards = state.afterwards, None
        if afterwards is not None and is_undisturbed(connection, state):
            afterwards()
    if state.is_new:
        # Called by connect(), before Django and receivers tell the session anything.
        _begin_session(connection, state)


def _begin_session(connection: Any, state: ConnectionState) -> None:
    if connection.connection is None:
        return
    state.recall(connection.connection)
    if connection.vendor == "postgresql" and connection.autocommit:
        _meet_server(connection)
    options = connection.settings_dict.get("OPTIONS") or {}
    if options.get("assume_role") and sessions.are_shared(connection):
        # Django is about to set the role, of one session among others.
        sessions.spoil(connection)


def _meet_server(connection: Any) -> None:
    """Find out, once per process, whether there is a pooler in front of the server."""
    if sessions.is_settled(connection):
        return
    try:
        ((number,),) = ask(connection, "SELECT pg_backend_pid()")
    except db.Error:
        # The user's own statement will tell what is wrong.
        return
    sessions.meet(connection, number)


def touch(connection: Any, tables: Iterable[str]) -> None:
    """Invalidate ``tables`` of ``connection`` now and, in a transaction, at its commit.

    Raises CacheUnreachable as :func:`announce` does.
    """
    state = state_of(connection)
    names = set(tables)
    if in_transaction(connection, state):
        state.wrote(connection, names)
    elif is_begun_unseen(connection):
        unseen.hold(connection, state, brackets.announce(connection, state, names))
        return
    brackets.bracketed(connection, state, names, lambda: None)
