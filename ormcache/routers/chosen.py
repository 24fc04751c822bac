"""The part of a namespace that a function of the project chooses: ``ORMCACHE["NAMESPACE"]``.

The settings of an alias tell which database it leads to, unless something behind them decides:
a proxy that sends each tenant to a server of its own, a backend that changes the database while
the connection lives. The function tells it from the connection, before each statement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.utils.module_loading import import_string

from ormcache.conf import KEY_PART_LIMIT, Inherited, Settings, is_part_of_key
from ormcache.exceptions import SettingsError
from ormcache.interruptions import let_through
from ormcache.memo import Memo
from ormcache.routers.groups import primary_of

Chooser = Callable[[Any], str]

_memo: Memo[str, Chooser | None] = Memo()


# A Memo, written out: the router asks at every query.
_configured: tuple[Settings | None, bool] = (None, False)


def is_configured(settings: Settings) -> bool:
    """Whether the namespace of any alias may change while its connection lives."""
    global _configured
    known_settings, known = _configured
    if settings is not known_settings:
        known = settings.NAMESPACE is not None or any(
            database.NAMESPACE not in (None, Inherited.INHERITED)
            for database in settings.DATABASES.values()
        )
        _configured = (settings, known)
    return known


def text_for(connection: Any, settings: Settings) -> str:
    """What the project's function says of ``connection`` now; ``""`` if there is none.

    Raises:
        SettingsError: the function cannot be imported, fails, or returns what may not be part of
            a key; the check ormcache.E014 tells the same at start.
    """
    if settings.NAMESPACE is None and not settings.DATABASES:
        return ""
    known = _memo.under(settings)
    alias = connection.alias
    if alias not in known:
        known[alias] = _chooser(alias, settings)
    chooser = known[alias]
    return "" if chooser is None else _checked(chooser, connection)


def _chooser(alias: str, settings: Settings) -> Chooser | None:
    """That of the alias; that of its primary, if it is a replica; that of all."""
    option = settings.NAMESPACE
    for name in (primary_of(alias, settings), alias):
        database = settings.DATABASES.get(name)
        if database is not None and not isinstance(database.NAMESPACE, Inherited):
            option = database.NAMESPACE
    if not isinstance(option, str):
        return option
    try:
        found: Any = import_string(option)
    except Exception as error:
        let_through(error)
        raise SettingsError(
            f"ORMCACHE's NAMESPACE {option!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise SettingsError(f"ORMCACHE's NAMESPACE {option!r} is no function but {found!r}.")
    return found  # type: ignore[no-any-return]


def _checked(chooser: Chooser, connection: Any) -> str:
    try:
        text: object = chooser(connection)
    except Exception as error:
        let_through(error)
        raise SettingsError(
            f"{_name(chooser)} failed for the database {connection.alias!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(text, str) or not is_part_of_key(text):
        raise SettingsError(
            f"{_name(chooser)} returned {text!r} for the database {connection.alias!r}. It must "
            f"return a string of at most {KEY_PART_LIMIT} ASCII letters, digits and . _ -"
        )
    return text


def _name(chooser: Chooser) -> str:
    name = getattr(chooser, "__qualname__", None) or repr(chooser)
    return f"ORMCACHE's NAMESPACE, {name}(),"
