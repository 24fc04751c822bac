"""A hit gives what the database would have given, in value and in type."""

import asyncio
import datetime
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, models
from django.db.models import (
    Avg,
    Case,
    Count,
    Exists,
    F,
    FilteredRelation,
    Max,
    Min,
    OuterRef,
    Prefetch,
    Q,
    StdDev,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.fields.json import KT
from django.db.models.functions import (
    Cast,
    Coalesce,
    Concat,
    ExtractYear,
    Length,
    RowNumber,
    TruncDate,
    TruncMonth,
    Upper,
)

import ormcache
from tests.exactness import exact
from tests.factories import using as factories_using
from tests.marks import on_caches, on_databases
from tests.models import (
    Author,
    Book,
    Category,
    CheapBook,
    Comment,
    DatabaseDefault,
    EveryField,
    Generated,
    ItalianRestaurant,
    Legacy,
    Note,
    Place,
    Restaurant,
    Tag,
    UUIDKey,
)
from tests.watching import Watch

try:
    from django.db.models import StringAgg as STRING_AGG
except ImportError:  # Before Django 6.0.
    from django.contrib.postgres.aggregates import StringAgg as STRING_AGG

UTC = datetime.timezone.utc
Question = Callable[[str], Any]


def assert_exact(cached: Watch, question: Callable[[], Any], name: str = "") -> None:
    """The database, the first read, and two hits give exactly the same."""
    with ormcache.disabled():
        truth = exact(question())
    assert exact(question()) == truth, name
    before = len(cached.reads)
    assert exact(question()) == truth, name
    assert exact(question()) == truth, name
    assert set(cached.outcomes[before:]) == {"hit"}, name


# --- every field -----------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "big_integer": 2**62,
    "binary": bytes(range(256)),
    "boolean": True,
    "char": "text with 'quotes' and \U0001f40d",
    "date": datetime.date(2024, 2, 29),
    "datetime": datetime.datetime(2024, 10, 27, 0, 30, 0, 123456, tzinfo=UTC),
    "decimal": Decimal("12345678901234.500000"),
    "duration": datetime.timedelta(days=400, seconds=1, microseconds=5),
    "email": "a@example.com",
    "file": "folder/file.txt",
    "file_path": "/folder",
    "float": 0.1,
    "integer": -5,
    "ip_address": "2001:db8::1",
    "json": {"a": [1, 1.5, True, None, {"b": "ü"}], "c": {}},
    "positive_big_integer": 2**61,
    "positive_integer": 7,
    "positive_small_integer": 8,
    "slug": "a-slug",
    "small_integer": -9,
    "text": "long\n\ttext",
    "time": datetime.time(23, 59, 59, 999999),
    "url": "https://example.com/",
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
}
EDGES: dict[str, Any] = {
    "big_integer": -(2**63),
    "binary": b"",
    "boolean": False,
    "char": "",
    "date": datetime.date(1, 1, 1),
    "datetime": datetime.datetime(1970, 1, 1, tzinfo=UTC),
    "decimal": Decimal("0.000001"),
    "duration": datetime.timedelta(microseconds=-1),
    "float": 1e300,
    "integer": 0,
    "ip_address": "127.0.0.1",
    "json": [],
    "positive_big_integer": 0,
    "text": "",
    "time": datetime.time(0, 0),
    "uuid": uuid.UUID(int=0),
}
FIELDS = [field.name for field in EveryField._meta.fields]


@pytest.fixture
def every_field(using: str) -> None:
    rows = [{}, FULL, EDGES, {"json": Value(None, models.JSONField())}, {"json": "text"}]
    for row in rows:
        EveryField.objects.using(using).create(**row)


@on_databases(transaction=True)
@on_caches("locmem", "redis", "memcached")
def test_instances_with_every_field(
    cached: Watch, using: str, cache: str, every_field: None
) -> None:
    assert_exact(cached, lambda: list(EveryField.objects.using(using).order_by("pk")))


