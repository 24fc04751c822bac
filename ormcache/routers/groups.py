"""Which aliases lead to the same data: a primary and its replicas.

A group shares one namespace, so a write through any alias of it is announced once and heard by
all. An alias is a replica if ``ORMCACHE["DATABASES"][alias]["PRIMARY"]`` says so or, without that,
Django's ``DATABASES[alias]["TEST"]["MIRROR"]``. Aliases with equal ``ENGINE``, ``HOST``, ``PORT``
and ``NAME`` are one database anyway, see :func:`ormcache.routers.namespaces.identity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from django.db import connections

from ormcache.conf import Settings
from ormcache.exceptions import SettingsError

# Two Memos, written out: one is asked at every read and write, the other before it.
_primaries: tuple[Settings | None, tuple[str, ...], Mapping[str, str]] = (None, (), {})
_replicas: tuple[Settings | None, tuple[str, ...], dict[str, tuple[str, ...]]] = (None, (), {})


def declared_primary(alias: str, settings: Settings) -> str | None:
    """The alias that ``alias`` is said to be a replica of, whether or not there is one."""
    database = settings.DATABASES.get(alias)
    if database is not None and database.PRIMARY is not None:
        return database.PRIMARY
    facts: dict[str, Any] = connections.settings[alias]
    mirrored: str | None = (facts.get("TEST") or {}).get("MIRROR")
    return mirrored


def primaries(settings: Settings) -> Mapping[str, str]:
    """The primary of each replica; a replica of a replica has the primary of that.

    Raises:
        SettingsError: a primary is no alias, or aliases are replicas of each other; the check
            ormcache.E012 tells the same at start.
    """
    global _primaries
    known_settings, known_aliases, known = _primaries
    # Tests add aliases while the process runs.
    aliases = tuple(connections.settings)
    if settings is not known_settings or aliases != known_aliases:
        known = MappingProxyType(
            {
                alias: _primary(alias, settings)
                for alias in aliases
                if declared_primary(alias, settings) is not None
            }
        )
        _primaries = (settings, aliases, known)
    return known


def _primary(alias: str, settings: Settings) -> str:
    passed = [alias]
    while True:
        primary = declared_primary(passed[-1], settings)
        if primary is None:
            return passed[-1]
        if primary not in connections:
            raise SettingsError(
                f"The database alias {passed[-1]!r} is declared to be a replica of {primary!r}, "
                f"which DATABASES does not have. Known aliases: {', '.join(connections)}."
            )
        if primary == passed[-1]:
            raise SettingsError(
                f"The database alias {primary!r} is declared to be a replica of itself. Leave "
                "that out, or name the alias that takes the writes."
            )
        if primary in passed:
            raise SettingsError(
                f"The database aliases {', '.join(map(repr, passed))} are declared to be replicas "
                "of each other. Leave out the PRIMARY of the one that takes the writes."
            )
        passed.append(primary)


def primary_of(alias: str, settings: Settings) -> str:
    """The alias that takes the writes which ``alias`` shows; ``alias`` itself for most."""
    return primaries(settings).get(alias, alias)


def replicas_of(primary: str, settings: Settings) -> tuple[str, ...]:
    """The replicas of ``primary``, in the order of ``DATABASES``. Raises as :func:`primaries`."""
    global _replicas
    known_settings, known_aliases, known = _replicas
    aliases = tuple(connections.settings)
    if settings is not known_settings or aliases != known_aliases:
        known = {}
        _replicas = (settings, aliases, known)
    found = known.get(primary)
    if found is None:
        found = known[primary] = tuple(
            alias for alias, its in primaries(settings).items() if its == primary
        )
    return found
