"""Sees what ormcache does while a test runs."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.db import connections

from ormcache import signals
from ormcache.bursts import bursts
from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.reasons import Reason
from ormcache.stores import EVERYTHING


class Read(NamedTuple):
    outcome: str
    reason: Reason | None
    tables: tuple[str, ...]
    sql: str | None
    using: str


class Watch:
    """Collects reads and invalidations, and says what a test expects of them."""

    def __init__(self, using: str = "default") -> None:
        self.using = using
        self.reads: list[Read] = []
        self.invalidated: list[tuple[str, ...]] = []

    def _read(
        self, outcome: str, reason: Any, tables: Any, sql: Any, using: str, **kwargs: Any
    ) -> None:
        self.reads.append(Read(outcome, reason, tables, sql, using))

    def _invalidated(self, tables: tuple[str, ...], **kwargs: Any) -> None:
        self.invalidated.append(tables)

    def __enter__(self) -> "Watch":
        signals.query_read.connect(self._read)
        signals.tables_invalidated.connect(self._invalidated)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signals.query_read.disconnect(self._read)
        signals.tables_invalidated.disconnect(self._invalidated)

    def clear(self) -> None:
        self.reads.clear()
        self.invalidated.clear()

    @property
    def outcomes(self) -> list[str]:
        """What each read since the last `clear` came to: hit, miss, or the reason of a skip."""
        return [
            str(read.reason) if read.outcome == "skip" else read.outcome for read in self.reads
        ]

    @contextlib.contextmanager
    def expect(self, *outcomes: str) -> Iterator[None]:
        """Inside, exactly these reads happen."""
        before = len(self.reads)
        yield
        got = self.outcomes[before:]
        assert got == list(map(str, outcomes)), f"{got} instead of {list(outcomes)}"

    def call(self, question: Callable[[], Any]) -> tuple[Any, list[str]]:
        """The answer and what its reads came to."""
        before = len(self.reads)
        answer = question()
        return answer, self.outcomes[before:]

    def hit(self, question: Callable[[], Any]) -> Any:
        """Ask, and fail unless every read was a hit."""
        answer, got = self.call(question)
        assert got, "nothing was read"
        assert set(got) == {"hit"}, got
        return answer

    def miss(self, question: Callable[[], Any]) -> Any:
        """Ask, and fail unless every read was a miss that was stored."""
        before = len(self.reads)
        answer, got = self.call(question)
        assert got, "nothing was read"
        assert set(got) == {"miss"}, got
        assert [read.reason for read in self.reads[before:]] == [None] * len(got)
        return answer

    def warm(self, question: Callable[[], Any]) -> Any:
        """Ask twice: the first time a miss, the second a hit with the same answer."""
        # The thread that ends bursts may have the socket with the answer in its hands just when
        # the second question is sent on another one, and that is a miss, too.
        bursts.flush()
        first = self.miss(question)
        second = self.hit(question)
        assert first == second
        assert type(first) is type(second)
        return second


def seconds_while(condition: Callable[[], bool], patience: float = 30) -> float:
    """Return when it holds no more: the seconds until the last question that found it to hold.

    They count up to where that question began. A machine that stands still in the middle of one
    adds nothing, so that a bound which is promised needs no allowance for it.
    """
    begun = asked = last = time.monotonic()
    while condition():
        last = asked
        assert last - begun < patience, "it does not end"
        time.sleep(0.01)
        asked = time.monotonic()
    return last - begun


def wait_for_quarantine(using: str, *tables: str, seconds: float = 30) -> None:
    """Return when the cache trusts these tables of a database, or any that it has not met yet."""
    connection = connections[using]
    route = state_of(connection).route(connection, current())
    if route.store is None:
        return
    tables = tables or ("none",)
    deadline = time.monotonic() + seconds
    while (found := route.store.read(route.namespace, "none", tables)).vector is None:
        assert time.monotonic() < deadline, f"{found.reason} does not end"
        if found.reason is Reason.OVERDUE:
            # PostgreSQL would wait for what other tests are writing on the same server.
            moment = route.store.moment()
            route.store.settle(route.namespace, [EVERYTHING, *tables], moment, 1, 1)
        time.sleep(0.02)
