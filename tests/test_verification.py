"""Hits that are run on the database, too, and what becomes of a difference."""

import io
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import MultipleObjectsReturned, ObjectDoesNotExist
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.models import Min, Sum
from django.db.models.functions import Collate
from django.test.utils import CaptureQueriesContext

import ormcache
from ormcache import counters, fence, signals, verification
from ormcache.comparison import digest
from ormcache.exceptions import CacheError, Mismatch
from ormcache.questions import ask
from ormcache.stores import LocMemStore, breaker_for
from tests.backdoor import execute
from tests.factories import AuthorFactory, BookFactory, TagFactory
from tests.factories import using as factories_using
from tests.interleaving import route_of, session, store_of
from tests.marks import on_caches, on_databases, on_pairs
from tests.models import Author, Book, EveryField
from tests.queries import QUERIES
from tests.watching import Watch

PAIRS = [
    ("default", "locmem"),
    ("postgresql", "redis"),
    ("postgresql", "memcached"),
    ("mariadb", "redis"),
    ("mariadb", "locmem"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    counters.reset()
    yield
    counters.reset()


@pytest.fixture
def found() -> Iterator[list[dict[str, Any]]]:
    """What the signal has told."""
    told: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> None:
        told.append(kwargs)

    signals.mismatch_found.connect(receive)
    yield told
    signals.mismatch_found.disconnect(receive)


@pytest.fixture
def verifying(cached: Watch, settings: Any) -> Watch:
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 1, "ON_MISMATCH": "log"}
    return cached


@pytest.fixture
def author(cached: Watch, using: str) -> Author:
    with factories_using(using):
        return AuthorFactory(name="right")


def of(table: str, using: str = "default") -> dict[str, int]:
    counts = ormcache.statistics().get(using, {}).get(table, {})
    return {name: n for name, n in counts.items() if name not in ("miss", "invalidated")}


def names(using: str) -> Callable[[], list[str]]:
    return lambda: list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


def rename(using: str, name: str = "wrong") -> None:
    execute(using, f"UPDATE tests_author SET name = '{name}'")


@on_pairs(*PAIRS, transaction=True)
def test_a_hit_that_is_right_is_a_hit(verifying: Watch, author: Author, using: str) -> None:
    verifying.warm(names(using))
    assert of("tests_author", using) == {"hit": 1, "verified": 1}


@on_pairs(*PAIRS, transaction=True)
def test_a_stale_entry_is_dropped_counted_told_and_logged(
    verifying: Watch,
    author: Author,
    using: str,
    found: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifying.warm(names(using))
    rename(using)
    counters.reset()
    with caplog.at_level(logging.ERROR, "ormcache"):
        # The database is right.
        assert verifying.hit(names(using)) == ["wrong"]
    assert of("tests_author", using) == {"hit": 1, "mismatch": 1}
    (told,) = found
    assert told["sender"] is Author
    assert told["using"] == using
    assert told["tables"] == ("tests_author",)
    assert (told["cached"], told["truth"]) == ([("right",)], [("wrong",)])
    assert told["shadow"] is False
    assert told["sql"].startswith("SELECT") and told["params"] == ()
    (record,) = caplog.records
    text = record.getMessage()
    assert told["sql"] in text and told["key"] in text and "tests_author" in text
    assert text.startswith(
        f"The cache and the database {using!r} disagree: the cache has 1 row (digest "
        f"{digest([('right',)])}), the database 1 row (digest {digest([('wrong',)])}). Tables: "
    )
    assert "right" not in text and "wrong" not in text
    # Dropped: the next read asks the database.
    assert verifying.miss(names(using)) == ["wrong"]


@on_pairs(*PAIRS, transaction=True)
def test_a_difference_raises_where_it_is_told_to(
    verifying: Watch, author: Author, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_MISMATCH": "raise"}
    verifying.warm(names(using))
    rename(using)
    with pytest.raises(Mismatch, match=f"the database {using!r} disagree"):
        names(using)()
    assert verifying.miss(names(using)) == ["wrong"]


@pytest.mark.parametrize("options", [{"VERIFY": 1}, {"MODE": "shadow"}], ids=str)
@on_databases("default", transaction=True)
def test_in_a_test_a_difference_raises_by_default(
    cached: Watch, author: Author, using: str, settings: Any, options: dict[str, Any]
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, **options}
    cached.miss(names(using))
    rename(using)
    with pytest.raises(Mismatch):
        names(using)()


@on_pairs(*PAIRS, transaction=True)
def test_in_shadow_the_database_answers_and_the_cache_is_compared(
    cached: Watch,
    author: Author,
    using: str,
    settings: Any,
    found: list[dict[str, Any]],
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MODE": "shadow", "ON_MISMATCH": "log"}
    with cached.expect("miss", "shadow hit"), CaptureQueriesContext(connections[using]) as asked:
        assert names(using)() == names(using)() == ["right"]
    assert len(asked) == 2
    assert of("tests_author", using) == {"shadow hit": 1, "verified": 1}
    rename(using)
    with cached.expect("shadow hit", "miss", "shadow hit"):
        for _ in range(3):
            assert names(using)() == ["wrong"]
    assert of("tests_author", using) == {"shadow hit": 3, "verified": 2, "mismatch": 1}
    (told,) = found
    assert told["shadow"] is True


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_a_write_that_commits_meanwhile_is_no_mismatch(
    verifying: Watch, author: Author, using: str, monkeypatch: pytest.MonkeyPatch, found: list[Any]
) -> None:
    verifying.warm(names(using))
    counters.reset()
    ask = verification._ask

    def after_a_write(*args: Any, **kwargs: Any) -> Any:
        with session(using):
            Author.objects.using(using).update(name="new")
        return ask(*args, **kwargs)

    monkeypatch.setattr(verification, "_ask", after_a_write)
    names(using)()
    assert of("tests_author", using) == {"hit": 1, "unverified: registers changed": 1}
    assert found == []


@on_databases(transaction=True)
def test_every_kind_of_question_is_verified(verifying: Watch, author: Author, using: str) -> None:
    authors = Author.objects.using(using)
    questions: list[Callable[[], Any]] = [
        lambda: authors.get(pk=author.pk).name,
        lambda: authors.filter(name="right").first(),
        lambda: authors.count(),
        lambda: authors.filter(name="right").exists(),
        lambda: authors.filter(name="none").exists(),
        lambda: list(authors.all()),
        lambda: list(Book.objects.using(using).select_related("author")),
        lambda: list(authors.values("name").distinct().order_by("pk")),
    ]
    for question in questions:
        verifying.miss(question)
        verifying.hit(question)
        verifying.hit(question)
    counts = ormcache.statistics()[using]
    assert counts["tests_author"]["verified"] == 16
    assert not any("unverified" in event for event in counts["tests_author"])


@on_databases(transaction=True)
def test_nobody_sees_the_query(verifying: Watch, author: Author, using: str) -> None:
    verifying.warm(names(using))
    connection = connections[using]

    def forbid(*args: Any) -> None:
        raise AssertionError

    with CaptureQueriesContext(connection) as asked, connection.execute_wrapper(forbid):
        verifying.hit(names(using))
    assert len(asked) == 0
    assert of("tests_author", using)["verified"] == 2


@on_databases("postgresql", "mariadb", transaction=True)
def test_an_error_of_the_database_disturbs_neither_hit_nor_transaction(
    verifying: Watch, author: Author, using: str
) -> None:
    verifying.warm(names(using))
    execute(using, "ALTER TABLE tests_author RENAME TO tests_author_away")
    try:
        counters.reset()
        with transaction.atomic(using=using):
            Book.objects.using(using).filter(pk=0).delete()
            assert verifying.hit(names(using)) == ["right"]
            assert Book.objects.using(using).count() == 0
        assert of("tests_author", using) == {"hit": 1, "unverified: database error": 1}
    finally:
        execute(using, "ALTER TABLE tests_author_away RENAME TO tests_author")


# --- what proves nothing ---------------------------------------------------------------------


@on_pairs(("postgresql", "redis"), ("mariadb", "redis"), ("default", "locmem"), transaction=True)
def test_what_another_program_has_announced_in_the_fence_is_no_mismatch(
    cached: Watch, author: Author, using: str, settings: Any, found: list[Any]
) -> None:
    """Its write may be seen by the query before this process has looked into the fence."""
    fence._looks.clear()
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": 1000, "VERIFY": 1}
    cached.warm(names(using))
    announce = "INSERT INTO ormcache_fence (table_name) VALUES ('tests_author')"
    execute(using, "UPDATE tests_author SET name = 'new'", announce)
    counters.reset()
    cached.hit(names(using))
    assert of("tests_author", using) == {"hit": 1, "unverified: registers changed": 1}
    assert found == []
    # The look has told all processes.
    assert cached.warm(names(using)) == ["new"]
    rename(using)
    with pytest.raises(Mismatch):
        names(using)()
    assert of("tests_author", using)["mismatch"] == 1


@on_databases("postgresql", "mariadb", transaction=True)
@on_caches("redis")
def test_a_write_that_is_under_way_is_no_mismatch(
    verifying: Watch, author: Author, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed, and its end not yet told to the cache: the registers are not clean."""
    verifying.warm(names(using))
    counters.reset()
    store, namespace = store_of(using), route_of(using).namespace
    ask = verification._ask

    def after_a_commit(*args: Any) -> Any:
        store.arm(namespace, "intent", ["tests_author"])
        rename(using, "new")
        return ask(*args)

    monkeypatch.setattr(verification, "_ask", after_a_commit)
    names(using)()
    assert of("tests_author", using) == {"hit": 1, "unverified: registers changed": 1}


@on_databases("postgresql", "mariadb", transaction=True)
def test_an_order_that_the_query_leaves_open_proves_nothing(
    verifying: Watch, author: Author, using: str, found: list[Any]
) -> None:
    with factories_using(using):
        AuthorFactory(name="second")

    def any_one() -> list[str]:
        return list(Author.objects.using(using).values_list("name", flat=True)[:1])

    verifying.warm(any_one)
    execute(using, f"DELETE FROM tests_author WHERE id = {author.pk}")
    # It is wrong, but could be right for all that the two answers tell.
    assert verifying.hit(any_one) == ["right"]
    assert of("tests_author", using)["unverified: result not determined"] == 1
    assert found == []


# --- the user's connection -------------------------------------------------------------------


@on_databases("postgresql", "mariadb", transaction=True)
def test_in_a_transaction_hits_are_verified_too(
    verifying: Watch, author: Author, using: str, found: list[Any]
) -> None:
    verifying.warm(names(using))
    rename(using)
    with transaction.atomic(using=using):
        Book.objects.using(using).filter(pk=0).delete()
        assert verifying.hit(names(using)) == ["wrong"]
        assert connections[using].in_atomic_block
    assert len(found) == 1


@on_databases("postgresql", transaction=True)
def test_in_a_pipeline_nothing_is_asked(verifying: Watch, author: Author, using: str) -> None:
    verifying.warm(names(using))
    counters.reset()
    connection = connections[using]
    connection.ensure_connection()
    assert connection.connection is not None
    with connection.connection.pipeline():
        names(using)()
    assert not any(event == "verified" for event in of("tests_author", using))


@on_databases(transaction=True)
def test_columns_that_django_adds_and_takes_away_are_not_compared(
    verifying: Watch, author: Author, using: str, found: list[Any]
) -> None:
    """DISTINCT makes it select what it orders by."""
    queryset = Book.objects.using(using).values("title").distinct().order_by("author__name")
    with factories_using(using):
        BookFactory(author=author)
    verifying.warm(lambda: list(queryset.all()))
    verifying.warm(lambda: queryset.all()[:1].get())
    assert of("tests_book", using)["verified"] == 2
    assert found == []


# --- little things ---------------------------------------------------------------------------


@on_databases("default", transaction=True)
def test_without_verifying_nothing_is_drawn_or_asked(
    cached: Watch, author: Author, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "is_due", None)
    cached.warm(names(using))
    rename(using)
    assert cached.hit(names(using)) == ["right"]


@on_databases("default", transaction=True)
def test_a_share_of_the_hits_is_verified(
    cached: Watch, author: Author, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 0.5}
    cached.miss(names(using))
    draws = iter([0.4, 0.6, 0.49, 0.51])
    monkeypatch.setattr("ormcache.verification._random.random", lambda: next(draws))
    for _ in range(4):
        cached.hit(names(using))
    assert of("tests_author") == {"hit": 4, "verified": 2}


@on_databases("default", transaction=True)
def test_the_random_numbers_of_the_project_are_left_alone(
    cached: Watch, author: Author, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 0.5}
    random.seed(7)
    expected = [random.random() for _ in range(3)]
    random.seed(7)
    for _ in range(3):
        names(using)()
    assert [random.random() for _ in range(3)] == expected


@on_databases("default", transaction=True)
def test_a_difference_is_told_though_the_cache_cannot_be(
    verifying: Watch,
    author: Author,
    using: str,
    found: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> None:
        raise CacheError("out of order")

    verifying.warm(names(using))
    rename(using)
    monkeypatch.setattr(LocMemStore, "drop", fail)
    assert verifying.hit(names(using)) == ["wrong"]
    assert len(found) == 1
    breaker_for("locmem").succeeded()


@on_databases("default", transaction=True)
def test_in_shadow_an_error_of_the_database_is_an_error(
    cached: Watch, author: Author, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MODE": "shadow"}
    names(using)()
    execute(using, "ALTER TABLE tests_author RENAME TO tests_author_away")
    try:
        with pytest.raises(OperationalError):
            names(using)()
    finally:
        execute(using, "ALTER TABLE tests_author_away RENAME TO tests_author")


@on_databases("default", transaction=True)
def test_status_names_the_mode(cached: Watch, using: str, settings: Any) -> None:
    for mode in ("serve", "shadow"):
        settings.ORMCACHE = {**settings.ORMCACHE, "MODE": mode}
        output = io.StringIO()
        call_command("ormcache", "status", "--database", using, stdout=output)
        assert f"  mode: {mode}\n" in output.getvalue()


# --- all kinds of queries --------------------------------------------------------------------


class Router:
    """Sends every query to PostgreSQL."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "postgresql"

    db_for_write = db_for_read


def answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (ObjectDoesNotExist, MultipleObjectsReturned, DatabaseError) as error:
        # Not all of them suit these rows and this database.
        return type(error)


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_where_rows_lie_on_disk_makes_no_mismatch(
    verifying: Watch, using: str, settings: Any, found: list[Any]
) -> None:
    """PostgreSQL gives rows in the order in which they were last written, unless it is told."""
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    with factories_using(using):
        tags = TagFactory.create_batch(3)
        authors = AuthorFactory.create_batch(4, name="a") + AuthorFactory.create_batch(2, name="b")
        for number in range(30):
            BookFactory(
                title="ab"[number % 2],
                pages=number % 3,
                price=number % 4,
                author=authors[number % 5],
                tags=tags[: number % 4],
            )
    for question in QUERIES.values():
        answer(question)
    chance = random.Random(7)
    rows = [
        (table, key)
        for table in ("tests_author", "tests_book", "tests_tag", "tests_book_tags")
        for (key,) in ask(connections[using], f"SELECT id FROM {table}")
    ]
    for _ in range(3):
        chance.shuffle(rows)
        execute(using, *(f"UPDATE {table} SET id = id WHERE id = {key}" for table, key in rows))
        for name, question in QUERIES.items():
            answer(question)
            assert found == [], name
    counts = ormcache.statistics()[using]["tests_book"]
    doubts = sum(number for event, number in counts.items() if event.startswith("unverified: "))
    assert counts["verified"] > 5 * doubts > 0, counts


@on_pairs(("postgresql", "redis"), transaction=True)
def test_rows_that_have_only_moved_on_disk_are_no_difference(
    verifying: Watch, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_MISMATCH": "raise"}
    for number in (1e16, -1e16, 1.0):
        EveryField.objects.using(using).create(float=number)
    for name in ("a", "A"):
        Author.objects.using(using).create(name=name)
    authors = Author.objects.using(using).annotate(n=Collate("name", "ormcache_test"))
    questions: list[Callable[[], Any]] = [
        lambda: EveryField.objects.using(using).aggregate(Sum("float")),
        lambda: list(authors.values_list("n", flat=True).distinct()),
        lambda: authors.aggregate(Min("n")),
    ]
    execute(
        using,
        "CREATE COLLATION ormcache_test "
        "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )
    try:
        before = [verifying.warm(question) for question in questions]
        execute(using, "UPDATE tests_author SET name = name WHERE name = 'a'")
        execute(using, "UPDATE tests_everyfield SET float = float WHERE float = 1e16")
        assert [verifying.hit(question) for question in questions] == before
        with ormcache.disabled():
            # Rows come in another order indeed.
            assert questions[0]() != before[0]
    finally:
        execute(using, "DROP COLLATION ormcache_test")
