"""Whether what a connection reads is what others would read now.

An answer may come from the cache, or go there, only where each statement sees the latest commits
and nothing else: not in a snapshot, not what this transaction alone sees, not under a session
that was altered.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from django import db
from django.db.backends.signals import connection_created
from django.dispatch import Signal

from ormcache import sessions
from ormcache.connection_state import (
    ConnectionState,
    in_transaction,
    is_aborted,
    is_begun_unseen,
    is_open,
    is_pipelined,
    state_of,
)
from ormcache.interruptions import let_through
from ormcache.questions import ask
from ormcache.reasons import Reason
from ormcache.routers import health, schemas


def why_not_read(connection: Any, state: ConnectionState) -> Reason | None:
    """Why the state of the connection forbids answering from the cache, or None."""
    if connection.needs_rollback:
        return Reason.BROKEN_TRANSACTION
    if state.migrating:
        return Reason.MIGRATING
    if connection.vendor == "mysql" and _mysql_isolation(connection) == "read uncommitted":
        return Reason.READ_UNCOMMITTED
    if state.session is not None:
        return state.session
    if not state.is_path_known(connection) or sessions.is_spoilt(connection.alias):
        return Reason.SESSION
    if state.live_cursors:
        return Reason.SNAPSHOT
    if not in_transaction(connection, state):
        # Of a transaction that the driver began, nothing is known but that it is there.
        return Reason.UNSEEN if is_begun_unseen(connection) else None
    if is_aborted(connection):
        return Reason.BROKEN_TRANSACTION
    return state.until_end or _isolation(connection, state)


def holds_reads(connection: Any, state: ConnectionState) -> bool:
    """Whether what is read belongs on ``connection`` even if a replica could answer.

    Its transaction has written, holds locks, reads from a snapshot or has failed; or its session
    was altered, and nobody knows whether those of the replicas were.
    """
    if state.dirty or connection.needs_rollback or state.migrating or state.session is not None:
        return True
    if (state.search_path or state.path_in_doubt) and not (
        schemas.is_of_tenants(connection) and state.is_path_known(connection)
    ):
        return True
    if not in_transaction(connection, state):
        return is_begun_unseen(connection)
    if is_aborted(connection):
        return True
    return (state.until_end or _isolation(connection, state)) is not None


def prepare_session(connection: Any) -> bool:
    """Connect, if the session may turn out to be altered: by a receiver, or before, in a pool.

    A search path, a role or a variable of row-level security decides what a query sees: the
    answer must not be looked up before it is known. Raises what connecting raises.

    Returns whether it has connected, so that the route may be another.
    """
    if connection.connection is not None and state_of(connection).search_path:
        # The session that was told of it may be lost, and Django about to find out.
        connection.close_if_health_check_failed()
    if connection.connection is not None or not (
        sessions.may_be_altered(connection.alias) or _has_foreign_receivers()
    ):
        return False
    connection.ensure_connection()
    return True


def _has_foreign_receivers() -> bool:
    return any(
        not getattr(receiver, "__module__", "").startswith("django.")
        for receiver in _receivers(connection_created)
    )


def why_not_store(connection: Any, state: ConnectionState, path: str) -> Reason | None:
    """Why what the database has just answered must not be stored, or None.

    Connecting may have led to a session of which something else is known.

    Args:
        connection: an open one.
        state: its state.
        path: that of the state when the query was looked up.
    """
    reason = why_not_read(connection, state)
    if reason is None and state.path(connection) != path:
        return Reason.SESSION
    if reason is None and in_transaction(connection, state) and sessions.are_shared(connection):
        return _isolation_of_transaction(connection, state)
    return reason


def _receivers(signal: Signal) -> Iterator[object]:
    for _, reference, *_ in signal.receivers:
        is_weak = isinstance(reference, weakref.ReferenceType)
        yield reference() if is_weak else reference


def _mysql_isolation(connection: Any) -> str | None:
    if connection.connection is not None:
        level: str | None = connection.isolation_level
        return level
    level = (connection.settings_dict.get("OPTIONS") or {}).get(
        "isolation_level", "read committed"
    )
    return level.lower() if level else level


def _isolation(connection: Any, state: ConnectionState) -> Reason | None:
    """SNAPSHOT unless each statement of a transaction sees the latest commits."""
    if state.takes_snapshots or state.until_end is Reason.SNAPSHOT:
        return Reason.SNAPSHOT
    vendor = connection.vendor
    if vendor == "postgresql":
        # A level that was given to psycopg itself stays with the session, in a pool, too.
        for told in (connection, connection.connection):
            level = getattr(getattr(told, "isolation_level", None), "name", "READ_COMMITTED")
            if level not in ("READ_COMMITTED", "READ_UNCOMMITTED"):
                return Reason.SNAPSHOT
        return _postgresql_default(connection, state)
    if vendor == "mysql":
        return None if _mysql_isolation(connection) == "read committed" else Reason.SNAPSHOT
    if vendor == "oracle":
        return None
    # SQLite, and any database of which we do not know better.
    return Reason.SNAPSHOT


def _postgresql_default(connection: Any, state: ConnectionState) -> Reason | None:
    """Asked once per session: server, role and database may all set a stricter default."""
    if state.takes_snapshots is None and connection.connection is not None:
        try:
            ((level,),) = ask(connection, "SHOW default_transaction_isolation")
        except db.Error as error:
            health.note(connection, error)
            raise
        state.takes_snapshots = level not in ("read committed", "read uncommitted")
    return Reason.SNAPSHOT if state.takes_snapshots else None


def _isolation_of_transaction(connection: Any, state: ConnectionState) -> Reason | None:
    """Asked once per transaction: that of another may have run on another session."""
    if connection.vendor == "postgresql" and not state.isolation_known:
        ((level,),) = ask(connection, "SHOW transaction_isolation")
        state.isolation_known = True
        if level not in ("read committed", "read uncommitted"):
            state.until_end = Reason.SNAPSHOT
    return state.until_end


def is_undisturbed(connection: Any, state: ConnectionState) -> bool:
    """Whether a question of our own may be asked on ``connection`` without harm to the user's.

    Not in a transaction that is broken, that takes its snapshot from its first statement, or that
    was begun through the driver, so that nothing is known of it. Not in a pipeline, of which an
    error aborts all.
    """
    if connection.needs_rollback or connection.closed_in_transaction:
        return False
    if is_pipelined(connection):
        return False
    if connection.connection is None:
        return True
    if not in_transaction(connection, state):
        return not is_open(connection)
    if is_aborted(connection):
        return False
    return _isolation(connection, state) is None


def let_go_if_lost(connection: Any, state: ConnectionState) -> None:
    """Close a connection that a question of our own has found lost: the next opens a new one.

    In a transaction it is left for the user's own statements to find.
    """
    if connection.connection is not None and not in_transaction(connection, state):
        try:
            if not connection.is_usable():
                connection.close()
        except Exception as error:
            let_through(error)
