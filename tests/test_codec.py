"""Bytes that come back exactly as they went, or not at all."""

import datetime
import enum
import importlib
import itertools
import os
import pickle
import sys
import time
import tracemalloc
import uuid
import zoneinfo
from collections import OrderedDict, namedtuple
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ormcache import codec
from ormcache.codec import Result
from ormcache.exceptions import Corrupt, NotEncodable
from tests.exactness import exact
from tests.interleaving import Background

UTC = datetime.timezone.utc
VIENNA = zoneinfo.ZoneInfo("Europe/Vienna")

# --- values ----------------------------------------------------------------------------------

offsets = st.timedeltas(
    min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)
)
zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["Europe/Vienna", "America/New_York", "Asia/Kathmandu", "UTC"]).map(
        zoneinfo.ZoneInfo
    ),
    st.builds(datetime.timezone, offsets),
    st.builds(datetime.timezone, offsets, st.text(max_size=5)),
)
# Lone surrogates are text, too: SQLite stores them.
texts = st.text(st.characters(), max_size=10)
datetimes = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.datetimes(),
    zones,
    st.sampled_from([0, 1]),
)
times = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.times(),
    zones,
    st.sampled_from([0, 1]),
)
decimals = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        list(map(Decimal, ["-0", "0.00", "-0E+3", "1E+5", "1.0", "1.00", "NaN", "sNaN", "-NaN12"]))
    ),
)
scalars = {
    "int": st.integers(),
    "big int": st.integers(min_value=2**64, max_value=2**200).flatmap(
        lambda number: st.sampled_from([number, -number])
    ),
    "float": st.floats(),
    "bool": st.booleans(),
    "str": texts,
    "bytes": st.binary(max_size=10),
    "Decimal": decimals,
    "date": st.dates(),
    "datetime": datetimes,
    "time": times,
    "timedelta": st.timedeltas(),
    "UUID": st.uuids(),
    "memoryview": st.binary(max_size=10).map(memoryview),
}


def ranges() -> st.SearchStrategy[Any]:
    Range = pytest.importorskip("psycopg.types.range").Range
    bounds = st.sampled_from(["[]", "[)", "(]", "()"])
    return st.one_of(
        st.just(None).map(lambda _: Range(empty=True)),
        *(
            st.builds(Range, st.none() | ends, st.none() | ends, bounds)
            for ends in (st.integers(), st.dates(), datetimes, decimals)
        ),
    )


leaves = st.one_of(st.none(), *scalars.values())
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts, inner, max_size=3),
    ),
    max_leaves=8,
)


def tables(cells: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.tuples(*[cells] * width), max_size=6)
    )


def round_trip(rows: list[tuple[Any, ...]], chunk_type: str = "list") -> Result:
    return codec.decode(codec.encode(Result(rows, chunk_type)))


# --- there and back --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", scalars)
def test_a_column_of_one_type_and_None_comes_back_exactly(kind: str) -> None:
    @settings(deadline=None, max_examples=40)
    @given(tables(st.none() | scalars[kind]))
    def check(rows: list[tuple[Any, ...]]) -> None:
        assert exact(round_trip(rows).rows) == exact(rows)

    check()


@settings(deadline=None, max_examples=150)
@given(tables(values))
def test_columns_of_mixed_and_nested_values_come_back_exactly(rows: list[tuple[Any, ...]]) -> None:
    assert exact(round_trip(rows).rows) == exact(rows)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ranges_come_back_exactly(data: Any) -> None:
    rows = data.draw(tables(st.none() | ranges() | st.lists(ranges(), max_size=2)))
    assert exact(round_trip(rows).rows) == exact(rows)


def test_a_hour_that_happens_twice_keeps_its_fold() -> None:
    second = datetime.datetime(2024, 10, 27, 2, 30, tzinfo=VIENNA, fold=1)
    (row,) = round_trip([(second,)]).rows
    assert row[0].utcoffset() == datetime.timedelta(hours=1)


