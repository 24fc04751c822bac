"""Runs schedules: one of them, step by step, or as many as there is time for."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import django

if TYPE_CHECKING:
    from tests.simulation.world import World

BLOCK = 2_000
"""Schedules after which a process tells how far it is."""


class Kind(NamedTuple):
    """Which client it is that runs."""

    policy: str
    mutant: str | None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this schedule alone, and tell each step")
    parser.add_argument("--schedules", type=int, default=100_000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--processes", type=int, default=1, help="in so many processes")
    parser.add_argument("--mutant", metavar="NAME", help="take this device away; '?' lists them")
    parser.add_argument(
        "--find",
        action="store_true",
        help="look for the first schedule in which each mutant is found, and remember it",
    )
    parser.add_argument(
        "--policy", choices=["raise", "fence", "open"], default="raise", help="ON_CACHE_FAILURE"
    )
    options = parser.parse_args()
    _set_up()
    if options.mutant is not None and options.mutant not in _mutants():
        print(*_mutants(), sep="\n")
        return 2
    if options.find:
        return _find(options.first, options.schedules, options.processes)
    kind = Kind(options.policy, options.mutant)
    if options.seed is not None:
        return _tell(options.seed, kind)
    return _run(options.first, options.schedules, options.processes, kind)


def _set_up() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()


def _mutants() -> dict[str, Any]:
    from tests.simulation.mutants import FENCE_MUTANTS, MUTANTS, OPEN_MUTANTS

    return {**MUTANTS, **OPEN_MUTANTS, **FENCE_MUTANTS}


@contextlib.contextmanager
def _world(kind: Kind) -> Iterator[World]:
    # Not before Django is set up.
    from tests.simulation.world import World

    mutated = contextlib.nullcontext() if kind.mutant is None else _mutants()[kind.mutant]()
    with mutated, World(kind.policy).installed() as world:
        yield world


def _tell(seed: int, kind: Kind) -> int:
    with _world(kind) as world:
        world.trace = []
        outcome = world.run(seed)
        print(*world.trace, sep="\n")
    print()
    print(*(outcome.violations or ["Every answer was right."]), sep="\n")
    return bool(outcome.violations)


def _find(first: int, count: int, processes: int) -> int:
    from tests.simulation.mutants import FENCE_MUTANTS, FOUND, MUTANTS, OPEN_MUTANTS, found

    kinds = [Kind("raise", name) for name in MUTANTS]
    kinds += [Kind("open", name) for name in OPEN_MUTANTS]
    kinds += [Kind("fence", name) for name in FENCE_MUTANTS]
    schedules, failed = {}, False
    with concurrent.futures.ProcessPoolExecutor(processes, initializer=_set_up) as pool:
        waiting = {
            pool.submit(_first_wrong, kind, found().get(str(kind.mutant)), first, count): kind
            for kind in kinds
        }
        for search in concurrent.futures.as_completed(waiting):
            kind, seed = waiting[search], search.result()
            print(f"{kind.mutant}: {seed}", flush=True)
            if seed is None:
                failed = True
            else:
                schedules[kind.mutant] = seed
    FOUND.write_text(json.dumps(schedules, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return int(failed)


def _first_wrong(kind: Kind, hint: int | None, first: int, count: int) -> int | None:
    """A schedule in which the mutant gives a wrong answer: the hint, if it is still one."""
    with _world(kind) as world:
        for seed in (*([] if hint is None else [hint]), *range(first, first + count)):
            if any("answered by" in violation for violation in world.run(seed).violations):
                return seed
    return None


def _block(first: int, count: int, kind: Kind) -> tuple[int, int, list[tuple[int, str]]]:
    """Reads, hits and the seeds that fail, with why, of `count` schedules."""
    reads = hits = 0
    failed = []
    with _world(kind) as world:
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


def _run(first: int, count: int, processes: int, kind: Kind) -> int:
    started = time.monotonic()
    done = reads = hits = failures = 0
    with concurrent.futures.ProcessPoolExecutor(processes, initializer=_set_up) as pool:
        waiting = {
            pool.submit(_block, begin, size, kind): size for begin, size in _blocks(first, count)
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
