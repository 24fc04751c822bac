"""Caches that die, hang, forget, come back and lose answers: never an old row, never an error."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction

import ormcache
from ormcache import statistics
from ormcache.brackets import Bracket
from ormcache.exceptions import CacheError, CacheUnreachable
from ormcache.stores import strict_store
from ormcache.stores.channels import Channel, Channels
from ormcache.stores.standard import StandardStore
from tests import backdoor, hammering
from tests.factories import AuthorFactory
from tests.interleaving import SECONDS, Background, pause_after, pause_before, route_of, store_of
from tests.marks import on_databases, on_redis_and_valkey, scenario
from tests.models import Author, Tag
from tests.proxies import Proxy
from tests.servers import HOST, MemcachedServer, RedisServer
from tests.watching import Watch, wait_for_quarantine

PATIENCE = 0.3
"""Seconds until a server that does not answer is given up."""
OLD, NEW = "old", "new"
UNREACHABLE = "cache unreachable"

on_default = on_databases("default", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)


class Shop:
    """One author, whose name is what the tests ask for, and the cache that they attack."""

    def __init__(
        self, using: str, watch: Watch, settings: Any, kind: type[RedisServer], port: int
    ) -> None:
        self.using, self.watch, self.settings, self.kind = using, watch, settings, kind
        self.use(port)
        self.author = Author.objects.using(using).create(name=OLD)

    def use(self, port: int, **options: Any) -> None:
        """Let ormcache use the server at that port."""
        self.settings.CACHES = {
            **self.settings.CACHES,
            "own": {
                "BACKEND": self.kind.backend,
                "LOCATION": f"{self.kind.scheme}://{HOST}:{port}/0",
            },
        }
        self.set(CACHE_ALIAS="own", SOCKET_TIMEOUT=PATIENCE, **options)

    def set(self, **options: Any) -> None:
        self.settings.ORMCACHE = {**self.settings.ORMCACHE, **options}

    def name_of(self, script: str) -> bytes:
        """What a command has in it that runs one of the scripts."""
        store: Any = store_of(self.using)
        sha: bytes = store._channels._idle[0].sha[script]
        return sha

    def name(self) -> str:
        return Author.objects.using(self.using).get(pk=self.author.pk).name

    def rename(self) -> None:
        Author.objects.using(self.using).filter(pk=self.author.pk).update(name=NEW)

    def rename_in_transaction(self) -> None:
        with transaction.atomic(using=self.using):
            self.rename()

    def rename_when_possible(self) -> None:
        """Once the breaker lets a write through."""

        def is_renamed() -> bool:
            try:
                self.rename()
            except CacheUnreachable:
                return False
            return True

        wait_until(is_renamed)

    def settle(self) -> None:
        """Wait until nothing that another test has left behind keeps the table busy."""
        wait_for_quarantine(self.using, "tests_author")

    def warm(self) -> str:
        self.settle()
        return str(self.watch.warm(self.name))

    def stays_new(self) -> None:
        """The new name is read at once, and still when it comes from the cache again."""
        assert self.name() == NEW

        def is_hit() -> bool:
            answer, outcome = self.watch.call(self.name)
            assert answer == NEW
            return outcome == ["hit"]

        wait_until(is_hit)


@pytest.fixture
def server(server_kind: type[RedisServer]) -> Iterator[RedisServer]:
    with server_kind() as server:
        yield server


@pytest.fixture(scope="module")
def lasting_server() -> Iterator[RedisServer]:
    """For tests that let the server live and lose its answers only."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def proxy(lasting_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(lasting_server.port) as proxy:
        yield proxy


@pytest.fixture
def shop(using: str, settings: Any, server: RedisServer) -> Iterator[Shop]:
    with Watch(using) as watch:
        yield Shop(using, watch, settings, type(server), server.port)


@pytest.fixture
def behind(using: str, settings: Any, proxy: Proxy) -> Iterator[Shop]:
    """A shop with its cache behind the proxy."""
    with Watch(using) as watch:
        yield Shop(using, watch, settings, RedisServer, proxy.port)


@contextlib.contextmanager
def client_of(server: RedisServer) -> Iterator[Any]:
    import redis

    with redis.Redis(port=server.port) as client:
        yield client


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


# --- a server that is down -------------------------------------------------------------------


@on_default
def test_reads_ask_the_database_while_the_server_is_down_and_the_cache_when_it_is_back(
    shop: Shop, server: RedisServer
) -> None:
    shop.warm()
    server.kill()
    with at_most(10):
        for _ in range(20):
            assert shop.watch.call(shop.name) == (OLD, [UNREACHABLE])
    server.start()
    wait_until(lambda: shop.watch.call(shop.name) == (OLD, ["hit"]))


