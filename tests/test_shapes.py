"""Queries of equal shape and values are the same query, whoever left the template."""

import asyncio
import contextlib
import datetime
import enum
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal
from typing import Any
from unittest import mock

import django
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, models, transaction
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import Avg, Count, F, Func, Max, Min, Q, Sum, Value
from django.db.models.expressions import Col
from django.db.models.functions import Length, Random
from django.db.models.lookups import Exact
from django.db.models.sql.where import WhereNode
from django.test import SimpleTestCase
from django.test.utils import isolate_apps, register_lookup
from django.utils import timezone
from hypothesis import HealthCheck, given, settings, strategies

import ormcache
from ormcache import plans, shapes
from ormcache.conf import current
from ormcache.memo import Memo
from ormcache.reasons import Reason
from tests.exactness import exact
from tests.factories import AuthorFactory, AuthorProfileFactory, BookFactory, PublisherFactory
from tests.marks import on_caches, on_databases
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
    Tag,
    UUIDKey,
)
from tests.querysets import STEPS, WAYS, Colour, build
from tests.shaping import Compiled, compiling
from tests.watching import Watch

UTC = datetime.timezone.utc


def compiled(rows: models.QuerySet[Any]) -> Compiled:
    (found,) = compiling(lambda: list(rows))
    return found


def shape_of(rows: models.QuerySet[Any]) -> shapes.Shape | None:
    return shapes.shape_of(rows.query.get_compiler(rows.db))


def key_of(rows: models.QuerySet[Any], first: models.QuerySet[Any] | None = None) -> str:
    """The key of a query in a process that met its shape with ``first`` or with itself."""
    own = shape_of(rows)
    compiler = (rows if first is None else first).query.chain().get_compiler(rows.db)
    shape = shapes.shape_of(compiler)
    assert own is not None and shape is not None and own.key == shape.key
    template = shapes.make_template(shape, compiler, *compiler.as_sql(), (), ())
    assert template is not None
    return template.key(own.values)


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


@pytest.fixture
def content_types(using: str) -> None:
    """Building a query over a generic relation asks for its content type."""
    list(Book.objects.using(using).filter(comments__text="a")[:1])


@on_databases()
def test_equal_shapes_and_values_have_equal_sql_and_interchangeable_results(
    using: str, content_types: None
) -> None:
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
    assert compiled(rows).leaves_template


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


def mirror(name: str, of: type[models.Model], fields: dict[str, Any], **meta: Any) -> Any:
    """A model that reads the table of another one."""
    options = type("Meta", (), {"app_label": "tests", "db_table": of._meta.db_table, **meta})
    return type(name, (models.Model,), {**fields, "Meta": options, "__module__": __name__})


def bookshop(
    foreign_key: type[models.ForeignKey] = models.ForeignKey,
    title: type[models.CharField] = models.CharField,
    key: models.Field | None = None,
    **ordering: Any,
) -> tuple[Any, Any]:
    key = key or models.BigAutoField(primary_key=True)
    author = mirror(
        "MirrorAuthor",
        Author,
        {"id": key, "name": models.CharField(max_length=100)},
        ordering=ordering.get("authors", ()),
    )
    fields = {
        "author": foreign_key(author, models.CASCADE, related_name="books"),
        "title": title(max_length=200),
        "pages": models.IntegerField(),
    }
    return author, mirror("MirrorBook", Book, fields, ordering=ordering.get("books", ()))


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


# --- readers ---------------------------------------------------------------------------------


def read(ask: Callable[[], Any]) -> Any:
    """The answer, or the error, and what is known of it without another query."""
    try:
        return exact(ask())
    except Exception as error:
        return type(error)


@pytest.fixture
def shelves() -> None:
    for number in range(3):
        author = AuthorFactory(name="a" if number else "b")
        AuthorProfileFactory(author=author)
        BookFactory(title="ab"[number % 2], author=author, pages=number, price=number)
    publisher = PublisherFactory(name="a")
    BookFactory(title="a", author=author, publisher=publisher, published=timezone.now())


