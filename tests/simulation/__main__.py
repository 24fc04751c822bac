"""Runs schedules: one of them, step by step, or as many as there is time for."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext

import django

BLOCK = 5_000
"""Schedules after which a process tells how far it is."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this schedule alone, and tell each step")
    parser.add_argument("--schedules", type=int, default=100_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--processes", type=int, default=1, help="in so many processes")
    parser.add_argument("--mutant", metavar="NAME", help="take this device away; '?' lists them")
    options = parser.parse_args()
    _set_up()
    if options.mutant is not None:
        from tests.simulation.mutants import MUTANTS

        if options.mutant not in MUTANTS:
            print(*MUTANTS, sep="\n")
            return 2
    if options.seed is not None:
        return _tell(options.seed, options.mutant)
    return _run(options.first, options.schedules, options.processes, options.mutant)


def _set_up() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()


def _mutated(name: str | None) -> object:
    from tests.simulation.mutants import MUTANTS

    return nullcontext() if name is None else MUTANTS[name]()


def _tell(seed: int, mutant: str | None) -> int:
    from tests.simulation.world import World

    with _mutated(mutant), World().installed() as world:
        world.trace = []
        outcome = world.run(seed)
        print(*world.trace, sep="\n")
    print()
    print(*(outcome.violations or ["Every answer was right."]), sep="\n")
    return bool(outcome.violations)


def _block(first: int, count: int, mutant: str | None) -> tuple[int, int, list[tuple[int, str]]]:
    """Reads, hits and the seeds that fail, with why, of `count` schedules."""
    from tests.simulation.world import World

    reads = hits = 0
    failed = []
    with _mutated(mutant), World().installed() as world:
        for seed in range(first, first + count):
            outcome = world.run(seed)
            reads += outcome.reads
            hits += outcome.hits
            if outcome.violations:
                failed.append((seed, outcome.violations[0]))
    return reads, hits, failed


def _blocks(first: int, count: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, first + count, BLOCK):
        yield begin, min(BLOCK, first + count - begin)


def _run(first: int, count: int, processes: int, mutant: str | None) -> int:
    started = time.monotonic()
    done = reads = hits = failures = 0
    with concurrent.futures.ProcessPoolExecutor(processes, initializer=_set_up) as pool:
        waiting = {
            pool.submit(_block, begin, size, mutant): size for begin, size in _blocks(first, count)
        }
        for block in concurrent.futures.as_completed(waiting):
            more_reads, more_hits, failed = block.result()
            done += waiting[block]
            reads += more_reads
            hits += more_hits
            failures += len(failed)
            for seed, why in failed:
                print(f"seed {seed}: {why}")
            rate = done / (time.monotonic() - started)
            print(
                f"{done} schedules, {reads} reads, {hits / max(reads, 1):.0%} hits, "
                f"{failures} failures, {rate:.0f} schedules per second",
                flush=True,
            )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
