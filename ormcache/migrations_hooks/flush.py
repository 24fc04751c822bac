"""A migration flushes the namespace of the database on which it runs.

A plan may hold RunSQL or RunPython that touch any table, so everything of that database goes,
before and after, also if the plan fails. In between the migrating connection reads from the
database; other processes go on, since each statement of a migration is announced like any other
write.

All ways to run migrations end in ``MigrationExecutor.migrate``: the command, tests of migrations,
packages that migrate tenants. Django's signals could not do: there is none for a plan that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate

from ormcache import debts, transactions
from ormcache.conf import current, is_under_test
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheUnreachable
from ormcache.stores import EVERYTHING

_UID = "ormcache.migrations_hooks"
_logger = logging.getLogger("ormcache")


def migrate(
    original: Callable[..., Any],
    executor: Any,
    /,
    targets: Any,
    plan: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``MigrationExecutor.migrate``. An empty plan flushes nothing.

    Raises CacheUnreachable if the cache does not answer, before anything was migrated or when all
    is done; not if ``ON_CACHE_FAILURE`` is ``"open"``.
    """

    def run() -> Any:
        return original(executor, targets, plan, *args, **kwargs)

    if not (executor.migration_plan(targets) if plan is None else plan):
        return run()
    connection = executor.connection
    _flush_before(connection)
    state = state_of(connection)
    # A migration may run others, of the same database or of another one.
    outer, state.migrating = state.migrating, True
    try:
        try:
            result = run()
        except BaseException:
            _flush_after_failure(connection)
            raise
        _flush_after(connection)
    finally:
        state.migrating = outer
    return result


def _flush_before(connection: Any) -> None:
    try:
        transactions.touch(connection, {EVERYTHING})
    except CacheUnreachable as error:
        alias = connection.alias
        raise CacheUnreachable(
            f"Nothing was migrated in the database {alias!r}, because {_cache_of(connection)} "
            f"could not be told beforehand ({error.__cause__}). Start the cache. "
            + (
                'Or do without one in tests: ORMCACHE = {"ENABLED": False}.'
                if is_under_test()
                else 'Or let writes through with ORMCACHE["ON_CACHE_FAILURE"] = "open", and run '
                f"`manage.py ormcache flush --database {alias}` when the cache is back."
            )
        ) from error.__cause__


def _flush_after(connection: Any) -> None:
    try:
        transactions.touch(connection, {EVERYTHING})
    except CacheUnreachable as error:
        alias = connection.alias
        raise CacheUnreachable(
            f"The database {alias!r} was migrated, but {_cache_of(connection)} could not be told "
            f"afterwards ({error.__cause__}). When the cache is back, run `manage.py ormcache "
            f"flush --database {alias}`, and `manage.py migrate --database {alias}` once more: "
            "receivers of post_migrate have not been called."
        ) from error.__cause__
    _warn_if_untold(connection)


def _flush_after_failure(connection: Any) -> None:
    """The error of the migration is the one to be seen; one of the cache is written to the log."""
    try:
        transactions.touch(connection, {EVERYTHING})
    except CacheUnreachable:
        _warn(connection)
    else:
        _warn_if_untold(connection)


def _warn_if_untold(connection: Any) -> None:
    """What is owed to the cache is paid by the process that owes it, but ``migrate`` ends."""
    route = state_of(connection).route(connection, current())
    # Switched off, ormcache is not to be missed.
    if route.on_failure != "ignore" and EVERYTHING in debts.owed(route):
        _warn(connection)


def _warn(connection: Any) -> None:
    _logger.warning(
        "The migration of the database %r is over, but %s could not be told. Run `manage.py "
        "ormcache flush --database %s` when the cache is back.",
        connection.alias,
        _cache_of(connection),
        connection.alias,
    )


def _cache_of(connection: Any) -> str:
    return f"the cache {state_of(connection).route(connection, current()).cache_alias!r}"


def emptied(using: str = DEFAULT_DB_ALIAS, plan: Any = None, **kwargs: Any) -> None:
    """Receiver of ``post_migrate``, which the ``flush`` command sends without a plan."""
    if plan is None:
        transactions.touch(connections[using], {EVERYTHING})


def connect() -> None:
    """Start to listen to the ``flush`` command."""
    post_migrate.connect(emptied, dispatch_uid=_UID)


def disconnect() -> None:
    """The inverse of :func:`connect`."""
    post_migrate.disconnect(dispatch_uid=_UID)
