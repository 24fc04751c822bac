"""No interleaving of readers and writers makes the cache answer with what is no longer true.

The threads of a test stop at named points. Where many run freely, each reader knows the least
value that it may see: what had been committed, and acknowledged, before it began to read.
"""

import asyncio
import contextlib
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.cache import caches
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ormcache import brackets, flights, reads
from tests.authors import NEW, OLD, Names, rename
from tests.factories import BookFactory
from tests.factories import using as factories_using
from tests.hammering import ENOUGH, PATIENCE, ROWS, Hammer, hammer_in_process, make_rows
from tests.interleaving import (
    SECONDS,
    Background,
    pause_after,
    pause_before,
    record_calls,
    released_before,
    session,
    store_of,
)
from tests.marks import on_pairs, scenario
from tests.models import Author, Book, Note, Tag
from tests.watching import Watch, wait_for_quarantine

pytestmark = pytest.mark.usefixtures("emptied")

on_each = on_pairs(
    ("default", "locmem"),
    ("postgresql", "redis"),
    ("mariadb", "redis"),
    ("postgresql", "memcached"),
    transaction=True,
)
on_strict = on_pairs(
    ("default", "locmem"), ("postgresql", "redis"), ("mariadb", "redis"), transaction=True
)
on_two = on_pairs(("default", "locmem"), ("postgresql", "redis"), transaction=True)
on_memcached = on_pairs(("postgresql", "memcached"), transaction=True)

BUSY = "a write is being committed"


# --- a reader is overtaken -------------------------------------------------------------------


