"""Many readers who miss the same entry at once: the first asks the database for all of them.

A flight is named by its entry and by the registers as its readers have seen them. Whoever has seen
the same registers may be given what the first is about to store under them: no commit that it must
see has come between. So to wait is as sound as a hit, and holds for the readers of one process.
"""

from __future__ import annotations

import os
from threading import Event, RLock, get_ident

Name = tuple[str, str, str]
"""Namespace, entry and registers."""

_PATIENCE = 5.0
"""Seconds after which a reader who waits asks the database, too."""


class Flight:
    """One answer on its way from the database."""

    __slots__ = ("_is_over", "_name", "_pilot", "payload")

    def __init__(self, name: Name) -> None:
        self._name = name
        self._pilot = get_ident()
        self._is_over: Event | None = None
        self.payload: bytes | None = None
        """The answer as it is stored, if it is fit for that."""

    def land(self) -> None:
        """The answer is there, or will not be."""
        with _lock:
            if _under_way.get(self._name) is self:
                del _under_way[self._name]
            is_over = self._is_over
        if is_over is not None:
            is_over.set()

    def wait(self) -> bytes | None:
        """The answer that another thread fetches; None if that has none to give."""
        if self._is_over is not None:
            self._is_over.wait(_PATIENCE)
        return self.payload


def _forget() -> None:
    # After fork() no other thread is there to land, or to release the lock.
    global _lock, _under_way
    _lock, _under_way = RLock(), {}


# For the same thread not exclusive: the handler of a signal may read, too.
_lock = RLock()
_under_way: dict[Name, Flight] = {}
os.register_at_fork(after_in_child=_forget)


def take_off(name: Name) -> tuple[Flight, bool]:
    """A flight and whether the caller has to :meth:`~Flight.land` it.

    If not, it is that of another thread, to :meth:`~Flight.wait` for.
    """
    with _lock:
        flight = _under_way.get(name)
        if flight is None:
            flight = _under_way[name] = Flight(name)
            return flight, True
        if flight._pilot == get_ident():
            # Something around its query asks the same: nobody waits for himself.
            return Flight(name), True
        if flight._is_over is None:
            flight._is_over = Event()
        return flight, False
