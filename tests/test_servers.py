"""The servers that tests start themselves: replicas that can be held back, and a pooler.

And what is said where one is missing.
"""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from ormcache.stores import strict_store
from tests import servers, servers_plugin
from tests.marks import needs, on_caches, on_redis_and_valkey
from tests.servers import (
    HOST,
    MariaDBReplica,
    MariaDBServer,
    MemcachedServer,
    MissingProgram,
    PgBouncerServer,
    PostgreSQLReplica,
    PostgreSQLServer,
    RedisServer,
    ValkeyServer,
    exchange,
)

TABLE = "CREATE TABLE {} AS SELECT 'old' AS name"
RENAME = "UPDATE {} SET name = 'new'"
NAME = "SELECT name FROM {}"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQLServer]:
    with PostgreSQLServer() as server:
        yield server


@pytest.fixture
def bouncer(postgresql: PostgreSQLServer) -> Iterator[PgBouncerServer]:
    with PgBouncerServer(postgresql.port, options={"default_pool_size": "1"}) as server:
        yield server


def follow(primary: Any, replica: Any, table: str) -> None:
    """The facts that every kind of replica has to live up to."""
    primary.ask(TABLE.format(table))
    replica.wait_for_primary()
    assert replica.ask(NAME.format(table)) == "old"
    replica.pause_replay()
    primary.ask(RENAME.format(table))
    assert replica.ask(NAME.format(table)) == "old"
    replica.resume_replay()
    replica.wait_for_primary()
    assert replica.ask(NAME.format(table)) == "new"


@needs("postgresql")
def test_a_replica_of_postgresql_follows_and_can_be_held_back(
    postgresql: PostgreSQLServer,
) -> None:
    with PostgreSQLReplica(postgresql) as replica:
        assert replica.ask("SELECT pg_is_in_recovery()") == "t"
        follow(postgresql, replica, "followed")


@needs("postgresql")
def test_a_replica_of_postgresql_catches_up_after_a_crash(postgresql: PostgreSQLServer) -> None:
    with PostgreSQLReplica(postgresql) as replica:
        replica.kill()
        postgresql.ask(TABLE.format("missed"))
        replica.start()
        replica.wait_for_primary()
        assert replica.ask(NAME.format("missed")) == "old"


@needs("mariadb")
def test_a_replica_of_mariadb_follows_and_can_be_held_back() -> None:
    with MariaDBServer(server_id=1) as primary, MariaDBReplica(primary) as replica:
        primary.ask("CREATE DATABASE shop")
        follow(primary, replica, "shop.followed")
        replica.kill()
        primary.ask(TABLE.format("shop.missed"))
        replica.start()
        replica.wait_for_primary()
        assert replica.ask(NAME.format("shop.missed")) == "old"


def connect(bouncer: PgBouncerServer) -> "psycopg.Connection[Any]":
    return psycopg.connect(
        host=HOST, port=bouncer.port, user="postgres", dbname="postgres", autocommit=True
    )


def session_of(client: "psycopg.Connection[Any]") -> int:
    row = client.execute("SELECT pg_backend_pid()").fetchone()
    assert row
    found: int = row[0]
    return found


@needs("postgresql")
def test_clients_of_the_pooler_share_a_session_of_the_server(bouncer: PgBouncerServer) -> None:
    """Transaction mode, as most sites have it: what one client sets is there for the next."""
    with connect(bouncer) as one, connect(bouncer) as other:
        assert session_of(one) == session_of(other)
        one.execute("SET work_mem = '7MB'")
        assert other.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert "transaction" in bouncer.ask("SHOW POOLS")


@needs("postgresql")
def test_a_client_of_the_pooler_in_session_mode_leaves_nothing_behind(
    postgresql: PostgreSQLServer,
) -> None:
    options = {"default_pool_size": "1"}
    with PgBouncerServer(postgresql.port, pool_mode="session", options=options) as bouncer:
        with connect(bouncer) as one:
            session = session_of(one)
            one.execute("SET work_mem = '7MB'")
        with connect(bouncer) as other:
            assert session_of(other) == session
            assert other.execute("SHOW work_mem").fetchone() != ("7MB",)


