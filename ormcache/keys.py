"""The key of a query: equal for equal questions, in every process, and for no others."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import uuid
import zoneinfo
from collections.abc import Sequence
from typing import Any

from ormcache.exceptions import NotEncodable
from ormcache.interruptions import let_through

# repr() of these tells the type and the exact value, and reads the same in every process.
_EXACT = frozenset({int, str, bool, float, bytes, type(None), decimal.Decimal, uuid.UUID})
_MOMENTS = frozenset({datetime.datetime, datetime.date, datetime.time, datetime.timedelta})


def entry_key(context: tuple[object, ...], sql: str, params: Sequence[Any]) -> str:
    """A digest of everything that the answer depends on besides the rows of its tables.

    Args:
        context: strings, numbers and tuples of them: alias, schema, time zone, result type, ….
        sql: the SQL text.
        params: its parameters, compared by type and value: 1, True and "1" are three.

    Raises:
        NotEncodable: a parameter has no stable identity.

    The digest has 160 bits, so that nobody who can choose parameters can find two that meet.
    """
    try:
        for param in params:
            if type(param) not in _EXACT:
                params = [identity(param) for param in params]
                break
        text = repr((context, sql, tuple(params)))
    except ValueError as error:
        # Python does not spell an integer of thousands of digits.
        raise NotEncodable(f"a parameter: {error}") from error
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def under(key: str, registers: Sequence[str]) -> str:
    """The key of the same query where its answer depends on other registers than its tables.

    The same nonce may stand in several registers, those that one commit has changed. So an entry
    must not be compared with registers of other names.
    """
    text = repr((key, registers))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def identity(param: Any) -> object:
    """A stand-in for ``param`` whose ``repr`` is exact and the same in every process."""
    kind = type(param)
    if kind in _EXACT:
        return (kind.__name__, param)
    if kind in _MOMENTS:
        return (kind.__name__, _moment(param))
    if kind in (list, tuple):
        return (kind.__name__, [identity(value) for value in param])
    if kind in (set, frozenset):
        return (kind.__name__, sorted(repr(identity(value)) for value in param))
    if kind is dict:
        return ("dict", [(identity(key), identity(value)) for key, value in param.items()])
    if kind in (memoryview, bytearray):
        return (kind.__name__, bytes(param))
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(param, bool | int | str | float | bytes | decimal.Decimal):
        # A str, int or Enum of one's own: the driver may send it as its class pleases.
        base: Any = next(base for base in kind.__mro__ if base in _EXACT)
        return (name, base.__repr__(param))
    if kind.__module__.startswith("psycopg."):
        return (name, _driver_wrapper(param))
    if kind.__module__ == "ipaddress":
        return (name, str(param))
    raise NotEncodable(f"a parameter of type {name}")


def _moment(param: Any) -> tuple[object, ...]:
    zone = getattr(param, "tzinfo", None)
    if zone is None or type(zone) is datetime.timezone:
        return (repr(param),)
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        # A zone from a file may have any rules under any name: the offset tells.
        return (repr(param.replace(tzinfo=None)), zone.key, repr(param.utcoffset()))
    raise NotEncodable(f"a time zone of type {type(zone).__qualname__}")


def _driver_wrapper(param: Any) -> object:
    """psycopg's wrappers for values that need a type: Jsonb, Binary, Range and their like."""
    if hasattr(param, "obj"):  # A custom encoder of JSON may see more than the object.
        dumps = getattr(param, "dumps", None)
        if dumps is None:
            return identity(param.obj)
        try:
            return (type(param.obj).__name__, dumps(param.obj))
        except Exception as error:
            let_through(error)
            # The driver will meet the same error and say it in its own words.
            raise NotEncodable(f"a parameter that is no JSON: {error}") from error
    if hasattr(param, "bounds"):
        return (param.bounds, identity(param.lower), identity(param.upper))
    raise NotEncodable(f"a parameter of type {type(param).__qualname__}")
