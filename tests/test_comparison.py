"""Whether two answers are the same, as far as the query says what they are."""

import datetime
import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections
from django.db.models import (
    Avg,
    Count,
    Exists,
    F,
    FilteredRelation,
    Func,
    Min,
    OuterRef,
    Q,
    StdDev,
    Subquery,
    Sum,
    Value,
    Window,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Lower, Random, RowNumber
from hypothesis import given
from hypothesis import strategies as st

from ormcache.comparison import Order, Verdict, compare, digest, order_of
from tests.marks import needs
from tests.models import Author, AuthorProfile, Book, EveryField, Restaurant, Tag

SAME, DIFFERENT = Verdict.SAME, Verdict.DIFFERENT
UNDETERMINED, ROUNDED = Verdict.UNDETERMINED, Verdict.ROUNDED

A, B, C = (1, "a"), (2, "b"), (3, "c")
authors = Author.objects.values_list("pk", "name")
numbers = EveryField.objects.values_list("float")


def judge(
    queryset: Any,
    cached: Any,
    truth: Any,
    using: str = "default",
    vendor: str | None = None,
    **facts: Any,
) -> Verdict:
    compiler = queryset.query.get_compiler(using)
    text = compiler.as_sql()[0]

    def say(one: list[Any], other: list[Any]) -> Verdict:
        kind = vendor or compiler.connection.vendor
        return compare(one, other, text, kind, lambda: order_of(compiler), **facts)

    verdict = say(list(cached), list(truth))
    # It says the same of the answers the other way round.
    assert say(list(truth), list(cached)) is verdict
    return verdict


# --- values and types ------------------------------------------------------------------------

UTC = datetime.timezone.utc


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (1, Decimal(1)),
        (Decimal("1.0"), Decimal("1.00")),
        (0.0, -0.0),
        ("1", 1),
        ("", None),
        ("a", b"a"),
        (b"a", memoryview(b"a")),
        ([1], (1,)),
        ({"a": 1}, {"a": True}),
        (datetime.date(2000, 1, 1), datetime.datetime(2000, 1, 1)),
        (datetime.datetime(2000, 1, 1), datetime.datetime(2000, 1, 1, tzinfo=UTC)),
        (datetime.datetime(2000, 1, 1), datetime.datetime(2000, 1, 1, fold=1)),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        # Nothing like it can be in a cache.
        (1, 1j),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_python_takes_for_equal_or_not_is_told_apart(one: Any, other: Any) -> None:
    assert judge(authors, [(1, one)], [(1, other)]) is DIFFERENT
    assert judge(authors, [(1, one)], [(1, one)]) is (DIFFERENT if one == 1j else SAME)


def test_nan_is_itself() -> None:
    assert judge(numbers, [(float("nan"),)], [(float("nan"),)]) is SAME


def test_nan_is_itself_in_an_order_too() -> None:
    queryset = EveryField.objects.order_by("float").values_list("float", "integer")
    rows = [(float("nan"), 1), (float("nan"), 2)]
    assert judge(queryset, rows, rows[::-1]) is SAME


@pytest.mark.parametrize("queryset", [authors, authors.order_by("name"), authors.order_by("?")])
def test_rows_of_another_width_are_different(queryset: Any) -> None:
    for other in [(), (1,), (1, "a", None)]:
        assert judge(queryset, [A], [other]) is DIFFERENT


def test_no_rows_are_no_rows() -> None:
    assert judge(authors, [], []) is SAME
    assert judge(authors, [], [A]) is DIFFERENT


# --- the order of rows -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "queryset",
    [
        authors,
        authors.order_by("born"),
        authors.order_by("books__title"),
        # As many rows of an author as he has books.
        authors.filter(books__pages__gt=1).order_by("pk"),
        authors.filter(Q(books__tags__name="x") | Q(name="y")).order_by("-pk"),
    ],
)
def test_the_order_of_rows_is_free_where_the_query_leaves_it_open(queryset: Any) -> None:
    rows = [(1, "a"), (1, "b")]
    assert judge(queryset, rows, rows[::-1]) is SAME