@scenario(1)
@on_each
def test_an_answer_that_a_commit_overtakes_on_its_way_to_the_cache_is_never_served(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    pause = pause_before(monkeypatch, store_of(using), "fill")
    reader = Background(names)
    pause.wait()
    rename(using)
    pause.end()
    assert reader.result() == [OLD]
    assert cached.outcomes == ["miss"]
    assert cached.warm(names) == [NEW]


@on_each
def test_a_reader_that_asked_the_cache_before_a_commit_and_the_database_after_it_is_right(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    pause = pause_after(monkeypatch, store_of(using), "read")
    reader = Background(names)
    pause.wait()
    rename(using)
    pause.end()
    assert reader.result() == [NEW]
    assert cached.warm(names) == [NEW]


@scenario(9)
@on_each
def test_a_slow_answer_that_takes_the_place_of_a_newer_one_is_never_served(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    pause = pause_before(monkeypatch, store_of(using), "fill")
    reader = Background(names)
    pause.wait()
    rename(using)
    assert cached.warm(names) == [NEW]
    pause.end()
    assert reader.result() == [OLD]
    for _ in range(3):
        assert names() == [NEW]
    assert cached.hit(names) == [NEW]


WRITES: dict[str, tuple[Callable[[str, Author], Any], list[str]]] = {
    "update": (lambda using, author: Author.objects.using(using).update(name=NEW), [NEW]),
    "save": (lambda using, author: Author(pk=author.pk, name=NEW).save(using=using), [NEW]),
    "insert": (lambda using, author: Author.objects.using(using).create(name=NEW), [OLD, NEW]),
    "delete": (lambda using, author: Author.objects.using(using).all().delete(), []),
    "raw": (
        lambda using, author: (
            connections[using].cursor().execute("UPDATE tests_author SET name = %s", [NEW])
        ),
        [NEW],
    ),
}


@scenario(3)
@pytest.mark.parametrize("kind", WRITES)
@on_each
def test_an_autocommit_write_overtakes_as_a_transaction_does(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    kind: str,
) -> None:
    write, expected = WRITES[kind]
    pause = pause_before(monkeypatch, store_of(using), "fill")
    reader = Background(names)
    pause.wait()
    write(using, author)
    pause.end()
    assert reader.result() == [OLD]
    assert cached.warm(names) == expected


@scenario(2)
@on_each
def test_the_first_read_of_a_table_ever_can_be_overtaken(
    monkeypatch: pytest.MonkeyPatch, settings: Any, cached: Watch, using: str, author: Author
) -> None:
    """The register of the table does not exist yet when the reader asks for it."""
    settings.ORMCACHE = {**settings.ORMCACHE, "KEY_PREFIX": f"new{random.randrange(10**9)}"}
    wait_for_quarantine(using)

    def notes() -> list[str]:
        return list(Note.objects.using(using).values_list("text", flat=True))

    pause = pause_before(monkeypatch, store_of(using), "fill")
    reader = Background(notes)
    pause.wait()
    Note.objects.using(using).create(text=NEW)
    pause.end()
    assert reader.result() == []
    assert cached.warm(notes) == [NEW]


# --- a reader meets a writer -----------------------------------------------------------------


@scenario(4)
@on_each
def test_between_announcement_and_commit_readers_get_the_old_row_and_store_nothing(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    pause = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    pause.wait()
    calls = record_calls(monkeypatch, store_of(using), "fill")
    with cached.expect(BUSY):
        assert names() == [OLD]
    assert calls == []
    pause.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@scenario(4)
@on_each
def test_between_commit_and_its_report_readers_get_the_new_row_and_store_nothing(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    pause = pause_before(monkeypatch, store_of(using), "finish")
    writer = Background(rename, using)
    pause.wait()
    calls = record_calls(monkeypatch, store_of(using), "fill")
    with cached.expect(BUSY):
        assert names() == [NEW]
    assert calls == []
    pause.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@on_two
def test_between_its_announcement_and_its_effect_an_autocommit_statement_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    pause = pause_after(monkeypatch, brackets.Bracket, "arm")
    writer = Background(lambda: Author.objects.using(using).update(name=NEW))
    pause.wait()
    with cached.expect(BUSY):
        assert names() == [OLD]
    pause.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@on_two
def test_between_its_effect_and_its_report_an_autocommit_statement_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    pause = pause_before(monkeypatch, store_of(using), "finish")
    writer = Background(lambda: Author.objects.using(using).update(name=NEW))
    pause.wait()
    with cached.expect(BUSY):
        assert names() == [NEW]
    pause.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@on_two
def test_a_reader_that_began_before_the_announcement_stores_nothing_that_is_served_after_it(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    """Its answer reaches the cache between announcement and commit."""
    fill = pause_before(monkeypatch, store_of(using), "fill")
    reader = Background(names)
    fill.wait()
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    writer = Background(rename, using)
    commit.wait()
    fill.end()
    assert reader.result() == [OLD]
    with cached.expect(BUSY):
        assert names() == [OLD]
    commit.end()
    writer.result()
    assert cached.warm(names) == [NEW]


@scenario(5)
@on_strict
def test_a_writer_that_ends_does_not_end_the_announcement_of_another(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    if using == "default":
        # SQLite has one writer at a time; but one may be reporting while the next writes.
        slow = pause_before(monkeypatch, store_of(using), "finish")
    else:
        slow = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    first = Background(rename, using)
    slow.wait()
    # An INSERT: it needs no lock of the rows that the first one has changed.
    Author.objects.using(using).create(name="another")
    with cached.expect(BUSY):
        seen = names()
    assert seen == ([NEW, "another"] if using == "default" else [OLD, "another"])
    slow.end()
    first.result()
    assert cached.warm(names) == [NEW, "another"]


@scenario(5)
@on_memcached
def test_standard_consistency_has_one_window_two_overlapping_commits(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    names: Names,
    settings: Any,
) -> None:
    """The first to end opens the register that the second still needs closed.

    What is read meanwhile is stored, and served until the second reports its end; not longer.
    """
    # On a busy machine the second would renew its lease meanwhile, and so close the window.
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 60}
    commit = pause_before(monkeypatch, BaseDatabaseWrapper, "_commit")
    finish = pause_before(monkeypatch, store_of(using), "finish")
    second = Background(rename, using)
    commit.wait()
    Author.objects.using(using).create(name="another")
    assert cached.warm(names) == [OLD, "another"]
    commit.end()
    finish.wait()
    assert cached.hit(names) == [OLD, "another"]
    finish.end()
    second.result()
    assert cached.warm(names) == [NEW, "another"]


@scenario(6)
@pytest.mark.parametrize("first_asked", ["tests_author", "tests_book"])
@on_memcached
def test_registers_read_on_two_sides_of_a_commit_make_no_entry_that_is_served(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, first_asked: str
) -> None:
    """A cache of several servers answers for a join's tables one after the other."""
    with factories_using(using):
        book = BookFactory(title=OLD, author__name=OLD)

    def joined() -> list[tuple[str, str]]:
        return list(Book.objects.using(using).values_list("title", "author__name"))

    def change(value: str) -> None:
        with transaction.atomic(using):
            Author.objects.using(using).filter(pk=book.author_id).update(name=value)
            Book.objects.using(using).filter(pk=book.pk).update(title=value)

    joined()
    cache = caches["memcached"]
    original = cache.get_many
    values = iter(["a", "b", "c"])

    def one_by_one(keys: list[str], *args: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ordered = sorted(keys, key=lambda key: not key.endswith(first_asked))
        with contextlib.ExitStack() as undo:
            undo.callback(setattr, cache, "get_many", one_by_one)
            cache.get_many = original
            found |= original(ordered[:1], *args)
            Background(change, next(values)).result()
            found |= original(ordered[1:], *args)
        return found

    cache.get_many = one_by_one
    try:
        assert joined() == [("a", "a")]
        assert joined() == [("b", "b")]
        assert joined() == [("c", "c")]
    finally:
        cache.get_many = original
    assert cached.warm(joined) == [("c", "c")]
    assert "hit" not in cached.outcomes[:-1]


@scenario(6)
@on_two
def test_a_join_is_as_new_as_each_of_its_tables(cached: Watch, using: str) -> None:
    with factories_using(using):
        book = BookFactory(title=OLD, author__name=OLD)

    def joined() -> list[tuple[str, str]]:
        return list(Book.objects.using(using).values_list("title", "author__name"))

    assert cached.warm(joined) == [(OLD, OLD)]
    Author.objects.using(using).filter(pk=book.author_id).update(name=NEW)
    assert cached.warm(joined) == [(OLD, NEW)]
    Book.objects.using(using).update(title=NEW)
    assert cached.warm(joined) == [(NEW, NEW)]


@scenario(7)
@on_each
def test_what_was_cached_as_missing_is_found_as_soon_as_it_is_there(
    cached: Watch, using: str
) -> None:
    tags = Tag.objects.using(using)

    def get() -> str:
        try:
            return tags.get(pk=7).name
        except Tag.DoesNotExist:
            return "missing"

    def exists() -> bool:
        return tags.filter(pk=7).exists()

    def in_bulk() -> list[int]:
        return list(tags.in_bulk([7]))

    assert (cached.warm(get), cached.warm(exists), cached.warm(in_bulk)) == ("missing", False, [])
    tags.create(pk=7, name=NEW)
    assert (cached.warm(get), cached.warm(exists), cached.warm(in_bulk)) == (NEW, True, [7])


@scenario(19)
@on_each
def test_an_on_commit_hook_reads_the_changed_row_through_another_connection(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    seen = []

    def read_elsewhere() -> None:
        with session(using):
            seen.append(cached.warm(names))

    with transaction.atomic(using):
        Author.objects.using(using).update(name=NEW)
        transaction.on_commit(read_elsewhere, using)
    assert seen == [[NEW]]


# --- many at once ----------------------------------------------------------------------------


@scenario(8)
@on_pairs(("default", "locmem"), ("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
def test_many_that_miss_at_the_same_moment_all_read_the_new_row(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, author: Author, names: Names
) -> None:
    """One asks the database; the others wait for what it is told."""
    # Servers do not take as many connections as there are workers of pytest-xdist to share them.
    count = 200 if using == "default" else 50
    cached.warm(names)
    rename(using)
    have_missed = threading.Barrier(count)
    store = store_of(using)
    read = store.read

    def read_together(*args: Any) -> Any:
        lookup = read(*args)
        have_missed.wait(SECONDS)
        return lookup

    def ask() -> list[str]:
        connections[using].ensure_connection()
        return names()

    followers = released_before(monkeypatch, flights.Flight, "wait")
    fetch = pause_before(monkeypatch, reads.Read, "from_database")
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", read_together)
        cached.clear()
        readers = [Background(ask) for _ in range(count)]
        fetch.wait()
        assert all(followers.acquire(timeout=SECONDS) for _ in range(count - 1))
        fetch.end()
        assert [reader.result() for reader in readers] == [[NEW]] * count
    assert sorted(cached.outcomes) == ["hit"] * (count - 1) + ["miss"]
    assert cached.hit(names) == [NEW]


def dawdle(monkeypatch: pytest.MonkeyPatch, owner: Any, *methods: str) -> None:
    """Now and then let a thread sleep a little before or after a call of these methods."""
    chance = random.Random(1)

    def slow(original: Callable[..., Any]) -> Callable[..., Any]:
        def dawdling(*args: Any, **kwargs: Any) -> Any:
            time.sleep(chance.choice([0, 0, 0, 0.0005, 0.002]))
            result = original(*args, **kwargs)
            time.sleep(chance.choice([0, 0, 0, 0.0005, 0.002]))
            return result

        return dawdling

    for name in methods:
        monkeypatch.setattr(owner, name, slow(getattr(owner, name)))


@on_pairs(("default", "locmem"), ("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
def test_threads_never_read_less_than_what_was_committed_before(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str
) -> None:
    dawdle(monkeypatch, store_of(using), "read", "fill", "arm", "finish")
    dawdle(monkeypatch, BaseDatabaseWrapper, "_commit")
    hammer = Hammer(using, seconds=2.5)
    hammer.is_enough = lambda: cached.outcomes.count("hit") > 20 and len(cached.invalidated) > 10
    threads = [Background(hammer.write, seed) for seed in range(3)]
    threads += [Background(hammer.read, seed) for seed in range(4)]
    for thread in threads:
        thread.result(2 * PATIENCE)
    assert hammer.stale == []
    assert cached.outcomes.count("hit") > 20
    assert len(cached.invalidated) > 10


@on_pairs(("postgresql", "redis"), transaction=True)
def test_processes_never_read_less_than_what_was_committed_before(
    cached: Watch, using: str, cache: str
) -> None:
    context = multiprocessing.get_context("spawn")
    floors = context.Array("q", ROWS, lock=False)
    hammer = (using, 3, make_rows(using), floors, context.Lock())
    roles = ["write", "write", "read", "read"]
    barrier, queue = context.Barrier(len(roles)), context.Queue()
    processes = [
        context.Process(
            target=hammer_in_process, args=(role, seed, cache, hammer, barrier, queue), daemon=True
        )
        for seed, role in enumerate(roles)
    ]
    for process in processes:
        process.start()
    outcomes = [queue.get(timeout=3 * PATIENCE) for _ in processes]
    for process in processes:
        process.join(SECONDS)
    assert [outcome.stale for outcome in outcomes] == [[]] * len(roles)
    assert all(outcome.done > ENOUGH for outcome in outcomes)
    assert sum(outcome.hits for outcome in outcomes) > 2 * ENOUGH
    assert sum(floors) > 10


@pytest.fixture
def separate_tasks() -> Iterator[Callable[..., Any]]:
    """Runs a coroutine as an ASGI server runs a request: with a thread of its own."""

    async def run(coroutine: Any) -> Any:
        async with ThreadSensitiveContext():
            try:
                return await coroutine
            finally:
                await sync_to_async(connections.close_all)()

    yield run


@scenario(40)
@on_pairs(("postgresql", "redis"), transaction=True)
def test_tasks_never_read_less_than_what_was_committed_before(
    cached: Watch, using: str, separate_tasks: Callable[..., Any]
) -> None:
    hammer = Hammer(using, seconds=2)
    hammer.is_enough = lambda: cached.outcomes.count("hit") > 20

    async def everybody() -> None:
        writers = [hammer.write_async(seed) for seed in range(2)]
        readers = [hammer.read_async(seed) for seed in range(4)]
        await asyncio.gather(*map(separate_tasks, [*writers, *readers]))

    asyncio.run(everybody())
    assert hammer.stale == []
    assert cached.outcomes.count("hit") > 20
