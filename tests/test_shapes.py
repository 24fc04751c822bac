"""Queries of equal shape and values are the same query, whoever left the template."""

import contextlib
import datetime
import itertools
import json
import random
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from django.db import connections, models
from django.db.models import Count, Func, Q, Value
from django.db.models.expressions import Col
from django.db.models.lookups import Exact
from django.db.models.sql.where import WhereNode
from django.test.utils import isolate_apps, register_lookup
from django.utils import timezone
from hypothesis import HealthCheck, given, settings, strategies

import ormcache
from tests.exactness import exact
from tests.factories import AuthorFactory, BookFactory
from tests.marks import on_databases
from tests.models import (
    Author,
    Book,
    CheapBook,
    CompositeKey,
    EveryField,
    Generated,
    ItalianRestaurant,
    Place,
    Restaurant,
    UUIDKey,
)
from tests.querysets import STEPS, WAYS, Colour, build
from tests.shaping import (
    Compiled,
    bookshop,
    compiled_rows,
    compiling,
    know_content_types,
    mirror,
    shape_of,
)
from tests.watching import Watch

UTC = datetime.timezone.utc


# --- equal shapes and values are equal queries -----------------------------------------------


class Comparison:
    """Compares each query with the first one of its shape, and of its shape and values."""

    def __init__(self) -> None:
        self.of_shape: dict[Any, Compiled] = {}
        self.of_values: dict[Any, Compiled] = {}
        self.met_again = 0
        self.by_template = 0
        self.as_a_whole = 0

    def add(self, query: Compiled) -> None:
        if query.shape is None:
            return
        place = (query.compiler.connection.alias, query.shape.key)
        if query.leaves_template:
            first = self.of_shape.setdefault(place, query)
            assert (first.tables, first.state) == (query.tables, query.state)
            assert first.template is not None
            known = query.by(first.template)
            self.by_template += known is not None
            self.as_a_whole += known is None
            assert known in (None, (query.sql, query.params))
        twin = self.of_values.setdefault((place, query.values), query)
        if twin is query:
            return
        self.met_again += 1
        assert twin.leaves_template == query.leaves_template
        if query.leaves_template:
            assert (twin.sql, twin.params) == (query.sql, query.params)


@on_databases()
def test_equal_shapes_and_values_have_equal_sql_and_interchangeable_results(
    using: str,
) -> None:
    know_content_types(using)
    comparison = Comparison()
    pairs = random.Random(0).sample(
        list(itertools.combinations(STEPS, 2)), 4000 if using == "default" else 1000
    )
    ways = itertools.cycle(WAYS.values())
    kinds = itertools.cycle([Book, Book, Book, CheapBook, ItalianRestaurant, CompositeKey, Author])
    for one, two in pairs:
        way, kind = next(ways), next(kinds)
        for steps in ((one, two), (two, one)):
            rows = build(steps, kind.objects.using(using))
            if rows is not None:
                for query in compiling(lambda rows=rows, way=way: way(rows)):
                    comparison.add(query)
    assert comparison.met_again > 100
    assert comparison.by_template > 20 * comparison.as_a_whole


@pytest.mark.django_db
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(strategies.data())
def test_so_have_longer_queries(data: strategies.DataObject) -> None:
    list(Book.objects.filter(comments__text="a")[:1])
    pool = data.draw(strategies.lists(strategies.sampled_from(STEPS), min_size=2, max_size=7))
    chain = strategies.lists(strategies.sampled_from(pool), min_size=1, max_size=6)
    comparison = Comparison()
    for _ in range(12):
        rows = build(data.draw(chain), Book.objects.all())
        way = data.draw(strategies.sampled_from(list(WAYS.values())))
        if rows is not None:
            for query in compiling(lambda rows=rows, way=way: way(rows)):
                comparison.add(query)


