"""The parts of `ormcache_south.py`, the one file for old projects, on this Python.

`tests/test_south.py` runs all of it on Python 2.7.
"""

import importlib.util
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from ormcache import sql
from ormcache.reasons import Reason
from ormcache.stores.redis import PROTOCOL, _script
from tests.embed_lua import LEGACY_FILE, embedded
from tests.interleaving import SECONDS, route_of, store_of
from tests.marks import on_databases, on_redis_and_valkey
from tests.servers import HOST, RedisServer, free_port
from tests.watching import Watch, wait_for_quarantine

LEASE = 1.0


def load() -> Any:
    spec = importlib.util.spec_from_file_location("ormcache_south", LEGACY_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


legacy = load()


# --- the scripts -----------------------------------------------------------------------------


def test_the_scripts_in_the_file_are_those_of_the_package() -> None:
    """After a change of one of them: `python -m tests.embed_lua`."""
    source = LEGACY_FILE.read_text("utf-8")
    assert embedded(source) == source
    # Less their quick ways.
    assert _script("incarnation", "registers", "arm") == legacy.HOLD
    assert _script("incarnation", "registers", "finish") == legacy.RELEASE
    assert PROTOCOL == legacy.PROTOCOL


# --- settings --------------------------------------------------------------------------------

GOOD = {"REDIS": "redis://localhost", "NAMESPACE": "shop"}
WRONG = {
    "nothing": (None, "ORMCACHE_SOUTH must be a dict by database alias"),
    "empty": ({}, "ORMCACHE_SOUTH must be a dict by database alias"),
    "an unknown alias": ({"gone": GOOD}, r"has 'gone', which is not in DATABASES.*: default"),
    "no dict": ({"default": "redis://localhost"}, "is 'redis://localhost', not a dict"),
    "an unknown option": ({"default": {**GOOD, "WRITE": True}}, "unknown option 'WRITE'"),
    "no namespace": ({"default": {"REDIS": "redis://localhost"}}, "has no 'NAMESPACE'"),
    "no URL": ({"default": {"NAMESPACE": "shop"}}, "has no 'REDIS'"),
    "a namespace with a brace": ({"default": {**GOOD, "NAMESPACE": "{a}"}}, r"\['NAMESPACE'\] is"),
    "a lease of nothing": ({"default": {**GOOD, "LEASE": 0}}, r"\['LEASE'\] is 0"),
    "a lease that is a flag": ({"default": {**GOOD, "LEASE": True}}, r"\['LEASE'\] is True"),
    "a policy": ({"default": {**GOOD, "ON_CACHE_FAILURE": "ignore"}}, "'raise' or 'open'"),
    "writes": ({"default": {**GOOD, "WRITES": 1}}, "True or False"),
    "triggers": ({"default": {**GOOD, "ALSO_WRITES": {"a": "b"}}}, "table of its trigger"),
    "a URL of another kind": (
        {"default": {**GOOD, "REDIS": "http://:secret@localhost"}},
        r"\['REDIS'\] is wrong: it begins with none of",
    ),
    "a URL that is none": ({"default": {**GOOD, "REDIS": 6379}}, r"\['REDIS'\] is wrong\. It"),
    "a port": ({"default": {**GOOD, "REDIS": "redis://:secret@localhost:x"}}, "REDIS'. is wrong"),
    "a number": (
        {"default": {**GOOD, "REDIS": "redis://:secret@h/one"}},
        "number of the database",
    ),
    "a query": ({"default": {**GOOD, "REDIS": "redis://:secret@h/1?tls=1"}}, "tls is not known"),
    "a check of TLS": (
        {"default": {**GOOD, "REDIS": "rediss://:secret@h?ssl_cert_reqs=maybe"}},
        "neither required nor none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_named(case: str) -> None:
    setting, message = WRONG[case]
    with pytest.raises(ImproperlyConfigured, match=message) as raised:
        legacy.parse(setting, {"default": {}})
    assert "secret" not in str(raised.value)


def test_right_settings_have_the_defaults_of_ormcache() -> None:
    options = legacy.parse({"default": GOOD, "other": None}, {"default": {}, "other": {}})
    assert options["other"] is None
    default = options["default"]
    assert (default.LEASE, default.SOCKET_TIMEOUT) == (10, 1)
    assert (default.ON_CACHE_FAILURE, default.WRITES) == ("raise", False)


URLS = {
    "redis://": ("localhost", 6379, None, "", "", 0),
    "redis://cache:7000/3": ("cache", 7000, None, "", "", 3),
    "redis://:p%40ss@cache": ("cache", 6379, None, "", "p@ss", 0),
    "redis://me:pass@[::1]:7000/?db=2": ("::1", 7000, None, "me", "pass", 2),
    "rediss://cache": ("cache", 6379, None, "", "", 0),
    "unix:///run/redis.sock?db=4": ("localhost", 6379, "/run/redis.sock", "", "", 4),
    "unix://:pass@/run/redis.sock": ("localhost", 6379, "/run/redis.sock", "", "pass", 0),
}


@pytest.mark.parametrize("url", URLS)
def test_urls_are_those_of_django(url: str) -> None:
    address = legacy.Address(url)
    assert (
        address.host,
        address.port,
        address.path,
        address.user,
        address.password,
        address.database,
    ) == URLS[url]
    assert address.tls == url.startswith("rediss")


def test_newer_versions_of_django_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"for Django 1\.6.*use ormcache itself"):
        legacy.connect()


# --- what a statement writes -----------------------------------------------------------------

STATEMENTS = {
    # READ
    "SELECT 1": ("read", ()),
    " \n select * from a where b = 'update'": ("read", ()),
    "(SELECT 1) UNION (SELECT 2)": ("read", ()),
    "SELECT 1;": ("read", ()),
    # WRITE of one table
    'INSERT INTO "a" ("b") VALUES (%s)': ("write", ("a",)),
    "INSERT INTO a SELECT * FROM b": ("write", ("a",)),
    "insert ignore into `A` set b = 1": ("write", ("a",)),
    "INSERT OR REPLACE INTO a VALUES (1)": ("write", ("a",)),
    "REPLACE INTO a VALUES (1)": ("write", ("a",)),
    "INSERT INTO a DEFAULT VALUES": ("write", ("a",)),
    'UPDATE "public"."a" SET b = 1': ("write", ("a",)),
    "UPDATE public.a SET b = 1": ("write", ("a",)),
    'UPDATE "a.b" SET c = 1': ("write", ("a.b",)),
    "UPDATE [a] SET b = 1;\n": ("write", ("a",)),
    "DELETE FROM a": ("write", ("a",)),
    'DELETE FROM "a" WHERE "a"."id" IN (%s)': ("write", ("a",)),
    # WRITE of anything
    "UPDATE a, b SET c = 1": ("write", ("*",)),
    "UPDATE ONLY a SET b = 1": ("write", ("*",)),
    "UPDATE a x SET b = 1": ("write", ("*",)),
    "DELETE a FROM a, b": ("write", ("*",)),
    "DELETE FROM a, b USING a, b": ("write", ("*",)),
    "INSERT INTO a b": ("write", ("*",)),
    'UPDATE "ä" SET b = 1': ("write", ("*",)),
    "UPDATE ä SET b = 1": ("write", ("*",)),
    "UPDATE a SET b = 1; UPDATE c SET d = 1": ("write", ("*",)),
    "SELECT 1; DELETE FROM a": ("write", ("*",)),
    "SELECT * INTO a FROM b": ("write", ("*",)),
    "/* why */ UPDATE a SET b = 1": ("write", ("*",)),
    "-- why\nDELETE FROM a": ("write", ("*",)),
    "WITH x AS (DELETE FROM a RETURNING 1) SELECT * FROM x": ("write", ("*",)),
    "EXPLAIN ANALYZE DELETE FROM a": ("write", ("*",)),
    "CREATE TABLE a (b integer)": ("write", ("*",)),
    "ALTER TABLE a ADD b integer": ("write", ("*",)),
    "TRUNCATE a": ("write", ("*",)),
    "COMMIT": ("write", ("*",)),
    "END": ("write", ("*",)),
    "PREPARE TRANSACTION 'a'": ("write", ("*",)),
    "SET autocommit = 1": ("write", ("*",)),
    "CALL a()": ("write", ("*",)),
    "COPY a FROM STDIN": ("write", ("*",)),
    "VACUUM": ("write", ("*",)),
    "MERGE INTO a USING b": ("write", ("*",)),
    "": ("write", ("*",)),
    # CONTROL
    "BEGIN": ("control", ()),
    "START TRANSACTION": ("control", ()),
    "ROLLBACK": ("control", ()),
    "ROLLBACK TO SAVEPOINT a": ("control", ()),
    "SAVEPOINT a": ("control", ()),
    "SET CONSTRAINTS ALL IMMEDIATE": ("control", ()),
    "PRAGMA foreign_keys": ("control", ()),
    "SHOW TABLES": ("control", ()),
    "LOCK TABLE a": ("control", ()),
    "FETCH 10 FROM a": ("control", ()),
    "WITH x AS (SELECT 1) SELECT * FROM x": ("control", ()),
    "EXPLAIN SELECT 1": ("control", ()),
    "RELEASE SAVEPOINT a": ("release", ()),
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_what_a_statement_writes_is_told_from_its_beginning_or_is_everything(text: str) -> None:
    kind, tables = legacy.effect_of(text)
    assert (kind, tuple(tables)) == STATEMENTS[text]
    assert legacy.effect_of(text.encode()) == (kind, tables)


def test_what_is_no_text_may_write_everything() -> None:
    assert legacy.effect_of(object()) == ("write", frozenset("*"))


@pytest.mark.parametrize("name", ['"Shop_Book"', "`Shop_Book`", "[shop_book]", "SHOP_BOOK"])
def test_names_are_folded_as_ormcache_folds_them(name: str) -> None:
    assert legacy._folded(name) == sql.table_name(name) == "shop_book"


def test_triggers_are_followed_to_the_end() -> None:
    also = {"a": {"b"}, "b": {"c", "a"}, "d": {"e"}}
    assert legacy._with_triggers({"a"}, also) == {"a", "b", "c"}


# --- sockets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(server_kind: type[RedisServer]) -> Iterator[RedisServer]:
    redis = server_kind(options={"requirepass": "secret", "unixsocketperm": "777"})
    redis.options["unixsocket"] = str(redis.files / "redis.sock")
    redis.options["user"] = "me on >pass ~* +@all"
    redis.serve_tls()
    with redis:
        yield redis


def connect(url: str, timeout: float = 2) -> Any:
    return legacy.Server(legacy.Address(url), timeout)


@on_redis_and_valkey
def test_each_way_to_a_server_leads_to_the_same_incarnation(redis: RedisServer) -> None:
    certificate = redis.files / "certificate.pem"
    tls = f"rediss://:secret@{HOST}:{redis.options['tls-port']}/1"
    servers = [
        connect(f"redis://:secret@{HOST}:{redis.port}"),
        connect(f"redis://me:pass@{HOST}:{redis.port}/2"),
        connect(f"unix://:secret@{redis.files}/redis.sock?db=3"),
        connect(f"{tls}?ssl_ca_certs={certificate}"),
        connect(f"{tls}?ssl_cert_reqs=none"),
    ]
    assert len({server.incarnation for server in servers}) == 1
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "url, message",
    [
        ("redis://{host}:{port}", "NOAUTH"),
        ("redis://:wrong@{host}:{port}", "WRONGPASS"),
        ("redis://:secret@{host}:{port}/5000", "index"),
        ("rediss://:secret@{host}:{tls_port}", "certificate verify failed"),
        ("rediss://:secret@{host}:{port}", None),
        ("redis://:secret@{host}:{tls_port}", None),
        ("unix:///nowhere/redis.sock", "No such file"),
        ("redis://{host}:{nobody}", "refused"),
    ],
)
def test_what_is_wrong_on_the_way_is_told(
    redis: RedisServer, url: str, message: str | None
) -> None:
    tls_port, nobody = redis.options["tls-port"], free_port()
    url = url.format(host=HOST, port=redis.port, tls_port=tls_port, nobody=nobody)
    with pytest.raises(legacy.CacheError, match=message) as raised:
        connect(url, timeout=1)
    assert "secret" not in str(raised.value)


@on_redis_and_valkey
def test_these_permissions_are_enough(redis: RedisServer) -> None:
    admin = connect(f"redis://:secret@{HOST}:{redis.port}")
    rules = "on >pass resetkeys ~ormcache:* -@all +info +select +exists +eval +hincrby"
    inside = "+time +hget +hmget +hset +hsetnx +hdel"
    admin.call(b"ACL", b"SETUSER", b"teller", *f"{rules} {inside}".encode().split())
    admin.close()
    url = f"redis://teller:pass@{HOST}:{redis.port}/1"
    link = legacy.Link(legacy.Options("here", {"REDIS": url, "NAMESPACE": "permitted"}))
    link.hold(b"intent", {"a"})
    link.release(b"intent", {"a"})
    link.close()


@on_redis_and_valkey
def test_a_replica_is_refused(redis: RedisServer) -> None:
    with (
        type(redis)(replica_of=redis, options={"masterauth": "secret"}) as replica,
        pytest.raises(legacy.CacheError, match="is a replica"),
    ):
        connect(f"redis://{HOST}:{replica.port}")


class FakeServer:
    """Answers whatever it is asked with the bytes it is given, and hangs up."""

    def __init__(self, *answers: bytes, hangs: bool = False) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(10)
        self._answers = answers
        self._hangs = hangs
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.url = f"redis://{HOST}:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        with connection:
            for answer in self._answers:
                connection.recv(4096)
                connection.sendall(answer)
            if self._hangs:
                self._ended.wait(10)

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    "answers, message",
    [
        ([b""], "closed the connection|reset"),
        ([b"$10\r\nrole"], "closed the connection|reset"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], "this is no Redis server"),
        ([b"$x\r\n"], "ValueError"),
        ([b"*1\r\n:1\r\n"], r"INFO is answered with \[1\]"),
        ([b"$-1\r\n"], "INFO is answered with None"),
        ([b"+OK\r\n", b"$13\r\nrole:master\r\n\r\n"], "does not tell what it is"),
    ],
)
def test_answers_of_something_else_are_errors(answers: list[bytes], message: str) -> None:
    with FakeServer(*answers) as url, pytest.raises(legacy.CacheError, match=message):
        connect(url)


