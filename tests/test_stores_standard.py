"""Any cache of Django's: the bracket with plain values."""

import contextlib
import pathlib
import pickle
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.db import OperationalError, connections, transaction

from ormcache import flush, statistics
from ormcache.exceptions import CacheError, CacheUnreachable
from ormcache.reasons import Reason
from ormcache.stores import is_store_access, store_for
from ormcache.stores.base import Store
from ormcache.stores.standard import StandardStore
from tests.interleaving import SECONDS, Background, pause_before, route_of
from tests.marks import needs, on_caches, on_databases, scenario
from tests.models import Author
from tests.servers import MemcachedServer
from tests.watching import Watch

# The namespace; another for each test, see `store`.
SPACE = "space"
TABLES = ("a", "b")
ALL = ("locmem", "filebased", "memcached", "redis", "django_redis", "django_valkey")


@pytest.fixture
def store(cache: str) -> Iterator[Store]:
    """With nothing in it. Not by clear(): other tests use the same Memcached at this moment."""
    global SPACE
    SPACE = f"space-{uuid.uuid4().hex}"
    yield StandardStore(cache)


def fill(store: Store, payload: bytes, entry: str = "entry", tables: Any = TABLES) -> str:
    vector = store.read(SPACE, entry, tables).vector
    assert vector is not None
    store.fill(SPACE, entry, vector, payload, 60)
    return vector


# --- the bracket, on every kind of cache -----------------------------------------------------


@on_caches(*ALL)
def test_an_entry_is_found_until_a_commit_to_one_of_its_tables(store: Store) -> None:
    fill(store, b"answer")
    assert store.read(SPACE, "entry", TABLES).entry == b"answer"
    store.arm(SPACE, "1", ["b"])
    busy = store.read(SPACE, "entry", TABLES)
    assert (busy.entry, busy.vector, busy.reason) == (None, None, Reason.BUSY)
    store.finish(SPACE, "1", ["b"])
    lookup = store.read(SPACE, "entry", TABLES)
    assert lookup.entry is None
    assert lookup.vector is not None


@on_caches(*ALL)
def test_an_entry_that_is_dropped_is_gone_and_no_other(store: Store) -> None:
    fill(store, b"answer")
    fill(store, b"other", "other")
    vector = store.read(SPACE, "entry", TABLES).vector
    store.drop(SPACE, "entry")
    store.drop(SPACE, "entry")
    assert store.read(SPACE, "entry", TABLES) == (None, vector, None, 0.0)
    assert store.read(SPACE, "other", TABLES).entry == b"other"
    assert store.noted(SPACE) is store.note_of(SPACE, "entry") is None


@on_caches(*ALL)
def test_the_register_of_everything_and_bump_do_the_same(store: Store) -> None:
    fill(store, b"answer")
    store.bump(SPACE, ["*"])
    assert store.read(SPACE, "entry", TABLES).entry is None
    fill(store, b"answer")
    store.bump(SPACE, ["a"])
    assert store.read(SPACE, "entry", TABLES).entry is None


@on_caches("locmem", "memcached")
def test_a_missing_register_makes_a_miss(store: Store, cache: str) -> None:
    fill(store, b"answer")
    caches[cache].delete(f"ormcache:{SPACE}:r:b")
    lookup = store.read(SPACE, "entry", TABLES)
    assert lookup.entry is None
    assert lookup.vector is not None
    fill(store, b"answer")
    assert store.read(SPACE, "entry", TABLES).entry == b"answer"


