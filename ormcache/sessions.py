"""Sessions of the database that outlive the connection that used them, or are used by several.

Django's ``close()`` gives a session back to psycopg's pool as it is: what it was told, by ``SET``
and the like, holds for whoever gets it next. So what is known of a session is kept with the
driver's connection, and recalled when a pool gives that out again.

A pooler outside of this process, such as PgBouncer in transaction mode, lends its sessions for one
transaction each. Nobody can tell which one was told what, so a database alias behind it is not
cached any more once one of its sessions was altered.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from django.db import connections

from ormcache.reasons import Reason
from ormcache.routers.namespaces import identity


class Told(NamedTuple):
    """What a session was told, or has told."""

    session: Reason | None = None
    search_path: str = ""
    path_in_doubt: bool = False
    takes_snapshots: bool | None = None

    @property
    def is_altered(self) -> bool:
        """Whether queries may see something else than on a new session."""
        return self.session is not None or bool(self.search_path) or self.path_in_doubt


_told: weakref.WeakKeyDictionary[Any, Told] = weakref.WeakKeyDictionary()
"""By the driver's connection."""
_altered: dict[str, weakref.WeakSet[Any]] = {}
"""By alias: the driver's connections that came back altered, and are still open."""
_SETTING = "DISABLE_SERVER_SIDE_CURSORS"
_met: dict[tuple[object, ...], bool] = {}
"""By identity of the database: whether there is a pooler at that address."""
_spoilt: set[str] = set()
"""Aliases behind a pooler of which a session was altered."""


# --- pools in this process -----------------------------------------------------------------


def keep(alias: str, driver: Any, told: Told) -> None:
    """Remember what the session of ``driver`` was told, before it is closed or given back."""
    if not _has_an_end(driver):
        return
    if told.takes_snapshots:
        # Perhaps the last transaction only, which was rolled back. The next one asks again.
        told = told._replace(takes_snapshots=None)
    _told[driver] = told
    if told.is_altered:
        _altered.setdefault(alias, weakref.WeakSet()).add(driver)


def forget(alias: str, driver: Any) -> None:
    """The connection was closed: its session has ended, unless a pool has got it back."""
    if _has_an_end(driver) and not _is_open(driver):
        _told.pop(driver, None)
        if alias in _altered:
            _altered[alias].discard(driver)


def recall(driver: Any) -> Told:
    """What the session of ``driver`` was told before."""
    return _told.get(driver, _NOTHING) if _has_an_end(driver) else _NOTHING


def may_be_altered(alias: str) -> bool:
    """Whether a pool may give out a session on which queries see something else."""
    return alias in _altered and len(_altered[alias]) > 0


_NOTHING = Told()


def _has_an_end(driver: Any) -> bool:
    """Whether ``driver`` tells when its session ends, as psycopg and mysqlclient do.

    sqlite3 does not, and is not pooled.
    """
    return hasattr(driver, "closed") or hasattr(driver, "open")


def _is_open(driver: Any) -> bool:
    # psycopg has the one, mysqlclient the other.
    closed = getattr(driver, "closed", None)
    return bool(driver.open) if closed is None else not closed


# --- poolers outside -----------------------------------------------------------------------


def are_shared(connection: Any) -> bool:
    """Whether the next transaction of ``connection`` may run on another session.

    Django's ``DISABLE_SERVER_SIDE_CURSORS`` says so, or says the opposite. Where it is not set,
    any pooler is taken for one in transaction mode, see :func:`meet`.
    """
    declared = connection.settings_dict.get(_SETTING)
    return bool(_met.get(identity(connection)) if declared is None else declared)


def is_settled(connection: Any) -> bool:
    """Whether :func:`meet` has nothing to tell."""
    return connection.settings_dict.get(_SETTING) is not None or identity(connection) in _met


def meet(connection: Any, number: int) -> None:
    """Compare what PostgreSQL calls its session, ``number``, with what its client was told.

    A pooler tells its clients numbers of its own, with which they may cancel a query.
    """
    _met[identity(connection)] = connection.connection.info.backend_pid != number


def spoil(connection: Any) -> None:
    """A session that others get as well was altered: cache no alias that may lead to it."""
    behind = identity(connection)
    _spoilt.update(alias for alias in connections if identity(connections[alias]) == behind)
    _spoilt.add(connection.alias)


def is_spoilt(alias: str) -> bool:
    """Whether a session behind ``alias`` was altered, nobody knows which."""
    return alias in _spoilt
