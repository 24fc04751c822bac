"""Which functions a cached query may call: those that depend on their arguments alone."""

import datetime
import decimal
import importlib
import inspect
import uuid
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.core.exceptions import FieldError, FullResultSet, ValidationError
from django.db import DatabaseError, NotSupportedError, connections, models
from django.db.models import Aggregate, Func, Q, Value, Window, aggregates
from django.db.models import functions as django_functions
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Now, Random, Upper
from psycopg.types.range import Range

from ormcache import conf, functions, tables
from ormcache.reasons import Reason
from tests.marks import on_databases
from tests.models import Author, EveryField, Generated
from tests.watching import Watch


def judged(queryset: Any, using: str, **options: Any) -> tuple[Reason | None, str]:
    """Why the query must not be cached."""
    compiler = queryset.query.get_compiler(using)
    text, _, recorded, handwritten, _ = tables.compile_query(compiler)
    vendor = compiler.connection.vendor
    facts = tables.facts(text, recorded, handwritten, vendor, conf.Settings(**options))
    return facts.reason, facts.detail


def annotated(expression: Any) -> Any:
    return EveryField.objects.annotate(x=expression)


# --- what Django generates -----------------------------------------------------------------

# Arguments of which one fits, whatever the function.
ARGUMENTS: list[tuple[Any, ...]] = [
    (),
    ("float",),
    ("char",),
    ("datetime",),
    ("date",),
    ("json",),
    ("float", "float"),
    ("char", 3),
    ("char", Value("a")),
    ("char", 3, Value(" ")),
    ("char", Value("a"), Value("b")),
    ("char", "nocase"),
    ("char", models.TextField()),
    ("datetime", "year"),
    ("datetime", "second"),
    ("date", "month"),
]
# What only subclasses, or constraints, are made of.
ABSTRACT = {"Aggregate", "Extract", "Trunc", "StatAggregate", "TrigramBase", "TrigramWordBase"}
CANNOT_BE_COMPILED = (
    *(TypeError, ValueError, AttributeError, FieldError, ValidationError),
    *(NotSupportedError, NotImplementedError, FullResultSet, IndexError),
    OverflowError,
)


def ways_to_call(function: type[Any]) -> Iterator[Any]:
    """Queries that call ``function``, if it can be called in that way."""
    for arguments in ARGUMENTS:
        for keywords in ({}, {"delimiter": Value(",")}, {"output_field": models.TextField()}):
            try:
                call = function(*arguments, **keywords)
                if getattr(call, "window_compatible", False) and not isinstance(call, Aggregate):
                    call = Window(call)
                yield annotated(call)
            except CANNOT_BE_COMPILED:
                continue
    try:
        yield annotated(function(a="char"))  # JSONObject
    except CANNOT_BE_COMPILED:
        return


def names_called(function: type[Any], using: str) -> Iterator[tuple[Reason | None, str]]:
    for queryset in ways_to_call(function):
        try:
            yield judged(queryset, using)
        except CANNOT_BE_COMPILED:
            continue


def expressions_in(module: Any) -> list[type[Any]]:
    members = [vars(module)[name] for name in getattr(module, "__all__", vars(module))]
    return [
        member
        for member in members
        if inspect.isclass(member)
        and hasattr(member, "resolve_expression")
        and member.__module__.startswith(module.__name__)
        and member.__name__ not in ABSTRACT
    ]


VOLATILE = {"Now", "Random", "UUID4", "UUID7", "RandomUUID", "TransactionNow"}
# Not on each of the three databases.
RARE = {"UUID4", "UUID7", "JSONArray", "AnyValue", "SHA224", "Cot"}


@on_databases()
@pytest.mark.parametrize("function", expressions_in(django_functions) + expressions_in(aggregates))
def test_function_of_django_is_known(function: type[Any], using: str) -> None:
    found = list(names_called(function, using))
    assert found or function.__name__ in RARE
    for reason, _ in found:
        if function.__name__ in VOLATILE:
            assert reason in (Reason.NON_DETERMINISTIC, Reason.RANDOM)
        else:
            assert reason is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@on_databases("postgresql")
