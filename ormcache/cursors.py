"""SQLite: a statement ends when its rows have been fetched, not when it has been executed.

Until then an ``INSERT … RETURNING`` in autocommit is not committed, and all statements of the
connection read from the snapshot that a ``SELECT`` under way has opened. So rows of a writing
statement are fetched at once, and while other rows are left the connection reads past the cache.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

FETCHES = frozenset({"fetchone", "fetchmany", "fetchall", "close"})
"""Methods of the driver's cursor that may end a statement."""


class FetchedRows:
    """Stands for a cursor whose rows have been fetched, and gives them out one by one."""

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor
        self._rows: Iterator[Any] = iter(cursor.fetchall())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def __next__(self) -> Any:
        return next(self._rows)

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        wanted = self.cursor.arraysize if size is None else size
        if wanted <= 0:
            # As Python's own driver understands it.
            return self.fetchall()
        return list(itertools.islice(self._rows, wanted))

    def fetchall(self) -> list[Any]:
        return list(self._rows)


class LiveCursors:
    """The cursors of one connection that have rows left."""

    def __init__(self) -> None:
        # A cursor that nobody holds any more is closed by its end.
        self._cursors: weakref.WeakSet[Any] = weakref.WeakSet()

    def __bool__(self) -> bool:
        return len(self._cursors) > 0

    def execute(self, wrapper: Any, operation: Callable[[], Any], *, writes: bool) -> Any:
        """Run ``operation``, which executes a statement on ``wrapper``; what it returns."""
        if isinstance(wrapper.cursor, FetchedRows):
            wrapper.cursor = wrapper.cursor.cursor
        cursor = wrapper.cursor
        self._cursors.discard(cursor)
        result = operation()
        if cursor.description is None:
            return result
        if not writes:
            self._cursors.add(cursor)
            return result
        # The statement is checked and committed only now; Django expects errors of its own.
        with wrapper.db.wrap_database_errors:
            wrapper.cursor = FetchedRows(cursor)
        return wrapper.cursor if result is cursor else result

    def fetch(self, wrapper: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, one of :data:`FETCHES`, which notices when no rows are left."""
        cursor = wrapper.cursor

        def fetch(*args: Any, **kwargs: Any) -> Any:
            rows = method(*args, **kwargs)
            if name in ("fetchall", "close") or not rows:
                self._cursors.discard(cursor)
            return rows

        return fetch if cursor in self._cursors else method
