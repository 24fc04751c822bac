"""What is written while the cache cannot be told is not read from it afterwards."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ormcache import counters, debts
from ormcache.conf import current
from ormcache.exceptions import CacheError, CacheUnreachable
from tests import servers
from tests.authors import NEW, OLD, Names, rename, update
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.handlers import handling, interrupted
from tests.interleaving import (
    SECONDS,
    Background,
    pause_before,
    route_of,
    store_of,
)
from tests.marks import on_databases, on_pairs, scenario
from tests.models import Author, Tag
from tests.watching import Watch, wait_for_quarantine

pytestmark = pytest.mark.usefixtures("emptied")

on_all = on_databases(transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)


# --- the cache cannot be told ------------------------------------------------------------------


def test_what_the_handler_of_a_signal_writes_while_a_debt_is_paid_stays_owed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger, place = debts.Debts(), ("cache", "namespace")
    ledger.begin(place, ["a", "b"])
    ledger.end(place, ["a", "b"])

    class Struck(set[debts.Debt]):
        def difference_update(self, *others: Any) -> None:
            interrupted()
            super().difference_update(*others)

    ledger._written = Struck(ledger._written)

    def write(*args: Any) -> None:
        ledger.begin(place, ["a"])
        ledger.end(place, ["a"])

    with handling(write):
        ledger.paid(ledger.due(place))
    assert ledger.tables(place) == {"a"}


def test_a_write_under_way_is_not_paid_for_by_the_handler_of_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes at any step of the beginning of the write."""
    ledger, place = debts.Debts(), ("cache", "namespace")

    def pay(*args: Any) -> None:
        ledger.paid(ledger.due(place))

    original = debts.Debts._write

    def struck(*args: Any) -> None:
        interrupted()
        original(*args)
        interrupted()

    monkeypatch.setattr(debts.Debts, "_write", struck)
    with handling(pay):
        ledger.begin(place, ["a"])
        assert ledger.tables(place) == {"a"}
        ledger.end(place, ["a"])
    assert ledger.tables(place) == {"a"}
    pay()
    assert not ledger


@pytest.fixture
def broken(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> Iterator[Callable[[], None]]:
    """The cache holds the names and cannot be told of anything until the function is called."""
    cached.warm(names)
    store, breaker = store_of(using), route_of(using).breaker
    # Its pauses would only make the test wait.
    monkeypatch.setattr(breaker, "failed", lambda: None)

    def fail(*args: Any) -> None:
        raise CacheError("out of reach")

    with monkeypatch.context() as patch:
        for method in ("arm", "bump"):
            patch.setattr(store, method, fail)
        yield patch.undo


@scenario(30)
@on_all
def test_a_write_that_the_cache_cannot_be_told_of_is_refused(
    settings: Any,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    with pytest.raises(CacheUnreachable, match="tests_author"):
        rename(using)
    with pytest.raises(CacheUnreachable, match="tests_author"):
        update(using)
    assert issubclass(CacheUnreachable, OperationalError)
    assert names.in_database() == [OLD]
    assert connections[using].get_autocommit()
    assert cached.hit(names) == [OLD]
    broken()
    rename(using)
    assert cached.warm(names) == [NEW]


@pytest.fixture
def let_through(settings: Any, cached: Watch) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}


@scenario(30)
@pytest.mark.parametrize("write", [rename, update])
@on_all
def test_a_write_that_is_let_through_is_not_answered_from_the_cache_until_it_was_told(
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
    write: Callable[[str], None],
) -> None:
    write(using)
    assert names.in_database() == [NEW]
    with cached.expect("cache unreachable", "cache unreachable"):
        assert names() == names() == [NEW]
    assert counters.snapshot([using])[using]["tests_author"]["unannounced"] >= 1
    broken()
    assert cached.warm(names) == [NEW]


@on_postgresql
def test_tables_that_were_not_written_are_served_while_others_are_owed(
    let_through: None, cached: Watch, using: str, author: Author, broken: Callable[[], None]
) -> None:
    def tags() -> int:
        return Tag.objects.using(using).count()

    rename(using)
    cached.warm(tags)
    broken()


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_is_owed_is_not_paid_before_the_commit(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """The cache comes back between the announcement that failed and the COMMIT."""
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    commit.wait()
    broken()
    for _ in range(2):
        assert names() == [OLD]
    commit.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_may_still_be_committed_is_not_paid_within_a_lease(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """The connection is lost at COMMIT: nobody knows whether the server goes on with it."""

    def lose(connection: Any) -> None:
        raise OperationalError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "_commit", lose)
        with pytest.raises(OperationalError, match="lost"):
            rename(using)
    broken()
    with cached.expect("cache unreachable", "cache unreachable"):
        assert names() == names() == [OLD]
    monkeypatch.setattr(
        debts, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + current().LEASE)
    )
    assert cached.warm(names) == [OLD]


@on_pairs(("postgresql", "locmem"), transaction=True)
def test_what_is_written_while_a_debt_is_paid_stays_owed(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    rename(using, "first")
    store, route = store_of(using), route_of(using)

    def bump(*args: Any) -> None:
        # The announcement of this one fails, too.
        rename(using, "second")

    with monkeypatch.context() as patch:
        patch.setattr(store, "bump", bump)
        assert not debts.pay(route)
    assert debts.owed(route) == {"tests_author"}
    broken()
    assert debts.pay(route)
    assert cached.warm(names) == ["second"]


@on_postgresql
def test_the_next_write_that_the_cache_hears_of_pays_what_is_owed(
    monkeypatch: pytest.MonkeyPatch,
    let_through: None,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
) -> None:
    """Other processes need it, even if this one never reads."""
    rename(using)
    broken()
    Tag.objects.using(using).create(name="tag")
    assert debts.owed(route_of(using)) == frozenset()
    assert cached.warm(names) == [NEW]


@pytest.fixture
def own_redis(settings: Any, using: str) -> Iterator[servers.RedisServer]:
    """A Redis server for this test alone, behind the cache alias `own`."""
    with servers.RedisServer() as server:
        settings.CACHES = {
            **settings.CACHES,
            "own": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://{servers.HOST}:{server.port}/0",
            },
        }
        settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "own"}
        wait_for_quarantine(using)
        yield server


