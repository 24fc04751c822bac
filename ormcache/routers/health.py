"""Which databases answer, as far as this process has seen."""

from __future__ import annotations

import os
from typing import Any

from django import db

from ormcache.stores import Breaker

_well: set[str] = set()
_breakers: dict[str, Breaker] = {}


def _forget() -> None:
    # A breaker's lock may have been held by a thread that fork() has not copied.
    _well.clear()
    _breakers.clear()


os.register_at_fork(after_in_child=_forget)


def is_well(alias: str) -> bool:
    """Whether the alias has been connected to and has not failed since."""
    return alias in _well


def may_try(alias: str) -> bool:
    """Whether to connect to an alias that is not known to be well; after a failure, not soon.

    Who tries has to tell the outcome.
    """
    return _breakers.setdefault(alias, Breaker()).allows()


def connected(alias: str) -> None:
    """The alias has been connected to."""
    if alias not in _well:
        breaker = _breakers.get(alias)
        if breaker is not None:
            breaker.succeeded()
        _well.add(alias)


def failed(alias: str) -> None:
    """The alias could not be connected to, or the connection was lost."""
    _well.discard(alias)
    _breakers.setdefault(alias, Breaker()).failed()


def note(connection: Any, error: db.Error) -> None:
    """A statement on ``connection`` has raised ``error``: is it the server's end?"""
    if _is_lost(connection, error):
        failed(connection.alias)


# Errors of MySQL's and MariaDB's client and server: no connection, or the end of one.
_MYSQL_LOST = frozenset({1053, 1152, 1184, 1927, 2002, 2003, 2005, 2006, 2012, 2013, 2055})


def _is_lost(connection: Any, error: db.Error) -> bool:
    # Not a deadlock, a statement that took too long, or one that a standby has cancelled.
    if isinstance(error, db.InterfaceError):
        return True
    if connection.vendor == "mysql":
        return next(iter(error.args), None) in _MYSQL_LOST
    # psycopg has it from libpq.
    return bool(getattr(connection.connection, "closed", False))
