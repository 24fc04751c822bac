"""Every place where ormcache touches Django's classes, and the way back.

Each patch wraps one function and hands the original to a function of ormcache, which can be
read and tested without any patch. On Django 5.2, 6.0 and 6.1 these are the methods through
which all reads, writes and commits of every backend go.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Model, QuerySet
from django.db.models.deletion import Collector
from django.db.models.fields import related_descriptors
from django.db.models.sql.compiler import (
    SQLCompiler,
    SQLDeleteCompiler,
    SQLInsertCompiler,
    SQLUpdateCompiler,
)
from django.db.utils import load_backend

from ormcache import access, bypasses, migrations_hooks, reads, tables, transactions, writes

_Hook = Callable[..., Any]
_WRITERS = (SQLInsertCompiler, SQLUpdateCompiler, SQLDeleteCompiler)


class _Patch(NamedTuple):
    owner: Any
    name: str
    original: Any
    replacement: Any


_installed: list[_Patch] = []


# --- hooks ---------------------------------------------------------------------------------


def _execute_sql(original: _Hook, compiler: Any, /, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(compiler, _WRITERS):
        return reads.execute_sql(original, compiler, *args, **kwargs)
    if isinstance(compiler, SQLDeleteCompiler):
        # The other two have hooks of their own, and call this one.
        return writes.compiling(original, compiler, *args, **kwargs)
    return original(compiler, *args, **kwargs)


def _get_from_clause(original: _Hook, compiler: Any) -> Any:
    clause = original(compiler)
    tables.record(compiler.query)
    return clause


def _save_table(original: _Hook, instance: Any, /, *args: Any, **kwargs: Any) -> Any:
    # With select_on_save it asks whether the row exists.
    return bypasses.feeding(writes.saving, original, instance, *args, **kwargs)


def _getattr(original: _Hook, wrapper: Any, name: str) -> Any:
    value = original(wrapper, name)
    return writes.driver_method(wrapper, name, value) if name in writes.DRIVER_METHODS else value


def _debug_copy(original: _Hook, wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """With DEBUG, PostgreSQL's cursors have methods of their own that copy."""
    method = functools.partial(original, wrapper)
    return writes.driver_method(wrapper, original.__name__, method)(*args, **kwargs)


def _set_autocommit(
    original: _Hook, connection: Any, /, autocommit: bool, *args: Any, **kwargs: Any
) -> None:
    transactions.set_autocommit(
        lambda: original(connection, autocommit, *args, **kwargs), connection, autocommit
    )


def _on_connection(hook: Callable[[Callable[[], None], Any], None]) -> _Hook:
    def on_connection(original: _Hook, connection: Any) -> None:
        hook(lambda: original(connection), connection)

    return on_connection


# Methods of related managers that read what is there to decide what to write.
_MANAGER_METHODS = ("add", "set", "remove", "clear", "get_or_create", "update_or_create")


def _related_manager(original: _Hook, /, *args: Any, **kwargs: Any) -> Any:
    """Django makes the class of a related manager by a function; wrap what it makes."""
    manager = original(*args, **kwargs)
    for name in _MANAGER_METHODS:
        if name in vars(manager):
            # wraps() keeps alters_data: templates must go on refusing to call it.
            setattr(manager, name, _wrap(vars(manager)[name], bypasses.feeding))
    return manager


_HOOKS: tuple[tuple[Any, str, _Hook], ...] = (
    (SQLCompiler, "execute_sql", _execute_sql),
    (SQLCompiler, "get_from_clause", _get_from_clause),
    (SQLInsertCompiler, "execute_sql", writes.compiling),
    (SQLUpdateCompiler, "execute_sql", writes.compiling),
    (SQLUpdateCompiler, "pre_sql_setup", bypasses.feeding),
    (Collector, "collect", bypasses.feeding),
    (QuerySet, "get_or_create", bypasses.feeding),
    (QuerySet, "update_or_create", bypasses.feeding),
    (Model, "_save_table", _save_table),
    (related_descriptors, "create_forward_many_to_many_manager", _related_manager),
    (related_descriptors, "create_reverse_many_to_one_manager", _related_manager),
    (MigrationExecutor, "migrate", migrations_hooks.migrate),
    # What is left to be migrated, also in a database that was restored under the cache's feet.
    (MigrationRecorder, "applied_migrations", bypasses.feeding),
    # Below execute() and executemany(): a wrapper given to execute_wrapper() may change the text.
    (CursorWrapper, "_execute", writes.execute),
    (CursorWrapper, "_executemany", writes.execute),
    (CursorWrapper, "callproc", writes.callproc),
    (CursorWrapper, "__getattr__", _getattr),
    (BaseDatabaseWrapper, "commit", _on_connection(transactions.commit)),
    (BaseDatabaseWrapper, "rollback", _on_connection(transactions.rollback)),
    (BaseDatabaseWrapper, "close", _on_connection(transactions.close)),
    (BaseDatabaseWrapper, "connect", _on_connection(transactions.connect)),
    (BaseDatabaseWrapper, "set_autocommit", _set_autocommit),
)


def hooks() -> Iterator[tuple[Any, str, _Hook]]:
    """What is wrapped: where, its name and by what."""
    yield from _HOOKS
    if apps.is_installed("django.contrib.contenttypes"):
        # Not importable without the app, for it has models.
        from django.contrib.contenttypes import fields

        yield fields, "create_generic_related_manager", _related_manager
    if "postgresql" in _vendors():
        # Not importable without its driver.
        from django.db.backends.postgresql.base import CursorDebugWrapper

        for name in writes.DRIVER_METHODS & vars(CursorDebugWrapper).keys():
            yield CursorDebugWrapper, name, _debug_copy


def _vendors() -> set[str]:
    """Of the databases in the settings, as far as their drivers are installed."""
    found = set()
    for facts in connections.settings.values():
        with contextlib.suppress(ImproperlyConfigured, ImportError):
            found.add(load_backend(facts["ENGINE"]).DatabaseWrapper.vendor)
    return found


# --- installing ----------------------------------------------------------------------------


def _wrap(original: _Hook, hook: _Hook) -> _Hook:
    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return hook(original, *args, **kwargs)

    return patched


def install() -> None:
    """Put the hooks in place; a second call does nothing.

    Raises KeyError, at start-up, if Django has moved one of the functions.
    """
    if _installed:
        return
    access.remember_pristine(BaseDatabaseWrapper.ensure_connection)
    for owner, name, hook in hooks():
        original = vars(owner)[name]
        replacement = _wrap(original, hook)
        setattr(owner, name, replacement)
        _installed.append(_Patch(owner, name, original, replacement))


def uninstall() -> list[str]:
    """Take the hooks away again: all of them or, if somebody has patched on top, none.

    Returns the names of the functions so patched. To restore those would undo the other patch;
    to restore the rest could leave hooks that read and none that see the writes.
    """
    left = [
        f"{patch.owner.__name__}.{patch.name}"
        for patch in _installed
        if vars(patch.owner)[patch.name] is not patch.replacement
    ]
    if not left:
        for patch in _installed:
            setattr(patch.owner, patch.name, patch.original)
        _installed.clear()
    return left


def is_installed() -> bool:
    """Whether the hooks are in place."""
    return bool(_installed)
