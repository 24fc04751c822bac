"""Methods of the driver's cursors that write without ``execute()``, or still have rows to give.

Django's ``CursorWrapper`` passes them through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ormcache import brackets, effects, sql, writes
from ormcache.connection_state import state_of
from ormcache.cursors import FETCHES
from ormcache.effects import Effect, effect_of
from ormcache.sql import Kind


def driver_method(wrapper: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the driver's cursor, :data:`DRIVER_METHODS`, as ``CursorWrapper`` gives it."""
    if name in _DRIVER_METHODS:
        return _DRIVER_METHODS[name](wrapper, method)
    if wrapper.db.vendor != "sqlite":
        return method
    return state_of(wrapper.db).live_cursors.fetch(wrapper, name, method)


def _copy(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy(*args: Any, **kwargs: Any) -> Any:
        statement = writes.given(0, args, kwargs, "statement")
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
        self._bracket = writes.begin(self._connection, state_of(self._connection), self._effect)
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
            writes.end(
                self._connection, state, self._bracket, known=_is_connected(self._connection)
            )
            self._bracket = None


def _is_connected(connection: Any) -> bool:
    """Whether what psycopg has ended is over: a server that was lost may still be at work."""
    return getattr(connection.connection, "closed", True) is False


def _stream(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        effect = effect_of(
            writes.given(0, args, kwargs, "query"), wrapper.db.vendor, wrapper.cursor
        )
        state = state_of(wrapper.db)
        bracket = writes.begin(wrapper.db, state, effect)
        try:
            yield from method(*args, **kwargs)
        finally:
            writes.note(wrapper.db, state, effect)
            if bracket is not None:
                writes.end(wrapper.db, state, bracket, known=_is_connected(wrapper.db))

    return stream


def _executes(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def executes(statement: Any) -> Any:
        # By its position only.
        effect = effect_of(statement, wrapper.db.vendor, wrapper.cursor)
        # sqlite3's executescript() commits first what is open.
        effect = effect._replace(kind=effect.kind | Kind.COMMIT)
        return writes.apply(wrapper.db, effect, lambda: method(statement))

    return executes


def _copy_expert(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_expert(*args: Any, **kwargs: Any) -> Any:
        effect = effect_of(writes.given(0, args, kwargs, "sql"), wrapper.db.vendor, wrapper.cursor)
        return writes.apply(wrapper.db, effect, lambda: method(*args, **kwargs))

    return copy_expert


def _copy_from(wrapper: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def copy_from(*args: Any, **kwargs: Any) -> Any:
        effect = effects.write_to(sql.table_name(writes.given(1, args, kwargs, "table")))
        return writes.apply(wrapper.db, effect, lambda: method(*args, **kwargs))

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
