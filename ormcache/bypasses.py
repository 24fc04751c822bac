"""Reads that go to the database because of the code around them.

What is switched off by :class:`disabled`, and what Django reads to decide what it will write.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction

from ormcache.reasons import Reason

_P = ParamSpec("_P")
_T = TypeVar("_T")

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
        # Left in another task than it was entered in: that block is not counted here.
        _disabled.set(max(0, _disabled.get() - 1))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[_P, _T]) -> Callable[_P, _T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            # The block would end before the generator begins.
            raise TypeError("disabled() does not decorate generators; put a block inside.")
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def asynchronous(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with disabled():
                    return await function(*args, **kwargs)

            return asynchronous  # type: ignore[return-value]

        @functools.wraps(function)
        def synchronous(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with disabled():
                result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                # A coroutine by another name: it has not begun yet.
                return _disabled_in(result)  # type: ignore[return-value]
            return result

        return synchronous


async def _disabled_in(awaitable: Awaitable[_T]) -> _T:
    with disabled():
        return await awaitable


class _Feeding(threading.local):
    depth = 0


feeds = _Feeding()
"""How deep this thread is inside of functions of Django whose reads decide what they write."""


def feeding(original: Callable[_P, _T]) -> Callable[_P, _T]:
    """Of such a function, one whose reads ask the database."""

    def fed(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        feeds.depth += 1
        try:
            return original(*args, **kwargs)
        finally:
            feeds.depth -= 1

    return fed


def why_bypassed() -> Reason | None:
    """Why reads in this place go to the database, or None."""
    if feeds.depth:
        return Reason.FEEDS_WRITE
    if _disabled.get() > 0:
        return Reason.DISABLED
    return None
