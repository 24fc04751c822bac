"""Intents live as long as their commits, and not longer."""

import gc
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

import ormcache
from ormcache import brackets, debts, transactions
from ormcache.exceptions import CacheError
from ormcache.leases import Keeper, keeper
from ormcache.stores import Store
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.handlers import TimeLimit, handling, interrupted
from tests.interleaving import SECONDS, Background, pause_before, record_calls, store_of
from tests.marks import on_pairs
from tests.models import Author
from tests.watching import Watch

pytestmark = pytest.mark.usefixtures("emptied")

LEASE = 0.3
BUSY = "a write is being committed"


# --- commits that take long ------------------------------------------------------------------


@pytest.fixture
def names(settings: Any, using: str, cached: Watch) -> Callable[[], list[str]]:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": LEASE}
    with factories_using(using):
        AuthorFactory(name="old")

    def ask() -> list[str]:
        return list(Author.objects.using(using).values_list("name", flat=True))

    return ask


def rename(using: str) -> None:
    with transaction.atomic(using):
        Author.objects.using(using).update(name="new")


@on_pairs(
    ("postgresql", "redis"),
    ("postgresql", "memcached"),
    ("mariadb", "locmem"),
    ("default", "locmem"),
    transaction=True,
)
def test_a_commit_that_takes_longer_than_the_lease_stays_announced(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    names: Callable[[], list[str]],
    settings: Any,
) -> None:
    # Two thirds of it are what a machine may stall for before the announcement lapses.
    lease = 4 * LEASE
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": lease}
    cached.warm(names)
    cached.clear()
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    commit.wait()
    try:
        # Memcached counts whole seconds.
        end = time.monotonic() + lease + 1
        while time.monotonic() < end:
            assert names() == ["old"]
        assert set(cached.outcomes) == {BUSY}
    finally:
        commit.end()
    writer.result()
    # Who was just renewing the announcement ends it once more, which costs another miss.
    deadline = time.monotonic() + SECONDS
    outcome = ""
    while outcome != "hit":
        answer, (outcome,) = cached.call(names)
        assert answer == ["new"]
        assert time.monotonic() < deadline


@on_pairs(("postgresql", "redis"), ("default", "locmem"), transaction=True)
def test_after_a_commit_its_intent_is_not_renewed(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, names: Callable[[], list[str]]
) -> None:
    rename(using)
    calls = record_calls(monkeypatch, store_of(using), "arm")
    cached.warm(names)
    end = time.monotonic() + 2 * LEASE
    while time.monotonic() < end:
        assert cached.hit(names) == ["new"]
        time.sleep(0.01)
    assert calls == []


@on_pairs(("postgresql", "redis"), ("default", "locmem"), transaction=True)
def test_a_renewal_that_a_commit_overtakes_leaves_no_intent_behind(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, names: Callable[[], list[str]]
) -> None:
    """The keeper's thread arms once more after the intent was finished."""
    store = store_of(using)
    committed = threading.Event()
    is_renewed = threading.Event()
    original = store.arm

    def arm(*args: Any) -> None:
        if threading.current_thread().name == "ormcache-leases":
            is_renewed.set()
            assert committed.wait(SECONDS)
        original(*args)

    finished = record_calls(monkeypatch, store, "finish")
    monkeypatch.setattr(store, "arm", arm)
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    commit.wait()
    assert is_renewed.wait(SECONDS)
    commit.end()
    writer.result()
    assert finished == ["finish"]
    committed.set()
    deadline = time.monotonic() + SECONDS
    while finished != ["finish", "finish"]:
        assert time.monotonic() < deadline, "the renewed intent is not taken back"
        time.sleep(0.01)
    assert cached.warm(names) == ["new"]


# --- the keeper itself -----------------------------------------------------------------------


class FakeStore(Store):
    """Notes what it is told."""

    mode = "strict"

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.when_armed: Callable[[str], None] = lambda intent: None

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self.calls.append(("arm", intent))
        self.when_armed(intent)

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self.calls.append(("finish", intent))

    read = fill = drop = bump = status = arm  # type: ignore[assignment]


class Passive(Keeper):
    """Renews only when it is told to."""

    def _run(self) -> None:
        pass


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def lease(settings: Any) -> float:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 60}
    return 60.0


def hold(keeper: Keeper, store: FakeStore, intent: str, age: float) -> None:
    keeper.hold(intent, store, "namespace", ["table"], time.monotonic() - age)


def test_an_intent_is_renewed_when_a_third_of_its_lease_is_over(
    store: FakeStore, lease: float
) -> None:
    keeper = Passive()
    hold(keeper, store, "young", age=lease / 3 - 5)
    hold(keeper, store, "old", age=lease / 3 + 1)
    keeper.renew()
    assert store.calls == [("arm", "old")]
    keeper.renew()
    assert store.calls == [("arm", "old")]


def test_a_released_intent_is_not_renewed(store: FakeStore, lease: float) -> None:
    keeper = Passive()
    for is_finished in (True, False):
        hold(keeper, store, "intent", age=lease)
        keeper.release("intent", finished=is_finished)
    keeper.renew()
    assert store.calls == []


def test_an_intent_finished_while_it_is_renewed_is_finished_once_more(
    store: FakeStore, lease: float
) -> None:
    keeper = Passive()
    hold(keeper, store, "intent", age=lease)
    store.when_armed = lambda intent: keeper.release(intent, finished=True)
    keeper.renew()
    assert store.calls == [("arm", "intent"), ("finish", "intent")]