def test_utc_comes_back_as_the_one_utc() -> None:
    for rows in ([(datetime.datetime.now(UTC),)], [(1,), (datetime.datetime.now(UTC),)]):
        assert round_trip(rows).rows[-1][0].tzinfo is UTC


def test_a_zone_called_like_utc_keeps_its_own_name() -> None:
    greenwich = datetime.timezone(datetime.timedelta(0), "GMT")
    moment = datetime.datetime(2024, 1, 1)
    rows = [(moment.replace(tzinfo=UTC),), (moment.replace(tzinfo=greenwich),)]
    assert [row[0].tzname() for row in round_trip(rows).rows] == ["UTC", "GMT"]


def test_offsets_are_exact_to_the_microsecond() -> None:
    zone = datetime.timezone(datetime.timedelta(microseconds=1))
    rows = [(datetime.datetime(2024, 1, 1, tzinfo=zone),)]
    assert exact(round_trip(rows).rows) == exact(rows)


@pytest.mark.parametrize("chunk_type", ["list", "tuple", ""])
def test_the_kind_of_chunk_comes_back(chunk_type: str) -> None:
    assert round_trip([(1,)], chunk_type) == Result([(1,)], chunk_type)


@pytest.mark.parametrize("chunk_type", ["list", "tuple", ""])
def test_an_empty_result_comes_back(chunk_type: str) -> None:
    assert round_trip([], chunk_type) == Result([], chunk_type)


def test_two_decodes_share_nothing_that_can_be_changed() -> None:
    Range = pytest.importorskip("psycopg.types.range").Range
    data = codec.encode(Result([([[1], (["a"],)], {"k": [1]}, Range(1, 2))], "list"))
    (first,), (second,) = codec.decode(data).rows, codec.decode(data).rows

    def mutable(value: Any) -> set[int]:
        inner = value.values() if isinstance(value, dict) else value
        found = set() if isinstance(value, tuple) else {id(value)}
        if isinstance(value, (list, dict, tuple)):
            return found.union(*map(mutable, inner))
        return found if type(value) is Range else set()

    assert len(mutable(first)) == 6
    assert mutable(first).isdisjoint(mutable(second))


# --- chunks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7])
def test_rows_are_cut_into_the_chunks_that_they_came_in(kind: Any, number: int) -> None:
    rows = [(n,) for n in range(number)]
    original = [kind(rows[start : start + 3]) for start in range(0, number, 3)]
    again = codec.chunks(codec.from_chunks(original), 3)
    assert again == original
    assert [type(chunk) for chunk in again] == [type(chunk) for chunk in original]


# --- strangers -------------------------------------------------------------------------------


class Text(str):
    pass


class Number(int):
    pass


class Zone(datetime.tzinfo):
    __hash__ = None  # type: ignore[assignment]

    def utcoffset(self, moment: Any) -> datetime.timedelta:
        return datetime.timedelta(0)


class Moment(datetime.datetime):
    pass


class Color(enum.IntEnum):
    RED = 1


class Scalar:
    """As numpy's are: equal to a number, and none."""

    def __int__(self) -> int:
        return 1

    __index__ = __int__


