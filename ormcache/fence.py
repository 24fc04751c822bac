"""The fence: a table in which other programs say, in SQL, what they have written.

``INSERT INTO ormcache_fence (table_name) VALUES ('shop_book')``, by hand or by a trigger, is
committed together with what it announces, or not at all; it needs no client of the cache. Each
process that answers from the cache looks into the table every ``ORMCACHE["FENCE"]`` seconds. What
it finds there it makes invalid, for all processes, and removes. A process that cannot reach the
cache announces its own writes in the same way (policy "fence").

So an answer is older than such a write by that time at most: a row that was committed before a
process looked is seen, and a process that has not looked for longer does not answer from the
cache.
The rows are compared as a set, since ids are not committed in their order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

from django import db
from django.apps import apps
from django.db import connections

from ormcache import fence_rows, relations, sql
from ormcache import tables as table_names
from ormcache.conf import Inherited, Settings, current
from ormcache.connection_state import ConnectionState, in_transaction, state_of
from ormcache.debts import owed
from ormcache.exceptions import CacheError, NoFence
from ormcache.fence_rows import TABLE, Found
from ormcache.interruptions import let_through
from ormcache.questions import ask, savepoint, tell
from ormcache.reasons import Reason
from ormcache.routers import schemas
from ormcache.routers.namespaces import Route
from ormcache.snapshots import is_undisturbed, let_go_if_lost, why_not_read
from ormcache.stores import EVERYTHING, Breaker

_logger = logging.getLogger("ormcache")
_ROWS = f"SELECT id, table_name, created FROM {TABLE}"
# SQLite keeps in a column what somebody puts there: Django would convert it, which may fail.
_ROWS_OF_SQLITE = f"SELECT id, table_name, CAST(created AS BLOB) FROM {TABLE}"

_PLACES_LIMIT = 1000
_LONGEST_PLAIN = 130
_LONGEST = 64
"""Bytes, of a name: what is longer stands for all tables. Some caches take it twice as long."""
_SILENCE = 60.0
"""Seconds between two warnings of the same kind."""
_AT_ONCE = 1000
"""How many rows are removed by one statement."""
_WAITS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "sqlite": ("PRAGMA busy_timeout", "PRAGMA busy_timeout = {}", (0,)),
    # Seconds, of which MySQL takes no less than one.
    "mysql": (
        "SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout",
        "SET lock_wait_timeout = {}, innodb_lock_wait_timeout = {}",
        (1, 1),
    ),
}
"""How long a session waits for a lock: how to ask, how to set it, and the least."""


_THERE = {
    "postgresql": (
        "SELECT 1 FROM pg_catalog.pg_class "
        "WHERE lower(relname) = %s AND relkind IN ('r', 'p', 'v', 'm', 'f') LIMIT 1"
    ),
    "sqlite": "SELECT 1 FROM sqlite_master WHERE lower(name) = ? AND type IN ('table', 'view')",
    "mysql": (
        "SELECT 1 FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND lower(table_name) = %s"
    ),
}
"""Whether there is a table of a name, which is in lower case."""
_there: set[tuple[str, str]] = set()
"""Namespaces and names of tables that no model has, but the database."""


_Row = tuple[Any, ...]
"""Of the table: id, name of a table and time. The id alone may come back after a TRUNCATE."""


class _Look(NamedTuple):
    """What a process saw when it last looked into the fence of one namespace."""

    at: float
    """When it began to look, on the monotonic clock."""
    is_there: bool
    """Whether there is such a table."""
    told: frozenset[_Row]
    """The rows that were still there though it has told the cache of them."""
    doubtful: Mapping[_Row, object]
    """Rows that it has told of, but has seen in one transaction only, and in which.

    They may be that transaction's own, and not committed yet: then they were told too early.
    """
    refused: Reason | None = None
    """Why nothing could be seen: not to be asked for each read, where that will be so again."""


_looks: dict[tuple[object, ...], _Look] = {}
"""By namespace and by what decides in which schema the table is found."""
_breakers: dict[str, Breaker] = {}
"""Of primaries that are asked for their replicas' sake, by alias."""


