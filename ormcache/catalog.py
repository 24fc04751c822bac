"""What the database says its tables are: views, partitions, tables with row-level security.

A query names a table; what stands behind the name, only the database knows. A view changes with
other tables. A policy may read other tables, too. A row that is written to a partition is also
one of the partitioned table. A trigger writes to tables of which the statement says nothing.

The catalog is asked when an answer is about to be stored: a hit never waits for it. It is asked
once per process, and again when the register of everything in the namespace has changed: DDL that
makes a name mean something else, and every migration, changes that.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from ormcache import functions, sql, triggers
from ormcache import tables as table_names
from ormcache.conf import Settings, current
from ormcache.connection_state import ConnectionState, in_transaction
from ormcache.interruptions import let_through
from ormcache.memo import Memo
from ormcache.questions import ask, savepoint
from ormcache.reasons import Reason
from ormcache.relations import reach
from ormcache.routers import schemas, tenancy
from ormcache.routers.namespaces import Route
from ormcache.snapshots import is_undisturbed
from ormcache.stores import EVERYTHING, Breaker
from ormcache.triggers import Triggers

_RELATIVES_LIMIT = 100

# Stands for a body that is kept as a tree: all tables in it as if they were written, and what it
# calls. pg_get_ruledef() and its like would lock the tables, so a read would wait for whoever has
# locked any of them.
_STATEMENTS_OF = """(
        SELECT concat('UPDATE ', string_agg('"' || t.relname || '"', ' '), ';',
                      string_agg('"' || f.proname || '"', ' '))
        FROM pg_catalog.pg_depend d
        LEFT JOIN pg_catalog.pg_class t
            ON d.refclassid = 'pg_catalog.pg_class'::regclass AND t.oid = d.refobjid
        LEFT JOIN pg_catalog.pg_proc f
            ON d.refclassid = 'pg_catalog.pg_proc'::regclass AND f.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.{0}'::regclass AND d.objid = {1}.oid)"""
# Rows of (kind, name, parent or expression). Relations of one name in several schemas are taken
# for one. A routine whose body is no string, BEGIN ATOMIC … END, has nothing in prosrc.
_POSTGRESQL = f"""
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
    UNION ALL
    SELECT DISTINCT 'trigger', c.relname::text, p.prosrc
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'trigger', c.relname::text, {_STATEMENTS_OF.format("pg_rewrite", "r")}
    FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE r.ev_type <> '1' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL
    SELECT DISTINCT 'routine', p.proname::text,
           CASE WHEN p.prosrc <> '' THEN p.prosrc ELSE {_STATEMENTS_OF.format("pg_proc", "p")} END
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE l.lanname NOT IN ('c', 'internal')
      AND p.pronamespace NOT IN (
          SELECT oid FROM pg_catalog.pg_namespace
          WHERE nspname IN ('pg_catalog', 'information_schema'))
      AND (EXISTS (SELECT 1 FROM pg_catalog.pg_trigger WHERE NOT tgisinternal)
           OR EXISTS (
               SELECT 1
               FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE r.ev_type <> '1'
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema')))
      AND NOT EXISTS (
          SELECT 1 FROM pg_catalog.pg_depend d
          WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
"""
# Converted, as MySQL refuses a UNION of columns with several collations.
_MYSQL = """
    SELECT CASE
               WHEN table_type LIKE '%VIEW%' THEN 'view'
               WHEN engine = 'MRG_MyISAM' THEN 'merge table'
               ELSE 'foreign table'
           END, CONVERT(table_name USING utf8mb4), NULL
    FROM information_schema.tables
    WHERE table_schema = DATABASE()
      AND (table_type LIKE '%VIEW%'
           OR engine IN ('MRG_MyISAM', 'FEDERATED', 'CONNECT', 'SPIDER', 'S3'))
    UNION ALL
    SELECT 'virtual column', CONVERT(table_name USING utf8mb4),
           CONVERT(generation_expression USING utf8mb4)
    FROM information_schema.columns
    WHERE table_schema = DATABASE() AND extra LIKE '%VIRTUAL%'
    UNION ALL
    SELECT 'trigger', CONVERT(event_object_table USING utf8mb4),
           CONVERT(action_statement USING utf8mb4)
    FROM information_schema.triggers WHERE event_object_schema = DATABASE()
    UNION ALL
    SELECT 'routine', CONVERT(routine_name USING utf8mb4),
           CONVERT(routine_definition USING utf8mb4)
    FROM information_schema.routines WHERE routine_schema = DATABASE()
"""
_SQLITE = """
    SELECT CASE type WHEN 'view' THEN 'view' ELSE 'virtual table' END, name, NULL
    FROM (SELECT * FROM sqlite_master UNION ALL SELECT * FROM sqlite_temp_master)
    WHERE type = 'view' OR sql LIKE 'CREATE VIRTUAL%'
    UNION ALL
    SELECT 'trigger', tbl_name, sql
    FROM (SELECT * FROM sqlite_master UNION ALL SELECT * FROM sqlite_temp_master)
    WHERE type = 'trigger'
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
    virtual: Mapping[str, frozenset[str]]
    """For each table with columns that are worked out when they are read: the functions that they
    call. MariaDB lets them call NOW()."""
    triggers: Triggers


_NOTHING = Catalog({}, frozenset(), {}, {}, triggers.NONE)
_known: dict[str, tuple[str, Catalog]] = {}
"""By namespace: the register of everything under which the catalog was read, and the catalog."""
_breakers: dict[str, Breaker] = {}
_registers: Memo[tuple[str, tuple[str, ...]], tuple[str, ...]] = Memo()


def registers(
    connection: Any,
    state: ConnectionState,
    route: Route,
    tables: tuple[str, ...],
    elsewhere: frozenset[str],
) -> tuple[str, ...]:
    """The registers on which a query depends, as far as the catalog is known.

    Those of its tables and of their relatives: a row may be written through any of them. Where
    there are tenants, see :mod:`ormcache.routers.tenancy`.

    Args:
        connection: that of the query.
        state: its state.
        route: its route.
        tables: the tables of the query.
        elsewhere: those of them that may be in another schema than the one that is searched first.
    """
    names = _with_relatives(route.namespace, tables, current())
    if not route.has_tenants:
        return names
    schema = _own_schema(connection, state)
    certain = [
        name
        for name in tables
        if name not in elsewhere and not _is_missing((route.namespace, schema, name))
    ]
    return tenancy.read(names, certain, schema)


def _own_schema(connection: Any, state: ConnectionState) -> str | None:
    """The tenant whose schema the next query searches first."""
    if not schemas.follows_attributes(connection, state.overridden):
        return None
    return tenancy.own_schema(connection.schema_name)


def _with_relatives(
    namespace: str, tables: tuple[str, ...], settings: Settings
) -> tuple[str, ...]:
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
    catalog: Catalog, tables: tuple[str, ...], settings: Settings, *, has_fence: bool = False
) -> tuple[Reason | None, str]:
    """Why an answer must not be stored, with the names of the cause; or (None, "").

    Args:
        catalog: from :func:`look`.
        tables: the tables of the query.
        settings: those in force.
        has_fence: whether the fence is looked into.
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
    undeclared = catalog.triggers.undeclared(suspects | relatives, settings, has_fence=has_fence)
    if undeclared:
        return Reason.TRIGGER, ", ".join(undeclared)
    for name in tables:
        # Columns may call no function of anybody's own: what is not known there is built in.
        cause = functions.volatile_among(catalog.virtual.get(name, ()), "mysql")
        if cause:
            return Reason.NON_DETERMINISTIC, f"{cause} in a column of {name}"
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


# --- tables of tenants ---------------------------------------------------------------------

_IN_SCHEMA = """
    SELECT c.relname::text
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p')
"""
_PLACES_LIMIT = 100_000

_Place = tuple[str, str | None, str]
"""A namespace, a schema and a table."""


class _Found(NamedTuple):
    """Whether a schema has a table, and the registers under which that was found out."""

    under: tuple[str, str]
    """That of everything and that of the table: DDL changes one of them."""
    exists: bool


_places: dict[_Place, _Found] = {}


def _is_missing(place: _Place) -> bool:
    found = _places.get(place)
    return found is not None and not found.exists


def was_read_from(connection: Any, state: ConnectionState, registers: Sequence[str]) -> bool:
    """Whether a query that has just been run has searched the schema that its registers name."""
    schema = _own_schema(connection, state)
    searched = schemas.searched(connection, state.overridden)
    if searched is not None and searched[0] == schema:
        return True
    return not tenancy.claims(registers, schema)


def confirm(
    connection: Any, state: ConnectionState, route: Route, read: tuple[str, ...], vector: str
) -> bool:
    """Find out whether the schema has what was taken for its tables.

    What it does not have, :func:`registers` will not take for its tables any more. Returns whether
    the database has answered.

    Args:
        connection: that of the query.
        state: its state.
        route: its route.
        read: the registers that were asked for, from :func:`registers`.
        vector: what they showed.
    """
    values = vector.split(";")[1:]
    if len(values) != len(read) + 1:
        return False
    shown = dict(zip((EVERYTHING, *read), values, strict=True))
    schema = _own_schema(connection, state)
    claims = tenancy.claims(read, schema)
    under = {
        (route.namespace, schema, name): (shown[EVERYTHING], shown[name])
        for name in read
        if name in tenancy.tenant_tables()
    }
    # What was missing may be there by now: then it is taken for the schema's the next time.
    outdated = [place for place, registers in under.items() if not _is_known(place, registers)]
    for place in outdated:
        _places.pop(place, None)
    asked = [place for place in outdated if place[2] in claims]
    return not asked or _ask_for(connection, state, asked, under)


def _is_known(place: _Place, under: tuple[str, str]) -> bool:
    found = _places.get(place)
    return found is not None and found.under == under


def _ask_for(
    connection: Any,
    state: ConnectionState,
    places: Sequence[_Place],
    under: Mapping[_Place, tuple[str, str]],
) -> bool:
    """Find out which tables a schema has; returns whether the database has answered."""
    namespace, schema, _ = places[0]
    names = [name for _, _, name in places]
    rows = _ask(connection, state, namespace, _IN_SCHEMA, (schema, names))
    if rows is None:
        return False
    there = {name for (name,) in rows}
    # A statement that was prepared goes on meaning the table that it meant at that time.
    if getattr(connection.connection, "prepare_threshold", None) is not None:
        there = set()
    if len(_places) > _PLACES_LIMIT:
        _places.clear()
    for place in places:
        _places[place] = _Found(under[place], place[2] in there)
    return True


# --- asking --------------------------------------------------------------------------------


def _ask(
    connection: Any,
    state: ConnectionState,
    namespace: str,
    question: str,
    parameters: Sequence[Any] | None = None,
) -> list[tuple[Any, ...]] | None:
    breaker = _breakers.setdefault(namespace, Breaker())
    if not is_undisturbed(connection, state) or not breaker.allows():
        return None
    try:
        with savepoint(connection) if in_transaction(connection, state) else nullcontext():
            rows = ask(connection, question, parameters)
    except Exception as error:
        let_through(error)
        # It is no reason for the read to fail, nor is a connection that is lost.
        breaker.failed()
        return None
    breaker.succeeded()
    return rows


def _read(rows: Iterable[tuple[Any, ...]]) -> Catalog:
    views: dict[str, str] = {}
    row_security: set[str] = set()
    parents: dict[str, set[str]] = defaultdict(set)
    virtual: dict[str, frozenset[str]] = defaultdict(frozenset)
    fired: list[tuple[str, str]] = []
    routines: dict[str, str] = defaultdict(str)
    for kind, name, more in rows:
        table = sql.fold(name)
        if kind == "row security":
            row_security.add(table)
        elif kind == "child":
            parents[table].add(sql.fold(more))
        elif kind == "virtual column":
            virtual[table] |= sql.analyse_read(more, "mysql").functions
        elif kind == "trigger":
            fired.append((table, more or ""))
        elif kind == "routine":
            # Of several with one name it may be any that is called.
            routines[table] += f"{more or ''};"
        else:
            views[table] = kind
    if not (views or row_security or parents or virtual or fired):
        return _NOTHING
    relatives = _relatives(parents)
    above = {name: frozenset(reach(name, parents)) for name in parents}
    found = triggers.read(fired, routines, relatives, above)
    return Catalog(views, frozenset(row_security), relatives, virtual, found)


def _relatives(parents: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    children: dict[str, set[str]] = defaultdict(set)
    for child, above in parents.items():
        for parent in above:
            children[parent].add(child)
    return {
        name: frozenset((reach(name, parents) | reach(name, children)) - {name})
        for name in {*parents, *children}
    }
