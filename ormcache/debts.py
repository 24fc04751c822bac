"""Tables that the cache was not told of: written while it was out of reach."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from ormcache.exceptions import CacheError
from ormcache.routers.namespaces import Route

Place = tuple[str, str]
"""A cache alias and a namespace."""


class Debts:
    """Tables that this process wrote while the cache was out of reach ("open" and "fence").

    Each write gives its tables a new number, before and after. So what is written while a debt
    is being paid stays owed, and nothing is paid for before it is committed. A commit of which
    nobody knows whether it is over is taken for under way until a lease has passed.
    """

    def __init__(self) -> None:
        self._number = itertools.count()
        self._written: dict[Place, dict[str, int]] = {}
        self._forget_threads()
        os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        # After fork() no other thread is there to end its write or to release the lock.
        self._under_way: Counter[tuple[Place, str]] = Counter()
        self._in_doubt: dict[tuple[Place, str], float] = {}
        """Until when, on the monotonic clock."""
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._written)

    def tables(self, place: Place) -> frozenset[str]:
        with self._lock:
            return frozenset(self._written.get(place, ()))

    def begin(self, place: Place, tables: Iterable[str]) -> None:
        with self._lock:
            self._write(place, tables, 1)

    def end(self, place: Place, tables: Sequence[str], in_doubt_for: float = 0.0) -> None:
        """The write is over, or may take effect within so many seconds still."""
        until = time.monotonic() + in_doubt_for
        with self._lock:
            self._write(place, tables, -1)
            for table in tables if in_doubt_for else ():
                self._in_doubt[place, table] = until

    def _write(self, place: Place, tables: Iterable[str], step: int) -> None:
        written = self._written.setdefault(place, {})
        for table in tables:
            written[table] = next(self._number)
            self._under_way[place, table] += step

    def due(self, place: Place) -> dict[str, int]:
        """What can be paid now, with the numbers that :meth:`paid` wants to have back."""
        with self._lock:
            now = time.monotonic()
            return {
                table: number
                for table, number in self._written.get(place, {}).items()
                if self._under_way[place, table] <= 0
                and self._in_doubt.get((place, table), now) <= now
            }

    def paid(self, place: Place, due: dict[str, int]) -> None:
        with self._lock:
            written = self._written.get(place, {})
            for table, number in due.items():
                if written.get(table) == number:
                    del written[table]
                    del self._under_way[place, table]
                    self._in_doubt.pop((place, table), None)
            if not written:
                self._written.pop(place, None)


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
            route.store.bump(route.namespace, sorted(due))
        except CacheError:
            route.breaker.failed()
        else:
            route.breaker.succeeded()
            ledger.paid(place, due)
    return not owed(route)
