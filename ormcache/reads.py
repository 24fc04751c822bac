"""Answers a SELECT from the cache, or runs it and stores the answer."""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

from django import db
from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI, SINGLE
from django.utils.asyncio import async_unsafe

from ormcache import (
    catalog,
    codec,
    counters,
    fence,
    functions,
    keys,
    notes,
    overdue,
    replicas,
    tables,
    transactions,
    verification,
)
from ormcache.comparison import Order, order_of
from ormcache.conf import Settings, current
from ormcache.exceptions import CacheError, Corrupt, NotEncodable
from ormcache.policies import policies
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.shapes import Template, make_template, shape_of, templates
from ormcache.signals import query_read
from ormcache.stores import EVERYTHING, Lookup
from ormcache.transactions import ConnectionState, state_of

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Original = Callable[..., Any]


# --- switching off -------------------------------------------------------------------------

_disabled = contextvars.ContextVar("ormcache_disabled", default=0)


class disabled:
    """Reads inside go to the database and are not stored; writes still invalidate.

    A context manager (``with`` and ``async with``) and a decorator for functions and coroutine
    functions, but not for generators. May be nested; holds for this thread or task and
    for what it awaits, and ends with the block, whatever is raised inside.
    """

    def __enter__(self) -> None:
        # Nothing is kept on the instance, which threads and tasks may share.
        _disabled.set(_disabled.get() + 1)

    def __exit__(self, *exc_info: object) -> None:
        _disabled.set(_disabled.get() - 1)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[_P, _T]) -> Callable[_P, _T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            # The block would end before the generator begins.
            raise TypeError("disabled() does not decorate generators; put a block inside.")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def asynchronous(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with disabled():
                    return await function(*args, **kwargs)

            return asynchronous  # type: ignore[return-value]

        @functools.wraps(function)
        def synchronous(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with disabled():
                return function(*args, **kwargs)

        return synchronous


# --- reads that feed writes ----------------------------------------------------------------


class _Feeding(threading.local):
    depth = 0


_feeding = _Feeding()


def feeding(original: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
    """Run a function of Django whose reads decide what it writes: they ask the database."""
    _feeding.depth += 1
    try:
        return original(*args, **kwargs)
    finally:
        _feeding.depth -= 1


# --- the plan of a read --------------------------------------------------------------------


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
    if _feeding.depth:
        return Reason.FEEDS_WRITE
    if _disabled.get():
        return Reason.DISABLED
    return None


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
        plan = Plan(None, (), template.tables, template.elsewhere, key, template=template)
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
    text, params, recorded, handwritten = tables.compile_query(compiler)
    if not text:
        raise EmptyResultSet
    vendor = compiler.connection.vendor
    facts = tables.facts(text, recorded, handwritten, vendor, settings)
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
    moment = functions.moment_among(plan.params, compiler.connection.vendor)
    if moment is not None:
        return plan._replace(reason=Reason.NON_DETERMINISTIC, detail=repr(moment))
    try:
        key = keys.entry_key((*context, plan.tables), plan.sql, plan.params)
    except NotEncodable as error:
        return plan._replace(reason=Reason.PARAMETER, detail=str(error))
    return plan._replace(key=key)


def depending(plan: Plan, connection: Any, state: ConnectionState, route: Route) -> Plan:
    """``plan`` with what it depends on, as far as that is known."""
    names = catalog.registers(connection, state, route, plan.tables, plan.elsewhere)
    entry = plan.key if names is plan.tables else keys.under(plan.key, names)
    return plan._replace(registers=names, entry=entry)


def _restrain(
    plan: Plan, connection: Any, state: ConnectionState, route: Route, settings: Settings
) -> Plan:
    """Add what settings, the transaction and the cache's health say about the tables."""
    if plan.reason is not None:
        return plan
    if not policies.of(plan.tables, settings).enabled:
        return plan._replace(reason=Reason.MODEL_OFF)
    plan = depending(plan, connection, state, route)
    names = plan.registers
    dirty = state.dirty
    if dirty and (EVERYTHING in dirty or not dirty.isdisjoint(names)):
        return plan._replace(reason=Reason.WRITTEN_HERE)
    unpaid = transactions.owed(route)
    if (
        unpaid
        and not transactions.pay(route)
        and (EVERYTHING in unpaid or not unpaid.isdisjoint(names))
    ):
        return plan._replace(reason=Reason.CACHE_UNREACHABLE)
    return plan


# --- answering -----------------------------------------------------------------------------


@async_unsafe
def not_in_a_coroutine() -> None:
    """Raise SynchronousOnlyOperation in a coroutine, as ``connection.cursor`` does."""


def check_access(connection: Any) -> None:
    """Raise what Django would raise if the query went to the database.

    Otherwise code that breaks on a miss would work on a hit: synchronous reads in a coroutine,
    a connection used by a foreign thread, a query in a SimpleTestCase.
    """
    not_in_a_coroutine()
    connection.validate_thread_sharing()
    connection.validate_no_broken_transaction()
    ban = connection.__dict__.get("cursor")
    if ban is not None and type(ban).__name__ == "_DatabaseFailure":
        ban()
    if _connects(connection) is not None:
        # Test runners replace ensure_connection() to forbid the database: let them speak.
        connection.ensure_connection()


_pristine: Callable[..., Any] | None = None


def remember_pristine(ensure_connection: Callable[..., Any]) -> None:
    """Note Django's own ``BaseDatabaseWrapper.ensure_connection``."""
    global _pristine
    _pristine = ensure_connection


def _connects(connection: Any) -> Callable[..., Any] | None:
    """The replacement of ``ensure_connection``, if it was replaced."""
    method = getattr(type(connection), "ensure_connection", None)
    return None if method is _pristine else method


def is_guarded() -> bool:
    """Whether a test runner watches who connects to a database."""
    return BaseDatabaseWrapper.ensure_connection is not _pristine


def is_forbidden(alias: str) -> bool:
    """Whether a test case does not allow queries on ``alias``; it may raise when asked."""
    if not is_guarded():
        return False
    connection: Any = connections[alias]
    if type(connection.__dict__.get("cursor")).__name__ == "_DatabaseFailure":
        return True
    if connection.connection is None:
        try:
            connection.ensure_connection()
        except db.Error:
            return False
        except Exception:
            return True
    return False


def execute_sql(
    original: _Original,
    compiler: Any,
    /,
    result_type: str | None = MULTI,
    chunked_fetch: bool = False,
    chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
) -> Any:
    """``SQLCompiler.execute_sql``: the one place through which the ORM reads."""
    connection = compiler.connection
    settings = current()
    state = state_of(connection)
    reason = why_not_compile(compiler, result_type, chunked_fetch)
    if reason is not None or result_type is None:
        if reason is not Reason.WRITE_STATEMENT:
            _report(compiler, "skip", reason)
        return original(compiler, result_type, chunked_fetch, chunk_size)
    route = state.route(connection, settings)
    if not route.enabled:
        reason = Reason.DATABASE_OFF if settings.ENABLED else Reason.SWITCHED_OFF
    elif route.store is None:
        reason = Reason.NO_CACHE
    else:
        if transactions.prepare_session(connection):
            route = state.route(connection, settings)
        reason = transactions.why_not_read(connection, state)
    path = state.path(connection)
    if reason is not None:
        _report(compiler, "skip", reason)
        return original(compiler, result_type, chunked_fetch, chunk_size)
    try:
        plan = _planned(compiler, result_type, state, route, settings)
        if plan.reason is None and settings.fence_interval is not None:
            # Not before it is known that Django would use this connection.
            reason = fence.why_not_trust(connection, route, settings)
            if reason is not None:
                plan = plan._replace(reason=reason)
        if plan.reason is not None:
            _report(compiler, "skip", plan.reason, plan)
            return _run(original, compiler, plan, result_type, chunk_size)
        lookup, plan, result = _ask(compiler, plan, route, settings)
        if result is not None and not (route.verify and verification.is_due(route.verify)):
            _report(compiler, "hit", None, plan)
            return _given(result, result_type, chunk_size)
        plan = complete(compiler, plan, settings)
    except EmptyResultSet:
        return iter([]) if result_type == MULTI else None
    run = functools.partial(_run, original, compiler, plan, result_type, chunk_size)
    if lookup.vector is None:
        answer = run()
        if lookup.reason is Reason.OVERDUE:
            overdue.settle(connection, route, plan.registers)
        _report(compiler, "skip", lookup.reason, plan)
        return answer
    is_single = result_type == SINGLE
    read = Read(
        *(connection, state, route, settings, path, plan, lookup.vector, is_single),
        model=compiler.query.model,
        width=compiler.col_count if is_single or compiler.has_extra_select else None,
        order=functools.partial(order_of, compiler),
    )
    if result is not None and not route.is_shadow:
        _report(compiler, "hit", None, plan)
        return _given(verification.verified(read, result), result_type, chunk_size)
    answer, reason = read.from_database(run)
    if result is not None:
        _report(compiler, "shadow hit", None, plan)
        verification.shadow(read, result, functools.partial(_taken, answer, result_type), reason)
    else:
        reason = reason or _store(read, functools.partial(_taken, answer, result_type))
        _report(compiler, "miss", reason, plan)
    return answer


def _planned(
    compiler: Any, result_type: str, state: ConnectionState, route: Route, settings: Settings
) -> Plan:
    """:func:`make_plan`, and what Django raises for a query that must not be asked here."""
    plan = make_plan(compiler, result_type, state, route, settings)
    try:
        check_access(compiler.connection)
    except Exception:
        # For a query that cannot have rows, Django does without a connection.
        complete(compiler, plan, settings)
        raise
    return plan


def _ask(
    compiler: Any, plan: Plan, route: Route, settings: Settings
) -> tuple[Lookup, Plan, codec.Result | None]:
    """Look the query up; if it is not there, also compile it.

    Raises EmptyResultSet for a query that cannot have rows.
    """
    template = plan.template
    if template is not None and template.missed:
        # Likely to miss again: compile it while the cache answers.
        wait = start_look_up(route, plan)
        try:
            plan = complete(compiler, plan, settings)
        finally:
            lookup = wait()
        result = _decoded(lookup, plan, route)
    else:
        lookup = look_up(route, plan)
        result = _decoded(lookup, plan, route)
        if result is None:
            plan = complete(compiler, plan, settings)
        elif template is not None:
            template.restore(compiler)
    if template is not None:
        template.missed = result is None
    return lookup, plan, result


def _given(result: codec.Result, result_type: str, chunk_size: int) -> Any:
    """What ``execute_sql`` returns of an answer."""
    if result_type == MULTI:
        return codec.chunks(result, chunk_size)
    return result.rows[0] if result.rows else None


class Read(NamedTuple):
    """A read that asks the database although the cache has an answer, or could next time."""

    connection: Any
    state: ConnectionState
    route: Route
    settings: Settings
    path: str
    """The search path when the query was looked up."""
    plan: Plan
    vector: str
    """The registers then."""
    is_single: bool
    """Whether only the first row is wanted."""
    model: Any
    width: int | None
    """How many columns Django keeps of each row; None for all."""
    order: Callable[[], Order]
    """Tells in which order the rows are."""

    def from_database(self, run: Callable[[], _T]) -> tuple[_T, Reason | None]:
        """What ``run`` returns, and why it must be neither stored nor compared with what is."""
        connection, state, route, plan = self.connection, self.state, self.route, self.plan
        behind = replicas.why_not_store(connection, state, route, plan.registers, self.vector)
        answer = run()
        if behind is None and replicas.has_moved(state, route):
            behind = Reason.REPLICA_UNKNOWN
        # The statement may have been the first on a new connection: now its isolation is known.
        reason = (
            plan.reason
            or behind
            or transactions.why_not_store(connection, state, self.path)
            or (Reason.SESSION if state.route(connection, self.settings) is not route else None)
            or why_not_store(connection, state, route, plan, self.vector, has_run=True)[0]
        )
        return answer, reason

    def is_unchanged(self) -> bool:
        """Whether no write has been announced, by any program, since the query was looked up."""
        settings = self.settings
        # What the database has just shown may have been announced there.
        if settings.fence_interval is not None and fence.why_not_trust(
            self.connection, self.route, settings, at_once=True
        ):
            return False
        return look_up(self.route, self.plan).vector == self.vector


def _decoded(lookup: Lookup, plan: Plan, route: Route) -> codec.Result | None:
    if lookup.entry is None:
        return None
    try:
        return codec.decode(codec.unseal(lookup.entry))
    except Corrupt:
        counters.count_read(route.alias, plan.tables, "corrupt")
        return None


def complete(compiler: Any, plan: Plan, settings: Settings) -> Plan:
    """Compile a query that was looked up by its shape and is not in the cache.

    Raises EmptyResultSet, which depends on values: nothing was ever stored for these.
    """
    if plan.sql is not None or plan.template is None:
        return plan
    known = plan.template.compile(compiler)
    if known is not None:
        return plan._replace(sql=known[0], params=known[1])
    compiled = _compile(compiler, settings)
    reason = compiled.reason
    if compiled.tables != plan.template.tables and reason is None:
        # The registers that were read are not those of this text: do not store.
        reason = Reason.UNREADABLE_SQL
    return plan._replace(
        sql=compiled.sql, params=compiled.params, reason=reason, detail=compiled.detail
    )


_UNREACHABLE = Lookup(None, None, Reason.CACHE_UNREACHABLE)


def look_up(route: Route, plan: Plan) -> Lookup:
    """Ask the store; a cache that does not answer is as one that has nothing."""
    store = route.store
    if store is None or not route.breaker.allows():
        return _UNREACHABLE
    return _answered(route, lambda: store.read(route.namespace, plan.entry, plan.registers))


def start_look_up(route: Route, plan: Plan) -> Callable[[], Lookup]:
    """Send the question of :func:`look_up`; the function returned waits for the answer.

    Call it in any case.
    """
    store = route.store
    if store is None or not route.breaker.allows():
        return lambda: _UNREACHABLE
    wait = store.start_read(route.namespace, plan.entry, plan.registers)
    return lambda: _answered(route, wait)


def _answered(route: Route, question: Callable[[], Lookup]) -> Lookup:
    try:
        lookup = question()
    except CacheError:
        route.breaker.failed()
        return _UNREACHABLE
    route.breaker.succeeded()
    return lookup


def _run(original: _Original, compiler: Any, plan: Plan, result_type: str, chunk_size: int) -> Any:
    """Run the query on the database without compiling it again."""
    if plan.sql is None:
        return original(compiler, result_type, False, chunk_size)
    compiled = (plan.sql, plan.params)
    # On the instance: subclasses and other patches of as_sql() stay what they are.
    compiler.as_sql = lambda *args, **kwargs: compiled
    try:
        return original(compiler, result_type, False, chunk_size)
    finally:
        del compiler.as_sql


def why_not_store(
    connection: Any,
    state: ConnectionState,
    route: Route,
    plan: Plan,
    vector: str,
    *,
    has_run: bool = False,
) -> tuple[Reason | None, str]:
    """What the database's catalog says against storing an answer, and of which names."""
    found = catalog.look(connection, state, route.namespace, vector)
    if found is None:
        return Reason.CATALOG_UNKNOWN, ""
    reason, detail = catalog.judge(found, plan.tables, current())
    if reason is not None:
        return reason, detail
    if route.has_tenants:
        if has_run and not catalog.was_read_from(connection, state, plan.registers):
            return Reason.SESSION, ""
        if not catalog.confirm(connection, state, route, plan.registers, vector):
            return Reason.CATALOG_UNKNOWN, ""
    # Who wrote to what has become known just now was not noticed.
    is_known = plan.registers == depending(plan, connection, state, route).registers
    return None if is_known else Reason.CATALOG_UNKNOWN, ""


def _taken(answer: Any, result_type: str) -> codec.Result:
    """The inverse of :func:`_given`. Raises NotEncodable."""
    if result_type != MULTI:
        return codec.Result([] if answer is None else [answer], "")
    if type(answer) is not list:
        # Another package returns rows of its own making.
        raise NotEncodable("rows in something else than a list")
    return codec.from_chunks(answer)


def _store(read: Read, answer: Callable[[], codec.Result]) -> Reason | None:
    """Store the answer; returns why not."""
    route, plan, settings = read.route, read.plan, read.settings
    limit = settings.MAX_RESULT_BYTES
    try:
        result = answer()
        # No value takes less than a byte: do not encode what cannot fit.
        if result.rows and len(result.rows) * len(result.rows[0]) > limit:
            return Reason.TOO_LARGE
        payload = codec.encode(result)
    except NotEncodable:
        return Reason.NOT_ENCODABLE
    if len(payload) > limit:
        return Reason.TOO_LARGE
    store, breaker = route.store, route.breaker
    if store is None or not breaker.allows():
        return Reason.CACHE_UNREACHABLE
    try:
        timeout = policies.of(plan.tables, settings).timeout(route.timeout)
        if settings.AUDIT and verification.is_due(settings.AUDIT):
            note = _note(read)
            if len(note) <= limit:
                store.note(route.namespace, plan.entry, note, timeout)
        store.fill(route.namespace, plan.entry, read.vector, codec.seal(payload), timeout)
    except CacheError:
        breaker.failed()
        return Reason.CACHE_UNREACHABLE
    return None


def _note(read: Read) -> bytes:
    """What it takes to ask the query again; b"" if that cannot be written down."""
    plan = read.plan
    try:
        return notes.dump(
            notes.Note(
                *(plan.entry, context_of(read.route, read.path), plan.sql or "", plan.params),
                *(plan.tables, tuple(sorted(plan.elsewhere)), plan.key, tuple(plan.registers)),
                *(read.width, read.is_single, read.order()),
            )
        )
    except NotEncodable:
        return b""


def context_of(route: Route, path: str) -> str:
    """What an answer depends on besides its SQL, in words that are the same in all processes."""
    return repr((codec.FORMAT, route.context, path))


def _report(compiler: Any, outcome: str, reason: Reason | None, plan: Plan | None = None) -> None:
    names: Sequence[str] = plan.tables if plan is not None else ()
    alias = compiler.using or compiler.connection.alias
    counters.count_read(alias, tuple(names), f"skip: {reason}" if outcome == "skip" else outcome)
    if outcome == "miss" and reason is not None:
        counters.count_event(alias, names, f"not stored: {reason}")
    if query_read.receivers:
        query_read.send_robust(
            sender=compiler.query.model,
            using=alias,
            outcome=outcome,
            reason=reason,
            tables=tuple(names),
            sql=_text(compiler, plan),
        )


def _text(compiler: Any, plan: Plan | None) -> str | None:
    """The SQL of a query for those who watch; a hit of a known shape was never compiled."""
    if plan is None or plan.sql is not None or plan.template is None:
        return plan.sql if plan is not None else None
    # A compiler of its own: the one that is read from must stay as the template left it.
    watched = compiler.query.chain().get_compiler(
        compiler.using, compiler.connection, compiler.elide_empty
    )
    text: str = watched.as_sql()[0]
    return text
