"""Notes of queries, kept beside their answers so that an audit can ask them again.

An entry holds rows and no query, and its key is a digest. ``ORMCACHE["AUDIT"]`` is the share of
answers that are stored with a note. A note is signed with the project's ``SECRET_KEY``: what an
audit runs was written by the project, not by whoever can write to the cache.
"""

from __future__ import annotations

import hmac
import importlib
from typing import Any, NamedTuple

from django.utils.crypto import salted_hmac

from ormcache import codec
from ormcache.comparison import Order
from ormcache.exceptions import Corrupt

_SALT = "ormcache.notes"
_ALGORITHM = "sha256"
_SIGNATURE_BYTES = 32


class Note(NamedTuple):
    """All it takes to ask a query again and to compare the answer."""

    entry: str
    """The name of the entry that it belongs to."""
    context: str
    """What the answer depends on besides the SQL, as text: alias, session, search path."""
    sql: str
    params: tuple[Any, ...]
    tables: tuple[str, ...]
    elsewhere: tuple[str, ...]
    key: str
    """The name of the entry but for the registers."""
    registers: tuple[str, ...]
    width: int | None
    """How many columns Django keeps of each row; None for all."""
    is_single: bool
    """Whether only the first row was asked for."""
    order: Order


def dump(note: Note) -> bytes:
    """Raises NotEncodable for parameters of a type that the codec does not know."""
    facts = note._replace(params=tuple(map(_unwrap, note.params)))
    packed = codec.encode(codec.Result([(*facts[:-1], tuple(note.order))], ""))
    return _signature(packed) + packed


def load(data: bytes) -> Note:
    """The inverse of :func:`dump`. Raises Corrupt for what this project has not written."""
    signature, packed = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(packed)):
        raise Corrupt("a note with another signature")
    (row,) = codec.decode(packed).rows
    facts: list[Any] = [*row[:-1], Order(*row[-1])]
    note = Note(*facts)
    return note._replace(params=tuple(map(_wrap, note.params)))


# psycopg's integers of a certain size, which Django makes of the values of integer fields.
_MODULE = "psycopg.types.numeric"
_INTEGERS = frozenset({"Int2", "Int4", "Int8", "IntNumeric"})


def _unwrap(param: Any) -> Any:
    kind = type(param)
    if kind.__module__ == _MODULE and kind.__name__ in _INTEGERS:
        return (_MODULE, kind.__name__, int(param))
    return param


def _wrap(param: Any) -> Any:
    if type(param) is tuple and param[:1] == (_MODULE,):
        _, name, number = param
        return getattr(importlib.import_module(_MODULE), name)(number)
    return param


def _signature(packed: bytes) -> bytes:
    return salted_hmac(_SALT, packed, algorithm=_ALGORITHM).digest()
