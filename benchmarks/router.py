"""What ReplicaRouter adds to a query: `python -m benchmarks.router`.

Side by side with a router of one line that names a replica: each round times a batch of both, the
next round begins with the other one, and what is reported is the difference within a round. The
database is a SQLite file with two more aliases as its replicas; nothing is pinned.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence

import django
from django.conf import settings

from benchmarks.contenders import Services, settings_for
from benchmarks.results import Spread
from benchmarks.servers import services

TARGET = 5.0
"""Microseconds per query, at most."""

_REPLICAS = ("first", "second")
_BATCH = 50
_WARM_UP_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with services("sqlite-locmem") as (opened, _):
        _set_up(opened)
        measured = _measure(options.rounds)
    print(f"µs of CPU time, median of {options.rounds} rounds [quartiles]")
    print(f"{'':34}{'one line':>24}{'ReplicaRouter':>24}{'difference':>24}")
    dearest = 0.0
    for name, (one_line, routed) in measured.items():
        added = Spread.of([b - a for a, b in zip(one_line, routed, strict=True)])
        dearest = max(dearest, added.middle)
        cells = [_cell(spread) for spread in (Spread.of(one_line), Spread.of(routed), added)]
        print(f"{name:34}" + "".join(f"{cell:>24}" for cell in cells))
    is_reached = dearest <= TARGET
    print(f"Target: at most {TARGET:g} µs per query: {'PASS' if is_reached else 'MISS'}")
    return int(options.check_target and not is_reached)


def _set_up(opened: Services) -> None:
    configured = settings_for("ormcache", opened)
    configured["DATABASES"] |= {name: dict(opened.database) for name in _REPLICAS}
    configured["ORMCACHE"] = {"DATABASES": {name: {"PRIMARY": "default"} for name in _REPLICAS}}
    settings.configure(**configured)
    django.setup()
    from benchmarks.catalog import data

    data.create_tables()
    data.fill()


def _measure(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    from django.db import router

    from benchmarks.catalog.models import City
    from ormcache.routers import ReplicaRouter, pins

    def begin(is_request: bool) -> None:
        pins._scope.set(None)
        if is_request:
            pins.begin({})

    def ask(serial: int) -> object:
        return router.db_for_read(City)

    def hit(serial: int) -> object:
        return City.objects.get(pk=serial % 10 + 1)

    operations: dict[str, tuple[Callable[[int], object], bool]] = {
        "db_for_read()": (ask, False),
        "db_for_read(), in a request": (ask, True),
        "get() from the cache": (hit, False),
        "get() from the cache, in a request": (hit, True),
    }

    turns = itertools.cycle(_REPLICAS)

    class OneLine:
        def db_for_read(self, model: object, **hints: object) -> str:
            return next(turns)

    contenders = ([OneLine()], [ReplicaRouter()])
    # Filling the tables has pinned this context.
    begin(False)
    _warm_up()
    gc.collect()
    gc.freeze()
    measured: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in operations}
    for number in range(rounds):
        for name, (operation, is_request) in operations.items():
            for index in (0, 1) if number % 2 else (1, 0):
                router.routers = contenders[index]
                begin(is_request)
                measured[name][index].append(_time(operation))
    return measured


def _warm_up() -> None:
    """Repeat the reads until all aliases answer from the cache."""
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    from benchmarks.catalog.models import City

    deadline = time.monotonic() + _WARM_UP_SECONDS
    for alias in ("default", *_REPLICAS):
        while True:
            with CaptureQueriesContext(connections[alias]) as queries:
                for pk in range(1, 11):
                    City.objects.using(alias).get(pk=pk)
            if not queries:
                break
            if time.monotonic() > deadline:
                raise RuntimeError("nothing is cached")
            time.sleep(0.25)


def _time(operation: Callable[[int], object]) -> float:
    """Microseconds per operation, in one batch; what other programs take does not count."""
    started = time.thread_time()
    for serial in range(_BATCH):
        operation(serial)
    return (time.thread_time() - started) / _BATCH * 1e6


def _cell(spread: Spread) -> str:
    return f"{spread.middle:.2f} [{spread.low:.2f} {spread.high:.2f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1001, help="timed batches of each")
    parser.add_argument("--check-target", action="store_true", help="fail if it is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
