"""What a connection has written and not committed, and the bracket around its commit.

State lives on the connection object, as Django's own does: it is as private to a thread as the
connection is, and a BEGIN that fails leaves nothing behind. Tables are added before the
statement runs and leave only when the transaction ends: a savepoint that is rolled back removes
nothing, which at worst invalidates a table in vain.

The bracket: announce the commit to the cache (*arm*), let the database commit, report the end
(*finish*). Readers that meet the announcement ask the database and store nothing. Only *arm* is
vital, so a crash at any point after it costs one lease of caching and no truth.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from django import db
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.signals import connection_created
from django.dispatch import Signal

from ormcache import counters, fence_rows, sessions
from ormcache.conf import Settings, current
from ormcache.cursors import LiveCursors
from ormcache.exceptions import CacheError, CacheTimeout, CacheUnreachable, NoFence
from ormcache.leases import keeper
from ormcache.questions import ask
from ormcache.reasons import Reason
from ormcache.routers import chosen, groups, health, pins, schemas, tenancy
from ormcache.routers.namespaces import Route, basis, route
from ormcache.routers.positions import Position
from ormcache.sessions import Told
from ormcache.signals import tables_invalidated
from ormcache.stores import EVERYTHING, Store, generation
from ormcache.stores.base import new_nonce, new_transaction

_T = TypeVar("_T")

Fencing = Callable[[Sequence[str]], None]
"""Announces tables in the fence, at once or with the transaction that it begins.

