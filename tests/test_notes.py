"""Notes of queries: exact, and of nobody else."""

import datetime
import uuid
from decimal import Decimal
from typing import Any

import pytest

from ormcache import codec, notes
from ormcache.comparison import Order
from ormcache.exceptions import Corrupt, NotEncodable
from ormcache.notes import Note
from tests.exactness import exact
from tests.marks import needs

NOTE = Note(
    entry="e" * 40,
    context="('default',)",
    sql="SELECT %s",
    params=(),
    tables=("b", "a"),
    elsewhere=("a",),
    key="k" * 40,
    registers=("b", "a", "c"),
    width=None,
    is_single=False,
    order=Order((1, 0), True, 5, 10),
)


@pytest.mark.parametrize(
    "params",
    [
        (),
        (1, True, 1.0, "1", b"1", None, Decimal("1.00")),
        (datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), datetime.date(2024, 1, 1)),
        (datetime.time(1, 2), datetime.timedelta(1), uuid.UUID(int=7), [1, (2,)], 2**70),
    ],
    ids=repr,
)
def test_a_note_comes_back_exactly(params: tuple[Any, ...]) -> None:
    for note in (
        NOTE._replace(params=params),
        NOTE._replace(width=3, is_single=True, order=Order()),
    ):
        assert exact(notes.load(notes.dump(note))) == exact(note)
        assert type(notes.load(notes.dump(note)).order) is Order


@needs("postgresql")
def test_integers_of_psycopg_come_back_as_such() -> None:
    from psycopg.types.numeric import Int2, Int4, Int8, IntNumeric

    params = (Int2(1), Int4(2), Int8(3), IntNumeric(2**70), 5)
    loaded = notes.load(notes.dump(NOTE._replace(params=params))).params
    assert loaded == params
    assert list(map(type, loaded)) == [Int2, Int4, Int8, IntNumeric, int]


def test_a_parameter_of_another_type_cannot_be_noted() -> None:
    with pytest.raises(NotEncodable):
        notes.dump(NOTE._replace(params=(object(),)))


@pytest.mark.parametrize("at", [0, 31, 32, 60, -1])
def test_a_note_that_was_changed_is_not_read(at: int) -> None:
    data = bytearray(notes.dump(NOTE))
    data[at] ^= 1
    with pytest.raises(Corrupt, match="another signature"):
        notes.load(bytes(data))


@pytest.mark.parametrize("data", [b"", b"x", bytes(32), codec.encode(codec.Result([(1,)], ""))])
def test_what_is_no_note_is_not_read(data: bytes) -> None:
    with pytest.raises(Corrupt):
        notes.load(data)


def test_a_note_of_another_project_is_not_read(settings: Any) -> None:
    settings.SECRET_KEY = "of another project"
    theirs = notes.dump(NOTE)
    settings.SECRET_KEY = "of this project"
    with pytest.raises(Corrupt, match="another signature"):
        notes.load(theirs)
