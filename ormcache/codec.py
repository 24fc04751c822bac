"""Rows to bytes and back, for a closed set of types.

Decoding builds values of the types below and of no other: whoever can write to the cache can
plant wrong answers, but never run code (as with pickle). What does not come back exactly, in
value and in type, is refused when it is encoded.

Results of several rows are kept by column: a column of datetimes becomes a column of strings and
is rebuilt by one ``map`` in C, which makes decoding about as fast as unpickling. A single row,
which is what most answers are, is kept value by value. Values that are decoded are always new
objects: two callers never share a list or a dict.
"""

from __future__ import annotations

import datetime
import itertools
import sys
import threading
import uuid
import zlib
import zoneinfo
from collections.abc import Callable, Sequence
from decimal import Decimal
from pickle import PicklingError
from typing import Any, NamedTuple

import msgpack

from ormcache.exceptions import Corrupt, NotEncodable
from ormcache.interruptions import let_through

FORMAT = 3
"""Part of every key: entries of another format are never met."""

_NONE = type(None)
# msgpack packs some other types, too, but would return bytes for a memoryview or a bytearray.
_NATIVE = frozenset({int, float, bool, str, bytes, _NONE})
_UTC = datetime.timezone.utc


class Result(NamedTuple):
    """What ``SQLCompiler.execute_sql`` returned, less the chunks."""

    rows: list[tuple[Any, ...]]
    chunk_type: str
    """"list" or "tuple": what the driver's ``fetchmany`` returns; "" for a single row."""


# --- msgpack -------------------------------------------------------------------------------

_BIG_INTEGER = 1


def _dump_big_integer(value: Any) -> msgpack.ExtType:
    """Called by msgpack for integers of more than 64 bits."""
    if type(value) is not int:
        raise _refusal(value)
    size = value.bit_length() // 8 + 1
    return msgpack.ExtType(_BIG_INTEGER, value.to_bytes(size, "big", signed=True))


def _load_big_integer(code: int, data: bytes) -> int:
    if code != _BIG_INTEGER:
        raise Corrupt(f"unknown extension {code}")
    return int.from_bytes(data, "big", signed=True)


class _Kept(threading.local):
    """One packer per thread: a new one allocates a quarter of a megabyte."""

    pack: Callable[[Any], bytes] | None = None


_kept = _Kept()
_KEPT_BYTES = 256 * 1024


def _pack(value: Any) -> bytes:
    pack, _kept.pack = _kept.pack, None
    if pack is None:
        # The first of this thread; or a signal handler has interrupted the other one.
        pack = msgpack.Packer(
            default=_dump_big_integer, strict_types=True, unicode_errors="surrogatepass"
        ).pack
    packed = pack(value)
    # It never gives back what a large result took.
    if len(packed) <= _KEPT_BYTES:
        _kept.pack = pack
    return packed


def _with_string_keys(value: dict[Any, Any]) -> dict[Any, Any]:
    for key in value:
        # strict_map_key lets bytes pass, too.
        if type(key) is not str:
            raise Corrupt("a key that is no string")
    return value


def _unpack(data: bytes) -> Any:
    # Keys of dicts are strings, whose hashes nobody can foresee: numbers are refused before there
    # is a dict. Timestamps, which encode() does not write, become plain numbers.
    return msgpack.unpackb(
        data,
        ext_hook=_load_big_integer,
        object_hook=_with_string_keys,
        strict_map_key=True,
        timestamp=1,
        unicode_errors="surrogatepass",
    )


# --- one value -----------------------------------------------------------------------------
#
# A value that msgpack does not know becomes a list: a code, and what it takes to build it.

_LIST, _TUPLE, _DICT, _DATETIME, _DATE, _TIME = range(6)
_TIMEDELTA, _DECIMAL, _UUID, _MEMORYVIEW, _RANGE, _TEXT_MOMENT = range(6, 12)


def _refusal(value: Any) -> NotEncodable:
    kind = type(value)
    return NotEncodable(f"a value of type {kind.__module__}.{kind.__qualname__}")


def _range_type() -> type[Any] | None:
    """psycopg's Range, if psycopg is in use; it is not imported for our sake."""
    module = sys.modules.get("psycopg.types.range")
    return getattr(module, "Range", None)


def _dump_value(value: Any) -> Any:
    kind = type(value)
    if kind in _NATIVE:
        return value
    dump = _DUMPERS.get(kind)
    if dump is not None:
        return dump(value)
    if kind is _range_type():
        bounds = None if value.isempty else value.bounds
        return [_RANGE, _dump_value(value.lower), _dump_value(value.upper), bounds]
    raise _refusal(value)


