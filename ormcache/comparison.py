"""Whether two answers to one query are the same, as far as the query says what they are.

Rows are compared in value and in type. In which order they come matters where the query orders
them, and only as far as it does; which rows a LIMIT leaves is not determined either unless all
of them are in order. Sums of floating-point numbers depend on the order in which the rows are
added, and a collation decides which strings are one. A difference that the query leaves open
proves nothing, and is not taken for one.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import math
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models.expressions import Col, Func, RawSQL, Ref
from django.db.models.lookups import In
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable, Join

from ormcache import codec, sql
from ormcache.exceptions import NotEncodable
from ormcache.interruptions import let_through

Row = tuple[Any, ...]


class Verdict(enum.Enum):
    """What comparing two answers came to."""

    SAME = enum.auto()
    DIFFERENT = enum.auto()
    UNDETERMINED = enum.auto()
    """They differ, but the query would allow both."""
    ROUNDED = enum.auto()
    """They differ in floating-point numbers that were summed up in some order."""


class Order(NamedTuple):
    """What a query says about the order of its rows, and which of them it wants."""

    keys: tuple[int, ...] = ()
    """Positions of columns by which the rows are ordered first, in this order."""
    is_total: bool = False
    """Whether it leaves no two rows in either order."""
    start: int = 0
    """How many rows it leaves out before the first."""
    end: int | None = None
    """How many it counts before it ends, with those it leaves out."""
    is_counted: bool = False
    """Whether it is certain how many rows there are, whatever is picked for them."""

    def is_sliced(self) -> bool:
        """Whether the query has a LIMIT or an OFFSET of its own."""
        return self.start > 0 or self.end is not None

    def leaves_out(self, count: int) -> bool:
        """Whether there may be other rows than these ``count``."""
        return self.start > 0 or (self.end is not None and count >= self.end)


# --- what the text says --------------------------------------------------------------------

# What these make depends on the order of the rows that go in, or picks one of them.
_PICK = frozenset(
    {
        *("array_agg", "string_agg", "group_concat", "listagg", "xmlagg", "any_value", "mode"),
        *("json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg", "json_arrayagg"),
        *("json_objectagg", "json_group_array", "json_group_object"),
        *("jsonb_group_array", "jsonb_group_object"),
        # With CACHE_RANDOM.
        *("random", "rand"),
    }
)
_SUMMING = ("sum", "avg", "total", "std", "var", "covar", "corr", "regr_")
# Equal values are one here, and which of their spellings stands for them is left open.
_MERGING = frozenset({"distinct", "group", "union", "min", "max"})


def _leaves_open(text: str, vendor: str, *, is_sliced: bool) -> bool:
    """Whether a part of the query picks rows in no certain order: a subquery with a LIMIT, say.

    A LIMIT directly in EXISTS, where Django always has one, picks nothing. PostgreSQL's ARRAY of a
    subquery has its rows in whatever order they come.
    """
    limits = 1 if is_sliced else 0
    before = ""
    # For each bracket that is open: whether it follows EXISTS.
    inside: list[bool] = []
    for token in sql.tokens(text, vendor):
        word = token.folded if token.kind == "word" else ""
        if token.text == "(":
            if before == "array":
                return True
            inside.append(before == "exists")
        elif token.text == ")" and inside:
            inside.pop()
        if word in ("limit", "fetch") and not (inside and inside[-1]):
            limits -= 1
        if limits < 0 or word == "over" or word in _PICK:
            return True
        if word == "on" and before == "distinct":
            return True
        before = word
    return False


def _sums(text: str) -> bool:
    return any(word.startswith(_SUMMING) for word in sql.words(text))


def _merges_spellings(text: str) -> bool:
    # Every database has collations that take several texts for one, and Django need not know of
    # them: PostgreSQL's may be nondeterministic, SQLite has NOCASE, MySQL has them by default.
    return not _MERGING.isdisjoint(sql.words(text))


# --- what the query says -------------------------------------------------------------------

_SORTED_ALIKE = frozenset(
    {
        *(str, bool, int, float, Decimal, uuid.UUID, type(None)),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    }
)
"""Values that are in either order only if they are equal for Python, too."""
_TEXTS = frozenset({"CharField", "TextField", "SlugField", "EmailField", "URLField"})
_OTHERS = frozenset(
    {
        *("AutoField", "BigAutoField", "SmallAutoField"),
        *("IntegerField", "BigIntegerField", "SmallIntegerField", "PositiveIntegerField"),
        *("PositiveBigIntegerField", "PositiveSmallIntegerField", "BooleanField"),
        *("FloatField", "DecimalField", "DateField", "DateTimeField", "TimeField"),
        *("DurationField", "UUIDField"),
    }
)


def order_of(compiler: Any) -> Order:
    """How the rows of a query are ordered.

    Args:
        compiler: any one of the query; it is left as it is.
    """
    query = compiler.query.chain()
    unknown = Order((), False, query.low_mark, query.high_mark)
    if query.combinator:
        return unknown
    own = query.get_compiler(compiler.using, compiler.connection, compiler.elide_empty)
    try:
        extra, order_by, group_by = own.pre_sql_setup()
    except Exception as error:
        let_through(error)
        # A compiler of another kind.
        return unknown
    unknown = unknown._replace(is_counted=_is_counted(own, order_by, group_by))
    if query.distinct_fields:
        return unknown
    if group_by and own._meta_ordering:
        # Django leaves it out of the text.
        order_by = []
    by = [_source(ordering.expression) for ordering, _ in order_by]
    selected = [_source(column) for column, *_ in own.select]
    keys = []
    for expression in by:
        if expression not in selected or not _sorts_plainly(expression, compiler.connection):
            break
        keys.append(selected.index(expression))
    is_total = not group_by and _is_one_row_each(query) and _names_a_row(query, by)
    is_whole = not extra and 0 < len(selected) <= len(set(keys))
    return unknown._replace(keys=tuple(keys), is_total=is_total or is_whole)


def _source(expression: Any) -> Any:
    return expression.get_source_expressions()[0] if isinstance(expression, Ref) else expression


def _sorts_plainly(expression: Any, connection: Any) -> bool:
    """Whether the database has no other idea of equal values than Python."""
    if not isinstance(expression, Col):
        return False
    field: Any = expression.target
    while field.is_relation:
        # Its values are those of the key that it leads to.
        field = field.target_field
    kind = field.get_internal_type()
    if kind in _TEXTS:
        is_collated = bool(getattr(field, "db_collation", None))
        return connection.vendor in ("postgresql", "sqlite") and not is_collated
    return kind in _OTHERS


def _is_one_row_each(query: Any) -> bool:
    """Whether each row of the model's table gives one row at most."""
    joins = [
        join
        for alias, join in query.alias_map.items()
        if query.alias_refcount[alias] and type(join) is not BaseTable
    ]
    return not query.extra_tables and all(
        isinstance(join, Join)
        and (
            getattr(join.join_field, "many_to_one", False)
            or getattr(join.join_field, "one_to_one", False)
        )
        for join in joins
    )


