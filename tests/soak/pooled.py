"""What the processes of a soak of pools do: many threads, and fewer sessions than threads.

Half of the threads are behind PgBouncer in transaction mode, the others behind psycopg's pool.
They give sessions back in whatever state, and lose them. Behind psycopg's pool they also leave
search paths and roles to those who get the session next. Behind PgBouncer, where nobody could tell
who that is, they set them for a transaction.
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

import psycopg  # noqa: E402
from django.db import connections, transaction  # noqa: E402

from ormcache import verification  # noqa: E402
from ormcache.brackets import Bracket  # noqa: E402
from ormcache.signals import query_read  # noqa: E402
from tests.hammering import Commuters  # noqa: E402
from tests.servers import HOST, PgBouncerServer, PostgreSQLServer  # noqa: E402
from tests.settings import port_of  # noqa: E402
from tests.soak import workers  # noqa: E402
from tests.soak.board import Board  # noqa: E402
from tests.soak.vandal import Deeds, Vandal  # noqa: E402

ALIASES = ["bounced", "pooled"]
ROLE = "tests_soak"
"""Nobody logs in with it. Its own schema has authors, who are none."""
AUTHORS = {"public": ["hammer"], "one": ["one"], "two": ["two"], ROLE: []}
"""By the first schema of the search path."""

PATHS = ["one, public", "two, public", "DEFAULT"]


class Wanderers(Commuters):
    """Commuters who leave search paths and roles behind."""

    share_of_work = 0.9

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.wrong: list[tuple[str, list[str]]] = []
        """Schemas, and whom a reader found there."""
        self._is_bounced = self.using == "bounced"

    def wander_once(self, chance: random.Random) -> None:
        self._lead_a_life(chance, lambda: self._wander(chance))

    def _wander(self, chance: random.Random) -> None:
        if not self._is_bounced and chance.random() < 0.5:
            self._execute(self._way(chance, ""))
        with transaction.atomic(self.using):
            self._look()
            if chance.random() < 0.5:
                self._execute(self._way(chance, "LOCAL " if self._is_bounced else ""))
                self._look()
            transaction.set_rollback(chance.random() < 0.3, self.using)
        self._look()

    def _way(self, chance: random.Random, scope: str) -> str:
        # A session that had a role is not cached any more until it ends.
        if chance.random() < 0.01:
            return f"SET {scope}ROLE {ROLE}"
        return f"SET {scope}search_path TO {chance.choice(PATHS)}"

    def _look(self) -> None:
        from tests.models import Author

        schema = self._execute("SELECT current_schema()")[0][0]
        authors = Author.objects.using(self.using).order_by("pk")
        names = list(authors.values_list("name", flat=True))
        if names != AUTHORS[schema]:
            self.wrong.append((schema, names))


# --- a process -------------------------------------------------------------------------------


def work(
    board: Board,
    process: int,
    seed: int,
    keys: dict[str, list[int]],
    rest: float,
    processes: int,
) -> None:
    """Let each thread read, and write now and then; twice `rest` is the longest pause between."""
    # Ctrl-C is for the parent, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "ORMCACHE_SOAK_SABOTAGE" in os.environ:
        Bracket.arm = lambda bracket, *args: None  # type: ignore[method-assign]
    _count_for(board)
    threads = [
        threading.Thread(target=_live, args=[board, slot, seed + slot, keys, rest])
        for slot in range(process, board.workers, processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connections["pooled"].close_pool()


class _Slot(threading.local):
    """Which part of the board belongs to this thread."""

    number = 0


_slot = _Slot()


def _count_for(board: Board) -> None:
    """Let each thread count what its reads came to, and what the database said of its hits."""

    def count_read(outcome: str, **kwargs: Any) -> None:
        board.add(_slot.number, "asked")
        board.add(_slot.number, "hits", outcome == "hit")

    original = verification.count

    def count_verdict(read: Any, event: str) -> None:
        original(read, event)
        kinds = {"verified": "verified", "mismatch": "mismatches"}
        board.add(_slot.number, kinds.get(event, "unverified"))

    query_read.connect(count_read, weak=False)
    verification.count = count_verdict


def _live(board: Board, slot: int, seed: int, keys: dict[str, list[int]], rest: float) -> None:
    _slot.number = slot
    chance = random.Random(seed)
    # Not by the slot, which is even or odd in all threads of a process.
    alias = ALIASES[slot * len(ALIASES) // board.workers]
    one = Wanderers(alias, 0, keys[alias], board.floors(slot, alias), threading.Lock())
    next_write = time.monotonic() + chance.uniform(0, 2 * rest)
    while not board.is_over.value:
        before, kind = one.done, "reads"
        try:
            if time.monotonic() >= next_write:
                kind = "writes"
                one.write_once(chance, slot)
                next_write = time.monotonic() + chance.uniform(0, 2 * rest)
            elif chance.random() < 0.8:
                one.read_once(chance)
            else:
                one.wander_once(chance)
        except Exception:
            workers.report_error(board, slot, traceback.format_exc())
        board.add(slot, kind, one.done - before)
        if one.stale or one.wrong:
            board.add(slot, "stale", len(one.stale) + len(one.wrong))
            print(f"stale on {alias}: {one.stale} {one.wrong}", file=sys.stderr, flush=True)
            one.stale.clear()
            one.wrong.clear()
        if one.broken:
            board.add(slot, "errors", len(one.broken))
            one.broken.clear()
            # The pooler may be away.
            time.sleep(0.05)
    connections[alias].close()


# --- the databases ---------------------------------------------------------------------------


def prepare(aliases: list[str]) -> dict[str, list[int]]:
    """Make the databases, with schemas and a role, and the rows; return the keys of these."""
    keys = workers.prepare(aliases)
    connections["pooled"].close_pool()
    for alias in aliases:
        with _server(alias) as server:
            _make_schemas(server)
    return keys


def values(aliases: dict[str, list[int]]) -> dict[str, list[int]]:
    """What the rows hold, past the cache."""
    found = workers.values(aliases)
    connections.close_all()
    connections["pooled"].close_pool()
    return found


def _server(alias: str) -> psycopg.Connection:
    """PostgreSQL itself, past all pools."""
    return psycopg.connect(
        host=HOST,
        port=port_of(PostgreSQLServer),
        user=PostgreSQLServer.user,
        dbname=connections[alias].settings_dict["NAME"],
        autocommit=True,
    )


def _make_schemas(server: Any) -> None:
    if not server.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchall():
        server.execute(f"CREATE ROLE {ROLE}")
    for schema, names in AUTHORS.items():
        if schema != "public":
            server.execute(f"CREATE SCHEMA {schema}")
            server.execute(f"CREATE TABLE {schema}.tests_author (LIKE public.tests_author)")
            for name in names:
                server.execute(
                    f"INSERT INTO {schema}.tests_author (id, name) VALUES (1, %s)", [name]
                )
        server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
        server.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {ROLE}")


class PoolVandal(Vandal):
    """Ends sessions, several at once, and the pooler; leaves Redis up, so that there are hits."""

    def __init__(self, *args: Any, bouncer: PgBouncerServer) -> None:
        self._bouncer = bouncer
        super().__init__(*args)

    def deeds(self) -> Deeds:
        return {
            "sessions ended": (40, self._end_sessions),
            "PgBouncer killed and started again": (15, self._restart_bouncer),
            "process killed (SIGKILL)": (5, self._kill_worker),
            "process stopped (SIGSTOP) for a moment": (8, self._stop_worker),
            "sockets to Redis killed": (6, self._kill_sockets),
            "registers deleted": (3, self._delete_registers),
            "entries deleted": (3, self._delete_entries),
            "scripts flushed": (2, self._flush_scripts),
        }

    def _end_sessions(self) -> None:
        with _server(self._chance.choice(self._aliases)) as server:
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "ORDER BY random() LIMIT %s) AS a_few",
                [self._chance.randint(1, 4)],
            )

    def _restart_bouncer(self) -> None:
        self._bouncer.kill()
        time.sleep(self._chance.uniform(0, 0.3))
        self._bouncer.start()
