"""`python -m tests.soak`: see the package."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import random
import sys
import time
from typing import Any

from tests import servers
from tests.soak.board import Board
from tests.soak.vandal import Redis, Vandal

REPORT_SECONDS = 10
PATIENCE = 60
"""Seconds without a read after which no more are waited for."""


class Workers:
    """The processes; who dies is replaced."""

    def __init__(
        self, context: Any, board: Board, target: Any, seed: int, keys: Any, rests: list[float]
    ) -> None:
        """`rests`: of each process, 0 for one that only reads."""
        self._context, self._board, self._target = context, board, target
        self._keys, self._rests = keys, rests
        self._seeds = random.Random(seed)
        self._processes = [self._start(worker) for worker in range(len(rests))]

    def _start(self, worker: int) -> Any:
        seed = self._seeds.randrange(2**32)
        process = self._context.Process(
            target=self._target,
            args=[self._board, worker, seed, self._keys, self._rests[worker]],
            daemon=True,
        )
        process.start()
        return process

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def writers(self) -> list[int]:
        return [pid for pid, rest in zip(self.pids(), self._rests, strict=True) if rest]

    def replace_the_dead(self) -> None:
        for worker, process in enumerate(self._processes):
            if not process.is_alive():
                process.join()
                self._processes[worker] = self._start(worker)

    def end(self) -> None:
        self._board.is_over.value = 1
        for process in self._processes:
            process.join(20)
            process.kill()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--reads", type=int, default=0, help="go on after that until so many reads were made"
    )
    parser.add_argument(
        "--pooled", action="store_true", help="threads behind PgBouncer and psycopg's pool"
    )
    parser.add_argument("--processes", type=int, help="at least 3 (4); with --pooled any (2)")
    parser.add_argument("--threads", type=int, default=50, help="of all, with --pooled")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1, help="seconds between two faults")
    parser.add_argument(
        "--rest",
        type=float,
        help="seconds between two writes of a writer, at most (0.4); with --pooled of a thread, "
        "on average (2)",
    )
    parser.add_argument(
        "--sabotage", action="store_true", help="announce no commit, to see that this is noticed"
    )
    parser.add_argument("--databases", nargs="+", default=["postgresql", "mariadb"])
    options = parser.parse_args(arguments)
    if options.processes is None:
        options.processes = 2 if options.pooled else 4
    if options.rest is None:
        options.rest = 2 if options.pooled else 0.4
    if options.processes < 3 and not options.pooled:
        parser.error("--processes must be 3 or more: two that write, and one that only reads")
    if options.threads < 2 * options.processes:
        parser.error("--threads must be two for each process or more")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    kinds = [servers.PostgreSQLServer, *([] if options.pooled else [servers.MariaDBServer])]
    name = "pooled_settings" if options.pooled else "settings"
    os.environ["DJANGO_SETTINGS_MODULE"] = f"tests.soak.{name}"
    if options.sabotage:
        os.environ["ORMCACHE_SOAK_SABOTAGE"] = "1"
    os.environ["ORMCACHE_TEST_RUN"] = os.urandom(8).hex()
    started: list[Any] = servers.start_shared(kinds)
    redis = Redis()
    os.environ[servers.RedisServer.variable()] = str(redis.port)
    try:
        return soak_pools(options, redis) if options.pooled else soak_servers(options, redis)
    finally:
        redis.close()
        for server in started:
            server.close()


def soak_servers(options: argparse.Namespace, redis: Redis) -> int:
    from tests.soak import workers as at_work

    keys = at_work.prepare(options.databases)
    context = fork_server(at_work)
    board = Board(context, options.processes, options.databases)
    writers = max(2, options.processes // 2)
    rests = [options.rest if worker < writers else 0 for worker in range(options.processes)]
    workers = Workers(context, board, at_work.work, options.seed, keys, rests)
    vandal = Vandal(options.seed, redis, options.databases, workers)
    seconds = soak(options, board, workers, vandal)
    return report(options, board, vandal, seconds, at_work.values(keys))


def soak_pools(options: argparse.Namespace, redis: Redis) -> int:
    port = os.environ[servers.PostgreSQLServer.variable()]
    with servers.PgBouncerServer(port, options={"default_pool_size": "6"}) as bouncer:
        os.environ["ORMCACHE_SOAK_BOUNCER"] = str(bouncer.port)
        from tests.soak import pooled as at_work

        keys = at_work.prepare(at_work.ALIASES)
        context = fork_server(at_work)
        board = Board(context, options.threads, at_work.ALIASES)
        work = functools.partial(at_work.work, processes=options.processes)
        rests = [options.rest] * options.processes
        workers = Workers(context, board, work, options.seed, keys, rests)
        vandal = at_work.PoolVandal(options.seed, redis, at_work.ALIASES, workers, bouncer=bouncer)
        seconds = soak(options, board, workers, vandal)
        return report(options, board, vandal, seconds, at_work.values(keys))


def fork_server(at_work: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([at_work.__name__])
    return context


def soak(options: argparse.Namespace, board: Board, workers: Workers, vandal: Vandal) -> float:
    """Let the workers work, and the vandal disturb them; return for how many seconds."""
    # It takes a while until all programs have started.
    patience = time.monotonic() + 15
    while not board.total("reads") and time.monotonic() < patience:
        time.sleep(0.02)
        workers.replace_the_dead()
    goal = Goal(options.seconds, options.reads)
    begun = reported = time.monotonic()
    chance = random.Random(options.seed)
    next_deed = begun + 2
    # Interrupted, it tells what it has found so far.
    with contextlib.suppress(KeyboardInterrupt):
        while not goal.is_reached((now := time.monotonic()) - begun, board.total("reads")):
            time.sleep(0.02)
            vandal.wake()
            workers.replace_the_dead()
            if now >= next_deed:
                vandal.act()
                next_deed = time.monotonic() + chance.uniform(0, 2 * options.pause)
            if now >= reported + REPORT_SECONDS:
                reported = now
                print(f"{now - begun:5.0f} s  {line(options, board, now - begun)}", flush=True)
    seconds = time.monotonic() - begun
    vandal.wake(everybody=True)
    workers.end()
    return seconds


class Goal:
    """How long a soak goes on: for so many seconds, and until so many reads were made."""

    def __init__(self, seconds: float, reads: int) -> None:
        self._seconds, self._reads = seconds, reads
        self._latest = (0, 0.0)

    def is_reached(self, seconds: float, reads: int) -> bool:
        """Whether it is after so many seconds; also if nobody reads any more."""
        if reads != self._latest[0]:
            self._latest = (reads, seconds)
        is_stuck = seconds - self._latest[1] > PATIENCE
        return seconds >= self._seconds and (reads >= self._reads or is_stuck)


def line(options: argparse.Namespace, board: Board, seconds: float) -> str:
    reads, asked = board.total("reads"), board.total("asked")
    parts = [
        f"{reads:,} reads ({reads / seconds:,.0f}/s)",
        f"{board.total('hits') / max(asked, 1):.1%} hits",
        f"{board.total('writes'):,} writes",
    ]
    if options.pooled:
        parts += [
            f"{board.total('verified'):,} hits verified",
            f"mismatches: {board.total('mismatches')}",
        ]
    return ", ".join([*parts, f"stale: {board.total('stale')}"])


def report(
    options: argparse.Namespace,
    board: Board,
    vandal: Vandal,
    seconds: float,
    values: dict[str, list[int]],
) -> int:
    """Print what has happened; return 1 if something was wrong. `values`: of the rows."""
    print(f"\n{seconds:.0f} s: {line(options, board, seconds)}")
    print(
        f"writes refused while Redis was away: {board.total('refused'):,}; "
        f"statements that lost their session: {board.total('errors'):,}; "
        f"unexpected errors: {board.total('unexpected'):,}"
    )
    if options.pooled:
        print(
            f"hits: {board.total('hits'):,}; not verified, as a write came between or the "
            f"session was lost: {board.total('unverified'):,}"
        )
    for deed, times in sorted(vandal.done.items()):
        print(f"  {times:5} x {deed}")
    lost = 0
    for alias, found in values.items():
        floors = board.floors(0, alias)
        lost += sum(value < floor for value, floor in zip(found, floors, strict=True))
    if lost:
        print(f"rows that the database has lost, so that nothing is proved: {lost}")
    is_wrong = lost or any(map(board.total, ("stale", "mismatches", "unexpected")))
    has_shown = board.total("verified" if options.pooled else "hits")
    missing = options.reads - board.total("reads")
    if missing > 0:
        print(f"it ended too early: {missing:,} reads are missing")
    return 1 if is_wrong or not has_shown or missing > 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