@pytest.mark.parametrize(
    "queryset",
    [
        authors.order_by("pk"),
        authors.order_by("-pk"),
        authors.order_by("born", "id"),
        authors.order_by("name"),
        authors.order_by(F("name").desc(nulls_last=True)),
        authors.reverse().order_by("name"),
        Tag.objects.order_by("name").values_list("pk", "name"),
        AuthorProfile.objects.order_by("author").values_list("pk", "biography"),
        AuthorProfile.objects.order_by("author_id").values_list("pk", "author__name"),
        Restaurant.objects.order_by("pk").values_list("stars", "name"),
        Book.objects.order_by("author__name", "pk").values_list("pages", "title"),
        Book.objects.values_list("author", "title").distinct().order_by("author", "title"),
    ],
)
def test_the_order_of_rows_counts_where_the_query_says_it(queryset: Any) -> None:
    assert judge(queryset, [A, B], [B, A]) is DIFFERENT
    assert judge(queryset, [A, B], [A, B]) is SAME


def test_rows_that_are_equal_to_the_order_are_in_no_order() -> None:
    queryset = authors.order_by("name")
    assert judge(queryset, [(1, "a"), (2, "a"), C], [(2, "a"), (1, "a"), C]) is SAME
    assert judge(queryset, [(1, "a"), (2, "a"), C], [C, (1, "a"), (2, "a")]) is DIFFERENT


@needs("mariadb")
def test_spellings_that_a_collation_takes_for_one_are_in_no_order() -> None:
    rows = [(1, "a"), (2, "A")]
    assert judge(authors.order_by("name"), rows, rows[::-1], "mariadb") is SAME


def test_an_order_that_django_leaves_out_of_the_text_is_none() -> None:
    counted = Author.objects.values("name").annotate(n=Count("pk")).values_list("n", "name")
    assert judge(counted, [A, B], [B, A]) is SAME


def test_a_union_is_in_no_order_that_is_known_here() -> None:
    union = authors.filter(pk=1).union(authors.filter(pk=2)).order_by("name")
    assert judge(union, [A, B], [B, A]) is SAME
    assert judge(union, [A, B], [A, C]) is DIFFERENT


def test_the_query_is_left_as_it_is() -> None:
    compiler = Author.objects.order_by("name").query.get_compiler("default")
    before = dict(vars(compiler)), compiler.query.alias_refcount.copy()
    assert order_of(compiler) == Order((1,), is_counted=True)
    assert (dict(vars(compiler)), compiler.query.alias_refcount) == before


# --- slices ----------------------------------------------------------------------------------


def test_which_rows_a_slice_leaves_is_open_without_an_order() -> None:
    assert judge(authors[:2], [A, B], [A, C]) is UNDETERMINED
    assert judge(authors.order_by("born")[:2], [A, B], [A, C]) is UNDETERMINED
    assert judge(authors[5:], [A, B], [A, C]) is UNDETERMINED
    assert judge(authors.order_by("name")[:2], [A, (2, "b")], [A, (3, "b")]) is UNDETERMINED
    assert judge(authors[:2], [A, B], [B, A]) is SAME


def test_how_many_rows_a_slice_leaves_is_not_open() -> None:
    assert judge(authors[:2], [A, B], [A]) is DIFFERENT
    assert judge(authors[1:], [A, B], [A]) is DIFFERENT


def test_a_slice_that_leaves_no_row_out_leaves_nothing_open() -> None:
    # As get() asks.
    assert judge(authors.filter(pk=1)[:21], [(1, "old")], [(1, "new")]) is DIFFERENT


@pytest.mark.parametrize("order", [["pk"], ["-pk"], ["born", "pk"], ["name", "pk"]], ids=str)
def test_a_slice_of_rows_that_are_all_in_order_leaves_nothing_open(order: list[str]) -> None:
    # As first() asks.
    assert judge(authors.order_by(*order)[:1], [(1, "old")], [(1, "new")]) is DIFFERENT


