"""Recognises simple queries without compiling them.

Compiling a query costs more than a hit. Most queries differ from an earlier one in their values
alone: they have the same *shape*. The first query of a shape is compiled as ever, and leaves a
*template*: its tables, and what the compiler works out for those who read the rows. The next is
looked up by its shape and its values; only a miss is compiled.

A shape holds all that Django's compiler looks at, for the kinds of queries that are listed
here: a model and its joins, lookups of columns by plain values, order by name, slices,
``values()``, ``count()``, ``exists()`` and aggregates of columns over all rows. A query with
anything else (an unknown attribute will do) has no shape and is compiled.

Fields, lookups and expressions of a project's own may look at anything while they are compiled:
the language, the tenant. Which of them take part shows when the first query of a shape is
compiled. If there are any, it leaves no template, and neither will the others.

A template also keeps the text of the first query, without its conditions and its limits. Where
that can be told apart beyond doubt, a miss compiles the conditions and nothing else; of plain
comparisons only the right sides.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FieldDoesNotExist, FullResultSet
from django.core.serializers.json import DjangoJSONEncoder
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
from django.db.models.expressions import Col, OrderBy, Ref, Star
from django.db.models.fields.related_lookups import RelatedLookupMixin
from django.db.models.lookups import BuiltinLookup, Exact, Lookup
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import XOR, WhereNode

from ormcache import keys, tables
from ormcache.conf import Settings
from ormcache.exceptions import NotEncodable
from ormcache.memo import Memo

# repr() of these tells the type and the exact value.
_PLAIN = frozenset(
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
_AGGREGATES = frozenset({Avg, Count, Max, Min, Sum})
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
        *("combined_queries", "explain_info", "select_for_update", "subquery"),
        *("select_for_update_nowait", "select_for_update_skip_locked", "select_for_update_of"),
        *("select_for_no_key_update", "extra_select_mask", "_filtered_relations"),
        # It may name transforms, whose SQL depends on the current time zone.
        "distinct_fields",
    }
)
# What a class of fields decides of the SQL of its columns and joins.
_FIELD_SQL = frozenset(
    {
        *("column", "get_col", "cached_col", "select_format"),
        *("get_extra_restriction", "get_joining_fields", "get_joining_columns"),
        *("path_infos", "get_path_info", "reverse_path_infos", "get_reverse_path_info"),
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


class Text(NamedTuple):
    """A compiled query without its conditions and its limits."""

    head: str
    """What is selected from where."""
    params: tuple[Any, ...]
    """The parameters in that: none, or the 1 of exists()."""
    where: str
    """The conditions of the first query."""
    rights: tuple[str, ...]
    """Their right sides, if all the rest of them is in the shape; see :func:`_right_sides`."""
    tail: str
    """How it is grouped and ordered."""
    slice: tuple[int, int | None]
    """The limits of the first query."""
    whole: str
    """All of its text."""

    def compile(self, compiler: Any) -> tuple[str, tuple[Any, ...]] | None:
        """What ``compiler.as_sql()`` would return, for another query of the same shape.

        None if the values take the conditions away, or leave no row: Django knows what to do.
        """
        sides = _right_sides(compiler) if self.rights else None
        if sides is not None and sides[0] == self.rights:
            where, params = self.where, sides[1]
            if _slice(compiler.query) == self.slice:
                return self.whole, (*self.params, *params)
        else:
            conditions = _conditions(compiler)
            if conditions is None or bool(conditions[0]) != bool(self.where):
                return None
            where, params = conditions
        text = f"{self.head}{where}{self.tail}{_limits(compiler)}"
        return text, (*self.params, *params)


def _right_sides(compiler: Any) -> tuple[tuple[str, ...], tuple[Any, ...]] | None:
    """The text to the right of each operator, and the parameters of all of them.

    None unless the rest of their text is in the shape, as that of Django's plain comparisons is;
    and where Django has to weigh the conditions, as with a value that no row can have.
    """
    connection, where = compiler.connection, compiler.query.where
    if where.connector == XOR:
        return None
    texts: list[str] = []
    params: list[Any] = []
    try:
        for lookup in where.children:
            kind: Any = type(lookup)
            # A boolean may become "NOT column".
            if not _is_comparison(kind, connection.vendor) or type(lookup.rhs) is bool:
                return None
            text, own = lookup.process_rhs(compiler, connection)
            texts.append(text)
            params.extend(own)
    except (EmptyResultSet, FullResultSet):
        return None
    return tuple(texts), tuple(params)


_COMPARISONS = frozenset({BuiltinLookup.as_sql, Exact.as_sql, RelatedLookupMixin.as_sql})
"""They put a column, an operator and the right side together."""


@functools.cache
def _is_comparison(kind: Any, vendor: str) -> bool:
    return kind.as_sql in _COMPARISONS and not hasattr(kind, f"as_{vendor}")


def _conditions(compiler: Any) -> tuple[str, tuple[Any, ...]] | None:
    """The WHERE clause, which may be "", or None if no row can meet it."""
    try:
        where, params = compiler.compile(compiler.query.where)
    except FullResultSet:
        return "", ()
    except EmptyResultSet:
        return None
    return (f" WHERE {where}" if where else ""), tuple(params)


def _slice(query: Any) -> tuple[int, int | None]:
    return query.low_mark, query.high_mark


def _limits(compiler: Any) -> str:
    query = compiler.query
    if not query.is_sliced:
        return ""
    return f" {compiler.connection.ops.limit_offset_sql(query.low_mark, query.high_mark)}"


def _taken_apart(compiler: Any, sql: str, params: tuple[Any, ...]) -> Text | None:
    """The text of a compiled query; None if its parts cannot be told apart beyond doubt."""
    conditions = _conditions(compiler)
    limits = _limits(compiler)
    if conditions is None or not sql.endswith(limits):
        return None
    where, own = conditions
    before = params[: len(params) - len(own)]
    text = sql.removesuffix(limits)
    head, tail = text, ""
    if where:
        if text.count(where) != 1:
            return None
        head, tail = text.split(where)
    has_its_own = tail.count("%") == 0 and head.count("%") == len(before)
    is_known = (*before, *own) == params and all(isinstance(value, int) for value in before)
    sides = _right_sides(compiler)
    rights = sides[0] if sides is not None and sides[1] == own else ()
    if not (has_its_own and is_known):
        return None
    return Text(head, before, where, rights, tail, _slice(compiler.query), sql)


class Template:
    """What the first query of a shape left behind."""

    __slots__ = ("compiled", "digest", "elsewhere", "kept", "missed", "tables", "text", "width")

    def __init__(
        self,
        shape: Shape,
        compiler: Any,
        sql: str,
        params: tuple[Any, ...],
        names: tuple[str, ...],
        context: object,
    ) -> None:
        self.tables = names
        self.elsewhere: frozenset[str] = frozenset()
        """See :class:`ormcache.tables.Facts`."""
        self.missed = False
        """Whether the last query of this shape was not in the cache."""
        self.text = _taken_apart(compiler, sql, params)
        """None if misses are compiled as a whole."""
        self.compiled = tuple(getattr(compiler, name) for name in _COMPILED)
        self.width: int = compiler.col_count
        """How many columns Django keeps of each row."""
        # Fields are told apart by id(): they must not be collected while the shape is known.
        self.kept = tuple(_fields(compiler.query))
        facts = (
            context,
            names,
            _spell(shape.key),
            _declared(compiler.query),
            _constant_parts(sql),
        )
        text = repr(facts)
        self.digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20)

    def key(self, values: tuple[Any, ...]) -> str:
        """The key of the entry for these values: the same in every process."""
        digest = self.digest.copy()
        digest.update(repr(values).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def compile(self, compiler: Any) -> tuple[str, tuple[Any, ...]] | None:
        """What ``compiler.as_sql()`` would return and work out; None if only that can tell."""
        compiled = None if self.text is None else self.text.compile(compiler)
        if compiled is not None:
            self.restore(compiler)
        return compiled

    def restore(self, compiler: Any) -> None:
        """Give ``compiler`` what ``as_sql()`` would have worked out."""
        if not compiler.query.alias_map:
            compiler.query.get_initial_alias()
        (
            compiler.select,
            compiler.klass_info,
            compiler.annotation_col_map,
            compiler.col_count,
            compiler.has_extra_select,
        ) = self.compiled


def make_template(
    shape: Shape,
    compiler: Any,
    sql: str,
    params: tuple[Any, ...],
    names: tuple[str, ...],
    context: object,
) -> Template | None:
    """The template that a compiled query leaves for others of its shape.

    Args:
        shape: what :func:`shape_of` returned before the query was compiled.
        compiler: the compiler, which has compiled it.
        sql: the text.
        params: its parameters.
        names: its tables.
        context: what the answer depends on besides; strings, numbers and tuples of them.

    Returns None if classes from outside Django have a say in the SQL: it may depend on more than
    the shape and the values.
    """
    query = compiler.query
    if (
        _is_djangos(type(compiler))
        and all(_joins_plainly(source) for source in query.alias_map.values())
        and all(_selects_plainly(expression) for expression, _, _ in compiler.select)
        and all(_compares_plainly(lookup) for lookup in query.where.leaves())
        and _orders_plainly(compiler)
    ):
        return Template(shape, compiler, sql, params, names, context)
    return None


def _is_djangos(kind: Any) -> bool:
    module: str = kind.__module__
    # Not django.contrib: a generic relation asks for its content type while it is compiled.
    return module.startswith(("django.db.models.", "django.db.backends."))


def _speaks_plainly(field: Any) -> bool:
    """Whether Django alone makes the SQL of a field's columns and joins."""
    return all(
        _is_djangos(base) or _FIELD_SQL.isdisjoint(vars(base)) for base in type(field).__mro__
    )