@pytest.mark.parametrize(
    "module", ["aggregates", "aggregates.general", "aggregates.statistics", "functions", "search"]
)
def test_function_of_contrib_postgres_is_known(module: str, using: str) -> None:
    unknown = {}
    for function in expressions_in(importlib.import_module(f"django.contrib.postgres.{module}")):
        for reason, name in names_called(function, using):
            expected = Reason.NON_DETERMINISTIC if function.__name__ in VOLATILE else None
            if reason is not expected:
                unknown[function.__name__] = name
    assert unknown == {}


VALUES: list[Any] = [
    *("a", 3, True, 1.5, decimal.Decimal(1), uuid.UUID(int=1), b"a"),
    *({"a": 1}, ["a", "b"], [1, 2], datetime.timedelta(1)),
    *(datetime.date(2000, 1, 1), datetime.time(1), datetime.datetime(2000, 1, 1)),
]


def lookups_of(field: Any, using: str) -> Iterator[str]:
    for name, lookup in field.get_lookups().items():
        if lookup.__module__.startswith("django.contrib.postgres") and using != "postgresql":
            continue
        yield name
        if issubclass(lookup, models.Transform):
            yield f"{name}__gt"
            yield f"{name}__exact"


# Thousands of queries, in which coverage would see nothing that it does not see elsewhere.
@pytest.mark.unmeasured
@pytest.mark.filterwarnings("ignore:DateTimeField:RuntimeWarning")
@on_databases()
@pytest.mark.parametrize("model", ["tests.EveryField", "tests_postgres.PostgresFields"])
def test_lookup_of_every_field_calls_known_functions(model: str, using: str) -> None:
    if model.startswith("tests_postgres") and using != "postgresql":
        return
    refused = {}
    for field in django.apps.apps.get_model(model)._meta.fields:
        for lookup in lookups_of(field, using):
            for value in VALUES:
                if lookup == "has_key" and isinstance(value, list):
                    # Django makes SQL of it that no database understands.
                    continue
                try:
                    queryset = field.model.objects.filter(**{f"{field.name}__{lookup}": value})
                    reason, name = judged(queryset, using)
                except (*CANNOT_BE_COMPILED, KeyError, DatabaseError):
                    continue
                if reason is not None:
                    refused[f"{field.name}__{lookup}"] = name
    assert refused == {}


@on_databases()
@pytest.mark.parametrize(
    "queryset",
    [
        EveryField.objects.filter(Q(char="a") ^ (Q(integer=1) | Q(text="b")) ^ ~Q(boolean=True)),
        annotated(Cast("char", models.DecimalField(max_digits=5, decimal_places=2))),
        annotated(Cast("char", models.CharField(max_length=10))),
        annotated(models.F("datetime") - models.F("datetime")),
        annotated(models.F("datetime") + datetime.timedelta(days=1)),
        annotated(models.F("integer").bitxor(3)),
        annotated(models.F("integer") % 3),
        annotated(models.F("integer") ** 2),
        annotated(models.Sum("integer", filter=Q(char="a"), distinct=True)),
        EveryField.objects.filter(json__a__0__b=1),
        EveryField.objects.filter(json__has_any_keys=["a", "b"]),
        EveryField.objects.filter(char__iregex="a", text__icontains="b"),
        EveryField.objects.dates("date", "month"),
        EveryField.objects.datetimes("datetime", "hour"),
        Generated.objects.filter(upper_name=Upper(Value("a"))),
    ],
)
def test_other_sql_of_django_is_known(queryset: Any, using: str) -> None:
    assert judged(queryset, using) == (None, "")


# --- what must not be cached ---------------------------------------------------------------