def test_an_intent_of_unknown_outcome_is_left_to_its_lease_though_it_is_just_renewed(
    store: FakeStore, lease: float
) -> None:
    """Its COMMIT may still take effect."""
    keeper = Passive()
    hold(keeper, store, "intent", age=lease)
    store.when_armed = lambda intent: keeper.release(intent, finished=False)
    keeper.renew()
    keeper.renew()
    assert store.calls == [("arm", "intent")]


def test_an_intent_released_while_another_is_renewed_is_left_alone(
    store: FakeStore, lease: float
) -> None:
    keeper = Passive()
    hold(keeper, store, "first", age=lease)
    hold(keeper, store, "second", age=lease)
    store.when_armed = lambda intent: keeper.release("second", finished=True)
    keeper.renew()
    assert store.calls == [("arm", "first")]


class Owner:
    """Something that a weak reference can lead to."""


def test_an_intent_is_renewed_for_as_long_as_its_owner_lives(
    store: FakeStore, lease: float
) -> None:
    passive, owner = Passive(), Owner()
    passive.hold("intent", store, "namespace", ["table"], time.monotonic() - lease, owner)
    passive.renew()
    assert store.calls == [("arm", "intent")]


def test_an_intent_whose_owner_is_gone_is_left_to_its_lease(
    store: FakeStore, lease: float
) -> None:
    passive, owner = Passive(), Owner()
    passive.hold("intent", store, "namespace", ["table"], time.monotonic() - lease, owner)
    del owner
    gc.collect()
    passive.renew()
    assert store.calls == []
    assert not passive._held


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        # After the announcement, before the caller has the bracket.
        (brackets, "announce"),
        # When the outcome is there, before the intent is released.
        (transactions.ConnectionState, "ended"),
        # When it is released, before the cache is told.
        (brackets, "_pin"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@on_pairs(("postgresql", "redis"), ("default", "locmem"), transaction=True)
def test_an_intent_is_not_renewed_when_its_commit_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    names: Callable[[], list[str]],
    owner: Any,
    step: str,
) -> None:
    """A time limit comes between two steps that no ``try`` surrounds."""
    original = getattr(owner, step)

    def struck(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        interrupted()
        return result

    with monkeypatch.context() as patched, handling():
        patched.setattr(owner, step, struck)
        with pytest.raises(TimeLimit):
            rename(using)
    connections[using].close()
    gc.collect()
    assert [held for held in keeper._held.values() if held.owner() is not None] == []
    deadline = time.monotonic() + SECONDS
    while cached.call(names)[1] != ["hit"]:
        assert time.monotonic() < deadline


def test_an_intent_is_not_renewed_when_the_payment_of_debts_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, using: str, cached: Watch
) -> None:
    """Not even where somebody keeps what was raised, and so the bracket."""
    debts.ledger.begin(("elsewhere", ""), ["table"])
    try:
        with handling(), monkeypatch.context() as patched:
            patched.setattr(debts, "pay", interrupted)
            with pytest.raises(TimeLimit) as caught:
                ormcache.invalidate(Author, using=using)
        assert caught.value.__traceback__ is not None
        assert not keeper._held
    finally:
        debts.ledger._written.clear()


def test_a_cache_that_fails_is_asked_again_for_each_intent_in_the_next_round(
    store: FakeStore, lease: float
) -> None:
    def fail(intent: str) -> None:
        raise CacheError("out of reach")

    keeper = Passive()
    hold(keeper, store, "first", age=lease)
    hold(keeper, store, "second", age=lease)
    store.when_armed = fail
    keeper.renew()
    store.when_armed = lambda intent: None
    keeper.renew()
    assert store.calls == 2 * [("arm", "first"), ("arm", "second")]


def test_one_thread_renews_the_intents_of_all(store: FakeStore, lease: float) -> None:
    def count() -> int:
        return sum(thread.name == "ormcache-leases" for thread in threading.enumerate())

    keeper, before = Keeper(), count()
    threads = [Background(hold, keeper, store, f"intent {n}", 0.0) for n in range(8)]
    for thread in threads:
        thread.result()
    assert count() == before + 1


def test_where_no_thread_can_be_started_an_intent_has_its_lease(
    store: FakeStore, lease: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 starts none once it has begun to end: a write in an atexit handler."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    keeper = Passive()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        hold(keeper, store, "one", age=0)
    assert keeper._thread is None
    # It is tried again.
    hold(keeper, store, "two", age=0)
    assert keeper._thread is not None


def test_the_thread_outlives_settings_that_are_wrong_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    store: FakeStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    right = settings.ORMCACHE
    settings.ORMCACHE = {"LEASE": -1}
    keeper = Passive()
    hold(keeper, store, "intent", age=60)
    store.when_armed = lambda intent: (_ for _ in ()).throw(SystemExit)

    def sleep(seconds: float) -> None:
        settings.ORMCACHE = right

    monkeypatch.setattr("ormcache.leases.time.sleep", sleep)
    with pytest.raises(SystemExit):
        Keeper._run(keeper)
    assert store.calls == [("arm", "intent")]
    assert "could not be renewed" in caplog.text


def test_a_forked_child_renews_its_own_intents_and_not_its_parents(
    settings: Any, store: FakeStore
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 0.06}
    keeper = Keeper()
    hold(keeper, store, "the parent's", age=60)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of fork() with threads; but servers that do so are what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            store.calls.clear()
            hold(keeper, store, "the child's", age=60)
            deadline = time.monotonic() + SECONDS
            while len(store.calls) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            os.write(writing, repr(set(store.calls)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == repr({("arm", "the child's")})
    os.waitpid(child, 0)
    keeper.release("the parent's", finished=True)
    assert {intent for _, intent in store.calls} == {"the parent's"}