def _joins_plainly(source: Any) -> bool:
    """Whether a table was joined by columns alone. Ordering and select_related add joins."""
    if type(source) is BaseTable:
        return True
    relation = source.join_field
    # The other side of a relation asks the field.
    return _speaks_plainly(relation) and _speaks_plainly(getattr(relation, "field", relation))


def _selects_plainly(expression: Any) -> bool:
    if type(expression) is Col:
        return _speaks_plainly(expression.target) and _speaks_plainly(expression.output_field)
    if type(expression) in _AGGREGATES:
        sources = expression.get_source_expressions()
        return all(map(_selects_plainly, filter(None, sources)))
    return type(expression) in (Value, Star)


def _compares_plainly(lookup: Any) -> bool:
    """Whether Django alone prepares the value of a lookup, and makes its SQL."""
    return _is_djangos(type(lookup)) and all(
        _is_djangos(type(field)) and getattr(field, "encoder", None) in (None, DjangoJSONEncoder)
        for field in _preparing(lookup)
    )


def _preparing(lookup: Any) -> Iterator[Any]:
    """The field of a lookup. A foreign key leaves it to the field that it refers to."""
    field = lookup.lhs.target
    while field is not None:
        yield field
        field = getattr(field, "target_field", None)


def _orders_plainly(compiler: Any) -> bool:
    """Whether the order is one of columns.

    Transforms, such as that of a date's month, depend on the current time zone, and the
    ordering of a model may hold any expression.
    """
    query = compiler.query
    before = query.alias_refcount.copy()
    try:
        ordered = [order for order, _ in compiler.get_order_by()]
    finally:
        query.reset_refcounts(before)
    return all(type(order) is OrderBy and _is_column(order.expression) for order in ordered)


