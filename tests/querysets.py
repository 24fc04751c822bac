"""Steps from which querysets over books are made, and ways to read them.

Each step changes something else that Django's compiler looks at; many of them differ only in a
value, or in nothing but its type. A step that does not fit a queryset makes it raise.
"""

import datetime
import enum
import zoneinfo
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from django.db import models
from django.db.models import (
    Avg,
    Count,
    F,
    FilteredRelation,
    FloatField,
    Max,
    Min,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
    Window,
)
from django.db.models.functions import Lower, Random, RowNumber
from django.db.models.sql import Query
from django.utils.safestring import mark_safe

from tests.models import Author, Book, Publisher

Rows = models.QuerySet[Any]
Step = Callable[[Rows], Rows]

UTC = datetime.timezone.utc
VIENNA = zoneinfo.ZoneInfo("Europe/Vienna")


class Colour(models.TextChoices):
    RED = "a"


class Shade(enum.Enum):
    RED = "a"


class Text(str):
    pass


class OtherQuery(Query):
    """Of another package."""


def where(**conditions: Any) -> Step:
    return lambda rows: rows.filter(**conditions)


def without(**conditions: Any) -> Step:
    return lambda rows: rows.exclude(**conditions)


def that(condition: Any) -> Step:
    return lambda rows: rows.filter(condition)


def call(name: str, *args: Any, **kwargs: Any) -> Step:
    return lambda rows: getattr(rows, name)(*args, **kwargs)


def hack(change: Callable[[Any], object]) -> Step:
    """A change of the query behind Django's back."""

    def step(rows: Rows) -> Rows:
        rows = rows.all()
        change(rows.query)
        return rows

    return step


def set_to(name: str, value: Any) -> Step:
    return hack(lambda query: setattr(query, name, value))


INTEGERS = [1, 0, -1, True, False, 1.0, 1.5, "1", Decimal(1), 2**31, 2**63, 2**64, -(10**30)]
TEXTS = ["a", "A", "", "%", "_", "a%s", "'", "\\", "today", Text("a"), mark_safe("a"), Colour.RED]
TEXTS += [1, True, None, b"a", Shade.RED, "\ud800"]
PRICES = [1, 1.0, "1", True, Decimal("1"), Decimal("1.0"), Decimal("1.00"), Decimal("-0.0"), 0.1]
MOMENTS = [
    datetime.datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
    datetime.datetime(2024, 10, 27, 2, 30, tzinfo=VIENNA),
    datetime.datetime(2024, 10, 27, 2, 30, tzinfo=VIENNA, fold=1),
    datetime.datetime(2024, 10, 27, 0, 30, tzinfo=datetime.timezone(datetime.timedelta(0), "x")),
    "2024-10-27 00:30Z",
    None,
]
LISTS: list[Any] = [[], [1], [1, 2], [2, 1], [1, 1], [None], [1, None], [True], ["1"], (1, 2), {1}]
LISTS += [frozenset([1, 2]), range(3), [2**64], [F("id")], [Value(1)]]

VALUES: list[Step] = [
    *(where(pages=value) for value in INTEGERS),
    *(where(pages__gt=value) for value in INTEGERS),
    *(where(pages__lte=value) for value in INTEGERS),
    *(where(pages__isnull=value) for value in (True, False, 1)),
    *(where(publisher__isnull=value) for value in (True, False)),
    *(where(publisher=value) for value in (1, "1", True, None, Publisher(pk=1), Author(pk=1))),
    *(where(title=value) for value in TEXTS),
    *(where(title__contains=value) for value in TEXTS),
    *(where(title__iexact=value) for value in ("a", "A", None)),
    *(where(price=value) for value in PRICES),
    *(where(published__gt=value) for value in MOMENTS),
    *(where(pages__in=value) for value in LISTS),
    *(where(author__in=value) for value in LISTS),
    *(without(tags__in=value) for value in LISTS[:4]),
    *(where(pages__range=value) for value in ((1, 2), (2, 1), [1, 2], (1, None), (1, F("id")))),
]

