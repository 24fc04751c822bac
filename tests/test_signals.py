"""The signals for those who watch the cache."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction

import ormcache
from ormcache import signals
from ormcache.reasons import Reason
from tests.marks import on_databases
from tests.models import Author, Book
from tests.watching import Watch


@pytest.fixture
def reads() -> Iterator[list[dict[str, Any]]]:
    yield from received(signals.query_read)


@pytest.fixture
def invalidations() -> Iterator[list[dict[str, Any]]]:
    yield from received(signals.tables_invalidated)


def received(signal: Any) -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> None:
        found.append({name: value for name, value in kwargs.items() if name != "signal"})

    signal.connect(receive)
    yield found
    signal.disconnect(receive)


@on_databases(transaction=True)
def test_a_read_tells_its_model_alias_outcome_tables_and_sql(
    cached: Watch, using: str, reads: list[Any]
) -> None:
    reads.clear()
    queryset = Book.objects.using(using).filter(author__name="a")
    sql = queryset.query.get_compiler(using).as_sql()[0]
    facts = {
        "sender": Book,
        "using": using,
        "reason": None,
        "tables": ("tests_author", "tests_book"),
        "sql": sql,
    }
    for outcome in ("miss", "hit", "hit"):
        list(queryset.all())
        assert reads.pop() == {**facts, "outcome": outcome}
    assert reads == []


@on_databases("default", transaction=True)
def test_the_text_has_placeholders_and_no_values(cached: Watch, reads: list[Any]) -> None:
    for _ in range(2):
        list(Author.objects.filter(name="secret"))
    assert all("%s" in read["sql"] and "secret" not in read["sql"] for read in reads)


@on_databases("default", transaction=True)
def test_a_read_skipped_before_it_was_compiled_has_neither_tables_nor_sql(
    cached: Watch, reads: list[Any]
) -> None:
    with ormcache.disabled():
        list(Author.objects.all())
    assert reads[-1] == {
        "sender": Author,
        "using": "default",
        "outcome": "skip",
        "reason": Reason.DISABLED,
        "tables": (),
        "sql": None,
    }


@on_databases("default", transaction=True)
def test_a_read_skipped_for_what_it_says_has_its_tables_and_sql(
    cached: Watch, reads: list[Any]
) -> None:
    list(Author.objects.order_by("?"))
    read = reads[-1]
    assert (read["outcome"], read["reason"]) == ("skip", Reason.RANDOM)
    assert read["tables"] == ("tests_author",)
    assert "RAND" in read["sql"]


@on_databases("default", transaction=True)
def test_a_miss_that_is_not_stored_says_why(
    cached: Watch, reads: list[Any], settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": 1}
    list(Author.objects.all())
    assert (reads[-1]["outcome"], reads[-1]["reason"]) == ("miss", Reason.TOO_LARGE)


@on_databases("default", transaction=True)
def test_a_query_without_any_sql_is_no_read(cached: Watch, reads: list[Any]) -> None:
    reads.clear()
    assert list(Author.objects.none()) == []
    assert list(Author.objects.filter(pk__in=[])) == []
    assert Author.objects.none().count() == 0
    assert not Author.objects.filter(pk__in=[]).exists()
    assert reads == []


@on_databases("default", transaction=True)
def test_a_write_is_no_read(cached: Watch, reads: list[Any]) -> None:
    reads.clear()
    author = Author.objects.create(name="a")
    Author.objects.filter(pk=author.pk).update(name="b")
    Author.objects.bulk_create([Author(name="c")])
    Author.objects.filter(pk=author.pk)._raw_delete("default")
    assert reads == []


# --- invalidations ---------------------------------------------------------------------------


@on_databases(transaction=True)
def test_an_autocommit_write_tells_its_tables(
    cached: Watch, using: str, invalidations: list[Any]
) -> None:
    invalidations.clear()
    Author.objects.using(using).create(name="a")
    assert invalidations == [{"sender": None, "using": using, "tables": ("tests_author",)}]


@on_databases(transaction=True)
def test_a_transaction_tells_all_tables_once_and_before_on_commit_hooks(
    cached: Watch, using: str, invalidations: list[Any]
) -> None:
    invalidations.clear()
    seen: list[int] = []
    with transaction.atomic(using):
        author = Author.objects.using(using).create(name="a")
        Book.objects.using(using).create(title="b", author=author)
        transaction.on_commit(lambda: seen.append(len(invalidations)), using)
        assert invalidations == []
    assert [found["tables"] for found in invalidations] == [("tests_author", "tests_book")]
    assert seen == [1]


@on_databases("default", transaction=True)
def test_a_receiver_sees_what_was_committed(cached: Watch) -> None:
    """It is called when the write took effect, and a read in it is not served the old rows."""
    cached.warm(Author.objects.count)
    counts: list[int] = []

    def receive(**kwargs: Any) -> None:
        counts.append(Author.objects.count())

    signals.tables_invalidated.connect(receive)
    try:
        Author.objects.create(name="a")
    finally:
        signals.tables_invalidated.disconnect(receive)
    assert counts == [1]


@on_databases("default", transaction=True)
def test_a_rollback_tells_nothing(cached: Watch, invalidations: list[Any]) -> None:
    invalidations.clear()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Author.objects.create(name="a")
        raise ZeroDivisionError
    assert invalidations == []


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "act, tables",
    [
        (lambda: ormcache.invalidate("tests.Author", using="default"), ("tests_author",)),
        (lambda: ormcache.invalidate("some_table", using="default"), ("some_table",)),
        (lambda: ormcache.flush(using="default"), ("*",)),
    ],
    ids=["model", "table", "flush"],
)
def test_an_invalidation_by_hand_tells_its_tables(
    cached: Watch, invalidations: list[Any], act: Callable[[], None], tables: Any
) -> None:
    invalidations.clear()
    act()
    assert [(found["using"], set(found["tables"]) >= set(tables)) for found in invalidations] == [
        ("default", True)
    ]


# --- receivers that fail ---------------------------------------------------------------------


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "signal", [signals.query_read, signals.tables_invalidated], ids=["r", "i"]
)
def test_the_exception_of_a_receiver_is_logged_and_not_raised(
    cached: Watch, signal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**kwargs: Any) -> None:
        raise ZeroDivisionError("of a receiver")

    signal.connect(fail)
    try:
        with caplog.at_level(logging.ERROR, "django.dispatch"):
            Author.objects.create(name="a")
            assert cached.warm(Author.objects.count) == 1
    finally:
        signal.disconnect(fail)
    assert "of a receiver" in caplog.text
    assert connections["default"].get_autocommit()