Raises NoFence if it cannot."""
_ATTRIBUTE = "_ormcache"
_ATTEMPTS = 3


class ConnectionState:
    """What ormcache knows of one connection."""

    __slots__ = (
        "_basis",
        "_route",
        "afterwards",
        "asked_at",
        "dirty",
        "expected",
        "is_new",
        "isolation_known",
        "live_cursors",
        "manual",
        "migrating",
        "overridden",
        "path_in_doubt",
        "path_set_here",
        "places",
        "replayed",
        "search_path",
        "session",
        "takes_snapshots",
        "until_end",
    )

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        """Registers of what was written in the transaction that is open."""
        self.manual = False
        """Whether a BEGIN was sent as SQL, which Django's flags do not show."""
        self.until_end: Reason | None = None
        """Why this transaction reads from the database until it ends."""
        self.expected: Bracket | None = None
        """An announcement made ahead of its statement, see :func:`expect`."""
        self.afterwards: Callable[[], None] | None = None
        """What is left to be done when the connection is in autocommit again. Raises nothing."""
        self.migrating = False
        """Whether a migration is under way, through whatever number of sessions."""
        self._route: Route | None = None
        self._basis: tuple[object, ...] = ()
        self.connected()

    def connected(self) -> None:
        """A new session: whatever the old one was told is forgotten, as is its transaction."""
        self.ended()
        self.is_new = True
        """Whether a pool may know more of the session than this."""
        self.session: Reason | None = None
        """Why this session is not cached any more."""
        self.search_path = ""
        """The last SET search_path, as its text."""
        self.path_in_doubt = False
        self.path_set_here = False
        self.overridden: object = None
        """See :func:`ormcache.routers.schemas.follows_attributes`."""
        self.takes_snapshots: bool | None = None
        """Whether transactions read from a snapshot though Django's settings do not say so."""
        self.replayed: Position | None = None
        """How far the replica behind this session was when it was last asked."""
        self.asked_at = float("-inf")
        """When that was, on the monotonic clock, answered or not."""
        self.live_cursors = LiveCursors()
        """SQLite's cursors that have rows left."""

    def ended(self) -> None:
        """The transaction is over."""
        self.dirty = set()
        self.places: dict[str, Route] = {}
        """Routes by namespace: where it wrote, if ``NAMESPACE`` may have sent it to several."""
        self.manual = False
        self.until_end = None
        self.path_set_here = False
        self.isolation_known = False
        """Whether the server was asked for the isolation of this very transaction."""

    def rolled_back(self, connection: Any) -> None:
        """The transaction is undone, and with it any SET inside."""
        self.undone(connection)
        self.ended()

    def undone(self, connection: Any) -> None:
        """What was set in the transaction, or a part of it, may be undone."""
        self.path_in_doubt |= self.path_set_here
        # An older django-tenants does not notice; a newer one has forgotten its list.
        self.overridden = schemas.applied(connection)

    def is_path_known(self, connection: Any) -> bool:
        """Whether the context of an entry tells in which schemas the next query looks."""
        follows = schemas.follows_attributes(connection, self.overridden)
        return not self.path_in_doubt if follows is None else follows

    def path(self, connection: Any) -> str:
        """What ``SET search_path`` adds to the context, where the path is known."""
        return "" if schemas.is_of_tenants(connection) else self.search_path

    def told(self, connection: Any) -> Told:
        """What is known of the session, whose transaction ends without a commit."""
        if schemas.is_of_tenants(connection):
            # That sets its path itself, whatever session it gets.
            return Told(self.session, takes_snapshots=self.takes_snapshots)
        return Told(
            self.session,
            self.search_path,
            self.path_in_doubt or self.path_set_here,
            self.takes_snapshots,
        )

    def recall(self, driver: Any) -> None:
        """Know what the session of ``driver`` was told when another connection had it."""
        self.is_new = False
        self.session, self.search_path, self.path_in_doubt, self.takes_snapshots = sessions.recall(
            driver
        )

    def route(self, connection: Any, settings: Settings) -> Route:
        """Where this connection's answers are kept."""
        text = chosen.text_for(connection, settings)
        now = (settings, generation(), text, *basis(connection, settings))
        if self._route is None or now != self._basis:
            self._route, self._basis = route(connection, settings, text), now
        return self._route

    def writes(self, connection: Any, names: frozenset[str], own: str) -> frozenset[str]:
        """The registers of a statement that is executed now, see :mod:`~.routers.tenancy`.

        Args:
            connection: that of this state.
            names: the tables that it writes.
            own: that of them which it names without a schema.
        """
        if not own:
            return names
        path = schemas.searched(connection, self.overridden)
        # A wrapper around the statement may move on to another schema.
        if path is None or self.session is not None or connection.execute_wrappers:
            return names
        return tenancy.written(names, own, path)

    def will_write(self, connection: Any, names: frozenset[str], own: str) -> frozenset[str]:
        """As :meth:`writes`, of a statement that has no cursor yet."""
        if not own or not schemas.is_of_tenants(connection):
            return names
        return tenancy.written(names, own, [connection.schema_name])

    def wrote(self, connection: Any, tables: Collection[str]) -> None:
        """The transaction that is open writes ``tables``."""
        if not tables:
            return
        self.dirty.update(tables)
        settings = current()
        if chosen.is_configured(settings):
            # By the time of the commit another namespace may have been chosen.
            route = self.route(connection, settings)
            self.places[route.namespace] = route


def state_of(connection: Any) -> ConnectionState:
    """The state that ormcache keeps on ``connection``."""
    state = connection.__dict__.get(_ATTRIBUTE)
    if state is None:
        state = connection.__dict__.setdefault(_ATTRIBUTE, ConnectionState())
    return state  # type: ignore[no-any-return]


def in_transaction(connection: Any, state: ConnectionState) -> bool:
    """Whether statements on ``connection`` take effect only with a later commit.

    Opens no connection, as ``get_autocommit()`` would.
    """
    if connection.in_atomic_block or state.manual:
        return True
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    if connection.vendor == "mysql":
        # SET autocommit = 0 outlasts COMMIT; the server tells mysqlclient with each answer.
        get_autocommit = getattr(connection.connection, "get_autocommit", None)
        if get_autocommit is not None and not get_autocommit():
            return True
    return not connection.autocommit


def is_open(connection: Any) -> bool | None:
    """Whether a transaction is open, if the driver knows that without asking the server."""
    driver = connection.connection
    if connection.vendor == "sqlite":
        return bool(driver.in_transaction)
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    # libpq: 0 is idle, 4 is a connection that was lost.
    return None if status is None or status == 4 else status != 0