def why_not_trust(
    connection: Any, route: Route, settings: Settings, *, at_once: bool = False
) -> Reason | None:
    """Why the cache may not be believed just now, as far as the fence tells; None if it may.

    Looks into the fence if that is due, or in any case ``at_once``, on ``connection`` or, for a
    replica, on its primary's.
    Call it after :func:`ormcache.snapshots.why_not_read`.
    """
    interval = settings.fence_interval
    if interval is None:
        return None
    # As is_looked_into(), without a call: this is asked at every hit.
    if isinstance(settings.FENCE, Inherited) and (
        route.store is None or not route.store.is_remote
    ):
        # Nobody writes there because the cache is out of reach.
        return None
    now = time.monotonic()
    if route.lags_behind is not None:
        connection = connections[route.lags_behind]
    state = state_of(connection)
    last = _looks.get(_place(connection, state, route))
    if last is not None and not at_once and now - last.at < interval:
        return last.refused
    if route.breaker.is_waiting:
        # Nothing could be told, and nothing is going to be answered.
        return Reason.CACHE_UNREACHABLE
    if route.lags_behind is not None:
        return _look_on_primary(connection, state, route, now)
    try:
        if not is_undisturbed(connection, state):
            return Reason.FENCE
        return _look(connection, state, route, now)
    except db.Error:
        # What is the matter, the query itself will say.
        return Reason.FENCE


def status(connection: Any, route: Route, settings: Settings) -> str | None:
    """What there is to know of the fence, for ``manage.py ormcache status``; asks the database.

    None where nobody looks. Raises nothing.
    """
    if not is_looked_into(route, settings):
        return None
    if route.lags_behind is not None:
        connection = connections[route.lags_behind]
    try:
        connection.ensure_connection()
        if schemas.is_of_tenants(connection):
            connection.cursor().close()
        found = fence_rows.look_for(connection)
    except Exception as error:
        let_through(error)
        return f"the database {connection.alias!r} does not answer: {error}".rstrip()
    if found is Found.NOWHERE:
        return f"table {TABLE} is missing, run `manage.py migrate ormcache`"
    if found is Found.HIDDEN:
        return f"table {TABLE} is in a schema in which this connection does not look"
    try:
        with savepoint(connection) if connection.in_atomic_block else nullcontext():
            ask(connection, f"SELECT 1 FROM {TABLE} WHERE 1 = 0")
    except db.Error as error:
        return f"nothing is cached, because this role cannot read {TABLE}: {error}".rstrip()
    looked = f"looked into every {settings.fence_interval:g} s"
    if route.on_failure == "fence":
        try:
            fence_rows.check(connection, route.namespace)
        except NoFence as why:
            return f"{looked}, but writes are refused while the cache is down: {why}"
    return looked


def is_looked_into(route: Route, settings: Settings) -> bool:
    """Whether anybody hears of a row in the fence."""
    if settings.fence_interval is None:
        return False
    # Left to the policy, nobody writes there because a cache of this process is out of reach.
    is_remote = route.store is not None and route.store.is_remote
    return is_remote or not isinstance(settings.FENCE, Inherited)


def _place(connection: Any, state: ConnectionState, route: Route) -> tuple[object, ...]:
    return (
        route.namespace,
        connection.alias,
        schemas.named(connection),
        state.path(connection),
    )


def _look_on_primary(
    connection: Any, state: ConnectionState, route: Route, now: float
) -> Reason | None:
    """What :func:`_look` says, for a replica. Raises nothing."""
    breaker = _breakers.setdefault(connection.alias, Breaker())
    try:
        if why_not_read(connection, state) or not is_undisturbed(connection, state):
            # It may show what is not committed, or not show what is.
            return Reason.FENCE
        if not breaker.allows():
            return Reason.FENCE
        reason = _look(connection, state, route, now)
    except Exception as error:
        let_through(error)
        # Unreachable, or forbidden by a test case: it is no reason for the read to fail.
        breaker.failed()
        let_go_if_lost(connection, state)
        return Reason.FENCE
    breaker.succeeded()
    return reason