@on_databases("default", transaction=True)
def test_templates_of_any_query_serve_any_other(
    cached: Watch, using: str, shelves: None, content_types: None
) -> None:
    """In any order, so that templates are made by one query and used by others."""
    choice = random.Random(1)
    asked: list[Callable[[], Any]] = []
    while len(asked) < 500:
        steps = choice.choices(STEPS, k=choice.randint(0, 3))
        way = choice.choice(list(WAYS.values()))
        rows = build(steps, Book.objects.all())
        if rows is not None and not {"?", Random()}.intersection(rows.query.order_by):
            asked.append(lambda rows=rows, way=way: way(rows.all()))
    with ormcache.disabled():
        truth = [(ask, read(ask)) for ask in asked]
        # Some that fail do not fail alike each time, with Django alone.
        truth = [(ask, answer) for ask, answer in truth if read(ask) == answer]
    assert len(truth) > 450
    for _ in range(2):
        choice.shuffle(truth)
        for ask, answer in truth:
            assert read(ask) == answer
    assert cached.outcomes.count("hit") > 500


@pytest.fixture
def template_of_another(cached: Watch, shelves: None) -> Callable[..., Any]:
    """Let another query of the same shape leave the template and the answer be a hit."""

    def warm(ask: Callable[[str], Any], other: str = "b", own: str = "a") -> Any:
        ask(other)
        with ormcache.disabled():
            truth = exact(ask(own))
        assert exact(cached.miss(lambda: ask(own))) == truth
        assert exact(cached.hit(lambda: ask(own))) == truth
        return cached.hit(lambda: ask(own))

    return warm


READERS: dict[str, Callable[[str], Any]] = {
    "values_list, flat": lambda a: list(
        Book.objects.filter(title=a).values_list("price", flat=True)
    ),
    "values_list, named": lambda a: [
        (type(row).__name__, row._asdict())
        for row in Book.objects.filter(title=a).values_list("price", "title", named=True)
    ],
    "values": lambda a: list(Book.objects.filter(title=a).values("price", "author__name")),
    "aggregate": lambda a: Book.objects.filter(title=a).aggregate(n=Count("*")),
    "aggregates of columns": lambda a: Book.objects.filter(title=a).aggregate(
        Count("pk"), Max("published"), Min("price"), Avg("price"), Sum("pages"), Avg("pages")
    ),
    "count": lambda a: Book.objects.filter(title=a).count(),
    "exists": lambda a: Book.objects.filter(title=a).exists(),
    "first and last": lambda a: (
        Book.objects.filter(title=a).first(),
        Book.objects.filter(title=a).last(),
    ),
    "reverse": lambda a: list(Book.objects.filter(title=a).order_by("pages").reverse()),
    "proxy": lambda a: [
        (type(book).__name__, book.price) for book in CheapBook.objects.filter(title=a)
    ],
}


@pytest.mark.parametrize("ask", READERS.values(), ids=READERS)
@on_databases("default", transaction=True)
def test_each_reader_reads_through_a_template(
    ask: Callable[[str], Any], using: str, template_of_another: Any
) -> None:
    template_of_another(ask)


@on_databases("default", transaction=True)
def test_single_rows_come_through_templates(using: str, template_of_another: Any) -> None:
    one, other, *_ = Author.objects.order_by("pk").values_list("pk", flat=True)
    template_of_another(lambda key: Author.objects.get(pk=key), other, one)
    template_of_another(lambda key: Author.objects.in_bulk([key]), other, one)


