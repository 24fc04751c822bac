"""Sees each statement at the cursor and hands the tables that it writes to the transaction.

Every way to the database that Django knows ends in ``CursorWrapper``: the ORM's writers, raw
SQL, the schema editor, ``flush``, ``loaddata``. What a text does is worked out once per text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ormcache import relations, sql, tables, transactions
from ormcache.conf import Settings, current
from ormcache.reasons import Reason
from ormcache.sql import Kind
from ormcache.stores import EVERYTHING, is_store_access
from ormcache.transactions import ConnectionState, in_transaction, state_of

_MEMO_LIMIT = 4096
_TEXT_LIMIT = 8192
_WRITES = Kind.WRITE | Kind.UNNAMED_WRITE


class Effect(NamedTuple):
    """What executing a text does."""

    kind: Kind
    tables: frozenset[str]
    search_path: str = ""


_NOTHING = Effect(Kind.READ, frozenset())


class _Memo:
    """Effects by text; emptied when the settings or the models change."""

    def __init__(self) -> None:
        self._effects: dict[tuple[str, str], Effect] = {}
        self._basis: tuple[object, ...] = ()

    def of(self, settings: Settings) -> dict[tuple[str, str], Effect]:
        generation = tables.known.generation
        if self._basis != (settings, generation) or len(self._effects) > _MEMO_LIMIT:
            self._effects, self._basis = {}, (settings, generation)
        return self._effects


_memo = _Memo()


def effect_of(text: Any, vendor: str, cursor: Any = None) -> Effect:
    """What executing ``text`` on a database of ``vendor`` does.

    Args:
        text: a string, bytes or one of psycopg's composed queries.
        cursor: the driver's cursor, which composed queries need to become text.
    """
    if not isinstance(text, str):
        text = _as_text(text, cursor)
    settings = current()
    memo = _memo.of(settings)
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
    kind, names, path = Kind.READ, set[str](), ""
    for statement in sql.classify(text, backslash_escapes=vendor == "mysql"):
        found = set(statement.targets)
        called = _declared_functions(statement, text, settings)
        if statement.kind & Kind.UNNAMED_WRITE and called:
            # The procedure is declared: it writes what it says.
            kind |= statement.kind & ~Kind.UNNAMED_WRITE | Kind.WRITE
            found = called
        elif called:
            kind |= statement.kind | Kind.WRITE
            found |= called | tables.known.among(statement.mentions)
        else:
            kind |= statement.kind
            if statement.kind & Kind.WRITE and statement.mentions:
                found |= tables.known.among(statement.mentions)
        if found:
            names |= relations.written_with(found, settings.WRITES, deletes=statement.deletes)
        path = statement.detail or path
    if kind & Kind.UNNAMED_WRITE:
        names = {EVERYTHING}
    if not kind:
        return _NOTHING
    return Effect(kind, frozenset(names), path)


def _declared_functions(statement: sql.Statement, text: str, settings: Settings) -> set[str]:
    """Functions that the statement calls and of which ``WRITES`` says what they write."""
    if not settings.WRITES or not statement.mentions:
        return set()
    declared = {sql.fold(name) for name in settings.WRITES} & statement.mentions
    if not declared:
        return set()
    return declared & (sql.analyse_read(text).functions | statement.mentions - _table_names())


def _table_names() -> frozenset[str]:
    return tables.known.names()


# --- the cursor's methods ------------------------------------------------------------------


def execute(original: Callable[..., Any], wrapper: Any, text: Any, *args: Any) -> Any:
    """``CursorWrapper.execute`` and ``executemany``."""
    connection = wrapper.db
    effect = effect_of(text, connection.vendor, wrapper.cursor)
    if not effect.kind or is_store_access():
        return original(wrapper, text, *args)
    return _apply(connection, effect, lambda: original(wrapper, text, *args))


def callproc(original: Callable[..., Any], wrapper: Any, name: str, *args: Any) -> Any:
    """``CursorWrapper.callproc``: a procedure may write anything unless it is declared."""
    declared = {sql.fold(key): key for key in current().WRITES}
    if sql.fold(name) in declared:
        written = relations.written_with({sql.fold(name)}, current().WRITES)
        effect = Effect(Kind.WRITE, frozenset(written))
    else:
        effect = Effect(Kind.UNNAMED_WRITE, frozenset({EVERYTHING}))
    return _apply(wrapper.db, effect, lambda: original(wrapper, name, *args))


def driver_method(wrapper: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the driver's cursor that executes SQL past ``CursorWrapper.execute``."""
    return _DRIVER_METHODS[name](wrapper, method)