@pytest.mark.parametrize("kind", [*servers.SHARED, *servers.OWN])
def test_a_missing_program_is_named_with_its_package(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_program_directories", lambda: ("/nonexistent",))
    assert servers.missing_programs()[kind.programs[0]] == kind.package
    assert not servers.is_installed(kind)


def test_a_server_whose_program_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_program_directories", lambda: ("/nonexistent",))
    with pytest.raises(MissingProgram, match="apt-get install redis-server"):
        RedisServer()


@on_redis_and_valkey
def test_a_server_is_the_program_of_its_kind(server_kind: type[RedisServer]) -> None:
    with server_kind() as server:
        info = servers.exchange(server.port, b"INFO server\r\n")
    assert (b"valkey_version" in info) == (server_kind is ValkeyServer)


@needs("valkey")
@on_caches("redis", "django_redis", "django_valkey")
def test_only_the_client_of_valkey_is_tested_with_valkey(cache: str) -> None:
    store: Any = strict_store(cache)
    info = store._channels.run(lambda channel: channel.info(b"server"))
    store.close()
    assert (b"valkey_version" in info) == (cache == "django_valkey")


@needs("redis")
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1 ALL", "CONFIG SET maxmemory 1"],
)
def test_the_redis_that_tests_share_refuses_what_others_would_feel(command: str) -> None:
    """What another worker had just stored was not there, once in a hundred runs."""
    answer = exchange(int(os.environ[RedisServer.variable()]), f"{command}\r\n".encode())
    assert answer.startswith(b"-NOPERM"), answer


@needs("memcached")
def test_the_memcached_that_tests_share_cannot_be_emptied() -> None:
    answer = exchange(int(os.environ[MemcachedServer.variable()]), b"flush_all\r\n")
    assert answer == b"CLIENT_ERROR flush_all not allowed\r\n"


def test_valkey_alone_may_be_missing_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_program_directories", lambda: ("/nonexistent",))
    for kind in servers.SHARED:
        monkeypatch.delenv(kind.variable(), raising=False)
    missing = " ".join(servers_plugin._what_is_missing())
    for kind in (*servers.SHARED, *servers.OWN):
        assert (f"apt-get install {kind.package}" in missing) == (kind is not ValkeyServer)


class Item:
    """A test that needs what `django_valkey` needs."""

    def __init__(self) -> None:
        self.user_properties: list[Any] = []
        self.skipped: list[str] = []

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        yield needs("valkey or redis").mark

    def get_closest_marker(self, name: str) -> None:
        return None

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.skipped.append(marker.kwargs["reason"])


def last_lines_after(item: Item) -> list[str]:
    """What the run says in the end, if the test has passed."""
    untested, lines = servers_plugin.Untested(), []
    place = ("tests/test_it.py", 1, "test_it")
    untested.pytest_runtest_logreport(
        pytest.TestReport(
            "test_it", place, {}, "passed", None, "call", user_properties=item.user_properties
        )
    )
    terminal = SimpleNamespace(write_line=lambda line, **colours: lines.append(line))
    manager = SimpleNamespace(get_plugin=lambda name: terminal)
    config: Any = SimpleNamespace(pluginmanager=manager)
    untested.pytest_unconfigure(config)
    return lines


@pytest.mark.parametrize("has_valkey", [True, False])
@pytest.mark.parametrize("has_redis", [True, False])
def test_the_last_lines_tell_if_the_client_of_valkey_was_tested_with_redis(
    monkeypatch: pytest.MonkeyPatch, has_valkey: bool, has_redis: bool
) -> None:
    for kind, is_there in ((ValkeyServer, has_valkey), (RedisServer, has_redis)):
        if is_there:
            monkeypatch.setenv(kind.variable(), "1")
        else:
            monkeypatch.delenv(kind.variable(), raising=False)
    item: Any = Item()
    servers_plugin.pytest_collection_modifyitems([item])
    assert bool(item.skipped) == (not has_valkey and not has_redis)
    told = [
        "NOT TESTED WITH VALKEY, but its client with Redis: test_it.py (1): "
        "needs Valkey: apt-get install valkey-server"
    ]
    assert last_lines_after(item) == (told if has_redis and not has_valkey else [])