def _names_a_row(query: Any, by: Sequence[Any]) -> bool:
    """Whether the columns of the model's own table among ``by`` tell its rows apart."""
    base = query.get_initial_alias()
    fields = [col.target for col in by if isinstance(col, Col) and col.alias == base]
    if any(field.primary_key or (field.unique and not field.null) for field in fields):
        return True
    parts = getattr(query.get_meta(), "pk_fields", ())
    return bool(parts) and set(parts) <= set(fields)


# --- how many rows there are ---------------------------------------------------------------


def _is_counted(compiler: Any, order_by: Sequence[Any], group_by: Sequence[Any]) -> bool:
    """Whether nothing that picks decides how many rows there are.

    It may pick values and an order for them, as a window function or a limited subquery does that
    is selected; and the rows that DISTINCT ON or a LIMIT leave, of which the number is certain.

    Args:
        compiler: a compiler of the query, after pre_sql_setup().
        order_by: what that has returned.
        group_by: likewise.
    """
    query = compiler.query
    if type(query) is not Query or group_by or compiler.having or compiler.qualify:
        return False
    if query.distinct and not query.distinct_fields:
        # What is picked tells the rows apart.
        return False
    values = [value for value, *_ in (*compiler.select, *order_by)]
    try:
        return all(map(_is_one_value, values)) and _is_certain(compiler, compiler.where)
    except Exception:
        # Expressions of other packages may want to be compiled in their place only.
        return False


def _is_one_value(expression: Any) -> bool:
    """Whether it is one value in each row: a function that returns a set multiplies rows."""
    return all(
        type(part).__module__.startswith(("django.db.models.", "django.db.backends."))
        # Those may call any function.
        and type(part) not in (Func, RawSQL)
        and not getattr(part, "extra", None)
        and not getattr(part, "set_returning", False)
        for part in expression.flatten()
    )


def _is_certain(compiler: Any, where: Any) -> bool:
    """Whether nothing picks in the tables and the conditions."""
    connection = compiler.connection
    tables, _ = compiler.get_from_clause()
    if _leaves_open(" ".join(tables), connection.vendor, is_sliced=False):
        return False
    return where is None or all(
        _is_certain_condition(compiler, condition) for condition in where.leaves()
    )


def _is_certain_condition(compiler: Any, condition: Any) -> bool:
    vendor = compiler.connection.vendor
    try:
        text, _ = compiler.compile(condition)
    except (EmptyResultSet, FullResultSet):
        # It holds for no row, or for all of them.
        return True
    if not _leaves_open(text, vendor, is_sliced=False):
        return True
    # A slice of rows that are all in order.
    query = getattr(condition, "rhs", None)
    if not isinstance(condition, In) or type(query) is not Query:
        return False
    left, _ = condition.process_lhs(compiler, compiler.connection)
    inner = query.get_compiler(compiler.using, compiler.connection, compiler.elide_empty)
    right, _ = inner.as_sql()
    return (
        not _leaves_open(left, vendor, is_sliced=False)
        and not _leaves_open(right, vendor, is_sliced=query.is_sliced)
        and order_of(inner).is_total
    )


