"""Commits that follow each other closely share one announcement.

A loop of ``save()`` in autocommit commits to the same tables again and again. Hardly an answer
could be kept in between, so to report the end of each commit and to announce the next one gains
nothing, and costs more than all else that a write does. In such a burst the intent stays where it
is, and the next commit takes it over. To everybody else that is one commit which takes long.

A burst is over when this process reads one of its tables, has not written them for a moment, or
ends a request: then the intent is finished. Whoever takes an intent over has what is left of its
lease, as if the announcement had taken so long.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from django.core.signals import request_finished

from ormcache.exceptions import CacheError
from ormcache.routers.namespaces import Route
from ormcache.stores import EVERYTHING, flushing

_PAUSE = 0.002
"""Seconds between two commits of one burst, at most."""
_LIMIT = 1024

_Place = tuple[int, str, str, tuple[str, ...], float]
"""A thread, a cache alias, a namespace, tables and the lease: how old an intent may become."""


class Intent(NamedTuple):
    """An announcement that stands, though no commit is under way."""

    route: Route
    tables: tuple[str, ...]
    name: str
    begun: float
    """When it was announced, on the monotonic clock."""
    ended: float
    """When the last commit was over."""


class Bursts:
    """The intents that wait for the next commit, by what they announce."""

    def __init__(self) -> None:
        self._reset()
        # The parent goes on with them.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._waiting: dict[_Place, Intent] = {}
        self._leaving: dict[_Place, Intent] = {}
        """Those of which the cache is just being told that they are over."""
        self._broken_off: list[Intent] = []
        """Those of which nobody knows whether the cache has been told so."""
        # For the same thread not exclusive: the handler of a signal may read, too.
        self._lock = threading.RLock()
        self._ended: dict[_Place, float] = {}
        """When the last commit was over, for those that another may soon follow."""
        self._is_registered = False
        """Whether this process will call :meth:`close`."""
        self._is_closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting or self._leaving)

    def take(self, route: Route, tables: Sequence[str], lease: float) -> Intent | None:
        """An intent for the next commit, which has to be ended as one of its own; or None."""
        place = _place(route, tables, lease)
        # To pop it is what makes it belong to one thread.
        intent = self._waiting.pop(place, None)
        if intent is None:
            return None
        if intent.route.store is not route.store:
            _finish(intent)
            return None
        if time.monotonic() - intent.ended > _PAUSE:
            # This one ends the burst.
            self._ended.pop(place, None)
        return intent

    def keep(
        self, route: Route, tables: Sequence[str], lease: float, name: str, begun: float
    ) -> bool:
        """A commit is over for sure: let its intent wait for the next; returns whether it does.

        Args:
            route: where it was announced.
            tables: what was announced.
            lease: for how long.
            name: that of the intent. No other thread may be about to renew it.
            begun: when it was announced, on the monotonic clock.
        """
        place, now = _place(route, tables, lease), time.monotonic()
        before = self._ended.get(place)
        if len(self._ended) > _LIMIT:
            self._ended = {}
        self._ended[place] = now
        if before is None or begun - before > _PAUSE or self._is_closed:
            return False
        if not self._is_registered:
            self._is_registered = True
            _call_at_exit(self.close)
        intent = Intent(route, place[3], name, begun, now)
        if self._waiting.setdefault(place, intent) is not intent:
            return False
        flushing.flusher.notice(self)
        return True

    def settle(self, namespace: str, tables: Iterable[str]) -> None:
        """Finish what announces one of ``tables``: this process wants to read them.

        Returns when the cache has been told, by whichever thread.
        """
        # Not list(….items()), which may be interrupted: by a finalizer, and so by another thread.
        for place, intent in (self._waiting | self._leaving).items():
            if intent.route.namespace == namespace and (
                intent.tables == (EVERYTHING,) or not set(tables).isdisjoint(intent.tables)
            ):
                self._end(place)

    def close(self) -> None:
        """Finish all, and keep no more: others would wait for the leases to end."""
        self._is_closed = True
        self.flush()

    def flush(self, **kwargs: object) -> None:
        """Finish all. Also a receiver of ``request_finished``."""
        while self._broken_off:
            _finish(self._broken_off.pop())
        for place in list(self._waiting):
            self._end(place)

    def _end(self, place: _Place) -> None:
        with self._lock:
            intent = self._waiting.get(place)
            if intent is None:
                return
            # Before it leaves the others, so that no reader misses it.
            self._leaving[place] = intent
            try:
                # By now it may be that of another commit.
                intent = self._waiting.pop(place, None)
                if intent is not None:
                    _finish(intent)
            except BaseException:
                # A timeout of gevent, or the handler of a signal. No commit may take it over.
                if intent is not None:
                    self._broken_off.append(intent)
                    flushing.flusher.notice(self)
                raise
            finally:
                self._leaving.pop(place, None)


def _place(route: Route, tables: Sequence[str], lease: float) -> _Place:
    # In threads whose commits overlap one intent would follow the other without an end.
    return threading.get_ident(), route.cache_alias, route.namespace, tuple(tables), lease


def _finish(intent: Intent) -> None:
    route = intent.route
    if route.store is None or not route.breaker.is_closed:
        # The lease ends it.
        return
    try:
        route.store.finish(route.namespace, intent.name, intent.tables)
    except CacheError:
        route.breaker.failed()


def _call_at_exit(function: Callable[[], None]) -> None:
    """Call it when this process ends in good order."""
    atexit.register(function)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Its children end without the handlers of atexit.
        util.Finalize(None, function, exitpriority=0)


bursts = Bursts()
"""Those of this process."""
# The thread that ends them is not given time between requests everywhere: not by uWSGI, unless it
# is told to enable threads.
request_finished.connect(bursts.flush, dispatch_uid="ormcache.bursts")
