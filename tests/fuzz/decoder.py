"""Searches for bytes that make the decoder raise, run code, or build what it must not build.

    tox run -e fuzz -- -max_total_time=600
    python -m tests.fuzz.decoder tests/fuzz/found/crash-…   # once more with what was found

Atheris follows which lines of the decoder each input reaches, and mutates those that reach new
ones; options are libFuzzer's. It begins with what `seeds` encodes. The decoder is fuzzed behind
the checksum, which would stop nearly everything.
"""

from __future__ import annotations

import datetime
import resource
import sys
import tempfile
import time
import uuid
import zoneinfo
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["ormcache.codec"]):
    from ormcache import codec

from psycopg.types.range import Range

from ormcache.exceptions import Corrupt

CLOSED = frozenset(
    (
        *(bool, int, float, str, bytes, type(None), list, tuple, dict, memoryview),
        *(Decimal, uuid.UUID, datetime.timedelta, Range),
        *(datetime.datetime, datetime.date, datetime.time),
    )
)
LONGEST = 4096
"""Bytes of one input."""
SECONDS = 2
"""What one input may take."""
MEGABYTES = 512
"""What the whole process may take."""


def seeds() -> Iterator[bytes]:
    """Results of all types, as they are encoded."""
    utc, vienna = datetime.timezone.utc, zoneinfo.ZoneInfo("Europe/Vienna")
    moment = datetime.datetime(2024, 1, 1, 12, 30, 15, 999)
    values: list[Any] = [
        *(None, True, 1, -(2**70), 1.5, "text", b"bytes", Decimal("1.50"), uuid.UUID(int=5)),
        *(moment, moment.replace(tzinfo=utc), moment.replace(tzinfo=vienna), moment.date()),
        *(moment.time(), moment.replace(tzinfo=vienna, fold=1), datetime.timedelta(1, 2, 3)),
        moment.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2), "name")),
        *([1, [2]], (1, (2,)), {"a": {"b": [1]}}, memoryview(b"x")),
        *(Range(1, 2), Range(None, moment, "(]"), Range(empty=True)),
    ]
    for value in values:
        for chunk_type in ("list", "tuple", ""):
            yield codec.encode(codec.Result([(value,)], chunk_type))
        yield codec.encode(codec.Result([(value, 1), (None, 2)], "list"))
    yield codec.encode(codec.Result([tuple(values)] * 2, "list"))
    yield codec.encode(codec.Result([], "list"))


def check(data: bytes) -> None:
    """Raise if the decoder does what it must not do with ``data``."""
    begun = time.process_time()
    try:
        result = codec.decode(data)
    except Corrupt:
        result = None
    if time.process_time() - begun > SECONDS:
        raise AssertionError("it takes too long")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEGABYTES * 1024:
        raise AssertionError("it takes too much memory")
    if result is None:
        return
    if type(result.rows) is not list or result.chunk_type not in ("list", "tuple", ""):
        raise AssertionError("no result")
    for row in result.rows:
        if type(row) is not tuple:
            raise AssertionError("a row that is no tuple")
        for value in row:
            check_value(value)
    # What was decoded is something that can be cached, as long as it has any columns.
    if result.rows and result.rows[0]:
        check_again(result)


def check_value(value: Any) -> None:
    if type(value) not in CLOSED:
        raise AssertionError(f"a value of type {type(value)}")
    if isinstance(value, dict):
        if any(type(key) is not str for key in value):
            raise AssertionError("a key that is no string")
        value = list(value.values())
    if isinstance(value, Range):
        value = [value.lower, value.upper]
    if isinstance(value, (list, tuple)):
        for inner in value:
            check_value(inner)


def check_again(result: codec.Result) -> None:
    """It can be encoded, and comes back the same."""
    try:
        encoded = codec.encode(result)
    except codec.NotEncodable:
        return
    if codec.encode(codec.decode(encoded)) != encoded:
        raise AssertionError("it does not come back the same")


def main() -> None:
    found = Path(__file__).parent / "found"
    found.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        has_files = any(not argument.startswith("-") for argument in sys.argv[1:])
        arguments = [
            sys.argv[0],
            f"-max_len={LONGEST}",
            f"-artifact_prefix={found}/",
            *sys.argv[1:],
            *([] if has_files else [corpus]),
        ]
        atheris.Setup(arguments, check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