@on_databases(transaction=True)
def test_values_of_every_field(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using).order_by("pk")
    assert_exact(cached, lambda: list(rows.values()))
    assert_exact(cached, lambda: list(rows.values_list()))
    assert_exact(cached, lambda: list(rows.values_list(named=True)))


@on_databases(transaction=True)
def test_each_field_by_itself(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using).order_by("pk")
    for name in FIELDS:
        for start, end in ((0, 5), (1, 2), (0, 1)):
            column = rows[start:end].values_list(name, flat=True)
            assert_exact(cached, lambda column=column: list(column.all()))


@on_databases(transaction=True)
def test_a_lookup_by_each_field(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using)
    for name, value in FULL.items():
        if name == "float" or (name == "json" and using == "mariadb"):
            continue
        assert_exact(cached, lambda name=name, value=value: rows.get(**{name: value}))
        assert_exact(cached, lambda name=name: list(rows.filter(**{f"{name}__isnull": True})))


AGGREGATES = {
    **{
        f"{kind.__name__.lower()}_{name}": kind(name)
        for kind in (Max, Min)
        for name in ("big_integer", "char", "date", "datetime", "decimal", "duration", "time")
    },
    "sum_decimal": Sum("decimal"),
    "sum_integer": Sum("integer"),
    "sum_duration": Sum("duration"),
    "avg_integer": Avg("integer"),
    "avg_decimal": Avg("decimal"),
    "avg_float": Avg("float", filter=Q(float__lt=1)),
    "avg_duration": Avg("duration"),
    "stddev": StdDev("small_integer", filter=Q(small_integer__lt=0)),
    "count": Count("*"),
    "distinct": Count("boolean", distinct=True),
    "none": Sum("integer", filter=Q(char="nothing")),
    "default": Sum("integer", filter=Q(char="nothing"), default=3),
}


@on_databases(transaction=True)
def test_aggregates(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using)
    for name, aggregate in AGGREGATES.items():
        assert_exact(
            cached, lambda name=name, aggregate=aggregate: rows.aggregate(**{name: aggregate})
        )
    assert_exact(cached, lambda: rows.aggregate(**AGGREGATES))


EXPRESSIONS = {
    "max_datetime": Max("datetime"),
    "trunc_month": TruncMonth("date"),
    "trunc_date": TruncDate("datetime", tzinfo=UTC),
    "year": ExtractYear("date"),
    "cast_text": Cast("integer", models.CharField(max_length=20)),
    "cast_decimal": Cast("integer", models.DecimalField(max_digits=10, decimal_places=3)),
    "cast_float": Cast("integer", models.FloatField()),
    "key_text": KT("json__a__0"),
    "key": F("json__a"),
    "nested_key": F("json__a__4__b"),
    "case": Case(When(boolean=True, then=Value("yes")), default=Value("no")),
    "coalesce": Coalesce("date", Value(datetime.date(2000, 1, 1))),
    "concat": Concat("char", Value("-"), "slug", output_field=models.TextField()),
    "length": Length("char"),
    "upper": Upper("char"),
    "sum": F("integer") + F("small_integer"),
    "product": F("decimal") * 2,
    "later": F("datetime") + datetime.timedelta(days=1),
    "exists": Exists(Author.objects.filter(pk=OuterRef("pk"))),
    "row": Window(RowNumber(), order_by=F("pk").asc()),
    "value": Value(5),
    "value_date": Value(datetime.date(2024, 1, 1)),
    "value_json": Value({"a": 1}, models.JSONField()),
}


@on_databases(transaction=True)
def test_annotations(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using).order_by("pk")
    for name, expression in EXPRESSIONS.items():
        annotated = rows.annotate(x=expression)
        assert_exact(cached, lambda rows=annotated: list(rows.values_list("pk", "x")), name)
        assert_exact(cached, lambda rows=annotated: list(rows.all()), name)