@on_databases()
@pytest.mark.parametrize(
    "queryset",
    [
        annotated(Now()),
        EveryField.objects.filter(datetime__gt=Now() - datetime.timedelta(days=1)),
        EveryField.objects.filter(datetime__lte=Now()),
        EveryField.objects.order_by(Now()),
        EveryField.objects.filter(
            pk__in=EveryField.objects.filter(datetime__lt=Now()).values("pk")
        ),
        annotated(RawSQL("CURRENT_TIMESTAMP", [])),
        annotated(RawSQL("current_date", [])),
        annotated(RawSQL("(SELECT now ())", [])),
        EveryField.objects.extra(select={"x": "CURRENT_TIME"}),
        EveryField.objects.extra(where=["datetime > CURRENT_TIMESTAMP"]),
        annotated(Func(function="last_insert_id", output_field=models.IntegerField())),
        annotated(RawSQL("nextval('a')", [])),
        annotated(RawSQL("(SELECT 1 FROM tests_book FOR UPDATE)", [])),
        annotated(RawSQL("NEXT VALUE FOR sequence", [])),
    ],
)
def test_what_changes_by_itself_is_refused(queryset: Any, using: str) -> None:
    assert judged(queryset, using)[0] is Reason.NON_DETERMINISTIC


@on_databases("postgresql")
@pytest.mark.parametrize(
    "queryset",
    [
        annotated(RawSQL("ctid::text", [])),
        annotated(RawSQL('"tests_everyfield"."xmin"::text', [])),
        EveryField.objects.extra(where=["xmax::text <> '0'"]),
        EveryField.objects.extra(order_by=["tests_everyfield.cmin"]),
    ],
)
def test_a_system_column_is_refused(queryset: Any, using: str) -> None:
    assert judged(queryset, using)[0] is Reason.NON_DETERMINISTIC


@on_databases("default")
def test_where_sqlite_keeps_a_row_is_refused(using: str) -> None:
    assert judged(annotated(RawSQL("rowid", [])), using)[0] is Reason.NON_DETERMINISTIC


@on_databases()
def test_an_annotation_may_be_called_like_a_system_column(using: str) -> None:
    queryset = EveryField.objects.values("char").annotate(xmin=models.Min("integer"))
    assert judged(queryset.order_by("xmin").filter(xmin__gt=1), using) == (None, "")


@on_databases("postgresql", transaction=True)
def test_what_vacuum_moves_is_read_where_it_is(cached: Watch, using: str) -> None:
    """A row is moved without a write that anybody could see."""
    Author.objects.using(using).create(name="gone").delete()
    Author.objects.using(using).create(name="here")
    authors = Author.objects.using(using).annotate(at=RawSQL("ctid::text", []))
    with cached.expect(*[Reason.NON_DETERMINISTIC] * 2):
        before = authors.get().at
        with connections[using].cursor() as cursor:
            cursor.execute("VACUUM FULL tests_author")
        assert authors.all().get().at != before


@on_databases()
@pytest.mark.parametrize(
    "queryset",
    [
        EveryField.objects.order_by("?"),
        EveryField.objects.order_by(Random()),
        annotated(Random()),
        annotated(Random() + 1),
    ],
)
def test_random_order_is_refused_unless_the_settings_allow_it(queryset: Any, using: str) -> None:
    assert judged(queryset, using)[0] is Reason.RANDOM
    assert judged(queryset, using, CACHE_RANDOM=True)[0] is None


@on_databases("default")
def test_allowing_random_order_allows_nothing_else(using: str) -> None:
    queryset = annotated(Now()).order_by("?")
    assert judged(queryset, using, CACHE_RANDOM=True)[0] is Reason.NON_DETERMINISTIC


@on_databases("default")
@pytest.mark.parametrize(
    "fragment",
    [
        "date('now')",
        "strftime('%%Y', 'now', 'localtime')",
        "julianday()",
        "datetime(datetime)",
        "strftime('%%Y', char)",
        "unixepoch(char)",
        "char > 'now'",
        "random()",
        "hex(randomblob(3))",
        "total_changes()",
    ],
)
def test_clocks_and_counters_of_sqlite_are_refused(fragment: str, using: str) -> None:
    """`date(x)` depends on the time if x is 'now', which a parameter or a column may be."""
    reason, _ = judged(annotated(RawSQL(fragment, [])), using)
    assert reason in (Reason.NON_DETERMINISTIC, Reason.RANDOM)


