"""Every place where ormcache touches Django's classes, and the way back.

Each patch puts a function of ormcache around one of Django's. What it does then can be read and
tested without any patch. Some are called several times by each statement: a call less is worth
a function that is made for the place. On Django 5.2, 6.0 and 6.1 these are the methods through
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

from ormcache import (
    access,
    bypasses,
    driver_methods,
    migrations_hooks,
    reads,
    tables,
    transactions,
    writes,
)

_Function = Callable[..., Any]
_Maker = Callable[[_Function], _Function]
"""Makes, of a function of Django, what takes its place."""
_WRITERS = (SQLInsertCompiler, SQLUpdateCompiler, SQLDeleteCompiler)


class _Patch(NamedTuple):
    owner: Any
    name: str
    original: Any
    replacement: Any


_installed: list[_Patch] = []


# --- hooks ---------------------------------------------------------------------------------


def _around(hook: _Function) -> _Maker:
    """Call ``hook`` with the original and with its arguments."""

    def make(original: _Function) -> _Function:
        def patched(*args: Any, **kwargs: Any) -> Any:
            return hook(original, *args, **kwargs)

        return patched

    return make


def _execute_sql(original: _Function) -> _Function:
    def execute_sql(compiler: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(compiler, _WRITERS):
            return reads.execute_sql(original, compiler, *args, **kwargs)
        if isinstance(compiler, SQLDeleteCompiler):
            # The other two have hooks of their own, and call this one.
            return writes.compiling(original, compiler, *args, **kwargs)
        return original(compiler, *args, **kwargs)

    return execute_sql


def _get_from_clause(original: _Function) -> _Function:
    def get_from_clause(compiler: Any) -> Any:
        clause = original(compiler)
        tables.record(compiler.query)
        return clause

    return get_from_clause


def _getattr(original: _Function) -> _Function:
    def __getattr__(wrapper: Any, name: str) -> Any:
        value = original(wrapper, name)
        if name in driver_methods.DRIVER_METHODS:
            return driver_methods.driver_method(wrapper, name, value)
        return value

    return __getattr__


def _debug_copy(original: _Function, wrapper: Any, /, *args: Any, **kwargs: Any) -> Any:
    """With DEBUG, PostgreSQL's cursors have methods of their own that copy."""
    method = functools.partial(original, wrapper)
    return driver_methods.driver_method(wrapper, original.__name__, method)(*args, **kwargs)


def _set_autocommit(
    original: _Function, connection: Any, /, autocommit: bool, *args: Any, **kwargs: Any
) -> None:
    transactions.set_autocommit(
        lambda: original(connection, autocommit, *args, **kwargs), connection, autocommit
    )


def _on_connection(hook: Callable[[Callable[[], None], Any], None]) -> _Maker:
    def make(original: _Function) -> _Function:
        def on_connection(connection: Any) -> None:
            hook(lambda: original(connection), connection)

        return on_connection

    return make


# Methods of related managers that read what is there to decide what to write.
_MANAGER_METHODS = ("add", "set", "remove", "clear", "get_or_create", "update_or_create")


def _related_manager(original: _Function, /, *args: Any, **kwargs: Any) -> Any:
    """Django makes the class of a related manager by a function; wrap what it makes."""
    manager = original(*args, **kwargs)
    for name in _MANAGER_METHODS:
        if name in vars(manager):
            # wraps() keeps alters_data: templates must go on refusing to call it.
            method = vars(manager)[name]
            setattr(manager, name, functools.wraps(method)(bypasses.feeding(method)))
    return manager


_HOOKS: tuple[tuple[Any, str, _Maker], ...] = (
    (SQLCompiler, "execute_sql", _execute_sql),
    (SQLCompiler, "get_from_clause", _get_from_clause),
    (SQLInsertCompiler, "execute_sql", _around(writes.compiling)),
    (SQLUpdateCompiler, "execute_sql", _around(writes.compiling)),
    (SQLUpdateCompiler, "pre_sql_setup", bypasses.feeding),
    (Collector, "collect", bypasses.feeding),
    (QuerySet, "get_or_create", bypasses.feeding),
    (QuerySet, "update_or_create", bypasses.feeding),
    (Model, "_save_table", _around(writes.saving)),
    (related_descriptors, "create_forward_many_to_many_manager", _around(_related_manager)),
    (related_descriptors, "create_reverse_many_to_one_manager", _around(_related_manager)),
    (MigrationExecutor, "migrate", _around(migrations_hooks.migrate)),
    # What is left to be migrated, also in a database that was restored under the cache's feet.
    (MigrationRecorder, "applied_migrations", bypasses.feeding),
    # Below execute() and executemany(): a wrapper given to execute_wrapper() may change the text.
    (CursorWrapper, "_execute", _around(writes.execute)),
    (CursorWrapper, "_executemany", _around(writes.execute)),
    (CursorWrapper, "callproc", _around(writes.callproc)),
    (CursorWrapper, "__getattr__", _getattr),
    (BaseDatabaseWrapper, "commit", _on_connection(transactions.commit)),
    (BaseDatabaseWrapper, "rollback", _on_connection(transactions.rollback)),
    (BaseDatabaseWrapper, "close", _on_connection(transactions.close)),
    (BaseDatabaseWrapper, "connect", _on_connection(transactions.connect)),
    (BaseDatabaseWrapper, "set_autocommit", _around(_set_autocommit)),
)


def hooks() -> Iterator[tuple[Any, str, _Maker]]:
    """What is replaced: where, its name, and what makes the replacement."""
    yield from _HOOKS
    if apps.is_installed("django.contrib.contenttypes"):
        # Not importable without the app, for it has models.
        from django.contrib.contenttypes import fields

        yield fields, "create_generic_related_manager", _around(_related_manager)
    if "postgresql" in _vendors():
        # Not importable without its driver.
        from django.db.backends.postgresql.base import CursorDebugWrapper

        for name in driver_methods.DRIVER_METHODS & vars(CursorDebugWrapper).keys():
            yield CursorDebugWrapper, name, _around(_debug_copy)


def _vendors() -> set[str]:
    """Of the databases in the settings, as far as their drivers are installed."""
    found = set()
    for facts in connections.settings.values():
        with contextlib.suppress(ImproperlyConfigured, ImportError):
            found.add(load_backend(facts["ENGINE"]).DatabaseWrapper.vendor)
    return found


# --- installing ----------------------------------------------------------------------------


def install() -> None:
    """Put the hooks in place; a second call does nothing.

    Raises KeyError, at start-up, if Django has moved one of the functions.
    """
    if _installed:
        return
    access.remember_pristine(BaseDatabaseWrapper.ensure_connection)
    for owner, name, make in hooks():
        original = vars(owner)[name]
        replacement = functools.wraps(original)(make(original))
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
