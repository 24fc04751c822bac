"""Standard consistency in any of Django's caches, by ``get_many`` and ``set_many`` alone.

The same bracket as in strict mode with plain values: a register holds ``c:<nonce>`` (clean) or
``d:<intent>`` (a commit is on its way). Without scripts the intents of two writers cannot be
counted, so an answer can be out of date while two commits to one table overlap, for as long as
the second needs from its COMMIT to its end.

Some caches swallow errors. What a commit depends on is therefore read back.

A register that somebody has damaged may have held the mark of a commit. So it is replaced by a
mark, which ends with a lease.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.db import Error, connections, router

from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.interruptions import let_through
from ormcache.reasons import Reason
from ormcache.stores.base import EVERYTHING, Lookup, Store, new_nonce, store_access

_CLEAN, _DIRTY = "c:", "d:"
_ATTEMPTS = 3
_UNREADABLE = object()
_FAILURES = ("ConnectionError", "TimeoutError", "MemcacheError")
_LONGEST = 64


def _as_part_of_key(table: str) -> str:
    """Memcached takes neither spaces nor control characters, and 250 bytes in all."""
    if table.isascii() and table.isprintable() and " " not in table and len(table) <= _LONGEST:
        return table
    return "x" + hashlib.blake2b(table.encode(), digest_size=20).hexdigest()


def _lease() -> int:
    """Seconds after which a mark ends. Caches count in whole ones, and some round down."""
    return math.ceil(current().LEASE) + 1


def _is_out_of_reach(error: CacheError) -> bool:
    """Whether the cache, or a connection to it, has failed, and not what was found there."""
    cause = error.__cause__
    # The drivers' own classes and Python's are alike in name only.
    return (
        cause is None
        or isinstance(cause, (OSError, Error))
        or any(kind.__name__ in _FAILURES for kind in type(cause).__mro__)
    )


class StandardStore(Store):
    """See the module."""

    mode = "standard"

    def __init__(self, cache_alias: str) -> None:
        self._alias = cache_alias

    def database(self) -> str | None:
        cache = caches[self._alias]
        if isinstance(cache, BaseDatabaseCache):
            alias: str = router.db_for_write(cache.cache_model_class)
            return alias
        return None

    def read(self, namespace: str, entry: str, tables: Sequence[str]) -> Lookup:
        if self._is_in_transaction():
            return Lookup(None, None, Reason.CACHE_UNREACHABLE)
        entry_key = f"ormcache:{namespace}:e:{entry}"
        keys = self._registers(namespace, (EVERYTHING, *tables))
        found = self._look(entry_key, keys)
        missing = [key for key in keys if key not in found]
        if missing:
            for key in missing:
                # Not set(): that could undo a mark that a writer has put there meanwhile.
                self._call("add", key, _CLEAN + new_nonce(), None)
            found = self._fetch(keys)
        values = [found.get(key) for key in keys]
        if not all(isinstance(value, str) and value.startswith(_CLEAN) for value in values):
            self._replace_damaged(found, keys)
            return Lookup(None, None, Reason.BUSY, current().LEASE)
        # The name of the entry binds it to its question: copied to another key, it is no answer.
        vector = ";".join((entry, *map(str, values)))
        value = found.get(entry_key)
        if type(value) is tuple and len(value) == 2 and value[0] == vector:
            return Lookup(value[1], vector)
        return Lookup(b"" if value is _UNREADABLE else None, vector)

    def _look(self, entry_key: str, keys: list[str]) -> dict[str, Any]:
        """Entry and registers; an entry that cannot be unpickled is no sign of a dead cache."""
        try:
            return self._call("get_many", [entry_key, *keys])  # type: ignore[no-any-return]
        except CacheError as error:
            if _is_out_of_reach(error):
                raise
        return {**self._fetch(keys), entry_key: _UNREADABLE}

    def _fetch(self, keys: Sequence[str]) -> dict[str, Any]:
        """Registers; those that cannot be unpickled are :data:`_UNREADABLE`."""
        try:
            return self._call("get_many", keys)  # type: ignore[no-any-return]
        except CacheError as error:
            if _is_out_of_reach(error):
                raise
            found = {key: self._fetch_one(key) for key in keys}
            if _UNREADABLE not in found.values():
                # It is something else that is wrong.
                raise
        return {key: value for key, value in found.items() if value is not None}

    def _fetch_one(self, key: str) -> Any:
        try:
            return self._call("get", key)
        except CacheError as error:
            if _is_out_of_reach(error):
                raise
        return _UNREADABLE

    def _replace_damaged(self, found: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Mark those of the registers that hold nothing of ours, as before a commit."""
        for key in keys:
            value = found.get(key)
            if isinstance(value, str) and value.startswith((_CLEAN, _DIRTY)):
                continue
            if key in found or self._is_hidden(key):
                self._call("set", key, _DIRTY + new_nonce(), _lease())

    def _is_hidden(self, key: str) -> bool:
        """Whether something is there that the cache does not show.

        pymemcache does so with what cannot be unpickled; a server that cannot be reached is empty.
        """
        try:
            # For a lease: if it is a mark by now, it must not stay for ever.
            return bool(self._call("touch", key, _lease()))
        except CacheError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return False
            raise

    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        self._call(
            "set",
            f"ormcache:{namespace}:e:{entry}",
            (vector, payload),
            timeout and math.ceil(timeout),
        )

    def drop(self, namespace: str, entry: str) -> None:
        self._call("delete", f"ormcache:{namespace}:e:{entry}")

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._surely_set(namespace, tables, _DIRTY + intent, _lease())

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._set(self._registers(namespace, tables), _CLEAN + new_nonce(), None)

    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        self._surely_set(namespace, tables, _CLEAN + new_nonce(), None)

    def status(self, namespace: str) -> dict[str, object]:
        return {}

    def _registers(self, namespace: str, tables: Sequence[str]) -> list[str]:
        return [f"ormcache:{namespace}:r:{_as_part_of_key(table)}" for table in tables]

    def _set(self, keys: Sequence[str], value: str, timeout: float | None) -> None:
        failed = self._call("set_many", dict.fromkeys(keys, value), timeout)
        if failed:
            raise CacheError(f"the cache did not store {', '.join(map(str, failed))}")

    def _surely_set(
        self, namespace: str, tables: Sequence[str], value: str, timeout: float | None
    ) -> None:
        """Set registers and look whether they are, or were marked by another writer."""
        keys = self._registers(namespace, tables)
        for _ in range(_ATTEMPTS):
            self._set(keys, value, timeout)
            found = self._fetch(keys)
            if all(
                isinstance(there, str) and (there == value or there.startswith(_DIRTY))
                for there in map(found.get, keys)
            ):
                return
            # Swallowed errors, or the end of another commit came in between.
        raise CacheError("the cache did not keep what it was told")

    def _is_in_transaction(self) -> bool:
        """Whether the cache lives in a database that has a transaction open on this thread.

        Others would not see what is set in it, and what is read may be a snapshot.
        """
        home = self.database()
        if home is None:
            return False
        connection = connections[home]
        if connection.connection is None:
            # Not get_autocommit(): that would connect, and could fail.
            return not connection.settings_dict["AUTOCOMMIT"]
        return connection.in_atomic_block or not connection.autocommit

    def _call(self, method: str, *args: Any) -> Any:
        try:
            with store_access():
                if self._is_in_transaction():
                    raise CacheError("the cache is inside a transaction of its database")
                return getattr(caches[self._alias], method)(*args)
        except CacheError:
            raise
        except Exception as error:
            let_through(error)
            raise CacheError(f"{type(error).__name__}: {error}") from error
