"""Hits that are run on the database, too, and what becomes of a difference."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

import ormcache
from ormcache import counters, signals, verification
from ormcache.exceptions import Mismatch
from tests.backdoor import execute
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.interleaving import session
from tests.marks import on_caches, on_databases, on_pairs
from tests.models import Author, Book
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
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 1}
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
    assert text.count("1 rows") == 1 and "right" not in text and "wrong" not in text
    # Dropped: the next read asks the database.
    assert verifying.miss(names(using)) == ["wrong"]


@on_pairs(*PAIRS, transaction=True)
def test_a_difference_raises_where_it_is_told_to(
    verifying: Watch, author: Author, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_MISMATCH": "raise"}
    verifying.warm(names(using))
    rename(using)
    with pytest.raises(Mismatch, match="otherwise than the database"):
        names(using)()
    assert verifying.miss(names(using)) == ["wrong"]


@on_pairs(*PAIRS, transaction=True)
def test_in_shadow_the_database_answers_and_the_cache_is_compared(
    cached: Watch,
    author: Author,
    using: str,
    settings: Any,
    found: list[dict[str, Any]],
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MODE": "shadow"}
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
