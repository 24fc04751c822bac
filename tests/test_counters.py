"""How often each table was read from the cache."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import transaction

import ormcache
from ormcache import counters
from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from tests.marks import on_databases
from tests.models import Author, Book
from tests.watching import Watch


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    counters.reset()
    yield
    counters.reset()


def test_at_first_there_is_nothing() -> None:
    assert ormcache.statistics() == {}


def test_a_read_of_several_tables_counts_for_each() -> None:
    counters.count_read("a", ("one", "two"), "hit")
    counters.count_read("a", ("one",), "hit")
    counters.count_read("a", ("one",), "miss")
    assert ormcache.statistics() == {"a": {"one": {"hit": 2, "miss": 1}, "two": {"hit": 1}}}


def test_a_read_without_tables_counts_under_no_name() -> None:
    counters.count_read("a", (), "skip: iterator()")
    assert ormcache.statistics() == {"a": {"": {"skip: iterator()": 1}}}


def test_events_are_added_to_the_reads_of_a_table() -> None:
    counters.count_read("a", ("one",), "hit")
    counters.count_event("a", ["one", "two"], "invalidated")
    assert ormcache.statistics() == {
        "a": {"one": {"hit": 1, "invalidated": 1}, "two": {"invalidated": 1}}
    }


def test_aliases_are_kept_apart_and_can_be_chosen() -> None:
    for alias in ("b", "a", "c"):
        counters.count_read(alias, ("one",), "hit")
    assert list(ormcache.statistics()) == ["a", "b", "c"]
    assert list(ormcache.statistics(["a", "c", "unknown"])) == ["a", "c"]
    assert ormcache.statistics([]) == {}


def test_what_is_returned_can_be_changed_without_harm() -> None:
    counters.count_read("a", ("one",), "hit")
    ormcache.statistics()["a"]["one"]["hit"] = 99
    assert ormcache.statistics() == {"a": {"one": {"hit": 1}}}


def test_reset_starts_at_nothing_again() -> None:
    counters.count_read("a", ("one",), "hit")
    counters.count_event("a", ("one",), "invalidated")
    counters.reset()
    assert ormcache.statistics() == {}


def test_no_read_of_any_thread_is_lost() -> None:
    def count() -> None:
        for _ in range(2_000):
            counters.count_read("a", ("one",), "hit")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ormcache.statistics() == {"a": {"one": {"hit": 8_000}}}


# --- what is counted -------------------------------------------------------------------------


def of(table: str, using: str = "default") -> dict[str, int]:
    return ormcache.statistics().get(using, {}).get(table, {})


@on_databases(transaction=True)
def test_misses_hits_and_invalidations_are_counted(cached: Watch, using: str) -> None:
    counters.reset()
    Author.objects.using(using).create(name="a")
    for _ in range(3):
        list(Author.objects.using(using))
    assert of("tests_author", using) == {"invalidated": 1, "miss": 1, "hit": 2}


@on_databases("default", transaction=True)
def test_a_join_counts_for_each_table(cached: Watch) -> None:
    counters.reset()
    for _ in range(2):
        list(Book.objects.select_related("author"))
    assert of("tests_author") == of("tests_book") == {"miss": 1, "hit": 1}


@on_databases("default", transaction=True)
def test_a_skip_counts_with_its_reason(cached: Watch) -> None:
    counters.reset()
    list(Author.objects.order_by("?"))
    list(Author.objects.iterator())
    assert of("tests_author") == {"skip: random order": 1}
    assert of("") == {"skip: iterator()": 1}


@on_databases("default", transaction=True)
def test_a_rolled_back_write_counts_as_nothing(cached: Watch) -> None:
    counters.reset()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Author.objects.create(name="a")
        raise ZeroDivisionError
    assert of("tests_author") == {}


@on_databases("default", transaction=True)
def test_a_commit_counts_once_for_each_table_whatever_it_wrote(cached: Watch) -> None:
    counters.reset()
    with transaction.atomic():
        author = Author.objects.create(name="a")
        Author.objects.create(name="b")
        Book.objects.create(title="c", author=author)
    assert of("tests_author") == of("tests_book") == {"invalidated": 1}


@on_databases("default", transaction=True)
def test_a_flush_counts_for_everything(cached: Watch) -> None:
    counters.reset()
    ormcache.flush(using="default")
    assert of("*") == {"invalidated": 1}


@on_databases("default", transaction=True)
def test_a_corrupt_entry_counts_as_such_and_as_a_miss(
    cached: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.miss(Author.objects.count)
    store = caches["locmem"]
    original = store.get
    monkeypatch.setattr(store, "get", lambda key: (original(key)[0], b"rubbish"))
    counters.reset()
    assert cached.miss(Author.objects.count) == 0
    assert of("tests_author") == {"corrupt": 1, "miss": 1}


@on_databases("default", transaction=True)
def test_a_miss_that_is_not_stored_counts_with_its_reason(cached: Watch, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": 1}
    counters.reset()
    list(Author.objects.all())
    assert of("tests_author") == {"miss": 1, f"not stored: {Reason.TOO_LARGE}": 1}


@on_databases("default", transaction=True)
def test_a_write_that_the_cache_was_not_told_of_counts(
    cached: Watch, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ormcache.stores import LocMemStore

    def fail(*args: Any) -> None:
        raise CacheError("out of order")

    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}
    counters.reset()
    with monkeypatch.context() as patch:
        patch.setattr(LocMemStore, "arm", fail)
        Author.objects.create(name="a")
    assert of("tests_author") == {"unannounced": 1}
    # Pay what is owed, for the tests to come.
    from django.db import connection

    from ormcache import debts
    from ormcache.conf import current
    from ormcache.connection_state import state_of
    from ormcache.stores import breaker_for

    breaker_for("locmem").succeeded()
    assert debts.pay(state_of(connection).route(connection, current()))
