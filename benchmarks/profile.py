"""Profiles one case in this process: `python -m benchmarks.profile CASE`.

The table is one of cProfile, per operation. The profiler makes every call dearer, so
the shares of functions with many small calls come out too large: the time without the
profiler is printed beside it, and `python -m benchmarks` decides what was gained.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.cases import BY_NAME
from benchmarks.contenders import CONTENDERS, STACKS, why_not
from benchmarks.servers import services

_ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    reason = why_not(options.contender, options.stack)
    if reason:
        print(f"{options.contender} on {options.stack}: {reason}", file=sys.stderr)
        return 1
    with services(options.stack, options.postgres, options.redis) as (opened, _):
        bench = Bench(options.contender, opened)
        bench.load()
        profiled, plain = _profile(bench, options.case, options.operations)
    stats = pstats.Stats(profiled)
    if options.save:
        stats.dump_stats(options.save)
    print(
        f"{options.contender}, {options.case}, {options.stack}: "
        f"{plain:.0f} µs without the profiler"
    )
    for line in _table(stats, options.operations, options.sort, options.lines):
        print(line)
    return 0


def _profile(bench: Bench, case: str, operations: int) -> tuple[cProfile.Profile, float]:
    cold = bench.warm_up([BY_NAME[case]])
    if cold and bench.contender != "none":
        print(f"{case} is never a hit", file=sys.stderr)
    bench.time(case)
    plain = min(bench.time(case).microseconds for _ in range(10))
    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.runcall(bench.run, case, operations)
    elapsed = (time.perf_counter() - started) / operations * 1e6
    print(f"{elapsed:.0f} µs with the profiler", file=sys.stderr)
    return profile, plain


def _table(stats: pstats.Stats, operations: int, sort: str, lines: int) -> Iterator[str]:
    """Functions with calls, cumulative and own µs per operation, dearest first."""
    rows = []
    for (file, line, name), facts in stats.stats.items():  # type: ignore[attr-defined]
        _, calls, own, cumulative, _ = facts
        rows.append((cumulative, own, calls, f"{_short(file)}:{line} {name}"))
    rows.sort(key=lambda row: row[0 if sort == "cumulative" else 1], reverse=True)
    yield f"{'cum µs':>9}  {'own µs':>9}  {'calls':>7}  function"
    for cumulative, own, calls, name in rows[:lines]:
        yield (
            f"{cumulative / operations * 1e6:9.1f}  {own / operations * 1e6:9.1f}  "
            f"{calls / operations:7.1f}  {name}"
        )


def _short(file: str) -> str:
    """The part of a path that says which package it is."""
    _, installed, inside = file.rpartition("site-packages/")
    if installed:
        return inside
    return file.removeprefix(f"{_ROOT}/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("case", choices=BY_NAME, metavar="CASE", help=", ".join(BY_NAME))
    parser.add_argument("--contender", choices=CONTENDERS, default="ormcache")
    parser.add_argument("--stack", choices=STACKS, default="postgres-redis")
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--sort", choices=("cumulative", "own"), default="cumulative")
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--save", metavar="FILE", help="keep the profile for pstats")
    parser.add_argument("--postgres", metavar="URL", help="as for python -m benchmarks")
    parser.add_argument("--redis", metavar="URL", help="as for python -m benchmarks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
