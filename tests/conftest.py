"""Fixtures of all tests."""

import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import TransactionTestCase

import ormcache
from ormcache import tables
from tests.backdoor import empty
from tests.servers import RedisServer
from tests.watching import Watch, wait_for_quarantine

# It has settings of its own, and is run by `tests.multidb.test_tenants`.
collect_ignore = ["tenants_project"] if django_settings.SETTINGS_MODULE == "tests.settings" else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Measure no coverage in what is slow: it takes three times as long, and covers no more.

    The marker `no_cover` of pytest-cov does not reach what coverage has started in the processes
    of pytest-xdist, as in all others.
    """
    if not any(item.get_closest_marker(name) for name in ("slow", "unmeasured")):
        return (yield)
    own, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(own)
        threading.settrace(of_threads)


@pytest.fixture(autouse=True)
def _no_tables_of_other_tests() -> Iterator[None]:
    """Forget tables without a model that the test made known: they are words to the next one."""
    seen = set(tables.known._seen)
    yield
    if tables.known._seen != seen:
        tables.known._seen = seen
        tables.known.forget()


@pytest.fixture
def using() -> str:
    """The database alias; `tests.marks.on_databases` chooses others."""
    return "default"


@pytest.fixture
def cache() -> str:
    """The cache alias; `tests.marks.on_caches` chooses others."""
    return "locmem"


@pytest.fixture(scope="module")
def server_kind(request: pytest.FixtureRequest) -> type[RedisServer]:
    """What a test's own Redis server is; `tests.marks.on_redis_and_valkey` chooses others."""
    kind: type[RedisServer] = getattr(request, "param", RedisServer)
    return kind


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


@pytest.fixture
def author(using: str, cached: Watch) -> Any:
    """An author whose name is `tests.authors.OLD`."""
    from tests import authors, factories

    with factories.using(using):
        return factories.AuthorFactory(name=authors.OLD)


@pytest.fixture
def names(using: str) -> Any:
    """The names of all authors: `tests.authors.Names`."""
    # Imported here, as not all settings have these models.
    from tests.authors import Names

    return Names(using)


@pytest.fixture
def tags(using: str, cached: Watch) -> Any:
    """There is one tag, "a"; the question for the names of all: `tests.describing.Tags`."""
    from tests.describing import Tags
    from tests.models import Tag

    Tag.objects.using(using).create(name="a")
    return Tags(using)


@pytest.fixture
def emptied(request: pytest.FixtureRequest) -> None:
    """Let the test, which is one of many, end with `tests.backdoor.empty` instead of a flush.

    The cache is told nothing of that: only tests with the fixture `cached` may use it.
    """
    if request.node.get_closest_marker("django_db") is None:
        return
    flush = TransactionTestCase._fixture_teardown

    def once(test_case: TransactionTestCase) -> None:
        TransactionTestCase._fixture_teardown = flush
        for alias in test_case._databases_names(include_mirrors=False):
            empty(alias)

    TransactionTestCase._fixture_teardown = once
