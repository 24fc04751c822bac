"""Rows to bytes and back, for a closed set of types.

Decoding builds values of the types below and of no other, so that whoever can write to the
cache can at worst cause a miss, never run code (as with pickle). Results are kept by column:
a column of datetimes becomes a column of strings and is rebuilt by one ``map`` in C, which
makes decoding about as fast as unpickling.

Values that are decoded are always new objects: two callers never share a list or a dict.
"""

from __future__ import annotations

import datetime
import itertools
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgpack

from ormcache.exceptions import Corrupt, NotEncodable

FORMAT = 1
"""Part of every key: entries of another format are never met."""

_NATIVE = frozenset({int, float, bool, str, bytes})
_NONE = type(None)


class Result(NamedTuple):
    """What ``SQLCompiler.execute_sql`` returned, less the chunks."""

    rows: list[tuple[Any, ...]]
    chunk_type: str
    """"list" or "tuple": what the driver's ``fetchmany`` returns; "" for a single row."""


# --- one column ----------------------------------------------------------------------------


def _dump_datetimes(column: Sequence[Any]) -> tuple[str, list[Any]] | None:
    zones = {None if value is None else value.tzinfo for value in column}
    if any(value is not None and value.fold for value in column):
        return None
    zones.discard(None)
    if not zones or zones == {datetime.timezone.utc}:
        if zones and any(value is not None and value.tzinfo is None for value in column):
            return None
        return "t", [None if value is None else value.isoformat() for value in column]
    zone = zones.pop()
    if zones or type(zone) is not zoneinfo.ZoneInfo or zone.key is None:
        return None
    if any(value is not None and value.tzinfo is None for value in column):
        return None
    return "t" + zone.key, [
        None if value is None else value.replace(tzinfo=None).isoformat() for value in column
    ]


def _load_datetimes(tag: str, column: list[Any]) -> list[Any]:
    load = datetime.datetime.fromisoformat
    if tag == "t":
        if None not in column:
            return list(map(load, column))
        return [None if value is None else load(value) for value in column]
    zone = zoneinfo.ZoneInfo(tag[1:])
    return [None if value is None else load(value).replace(tzinfo=zone) for value in column]


_Dump = Callable[[Any], Any]
_COLUMNS: dict[type, tuple[str, _Dump]] = {
    datetime.date: ("d", datetime.date.isoformat),
    Decimal: ("n", str),
    uuid.UUID: ("u", lambda value: value.bytes),
}
_LOADERS: dict[str, Callable[[Any], Any]] = {
    "d": datetime.date.fromisoformat,
    "n": Decimal,
    "u": lambda value: uuid.UUID(bytes=value),
}


