"""The comparison as text, in tables that fit 100 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import repeat, zip_longest

from django.db import connection

from demo.comparison import Result, Step, Tally
from demo.screen import Screen

TABLES_WIDTH = 36
ASKED_WIDTH = 18


def print_result(screen: Screen, result: Result, rounds: int) -> None:
    """The three parts of the report."""
    _print_questions(screen, result.tallies)
    _print_skips(screen, result.tallies)
    _print_steps(screen, result)
    _print_totals(screen, result, rounds)


def _print_questions(screen: Screen, tallies: Sequence[Tally]) -> None:
    head = ["#", "query", "hit", "miss", "skip", "without", "with", "on miss", "ratio"]
    rows = []
    for number, tally in enumerate(tallies, 1):
        without, with_ = tally.median("without"), tally.median("with")
        rows.append(
            [
                str(number),
                tally.question.name,
                _count(screen, tally, "hit", "green"),
                _count(screen, tally, "miss", "yellow"),
                _count(screen, tally, "skip", "cyan"),
                _microseconds(without),
                _microseconds(with_),
                _microseconds(tally.median("miss")),
                _ratio(screen, without, with_),
            ]
        )
    _heading(
        screen,
        "Queries",
        "reads by outcome; median µs with ormcache and without (ormcache.disabled())",
    )
    _table(screen, head, rows, left={1})


def _print_skips(screen: Screen, tallies: Sequence[Tally]) -> None:
    """Why queries were skipped, and which ones, reason by reason."""
    by_reason: dict[str, list[int]] = {}
    for number, tally in enumerate(tallies, 1):
        for reason in sorted(tally.reasons):
            by_reason.setdefault(reason, []).append(number)
    for reason, numbers in by_reason.items():
        text = f"skipped {_ranges(numbers)}: {reason}"
        for line in textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="    "):
            screen.line(screen.paint(line, "cyan"))


def _print_steps(screen: Screen, result: Result) -> None:
    _heading(
        screen,
        "Writes",
        "what each invalidated, and which queries the database was then asked again",
    )
    head = ["write", "µs", "invalidated tables", "asked again", "still hits"]
    rows = [row for step in result.steps for row in _step_rows(screen, step, result.tallies)]
    _table(screen, head, rows, left={0, 2, 3})


def _step_rows(screen: Screen, step: Step, tallies: Sequence[Tally]) -> list[list[str]]:
    """A step's row, and further rows for what does not fit its columns."""
    # A query that is always skipped is nothing that this write did.
    asked = [
        number
        for number, (outcome, tally) in enumerate(zip(step.outcomes, tallies, strict=True), 1)
        if outcome != "hit" and tally.outcomes["hit"]
    ]
    kept = step.outcomes.count("hit")
    tables = textwrap.wrap(", ".join(step.invalidated), TABLES_WIDTH) or ["-"]
    again = textwrap.wrap(_ranges(asked), ASKED_WIDTH) or ["-"]
    first = [step.write.code, _microseconds(step.taken)] if step.write else ["(at the start)", ""]
    hits = screen.paint(f"{kept} of {len(step.outcomes)}", "green" if kept else "dim")
    return [
        [*left, table, screen.paint(numbers, "yellow"), right]
        for left, table, numbers, right in zip_longest(
            [first, *repeat(["", ""], max(len(tables), len(again)) - 1)],
            tables,
            again,
            [hits],
            fillvalue="",
        )
    ]


def _print_totals(screen: Screen, result: Result, rounds: int) -> None:
    tallies = result.tallies
    counts = {
        outcome: sum(tally.outcomes[outcome] for tally in tallies)
        for outcome in ("hit", "miss", "skip")
    }
    without = sum(sum(tally.without) for tally in tallies)
    with_ = sum(sum(tally.with_ormcache) for tally in tallies)
    _heading(screen, "Totals", f"{rounds} rounds after each of {len(result.steps) - 1} writes")
    reads = sum(counts.values()) or 1
    said = ", ".join(
        f"{count:,} {outcome} ({count / reads:.0%})" for outcome, count in counts.items()
    )
    screen.line(f"  reads     {said}")
    ratio = _ratio(screen, without, with_)
    screen.line(
        f"  time      {without / 1e6:,.0f} ms without, {with_ / 1e6:,.0f} ms with ormcache "
        f"(misses included): {ratio}"
    )
    verdict = screen.paint(f"{result.compared:,} pairs compared, no difference", "bold", "green")
    screen.line(f"  answers   {verdict}")
    if connection.vendor == "sqlite":
        note = (
            "SQLite runs in this process and is about as quick as the cache: try --database and "
            "--cache with servers."
        )
        for line in textwrap.wrap(
            note, 96, initial_indent="  note      ", subsequent_indent=" " * 12
        ):
            screen.line(screen.paint(line, "dim"))


def _heading(screen: Screen, title: str, note: str) -> None:
    screen.line()
    screen.line(f"{screen.paint(title, 'bold')}  {screen.paint(note, 'dim')}")


def _table(
    screen: Screen, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: set[int]
) -> None:
    widths = [max(_width(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def layout(row: Sequence[str]) -> str:
        cells = [
            _pad(cell, width, left=column in left)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return ("  " + "  ".join(cells)).rstrip()

    screen.line(screen.paint(layout(head), "dim"))
    screen.line(
        screen.paint(
            "  " + ("─" if screen.colour else "-") * (sum(widths) + 2 * len(widths) - 2), "dim"
        )
    )
    for row in rows:
        screen.line(layout(row))


def _pad(cell: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(cell))
    return cell + space if left else space + cell


def _width(cell: str) -> int:
    return len(re.sub(r"\033\[[\d;]*m", "", cell))


def _count(screen: Screen, tally: Tally, outcome: str, style: str) -> str:
    number = tally.outcomes[outcome]
    return screen.paint(str(number), style if number else "dim")


def _microseconds(nanoseconds: float | None) -> str:
    return "-" if nanoseconds is None else f"{nanoseconds / 1000:,.0f}"


def _ratio(screen: Screen, without: float | None, with_: float | None) -> str:
    if not without or not with_:
        return "-"
    ratio = without / with_
    return screen.paint(f"{ratio:.1f}x", "green" if ratio >= 1 else "red")


def _ranges(numbers: Sequence[int]) -> str:
    """``1-3 5`` for 1, 2, 3 and 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return " ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