CONDITIONS: list[Step] = [
    where(),
    where(pages=F("id")),
    where(pages=Value(1)),
    where(pages=F("author__id")),
    where(pages__gt=F("author__id") + 1),
    where(author__name="a"),
    where(author__profile__biography="a"),
    where(tags__name="a"),
    where(tags=1),
    where(comments__text="a"),
    where(contributions__role="a"),
    where(contributors=1),
    where(copies__shelf=1),
    where(publisher__city__country__name="a"),
    where(publisher__city=None),
    where(published__year=2024),
    where(published__date=datetime.date(2024, 10, 27)),
    where(title__regex="a"),
    where(title__startswith="a"),
    where(title__startswith=F("author__name")),
    where(pages__in=Book.objects.values("pages")),
    where(author__in=Author.objects.filter(name="a")),
    where(pk__in=Subquery(Book.objects.filter(author=OuterRef("author")).values("pk")[:1])),
    where(title="a", pages=1),
    where(pages=1, title="a"),
    without(title="a"),
    without(author__name="a"),
    without(tags__name="a"),
    without(publisher__city__name="a"),
    without(publisher=None),
    without(comments__text="a"),
    that(Q(title="a") | Q(pages=1)),
    that(Q(title="a") & Q(pages=1)),
    that(Q(title="a") ^ Q(pages=1)),
    that(~Q(title="a")),
    that(~Q(Q(title="a"), pages=1)),
    that(~(Q(title="a") | Q(pages=1))),
    that(~~Q(title="a")),
    that(Q(publisher__name="a") | Q(author__name="a")),
    that(Q(tags=1) | Q(tags=2)),
    that(Q(pages__in=[]) | Q(title="a")),
    that(~Q(pages__in=[])),
    that(Q(pages__lt=2**64) & Q(title="a")),
    lambda rows: rows.filter(tags=1).filter(tags=2),
    lambda rows: rows | Book.objects.filter(title="b"),
    lambda rows: rows | Book.objects.filter(publisher__name="b"),
    lambda rows: rows & Book.objects.filter(tags__name="b"),
    call("none"),
]

ORDERS: list[Step] = [
    *(call("order_by", *names) for names in ((), ("title",), ("-title",), ("title", "pk"))),
    *(
        call("order_by", name)
        for name in ("pk", "-pk", "id", "author", "author_id", "-author__pk")
    ),
    *(call("order_by", name) for name in ("author__name", "-publisher__city__name", "tags__name")),
    *(
        call("order_by", name)
        for name in ("comments__text", "published__month", "?", "author__id")
    ),
    *(call("order_by", order) for order in (F("title"), F("title").desc(), Lower("title"))),
    *(call("order_by", order) for order in (F("title").desc(nulls_last=True), Random())),
    call("order_by", "n"),
    call("reverse"),
    set_to("standard_ordering", False),
    set_to("default_ordering", False),
    hack(lambda query: query.clear_ordering(force=True)),
    hack(lambda query: query.add_ordering("-title")),
    set_to("order_by", ["title"]),
]

COLUMNS: list[Step] = [
    *(call("select_related", *names) for names in ((), (None,), ("author",), ("publisher",))),
    *(call("select_related", *names) for names in (("author", "publisher"), ("publisher__city",))),
    call("select_related", "author__profile"),
    *(
        call("only", *names)
        for names in (("title",), ("title", "pages"), ("author__name", "title"))
    ),
    *(call("defer", *names) for names in (("title",), ("pages",), ("author__name",), (None,))),
    *(
        call("values", *names)
        for names in ((), ("title",), ("title", "pages"), ("pages", "title"))
    ),
    *(call("values", *names) for names in (("author",), ("author_id",), ("author__name",))),
    *(call("values", *names) for names in (("published__month",), ("tags",), ("pk", "n"))),
    *(call("values_list", *names) for names in (("title",), ("pages", "title"), ("n", "title"))),
    call("values_list", "title", flat=True),
    call("values_list", "pages", flat=True),
    call("values_list", "title", "pages", named=True),
    call("values", t=F("title")),
    call("values", t=F("author__name")),
    set_to("select_related", ["author"]),
    set_to("select_related", {"author": {}}),
    set_to("select_related", {}),
    set_to("max_depth", 1),
]