def is_pipelined(connection: Any) -> bool:
    """Whether statements are sent later than they are executed: psycopg's pipeline mode."""
    pgconn = getattr(connection.connection, "pgconn", None)
    return bool(getattr(pgconn, "pipeline_status", 0))


# --- reading in a transaction --------------------------------------------------------------


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
        return None
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
        return False
    if is_aborted(connection):
        return True
    return (state.until_end or _isolation(connection, state)) is not None


def is_aborted(connection: Any) -> bool:
    """Whether PostgreSQL has aborted the transaction, which Django's flags may not show.

    The next statement fails, and COMMIT would roll back; a hit must not hide that. libpq knows
    without asking the server: 3 is PQTRANS_INERROR.
    """
    if connection.vendor != "postgresql":
        return False
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", None) == 3


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
        with contextlib.suppress(Exception):
            if not connection.is_usable():
                connection.close()


# --- tables that the cache was not told of -------------------------------------------------

_Place = tuple[str, str]
"""A cache alias and a namespace."""


class _Debts:
    """Tables that this process wrote while the cache was out of reach ("open" and "fence").

    Each write gives its tables a new number, before and after. So what is written while a debt
    is being paid stays owed, and nothing is paid for before it is committed. A commit of which
    nobody knows whether it is over is taken for under way until a lease has passed.
    """

    def __init__(self) -> None:
        self._number = itertools.count()
        self._written: dict[_Place, dict[str, int]] = {}
        self._forget_threads()
        os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        # After fork() no other thread is there to end its write or to release the lock.
        self._under_way: Counter[tuple[_Place, str]] = Counter()
        self._in_doubt: dict[tuple[_Place, str], float] = {}
        """Until when, on the monotonic clock."""
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._written)

    def tables(self, place: _Place) -> frozenset[str]:
        with self._lock:
            return frozenset(self._written.get(place, ()))

    def begin(self, place: _Place, tables: Iterable[str]) -> None:
        with self._lock:
            self._write(place, tables, 1)

    def end(self, place: _Place, tables: Sequence[str], in_doubt_for: float = 0.0) -> None:
        """The write is over, or may take effect within so many seconds still."""
        until = time.monotonic() + in_doubt_for
        with self._lock:
            self._write(place, tables, -1)
            for table in tables if in_doubt_for else ():
                self._in_doubt[place, table] = until

    def _write(self, place: _Place, tables: Iterable[str], step: int) -> None:
        written = self._written.setdefault(place, {})
        for table in tables:
            written[table] = next(self._number)
            self._under_way[place, table] += step

    def due(self, place: _Place) -> dict[str, int]:
        """What can be paid now, with the numbers that :meth:`paid` wants to have back."""
        with self._lock:
            now = time.monotonic()
            return {
                table: number
                for table, number in self._written.get(place, {}).items()
                if self._under_way[place, table] <= 0
                and self._in_doubt.get((place, table), now) <= now
            }

    def paid(self, place: _Place, due: dict[str, int]) -> None:
        with self._lock:
            written = self._written.get(place, {})
            for table, number in due.items():
                if written.get(table) == number:
                    del written[table]
                    del self._under_way[place, table]
                    self._in_doubt.pop((place, table), None)
            if not written:
                self._written.pop(place, None)


_debts = _Debts()


def owed(route: Route) -> frozenset[str]:
    """Tables of which the cache was not told that they were written."""
    return _debts.tables((route.cache_alias, route.namespace)) if _debts else frozenset()


def pay(route: Route) -> bool:
    """Invalidate what is owed, now that the cache may be back. Returns whether nothing is."""
    place = (route.cache_alias, route.namespace)
    due = _debts.due(place)
    if due and route.store is not None and route.breaker.allows():
        try:
            route.store.bump(route.namespace, sorted(due))
        except CacheError:
            route.breaker.failed()
        else:
            route.breaker.succeeded()
            _debts.paid(place, due)
    return not owed(route)


# --- the bracket ---------------------------------------------------------------------------