def _dump_column(column: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """A tag and the column in types that msgpack knows; without a tag, value by value."""
    types = set(map(type, column))
    types.discard(_NONE)
    if len(types) == 1 and not types <= _NATIVE:
        kind = types.pop()
        if kind is datetime.datetime:
            return _dump_datetimes(column) or ("", column)
        if kind in _COLUMNS:
            tag, dump = _COLUMNS[kind]
            return tag, [None if value is None else dump(value) for value in column]
    return "", column


def _load_column(tag: str, column: list[Any]) -> list[Any]:
    if tag.startswith("t"):
        return _load_datetimes(tag, column)
    load = _LOADERS[tag]
    return [None if value is None else load(value) for value in column]


# --- one value -----------------------------------------------------------------------------


def _range_type() -> type[Any] | None:
    """psycopg's Range, if psycopg is in use; it is not imported for our sake."""
    module = sys.modules.get("psycopg.types.range")
    return getattr(module, "Range", None)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(
        value, default=_dump_value, strict_types=True, unicode_errors="surrogatepass"
    )
    return packed


def _dump_value(value: Any) -> msgpack.ExtType:
    """Called by msgpack for each value that it does not know."""
    kind = type(value)
    if kind is tuple:
        return msgpack.ExtType(1, _pack(list(value)))
    if kind is datetime.datetime:
        zone = value.tzinfo
        if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
            naive = value.replace(tzinfo=None, fold=0)
            return msgpack.ExtType(2, _pack([naive.isoformat(), value.fold, zone.key]))
        if zone is None or type(zone) is datetime.timezone:
            if (
                zone is not None
                and zone != datetime.timezone.utc
                and zone.tzname(None)[:3] != "UTC"
            ):
                raise NotEncodable("a timezone with a name of its own")
            return msgpack.ExtType(2, _pack([value.replace(fold=0).isoformat(), value.fold, ""]))
    elif kind is datetime.date:
        return msgpack.ExtType(3, value.isoformat().encode())
    elif kind is datetime.time and (
        value.tzinfo is None or type(value.tzinfo) is datetime.timezone
    ):
        return msgpack.ExtType(4, _pack([value.replace(fold=0).isoformat(), value.fold]))
    elif kind is datetime.timedelta:
        return msgpack.ExtType(5, _pack([value.days, value.seconds, value.microseconds]))
    elif kind is Decimal:
        return msgpack.ExtType(6, str(value).encode())
    elif kind is uuid.UUID:
        return msgpack.ExtType(7, value.bytes)
    elif kind is int:
        return msgpack.ExtType(8, str(value).encode())
    elif kind is memoryview:
        return msgpack.ExtType(9, bytes(value))
    elif kind is _range_type():
        bounds = value.bounds if not value.isempty else None
        return msgpack.ExtType(10, _pack([value.lower, value.upper, bounds]))
    raise NotEncodable(f"a value of type {kind.__module__}.{kind.__qualname__}")


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(
        data,
        ext_hook=_load_value,
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )


def _load_value(code: int, data: bytes) -> Any:
    if code == 1:
        return tuple(_unpack(data))
    if code == 2:
        text, fold, zone = _unpack(data)
        value = datetime.datetime.fromisoformat(text)
        if zone:
            value = value.replace(tzinfo=zoneinfo.ZoneInfo(zone))
        return value.replace(fold=fold)
    if code == 3:
        return datetime.date.fromisoformat(data.decode())
    if code == 4:
        text, fold = _unpack(data)
        return datetime.time.fromisoformat(text).replace(fold=fold)
    if code == 5:
        return datetime.timedelta(*_unpack(data))
    if code == 6:
        return Decimal(data.decode())
    if code == 7:
        return uuid.UUID(bytes=data)
    if code == 8:
        return int(data)
    if code == 9:
        return memoryview(data)
    if code == 10:
        lower, upper, bounds = _unpack(data)
        # The class is a driver's: rows of a database without it hold no ranges.
        from psycopg.types.range import Range

        return Range(empty=True) if bounds is None else Range(lower, upper, bounds)
    raise Corrupt(f"unknown type {code}")


# --- a result ------------------------------------------------------------------------------


def encode(result: Result) -> bytes:
    """Raises :class:`~ormcache.exceptions.NotEncodable` for a value outside the closed set."""
    rows = result.rows
    if set(map(type, rows)) - {tuple}:
        raise NotEncodable("rows that are not tuples")
    try:
        columns = [_dump_column(column) for column in zip(*rows, strict=True)]
        if rows and not columns:
            raise NotEncodable("rows without columns")
        return _pack(
            [
                result.chunk_type,
                [tag for tag, _ in columns],
                [list(column) for _, column in columns],
            ]
        )
    except (ValueError, OverflowError, RecursionError, UnicodeError) as error:
        raise NotEncodable(str(error)) from error


def decode(data: bytes) -> Result:
    """Raises :class:`~ormcache.exceptions.Corrupt` for what :func:`encode` did not make."""
    try:
        chunk_type, tags, columns = _unpack(data)
        if chunk_type not in ("list", "tuple", ""):
            raise Corrupt("unknown kind of result")
        for index, tag in enumerate(tags):
            if tag:
                columns[index] = _load_column(tag, columns[index])
        return Result(list(zip(*columns, strict=True)), chunk_type)
    except Exception as error:
        # Whatever the bytes made msgpack or a constructor raise, the entry is worthless.
        raise Corrupt(f"{type(error).__name__}: {error}") from error


def chunks(result: Result, size: int) -> list[Any]:
    """The rows as ``execute_sql`` returns them: a list of chunks of at most ``size`` rows."""
    rows = result.rows
    make: Callable[[Any], Any] = tuple if result.chunk_type == "tuple" else list
    if len(rows) <= size:
        return [make(rows)] if rows else []
    return [make(rows[start : start + size]) for start in range(0, len(rows), size)]


def from_chunks(result: Sequence[Sequence[tuple[Any, ...]]]) -> Result:
    """The inverse of :func:`chunks`."""
    kind = "tuple" if result and type(result[0]) is tuple else "list"
    if len(result) == 1:
        return Result(list(result[0]), kind)
    return Result(list(itertools.chain.from_iterable(result)), kind)