@on_databases(transaction=True)
def test_dates_and_datetimes(cached: Watch, using: str, every_field: None) -> None:
    rows = EveryField.objects.using(using)
    assert_exact(cached, lambda: list(rows.dates("date", "month")))
    assert_exact(cached, lambda: list(rows.datetimes("datetime", "hour", tzinfo=UTC)))
    assert_exact(cached, lambda: list(rows.datetimes("datetime", "day", tzinfo=UTC)))


@on_databases(transaction=True)
def test_without_use_tz(cached: Watch, using: str, every_field: None, settings: Any) -> None:
    rows = EveryField.objects.using(using).order_by("pk")
    assert_exact(cached, lambda: list(rows.values_list("datetime", "time")))
    settings.USE_TZ = False
    assert_exact(cached, lambda: list(rows.values_list("datetime", "time")))


@on_databases("default", transaction=True)
def test_the_current_time_zone_decides_of_truncation(
    cached: Watch, using: str, every_field: None
) -> None:
    from django.utils import timezone

    rows = EveryField.objects.using(using).order_by("pk").annotate(day=TruncDate("datetime"))
    for zone in ("Europe/Vienna", "America/New_York", "Europe/Vienna"):
        with timezone.override(zone):
            assert_exact(cached, lambda: list(rows.values_list("day", flat=True)))


# --- other models ----------------------------------------------------------------------------


@on_databases(transaction=True)
def test_columns_that_the_database_fills_in(cached: Watch, using: str) -> None:
    Generated.objects.using(using).create(width=2, height=3, name="a")
    DatabaseDefault.objects.using(using).create()
    for model in (Generated, DatabaseDefault):
        assert_exact(cached, lambda model=model: list(model._default_manager.using(using)))
        assert_exact(
            cached, lambda model=model: list(model._default_manager.using(using).values())
        )


@on_databases(transaction=True)
def test_unusual_models(cached: Watch, using: str) -> None:
    UUIDKey.objects.using(using).create(pk=uuid.UUID(int=5), name="a")
    Legacy.objects.using(using).create(name="a")
    Note.objects.using(using).create(text=None)
    Note.objects.using(using).create(text="")
    parent = Category.objects.using(using).create(name="a")
    Category.objects.using(using).create(name="b", parent=parent)
    for model in (UUIDKey, Legacy, Note, Category):
        assert_exact(cached, lambda model=model: list(model._default_manager.using(using)))
    assert_exact(cached, lambda: UUIDKey.objects.using(using).get(pk=str(uuid.UUID(int=5))))
    assert_exact(cached, lambda: list(Category.objects.using(using).filter(parent__name="a")))


@on_databases(transaction=True)
def test_inheritance(cached: Watch, using: str) -> None:
    place = Place.objects.using(using).create(name="place")
    restaurant = Restaurant.objects.using(using).create(name="restaurant", stars=1)
    italian = ItalianRestaurant.objects.using(using).create(name="italian", stars=2)
    for model in (Place, Restaurant, ItalianRestaurant):
        rows = model._default_manager.using(using).order_by("pk")
        assert_exact(cached, lambda rows=rows: list(rows.all()))
        assert_exact(cached, lambda rows=rows: list(rows.values_list("name", "pk")))
    assert_exact(
        cached,
        lambda: Place.objects.using(using).get(pk=italian.pk).restaurant.italianrestaurant,
    )
    assert_exact(cached, lambda: list(Place.objects.using(using).select_related("restaurant")))
    assert {place.pk, restaurant.pk, italian.pk} == {
        row.pk for row in cached.hit(lambda: list(Place.objects.using(using).order_by("pk")))
    }


