"""Answers a SELECT from the cache, or runs it and stores the answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db.models.expressions import ColPairs
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI, SINGLE

from ormcache import (
    catalog,
    codec,
    counters,
    fence,
    flights,
    notes,
    overdue,
    plans,
    replicas,
    snapshots,
    unseen,
    verification,
)
from ormcache.access import check_access
from ormcache.bursts import bursts
from ormcache.comparison import Order, order_of
from ormcache.conf import Settings, current
from ormcache.connection_state import ConnectionState, in_transaction, state_of
from ormcache.exceptions import CacheError, Corrupt, NotEncodable
from ormcache.flights import Flight
from ormcache.plans import Plan, complete
from ormcache.policies import policies
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.signals import query_read
from ormcache.stores import Lookup

_T = TypeVar("_T")
_Original = Callable[..., Any]


def execute_sql(
    original: _Original,
    compiler: Any,
    /,
    result_type: str | None = MULTI,
    chunked_fetch: bool = False,
    chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
) -> Any:
    """``SQLCompiler.execute_sql``: the one place through which the ORM reads."""
    connection, settings = compiler.connection, current()
    state = state_of(connection)
    reason = plans.why_not_compile(compiler, result_type, chunked_fetch)
    if reason is not None or result_type is None:
        if reason is not Reason.WRITE_STATEMENT:
            _report(compiler, "skip", reason)
        return original(compiler, result_type, chunked_fetch, chunk_size)
    route, reason = _where(connection, state, settings)
    if reason is not None:
        _report(compiler, "skip", reason)
        return original(compiler, result_type, chunked_fetch, chunk_size)
    path = state.path(connection)
    try:
        plan = _planned(compiler, result_type, state, route, settings)
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
        return _unstored(compiler, plan, lookup, route, run)
    is_single = result_type == SINGLE
    read = Read(
        *(connection, state, route, settings, path, plan, lookup.vector, is_single),
        model=compiler.query.model,
        width=compiler.col_count if is_single or compiler.has_extra_select else None,
        order=functools.partial(order_of, compiler),
    )
    if result is not None:
        return _compared(compiler, read, result, run, result_type, chunk_size)
    if _may_share(read):
        return _shared(compiler, read, run, result_type, chunk_size)
    answer, reason = read.from_database(run)
    reason = reason or _store(read, functools.partial(_taken, answer, result_type))
    _report(compiler, "miss", reason, plan)
    return answer


def _unstored(
    compiler: Any, plan: Plan, lookup: Lookup, route: Route, run: Callable[[], Any]
) -> Any:
    """Answer a query of which the cache does not say under what its answer could be stored."""
    answer = run()
    if lookup.reason is Reason.BUSY and unseen.held:
        unseen.sweep()
    _report(compiler, "skip", lookup.reason, plan)
    return answer


def _compared(
    compiler: Any,
    read: Read,
    result: codec.Result,
    run: Callable[[], Any],
    result_type: str,
    chunk_size: int,
) -> Any:
    """Answer a query of which the cache has the answer, and compare that with the database's."""
    if not read.route.is_shadow:
        _report(compiler, "hit", None, read.plan)
        return _given(verification.verified(read, result), result_type, chunk_size)
    answer, reason = read.from_database(run)
    _report(compiler, "shadow hit", None, read.plan)
    taken = functools.partial(_taken, answer, result_type)
    verification.shadow(read, result, taken, reason)
    return answer


def _may_share(read: Read) -> bool:
    """Whether a miss may wait for another thread's, and let others wait for it.

    Not while one could hold the connection of a pool or a pooler that the other needs.
    """
    connection = read.connection
    return (
        connection.connection is not None
        and not in_transaction(connection, read.state)
        # What is compared with the database has to come from there.
        and not read.route.verify
    )


def _shared(
    compiler: Any, read: Read, run: Callable[[], Any], result_type: str, chunk_size: int
) -> Any:
    """Answer a miss, together with the threads of this process that miss the same just now."""
    plan, route = read.plan, read.route
    flight, is_first = flights.take_off((route.namespace, plan.entry, read.vector))
    if not is_first:
        payload = flight.wait()
        if payload is not None:
            _report(compiler, "hit", None, plan)
            return _given(codec.decode(payload), result_type, chunk_size)
    try:
        answer, reason = read.from_database(run)
        taken = functools.partial(_taken, answer, result_type)
        _report(compiler, "miss", reason or _store(read, taken, flight), plan)
        return answer
    finally:
        if is_first:
            flight.land()


def _where(
    connection: Any, state: ConnectionState, settings: Settings
) -> tuple[Route, Reason | None]:
    """Where answers to ``connection`` are kept, and why it must not be answered from there."""
    route = state.route(connection, settings)
    if not route.enabled:
        return route, Reason.DATABASE_OFF if settings.ENABLED else Reason.SWITCHED_OFF
    if route.store is None:
        return route, Reason.NO_CACHE
    if snapshots.prepare_session(connection):
        route = state.route(connection, settings)
    if state.unseen:
        unseen.settle(connection, state)
    return route, snapshots.why_not_read(connection, state)


