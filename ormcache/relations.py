"""What else changes with a table: walks over the models.

A database-level ``on_delete`` changes rows of tables that the DELETE does not name; a model
with inheritance or many-to-many fields keeps its rows in more tables than its own.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any

from django.apps import apps
from django.db import models
from django.db.models import deletion
from django.db.models.signals import class_prepared

from ormcache import sql

# Django 6.1's DB_CASCADE, DB_SET_NULL and DB_SET_DEFAULT; absent before.
_DatabaseOnDelete: Any = getattr(deletion, "DatabaseOnDelete", ())
_DB_CASCADE: Any = getattr(deletion, "DB_CASCADE", None)


def table(model: Any) -> str:
    """The name under which ormcache knows the table of ``model``."""
    return sql.table_name(model._meta.db_table)


def _forget(**kwargs: object) -> None:
    _cascades.cache_clear()


class_prepared.connect(_forget, dispatch_uid="ormcache.relations")


@functools.lru_cache(maxsize=1)
def _cascades() -> Mapping[str, frozenset[str]]:
    """Per table, the tables that the database itself changes when a row of it is deleted."""
    if not _DatabaseOnDelete:
        return {}
    edges: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for model in apps.get_models(include_auto_created=True, include_swapped=True):
        for field in model._meta.local_fields:
            remote = field.remote_field
            on_delete = getattr(remote, "on_delete", None)
            if remote is not None and isinstance(on_delete, _DatabaseOnDelete):
                edges[table(field.related_model)].append((table(model), on_delete is _DB_CASCADE))
    return {start: frozenset(_changed_with(start, edges)) for start in edges}


def _changed_with(start: str, edges: Mapping[str, list[tuple[str, bool]]]) -> set[str]:
    changed: set[str] = set()
    # Rows that are only changed cascade no further.
    vanishing, waiting = {start}, [start]
    while waiting:
        for child, rows_vanish in edges.get(waiting.pop(), ()):
            changed.add(child)
            if rows_vanish and child not in vanishing:
                vanishing.add(child)
                waiting.append(child)
    return changed


def written_with(
    tables: Iterable[str], writes: Mapping[str, Iterable[str]], *, deletes: bool = True
) -> set[str]:
    """All tables that change when rows of ``tables`` do.

    Args:
        tables: names as :func:`table` gives them.
        deletes: whether rows may be deleted, so that the database's own cascades follow.
        writes: ``ORMCACHE["WRITES"]``: what triggers on a table also write.
    """
    cascades = _cascades()
    waiting = list(tables)
    if deletes:
        for name in tuple(waiting):
            waiting += cascades.get(name, ())
    declared = {sql.fold(name): names for name, names in writes.items()}
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        # A trigger may delete, whatever it was that made it fire.
        for written in map(sql.fold, declared.get(name, ())):
            waiting += (written, *cascades.get(written, ()))
    return found


def family(model: type[models.Model]) -> set[str]:
    """The tables that hold what a user calls the rows of ``model``.

    Its own, its parents', those of the models that inherit from it, and the through tables of
    its many-to-many fields in both directions.
    """
    found: set[str] = set()
    concrete = model._meta.concrete_model or model
    relatives = {concrete, *concrete._meta.all_parents}
    relatives.update(
        other
        for other in apps.get_models(include_auto_created=True, include_swapped=True)
        if issubclass(other, concrete)
    )
    for relative in relatives:
        found.add(table(relative))
        for field in relative._meta.local_many_to_many:
            found.add(table(field.remote_field.through))
        for relation in relative._meta.related_objects:
            through = getattr(relation, "through", None)
            if through is not None:
                found.add(table(through))
    return found


def reach(start: str, edges: Mapping[str, Set[str]]) -> set[str]:
    """All names that one leads to, by as many steps as it takes."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), frozenset()) - found
        found |= new
        waiting.extend(new)
    return found
