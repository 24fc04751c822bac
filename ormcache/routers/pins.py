"""What this request, task or script has written, so that it reads it where it is.

A write *pins* its context to the primary: whoever reads in the same context sees the write, and
nobody else waits for it. How far the primary had written is asked when a read has to know.

A context is one of Python's (PEP 567). Code that runs in a copy of it (a task, what
``sync_to_async`` runs in a thread) shares the scope that was there when the copy was made; what
it begins itself stays its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from ormcache.routers.positions import Position


class Pin:
    """One primary was written."""

    __slots__ = ("asked_at", "at", "position", "primary")

    def __init__(self, primary: str, at: float, position: Position | None = None) -> None:
        self.primary = primary
        self.at = at
        """When, on the monotonic clock."""
        self.position = position
        """How far the primary had written some time later; None if that is not known yet."""
        self.asked_at = float("-inf")
        """When it was last asked in vain."""


class Scope:
    """The pins of one context and of those that were copied from it."""

    __slots__ = ("before", "chosen", "is_left", "is_request", "pins")

    def __init__(
        self,
        pins: Mapping[str, Pin],
        *,
        is_request: bool,
        before: Mapping[str, Pin] | None = None,
    ) -> None:
        self.pins = dict(pins)
        """The last write to each primary."""
        self.before = before or {}
        """The pins of the code that the request interrupts; they count again when it is over."""
        self.is_request = is_request
        """Whether it ends soon, so that one replica can serve all of it."""
        self.chosen: dict[str, str] = {}
        """The replica that serves it, by primary."""
        self.is_left = False
        """Whether requests have begun inside, of which each writes for itself."""


_scope: ContextVar[Scope | None] = ContextVar("ormcache_scope", default=None)

current = _scope.get
"""The scope of the current context, or None if it has neither begun nor written."""


def wrote(primary: str) -> None:
    """Pin the current context: what it has just written to ``primary`` is visible there now."""
    scope = _scope.get()
    if scope is None or scope.is_left:
        scope = Scope({} if scope is None else scope.pins, is_request=False)
        _scope.set(scope)
    scope.pins[primary] = Pin(primary, time.monotonic())


def begin(pins: Mapping[str, Pin]) -> Scope:
    """Begin a scope in the current context, with what is known from the user's last request.

    It does not end when the middlewares have returned: a response that is streamed reads later.
    """
    outer = _scope.get()
    before = outer.before if outer is not None and outer.is_request else _all_of(outer)
    scope = Scope(pins, is_request=True, before=before)
    _scope.set(scope)
    return scope


def begin_request(**kwargs: Any) -> None:
    """Receiver of ``request_started``: a new request is not pinned by what was before it.

    Under WSGI, it runs in the thread's own context, which the last request may have pinned. Under
    ASGI it runs in a copy; but the request has a task to itself, and that begins with at most
    the scope of the code that started the server.
    """
    scope = _scope.get()
    if scope is not None:
        scope.is_left = True
    _scope.set(Scope({}, is_request=True, before=_all_of(scope)))


def end_request(**kwargs: Any) -> None:
    """Receiver of ``request_finished``, when the response has been read, streamed or not.

    A request that was made in process, as by Django's test client, ends in the context of the
    code that made it: from then on that reads what it has written itself, and what the request
    has. In a thread of a server nothing runs until the next request. Under ASGI the context that
    this runs in holds no request.
    """
    scope = _scope.get()
    if scope is not None and scope.is_request:
        _scope.set(Scope(_all_of(scope), is_request=False))


def _all_of(scope: Scope | None) -> Mapping[str, Pin]:
    """The last write to each primary, in the scope and before it."""
    if scope is None:
        return {}
    found = dict(scope.before)
    for primary, pin in scope.pins.items():
        # One from a cookie may be the older one.
        if primary not in found or found[primary].at <= pin.at:
            found[primary] = pin
    return found
