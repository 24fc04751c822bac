"""Readers and writers of a few rows, as many and as fast as they can.

Each row holds a number that only grows. A writer raises the *floor* of a row when its commit was
acknowledged; no reader that begins later may see less. Numbers from `UNCOMMITTED` on are only
written by transactions that are rolled back; no reader may see one.

Nothing of Django is imported before it is needed: child processes have to set it up first.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, MutableSequence
from typing import Any, NamedTuple

UNCOMMITTED = 10**6
CONTESTED = 3
"""So many rows are written by all writers in turn, the others by one writer each."""
ROWS = 6
LONGEST_REST = 0.08
"""Seconds between two writes of a writer, where the machine is not busy."""
PATIENCE = 60
"""Seconds after which nobody waits any longer for there to be enough."""


class Stale(NamedTuple):
    question: str
    floor: int
    answer: int


def rest(
    chance: random.Random, begin: float, writers: int = 3, longest: float = LONGEST_REST
) -> float:
    """Seconds that one of several writers rests after a write that it has begun at ``begin``.

    Without one there would be nothing but writes. Where each takes long it has to be longer, so
    that there are moments in which nobody writes.
    """
    took = time.monotonic() - begin
    return max(chance.uniform(0, longest), min(writers * took, 2.0))


class Hammer:
    """The rows, their floors, and what readers saw that they should not have seen.

    Readers and writers are at work for so many seconds, and longer if it is not enough by then:
    a busy machine takes longer to see as much.
    """

    def __init__(
        self,
        using: str,
        seconds: float,
        keys: list[int] | None = None,
        floors: MutableSequence[int] | None = None,
        lock: Any = None,
        is_enough: Callable[[], bool] = lambda: True,
    ) -> None:
        self.using = using
        self.seconds = seconds
        self.is_enough = is_enough
        self.keys = make_rows(using) if keys is None else keys
        self.floors = [0] * ROWS if floors is None else floors
        self._lock = lock or threading.Lock()
        self.may_be_refused = False
        """Whether the cache may go away, so that a write is refused."""
        self.stale: list[Stale] = []
        self.done = 0
        self._begun: float | None = None

    def is_over(self) -> bool:
        """Whether readers and writers may stop."""
        if self._begun is None:
            self._begun = time.monotonic()
        passed = time.monotonic() - self._begun
        return passed > self.seconds and (self.is_enough() or passed > PATIENCE)

    # --- writing ---------------------------------------------------------------------------

    def write(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.is_over():
            begin = time.monotonic()
            self.write_once(chance, seed)
            time.sleep(rest(chance, begin))

    def write_once(self, chance: random.Random, seed: int) -> None:
        from django.db import OperationalError

        from ormcache.exceptions import CacheUnreachable

        how = chance.choice([self._raise_contested, self._raise_own, self._write_in_vain])
        try:
            how(chance, seed)
        except CacheUnreachable:
            # Nothing was written, as the policy "raise" has it.
            if not self.may_be_refused:
                raise
        except OperationalError as error:
            # SQLite has one writer at a time, and waits for it only so long.
            if "locked" not in str(error):
                raise
        self.done += 1

    def _raise_contested(self, chance: random.Random, seed: int) -> None:
        from django.db import transaction
        from django.db.models import F

        row = chance.randrange(CONTESTED)
        with transaction.atomic(self.using):
            rows = self._rows().filter(pk=self.keys[row])
            rows.update(pages=F("pages") + 1)
            value = rows.get().pages
        self._raise_floor(row, value)

    def _raise_own(self, chance: random.Random, seed: int) -> None:
        row = CONTESTED + seed % (ROWS - CONTESTED)
        # Several in a row share one announcement.
        for _ in range(chance.choice((1, 1, 3))):
            value = self.floors[row] + 1
            # A statement of a process that was killed may still come after those of its successor.
            self._rows().filter(pk=self.keys[row], pages__lt=value).update(pages=value)
            self._raise_floor(row, value)

    def _write_in_vain(self, chance: random.Random, seed: int) -> None:
        from django.db import transaction

        with transaction.atomic(self.using):
            self._rows().filter(pk=self.keys[chance.randrange(CONTESTED)]).update(
                pages=UNCOMMITTED
            )
            transaction.set_rollback(True, self.using)

    def _raise_floor(self, row: int, value: int) -> None:
        with self._lock:
            self.floors[row] = max(self.floors[row], value)

    async def write_async(self, seed: int) -> None:
        from asgiref.sync import sync_to_async

        chance = random.Random(seed)
        while not self.is_over():
            begin = time.monotonic()
            await sync_to_async(self.write_once)(chance, seed)
            await asyncio.sleep(rest(chance, begin))

    # --- reading ---------------------------------------------------------------------------

    def read(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.is_over():
            self.read_once(chance)

    def read_once(self, chance: random.Random) -> None:
        questions = [self._one, self._all, self._joined, self._greatest, self._in_transaction]
        question = chance.choice(questions)
        floors = list(self.floors)
        self._check(question, floors, question(chance))

    def _check(
        self, question: Callable[..., Any], floors: list[int], answers: dict[int, int]
    ) -> None:
        self.done += 1
        for row, answer in answers.items():
            floor = max(floors) if row < 0 else floors[row]
            if not floor <= answer < UNCOMMITTED:
                self.stale.append(Stale(question.__name__, floor, answer))

    def _rows(self) -> Any:
        from tests.models import Book

        return Book.objects.using(self.using)

    def _one(self, chance: random.Random) -> dict[int, int]:
        row = chance.randrange(ROWS)
        return {row: self._rows().get(pk=self.keys[row]).pages}

    def _all(self, chance: random.Random) -> dict[int, int]:
        return {
            self.keys.index(pk): pages for pk, pages in self._rows().values_list("pk", "pages")
        }

    def _joined(self, chance: random.Random) -> dict[int, int]:
        books = self._rows().filter(author__name="hammer").select_related("author")
        return {self.keys.index(book.pk): book.pages for book in books}

    def _greatest(self, chance: random.Random) -> dict[int, int]:
        from django.db.models import Max

        return {-1: self._rows().aggregate(greatest=Max("pages"))["greatest"]}

    def _in_transaction(self, chance: random.Random) -> dict[int, int]:
        from django.db import transaction

        with transaction.atomic(self.using):
            return self._one(chance)

    async def read_async(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.is_over():
            await self.read_once_async(chance)

    async def read_once_async(self, chance: random.Random) -> None:
        row = chance.randrange(ROWS)
        floors = list(self.floors)
        book = await self._rows().aget(pk=self.keys[row])
        self._check(self.read_once_async, floors, {row: book.pages})


class Commuters(Hammer):
    """Readers and writers who may give their session back at any time, and lose it at any time."""

    share_of_work = 0.5
    """The rest of what they do is leaving their session."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.broken: list[str] = []
        """What went wrong with sessions, in the words of the drivers."""

    def write_once(self, chance: random.Random, seed: int) -> None:
        self._lead_a_life(chance, lambda: super(Commuters, self).write_once(chance, seed))

    def read_once(self, chance: random.Random) -> None:
        self._lead_a_life(chance, lambda: super(Commuters, self).read_once(chance))

    def _lead_a_life(self, chance: random.Random, work: Callable[[], None]) -> None:
        from django.db import (
            InterfaceError,
            InternalError,
            OperationalError,
            close_old_connections,
        )

        try:
            if chance.random() < self.share_of_work:
                work()
            else:
                chance.choice([close_old_connections, self._put_back, self._forget])()
        except (OperationalError, InterfaceError, InternalError) as error:
            self.broken.append(f"{type(error).__name__}: {error}")
            self._put_back()

    def _put_back(self) -> None:
        """What the end of a request does."""
        from django.db import connections

        connections[self.using].close()

    def _execute(self, *statements: str) -> list[Any]:
        """The rows of the last statement."""
        from django.db import connections

        with connections[self.using].cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def _forget(self) -> None:
        """Leave a transaction open, and the rest to the pool.

        It locks one row, like all others here: several would be locked in any order, which the
        database may end as a deadlock.
        """
        self._execute(
            "BEGIN", f"UPDATE tests_book SET pages = {UNCOMMITTED} WHERE id = {self.keys[0]}"
        )
        self._put_back()


def make_rows(using: str) -> list[int]:
    from tests import factories

    with factories.using(using):
        author = factories.AuthorFactory(name="hammer")
        return [factories.BookFactory(author=author, pages=0).pk for _ in range(ROWS)]


# --- in a process of its own -------------------------------------------------------------------


ENOUGH = 20
"""Writes of a process that writes, or hits of one that reads."""


class Outcome(NamedTuple):
    done: int
    hits: int
    stale: list[Stale]


def hammer_in_process(
    role: str,
    seed: int,
    cache: str,
    hammer: tuple[Any, ...],
    barrier: Any,
    outcomes: Any,
) -> None:
    """What a child process runs: one reader or writer."""
    import django

    django.setup()
    from django.conf import settings
    from django.db import connections

    from ormcache import counters

    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": cache}
    mine = Hammer(*hammer)

    def hits() -> int:
        return counters.snapshot().get(mine.using, {}).get("tests_book", {}).get("hit", 0)

    mine.is_enough = lambda: mine.done > ENOUGH and (role == "write" or hits() > ENOUGH)
    barrier.wait(PATIENCE)
    getattr(mine, role)(seed)
    outcomes.put(Outcome(mine.done, hits(), mine.stale))
    connections.close_all()
