"""Registers for the tables that each tenant of django-tenants has for itself.

One register for all tables of a name would make a write of one tenant invalid for all. So a table
of ``TENANT_APPS`` has several, here for ``book`` and the tenant ``alpha``:

``book``
    any write, but for those that are surely made inside one schema. What is invalidated by hand,
    by DDL or by other programs is here: they know this name only.
``alpha.book``
    writes that were made to this name, without a schema, while ``alpha`` was searched first.
``*.book``
    all writes of the kind above, in whichever schema, the public one included.

A read in ``alpha`` that certainly finds ``alpha.book`` depends on ``book`` and ``alpha.book``. Any
other read, of whichever connection, depends on ``book`` and ``*.book``: on every write.

A write of the narrow kind changes ``alpha.book``, or, if there is no such table, one of a schema
that is searched later: the public one, or one of ``PG_EXTRA_SEARCH_PATHS``. What is read from
these never counts as certain. So whatever table the database has found, the reads that depend on
it hear of the write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings

from ormcache import sql, tables
from ormcache.memo import Memo

_PLAIN_TABLE = re.compile(r"[a-z0-9_]+")
_PLAIN_SCHEMA = re.compile(r"[A-Za-z0-9_-]{1,63}")
_ANY = "*"

_memo: Memo[str, frozenset[str]] = Memo()


def is_configured() -> bool:
    """Whether the project is one of django-tenants."""
    return bool(_types())


def _types() -> Mapping[str, Any]:
    """The apps of tenants, by the type of tenant."""
    if getattr(django_settings, "HAS_MULTI_TYPE_TENANTS", False):
        types: Mapping[str, Any] = getattr(django_settings, "TENANT_TYPES", {})
        return {name: kind.get("APPS", ()) for name, kind in types.items() if name != _public()}
    names = getattr(django_settings, "TENANT_APPS", ())
    return {"": names} if names else {}


def _public() -> str:
    name: str = getattr(django_settings, "PUBLIC_SCHEMA_NAME", "public")
    return name


def tenant_tables() -> frozenset[str]:
    """The tables that tenants have for themselves, shared ones of the same name or not."""
    types = _types()
    known = _memo.under(tables.known.generation, types)
    if "tables" not in known:
        known["tables"] = frozenset(_tables_of(types)) if apps.models_ready else frozenset()
    return known["tables"]


def _tables_of(types: Mapping[str, Any]) -> Iterator[str]:
    names = {name for kind in types.values() for name in kind}
    spellings: dict[str, set[str]] = {}
    for model in apps.get_models(include_auto_created=True, include_swapped=True):
        table = model._meta.db_table
        spellings.setdefault(sql.table_name(table), set()).add(table)
    for config in apps.get_app_configs():
        kind = type(config)
        if names.isdisjoint((config.name, f"{kind.__module__}.{kind.__name__}")):
            continue
        for model in config.get_models(include_auto_created=True, include_swapped=True):
            table = model._meta.db_table
            # Not one that is called alike but for its case, or is in a schema of its own.
            if _PLAIN_TABLE.fullmatch(table) and spellings[table] == {table}:
                yield table


def own_schema(schema: Any) -> str | None:
    """``schema`` if it is a tenant's, where the search for a table ends if it has one."""
    if (
        not isinstance(schema, str)
        or schema == _public()
        or schema in getattr(django_settings, "PG_EXTRA_SEARCH_PATHS", ())
        or not _PLAIN_SCHEMA.fullmatch(schema)
    ):
        return None
    return schema


def written(names: frozenset[str], own: str, path: Sequence[str]) -> frozenset[str]:
    """The registers of a write.

    Args:
        names: the tables that it changes.
        own: that of them which it names without a schema.
        path: the schemas in which the database looks for it.
    """
    if own not in names or own not in tenant_tables():
        return names
    schema = own_schema(path[0])
    registers = {f"{_ANY}.{own}"} if schema is None else {f"{_ANY}.{own}", f"{schema}.{own}"}
    return (names - {own}) | registers


def read(names: tuple[str, ...], certain: Collection[str], schema: str | None) -> tuple[str, ...]:
    """The registers of a read.

    Args:
        names: the tables that it reads, or that are connected with them.
        certain: those of them that are read from ``schema``, if it has them.
        schema: from :func:`own_schema`.
    """
    of_tenants = tenant_tables()
    found: list[str] = []
    for name in names:
        found.append(name)
        if name in of_tenants:
            is_certain = schema is not None and name in certain
            found.append(f"{schema if is_certain else _ANY}.{name}")
    return tuple(found)


def claims(registers: Sequence[str], schema: str | None) -> frozenset[str]:
    """The tables that :func:`read` has taken for those of ``schema``."""
    if schema is None:
        return frozenset()
    start = f"{schema}."
    return frozenset(name.removeprefix(start) for name in registers if name.startswith(start))


def tables_of(registers: Collection[str]) -> tuple[str, ...]:
    """The tables behind registers, for those who watch."""
    of_tenants = tenant_tables()
    found = set()
    for name in registers:
        tail = name.rpartition(".")[2]
        found.add(tail if tail in of_tenants else name)
    return tuple(sorted(found))