@pytest.fixture
def bookshop(using: str) -> None:
    from tests import factories as f

    with factories_using(using):
        tags = [f.TagFactory(name=name) for name in ("new", "old")]
        publisher = f.PublisherFactory(name="press")
        for number in range(3):
            author = f.AuthorProfileFactory(author__name=f"author {number}").author
            book = f.BookFactory(
                title=f"book {number}",
                author=author,
                publisher=publisher if number else None,
                tags=tags[:number],
                price=Decimal(number * 5),
                published=datetime.datetime(2020 + number, 1, 1, tzinfo=UTC),
            )
            f.ContributionFactory(book=book, author=author)
            f.CommentFactory(subject=book, text=f"comment {number}")


def books(using: str) -> Any:
    return Book.objects.using(using).order_by("pk")


RELATIONS: dict[str, Question] = {
    "foreign key": lambda db: [book.author for book in books(db)],
    "null foreign key": lambda db: [book.publisher for book in books(db)],
    "reverse": lambda db: [list(author.books.all()) for author in authors(db)],
    "one to one": lambda db: [author.profile for author in authors(db)],
    "many to many": lambda db: [list(book.tags.order_by("pk")) for book in books(db)],
    "reverse many to many": lambda db: [
        list(tag.books.order_by("pk")) for tag in Tag.objects.using(db).order_by("pk")
    ],
    "through": lambda db: [list(book.contributors.all()) for book in books(db)],
    "generic": lambda db: [list(book.comments.all()) for book in books(db)],
    "select_related": lambda db: list(books(db).select_related("author", "publisher__city")),
    "select_related chain": lambda db: list(
        books(db).select_related("publisher__city__country__continent")
    ),
    "select_related reverse": lambda db: list(authors(db).select_related("profile")),
    "prefetch": lambda db: list(books(db).prefetch_related("tags", "contributors")),
    "prefetch reverse": lambda db: list(authors(db).prefetch_related("books__tags")),
    "prefetch queryset": lambda db: [
        (author, author.cheap)
        for author in authors(db).prefetch_related(
            Prefetch("books", Book.objects.filter(price__lt=6), to_attr="cheap")
        )
    ],
    "prefetch generic": lambda db: [
        (comment, comment.subject)
        for comment in Comment.objects.using(db).order_by("pk").prefetch_related("subject")
    ],
    "only": lambda db: list(books(db).only("title")),
    "only then more": lambda db: [(book.title, book.pages) for book in books(db).only("title")],
    "only related": lambda db: list(
        books(db).select_related("author").only("title", "author__name")
    ),
    "defer": lambda db: list(books(db).defer("title", "pages")),
    "proxy": lambda db: list(CheapBook.objects.using(db).order_by("pk")),
    "order by relation": lambda db: list(books(db).order_by("-author__name")),
    "filter relation": lambda db: list(books(db).filter(tags__name="new").distinct()),
    "exclude relation": lambda db: list(books(db).exclude(tags__name="new")),
    "filtered relation": lambda db: list(
        books(db)
        .annotate(tag=FilteredRelation("tags", condition=Q(tags__name="old")))
        .values_list("title", "tag__name")
    ),
    "subquery": lambda db: list(
        authors(db)
        .annotate(title=Subquery(Book.objects.filter(author=OuterRef("pk")).values("title")[:1]))
        .values_list("name", "title")
    ),
    "exists annotation": lambda db: list(
        authors(db)
        .annotate(e=Exists(Book.objects.filter(author=OuterRef("pk"), price__gt=6)))
        .values_list("name", "e")
    ),
    "group by": lambda db: list(
        books(db).order_by("publisher").values("publisher").annotate(n=Count("pk"), p=Max("price"))
    ),
    "having": lambda db: list(
        authors(db).annotate(n=Count("books__tags")).filter(n__gte=1).values_list("name", "n")
    ),
    "union": lambda db: sorted(
        books(db)
        .order_by()
        .values_list("title", "pages")
        .union(authors(db).order_by().values_list("name", "pk"))
    ),
    "union all count": lambda db: (
        books(db).order_by().union(books(db).order_by(), all=True).count()
    ),
    "sliced": lambda db: [list(books(db)[1:]), list(books(db)[:2]), list(books(db)[1:2])],
    "get": lambda db: books(db).get(title="book 1"),
    "first": lambda db: [books(db).first(), books(db).filter(title="none").first()],
    "last": lambda db: books(db).last(),
    "earliest": lambda db: [books(db).earliest("published"), books(db).latest("published")],
    "index": lambda db: books(db)[1],
    "in_bulk": lambda db: books(db).in_bulk(),
    "in_bulk of some": lambda db: books(db).in_bulk([books(db)[0].pk, -1]),
    "in_bulk by name": lambda db: Tag.objects.using(db).order_by("pk").in_bulk(field_name="name"),
    "count": lambda db: [
        books(db).count(),
        books(db).filter(tags__name="new").count(),
        books(db).distinct().count(),
        books(db)[:2].count(),
        books(db).values("author").distinct().count(),
        books(db).filter(title="none").count(),
    ],
    "exists": lambda db: [
        books(db).exists(),
        books(db).filter(title="none").exists(),
        books(db)[5:].exists(),
        books(db).filter(tags__name="new").exists(),
    ],
    "contains": lambda db: books(db).contains(books(db)[0]),
    "aggregate": lambda db: [
        books(db).aggregate(Sum("price"), Max("published")),
        books(db)[:2].aggregate(Sum("price")),
        books(db).filter(title="none").aggregate(Sum("price"), n=Count("*")),
        books(db).annotate(n=Count("tags")).aggregate(Max("n")),
    ],
    "dates": lambda db: list(books(db).dates("published", "year")),
    "refresh": lambda db: refreshed(books(db)[0]),
    "reverse order": lambda db: list(books(db).reverse()),
    "alias": lambda db: list(books(db).alias(n=Count("tags")).filter(n=0)),
    "raw values": lambda db: list(books(db).extra(select={"double": "pages * 2"})),
    "named": lambda db: list(books(db).values_list("title", "price", named=True)),
    "flat": lambda db: list(books(db).values_list("price", flat=True)),
    "empty": lambda db: list(books(db).filter(title="none")),
}


