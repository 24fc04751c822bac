"""What the processes of a soak do: a thread that reads and, in some, one that writes.

The fork server imports this module once, with Django set up, and forks each worker from that.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from typing import Any

import django

django.setup()

from django import db  # noqa: E402
from django.db import connections  # noqa: E402

from ormcache import counters  # noqa: E402
from ormcache.brackets import Bracket  # noqa: E402
from ormcache.exceptions import CacheUnreachable  # noqa: E402
from tests.hammering import Hammer, Stale  # noqa: E402
from tests.soak.board import Board  # noqa: E402

EVENTS = frozenset({"corrupt", "invalidated", "unannounced"})
"""What the counters count besides the outcomes of reads."""


def work(board: Board, worker: int, seed: int, keys: dict[str, list[int]], rest: float) -> None:
    """Read, and write if `rest`, the longest pause between two writes in seconds, is not 0."""
    # Ctrl-C is for the parent, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "ORMCACHE_SOAK_SABOTAGE" in os.environ:
        Bracket.arm = lambda bracket, *args: None  # type: ignore[method-assign]
    threads = [threading.Thread(target=_read, args=[board, worker, seed, keys])]
    if rest:
        threads.append(threading.Thread(target=_write, args=[board, worker, seed, keys, rest]))
    for thread in threads:
        thread.start()
    known: dict[str, int] = {}
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.1)
        _count_hits(board, worker, known)


def _hammers(board: Board, worker: int, keys: dict[str, list[int]]) -> list[Hammer]:
    return [
        Hammer(alias, 0, rows, board.floors(worker, alias), threading.Lock())
        for alias, rows in keys.items()
    ]


def _read(board: Board, worker: int, seed: int, keys: dict[str, list[int]]) -> None:
    chance = random.Random(seed)
    hammers = _hammers(board, worker, keys)
    while not board.is_over.value:
        hammer = chance.choice(hammers)
        try:
            hammer.read_once(chance)
        except db.Error:
            _reconnect(board, worker, hammer.using)
            continue
        except Exception:
            report_error(board, worker, traceback.format_exc())
            continue
        board.add(worker, "reads")
        if hammer.stale:
            _tell(board, worker, hammer)


def _write(board: Board, worker: int, seed: int, keys: dict[str, list[int]], rest: float) -> None:
    chance = random.Random(seed + 1)
    hammers = _hammers(board, worker, keys)
    while not board.is_over.value:
        hammer = chance.choice(hammers)
        try:
            hammer.write_once(chance, worker)
        except CacheUnreachable:
            # While Redis is away nothing can be written; without a pause, nothing else is tried.
            board.add(worker, "refused")
            time.sleep(0.05)
        except db.Error:
            _reconnect(board, worker, hammer.using)
        except Exception:
            report_error(board, worker, traceback.format_exc())
        else:
            board.add(worker, "writes")
        time.sleep(chance.uniform(0, rest))


def _reconnect(board: Board, worker: int, using: str) -> None:
    """The session was ended by the vandal; an outcome that is not known raises no floor."""
    board.add(worker, "errors")
    connections[using].close()


def _tell(board: Board, worker: int, hammer: Hammer) -> None:
    wrong: list[Stale] = list(hammer.stale)
    hammer.stale.clear()
    board.add(worker, "stale", len(wrong))
    print(f"stale on {hammer.using}: {wrong}", file=sys.stderr, flush=True)


def report_error(board: Board, worker: int, error: str) -> None:
    board.add(worker, "unexpected")
    print(error, file=sys.stderr, flush=True)


def _count_hits(board: Board, worker: int, known: dict[str, int]) -> None:
    now = {"hits": 0, "asked": 0}
    for tables in counters.snapshot().values():
        for event, number in tables.get("tests_book", {}).items():
            if event not in EVENTS and not event.startswith("not stored"):
                now["asked"] += number
                now["hits"] += number if event == "hit" else 0
    for name, number in now.items():
        board.add(worker, name, number - known.get(name, 0))
        known[name] = number


def prepare(aliases: list[str]) -> dict[str, list[int]]:
    """Make the databases and the rows; return the primary keys of these."""
    from tests.hammering import make_rows

    for alias in aliases:
        connections[alias].creation.create_test_db(verbosity=0, autoclobber=True)
    keys = {alias: make_rows(alias) for alias in aliases}
    connections.close_all()
    return keys


def values(aliases: dict[str, list[int]]) -> dict[str, list[int]]:
    """What the rows hold, past the cache."""
    import ormcache
    from tests.models import Book

    found: dict[str, Any] = {}
    with ormcache.disabled():
        for alias, keys in aliases.items():
            rows = dict(Book.objects.using(alias).values_list("pk", "pages"))
            found[alias] = [rows[key] for key in keys]
    return found