def test_the_values_that_order_a_slice_are_not_open() -> None:
    assert judge(authors.order_by("name")[:2], [A, B], [A, C]) is DIFFERENT
    assert judge(authors.order_by("name")[4:6], [A, B], [A, C]) is DIFFERENT


def test_one_row_of_many_is_any_of_them() -> None:
    assert judge(authors, [A], [B], is_one_of_many=True) is UNDETERMINED
    assert judge(authors, [A], [B]) is DIFFERENT
    assert judge(authors.order_by("pk"), [A], [B], is_one_of_many=True) is DIFFERENT


# --- parts that pick -------------------------------------------------------------------------


books_of = Book.objects.filter(author=OuterRef("pk"))
any_title = Subquery(books_of.values("title")[:1])
row_number = Window(RowNumber(), order_by=F("pk").asc())


@pytest.mark.parametrize(
    "queryset",
    [
        authors.filter(pk__in=Author.objects.all()[:3]),
        Author.objects.values_list("pk", any_title),
        Author.objects.values_list("pk", Window(RowNumber())),
        authors.order_by("?"),
        Author.objects.extra(select={"x": "group_concat(name)"}).values_list("pk", "x"),
        # As the text of ArraySubquery.
        Author.objects.extra(select={"x": "ARRAY(SELECT title FROM b)"}).values_list("pk", "x"),
    ],
)
def test_what_picks_rows_inside_leaves_everything_open(queryset: Any) -> None:
    assert judge(queryset, [A], [B]) is UNDETERMINED
    assert judge(queryset, [A], [A]) is SAME


@needs("postgresql")
def test_distinct_on_leaves_open_which_rows_there_are_and_not_how_many() -> None:
    queryset = authors.order_by("name").distinct("name")
    assert judge(queryset, [(1, "a")], [(2, "a")], "postgresql") is UNDETERMINED
    assert judge(queryset, [(1, "a")], [], "postgresql") is DIFFERENT


@pytest.mark.parametrize(
    "queryset",
    [
        authors.filter(Exists(books_of)),
        authors.exclude(books__title="x"),
        authors.filter(Exists(books_of.filter(Exists(Author.objects.filter(name="x"))))),
        Author.objects.annotate(e=Exists(books_of)).values_list("pk", "e"),
        authors.filter(Exists(books_of)).order_by("pk")[:3],
    ],
)
def test_a_limit_in_exists_picks_nothing(queryset: Any) -> None:
    assert " LIMIT 1)" in str(queryset.query)
    assert judge(queryset, [A], [B]) is DIFFERENT


@pytest.mark.parametrize(
    "queryset",
    [
        Author.objects.annotate(n=row_number).values_list("pk", "n"),
        Author.objects.annotate(n=row_number).values_list("pk", "n")[:5],
        Author.objects.annotate(n=row_number).values_list("pk", "n")[3:5],
        Author.objects.values_list("pk", any_title).filter(name="x"),
        authors.order_by("?"),
        authors.order_by(any_title),
        authors.filter(pk__in=Author.objects.order_by("pk")[:5].values("pk")),
        authors.filter(pk__in=Author.objects.order_by("name", "-pk")[:5]),
        Book.objects.filter(author__in=Author.objects.order_by("pk")[:5]).values_list(
            "pk", "pages"
        ),
    ],
)
def test_how_many_rows_there_are_is_not_open_where_only_their_values_are_picked(
    queryset: Any,
) -> None:
    assert judge(queryset, [A, B], []) is DIFFERENT
    assert judge(queryset, [A, B], [A]) is DIFFERENT
    assert judge(queryset, [A, B], [A, C]) is UNDETERMINED