@on_caches("locmem", "memcached")
def test_a_reader_that_misses_a_register_does_not_undo_the_mark_of_a_writer(
    store: Store, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer comes between the reader's look and the reader's register."""
    original = store._call  # type: ignore[attr-defined]
    marked = []

    def call(method: str, *args: Any) -> Any:
        if method == "add" and not marked:
            marked.append(True)
            store.arm(SPACE, "1", ["a", "b"])
        return original(method, *args)

    monkeypatch.setattr(store, "_call", call)
    assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY
    assert marked


@on_caches("memcached", "locmem")
@pytest.mark.parametrize("table", ["two words", "línea", "x\x7f", "a" * 63, "表" * 20])
def test_any_name_of_a_table_makes_a_key(store: Store, table: str) -> None:
    fill(store, b"answer", tables=(table,))
    assert store.read(SPACE, "entry", (table,)).entry == b"answer"
    store.bump(SPACE, [table])
    assert store.read(SPACE, "entry", (table,)).entry is None


@on_caches("memcached")
def test_an_entry_may_have_no_end_or_less_than_a_second(store: Store) -> None:
    for timeout in (None, 0.01):
        vector = store.read(SPACE, "entry", TABLES).vector
        assert vector is not None
        deadline = time.monotonic() + SECONDS
        store.fill(SPACE, "entry", vector, b"answer", timeout)
        # On a busy machine it may be over before it is looked for.
        while store.read(SPACE, "entry", TABLES).entry != b"answer":
            assert time.monotonic() < deadline
            store.fill(SPACE, "entry", vector, b"answer", timeout)


@on_caches("locmem")
def test_a_mark_lasts_longer_than_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Memcached and the database cache round the end down to a whole second."""
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 2.5}
    seen = []
    original = caches["locmem"].set_many

    def set_many(data: Any, timeout: Any) -> Any:
        seen.append(timeout)
        return original(data, timeout)

    monkeypatch.setattr(caches["locmem"], "set_many", set_many)
    store.arm(SPACE, "1", ["a"])
    store.finish(SPACE, "1", ["a"])
    assert seen == [4, None]


@on_caches("locmem")
def test_a_mark_that_another_commit_has_replaced_is_set_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = caches["locmem"].set_many
    others = iter([True, False])

    def set_many(data: Any, timeout: Any) -> Any:
        result = original(data, timeout)
        if next(others):
            original(dict.fromkeys(data, "c:of another commit"), None)
        return result

    monkeypatch.setattr(caches["locmem"], "set_many", set_many)
    store.arm(SPACE, "1", ["a"])
    assert store.read(SPACE, "entry", ["a"]).reason is Reason.BUSY


# --- caches that fail ------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, method: str, result: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(caches["locmem"], method, fail)


@on_caches("locmem")
@pytest.mark.parametrize("result", [["key"], OSError("gone"), None], ids=["told", "raised", "not"])
def test_a_mark_that_was_not_stored_raises(
    store: Store, monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    """Whether the cache says so, raises, or swallows it as the database cache does."""
    failing(monkeypatch, "set_many", result)
    for method, args in {"arm": ("1", ["a"]), "bump": (["a"],)}.items():
        with pytest.raises(CacheError):
            getattr(store, method)(SPACE, *args)


@scenario(36)
@on_caches("locmem")
def test_failed_keys_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "set_many", ["key"])
    with pytest.raises(CacheError, match="did not store key"):
        store.finish(SPACE, "1", ["a"])


@on_caches("locmem")
@pytest.mark.parametrize("method", ["get_many", "set"])
def test_any_error_of_the_cache_is_a_cache_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    failing(monkeypatch, method, ZeroDivisionError("theirs"))
    with pytest.raises(CacheError, match="ZeroDivisionError: theirs"):
        fill(store, b"answer")


@scenario(36)
@needs("memcached")
def test_memcached_restarted_has_forgotten_entries_and_registers(settings: Any) -> None:
    with MemcachedServer() as server:
        location = f"127.0.0.1:{server.port}"
        settings.CACHES = {**settings.CACHES, "own": {**MEMCACHED, "LOCATION": location}}
        store = StandardStore("own")
        fill(store, b"answer")
        server.kill()
        with pytest.raises(CacheError):
            store.read(SPACE, "entry", TABLES)
        with pytest.raises(CacheError):
            store.arm(SPACE, "1", ["a"])
        server.start()
        # pymemcache leaves a server that failed alone for a second and says that it is empty.
        deadline = time.monotonic() + SECONDS
        while (lookup := store.read(SPACE, "entry", TABLES)).vector is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert lookup.entry is None
        fill(store, b"answer")
        assert store.read(SPACE, "entry", TABLES).entry == b"answer"


MEMCACHED = {"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache"}


