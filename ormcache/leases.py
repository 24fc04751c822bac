"""Keeps intents alive while their commits take long.

An intent dies with its lease, so that a writer that crashed blocks nobody for long. A writer
that lives but waits (a slow disk, a synchronous standby, a long UPDATE in autocommit) must not
lose it: one thread of the process arms such intents again, each third of a lease.

What has begun a commit owns its intent: the keeper does not keep it alive. So an exception that a
signal handler raises between any two steps, where no ``try`` has begun or the last one is over,
leaves the intent to its lease as a crash does, instead of having it renewed for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.stores import Store

_logger = logging.getLogger("ormcache")


class _Held:
    """An intent, from its announcement to its release."""

    __slots__ = ("armed_at", "is_finished", "namespace", "owner", "store", "tables")

    def __init__(
        self,
        store: Store,
        namespace: str,
        tables: Sequence[str],
        armed_at: float,
        owner: object,
    ) -> None:
        self.store = store
        self.namespace = namespace
        self.tables = tables
        self.armed_at = armed_at
        self.owner = None if owner is None else weakref.ref(owner)
        self.is_finished = False


class Keeper:
    """The intents of this process that are on their way, and the thread that renews them."""

    def __init__(self) -> None:
        self.before_renewal: Callable[[], None] = lambda: None
        """Lets go of what need not be renewed, see :mod:`ormcache.unseen`."""
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._held: dict[str, _Held] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def hold(
        self,
        intent: str,
        store: Store,
        namespace: str,
        tables: Sequence[str],
        armed_at: float,
        owner: object = None,
    ) -> None:
        """Renew ``intent``, last armed at ``armed_at`` (monotonic), until :meth:`release`.

        ``owner``: what lives for as long as the commit can take effect, and will release it. If
        it is gone without having done so, the intent is left to its lease.
        """
        self._held[intent] = _Held(store, namespace, tables, armed_at, owner)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            # Whoever is about to does it: this may be the handler of a signal that came meanwhile.
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ormcache-leases", daemon=True)
                # There are too many, or the interpreter has begun to end: one lease has to do.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
        finally:
            self._starting.release()

    def release(self, intent: str, *, finished: bool) -> None:
        """Stop renewing ``intent``: it is about to be finished, or is left to its lease."""
        held = self._held.pop(intent, None)
        if held is not None:
            held.is_finished = finished

    def _run(self) -> None:
        while True:
            try:
                time.sleep(current().LEASE / 6)
                self.renew()
            except Exception:
                # Wrong settings, say: commits to come need this thread all the same.
                _logger.exception("The intents of slow commits could not be renewed.")
                time.sleep(1)

    def renew(self) -> None:
        """Arm again what was armed more than a third of a lease ago."""
        self.before_renewal()
        due = time.monotonic() - current().LEASE / 3
        for intent, held in list(self._held.items()):
            if held.owner is not None and held.owner() is None:
                self._held.pop(intent, None)
                continue
            if held.armed_at > due or intent not in self._held:
                continue
            now = time.monotonic()
            try:
                held.store.arm(held.namespace, intent, held.tables)
                held.armed_at = now
                if held.is_finished:
                    # While it was being armed: nobody else will take the new intent back.
                    held.store.finish(held.namespace, intent, held.tables)
            except CacheError:
                # Nothing to be done here: the next round tries again.
                continue


keeper = Keeper()
