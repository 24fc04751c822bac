"""Sees each statement at the cursor and hands the tables that it writes to the transaction.

Every way to the database that Django knows ends in ``CursorWrapper``: the ORM's writers, raw
SQL, the schema editor, ``flush``, ``loaddata``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django import db
from django.db import connections
from django.db.models.sql.compiler import SQLDeleteCompiler

from ormcache import (
    brackets,
    bypasses,
    connection_state,
    engines,
    fence_rows,
    sessions,
    sql,
    unseen,
)
from ormcache.conf import current
from ormcache.connection_state import (
    ConnectionState,
    commits_by_itself,
    in_transaction,
    is_begun_unseen,
    is_open,
    state_of,
)
from ormcache.effects import NOTHING, UNKNOWN, Effect, as_text, effect_of, write_to, written
from ormcache.exceptions import NoFence
from ormcache.reasons import Reason
from ormcache.routers import chosen, health, schemas
from ormcache.sql import Kind
from ormcache.stores import is_store_access

_WRITES = Kind.WRITE | Kind.UNNAMED_WRITE
_ANNOUNCED = _WRITES | Kind.IMPLICIT_COMMIT | Kind.BEGIN | Kind.COMMIT | Kind.RELEASE
_ENDS = Kind.COMMIT | Kind.ROLLBACK
_JUST_COMMITS = frozenset({Kind.COMMIT, Kind.COMMIT | Kind.BEGIN, Kind.RELEASE})


# --- the cursor's methods ------------------------------------------------------------------


def execute(original: Callable[..., Any], wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``CursorWrapper._execute`` and ``_executemany``."""
    connection = wrapper.db
    try:
        if is_store_access():
            return original(wrapper, *args, **kwargs)
        text = args[0] if args else given(0, args, kwargs, "sql")
        effect = effect_of(text, connection.vendor, wrapper.cursor)
        if _note_only(connection, effect):
            return original(wrapper, *args, **kwargs)
        if effect.search_path:
            effect = _with_parameters(effect, given(1, args, kwargs, "params", "param_list"))
            if sql.names_temporary_schema(effect.search_path):
                effect = effect._replace(kind=effect.kind | Kind.SESSION)
        operation = functools.partial(original, wrapper, *args, **kwargs)
        if connection.vendor == "sqlite":
            live = state_of(connection).live_cursors
            writes = bool(effect.kind & _WRITES)
            operation = functools.partial(live.execute, wrapper, operation, writes=writes)
        return apply(connection, effect, operation)
    except (db.OperationalError, db.InterfaceError) as error:
        health.note(connection, error)
        raise


def _note_only(connection: Any, effect: Effect) -> bool:
    """Note what a statement writes in an atomic() block; return whether there is no more to do."""
    if connection.vendor == "sqlite":
        return False
    if effect is NOTHING:
        return True
    if effect.kind is not Kind.WRITE or not connection.in_atomic_block:
        return False
    state = state_of(connection)
    # Before the statement runs: it may fail half-way, and a signal may read meanwhile.
    state.wrote(connection, state.writes(connection, effect.tables, effect.own))
    return not _is_seen_at_once(connection, state, effect)


