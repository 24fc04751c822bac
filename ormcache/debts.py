"""Tables that the cache was not told of: written while it was out of reach."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ormcache.exceptions import CacheError
from ormcache.routers.namespaces import Route

Place = tuple[str, str]
"""A cache alias and a namespace."""


class Debt(NamedTuple):
    """A write that the cache was not told of."""

    place: Place
    table: str
    number: int
    until: float
    """Until when it may take effect, if nobody knows whether it is over; monotonic clock, or 0."""


class Debts:
    """Tables that this process wrote while the cache was out of reach and nothing was refused.

    Each write gives its tables a new number, before and after. So what is written while a debt
    is being paid stays owed, and nothing is paid for before it is committed. A commit of which
    nobody knows whether it is over is taken for under way until a lease has passed.
    """

    def __init__(self) -> None:
        self._number = itertools.count()
        self._written: set[Debt] = set()
        self._last: dict[tuple[Place, str], Debt] = {}
        self._forget_threads()
        os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        # After fork() no other thread is there to end its write or to release the lock.
        self._under_way: Counter[tuple[Place, str]] = Counter()
        # For the same thread not exclusive: the handler of a signal may read and write, too,
        # between any two steps. So nothing is removed because of what it was found to be before.
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return bool(self._written)

    def tables(self, place: Place) -> frozenset[str]:
        with self._lock:
            return frozenset(debt.table for debt in self._written.copy() if debt.place == place)

    def begin(self, place: Place, tables: Iterable[str]) -> None:
        with self._lock:
            for table in tables:
                # First: nothing can be paid for from here on.
                self._under_way[place, table] += 1
                self._write(place, table)

    def end(self, place: Place, tables: Sequence[str], in_doubt_for: float = 0.0) -> None:
        """The write is over, or may take effect within so many seconds still."""
        until = time.monotonic() + in_doubt_for if in_doubt_for else 0.0
        with self._lock:
            for table in tables:
                self._write(place, table, until)
                self._under_way[place, table] -= 1

    def _write(self, place: Place, table: str, until: float = 0.0) -> None:
        debt = Debt(place, table, next(self._number), until)
        self._written.add(debt)
        before = self._last.get((place, table))
        self._last[place, table] = debt
        if before is not None and not before.until:
            # The new one says it as well.
            self._written.discard(before)

    def due(self, place: Place) -> set[Debt]:
        """What can be paid now."""
        with self._lock:
            now = time.monotonic()
            return {
                debt
                for debt in self._written.copy()
                if debt.place == place
                and debt.until <= now
                and self._under_way[place, debt.table] <= 0
            }

    def paid(self, due: set[Debt]) -> None:
        with self._lock:
            self._written.difference_update(due)


ledger = Debts()
"""Those of this process."""


def owed(route: Route) -> frozenset[str]:
    """Tables of which the cache was not told that they were written."""
    return ledger.tables((route.cache_alias, route.namespace)) if ledger else frozenset()


def pay(route: Route) -> bool:
    """Invalidate what is owed, now that the cache may be back. Returns whether nothing is."""
    place = (route.cache_alias, route.namespace)
    due = ledger.due(place)
    if due and route.store is not None and route.breaker.allows():
        try:
            route.store.bump(route.namespace, sorted({debt.table for debt in due}))
        except CacheError:
            route.breaker.failed()
        else:
            route.breaker.succeeded()
            ledger.paid(due)
    return not owed(route)
