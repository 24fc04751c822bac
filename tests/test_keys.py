"""Equal keys for equal questions, in every process, and for no others."""

import contextlib
import datetime
import decimal
import enum
import ipaddress
import itertools
import json
import os
import subprocess
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DataError, connections, models
from django.db.models import Value
from django.test.signals import setting_changed
from hypothesis import given, settings
from hypothesis import strategies as st

from ormcache import keys
from ormcache.connection_state import state_of
from ormcache.exceptions import NotEncodable
from ormcache.reasons import Reason
from tests.marks import on_caches, on_databases
from tests.models import Author, Book
from tests.watching import Watch

UTC = datetime.timezone.utc
NOON = datetime.datetime(2024, 7, 1, 12, tzinfo=UTC)


class Text(str):
    pass


class OtherText(str):
    pass


class Status(models.TextChoices):
    OPEN = "a", "Open"


class Color(enum.IntEnum):
    RED = 1


class Money(decimal.Decimal):
    pass


def key(*params: Any) -> str:
    return keys.entry_key(("context",), "SELECT %s", params)


TWICE = datetime.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna"))

# Within a line all are equal, or read alike, and are different questions all the same.
LOOKALIKES: dict[str, list[Any]] = {
    "one": [1, True, 1.0, decimal.Decimal(1), decimal.Decimal("1.0"), "1", b"1", Color.RED],
    "zero": [0, False, 0.0, -0.0, decimal.Decimal("0"), decimal.Decimal("-0"), None, "", b""],
    "None": [None, "None", b"None"],
    "text": ["a", Text("a"), OtherText("a"), Status.OPEN, b"a", bytearray(b"a"), memoryview(b"a")],
    "lists": [[1, 2], (1, 2), [2, 1], [[1, 2]], [1, [2]], {1, 2}, frozenset({1, 2}), "[1, 2]"],
    "nested": [[1], [True], ["1"], [None], [[]], [], (), {}, {"a": 1}, {"a": True}, {1: "a"}],
    "noon": [
        NOON,
        NOON.astimezone(zoneinfo.ZoneInfo("UTC")),
        NOON.astimezone(zoneinfo.ZoneInfo("Europe/Vienna")),
        NOON.astimezone(zoneinfo.ZoneInfo("Europe/Paris")),
        NOON.astimezone(datetime.timezone(datetime.timedelta(hours=2))),
        NOON.astimezone(datetime.timezone(datetime.timedelta(0), "GMT")),
        NOON.replace(tzinfo=None),
        str(NOON),
        NOON.date(),
        NOON.time(),
        NOON.timetz(),
    ],
    "fold": [TWICE, TWICE.replace(fold=1), TWICE.replace(fold=1, tzinfo=None)],
    "duration": [datetime.timedelta(1), datetime.timedelta(0, 1), 86400],
    "uuid": [uuid.UUID(int=1), str(uuid.UUID(int=1)), uuid.UUID(int=1).bytes],
    "money": [decimal.Decimal("1.5"), Money("1.5"), 1.5, "1.5"],
    "address": [ipaddress.ip_address("1.2.3.4"), ipaddress.ip_interface("1.2.3.4"), "1.2.3.4"],
    "quotes": ["'", '"', "\\'", "', '", "\x00", "\ud800", "é", "e\u0301"],
    "nan": [float("nan"), decimal.Decimal("nan"), decimal.Decimal("snan"), float("inf"), "nan"],
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_values_that_look_alike_have_keys_of_their_own(name: str) -> None:
    values = LOOKALIKES[name]
    assert len({key(value) for value in values}) == len(values)
    # Also where another parameter makes that all are looked at closely.
    assert len({key(value, NOON) for value in values}) == len(values)


def test_parameters_do_not_run_into_each_other() -> None:
    lists = [("a", "b"), ("a, b",), ("a', 'b",), ("a", ("b",)), ("b", "a"), ("a", "b", None)]
    assert len({key(*params) for params in lists}) == len(lists)


def test_the_sql_and_each_part_of_the_context_count() -> None:
    questions = itertools.product([("a",), ("b",), ("a", "b")], ["SELECT 1", "SELECT 2"])
    found = {keys.entry_key(context, sql, (1,)) for context, sql in questions}
    assert len(found) == 6


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.decimals(allow_nan=False),
        st.text(max_size=4),
        st.binary(max_size=4),
        st.dates(),
        st.datetimes(timezones=st.none() | st.timezones()),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200)
