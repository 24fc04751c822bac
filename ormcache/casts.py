"""Casts whose result depends on the moment.

PostgreSQL reads the texts 'now' and 'today' as times, also those in a column; MySQL and MariaDB
put a time of day into today's date, also where nothing but a date beside it asks for one. The
text of a query does not tell the types of its columns, and the casts that Django makes for
``TruncDate`` or ``__date`` look the same: so its expressions are looked at; on PostgreSQL, if the
text has a cast at all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import (
    BooleanField,
    Case,
    DateField,
    DecimalField,
    DurationField,
    ExpressionWrapper,
    FloatField,
    Func,
    GeneratedField,
    IntegerField,
    Max,
    Min,
    TimeField,
    UUIDField,
    Value,
    When,
)
from django.db.models.constants import LOOKUP_SEP
from django.db.models.expressions import Col, ExpressionList, RawSQL
from django.db.models.functions import Cast, Coalesce, Greatest, Least, NullIf
from django.db.models.lookups import Lookup
from django.db.models.sql.query import Query
from django.db.models.sql.where import ExtraWhere

_TYPE = r"(?:date|datetime|time|timestamp)(?:tz)?\b"
_RANGE = r"(?:date|ts|tstz)(?:multi)?range\b"
_GAP = r"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
_NAMED = rf"""(?:"?pg_catalog"?{_GAP}\.{_GAP})?"?(?:{_TYPE}|{_RANGE})"""
_HANDWRITTEN = re.compile(
    rf"""(?<!%s)(?<!')::{_GAP}{_NAMED}|"""
    rf"""\bcast{_GAP}\((?!\s*(?:%s|'[^']*')\s+as\b)[^;]*\bas\b{_GAP}{_NAMED}|"""
    rf"""\b(?:date|timestamptz|timetz)"?{_GAP}\(""",
    re.IGNORECASE | re.DOTALL,
)
_ANY = re.compile(rf"(?:::|\bas\b){_GAP}{_NAMED}|\b{_TYPE}\"?{_GAP}\(", re.IGNORECASE | re.DOTALL)
_TO_MOMENT = re.compile(rf"(?:{_TYPE}|{_RANGE})", re.IGNORECASE)
_CALLED = frozenset({"date", "time", "timestamp", "timestamptz", "timetz"})
# What returns one of the values that it is given.
_PASSED_ON = (Case, Coalesce, ExpressionWrapper, Greatest, Least, Max, Min, NullIf)
# What takes a time and a date side by side without making one of the other.
_SIDE_BY_SIDE = frozenset(
    """
    Concat ConcatPair ExpressionList JSONArray JSONObject OrderByList Tuple When
    """.split()
)
# Functions of MySQL that put a time into today's date.
_OF_DATES = re.compile(
    r"""
    \b(?:
        convert_tz | date | datediff | day(?:name|of(?:month|week|year))? | last_day
      | month(?:name)? | quarter | timestamp(?:diff)? | to_(?:days|seconds) | unix_timestamp
      | week(?:day|ofyear)? | year(?:week)?
    )\s*\(
    """,
    re.VERBOSE | re.IGNORECASE,
)
# No text of PostgreSQL's. BigIntegerField and the like are subclasses.
_NEVER_NOW = (
    *(BooleanField, DateField, DecimalField, DurationField, FloatField),
    *(IntegerField, TimeField, UUIDField),
)


def of_moment(queries: Iterable[Any], text: str, connection: Any) -> str:
    """The cast among ``queries``, compiled to ``text``, that depends on the moment; or ``""``."""
    vendor = connection.vendor
    if vendor == "mysql":
        return _of_today(queries, text, connection)
    if vendor != "postgresql" or not has_cast(text):
        return ""
    for query in queries:
        for node in _nodes(query):
            found = _risk(node, text, connection)
            if found:
                return found
        if _orders_by_foreign_transform(query):
            written = _HANDWRITTEN.search(text)
            if written is not None:
                return written[0]
    return ""


def has_cast(text: str) -> bool:
    """Whether a text may have a cast to a date or time."""
    return _ANY.search(text) is not None