class Bracket:
    """One commit on its way: made by :func:`announce`, ended by :meth:`end`."""

    __slots__ = (
        "_alias",
        "_begun",
        "_intent",
        "_is_owed",
        "_is_transaction",
        "_lease",
        "_route",
        "_started",
        "_tables",
    )

    def __init__(
        self,
        alias: str,
        route: Route,
        tables: list[str],
        lease: float,
        *,
        is_transaction: bool = False,
    ) -> None:
        self._is_transaction = is_transaction
        """Whether the database can tell whether it is over, see :mod:`ormcache.overdue`."""
        self._alias = alias
        self._route = route
        self._tables = tables
        self._lease = lease
        self._intent: str | None = None
        self._started: Callable[[], None] | None = None
        self._begun = 0.0
        self._is_owed = False

    @property
    def _place(self) -> _Place:
        return self._route.cache_alias, self._route.namespace

    @property
    def _names(self) -> tuple[str, ...]:
        """The tables behind the registers."""
        if self._route.has_tenants:
            return tenancy.tables_of(self._tables)
        return tuple(self._tables)

    def start(self) -> bool:
        """Send the announcement without waiting for its answer, if all is well with the cache.

        Returns whether it was sent; then :meth:`arm` or :meth:`cancel` must follow.
        """
        store, breaker = self._route.store, self._route.breaker
        if store is None or not breaker.is_closed:
            return False
        self._intent, self._begun = new_nonce(), time.monotonic()
        try:
            self._started = store.start_arm(self._route.namespace, self._intent, self._tables)
        except CacheError:
            self._intent = None
            return False
        return True

    def cancel(self) -> None:
        """The statement for which :meth:`start` was called never came."""
        started, self._started = self._started, None
        if started is not None:
            try:
                started()
            except CacheError:
                # The lease ends what may have been announced.
                return
            self._finish()

    def arm(self, fencing: Fencing | None = None) -> None:
        """Announce it. Raises CacheUnreachable if the write has to be refused.

        ``fencing``: how to announce it if the cache does not answer and the policy is "fence";
        without it, that is as "raise".
        """
        store, breaker = self._route.store, self._route.breaker
        if store is None:
            return
        intent = self._intent or (new_transaction() if self._is_transaction else new_nonce())
        self._intent = None
        try:
            if not self._confirm_start():
                if not breaker.allows(urgent=True):
                    raise CacheError("it did not answer a moment ago")
                self._arm_in_time(store, intent)
        except CacheError as error:
            breaker.failed()
            self._not_armed(error, fencing)
            return
        breaker.succeeded()
        self._intent = intent
        keeper.hold(intent, store, self._route.namespace, self._tables, self._begun)
        if _debts:
            pay(self._route)

    def _confirm_start(self) -> bool:
        """Whether an announcement was sent ahead, arrived and is still fresh."""
        started, self._started = self._started, None
        if started is None:
            return False
        try:
            started()
        except CacheTimeout:
            raise
        except CacheError:
            # Once more, on a new socket.
            return False
        return self._is_fresh()

    def _arm_in_time(self, store: Store, intent: str) -> None:
        for _ in range(_ATTEMPTS):
            self._begun = time.monotonic()
            store.arm(self._route.namespace, intent, self._tables)
            # Paused meanwhile, the process may have outlived its own intent.
            if self._is_fresh():
                return
        raise CacheError("it takes longer to answer than a third of a lease")

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._begun < self._lease / 3

    def covers(self, route: Route, tables: Iterable[str]) -> bool:
        """Whether this announces all of ``tables``, and where ``route`` leads to."""
        return route.namespace == self._route.namespace and (
            self._tables == [EVERYTHING] or set(tables) <= set(self._tables)
        )

    def _not_armed(self, error: CacheError, fencing: Fencing | None) -> None:
        policy = self._route.on_failure
        if policy == "ignore":
            return
        if policy == "raise":
            raise self.refusal(error) from error
        if policy == "fence":
            try:
                if fencing is None:
                    raise NoFence("it takes effect outside of a transaction that a row could join")
                fencing(self._tables)
            except NoFence as why:
                raise self.refusal(error, why) from error
        self._owe(self._tables)
        event = "unannounced" if policy == "open" else "fenced"
        counters.count_event(self._alias, self._names, event)

    def refusal(self, error: object, why: NoFence | None = None) -> CacheUnreachable:
        """What is raised because neither the cache nor the fence can be told."""
        return CacheUnreachable(
            f"The write to {', '.join(self._names)} was refused because the cache "
            f"{self._route.cache_alias!r} could not be told of it: {error}"
            + (f"; and not the fence, since {why}" if why else "")
            + '. ORMCACHE["ON_CACHE_FAILURE"] = "open" would let it through.'
        )

    def _owe(self, tables: Iterable[str]) -> None:
        """From now on this process does not believe the cache about ``tables``."""
        self._is_owed = True
        _debts.begin(self._place, tables)

    def widen(self, tables: Iterable[str]) -> list[str]:
        """Add ``tables`` to a bracket that went by the fence; returns all that it now has."""
        more = sorted(set(tables) - set(self._tables))
        if more and self._is_owed:
            self._owe(more)
        self._tables = [*self._tables, *more]
        return self._tables

    def _finish(self) -> None:
        store, intent = self._route.store, self._intent
        if store is None or intent is None:
            return
        try:
            store.finish(self._route.namespace, intent, self._tables)
        except CacheError:
            # The lease ends it.
            self._route.breaker.failed()

    def end(self, *, known: bool = True) -> None:
        """The statement is over. ``known``: nothing of it can take effect any more."""
        _pin(self._alias)
        if self._is_owed:
            _debts.end(self._place, self._tables, 0.0 if known else self._lease)
        if self._intent is None:
            return
        keeper.release(self._intent, finished=known)
        if known:
            self._finish()
        names = self._names
        counters.count_event(self._alias, names, "invalidated")
        if tables_invalidated.receivers:
            tables_invalidated.send_robust(sender=None, using=self._alias, tables=names)