def _is_column(expression: Any) -> bool:
    if isinstance(expression, Ref):
        # An output column, by its position.
        return all(map(_is_column, expression.get_source_expressions()))
    return type(expression) is Col


def _fields(query: Any) -> Iterator[Any]:
    """The fields that are in the shape of a query."""
    for source in query.alias_map.values():
        if type(source) is Join:
            yield source.join_field
    for lookup in query.where.leaves():
        yield lookup.lhs.target
    for column in query.select:
        yield column.target
    for annotation in query.annotations.values():
        for source in annotation.get_source_expressions():
            if type(source) is Col:
                yield source.target


def _declared(query: Any) -> list[Any]:
    """How the fields are declared that prepare the values of a query.

    In the key it tells versions of a project apart in which they are declared in another way.
    """
    return [
        (
            path,
            sorted((name, _spell(value)) for name, value in options.items() if _is_fixed(value)),
        )
        for lookup in query.where.leaves()
        for field in _preparing(lookup)
        for _, path, _, options in [field.deconstruct()]
    ]


def _is_fixed(value: Any) -> bool:
    """Whether the value of a field's option is spelled alike in all processes."""
    return type(value) in _PLAIN or type(value) is int or isinstance(value, type)


def _constant_parts(sql: str) -> list[str]:
    """What of the text does not depend on values: what is selected from where, and the order.

    In the key it tells versions of a project apart whose columns, joins or Meta.ordering differ.
    There need not be a WHERE: Django leaves out a condition that holds for every row.
    """
    head = re.split(r" (?:WHERE|ORDER BY|LIMIT|OFFSET|FETCH) ", sql, maxsplit=1)[0]
    order = sql.rpartition(" ORDER BY ")[2] if " ORDER BY " in sql else ""
    return [head, re.split(r" (?:LIMIT|OFFSET|FETCH) ", order, maxsplit=1)[0]]


_memo: Memo[tuple[Any, ...], Template | None] = Memo()


def templates(settings: Settings) -> dict[tuple[Any, ...], Template | None]:
    """The templates under these settings, by ``(context, shape.key)``.

    None for a shape that has to be compiled each time.
    """
    return _memo.under(settings, tables.known.generation)


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
    if kind in _PLAIN or (kind is int and -_LARGE < value < _LARGE):
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
        elif type(annotation) in _AGGREGATES:
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
