"""An answer of the ORM as plain data, to compare answers down to types and relations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Model, QuerySet


def snapshot(answer: Any) -> str:
    """The text of everything that an answer holds. Taking it asks the database for nothing."""
    return repr(_plain(answer, ()))


def _plain(value: Any, around: tuple[Model, ...]) -> Any:
    """``around`` holds the instances that led here: a city knows its country, which knows it."""
    if isinstance(value, Model):
        if any(value is outer for outer in around):
            return (type(value).__name__, value.pk)
        return _plain_instance(value, (*around, value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, around) for key, item in value.items()}
    if isinstance(value, QuerySet):
        # Only of a prefetched relation, whose rows are here already.
        return [_plain(item, around) for item in value._result_cache or ()]
    # By exact type: a named tuple has its field names in its repr.
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_plain(item, around) for item in value)]
    return value


def _plain_instance(instance: Model, around: tuple[Model, ...]) -> Any:
    state = instance._state
    attributes = {name: value for name, value in vars(instance).items() if name[0] != "_"}
    return (
        type(instance).__name__,
        state.db,
        state.adding,
        sorted(attributes.items()),
        _plain(state.fields_cache, around),
        _plain(getattr(instance, "_prefetched_objects_cache", {}), around),
    )
