"""Who has written reads what he wrote; nobody else waits for it."""

import asyncio
import collections
import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.signals import request_started
from django.db import OperationalError, connections, transaction

from ormcache import replica_router, replicas
from ormcache.brackets import announce
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheError, CacheUnreachable
from ormcache.routers import ReplicaRouter, pins, positions
from tests.aliases import alias_of
from tests.interleaving import Background, route_of, session, store_of
from tests.marks import on_databases, on_replicated
from tests.models import Author, Tag
from tests.multidb.conftest import GROUP, PRIMARY, REPLICA, Pair, names, reader
from tests.watching import Watch, wait_for_quarantine


def elsewhere(function: Callable[[], Any]) -> Any:
    """What somebody else gets, who has not written: in the same thread, by the same servers."""
    return contextvars.Context().run(function)


def catch_up(pair: Pair) -> None:
    pair.replica.resume_replay()
    pair.replica.wait_for_primary()


# --- read your writes --------------------------------------------------------------------------


@on_replicated()
def test_a_writer_reads_the_primary_until_the_replica_has_caught_up(routed: Pair) -> None:
    assert (reader(), names()) == (REPLICA, ["old"])
    routed.replica.pause_replay()
    Author.objects.create(name="new")
    for _ in range(3):
        assert (reader(), names()) == (PRIMARY, ["old", "new"])
        assert elsewhere(reader) == REPLICA
        assert elsewhere(names) == ["old"]
    catch_up(routed)
    assert (reader(), names()) == (REPLICA, ["old", "new"])
    assert elsewhere(names) == ["old", "new"]


@on_replicated()
def test_a_later_write_counts_from_then_on(routed: Pair) -> None:
    Author.objects.create(name="new")
    catch_up(routed)
    assert reader() == REPLICA
    routed.replica.pause_replay()
    assert reader() == REPLICA
    Author.objects.update(name="newer")
    assert names() == ["newer", "newer"]


def _in_a_transaction() -> None:
    with transaction.atomic(using=PRIMARY):
        Author.objects.create(name="new")


def _by_hand() -> None:
    transaction.set_autocommit(False, using=PRIMARY)
    try:
        Author.objects.create(name="new")
        transaction.commit(using=PRIMARY)
    finally:
        transaction.set_autocommit(True, using=PRIMARY)


def _as_sql() -> None:
    with connections[PRIMARY].cursor() as cursor:
        cursor.execute("INSERT INTO tests_author (name) VALUES ('new')")


def _as_a_transaction_in_sql() -> None:
    with connections[PRIMARY].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO tests_author (name) VALUES ('new')")
        cursor.execute("COMMIT")


WRITES: dict[str, Callable[[], Any]] = {
    "create": lambda: Author.objects.create(name="new"),
    "bulk_create": lambda: Author.objects.bulk_create([Author(name="new")]),
    "get_or_create": lambda: Author.objects.get_or_create(name="new"),
    "atomic": _in_a_transaction,
    "by hand": _by_hand,
    "SQL": _as_sql,
    "transaction in SQL": _as_a_transaction_in_sql,
}


@on_replicated()
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_every_way_to_write_counts(routed: Pair, write: Callable[[], Any]) -> None:
    routed.replica.pause_replay()
    write()
    assert (reader(), names()) == (PRIMARY, ["old", "new"])


@on_replicated()
def test_hooks_that_run_after_the_commit_read_what_was_committed(routed: Pair) -> None:
    routed.replica.pause_replay()
    found: list[list[str]] = []
    with transaction.atomic(using=PRIMARY):
        transaction.on_commit(lambda: found.append(names()), using=PRIMARY)
        Author.objects.create(name="new")
    assert found == [["old", "new"]]


@on_replicated()
def test_who_has_written_nothing_is_not_pinned(routed: Pair) -> None:
    routed.replica.pause_replay()
    names()
    with transaction.atomic(using=PRIMARY):
        names()
        list(Author.objects.using(PRIMARY))
    with transaction.atomic(using=PRIMARY):
        Author.objects.create(name="undone")
        transaction.set_rollback(True, using=PRIMARY)
    Tag.objects.using("default").create(name="elsewhere")
    assert pins.current() is None
    assert reader() == REPLICA


@on_replicated("postgresql")
def test_a_write_that_was_refused_pins_nobody(
    routed: Pair, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise CacheError("down")

    with monkeypatch.context() as patch:
        for name in ("arm", "start_arm"):
            patch.setattr(store_of(PRIMARY), name, fail)
        with pytest.raises(CacheUnreachable):
            Author.objects.create(name="new")
        assert reader() == REPLICA
        settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "open"}
        routed.replica.pause_replay()
        Author.objects.create(name="new")
        assert names() == ["old", "new"]
    route_of(PRIMARY).breaker.succeeded()