class Brackets:
    """One commit that changes several namespaces: a bracket in each of them."""

    __slots__ = ("_armed",)

    def __init__(self) -> None:
        self._armed: list[Bracket] = []

    def arm(self, brackets: Iterable[Bracket]) -> None:
        """Raises CacheUnreachable as :meth:`Bracket.arm` does; then none is left armed."""
        try:
            for bracket in brackets:
                # Who looks in one namespace would remove a row that is meant for another.
                bracket.arm()
                self._armed.append(bracket)
        except BaseException:
            self.end()
            raise

    def end(self, *, known: bool = True) -> None:
        """See :meth:`Bracket.end`."""
        for bracket in self._armed:
            bracket.end(known=known)


def _pin(alias: str) -> None:
    """Let this context read from the primary, which it has written, if there are replicas."""
    primaries = groups.primaries(current())
    if primaries:
        primary = primaries.get(alias, alias)
        if primary in primaries.values():
            pins.wrote(primary)


def announce(
    connection: Any,
    state: ConnectionState,
    tables: Iterable[str],
    fencing: Fencing | None = None,
) -> Bracket | Brackets:
    """Tell the cache that ``tables`` are about to change for others.

    ``fencing``: see :meth:`Bracket.arm`.

    Raises CacheUnreachable (a ``django.db.OperationalError``) if that fails and
    ``ON_CACHE_FAILURE`` does not let it through.
    """
    if state.places:
        brackets = Brackets()
        is_transaction = _has_id(connection)
        brackets.arm([_bracket(route, tables, is_transaction) for route in state.places.values()])
        return brackets
    route = state.route(connection, current())
    expected = state.expected
    if expected is not None and expected.covers(route, tables):
        state.expected = None
        expected.arm(fencing)
        return expected
    bracket = _bracket(route, tables, _has_id(connection))
    bracket.arm(fencing)
    return bracket


def _has_id(connection: Any) -> bool:
    """Whether what is about to be committed is a transaction to which PostgreSQL gave an id.

    One that was begun and has changed nothing has none, and nothing to commit either. Without
    autocommit nobody could ask for the oldest id without having one.
    """
    return (
        connection.vendor == "postgresql"
        and connection.settings_dict["AUTOCOMMIT"]
        and not is_pipelined(connection)
        and is_open(connection) is True
    )