def _copy(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy(statement: Any, *args: Any, **kwargs: Any) -> Any:
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        return _CopyContext(wrapper.db, effect, method(statement, *args, **kwargs))

    return copy


class _CopyContext:
    """psycopg's ``with cursor.copy(…)``: the rows are there when the block ends."""

    def __init__(self, connection: Any, effect: Effect, inner: Any) -> None:
        self._connection = connection
        self._tables = effect.tables
        self._inner = inner
        self._bracket: transactions.Bracket | None = None

    def __enter__(self) -> Any:
        state = state_of(self._connection)
        if self._tables:
            if in_transaction(self._connection, state):
                state.dirty |= self._tables
            else:
                self._bracket = transactions.announce(self._connection, state, self._tables)
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
            # A COPY whose connection broke is rolled back by the server, but who knows when.
            usable = getattr(self._connection.connection, "closed", False) is False
            self._bracket.end(known=usable)
            self._bracket = None


def _stream(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def stream(statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        state = state_of(wrapper.db)
        bracket = None
        if effect.tables:
            if in_transaction(wrapper.db, state):
                state.dirty |= effect.tables
            else:
                bracket = transactions.announce(wrapper.db, state, effect.tables)
        try:
            yield from method(statement, *args, **kwargs)
        finally:
            if bracket is not None:
                bracket.end()

    return stream


def _executes(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def executes(statement: Any, *args: Any, **kwargs: Any) -> Any:
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        if effect.kind:
            # sqlite3's executescript() commits first what is open.
            effect = effect._replace(kind=effect.kind | Kind.COMMIT)
        return _apply(wrapper.db, effect, lambda: method(statement, *args, **kwargs))

    return executes


def _copy_expert(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_expert(statement: Any, *args: Any, **kwargs: Any) -> Any:
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        return _apply(wrapper.db, effect, lambda: method(statement, *args, **kwargs))

    return copy_expert


def _copy_from(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_from(file: Any, table: str, *args: Any, **kwargs: Any) -> Any:
        written = relations.written_with({sql.table_name(table)}, current().WRITES)
        effect = Effect(Kind.WRITE, frozenset(written))
        return _apply(wrapper.db, effect, lambda: method(file, table, *args, **kwargs))

    return copy_from


_DRIVER_METHODS: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "copy": _copy,
    "stream": _stream,
    "executescript": _executes,
    "copy_expert": _copy_expert,
    "copy_from": _copy_from,
}
DRIVER_METHODS = frozenset(_DRIVER_METHODS)
"""Names that ``CursorWrapper.__getattr__`` passes through to the driver."""


# --- taking effect -------------------------------------------------------------------------


def _apply(connection: Any, effect: Effect, operation: Callable[[], Any]) -> Any:
    """Run ``operation`` and do what its effect asks of the transaction."""
    kind = effect.kind
    if not kind:
        return operation()
    state = state_of(connection)
    if kind & (Kind.COMMIT | Kind.IMPLICIT_COMMIT | _WRITES):
        result = _write(connection, state, effect, operation)
    else:
        result = operation()
    if kind & ~_WRITES:
        _note(connection, state, effect)
    return result


def _write(
    connection: Any, state: ConnectionState, effect: Effect, operation: Callable[[], Any]
) -> Any:
    open_before = in_transaction(connection, state)
    at_once = (
        not open_before
        or bool(effect.kind & (Kind.COMMIT | Kind.UNNAMED_WRITE))
        or _commits_at_once(connection, effect.kind)
    )
    if open_before:
        # Before the statement runs: it may fail half-way, and a signal may read meanwhile.
        state.dirty |= effect.tables
        affected = frozenset(state.dirty)
    else:
        affected = effect.tables
    if not at_once or not affected:
        return operation()
    if not open_before and effect.kind & Kind.BEGIN and not effect.kind & Kind.COMMIT:
        # "BEGIN; UPDATE …" as one text: what it writes is published later.
        state.dirty |= effect.tables
        return operation()
    return transactions.bracketed(connection, state, affected, operation)


def _commits_at_once(connection: Any, kind: Kind) -> bool:
    """Whether the statement takes effect though a transaction is open."""
    if kind & Kind.IMPLICIT_COMMIT and not connection.features.can_rollback_ddl:
        return True
    # MyISAM: Django finds out which engine is the default.
    return connection.vendor == "mysql" and not connection.features.supports_transactions


def _note(connection: Any, state: ConnectionState, effect: Effect) -> None:
    """Remember what the statement changed about the session or the transaction."""
    kind = effect.kind
    is_open = in_transaction(connection, state)
    if kind & Kind.SEARCH_PATH:
        if kind & Kind.LOCK:
            state.until_end = Reason.SESSION
            return
        state.search_path, state.path_in_doubt = effect.search_path, False
        state.path_set_here = is_open
    if kind & Kind.PARTIAL_ROLLBACK:
        state.path_in_doubt |= state.path_set_here
    if kind & Kind.ISOLATION:
        state.session = Reason.SNAPSHOT
    if kind & Kind.SESSION:
        state.session = Reason.SESSION
    if kind & Kind.LOCK and is_open:
        state.until_end = Reason.LOCKED
    if kind & Kind.COMMIT:
        state.ended()
    elif kind & Kind.ROLLBACK:
        state.rolled_back()
    if kind & Kind.BEGIN and not kind & (Kind.COMMIT | Kind.ROLLBACK):
        state.manual = True