Row = namedtuple("Row", "a")
STRANGERS: dict[str, Any] = {
    "str": Text("a"),
    "int": Number(1),
    "Enum": Color.RED,
    "number": Scalar(),
    "object": object(),
    "class": int,
    "complex": 1j,
    "set": {1},
    "frozenset": frozenset(),
    "bytearray": bytearray(b"a"),
    "memoryview of numbers": memoryview(b"abcd").cast("i"),
    "memoryview of a table": memoryview(b"abcd").cast("B", (2, 2)),
    "OrderedDict": OrderedDict(a=1),
    "namedtuple": Row(1),
    "dict by number": {1: "a"},
    "dict by Text": {Text("a"): 1},
    "datetime": Moment(2024, 1, 1),
    "tzinfo": datetime.datetime(2024, 1, 1, tzinfo=Zone()),
    "time": datetime.time(1, tzinfo=Zone()),
    "Timestamp": msgpack.Timestamp(1, 2),
    "ExtType": msgpack.ExtType(1, b"\x01"),
    "range": range(3),
    "iterator": iter(()),
    "function": len,
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("wrap", ["alone", "column", "list", "tuple", "dict"])
def test_a_stranger_is_refused_wherever_it_stands(name: str, wrap: str) -> None:
    stranger = STRANGERS[name]
    rows = {
        "alone": [(stranger,)],
        "column": [(1,), (stranger,), (None,)],
        "list": [([1, stranger],)],
        "tuple": [((stranger,),)],
        "dict": [({"a": {"b": stranger}},)],
    }[wrap]
    with pytest.raises(NotEncodable):
        codec.encode(Result(rows, "list"))


def test_a_zone_from_a_file_is_refused_because_its_name_may_lie() -> None:
    paths = [os.path.join(folder, "Europe/Vienna") for folder in zoneinfo.TZPATH]
    path = next((path for path in paths if os.path.exists(path)), None)
    if path is None:
        tzdata = importlib.import_module("tzdata")
        path = os.path.join(os.path.dirname(tzdata.__file__), "zoneinfo/Europe/Vienna")
    with open(path, "rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file, key="Europe/Paris")
    moment = datetime.datetime(2024, 1, 1, tzinfo=zone)
    for rows in ([(moment,)], [(moment,), (1,)], [([moment],)]):
        with pytest.raises(NotEncodable):
            codec.encode(Result(rows, "list"))


def test_a_subclass_of_range_is_refused() -> None:
    module = pytest.importorskip("psycopg.types.range")
    with pytest.raises(NotEncodable, match="Int4Range"):
        codec.encode(Result([(module.Int4Range(1, 2),)], "list"))


@pytest.mark.parametrize("rows", [[[1]], [(1,), [2]], [Row(1)], [()], [(1,), (1, 2)], ["ab"]])
def test_what_is_no_table_of_tuples_is_refused(rows: Any) -> None:
    with pytest.raises(NotEncodable):
        codec.encode(Result(rows, "list"))


def test_a_list_inside_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotEncodable):
        codec.encode(Result([(loop,)], "list"))


def test_too_deep_a_list_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotEncodable):
        codec.encode(Result([(deep,)], "list"))
    while deep:  # Python's own way of freeing it recurses on some versions.
        deep = deep.pop()


# --- what somebody else wrote ----------------------------------------------------------------

CLOSED = (
    *(bool, int, float, str, bytes, type(None), list, tuple, dict, memoryview, Decimal, uuid.UUID),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
)


def assert_harmless(data: bytes) -> None:
    """`data` is refused, or is a table of values of the closed set."""
    try:
        result = codec.decode(data)
    except Corrupt:
        return
    assert result.chunk_type in ("list", "tuple", "")
    assert type(result.rows) is list
    for row in result.rows:
        assert type(row) is tuple
        for value in row:
            assert_closed(value)


def assert_closed(value: Any) -> None:
    kind = type(value)
    assert kind in CLOSED or kind.__qualname__ == "Range", kind
    if kind is dict:
        assert all(type(key) is str for key in value)
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        for inner in value:
            assert_closed(inner)


SAMPLE = codec.encode(
    Result(
        [
            (
                1,
                "text",
                2**70,
                Decimal("1.50"),
                datetime.datetime(2024, 1, 1, tzinfo=VIENNA),
                datetime.datetime(2024, 1, 1, tzinfo=UTC),
                datetime.date(2024, 1, 1),
                uuid.UUID(int=5),
                [1, (2, datetime.time(1, 2)), {"a": datetime.timedelta(1)}],
                memoryview(b"x"),
            )
        ]
        * 2,
        "tuple",
    )
)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xc0")
def test_random_bytes_are_harmless(data: bytes) -> None:
    assert_harmless(data)


