"""Redis and Valkey: sockets, round trips, options and what can go wrong on a socket."""

import contextlib
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from django.test import override_settings

from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from ormcache.stores import flushing, strict_store
from ormcache.stores.base import Lookup, Store
from ormcache.stores.channels import _PENDING_LIMIT, FLAGS, Channel, Channels, bulk
from ormcache.stores.redis import SCRIPTS, connection_pool
from tests.handlers import TimeLimit
from tests.interleaving import SECONDS, Background, pause_before
from tests.marks import on_caches, on_databases, on_redis_and_valkey
from tests.models import Author
from tests.servers import HOST, RedisServer, ValkeyServer
from tests.watching import Watch

ENTRY = "e" * 40
OTHER = "f" * 40
TABLES = ("a", "b")
LEASE = 0.05
BACKENDS = {
    "redis": "django.core.cache.backends.redis.RedisCache",
    "django_redis": "django_redis.cache.RedisCache",
    "django_valkey": "django_valkey.cache.ValkeyCache",
}
_numbers = itertools.count()


@pytest.fixture
def space() -> str:
    """A namespace of the test's own."""
    return f"test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def short_lease(settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": LEASE, "SOCKET_TIMEOUT": SECONDS}


@contextlib.contextmanager
def long_lease() -> Iterator[None]:
    """Inside, a commit stays announced however busy the machine is."""
    with override_settings(ORMCACHE={**django_settings.ORMCACHE, "LEASE": 60}):
        yield


@pytest.fixture(scope="module")
def server(server_kind: type[RedisServer]) -> Iterator[RedisServer]:
    options = {"requirepass": "secret", "unixsocket": "redis.sock", "unixsocketperm": "777"}
    with server_kind(options=options) as server:
        yield server


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Any]:
    """A client of redis-py on the module's server, which may be Valkey as well."""
    redis = pytest.importorskip("redis")
    with redis.Redis(port=server.port, password="secret") as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def make(settings: Any, server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Makes the store of a cache on the module's server, by the options of the cache."""
    made: list[Store] = []
    usual = "django_valkey" if isinstance(server, ValkeyServer) else "redis"

    def make(backend: str = usual, location: Any = None, **options: Any) -> Any:
        scheme = "valkey" if backend == "django_valkey" else "redis"
        if location is None:
            location = f"{scheme}://:secret@{HOST}:{server.port}/0"
        configuration = {"BACKEND": BACKENDS[backend], "LOCATION": location, "OPTIONS": options}
        settings.CACHES = {**settings.CACHES, "own": configuration}
        store = strict_store("own")
        assert store is not None
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


def read_clean(store: Store, space: str, entry: str = ENTRY, tables: Any = TABLES) -> Lookup:
    """What a read finds once the quarantine is over."""
    deadline = time.monotonic() + SECONDS
    while (lookup := store.read(space, entry, tables)).vector is None:
        assert time.monotonic() < deadline, lookup
        time.sleep(LEASE / 5)
    return lookup


def fill(store: Store, space: str, payload: bytes = b"answer", entry: str = ENTRY) -> str:
    vector = read_clean(store, space, entry).vector
    assert vector is not None
    store.fill(space, entry, vector, payload, 60)
    # Not only with the next command of the socket, which is about to be killed, or worse.
    store._channels.flush()  # type: ignore[attr-defined]
    return vector


def idle(store: Any) -> list[Channel]:
    return list(store._channels._idle)


@pytest.fixture
def store(cache: str) -> Iterator[Store]:
    store = strict_store(cache)
    assert store is not None
    yield store
    store.close()


# --- the bracket -----------------------------------------------------------------------------

on_all = on_caches(*BACKENDS)


@on_all
def test_an_entry_that_is_dropped_is_gone_with_its_note_and_no_other(
    store: Store, space: str
) -> None:
    vector = fill(store, space)
    fill(store, space, b"other", OTHER)
    for entry in (ENTRY, OTHER):
        store.note(space, entry, b"note of " + entry.encode(), 60)
    store.note(space, "empty", b"", 60)
    store.note("elsewhere", "entry", b"note", 60)
    store._channels.flush()  # type: ignore[attr-defined]
    assert sorted(store.noted(space) or ()) == sorted([ENTRY, OTHER])
    store.drop(space, ENTRY)
    store.drop(space, ENTRY)
    assert store.read(space, ENTRY, TABLES) == (None, vector, None, 0.0)
    assert store.note_of(space, ENTRY) is None
    assert store.read(space, OTHER, TABLES).entry == b"other"
    assert list(store.noted(space) or ()) == [OTHER]
    assert store.note_of(space, OTHER) == b"note of " + OTHER.encode()


@on_all
def test_many_notes_are_all_listed(store: Store, space: str) -> None:
    read_clean(store, space)
    names = [f"{number:040}" for number in range(3000)]
    for name in names:
        store.note(space, name, b"note", 60)
    store._channels.flush()  # type: ignore[attr-defined]
    assert sorted(store.noted(space) or ()) == names


@on_all
def test_a_new_namespace_is_in_quarantine_for_one_lease(store: Store, space: str) -> None:
    begun = time.monotonic()
    lookup = store.read(space, ENTRY, TABLES)
    assert (lookup.entry, lookup.vector, lookup.reason) == (None, None, Reason.QUARANTINE)
    assert 0 < lookup.remaining <= LEASE
    read_clean(store, space)
    assert time.monotonic() - begun >= LEASE * 0.9


@on_all
def test_the_quarantine_is_that_of_the_namespace_and_not_of_each_table(
    store: Store, space: str
) -> None:
    read_clean(store, space)
    for table in ("new", "newer"):
        assert store.read(space, ENTRY, (table,)).vector is not None


@on_all
def test_an_entry_is_found_until_a_commit_to_one_of_its_tables(store: Store, space: str) -> None:
    vector = fill(store, space)
    assert store.read(space, ENTRY, TABLES) == (b"answer", vector, None, 0.0)
    with long_lease():
        store.arm(space, "1.a", ["b"])
    busy = store.read(space, ENTRY, TABLES)
    assert (busy.entry, busy.vector, busy.reason) == (None, None, Reason.BUSY)
    assert 0 < busy.remaining <= 60
    store.finish(space, "1.a", ["b"])
    after = store.read(space, ENTRY, TABLES)
    assert after.entry is None
    assert after.vector not in (None, vector)


@on_all
def test_two_commits_have_to_end_both(store: Store, space: str, settings: Any) -> None:
    read_clean(store, space)
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 20}
    store.arm(space, "1.a", ["a"])
    store.arm(space, "1.b", ["a"])
    store.finish(space, "1.a", ["a"])
    assert store.read(space, ENTRY, TABLES).reason is Reason.BUSY
    store.finish(space, "1.b", ["a"])
    assert store.read(space, ENTRY, TABLES).vector is not None


