"""Invalidation by hand: what ormcache cannot see, it can be told."""

from __future__ import annotations

from django.apps import apps
from django.db import connections, models

from ormcache import fence, relations, sql, tables, transactions
from ormcache.conf import current
from ormcache.exceptions import CacheUnreachable
from ormcache.routers.namespaces import cache_alias_of
from ormcache.stores import EVERYTHING


def invalidate(*models_or_tables: type[models.Model] | str, using: str | None = None) -> None:
    """Make cached answers that read these models or tables invalid.

    Args:
        models_or_tables: model classes, ``"app.Model"`` labels or names of tables. A model
            stands for its table, those of its parents and of the models that inherit from it,
            and the through tables of its many-to-many fields.
        using: a database alias; all databases without one.

    In a transaction this takes effect now and once more when it is committed.

    Raises:
        TypeError: nothing was named, or what is neither a model nor a string.
        LookupError: a label names a model that an installed app does not have.
        ConnectionDoesNotExist: ``using`` is no alias.
        CacheUnreachable: the cache did not answer, and ``ON_CACHE_FAILURE`` is not ``"open"``.
    """
    if not models_or_tables:
        raise TypeError("Name a model or a table; ormcache.flush() invalidates everything.")
    names: set[str] = set()
    for thing in models_or_tables:
        names |= _tables(thing)
    _touch(using, names)


def flush(using: str | None = None) -> None:
    """Make all cached answers of a database invalid, whatever they read.

    Args:
        using: a database alias; all databases without one.

    Raises as :func:`invalidate` does. Nothing is deleted: the entries can no longer be met
    and expire by themselves. Outside of transactions, rows of the fence are removed.
    """
    aliases = [using] if using is not None else list(connections)
    rows = {alias: fence.rows(alias) for alias in aliases}
    _touch(using, {EVERYTHING})
    for alias in aliases:
        fence.remove(alias, rows[alias])


def _touch(using: str | None, names: set[str]) -> None:
    unreachable: list[tuple[str, CacheUnreachable]] = []
    for alias in [using] if using is not None else list(connections):
        try:
            transactions.touch(connections[alias], names)
        except CacheUnreachable as error:
            # The others are told all the same.
            unreachable.append((alias, error))
    if unreachable:
        alias, first = unreachable[0]
        raise CacheUnreachable(_untold(alias, names, first.__cause__)) from first.__cause__


def _untold(alias: str, names: set[str], cause: object) -> str:
    """What the error says: here no write was refused, and no policy would help."""
    what = "everything" if EVERYTHING in names else ", ".join(sorted(names))
    return (
        f"The cache {cache_alias_of(alias, current())!r} did not answer ({cause}): it could not "
        f"be told to make invalid {what} of the database {alias!r}. Its answers may be out of "
        "date until you do this again, when it is back."
    )


def _tables(thing: type[models.Model] | str) -> set[str]:
    if isinstance(thing, str):
        return _named(thing)
    if isinstance(thing, type) and issubclass(thing, models.Model) and thing is not models.Model:
        return relations.family(thing)
    raise TypeError(f"{thing!r} is neither a model nor the name of one or of a table.")


def _named(name: str) -> set[str]:
    model = model_of(name)
    return _table_names(name) if model is None else relations.family(model)


def model_of(name: str) -> type[models.Model] | None:
    """The model with the label ``name``; None if that may be the name of a table.

    Raises LookupError for one that an installed app does not have.
    """
    try:
        return apps.get_model(name)
    except ValueError:
        # Not of the form "app.Model".
        return None
    except LookupError:
        # A schema may be called like an app.
        if name.partition(".")[0] in apps.app_configs and not is_known_table(name):
            raise
        return None


def is_known_table(name: str) -> bool:
    """Whether it is the table of a model, or one that ormcache has met in the database."""
    return not _table_names(name).isdisjoint(tables.known.names())


def _table_names(name: str) -> set[str]:
    """A table's name with and without what may be a schema in front of it."""
    return {sql.table_name(name), sql.fold(name.rpartition(".")[2])}
