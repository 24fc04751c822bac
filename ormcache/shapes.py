"""Recognises simple queries without compiling them.

Compiling a query costs more than a hit. Most queries differ from an earlier one in their values
alone: they have the same *shape*. The first query of a shape is compiled as ever; what it leaves
for the others is in :mod:`ormcache.templates`.

A shape holds all that Django's compiler looks at, for the kinds of queries that are listed
here: a model and its joins, lookups of columns by plain values, order by name, slices,
``values()``, ``count()``, ``exists()`` and aggregates of columns over all rows. A query with
anything else (an unknown attribute will do) has no shape and is compiled.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.core.exceptions import FieldDoesNotExist
from django.db.models import (
    Avg,
    Count,
    DecimalField,
    FloatField,
    IntegerField,
    Max,
    Min,
    Sum,
    Value,
)
from django.db.models.constants import LOOKUP_SEP
from django.db.models.expressions import Col, Star
from django.db.models.lookups import Lookup
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import WhereNode

from ormcache import keys, tables
from ormcache.exceptions import NotEncodable

# repr() of these tells the type and the exact value.
PLAIN = frozenset(
    {
        *(str, bool, float, bytes, type(None), decimal.Decimal, uuid.UUID),
        *(datetime.date, datetime.timedelta),
    }
)
# No integer column holds more: Django answers without asking, and repr() refuses what is huge.
_LARGE = 1 << 64
# A query of more conditions will hardly be met again, and its shape takes much memory.
_CONDITIONS_LIMIT = 100
# How often an order may lead from the ordering of one model to that of the next.
_DEPTH_LIMIT = 4
AGGREGATES = frozenset({Avg, Count, Max, Min, Sum})
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
        *("combined_queries", "explain_info", "select_for_update", "subquery"),
        *("select_for_update_nowait", "select_for_update_skip_locked", "select_for_update_of"),
        *("select_for_no_key_update", "extra_select_mask", "_filtered_relations"),
        # It may name transforms, whose SQL depends on the current time zone.
        "distinct_fields",
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


def shape_of(compiler: Any) -> Shape | None:
    """The shape and the values of the query of ``compiler``; None if it has no shape."""
    query = compiler.query
    if type(query) is not Query or query.model is None:
        return None
    values: list[Any] = [query.low_mark, query.high_mark]
    try:
        key = (
            type(compiler),
            compiler.elide_empty,
            query.model,
            _options(query),
            _sources(query),
            _where(query.where, values),
            *_attributes(query),
        )
    except _NoShape:
        return None
    return Shape(key, tuple(values)) if len(values) <= _CONDITIONS_LIMIT else None


def _options(query: Any) -> tuple[Any, ...]:
    """What is asked of the model's Meta; some change it while the process runs."""
    options = query.model._meta
    # Django takes None for none.
    ordering = query.order_by or (query.default_ordering and options.ordering) or ()
    return (options.db_table, *ordering, *_met(options, ordering))


def _met(options: Any, ordering: Iterable[Any], depth: int = 0) -> list[Any]:
    """What an order asks of the Meta of other models: their tables, and their own ordering.

    Django follows that where an order names a relation and no column.
    """
    found: list[Any] = []
    for name in ordering:
        path = _followed(options, name) if type(name) is str else ()
        if not path:
            continue
        if depth > _DEPTH_LIMIT:
            # Perhaps in circles, which Django refuses.
            raise _NoShape
        *_, (last, is_ordered) = path
        found.extend(other.db_table for other, _ in path)
        if is_ordered:
            follows = last.ordering or ()
            found.extend((tuple(follows), *_met(last, follows, depth + 1)))
    return found


_paths: dict[tuple[Any, str], tuple[tuple[Any, bool], ...]] = {}
_paths_of = -1
"""The generation of the models that the paths lead through."""


def _followed(options: Any, name: str) -> tuple[tuple[Any, bool], ...]:
    """The Meta of the models to which the name of an order leads, and whether it ends there."""
    global _paths_of
    if _paths_of != tables.known.generation:
        _paths.clear()
        _paths_of = tables.known.generation
    path = _paths.get((options, name))
    if path is None:
        path = _paths[options, name] = tuple(_follow(options, name.lstrip("-+")))
    return path


def _follow(options: Any, name: str) -> Iterator[tuple[Any, bool]]:
    pieces = name.split(LOOKUP_SEP)
    for index, piece in enumerate(pieces):
        try:
            field = options.pk if piece == "pk" else options.get_field(piece)
        except FieldDoesNotExist:
            # An annotation, a transform, or what Django will complain of.
            return
        is_last = index == len(pieces) - 1
        is_column = is_last and (name == "pk" or getattr(field, "attname", None) == piece)
        if is_column or not field.is_relation or field.related_model is None:
            return
        options = field.related_model._meta
        yield options, is_last


def _sources(query: Any) -> tuple[Any, ...]:
    """The tables and joins that are there before compiling, also those that are not used.

    Compiling may use these again, or add more for the order and for select_related; how is
    decided by the rest of the shape.
    """
    parts: list[tuple[Any, ...]] = []
    for alias, source in query.alias_map.items():
        is_used = query.alias_refcount[alias] > 0
        if source.table_alias != alias:
            raise _NoShape
        if type(source) is BaseTable:
            parts.append((alias, source.table_name, is_used))
            continue
        if type(source) is not Join or source.filtered_relation is not None:
            raise _NoShape
        field: Any = source.join_field
        joined = _Column(source.parent_alias, id(field), type(field), field.name)
        parts.append(
            (alias, source.table_name, is_used, source.join_type, source.nullable, joined)
        )
    return tuple(parts)