@on_replicated("postgresql")
def test_a_commit_of_which_nobody_knows_whether_it_happened_counts(routed: Pair) -> None:
    connection = connections[PRIMARY]
    announce(connection, state_of(connection), ["tests_author"]).end(known=False)
    routed.replica.pause_replay()
    routed.primary.ask("INSERT INTO tests_author (name) VALUES ('new')")
    assert names() == ["old", "new"]


@on_replicated()
def test_it_works_while_caching_is_switched_off(routed: Pair, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False}
    assert reader() == REPLICA
    routed.replica.pause_replay()
    Author.objects.create(name="new")
    assert (reader(), names()) == (PRIMARY, ["old", "new"])
    catch_up(routed)
    assert (reader(), names()) == (REPLICA, ["old", "new"])


@on_replicated()
def test_what_is_cached_of_a_replica_that_is_behind_is_not_shown_to_the_writer(
    routed: Pair,
) -> None:
    for _ in range(3):
        names()
    routed.replica.pause_replay()
    Author.objects.update(name="new")
    for _ in range(3):
        assert names() == ["new"]


# --- other replicas ----------------------------------------------------------------------------


@on_replicated()
def test_a_replica_that_has_caught_up_is_read_while_another_is_behind(
    routed: Pair, settings: Any
) -> None:
    """The other one is a second way to the primary, which is never behind."""
    with alias_of(PRIMARY, "twin"):
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "DATABASES": {**GROUP, "twin": {"PRIMARY": PRIMARY}},
        }
        assert {reader() for _ in range(4)} == {REPLICA, "twin"}
        routed.replica.pause_replay()
        Author.objects.create(name="new")
        assert {reader() for _ in range(4)} == {"twin"}
        assert names() == ["old", "new"]
        catch_up(routed)
        assert {reader() for _ in range(4)} == {REPLICA, "twin"}


@on_replicated()
def test_a_transaction_on_the_replica_that_shows_an_older_snapshot_is_not_read(
    routed: Pair,
) -> None:
    options = connections[REPLICA].settings_dict["OPTIONS"]
    level: Any = "repeatable read"
    if routed.like == "postgresql":
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        level = IsolationLevel.REPEATABLE_READ
    with (
        session(REPLICA, OPTIONS={**options, "isolation_level": level}),
        transaction.atomic(using=REPLICA),
    ):
        assert list(Author.objects.using(REPLICA).values_list("name", flat=True)) == ["old"]
        Author.objects.create(name="new")
        routed.replica.wait_for_primary()
        assert (reader(), names()) == (PRIMARY, ["old", "new"])


@on_replicated()
def test_a_new_connection_may_lead_to_a_replica_that_is_less_far(routed: Pair) -> None:
    Author.objects.create(name="new")
    catch_up(routed)
    assert reader() == REPLICA
    state = state_of(connections[REPLICA])
    assert state.replayed is not None
    connections[REPLICA].close()
    assert state.replayed is None
    assert (reader(), names()) == (REPLICA, ["old", "new"])
    assert state.replayed is not None


# --- what it costs -----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which positions were asked for."""
    found: list[str] = []

    def count(name: str) -> None:
        original = getattr(positions, name)

        def counted(connection: Any) -> Any:
            found.append(name)
            return original(connection)

        monkeypatch.setattr(positions, name, counted)

    count("written")
    count("replayed")
    return found


@on_replicated()
def test_a_hit_opens_no_connection_to_the_replica(routed: Pair) -> None:
    wait_for_quarantine(REPLICA)
    with Watch(REPLICA) as watch:
        assert watch.warm(names) == ["old"]
        connections[REPLICA].close()
        assert watch.hit(names) == ["old"]
    assert connections[REPLICA].connection is None


@on_replicated()
def test_nobody_is_asked_before_somebody_has_to_know(routed: Pair, asked: list[str]) -> None:
    assert reader() == REPLICA
    for _ in range(5):
        Author.objects.create(name="new")
    assert asked == []
    catch_up(routed)
    for _ in range(5):
        assert reader() == REPLICA
    assert asked == ["written", "replayed"]


@on_replicated()
def test_a_replica_that_is_behind_is_asked_now_and_then(
    routed: Pair, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(replica_router, "_PATIENCE", 0.02)
    routed.replica.pause_replay()
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now)
    Author.objects.create(name="new")
    for _ in range(5):
        assert [reader() for _ in range(5)] == [PRIMARY] * 5
        now += 0.03
    monkeypatch.undo()
    assert asked == ["written", *["replayed"] * 5]


# --- positions that nobody knows ---------------------------------------------------------------