def _dump_dict(value: dict[Any, Any]) -> list[Any]:
    if any(type(key) is not str for key in value):
        raise NotEncodable("a dict with keys that are not strings")
    return [_DICT, {key: _dump_value(inner) for key, inner in value.items()}]


def _zone_key(zone: zoneinfo.ZoneInfo) -> str:
    try:
        # Refused for zones from files, which may have any rules under any name.
        reduced: Any = zone.__reduce__()
    except PicklingError as error:
        raise NotEncodable("a time zone that was read from a file") from error
    key: str = reduced[1][0]
    return key


def _dump_zone(zone: Any) -> Any:
    if zone is None:
        return None
    if type(zone) is zoneinfo.ZoneInfo:
        return _zone_key(zone)
    if type(zone) is datetime.timezone:
        # The offset and, if it was given one, the name.
        return [_dump_value(part) for part in zone.__getinitargs__()]  # type: ignore[attr-defined]
    raise _refusal(zone)


def _load_zone(dumped: Any) -> datetime.tzinfo | None:
    if dumped is None:
        return None
    if type(dumped) is str:
        return zoneinfo.ZoneInfo(dumped)
    return datetime.timezone(*map(_load_value, dumped))


def _dump_datetime(value: datetime.datetime) -> list[Any]:
    zone = value.tzinfo
    if (zone is _UTC or zone is None) and not value.fold:
        # Text alone can tell it.
        return [_TEXT_MOMENT, value.isoformat()]
    return _dump_moment(_DATETIME)(value)


def _dump_moment(code: int) -> Callable[[Any], list[Any]]:
    def dump(value: Any) -> list[Any]:
        bare = value.replace(tzinfo=None, fold=0)
        return [code, bare.isoformat(), value.fold, _dump_zone(value.tzinfo)]

    return dump


def _dump_memoryview(value: memoryview) -> list[Any]:
    if value.format != "B" or value.ndim != 1:
        raise NotEncodable("a memoryview of more than bytes")
    return [_MEMORYVIEW, bytes(value)]


_DUMPERS: dict[type, Callable[[Any], list[Any]]] = {
    list: lambda value: [_LIST, *map(_dump_value, value)],
    tuple: lambda value: [_TUPLE, *map(_dump_value, value)],
    dict: _dump_dict,
    datetime.datetime: _dump_datetime,
    datetime.date: lambda value: [_DATE, value.isoformat()],
    datetime.time: _dump_moment(_TIME),
    datetime.timedelta: lambda value: [
        _TIMEDELTA,
        value.days,
        value.seconds,
        value.microseconds,
    ],
    Decimal: lambda value: [_DECIMAL, str(value)],
    uuid.UUID: lambda value: [_UUID, value.bytes],
    memoryview: _dump_memoryview,
}


def _load_value(value: Any) -> Any:
    if type(value) is not list:
        return value
    code, *parts = value
    return _LOADERS[code](*parts)


def _load_list(*parts: Any) -> list[Any]:
    return [_load_value(part) for part in parts]


def _load_datetime(text: str, fold: int, zone: Any) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=_load_zone(zone), fold=fold)


def _load_time(text: str, fold: int, zone: Any) -> datetime.time:
    return datetime.time.fromisoformat(text).replace(tzinfo=_load_zone(zone), fold=fold)


def _load_decimal(text: str) -> Decimal:
    if type(text) is not str:
        # Building one of a huge integer takes quadratic time.
        raise Corrupt("a Decimal that is not text")
    return Decimal(text)


def _load_range(lower: Any, upper: Any, bounds: str | None) -> Any:
    make = _range_type()
    if make is None:
        # Rows of a database without the driver hold no ranges.
        raise Corrupt("a range without psycopg")
    if bounds is None:
        return make(empty=True)
    return make(_load_value(lower), _load_value(upper), bounds)


_LOADERS: dict[int, Callable[..., Any]] = {
    _LIST: _load_list,
    _TUPLE: lambda *parts: tuple(_load_list(*parts)),
    _DICT: lambda value: {key: _load_value(inner) for key, inner in value.items()},
    _DATETIME: _load_datetime,
    _DATE: datetime.date.fromisoformat,
    _TIME: _load_time,
    _TIMEDELTA: datetime.timedelta,
    _DECIMAL: _load_decimal,
    _UUID: lambda value: uuid.UUID(bytes=value),
    _MEMORYVIEW: memoryview,
    _RANGE: _load_range,
    _TEXT_MOMENT: datetime.datetime.fromisoformat,
}


# --- one column ----------------------------------------------------------------------------


