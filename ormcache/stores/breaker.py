"""Keeps a dead cache from slowing every request: after a failure, wait before trying again."""

from __future__ import annotations

import os
import threading
import time
import weakref

_SHORTEST = 0.5
_LONGEST = 15.0


_breakers: weakref.WeakSet[Breaker] = weakref.WeakSet()


class Breaker:
    """Closed while calls succeed; after a failure open for a while, twice as long each time.

    When the time is over, one caller is let through to try; the others wait for its outcome.
    Calls that were on their way when the first of them failed count as one failure.
    """

    def __init__(self) -> None:
        # For the same thread not exclusive: the handler of a signal may read, too.
        self._lock = threading.RLock()
        self._pause = _SHORTEST
        self._until: float | None = None
        self._failed_at = 0.0
        self._trying = False
        _breakers.add(self)

    def renew_lock(self) -> None:
        """Another thread may have held it when this process was forked."""
        self._lock = threading.RLock()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self._until is None

    @property
    def is_waiting(self) -> bool:
        """Whether :meth:`allows` would say no to a read; asking changes nothing."""
        until = self._until
        return until is not None and time.monotonic() < until

    def allows(self, *, urgent: bool = False) -> bool:
        """Whether a call may be tried now.

        ``urgent``: it matters more than a read; it waits for the shortest pause only.
        """
        if self._until is None:
            return True
        with self._lock:
            now = time.monotonic()
            # Somebody else may have succeeded while we waited for the lock.
            until: float | None = self._until
            if until is None:
                return True
            if now < (self._failed_at + _SHORTEST if urgent else until):
                return False
            self._until = now + self._pause
            self._trying = True
            return True

    def succeeded(self) -> None:
        if self._until is not None:
            with self._lock:
                self._until, self._pause, self._trying = None, _SHORTEST, False

    def failed(self) -> None:
        with self._lock:
            if self._until is not None and not self._trying:
                return
            self._trying = False
            self._failed_at = time.monotonic()
            self._until = self._failed_at + self._pause
            self._pause = min(self._pause * 2, _LONGEST)


def _renew_locks() -> None:
    for breaker in tuple(_breakers):
        breaker.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)