@given(values, values)
def test_two_keys_are_equal_only_if_value_and_type_are(one: Any, other: Any) -> None:
    if key(one) == key(other):
        assert type(one) is type(other)
        assert one == other


def wrappers() -> list[Any]:
    psycopg_json = pytest.importorskip("psycopg.types.json")
    Range = pytest.importorskip("psycopg.types.range").Range
    Int4 = pytest.importorskip("psycopg.types.numeric").Int4
    Json, Jsonb = psycopg_json.Json, psycopg_json.Jsonb
    Binary = pytest.importorskip("psycopg").Binary
    return [
        b"a",
        Binary(b"a"),
        Binary(b"b"),
        Binary(memoryview(b"a")),
        Json({"a": 1}),
        Jsonb({"a": 1}),
        Jsonb({"a": True}),
        Jsonb({"a": 1.0}),
        Jsonb({"a": "1"}),
        Jsonb({"a": None}),
        Jsonb("null"),
        Jsonb(None),
        Jsonb({"a": 1}, dumps=json.dumps),
        Jsonb([1], dumps=json.dumps),
        Jsonb((1,), dumps=json.dumps),
        Range(1, 5),
        Range(1, 5, "[]"),
        Range(1, None),
        Range(None, 5),
        Range(None, None),
        Range(empty=True),
        Range(decimal.Decimal(1), decimal.Decimal(5)),
        Range(datetime.date(2024, 1, 1), None),
        Range(datetime.datetime(2024, 1, 1), None),
        Int4(1),
        1,
    ]


def test_psycopgs_wrappers_are_told_apart() -> None:
    assert len({key(wrapper) for wrapper in wrappers()}) == len(wrappers())


def test_psycopgs_wrappers_have_the_same_key_each_time() -> None:
    assert [key(wrapper) for wrapper in wrappers()] == [key(wrapper) for wrapper in wrappers()]


class Stranger:
    pass


class Zone(datetime.tzinfo):
    def utcoffset(self, moment: Any) -> datetime.timedelta:
        return datetime.timedelta(0)


class Moment(datetime.datetime):
    pass


STRANGERS = [
    Stranger(),
    Stranger,
    len,
    iter(()),
    1j,
    range(3),
    slice(1),
    NOON.replace(tzinfo=Zone()),
    Moment(2024, 1, 1),
    enum.Enum("Plain", "A").A,  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda value: type(value).__name__)
def test_a_stranger_is_refused_wherever_it_stands(stranger: Any) -> None:
    for params in ((stranger,), (1, stranger), ([stranger],), ({"a": stranger},)):
        with pytest.raises(NotEncodable):
            key(*params)


def test_json_that_cannot_be_written_is_refused() -> None:
    Jsonb = pytest.importorskip("psycopg.types.json").Jsonb
    with pytest.raises(NotEncodable, match="JSON"):
        key(Jsonb(object(), dumps=json.dumps))
    with pytest.raises(NotEncodable):
        key(Jsonb(object()))


def test_an_integer_that_python_does_not_spell_is_refused() -> None:
    for value in (10**5000, {10**5000}):
        with pytest.raises(NotEncodable):
            key(value)


def test_sets_have_the_same_key_whatever_order_they_are_in() -> None:
    assert key({8, 0}) == key({0, 8})
    assert list({8, 0}) != list({0, 8}), "the test needs a set of two orders"


PROGRAM = """
import datetime, decimal, uuid, zoneinfo
from ormcache import keys
print(keys.entry_key(
    ("default", None, ("a", 1)),
    "SELECT %s",
    [1, "a", b"b", None, 1.5, decimal.Decimal("1.50"), uuid.UUID(int=3),
     {"x", "y", "z", "w"}, frozenset({"x", "y", "z"}), {"k": [1, ("l",)]},
     datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna"))],
))
"""


def test_processes_with_other_hash_seeds_make_the_same_key() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().strip()) == 40


# --- through the ORM -------------------------------------------------------------------------