def authors(using: str) -> Any:
    return Author.objects.using(using).order_by("pk")


def refreshed(book: Any) -> Any:
    book.title = "changed"
    book.refresh_from_db()
    return book


@on_databases(transaction=True)
def test_questions_of_a_bookshop(cached: Watch, using: str, bookshop: None) -> None:
    for name, question in RELATIONS.items():
        # Django keeps content types of all databases in one place.
        if using == "default" or "generic" not in name:
            assert_exact(cached, lambda question=question: question(using), name)


@on_databases("default", transaction=True)
@on_caches("redis", "django_redis", "django_valkey", "memcached", "filebased")
def test_questions_of_a_bookshop_in_other_caches(
    cached: Watch, using: str, cache: str, bookshop: None
) -> None:
    for name, question in RELATIONS.items():
        assert_exact(cached, lambda question=question: question(using), name)


@on_databases("default", transaction=True)
def test_one_question_does_not_disturb_another(cached: Watch, using: str, bookshop: None) -> None:
    """Whatever is remembered of one query, the next of its kind has other columns or values."""
    with ormcache.disabled():
        truth = {name: exact(question(using)) for name, question in RELATIONS.items()}
    for _ in range(3):
        for name, question in RELATIONS.items():
            assert exact(question(using)) == truth[name], name