def _planned(
    compiler: Any, result_type: str, state: ConnectionState, route: Route, settings: Settings
) -> Plan:
    """A plan, or what Django raises for a query that must not be asked here."""
    plan = plans.make_plan(compiler, result_type, state, route, settings)
    try:
        check_access(compiler.connection)
    except Exception:
        # For a query that cannot have rows, Django does without a connection.
        complete(compiler, plan, settings)
        raise
    if plan.reason is None and settings.fence_interval is not None:
        # Not before it is known that Django would use this connection.
        reason = fence.why_not_trust(compiler.connection, route, settings)
        if reason is not None:
            return plan._replace(reason=reason)
    return plan


def _ask(
    compiler: Any, plan: Plan, route: Route, settings: Settings
) -> tuple[Lookup, Plan, codec.Result | None]:
    """Look the query up; if it is not there, also compile it.

    Raises EmptyResultSet for a query that cannot have rows.
    """
    template = plan.template
    is_ahead = template is not None and template.missed
    if is_ahead:
        # Likely to miss again: compile it while the cache answers.
        wait = start_look_up(route, plan)
        try:
            plan = complete(compiler, plan, settings)
        finally:
            lookup = wait()
    else:
        lookup = look_up(route, plan)
    if lookup.reason is Reason.OVERDUE and overdue.settle(
        compiler.connection, route, plan.registers
    ):
        lookup = look_up(route, plan)
    result = _decoded(lookup, plan, route, compiler)
    if result is None:
        plan = complete(compiler, plan, settings)
    elif template is not None and not is_ahead:
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
            or snapshots.why_not_store(connection, state, self.path)
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


def _decoded(lookup: Lookup, plan: Plan, route: Route, compiler: Any) -> codec.Result | None:
    if lookup.entry is None:
        return None
    template = plan.template
    try:
        result = codec.decode(codec.unseal(lookup.entry))
        rows = result.rows
        if rows:
            # All of them are as wide as the first. Nobody looks at that any more after this.
            width = _width(compiler) if template is None else template.width
            if width is not None and len(rows[0]) != width:
                raise Corrupt("rows of another width")
        return result
    except Corrupt:
        counters.count_read(route.alias, plan.tables, "corrupt")
        return None


def _width(compiler: Any) -> int | None:
    """How many columns Django keeps of each row of a compiled query; None if it is not certain."""
    if not type(compiler).__module__.startswith("django.db.") or compiler.query.combinator:
        return None
    if any(type(expression) is ColPairs for expression, *_ in compiler.select or ()):
        # A composite key, which counts as one.
        return None
    width: int = compiler.col_count
    return width


_UNREACHABLE = Lookup(None, None, Reason.CACHE_UNREACHABLE)


def look_up(route: Route, plan: Plan) -> Lookup:
    """Ask the store; a cache that does not answer is as one that has nothing."""
    if bursts:
        # First, so that a cache that is dead is waited for once.
        bursts.settle(route.namespace, plan.registers)
    store = route.store
    if store is None or not route.breaker.allows():
        return _UNREACHABLE
    return _answered(route, lambda: store.read(route.namespace, plan.entry, plan.registers))


def start_look_up(route: Route, plan: Plan) -> Callable[[], Lookup]:
    """Send the question of :func:`look_up`; the function returned waits for the answer.

    Call it in any case.
    """
    if bursts:
        bursts.settle(route.namespace, plan.registers)
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
    settings = current()
    has_fence = fence.is_looked_into(route, settings)
    reason, detail = catalog.judge(found, plan.tables, settings, has_fence=has_fence)
    if reason is not None:
        return reason, detail
    if route.has_tenants:
        if has_run and not catalog.was_read_from(connection, state, plan.registers):
            return Reason.SESSION, ""
        if not catalog.confirm(connection, state, route, plan.registers, vector):
            return Reason.CATALOG_UNKNOWN, ""
    # Who wrote to what has become known just now was not noticed.
    now = catalog.registers(connection, state, route, plan.tables, plan.elsewhere)
    return None if plan.registers == now else Reason.CATALOG_UNKNOWN, ""


def _taken(answer: Any, result_type: str) -> codec.Result:
    """The inverse of :func:`_given`. Raises NotEncodable."""
    if result_type != MULTI:
        return codec.Result([] if answer is None else [answer], "")
    if type(answer) is not list:
        # Another package returns rows of its own making.
        raise NotEncodable("rows in something else than a list")
    return codec.from_chunks(answer)


def _store(
    read: Read, answer: Callable[[], codec.Result], flight: Flight | None = None
) -> Reason | None:
    """Store the answer, and give it to those who wait for it; returns why not."""
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
    if flight is not None:
        flight.payload = payload
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
