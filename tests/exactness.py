"""Whether two answers are the same in value and in type, through and through.

`==` is not enough: True equals 1 equals 1.0 equals Decimal("1.00"), and a datetime equals the
same moment in another zone.
"""

import datetime
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.db import models


def exact(value: Any, _inside: tuple[int, ...] = ()) -> Any:
    """A description of `value` that is equal for values that are exactly alike only."""
    kind = type(value)
    if id(value) in _inside:
        # Instances that know each other.
        return (kind, "level", _inside.index(id(value)))
    _inside = (*_inside, id(value))
    if kind is float:
        return (kind, struct.pack(">d", value))
    if kind is Decimal:
        return (kind, value.as_tuple())
    if isinstance(value, (datetime.datetime, datetime.time)):
        return (kind, value.replace(tzinfo=None, fold=0), value.fold, _zone(value.tzinfo))
    if isinstance(value, models.Model):
        return (kind, _instance(value, _inside))
    if isinstance(value, Mapping):
        return (kind, [(exact(key), exact(inner, _inside)) for key, inner in value.items()])
    if isinstance(value, (list, tuple, models.QuerySet)):
        return (kind, [exact(inner, _inside) for inner in value])
    if kind is memoryview:
        return (kind, value.format, bytes(value))
    if kind.__module__ == "psycopg.types.range":
        return (kind, value.isempty, exact(value.lower), exact(value.upper), value.bounds)
    return (kind, value)


def _zone(zone: Any) -> Any:
    if isinstance(zone, datetime.timezone):
        return (type(zone), zone.utcoffset(None), zone.tzname(None))
    return (type(zone), str(zone))


def _instance(instance: models.Model, inside: tuple[int, ...]) -> Any:
    facts = dict(vars(instance))
    state = facts.pop("_state")
    prefetched = facts.pop("_prefetched_objects_cache", {})
    return [
        exact(facts, inside),
        (state.db, state.adding, exact(getattr(state, "fields_cache", {}), inside)),
        [(name, exact(list(found), inside)) for name, found in prefetched.items()],
    ]