EXPRESSIONS: list[Step] = [
    call("annotate", n=Value(1)),
    call("annotate", n=Value(2)),
    call("annotate", n=Value(True)),
    call("annotate", n=Value("a")),
    call("annotate", n=Value(1, models.CharField())),
    call("annotate", n=Value(1, models.FloatField())),
    call("annotate", n=Value(1, models.DecimalField(max_digits=5, decimal_places=2))),
    call("annotate", n=Count("*")),
    call("annotate", n=Count("*", output_field=models.FloatField())),
    call("annotate", n=Count("tags")),
    call("annotate", n=F("pages") + 1),
    call("annotate", n=Max("tags__id")),
    call("annotate", n=Window(RowNumber(), order_by="title")),
    call("annotate", n=F("author__name")),
    call("alias", n=Value(1)),
    call("alias", n=Count("tags")),
    call("extra", select={"n": "1"}),
    call("extra", where=["pages = 1"]),
    call("extra", order_by=["title"]),
    lambda rows: rows.values(one=Value(1)).annotate(n=Count("*")),
]

SETS: list[Step] = [
    call("distinct"),
    set_to("distinct", 1),
    *((lambda rows, part=part: rows[part]) for part in (slice(1), slice(2), slice(1, 2))),
    *((lambda rows, part=part: rows[part]) for part in (slice(1, None), slice(0), slice(2**40))),
    lambda rows: rows.union(Book.objects.filter(title="b")),
    lambda rows: rows.all(),
    call("using", "default"),
    hack(lambda query: query.set_limits(1, 3)),
    hack(lambda query: query.set_empty()),
]

HACKS: list[Step] = [
    set_to("comment", "of another package"),
    set_to("__class__", OtherQuery),
    call("select_for_update"),
    call("select_for_update", nowait=True),
    call("annotate", n=FilteredRelation("author", condition=Q(author__name="a"))),
    set_to("group_by", ()),
    set_to("group_by", None),
    set_to("group_by", True),
    set_to("subquery", True),
    set_to("alias_cols", False),
    set_to("filter_is_sticky", True),
    set_to("explain_info", None),
    hack(lambda query: query.get_initial_alias()),
    hack(lambda query: query.bump_prefix(query.clone())),
    hack(lambda query: query.change_aliases({query.get_initial_alias(): "X"})),
    hack(lambda query: setattr(query.where, "negated", not query.where.negated)),
    hack(lambda query: setattr(query.where, "connector", "OR")),
    hack(lambda query: setattr(query.where, "resolved", True)),
    hack(lambda query: query.join(_join(query))),
    hack(lambda query: query.promote_joins(list(query.alias_map)[1:])),
    hack(lambda query: query.get_compiler("default").as_sql()),
]

STEPS = VALUES + CONDITIONS + ORDERS + COLUMNS + EXPRESSIONS + SETS + HACKS


def _join(query: Any) -> Any:
    field = Book._meta.get_field("author")
    table = query.get_initial_alias()
    return query.join_class(Author._meta.db_table, table, None, "INNER JOIN", field, False)


WAYS: dict[str, Callable[[Rows], Any]] = {
    "list": list,
    "count": lambda rows: rows.count(),
    "exists": lambda rows: rows.exists(),
    "first": lambda rows: rows.first(),
    "last": lambda rows: rows.last(),
    "values": lambda rows: list(rows.values()),
    "get": lambda rows: rows.get(pk=1),
    "in_bulk": lambda rows: rows.in_bulk([1, 2]),
    "latest": lambda rows: rows.latest("pages"),
    "numbers": lambda rows: rows.aggregate(
        Count("pk"), Max("pages"), Min("title"), Avg("price"), Sum("pages")
    ),
    "other numbers": lambda rows: rows.aggregate(
        Count("author", distinct=True), Avg("pages"), a=Sum("price"), b=Max("author__name")
    ),
    "numbers of a kind": lambda rows: rows.aggregate(
        Count("pk", filter=Q(pages=1)), a=Sum("price", output_field=FloatField())
    ),
}


def build(steps: Iterable[Step], start: Rows) -> Rows | None:
    """The queryset after these steps; None if one of them does not fit."""
    try:
        for step in steps:
            start = step(start)
    except Exception:  # Some steps make Django stumble in its own ways.
        return None
    return start