def _dump_datetimes(column: Sequence[Any]) -> tuple[str, list[Any]] | None:
    """Datetimes that text alone can tell, or that share one zone; None for all others."""
    moments = [value for value in column if value is not None]
    if any(value.fold for value in moments):
        return None
    # By identity: timezones of one offset are equal though their names may differ.
    zones = list({id(value.tzinfo): value.tzinfo for value in moments}.values())
    if all(zone is None or zone is _UTC for zone in zones):
        return "t", [None if value is None else value.isoformat() for value in column]
    if len(zones) > 1 or type(zones[0]) is not zoneinfo.ZoneInfo:
        return None
    return "t" + _zone_key(zones[0]), [
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


_COLUMNS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime.date: ("d", datetime.date.isoformat),
    Decimal: ("n", str),
    uuid.UUID: ("u", lambda value: value.bytes),
}
_COLUMN_LOADERS: dict[str, Callable[[Any], Any]] = {
    "d": datetime.date.fromisoformat,
    "n": _load_decimal,
    "u": lambda value: uuid.UUID(bytes=value),
}


def _dump_column(column: Sequence[Any]) -> tuple[str, list[Any]]:
    """A tag and the column in types that msgpack knows: "" as it is, "v" value by value."""
    types = set(map(type, column))
    if types <= _NATIVE:
        return "", list(column)
    types.discard(_NONE)
    if len(types) == 1:
        kind = types.pop()
        if kind is datetime.datetime:
            dumped = _dump_datetimes(column)
            if dumped is not None:
                return dumped
        elif kind in _COLUMNS:
            tag, dump = _COLUMNS[kind]
            return tag, [None if value is None else dump(value) for value in column]
    return "v", list(map(_dump_value, column))


def _dump_rows(rows: Sequence[tuple[Any, ...]]) -> tuple[list[str], list[list[Any]]]:
    """The tags and the columns of rows."""
    dumped = list(map(_dump_column, zip(*rows, strict=True)))
    return [tag for tag, _ in dumped], [column for _, column in dumped]


def _load_column(tag: str, column: list[Any]) -> list[Any]:
    if not tag:
        return column
    if tag == "v":
        return list(map(_load_value, column))
    if tag[0] == "t":
        return _load_datetimes(tag, column)
    load = _COLUMN_LOADERS[tag]
    return [None if value is None else load(value) for value in column]


# --- a result ------------------------------------------------------------------------------


def _load_row(dumped: list[Any]) -> tuple[Any, ...]:
    if type(dumped) is not list or not dumped:
        raise Corrupt("no row")
    return tuple([value if type(value) is not list else _load_value(value) for value in dumped])


def encode(result: Result) -> bytes:
    """Raises :class:`~ormcache.exceptions.NotEncodable` for a value outside the closed set."""
    rows = result.rows
    if set(map(type, rows)) - {tuple}:
        raise NotEncodable("rows that are not tuples")
    if rows and not rows[0]:
        raise NotEncodable("rows without columns")
    try:
        if len(rows) == 1:
            return _pack([result.chunk_type, list(map(_dump_value, rows[0]))])
        return _pack([result.chunk_type, *_dump_rows(rows)])
    except (ValueError, OverflowError, RecursionError) as error:
        # Nested too deeply, or larger than msgpack can write.
        raise NotEncodable(str(error)) from error


def decode(data: bytes) -> Result:
    """Raises :class:`~ormcache.exceptions.Corrupt` for what :func:`encode` cannot have made."""
    try:
        chunk_type, *parts = _unpack(data)
        if chunk_type not in ("list", "tuple", ""):
            raise Corrupt("no result")
        if len(parts) == 1:
            return Result([_load_row(*parts)], chunk_type)
        tags, columns = parts
        if len(tags) != len(columns):
            raise Corrupt("no result")
        if set(map(type, columns)) - {list}:
            raise Corrupt("columns that are not lists")
        return Result(list(zip(*map(_load_column, tags, columns), strict=True)), chunk_type)
    except Exception as error:
        let_through(error)
        # Whatever the bytes made msgpack or a constructor raise, the entry is worthless.
        raise Corrupt(f"{type(error).__name__}: {error}") from error


_SEAL_BYTES = 4


def seal(payload: bytes) -> bytes:
    """``payload`` with a checksum behind it, so that no bit of it can change unnoticed."""
    return payload + zlib.crc32(payload).to_bytes(_SEAL_BYTES, "big")


def unseal(sealed: bytes) -> bytes:
    """The inverse of :func:`seal`. Raises :class:`~ormcache.exceptions.Corrupt`."""
    # A cache with a serializer of its own may have anything there.
    if type(sealed) is not bytes:
        raise Corrupt("no bytes")
    payload = sealed[:-_SEAL_BYTES]
    if zlib.crc32(payload).to_bytes(_SEAL_BYTES, "big") != sealed[-_SEAL_BYTES:]:
        raise Corrupt("a wrong checksum")
    return payload


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