@scenario(36)
@on_caches("memcached")
def test_an_item_too_large_for_memcached_is_not_stored(store: Store) -> None:
    vector = store.read(SPACE, "entry", TABLES).vector
    assert vector is not None
    # Either outcome is right: an error that is told, or nothing.
    with contextlib.suppress(CacheError):
        store.fill(SPACE, "entry", vector, bytes(3 * 1024 * 1024), 60)
    assert store.read(SPACE, "entry", TABLES).entry is None


# --- what others write under the keys --------------------------------------------------------


@on_caches("locmem", "memcached", "filebased")
def test_an_entry_copied_to_another_key_is_no_answer(store: Store, cache: str) -> None:
    fill(store, b"answer", "one")
    fill(store, b"another", "other")
    stolen = caches[cache].get(f"ormcache:{SPACE}:e:other")
    caches[cache].set(f"ormcache:{SPACE}:e:one", stolen)
    assert store.read(SPACE, "one", TABLES).entry is None


@on_caches("locmem", "memcached", "filebased")
@pytest.mark.parametrize("value", [1, b"answer", ("",), {"vector": b""}], ids=repr)
def test_anything_else_under_the_key_of_an_entry_is_a_miss(
    store: Store, cache: str, value: Any
) -> None:
    vector = fill(store, b"answer")
    caches[cache].set(f"ormcache:{SPACE}:e:entry", value)
    assert store.read(SPACE, "entry", TABLES) == (None, vector, None, 0.0)


@on_caches("locmem", "memcached")
def test_a_register_that_holds_anything_else_is_busy(store: Store, cache: str) -> None:
    fill(store, b"answer")
    caches[cache].set(f"ormcache:{SPACE}:r:a", 7)
    assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY


class Unreadable:
    """It can be pickled and not be unpickled."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise pickle.UnpicklingError("not for you")


@on_caches("locmem", "filebased", "memcached", "redis")
def test_an_entry_that_cannot_be_unpickled_does_not_decode(store: Store, cache: str) -> None:
    vector = fill(store, b"answer")
    caches[cache].set(f"ormcache:{SPACE}:e:entry", Unreadable())
    lookup = store.read(SPACE, "entry", TABLES)
    # pymemcache logs the error and says that there is nothing.
    assert lookup.entry == (None if cache == "memcached" else b"")
    assert lookup.vector == vector


@on_caches("locmem")
def test_a_connection_that_fails_is_not_asked_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt may last as long as a timeout."""
    calls = []

    def get_many(keys: Any) -> Any:
        calls.append(keys)
        raise TimeoutError

    monkeypatch.setattr(caches["locmem"], "get_many", get_many)
    with pytest.raises(CacheError):
        store.read(SPACE, "entry", TABLES)
    assert len(calls) == 1


DAMAGED: dict[str, Any] = {
    "*": ("c:1",),
    "a": 7,
    "b": b"c:1",
    "c": "clean",
    "d": Unreadable(),
    "e": None,
}


@on_caches(*ALL)
def test_damaged_registers_are_busy_for_a_lease_and_then_as_good_as_new(
    store: Store, cache: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 0.01}
    tables = tuple(DAMAGED)[1:]
    fill(store, b"answer", tables=tables)
    for table, value in DAMAGED.items():
        caches[cache].set(f"ormcache:{SPACE}:r:{table}", value)
    assert store.read(SPACE, "entry", tables).reason is Reason.BUSY
    deadline = time.monotonic() + SECONDS
    while (lookup := store.read(SPACE, "entry", tables)).vector is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lookup.entry is None, "what was stored before is not valid again"
    fill(store, b"answer", tables=tables)
    assert store.read(SPACE, "entry", tables).entry == b"answer"


@on_caches("filebased", "memcached")
@pytest.mark.parametrize("table", ["*", "a"])
def test_bytes_in_place_of_a_register_cost_a_lease(
    store: Store, cache: str, settings: Any, table: str
) -> None:
    """Below Django, in the file or the server itself."""
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 0.01}
    fill(store, b"answer")
    scribble(cache, f"ormcache:{SPACE}:r:{table}")
    assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY
    # Writes are announced all the same.
    store.arm(SPACE, "1", ["a"])
    store.finish(SPACE, "1", ["a"])
    deadline = time.monotonic() + SECONDS
    while (lookup := store.read(SPACE, "entry", TABLES)).vector is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lookup.entry is None