@on_databases("postgresql")
@pytest.mark.parametrize(
    "fragment",
    [
        "'now'::timestamptz",
        "timestamp ' Tomorrow 12:00'",
        "date E'today'",
        "$$yesterday$$::date",
        "clock_timestamp()",
        "pg_catalog.now()",
        "age(datetime)",
        "current_setting('a.b')",
        "gen_random_uuid()",
        "localtimestamp",
        "ARRAY[now()]",
        "(ARRAY[1, 2])[extract(day from now())]",
    ],
)
def test_clocks_and_settings_of_postgresql_are_refused(fragment: str, using: str) -> None:
    assert judged(annotated(RawSQL(fragment, [])), using)[0] is Reason.NON_DETERMINISTIC


@on_databases("mariadb")
@pytest.mark.parametrize(
    "fragment", ["@row := @row + 1", "@@sql_mode", "sysdate()", "uuid()", "unix_timestamp()"]
)
def test_clocks_and_variables_of_mysql_are_refused(fragment: str, using: str) -> None:
    assert judged(annotated(RawSQL(fragment, [])), using)[0] is Reason.NON_DETERMINISTIC


@on_databases("postgresql", transaction=True)
def test_parameter_that_postgresql_reads_as_now_is_refused(cached: Watch, using: str) -> None:
    """Its type is found by the server: `datetime < 'now'` is true only for a while."""
    rows = EveryField.objects.using(using).extra(where=["datetime < %s"], params=[" Now"])
    with cached.expect(Reason.NON_DETERMINISTIC):
        list(rows)


@on_databases("postgresql", transaction=True)
def test_list_in_which_postgresql_reads_now_is_refused(cached: Watch, using: str) -> None:
    rows = EveryField.objects.using(using).extra(
        where=["datetime < ANY (%s::timestamptz[])"], params=[["2000-01-01", "now"]]
    )
    with cached.expect(Reason.NON_DETERMINISTIC):
        list(rows)


@on_databases("postgresql", transaction=True)
def test_text_that_holds_such_a_word_is_a_good_parameter(cached: Watch, using: str) -> None:
    cached.warm(lambda: list(Author.objects.using(using).filter(name="now")))
    cached.warm(lambda: list(EveryField.objects.using(using).filter(char__contains="now")))


# --- what is not known ---------------------------------------------------------------------


@on_databases()
def test_unknown_function_is_refused_until_it_is_declared(using: str) -> None:
    queryset = annotated(Func("integer", function="Price_Of", output_field=models.FloatField()))
    assert judged(queryset, using) == (Reason.UNKNOWN_FUNCTION, "price_of")
    assert judged(queryset, using, DEPENDS_ON={"price_of": []}) == (None, "")
    assert judged(queryset, using, DEPENDS_ON={"PRICE_OF": ["tests_book"]}) == (None, "")


@on_databases("postgresql", "mariadb")
def test_name_of_a_builtin_in_another_schema_is_unknown(using: str) -> None:
    queryset = annotated(RawSQL("shop.upper(char)", []))
    assert judged(queryset, using) == (Reason.UNKNOWN_FUNCTION, "shop.upper")
    assert judged(queryset, using, DEPENDS_ON={"upper": []}) == (None, "")


@on_databases("default")
def test_declaring_a_volatile_function_vouches_for_it(using: str) -> None:
    queryset = EveryField.objects.extra(select={"x": "total_changes()"})
    assert judged(queryset, using, DEPENDS_ON={"total_changes": []}) == (None, "")


@pytest.mark.parametrize(
    ("name", "vendors"),
    [
        ("upper", {"sqlite", "postgresql", "mysql", "oracle"}),
        ("total", {"sqlite", "oracle"}),
        ("month", {"mysql", "oracle"}),
        ("unaccent", {"postgresql", "oracle"}),
        ("st_contains", {"postgresql", "mysql", "oracle"}),
        ("st_custom", set()),
        ("django_date_trunc", {"sqlite"}),
        ("listagg", {"oracle"}),
        ("now", set()),
        ("date", {"postgresql", "mysql", "oracle"}),
    ],
)
def test_function_is_known_where_it_is_built_in(name: str, vendors: set[str]) -> None:
    """Elsewhere the name is free for a stored function. Of other vendors all is believed."""
    known = {
        vendor
        for vendor in ("sqlite", "postgresql", "mysql", "oracle")
        if functions.is_known(name, vendor)
    }
    assert known == vendors