VALUES_OF_FIELDS: dict[str, list[Any]] = {
    "boolean": [True, False, 1, 0, "true", None],
    "binary": [b"a", b"b", bytearray(b"a"), memoryview(b"a")],
    "char": ["a", "b"],
    "date": [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01"],
    "decimal": [Decimal("1.0"), Decimal("1.00"), Decimal("1E+1"), 10, 1.0, "1"],
    "duration": [datetime.timedelta(1), datetime.timedelta(hours=24), datetime.timedelta(0, 1)],
    "float": [1.0, 1, float("nan"), float("inf"), float("-inf"), 0.0, -0.0, Decimal(1)],
    "integer": [1, True, 2**31, -(2**31) - 1, 10**5000],
    "ip_address": ["127.0.0.1", "::1", "::ffff:127.0.0.1"],
    "json": ["a", 1, 1.0, True, None, [], [1], (1,), {"a": 1}, {"a": 1.0}, [[1]], [[True]], ["1"]],
    "positive_small_integer": [1, -1, 2**15],
    "slug": ["a"],
    "time": [datetime.time(1), datetime.time(1, fold=1), datetime.time(1, tzinfo=UTC), "01:00"],
    "uuid": [uuid.UUID(int=1), str(uuid.UUID(int=1)), uuid.UUID(int=1).hex, uuid.UUID(int=2)],
}
LOOKUPS = ("exact", "iexact", "gt", "lte", "in", "range", "contains", "istartswith", "isnull")


@on_databases()
def test_values_of_every_type_are_told_apart(using: str) -> None:
    comparison = Comparison()
    for field, values in VALUES_OF_FIELDS.items():
        for value, lookup, _ in itertools.product(values, LOOKUPS, range(2)):
            operand = [value, value] if lookup in ("in", "range") else value
            rows = build(
                [lambda rows, one={f"{field}__{lookup}": operand}: rows.filter(**one)],
                EveryField.objects.using(using),
            )
            if rows is not None:
                for query in compiling(lambda rows=rows: list(rows)):
                    comparison.add(query)
    assert comparison.met_again > 100


@pytest.mark.parametrize(
    "rows",
    [
        Author.objects.filter(name="a", born__gt=datetime.date(2000, 1, 1)),
        Book.objects.filter(author__name="a").order_by("-publisher__city__name", "pk")[:3],
        Book.objects.select_related("author__profile", "publisher__city"),
        Book.objects.select_related("author").only("title", "author__name"),
        Book.objects.filter(Q(tags=1) | ~Q(title__icontains="a")).distinct(),
        Book.objects.filter(pk__in=[1, 2, 3]).values_list("title", "author__name"),
        Book.objects.filter(title=Colour.RED),
        Place.objects.filter(restaurant__stars=1),
        ItalianRestaurant.objects.filter(name="a", stars__lt=3),
        Restaurant.objects.select_related("italianrestaurant"),
        CompositeKey.objects.filter(shelf=1).order_by("position"),
        Generated.objects.order_by("area"),
        UUIDKey.objects.filter(pk=uuid.UUID(int=1)),
        EveryField.objects.filter(json="a", boolean=True),
    ],
)
def test_common_queries_leave_templates(rows: models.QuerySet[Any]) -> None:
    assert compiled_rows(rows).leaves_template


@pytest.mark.parametrize(
    ("name", "is_followed"),
    [
        ("author", True),
        ("-author", True),
        ("author__profile", False),
        ("author_id", False),
        ("author__pk", False),
        ("author__name", False),
        ("pk", False),
    ],
)
def test_a_name_of_a_relation_brings_the_ordering_of_its_model_into_the_shape(
    monkeypatch: pytest.MonkeyPatch, name: str, is_followed: bool
) -> None:
    rows = Book.objects.order_by(name)
    monkeypatch.setattr(Author._meta, "ordering", ["name"])
    before = shape_of(rows)
    assert before is not None
    monkeypatch.setattr(Author._meta, "ordering", ["-name"])
    assert (shape_of(rows) != before) is is_followed


def test_orderings_that_lead_in_circles_have_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Author._meta, "ordering", ["books"])
    monkeypatch.setattr(Book._meta, "ordering", ["author"])
    assert shape_of(Book.objects.all()) is None


def test_an_ordering_of_none_is_no_ordering(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Author.objects.all()
    shape = shape_of(rows)
    monkeypatch.setattr(Author._meta, "ordering", None)
    assert shape_of(rows) == shape is not None


def test_count_and_exists_leave_templates() -> None:
    for question in (Book.objects.count, Book.objects.filter(pages=1).exists):
        assert [query.leaves_template for query in compiling(question)] == [True]


def test_a_choice_and_its_plain_value_are_told_apart() -> None:
    plain, choice = (
        shape_of(Book.objects.filter(title="a")),
        shape_of(Book.objects.filter(title=Colour.RED)),
    )
    assert plain is not None and choice is not None
    assert plain.key == choice.key
    assert repr(plain.values) != repr(choice.values)


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**64), 10**5000, [], [10**5000]],
    ids=["large", "small", "huge", "none", "one huge"],
)
def test_what_no_row_can_match_has_no_shape(value: Any) -> None:
    rows = Book.objects.filter(**{"pages__in" if isinstance(value, list) else "pages": value})
    assert shape_of(rows) is None


def test_a_query_with_very_many_conditions_has_no_shape() -> None:
    def some(number: int) -> models.QuerySet[Any]:
        return Book.objects.filter(
            Q(*(("pages", page) for page in range(number)), _connector="OR")
        )

    assert shape_of(some(50)) is not None
    assert shape_of(some(500)) is None


