"""`python -m tests.soak`: see the package."""

from __future__ import annotations

import argparse
import contextlib
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


class Workers:
    """The processes; who dies is replaced."""

    def __init__(self, context: Any, board: Board, seed: int, keys: Any, rest: float) -> None:
        self._context, self._board, self._keys, self._rest = context, board, keys, rest
        self._seeds = random.Random(seed)
        self._writers = max(2, board.workers // 2)
        self._processes = [self._start(worker) for worker in range(board.workers)]

    def _start(self, worker: int) -> Any:
        from tests.soak import workers

        rest = self._rest if worker < self._writers else 0
        process = self._context.Process(
            target=workers.work,
            args=[self._board, worker, self._seeds.randrange(2**32), self._keys, rest],
            daemon=True,
        )
        process.start()
        return process

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def writers(self) -> list[int]:
        return self.pids()[: self._writers]

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
    parser.add_argument("--processes", type=int, default=4, help="at least 3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1, help="seconds between two faults")
    parser.add_argument(
        "--rest", type=float, default=0.4, help="seconds between two writes of a writer, at most"
    )
    parser.add_argument(
        "--sabotage", action="store_true", help="announce no commit, to see that this is noticed"
    )
    parser.add_argument("--databases", nargs="+", default=["postgresql", "mariadb"])
    options = parser.parse_args(arguments)
    if options.processes < 3:
        parser.error("--processes must be 3 or more: two that write, and one that only reads")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.soak.settings"
    if options.sabotage:
        os.environ["ORMCACHE_SOAK_SABOTAGE"] = "1"
    os.environ["ORMCACHE_TEST_RUN"] = os.urandom(8).hex()
    started: list[Any] = servers.start_shared([servers.PostgreSQLServer, servers.MariaDBServer])
    redis = Redis()
    os.environ[servers.RedisServer.variable()] = str(redis.port)
    try:
        return soak(options, redis)
    finally:
        redis.close()
        for server in started:
            server.close()


def soak(options: argparse.Namespace, redis: Redis) -> int:
    from tests.soak import workers as at_work

    keys = at_work.prepare(options.databases)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.soak.workers"])
    board = Board(context, options.processes, options.databases)
    workers = Workers(context, board, options.seed, keys, options.rest)
    vandal = Vandal(options.seed, redis, options.databases, workers)
    # It takes a while until all programs have started.
    patience = time.monotonic() + 15
    while not board.total("reads") and time.monotonic() < patience:
        time.sleep(0.02)
        workers.replace_the_dead()
    begun = reported = time.monotonic()
    chance = random.Random(options.seed)
    next_deed = begun + 2
    # Interrupted, it tells what it has found so far.
    with contextlib.suppress(KeyboardInterrupt):
        while (now := time.monotonic()) < begun + options.seconds:
            time.sleep(0.02)
            vandal.wake()
            workers.replace_the_dead()
            if now >= next_deed:
                vandal.act()
                next_deed = time.monotonic() + chance.uniform(0, 2 * options.pause)
            if now >= reported + REPORT_SECONDS:
                reported = now
                print(f"{now - begun:5.0f} s  {line(board, now - begun)}", flush=True)
    seconds = time.monotonic() - begun
    vandal.wake(everybody=True)
    workers.end()
    return report(board, vandal, seconds, keys)


def line(board: Board, seconds: float) -> str:
    reads, asked = board.total("reads"), board.total("asked")
    return (
        f"{reads:,} reads ({reads / seconds:,.0f}/s), "
        f"{board.total('hits') / max(asked, 1):.1%} hits, {board.total('writes'):,} writes, "
        f"stale: {board.total('stale')}"
    )


def report(board: Board, vandal: Vandal, seconds: float, keys: dict[str, list[int]]) -> int:
    from tests.soak import workers as at_work

    print(f"\n{seconds:.0f} s: {line(board, seconds)}")
    print(
        f"writes refused while Redis was away: {board.total('refused'):,}; "
        f"statements that lost their session: {board.total('errors'):,}; "
        f"unexpected errors: {board.total('unexpected'):,}"
    )
    for deed, times in sorted(vandal.done.items()):
        print(f"  {times:5} x {deed}")
    lost = 0
    for alias, found in at_work.values(keys).items():
        floors = board.floors(0, alias)
        lost += sum(value < floor for value, floor in zip(found, floors, strict=True))
    if lost:
        print(f"rows that the database has lost, so that nothing is proved: {lost}")
    is_wrong = board.total("stale") or board.total("unexpected") or lost or not board.total("hits")
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
