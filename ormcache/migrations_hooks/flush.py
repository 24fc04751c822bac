"""Django's ``pre_migrate`` and ``post_migrate`` flush one database's namespace.

A plan may hold RunSQL or RunPython that touch any table, so everything of that database goes,
before and after. In between the migrating connection reads from the database; other processes
go on, since each statement of a migration is announced like any other write.

Django sends the signals once per app. Flushing each time is cheap, and needs no memory of
which signals were sent. After a migration that failed, its connection goes on reading from the
database until it is closed or another migration succeeds.
"""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate, pre_migrate

from ormcache import transactions
from ormcache.stores import EVERYTHING
from ormcache.transactions import state_of

_UID = "ormcache.migrations_hooks"


def _is_empty(plan: Any) -> bool:
    """Whether there is nothing to migrate; ``flush`` sends post_migrate without a plan."""
    return plan is not None and not plan


def before(using: str = DEFAULT_DB_ALIAS, plan: Any = None, **kwargs: Any) -> None:
    """Receiver of ``pre_migrate``."""
    if _is_empty(plan):
        return
    transactions.touch(using, {EVERYTHING})
    state_of(connections[using]).migrating = True


def after(using: str = DEFAULT_DB_ALIAS, plan: Any = None, **kwargs: Any) -> None:
    """Receiver of ``post_migrate``, which ``flush`` sends, too."""
    if _is_empty(plan):
        return
    state_of(connections[using]).migrating = False
    transactions.touch(using, {EVERYTHING})


def connect() -> None:
    """Start to flush on migrations."""
    pre_migrate.connect(before, dispatch_uid=_UID)
    post_migrate.connect(after, dispatch_uid=_UID)


def disconnect() -> None:
    """The inverse of :func:`connect`."""
    pre_migrate.disconnect(dispatch_uid=_UID)
    post_migrate.disconnect(dispatch_uid=_UID)