def test_every_truncation_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(Corrupt):
            codec.decode(SAMPLE[:length])


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(Corrupt):
        codec.decode(SAMPLE + b"\xc0")


def test_every_flipped_bit_is_harmless() -> None:
    for position, bit in itertools.product(range(len(SAMPLE)), range(8)):
        changed = bytearray(SAMPLE)
        changed[position] ^= 1 << bit
        assert_harmless(bytes(changed))


@pytest.mark.parametrize("position", range(4))
def test_every_other_byte_at_the_start_is_harmless(position: int) -> None:
    for byte in range(256):
        assert_harmless(SAMPLE[:position] + bytes([byte]) + SAMPLE[position + 1 :])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.floats() | texts | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=10,
)
tags = st.sampled_from(["", "v", "t", "tEurope/Vienna", "t/etc/passwd", "t..", "d", "n", "u", "x"])


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(tags | plain, st.lists(plain, max_size=3)), max_size=3))
def test_swapped_tags_and_made_up_codes_are_harmless(columns: list[Any]) -> None:
    tags, cells = [tag for tag, _ in columns], [column for _, column in columns]
    assert_harmless(msgpack.packb(["list", tags, cells], unicode_errors="surrogatepass"))


@pytest.mark.parametrize("code", range(-1, 30))
@pytest.mark.parametrize("parts", [[], [1], ["1"], [b"1"], ["1", 2, None], [None] * 3, [[]] * 3])
def test_every_code_with_any_parts_is_harmless(code: int, parts: list[Any]) -> None:
    assert_harmless(msgpack.packb(["list", ["v"], [[[code, *parts]]]]))


def packed(tag: Any, *column: Any) -> bytes:
    made: bytes = msgpack.packb(["list", [tag], [list(column)]])
    return made