@pytest.mark.parametrize(
    "queryset",
    [
        # Conditions on what is picked.
        Author.objects.annotate(n=row_number).filter(n=1).values_list("pk", "n"),
        authors.filter(pk__in=Author.objects.all()[:3]),
        authors.exclude(pk__in=Author.objects.order_by("name")[:3]),
        authors.filter(name="x", pk__in=Author.objects.order_by("born")[:3]),
        Author.objects.annotate(t=any_title).filter(t="x").values_list("pk", "name"),
        authors.extra(where=["random() < 0.5"]),
        authors.filter(
            pk__in=Author.objects.filter(pk__in=Author.objects.all()[:4]).order_by("pk")[:3]
        ),
        authors.filter(pk__in=Author.objects.filter(pk__in=Author.objects.all()[:4])),
        authors.filter(Exists(books_of.filter(pk__in=Book.objects.all()[:3]))),
        authors.annotate(
            b=FilteredRelation("books", condition=Q(books__pages__gt=Random()))
        ).filter(b__title="x"),
        # What is picked tells rows or groups apart.
        Author.objects.annotate(n=row_number).values_list("name", "n").distinct(),
        authors.annotate(n=row_number).union(authors.annotate(n=row_number)),
        Author.objects.values_list(any_title).annotate(n=Count("pk")),
        # A function that may return a set.
        Author.objects.values_list("pk", RawSQL("unnest(array_agg(x))", ())),
        Author.objects.values_list("pk", Func(any_title, function="unnest")),
        Author.objects.values_list("pk", Lower(any_title, function="unnest")),
        authors.order_by(Func(any_title, function="unnest")),
    ],
)
def test_how_many_rows_there_are_is_open_where_that_depends_on_what_is_picked(
    queryset: Any,
) -> None:
    assert judge(queryset, [A, B], []) is UNDETERMINED
    assert judge(queryset, [A, B], [A]) is UNDETERMINED


def test_a_column_of_such_a_name_leaves_nothing_open() -> None:
    queryset = Author.objects.values_list(Value("limit over random distinct on"), "pk")
    assert judge(queryset, [A], [B]) is DIFFERENT


ANYWHERE = pytest.mark.parametrize("vendor", ["sqlite", "postgresql", "mysql"])


@ANYWHERE
@pytest.mark.parametrize(
    "names",
    [
        Author.objects.values_list("name").distinct(),
        Author.objects.values_list(Min("name")),
        Author.objects.values_list("name").annotate(n=Count("pk")).values_list("name"),
        Author.objects.values_list("name").union(Author.objects.values_list("name")),
    ],
    ids=["DISTINCT", "MIN", "GROUP BY", "UNION"],
)
def test_which_spelling_stands_for_all_is_open_where_a_collation_may_take_them_for_one(
    vendor: str, names: Any
) -> None:
    assert judge(names, [("Émile ",)], [("emile",)], vendor=vendor) is UNDETERMINED
    assert judge(names, [("Émile",)], [("Emil",)], vendor=vendor) is DIFFERENT
    assert judge(authors, [(1, "Émile")], [(1, "emile")], vendor=vendor) is DIFFERENT


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (0.0, -0.0, 1.0),
        (Decimal("1.0"), Decimal("1.00"), Decimal("1.01")),
        # More digits than a context of decimal has by default.
        (Decimal(f"1.{'0' * 40}10"), Decimal(f"1.{'0' * 40}1"), Decimal(f"1.{'0' * 40}11")),
    ],
)
def test_which_of_equal_numbers_stands_for_all_is_open(one: Any, other: Any, apart: Any) -> None:
    queryset = EveryField.objects.values_list("decimal").distinct()
    assert judge(queryset, [(one,)], [(other,)]) is UNDETERMINED
    assert judge(queryset, [(one,)], [(apart,)]) is DIFFERENT
    nan = Decimal("NaN")
    assert judge(queryset, [(nan,)], [(nan,)]) is SAME
    assert judge(queryset, [(nan,)], [(one,)]) is DIFFERENT


# --- sums of floats --------------------------------------------------------------------------

THIRD, NEARLY = 0.1 + 0.2, 0.3


def summed(function: Any) -> Any:
    queryset = EveryField.objects.values("integer").annotate(x=function("float"))
    return queryset.values_list("integer", "x")


SUMMING = pytest.mark.parametrize("function", [Sum, Avg, StdDev], ids=lambda f: f.__name__)


