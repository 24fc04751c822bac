"""Whether two answers to one query are the same, as far as the query says what they are.

Rows are compared in value and in type. In which order they come matters where the query orders
them, and only as far as it does; which rows a LIMIT leaves is not determined either unless all
of them are in order. Sums of floating-point numbers depend on the order in which the rows are
added. A difference that the query leaves open proves nothing, and is not taken for one.
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
from decimal import Decimal
from typing import Any, NamedTuple

from django.db.models.expressions import Col, Ref
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
    """They differ in the last digits of what was summed up."""


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
# Equal strings are one here, and which of the spellings stands for them is left open.
_MERGING = frozenset({"distinct", "group", "union", "min", "max"})


def _leaves_open(text: str, vendor: str, *, is_sliced: bool) -> bool:
    """Whether a part of the query picks rows in no certain order: a subquery with a LIMIT."""
    limits = 1 if is_sliced else 0
    before = ""
    for token in sql.tokens(text, vendor):
        word = token.folded if token.kind == "word" else ""
        if word in ("limit", "fetch"):
            limits -= 1
        if limits < 0 or word == "over" or word in _PICK:
            return True
        if word == "on" and before == "distinct":
            return True
        before = word
    return False


def _sums(text: str) -> bool:
    return any(word.startswith(_SUMMING) for word in sql.words(text))


def _merges_spellings(text: str, vendor: str) -> bool:
    return vendor == "mysql" and not _MERGING.isdisjoint(sql.words(text))


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
    if query.combinator or query.distinct_fields:
        return unknown
    own = query.get_compiler(compiler.using, compiler.connection, compiler.elide_empty)
    try:
        extra, order_by, group_by = own.pre_sql_setup()
    except Exception as error:
        let_through(error)
        # A compiler of another kind.
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
    if _leaves_open(text, vendor, is_sliced=order.is_sliced()):
        return Verdict.UNDETERMINED
    if len(old) != len(new):
        return Verdict.DIFFERENT
    if _keys(cached, order) != _keys(truth, order):
        return Verdict.DIFFERENT
    if Counter(old) == Counter(new):
        return Verdict.DIFFERENT if order.is_total else Verdict.SAME
    if not order.is_total and (is_one_of_many or order.leaves_out(len(new))):
        return Verdict.UNDETERMINED
    if _sums(text) and _are_close(cached, truth):
        return Verdict.ROUNDED
    if _merges_spellings(text, vendor) and _spelt(cached) == _spelt(truth):
        return Verdict.UNDETERMINED
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


def _spelt(rows: Sequence[Row]) -> Counter[bytes]:
    """The rows without what a collation that ignores case and accents does not see."""
    return Counter(_exact([tuple(map(_plain, row)) for row in rows]))


def _plain(value: Any) -> Any:
    if type(value) is not str:
        return value
    letters = unicodedata.normalize("NFKD", value.casefold()).rstrip()
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
