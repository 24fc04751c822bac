"""Local memory: strict in one process, without servers and without quarantine."""

import os
import pickle
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches

from ormcache import statistics
from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from ormcache.stores import generation, store_for
from ormcache.stores import locmem as module
from ormcache.stores.locmem import LocMemStore
from tests.handlers import TimeLimit, handling, interrupted
from tests.interleaving import Background, pause_after, route_of
from tests.marks import on_databases
from tests.models import Author
from tests.watching import Watch

SPACE = "space"
TABLES = ("a", "b")


@pytest.fixture
def store() -> Iterator[LocMemStore]:
    cache: Any = caches["locmem"]
    cache.clear()
    yield LocMemStore(cache)
    cache.clear()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(module, "time", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fill(store: LocMemStore, payload: bytes, entry: str = "entry", tables: Any = TABLES) -> str:
    vector = store.read(SPACE, entry, tables).vector
    assert vector is not None
    store.fill(SPACE, entry, vector, payload, None)
    return vector


# --- one store -------------------------------------------------------------------------------


def test_a_new_store_trusts_itself_at_once(store: LocMemStore) -> None:
    fill(store, b"answer")
    assert store.read(SPACE, "entry", TABLES).entry == b"answer"


@pytest.mark.parametrize("table", [*TABLES, "*"])
def test_a_commit_makes_entries_of_its_tables_invalid(store: LocMemStore, table: str) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", [table])
    store.finish(SPACE, "1", [table])
    lookup = store.read(SPACE, "entry", TABLES)
    assert lookup.entry is None
    assert lookup.vector is not None


def test_bump_makes_entries_invalid(store: LocMemStore) -> None:
    fill(store, b"answer")
    store.bump(SPACE, ["b"])
    assert store.read(SPACE, "entry", TABLES).entry is None


def test_an_entry_that_is_dropped_is_gone_and_no_other(store: LocMemStore) -> None:
    fill(store, b"answer")
    fill(store, b"other", "other")
    vector = store.read(SPACE, "entry", TABLES).vector
    store.drop(SPACE, "entry")
    store.drop(SPACE, "entry")
    assert store.read(SPACE, "entry", TABLES) == (None, vector, None, 0.0)
    assert store.read(SPACE, "other", TABLES).entry == b"other"
    assert store.noted(SPACE) is store.note_of(SPACE, "entry") is None


def test_a_commit_to_another_table_or_namespace_leaves_them_valid(store: LocMemStore) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", ["c"])
    store.arm("elsewhere", "2", TABLES)
    assert store.read(SPACE, "entry", TABLES).entry == b"answer"


def test_an_armed_table_is_busy_until_every_commit_has_ended(
    store: LocMemStore, clock: Clock
) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    store.arm(SPACE, "2", ["a"])
    store.finish(SPACE, "1", ["a"])
    lookup = store.read(SPACE, "entry", TABLES)
    assert (lookup.entry, lookup.vector, lookup.reason) == (None, None, Reason.BUSY)
    assert lookup.remaining == pytest.approx(0.5)
    store.finish(SPACE, "2", ["a"])
    assert store.read(SPACE, "entry", TABLES).vector is not None


def test_a_lease_ends_by_itself_and_the_entry_from_before_stays_invalid(
    store: LocMemStore, clock: Clock
) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    clock.now += 0.49
    assert store.read(SPACE, "entry", TABLES).vector is None
    clock.now += 0.02
    lookup = store.read(SPACE, "entry", TABLES)
    assert lookup.entry is None
    assert lookup.vector is not None


def test_arming_again_renews_the_lease(store: LocMemStore, clock: Clock) -> None:
    store.arm(SPACE, "1", ["a"])
    clock.now += 0.4
    store.arm(SPACE, "1", ["a"])
    clock.now += 0.4
    assert store.read(SPACE, "entry", TABLES).vector is None
    store.finish(SPACE, "1", ["a"])
    assert store.read(SPACE, "entry", TABLES).vector is not None


def test_an_entry_stored_under_an_old_vector_is_not_met(store: LocMemStore) -> None:
    vector = store.read(SPACE, "entry", TABLES).vector
    assert vector is not None
    store.arm(SPACE, "1", ["a"])
    store.finish(SPACE, "1", ["a"])
    store.fill(SPACE, "entry", vector, b"old", None)
    assert store.read(SPACE, "entry", TABLES).entry is None


def test_status_tells_how_many_registers_there_are_and_which_commits_are_under_way(
    store: LocMemStore, clock: Clock
) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    store.arm("elsewhere", "1", ["c"])
    assert store.status(SPACE) == {
        "registers": 3,
        "commits under way": "a (for 0.5 s at most)",
    }


def test_an_entry_expires(store: LocMemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = store.read(SPACE, "entry", TABLES).vector
    assert vector is not None
    store.fill(SPACE, "entry", vector, b"answer", 60)
    cache: Any = caches["locmem"]
    (expiry,) = cache._expire_info.values()
    assert expiry == pytest.approx(time.time() + 60, abs=30)
    store.fill(SPACE, "entry", vector, b"answer", None)
    assert list(cache._expire_info.values()) == [None]


# --- what others do to the cache -------------------------------------------------------------


def test_clear_removes_entries_and_no_intents(store: LocMemStore) -> None:
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    caches["locmem"].clear()
    assert store.read(SPACE, "entry", TABLES).reason is Reason.BUSY
    store.finish(SPACE, "1", ["a"])
    assert store.read(SPACE, "entry", TABLES).entry is None


def test_culling_removes_entries_and_no_registers(store: LocMemStore) -> None:
    cache: Any = caches["locmem"]
    store.arm(SPACE, "1", ["a"])
    for number in range(cache._max_entries + 50):
        fill(store, b"answer", f"entry{number}", ("b",))
    assert len(cache._cache) <= cache._max_entries
    assert store.read(SPACE, "entry", ("a",)).reason is Reason.BUSY


def test_an_entry_copied_to_another_key_is_no_answer(store: LocMemStore) -> None:
    fill(store, b"answer", "one")
    fill(store, b"another", "other")
    cache: Any = caches["locmem"]
    cache.set(f"ormcache:{SPACE}:one", cache.get(f"ormcache:{SPACE}:other"))
    assert store.read(SPACE, "one", TABLES).entry is None


@pytest.mark.parametrize("value", [None, 1, b"answer", ("",), {"vector": b""}], ids=repr)
def test_anything_else_under_the_key_of_an_entry_is_a_miss(store: LocMemStore, value: Any) -> None:
    vector = fill(store, b"answer")
    caches["locmem"].set(f"ormcache:{SPACE}:entry", value)
    assert store.read(SPACE, "entry", TABLES) == (None, vector, None, 0.0)


def test_an_entry_that_cannot_be_unpickled_does_not_decode(store: LocMemStore) -> None:
    vector = fill(store, b"answer")
    cache: Any = caches["locmem"]
    (key,) = cache._cache
    cache._cache[key] = b"no pickle"
    assert store.read(SPACE, "entry", TABLES) == (b"", vector, None, 0.0)


def test_a_cache_that_raises_when_it_stores_raises_a_cache_error(
    store: LocMemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(caches["locmem"], "set", refuse)
    with pytest.raises(CacheError, match="MemoryError: full"):
        fill(store, b"answer")


def test_a_register_that_the_handler_of_a_signal_makes_meanwhile_keeps_its_intents(
    store: LocMemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._Register.__init__

    def write(*args: Any) -> None:
        monkeypatch.setattr(module._Register, "__init__", original)
        store.arm(SPACE, "the handler's", TABLES)

    def struck(register: Any) -> None:
        interrupted()
        original(register)

    monkeypatch.setattr(module._Register, "__init__", struck)
    with handling(write):
        store.arm(SPACE, "own", ["a"])
    store.finish(SPACE, "own", ["a"])
    assert store.read(SPACE, "entry", ["a"]).reason is Reason.BUSY


@pytest.mark.parametrize("method", ["get", "set", "delete"])
def test_a_time_limit_that_comes_while_the_cache_works_is_raised(
    store: LocMemStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fill(store, b"answer")
    monkeypatch.setattr(caches["locmem"], method, interrupted)
    with handling(), pytest.raises(TimeLimit):
        fill(store, b"answer")
        store.drop(SPACE, "entry")


def test_another_setting_of_caches_makes_another_store(settings: Any) -> None:
    before, number = store_for("locmem", "auto"), generation()
    settings.CACHES = {**settings.CACHES}
    after = store_for("locmem", "auto")
    assert after is not before
    assert generation() == number + 1
    assert store_for("locmem", "strict") is not None


def test_entries_of_a_former_store_are_not_taken_for_new_ones(store: LocMemStore) -> None:
    """Its registers are gone, and with them what was committed meanwhile."""
    fill(store, b"answer")
    cache: Any = caches["locmem"]
    following = LocMemStore(cache)
    assert following.read(SPACE, "entry", TABLES).entry is None


# --- processes -------------------------------------------------------------------------------


def in_child(question: Callable[[], Any]) -> Any:
    """The answer of a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(question(), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    return answer


def test_a_forked_process_begins_with_nothing(store: LocMemStore) -> None:
    """A commit of the parent may end unseen, so what the parent knew is not trusted."""
    fill(store, b"answer")
    store.arm(SPACE, "1", ["a"])
    lookup = in_child(lambda: store.read(SPACE, "entry", TABLES))
    assert lookup.entry is None
    assert lookup.reason is None


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock_leaves_a_store_that_works(
    store: LocMemStore,
) -> None:
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            held.set()
            end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        assert in_child(lambda: store.read(SPACE, "entry", TABLES).vector) is not None
    finally:
        end.set()
        thread.join()


# --- with the ORM ----------------------------------------------------------------------------


@on_databases(transaction=True)
def test_a_reader_overtaken_by_a_commit_stores_nothing_that_is_met(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has run its SQL and is about to store the answer when another thread commits."""
    author = Author.objects.using(using).create(name="old")

    def name() -> str:
        return Author.objects.using(using).get(pk=author.pk).name

    pause = pause_after(monkeypatch, route_of(using).store, "read")
    reader = Background(name)
    pause.wait()
    Author.objects.using(using).filter(pk=author.pk).update(name="new")
    pause.end()
    reader.result()
    assert name() == "new"


@on_databases("default", transaction=True)
def test_an_entry_that_cannot_be_read_is_counted_and_replaced(cached: Watch, using: str) -> None:
    author = Author.objects.create(name="a")

    def name() -> str:
        return Author.objects.get(pk=author.pk).name

    cached.warm(name)
    cache: Any = caches["locmem"]
    for key in cache._cache:
        cache._cache[key] = b"no pickle"
    before = statistics()["default"]["tests_author"].get("corrupt", 0)
    assert cached.miss(name) == "a"
    assert statistics()["default"]["tests_author"]["corrupt"] == before + 1
    assert cached.hit(name) == "a"
