"""Fixtures of all tests."""

from collections.abc import Iterator
from typing import Any

import pytest

import ormcache
from tests.watching import Watch, wait_for_quarantine


@pytest.fixture
def using() -> str:
    """The database alias; `tests.marks.on_databases` chooses others."""
    return "default"


@pytest.fixture
def cache() -> str:
    """The cache alias; `tests.marks.on_caches` chooses others."""
    return "locmem"


@pytest.fixture
def cached(using: str, cache: str, settings: Any) -> Iterator[Watch]:
    """ormcache at work on `using` with `cache`, with nothing in it yet.

    The test needs a database with real transactions: `on_databases(..., transaction=True)`.
    """
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": cache}
    ormcache.flush(using=using)
    wait_for_quarantine(using)
    with Watch(using) as watch:
        yield watch
