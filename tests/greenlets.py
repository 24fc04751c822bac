"""Programs in which greenlets are the threads, as with the workers of gevent.

    python -m tests.greenlets threads

Each is a function here, runs in a process of its own, and prints what it has seen as JSON;
`tests.test_gevent` says what that must be. PostgreSQL and Redis are those of the environment.
"""

# ruff: noqa: E402

from gevent import monkey

# Before anything takes a lock or a socket from the standard library.
monkey.patch_all()

import contextlib
import gc
import json
import os
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import django
import gevent
import greenlet
from gevent.event import Event

USING = "postgresql"
GREENLETS = 30
SECONDS = 4
"""For which readers and writers are at work; longer if there was not enough of all by then."""
ENOUGH_HITS = 50
ENOUGH_WRITES = 10
ENOUGH_BROKEN_OFF = 10
LEASE = 0.5


class Seen(threading.local):
    """What the reads of one greenlet came to."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []


seen = Seen()


def note(outcome: str, reason: Any, **kwargs: Any) -> None:
    seen.outcomes.append(str(reason) if outcome == "skip" else outcome)


def asked(question: Callable[[], Any]) -> list[Any]:
    """The answer, and what the reads of this greenlet came to."""
    before = len(seen.outcomes)
    answer = question()
    return [answer, *seen.outcomes[before:]]


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a greenlet of its own, whose connection is then closed."""
    return spawn(function, *args).get(timeout=20)


def spawn(function: Callable[..., Any], *args: Any) -> Any:
    def work() -> Any:
        try:
            return function(*args)
        finally:
            put_back()

    return gevent.spawn(work)


def put_back() -> None:
    """What the end of a request does."""
    from django.db import connections

    connections[USING].close()


def numbers(keys: list[int]) -> Callable[[int], int]:
    """A function that reads one row by its number."""
    from tests.models import Book

    books = Book.objects.using(USING)
    return lambda row: books.values_list("pages", flat=True).get(pk=keys[row])


@contextlib.contextmanager
def rows() -> Iterator[tuple[list[int], Callable[[int], int]]]:
    """Primary keys of rows whose pages are 0, 1, 2 …, all of them cached."""
    from tests.hammering import make_rows
    from tests.models import Book

    keys = make_rows(USING)
    for number, key in enumerate(keys):
        Book.objects.using(USING).filter(pk=key).update(pages=number)
    read = numbers(keys)
    for _ in range(2):
        assert [read(number) for number in range(len(keys))] == list(range(len(keys)))
    assert seen.outcomes[-len(keys) :] == ["hit"] * len(keys)
    yield keys, read


@contextlib.contextmanager
def redis_paused(seconds: float) -> Iterator[None]:
    """Inside, Redis keeps its answers to itself for a while."""
    from tests.interleaving import store_of

    store: Any = store_of(USING)
    # From now on nothing is on its way.
    store._channels.flush()
    store._channels.run(
        lambda channel: channel.call(b"CLIENT PAUSE %d ALL\r\n" % int(seconds * 1000))
    )
    yield


# --- the programs ----------------------------------------------------------------------------


