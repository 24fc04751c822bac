"""Whether what a replica answers is current enough to be stored.

A replica shares the registers of its primary, but may not have replayed the commits that these
registers have already seen: stored under a clean register, its rows would be served as current.
So an answer of a replica is stored only if it has replayed at least as far as the primary had
written *after* the registers were read, asked before the query runs. (Rule "lsn" of the protocol;
the position is asked for by the first reader that meets a register, and remembered with it.)

Where the servers tell no positions, ``MAX_LAG`` declares by how much a replica lags at most: an
answer is stored only if the registers were seen unchanged for so long.

A hit needs none of this: its registers are the primary's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from django import db
from django.db import connections

from ormcache.connection_state import ConnectionState, in_transaction, state_of
from ormcache.interruptions import let_through
from ormcache.questions import savepoint
from ormcache.reasons import Reason
from ormcache.routers import health, positions
from ormcache.routers.namespaces import Route
from ormcache.routers.positions import Position, PositionUnknown
from ormcache.snapshots import is_undisturbed, let_go_if_lost
from ormcache.stores import EVERYTHING, Breaker

_REGISTERS_LIMIT = 10_000


class _Seen(NamedTuple):
    """A register as this process has met it."""

    value: str
    at: float
    """When it was first met, on the monotonic clock."""
    needed: Position | None
    """How far the primary had written some time after that; None if nobody had to know."""


_seen: dict[tuple[str, str], _Seen] = {}
_breakers: dict[str, Breaker] = {}
_telling: set[str] = set()
"""Aliases of servers that have told their position before."""

reached: dict[str, Position] = {}
"""How far each replica was when any thread asked it last, by alias."""


def why_not_store(
    connection: Any, state: ConnectionState, route: Route, tables: Sequence[str], vector: str
) -> Reason | None:
    """Why the answer that ``connection`` is about to give must not be stored, or None.

    Call it after the registers were read and before the query runs, and :func:`has_moved` when
    it has run.

    Args:
        connection: of any alias; only those that lag behind their primary matter.
        state: its state.
        route: its route.
        tables: the tables of the query.
        vector: their registers, from :class:`ormcache.stores.Lookup`.
    """
    if route.lags_behind is None:
        return None
    registers = _registers(route.namespace, tables, vector)
    if registers is None:
        return Reason.REPLICA_UNKNOWN
    if route.max_lag is not None:
        now = time.monotonic()
        since = max(_meet(place, value, now).at for place, value in registers)
        return None if now - since >= route.max_lag else Reason.REPLICA_BEHIND
    try:
        needed = [_needed(place, value, route.lags_behind) for place, value in registers]
        if all(map(_replayed(connection, state).includes, needed)):
            return None
        # Not far enough when it was asked last.
        state.replayed = None
        if all(map(_replayed(connection, state).includes, needed)):
            return None
    except PositionUnknown:
        return Reason.REPLICA_UNKNOWN
    return Reason.REPLICA_BEHIND


def _registers(
    namespace: str, tables: Sequence[str], vector: str
) -> list[tuple[tuple[str, str], str]] | None:
    """The registers of a vector; None if another program has written a ";" into one."""
    places = [(namespace, table) for table in (EVERYTHING, *tables)]
    values = vector.split(";")[1:]
    return list(zip(places, values, strict=True)) if len(values) == len(places) else None


def _meet(place: tuple[str, str], value: str, now: float) -> _Seen:
    seen = _seen.get(place)
    if seen is None or seen.value != value:
        if len(_seen) > _REGISTERS_LIMIT:
            _seen.clear()
        seen = _seen[place] = _Seen(value, now, None)
    return seen


def _needed(place: tuple[str, str], value: str, primary: str) -> Position:
    """How far a replica must be to show all commits that led to this value of a register."""
    seen = _meet(place, value, time.monotonic())
    if seen.needed is None:
        # The register has been read, so the commits before it are visible on the primary.
        seen = _seen[place] = seen._replace(needed=written(primary))
    assert seen.needed is not None
    return seen.needed


def written(primary: str) -> Position:
    """How far the primary has written. Raises PositionUnknown, also if it does not answer."""
    breaker = _breakers.setdefault(primary, Breaker())
    connection: Any = connections[primary]
    state = state_of(connection)
    try:
        if not is_undisturbed(connection, state) or not breaker.allows():
            raise PositionUnknown
        connection.ensure_connection()
        with _without_risk(connection, state):
            position = positions.written(connection)
    except PositionUnknown:
        raise
    except Exception as error:
        let_through(error)
        # Unreachable, or forbidden by a test case: it is no reason for the read to fail.
        breaker.failed()
        let_go_if_lost(connection, state)
        raise PositionUnknown from error
    breaker.succeeded()
    _telling.add(primary)
    return position


def shows(connection: Any, state: ConnectionState, position: Position, *, patience: float) -> bool:
    """Whether a query on the replica behind ``connection`` sees all up to ``position``.

    Asks it unless its last answer is enough, or was given less than ``patience`` seconds ago.

    Raises:
        PositionUnknown: it does not tell.
        django.db.Error: it cannot be connected to.
    """
    if state.replayed is not None and state.replayed.includes(position):
        return True
    if time.monotonic() - state.asked_at < patience:
        return False
    state.replayed = None
    return _replayed(connection, state).includes(position)


def _replayed(connection: Any, state: ConnectionState) -> Position:
    """How far the replica is, at least, on this very connection.

    Kept on the connection: behind a load balancer the next one may lead to another server.
    """
    if state.replayed is None:
        if not is_undisturbed(connection, state):
            raise PositionUnknown
        connection.ensure_connection()
        state.asked_at = time.monotonic()
        try:
            with _without_risk(connection, state):
                state.replayed = reached[connection.alias] = positions.replayed(connection)
        except db.Error as error:
            health.note(connection, error)
            raise PositionUnknown from error
        _telling.add(connection.alias)
    return state.replayed


def _without_risk(connection: Any, state: ConnectionState) -> AbstractContextManager[None]:
    """The first question to a server may be an error, which must not abort a transaction."""
    is_risky = connection.alias not in _telling and in_transaction(connection, state)
    return savepoint(connection) if is_risky else nullcontext()


def has_moved(state: ConnectionState, route: Route) -> bool:
    """Whether the query may have gone to another replica than :func:`why_not_store` asked.

    Django's health check replaces a lost connection just before the statement is sent.
    """
    # A new connection begins without a position.
    return route.lags_behind is not None and route.max_lag is None and state.replayed is None
