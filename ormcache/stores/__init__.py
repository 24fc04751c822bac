"""From a cache alias to the store that keeps entries and registers in it."""

from __future__ import annotations

import os
import threading
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.signals import setting_changed

from ormcache.exceptions import SettingsError
from ormcache.stores.base import EVERYTHING, Lookup, Store, is_store_access
from ormcache.stores.breaker import Breaker
from ormcache.stores.locmem import LocMemStore
from ormcache.stores.redis import RedisStore, connection_pool
from ormcache.stores.standard import StandardStore

__all__ = [
    "EVERYTHING",
    "Breaker",
    "LocMemStore",
    "Lookup",
    "Store",
    "breaker_for",
    "generation",
    "is_store_access",
    "store_for",
    "strict_store",
]

# For the same thread not exclusive: the handler of a signal may read, too.
_lock = threading.RLock()


def _renew_lock() -> None:
    # Another thread may have held it when this process was forked.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
_stores: dict[tuple[str, str], Store | None] = {}
_breakers: dict[str, Breaker] = {}
_generation = 0


def generation() -> int:
    """Changes when ``CACHES`` does; whoever keeps a store asks again then."""
    return _generation


def strict_store(cache_alias: str) -> Store | None:
    """A new store with strict consistency, or None if the cache cannot give that."""
    cache: Any = caches[cache_alias]
    if isinstance(cache, LocMemCache):
        return LocMemStore(cache)
    pool = connection_pool(cache)
    return None if pool is None else RedisStore(pool)


def _make(cache_alias: str, consistency: str) -> Store | None:
    if cache_alias not in caches:
        raise SettingsError(
            f"ORMCACHE uses the cache alias {cache_alias!r}, which CACHES does not have. "
            f"Known aliases: {', '.join(sorted(caches))}."
        )
    if isinstance(caches[cache_alias], DummyCache):
        return None
    if consistency == "standard":
        return StandardStore(cache_alias)
    store = strict_store(cache_alias)
    if store is None and consistency == "auto":
        return StandardStore(cache_alias)
    return store


def store_for(cache_alias: str, consistency: str) -> Store | None:
    """The store of a cache, the same for all who ask.

    Args:
        cache_alias: a key of ``CACHES``; raises SettingsError if it is not.
        consistency: ``ORMCACHE["CONSISTENCY"]``.

    Returns:
        None where nothing can be cached: a dummy cache, or one too weak for ``"strict"``.
    """
    key = (cache_alias, consistency)
    if key not in _stores:
        with _lock:
            if key not in _stores:
                store = _make(cache_alias, consistency)
                # By now a handler may have made one, and have used it.
                _stores.setdefault(key, store)
    return _stores[key]


def breaker_for(cache_alias: str) -> Breaker:
    """The circuit breaker of a cache, the same for all who ask."""
    return _breakers.setdefault(cache_alias, Breaker())


def _forget(*, setting: str, **kwargs: object) -> None:
    global _generation
    if setting == "CACHES":
        _generation += 1
        with _lock:
            for store in _stores.values():
                if store is not None:
                    store.close()
            _stores.clear()
            _breakers.clear()


# Receivers run in order of connection; Django's own closes the caches themselves.
setting_changed.connect(_forget, dispatch_uid="ormcache.stores")