@on_redis_and_valkey
def test_one_commit_may_write_thousands_of_tables(
    make: Callable[..., Any], space: str, settings: Any
) -> None:
    """A transaction may write those of many tenants; Lua's unpack() does not give so many."""
    store, tables = make(), [f"t{number}" for number in range(9000)]
    # On a busy machine one read of them all takes longer than the quarantine.
    read_clean(store, space)
    read_clean(store, space, tables=tables)
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 60}
    for _ in range(2):
        store.arm(space, "1.a", tables)
        assert store.read(space, ENTRY, tables[-1:]).reason is Reason.BUSY
        store.finish(space, "1.a", tables)
        assert store.read(space, ENTRY, tables[-1:]).vector is not None


@on_all
def test_bump_and_the_register_of_everything_make_entries_invalid(
    store: Store, space: str
) -> None:
    for table in ("a", "*"):
        fill(store, space)
        store.bump(space, [table])
        assert read_clean(store, space).entry is None


@on_all
def test_start_arm_announces_and_its_end_confirms(store: Store, space: str) -> None:
    fill(store, space)
    confirm = store.start_arm(space, "1.a", ["a"])
    confirm()
    assert store.read(space, ENTRY, TABLES).vector is None


@on_all
def test_status_tells_incarnation_age_and_number_of_registers(store: Store, space: str) -> None:
    assert store.status(space)["age in seconds"] is None
    read_clean(store, space)
    status = store.status(space)
    assert status["registers"] == 2
    assert 0 <= float(str(status["age in seconds"])) < 10
    assert str(status["incarnation"]) in str(status["key prefix"])