@pytest.fixture
def copy(fresh: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The default database and a "replica" of it that tells no position; its options."""
    with alias_of("default", "copy"):
        monkeypatch.setattr(
            "ormcache.routers.namespaces.identity",
            lambda connection: (connection.vendor, connection.alias),
        )
        options: dict[str, Any] = {"PRIMARY": "default"}
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"copy": options}}
        settings.DATABASE_ROUTERS = [ReplicaRouter()]
        yield options


@on_databases("default", transaction=True)
def test_without_a_position_the_context_stays_on_the_primary(
    using: str, copy: dict[str, Any]
) -> None:
    assert reader() == "copy"
    Author.objects.create(name="new")
    assert [reader() for _ in range(5)] == [using] * 5
    assert elsewhere(reader) == "copy"


@on_databases("default", transaction=True)
def test_without_a_position_the_declared_lag_has_to_pass(
    using: str, copy: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"copy": {**copy, "MAX_LAG": 5}}}
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now)
    assert reader() == "copy"
    Author.objects.create(name="new")
    assert reader() == using
    now += 4.9
    assert reader() == using
    now += 0.2
    assert reader() == "copy"
    Author.objects.create(name="newer")
    assert reader() == using


@on_replicated()
def test_a_primary_that_does_not_tell_its_position_now_is_asked_later(
    routed: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    Author.objects.create(name="new")
    catch_up(routed)

    def refuse(connection: Any) -> Any:
        raise OperationalError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(positions, "written", refuse)
        assert reader() == PRIMARY
    monkeypatch.setattr(replicas, "_breakers", {})
    assert reader() == REPLICA


@on_replicated()
def test_a_replica_that_does_not_tell_its_position_is_not_read_by_the_writer(
    routed: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: Any) -> Any:
        raise OperationalError("no answer")

    Author.objects.create(name="new")
    catch_up(routed)
    with monkeypatch.context() as patch:
        patch.setattr(positions, "replayed", refuse)
        assert (reader(), names()) == (PRIMARY, ["old", "new"])
        assert elsewhere(reader) == REPLICA
    assert reader() == REPLICA


# --- threads and tasks -------------------------------------------------------------------------


def write(name: str = "new") -> None:
    Author.objects.create(name=name)


@on_replicated()
def test_threads_are_pinned_each_for_itself(routed: Pair) -> None:
    routed.replica.pause_replay()

    def write_and_read() -> list[str]:
        write()
        return names()

    assert Background(write_and_read).result() == ["old", "new"]
    assert names() == ["old"]
    write("newer")
    assert Background(names).result() == ["old"]
    assert names() == ["old", "new", "newer"]


@on_replicated()
def test_a_thread_with_a_copy_of_the_context_shares_the_pins(routed: Pair) -> None:
    """As long as there was a scope when it was copied."""
    pins.begin({})
    routed.replica.pause_replay()
    Background(contextvars.copy_context().run, write).result()
    assert names() == ["old", "new"]


@on_replicated()
def test_a_task_that_writes_pins_no_other_task(routed: Pair) -> None:
    routed.replica.pause_replay()
    has_written = asyncio.Event()

    async def writer() -> list[str]:
        await Author.objects.acreate(name="new")
        has_written.set()
        return await sync_to_async(names)()

    async def bystander() -> list[str]:
        await has_written.wait()
        return await sync_to_async(names)()

    async def both() -> list[list[str]]:
        return await asyncio.gather(writer(), bystander())

    assert async_to_sync(both)() == [["old", "new"], ["old"]]


@on_replicated()
def test_a_task_reads_what_its_threads_have_written(routed: Pair) -> None:
    routed.replica.pause_replay()

    async def task() -> list[list[str]]:
        await sync_to_async(write)()
        found = [await sync_to_async(names)()]
        found.append([author.name async for author in Author.objects.order_by("pk")])
        found.append([author.name async for author in Author.objects.order_by("pk").aiterator()])
        return found

    assert async_to_sync(task)() == [["old", "new"]] * 3


@on_replicated()
def test_a_thread_reads_what_its_coroutines_have_written(routed: Pair) -> None:
    routed.replica.pause_replay()

    async def coroutine() -> None:
        await Author.objects.acreate(name="new")

    async_to_sync(coroutine)()
    assert names() == ["old", "new"]


@on_replicated()
@pytest.mark.parametrize("begin", ["a request", "a write"])
def test_tasks_of_one_request_share_what_they_write(routed: Pair, begin: str) -> None:
    """Whichever of them writes, if the scope was there when they began."""
    routed.replica.pause_replay()

    async def request() -> list[str]:
        if begin == "a request":
            pins.begin({})
        else:
            await Author.objects.acreate(name="first")
        await asyncio.gather(
            Author.objects.acreate(name="second"), Author.objects.acreate(name="third")
        )
        return sorted(await sync_to_async(names)())

    first = ["first"] if begin == "a write" else []
    assert async_to_sync(request)() == [*first, "old", "second", "third"]


@on_replicated()
def test_a_task_that_began_before_the_first_write_is_pinned_for_itself(routed: Pair) -> None:
    """Without the middleware: nothing says that it belongs to the same request."""
    routed.replica.pause_replay()

    async def request() -> list[str]:
        await asyncio.gather(Author.objects.acreate(name="new"))
        return await sync_to_async(names)()

    assert async_to_sync(request)() == ["old"]


@on_replicated()
def test_a_coroutine_that_asks_the_router_gets_an_answer_without_a_question(
    routed: Pair, asked: list[str]
) -> None:
    """Django asks where to read in coroutines, too; there no database may be used."""

    async def task() -> list[str]:
        found = [reader()]
        await Author.objects.acreate(name="new")
        return [*found, reader()]

    connections[REPLICA].close()
    assert async_to_sync(task)()[1] == PRIMARY
    assert asked == []


@on_replicated()
def test_a_worker_that_runs_one_task_after_the_other_comes_back_to_the_replica(
    routed: Pair,
) -> None:
    """As those of Celery do: one context for all tasks, and no signal that Django knows."""

    def work() -> list[tuple[str, list[str]]]:
        done = []
        routed.replica.pause_replay()
        for task in (names, write, names):
            task()
            done.append((reader(), names()))
        catch_up(routed)
        done.append((reader(), names()))
        return done

    assert Background(work).result() == [
        (REPLICA, ["old"]),
        (PRIMARY, ["old", "new"]),
        (PRIMARY, ["old", "new"]),
        (REPLICA, ["old", "new"]),
    ]


# --- requests ----------------------------------------------------------------------------------


@on_replicated()
def test_a_request_is_not_pinned_by_the_last_one_of_its_thread(routed: Pair) -> None:
    routed.replica.pause_replay()
    request_started.send(sender=None, environ={})
    write()
    assert reader() == PRIMARY
    request_started.send(sender=None, environ={})
    assert reader() == REPLICA


@on_replicated()
def test_requests_in_tasks_share_nothing_that_was_there_before_them(routed: Pair) -> None:
    """A server that was started by a script which has written, as `runserver` may be."""
    write("at the start")
    routed.replica.wait_for_primary()
    assert reader() == REPLICA
    routed.replica.pause_replay()
    has_written = asyncio.Event()

    async def request(is_writer: bool) -> str:
        await request_started.asend(sender=None, scope={})
        if is_writer:
            await Author.objects.acreate(name="new")
            has_written.set()
        await has_written.wait()
        return await sync_to_async(reader)()

    async def server() -> list[str]:
        return await asyncio.gather(request(True), request(False))

    assert async_to_sync(server)() == [PRIMARY, REPLICA]


# --- all at once -------------------------------------------------------------------------------


@pytest.mark.slow
@on_replicated()
def test_nobody_misses_his_own_writes_while_the_replica_stops_and_goes_on(
    routed: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of four threads and tasks of two loops, and a replica that comes and goes."""
    monkeypatch.setattr(replica_router, "_PATIENCE", 0.005)
    ended = threading.Event()
    used: collections.Counter[str] = collections.Counter()

    def write_and_read(pk: int, number: int) -> None:
        Author.objects.filter(pk=pk).update(name=str(number))
        for _ in range(5):
            author = Author.objects.get(pk=pk)
            assert author.name == str(number), author._state.db
            used[author._state.db or ""] += 1

    def requests(pk: int) -> None:
        for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
            request_started.send(sender=None, environ={})
            write_and_read(pk, number)
            time.sleep(0.01)

    async def task(pk: int) -> None:
        for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
            await sync_to_async(write_and_read)(pk, number)
            await asyncio.sleep(0.01)

    async def tasks(first: int) -> None:
        await asyncio.gather(*map(task, range(first, first + 3)))

    Author.objects.bulk_create([Author(pk=pk, name="") for pk in range(1000, 1010)])
    routed.replica.wait_for_primary()
    running = [Background(requests, pk) for pk in range(1000, 1004)]
    running += [Background(async_to_sync(tasks), first) for first in (1004, 1007)]
    for _ in range(5):
        routed.replica.pause_replay()
        time.sleep(0.2)
        routed.replica.resume_replay()
        time.sleep(0.3)
    ended.set()
    for one in running:
        one.result()
    assert used[PRIMARY] > 10
    assert used[REPLICA] > 10