def test_a_join_of_another_package_has_no_shape() -> None:
    class OtherJoin:
        """As those of django-cte: with what Django asks for, and no more."""

        table_name = table_alias = "tests_author"
        parent_alias, join_type, filtered_relation = "tests_book", "INNER JOIN", None

    rows = Book.objects.filter(title="a")
    rows.query.alias_map["tests_author"] = OtherJoin()
    rows.query.alias_refcount["tests_author"] = 1
    assert shape_of(rows) is None


# --- what is not in the shape ----------------------------------------------------------------

other: ContextVar[bool] = ContextVar("other", default=False)
"""What classes of a project's own look at while they are compiled: language, tenant, …."""


class TenantForeignKey(models.ForeignKey):
    def get_extra_restriction(self, alias: str, related_alias: str) -> Any:
        if not other.get():
            return None
        name = self.remote_field.model._meta.get_field("name")
        return WhereNode([Exact(name.get_col(alias), "author 2")])


class FormattedField(models.CharField):
    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return (f"UPPER({sql})" if other.get() else sql), params


class OtherCol(Col):
    def as_sql(self, compiler: Any, connection: Any) -> Any:
        sql, params = super().as_sql(compiler, connection)
        return (f"UPPER({sql})" if other.get() else sql), params


class OtherColField(models.CharField):
    def get_col(self, alias: str, output_field: Any = None) -> Any:
        return OtherCol(alias, self, output_field)


class PreparedField(models.CharField):
    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return "book 2" if other.get() else value


class PreparedKey(models.BigIntegerField):
    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return value + other.get()


class Encoder(json.JSONEncoder):
    def encode(self, value: Any) -> str:
        return '"b"' if other.get() else super().encode(value)


class Localised(Func):
    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        sql, params = compiler.compile(self.get_source_expressions()[other.get()])
        return sql, params


class Slogan(models.Lookup):
    lookup_name = "slogan"

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        sql, params = self.process_lhs(compiler, connection)
        return f"{sql} {'<>' if other.get() else '='} %s", [*params, self.rhs]


Question = Callable[[], Any]
by_title_or_pages = [Localised("pages", "title")]


def tenant_joined() -> Question:
    _, books = bookshop(TenantForeignKey)
    return lambda: list(books.objects.filter(author__name__contains="a").values_list("title"))


def tenant_loaded_along() -> Question:
    _, books = bookshop(TenantForeignKey)
    return lambda: [book.title for book in books.objects.select_related("author")]


def tenant_in_the_order() -> Question:
    _, books = bookshop(TenantForeignKey)
    return lambda: [book.title for book in books.objects.order_by("author__name")]


def tenant_from_the_other_side() -> Question:
    authors, _ = bookshop(TenantForeignKey)
    return lambda: authors.objects.filter(books__pages__gt=0).count()


def formatted_column() -> Question:
    _, books = bookshop(title=FormattedField)
    return lambda: list(books.objects.all())


def formatted_column_loaded_along() -> Question:
    _, books = bookshop(title=FormattedField)
    contribution = mirror(
        "MirrorCopy",
        CompositeKey,
        {
            "pk": models.CompositePrimaryKey("shelf", "position"),
            "shelf": models.IntegerField(),
            "position": models.IntegerField(),
            "book": models.ForeignKey(books, models.CASCADE, related_name="+"),
        },
    )
    return lambda: [row.book.title for row in contribution.objects.select_related("book")]


def column_of_its_own() -> Question:
    _, books = bookshop(title=OtherColField)
    return lambda: list(books.objects.values_list("title"))


def prepared_value() -> Question:
    _, books = bookshop(title=PreparedField)
    return lambda: list(books.objects.filter(title="book 1"))


def prepared_value_behind_a_foreign_key() -> Question:
    _, books = bookshop(key=PreparedKey(primary_key=True))
    first = Author.objects.order_by("pk")[0].pk
    return lambda: list(books.objects.filter(author=first).values_list("title"))


def encoded_value() -> Question:
    fields = {"json": models.JSONField(encoder=Encoder)}
    rows = mirror("MirrorEveryField", EveryField, fields)
    return lambda: list(rows.objects.filter(json="a"))


def ordering_of_the_model() -> Question:
    _, books = bookshop(books=by_title_or_pages)
    return lambda: list(books.objects.all())


def ordering_of_a_joined_model() -> Question:
    _, books = bookshop(authors=[Localised("id", "name")])
    return lambda: list(books.objects.order_by("author"))