@on_databases("default", transaction=True)
def test_what_select_related_loaded_needs_no_query(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Book.objects.select_related("author__profile", "publisher__city").order_by("pk")
    found = template_of_another(lambda title: list(rows.filter(title=title)))
    with cached.expect():
        assert [book.author.profile.author is book.author for book in found] == [True] * 3
        assert [book.publisher and book.publisher.city.name for book in found][:2] == [None, None]
        assert found[2].publisher.city.name


@on_databases("default", transaction=True)
def test_what_was_not_loaded_is_deferred(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Book.objects.only("title").order_by("pk")
    found = template_of_another(lambda title: list(rows.filter(title=title)))
    assert [book.get_deferred_fields() for book in found] == [
        {"author_id", "publisher_id", "pages", "price", "published"}
    ] * 3
    with cached.expect("miss"):
        assert found[0].pages == 0


if django.VERSION >= (6, 1):

    @on_databases("default", transaction=True)
    def test_peers_are_fetched_together(
        cached: Watch, using: str, template_of_another: Any
    ) -> None:
        rows = Book.objects.fetch_mode(models.FETCH_PEERS).order_by("pk")
        found = template_of_another(lambda title: list(rows.filter(title=title)))
        with cached.expect("miss"):
            assert {book.author.name for book in found} == {"a", "b"}


@on_databases("default", transaction=True)
def test_prefetched_rows_come_through_templates(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Author.objects.prefetch_related("books").order_by("pk")
    found = template_of_another(lambda name: list(rows.filter(name=name)))
    with cached.expect():
        assert [len(author.books.all()) for author in found] == [1, 2]


@on_databases("default", transaction=True)
def test_asynchronous_readers_read_through_templates(
    cached: Watch, using: str, shelves: None
) -> None:
    async def ask(title: str) -> Any:
        rows = Book.objects.filter(title=title).order_by("pk")
        return [book.pk async for book in rows], await rows.acount(), (await rows.afirst()).pk

    asyncio.run(ask("b"))
    with ormcache.disabled():
        truth = asyncio.run(ask("a"))
    assert asyncio.run(ask("a")) == truth
    assert cached.hit(lambda: asyncio.run(ask("a"))) == truth


# --- keys ------------------------------------------------------------------------------------

KEYS = """
import json, sys, django
django.setup()
from tests.test_shapes import keys_met_first_with
print(json.dumps(keys_met_first_with(sys.argv[1])))
"""

Rows = Callable[[Any], models.QuerySet[Any]]
# Of one shape each, and two values: with the second, Django may leave out the condition.
SHAPES: list[tuple[Rows, Any, Any]] = [
    (lambda title: Book.objects.filter(title=title), "a", "LIMIT 1 ORDER BY 2 WHERE 3"),
    (lambda pages: Book.objects.filter(pages__gte=pages), 5, -(2**63) - 1),
    (lambda pages: Book.objects.filter(pages__gt=pages).order_by("-pk"), 5, -(2**63) - 1),
    (lambda keys: Book.objects.filter(pk__in=keys)[:3], [1, 2], range(50)),
    (lambda name: Book.objects.filter(author__name=name).select_related("publisher"), "a", "b"),
    (lambda name: Book.objects.filter(author__name=name).order_by("author__name")[:1], "a", "b"),
    (lambda limit: Book.objects.only("title", "pages").order_by("title")[:limit], 3, None),
    (lambda start: Book.objects.values("title", "pages").distinct()[start:], 0, 3),
]


def keys_met_first_with(which: str) -> list[str]:
    """Keys of queries, in a process that met their shapes with these or with other values."""
    return [
        key_of(rows(one), rows({"itself": one, "others": other}[which]))
        for rows, one, other in SHAPES
    ]


def test_keys_are_the_same_in_a_process_that_met_other_values_first() -> None:
    found = []
    for which, seed in (("itself", "1"), ("others", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        output = subprocess.run(
            [sys.executable, "-c", KEYS, which],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found.append(json.loads(output))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])


def versions_of_a_project(**changes: Any) -> tuple[Any, Any]:
    """Models of one version, whose names are those of the other."""
    with isolate_apps("tests"):
        author_meta = {"ordering": changes.get("authors_ordering", ["name"])}
        author = type(
            "Writer",
            (models.Model,),
            {
                "name": models.CharField(max_length=9),
                "Meta": type("Meta", (), {"app_label": "tests", **author_meta}),
                "__module__": __name__,
            },
        )
        meta = {"ordering": changes.get("ordering", []), "db_table": changes.get("table", "work")}
        book = type(
            "Work",
            (models.Model,),
            {
                "title": models.CharField(max_length=9, db_column=changes.get("column", "title")),
                "author": models.ForeignKey(author, models.CASCADE, related_name="+"),
                "Meta": type("Meta", (), {"app_label": "tests", **meta}),
                "__module__": __name__,
            },
        )
    return author, book


@pytest.mark.parametrize(
    "change",
    [
        {"ordering": ["title"]},
        {"ordering": [F("title").desc(nulls_last=True)]},
        {"column": "title_2"},
        {"table": "work_2"},
        {"authors_ordering": ["-name"]},
        {"authors_ordering": []},
    ],
    ids=str,
)
def test_another_version_of_a_project_has_other_keys(change: dict[str, Any]) -> None:
    def key(**changes: Any) -> str:
        _, book = versions_of_a_project(**changes)
        rows = book.objects.filter(title="a")
        return key_of(rows.order_by("author") if "authors_ordering" in change else rows)

    assert key() == key()
    assert key() != key(**change)


class Shout(models.CharField):
    """What is read is not what is stored."""

    def from_db_value(self, value: str, *args: Any) -> str:
        return value.upper()


class Spelled(models.CharField):
    """What is asked for is not what the caller says."""

    def get_prep_value(self, value: Any) -> Any:
        return {1: "one"}.get(value, value)


def version_with(field: models.Field, of: type[models.Model], name: str) -> Any:
    """One version of a model, whose name and columns are those of the other versions."""
    with isolate_apps("tests"):
        return mirror("Version", of, {name: field})


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (models.CharField(), models.TextField(), "1"),
        (models.IntegerField(), models.BigIntegerField(), 1),
        (models.IntegerField(), models.BooleanField(), True),
        (models.JSONField(), models.JSONField(encoder=DjangoJSONEncoder), "a"),
        (models.DecimalField(decimal_places=1), models.DecimalField(decimal_places=2), Decimal(1)),
        (models.GenericIPAddressField(), models.GenericIPAddressField(unpack_ipv4=True), "::1"),
        (models.CharField(max_length=9), models.CharField(max_length=9, db_collation="C"), "a"),
    ],
    ids=lambda value: repr(value),
)
def test_a_field_that_is_declared_in_another_way_has_other_keys(
    one: models.Field, other: models.Field, value: Any
) -> None:
    def key(field: models.Field) -> str:
        return key_of(version_with(field.clone(), Book, "title").objects.filter(title=value))

    assert key(one) == key(one)
    assert key(one) != key(other)


def test_so_has_a_foreign_key_to_such_a_field() -> None:
    def key(**options: Any) -> str:
        with isolate_apps("tests"):
            _, books = bookshop(key=models.CharField(primary_key=True, **options))
            return key_of(books.objects.filter(author="a"))

    assert key() == key()
    assert key() != key(max_length=5)


def test_declarations_that_differ_in_each_process_are_no_part_of_a_key() -> None:
    def key(default: Any) -> str:
        field = models.CharField(default=lambda: default, choices=[("a", default)])
        return key_of(version_with(field, Book, "title").objects.filter(title="a"))

    assert key("a") == key("b")


@on_databases(transaction=True)
@on_caches("redis")
def test_versions_that_read_the_same_columns_share_answers_and_convert_them_themselves(
    cached: Watch, using: str
) -> None:
    Tag.objects.using(using).create(name="a")
    plain = version_with(models.CharField(), Tag, "name")
    loud = version_with(Shout(), Tag, "name")

    def all_columns(model: Any) -> list[str]:
        return [row.name for row in model.objects.using(using)]

    def without_a_shape(model: Any) -> list[str]:
        rows = model.objects.using(using).annotate(length=Length("name"))
        return list(rows.values_list("name", flat=True))

    for question in (all_columns, without_a_shape):
        assert cached.miss(lambda question=question: question(plain)) == ["a"]
        assert cached.hit(lambda question=question: question(loud)) == ["A"]
        assert cached.hit(lambda question=question: question(plain)) == ["a"]


@on_databases("default", "postgresql", transaction=True)
def test_versions_that_decode_differently_share_answers(cached: Watch, using: str) -> None:
    class Decoder(json.JSONDecoder):
        def decode(self, text: str) -> Any:
            return ["decoded", super().decode(text)]

    EveryField.objects.using(using).create(json={"a": 1})
    one = version_with(models.JSONField(), EveryField, "json")
    other = version_with(models.JSONField(decoder=Decoder), EveryField, "json")

    def read(model: Any) -> Any:
        return [row.json for row in model.objects.using(using)]

    assert cached.miss(lambda: read(one)) == [{"a": 1}]
    assert cached.hit(lambda: read(other)) == [["decoded", {"a": 1}]]


@on_databases(transaction=True)
@on_caches("redis")
def test_versions_that_ask_for_other_values_do_not_share_answers(
    cached: Watch, using: str
) -> None:
    """1 is "1" to one version, and "one" to the other."""
    for name in ("1", "one"):
        Tag.objects.using(using).create(name=name)
    old = version_with(models.CharField(), Tag, "name")
    new = version_with(Spelled(), Tag, "name")

    def ask(model: Any) -> list[str]:
        return list(model.objects.using(using).filter(name=1).values_list("name", flat=True))

    for _ in range(2):
        assert cached.call(lambda: ask(old))[0] == ["1"]
        assert cached.call(lambda: ask(new))[0] == ["one"]
    assert cached.outcomes == ["miss", "miss", "hit", "hit"]


@on_databases("default", transaction=True)
def test_versions_whose_choices_are_spelled_otherwise_do_not_share_answers(
    cached: Watch, using: str
) -> None:
    class Old(int, enum.Enum):
        ONE = 1

        def __str__(self) -> str:
            return "1"

    class New(int, enum.Enum):
        ONE = 1

        def __str__(self) -> str:
            return "one"

    New.__qualname__ = Old.__qualname__
    for name in ("1", "one"):
        Tag.objects.create(name=name)

    def ask(choice: Any) -> list[str]:
        return list(Tag.objects.filter(name=choice).values_list("name", flat=True))

    for _ in range(2):
        assert cached.call(lambda: ask(Old.ONE))[0] == ["1"]
        assert cached.call(lambda: ask(New.ONE))[0] == ["one"]


# --- the memo --------------------------------------------------------------------------------


def memo() -> dict[Any, Any]:
    return shapes.templates(current())


@on_databases("default", transaction=True)
def test_models_of_migrations_are_other_models(cached: Watch, using: str, shelves: None) -> None:
    rows = Author.objects.filter(name="a").order_by("pk")
    real = cached.warm(lambda: list(rows.all()))
    fields = [("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]
    state = ProjectState()
    state.add_model(ModelState("tests", "Author", fields))
    for _ in range(2):
        historical = state.clone().apps.get_model("tests", "Author")
        found = [list(historical.objects.filter(name="a").order_by("pk")) for _ in range(2)]
        for authors in found:
            assert [type(author) for author in authors] == [historical] * 2
            assert [author.pk for author in authors] == [author.pk for author in real]
            assert "born" not in vars(authors[0])
    assert [type(author) for author in rows.all()] == [Author] * 2


@on_databases("default", transaction=True)
def test_models_that_are_made_anew_are_other_models(
    cached: Watch, using: str, shelves: None
) -> None:
    """Also where the fields of the new one take the places of the old ones in memory."""
    for number in range(20):
        title = ("title", "pages")[number % 2]
        with isolate_apps("tests"):
            book = mirror(
                "MirrorBook",
                Book,
                {"text": models.CharField(max_length=9, db_column=title)},
            )
            with ormcache.disabled():
                truth = [row.text for row in book.objects.filter(text__gt="0").order_by("pk")]
            for _ in range(2):
                found = book.objects.filter(text__gt="0").order_by("pk")
                assert [row.text for row in found] == truth
                assert {type(row) for row in found} <= {book}
        del book, found
        gc.collect()


@on_databases("default", transaction=True)
def test_templates_go_when_settings_change_or_models_are_made(
    cached: Watch, using: str, settings: Any
) -> None:
    Book.objects.count()
    assert memo()
    settings.ORMCACHE = {**settings.ORMCACHE}
    assert not memo()
    Book.objects.count()
    assert memo()
    with isolate_apps("tests"):
        bookshop()
        assert not memo()


@on_databases("default", transaction=True)
def test_switching_a_model_off_reaches_queries_of_known_shape(
    cached: Watch, using: str, settings: Any
) -> None:
    cached.warm(lambda: Book.objects.count())
    settings.ORMCACHE = {**settings.ORMCACHE, "MODELS": {"tests.Book": {"ENABLED": False}}}
    with cached.expect(Reason.MODEL_OFF):
        Book.objects.count()


@on_databases("default", transaction=True)
def test_the_memo_is_bounded(cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_memo", Memo(limit=5))
    sizes = []
    for number in range(1, 20):
        conditions = Q(*(("pages", page) for page in range(number)), _connector="OR")
        Book.objects.filter(conditions).count()
        sizes.append(len(memo()))
    assert max(sizes) <= 6
    assert sizes.count(1) > 1


@on_databases("default", transaction=True)
def test_a_template_keeps_no_values(cached: Watch, using: str) -> None:
    marker = "a title that nothing else has"
    list(Book.objects.filter(title__in=[marker] * 1000, author__name=marker))
    gc.collect()
    kept = [template for template in memo().values() if template is not None]
    assert kept
    seen: set[int] = set()
    waiting: list[Any] = [*memo(), *kept]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, type(os))) or callable(thing):
            continue
        seen.add(id(thing))
        assert not (type(thing) is str and thing == marker)
        assert not isinstance(thing, models.sql.Query)
        waiting.extend(gc.get_referents(thing))


# --- making a plan ---------------------------------------------------------------------------


@on_databases("default", transaction=True)
def test_threads_that_meet_a_shape_at_once_agree(
    cached: Watch, using: str, shelves: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=10)
    make = shapes.make_template

    def make_together(*args: Any) -> Any:
        together.wait()
        return make(*args)

    monkeypatch.setattr(plans, "make_template", make_together)
    found: dict[str, list[Any]] = {}

    def ask(title: str) -> None:
        try:
            found[title] = [book.title for book in Book.objects.filter(title=title)]
        finally:
            connections[using].close()

    threads = [threading.Thread(target=ask, args=(title,)) for title in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"a": ["a"] * 3, "b": ["b"], "c": []}
    assert len(memo()) == 1
    for title, truth in found.items():
        rows = Book.objects.filter(title=title)
        again = cached.hit(lambda rows=rows: list(rows))
        assert [book.title for book in again] == truth


@on_databases("default", transaction=True)
def test_an_answer_from_other_tables_than_the_templates_is_not_stored(
    cached: Watch, using: str, shelves: None
) -> None:
    rows = Book.objects.filter(title="a")
    list(rows.all())
    (template,) = memo().values()
    template.tables = ("tests_author",)
    # So that it is compiled as a whole.
    template.text = None
    rows = Book.objects.filter(title="b")
    for _ in range(2):
        with cached.expect("miss"):
            assert [book.title for book in rows.all()] == ["b"]
        assert cached.reads[-1].reason is Reason.UNREADABLE_SQL


@on_databases("default", transaction=True)
def test_a_first_query_that_fails_or_is_empty_spoils_the_shape_for_none(
    cached: Watch, using: str, shelves: None
) -> None:
    with pytest.raises(ValueError, match="must be True or False"):
        list(Book.objects.filter(publisher__isnull=1))
    assert list(Book.objects.filter(pages__lt=-(2**63) - 1)) == []
    cached.warm(lambda: list(Book.objects.filter(publisher__isnull=True)))
    cached.warm(lambda: list(Book.objects.filter(pages__lt=2)))


# --- queries that cannot have rows -----------------------------------------------------------

impossible = Book.objects.filter(pages__lt=-(2**63) - 1)


@pytest.fixture
def known_shape(cached: Watch) -> None:
    list(Book.objects.filter(pages__lt=2))
    assert len(memo()) == 1


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_coroutine(using: str, known_shape: None) -> None:
    async def ask() -> Any:
        with pytest.raises(SynchronousOnlyOperation):
            list(Book.objects.filter(pages__lt=2))
        return list(impossible.all())

    assert asyncio.run(ask()) == []


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_simple_test_case(
    using: str, known_shape: None
) -> None:
    class Test(SimpleTestCase):
        def test(self) -> None:
            self.found = list(impossible.all()), impossible.count(), impossible.exists()
            with pytest.raises(AssertionError, match="Database queries to 'default' are not"):
                list(Book.objects.filter(pages__lt=2))

    test = Test("test")
    Test.setUpClass()
    try:
        test.test()
    finally:
        Test.doClassCleanups()
    assert test.found == ([], 0, False)


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_broken_transaction(
    using: str, known_shape: None
) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        assert list(impossible.all()) == []
        with pytest.raises(transaction.TransactionManagementError):
            list(Book.objects.filter(pages__lt=2))