@ANYWHERE
@SUMMING
def test_the_last_digits_of_what_was_summed_up_are_open(function: Any, vendor: str) -> None:
    queryset = summed(function)
    rows = [(1, THIRD), (2, 5.0)]
    assert judge(queryset, rows, [(2, 5.0), (1, NEARLY)], vendor=vendor) is ROUNDED
    assert judge(queryset, [(1, THIRD)], [(2, NEARLY)], vendor=vendor) is DIFFERENT
    assert judge(queryset, [(1, THIRD)], [(1, None)], vendor=vendor) is DIFFERENT
    assert judge(queryset, [(1, THIRD)], [(1, THIRD), (2, 5.0)], vendor=vendor) is DIFFERENT


@pytest.mark.parametrize("vendor", ["postgresql", "mysql"])
@SUMMING
def test_all_digits_are_open_where_rows_are_summed_up_in_any_order(
    function: Any, vendor: str
) -> None:
    # 1e16 + 1.0 - 1e16 and 1e16 - 1e16 + 1.0
    for one, other in [(0.0, 1.0), (1e308, float("inf")), (float("nan"), 1.0)]:
        assert judge(summed(function), [(1, one)], [(1, other)], vendor=vendor) is ROUNDED
        assert judge(summed(function), [(1, one)], [(2, other)], vendor=vendor) is DIFFERENT


@ANYWHERE
def test_the_spelling_is_open_in_an_order_and_beside_a_sum_too(vendor: str) -> None:
    ordered = Author.objects.values_list("name").distinct().order_by("name")
    assert judge(ordered, [("a",), ("b",)], [("A",), ("b",)], vendor=vendor) is UNDETERMINED
    assert judge(ordered, [("a",), ("b",)], [("b",), ("A",)], vendor=vendor) is DIFFERENT
    grouped = EveryField.objects.values("char").annotate(x=Sum("float")).values_list("char", "x")
    assert judge(grouped, [("a", THIRD)], [("A", NEARLY)], vendor=vendor) is ROUNDED


@SUMMING
def test_only_the_last_digits_are_open_where_rows_stay_in_their_order(function: Any) -> None:
    assert judge(summed(function), [(1, THIRD)], [(1, 0.31)]) is DIFFERENT


def test_the_last_digits_of_a_column_are_not_open() -> None:
    assert judge(numbers, [(THIRD,)], [(NEARLY,)]) is DIFFERENT


# --- whatever the rows -----------------------------------------------------------------------

rows = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=5)


@given(rows, rows, st.randoms(use_true_random=False))
def test_without_an_order_answers_are_the_same_if_they_have_the_same_rows(
    one: list[Any], other: list[Any], chance: Any
) -> None:
    expected = SAME if sorted(one) == sorted(other) else DIFFERENT
    assert judge(authors, one, other) is expected
    mixed = chance.sample(one, len(one))
    assert judge(authors, one, mixed) is SAME


@given(rows, st.integers(0, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_two_ways_to_order_and_cut_the_same_rows_never_differ(
    table: list[Any], low: int, count: int, chance: Any
) -> None:
    """What a database may do with equals is no mismatch."""
    cut = slice(low, low + count)
    for queryset, key in [
        (authors, None),
        (authors.order_by("name"), lambda row: row[1]),
        (authors.order_by("name", "born"), lambda row: row[1]),
        (authors.order_by("born", "name"), lambda row: 0),
    ]:
        answers = []
        for _ in range(2):
            found = chance.sample(table, len(table))
            if key is not None:
                found.sort(key=key)
            answers.append(found[cut])
        assert judge(queryset[cut], *answers) in (SAME, UNDETERMINED)


# --- the digest ------------------------------------------------------------------------------


def test_a_digest_is_short_and_tells_answers_apart() -> None:
    assert digest([A, B]) == digest([A, B]) != digest([B, A]) != digest([A])
    assert len(digest([A])) == len(digest([])) == 16
    assert digest([(1j,)]) == "a value of type builtins.complex"


def test_the_databases_of_this_file_are_asked_nothing() -> None:
    assert connections["default"].connection is None or not connections["default"].queries_log