def readers_and_writers(*options: str) -> dict[str, Any]:
    """Some keep their connection, others close it after each step; some steps are broken off."""
    from django import db
    from django.core.signals import request_finished
    from django.db import connections

    from ormcache import counters
    from tests.hammering import Hammer, rest

    # psycopg's pool loses connections to greenlets that are broken off, and does so without
    # ormcache.
    share_broken_off = 0 if "pooled" in options else 0.15
    if "pooled" in options:
        connections[USING].close()
        pool = {"min_size": 4, "max_size": 8}
        connections.settings[USING]["OPTIONS"] = {"pool": pool}
        del connections[USING]
    became: Counter[str] = Counter()

    def hits() -> int:
        return counters.snapshot()[USING].get("tests_book", {}).get("hit", 0)

    hammer = Hammer(USING, SECONDS)
    hammer.is_enough = lambda: (
        hits() > ENOUGH_HITS
        and sum(hammer.floors) > ENOUGH_WRITES
        and (not share_broken_off or became["broken off"] > ENOUGH_BROKEN_OFF)
    )

    def step(chance: random.Random, seed: int) -> None:
        patience = chance.uniform(0, 0.02) if chance.random() < share_broken_off else 60
        try:
            with gevent.Timeout(patience):
                if seed % 3:
                    hammer.read_once(chance)
                else:
                    hammer.write_once(chance, seed)
        except gevent.Timeout:
            became["broken off"] += 1
            put_back()
        except db.Error as error:
            became[f"{type(error).__name__}: {error}"] += 1
            put_back()
        else:
            became["done"] += 1

    def request(chance: random.Random, seed: int) -> None:
        step(chance, seed)
        request_finished.send(sender=None)

    def client(seed: int) -> None:
        chance = random.Random(seed)
        keeps = seed % 2 and "pooled" not in options
        while not hammer.is_over():
            begin = time.monotonic()
            if keeps:
                step(chance, seed)
            else:
                gevent.spawn(request, chance, seed).get()
            if seed % 3 == 0:
                gevent.sleep(rest(chance, begin, GREENLETS // 3, 0.3))

    for one in [spawn(client, seed) for seed in range(GREENLETS)]:
        one.get()
    return {
        "stale": hammer.stale,
        "hits": hits(),
        "written": sum(hammer.floors),
        "became": became,
    }


def switched_off() -> dict[str, Any]:
    """One greenlet is inside of `disabled()` while others read."""
    import ormcache

    found: dict[str, Any] = {}
    is_inside, is_over = Event(), Event()

    def inside() -> None:
        with ormcache.disabled():
            is_inside.set()
            found["inside"] = asked(lambda: read(1))
            found["begun inside"] = elsewhere(asked, lambda: read(1))
            is_over.wait(20)
            found["inside still"] = asked(lambda: read(1))
        found["after"] = asked(lambda: read(1))

    with rows() as (_, read):
        one = spawn(inside)
        is_inside.wait(20)
        found["outside"] = asked(lambda: read(1))
        found["in another"] = elsewhere(asked, lambda: read(1))
        is_over.set()
        one.get(timeout=20)
    return found


def transactions() -> dict[str, Any]:
    """One greenlet is in a transaction, and has written, while others read."""
    from django.db import connections, transaction

    from tests.models import Book

    found: dict[str, Any] = {}
    has_written, may_commit = Event(), Event()

    def session() -> int:
        with connections[USING].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def write() -> int:
        with transaction.atomic(USING):
            Book.objects.using(USING).filter(pk=keys[1]).update(pages=100)
            found["writer"] = asked(lambda: read(1))
            has_written.set()
            may_commit.wait(20)
            number = session()
        found["writer after"] = asked(lambda: read(1))
        return number

    with rows() as (keys, read):
        writer = spawn(write)
        has_written.wait(20)
        found["other"] = elsewhere(asked, lambda: read(1))
        found["another row"] = elsewhere(asked, lambda: read(2))
        found["is in a block"] = elsewhere(lambda: connections[USING].in_atomic_block)
        mine = session()
        may_commit.set()
        found["sessions differ"] = writer.get(timeout=20) != mine
        found["other after"] = elsewhere(asked, lambda: read(1))
    return found


def broken_off() -> dict[str, Any]:
    """gevent's Timeout comes while Redis keeps a reader, a writer and many of each waiting."""
    import ormcache
    from tests.models import Book

    found: dict[str, Any] = {"wrong": [], "broken off": 0}

    def broken(function: Callable[..., Any], *args: Any) -> bool:
        try:
            with gevent.Timeout(0.1):
                function(*args)
        except gevent.Timeout:
            return True
        return False

    def write(pages: int) -> None:
        Book.objects.using(USING).filter(pk=keys[0]).update(pages=pages)

    def again_and_again(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            row = chance.randrange(1, len(keys))
            try:
                with gevent.Timeout(chance.choice([0.002, 0.02]) * chance.random()):
                    if (answer := read(row)) != row:
                        found["wrong"].append([row, answer])
            except gevent.Timeout:
                found["broken off"] += 1
                put_back()

    with rows() as (keys, read):
        with redis_paused(0.3):
            found["reader"] = elsewhere(broken, read, 1)
            others = [spawn(asked, lambda row=row: read(row)) for row in range(2, len(keys))]
        found["others"] = [other.get(timeout=20) for other in others]
        with redis_paused(0.3):
            found["writer"] = elsewhere(broken, write, 200)
        found["after"] = [elsewhere(read, row) for row in range(1, len(keys))]
        with ormcache.disabled():
            truth = read(0)
        found["what was written"] = elsewhere(read, 0) == truth
        for one in [spawn(again_and_again, seed) for seed in range(12)]:
            one.get(timeout=60)
        found["in the end"] = [elsewhere(read, row) for row in range(1, len(keys))]
    return found


def given_up(*options: str) -> dict[str, Any]:
    """A write waits for a lock, is broken off, and could get the lock after its lease."""
    from django.db import connections, transaction

    import ormcache
    from tests.interleaving import wait_for_others
    from tests.models import Book

    may_end, is_locked = Event(), Event()

    def lock() -> None:
        with transaction.atomic(USING):
            Book.objects.using(USING).select_for_update().get(pk=keys[1])
            is_locked.set()
            may_end.wait(20)

    def write() -> None:
        Book.objects.using(USING).filter(pk=keys[1]).update(pages=100)

    def write_in_block() -> None:
        with transaction.atomic(USING):
            write()

    def broken_off(function: Callable[[], None]) -> bool:
        with gevent.Timeout(0.3, False):
            function()
            return False
        return True

    with rows() as (keys, read):
        locker = spawn(lock)
        is_locked.wait(20)
        work = write if "autocommit" in options else write_in_block
        found: dict[str, Any] = {"broken off": elsewhere(broken_off, work)}
        gevent.sleep(2 * LEASE)
        # Cached from now on.
        found["while it is locked"] = [elsewhere(read, 1) for _ in range(3)]
        may_end.set()
        locker.get(timeout=20)
        wait_for_others(USING)
        found["in the end"] = elsewhere(read, 1)
        with ormcache.disabled():
            found["in the database"] = read(1)
    connections[USING].close()
    return found


def threads() -> dict[str, Any]:
    """A COMMIT takes several leases; another greenlet reads meanwhile."""
    from django.db.backends.base.base import BaseDatabaseWrapper

    from tests.models import Book

    outcomes: set[str] = set()
    commit = BaseDatabaseWrapper._commit

    def slow(connection: Any) -> None:
        gevent.sleep(4 * LEASE)
        commit(connection)

    def write() -> None:
        from django.db import transaction

        with transaction.atomic(USING):
            Book.objects.using(USING).filter(pk=keys[1]).update(pages=100)

    with rows() as (keys, read):
        BaseDatabaseWrapper._commit = slow
        writer = spawn(write)
        # It announces its commit first.
        gevent.sleep(LEASE / 2)
        answers = set()
        while not writer.ready():
            answer, *came_to = asked(lambda: read(1))
            answers.add(answer)
            outcomes.update(came_to)
            gevent.sleep(0.01)
        BaseDatabaseWrapper._commit = commit
        writer.get()
        after = read(1)
    greenlets = {id(each) for each in gc.get_objects() if isinstance(each, greenlet.greenlet)}
    ours = {thread.name: thread.ident for thread in threading.enumerate()}
    return {
        "outcomes": sorted(outcomes),
        # The last of them may have come after the COMMIT.
        "first": min(answers),
        "after": after,
        "greenlets": sorted(
            name for name, ident in ours.items() if "ormcache" in name and ident in greenlets
        ),
    }


def together() -> dict[str, Any]:
    """Many greenlets miss the same at once."""
    from ormcache import reads
    from tests.models import Book

    fetched: list[int] = []
    fetch = reads.Read.from_database

    def slowly(read: Any, run: Any) -> Any:
        fetched.append(1)
        gevent.sleep(0.3)
        return fetch(read, run)

    with rows() as (keys, read):
        Book.objects.using(USING).filter(pk=keys[1]).update(pages=100)
        reads.Read.from_database = slowly

        def ask() -> list[Any]:
            from django.db import connections

            connections[USING].ensure_connection()
            return asked(lambda: read(1))

        many = [spawn(ask) for _ in range(GREENLETS)]
        became = Counter(map(tuple, (one.get(timeout=20) for one in many)))
    return {"fetched": len(fetched), "became": sorted([*key, n] for key, n in became.items())}


def forked() -> dict[str, Any]:
    """A greenlet waits for Redis in a process that forks, and goes on in both."""
    from django.db import connections

    from tests.interleaving import store_of

    store: Any = store_of(USING)

    def sockets() -> list[int]:
        return [channel.call(b"CLIENT ID\r\n") for channel in list(store._channels._idle)]

    def look() -> list[Any]:
        return [asked(lambda row=row: read(row)) for row in range(1, len(keys))]

    with rows() as (keys, read):
        (shared,) = sockets()
        with redis_paused(0.3):
            waiting = spawn(asked, lambda: read(1))
            gevent.sleep(0.1)
        ours, theirs = os.pipe()
        # Python 3.12 warns of fork() with threads; gevent may have one that looks up hosts.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            # The session is the parent's; not even closed politely.
            kept = connections[USING]
            del connections[USING]
            waited = waiting.get(timeout=20)
            answer = {"waited": waited, "child": look(), "is shared": shared in sockets()}
            os.write(theirs, json.dumps(answer).encode())
            os._exit(0 if kept else 1)
        os.close(theirs)
        # Only the child runs meanwhile, so that it is the one that gets the answer.
        found: dict[str, Any] = json.loads(monkey.get_original("os", "read")(ours, 10**6))
        os.close(ours)
        found["waited too"] = waiting.get(timeout=20)
        found["parent"] = look()
    os.waitpid(child, 0)
    return found


def main(name: str, *options: str) -> None:
    django.setup()
    from django.conf import settings

    from ormcache.signals import query_read
    from tests.watching import wait_for_quarantine

    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "CACHE_ALIAS": "redis",
        "LEASE": LEASE,
        # A machine may be busy.
        "SOCKET_TIMEOUT": 2,
    }
    wait_for_quarantine(USING)
    query_read.connect(note)
    print(json.dumps(globals()[name](*options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