def given(position: int, args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> Any:
    """An argument, by its position or by one of its names; None without it."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _with_parameters(effect: Effect, params: Any) -> Effect:
    """A ``SET search_path`` with its parameters, of which only strings can be told apart."""
    if not params:
        return effect
    if isinstance(params, (list, tuple)) and set(map(type, params)) == {str}:
        return effect._replace(search_path=f"{effect.search_path} {list(params)}")
    return effect._replace(kind=effect.kind | Kind.SESSION)


def callproc(original: Callable[..., Any], wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``CursorWrapper.callproc``: a procedure may write anything unless it is declared."""
    name = given(0, args, kwargs, "procname")
    if not isinstance(name, str):
        # psycopg takes an Identifier, too.
        name = as_text(name, wrapper.cursor)
    procedure = sql.fold(name.rpartition(".")[2])
    is_declared = procedure in {sql.fold(declared) for declared in current().WRITES}
    effect = write_to(procedure) if is_declared else UNKNOWN
    return apply(wrapper.db, effect, lambda: original(wrapper, *args, **kwargs))


# --- what is about to be written -----------------------------------------------------------


def saving(
    original: Callable[..., Any],
    instance: Any,
    /,
    raw: bool = False,
    cls: Any = None,
    force_insert: bool = False,
    force_update: bool = False,
    using: str | None = None,
    update_fields: Any = None,
) -> Any:
    """``Model._save_table``: one row of one table is about to be written."""
    # With select_on_save it asks whether the row exists.
    bypasses.feeds.depth += 1
    try:
        arguments = (instance, raw, cls, force_insert, force_update, using, update_fields)
        connection: Any = None if using is None else connections[using]
        if connection is None or not brackets.may_expect(connection):
            return original(*arguments)
        return _announced_ahead(
            connection,
            (cls or type(instance))._meta.db_table,
            functools.partial(original, *arguments),
            deletes=False,
        )
    finally:
        bypasses.feeds.depth -= 1


def compiling(original: Callable[..., Any], compiler: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``execute_sql`` of a compiler that writes: the table of its query is about to change."""
    connection = compiler.connection
    if not brackets.may_expect(connection):
        return original(compiler, *args, **kwargs)
    return _announced_ahead(
        connection,
        compiler.query.get_meta().db_table,
        functools.partial(original, compiler, *args, **kwargs),
        deletes=isinstance(compiler, SQLDeleteCompiler),
    )


def _announced_ahead(
    connection: Any, db_table: str, work: Callable[[], Any], *, deletes: bool
) -> Any:
    """Run ``work``, which writes ``db_table`` and commits that: announce it beforehand."""
    names, own = written(db_table, deletes=deletes)
    return brackets.expecting(connection, names, own, work)


# --- taking effect -------------------------------------------------------------------------


def apply(connection: Any, effect: Effect, operation: Callable[[], Any]) -> Any:
    """Run ``operation`` and do what its effect asks of the transaction."""
    if effect is NOTHING:
        return operation()
    kind, state = effect.kind, state_of(connection)
    if kind is not Kind.WRITE and kind & Kind.AUTOCOMMIT and commits_by_itself(connection):
        # It is on already: nothing is committed, not even what BEGIN began.
        effect = effect._replace(kind=kind & ~Kind.COMMIT)
        kind = effect.kind
    if kind is not Kind.WRITE and _alters_session(effect) and sessions.are_shared(connection):
        # Before another connection can get it.
        sessions.spoil(connection)
    alone = _Alone(connection, state, effect)
    bracket = begin(connection, state, effect, alone)
    if bracket is None and kind is Kind.WRITE:
        # In a transaction, as most are: nothing has to be done afterwards.
        return operation()
    if kind is not Kind.WRITE:
        _note_doubt(connection, state, effect)
    was_aborted = bool(kind & Kind.COMMIT) and connection_state.is_aborted(connection)
    try:
        result = alone.run(bracket, operation) if alone.is_fenced else operation()
    except BaseException as error:
        if bracket is not None:
            if not kind & Kind.COMMIT:
                brackets.give_up(connection, error)
            known = brackets.outcome_is_known(connection, error)
            end(connection, state, bracket, known=known)
        if kind & Kind.COMMIT:
            _note_failed_commit(connection, state)
        if kind & _ENDS and _alters_session(effect):
            # What was set in front of the COMMIT stays set though the rest of the text has failed.
            state.session = Reason.SESSION
        raise
    if was_aborted:
        # The server has answered ROLLBACK.
        state.rolled_back(connection)
    note(connection, state, effect)
    if bracket is not None:
        known = not (effect.prepares or _is_busy(connection))
        end(connection, state, bracket, known=known)
    if state.unseen:
        # It may have been the COMMIT.
        unseen.settle(connection, state)
    return result


def _note_doubt(connection: Any, state: ConnectionState, effect: Effect) -> None:
    """Before a statement that may begin or end a transaction, even if it fails half-way."""
    kind = effect.kind
    is_ended = (
        kind & Kind.IMPLICIT_COMMIT
        and not kind & Kind.BEGIN
        and state.manual
        and connection.vendor == "mysql"
        # With autocommit off, the next statement begins another transaction.
        and commits_by_itself(connection)
    )
    if is_ended or kind & Kind.IN_DOUBT:
        state.doubt()
        state.wrote(connection, effect.tables)


_Bracket = brackets.Bracket | brackets.Brackets


def end(connection: Any, state: ConnectionState, bracket: _Bracket, *, known: bool) -> None:
    """End ``bracket``, unless the transaction is still open that its statement was in."""
    if is_begun_unseen(connection) and not in_transaction(connection, state):
        unseen.hold(connection, state, bracket)
        bracket.confirm()
    else:
        bracket.end(known=known)


class _Alone:
    """A statement outside of transactions, which gets one of its own if it goes by the fence.

    Nothing else could commit it together with the row that announces it.
    """

    __slots__ = ("_connection", "_effect", "_state", "is_fenced")

    def __init__(self, connection: Any, state: ConnectionState, effect: Effect) -> None:
        self._connection = connection
        self._state = state
        self._effect = effect
        self.is_fenced = False

    def prepare(self, tables: Sequence[str]) -> None:
        """The cache does not answer. Raises NoFence if the statement must not run then."""
        connection, state, settings = self._connection, self._state, current()
        namespace = state.route(connection, settings).namespace
        # Not executescript(), which commits first what is open.
        if not (self._effect.is_plain and self._effect.kind == Kind.WRITE):
            raise NoFence("only INSERT, UPDATE, DELETE and the like can be put in a transaction")
        if connection_state.is_pipelined(connection) or chosen.is_configured(settings):
            raise NoFence("a row could be lost")
        if engines.without_transactions(connection, namespace, tables):
            raise NoFence("a table takes no part in transactions")
        fence_rows.check(connection, namespace)
        self.is_fenced = True

    def run(self, bracket: Any, operation: Callable[[], Any]) -> Any:
        """Execute the statement and what announces it in one transaction."""
        state = self._state
        # What a wrapper around the statement writes is in this transaction, too.
        state.manual = True
        try:
            return fence_rows.commit_with(
                self._connection, lambda: bracket.widen(state.dirty), operation
            )
        except NoFence as error:
            raise bracket.refusal("it does not answer", error) from error
        finally:
            state.ended()


def _alters_session(effect: Effect) -> bool:
    """Whether the session will be another one than a new one, beyond its transaction."""
    return bool(effect.search_path or effect.kind & (Kind.SESSION | Kind.ISOLATION))


def begin(
    connection: Any, state: ConnectionState, effect: Effect, alone: _Alone | None = None
) -> _Bracket | None:
    """Before a statement: note what it writes; announce it if others see that at once."""
    kind = effect.kind
    # Compared first, as operations on flags are slow and this is what most statements are.
    if kind is not Kind.WRITE and not kind & _ANNOUNCED:
        return None
    was_open = in_transaction(connection, state)
    registers = state.writes(connection, effect.tables, effect.own)
    if was_open or state.dirty or state.in_doubt:
        # Before the statement runs: it may fail half-way, and a signal may read meanwhile.
        state.wrote(connection, registers)
    if was_open and not _is_seen_at_once(connection, state, effect):
        return None
    affected = state.dirty | registers
    if not affected:
        return None
    fencing: brackets.Fencing | None = None
    if not was_open and is_begun_unseen(connection):
        # The row takes part in what the driver has begun, and must not commit it.
        fencing = brackets.fence_open_transaction(connection, state)
    elif alone is not None and not was_open:
        fencing = alone.prepare
    elif not registers and kind in _JUST_COMMITS:
        fencing = brackets.fence_open_transaction(connection, state)
    return brackets.announce(connection, state, affected, fencing)


def _is_seen_at_once(connection: Any, state: ConnectionState, effect: Effect) -> bool:
    """Whether others may see what the statement does though a transaction seems open."""
    kind, vendor = effect.kind, connection.vendor
    # Operations on flags are slow, and a plain write is what most statements are.
    if kind is not Kind.WRITE:
        if kind & (Kind.COMMIT | Kind.UNNAMED_WRITE):
            return True
        if kind & Kind.ROLLBACK and kind & Kind.WRITE:
            # "ROLLBACK; UPDATE …" as one text: what follows takes effect with its end.
            return True
        if kind & Kind.RELEASE:
            # With autocommit off, an atomic() block is a savepoint that begins the transaction.
            has_begun = connection.connection.isolation_level is None
            return not (connection.in_atomic_block and has_begun)
        is_ended = kind & (Kind.IMPLICIT_COMMIT | Kind.BEGIN)
        if is_ended and not connection.features.can_rollback_ddl:
            return True
    if vendor == "mysql":
        if not state.manual and commits_by_itself(connection):
            # After SET autocommit = 1, in an atomic() block, too.
            return True
        namespace = state.route(connection, current()).namespace
        if engines.without_transactions(connection, namespace, effect.tables):
            return True
    if vendor == "sqlite" and connection.connection.isolation_level is None:
        # A COMMIT sent as SQL leaves SQLite in autocommit, in an atomic() block, too.
        return not is_open(connection)
    return state.manual and is_open(connection) is False


def _note_failed_commit(connection: Any, state: ConnectionState) -> None:
    """A COMMIT that fails undoes the transaction; on SQLite it may be tried again."""
    is_still_open = is_open(connection)
    if is_still_open is False:
        state.rolled_back(connection)
    elif is_still_open is None:
        # What was written stays dirty: it is announced with all that follows.
        state.manual = False


def _is_busy(connection: Any) -> bool:
    """Whether the server is still busy with the statement that was executed.

    MySQL answers several statements, and a procedure that selects, one result at a time; the
    driver returns with the first. In a pipeline, psycopg returns before anything is sent. The
    lease of the intent covers the rest.
    """
    if connection_state.is_pipelined(connection):
        return True
    more_results = getattr(connection.connection, "more_results", None)
    return more_results is not None and bool(more_results())


def note(connection: Any, state: ConnectionState, effect: Effect) -> None:
    """Remember what the statement changed about the session or the transaction."""
    kind = effect.kind
    if kind is Kind.WRITE or not kind & ~_WRITES:
        return
    if kind & Kind.SEARCH_PATH:
        _note_search_path(connection, state, effect)
    if kind & Kind.PARTIAL_ROLLBACK:
        state.undone(connection)
    if kind & Kind.ISOLATION:
        state.takes_snapshots = True
    if kind & Kind.SESSION:
        state.session = Reason.SESSION
    if kind & Kind.IMPLICIT_COMMIT:
        engines.forget(state.route(connection, current()).namespace)
    if kind & Kind.AUTOCOMMIT and commits_by_itself(connection) is False:
        # SET autocommit = %s, with 0
        kind &= ~Kind.COMMIT
    until_end = state.until_end
    if kind & Kind.COMMIT or (kind & Kind.RELEASE and not is_open(connection)):
        state.ended()
    elif kind & Kind.ROLLBACK:
        state.rolled_back(connection)
    if kind & Kind.BEGIN or (kind & _ENDS and commits_by_itself(connection) is False):
        state.manual = True
        # "BEGIN; UPDATE …" as one text.
        state.wrote(connection, effect.tables)
    if kind & Kind.IN_DOUBT:
        # "COMMIT; EXECUTE …" as one text.
        state.wrote(connection, effect.tables)
    if in_transaction(connection, state):
        _note_until_end(state, kind, until_end)


def _note_until_end(state: ConnectionState, kind: Kind, before: Reason | None) -> None:
    """Remember why the open transaction has to read from the database, as its last statement did.

    ``before``: why it had to so far. AND CHAIN passes the isolation level on.
    """
    if kind & Kind.SNAPSHOT or before is Reason.SNAPSHOT:
        state.until_end = Reason.SNAPSHOT
    elif kind & Kind.LOCAL:
        state.until_end = Reason.SESSION
    elif kind & Kind.LOCK:
        state.until_end = state.until_end or Reason.LOCKED


def _note_search_path(connection: Any, state: ConnectionState, effect: Effect) -> None:
    # If it is django-tenants itself, it will now keep another list.
    state.overridden = schemas.applied(connection)
    if not effect.search_path:
        # SET LOCAL
        return
    state.search_path, state.path_in_doubt = effect.search_path, False
    state.path_set_here = in_transaction(connection, state)
    if not state.path_set_here and is_begun_unseen(connection):
        # Nobody will tell whether it was rolled back.
        state.session = Reason.SESSION
    if effect.kind & (Kind.ROLLBACK | Kind.PARTIAL_ROLLBACK):
        # By the same text, which may have undone it.
        state.path_in_doubt = True