def _orders_by_foreign_transform(query: Any) -> bool:
    """Whether an order names a transform that is not Django's, as ``"text__asdate"`` does.

    It becomes an expression when the query is compiled.
    """
    if query.model is None:
        return False
    options = query.get_meta()
    names = query.order_by or (options.ordering if query.default_ordering else None) or ()
    waiting = [(options, name) for name in names]
    met = set()
    while waiting:
        options, name = waiting.pop()
        if not isinstance(name, str) or (options, name) in met:
            continue
        met.add((options, name))
        try:
            _, field, _, rest = query.names_to_path(name.lstrip("-+").split(LOOKUP_SEP), options)
        except FieldError:
            # An annotation, which is looked at by itself, or one of its transforms.
            if LOOKUP_SEP in name:
                return True
            continue
        if any(not _is_djangos(kind) for kind in _transforms(field, rest)):
            return True
        if field.is_relation and not rest:
            related = field.related_model._meta
            waiting.extend((related, ordered) for ordered in related.ordering or ())
    return False


def _transforms(field: Any, names: Iterable[str]) -> Iterator[type]:
    """The classes behind the names; ``object`` where that cannot be told."""
    for name in names:
        if not hasattr(field, "get_transform"):
            yield object
            return
        transform = field.get_transform(name)
        if transform is None:
            # Django complains.
            return
        yield transform if isinstance(transform, type) else type(transform)
        # The next one belongs to what this one returns.
        field = getattr(transform, "output_field", None)


def _nodes(query: Any) -> Iterator[Any]:
    """All expressions of a query, less those of its subqueries."""
    waiting = [query.where, *query.annotations.values(), *query.order_by, *query.select]
    waiting.extend(text for text, _ in query.extra.values())
    waiting.extend(query.extra_order_by)
    waiting.extend(_listed(query.group_by))
    waiting.extend(query.get_meta().ordering if query.model is not None else ())
    waiting.extend(
        source.filtered_relation for source in query.alias_map.values() if _filters(source)
    )
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (Query, str)):
            continue
        waiting.extend(getattr(node, "children", ()))
        waiting.extend(_sources(node))


def _listed(group_by: Any) -> Iterable[Any]:
    return group_by if isinstance(group_by, (list, tuple)) else ()


def _filters(source: Any) -> bool:
    return getattr(source, "filtered_relation", None) is not None


def _sources(node: Any) -> list[Any]:
    if not hasattr(node, "get_source_expressions") or isinstance(node, Query):
        return []
    return [source for source in node.get_source_expressions() if source is not None]


def _risk(node: Any, compiled: str, connection: Any) -> str:
    vendor = connection.vendor
    if isinstance(node, Cast):
        kind = node.output_field.cast_db_type(connection) or ""
        is_risky = _TO_MOMENT.match(kind) and _may_depend(node, vendor, kind)
        return f"CAST AS {kind}" if is_risky else ""
    if isinstance(node, Func):
        name = _name_of(node).lower()
        if name in _CALLED and _may_depend(node, vendor, name):
            return name
    if vendor != "postgresql":
        return ""
    for text in _texts(node, compiled):
        found = _HANDWRITTEN.search(text)
        if found is not None:
            return found[0]
    return ""


def _texts(node: Any, compiled: str) -> Iterable[str]:
    """What was written by hand in an expression; all of ``compiled`` if that cannot be told."""
    if isinstance(node, str):
        return (node,)
    if isinstance(node, RawSQL):
        return (node.sql,)
    if isinstance(node, ExtraWhere):
        return node.sqls
    kind: Any = type(node)
    if _compiles_itself(kind):
        return (compiled,)
    if isinstance(node, Func) and (
        # A class of somebody's own may have a template, too.
        "template" in node.extra or not _is_djangos(kind)
    ):
        return (_rendered(node),)
    return ()


def _is_djangos(kind: type) -> bool:
    return kind.__module__.startswith("django.")


@functools.cache
def _compiles_itself(kind: Any) -> bool:
    """Whether somebody else than Django makes the text of such expressions."""
    return any(
        not _is_djangos(base) and not vars(base).keys().isdisjoint(("as_sql", "as_postgresql"))
        for base in kind.__mro__
    )


def _rendered(node: Func) -> str:
    """The text of a function, with what its template is given: a cast may be made of that."""
    function = node.extra.get("function", node.function)
    given = {"function": function, "expressions": "x", "field": "x", "arg_joiner": ", "}
    template: str = node.extra.get("template", node.template)
    if template == Func.template:
        # A call, of which :func:`_risk` knows more.
        return ""
    try:
        return template % {**node.extra, **given}
    except (KeyError, TypeError, ValueError):
        return template