def scribble(cache: str, key: str) -> None:
    backend: Any = caches[cache]
    if cache == "filebased":
        pathlib.Path(backend._key_to_file(key)).write_bytes(b"garbage")
        return
    pymemcache = pytest.importorskip("pymemcache")
    client = pymemcache.Client(backend._servers[0])
    # The flag says that it is a pickle.
    client.set(backend.make_and_validate_key(key), b"\x80garbage", flags=1, noreply=False)
    client.close()


@on_caches("filebased", "memcached")
def test_the_mark_of_a_writer_stays_when_another_register_is_damaged(
    store: Store, cache: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 30}
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    scribble(cache, f"ormcache:{SPACE}:r:b")
    for _ in range(2):
        assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY
    assert caches[cache].get(f"ormcache:{SPACE}:r:a") == "d:1"
    assert caches[cache].get(f"ormcache:{SPACE}:r:b").startswith("d:")


@on_databases("default", transaction=True)
@on_caches("filebased", "memcached")
@pytest.mark.parametrize("table", ["*", "tests_author"])
def test_a_damaged_register_refuses_no_write_and_opens_no_breaker(
    cached: Watch, using: str, cache: str, settings: Any, table: str
) -> None:
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "ON_CACHE_FAILURE": "raise",
        "KEY_PREFIX": f"damaged{uuid.uuid4().hex[:8]}",
    }
    Author.objects.create(name="old")

    def name() -> str:
        return Author.objects.get().name

    cached.warm(name)
    scribble(cache, f"ormcache:{route_of(using).namespace}:r:{table}")
    assert cached.call(name) == ("old", [str(Reason.BUSY)])
    assert route_of(using).breaker.is_closed
    Author.objects.update(name="new")
    assert name() == "new"
    flush(using=using)
    cached.warm(name)


@on_caches("locmem")
@pytest.mark.parametrize("touch", ["missing", "failing"])
def test_a_register_that_the_cache_does_not_keep_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, touch: str
) -> None:
    """A server out of reach says that it is empty; some caches cannot be asked otherwise."""
    monkeypatch.setattr(caches["locmem"], "add", lambda *args: False)
    if touch == "missing":
        failing(monkeypatch, "touch", NotImplementedError("touch"))
    else:
        failing(monkeypatch, "touch", OSError("gone"))
    failing(monkeypatch, "set", AssertionError("it must not be marked"))
    if touch == "missing":
        assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY
    else:
        with pytest.raises(CacheError, match="gone"):
            store.read(SPACE, "entry", TABLES)


@on_caches("locmem")
@pytest.mark.parametrize("error", [OSError, OperationalError, "ConnectionError", "MemcacheError"])
def test_whoever_cannot_be_reached_is_asked_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """Drivers have errors of their own, which are no OSError."""
    kind = type(error, (Exception,), {}) if isinstance(error, str) else error
    calls = []

    def refuse(*args: Any) -> Any:
        calls.append(args)
        raise kind("gone")

    monkeypatch.setattr(caches["locmem"], "get_many", refuse)
    monkeypatch.setattr(caches["locmem"], "get", refuse)
    with pytest.raises(CacheError):
        store.read(SPACE, "entry", TABLES)
    assert len(calls) == 1


@on_databases("postgresql", transaction=True)
@on_caches("memcached")
def test_a_corrupt_entry_is_counted_and_replaced(
    cached: Watch, using: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = Author.objects.using(using).create(name="a")

    def name() -> str:
        return Author.objects.using(using).get(pk=author.pk).name

    stored = []
    store: Any = route_of(using).store
    fill_it = store.fill

    def fill(space: str, entry: str, *rest: Any) -> None:
        stored.append(f"ormcache:{space}:e:{entry}")
        fill_it(space, entry, *rest)

    monkeypatch.setattr(store, "fill", fill)
    cached.warm(name)
    (key,) = stored
    vector, payload = caches[cache].get(key)
    for damaged in (b"", payload[:-1], b"\xc1", 7):
        caches[cache].set(key, (vector, damaged))
        before = statistics()[using]["tests_author"].get("corrupt", 0)
        assert cached.miss(name) == "a", damaged
        assert statistics()[using]["tests_author"]["corrupt"] == before + 1, damaged
        assert cached.hit(name) == "a"


# --- a cache in a database -------------------------------------------------------------------


@pytest.fixture
def database_cache(settings: Any, transactional_db: Any) -> Iterator[str]:
    """The cache "database" lives in the default database, ormcache on PostgreSQL uses it."""
    call_command("createcachetable", verbosity=0)
    # A new dict makes new stores and breakers.
    settings.CACHES = {**settings.CACHES}
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "database"}
    yield "database"
    with connections["default"].cursor() as cursor:
        cursor.execute("DELETE FROM ormcache_test_cache")


