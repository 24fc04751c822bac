"""The bracket around a commit.

Announce the commit to the cache (*arm*), let the database commit, report the end (*finish*).
Readers that meet the announcement ask the database and store nothing. Only *arm* is vital, so a
crash at any point after it costs one lease of caching and no truth.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from django import db

from ormcache import counters, debts, engines, fence_rows
from ormcache.bursts import bursts
from ormcache.conf import current
from ormcache.connection_state import (
    ConnectionState,
    in_transaction,
    is_aborted,
    is_begun_unseen,
    is_executing,
    is_open,
    is_pipelined,
    state_of,
)
from ormcache.exceptions import CacheError, CacheTimeout, CacheUnreachable, NoFence
from ormcache.leases import keeper
from ormcache.routers import chosen, groups, pins, tenancy
from ormcache.routers.namespaces import Route
from ormcache.signals import tables_invalidated
from ormcache.stores import EVERYTHING, Store
from ormcache.stores.base import new_nonce, new_transaction

_T = TypeVar("_T")

Fencing = Callable[[Sequence[str]], None]
"""Announces tables in the fence, at once or with the transaction that it begins.

Raises NoFence if it cannot."""
_ATTEMPTS = 3
_CANCEL_SECONDS = 5


class Bracket:
    """One commit on its way: made by :func:`announce`, ended by :meth:`end`.

    Its intent is renewed for as long as it lives: who sends the COMMIT keeps it until the outcome
    is there.
    """

    __slots__ = (
        "__weakref__",
        "_alias",
        "_begun",
        "_intent",
        "_is_ahead",
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
        self._is_ahead = False
        """Whether it was announced before its statement was there: in autocommit, by the ORM."""
        self._begun = 0.0
        self._is_owed = False

    @property
    def _is_own(self) -> bool:
        """Whether this process has announced it: a child of ``fork()`` gets a copy in its stack.

        The parent has yet to commit.
        """
        return self._intent is not None and new_nonce.has_given(self._intent)

    @property
    def _place(self) -> debts.Place:
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
        waiting = bursts.take(self._route, self._tables, self._lease) if bursts else None
        if waiting is not None:
            self._intent, self._begun = waiting.name, waiting.begun
            self._started = _is_there
        else:
            self._intent, self._begun = new_nonce(), time.monotonic()
            try:
                self._started = store.start_arm(self._route.namespace, self._intent, self._tables)
            except CacheError:
                self._intent = None
                return False
        self._is_ahead = True
        return True

    def cancel(self) -> None:
        """The statement for which :meth:`start` was called never came."""
        started, self._started = self._started, None
        if started is not None and self._is_own:
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
        was_asked = self._started is not _is_there
        try:
            if not self._confirm_start():
                was_asked = True
                if not breaker.allows(urgent=True):
                    raise CacheError("it did not answer a moment ago")
                self._arm_in_time(store, intent)
        except CacheError as error:
            breaker.failed()
            self._not_armed(error, fencing)
            return
        if was_asked:
            breaker.succeeded()
        self._intent = intent
        # Before debts are paid, which may take a good part of the lease.
        keeper.hold(intent, store, self._route.namespace, self._tables, self._begun, self)
        if debts.ledger:
            try:
                debts.pay(self._route)
            except BaseException:
                # Nothing will be committed. What is raised may keep this bracket alive for long.
                keeper.release(intent, finished=False)
                raise

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

    def confirm(self) -> None:
        """Announce it once more, of a statement that is done and not committed yet.

        Only if the lease may have run out meanwhile: while the statement had not begun, its
        transaction had no id by which the announcement could be told from one that is over.
        Raises CacheUnreachable as :meth:`arm` does.
        """
        store, intent = self._route.store, self._intent
        if store is None or intent is None or self._is_fresh():
            return
        try:
            self._arm_in_time(store, intent)
        except CacheError as error:
            self._route.breaker.failed()
            self._not_armed(error, None)

    def covers(self, route: Route, tables: Iterable[str]) -> bool:
        """Whether this announces all of ``tables``, and where ``route`` leads to."""
        return route.namespace == self._route.namespace and (
            self._tables == [EVERYTHING] or set(tables) <= set(self._tables)
        )

    def _not_armed(self, error: CacheError, fencing: Fencing | None) -> None:
        policy = self._route.on_failure
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
        event = "fenced" if policy == "fence" else "unannounced"
        counters.count_event(self._alias, self._names, event)

    def refusal(self, error: object, why: NoFence | None = None) -> CacheUnreachable:
        """What is raised because neither the cache nor the fence can be told."""
        what = ("all tables" if name == EVERYTHING else name for name in self._names)
        return CacheUnreachable(
            f"The write to {', '.join(what)} was refused: the cache "
            f"{self._route.cache_alias!r} did not answer ({error})"
            + (
                f", and the write could not be announced in {fence_rows.TABLE} either, because "
                f"{why}"
                if why
                else ""
            )
            + '. ORMCACHE["ON_CACHE_FAILURE"] = "open" would let it through.'
        )

    def _owe(self, tables: Iterable[str]) -> None:
        """From now on this process does not believe the cache about ``tables``."""
        self._is_owed = True
        debts.ledger.begin(self._place, tables)

    def widen(self, tables: Iterable[str]) -> list[str]:
        """Add ``tables`` to a bracket that went by the fence; returns all that it now has."""
        more = sorted(set(tables) - set(self._tables))
        if more and self._is_owed:
            self._owe(more)
        self._tables = [*self._tables, *more]
        return self._tables

    def _finish(self) -> None:
        store, intent = self._route.store, self._intent
        if store is None or intent is None or not self._is_own:
            return
        try:
            store.finish(self._route.namespace, intent, self._tables)
        except CacheError:
            # The lease ends it.
            self._route.breaker.failed()

    def end(self, *, known: bool = True) -> None:
        """The statement is over. ``known``: nothing of it can take effect any more."""
        if self._intent is not None:
            # First: what interrupts the rest must not leave it to the keeper.
            keeper.release(self._intent, finished=known)
        _pin(self._alias)
        if self._is_owed:
            debts.ledger.end(self._place, self._tables, 0.0 if known else self._lease)
        names = self._names
        if self._intent is not None:
            if known and not self._waits(self._intent):
                self._finish()
            counters.count_event(self._alias, names, "invalidated")
        elif not self._is_owed:
            return
        if tables_invalidated.receivers:
            tables_invalidated.send_robust(sender=None, using=self._alias, tables=names)

    def _waits(self, intent: str) -> bool:
        """Whether the intent may stay for the next commit, and does."""
        store = self._route.store
        return (
            self._is_ahead
            and self._is_own
            and store is not None
            and store.shares_intents
            # Otherwise the keeper may be about to renew it, and to take it back.
            and self._is_fresh()
            and bursts.keep(self._route, self._tables, self._lease, intent, self._begun)
        )


def _is_there() -> None:
    """What there is to wait for, if the announcement is that of the commit before."""


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

    def confirm(self) -> None:
        """See :meth:`Bracket.confirm`."""
        for bracket in self._armed:
            bracket.confirm()

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
    expected: Bracket | None = state.expected
    if expected is not None and expected.covers(route, tables):
        state.expected = None
        expected.arm(fencing)
        return expected
    bracket = _bracket(route, tables, _has_id(connection))
    bracket.arm(fencing)
    return bracket


def _has_id(connection: Any) -> bool:
    """Whether what is about to be committed is a transaction to which PostgreSQL gave an id.

    One that was begun and has changed nothing has none, and nothing to commit either. In one that
    was begun through the driver the first statement is yet to come: see :meth:`Bracket.confirm`.
    """
    return (
        engines.tells_what_is_over(connection)
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
    """Whether :func:`expecting` may be called, and would gain anything."""
    if connection.in_atomic_block:
        # As most are, and so without asking for more.
        return False
    state = state_of(connection)
    return (
        state.expected is None
        and not in_transaction(connection, state)
        and not is_begun_unseen(connection)
    )


def expecting(connection: Any, names: frozenset[str], own: str, work: Callable[[], _T]) -> _T:
    """Run ``work``, which prepares and executes a statement that writes the tables ``names``.

    In autocommit the announcement is on its way while Django compiles the statement; without
    this, the statement would wait for a round trip to the cache. Ask :func:`may_expect` first.

    Args:
        connection: which the statement will be executed on.
        names: the tables that it writes.
        own: that of them which it names without a schema.
        work: what is run.
    """
    state = state_of(connection)
    tables = state.will_write(connection, names, own)
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


def give_up(connection: Any, error: BaseException) -> None:
    """Let PostgreSQL end a statement in autocommit that nobody waits for any more.

    A timeout of gevent, and whatever the handler of a signal raises, leave it behind. It might
    get a lock when its lease is long over, and take effect. On KeyboardInterrupt psycopg does the
    same.
    """
    if isinstance(error, db.Error) or not is_executing(connection):
        return
    driver = connection.connection
    # Whether it comes in time is not known, and so the outcome is not either.
    with contextlib.suppress(Exception):
        if hasattr(driver, "cancel_safe"):
            # Since psycopg 3.2; other greenlets may run meanwhile.
            driver.cancel_safe(timeout=_CANCEL_SECONDS)
        else:
            driver.cancel()


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