QUESTIONS: dict[str, list[Callable[[Any], Any]]] = {
    "values": [
        lambda authors, value=value: authors.annotate(
            v=Value(value, output_field=models.JSONField())
        )
        for value in (1, True, 1.0, "1", None, [1])
    ],
    "pk": [
        lambda authors: authors.filter(pk=1),
        lambda authors: authors.filter(name="1"),
        lambda authors: authors.filter(pk__in=[1]),
        lambda authors: authors.filter(pk__in=[1, 2]),
        lambda authors: authors.exclude(pk=1),
        lambda authors: authors.filter(pk__gt=1),
        lambda authors: authors.filter(pk__gte=1),
    ],
    "slices": [
        lambda authors: authors.all(),
        lambda authors: authors.all()[:1],
        lambda authors: authors.all()[1:],
        lambda authors: authors.all()[1:2],
        lambda authors: authors.order_by("name"),
        lambda authors: authors.order_by("-name"),
        lambda authors: authors.reverse().order_by("pk"),
        lambda authors: authors.distinct(),
        lambda authors: authors.only("name"),
        lambda authors: authors.values("pk"),
        lambda authors: authors.values("name"),
        lambda authors: authors.values("pk", "name"),
        lambda authors: authors.values("name", "pk"),
    ],
}


@on_databases(transaction=True)
@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_is_a_miss_of_its_own(cached: Watch, using: str, name: str) -> None:
    for question in QUESTIONS[name]:
        cached.miss(lambda question=question: list(question(Author.objects.using(using))))
    for question in QUESTIONS[name]:
        cached.hit(lambda question=question: list(question(Author.objects.using(using))))


@on_databases(transaction=True)
def test_a_single_row_and_a_list_of_rows_do_not_share_an_entry(cached: Watch, using: str) -> None:
    Author.objects.using(using).create(name="a")
    # The same text, once for all rows and once for the first.
    queryset = Author.objects.using(using).values_list("name")
    compiler = queryset.query.get_compiler(using)
    sql = compiler.as_sql()[0]
    rows = cached.miss(lambda: compiler.execute_sql("multi"))
    row = cached.miss(lambda: compiler.execute_sql("single"))
    assert {read.sql for read in cached.reads[-2:]} == {sql}
    assert [tuple(first) for chunk in rows for first in chunk] == [tuple(row)] == [("a",)]


@pytest.mark.django_db(transaction=True, databases=["default", "postgresql", "mariadb"])
def test_databases_do_not_share_an_entry(cached: Watch) -> None:
    for alias in ("default", "postgresql", "mariadb"):
        Author.objects.using(alias).create(name=alias)
    for alias in ("default", "postgresql", "mariadb"):
        authors = Author.objects.using(alias).values_list("name", flat=True)
        assert cached.warm(lambda authors=authors: list(authors.all())) == [alias]


def test_aliases_of_one_database_do_not_share_an_entry() -> None:
    """A user of its own may see other rows."""
    from ormcache.conf import current
    from ormcache.routers.namespaces import route

    one = connections["default"]
    other = one.copy("other")
    assert route(one, current()).namespace == route(other, current()).namespace
    assert route(one, current()).context != route(other, current()).context


@contextlib.contextmanager
def other_schema(using: str) -> Iterator[None]:
    """Inside, there is a schema `other` with a table of authors of its own."""
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA other")
        cursor.execute("CREATE TABLE other.tests_author (LIKE tests_author INCLUDING ALL)")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET search_path")
            cursor.execute("DROP SCHEMA other CASCADE")


@on_databases("postgresql", transaction=True)
@on_caches("locmem", "redis")
def test_search_paths_do_not_share_an_entry(cached: Watch, using: str, cache: str) -> None:
    connection = connections[using]

    def count() -> int:
        return Author.objects.using(using).count()

    with other_schema(using):
        Author.objects.using(using).create(name="a")
        assert cached.warm(count) == 1
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO other, public")
        assert cached.warm(count) == 0
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO public")
        assert cached.miss(count) == 1