def test_a_server_that_hangs_is_a_timeout() -> None:
    with FakeServer(hangs=True) as url, pytest.raises(legacy.CacheTimeout):
        connect(url, timeout=0.1)


# --- holds -----------------------------------------------------------------------------------


@pytest.fixture
def cache(settings: Any, redis: RedisServer) -> str:
    settings.CACHES = {
        **settings.CACHES,
        "own": {
            "BACKEND": redis.backend,
            "LOCATION": f"{redis.scheme}://:secret@{HOST}:{redis.port}/0",
        },
    }
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": LEASE}
    return "own"


@pytest.fixture
def link(cached: Watch, using: str, redis: RedisServer) -> Iterator[Callable[..., Any]]:
    """Makes a link to the namespace of `using`."""
    made = []

    def link(**options: Any) -> Any:
        facts = {
            "REDIS": f"redis://:secret@{HOST}:{redis.port}/0",
            "NAMESPACE": route_of(using).namespace,
            "LEASE": LEASE,
        }
        made.append(legacy.Link(legacy.Options("here", {**facts, **options})))
        return made[-1]

    wait_for_quarantine(using)
    yield link
    # The thread of these links ends with its next round.
    legacy.here().keeper.stop()
    legacy._process = None
    for each in made:
        each.close()


def vector(using: str, table: str) -> str:
    """The vector of a register, once it is clean."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = store_of(using).read(route_of(using).namespace, "e" * 40, [table]).vector
        if found is not None:
            return found
        assert time.monotonic() < deadline
        time.sleep(LEASE / 20)


def reason(using: str, table: str) -> Reason | None:
    return store_of(using).read(route_of(using).namespace, "e" * 40, [table]).reason


on_default = on_databases("default", transaction=True)


@on_default
@on_redis_and_valkey
def test_what_is_held_is_busy_for_ormcache_until_it_is_released(link: Any, using: str) -> None:
    hold = link().announce({"a"})
    assert (reason(using, "a"), reason(using, "b")) == (Reason.BUSY, None)
    hold.release()
    assert reason(using, "a") is None
    hold = link().announce({"a", "*"})
    assert reason(using, "b") is Reason.BUSY
    hold.release()
    assert reason(using, "b") is None


@on_default
def test_a_hold_lasts_for_longer_than_its_lease(link: Any, using: str) -> None:
    hold = link().announce({"a"})
    ends = time.monotonic() + 2 * LEASE
    while time.monotonic() < ends:
        assert reason(using, "a") is Reason.BUSY
        time.sleep(LEASE / 20)
    hold.release()
    assert reason(using, "a") is None


@on_default
def test_a_hold_that_is_left_ends_with_its_lease(link: Any, using: str) -> None:
    before, begun = vector(using, "a"), time.monotonic()
    link().announce({"a"}).leave()
    found = store_of(using).read(route_of(using).namespace, "e" * 40, ["a"])
    assert found.reason is Reason.BUSY
    assert found.remaining <= LEASE
    assert vector(using, "a") != before
    assert time.monotonic() - begun > LEASE * 0.9


@on_default
@on_redis_and_valkey
def test_sockets_that_died_are_replaced(link: Any, using: str, redis: RedisServer) -> None:
    one = link()
    one.announce({"a"}).release()
    redis.restart()
    one.announce({"a"}).release()
    assert len(one._idle) == 1


@on_default
def test_an_answer_that_takes_too_long_for_the_lease_is_none(
    link: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = link()
    run = one._run

    def slow(*args: Any) -> None:
        run(*args)
        monkeypatch.setattr(legacy, "_clock", lambda: time.monotonic() + LEASE)

    monkeypatch.setattr(one, "_run", slow)
    monkeypatch.setattr(legacy, "_clock", time.monotonic)
    one.announce({"a"}).leave()  # The second try was fast enough.
    ticks = iter(range(100))
    monkeypatch.setattr(legacy, "_clock", lambda: next(ticks))
    monkeypatch.setattr(one, "_run", run)
    with pytest.raises(legacy.CacheUnreachable, match="longer to answer than a third of a lease"):
        one.announce({"a"})


@on_default
def test_what_is_owed_is_paid_after_the_write(
    link: Any, cached: Watch, using: str, redis: RedisServer
) -> None:
    one = link(ON_CACHE_FAILURE="open", SOCKET_TIMEOUT=0.1)
    before = vector(using, "a")
    redis.pause()
    try:
        debt = one.announce({"a"})
        assert not one.owes
        debt.release()
        assert one.owes
        assert not one.pay()
    finally:
        redis.resume()
    assert one.pay()
    assert vector(using, "a") != before