@pytest.fixture
def own_watch(own_redis: servers.RedisServer, using: str) -> Iterator[Watch]:
    with factories_using(using):
        AuthorFactory(name=OLD)
    with Watch(using) as watch:
        yield watch


def recovered(cached: Watch, question: Callable[[], Any]) -> Any:
    """The answer, as soon as it comes from the cache again."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer, outcomes = cached.call(question)
        if outcomes == ["hit"]:
            return answer
        assert time.monotonic() < deadline, "nothing is cached any more"
        time.sleep(0.05)


@scenario(30)
@on_postgresql
def test_with_a_dead_redis_writes_are_refused_and_reads_go_to_the_database(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    own_watch.warm(names)
    own_redis.kill()
    with pytest.raises(CacheUnreachable):
        rename(using)
    assert connections[using].get_autocommit()
    with own_watch.expect("cache unreachable"):
        assert names() == [OLD]
    own_redis.start()
    assert recovered(own_watch, names) == [OLD]
    rename(using)
    assert own_watch.warm(names) == [NEW]


@scenario(30)
@on_postgresql
def test_with_a_dead_redis_writes_may_be_let_through(
    let_through_own: None,
    own_redis: servers.RedisServer,
    own_watch: Watch,
    using: str,
    names: Names,
) -> None:
    own_watch.warm(names)
    own_redis.kill()
    rename(using)
    with own_watch.expect("cache unreachable"):
        assert names() == [NEW]
    own_redis.start()
    assert recovered(own_watch, names) == [NEW]


@pytest.fixture
def let_through_own(own_redis: servers.RedisServer, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}


@on_postgresql
def test_a_hung_redis_holds_up_a_write_for_no_longer_than_the_socket_timeout(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    own = {"SOCKET_TIMEOUT": 0.5, "ON_CACHE_FAILURE": "raise"}
    settings.ORMCACHE = {**settings.ORMCACHE, **own}
    # Sockets that are open keep the timeout that they have.
    store_of(using).close()
    own_watch.warm(names)
    own_redis.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(CacheUnreachable):
            rename(using)
        assert time.monotonic() - begun < 10
    finally:
        own_redis.resume()
    assert names.in_database() == [OLD]


@on_postgresql
def test_switched_off_ormcache_does_not_stop_writes_when_the_cache_is_dead(
    own_redis: servers.RedisServer, own_watch: Watch, settings: Any, using: str, names: Names
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False}
    own_redis.kill()
    rename(using)
    with own_watch.expect("switched off"):
        assert names() == [NEW]


@on_postgresql
def test_switched_off_ormcache_still_tells_others_of_writes(
    settings: Any, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    usual = settings.ORMCACHE
    settings.ORMCACHE = {**usual, "ENABLED": False}
    rename(using)
    settings.ORMCACHE = usual
    assert cached.warm(names) == [NEW]


@on_databases("postgresql", transaction=True)
def test_a_refusal_says_that_a_statement_may_have_written_all_tables(
    settings: Any, cached: Watch, using: str, author: Author, broken: Callable[[], None]
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    with (
        connections[using].cursor() as cursor,
        pytest.raises(CacheUnreachable, match=r"^The write to all tables was refused"),
    ):
        cursor.execute("DO $$ BEGIN END $$")


@pytest.mark.parametrize("switch", ["everything", "database"])
@on_all
def test_switched_off_ormcache_tells_of_a_write_when_the_cache_is_back(
    settings: Any,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    broken: Callable[[], None],
    switch: str,
) -> None:
    """Nothing is refused for its sake, and nothing forgotten: others may be answering."""
    usual = settings.ORMCACHE
    databases = {**usual.get("DATABASES", {}), using: {"ENABLED": False}}
    off = {"everything": {"ENABLED": False}, "database": {"DATABASES": databases}}
    settings.ORMCACHE = {**usual, **off[switch]}
    rename(using)
    settings.ORMCACHE = usual
    with cached.expect("cache unreachable"):
        assert names() == [NEW]
    assert counters.snapshot([using])[using]["tests_author"]["unannounced"] >= 1
    broken()
    assert cached.warm(names) == [NEW]