@pytest.mark.parametrize(
    "text",
    [
        "SET search_path TO other, public; COMMIT; SELECT 1 / 0",
        "SET search_path TO other; ROLLBACK",
    ],
)
@on_databases("postgresql", transaction=True)
def test_a_path_that_may_have_been_set_or_not_has_no_entry(
    cached: Watch, using: str, text: str
) -> None:
    """It is set before the text fails, or undone by the end of the text."""
    connection = connections[using]

    def count() -> int:
        return Author.objects.using(using).count()

    with other_schema(using):
        Author.objects.using(using).create(name="a")
        assert cached.warm(count) == 1
        with contextlib.suppress(DataError), connection.cursor() as cursor:
            cursor.execute(text)
        truth = 0 if "COMMIT" in text else 1
        with cached.expect(Reason.SESSION):
            assert count() == truth


@on_databases("postgresql", transaction=True)
def test_schemas_named_by_the_connection_do_not_share_an_entry(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As django-tenants has them."""
    connection = connections[using]
    question = Author.objects.using(using).count
    monkeypatch.setattr(connection, "schema_name", "one", raising=False)
    cached.warm(question)
    monkeypatch.setattr(connection, "schema_name", "two")
    cached.warm(question)
    monkeypatch.setattr(connection, "schema_name", "one")
    cached.hit(question)


def context_with(monkeypatch: pytest.MonkeyPatch, using: str, **changes: Any) -> Any:
    from ormcache.conf import Settings
    from ormcache.routers.namespaces import route

    connection = connections[using].copy()
    for name, value in changes.items():
        monkeypatch.setitem(connection.settings_dict, name, value)
    return route(connection, Settings()).context


@pytest.mark.parametrize(
    "changes",
    [
        {"OPTIONS": {"options": "-c search_path=other"}},
        {"OPTIONS": {"init_command": "SET sql_mode=''"}},
        {"OPTIONS": {"assume_role": "clerk"}},
        {"USER": "clerk"},
        {"TIME_ZONE": "Asia/Tokyo"},
    ],
    ids=str,
)
def test_sessions_that_see_other_rows_do_not_share_an_entry(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    assert context_with(monkeypatch, "default", **changes) != context_with(monkeypatch, "default")


def test_the_state_of_a_connection_is_its_own() -> None:
    one = connections["default"]
    assert state_of(one) is state_of(one)
    assert state_of(one) is not state_of(one.copy())


@on_databases("postgresql", transaction=True)
def test_time_zones_of_the_connection_do_not_share_an_entry(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's datetimes carry the zone of the connection."""
    author = Author.objects.using(using).create(name="a")
    Book.objects.using(using).create(title="b", author=author, published=NOON)
    connection = connections[using]

    def published() -> Any:
        # The rows as the driver makes them.
        compiler = Book.objects.using(using).values_list("published").query.get_compiler(using)
        return [str(row[0]) for rows in compiler.execute_sql() for row in rows]

    assert cached.warm(published) == ["2024-07-01 12:00:00+00:00"]
    monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Asia/Tokyo")
    try:
        # What Django's own override_settings(TIME_ZONE=…) does.
        setting_changed.send(None, setting="TIME_ZONE", value="Europe/Vienna", enter=True)
        assert cached.warm(published) == ["2024-07-01 21:00:00+09:00"]
    finally:
        monkeypatch.undo()
        setting_changed.send(None, setting="TIME_ZONE", value="Europe/Vienna", enter=False)


@on_databases("postgresql", transaction=True)
def test_a_new_session_is_not_taken_for_the_one_before(cached: Watch, using: str) -> None:
    """Its search_path is the default again, before the first query connects."""
    connection = connections[using]
    question = Author.objects.using(using).count
    with connection.cursor() as cursor:
        cursor.execute("SET search_path TO public, pg_catalog")
    cached.warm(question)
    connection.close()
    cached.miss(question)
    connection.close()
    cached.hit(question)


@on_databases("postgresql", transaction=True)
def test_naive_and_aware_datetimes_do_not_share_an_entry(
    cached: Watch, using: str, settings: Any
) -> None:
    author = Author.objects.using(using).create(name="a")
    Book.objects.using(using).create(title="b", author=author, published=NOON)
    settings.TIME_ZONE = "UTC"

    def published() -> Any:
        return Book.objects.using(using).values_list("published", flat=True)[0]

    assert cached.warm(published) == NOON
    settings.USE_TZ = False
    assert cached.warm(published) == NOON.replace(tzinfo=None)
    settings.USE_TZ = True
    assert cached.hit(published) == NOON
