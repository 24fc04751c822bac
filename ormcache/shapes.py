"""Recognises simple queries without compiling them.

Compiling a query costs more than a hit. Most queries differ from an earlier one in their values
alone: they have the same *shape*. The first query of a shape is compiled as ever, and leaves a
*template*: its tables, and what the compiler works out for those who read the rows. The next is
looked up by its shape and its values; only a miss is compiled.

A shape holds all that Django's compiler looks at, for the kinds of queries that are listed
here: a model and its joins, lookups of columns by plain values, order by name, slices,
``values()``, ``count()`` and ``exists()``. A query with anything else (an unknown attribute
will do) has no shape and is compiled.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import django
from django.db.models import Count, Value
from django.db.models.expressions import Col, Star
from django.db.models.lookups import Lookup
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import WhereNode

from ormcache import keys, tables
from ormcache.conf import Settings
from ormcache.exceptions import NotEncodable
from ormcache.memo import Memo

_PLAIN = frozenset(
    {
        *(int, str, bool, float, bytes, type(None), decimal.Decimal, uuid.UUID),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    }
)
# What the compiler leaves behind for those who read its rows.
_COMPILED = ("select", "klass_info", "annotation_col_map", "col_count", "has_extra_select")
# Attributes of a query that do not change its SQL, or that follow from others.
_IRRELEVANT = frozenset(
    {
        *("model", "alias_refcount", "table_map", "used_aliases", "base_table", "where"),
        *("_annotation_select_cache", "_extra_select_cache", "filter_is_sticky"),
        *("_lookup_joins", "contains_subquery", "low_mark", "high_mark", "alias_map"),
    }
)
_EMPTY_ONLY = frozenset(
    {
        *("extra", "external_aliases", "extra_order_by", "extra_tables", "combinator"),
        *("combined_queries", "explain_info", "select_for_update", "subquery", "group_by"),
        *("select_for_update_nowait", "select_for_update_skip_locked", "select_for_update_of"),
        *("select_for_no_key_update", "extra_select_mask", "_filtered_relations"),
    }
)


class _NoShape(Exception):
    """The query is of no kind that is recognised here."""


class Shape(NamedTuple):
    """What two queries have in common that differ in their values alone."""

    key: tuple[Any, ...]
    values: tuple[Any, ...]


class _Column(NamedTuple):
    """A column in a shape. The field is told by its id(), which is quicker to compare."""

    alias: str
    field: int
    kind: type
    name: str


class Template:
    """What the first query of a shape left behind."""

    __slots__ = ("compiled", "digest", "kept", "sql", "tables")

    def __init__(
        self, shape: Shape, compiler: Any, sql: str, names: tuple[str, ...], context: object
    ) -> None:
        self.tables = names
        self.sql = sql
        self.compiled = tuple(getattr(compiler, name) for name in _COMPILED)
        # Fields are told apart by id(): they must not be collected while the shape is known.
        self.kept = compiler.query
        text = repr((django.VERSION, context, names, _spell(shape.key), _constant_parts(sql)))
        self.digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20)

    def key(self, values: tuple[Any, ...]) -> str:
        """The key of the entry for these values: the same in every process."""
        digest = self.digest.copy()
        digest.update(repr(values).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def restore(self, compiler: Any) -> None:
        """Give ``compiler`` what ``as_sql()`` would have worked out."""
        for name, value in zip(_COMPILED, self.compiled, strict=True):
            setattr(compiler, name, value)


def _constant_parts(sql: str) -> tuple[str, str]:
    """What of the text does not depend on values: up to WHERE, and the order.

    In the key it tells versions of a project apart whose columns, joins or Meta.ordering differ.
    """
    head = sql.partition(" WHERE ")[0]
    order = sql.rpartition(" ORDER BY ")[2] if " ORDER BY " in sql else ""
    return re.split(r" (?:LIMIT|OFFSET|FETCH) ", head)[0], re.split(
        r" (?:LIMIT|OFFSET|FETCH) ", order
    )[0]


_memo: Memo[tuple[Any, ...], Template | None] = Memo()


def templates(settings: Settings) -> dict[tuple[Any, ...], Template | None]:
    """The templates under these settings, by ``(context, shape.key)``.

    None for a shape that has to be compiled each time.
    """
    return _memo.under(settings, tables.known.generation)


def shape_of(compiler: Any) -> Shape | None:
    """The shape and the values of the query of ``compiler``; None if it has no shape."""
    query = compiler.query
    if type(query) is not Query:
        return None
    values: list[Any] = [query.low_mark, query.high_mark]
    try:
        key = (
            type(compiler),
            compiler.elide_empty,
            query.model,
            _sources(query),
            _where(query.where, values),
            *_attributes(query),
        )
        return Shape(key, tuple(values))
    except _NoShape:
        return None


def _sources(query: Any) -> tuple[Any, ...]:
    """The tables and joins that are there before compiling, also those that are not used.

    Compiling may use these again, or add more for the order and for select_related; how is
    decided by the rest of the shape.
    """
    parts: list[tuple[Any, ...]] = []
    for alias, source in query.alias_map.items():
        is_used = query.alias_refcount[alias] > 0
        if type(source) is BaseTable:
            parts.append((alias, source.table_name, is_used))
            continue
        field = source.join_field
        if (
            type(source) is not Join
            or source.filtered_relation is not None
            # A generic relation asks for its content type while it is compiled.
            or not type(field).__module__.startswith("django.db.models.")
        ):
            raise _NoShape
        joined = _Column(source.parent_alias, id(field), type(field), field.name)
        parts.append(
            (alias, source.table_name, is_used, source.join_type, source.nullable, joined)
        )
    return tuple(parts)


def _where(node: Any, values: list[Any]) -> tuple[Any, ...]:
    if type(node) is not WhereNode:
        raise _NoShape
    parts: list[Any] = [node.connector, node.negated]
    for child in node.children:
        if isinstance(child, WhereNode):
            parts.append(_where(child, values))
            continue
        kind = type(child)
        if not isinstance(child, Lookup) or not kind.__module__.startswith("django.db.models."):
            raise _NoShape
        column = child.lhs
        if type(column) is not Col or child.bilateral_transforms:
            raise _NoShape
        parts.append((kind, _column(column)))
        values.append(_value(child.rhs))
    return tuple(parts)


def _column(column: Any) -> _Column:
    field = column.target
    # A field of one's own may look at anything when it prepares a value.
    if column.output_field is not field or not type(field).__module__.startswith("django."):
        raise _NoShape
    return _Column(column.alias, id(field), type(field), field.column)


def _value(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        # The rest of the plain types spell themselves exactly.
        return (
            value
            if kind is not datetime.datetime and kind is not datetime.time
            else (_identity(value))
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_value(item) for item in value]
    raise _NoShape


def _identity(value: Any) -> object:
    try:
        return keys.identity(value)
    except NotEncodable:
        raise _NoShape from None


def _attributes(query: Any) -> list[Any]:
    """The attributes that were set on this query, each in a form that can be compared."""
    found: list[Any] = []
    for name, value in vars(query).items():
        if name in _IRRELEVANT:
            continue
        if name in _EMPTY_ONLY:
            if value:
                raise _NoShape
            continue
        spell = _SPELLINGS.get(name)
        if spell is None:
            raise _NoShape
        if value != _DEFAULTS.get(name, _UNSET):
            found.append((name, spell(value)))
    # Which attributes were set depends on the calls, in which order does not matter.
    found.sort(key=_first)
    return found


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _names(value: Iterable[Any]) -> tuple[str, ...]:
    """Order and the like: names only, no expressions; "?" is a name, too."""
    names = tuple(value)
    for name in names:
        if type(name) is not str:
            raise _NoShape
    return names


def _mask(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(sorted(value))


def _columns(value: Iterable[Any]) -> tuple[Any, ...]:
    parts = []
    for column in value:
        if type(column) is not Col:
            raise _NoShape
        parts.append(_column(column))
    return tuple(parts)


def _related(value: Any) -> Any:
    """select_related: False, True or a dict of dicts."""
    if isinstance(value, dict):
        return tuple((name, _related(inner)) for name, inner in value.items())
    return value


def _deferred(value: tuple[Iterable[str], bool]) -> tuple[frozenset[str], bool]:
    return frozenset(value[0]), value[1]


def _selected(value: Any) -> Any:
    """Which output column is which: positions and names, of columns only."""
    if value is None:
        return None
    return tuple(
        (name, index if type(index) is int else str(index)) for name, index in value.items()
    )


def _annotations(value: dict[str, Any]) -> tuple[Any, ...]:
    """Those of count() and exists(), and no others."""
    parts: list[tuple[str, int | str]] = []
    for name, annotation in value.items():
        if type(annotation) is Count and _counts_rows(annotation):
            parts.append((name, "count"))
        elif type(annotation) is Value and type(annotation.value) is int:
            parts.append((name, annotation.value))
        else:
            raise _NoShape
    return tuple(parts)


def _counts_rows(annotation: Any) -> bool:
    sources = annotation.get_source_expressions()
    return (
        type(sources[0]) is Star
        and not any(sources[1:])
        and not annotation.distinct
        and not annotation.extra
    )


def _as_it_is(value: Any) -> Any:
    return value


# Setting an attribute to what it is anyway (order_by() does) makes no other shape.
_UNSET = object()
_DEFAULTS: dict[str, Any] = {"alias_cols": True, "annotations": {}}
_SPELLINGS: dict[str, Callable[[Any], Any]] = {
    "alias_cols": _as_it_is,
    "annotation_select_mask": _mask,
    "annotations": _annotations,
    "default_cols": _as_it_is,
    "default_ordering": _as_it_is,
    "deferred_loading": _deferred,
    "distinct": _as_it_is,
    "distinct_fields": _names,
    "max_depth": _as_it_is,
    "order_by": _names,
    "select": _columns,
    "select_related": _related,
    "selected": _selected,
    "standard_ordering": _as_it_is,
    "values_select": _names,
}
_DEFAULTS |= {name: getattr(Query, name) for name in _SPELLINGS if hasattr(Query, name)}


def _spell(part: Any) -> Any:
    """A shape in words, without what differs between processes."""
    if isinstance(part, _Column):
        return part.alias, _spell(part.kind), part.name
    if isinstance(part, tuple):
        return tuple(_spell(item) for item in part)
    if isinstance(part, frozenset):
        return sorted(part)
    if isinstance(part, type):
        return f"{part.__module__}.{part.__qualname__}"
    return part
