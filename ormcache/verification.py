"""Verifies hits: runs the query on the database, too, and compares the answers.

A difference proves something only if the registers are clean and the same before and after the
query runs: then no commit has come in between, and what the database says is what the cache had to
say.
Whatever would keep an answer from being stored, such as a replica that is behind, keeps it from
being compared, too. ``VERIFY`` chooses a share of the hits; ``MODE = "shadow"`` compares each,
and gives out what the database says.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, Protocol, TypeVar

from ormcache import counters
from ormcache.codec import Result
from ormcache.comparison import Order, Row, Verdict, compare, digest
from ormcache.conf import Settings
from ormcache.connection_state import ConnectionState, in_transaction
from ormcache.exceptions import CacheError, Mismatch, NotEncodable
from ormcache.interruptions import let_through
from ormcache.questions import savepoint
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.signals import mismatch_found
from ormcache.snapshots import is_undisturbed, let_go_if_lost

_T = TypeVar("_T")
_logger = logging.getLogger("ormcache")
# Of its own: a project may have seeded the one that all share.
_random = random.Random()

CHANGED = "registers changed"
BUSY_CONNECTION = "connection busy"
FAILED = "database error"
_DOUBTS = {Verdict.UNDETERMINED: "result not determined", Verdict.ROUNDED: "rounding"}


class Unverified(Exception):
    """A hit could not be compared. Never leaves ormcache."""


class Read(Protocol):
    """A read that the cache has an answer to; see :class:`ormcache.reads.Read`."""

    @property
    def connection(self) -> Any: ...
    @property
    def state(self) -> ConnectionState: ...
    @property
    def route(self) -> Route: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def plan(self) -> Any: ...
    @property
    def is_single(self) -> bool: ...
    @property
    def model(self) -> Any: ...
    @property
    def width(self) -> int | None: ...
    @property
    def order(self) -> Callable[[], Order]: ...
    def from_database(self, run: Callable[[], _T]) -> tuple[_T, Reason | None]: ...
    def is_unchanged(self) -> bool: ...


def is_due(share: float) -> bool:
    """Whether this one belongs to the share."""
    return share >= 1 or _random.random() < share


def verified(read: Read, cached: Result) -> Result:
    """What the cache has, or what the database says if that differs.

    Raises Mismatch if they differ and ``ON_MISMATCH`` comes to "raise".
    """
    try:
        truth = check(read, cached)
    except Unverified as doubt:
        count(read, f"unverified: {doubt}")
        return cached
    return cached if truth is None else Result(truth, cached.chunk_type)


def shadow(
    read: Read, cached: Result, answer: Callable[[], Result], reason: Reason | None
) -> None:
    """Compare what the cache has with the answer that is given.

    Args:
        read: the read.
        cached: what the cache has.
        answer: makes rows of what the database has said; raises NotEncodable.
        reason: why it must not be compared, or None.

    Raises Mismatch if they differ and ``ON_MISMATCH`` comes to "raise".
    """
    try:
        if reason is not None:
            raise Unverified(reason)
        _compare(read, cached.rows, answer().rows)
    except NotEncodable:
        count(read, f"unverified: {Reason.NOT_ENCODABLE}")
    except Unverified as doubt:
        count(read, f"unverified: {doubt}")


def check(read: Read, cached: Result) -> list[Row] | None:
    """Ask the database, and compare. Returns what it says if that differs from what is cached.

    Raises:
        Unverified: the two prove nothing, for a reason.
        Mismatch: they differ, and ``ON_MISMATCH`` comes to "raise".
    """
    try:
        (rows, has_more), reason = read.from_database(functools.partial(_ask, read))
    except Unverified:
        raise
    except Exception as error:
        let_through(error)
        # Whatever it is, a hit does not fail for it. It may be a replica that is out of reach.
        let_go_if_lost(read.connection, read.state)
        raise Unverified(FAILED) from error
    if reason is not None:
        raise Unverified(reason)
    is_right = _compare(read, cached.rows, rows, is_one_of_many=has_more and read.is_single)
    return None if is_right else rows


def _ask(read: Read) -> tuple[list[Row], bool]:
    """The rows that the database gives, unnoticed by those who watch its queries.

    Neither the log nor execute wrappers see it, and an error in it does not abort a transaction.
    Returns the rows, and whether there are more. Raises Unverified if it does not ask, and what
    the database raises.
    """
    connection = read.connection
    if not is_undisturbed(connection, read.state):
        raise Unverified(BUSY_CONNECTION)
    is_inside = in_transaction(connection, read.state)
    with (
        savepoint(connection) if is_inside else nullcontext(),
        connection.wrap_database_errors,
        closing(connection.cursor()) as wrapper,
    ):
        # Django's wrapper tells others of what it executes; the cursor in it has the types and
        # the placeholders of the backend.
        cursor = wrapper.cursor
        cursor.execute(read.plan.sql, read.plan.params)
        rows = list(cursor.fetchmany(2) if read.is_single else cursor.fetchall())
    if read.width is not None:
        rows = [row[: read.width] for row in rows]
    return (rows[:1], len(rows) > 1) if read.is_single else (rows, False)


def _compare(
    read: Read, cached: list[Row], truth: list[Row], *, is_one_of_many: bool = False
) -> bool:
    """Whether the two are the same; tells of it if not. Raises Unverified and Mismatch."""
    verdict = compare(
        *(cached, truth, read.plan.sql, read.connection.vendor, read.order),
        is_one_of_many=is_one_of_many,
    )
    if verdict is Verdict.SAME:
        count(read, "verified")
        return True
    if not read.is_unchanged():
        raise Unverified(CHANGED)
    if verdict in _DOUBTS:
        raise Unverified(_DOUBTS[verdict])
    _tell(read, cached, truth)
    return False


def count(read: Read, event: str) -> None:
    """Count what became of a hit for each of its tables."""
    counters.count_event(read.route.alias, read.plan.tables, event)


def _described(rows: list[Row]) -> str:
    """An answer without what is in it, which may be nobody's business."""
    return f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} (digest {digest(rows)})"


def _tell(read: Read, cached: list[Row], truth: list[Row]) -> None:
    """Drop the wrong entry, and say so in every way there is."""
    route, plan = read.route, read.plan
    try:
        if route.store is not None:
            route.store.drop(route.namespace, plan.entry)
    except CacheError:
        route.breaker.failed()
    count(read, "mismatch")
    # Without the parameters: they may be nobody's business.
    message = (
        f"The cache and the database {route.alias!r} disagree: the cache has "
        f"{_described(cached)}, the database {_described(truth)}. Tables: "
        f"{', '.join(plan.tables)}. Entry: {plan.entry}. Query: {plan.sql}"
    )
    _logger.error(message)
    mismatch_found.send_robust(
        sender=read.model,
        using=route.alias,
        tables=plan.tables,
        sql=plan.sql,
        params=plan.params,
        key=plan.entry,
        cached=cached,
        truth=truth,
        shadow=route.is_shadow,
    )
    if read.settings.on_mismatch == "raise":
        raise Mismatch(message)
