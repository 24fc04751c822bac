"""Tells whether a query is cached, and if not, why."""

from __future__ import annotations

import dataclasses
from typing import Any

from django import db
from django.core.exceptions import EmptyResultSet
from django.db import connections, models, transaction
from django.db.models.query import RawQuerySet
from django.db.models.sql.constants import MULTI

from ormcache import fence, plans, reads, replicas, snapshots
from ormcache.conf import current
from ormcache.connection_state import ConnectionState, state_of
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.stores import Lookup


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ormcache would do with a query now."""

    using: str
    cached: bool
    """Whether the cache has its answer, which the next read is given."""
    cacheable: bool
    """Whether its answer would be stored if it were run."""
    reason: Reason | None
    """Why it is not cacheable."""
    detail: str
    """The table, function or type that is the cause."""
    remaining: float
    """Seconds until a reason that ends by itself has ended, at the latest; 0 for others."""
    tables: tuple[str, ...]
    """The tables on which the answer depends."""
    key: str
    """The name of its entry in the cache; ``""`` if the query can have none."""
    sql: str
    """The text of the query, with placeholders."""
    namespace: str
    cache_alias: str
    mode: str
    """``"strict"``, ``"standard"`` or ``"off"``."""
    shadow: bool = False
    """Whether the database is asked although it is cached, since ``MODE`` is ``"shadow"``."""

    def __str__(self) -> str:
        if self.cached and self.shadow:
            state = "cached, but MODE is shadow: the next read is answered from the database"
        elif self.cached:
            state = "cached: the next read is answered from the cache"
        elif self.cacheable:
            state = "not cached yet: the next read stores its answer, if that can be stored"
        else:
            state = f"not cached: {self.reason}"
            if self.detail:
                state += f" ({self.detail})"
            if self.remaining:
                state += f", for {self.remaining:.1f} s at most"
        lines = [state]
        if self.reason is not None:
            lines.append(f"  why:       {self.reason.explanation}")
        lines += [
            f"  tables:    {', '.join(self.tables) or '-'}",
            f"  database:  {self.using}",
            f"  namespace: {self.namespace}",
            f"  cache:     {self.cache_alias} ({self.mode})",
            f"  key:       {self.key or '-'}",
            f"  SQL:       {self.sql or '-'}",
        ]
        return "\n".join(lines)


def explain(
    queryset: models.QuerySet[Any] | models.Manager[Any] | RawQuerySet[Any],
) -> Explanation:
    """Tell whether ``queryset`` is answered from the cache, and if not, why.

    Does not run the query, so it cannot tell whether the answer is too large to be stored. It may
    ask the database what kinds of tables there are, as a miss does.
    ``count()``, ``exists()`` and ``get()`` are queries of their own with other keys, but what
    keeps a queryset from being cached mostly keeps them, too.

    Raises TypeError for anything else than a queryset or a manager.
    """
    if isinstance(queryset, models.Manager):
        queryset = queryset.all()
    if not isinstance(queryset, (models.QuerySet, RawQuerySet)):
        raise TypeError(
            f"{queryset!r} is not a queryset. Leave out what evaluates it, such as .get(), "
            ".count() or a subscript; of a model, give Model.objects."
        )
    settings = current()
    connection: Any = connections[queryset.db]
    state = state_of(connection)
    route = state.route(connection, settings)
    if isinstance(queryset, RawQuerySet):
        plan = plans.Plan(str(queryset.raw_query))
        return _explanation(queryset.db, route, plan, Reason.RAW)
    compiler: Any = queryset.query.chain().get_compiler(queryset.db)
    reason = plans.why_not_compile(compiler, MULTI, False)
    if reason is None:
        if not route.enabled:
            reason = Reason.DATABASE_OFF if settings.ENABLED else Reason.SWITCHED_OFF
        elif route.store is None:
            reason = Reason.NO_CACHE
        else:
            reason = snapshots.why_not_read(connection, state)
    plan = plans.Plan()
    try:
        try:
            plan = plans.make_plan(compiler, MULTI, state, route, settings)
        except transaction.TransactionManagementError:
            # Outside of a transaction Django refuses to compile it with its locks.
            compiler.query.select_for_update = False
            plan = plans.make_plan(compiler, MULTI, state, route, settings)
        reason = reason or plan.reason
        # A query of a known shape was not compiled yet.
        plan = plans.complete(compiler, plan, settings)
    except EmptyResultSet:
        reason = reason or Reason.NO_ROWS_POSSIBLE
    reason = reason or plan.reason or fence.why_not_trust(connection, route, settings)
    if reason is not None:
        return _explanation(queryset.db, route, plan, reason)
    plan, lookup, reason = _looked_up(connection, state, route, plan)
    return _explanation(
        queryset.db, route, plan, reason, lookup.remaining, cached=lookup.entry is not None
    )


def _looked_up(
    connection: Any, state: ConnectionState, route: Route, plan: plans.Plan
) -> tuple[plans.Plan, Lookup, Reason | None]:
    """What the cache says, and why an answer would not be stored if it has none."""
    lookup = reads.look_up(route, plan)
    if lookup.vector is None or lookup.entry is not None:
        return plan, lookup, lookup.reason
    reason = replicas.why_not_store(connection, state, route, plan.registers, lookup.vector)
    if reason is not None:
        return plan, lookup, reason
    try:
        connection.ensure_connection()
    except db.Error:
        # The database cannot tell anything about its tables.
        return plan, lookup, None
    reason, detail = reads.why_not_store(connection, state, route, plan, lookup.vector)
    known = plans.depending(plan, connection, state, route)
    if reason is Reason.CATALOG_UNKNOWN and known.registers != plan.registers:
        return _looked_up(connection, state, route, known)
    return plan._replace(detail=detail), lookup, reason


def _explanation(
    using: str,
    route: Route,
    plan: plans.Plan,
    reason: Reason | None,
    remaining: float = 0.0,
    *,
    cached: bool = False,
) -> Explanation:
    return Explanation(
        using=using,
        cached=cached,
        cacheable=reason is None,
        reason=reason,
        detail=plan.detail,
        remaining=remaining,
        tables=plan.tables,
        key=plan.entry or plan.key,
        sql=plan.sql or "",
        namespace=route.namespace,
        cache_alias=route.cache_alias,
        mode=route.store.mode if route.store is not None else "off",
        shadow=route.is_shadow,
    )
