"""Casts whose result depends on the moment are not cached, those of Django's own are."""

import datetime
from typing import Any

import pytest
from django.contrib.postgres.fields import DateTimeRangeField
from django.db import models
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    Func,
    Max,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
    Window,
)
from django.db.models.expressions import RawSQL
from django.db.models.fields.json import KT
from django.db.models.functions import (
    Cast,
    Coalesce,
    Concat,
    ExtractHour,
    ExtractYear,
    Greatest,
    JSONObject,
    Lower,
    Now,
    TruncDate,
    TruncHour,
    TruncMonth,
    TruncTime,
)
from django.test.utils import isolate_apps, register_lookup

from ormcache.explanation import explain
from ormcache.reasons import Reason
from tests.marks import on_databases
from tests.models import Author, EveryField
from tests.postgres.models import PostgresFields
from tests.watching import Watch


class ToDate(Func):
    function = "CAST"
    template = "%(function)s(%(expressions)s AS date)"


class Day(Func):
    function = "date"


class ToMoment(Func):
    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return super().as_sql(compiler, connection, template="(%(expressions)s)::timestamp")


DATETIME = models.DateTimeField()
DATE = models.DateField()
TIME = models.TimeField()
Rows = EveryField.objects


def at(expression: Any) -> Any:
    return Rows.annotate(x=expression).values_list("x")