# --- comparing -----------------------------------------------------------------------------


def digest(rows: Sequence[Row]) -> str:
    """A short name of an answer: the same for the same rows in the same order."""
    try:
        encoded = codec.encode(codec.Result(list(rows), ""))
    except NotEncodable as error:
        return str(error)
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def compare(
    cached: list[Row],
    truth: list[Row],
    text: str,
    vendor: str,
    order_known: Callable[[], Order],
    *,
    is_one_of_many: bool = False,
) -> Verdict:
    """Compare what the cache has with what the database says.

    Args:
        cached: rows, as the codec has decoded them.
        truth: rows, as the driver gives them.
        text: the SQL of the query.
        vendor: the kind of database.
        order_known: tells the order of the query, where that matters.
        is_one_of_many: whether only the first of several rows was asked for.
    """
    old, new = _exact(cached), _exact(truth)
    if old == new:
        return Verdict.SAME
    order = order_known()
    is_open = _leaves_open(text, vendor, is_sliced=order.is_sliced())
    if len(old) != len(new):
        return Verdict.UNDETERMINED if is_open and not order.is_counted else Verdict.DIFFERENT
    if set(map(len, cached)) != set(map(len, truth)):
        return Verdict.DIFFERENT
    if is_open:
        return Verdict.UNDETERMINED
    is_merging = _merges_spellings(text)
    if is_merging:
        cached, truth = _spelt(cached), _spelt(truth)
    if _keys(cached, order) != _keys(truth, order):
        return Verdict.DIFFERENT
    if Counter(old) == Counter(new):
        return Verdict.DIFFERENT if order.is_total else Verdict.SAME
    if not order.is_total and (is_one_of_many or order.leaves_out(len(new))):
        return Verdict.UNDETERMINED
    if is_merging and Counter(_exact(cached)) == Counter(_exact(truth)):
        return Verdict.UNDETERMINED
    if _sums(text) and _may_be_rounded(cached, truth, vendor):
        return Verdict.ROUNDED
    return Verdict.DIFFERENT


def _exact(rows: Sequence[Row]) -> list[bytes]:
    """Something for each row that is equal for rows that are exactly alike only."""
    return [_exact_row(row) for row in rows]


def _exact_row(row: Row) -> bytes:
    try:
        return codec.encode(codec.Result([row], ""))
    except NotEncodable:
        # Nothing like it is in a cache.
        return b""


def _keys(rows: Sequence[Row], order: Order) -> list[Row]:
    """The columns by which the rows are ordered, up to the first that Python cannot compare."""
    count = 0
    for count, position in enumerate(order.keys, 1):
        # What is not equal to itself: NaN.
        values = [row[position] for row in rows]
        if any(type(value) not in _SORTED_ALIKE or value != value for value in values):
            count -= 1
            break
    return [tuple(row[position] for position in order.keys[:count]) for row in rows]


def _may_be_rounded(cached: Sequence[Row], truth: Sequence[Row], vendor: str) -> bool:
    """Whether all but floats is alike, and these may be sums of the same numbers."""
    if vendor == "sqlite":
        # There rows that nobody has changed come in the same order. Its averages of integers and
        # its sums of decimals are floats, too: leave them something to be compared by.
        return _are_close(cached, truth)
    # No difference is too large: if 1e16 is taken away again, no digit of the others need be left.
    return Counter(_exact(_without_floats(cached))) == Counter(_exact(_without_floats(truth)))


def _without_floats(rows: Sequence[Row]) -> list[Row]:
    return [tuple(0.0 if type(value) is float else value for value in row) for row in rows]


def _are_close(cached: Sequence[Row], truth: Sequence[Row]) -> bool:
    return all(
        len(old) == len(new) and all(map(_is_close, old, new))
        for old, new in zip(_paired(cached), _paired(truth), strict=True)
    )


def _paired(rows: Sequence[Row]) -> list[Row]:
    """In an order that small differences between floats hardly change."""

    def rank(row: Row) -> tuple[bytes, list[float]]:
        others = tuple(None if type(value) is float else value for value in row)
        return _exact_row(others), [value for value in row if type(value) is float]

    return sorted(rows, key=rank)


def _is_close(one: Any, other: Any) -> bool:
    if type(one) is float and type(other) is float:
        return math.isclose(one, other, rel_tol=1e-9)
    return _exact_row((one,)) == _exact_row((other,))


_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def _spelt(rows: Sequence[Row]) -> list[Row]:
    """The rows without what equal values may differ in.

    A collation may ignore case and accents; 0.0 is -0.0, and 1.0 is 1.00.
    """
    return [tuple(map(_plain, row)) for row in rows]


def _plain(value: Any) -> Any:
    if type(value) is float:
        return value + 0.0
    if type(value) is Decimal:
        return value.normalize(_EXACT) if value.is_finite() else value
    if type(value) is not str:
        return value
    letters = unicodedata.normalize("NFKD", value.casefold()).rstrip()
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
