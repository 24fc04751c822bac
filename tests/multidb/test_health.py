"""A replica that is down costs nobody an error but those whose queries are on their way."""

import logging
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connections, transaction

from ormcache import replica_router
from ormcache.routers import ReplicaRouter, health
from ormcache.stores import breaker as breakers
from tests.aliases import alias_of
from tests.interleaving import Background, pause_before, session
from tests.marks import on_databases
from tests.models import Author
from tests.multidb.conftest import REPLICA, reader
from tests.proxies import Proxy
from tests.servers import HOST

on_servers = on_databases("postgresql", "mariadb", transaction=True)


@pytest.fixture
def proxy(using: str, fresh: None, unguarded: None, settings: Any) -> Iterator[Proxy]:
    """What stands between Django and the replica; this process has not connected to it yet."""
    with (
        Proxy(int(connections[using].settings_dict["PORT"])) as proxy,
        alias_of(using, REPLICA, HOST=HOST, PORT=str(proxy.port)),
    ):
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "CACHE_ALIAS": "locmem",
            "DATABASES": {REPLICA: {"PRIMARY": using}},
        }
        settings.DATABASE_ROUTERS = [ReplicaRouter(using)]
        connections[REPLICA].close()
        health._forget()
        yield proxy
        proxy.mend()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the pause after a failure pass."""
    now = 1000.0
    monkeypatch.setattr(breakers, "time", types.SimpleNamespace(monotonic=lambda: now))

    def later() -> None:
        nonlocal now
        now += 60

    return later


def count_authors() -> int:
    return Author.objects.count()


# --- down at the start -------------------------------------------------------------------------


@on_servers
def test_a_replica_that_is_down_at_the_start_is_not_read(
    proxy: Proxy, using: str, later: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    proxy.cut()
    with caplog.at_level(logging.WARNING, logger="ormcache"):
        assert count_authors() == 0
        assert [reader() for _ in range(5)] == [using] * 5
    (record,) = caplog.records
    assert "'replica' does not answer" in record.getMessage()
    proxy.mend()
    assert reader() == using
    later()
    assert reader() == REPLICA


@on_servers
def test_a_replica_that_stays_down_is_tried_now_and_then(
    proxy: Proxy,
    using: str,
    later: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.cut()
    tried: list[int] = []
    connection = connections[REPLICA]
    connect = connection.connect

    def counted() -> None:
        tried.append(1)
        connect()

    monkeypatch.setattr(connection, "connect", counted)
    for times in (1, 2, 3):
        assert [reader() for _ in range(5)] == [using] * 5
        assert len(tried) == times
        later()


@on_servers
def test_another_replica_is_read_instead(proxy: Proxy, using: str, settings: Any) -> None:
    with alias_of(using, "second"):
        databases = {**settings.ORMCACHE["DATABASES"], "second": {"PRIMARY": using}}
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": databases}
        assert {reader() for _ in range(4)} == {REPLICA, "second"}
        proxy.cut()
        with pytest.raises(OperationalError):
            Author.objects.using(REPLICA).count()
        assert {reader() for _ in range(4)} == {"second"}


@on_servers
def test_while_one_thread_tries_the_others_do_not_wait(
    proxy: Proxy, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = pause_before(monkeypatch, replica_router, "_connect")
    one = Background(reader)
    pause.wait()
    assert reader() == using
    pause.end()
    assert one.result() == REPLICA
    assert reader() == REPLICA


# --- dying while it is used --------------------------------------------------------------------


@on_servers
def test_after_a_query_that_failed_the_others_go_elsewhere(
    proxy: Proxy, using: str, later: Callable[[], None]
) -> None:
    assert reader() == REPLICA
    proxy.cut()
    with pytest.raises(OperationalError):
        count_authors()
    assert [reader() for _ in range(5)] == [using] * 5
    assert count_authors() == 0
    assert Background(reader).result() == using
    proxy.mend()
    later()
    # On a new connection: the old one is known to be lost.
    assert reader() == REPLICA
    assert count_authors() == 0


@on_servers
def test_a_new_connection_that_is_refused_is_noticed_too(proxy: Proxy, using: str) -> None:
    assert reader() == REPLICA
    connections[REPLICA].close()
    proxy.cut()
    with pytest.raises(OperationalError):
        count_authors()
    assert [reader() for _ in range(5)] == [using] * 5


@on_servers
def test_a_user_who_reaches_it_by_its_name_brings_it_back(proxy: Proxy, using: str) -> None:
    assert reader() == REPLICA
    connections[REPLICA].close()
    proxy.cut()
    with pytest.raises(OperationalError):
        count_authors()
    proxy.mend()
    assert reader() == using
    assert Author.objects.using(REPLICA).count() == 0
    assert reader() == REPLICA


@on_servers
def test_a_session_that_the_server_has_ended_is_a_lost_connection(
    proxy: Proxy, using: str, later: Callable[[], None]
) -> None:
    assert reader() == REPLICA
    kill, number = {
        "postgresql": ("SELECT pg_terminate_backend(%s)", "SELECT pg_backend_pid()"),
        "mariadb": ("KILL %s", "SELECT CONNECTION_ID()"),
    }[using]
    with connections[REPLICA].cursor() as cursor:
        cursor.execute(number)
        (session,) = cursor.fetchone()
    with connections[using].cursor() as cursor:
        cursor.execute(kill, [session])
    with pytest.raises(OperationalError):
        Author.objects.using(REPLICA).count()
    assert reader() == using
    later()
    assert reader() == REPLICA


# A statement that takes too long, and one that somebody forbids.
FAILING = {
    "postgresql": "SELECT pg_sleep(10)",
    "mariadb": "SIGNAL SQLSTATE '45000'",
}


@on_servers
def test_a_query_that_fails_for_another_reason_says_nothing_of_the_server(
    proxy: Proxy, using: str
) -> None:
    options = connections[REPLICA].settings_dict["OPTIONS"]
    if using == "postgresql":
        options = {**options, "options": "-c statement_timeout=50"}
    with session(REPLICA, OPTIONS=options):
        assert reader() == REPLICA
        with pytest.raises(OperationalError), connections[REPLICA].cursor() as cursor:
            cursor.execute(FAILING[using])
        assert reader() == REPLICA


@on_servers
def test_a_transaction_of_the_users_on_a_lost_connection_is_left_to_him(
    proxy: Proxy, using: str, later: Callable[[], None]
) -> None:
    assert reader() == REPLICA
    with pytest.raises(OperationalError), transaction.atomic(using=REPLICA):
        proxy.cut()
        with pytest.raises(OperationalError):
            Author.objects.using(REPLICA).count()
        proxy.mend()
        later()
        assert reader() == using
        Author.objects.using(REPLICA).count()
    assert reader() == REPLICA


# --- while all is well -------------------------------------------------------------------------


@on_servers
def test_a_coroutine_does_not_connect(proxy: Proxy, using: str) -> None:
    async def ask() -> str:
        return reader()

    assert async_to_sync(ask)() == using
    assert reader() == REPLICA
    assert async_to_sync(ask)() == REPLICA


@on_servers
def test_what_is_known_of_servers_is_not_known_to_a_child_process(proxy: Proxy) -> None:
    """A lock that was held while it was forked would be held for ever."""
    assert reader() == REPLICA
    assert REPLICA in health.well
    health._forget()
    assert REPLICA not in health.well
    assert reader() == REPLICA
