"""What the database says its tables are: views, partitions, tables with row-level security.

A query names a table; what stands behind the name, only the database knows. A view changes with
other tables. A policy may read other tables, too. A row that is written to a partition is also
one of the partitioned table.

The catalog is asked when an answer is about to be stored: a hit never waits for it. It is asked
once per process, and again when the register of everything in the namespace has changed: DDL that
makes a name mean something else, and every migration, changes that.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from ormcache import tables as table_names
from ormcache.conf import Settings
from ormcache.memo import Memo
from ormcache.questions import ask, savepoint
from ormcache.reasons import Reason
from ormcache.sql import fold
from ormcache.stores import Breaker
from ormcache.transactions import ConnectionState, in_transaction, is_undisturbed

_RELATIVES_LIMIT = 100

# Rows of (kind, name, parent). Relations of one name in several schemas are taken for one.
_POSTGRESQL = """
    SELECT CASE c.relkind
               WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'foreign table'
           END, c.relname::text, NULL
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL
    SELECT 'row security', c.relname::text, NULL FROM pg_catalog.pg_class c WHERE c.relrowsecurity
    UNION ALL
    SELECT 'child', child.relname::text, parent.relname::text
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid
    JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
    WHERE parent.relkind IN ('r', 'p', 'f')
"""
_MYSQL = """
    SELECT CASE
               WHEN table_type LIKE '%VIEW%' THEN 'view'
               WHEN engine = 'MRG_MyISAM' THEN 'merge table'
               ELSE 'foreign table'
           END, table_name, NULL
    FROM information_schema.tables
    WHERE table_schema = DATABASE()
      AND (table_type LIKE '%VIEW%'
           OR engine IN ('MRG_MyISAM', 'FEDERATED', 'CONNECT', 'SPIDER', 'S3'))
"""
_SQLITE = """
    SELECT CASE type WHEN 'view' THEN 'view' ELSE 'virtual table' END, name, NULL
    FROM (SELECT * FROM sqlite_master UNION ALL SELECT * FROM sqlite_temp_master)
    WHERE type = 'view' OR sql LIKE 'CREATE VIRTUAL%'
"""
_QUESTIONS = {"postgresql": _POSTGRESQL, "mysql": _MYSQL, "sqlite": _SQLITE}


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """What one database has told. Names are folded, as :func:`ormcache.sql.fold` does."""

    views: Mapping[str, str]
    """What is no table, and what it is instead."""
    row_security: frozenset[str]
    relatives: Mapping[str, frozenset[str]]
    """For each table with children, and each child: all above and below it."""


_NOTHING = Catalog({}, frozenset(), {})
_known: dict[str, tuple[str, Catalog]] = {}
"""By namespace: the register of everything under which the catalog was read, and the catalog."""
_breakers: dict[str, Breaker] = {}
_registers: Memo[tuple[str, tuple[str, ...]], tuple[str, ...]] = Memo()


def registers(namespace: str, tables: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """The registers on which a query of ``tables`` depends, as far as the catalog is known.

    These tables and their relatives: a row may be written through any of them.
    """
    known = _known.get(namespace)
    if known is None or not known[1].relatives:
        return tables
    catalog = known[1]
    memo = _registers.under(settings, table_names.known.generation, catalog)
    found = memo.get((namespace, tables))
    if found is None:
        more = {
            relative
            for name in tables
            if not _is_vouched_for(name, settings)
            for relative in catalog.relatives.get(name, ())
        }
        found = (*tables, *sorted(more.difference(tables)))
        if len(found) - len(tables) > _RELATIVES_LIMIT:
            found = tables
        memo[namespace, tables] = found
    return found


def _is_vouched_for(name: str, settings: Settings) -> bool:
    return not table_names.not_vouched_for((name,), settings)


def judge(
    catalog: Catalog,
    namespace: str,
    tables: tuple[str, ...],
    read: tuple[str, ...],
    settings: Settings,
) -> tuple[Reason | None, str]:
    """Why an answer must not be stored, with the names of the cause; or (None, "").

    Args:
        catalog: from :func:`look`.
        namespace: that of the query.
        tables: the tables of the query.
        read: the registers that were asked for when it was looked up.
        settings: those in force.
    """
    if catalog is _NOTHING:
        return None, ""
    suspects = table_names.not_vouched_for(tables, settings)
    secured = suspects & catalog.row_security
    if secured:
        return Reason.ROW_SECURITY, ", ".join(sorted(secured))
    relatives = {name for table in suspects for name in catalog.relatives.get(table, ())}
    if len(relatives) > _RELATIVES_LIMIT:
        return Reason.PARTITIONS, ", ".join(sorted(suspects & catalog.relatives.keys()))
    views = (suspects | relatives) & catalog.views.keys()
    if views:
        return Reason.VIEW, ", ".join(sorted(f"{catalog.views[name]} {name}" for name in views))
    if read != registers(namespace, tables, settings):
        # Whoever wrote to one of the others in the meantime was not noticed.
        return Reason.CATALOG_UNKNOWN, ", ".join(sorted(relatives))
    return None, ""


def look(connection: Any, state: ConnectionState, namespace: str, vector: str) -> Catalog | None:
    """The catalog of the database behind ``connection``; None if it cannot be had now.

    Args:
        connection: an open one.
        state: its state.
        namespace: its namespace.
        vector: registers of the namespace, from :class:`ormcache.stores.Lookup`. While that of
            everything, the first of them, is the same, so is the catalog.
    """
    question = _QUESTIONS.get(connection.vendor)
    if question is None:
        return _NOTHING
    everything = vector.split(";", 2)[1]
    known = _known.get(namespace)
    if known is not None and known[0] == everything:
        return known[1]
    rows = _ask(connection, state, namespace, question)
    if rows is None:
        return None
    catalog = _read(rows)
    _known[namespace] = (everything, catalog)
    return catalog


def _ask(
    connection: Any, state: ConnectionState, namespace: str, question: str
) -> list[tuple[Any, ...]] | None:
    breaker = _breakers.setdefault(namespace, Breaker())
    if not is_undisturbed(connection, state) or not breaker.allows():
        return None
    try:
        with savepoint(connection) if in_transaction(connection, state) else nullcontext():
            rows = ask(connection, question)
    except Exception:
        # It is no reason for the read to fail, nor is a connection that is lost.
        breaker.failed()
        return None
    breaker.succeeded()
    return rows


def _read(rows: Iterable[tuple[Any, ...]]) -> Catalog:
    views: dict[str, str] = {}
    row_security: set[str] = set()
    parents: dict[str, set[str]] = defaultdict(set)
    for kind, name, parent in rows:
        if kind == "row security":
            row_security.add(fold(name))
        elif kind == "child":
            parents[fold(name)].add(fold(parent))
        else:
            views[fold(name)] = kind
    if not (views or row_security or parents):
        return _NOTHING
    return Catalog(views, frozenset(row_security), _relatives(parents))


def _relatives(parents: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    children: dict[str, set[str]] = defaultdict(set)
    for child, above in parents.items():
        for parent in above:
            children[parent].add(child)
    return {
        name: frozenset((_reach(name, parents) | _reach(name, children)) - {name})
        for name in {*parents, *children}
    }


def _reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found