VALUES = [
    lambda rows: rows.filter(pages=1),
    lambda rows: rows.filter(pages=True),
    lambda rows: rows.filter(pages=100),
    lambda rows: rows.filter(pages__in=[100]),
    lambda rows: rows.filter(pages__in=[1, 100]),
    lambda rows: rows.filter(pages__in=(100, 1)),
    lambda rows: rows.filter(pages__in={100, 1}),
    lambda rows: rows.exclude(pages=100),
    lambda rows: rows.filter(publisher=None),
    lambda rows: rows.filter(publisher__isnull=True),
    lambda rows: rows.filter(publisher__isnull=False),
    lambda rows: rows.exclude(publisher=None),
    lambda rows: rows.filter(Q(pages=100) | Q(title="book 1")),
    lambda rows: rows.filter(Q(pages=100) & Q(title="book 1")),
    lambda rows: rows.filter(~Q(pages=100)),
    lambda rows: rows.filter(title__contains="1"),
    lambda rows: rows.filter(title__startswith="book"),
    lambda rows: rows.filter(title__startswith="%"),
    lambda rows: rows.filter(title__iexact="BOOK 1"),
    lambda rows: rows.filter(title__regex="[12]$"),
    lambda rows: rows.filter(price=5),
    lambda rows: rows.filter(price=Decimal("5.00")),
    lambda rows: rows.filter(price__range=(1, 6)),
    lambda rows: rows.filter(published__year=2021),
    lambda rows: rows.filter(published__gt=datetime.datetime(2020, 6, 1, tzinfo=UTC)),
    lambda rows: rows.filter(author__name="author 1"),
    lambda rows: rows.filter(author__profile__biography__contains="B"),
    lambda rows: rows.filter(pages__in=[]) | rows.filter(title="book 1"),
    lambda rows: rows.exclude(pages__in=[]),
    lambda rows: rows.filter(pages__gt=F("id")),
    lambda rows: rows[:1],
    lambda rows: rows[1:],
    lambda rows: rows[1:2],
    lambda rows: rows[2:3],
]


@on_databases(transaction=True)
def test_values_and_shapes_of_conditions_are_told_apart(
    cached: Watch, using: str, bookshop: None
) -> None:
    with ormcache.disabled():
        truth = [exact(list(question(books(using)))) for question in VALUES]
    assert len({repr(answer) for answer in truth}) > 5
    for _ in range(3):
        assert [exact(list(question(books(using)))) for question in VALUES] == truth
        assert [question(books(using)).count() for question in VALUES] == [
            len(answer[1]) for answer in truth
        ]


# --- only PostgreSQL -------------------------------------------------------------------------


@pytest.fixture
def postgres_fields(using: str) -> Any:
    pytest.importorskip("psycopg")
    from psycopg.types.range import Range

    from tests.postgres.models import PostgresFields

    rows: list[dict[str, Any]] = [
        {},
        {
            "integers": [1, None, 3],
            "dates": [datetime.date(2024, 1, 1), None],
            "nested": [["a", "b"], ["c", None]],
            "integer_range": Range(1, 5),
            "big_range": Range(None, 2**40),
            "decimal_range": Range(Decimal("1.50"), Decimal("2.5"), "[]"),
            "date_range": Range(datetime.date(2024, 1, 1), None),
            "datetime_range": Range(
                datetime.datetime(2024, 1, 1, tzinfo=UTC),
                datetime.datetime(2024, 6, 1, tzinfo=UTC),
            ),
            "hstore": {"a": "1", "b": None, "ü": ""},
            "json": {"a": [1, 2.5, {"b": None}]},
        },
        {
            "integers": [],
            "dates": [],
            "nested": [],
            "integer_range": Range(empty=True),
            "big_range": Range(None, None),
            "decimal_range": Range(None, None, "()"),
            "hstore": {},
            "json": [],
        },
    ]
    for row in rows:
        PostgresFields.objects.create(**row)
    return PostgresFields


@on_databases("postgresql", transaction=True)
@on_caches("locmem", "redis")
def test_every_field_of_postgresql(
    cached: Watch, using: str, cache: str, postgres_fields: Any
) -> None:
    rows = postgres_fields.objects.order_by("pk")
    assert_exact(cached, lambda: list(rows.all()))
    assert_exact(cached, lambda: list(rows.values()))
    for field in postgres_fields._meta.fields:
        assert_exact(cached, lambda name=field.name: list(rows.values_list(name, flat=True)))


