"""What may wait for a moment, because most of the time something else takes it along.

A thread of the process does what is left over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Protocol

_logger = logging.getLogger("ormcache")
_SECONDS = 0.02
"""How long it may wait."""


class Waiting(Protocol):
    """Has something to be done soon."""

    def flush(self) -> None:
        """Do it now, if it was not done meanwhile. Raises nothing."""


class Flusher:
    """The thread that sends what would otherwise wait for a command that may never come."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._due: set[Waiting] = set()
        # Unlocked to wake the thread. Unlike an Event, it may be interrupted by itself: a signal
        # handler may read, too.
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def notice(self, waiting: Waiting) -> None:
        """See that ``waiting`` is flushed, at once if there can be no thread."""
        if self._thread is None and not self._start():
            waiting.flush()
            return
        self._due.add(waiting)
        if self._asleep.locked():
            # Somebody else may have woken it meanwhile.
            with contextlib.suppress(RuntimeError):
                self._asleep.release()

    def _start(self) -> bool:
        """Start the thread; returns whether there is one, or will be."""
        if not self._starting.acquire(blocking=False):
            return True
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ormcache-flusher", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            # There are too many, or the interpreter has begun to end.
            return False
        finally:
            self._starting.release()
        return True

    def _run(self) -> None:
        while True:
            # Locked before it looks: whoever comes later wakes it once more.
            self._asleep.acquire()
            time.sleep(_SECONDS)
            while self._due:
                try:
                    self._due.pop().flush()
                except Exception:
                    # What comes later needs this thread all the same.
                    _logger.exception("What could wait was not sent to the cache.")


flusher = Flusher()