def _look(connection: Any, state: ConnectionState, route: Route, now: float) -> Reason | None:
    """Look into the fence. Raises ``django.db.Error``, and what connecting raises."""
    place = _place(connection, state, route)
    last = _looks.get(place)
    connection.ensure_connection()
    if schemas.is_of_tenants(connection):
        # It sets the search path, which is that of another tenant until then.
        connection.cursor().close()
    is_inside = in_transaction(connection, state)
    try:
        if last is None or not last.is_there:
            found = fence_rows.look_for(connection)
            if found not in (Found.ONE, Found.SEVERAL):
                return _without_table(found, place, now)
        with savepoint(connection) if is_inside else nullcontext():
            rows = _rows(connection)
    except db.Error:
        if last is not None and last.is_there:
            # The table may have been dropped, or the connection lost: look again.
            _looks.pop(place, None)
        else:
            # This role may not read it, say.
            _note(place, _refusal(now, Reason.FENCE))
        raise
    told, doubtful = (last.told, last.doubtful) if last is not None else (frozenset(), {})
    named = {row[1] for row in rows if row not in told}
    if not _tell(connection, route, named, is_inside=is_inside):
        return Reason.CACHE_UNREACHABLE
    if is_inside:
        # Another set for each transaction.
        whose = state.dirty
        doubtful = {
            row: whose for row in rows if row not in told and doubtful.get(row, whose) is whose
        }
        _remove_afterwards(connection, state, [row[0] for row in rows if row not in doubtful])
    else:
        doubtful = {}
        if rows and _remove(connection, [row[0] for row in rows]):
            rows = []
    _note(place, _Look(now, True, frozenset(rows) - doubtful.keys(), doubtful))
    return None


def _rows(connection: Any) -> list[_Row]:
    """The rows of the table. Raises ``django.db.Error``."""
    try:
        return ask(connection, _ROWS_OF_SQLITE if connection.vendor == "sqlite" else _ROWS)
    except (ArithmeticError, ValueError) as error:
        # A driver that has no value for what somebody has put there, such as a time without end.
        raise db.DataError(*error.args) from error


def _without_table(found: Found, place: tuple[object, ...], now: float) -> Reason | None:
    """What :func:`_look` says where there is no table to look into."""
    if found is Found.HIDDEN or not isinstance(current().FENCE, Inherited):
        _note(place, _refusal(now, Reason.NO_FENCE))
        return Reason.NO_FENCE
    # Nobody can have written there. Without the table, a write is refused while the cache is out
    # of reach.
    _note(place, _Look(now, False, frozenset(), {}))
    return None


def _refusal(now: float, reason: Reason) -> _Look:
    return _Look(now, False, frozenset(), {}, reason)


def _remove_afterwards(connection: Any, state: ConnectionState, ids: list[int]) -> None:
    """Remove rows when the transaction is over: inside, that would be undone with it, or wait."""
    if ids:

        def remove() -> None:
            if connection.connection is not None:
                _remove(connection, ids)

        state.afterwards = remove


def _note(place: tuple[object, ...], look: _Look) -> None:
    if len(_looks) > _PLACES_LIMIT:
        _looks.clear()
    _looks[place] = look


def _tell(connection: Any, route: Route, names: Collection[Any], *, is_inside: bool) -> bool:
    """Make the tables invalid for all; returns whether the cache has heard it."""
    if not names:
        return True
    if route.store is None or not route.breaker.allows():
        return False
    tables = _tables(connection, route, names, is_inside=is_inside)
    try:
        route.store.bump(route.namespace, [EVERYTHING] if EVERYTHING in tables else sorted(tables))
    except CacheError:
        route.breaker.failed()
        return False
    route.breaker.succeeded()
    return True


def _tables(
    connection: Any, route: Route, names: Iterable[Any], *, is_inside: bool
) -> Collection[str]:
    """The tables that are meant, and what is written with them, by a trigger for example."""
    known, found = _known_tables(), set()
    for name in names:
        if not _may_be_a_table(name):
            return {EVERYTHING}
        # Columns of a fixed length pad what is in them.
        meant = _meant(name.strip())
        if EVERYTHING in meant:
            return {EVERYTHING}
        if meant.isdisjoint(known) and not _is_there(connection, route, meant, is_inside):
            # A name that is misspelt announces a write, too.
            _warn_of_name(name)
            return {EVERYTHING}
        found |= meant
    return relations.written_with(found, current().WRITES)


def _may_be_a_table(name: Any) -> bool:
    """Whether it is a text, and short enough, with a schema in front, for the keys of all caches.

    SQLite keeps bytes in a column of text.
    """
    if not isinstance(name, str):
        return False
    return len(name.encode()) <= (_LONGEST_PLAIN if name.isascii() else _LONGEST)


