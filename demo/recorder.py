"""Records what ormcache says it did, by listening to its two signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ormcache.signals import query_read, tables_invalidated


@dataclass(frozen=True)
class Read:
    """One ORM read, as ``query_read`` tells it."""

    model: str
    outcome: str
    reason: str | None
    tables: tuple[str, ...]
    sql: str | None


@dataclass
class Record:
    """What happened between the beginning and the end of ``recording()``."""

    reads: list[Read] = field(default_factory=list)
    invalidated: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    """The SQL the database really got; filled only by ``recording(statements=True)``."""

    def count(self, outcome: str) -> int:
        """How many reads had this outcome."""
        return sum(read.outcome == outcome for read in self.reads)

    @property
    def outcome(self) -> str:
        """That of its worst read: ``miss``, ``skip`` or ``hit``; ``none`` without any read."""
        return next(
            (outcome for outcome in ("miss", "skip", "hit") if self.count(outcome)), "none"
        )

    @property
    def tables(self) -> list[str]:
        """The tables of all reads."""
        return sorted({table for read in self.reads for table in read.tables})

    @property
    def reasons(self) -> list[str]:
        """Why reads were skipped, in words."""
        return sorted({in_words(read.reason) for read in self.reads if read.outcome == "skip"})


def in_words(reason: str | None) -> str:
    """A reason, with its explanation where ormcache has one."""
    if not reason:
        return "no reason given"
    explanation = getattr(reason, "explanation", "")
    return f"{reason}. {explanation}" if explanation else str(reason)


_current: ContextVar[Record | None] = ContextVar("demo_record", default=None)


def connect() -> None:
    """Listen to ormcache; called once, when Django is ready."""
    query_read.connect(_on_read, dispatch_uid="demo")
    tables_invalidated.connect(_on_invalidated, dispatch_uid="demo")


@contextmanager
def recording(*, statements: bool = False) -> Iterator[Record]:
    """Record the reads and invalidations of this thread, and on request the SQL as well."""
    record = Record()
    token = _current.set(record)
    try:
        if statements:
            from django.db import connection

            with connection.execute_wrapper(_statement_recorder(record)):
                yield record
        else:
            yield record
    finally:
        _current.reset(token)


def _statement_recorder(record: Record) -> Callable[..., Any]:
    def execute(
        execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        record.statements.append(sql)
        return execute(sql, params, many, context)

    return execute


def _on_read(
    sender: type,
    outcome: str,
    reason: str | None,
    tables: tuple[str, ...],
    sql: str | None,
    **_: Any,
) -> None:
    if (record := _current.get()) is not None:
        record.reads.append(Read(sender.__name__, outcome, reason, tuple(tables), sql))


def _on_invalidated(tables: tuple[str, ...], **_: Any) -> None:
    if (record := _current.get()) is not None:
        record.invalidated += [table for table in tables if table not in record.invalidated]
