"""Sees each statement at the cursor and hands the tables that it writes to the transaction.

Every way to the database that Django knows ends in ``CursorWrapper``: the ORM's writers, raw
SQL, the schema editor, ``flush``, ``loaddata``. What a text does is worked out once per text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django import db
from django.db import connections
from django.db.models.sql.compiler import SQLDeleteCompiler

from ormcache import (
    brackets,
    connection_state,
    engines,
    fence_rows,
    functions,
    relations,
    sessions,
    sql,
    tables,
    unseen,
)
from ormcache.conf import Settings, current
from ormcache.connection_state import (
    ConnectionState,
    in_transaction,
    is_begun_unseen,
    is_open,
    state_of,
)
from ormcache.cursors import FETCHES
from ormcache.exceptions import NoFence
from ormcache.memo import Memo
from ormcache.reasons import Reason
from ormcache.routers import chosen, health, schemas
from ormcache.sql import Kind
from ormcache.stores import EVERYTHING, is_store_access

_TEXT_LIMIT = 8192
_WRITES = Kind.WRITE | Kind.UNNAMED_WRITE
_ANNOUNCED = _WRITES | Kind.IMPLICIT_COMMIT | Kind.BEGIN | Kind.COMMIT | Kind.RELEASE


class Effect(NamedTuple):
    """What executing a text does."""

    kind: Kind
    tables: frozenset[str]
    search_path: str = ""
    own: str = ""
    """The table, if any, that is written in the schema that is searched first; see
    :mod:`ormcache.routers.tenancy`."""
    is_plain: bool = False
    """Whether it is one statement that changes rows and may stand in any transaction."""
    prepares: bool = False
    """Whether it is PREPARE TRANSACTION: the commit is still to come, from whomever."""


_ENDS = Kind.COMMIT | Kind.ROLLBACK
_JUST_COMMITS = frozenset({Kind.COMMIT, Kind.COMMIT | Kind.BEGIN, Kind.RELEASE})
_NOTHING = Effect(Kind.READ, frozenset())


_effects: Memo[tuple[str, str], Effect] = Memo()


def effect_of(text: Any, vendor: str, cursor: Any = None) -> Effect:
    """What executing ``text`` on a database of ``vendor`` does.

    Args:
        text: a string, bytes or one of psycopg's composed queries.
        cursor: the driver's cursor, which composed queries need to become text.
    """
    if not isinstance(text, str):
        text = _as_text(text, cursor)
    settings = current()
    memo = _effects.under(settings, tables.known.generation)
    key = (vendor, sql.normalise(text))
    effect = memo.get(key)
    if effect is None:
        effect = _examine(text, vendor, settings)
        if len(key[1]) <= _TEXT_LIMIT:
            memo[key] = effect
    return effect


def _as_text(text: Any, cursor: Any) -> str:
    if isinstance(text, (bytes, bytearray)):
        return bytes(text).decode("utf-8", "replace")
    as_string = getattr(text, "as_string", None)
    return str(as_string(cursor) if as_string is not None else text)


def _examine(text: str, vendor: str, settings: Settings) -> Effect:
    kind, names, path, own = Kind.READ, set[str](), "", ""
    statements = sql.classify(text, vendor)
    for statement in statements:
        does, found = _resolve(statement, text, vendor, settings)
        if found:
            names |= relations.written_with(
                found, _passed_on(statement, settings), deletes=statement.deletes
            )
        if not does & Kind.IMPLICIT_COMMIT and tables.unexplained(statement.targets, settings):
            # Through a view that can be written any table may be.
            names.add(EVERYTHING)
        if does & (Kind.COMMIT | Kind.ROLLBACK):
            # What the text began is over when it has run.
            kind &= ~Kind.BEGIN
        if does & Kind.TEMPORARY:
            does ^= Kind.TEMPORARY
            if statement.targets & tables.known.names():
                # What this session reads under the name is its own.
                does |= Kind.SESSION
        kind |= does
        path = statement.detail or path
        if statement.own and len(statements) == 1 and vendor == "postgresql":
            own = _only_there(statement.own, names, _passed_on(statement, settings))
    if kind & Kind.UNNAMED_WRITE or EVERYTHING in names:
        names = {EVERYTHING}
    if not kind:
        return _NOTHING
    is_plain = kind == Kind.WRITE and len(statements) == 1 and _begins_plainly(text, vendor)
    prepares = bool(kind & Kind.COMMIT) and _PREPARES.match(text) is not None
    return Effect(kind, frozenset(names), path, own, is_plain, prepares)


_PREPARES = re.compile(r"\s*PREPARE\s+TRANSACTION\b", re.IGNORECASE)
_PLAIN_VERBS = frozenset("insert update delete replace merge with".split())


def _begins_plainly(text: str, vendor: str) -> bool:
    first = next(sql.tokens(text, vendor), None)
    return first is not None and first.folded in _PLAIN_VERBS


def _only_there(own: str, names: Collection[str], writes: Mapping[str, Iterable[str]]) -> str:
    """``own``, unless something else that changes with it may write a table of that name, too.

    A trigger or a cascade may lead to another schema.
    """
    others = set(names) - {own}
    return "" if others and own in relations.written_with(others, writes) else own


def _resolve(
    statement: sql.Statement, text: str, vendor: str, settings: Settings
) -> tuple[Kind, set[str]]:
    """What a statement does and to which tables, given what the settings say of functions."""
    kind, found = statement.kind, set(statement.targets)
    called = _declared_functions(statement, text, vendor, settings)
    if kind & ~Kind.SESSION == Kind.UNNAMED_WRITE:
        if called and _calls_nothing_else(called, text, vendor):
            return Kind.WRITE | kind & Kind.SESSION, called
        return kind, found
    if kind & Kind.WRITE:
        found |= tables.known.among(statement.mentions)
        found |= statement.mentions & _named_in_settings(settings)
    if called:
        kind |= Kind.WRITE
        found |= called
    return kind, found


def _declared_functions(
    statement: sql.Statement, text: str, vendor: str, settings: Settings
) -> set[str]:
    """Functions that the statement calls and of which ``WRITES`` says what they write."""
    if not settings.WRITES:
        return set()
    # Of a statement with one target nothing else is mentioned, but it may call functions.
    mentions = statement.mentions or sql.words(text)
    declared = {sql.fold(name) for name in settings.WRITES} & mentions
    if not declared:
        return set()
    return declared & (sql.analyse_read(text, vendor).functions | mentions - tables.known.names())


_CALLED = re.compile(
    rf"\s*(?:CALL|EXEC(?:UTE)?)\s+(?:{sql.NAME}\s*\.\s*)*({sql.NAME})", re.IGNORECASE
)


def _calls_nothing_else(declared: set[str], text: str, vendor: str) -> bool:
    """Whether a CALL or DO runs only what is declared, and built-in functions of values.

    The body of PostgreSQL's DO is a string: nothing in it counts as called, nor is known.
    """
    called = set(sql.analyse_read(text, vendor).functions)
    # MySQL can do without the parentheses.
    match = _CALLED.match(text)
    if match is not None:
        called.add(sql.fold(match[1]))
    unknown = {name for name in called - declared if not functions.is_known(name, vendor)}
    return bool(called) and not unknown


def _named_in_settings(settings: Settings) -> set[str]:
    """Tables that may belong to no model, but on which declared views and functions depend."""
    named = [*settings.DEPENDS_ON.values(), *settings.WRITES.values()]
    return {sql.fold(name) for names in named for name in names}


def _passed_on(statement: sql.Statement, settings: Settings) -> Mapping[str, Iterable[str]]:
    """What a write to one table writes to others: triggers, and views that can be written."""
    if not settings.DEPENDS_ON or statement.kind & Kind.IMPLICIT_COMMIT:
        # To create or refresh a view changes none of its tables.
        return settings.WRITES
    names = {*settings.DEPENDS_ON, *settings.WRITES}
    return {
        name: [*settings.DEPENDS_ON.get(name, ()), *settings.WRITES.get(name, ())]
        for name in names
    }


# --- the cursor's methods ------------------------------------------------------------------


def execute(original: Callable[..., Any], wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``CursorWrapper._execute`` and ``_executemany``."""
    try:
        return _execute(original, wrapper, *args, **kwargs)
    except (db.OperationalError, db.InterfaceError) as error:
        health.note(wrapper.db, error)
        raise


