"""Standard consistency in any of Django's caches, by ``get_many`` and ``set_many`` alone.

The same bracket as in strict mode with plain values: a register holds ``c:<nonce>`` (clean) or
``d:<intent>`` (a commit is on its way). Without scripts the intents of two writers cannot be
counted, so an answer can be out of date while two commits to one table overlap, for as long as
the second needs from its COMMIT to its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.db import router

from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from ormcache.stores.base import EVERYTHING, Lookup, Store, new_nonce, store_access


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
        entry_key = f"ormcache:{namespace}:e:{entry}"
        keys = self._registers(namespace, (EVERYTHING, *tables))
        found = self._call("get_many", [entry_key, *keys])
        missing = [key for key in keys if key not in found]
        if missing:
            for key in missing:
                # Not set(): that could undo a mark that a writer has put there meanwhile.
                self._call("add", key, "c:" + new_nonce(), None)
            found = self._call("get_many", keys)
        values = [found.get(key) for key in keys]
        if not all(isinstance(value, str) and value.startswith("c:") for value in values):
            return Lookup(None, None, Reason.BUSY, current().LEASE)
        vector = ";".join(values)
        value = found.get(entry_key)
        if type(value) is tuple and len(value) == 2 and value[0] == vector:
            return Lookup(value[1], vector)
        return Lookup(None, vector)

    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        self._call(
            "set",
            f"ormcache:{namespace}:e:{entry}",
            (vector, payload),
            timeout and math.ceil(timeout),
        )

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._set(namespace, tables, "d:" + intent, math.ceil(current().LEASE))

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._set(namespace, tables, "c:" + new_nonce(), None)

    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        self._set(namespace, tables, "c:" + new_nonce(), None)

    def status(self, namespace: str) -> dict[str, object]:
        return {}

    def _registers(self, namespace: str, tables: Sequence[str]) -> list[str]:
        # Memcached takes neither spaces nor control characters in a key.
        return [
            f"ormcache:{namespace}:r:"
            + (
                table
                if table.isascii() and table.isprintable() and " " not in table
                else "x" + table.encode().hex()
            )
            for table in tables
        ]

    def _set(
        self, namespace: str, tables: Sequence[str], value: str, timeout: float | None
    ) -> None:
        keys = self._registers(namespace, tables)
        failed = self._call("set_many", dict.fromkeys(keys, value), timeout)
        if failed:
            raise CacheError(f"the cache did not store {', '.join(map(str, failed))}")

    def _call(self, method: str, *args: Any) -> Any:
        try:
            with store_access():
                return getattr(caches[self._alias], method)(*args)
        except Exception as error:
            raise CacheError(f"{type(error).__name__}: {error}") from error