def test_no_function_is_both_known_and_volatile() -> None:
    assert not functions._KNOWN_ANYWHERE & functions._VOLATILE


@pytest.mark.parametrize(
    ("params", "vendor", "moment"),
    [
        (["a", "now"], "postgresql", "now"),
        ([" TODAY 12:00"], "postgresql", " TODAY 12:00"),
        (["knowledge", 3, None, "%now%", "now " * 20], "postgresql", None),
        ([["a", "now"]], "postgresql", "now"),
        ([("a", ["b", "Yesterday"])], "postgresql", "Yesterday"),
        ([["a", ["b"]], "today"], "postgresql", "today"),
        ([["knowledge"], []], "postgresql", None),
        ([Range(None, "now")], "postgresql", "now"),
        ([[Range("today", "tomorrow")]], "postgresql", "today"),
        ([Range(1, 2), Range(empty=True)], "postgresql", None),
        ([["now"]], "sqlite", None),
        (["now"], "mysql", None),
        (["now"], "sqlite", None),
    ],
)
def test_moment_among_parameters(params: list[Any], vendor: str, moment: str | None) -> None:
    assert functions.moment_among(params, vendor) == moment


@pytest.mark.parametrize("vendor", ["sqlite", "postgresql", "mysql"])
def test_reason_does_not_depend_on_the_order_of_names(vendor: str) -> None:
    one = functions.judge(["rand", "now", "zzz"], [], vendor, {})
    other = functions.judge(["zzz", "now", "rand"], [], vendor, {})
    assert one == other == (Reason.NON_DETERMINISTIC, "now")


# --- what PostgreSQL says itself -----------------------------------------------------------

# It calls these stable, not immutable: they depend on what is said here.
STABLE = {
    "the session's time zone, language and formats, which SET alters": """
        array_to_json array_to_string concat concat_ws date date_part date_trunc extract format
        generate_series json_agg json_build_array json_build_object json_object_agg jsonb_agg
        jsonb_build_array jsonb_build_object make_timestamptz quote_literal quote_nullable
        row_to_json time timestamp timestamptz timezone to_char to_date to_json to_jsonb to_number
        to_timestamp
    """,
    "the session's text search configuration, and its dictionaries, which DDL alters": """
        get_current_ts_config phraseto_tsquery plainto_tsquery to_tsquery to_tsvector ts_headline
        unaccent websearch_to_tsquery
    """,
    "the encodings of the database": "convert length",
}


@on_databases("postgresql")
def test_what_postgresql_calls_volatile_is_not_known_and_what_is_stable_was_looked_at(
    using: str,
) -> None:
    reviewed = {name for names in STABLE.values() for name in names.split()}
    with connections[using].cursor() as cursor:
        for extension in ("pg_trgm", "unaccent", "fuzzystrmatch", "pgcrypto", "citext"):
            cursor.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        cursor.execute(
            "SELECT DISTINCT proname, provolatile FROM pg_proc"
            " WHERE proname = ANY(%s) AND provolatile <> 'i'",
            [sorted(functions._KNOWN["postgresql"])],
        )
        found = set(cursor.fetchall())
    assert {name for name, volatile in found if volatile == "v"} == set()
    assert {name for name, volatile in found if volatile == "s"} - reviewed == set()


@pytest.mark.parametrize(
    "name",
    """
    ts_rewrite ts_stat query_to_xml table_to_xml schema_to_xml cursor_to_xml database_to_xml
    dblink xpath_table crosstab connectby pg_get_viewdef pg_get_expr currval lastval
    pg_relation_size pg_table_size to_regclass obj_description col_description
    has_table_privilege current_setting row_security_active txid_current inet_client_addr
    pg_backend_pid version set_limit show_limit set_config pg_read_file lo_get
    """.split(),
)
def test_a_function_that_reads_past_its_arguments_is_not_known(name: str) -> None:
    assert not functions.is_known(name, "postgresql")
