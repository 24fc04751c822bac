"""Verifies hits: runs the query on the database, too, and compares the answers.

A difference proves something only if the registers are clean and the same before and after the
query runs: then no commit has come in between, and what the database says is what the cache had to
say.
Whatever would keep an answer from being stored, such as a replica that is behind, keeps it from
being compared, too. ``VERIFY`` chooses a share of the hits; ``MODE = "shadow"`` compares each,
and gives out what the database says.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

from ormcache import counters
from ormcache.comparison import Row, Verdict, compare, digest
from ormcache.conf import Settings
from ormcache.exceptions import CacheError, Mismatch
from ormcache.questions import savepoint
from ormcache.routers.namespaces import Route
from ormcache.signals import mismatch_found
from ormcache.transactions import (
    ConnectionState,
    in_transaction,
    is_undisturbed,
    let_go_if_lost,
)

_logger = logging.getLogger("ormcache")
# Of its own: a project may have seeded the one that all share.
_random = random.Random()

CHANGED = "registers changed"
BUSY_CONNECTION = "connection busy"
FAILED = "database error"
_DOUBTS = {Verdict.UNDETERMINED: "result not determined", Verdict.ROUNDED: "rounding"}


class Unverified(Exception):
    """A hit could not be compared. Never leaves ormcache."""


class Hit(NamedTuple):
    """An answer of the cache that is to be compared."""

    compiler: Any
    tables: tuple[str, ...]
    entry: str
    """The name of the entry."""
    sql: str
    params: tuple[Any, ...]
    rows: list[Row]


def is_due(share: float) -> bool:
    """Whether this one belongs to the share."""
    return share >= 1 or _random.random() < share


def ask(
    compiler: Any, state: ConnectionState, sql: str, params: Sequence[Any], *, is_single: bool
) -> tuple[list[Row], bool]:
    """The rows that the database gives for a query, unnoticed by those who watch its queries.

    Neither the log nor execute wrappers see it, and an error in it does not abort a transaction.

    Args:
        compiler: that of the query, which has compiled it.
        state: the state of its connection.
        sql: the text, with placeholders.
        params: what to put there.
        is_single: whether only the first row is wanted.

    Returns the rows, and whether there are more.

    Raises:
        Unverified: it cannot be asked, or fails.
    """
    connection = compiler.connection
    if not is_undisturbed(connection, state):
        raise Unverified(BUSY_CONNECTION)
    try:
        with (
            savepoint(connection) if in_transaction(connection, state) else nullcontext(),
            connection.wrap_database_errors,
            closing(connection.cursor()) as wrapper,
        ):
            # Django's wrapper tells others of what it executes; the cursor in it has the
            # types and the placeholders of the backend.
            cursor = wrapper.cursor
            cursor.execute(sql, params)
            rows = list(cursor.fetchmany(2) if is_single else cursor.fetchall())
    except Exception as error:
        # Whatever it is, a hit does not fail for it.
        let_go_if_lost(connection, state)
        raise Unverified(FAILED) from error
    if is_single or compiler.has_extra_select:
        rows = [row[: compiler.col_count] for row in rows]
    return (rows[:1], len(rows) > 1) if is_single else (rows, False)


def conclude(
    hit: Hit,
    truth: list[Row],
    route: Route,
    settings: Settings,
    *,
    is_one_of_many: bool,
    is_unchanged: Callable[[], bool],
) -> bool:
    """Compare a hit with what the database says, and tell of it; returns whether it may be given.

    Args:
        hit: the hit.
        truth: what the database said.
        route: where the hit is kept.
        settings: those in force.
        is_one_of_many: whether ``truth`` is the first of several rows.
        is_unchanged: tells whether the registers are still as they were when the hit was found.

    Raises:
        Unverified: the two prove nothing.
        Mismatch: they differ, and ``ON_MISMATCH`` is "raise".
    """
    verdict = compare(hit.rows, truth, hit.sql, hit.compiler, is_one_of_many=is_one_of_many)
    if verdict is Verdict.SAME:
        counters.count_event(route.alias, hit.tables, "verified")
        return True
    if not is_unchanged():
        raise Unverified(CHANGED)
    if verdict in _DOUBTS:
        raise Unverified(_DOUBTS[verdict])
    _tell(hit, truth, route, settings)
    return False


def doubt(route: Route, tables: Sequence[str], why: str) -> None:
    """Count a hit that proves nothing."""
    counters.count_event(route.alias, tables, f"unverified: {why}")


def _tell(hit: Hit, truth: list[Row], route: Route, settings: Settings) -> None:
    """Drop the wrong entry, and say so in every way there is."""
    try:
        if route.store is not None:
            route.store.drop(route.namespace, hit.entry)
    except CacheError:
        route.breaker.failed()
    counters.count_event(route.alias, hit.tables, "mismatch")
    # Without the parameters: they may be nobody's business.
    message = (
        f"The cache answers otherwise than the database {route.alias!r}: {len(hit.rows)} rows "
        f"({digest(hit.rows)}) instead of {len(truth)} ({digest(truth)}). Tables: "
        f"{', '.join(hit.tables)}. Entry: {hit.entry}. Query: {hit.sql}"
    )
    _logger.error(message)
    mismatch_found.send_robust(
        sender=hit.compiler.query.model,
        using=route.alias,
        tables=hit.tables,
        sql=hit.sql,
        params=hit.params,
        key=hit.entry,
        cached=hit.rows,
        truth=truth,
        shadow=route.is_shadow,
    )
    if settings.ON_MISMATCH == "raise":
        raise Mismatch(message)