def _where(node: Any, values: list[Any]) -> tuple[Any, ...]:
    if type(node) is not WhereNode:
        raise _NoShape
    parts: list[Any] = [node.connector, node.negated, node.resolved]
    for child in node.children:
        if isinstance(child, WhereNode):
            parts.append(_where(child, values))
            continue
        if not isinstance(child, Lookup) or child.bilateral_transforms:
            raise _NoShape
        column = child.lhs
        if type(column) is not Col:
            raise _NoShape
        parts.append((type(child), _column(column)))
        values.append(_value(child.rhs))
    return tuple(parts)


def _column(column: Any) -> _Column:
    field = column.target
    if column.output_field is not field:
        raise _NoShape
    return _Column(column.alias, id(field), type(field), field.column)


def _value(value: Any) -> Any:
    """A stand-in for ``value`` whose ``repr`` is exact."""
    kind = type(value)
    if kind in PLAIN or (kind is int and -_LARGE < value < _LARGE):
        return value
    if kind is list and value:
        return [_value(item) for item in value]
    if kind is tuple:
        return ("tuple", [_value(item) for item in value])
    if kind is datetime.datetime or kind is datetime.time or _is_choice(value):
        try:
            return keys.identity(value)
        except NotEncodable:
            raise _NoShape from None
    # Among others an empty list: Django answers without asking.
    raise _NoShape


def _is_choice(value: Any) -> bool:
    """Whether it is a member of models.TextChoices and their like, which is no expression."""
    return isinstance(value, enum.Enum) and not (
        hasattr(value, "as_sql") or hasattr(value, "resolve_expression")
    )


def _attributes(query: Any) -> list[Any]:
    """The attributes that were set on this query, each in a form that can be compared."""
    found: list[Any] = []
    for name, value in vars(query).items():
        spell = _SPELLINGS.get(name, _never)
        if spell is None:
            continue
        if spell is _empty:
            if value:
                raise _NoShape
        elif value != _DEFAULTS.get(name, _UNSET):
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
    return _plain(value)


def _deferred(value: tuple[Iterable[str], bool]) -> tuple[frozenset[str], bool]:
    return frozenset(value[0]), value[1]


def _selected(value: Any) -> Any:
    """Which output column is which: positions and names, of columns only."""
    if value is None:
        return None
    if any(type(index) is not int and type(index) is not str for index in value.values()):
        raise _NoShape
    return tuple(value.items())


def _annotations(value: dict[str, Any]) -> tuple[Any, ...]:
    """Those of count(), exists() and aggregate(), and no others."""
    parts: list[tuple[Any, ...]] = []
    for name, annotation in value.items():
        if type(annotation) is Count and _counts_rows(annotation):
            parts.append((name, "count"))
        elif type(annotation) is Value and _is_one(annotation):
            parts.append((name, "one"))
        elif type(annotation) in AGGREGATES:
            parts.append((name, *_aggregate(annotation)))
        else:
            raise _NoShape
    return tuple(parts)


def _aggregate(annotation: Any) -> tuple[Any, ...]:
    """An aggregate of one column, without a condition, an order or a text of its own."""
    column, *others = annotation.get_source_expressions()
    is_plain = all(other is None for other in others) and not annotation.extra
    if type(column) is not Col or not is_plain:
        raise _NoShape
    output = annotation.output_field
    kind = None
    if output is not column.target:
        kind = type(output)
        if kind not in (IntegerField, FloatField) and not _is_any_decimal(output):
            raise _NoShape
    return type(annotation), annotation.distinct, _column(column), kind


def _is_any_decimal(field: Any) -> bool:
    return type(field) is DecimalField and field.max_digits is field.decimal_places is None


def _counts_rows(annotation: Any) -> bool:
    star, *others = annotation.get_source_expressions()
    return (
        type(star) is Star
        and all(other is None for other in others)
        and not annotation.distinct
        and not annotation.extra
        # Who annotates may want another type.
        and type(annotation.output_field) is IntegerField
    )


def _is_one(annotation: Any) -> bool:
    value = annotation.value
    return type(value) is int and value == 1 and type(annotation.output_field) is IntegerField


def _plain(value: Any) -> Any:
    if type(value) is not bool and type(value) is not int:
        raise _NoShape
    return value


def _never(value: Any) -> Any:
    """Of an attribute that has to be what it is by default, and of an unknown one."""
    raise _NoShape


def _empty(value: Any) -> Any:
    """Of an attribute that has to be empty."""


# Setting an attribute to what it is anyway (order_by() does) makes no other shape.
_UNSET = object()
_DEFAULTS: dict[str, Any] = {"alias_cols": True, "annotations": {}}
_SPELLINGS: dict[str, Callable[[Any], Any] | None] = {
    "alias_cols": _plain,
    "annotation_select_mask": _mask,
    "annotations": _annotations,
    "default_cols": _plain,
    "default_ordering": _plain,
    "deferred_loading": _deferred,
    "distinct": _plain,
    "group_by": _never,
    "max_depth": _plain,
    "order_by": _names,
    "select": _columns,
    "select_related": _related,
    "selected": _selected,
    "standard_ordering": _plain,
    "values_select": _names,
}
_DEFAULTS |= {name: getattr(Query, name) for name in _SPELLINGS if hasattr(Query, name)}
_SPELLINGS |= dict.fromkeys(_IRRELEVANT) | dict.fromkeys(_EMPTY_ONLY, _empty)


def spell(part: Any) -> Any:
    """A shape in words, without what differs between processes."""
    if isinstance(part, _Column):
        return part.alias, spell(part.kind), part.name
    if isinstance(part, tuple):
        return tuple(spell(item) for item in part)
    if isinstance(part, frozenset):
        return sorted(part)
    if isinstance(part, type):
        return f"{part.__module__}.{part.__qualname__}"
    return part