def fence_open_transaction(connection: Any, state: ConnectionState) -> Fencing | None:
    """How to announce a commit with a row in the transaction that is about to be committed."""
    settings = current()
    if chosen.is_configured(settings) or is_pipelined(connection):
        return None

    def fence(tables: Sequence[str]) -> None:
        if is_aborted(connection):
            # The server will answer ROLLBACK.
            return
        if is_open(connection) is False:
            raise NoFence("no transaction is open that a row could join")
        fence_rows.check(connection, state.route(connection, settings).namespace)
        fence_rows.insert(connection, tables)

    return fence


def _bracket(route: Route, tables: Iterable[str], is_transaction: bool = False) -> Bracket:
    names = sorted(tables)
    if EVERYTHING in names:
        names = [EVERYTHING]
    return Bracket(route.alias, route, names, current().LEASE, is_transaction=is_transaction)


def may_expect(connection: Any) -> bool:
    """Whether :func:`expecting` would gain anything, before its tables are worked out."""
    state = state_of(connection)
    return state.expected is None and not in_transaction(connection, state)


def expecting(connection: Any, tables: Iterable[str], work: Callable[[], _T]) -> _T:
    """Run ``work``, which prepares and executes a statement that writes ``tables``.

    In autocommit the announcement is on its way while Django compiles the statement; without
    this, the statement would wait for a round trip to the cache.
    """
    if not may_expect(connection):
        return work()
    state = state_of(connection)
    bracket = _bracket(state.route(connection, current()), tables)
    if not bracket.start():
        return work()
    state.expected = bracket
    try:
        return work()
    finally:
        if state.expected is bracket:
            state.expected = None
            bracket.cancel()


def bracketed(
    connection: Any,
    state: ConnectionState,
    tables: Iterable[str],
    operation: Callable[[], _T],
) -> _T:
    """Run ``operation``, which lets others see changes of ``tables``, inside a bracket."""
    bracket = announce(connection, state, tables)
    try:
        result = operation()
    except BaseException as error:
        bracket.end(known=outcome_is_known(connection, error))
        raise
    bracket.end()
    return result


def outcome_is_known(connection: Any, error: BaseException) -> bool:
    """Whether a failed statement surely has no effect that is still to come.

    A lost connection says nothing about the COMMIT that was sent on it.
    """
    if not isinstance(error, db.Error):
        return False
    if connection.vendor == "sqlite":
        # The library runs in this process: what failed is over, unless the disk is in doubt.
        return "disk I/O error" not in str(error)
    if isinstance(error, (db.IntegrityError, db.DataError, db.NotSupportedError)):
        return True
    if isinstance(error, db.InterfaceError):
        return False
    if connection.vendor == "mysql":
        # Lock wait timeout and deadlock; client errors start at 2000.
        code: object = next(iter(error.args), None)
        if isinstance(error, db.ProgrammingError):
            return not isinstance(code, int) or code < 2000
        return code in (1205, 1213)
    if isinstance(error, db.ProgrammingError):
        return True
    cause = error.__cause__
    state: Any = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    # Connection, full disk, operator intervention, system and internal errors; completion
    # unknown.
    return bool(state) and state[:2] not in ("08", "53", "57", "58", "XX") and state != "40003"


# --- the connection's own methods ----------------------------------------------------------


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
            bracket.end(known=has_published() or outcome_is_known(connection, error))
        raise
    if was_aborted:
        # The server has answered ROLLBACK.
        state.rolled_back(connection)
    state.ended()
    if bracket is not None:
        bracket.end()


def _announce_commit(connection: Any, state: ConnectionState) -> Bracket | Brackets:
    try:
        fencing = fence_open_transaction(connection, state)
        return announce(connection, state, state.dirty, fencing)
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


def touch(using: str | None, tables: Iterable[str]) -> None:
    """Invalidate ``tables`` of the alias ``using`` now and, in a transaction, at its commit.

    Raises CacheUnreachable as :func:`announce` does.
    """
    connection = connections[using or DEFAULT_DB_ALIAS]
    state = state_of(connection)
    names = set(tables)
    if in_transaction(connection, state):
        state.wrote(connection, names)
    bracketed(connection, state, names, lambda: None)