FROM_TEXT = {
    "datetime": at(Cast("char", DATETIME)),
    "date": at(Cast("text", DATE)),
    "time": at(Cast("slug", TIME)),
    "range": at(Cast("char", DateTimeRangeField())),
    "json": at(Cast(KT("json__due"), DATETIME)),
    "function": at(Cast(Coalesce("char", Value("now")), DATETIME)),
    "spelled": at(Cast(Concat("char", Value("w")), DATETIME)),
    "filter": Rows.filter(Q(datetime__lt=Cast("char", DATETIME))),
    "order": Rows.order_by(Cast("char", DATETIME).desc()),
    "inner": Rows.filter(pk__in=at(Cast("char", DATETIME)).filter(x=F("datetime")).values("pk")),
    "exists": Author.objects.filter(
        Exists(Rows.filter(pk=OuterRef("pk"), datetime=Cast("char", DATETIME)))
    ),
    "subquery": at(Cast(Subquery(Rows.filter(pk=OuterRef("pk")).values("char")), DATETIME)),
    "union": Rows.values_list("datetime").union(at(Cast("char", DATETIME))),
    "called": at(Func("char", function="date", output_field=DATE)),
    "called ::": at(Func("char", template="(%(expressions)s)::date", output_field=DATE)),
    "own class": at(ToDate("char", output_field=DATE)),
    "own text": at(ToMoment("char", output_field=DATETIME)),
    "given": at(
        Func(
            "char",
            function="CAST",
            template="%(function)s(%(expressions)s AS %(kind)s)",
            kind="date",
        )
    ),
    "spelled by values": at(Cast(Concat(Value("no"), Value("w")), DATETIME)),
    "cut off": at(Cast(Cast(Value("nowhere"), models.CharField(max_length=3)), DATETIME)),
    "spaces": at(Cast(Value("now" + " " * 70), DATETIME)),
    "marks": at(Cast(Value("_now_%"), DATETIME)),
    "in a range": Rows.filter(datetime__range=(Cast("char", DATETIME), Cast("text", DATETIME))),
    "raw": at(RawSQL('("char")::timestamp', [], DATETIME)),
    "raw cast": at(RawSQL('CAST("char" AS date)', [], DATE)),
    "raw quoted": at(RawSQL('"char"::"timestamp"', [], DATETIME)),
    "raw with comments": at(RawSQL('"char"::/* a */ -- b\ndate', [], DATE)),
    "raw with a schema": at(RawSQL('"char"::pg_catalog."date"', [], DATE)),
    "extra": Rows.extra(where=['"char"::timestamptz < datetime']),
    "extra select": Rows.extra(select={"x": '"char"::date'}),
}
FROM_TIME = {
    "datetime": at(Cast("time", DATETIME)),
    "date": at(Cast("time", DATE)),
    "function": at(Cast(TruncTime("datetime"), DATETIME)),
    "called": at(Func("time", function="TIMESTAMP", output_field=DATETIME)),
    "filter": Rows.filter(datetime=Cast("time", DATETIME)),
    "coalesce": at(Coalesce("datetime", "time", output_field=DATETIME)),
    "coalesce of a date": at(Coalesce("date", "time", output_field=models.CharField())),
    "case": at(Case(When(pk=1, then="datetime"), default="time", output_field=DATETIME)),
    "greatest": at(Greatest("datetime", "time", output_field=DATETIME)),
    "compared": Rows.filter(datetime__gt=F("time")),
    "in a range": Rows.filter(datetime__range=(F("time"), F("datetime"))),
    "in a list": Rows.filter(
        datetime__in=[F("time"), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)]
    ),
    "in a subquery": Rows.filter(datetime__in=Rows.values("time")),
    "union": Rows.values_list("datetime").union(Rows.values_list("time")),
    "number": at(Func("time", function="TO_DAYS", output_field=models.IntegerField())),
    "template": at(
        Func("time", template="YEAR( %(expressions)s )", output_field=models.IntegerField())
    ),
}
HARMLESS = {
    "TruncDate": at(TruncDate("datetime")),
    "TruncTime": at(TruncTime("datetime")),
    "TruncMonth": at(TruncMonth("datetime")),
    "TruncMonth of a date": at(TruncMonth("date")),
    "TruncHour": at(TruncHour("datetime")),
    "TruncHour of a time": at(TruncHour("time")),
    "ExtractYear": at(ExtractYear("datetime")),
    "ExtractHour": at(ExtractHour("time")),
    "__date": Rows.filter(datetime__date=datetime.date(2026, 1, 1)),
    "__time": Rows.filter(datetime__time__gte=datetime.time(12)),
    "__year": Rows.filter(datetime__year=2026),
    "dates": Rows.dates("date", "month"),
    "datetimes": Rows.datetimes("datetime", "day"),
    "date() of a datetime": at(Day("datetime", output_field=DATE)),
    "Cast of a datetime": at(Cast("datetime", DATE)),
    "Cast of a date": at(Cast("date", DATETIME)),
    "Cast of a maximum": Rows.annotate(x=Cast(Max("datetime"), DATE)).values_list("x"),
    "Cast of a value": at(Cast(Value("2026-01-01"), DATE)),
    "Cast to text": at(Cast("datetime", models.TextField())),
    "order by __date": Rows.filter(datetime__date="2026-01-01").order_by("datetime__date__year"),
    "a time of values": at(Cast(Coalesce("datetime", Value("2026-01-01")), DATE)),
    "times side by side": at(Coalesce("time", TruncTime("datetime"))),
    "a value beside a time": Rows.filter(time__gt=datetime.time(12), datetime__year=2026),
    "a time and a date in JSON": at(JSONObject(time="time", date="date")),
    "a time in the window of a date": at(
        Window(Max("time"), partition_by=["date", "time"], order_by=["time", "datetime"])
    ),
    "a time of some dates": Rows.values("char").annotate(x=Max("time", filter=Q(date__year=2026))),
    "all columns of two": Rows.union(Rows.all()),
    "by day": Rows.values(day=TruncDate("datetime")).annotate(n=Count("pk")),
}


def reason(queryset: Any, using: str) -> tuple[Reason | None, str]:
    found = explain(queryset.using(using))
    return found.reason, found.detail


@on_databases("postgresql", transaction=True)
@pytest.mark.parametrize("name", FROM_TEXT)
def test_a_text_may_be_now_on_postgresql(cached: Watch, using: str, cache: str, name: str) -> None:
    assert reason(FROM_TEXT[name], using)[0] is Reason.NON_DETERMINISTIC


class AsDate(models.Transform):
    lookup_name = "asdate"
    output_field = DATE

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        sql, params = compiler.compile(self.lhs)
        return f"{sql}::date", params


