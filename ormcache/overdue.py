"""Commits whose lease has run out, on PostgreSQL: the database tells whether they are over.

A writer may have been stopped between its announcement and its COMMIT, for longer than any lease.
Its transaction had an id by then. (One that was begun through the driver may get it later, and is
announced again when it has: :meth:`ormcache.brackets.Bracket.confirm`.) So a reader that finds it
overdue takes an id of its own, the *horizon*: it is higher. When no transaction with a lower id is
running any more, prepared ones included, the writer's is over, and its announcement is removed.

The horizon has to be an id that was given out: what a snapshot calls its end is one past the last
transaction that is *over*, and the writer's id may be that very number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django.db import connections

from ormcache.connection_state import ConnectionState, in_transaction, state_of
from ormcache.exceptions import CacheError
from ormcache.interruptions import let_through
from ormcache.questions import ask
from ormcache.routers.namespaces import Route
from ormcache.snapshots import is_undisturbed, let_go_if_lost
from ormcache.stores import EVERYTHING, Breaker

_HORIZON = "SELECT pg_current_xact_id()::text"
_OLDEST = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_PAUSE = 0.5
"""Seconds between two attempts of a process for one namespace."""

_tried: dict[str, float] = {}
"""When that was last, by namespace, on the monotonic clock."""
_breakers: dict[str, Breaker] = {}
"""Of the databases that are asked, by alias."""


def settle(connection: Any, route: Route, registers: Sequence[str]) -> bool:
    """Find out whether overdue commits are over, and tell the cache. Raises nothing.

    In a transaction that is left until its end: it would get an id, and be one of those that are
    waited for.

    Args:
        connection: that of a read, which the cache could not answer for this reason.
        route: that of the read.
        registers: of the read.

    Returns whether the cache has been told what the database says, and may answer now.
    """
    if route.lags_behind is not None:
        connection = connections[route.lags_behind]
    state = state_of(connection)
    if connection.vendor != "postgresql":
        return False
    if in_transaction(connection, state):
        if state.afterwards is None:
            state.afterwards = lambda: _settle(connection, state, route, registers)
        return False
    return _settle(connection, state, route, registers)


def _settle(
    connection: Any, state: ConnectionState, route: Route, registers: Sequence[str]
) -> bool:
    now = time.monotonic()
    store = route.store
    if store is None or now - _tried.get(route.namespace, -_PAUSE) < _PAUSE:
        return False
    breaker = _breakers.setdefault(connection.alias, Breaker())
    if not (is_undisturbed(connection, state) and breaker.allows() and route.breaker.allows()):
        return False
    _tried[route.namespace] = now
    try:
        # Before the database is asked: this may take long, and intents become overdue meanwhile.
        moment = store.moment()
        ids = _ask(connection, state, breaker)
        if ids is not None:
            tables = list(dict.fromkeys((EVERYTHING, *registers)))
            store.settle(route.namespace, tables, moment, *ids)
    except CacheError:
        route.breaker.failed()
        return False
    route.breaker.succeeded()
    return ids is not None


def _ask(connection: Any, state: ConnectionState, breaker: Breaker) -> tuple[int, int] | None:
    """The horizon, and the oldest id that is running; None if the database does not tell."""
    try:
        connection.ensure_connection()
        ((horizon,),) = ask(connection, _HORIZON)
        ((oldest,),) = ask(connection, _OLDEST)
    except Exception as error:
        let_through(error)
        # Out of reach, or forbidden by a test case: it is no reason for the read to fail.
        breaker.failed()
        let_go_if_lost(connection, state)
        return None
    breaker.succeeded()
    return int(horizon), int(oldest)
