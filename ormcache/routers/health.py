"""Which databases answer, as far as this process has seen."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from django import db

from ormcache.stores import Breaker

_logger = logging.getLogger("ormcache")

well: set[str] = set()
"""Aliases that have been connected to and have not failed since."""

_breakers: dict[str, Breaker] = {}
_trying: dict[str, threading.Lock] = {}


def _forget() -> None:
    # A lock may have been held by a thread that fork() has not copied.
    well.clear()
    _breakers.clear()
    _trying.clear()


os.register_at_fork(after_in_child=_forget)


def becomes_well(alias: str, connect: Callable[[], None]) -> bool:
    """Find out whether an alias that is not known to be well can be connected to.

    One thread tries; until it knows, and after a failure for a while, the answer is no.

    Args:
        alias: of a database.
        connect: connects to it, or raises ``django.db.Error``.
    """
    lock = _trying.setdefault(alias, threading.Lock())
    if not lock.acquire(blocking=False):
        return False
    try:
        if not _breaker(alias).allows():
            return False
        connect()
    except db.Error as error:
        failed(alias)
        _logger.warning("The database %r does not answer: %s", alias, error)
        return False
    finally:
        lock.release()
    connected(alias)
    return True


def _breaker(alias: str) -> Breaker:
    return _breakers.setdefault(alias, Breaker())


def connected(alias: str) -> None:
    """The alias has been connected to."""
    if alias not in well:
        _breaker(alias).succeeded()
        well.add(alias)


def failed(alias: str) -> None:
    """The alias could not be connected to, or the connection was lost."""
    well.discard(alias)
    _breaker(alias).failed()


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