def count_connections(monkeypatch: pytest.MonkeyPatch) -> list[Channels]:
    """Grows with each attempt to open a socket."""
    attempts: list[Channels] = []
    connect = Channels._connect

    def counting(channels: Channels) -> Channel:
        attempts.append(channels)
        return connect(channels)

    monkeypatch.setattr(Channels, "_connect", counting)
    return attempts


@on_default
def test_the_breaker_keeps_reads_from_trying_again_at_once(
    shop: Shop, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.warm()
    server.kill()
    attempts = count_connections(monkeypatch)
    shop.name()
    assert not route_of(shop.using).breaker.is_closed
    count = len(attempts)
    assert count == 1
    for _ in range(20):
        shop.name()
    assert len(attempts) == count


@on_default
def test_a_write_is_refused_while_the_server_is_down(shop: Shop, server: RedisServer) -> None:
    shop.set(ON_CACHE_FAILURE="raise")
    shop.warm()
    server.kill()
    with at_most(10):
        for write in (shop.rename, shop.rename_in_transaction):
            with pytest.raises(CacheUnreachable):
                write()
    assert shop.name() == OLD


@scenario(30)
@on_default
def test_policy_open_lets_it_through_and_this_process_reads_no_old_row(
    behind: Shop, proxy: Proxy
) -> None:
    """The server itself comes back with all it had: the entry from before the write is there."""
    behind.set(ON_CACHE_FAILURE="open")
    behind.warm()
    proxy.cut()
    before = statistics()[behind.using]["tests_author"].get("unannounced", 0)
    behind.rename()
    assert behind.name() == NEW
    assert statistics()[behind.using]["tests_author"]["unannounced"] == before + 1
    proxy.mend()
    behind.stays_new()


@scenario(31)
@on_databases("default", "postgresql", transaction=True)
@pytest.mark.parametrize("write", ["rename", "rename_in_transaction"])
def test_a_server_that_dies_before_the_commit_has_ended_costs_a_lease(
    behind: Shop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """The announcement arrived, the end does not: the table is busy, and no old row is met."""
    behind.warm()
    store: Any = store_of(behind.using)
    finish = store.finish

    def finish_in_vain(*args: Any) -> None:
        proxy.cut()
        finish(*args)

    monkeypatch.setattr(store, "finish", finish_in_vain)
    getattr(behind, write)()
    monkeypatch.setattr(store, "finish", finish)
    proxy.mend()
    behind.stays_new()


# --- a server that hangs ---------------------------------------------------------------------


@on_default
def test_a_server_that_hangs_costs_one_timeout(
    shop: Shop, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked again on another socket, as one is whose socket is dead."""
    shop.warm()
    # More than a machine that is busy takes for the rest.
    timeout = 2
    shop.set(SOCKET_TIMEOUT=timeout)
    attempts = count_connections(monkeypatch)
    server.pause()
    try:
        with at_most(2 * timeout):
            assert shop.watch.call(shop.name) == (OLD, [UNREACHABLE])
        with at_most(timeout):
            assert shop.watch.call(shop.name) == (OLD, [UNREACHABLE])
        assert attempts == []
    finally:
        server.resume()


@on_default
def test_announcements_that_a_hanging_server_executes_later_make_nothing_wrong(
    shop: Shop, server: RedisServer
) -> None:
    shop.set(ON_CACHE_FAILURE="raise")
    shop.warm()
    server.pause()
    try:
        with at_most(10), pytest.raises(CacheUnreachable):
            shop.rename()
        assert shop.name() == OLD
    finally:
        server.resume()
    shop.rename_when_possible()
    shop.stays_new()


# --- a server that forgets, or remembers too well --------------------------------------------


@scenario(34)
@on_default
@on_redis_and_valkey
def test_a_server_restarted_empty_has_no_answers(shop: Shop, server: RedisServer) -> None:
    shop.warm()
    shop.rename()
    server.kill()
    server.start()
    shop.stays_new()


@scenario(34)
@on_default
@on_redis_and_valkey
def test_a_server_restarted_from_an_old_dump_has_no_answers(
    using: str, settings: Any, server_kind: type[RedisServer]
) -> None:
    """Registers and entries from before the write come back, valid to the last byte."""
    with server_kind(persistence="rdb") as server, Watch(using) as watch:
        shop = Shop(using, watch, settings, server_kind, server.port)
        shop.warm()
        with client_of(server) as client:
            client.save()
            before = set(client.keys())
        shop.rename()
        server.kill()
        server.start()
        with client_of(server) as client:
            assert set(client.keys()) == before
        shop.stays_new()


@scenario(34)
@on_default
@on_redis_and_valkey
def test_a_server_restarted_without_the_last_second_of_its_log_has_no_answers(
    using: str, settings: Any, server_kind: type[RedisServer]
) -> None:
    with server_kind(persistence="aof") as server, Watch(using) as watch:
        shop = Shop(using, watch, settings, server_kind, server.port)
        shop.warm()
        log, copy = server.files / "appendonlydir", server.files / "a second ago"
        shutil.copytree(log, copy)
        with client_of(server) as client:
            before = set(client.keys())
        shop.rename()
        server.kill()
        for file in copy.iterdir():
            # The owner stays the account of the server.
            (log / file.name).write_bytes(file.read_bytes())
        server.start()
        with client_of(server) as client:
            assert set(client.keys()) == before
        shop.stays_new()


@scenario(39)
@on_postgresql
def test_a_program_that_deletes_the_register_after_its_commit_is_heard_at_once(
    shop: Shop, server: RedisServer
) -> None:
    shop.warm()
    backdoor.execute(shop.using, f"UPDATE tests_author SET name = '{NEW}'")
    assert shop.watch.call(shop.name) == (OLD, ["hit"])
    with client_of(server) as client:
        forget_register(client)
    assert shop.watch.call(shop.name) == (NEW, ["quarantine"])
    shop.stays_new()


@on_default
def test_a_cold_start_costs_one_lease_and_not_one_per_table(
    shop: Shop, server: RedisServer
) -> None:
    with client_of(server) as client:
        client.flushall()
    assert shop.watch.call(shop.name)[1] == ["quarantine"]
    wait_for_quarantine(shop.using)
    shop.watch.warm(shop.name)
    shop.watch.warm(lambda: list(Tag.objects.using(shop.using).all()))


def register_keys(client: Any, table: str) -> list[bytes]:
    return [key for key in client.keys("ormcache:*:r:*") if key.endswith(b":r:" + table.encode())]


def forget_register(client: Any) -> None:
    assert client.delete(*register_keys(client, "tests_author"))


def forget_namespace(client: Any) -> None:
    assert client.delete(*register_keys(client, "*"))


def forget_both(client: Any) -> None:
    forget_register(client)
    forget_namespace(client)


def forget_everything(client: Any) -> None:
    client.flushall()


def evict_everything(client: Any) -> None:
    """Memory becomes so scarce that the server throws all registers away."""
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))
    for number in range(100_000):
        client.set(f"other:{number}", bytes(20_000))
        if number % 20 == 0 and not client.keys("ormcache:*:r:*"):
            break
    assert client.info("stats")["evicted_keys"] > 0
    assert not client.keys("ormcache:*:r:*")
    client.config_set("maxmemory", 0)


@scenario(33)
@on_postgresql
@on_redis_and_valkey
@pytest.mark.parametrize(
    "forget",
    [forget_register, forget_namespace, forget_both, forget_everything, evict_everything],
)
def test_registers_lost_in_the_middle_of_a_commit_are_in_quarantine(
    shop: Shop,
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[Any], None],
) -> None:
    shop.warm()
    # Nobody renews the intent: the quarantine alone must bridge the rest of the commit.
    shop.set(LEASE=5)
    pause = pause_after(monkeypatch, Bracket, "arm")
    writer = Background(shop.rename_in_transaction)
    pause.wait()
    with client_of(server) as client:
        forget(client)
    answers = [shop.watch.call(shop.name) for _ in range(3)]
    if forget is forget_namespace:
        # The intent itself is still there; with "*" in quarantine, either is said.
        assert {outcome for _, (outcome,) in answers} <= {
            "quarantine",
            "a write is being committed",
        }
    else:
        assert answers == [(OLD, ["quarantine"])] * 3
    pause.end()
    writer.result()
    assert shop.watch.call(shop.name) == (NEW, ["quarantine"])
    # Nobody wants to wait for five seconds: they pass by taking the quarantine away.
    with client_of(server) as client:
        for key in client.keys("ormcache:*:r:*"):
            client.hdel(key, "d")
    assert shop.watch.warm(shop.name) == NEW


@on_postgresql
@on_redis_and_valkey
def test_under_eviction_and_vandalism_no_reader_sees_less_than_was_committed(
    shop: Shop, server: RedisServer
) -> None:
    """All at once and without order: memory runs out, registers are deleted, sockets killed."""
    shop.set(LEASE=0.1)
    is_over = threading.Event()

    def vandalise() -> int:
        with client_of(server) as client:
            client.config_set("maxmemory-policy", "allkeys-random")
            client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))
            deeds = [forget_register_of_books, forget_all_registers, kill_sockets, flush_scripts]
            number = 0
            while not is_over.wait(0.002):
                number += 1
                client.set(f"other:{number}", bytes(30_000))
                if number % 40 == 0:
                    deeds[number // 40 % len(deeds)](client)
            return int(client.info("stats")["evicted_keys"])

    wait_for_quarantine(shop.using)
    hammer = hammering.Hammer(shop.using, seconds=2)
    hammer.may_be_refused = True
    hammer.is_enough = lambda: (
        shop.watch.outcomes.count("hit") > 20 and "quarantine" in shop.watch.outcomes
    )
    vandal = Background(vandalise)
    threads = [Background(hammer.write, seed) for seed in range(2)]
    threads += [Background(hammer.read, seed) for seed in range(3)]
    for thread in threads:
        thread.result(2 * hammering.PATIENCE)
    is_over.set()
    assert vandal.result() > 0
    assert hammer.stale == []
    assert shop.watch.outcomes.count("hit") > 20
    assert shop.watch.outcomes.count("quarantine") > 0


def forget_register_of_books(client: Any) -> None:
    for key in register_keys(client, "tests_book"):
        client.delete(key)


def forget_all_registers(client: Any) -> None:
    for key in client.keys("ormcache:*:r:*"):
        client.delete(key)


def kill_sockets(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def flush_scripts(client: Any) -> None:
    client.script_flush()


# --- roles that change -----------------------------------------------------------------------


@scenario(35)
@on_default
@on_redis_and_valkey
def test_a_demoted_server_is_refused_and_promoted_again_it_is_another_one(
    shop: Shop, server: RedisServer
) -> None:
    """The client keeps its socket to the old master."""
    shop.set(ON_CACHE_FAILURE="raise")
    with type(server)(replica_of=server) as other:
        other.wait_for_primary()
        shop.warm()
        store = store_of(shop.using)
        before = str(store.status(route_of(shop.using).namespace)["incarnation"])
        with client_of(server) as old, client_of(other) as new:
            entries = set(old.keys("ormcache:*:e:*"))
            assert entries
            wait_until(lambda: set(new.keys("ormcache:*:e:*")) == entries)
            new.replicaof("NO", "ONE")
            old.replicaof(HOST, other.port)
            server.wait_for_primary()
            # It has the entry, and would give it to whoever asks for the key.
            assert set(old.keys("ormcache:*:e:*")) == entries
            assert shop.watch.call(shop.name) == (OLD, [UNREACHABLE])
            # Others write, and tell the new master.
            shop.use(other.port)
            shop.rename()
            shop.use(server.port)
            assert shop.watch.call(shop.name) == (NEW, [UNREACHABLE])
            with pytest.raises(CacheUnreachable):
                shop.rename()
            old.replicaof("NO", "ONE")
            assert entries <= set(old.keys("ormcache:*:e:*"))
        shop.use(server.port)
        shop.stays_new()
        after = store_of(shop.using).status(route_of(shop.using).namespace)["incarnation"]
        assert after != before


@on_default
@on_redis_and_valkey
def test_a_replica_is_no_cache(shop: Shop, server: RedisServer) -> None:
    with type(server)(replica_of=server) as replica:
        replica.wait_for_primary()
        shop.use(replica.port)
        assert shop.watch.call(shop.name) == (OLD, [UNREACHABLE])
        with pytest.raises(CacheError, match="the server is a replica"):
            store_of(shop.using).read(route_of(shop.using).namespace, "e" * 40, ["a"])


# --- answers that get lost -------------------------------------------------------------------


def losing(proxy: Proxy, part: bytes, *, times: int = 1) -> None:
    left = [times]

    def loses(request: bytes) -> bool:
        if left[0] and part in request:
            left[0] -= 1
            return True
        return False

    proxy.loses = loses


@scenario(32)
@on_default
@pytest.mark.parametrize("script", ["arm", "finish"])
@pytest.mark.parametrize("write", ["rename", "rename_in_transaction"])
def test_a_write_whose_announcement_or_end_is_executed_but_not_answered(
    behind: Shop, proxy: Proxy, script: str, write: str
) -> None:
    behind.warm()
    losing(proxy, behind.name_of(script))
    getattr(behind, write)()
    behind.stays_new()
    assert proxy.lost == 1


@scenario(32)
@on_default
def test_an_announcement_that_is_never_answered_refuses_the_write(
    behind: Shop, proxy: Proxy
) -> None:
    behind.set(ON_CACHE_FAILURE="raise")
    behind.warm()
    proxy.is_silent = True
    losing(proxy, behind.name_of("arm"), times=10)
    with pytest.raises(CacheUnreachable):
        behind.rename()
    assert proxy.lost >= 1
    assert behind.name() == OLD


@scenario(32)
@on_default
def test_an_end_that_is_never_answered_is_not_waited_for(behind: Shop, proxy: Proxy) -> None:
    behind.warm()
    behind.set(SOCKET_TIMEOUT=10)
    proxy.is_silent = True
    losing(proxy, behind.name_of("finish"))
    with at_most(10):
        behind.rename()
    behind.stays_new()


@scenario(32)
@on_default
@pytest.mark.parametrize("is_silent", [False, True])
def test_a_fill_that_is_executed_but_not_answered(
    behind: Shop, proxy: Proxy, is_silent: bool
) -> None:
    behind.settle()
    proxy.is_silent = is_silent
    losing(proxy, b"\r\nSET\r\n")
    assert behind.name() == OLD
    for _ in range(3):
        assert behind.name() == OLD
    assert proxy.lost >= 1
    behind.rename_when_possible()
    behind.stays_new()


@on_postgresql
def test_a_command_repeated_after_other_commits_brings_no_old_answer_back(
    behind: Shop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nonce would: an entry was stored under it between the two attempts."""
    behind.warm()
    losing(proxy, behind.name_of("finish"))
    # invalidate() waits for the end of the first attempt, and sends a second.
    pause = pause_before(monkeypatch, Channels, "_run_on_new")

    def bump() -> None:
        route = route_of(behind.using)
        assert route.store is not None
        route.store.bump(route.namespace, ["tests_author"])

    bumper = Background(bump)
    pause.wait()
    behind.watch.warm(behind.name)
    behind.rename()
    pause.end()
    bumper.result()
    behind.stays_new()


# --- memcached -------------------------------------------------------------------------------


@pytest.fixture
def memcached(settings: Any) -> Iterator[Proxy]:
    with MemcachedServer() as server, Proxy(server.port) as proxy:
        configuration = {
            "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
            "LOCATION": f"{HOST}:{proxy.port}",
        }
        settings.CACHES = {**settings.CACHES, "own": configuration}
        yield proxy


def test_memcached_out_of_reach_never_pretends_to_have_been_told(memcached: Proxy) -> None:
    """After a failure, pymemcache answers for a second as if all had been stored."""
    store = StandardStore("own")
    vector = store.read("space", "e", ["t"]).vector
    assert vector is not None
    store.fill("space", "e", vector, b"answer", 60)
    memcached.cut()
    for _ in range(3):
        with pytest.raises(CacheError):
            store.arm("space", "1", ["t"])
        with pytest.raises(CacheError):
            store.bump("space", ["t"])
    memcached.mend()


@scenario(36)
@on_default
def test_memcached_back_with_all_it_had_serves_nothing_old(
    using: str, settings: Any, memcached: Proxy
) -> None:
    with Watch(using) as watch:
        settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "own"}
        author = AuthorFactory(name=OLD)

        def name() -> str:
            return Author.objects.get(pk=author.pk).name

        watch.warm(name)
        memcached.cut()
        settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
        with pytest.raises(CacheUnreachable):
            Author.objects.update(name=NEW)
        settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}
        Author.objects.update(name=NEW)
        assert name() == NEW
        memcached.mend()
        deadline = time.monotonic() + SECONDS
        while "hit" not in (answer := watch.call(name))[1]:
            assert answer[0] == NEW
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert answer[0] == NEW


# --- management while the cache is down ------------------------------------------------------


@on_default
def test_status_of_a_dead_server_raises_a_cache_error(shop: Shop, server: RedisServer) -> None:
    server.kill()
    with pytest.raises(CacheError):
        store_of(shop.using).status("space")


@on_default
def test_flush_of_a_dead_server_is_refused(shop: Shop, server: RedisServer) -> None:
    server.kill()
    with pytest.raises(CacheUnreachable):
        ormcache.flush(using=shop.using)
    assert connections[shop.using].in_atomic_block is False


def test_a_store_for_a_dead_server_can_be_made(settings: Any) -> None:
    """Connecting is left to the first command."""
    settings.CACHES = {
        **settings.CACHES,
        "own": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://{HOST}:1/0",
        },
    }
    store = strict_store("own")
    assert store is not None
    with pytest.raises(CacheError):
        store.read("space", "e" * 40, ["a"])