@on_databases("postgresql", transaction=True)
def test_expressions_of_postgresql(cached: Watch, using: str, postgres_fields: Any) -> None:
    from django.contrib.postgres.aggregates import ArrayAgg, BoolAnd, JSONBAgg
    from django.contrib.postgres.fields import ArrayField
    from django.contrib.postgres.search import SearchVector

    rows = postgres_fields.objects.order_by("pk")
    text = Cast("pk", models.TextField())
    expressions = {
        "array_agg": ArrayAgg("pk", default=Value([])),
        "array_agg_dates": ArrayAgg("dates", filter=Q(dates__len__gt=0)),
        "array_agg_datetimes": ArrayAgg(
            Cast("datetime_range", models.TextField()), filter=Q(pk__gt=0)
        ),
        "json_agg": JSONBAgg("json"),
        "string_agg": STRING_AGG(text, Value(",")),
        "bool": BoolAnd(Q(pk__gt=0)),
        "slice": F("integers__0_2"),
        "index": F("integers__0"),
        "key": F("json__a"),
        "key_text": KT("json__a__0"),
        "hstore_key": F("hstore__a"),
        "lower": F("integer_range__startswith"),
        "upper": F("datetime_range__endswith"),
        "array": Value([1, 2], ArrayField(models.IntegerField())),
        "vector": SearchVector(text),
    }
    for name, expression in expressions.items():
        assert_exact(
            cached,
            lambda expression=expression: list(rows.values_list("pk").annotate(x=expression)),
        )
        assert name


@on_databases("postgresql", transaction=True)
def test_parameters_of_postgresql(cached: Watch, using: str, postgres_fields: Any) -> None:
    from psycopg.types.range import Range

    rows = postgres_fields.objects.order_by("pk")
    for condition in (
        {"integers": [1, None, 3]},
        {"integers": []},
        {"integers__contains": [3]},
        {"integers__overlap": [3, 4]},
        {"integers__len": 0},
        {"nested": [["a", "b"], ["c", None]]},
        {"integer_range": Range(1, 5)},
        {"integer_range__contains": 3},
        {"integer_range__overlap": (4, 9)},
        {"date_range__contains": datetime.date(2024, 5, 1)},
        {"datetime_range__startswith__lte": datetime.datetime(2024, 1, 1, tzinfo=UTC)},
        {"hstore": {}},
        {"hstore__contains": {"a": "1"}},
        {"hstore__has_keys": ["a", "b"]},
        {"json": []},
        {"json__a__1": 2.5},
        {"json__has_key": "a"},
        {"json__contains": {"a": [1]}},
    ):
        assert_exact(cached, lambda condition=condition: list(rows.filter(**condition)))


# --- callers do not disturb each other -------------------------------------------------------


@on_databases("postgresql", transaction=True)
def test_what_a_caller_changes_no_other_caller_sees(
    cached: Watch, using: str, postgres_fields: Any
) -> None:
    rows = postgres_fields.objects.filter(integers__len__gt=0)
    truth = exact(cached.miss(lambda: rows.get()))
    for _ in range(2):
        found = cached.hit(lambda: rows.get())
        assert exact(found) == truth
        found.integers.append(99)
        found.nested[0].clear()
        found.hstore["new"] = "1"
        found.json["a"].clear()
        found.integer_range = None
        found.extra = "attribute"


@on_databases("default", transaction=True)
def test_a_list_that_a_caller_changes_no_other_caller_sees(
    cached: Watch, using: str, bookshop: None
) -> None:
    for _ in range(3):
        found = list(books(using).values())
        assert [row["title"] for row in found] == ["book 0", "book 1", "book 2"]
        found[0]["title"] = "changed"
        found.clear()