def ordering_by_a_transform() -> Question:
    def ask() -> Any:
        with timezone.override("Pacific/Auckland" if other.get() else "UTC"):
            return list(Book.objects.order_by("published__hour").values_list("title"))

    return ask


def latest_by_a_transform() -> Question:
    def ask() -> Any:
        with timezone.override("Pacific/Auckland" if other.get() else "UTC"):
            return Book.objects.latest("published__hour")

    return ask


def lookup_of_its_own() -> Question:
    return lambda: list(Book.objects.filter(title__slogan="book 1"))


def type_of_a_constant() -> Question:
    field = {False: models.CharField(), True: models.FloatField()}
    return lambda: list(Book.objects.values_list(Value(1, field[other.get()])))


def type_of_an_annotated_constant() -> Question:
    field = {False: None, True: models.FloatField()}
    return lambda: list(Book.objects.annotate(n=Value(1, field[other.get()])))


def type_of_a_count() -> Question:
    field = {False: None, True: models.FloatField()}
    rows = Book.objects.values(one=Value(1))
    return lambda: list(rows.annotate(n=Count("*", output_field=field[other.get()])))


def table_of_the_model() -> Question:
    _, books = bookshop()
    table = {False: Book._meta.db_table, True: "other_books"}

    def ask() -> Any:
        with mock.patch.object(books._meta, "db_table", table[other.get()]):
            # Fields remember the table.
            for field in books._meta.fields:
                vars(field).pop("cached_col", None)
            return list(books.objects.values_list("title"))

    return ask


def ordering_that_was_changed() -> Question:
    _, books = bookshop()
    ordering = {False: ["title"], True: ["-title"]}

    def ask() -> Any:
        with mock.patch.object(books._meta, "ordering", ordering[other.get()]):
            return list(books.objects.all())

    return ask


def changed_ordering_of_a_model_in_the_order() -> Question:
    authors, books = bookshop(authors=["id"])
    ordering = {False: ["name"], True: ["-name"]}

    def ask() -> Any:
        with mock.patch.object(authors._meta, "ordering", ordering[other.get()]):
            return list(books.objects.order_by("author").values_list("title"))

    return ask


def changed_ordering_of_a_model_in_the_models_ordering() -> Question:
    authors, books = bookshop(authors=["id"], books=["-author", "title"])
    ordering = {False: ["name"], True: ["-name"]}

    def ask() -> Any:
        with mock.patch.object(authors._meta, "ordering", ordering[other.get()]):
            return list(books.objects.values_list("title"))

    return ask


OUTSIDE_THE_SHAPE = [
    *(changed_ordering_of_a_model_in_the_order,),
    *(changed_ordering_of_a_model_in_the_models_ordering,),
    *(tenant_joined, tenant_loaded_along, tenant_in_the_order, tenant_from_the_other_side),
    *(formatted_column, formatted_column_loaded_along, column_of_its_own),
    *(prepared_value, prepared_value_behind_a_foreign_key, encoded_value),
    *(ordering_of_the_model, ordering_of_a_joined_model, ordering_by_a_transform),
    *(latest_by_a_transform, lookup_of_its_own, type_of_a_constant),
    *(type_of_an_annotated_constant, type_of_a_count),
    *(table_of_the_model, ordering_that_was_changed),
]


@pytest.fixture
def two_books() -> None:
    for number, hour in ((1, 2), (2, 14)):
        author = AuthorFactory(name=f"author {3 - number}")
        BookFactory(
            title=f"book {number}",
            author=author,
            pages=100 - number,
            published=datetime.datetime(2024, 6, 1, hour, tzinfo=UTC),
        )
        CompositeKey.objects.create(shelf=1, position=number, book=author.books.get())
    for value in ("a", "b"):
        EveryField.objects.create(json=value)


@pytest.mark.parametrize("make", OUTSIDE_THE_SHAPE)
@on_databases("default", transaction=True)
def test_what_is_looked_at_outside_the_shape_decides_of_the_answer(
    make: Callable[[], Question], cached: Watch, using: str, two_books: None
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolate_apps("tests"))
        stack.enter_context(register_lookup(models.CharField, Slogan))
        with connections[using].cursor() as cursor:
            cursor.execute("CREATE TABLE other_books AS SELECT * FROM tests_book WHERE pages = 99")
        stack.callback(_drop, using, "other_books")
        question = make()

        def ask(value: bool) -> Any:
            token = other.set(value)
            try:
                return exact(question())
            finally:
                other.reset(token)

        with ormcache.disabled():
            truth = {value: ask(value) for value in (False, True)}
        assert truth[False] != truth[True]
        for value in (False, True, False, True, True, False):
            assert ask(value) == truth[value]


def _drop(using: str, table: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(f"DROP TABLE {table}")
