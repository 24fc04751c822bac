"""Runs the cases of one contender in this process: the worker's and profiler's engine."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

import django
from django.conf import settings

from benchmarks.cases import BY_NAME, Case
from benchmarks.contenders import Services, settings_for
from benchmarks.traffic import RedisMeter, RedisTraffic, Sql, count_sql

# The traffic of a case is averaged over so many operations.
INSPECTED = 10

# ormcache stores nothing for the first ten seconds of a new namespace.
WARM_UP_SECONDS = 30.0


@dataclass(frozen=True)
class Timing:
    """One timed batch."""

    microseconds: float
    # For hit cases: the same operation sent no query just before and after the batch.
    as_named: bool = True


@dataclass(frozen=True)
class Inspection:
    """The un-timed look at a case."""

    sql: Sql
    redis: RedisTraffic | None
    # The case did what its name says: a hit sent no query, a miss sent some.
    as_named: bool
    # A read after the write gave the value before it; None where nothing is written.
    stale: bool | None


class Bench:
    """One contender, set up in this process for its whole life."""

    def __init__(self, contender: str, services: Services) -> None:
        self.contender = contender
        settings.configure(**settings_for(contender, services))
        url = services.redis_for(contender)
        self._meter = RedisMeter(url) if url else None
        if self._meter:
            self._meter.empty()
        django.setup()
        # Its models need the apps loaded.
        from benchmarks import operations

        self._operations = operations.OPERATIONS
        self._rotation = operations.WARM_ROTATION
        self._serials: defaultdict[str, count[int]] = defaultdict(count)

    def load(self) -> None:
        """Create and fill the tables that all contenders share."""
        from benchmarks.catalog import data

        data.create_tables()
        data.fill()
        data.tidy()

    def tidy(self) -> None:
        """Leave the database as fresh for the next case as it was for the first."""
        from benchmarks.catalog import data

        data.tidy()

    def warm_up(self, cases: Iterable[Case]) -> list[str]:
        """Repeat the hit cases until each one hits; return those that never did.

        One of them in any case: in a new namespace nothing is stored for a while, nor on a miss.
        """
        cold = [case for case in {BY_NAME["hit_get"], *cases} if case.kind == "hit"]
        deadline = time.monotonic() + WARM_UP_SECONDS
        if self.contender == "none":
            deadline = 0.0
        while cold:
            for case in cold:
                self._rotate(case)
            cold = [case for case in cold if self._rotate(case).queries]
            if not cold or time.monotonic() > deadline:
                break
            time.sleep(0.25)
        # What was set up until here will stay: the collector need not look at it.
        gc.collect()
        gc.freeze()
        return [case.name for case in cold]

    def inspect(self, name: str) -> Inspection:
        """Count statements and traffic of a case, and check that it is what it says."""
        case = BY_NAME[name]
        self._prepare(case)
        if case.kind == "mixed":
            # The reads rotate over the warm parameters as well; the first time round
            # they are cold for the rows that the case before has written.
            self.run(name, self._rotation)
        sql = count_sql(lambda: self.run(name, INSPECTED), INSPECTED)
        self._prepare(case)
        redis = None
        if self._meter:
            redis = self._meter.measure(lambda: self.run(name, INSPECTED), INSPECTED)
        stale = self._is_stale(name)
        self._operations[name].cleanup()
        return Inspection(sql, redis, self._is_as_named(case, sql), stale)

    def time(self, name: str) -> Timing:
        """Time one batch of a case."""
        case = BY_NAME[name]
        self._prepare(case)
        checked = case.kind == "hit" and self.contender != "none"
        hit = not checked or not self._rotate(case).queries
        gc.collect()
        started = time.perf_counter_ns()
        self.run(name, case.batch)
        elapsed = time.perf_counter_ns() - started
        hit = hit and (not checked or not self._rotate(case).queries)
        self._operations[name].cleanup()
        return Timing(elapsed / 1000 / case.batch, hit)

    def run(self, name: str, times: int) -> None:
        run = self._operations[name].run
        serials = self._serials[name]
        for _ in range(times):
            run(next(serials))

    def _prepare(self, case: Case) -> None:
        """Leave the case as its timed batch shall find it: connected, warm, rows held."""
        self._operations[case.name].prepare()
        if case.kind == "hit":
            self._rotate(case)
        else:
            self.run(case.name, 1)

    def _rotate(self, case: Case) -> Sql:
        """Run a hit case once with each of its warm parameters."""
        return count_sql(lambda: self.run(case.name, self._rotation), self._rotation)

    def _is_as_named(self, case: Case, sql: Sql) -> bool:
        if self.contender == "none" or case.kind in ("write", "mixed"):
            return sql.queries > 0
        return (sql.queries == 0) if case.kind == "hit" else (sql.queries >= 1)

    def _is_stale(self, name: str) -> bool | None:
        witness = self._operations[name].witness
        if witness is None:
            return None
        witness()
        before = witness()  # by now from the cache, if the contender caches it
        self.run(name, 1)
        return witness() == before
