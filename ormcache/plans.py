"""A query that is ready to be looked up: its text, its tables, its key; or why it is not."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet
from django.db.models.sql.constants import MULTI, SINGLE

from ormcache import casts, catalog, codec, debts, functions, keys, tables
from ormcache.bypasses import why_bypassed
from ormcache.conf import Settings
from ormcache.connection_state import ConnectionState
from ormcache.exceptions import NotEncodable
from ormcache.policies import policies
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.shapes import shape_of
from ormcache.stores import EVERYTHING
from ormcache.templates import Template, make_template, templates


class Plan(NamedTuple):
    """A query that is ready to be looked up; or not to be, for a reason."""

    sql: str | None = None
    """The text, or None for a query of a known shape, which is not compiled yet."""
    params: tuple[Any, ...] = ()
    tables: tuple[str, ...] = ()
    elsewhere: frozenset[str] = frozenset()
    """Those of the tables that may be in another schema than the one that is searched first."""
    key: str = ""
    registers: tuple[str, ...] = ()
    """What the answer depends on: the tables, and what they are connected with."""
    entry: str = ""
    """The name of the entry: the key, for these registers."""
    reason: Reason | None = None
    detail: str = ""
    template: Template | None = None


def why_not_compile(compiler: Any, result_type: str | None, chunked: bool) -> Reason | None:
    """A reason not to cache that shows before the query is compiled."""
    if result_type != MULTI and result_type != SINGLE:
        return Reason.WRITE_STATEMENT
    if chunked:
        return Reason.ITERATOR
    query = compiler.query
    if query.select_for_update:
        return Reason.SELECT_FOR_UPDATE
    if query.explain_info:
        return Reason.EXPLAIN
    return why_bypassed()


def make_plan(
    compiler: Any, result_type: str, state: ConnectionState, route: Route, settings: Settings
) -> Plan:
    """Find the tables and the key of a query; compile it unless its shape is known.

    Raises EmptyResultSet for a query that cannot have rows.
    """
    shape = shape_of(compiler)
    context = (codec.FORMAT, route.context, state.path(compiler.connection), result_type)
    if shape is None:
        plan = _keyed(_compile(compiler, settings), compiler, context)
        return _restrain(plan, compiler.connection, state, route, settings)
    known = templates(settings)
    place = (context, shape.key)
    template = known.get(place)
    if template is not None:
        key = template.key(shape.values)
        found, elsewhere = template.tables, template.elsewhere
        names, entry = _place(key, found, elsewhere, compiler.connection, state, route)
        plan = Plan(None, (), found, elsewhere, key, names, entry, template=template)
        return _restrain(plan, compiler.connection, state, route, settings)
    plan = _compile(compiler, settings)
    if place not in known:
        if plan.reason is None:
            template = make_template(
                shape, compiler, plan.sql or "", plan.params, plan.tables, context
            )
            if template is not None:
                template.elsewhere = plan.elsewhere
        # If compiling has met new tables, the memo is another by now, and this is forgotten.
        known[place] = template
    if template is not None:
        plan = plan._replace(key=template.key(shape.values))
    else:
        plan = _keyed(plan, compiler, context)
    return _restrain(plan, compiler.connection, state, route, settings)


def _compile(compiler: Any, settings: Settings) -> Plan:
    """Compile the query; its tables, or the reason why no query with this text is cached."""
    text, params, recorded, handwritten, cast = tables.compile_query(compiler)
    if not text:
        raise EmptyResultSet
    vendor = compiler.connection.vendor
    facts = tables.facts(text, recorded, handwritten, vendor, settings)
    if cast and facts.reason is None:
        # The text alone, of which facts are kept, does not tell the types of columns.
        facts = facts._replace(reason=Reason.NON_DETERMINISTIC, detail=cast)
    return Plan(
        text,
        params,
        facts.tables,
        facts.elsewhere,
        reason=facts.reason,
        detail=facts.detail,
    )


def _keyed(plan: Plan, compiler: Any, context: tuple[object, ...]) -> Plan:
    """Add the key of the text and its parameters, or the reason why these have none."""
    if plan.reason is not None or plan.sql is None:
        return plan
    # Django prepares the values of simple queries, but not those of every expression.
    has_cast = functools.partial(casts.has_cast, plan.sql)
    moment = functions.moment_among(plan.params, compiler.connection.vendor, has_cast)
    if moment is not None:
        return plan._replace(reason=Reason.NON_DETERMINISTIC, detail=repr(moment))
    try:
        key = keys.entry_key((*context, plan.tables), plan.sql, plan.params)
    except NotEncodable as error:
        return plan._replace(reason=Reason.PARAMETER, detail=str(error))
    return plan._replace(key=key)


def complete(compiler: Any, plan: Plan, settings: Settings) -> Plan:
    """Compile a query that was looked up by its shape and is not in the cache.

    Raises EmptyResultSet, which depends on values: nothing was ever stored for these.
    """
    if plan.sql is not None or plan.template is None:
        return plan
    known = plan.template.compile(compiler)
    if known is not None:
        # As _replace() would, in a third of the time.
        return Plan._make((*known, *plan[2:]))
    compiled = _compile(compiler, settings)
    reason = compiled.reason
    if compiled.tables != plan.template.tables and reason is None:
        # The registers that were read are not those of this text: do not store.
        reason = Reason.UNREADABLE_SQL
    return plan._replace(
        sql=compiled.sql, params=compiled.params, reason=reason, detail=compiled.detail
    )


def depending(plan: Plan, connection: Any, state: ConnectionState, route: Route) -> Plan:
    """``plan`` with what it depends on, as far as that is known."""
    names, entry = _place(plan.key, plan.tables, plan.elsewhere, connection, state, route)
    return plan._replace(registers=names, entry=entry)


def _place(
    key: str,
    found: tuple[str, ...],
    elsewhere: frozenset[str],
    connection: Any,
    state: ConnectionState,
    route: Route,
) -> tuple[tuple[str, ...], str]:
    """The registers and the entry of a key."""
    names = catalog.registers(connection, state, route, found, elsewhere)
    return names, key if names is found else keys.under(key, names)


def _restrain(
    plan: Plan, connection: Any, state: ConnectionState, route: Route, settings: Settings
) -> Plan:
    """Add what settings, the transaction and the cache's health say about the tables."""
    if plan.reason is not None:
        return plan
    if not policies.of(plan.tables, settings).enabled:
        return plan._replace(reason=Reason.MODEL_OFF)
    if not plan.entry:
        plan = depending(plan, connection, state, route)
    names = plan.registers
    dirty = state.dirty
    if dirty and (EVERYTHING in dirty or not dirty.isdisjoint(names)):
        return plan._replace(reason=Reason.WRITTEN_HERE)
    unpaid = debts.owed(route)
    if unpaid and not debts.pay(route) and (EVERYTHING in unpaid or not unpaid.isdisjoint(names)):
        return plan._replace(reason=Reason.CACHE_UNREACHABLE)
    return plan