def _may_depend(node: Any, vendor: str, kind: str) -> bool:
    if vendor == "mysql" and kind.lower().startswith("time") and kind.lower()[:9] != "timestamp":
        # No date is put to it.
        return False
    return any(_is_risky(source, vendor) for source in _sources(node))


def _is_risky(source: Any, vendor: str) -> bool:
    """Whether ``source`` may be a text on PostgreSQL, or a time of day on MySQL."""
    if isinstance(source, Col):
        field = _real(source.target)
        if vendor == "mysql":
            return isinstance(field, TimeField)
        return not isinstance(field, _NEVER_NOW)
    if isinstance(source, Value):
        # Of parameters see :func:`ormcache.functions.moment_among`.
        return False
    if vendor == "mysql" and isinstance(_output_of(source), TimeField):
        return True
    parts = _sources(source)
    if not parts or any(_is_risky(part, vendor) for part in parts):
        return True
    # Concat(Value("no"), Value("w")) spells what no parameter does.
    return (
        vendor == "postgresql"
        and not isinstance(source, (*_PASSED_ON, When))
        and not isinstance(_output_of(source), _NEVER_NOW)
    )


def _output_of(expression: Any) -> Any:
    """The field of what an expression returns; None if it does not say."""
    if isinstance(expression, Col):
        return _real(expression.target)
    try:
        if isinstance(expression, Query):
            return expression.output_field
        return getattr(expression, "_output_field_or_none", None)
    except (AttributeError, FieldError):
        # Several columns, or mixed types.
        return None


def _real(field: Any) -> Any:
    """The field that decides the type of a column: a foreign key's is what it refers to."""
    while getattr(field, "target_field", None) is not None:
        field = field.target_field
    return field.output_field if isinstance(field, GeneratedField) else field


# --- times and dates of MySQL ----------------------------------------------------------------


def _of_today(queries: Iterable[Any], text: str, connection: Any) -> str:
    """What puts a time into today's date: a cast, a function, or a date beside it."""
    is_cast = has_cast(text)
    for query in queries:
        for node in _nodes(query):
            found = (_risk(node, text, connection) if is_cast else "") or _dated(node)
            if found:
                return found
        if query.combinator and _combines(query.combined_queries):
            return "a time and a date"
    return ""


def _dated(node: Any) -> str:
    parts = _results(node)
    if not any(_is_time(part) for part in parts):
        return ""
    if isinstance(node, Func):
        called = _OF_DATES.search(f"{_name_of(node)}( {_rendered(node)}")
        if called is not None:
            return called[0].rstrip("( ").lower()
    if type(node).__name__ in _SIDE_BY_SIDE and _is_djangos(type(node)):
        return ""
    has_date = any(isinstance(_output_of(one), DateField) for one in (node, *parts))
    return "a time and a date" if has_date else ""


def _results(node: Any) -> list[Any]:
    """The parts of which an expression is made, less parameters, which are texts."""
    if isinstance(node, (Col, Query, str)):
        return []
    parts = _sources(node)
    if isinstance(node, Case):
        parts = [part.result if isinstance(part, When) else part for part in parts]
    elif isinstance(node, Lookup):
        # The ends of a range, the values of an IN.
        parts = [
            one
            for part in parts
            for one in (_sources(part) if isinstance(part, ExpressionList) else [part])
        ]
    # Not what is only an order or the like.
    return [part for part in parts if not isinstance(part, (Value, ExpressionList))]


def _is_time(expression: Any) -> bool:
    return isinstance(_output_of(expression), TimeField)


def _name_of(node: Func) -> str:
    return str(node.extra.get("function") or node.function or "")


def _combines(queries: Iterable[Any]) -> bool:
    """Whether one of the queries has a time in a column where another has a date."""
    columns = [list(map(_output_of, _selected(query))) for query in queries]
    return any(
        any(isinstance(field, TimeField) for field in fields)
        and any(isinstance(field, DateField) for field in fields)
        for fields in zip(*columns, strict=False)
    )


def _selected(query: Any) -> list[Any]:
    columns = query.select
    if query.default_cols:
        columns = [field.get_col(None) for field in query.get_meta().concrete_fields]
    return [*columns, *query.annotation_select.values()]
