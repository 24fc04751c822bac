"""Strict consistency in Django's local-memory cache, for one process.

Entries live in the cache, registers in this process's memory, where nothing evicts them: there
is no quarantine. Another process has another cache and hears of nothing; the system check
ormcache.W001 says so.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence

from django.core.cache.backends.base import BaseCache

from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.interruptions import let_through
from ormcache.reasons import Reason
from ormcache.stores.base import EVERYTHING, Lookup, Store

# Never started again, so that entries which outlive a store are not taken for new ones.
_nonces = itertools.count(1)


class _Register:
    __slots__ = ("intents", "nonce")

    def __init__(self) -> None:
        self.nonce = next(_nonces)
        self.intents: dict[str, float] = {}


class LocMemStore(Store):
    """See the module."""

    mode = "strict"
    is_remote = False

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache
        self._registers: dict[tuple[str, str], _Register] = {}
        # For the same thread not exclusive: the handler of a signal may read and write, too,
        # between any two steps. So registers and intents come and go one by one.
        self._lock = threading.RLock()
        # A lock that another thread held during fork() would never be released in the child.
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._registers = {}

    def _register(self, namespace: str, table: str, now: float) -> _Register:
        """The register, brought up to the present. The lock is held."""
        key = (namespace, table)
        register = self._registers.get(key)
        if register is None:
            return self._registers.setdefault(key, _Register())
        if register.intents:
            over = [name for name, end in register.intents.copy().items() if end <= now]
            if len(over) == len(register.intents):
                register.nonce = next(_nonces)
            for name in over:
                register.intents.pop(name, None)
        return register

    def read(self, namespace: str, entry: str, tables: Sequence[str]) -> Lookup:
        now = time.monotonic()
        # The name of the entry binds it to its question: copied to another key, it is no answer.
        parts: list[object] = [entry]
        with self._lock:
            for table in (EVERYTHING, *tables):
                register = self._register(namespace, table, now)
                if register.intents:
                    remaining = max(register.intents.values(), default=now) - now
                    return Lookup(None, None, Reason.BUSY, remaining)
                parts.append(register.nonce)
        vector = ";".join(map(str, parts))
        try:
            found = self._cache.get(f"ormcache:{namespace}:{entry}")
        except Exception as error:
            let_through(error)
            # Somebody else has put there what cannot be unpickled.
            return Lookup(b"", vector)
        if type(found) is tuple and len(found) == 2 and found[0] == vector:
            return Lookup(found[1], vector)
        return Lookup(None, vector)

    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        try:
            self._cache.set(f"ormcache:{namespace}:{entry}", (vector, payload), timeout)
        except Exception as error:
            let_through(error)
            raise CacheError(f"{type(error).__name__}: {error}") from error

    def drop(self, namespace: str, entry: str) -> None:
        try:
            self._cache.delete(f"ormcache:{namespace}:{entry}")
        except Exception as error:
            let_through(error)
            raise CacheError(f"{type(error).__name__}: {error}") from error

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        now = time.monotonic()
        deadline = now + current().LEASE
        with self._lock:
            for table in tables:
                register = self._register(namespace, table, now)
                register.intents[intent] = deadline
                register.nonce = next(_nonces)

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        now = time.monotonic()
        with self._lock:
            for table in tables:
                register = self._register(namespace, table, now)
                register.intents.pop(intent, None)
                register.nonce = next(_nonces)

    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        self.finish(namespace, "", tables)

    def status(self, namespace: str) -> dict[str, object]:
        now = time.monotonic()
        with self._lock:
            mine = [
                (name, reg)
                for (space, name), reg in self._registers.copy().items()
                if space == namespace
            ]
            under_way = [
                f"{name} (for {max(reg.intents.values(), default=now) - now:.1f} s at most)"
                for name, reg in sorted(mine)
                if reg.intents
            ]
        return {
            "registers": len(mine),
            "commits under way": ", ".join(under_way) or "none",
        }
