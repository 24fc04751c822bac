"""Asks every question with and without ormcache around each write, and compares the answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from django.apps import apps
from django.db.models import Model

import ormcache
from demo.errors import DemoError
from demo.models import City
from demo.questions import Question, all_questions
from demo.recorder import Record, recording
from demo.snapshot import snapshot
from demo.writes import Write, all_writes, prepare

COUNTRY = "EC"
SEARCH = "ville"
PATIENCE = 20.0
"""Seconds to wait for the cache to be trusted."""


class Difference(DemoError):
    """ormcache's answer is not the database's: the one thing that must never happen."""


@dataclass
class Tally:
    """What one question cost, over the whole comparison. Times are in nanoseconds."""

    question: Question
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    without: list[int] = field(default_factory=list)
    by_outcome: dict[str, list[int]] = field(
        default_factory=lambda: {"hit": [], "miss": [], "skip": [], "none": []}
    )

    @property
    def with_ormcache(self) -> list[int]:
        """The times of all asks with ormcache, misses included."""
        return [taken for times in self.by_outcome.values() for taken in times]

    def add(self, record: Record, taken: int, without: int) -> None:
        """Count one ask with ormcache and its twin without."""
        self.outcomes.update(read.outcome for read in record.reads)
        self.reasons.update(record.reasons)
        self.tables.update(record.tables)
        self.by_outcome[record.outcome].append(taken)
        self.without.append(without)

    def median(self, outcome: str) -> float | None:
        """The median time of the asks with this outcome, or of all ``with`` or ``without``."""
        special = {"with": self.with_ormcache, "without": self.without}
        times = special[outcome] if outcome in special else self.by_outcome[outcome]
        return median(times) if times else None


@dataclass
class Step:
    """A write (none before the first step) and how each question was answered right after it."""

    write: Write | None
    invalidated: list[str]
    outcomes: list[str]
    taken: int = 0


@dataclass
class Result:
    """What ``compare`` found."""

    tallies: list[Tally]
    steps: list[Step] = field(default_factory=list)
    compared: int = 0


def warm_up(on_wait: Callable[[str, float], None]) -> float | None:
    """Wait until repeated queries of all tables are hits.

    Returns the seconds that it took, or None when patience ran out.

    On a shared cache ormcache trusts nothing for some seconds after it has seen that the cache,
    or what the cache knows of a table, is new: a cache that has just lost its keys may have lost
    the news of a write with them.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < PATIENCE:
        reasons = [reason for model in demo_models() if (reason := _distrust(model))]
        if not reasons:
            return waited
        on_wait(reasons[0], waited)
        time.sleep(0.25)
    return None


def _distrust(model: type[Model]) -> str | None:
    """Why the second of two equal reads is not a hit; None if it is one."""
    probe = model._default_manager.order_by("pk")[:1]
    for _ in range(2):
        with recording() as record:
            list(probe.all())
    if record.outcome == "hit":
        return None
    reasons = [read.reason for read in record.reads if read.reason]
    return str(ormcache.explain(probe).reason or (reasons or ["it gives no reason"])[0])


def demo_models() -> list[type[Model]]:
    """The demo's models, with those behind the many-to-many relations."""
    return list(apps.get_app_config("ormcache_demo").get_models(include_auto_created=True))


def compare(
    rounds: int, on_step: Callable[[int, int], None], on_round: Callable[[], None]
) -> Result:
    """Run the comparison; raise ``Difference`` at the first answer that is not the database's."""
    prepare(COUNTRY)
    city = City.objects.filter(country=COUNTRY, capital=None).order_by("-population")[0]
    questions = all_questions(COUNTRY, city.pk, SEARCH)
    writes = all_writes(COUNTRY, city.pk)
    # A shared cache may know the answers from an earlier run; this run shows how they get there.
    ormcache.invalidate(*demo_models())
    result = Result([Tally(question) for question in questions])
    done: list[Write] = []
    try:
        result.steps.append(_step(None, result, rounds, on_round))
        for write in writes:
            on_step(len(done), len(writes))
            done.append(write)
            result.steps.append(_step(write, result, rounds, on_round))
    finally:
        for write in reversed(done):
            write.undo()
    return result


def _step(write: Write | None, result: Result, rounds: int, on_round: Callable[[], None]) -> Step:
    with write.around() if write else nullcontext():
        began = time.perf_counter_ns()
        with recording() as record:
            if write:
                write.run()
        step = Step(write, sorted(record.invalidated), [], time.perf_counter_ns() - began)
        after = f"after {write.code}" if write else "at the start"
        for number in range(rounds):
            on_round()
            for tally in result.tallies:
                outcome = _ask_both(tally, after, cached_first=number % 2 == 0)
                result.compared += 1
                if number == 0:
                    step.outcomes.append(outcome)
    return step


def _ask_both(tally: Tally, after: str, *, cached_first: bool) -> str:
    question = tally.question
    # Whoever comes second finds the database's own caches warm, so they take turns.
    if cached_first:
        record, answer, taken = _ask_ormcache(question)
        expected, without = _ask_database(question)
    else:
        expected, without = _ask_database(question)
        record, answer, taken = _ask_ormcache(question)
    if snapshot(answer) != snapshot(expected):
        raise Difference(_describe(question, after, record, answer, expected))
    if record.outcome == "hit" and record.statements:
        raise Difference(
            f"{question.name!r} {after} was reported as a hit, but the database was asked: "
            f"{record.statements[0]}"
        )
    tally.add(record, taken, without)
    return record.outcome


def _ask_ormcache(question: Question) -> tuple[Record, Any, int]:
    with recording(statements=True) as record, _stopwatch() as taken:
        answer = question.ask()
    return record, answer, taken[0]


def _ask_database(question: Question) -> tuple[Any, int]:
    with ormcache.disabled(), _stopwatch() as taken:
        answer = question.ask()
    return answer, taken[0]


@contextmanager
def _stopwatch() -> Iterator[list[int]]:
    taken = [0]
    began = time.perf_counter_ns()
    yield taken
    taken[0] = time.perf_counter_ns() - began


def _describe(question: Question, after: str, record: Record, answer: Any, expected: Any) -> str:
    return (
        f"{question.name!r} {after} ({record.outcome}): ormcache's answer is not the database's.\n"
        f"  ormcache: {_excerpt(answer, expected)}\n"
        f"  database: {_excerpt(expected, answer)}\n"
        "  (Unless somebody else wrote to the demo's tables in between.)"
    )


def _excerpt(answer: Any, other: Any) -> str:
    """The part of an answer around the first place where it differs from the other."""
    text, against = snapshot(answer), snapshot(other)
    place = next(
        (n for n, (a, b) in enumerate(zip(text, against, strict=False)) if a != b),
        min(len(text), len(against)),
    )
    return f"…{text[max(0, place - 80) : place + 80]}…"
