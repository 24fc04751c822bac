"""Writes in a transaction that was begun through the driver, which ends unseen as well.

``connection.connection.transaction()`` of psycopg, or ``BEGIN`` on a cursor of the driver: Django
takes the connection for one in autocommit, and each write for one that is committed when it
returns. PostgreSQL's and SQLite's drivers tell that it is not. Its tables stay announced until the
connection is seen idle, and so nobody is given or stores an answer about them meanwhile.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from ormcache.connection_state import ConnectionState, in_transaction, is_begun_unseen, is_open
from ormcache.leases import keeper


class _Held(NamedTuple):
    """Who began the transaction, and what it has written."""

    connection: weakref.ref[Any]
    driver: int
    """The ``id()`` of the driver's connection: after a reconnect it is another."""
    state: ConnectionState


held: dict[int, _Held] = {}
"""The transactions of this process that have written, by ``id()`` of their state."""
# For the same thread not exclusive: the handler of a signal may read and write, too.
_lock = threading.RLock()


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    held.clear()


# What the parent has announced, the parent ends.
os.register_at_fork(after_in_child=_forget)


def hold(connection: Any, state: ConnectionState, bracket: Any) -> None:
    """Keep ``bracket`` open: what it announces is not committed yet."""
    with _lock:
        state.unseen.append(bracket)
        held[id(state)] = _Held(weakref.ref(connection), id(connection.connection), state)


def settle(connection: Any, state: ConnectionState) -> None:
    """End the brackets, if the connection is idle again. To be called in its own thread."""
    if not (is_begun_unseen(connection) or in_transaction(connection, state)):
        one = held.get(id(state))
        is_same = one is not None and one.driver == id(connection.connection)
        # Of one that was lost, a COMMIT may still be on its way.
        left(state, known=is_same and is_open(connection) is False)


def left(
    state: ConnectionState, *, known: bool, unless: Callable[[], bool] = lambda: False
) -> None:
    """The transaction is over, or its connection closed. ``known``: nothing is to come of it.

    ``unless``: whether it is not, asked when nobody can add to it.
    """
    with _lock:
        if unless():
            return
        brackets, state.unseen = state.unseen, []
        held.pop(id(state), None)
    for bracket in brackets:
        bracket.end(known=known)


def sweep() -> None:
    """Leave to their leases the brackets of transactions that seem over, of whatever thread.

    A thread may have ended, or never use its connection again. Seen from another one, SQLite is
    idle when its COMMIT has begun; the lease covers the rest of that.
    """
    for one in list(held.values()):
        left(one.state, known=False, unless=functools.partial(_is_open, one))


def sweep_before_renewal() -> None:
    """As :func:`sweep`, where nobody here may ever read what others wait for.

    Not on SQLite, of which another thread cannot tell when a COMMIT is over.
    """
    for one in list(held.values()):
        connection = one.connection()
        if connection is None or connection.vendor != "sqlite":
            left(one.state, known=False, unless=functools.partial(_is_open, one))


keeper.before_renewal = sweep_before_renewal


def _is_open(one: _Held) -> bool:
    connection = one.connection()
    if held.get(id(one.state)) is not one:
        # It has written again.
        return True
    return (
        connection is not None
        and id(connection.connection) == one.driver
        and is_begun_unseen(connection, is_own=False)
    )