@on_databases("default", transaction=True)
def test_related_objects_are_not_shared_between_callers(
    cached: Watch, using: str, bookshop: None
) -> None:
    one, other = (books(using).select_related("author")[0] for _ in range(2))
    assert one.author is not other.author
    one.author.name = "changed"
    assert other.author.name == "author 0"


@on_databases("default", transaction=True)
def test_a_hit_leaves_the_query_with_its_table(cached: Watch, using: str) -> None:
    """As compiling would: some look there."""
    cached.warm(lambda: list(Author.objects.all()))
    authors = Author.objects.all()
    cached.hit(lambda: list(authors))
    assert list(authors.query.alias_map) == ["tests_author"]


# --- chunks ----------------------------------------------------------------------------------


@on_databases(transaction=True)
@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 250])
def test_rows_come_in_the_chunks_of_the_driver(cached: Watch, using: str, number: int) -> None:
    Tag.objects.using(using).bulk_create(Tag(name=f"tag {n}") for n in range(number))

    def chunks() -> list[Any]:
        compiler = Tag.objects.using(using).order_by("pk").query.get_compiler(using)
        result = compiler.execute_sql()
        assert type(result) is list
        return [(type(chunk), [type(row) for row in chunk], list(chunk)) for chunk in result]

    with ormcache.disabled():
        truth = chunks()
    assert sum(len(chunk) for *_, chunk in truth) == number
    assert cached.miss(chunks) == truth
    assert cached.hit(chunks) == truth


@on_databases("default", transaction=True)
def test_the_size_of_the_chunks_is_the_callers(cached: Watch, using: str) -> None:
    Tag.objects.bulk_create(Tag(name=f"tag {n}") for n in range(5))

    def lengths(size: int) -> list[int]:
        compiler = Tag.objects.order_by("pk").query.get_compiler(using)
        return [len(chunk) for chunk in compiler.execute_sql(chunk_size=size)]

    assert cached.miss(lambda: lengths(2)) == [2, 2, 1]
    assert cached.hit(lambda: lengths(3)) == [3, 2]
    assert cached.hit(lambda: lengths(2)) == [2, 2, 1]


# --- asynchronous ----------------------------------------------------------------------------


async def collected(rows: Any) -> list[Any]:
    return [row async for row in rows]


ASYNCHRONOUS: dict[str, Callable[[str], Any]] = {
    "aget": lambda db: books(db).aget(title="book 1"),
    "acount": lambda db: books(db).acount(),
    "aexists": lambda db: books(db).filter(title="book 1").aexists(),
    "aaggregate": lambda db: books(db).aaggregate(Sum("price")),
    "afirst": lambda db: books(db).afirst(),
    "alast": lambda db: books(db).alast(),
    "aearliest": lambda db: books(db).aearliest("published"),
    "acontains": lambda db: books(db).acontains(Book(pk=1)),
    "ain_bulk": lambda db: books(db).ain_bulk(),
    "async for": lambda db: collected(books(db)),
    "async for values": lambda db: collected(books(db).values_list("title", "price")),
    "async for prefetch": lambda db: collected(books(db).prefetch_related("tags")),
    "related": lambda db: collected(Tag.objects.using(db).filter(books__title="book 2")),
}


@on_databases(transaction=True)
def test_asynchronous_reads(cached: Watch, using: str, bookshop: None) -> None:
    async def ask() -> dict[str, Any]:
        try:
            return {name: exact(await make(using)) for name, make in ASYNCHRONOUS.items()}
        finally:
            await sync_to_async(connections.close_all)()

    def answers() -> dict[str, Any]:
        return asyncio.run(ask())

    with ormcache.disabled():
        truth = answers()
    assert answers() == truth
    before = len(cached.reads)
    assert answers() == truth
    assert set(cached.outcomes[before:]) == {"hit"}
    assert len(cached.outcomes[before:]) >= len(ASYNCHRONOUS)


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    assert ormcache.bypasses.feeds.depth == 0
    assert ormcache.bypasses._disabled.get() == 0