FORGERIES = {
    "no bytes": None,
    "text": "abc",
    "no list": msgpack.packb(5),
    "another kind": msgpack.packb(["set", [], []]),
    "more tags than columns": msgpack.packb(["list", ["", ""], [[1]]]),
    "more columns than tags": msgpack.packb(["list", [""], [[1], [2]]]),
    "columns of two lengths": msgpack.packb(["list", ["", ""], [[1], [1, 2]]]),
    "a column that is text": msgpack.packb(["list", [""], ["abc"]]),
    "a column that is a dict": msgpack.packb(["list", [""], [{"a": 1}]]),
    "columns that are a dict": msgpack.packb(["list", [""], {"a": 1}]),
    "an unknown tag": packed("x", 1),
    "an unknown code": packed("v", [99]),
    "a list without a code": packed("v", []),
    "an unknown extension": packed("", msgpack.ExtType(42, b"abc")),
    "a dict by number": packed("v", [2, {1: 1}]),
    "a dict by bytes": packed("v", [2, {b"a": 1}]),
    "a dict by bytes, as it is": packed("", {b"a": 1}),
    "a Decimal of a number": packed("n", 2**60),
    "a Decimal of parts": packed("n", [0, [1], 2]),
    "a Decimal of words": packed("n", "ten"),
    "a Decimal beyond its range": packed("n", "1E+" + "9" * 30),
    "a date of another world": packed("d", "2024-13-01"),
    "a UUID of three bytes": packed("u", b"abc"),
    "a zone outside its folder": packed("t../../../../etc/passwd", "2024-01-01T00:00:00"),
    "a zone by its path": packed("t/etc/localtime", "2024-01-01T00:00:00"),
    "a zone that is a folder": packed("tEurope", "2024-01-01T00:00:00"),
    "an unknown zone": packed("tEurope/Atlantis", "2024-01-01T00:00:00"),
    "a range with odd bounds": packed("v", [10, 1, 2, "<>"]),
    "4 GB of array": b"\xdd\xff\xff\xff\xff",
    "4 GB of map": b"\xdf\xff\xff\xff\xff",
    "4 GB of text": b"\xdb\xff\xff\xff\xff",
    "4 GB of bytes": b"\xc6\xff\xff\xff\xff",
    "4 GB of extension": b"\xc9\xff\xff\xff\xff\x01",
    "4 GB of column": b"\x93\xa4list\x91\xa0\x91\xdd\xff\xff\xff\xff\x01",
    "arrays in arrays": b"\x91" * 100_000 + b"\xc0",
    "arrays that promise a million each": b"\xdd\x00\x0f\x42\x40" * 200_000,
    "lists in lists": packed("v", 0)[:-1] + b"\x92\x00" * 900 + b"\x90",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_at_little_cost(name: str) -> None:
    tracemalloc.start()
    try:
        begun = time.process_time()
        with pytest.raises(Corrupt):
            codec.decode(FORGERIES[name])  # type: ignore[arg-type]
        seconds = time.process_time() - begun
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 2
    # Promised, not touched: an array of a million null pointers may be set aside.
    assert peak < 20_000_000 or "promise" in name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(protocol: int) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (sys.exit, ("the pickle was run",))

    with pytest.raises(Corrupt):
        codec.decode(pickle.dumps(Bomb(), protocol))


@pytest.mark.parametrize(
    "data",
    [
        packed("n", "1E+999999999"),
        packed("n", "9" * 1_000_000),
        packed("", msgpack.ExtType(1, b"\x7f" * 1_000_000)),
        packed("v", [6, 999_999_999, 0, 0]),
        packed("v", [2, {str(n): n for n in range(50_000)}]),
    ],
    ids=["exponent", "digits", "integer", "timedelta", "dict"],
)
def test_extreme_values_take_little_time_and_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        begun = time.process_time()
        codec.decode(data)
        seconds = time.process_time() - begun
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 2
    assert peak < 30_000_000


def test_a_range_is_refused_in_a_process_without_psycopg(monkeypatch: Any) -> None:
    Range = pytest.importorskip("psycopg.types.range").Range
    data = codec.encode(Result([(Range(1, 2),)], "list"))
    monkeypatch.delitem(sys.modules, "psycopg.types.range")
    with pytest.raises(Corrupt, match="psycopg"):
        codec.decode(data)


# --- the packer, which is kept ------------------------------------------------------------------


def test_a_large_result_leaves_no_buffer_of_its_size_behind() -> None:
    small = Result([(1,)], "list")
    codec.encode(small)
    tracemalloc.start()
    try:
        codec.encode(Result([(b"-" * 10_000_000,)], "list"))
        codec.encode(small)
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 1_000_000


def test_encoding_may_be_interrupted_by_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal handler that reads, while a large integer is written."""
    outer, inner = Result([(1, 2**70)], "list"), Result([("inner",)], "tuple")
    original, meanwhile = codec._dump_big_integer, []

    def interrupted(value: int) -> Any:
        meanwhile.append(codec.encode(inner))
        return original(value)

    monkeypatch.setattr(codec, "_dump_big_integer", interrupted)
    # A thread of its own has a packer of its own.
    encoded = Background(codec.encode, outer).result()
    assert list(map(codec.decode, meanwhile)) == [inner]
    assert codec.decode(encoded) == outer


def test_after_a_failure_half_way_nothing_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: int) -> Any:
        raise ValueError("too large")

    monkeypatch.setattr(codec, "_dump_big_integer", fail)

    def work() -> bytes:
        with pytest.raises(NotEncodable):
            codec.encode(Result([(1, 2**70)], "list"))
        return codec.encode(Result([(1,)], "list"))

    assert codec.decode(Background(work).result()) == Result([(1,)], "list")