@on_redis_and_valkey
def test_all_keys_of_a_database_would_be_in_one_slot_of_a_cluster(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    key_slot = pytest.importorskip("redis.crc").key_slot
    store, tables = make(), ("a", "}b{c}")
    vector = read_clean(store, space, tables=tables).vector
    store.fill(space, ENTRY, vector, b"answer", 60)
    store.note(space, ENTRY, b"note", 60)
    store.arm(space, "1.a", ["a"])
    keys = admin.keys()
    kinds = {key.split(b":")[4] for key in keys}
    assert (len(keys), kinds) == (5, {b"e", b"q", b"r"})
    assert {key_slot(key) for key in keys} == {key_slot(space.encode())}


@on_redis_and_valkey
def test_an_entry_expires_in_milliseconds_or_never(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    vector = read_clean(store, space).vector
    assert vector is not None
    for timeout, expected in ((2.5, range(1, 2501)), (None, [-1]), (0.0001, [1, 0, -2])):
        store.fill(space, ENTRY, vector, b"answer", timeout)
        store.read(space, ENTRY, TABLES)
        (key,) = admin.keys(f"*e:{ENTRY}") or ["gone"]
        assert admin.pttl(key) in expected


# --- round trips -----------------------------------------------------------------------------


class Traffic:
    """Counts what is sent and what is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = self.awaited = 0
        post, receive = Channel.post, Channel.receive

        def counting_post(channel: Channel, command: bytes) -> None:
            self.sent += 1
            post(channel, command)

        def counting_receive(channel: Channel) -> Any:
            self.awaited += 1
            return receive(channel)

        monkeypatch.setattr(flushing.flusher, "notice", lambda its: None)
        monkeypatch.setattr(Channel, "post", counting_post)
        monkeypatch.setattr(Channel, "receive", counting_receive)

    def of(self, work: Callable[[], Any]) -> tuple[int, int]:
        before = self.sent, self.awaited
        work()
        return self.sent - before[0], self.awaited - before[1]


@on_redis_and_valkey
def test_each_operation_is_one_command_and_only_some_are_waited_for(
    make: Callable[..., Any], admin: Any, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    vector = fill(store, space)
    traffic = Traffic(monkeypatch)
    before = commands(admin)
    assert traffic.of(lambda: store.read(space, ENTRY, TABLES)) == (1, 1)
    assert traffic.of(lambda: store.read(space, OTHER, TABLES)) == (1, 1)
    assert traffic.of(lambda: store.fill(space, ENTRY, vector, b"", 1)) == (0, 0)
    assert traffic.of(lambda: store.arm(space, "1.a", TABLES)) == (1, 1)
    assert traffic.of(lambda: store.finish(space, "1.a", TABLES)) == (1, 0)
    assert traffic.of(lambda: store.bump(space, TABLES)) == (1, 1)
    after = commands(admin)
    assert after["evalsha"] - before["evalsha"] == 5
    assert after["set"] - before.get("set", 0) == 1
    assert after.get("script|load") == before.get("script|load")


def commands(admin: Any) -> dict[str, int]:
    return {
        name.removeprefix("cmdstat_"): facts["calls"]
        for name, facts in admin.info("commandstats").items()
    }


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_read_of_the_orm_is_one_round_trip(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = Author.objects.using(using).create(name="a")

    def name() -> str:
        return Author.objects.using(using).get(pk=author.pk).name

    traffic = Traffic(monkeypatch)
    # The answer is stored together with the next look-up.
    assert traffic.of(lambda: cached.miss(name)) == (1, 1)
    assert traffic.of(lambda: cached.hit(name)) == (1, 1)


@on_redis_and_valkey
@pytest.mark.parametrize(
    ("maxmemory", "policy", "said"),
    [
        (0, "noeviction", "no (maxmemory 0, noeviction)"),
        (0, "allkeys-lru", "no (maxmemory 0, allkeys-lru)"),
        (100_000_000, "noeviction", "no (maxmemory 100000000, noeviction)"),
        (100_000_000, "volatile-lru", "no (maxmemory 100000000, volatile-lru)"),
        (100_000_000, "allkeys-lru", "yes (maxmemory 100000000, allkeys-lru)"),
    ],
)
def test_status_tells_whether_the_server_may_evict_registers(
    make: Callable[..., Any], admin: Any, space: str, maxmemory: int, policy: str, said: str
) -> None:
    """Asked, not assumed: each register that is lost is not cached for a lease."""
    admin.config_set("maxmemory", maxmemory)
    admin.config_set("maxmemory-policy", policy)
    try:
        assert make().status(space)["registers may be evicted"] == said
    finally:
        admin.config_set("maxmemory", 0)
        admin.config_set("maxmemory-policy", "noeviction")


# --- options of the cache --------------------------------------------------------------------


def works(store: Store, space: str) -> None:
    assert store.mode == "strict"
    fill(store, space)
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    with long_lease():
        store.arm(space, "1.a", ["a"])
    assert store.read(space, ENTRY, TABLES).reason is Reason.BUSY
    store.finish(space, "1.a", ["a"])
    assert store.read(space, ENTRY, TABLES).entry is None
    assert store.status(space)["registers"] == 2


@on_redis_and_valkey
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_responses": True},
        {"protocol": 2},
        {"protocol": 3},
        {"socket_timeout": 3, "socket_connect_timeout": 3},
        {"health_check_interval": 1, "retry_on_timeout": True},
        {"client_name": "shop"},
    ],
    ids=str,
)
def test_it_works_with_any_options_of_the_connection(
    make: Callable[..., Any], space: str, backend: str, options: dict[str, Any]
) -> None:
    if backend == "redis":
        store = make(backend, **options)
    else:
        store = make(backend, CONNECTION_POOL_KWARGS=options)
    works(store, space)


@on_redis_and_valkey
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_works_on_a_unix_socket(
    make: Callable[..., Any], server: RedisServer, space: str, backend: str
) -> None:
    path = server.files / "redis.sock"
    works(make(backend, f"unix://:secret@{path}?db=2"), space)


@on_redis_and_valkey
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_uses_the_database_number_of_the_cache(
    make: Callable[..., Any], server: RedisServer, admin: Any, space: str, backend: str
) -> None:
    scheme = "valkey" if backend == "django_valkey" else "redis"
    works(make(backend, f"{scheme}://:secret@{HOST}:{server.port}/5"), space)
    assert admin.info("keyspace").keys() == {"db5"}


def test_the_password_may_be_an_option(
    make: Callable[..., Any], server: RedisServer, space: str
) -> None:
    location = f"redis://{HOST}:{server.port}/0"
    works(make("redis", location, password="secret"), space)
    works(make("django_redis", location, PASSWORD="secret"), f"{space}b")
    wrong = make("redis", location, password="wrong")
    with pytest.raises(CacheError, match="Auth"):
        wrong.read(space, ENTRY, TABLES)


def test_it_makes_connections_of_the_class_of_the_cache(
    make: Callable[..., Any], space: str
) -> None:
    from redis import BlockingConnectionPool, Connection

    class Counted(Connection):
        made = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            type(self).made += 1
            super().__init__(*args, **kwargs)

    class Pool(BlockingConnectionPool):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(connection_class=Counted, **kwargs)

    works(make("redis", pool_class=Pool), space)
    assert Counted.made == 1


@pytest.mark.parametrize(
    ("theirs", "ours"), [(None, 0.7), (0.3, 0.3), (9, 0.7)], ids=["none", "shorter", "longer"]
)
def test_the_shorter_timeout_holds(
    make: Callable[..., Any], settings: Any, theirs: float | None, ours: float, space: str
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "SOCKET_TIMEOUT": 0.7}
    store = make("redis", socket_timeout=theirs)
    store.read(space, ENTRY, TABLES)
    (channel,) = idle(store)
    assert channel._connection.socket_timeout == ours
    assert channel._connection._sock.gettimeout() == ours


@pytest.mark.parametrize("backend", ["django_redis", "django_valkey"])
def test_several_locations_mean_the_first(
    make: Callable[..., Any], server: RedisServer, space: str, backend: str
) -> None:
    """The others are replicas, or whatever: nobody listens at that port."""
    scheme = "valkey" if backend == "django_valkey" else "redis"
    first = f"{scheme}://:secret@{HOST}:{server.port}/0"
    works(make(backend, [first, f"{scheme}://{HOST}:1/0", f"{scheme}://{HOST}:2/0"]), space)


@pytest.mark.parametrize(
    ("module", "client"),
    [
        ("django_redis", "django_redis.client.ShardClient"),
        ("django_redis", "django_redis.client.HerdClient"),
        ("django_valkey", "django_valkey.client.ShardClient"),
        ("django_valkey", "django_valkey.client.HerdClient"),
    ],
)
def test_clients_that_spread_keys_or_serve_dead_values_are_refused(
    settings: Any, module: str, client: str
) -> None:
    pytest.importorskip(module)
    scheme = module.removeprefix("django_")
    settings.CACHES = {
        **settings.CACHES,
        "own": {
            "BACKEND": BACKENDS[module],
            "LOCATION": f"{scheme}://{HOST}:1/0",
            "OPTIONS": {"CLIENT_CLASS": client},
        },
    }
    assert strict_store("own") is None


@on_caches("dummy", "filebased", "database", "memcached")
def test_other_caches_have_no_pool(cache: str) -> None:
    assert connection_pool(caches[cache]) is None


def test_a_pool_of_another_library_is_refused() -> None:
    class Pool:
        connection_class = dict
        connection_kwargs: dict[str, Any] = {}

    with pytest.raises(CacheError, match="neither redis-py nor valkey-py"):
        Channels(Pool(), []).run(lambda channel: None)


# --- sockets ---------------------------------------------------------------------------------


def test_a_socket_is_used_again(make: Callable[..., Any], admin: Any, space: str) -> None:
    store = make()
    fill(store, space)
    before = admin.info("stats")["total_connections_received"]
    for _ in range(5):
        store.read(space, ENTRY, TABLES)
        store.arm(space, "1.a", ["c"])
        store.finish(space, "1.a", ["c"])
    assert admin.info("stats")["total_connections_received"] == before
    assert len(idle(store)) == 1


@on_redis_and_valkey
def test_killed_sockets_are_replaced_without_an_error(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space)
    calls: list[Callable[[], Any]] = [
        lambda: store.read(space, ENTRY, TABLES),
        lambda: store.arm(space, "1.a", ["c"]),
        lambda: store.bump(space, ["c"]),
        lambda: store.status(space),
    ]
    for call in calls:
        admin.client_kill_filter(_type="normal", skipme=True)
        call()
    assert store.read(space, ENTRY, TABLES).entry == b"answer"


def test_what_was_sent_on_a_killed_socket_is_lost_and_nothing_else(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    """A fill that nobody waited for: at worst a miss."""
    store = make()
    vector = fill(store, space)
    admin.client_kill_filter(_type="normal", skipme=True)
    store.fill(space, OTHER, vector.replace(ENTRY, OTHER), b"other", 60)
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    assert store.read(space, OTHER, TABLES).entry in (None, b"other")


def test_when_one_socket_is_dead_the_idle_ones_are_closed(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read_clean(store, space), range(40)))
    admin.client_kill_filter(_type="normal", skipme=True)
    read_clean(store, space)
    assert len(idle(store)) == 1


@on_redis_and_valkey
def test_after_script_flush_answers_are_right(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space)
    admin.script_flush()
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    admin.script_flush()
    store.arm(space, "1.a", ["a"])
    assert store.read(space, ENTRY, TABLES).vector is None
    admin.script_flush()
    store.bump(space, ["a"])
    assert read_clean(store, space).entry is None


@on_redis_and_valkey
def test_after_flushall_everything_is_in_quarantine(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    vector = fill(store, space)
    admin.flushall()
    lookup = store.read(space, ENTRY, TABLES)
    assert (lookup.entry, lookup.reason) == (None, Reason.QUARANTINE)
    store.fill(space, ENTRY, vector, b"from before", 60)
    assert read_clean(store, space).entry is None


@on_redis_and_valkey
def test_an_error_of_the_server_about_a_fill_is_not_the_next_commands(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    vector = fill(store, space)
    (channel,) = idle(store)
    admin.config_set("maxmemory", 1)
    try:
        store.fill(space, OTHER, vector.replace(ENTRY, OTHER), b"too much", 60)
        assert store.read(space, ENTRY, TABLES).entry == b"answer"
    finally:
        admin.config_set("maxmemory", 0)
    assert idle(store) == [channel]
    assert store.read(space, OTHER, TABLES).entry is None


@on_redis_and_valkey
def test_commits_are_announced_although_memory_is_full(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    """The scripts say so in their first line, which the server has to know."""
    store = make()
    fill(store, space)
    (channel,) = idle(store)
    for name, text in SCRIPTS.items():
        sha = hashlib.sha1(FLAGS + text.encode()).hexdigest()
        assert channel.sha[name] == bulk(sha.encode())
        assert admin.script_exists(sha) == [True]
    admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="maxmemory"):
            admin.set("other", "value")
        assert store.read(space, ENTRY, TABLES).entry == b"answer"
        with long_lease():
            store.arm(space, "1.a", ["a", "new"])
        assert store.read(space, ENTRY, TABLES).reason is Reason.BUSY
        store.finish(space, "1.a", ["a", "new"])
        after = store.read(space, ENTRY, TABLES)
        assert after.entry is None
        assert after.vector is not None
    finally:
        admin.config_set("maxmemory", 0)


@on_redis_and_valkey
def test_a_server_that_was_restarted_is_another_incarnation(
    make: Callable[..., Any], server: RedisServer, space: str
) -> None:
    store = make()
    fill(store, space)
    before = store.status(space)["incarnation"]
    server.restart()
    assert store.read(space, ENTRY, TABLES).reason is Reason.QUARANTINE
    assert store.status(space)["incarnation"] != before
    works(store, space)


@on_redis_and_valkey
def test_a_replica_is_refused(make: Callable[..., Any], server: RedisServer, space: str) -> None:
    with type(server)(replica_of=server, options={"masterauth": "secret"}) as replica:
        replica.wait_for_primary()
        store = make(location=f"{replica.scheme}://{HOST}:{replica.port}/0")
        with pytest.raises(CacheError, match="the server is a replica"):
            store.read(space, ENTRY, TABLES)


def sent(admin: Any) -> int:
    """How many answers the server was told to store."""
    return commands(admin).get("set", 0)


def wait_until_sent(admin: Any, number: int) -> None:
    """What comes on another socket may be dealt with later than this question."""
    deadline = time.monotonic() + SECONDS
    while sent(admin) < number:
        assert time.monotonic() < deadline, "it was never sent"
        time.sleep(0.005)


@on_redis_and_valkey
def test_an_answer_is_stored_with_the_next_command(
    make: Callable[..., Any], admin: Any, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One system call less on the way of a miss, and the same thread finds it all the same."""
    monkeypatch.setattr(flushing.flusher, "notice", lambda its: None)
    store = make()
    vector = read_clean(store, space).vector
    before = sent(admin)
    store.fill(space, ENTRY, vector, b"answer", 60)
    assert sent(admin) == before
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    assert sent(admin) == before + 1


def test_an_answer_is_stored_soon_if_there_is_no_next_command(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    vector = read_clean(store, space).vector
    before = sent(admin)
    for _ in range(3):
        store.fill(space, ENTRY, vector, b"answer", 60)
        before += 1
        wait_until_sent(admin, before)


def test_where_no_thread_can_be_started_an_answer_is_sent_at_once(
    make: Callable[..., Any], admin: Any, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 starts none once it has begun to end: a read in an atexit handler."""
    monkeypatch.setattr(flushing, "flusher", flushing.Flusher())
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    store = make()
    vector = read_clean(store, space).vector
    for number in (1, 2):
        before = sent(admin)
        store.fill(space, ENTRY, vector, b"%d" % number, 60)
        wait_until_sent(admin, before + 1)


def refuse_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_a_signal_handler_may_interrupt_the_notice_of_an_unsent_answer(
    make: Callable[..., Any],
) -> None:
    """Wherever it does: here at each line. A handler that reads would wait for itself."""
    flusher, noticed = flushing.Flusher(), make()._channels
    passed = -1

    def work(moment: int) -> None:
        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == moment:
                sys.settrace(None)
                flusher.notice(noticed)
            return trace

        usual = sys.gettrace()
        sys.settrace(trace)
        try:
            flusher.notice(noticed)
        finally:
            sys.settrace(usual)

    for moment in itertools.count():
        flusher._reset()
        # As if it had been started.
        flusher._thread = threading.current_thread()
        passed = -1
        Background(work, moment).result()
        if passed < moment:
            break
    assert moment > 3


@pytest.mark.parametrize("others", [0, 1])
def test_who_reads_while_an_answer_is_sent_finds_it(
    make: Callable[..., Any], space: str, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """On another socket it might come first."""
    monkeypatch.setattr(flushing.flusher, "notice", lambda its: None)
    store = make()
    vector = read_clean(store, space).vector
    store.fill(space, ENTRY, vector, b"answer", 60)
    for _ in range(others):
        store._channels._idle.append(store._channels._connect())
    pause = pause_before(monkeypatch, Channel, "flush")
    flusher = Background(store._channels.flush)
    pause.wait()
    reader = Background(store.read, space, ENTRY, TABLES)
    reader.join(0.2)
    assert reader.is_alive()
    pause.end()
    flusher.result()
    assert reader.result().entry == b"answer"
    assert len(idle(store)) == 1 + others


def test_a_large_answer_is_sent_at_once(
    make: Callable[..., Any], admin: Any, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing.flusher, "notice", lambda its: None)
    store = make()
    vector = read_clean(store, space).vector
    store.fill(space, ENTRY, vector, b"-" * 100_000, 60)
    other = make()
    assert other.read(space, ENTRY, TABLES).entry == b"-" * 100_000


def test_what_cannot_be_sent_later_is_a_miss_and_no_error(
    make: Callable[..., Any], admin: Any, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing.flusher, "notice", lambda its: None)
    store = make()
    vector = read_clean(store, space).vector
    store.fill(space, ENTRY, vector, b"answer", 60)

    def broken(*args: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "post", broken)
        store._channels.flush()
    assert idle(store) == []
    assert store.read(space, ENTRY, TABLES).entry is None


@pytest.mark.parametrize("refuses", [False, True], ids=["left out", "read"])
def test_answers_that_nobody_waits_for_do_not_pile_up(
    make: Callable[..., Any], server: RedisServer, admin: Any, space: str, refuses: bool
) -> None:
    """They are not even sent, unless the user may not ask for that, or a proxy cannot."""
    location = None
    if refuses:
        admin.execute_command("ACL", "SETUSER", "mute", "on", ">word", "~*", "+@all", "-client")
        location = f"redis://mute:word@{HOST}:{server.port}/0"
    store = make(location=location)
    vector = fill(store, space)
    (channel,) = idle(store)
    for number in range(3 * _PENDING_LIMIT):
        name = f"{number:040}"
        store.fill(space, name, vector.replace(ENTRY, name), name.encode(), 60)
        assert channel._pending <= (_PENDING_LIMIT if refuses else 0)
    for number in range(3 * _PENDING_LIMIT):
        name = f"{number:040}"
        assert store.read(space, name, TABLES).entry == name.encode()


@pytest.mark.parametrize("moment", ["before the answer", "with the answer half read"])
def test_after_an_interruption_nobody_gets_anothers_answer(
    make: Callable[..., Any], space: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """KeyboardInterrupt, a timeout of gevent, a signal handler that raises."""
    store = make()
    vector = fill(store, space, b"one")
    store.fill(space, OTHER, vector.replace(ENTRY, OTHER), b"other", 60)
    store.read(space, OTHER, TABLES)
    receive = Channel.receive

    def interrupted(channel: Channel) -> Any:
        if moment != "before the answer":
            channel._connection._sock.recv(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Channel, "receive", interrupted)
    for call in (
        lambda: store.read(space, ENTRY, TABLES),
        lambda: store.arm(space, "1.a", ["c"]),
        lambda: store.start_arm(space, "1.a", ["c"])(),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert idle(store) == []
        monkeypatch.setattr(Channel, "receive", receive)
        assert store.read(space, OTHER, TABLES).entry == b"other"
        assert store.read(space, ENTRY, TABLES).entry == b"one"
        monkeypatch.setattr(Channel, "receive", interrupted)


def test_an_interruption_while_sending_costs_the_socket(
    make: Callable[..., Any], space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    fill(store, space)
    with monkeypatch.context() as patch:
        patch.setattr(Channel, "post", interrupt)
        for call in (
            lambda: store.fill(space, ENTRY, "vector", b"-" * 20_000, 60),
            lambda: store.finish(space, "1.a", ["c"]),
        ):
            with pytest.raises(KeyboardInterrupt):
                call()
    assert idle(store) == []
    assert store.read(space, ENTRY, TABLES).entry == b"answer"


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


@on_redis_and_valkey
def test_twenty_threads_get_their_own_answers(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    read_clean(store, space, ENTRY, ("t",))

    def work(number: int) -> int:
        wrong = 0
        for turn in range(30):
            name, payload = f"{number:020}{turn:020}", f"{number}/{turn}".encode() * 50
            vector = read_clean(store, space, name, ("t",)).vector
            assert vector is not None
            store.fill(space, name, vector, payload, 60)
            wrong += store.read(space, name, ("t",)).entry not in (payload, None)
            store.arm(space, f"{number}.{turn}", [f"u{number}"])
            store.finish(space, f"{number}.{turn}", [f"u{number}"])
        return wrong

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(work, range(20))) == 0
    assert len(idle(store)) <= 20


def test_a_forked_process_opens_sockets_of_its_own(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space)
    (channel,) = idle(store)
    child = os.fork()
    if child == 0:
        # Whatever happens here, the tests go on in the parent only.
        try:
            is_empty = not idle(store)
            is_right = store.read(space, ENTRY, TABLES).entry == b"answer"
            os._exit(0 if is_empty and is_right else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    before = admin.info("stats")["total_connections_received"]
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    assert idle(store) == [channel]
    assert admin.info("stats")["total_connections_received"] == before


def test_a_socket_in_use_while_the_process_forks_is_not_kept_by_the_child(
    make: Callable[..., Any], space: str
) -> None:
    """What uses it goes on there, too, in a handler of a signal and in greenlets of gevent."""
    store = make()
    fill(store, space)

    def fork(channel: Any) -> int:
        # Python 3.12 warns of fork() with threads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()

    child = store._channels.run(fork)
    if child == 0:
        # Whatever happens here, the tests go on in the parent only.
        os._exit(len(idle(store)))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(idle(store)) == 1


def test_close_closes_the_idle_sockets_and_the_store_goes_on(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space)
    (channel,) = idle(store)
    store.close()
    assert channel._connection._sock is None
    assert store.read(space, ENTRY, TABLES).entry == b"answer"


def test_start_arm_needs_an_idle_socket(make: Callable[..., Any], space: str) -> None:
    """It is an optimisation: opening one is left to arm(), which knows what to do about errors."""
    store = make()
    with pytest.raises(CacheError, match="no idle channel"):
        store.start_arm(space, "1.a", ["a"])


def test_a_socket_that_died_during_start_arm_raises_a_cache_error(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space)
    confirm = store.start_arm(space, "1.a", ["a"])
    admin.client_kill_filter(_type="normal", skipme=True)
    try:
        confirm()
    except CacheError:
        assert idle(store) == []
    # With or without its answer, the commit was announced: nothing old is served.
    assert store.read(space, ENTRY, TABLES).entry is None


# --- what others write under the keys --------------------------------------------------------


def entry_key(admin: Any, entry: str = ENTRY) -> bytes:
    (key,) = admin.keys(f"*e:{entry}")
    return key  # type: ignore[no-any-return]


@on_redis_and_valkey
@pytest.mark.parametrize(
    "value", [b"", b"|", os.urandom(300), b"\x80\x04N.", b"x" * (20 << 20)], ids=lambda v: len(v)
)
def test_bytes_of_somebody_else_are_a_miss(
    make: Callable[..., Any], admin: Any, space: str, value: bytes
) -> None:
    store = make()
    vector = fill(store, space)
    store.read(space, ENTRY, TABLES)
    admin.set(entry_key(admin), value)
    assert store.read(space, ENTRY, TABLES) == (None, vector, None, 0.0)


@on_redis_and_valkey
def test_a_list_or_a_hash_under_the_key_of_an_entry_is_a_miss_and_is_replaced(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    vector = fill(store, space)
    store.read(space, ENTRY, TABLES)
    key = entry_key(admin)
    for damage in (lambda: admin.rpush(key, "x"), lambda: admin.hset(key, "n", "x")):
        admin.delete(key)
        damage()
        assert store.read(space, ENTRY, TABLES) == (None, vector, None, 0.0)
        store.fill(space, ENTRY, vector, b"answer", 60)
        assert store.read(space, ENTRY, TABLES).entry == b"answer"


def test_an_entry_copied_from_another_key_is_no_answer(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    store = make()
    fill(store, space, b"one")
    fill(store, space, b"other", OTHER)
    store.read(space, ENTRY, TABLES)
    admin.set(entry_key(admin), admin.get(entry_key(admin, OTHER)))
    assert store.read(space, ENTRY, TABLES).entry is None
    assert store.read(space, OTHER, TABLES).entry == b"other"


@on_redis_and_valkey
def test_a_foreign_counter_makes_entries_invalid(
    make: Callable[..., Any], admin: Any, space: str
) -> None:
    """What a program without ormcache can do: HINCRBY, or DEL."""
    store = make()
    fill(store, space)
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    (register,) = admin.keys("*r:a")
    admin.hincrby(register, "x", 1)
    assert store.read(space, ENTRY, TABLES).entry is None
    fill(store, space)
    assert store.read(space, ENTRY, TABLES).entry == b"answer"
    admin.delete(register)
    assert store.read(space, ENTRY, TABLES).reason is Reason.QUARANTINE
    assert read_clean(store, space).entry is None


@on_databases("default", transaction=True)
@on_caches("redis")
def test_damaged_entries_are_counted_and_replaced(
    cached: Watch, using: str, settings: Any
) -> None:
    import redis

    import ormcache

    one, other = (Author.objects.create(name=name) for name in ("one", "other"))

    def name(author: Author = one) -> str:
        return Author.objects.get(pk=author.pk).name

    with redis.Redis.from_url(settings.CACHES["redis"]["LOCATION"]) as client:
        before = set(client.keys("ormcache:*:e:*"))
        cached.warm(name)
        (key,) = set(client.keys("ormcache:*:e:*")) - before
        cached.warm(lambda: name(other))
        (other_key,) = set(client.keys("ormcache:*:e:*")) - before - {key}
        good = client.get(key)
        head, _, payload = good.partition(b"|")
        pickled = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."
        for damaged in (b"", payload[:-1], payload + b"\x00", os.urandom(40), pickled):
            client.set(key, head + b"|" + damaged)
            corrupt = count_corrupt(ormcache.statistics())
            assert cached.miss(name) == "one"
            assert count_corrupt(ormcache.statistics()) == corrupt + 1
            assert cached.hit(name) == "one"
        client.set(key, client.get(other_key))
        assert cached.miss(name) == "one"


def count_corrupt(statistics: Any) -> int:
    return int(statistics["default"]["tests_author"].get("corrupt", 0))


def test_a_background_thread_may_use_the_store(make: Callable[..., Any], space: str) -> None:
    store = make()
    fill(store, space)
    read = Background(store.read, space, ENTRY, TABLES)
    assert read.result().entry == b"answer"


# --- time limits -----------------------------------------------------------------------------


@pytest.fixture
def in_a_moment(server: RedisServer) -> Iterator[Callable[[type[BaseException]], None]]:
    """The server stops, and the handler of a signal raises an exception soon."""

    def start(kind: type[BaseException]) -> None:
        def interrupt(number: int, frame: Any) -> None:
            raise kind

        signal.signal(signal.SIGALRM, interrupt)
        server.pause()
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    usual = signal.getsignal(signal.SIGALRM)
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, usual)
    server.resume()


LIMITS = pytest.mark.parametrize("kind", [TimeLimit, TimeoutError, ConnectionError])


@LIMITS
@on_redis_and_valkey
def test_a_time_limit_is_raised_while_a_read_waits(
    make: Callable[..., Any], space: str, in_a_moment: Any, kind: type[Exception]
) -> None:
    store = make()
    fill(store, space)
    in_a_moment(kind)
    with pytest.raises(kind):
        store.read(space, ENTRY, TABLES)
    assert idle(store) == []


@LIMITS
def test_a_time_limit_is_raised_while_a_new_socket_is_opened(
    make: Callable[..., Any], space: str, in_a_moment: Any, kind: type[Exception]
) -> None:
    store = make()
    in_a_moment(kind)
    with pytest.raises(kind):
        store.read(space, ENTRY, TABLES)
    assert idle(store) == []


@LIMITS
def test_a_time_limit_is_raised_while_a_started_question_is_waited_for(
    make: Callable[..., Any], space: str, in_a_moment: Any, kind: type[Exception]
) -> None:
    store = make()
    fill(store, space)
    in_a_moment(kind)
    wait = store.start_read(space, ENTRY, TABLES)
    with pytest.raises(kind):
        wait()
    assert idle(store) == []


def test_a_time_limit_is_raised_while_answers_are_read_that_nobody_waited_for(
    make: Callable[..., Any], space: str, in_a_moment: Any
) -> None:
    store = make()
    fill(store, space)
    (channel,) = idle(store)
    in_a_moment(TimeLimit)
    channel._pending = 1
    with pytest.raises(TimeLimit):
        store.read(space, ENTRY, TABLES)


def test_whatever_a_provider_of_credentials_raises_is_a_cache_error(
    make: Callable[..., Any], space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()

    def connect(connection: Any) -> None:
        raise TimeLimit

    monkeypatch.setattr(store._channels._pool.connection_class, "connect", connect)
    with pytest.raises(CacheError, match="TimeLimit"):
        store.read(space, ENTRY, TABLES)
