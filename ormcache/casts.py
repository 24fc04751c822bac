"""Casts whose result depends on the moment.

PostgreSQL reads the texts 'now' and 'today' as times, also those in a column; MySQL and MariaDB
put a time of day into today's date. The text of a query does not tell the types of its columns,
and the casts that Django makes for ``TruncDate`` or ``__date`` look the same: so its expressions
are looked at, if the text has a cast at all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import (
    BooleanField,
    DateField,
    DecimalField,
    DurationField,
    FloatField,
    Func,
    IntegerField,
    TimeField,
    UUIDField,
    Value,
)
from django.db.models.constants import LOOKUP_SEP
from django.db.models.expressions import Col, RawSQL
from django.db.models.functions import Cast
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
# No text of PostgreSQL's. BigIntegerField and the like are subclasses.
_NEVER_NOW = (
    *(BooleanField, DateField, DecimalField, DurationField, FloatField),
    *(IntegerField, TimeField, UUIDField),
)


def of_moment(queries: Iterable[Any], text: str, connection: Any) -> str:
    """The cast among ``queries``, compiled to ``text``, that depends on the moment; or ``""``."""
    if connection.vendor not in ("postgresql", "mysql") or not _ANY.search(text):
        return ""
    for query in queries:
        for node in _nodes(query):
            found = _risk(node, text, connection)
            if found:
                return found
        if connection.vendor == "postgresql" and _orders_by_foreign_transform(query):
            written = _HANDWRITTEN.search(text)
            if written is not None:
                return written[0]
    return ""


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
        name = (node.extra.get("function") or node.function or "").lower()
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
    if vendor == "mysql" and isinstance(getattr(source, "_output_field_or_none", None), TimeField):
        return True
    parts = _sources(source)
    return not parts or any(_is_risky(part, vendor) for part in parts)


def _real(field: Any) -> Any:
    """The field that decides the type of a column: a foreign key's is what it refers to."""
    while getattr(field, "target_field", None) is not None:
        field = field.target_field
    return field