@on_databases("postgresql", transaction=True)
@pytest.mark.parametrize("field", ["char", "char__lower", "json__due"])
def test_a_transform_may_be_named_in_an_order(
    cached: Watch, using: str, cache: str, field: str
) -> None:
    inner = Rows.order_by(f"{field}__asdate").values("pk")[:1]
    with (
        register_lookup(models.CharField, Lower),
        register_lookup(models.CharField, AsDate),
        register_lookup(models.JSONField, AsDate),
    ):
        for queryset in (inner, Author.objects.filter(pk__in=inner)):
            assert reason(queryset, using)[0] is Reason.NON_DETERMINISTIC


@on_databases("mariadb", transaction=True)
@isolate_apps("tests")
def test_a_generated_column_is_of_the_type_that_it_generates(using: str) -> None:
    class Shift(models.Model):
        time = models.TimeField()
        date = models.DateField()
        again = models.GeneratedField(
            expression=F("time"), output_field=models.TimeField(), db_persist=True
        )

        class Meta:
            app_label = "tests"

    shifts = Shift._default_manager
    assert reason(shifts.filter(date__gt=F("again")), using)[0] is Reason.NON_DETERMINISTIC
    assert reason(shifts.filter(time__gt=F("again")), using)[0] is not Reason.NON_DETERMINISTIC


@on_databases("mariadb", transaction=True)
@pytest.mark.parametrize("name", FROM_TIME)
def test_a_time_is_one_of_today_on_mariadb(
    cached: Watch, using: str, cache: str, name: str
) -> None:
    assert reason(FROM_TIME[name], using)[0] is Reason.NON_DETERMINISTIC


@on_databases("postgresql", "mariadb", transaction=True)
@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_has_a_date_is_cached(
    cached: Watch, using: str, cache: str, name: str, use_tz: bool, settings: Any
) -> None:
    settings.USE_TZ = use_tz
    assert reason(HARMLESS[name], using) == (None, "")


@on_databases("postgresql", transaction=True)
def test_the_answer_for_now_is_that_of_the_database(cached: Watch, using: str, cache: str) -> None:
    Rows.using(using).create(char="now")
    queryset = at(Cast("char", DATETIME)).using(using)
    with cached.expect(*[Reason.NON_DETERMINISTIC] * 2):
        assert queryset.get() < queryset.all().get()


@on_databases("mariadb", transaction=True)
def test_the_answer_with_a_time_of_today_is_that_of_the_database(
    cached: Watch, using: str, cache: str
) -> None:
    Rows.using(using).create(time=datetime.time(10))
    queryset = at(Coalesce("datetime", "time", output_field=DATETIME)).using(using)
    with cached.expect(*[Reason.NON_DETERMINISTIC] * 2):
        queryset.get()
        queryset.all().get()


@on_databases("postgresql", transaction=True)
def test_a_word_that_is_looked_for_may_be_now(cached: Watch, using: str, cache: str) -> None:
    """Where nothing is cast, a pattern is none of a time, and a long text is none either."""
    rows = Rows.using(using)
    cached.warm(lambda: rows.filter(text__contains="now").count())
    cached.warm(lambda: rows.filter(text="now " + "and then " * 20).count())


@on_databases("postgresql", transaction=True)
def test_now_is_refused_by_its_name_also_where_it_is_cast(
    cached: Watch, using: str, cache: str
) -> None:
    assert reason(at(Cast(Now(), DATE)), using)[0] is Reason.NON_DETERMINISTIC


@on_databases("postgresql", transaction=True)
def test_now_may_be_the_end_of_a_range(cached: Watch, using: str, cache: str) -> None:
    """Django gives the ends to the driver as they are."""
    rows = PostgresFields.objects.using(using)
    for range_filter in (
        {"datetime_range__overlap": (None, "now")},
        {"date_range__contains": ("today", "tomorrow")},
    ):
        with cached.expect(*[Reason.NON_DETERMINISTIC] * 2):
            assert not rows.filter(**range_filter).count()
            assert not rows.filter(**range_filter).count()
