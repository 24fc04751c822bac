"""What tells an interruption from an error of what was waited for.

A time limit that a signal handler raises (Celery's SoftTimeLimitExceeded, a TimeoutError of one's
own) comes out of whatever waits just then: of a question to the cache, for example, the failure of
which is no reason for a read to fail. An interruption is one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType, TracebackType

_OURS = frozenset({"ormcache", "hiredis", "libvalkey", "socket", "ssl", "gevent", "eventlet"})
"""Modules in which errors of a socket are raised, besides the client's own."""


def interruption(error: BaseException) -> BaseException | None:
    """What came from outside, if that is what ended a call, rather than an error of the call.

    That is what is no ``Exception``, and what the handler of a signal raised, also if a library
    has made an error of its own of it; then it is what the handler raised.
    """
    return next(
        (
            one
            for one in _origins(error)
            if not isinstance(one, Exception) or _is_from_handler(one.__traceback__)
        ),
        None,
    )


def let_through(error: BaseException) -> None:
    """Raise what :func:`interruption` finds: no error, whatever else becomes of others."""
    try:
        raise_if_any(interruption(error))
    finally:
        # What is raised refers to this frame.
        del error


def raise_if_any(error: BaseException | None) -> None:
    """Raise it as it is."""
    if error is not None:
        try:
            raise error
        finally:
            # It refers to this frame: in a circle, the garbage collector would have to come before
            # a bracket that was interrupted is gone.
            del error


def foreign(error: BaseException, library: str) -> BaseException | None:
    """What a call of ``library``, a client of the cache, cannot have raised by itself.

    Unlike :func:`interruption` it also sees what was raised in the thread from outside.
    Not for calls that lead through code of users, such as a provider of credentials.
    """
    modules = frozenset({library, *_OURS})
    return interruption(error) or next(
        (one for one in _origins(error) if _is_unlike(one, modules)), None
    )


def _is_unlike(error: BaseException, modules: frozenset[str]) -> bool:
    kind = type(error)
    if isinstance(error, TimeoutError) and kind is TimeoutError:
        # A socket's, unless it neither says what a socket's says nor was raised there.
        return (
            error.errno is None
            and not str(error).endswith("timed out")
            and (not error.args or _root_of_innermost(error) not in modules)
        )
    if _root(kind.__module__) == "builtins":
        # Also what a broken answer makes of a parser.
        return False
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return False
    return all(_root(each.__module__) not in modules for each in kind.__mro__)


def _origins(error: BaseException) -> Iterator[BaseException]:
    """The error, and those of the same call that were made into it."""
    seen = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        frames = {outer for outer, _ in _steps(one.__traceback__)}
        one = one.__cause__ or one.__context__
        # What the caller was dealing with already was not caught by any of these.
        if one is not None and (
            one.__traceback__ is None or one.__traceback__.tb_frame not in frames
        ):
            return


def _steps(trace: TracebackType | None) -> Iterator[tuple[FrameType, FrameType | None]]:
    """The frames of a traceback, each with the next one in it."""
    while trace is not None:
        inner = trace.tb_next
        yield trace.tb_frame, None if inner is None else inner.tb_frame
        trace = inner


def _is_from_handler(trace: TracebackType | None) -> bool:
    """Whether it goes through the handler of a signal, which is given the frame it interrupts.

    Not whatever knows its caller's frame: what watches a client may have that in a variable.
    """
    return any(
        inner is not None and any(_has(value, outer) for value in _arguments(inner))
        for outer, inner in _steps(trace)
    )


def _arguments(frame: FrameType) -> Iterator[object]:
    """What the function of a frame was called with, if that still has its names."""
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    names = code.co_varnames[:count]
    return (values[name] for name in names if name in values)


def _has(value: object, frame: FrameType) -> bool:
    return value is frame or (type(value) is tuple and any(one is frame for one in value))


def _root_of_innermost(error: BaseException) -> str:
    frames = [frame for frame, _ in _steps(error.__traceback__)]
    return _root(str(frames[-1].f_globals.get("__name__"))) if frames else ""


def _root(module: str) -> str:
    return module.partition(".")[0]
