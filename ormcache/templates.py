"""What the first query of a shape leaves behind, so that the next need not be compiled.

A *template* holds the tables of the first query, and what the compiler works out for those who
read the rows. The next query of the shape is looked up by its values; only a miss is compiled.

Fields, lookups and expressions of a project's own may look at anything while they are compiled:
the language, the tenant. Which of them take part shows when the first query of a shape is
compiled. If there are any, it leaves no template, and neither will the others.

A template also keeps the text of the first query, without its conditions and its limits. Where
that can be told apart beyond doubt, a miss compiles the conditions and nothing else; of plain
comparisons only the right sides.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Value
from django.db.models.expressions import Col, OrderBy, Ref, Star
from django.db.models.fields.related_lookups import RelatedLookupMixin
from django.db.models.lookups import BuiltinLookup, Exact
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import XOR

from ormcache import tables
from ormcache.conf import Settings
from ormcache.memo import Memo
from ormcache.shapes import AGGREGATES, PLAIN, Shape, spell

# What the compiler leaves behind for those who read its rows.
_COMPILED = ("select", "klass_info", "annotation_col_map", "col_count", "has_extra_select")
# What a class of fields decides of the SQL of its columns and joins.
_FIELD_SQL = frozenset(
    {
        *("column", "get_col", "cached_col", "select_format"),
        *("get_extra_restriction", "get_joining_fields", "get_joining_columns"),
        *("path_infos", "get_path_info", "reverse_path_infos", "get_reverse_path_info"),
    }
)


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
            spell(shape.key),
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
        # In the order of _COMPILED. Written out, for each hit of a known shape does this.
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
    if type(expression) in AGGREGATES:
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
            sorted((name, spell(value)) for name, value in options.items() if _is_fixed(value)),
        )
        for lookup in query.where.leaves()
        for field in _preparing(lookup)
        for _, path, _, options in [field.deconstruct()]
    ]


def _is_fixed(value: Any) -> bool:
    """Whether the value of a field's option is spelled alike in all processes."""
    return type(value) in PLAIN or type(value) is int or isinstance(value, type)


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