def _meant(name: str) -> set[str]:
    """The tables that may be meant by a name: with a schema, or ``app.Model``."""
    # What stands before a dot may be a schema, or a part of the name.
    found = {sql.table_name(name), sql.fold(name.rpartition(".")[2])}
    with suppress(LookupError, ValueError):
        found |= relations.family(apps.get_model(name))
    return found


def _known_tables() -> set[str]:
    """Those of models, those that a query has read, and those of which the settings know."""
    settings = current()
    declared = {
        sql.fold(name)
        for option in (settings.DEPENDS_ON, settings.WRITES)
        for key, names in option.items()
        for name in (key, *names)
    }
    return declared.union(table_names.known.names())


def _is_there(connection: Any, route: Route, names: set[str], is_inside: bool) -> bool:
    """Whether the database has a table of one of these names, such as a partition."""
    if not _there.isdisjoint((route.namespace, name) for name in names):
        return True
    question = _THERE.get(connection.vendor)
    if question is None:
        return False
    try:
        with savepoint(connection) if is_inside else nullcontext():
            found = {
                (route.namespace, name) for name in names if ask(connection, question, (name,))
            }
    except db.Error:
        return False
    if len(_there) > _PLACES_LIMIT:
        _there.clear()
    _there.update(found)
    return bool(found)


def rows(alias: str) -> list[int]:
    """The rows that are there before all is made invalid, for :func:`remove`. Raises nothing.

    None where nothing must be removed: where nobody looks, in a transaction, or with a cache of
    this process only.
    """
    settings = current()
    connection: Any = connections[alias]
    state = state_of(connection)
    route = state.route(connection, settings)
    if settings.fence_interval is None:
        return []
    if route.store is None or not route.store.is_remote or in_transaction(connection, state):
        return []
    try:
        connection.ensure_connection()
        if not is_undisturbed(connection, state):
            return []
        if fence_rows.look_for(connection) not in (Found.ONE, Found.SEVERAL):
            return []
        return [row[0] for row in _rows(connection)]
    except Exception as error:
        let_through(error)
        # Nobody has come for the rows.
        return []


def remove(alias: str, ids: Sequence[int]) -> None:
    """Remove the rows, now that all is invalid, unless the cache is still to be told."""
    connection: Any = connections[alias]
    route = state_of(connection).route(connection, current())
    if ids and EVERYTHING not in owed(route):
        _remove(connection, ids)


def _remove(connection: Any, ids: Sequence[int]) -> bool:
    """Remove rows that the cache was told of; if that fails, they are only in the way."""
    try:
        with _without_waiting(connection) as in_front:
            for start in range(0, len(ids), _AT_ONCE):
                some = ", ".join(map(str, ids[start : start + _AT_ONCE]))
                tell(connection, f"{in_front}DELETE FROM {TABLE} WHERE id IN ({some})")
    except db.Error as error:
        _warn(connection.alias, error)
        return False
    return True


_warned: dict[str, float] = {}
"""When it was last said of an alias that rows cannot be removed, on the monotonic clock."""


def _warn(alias: str, error: Exception) -> None:
    now = time.monotonic()
    if now - _warned.get(alias, -_SILENCE) >= _SILENCE:
        _warned[alias] = now
        _logger.warning("Rows of %s could not be removed: %s", TABLE, error)


_unknown: set[str] = set()
"""Names that no table has, of which it was said already."""


def _warn_of_name(name: str) -> None:
    if name in _unknown:
        return
    if len(_unknown) > _PLACES_LIMIT:
        _unknown.clear()
    _unknown.add(name)
    _logger.warning(
        "A row of %s names %r, which no table is known as: everything was made invalid. If a "
        'model is meant, write the name of its table, or "app.Model".',
        TABLE,
        name,
    )


@contextmanager
def _without_waiting(connection: Any) -> Iterator[str]:
    """A read must not wait for those who have locked the table, such as a dump.

    Gives what has to stand in front of each statement.
    """
    if connection.vendor == "postgresql":
        # Over with the text, which is one transaction: the session may be a pooler's.
        yield "SET LOCAL lock_timeout = 50; "
        return
    question, setting, least = _WAITS[connection.vendor]
    (usual,) = ask(connection, question)
    tell(connection, setting.format(*least))
    try:
        yield ""
    finally:
        tell(connection, setting.format(*usual))