on_two_databases = pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)


@on_two_databases
def test_a_cache_in_a_database_is_used_for_another(database_cache: str) -> None:
    with Watch("postgresql") as watch:
        author = Author.objects.using("postgresql").create(name="a")

        def name() -> str:
            return Author.objects.using("postgresql").get(pk=author.pk).name

        assert watch.warm(name) == "a"
        Author.objects.using("postgresql").update(name="b")
        assert watch.warm(name) == "b"


@on_two_databases
def test_a_cache_in_a_database_is_not_used_for_that_one(database_cache: str) -> None:
    assert store_for("database", "auto").database() == "default"  # type: ignore[union-attr]
    with Watch("default") as watch:
        assert watch.call(lambda: list(Author.objects.all())) == ([], ["no usable cache"])


@on_two_databases
def test_statements_of_the_cache_itself_invalidate_nothing(database_cache: str) -> None:
    seen = []
    with connections["default"].execute_wrapper(
        lambda execute, sql, *rest: (seen.append((is_store_access(), sql)), execute(sql, *rest))[1]
    ):
        Author.objects.using("postgresql").create(name="a")
    assert [sql for _, sql in seen if "ormcache_test_cache" in sql]
    assert all(is_ours for is_ours, _ in seen)
    assert not is_store_access()


@on_two_databases
def test_inside_a_transaction_of_its_database_the_cache_is_not_to_be_trusted(
    database_cache: str, settings: Any
) -> None:
    """The mark of a commit would be seen by others only when that transaction ends."""
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    author = Author.objects.using("postgresql").create(name="a")

    def name() -> str:
        return Author.objects.using("postgresql").get(pk=author.pk).name

    with Watch("postgresql") as watch:
        watch.warm(name)
        with transaction.atomic(using="default"):
            assert watch.call(name) == ("a", ["cache unreachable"])
            with pytest.raises(CacheUnreachable):
                Author.objects.using("postgresql").update(name="b")
    assert name() == "a"


@on_two_databases
def test_an_error_that_the_database_cache_swallows_refuses_the_write(
    database_cache: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DatabaseCache.set() answers a locked or full database with silence."""
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    author = Author.objects.using("postgresql").create(name="a")

    def read_only(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith(("INSERT", "UPDATE")):
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    with connections["default"].execute_wrapper(read_only), pytest.raises(CacheUnreachable):
        Author.objects.using("postgresql").update(name="b")
    assert Author.objects.using("postgresql").get(pk=author.pk).name == "a"


# --- races -----------------------------------------------------------------------------------


@on_databases("postgresql", transaction=True)
@on_caches("memcached", "filebased")
def test_a_reader_overtaken_by_a_commit_stores_nothing_that_is_met(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = Author.objects.using(using).create(name="old")

    def name() -> str:
        return Author.objects.using(using).get(pk=author.pk).name

    pause = pause_before(monkeypatch, route_of(using).store, "fill")
    reader = Background(name)
    pause.wait()
    Author.objects.using(using).filter(pk=author.pk).update(name="new")
    pause.end()
    assert reader.result() == "old"
    assert name() == "new"


def test_status_has_nothing_to_tell() -> None:
    assert StandardStore("locmem").status(SPACE) == {}


def test_a_dummy_cache_makes_no_store() -> None:
    assert store_for("dummy", "auto") is None
    assert store_for("dummy", "standard") is None


@needs("memcached")
def test_a_cache_that_cannot_be_strict_makes_no_strict_store() -> None:
    assert store_for("memcached", "strict") is None
    assert isinstance(store_for("memcached", "auto"), StandardStore)
