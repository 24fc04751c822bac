"""The tables that an ORM query reads, found while Django compiles it.

Two sources are united, since either alone has gaps. The recorder notes what each compiler puts
into its FROM clause: joins made for ordering or select_related exist only while a query is
being compiled. The words of the SQL text that are names of known tables add what hand-written
fragments hold. The result depends on the text alone, so it is kept by text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.apps import apps
from django.db.models.expressions import RawSQL
from django.db.models.signals import class_prepared
from django.db.models.sql.query import Query
from django.db.models.sql.where import ExtraWhere

from ormcache import casts, functions, sql
from ormcache.conf import Settings, current
from ormcache.memo import Memo
from ormcache.reasons import Reason

_TEXT_LIMIT = 8192


class Facts(NamedTuple):
    """What is known of a SQL text. ``reason`` is None if it can be cached."""

    tables: tuple[str, ...]
    reason: Reason | None
    detail: str = ""
    elsewhere: frozenset[str] = frozenset()
    """Those of the tables that may be in another schema than the one that is searched first."""


# --- the recorder --------------------------------------------------------------------------


class _Recorder(threading.local):
    """Collects the tables of the query that this thread compiles, if one is being recorded."""

    tables: set[str] | None = None
    handwritten = False
    queries: list[Any]


_recorder = _Recorder()


def record(query: Any) -> None:
    """Note the tables of one (sub)query; called when its FROM clause has been built.

    Not those of ``extra(tables=…)``: they are written by hand, and found in the text.
    """
    tables = _recorder.tables
    if tables is None:
        return
    _recorder.queries.append(query)
    refcount = query.alias_refcount
    for alias, source in query.alias_map.items():
        if refcount[alias]:
            tables.add(source.table_name)
    if not current().CACHE_EXTRA and _is_handwritten(query):
        _recorder.handwritten = True


def _is_handwritten(query: Any) -> bool:
    """Whether a query holds ``extra()`` or RawSQL; its subqueries are recorded themselves."""
    if query.extra or query.extra_tables or query.extra_order_by:
        return True
    waiting = [query.where, *query.annotations.values(), *query.order_by]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ExtraWhere, RawSQL)):
            return True
        waiting.extend(getattr(node, "children", ()))
        if hasattr(node, "get_source_expressions") and not isinstance(node, Query):
            waiting.extend(node.get_source_expressions())
    return False


class Compiled(NamedTuple):
    """What :func:`compile_query` has found."""

    text: str
    params: tuple[Any, ...]
    tables: set[str]
    handwritten: bool
    """Whether it has an ``extra()`` or RawSQL: looked into only where ``CACHE_EXTRA`` asks."""
    cast: str
    """A cast whose result depends on the moment, see :mod:`ormcache.casts`; or ``""``."""


def compile_query(compiler: Any) -> Compiled:
    """``compiler.as_sql()``, and what was recorded on the way.

    Raises what ``as_sql()`` raises: EmptyResultSet for a query that cannot have rows.
    """
    before = _recorder.tables, _recorder.handwritten, getattr(_recorder, "queries", [])
    tables: set[str] = set()
    # The outermost one may have no FROM clause of its own.
    queries = [compiler.query]
    _recorder.tables, _recorder.handwritten, _recorder.queries = tables, False, queries
    try:
        text, params = compiler.as_sql()
        cast = casts.of_moment(queries, text, compiler.connection) if text else ""
        return Compiled(text, params, tables, _recorder.handwritten, cast)
    finally:
        _recorder.tables, _recorder.handwritten, _recorder.queries = before


# --- known tables --------------------------------------------------------------------------


class _Known:
    """Names of all tables that are worth looking for in a text."""

    def __init__(self) -> None:
        self._names: frozenset[str] | None = None
        self._labels: dict[str, set[str]] = {}
        self._unmanaged: frozenset[str] = frozenset()
        self._composed: tuple[tuple[frozenset[str], str], ...] = ()
        self._seen: set[str] = {"django_migrations"}
        self.generation = 0

    def forget(self, **kwargs: object) -> None:
        """A model was made: read the registry again."""
        self._names = None
        self.generation += 1

    def names(self) -> frozenset[str]:
        names = self._names
        if names is None:
            if not apps.models_ready:
                return frozenset(self._seen)
            models = apps.get_models(include_auto_created=True, include_swapped=True)
            names = frozenset(sql.table_name(model._meta.db_table) for model in models)
            names |= self._seen
            self._labels = _labels(models)
            self._unmanaged = _unmanaged(models)
            # A name with a space or a dash is several words of a text.
            self._composed = tuple(
                (sql.words(name), name) for name in names if sql.words(name) != {name}
            )
            self._names = names
        return names

    def unmanaged(self) -> frozenset[str]:
        """The tables that only unmanaged models have."""
        self.names()
        return self._unmanaged

    def labels(self) -> Mapping[str, set[str]]:
        """For each table the labels of its models, as ``MODELS`` has them."""
        self.names()
        return self._labels

    def add(self, names: Iterable[str]) -> None:
        """Remember tables that a query read though no model has them."""
        new = set(names) - self.names()
        if new:
            self._seen |= new
            self.forget()

    def among(self, words: frozenset[str]) -> set[str]:
        """The known tables among the words of a text."""
        found = set(words & self.names())
        found.update(name for parts, name in self._composed if parts <= words)
        return found


def _unmanaged(models: Iterable[Any]) -> frozenset[str]:
    concrete = [model._meta for model in models if not model._meta.proxy]
    managed = {sql.table_name(options.db_table) for options in concrete if options.managed}
    return frozenset(sql.table_name(options.db_table) for options in concrete) - managed


def _labels(models: Iterable[Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for options in (model._meta for model in models if not model._meta.proxy):
        labels = {options.label, f"{options.app_label}.*"}
        found.setdefault(sql.table_name(options.db_table), set()).update(labels)
    return found


known = _Known()
class_prepared.connect(known.forget, dispatch_uid="ormcache.tables")


def unexplained(names: Iterable[str], settings: Settings) -> set[str]:
    """Those of ``names`` that may be views, and of which nobody says what they read.

    An unmanaged model may stand for a view, which changes with its tables. ``DEPENDS_ON`` tells
    them, or that there are none; enabling the model in ``MODELS`` vouches for a table.
    """
    return not_vouched_for(known.unmanaged().intersection(names), settings)


def not_vouched_for(names: Iterable[str], settings: Settings) -> set[str]:
    """Those of ``names`` of which neither ``DEPENDS_ON`` nor ``MODELS`` says anything.

    ``DEPENDS_ON`` has the name as a key, or ``MODELS`` enables a model of that table or its app.
    Who enables all models by ``"*"`` has not looked at each of them, and vouches for none.
    """
    found = set(names)
    if not found or not (settings.DEPENDS_ON or settings.MODELS):
        return found
    found -= {sql.fold(name) for name in settings.DEPENDS_ON}
    enabled = {label for label, model in settings.MODELS.items() if model.ENABLED}
    labels = known.labels()
    return {name for name in found if enabled.isdisjoint(labels.get(name, ()))}


# --- facts about a text --------------------------------------------------------------------


_Key = tuple[str, bool, str]


_memo: Memo[_Key, Facts] = Memo()


def facts(
    text: str, recorded: Iterable[str], handwritten: bool, vendor: str, settings: Settings
) -> Facts:
    """The tables of a compiled query and whether its answer depends on them alone.

    Args:
        text: the SQL text, as compiled for ``vendor``.
        recorded: ``db_table`` names from :func:`compile_query`.
        handwritten: whether the query has an ``extra()`` or RawSQL.
    """
    memo = _memo.under(settings, known.generation)
    key = (vendor, handwritten, sql.normalise(text))
    found = memo.get(key)
    if found is None:
        found = _examine(text, recorded, handwritten, vendor, settings)
        if len(key[2]) <= _TEXT_LIMIT:
            # A table seen for the first time has emptied the memo on the way.
            _memo.under(settings, known.generation)[key] = found
    return found


def _examine(
    text: str, recorded: Iterable[str], handwritten: bool, vendor: str, settings: Settings
) -> Facts:
    seen = {sql.table_name(name) for name in recorded}
    read = sql.analyse_read(text, vendor)
    declared = {sql.fold(name): names for name, names in settings.DEPENDS_ON.items()}
    tables = seen | known.among(read.words)
    unknown = read.references - tables - declared.keys()
    tables |= read.references & declared.keys()
    called = {name.rpartition(".")[2] for name in read.functions}
    dependencies = _dependencies(tables | called, declared)
    tables |= dependencies
    known.add(tables)
    ordered = tuple(sorted(tables))
    if read.unclear:
        return Facts(ordered, Reason.UNREADABLE_SQL)
    if unknown:
        return Facts(ordered, Reason.UNKNOWN_TABLE, ", ".join(sorted(unknown)))
    if not ordered:
        return Facts(ordered, Reason.NO_TABLE)
    views = unexplained(tables, settings)
    if views:
        return Facts(ordered, Reason.UNMANAGED, ", ".join(sorted(views)))
    if (handwritten or read.references - seen) and not settings.CACHE_EXTRA:
        return Facts(ordered, Reason.RAW_FRAGMENT)
    if read.system_columns:
        return Facts(ordered, Reason.NON_DETERMINISTIC, ", ".join(sorted(read.system_columns)))
    reason, detail = functions.judge(read.functions, read.literals, vendor, declared)
    if reason is Reason.RANDOM and settings.CACHE_RANDOM:
        reason, detail = None, ""
    return Facts(ordered, reason, detail, read.qualified | dependencies)


def _dependencies(names: Iterable[str], declared: Mapping[str, Iterable[str]]) -> set[str]:
    """What views and functions read, and the views among that, and so on."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        further = set(map(sql.fold, declared.get(waiting.pop(), ()))) - found
        found |= further
        waiting.extend(further)
    return found
