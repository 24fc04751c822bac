"""The tables a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.contenders import NO_CACHE
from benchmarks.results import Cell, StackResult
from benchmarks.targets import Verdict

_TIME_LEGEND = """\
µs without a cache, then each contender as a multiple of it: median over the rounds of
the ratio within the round [quartiles], median µs.
!  not what the case says: a hit that asked the database, or a miss that did not
s  stale: a read right after the write still gave the value before it"""

_TRAFFIC_LEGEND = """\
Per operation, from un-timed passes: SQL statements sent (with BEGIN and COMMIT) / Redis
round trips / Redis commands (those inside Lua scripts too) / bytes to / bytes from Redis"""


def render(result: StackResult, contenders: Sequence[str], cases: Sequence[Case]) -> Iterator[str]:
    """All lines for one stack."""
    yield f"=== {result.stack} ==="
    yield ", ".join(f"{name} {value}" for name, value in result.facts.items())
    yield ""
    rows = [["case", *contenders]]
    rows += [[_title(case), *_times(result, contenders, case)] for case in cases]
    yield from _aligned(rows)
    yield ""
    yield _TIME_LEGEND
    yield ""
    rows = [["case", *contenders]]
    rows += [[_title(case), *_traffic(result, contenders, case)] for case in cases]
    yield from _aligned(rows)
    yield ""
    yield _TRAFFIC_LEGEND


def render_targets(verdicts: Iterable[Verdict]) -> Iterator[str]:
    yield "Targets: ormcache on PostgreSQL with Redis, as a multiple of no cache"
    for verdict in verdicts:
        yield f"  {verdict}"


def _title(case: Case) -> str:
    return f"{case.kind}: {case.title}"


def _times(result: StackResult, contenders: Sequence[str], case: Case) -> Iterator[str]:
    row = result.cells[case.name]
    for contender in contenders:
        cell = row.get(contender)
        if cell is None:
            yield f"n/a ({result.absent[contender]})"
        elif cell.error or cell.time is None:
            yield "failed"
        elif contender == NO_CACHE:
            yield f"{cell.time.middle:.0f} µs{_suffix(cell)}"
        else:
            ratio = result.ratio(case.name, contender)
            if ratio is None:
                yield f"{cell.time.middle:.0f} µs{_suffix(cell)}"
                continue
            yield (
                f"{ratio.middle:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"
                f" {cell.time.middle:.0f}{_suffix(cell)}"
            )


def _suffix(cell: Cell) -> str:
    return f" {cell.marks}" if cell.marks else ""


def _traffic(result: StackResult, contenders: Sequence[str], case: Case) -> Iterator[str]:
    row = result.cells[case.name]
    for contender in contenders:
        cell = row.get(contender)
        if cell is None or cell.inspection is None:
            yield "-"
        else:
            yield _wire(cell.inspection)


def _wire(inspection: dict[str, Any]) -> str:
    figures = [_short(inspection["sql"]["statements"])]
    redis = inspection["redis"]
    if redis:
        figures += [_short(redis["round_trips"]), _short(redis["commands"])]
        figures += [f"{redis['bytes_in']:.0f}", f"{redis['bytes_out']:.0f}"]
    return " / ".join(figures)


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