def _execute(original: Callable[..., Any], wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    connection = wrapper.db
    if is_store_access():
        return original(wrapper, *args, **kwargs)
    text = _given(0, args, kwargs, "sql")
    effect = effect_of(text, connection.vendor, wrapper.cursor)
    if effect.search_path:
        effect = _with_parameters(effect, _given(1, args, kwargs, "params", "param_list"))
    if connection.vendor == "sqlite":
        live = state_of(connection).live_cursors
        return _apply(
            connection,
            effect,
            lambda: live.execute(
                wrapper,
                lambda: original(wrapper, *args, **kwargs),
                writes=bool(effect.kind & _WRITES),
            ),
        )
    if effect is _NOTHING:
        return original(wrapper, *args, **kwargs)
    return _apply(connection, effect, lambda: original(wrapper, *args, **kwargs))


def _given(position: int, args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> Any:
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
    name = _given(0, args, kwargs, "procname")
    procedure = sql.fold(name.rpartition(".")[2])
    if procedure in {sql.fold(declared) for declared in current().WRITES}:
        effect = _write_to(procedure)
    else:
        effect = Effect(Kind.UNNAMED_WRITE, frozenset({EVERYTHING}))
    return _apply(wrapper.db, effect, lambda: original(wrapper, *args, **kwargs))


def _write_to(name: str) -> Effect:
    return Effect(Kind.WRITE, frozenset(relations.written_with({name}, current().WRITES)))


def driver_method(wrapper: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the driver's cursor, :data:`DRIVER_METHODS`, as ``CursorWrapper`` gives it."""
    if name in _DRIVER_METHODS:
        return _DRIVER_METHODS[name](wrapper, method)
    if wrapper.db.vendor != "sqlite":
        return method
    return state_of(wrapper.db).live_cursors.fetch(wrapper, name, method)


def _copy(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy(*args: Any, **kwargs: Any) -> Any:
        statement = _given(0, args, kwargs, "statement")
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        return _CopyContext(wrapper.db, effect, method(*args, **kwargs))

    return copy


class _CopyContext:
    """psycopg's ``with cursor.copy(…)``: the rows are there when the block ends."""

    def __init__(self, connection: Any, effect: Effect, inner: Any) -> None:
        self._connection = connection
        self._effect = effect
        self._inner = inner
        self._bracket: brackets.Bracket | brackets.Brackets | None = None

    def __enter__(self) -> Any:
        self._bracket = _begin(self._connection, state_of(self._connection), self._effect)
        try:
            return self._inner.__enter__()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *exc_info: Any) -> Any:
        try:
            return self._inner.__exit__(*exc_info)
        finally:
            self._end()

    def _end(self) -> None:
        if self._bracket is not None:
            state = state_of(self._connection)
            _end(self._connection, state, self._bracket, known=_is_connected(self._connection))
            self._bracket = None


def _is_connected(connection: Any) -> bool:
    """Whether what psycopg has ended is over: a server that was lost may still be at work."""
    return getattr(connection.connection, "closed", True) is False


def _stream(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        effect = effect_of(_given(0, args, kwargs, "query"), wrapper.db.vendor, wrapper.cursor)
        state = state_of(wrapper.db)
        bracket = _begin(wrapper.db, state, effect)
        try:
            yield from method(*args, **kwargs)
        finally:
            _note(wrapper.db, state, effect)
            if bracket is not None:
                _end(wrapper.db, state, bracket, known=_is_connected(wrapper.db))

    return stream


def _executes(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def executes(statement: Any) -> Any:
        # By its position only.
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        # sqlite3's executescript() commits first what is open.
        effect = effect._replace(kind=effect.kind | Kind.COMMIT)
        return _apply(wrapper.db, effect, lambda: method(statement))

    return executes


def _copy_expert(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_expert(*args: Any, **kwargs: Any) -> Any:
        effect = effect_of(_given(0, args, kwargs, "sql"), wrapper.db.vendor, wrapper.cursor)
        return _apply(wrapper.db, effect, lambda: method(*args, **kwargs))

    return copy_expert


def _copy_from(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_from(*args: Any, **kwargs: Any) -> Any:
        effect = _write_to(sql.table_name(_given(1, args, kwargs, "table")))
        return _apply(wrapper.db, effect, lambda: method(*args, **kwargs))

    return copy_from


_DRIVER_METHODS: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "copy": _copy,
    "stream": _stream,
    "executescript": _executes,
    "copy_expert": _copy_expert,
    "copy_from": _copy_from,
}
DRIVER_METHODS = frozenset(_DRIVER_METHODS) | FETCHES
"""Names that ``CursorWrapper.__getattr__`` passes through to the driver."""


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
    arguments = (instance, raw, cls, force_insert, force_update, using, update_fields)
    if using is None:
        return original(*arguments)
    connection: Any = connections[using]
    state = state_of(connection)
    if not brackets.may_expect(connection, state):
        return original(*arguments)
    table = (cls or type(instance))._meta.db_table
    work = functools.partial(original, *arguments)
    return _announced_ahead(connection, state, table, work, deletes=False)


def compiling(original: Callable[..., Any], compiler: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``execute_sql`` of a compiler that writes: the table of its query is about to change."""
    connection = compiler.connection
    state = state_of(connection)
    if not brackets.may_expect(connection, state):
        return original(compiler, *args, **kwargs)
    return _announced_ahead(
        connection,
        state,
        compiler.query.get_meta().db_table,
        functools.partial(original, compiler, *args, **kwargs),
        deletes=isinstance(compiler, SQLDeleteCompiler),
    )


def _announced_ahead(
    connection: Any,
    state: ConnectionState,
    db_table: str,
    work: Callable[[], Any],
    *,
    deletes: bool,
) -> Any:
    """Run ``work``, which writes ``db_table`` and commits that: announce it beforehand."""
    names, own = _written(db_table, deletes=deletes)
    registers = state.will_write(connection, names, own)
    return brackets.expecting(connection, state, registers, work)


_closures: Memo[tuple[str, bool], tuple[frozenset[str], str]] = Memo()


def _written(db_table: str, *, deletes: bool) -> tuple[frozenset[str], str]:
    """All tables that change with a write to ``db_table``, and which one in its own schema."""
    settings = current()
    known = _closures.under(settings, tables.known.generation)
    found = known.get((db_table, deletes))
    if found is None:
        table = sql.table_name(db_table)
        names = frozenset(relations.written_with({table}, settings.WRITES, deletes=deletes))
        found = names, _only_there(table, names, settings.WRITES)
        known[db_table, deletes] = found
    return found


# --- taking effect -------------------------------------------------------------------------


def _apply(connection: Any, effect: Effect, operation: Callable[[], Any]) -> Any:
    """Run ``operation`` and do what its effect asks of the transaction."""
    if effect is _NOTHING:
        return operation()
    kind, state = effect.kind, state_of(connection)
    if kind is not Kind.WRITE and _alters_session(effect) and sessions.are_shared(connection):
        # Before another connection can get it.
        sessions.spoil(connection)
    alone = _Alone(connection, state, effect)
    bracket = _begin(connection, state, effect, alone)
    if bracket is None and kind is Kind.WRITE:
        # In a transaction, as most are: nothing has to be done afterwards.
        return operation()
    was_aborted = bool(kind & Kind.COMMIT) and connection_state.is_aborted(connection)
    try:
        result = alone.run(bracket, operation) if alone.is_fenced else operation()
    except BaseException as error:
        if bracket is not None:
            if not kind & Kind.COMMIT:
                brackets.give_up(connection, error)
            known = brackets.outcome_is_known(connection, error)
            _end(connection, state, bracket, known=known)
        if kind & Kind.COMMIT:
            _note_failed_commit(connection, state)
        raise
    if was_aborted:
        # The server has answered ROLLBACK.
        state.rolled_back(connection)
    _note(connection, state, effect)
    if bracket is not None:
        known = not (effect.prepares or _is_busy(connection))
        _end(connection, state, bracket, known=known)
    if state.unseen:
        # It may have been the COMMIT.
        unseen.settle(connection, state)
    return result


_Bracket = brackets.Bracket | brackets.Brackets


def _end(connection: Any, state: ConnectionState, bracket: _Bracket, *, known: bool) -> None:
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


def _begin(
    connection: Any, state: ConnectionState, effect: Effect, alone: _Alone | None = None
) -> _Bracket | None:
    """Before a statement: note what it writes; announce it if others see that at once."""
    kind = effect.kind
    # Compared first, as operations on flags are slow and this is what most statements are.
    if kind is not Kind.WRITE and not kind & _ANNOUNCED:
        return None
    was_open = in_transaction(connection, state)
    registers = state.writes(connection, effect.tables, effect.own)
    if was_open or state.dirty:
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
        if kind & Kind.RELEASE:
            # With autocommit off, an atomic() block is a savepoint that begins the transaction.
            has_begun = connection.connection.isolation_level is None
            return not (connection.in_atomic_block and has_begun)
        is_ended = kind & (Kind.IMPLICIT_COMMIT | Kind.BEGIN)
        if is_ended and not connection.features.can_rollback_ddl:
            return True
    if vendor == "mysql" and engines.without_transactions(
        connection, state.route(connection, current()).namespace, effect.tables
    ):
        return True
    if vendor == "sqlite" and connection.connection.isolation_level is None:
        # A COMMIT sent as SQL leaves SQLite in autocommit, in an atomic() block, too.
        return not is_open(connection)
    return state.manual and is_open(connection) is False


def _is_autocommit_off(connection: Any) -> bool:
    """Whether MySQL begins a transaction by itself, though perhaps Django does not know."""
    get_autocommit = getattr(connection.connection, "get_autocommit", None)
    return get_autocommit is not None and not get_autocommit()


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


def _note(connection: Any, state: ConnectionState, effect: Effect) -> None:
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
    until_end = state.until_end
    if kind & Kind.COMMIT or (kind & Kind.RELEASE and not is_open(connection)):
        state.ended()
    elif kind & Kind.ROLLBACK:
        state.rolled_back(connection)
    if kind & Kind.BEGIN or (kind & _ENDS and _is_autocommit_off(connection)):
        state.manual = True
        # "BEGIN; UPDATE …" as one text.
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
