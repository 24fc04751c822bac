"""`manage.py ormcache audit`."""

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections
from django.db.models import Count, Sum, Value
from django.db.models.functions import Concat
from django.utils.safestring import SafeString

import ormcache
from ormcache import auditing, counters, notes, signals
from ormcache.auditing import Audit
from ormcache.exceptions import CacheError
from ormcache.questions import ask
from ormcache.stores.redis import RedisStore
from tests.backdoor import execute
from tests.factories import AuthorFactory, BookFactory
from tests.factories import using as factories_using
from tests.interleaving import route_of, session, store_of
from tests.marks import needs, on_caches, on_databases, on_pairs
from tests.models import Author, Book
from tests.watching import Watch


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    counters.reset()
    yield
    counters.reset()


@pytest.fixture
def without_notes(cached: Watch, using: str) -> None:
    """There are none of former tests."""
    store, namespace = store_of(using), route_of(using).namespace
    for entry in list(store.noted(namespace) or ()):
        store.drop(namespace, entry)


@pytest.fixture
def noting(cached: Watch, without_notes: None, using: str, settings: Any) -> Watch:
    """Every answer is stored with a note; there are two authors."""
    settings.ORMCACHE = {**settings.ORMCACHE, "AUDIT": 1}
    with factories_using(using):
        BookFactory(title="right", author__name="right")
        AuthorFactory(name="other")
    return cached


def run(*arguments: str, **options: Any) -> str:
    output = options.pop("stdout", None) or io.StringIO()
    call_command("ormcache", "audit", *arguments, stdout=output, no_color=True, **options)
    return output.getvalue()


def fails(*arguments: str) -> tuple[str, str]:
    """The output and the error of a command that must fail."""
    output = io.StringIO()
    with pytest.raises(CommandError) as raised:
        call_command("ormcache", "audit", *arguments, stdout=output, no_color=True)
    assert raised.value.returncode == 1
    return output.getvalue(), str(raised.value)


def questions(using: str) -> list[Callable[[], Any]]:
    authors, books = Author.objects.using(using), Book.objects.using(using)
    return [
        lambda: list(authors.all()),
        lambda: authors.get(name="right"),
        lambda: authors.order_by("name").first(),
        lambda: authors.filter(name__in=["right", "other"]).exists(),
        lambda: authors.count(),
        lambda: books.aggregate(Sum("pages"), Sum("price")),
        lambda: list(authors.annotate(n=Count("books")).order_by("-n")),
        lambda: list(books.select_related("author").filter(price__lt=100)),
        lambda: list(books.values_list("title").distinct().order_by("author__name")),
        lambda: list(books.order_by("title")[1:3]),
    ]


ON_REDIS = on_pairs(
    ("default", "redis"), ("postgresql", "redis"), ("mariadb", "django_redis"), transaction=True
)


@ON_REDIS
def test_entries_of_all_kinds_are_found_the_same(noting: Watch, using: str) -> None:
    asked = questions(using)
    for question in asked:
        noting.warm(question)
    output = run("--database", using)
    assert f"entries with a note of their query: {len(asked)}\n" in output
    assert f"compared: {len(asked)}\n    same: {len(asked)}\n" in output
    for question in asked:
        noting.hit(question)


@ON_REDIS
def test_what_was_written_by_the_back_door_is_found_and_dropped(noting: Watch, using: str) -> None:
    asked = questions(using)
    for question in asked:
        noting.miss(question)
    told: list[Any] = []

    def receive(**kwargs: Any) -> None:
        told.append(kwargs)

    execute(using, "UPDATE tests_author SET name = 'wrong' WHERE name = 'right'")
    signals.mismatch_found.connect(receive)
    try:
        output, error = fails("--database", using)
    finally:
        signals.mismatch_found.disconnect(receive)
    # All authors, get(), and those with counts and with books.
    assert "    different: 4\n" in output
    assert "    same: 6\n" in output
    assert error == f"{using}: 4 of 10 entries were wrong, and are dropped."
    assert output.count("  different: tests_author") == 4
    assert len(told) == 4
    assert ormcache.statistics()[using]["tests_author"]["mismatch"] == 4
    with noting.expect("miss"):
        asked[0]()
    assert "compared: 7\n    same: 7\n" in run("--database", using)


@ON_REDIS
def test_a_process_of_its_own_can_audit(noting: Watch, using: str, cache: str) -> None:
    noting.miss(lambda: list(Author.objects.using(using)))
    noting.miss(lambda: Author.objects.using(using).get(name="right"))
    script = (
        "import django; django.setup()\n"
        "from django.test.utils import setup_test_environment as s\n"
        "from django.conf import settings; from django.core.management import call_command\n"
        f"s(); settings.ORMCACHE = {{**settings.ORMCACHE, 'CACHE_ALIAS': {cache!r}}}\n"
        f"call_command('ormcache', 'audit', '--database', {using!r})"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "compared: 2\n    same: 2\n" in done.stdout


@on_databases("default", transaction=True)
@on_caches("redis")
def test_no_more_entries_are_compared_than_were_asked_for(noting: Watch, using: str) -> None:
    for number in range(20):
        noting.miss(lambda number=number: Author.objects.filter(pk=number).exists())
    assert "query: 20\n  compared: 7\n    same: 7\n" in run("--database", using, "--limit", "7")
    for wrong in ("0", "-1", "x"):
        with pytest.raises(CommandError, match="--limit"):
            run("--limit", wrong)


def test_each_entry_has_the_same_chance() -> None:
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        count, chosen = auditing._sample(range(10), 3)
        assert count == 10 and len(set(chosen)) == 3
        drawn.update(chosen)
    assert all(450 < drawn[number] < 750 for number in range(10)), drawn
    assert auditing._sample([], 3) == (0, [])


@on_databases("default", transaction=True)
@on_caches("redis")
def test_entries_that_nobody_is_given_any_more_are_not_compared(noting: Watch, using: str) -> None:
    noting.miss(lambda: list(Author.objects.all()))
    Author.objects.create(name="new")
    noting.miss(lambda: Author.objects.get(name="right"))
    assert "  compared: 1\n    same: 1\n  not compared: 1\n    gone: 1\n" in run(
        "--database", using
    )
    Author.objects.create(name="newer")
    counters.reset()
    assert "  compared: 0\n  not compared: 2\n    gone: 2\n" in run("--database", using)
    assert "verified" not in ormcache.statistics().get(using, {}).get("tests_author", {})


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_note_that_the_project_has_not_signed_is_not_run(
    noting: Watch, using: str, settings: Any
) -> None:
    noting.miss(lambda: list(Author.objects.all()))
    store, route = store_of(using), route_of(using)
    (entry,) = store.noted(route.namespace) or ()
    evil = notes.load(store.note_of(route.namespace, entry) or b"")._replace(
        sql="DROP TABLE tests_book"
    )
    theirs = settings.SECRET_KEY
    settings.SECRET_KEY = "theirs"
    store.note(route.namespace, entry, notes.dump(evil), None)
    settings.SECRET_KEY = theirs
    assert "    note unreadable: 1\n" in fails("--database", using)[0]
    # Nor one that was copied from another entry.
    honest = notes.dump(evil._replace(entry="0" * 40))
    store.note(route.namespace, entry, honest, None)
    assert "    note unreadable: 1\n" in fails("--database", using)[0]
    assert Book.objects.count() == 1


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_entries_of_another_session_are_left_alone(noting: Watch, using: str) -> None:
    with session(using, TIME_ZONE="Asia/Tokyo"):
        noting.miss(lambda: list(Author.objects.using(using)))
    foreign = "    of another alias or session: 1\n"
    output, error = fails("--database", using)
    assert foreign in output
    # A job that compares nothing would be green for ever.
    assert error.startswith(f"{using}: nothing could be compared. Run the command as the servers")
    noting.miss(lambda: Author.objects.using(using).count())
    assert foreign in run("--database", using)


@on_databases("default", transaction=True)
@on_caches("redis")
def test_without_notes_it_says_what_to_do(
    cached: Watch, without_notes: None, using: str, settings: Any
) -> None:
    cached.miss(Author.objects.count)
    _, error = fails("--database", using)
    assert 'Set ORMCACHE["AUDIT"]' in error
    settings.ORMCACHE = {**settings.ORMCACHE, "AUDIT": 0.5}
    assert "compared: 0\n" in run("--database", using)


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    ("cache", "why"),
    [
        ("locmem", "in the memory of each process"),
        ("filebased", "cannot tell which entries it has"),
        pytest.param("memcached", "cannot tell which entries", marks=needs("memcached")),
    ],
)
def test_a_cache_that_lists_nothing_is_no_success(noting: Watch, using: str, why: str) -> None:
    noting.miss(Author.objects.count)
    _, error = fails("--database", using)
    assert why in error and 'ORMCACHE["VERIFY"]' in error


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", ""])
def test_a_limit_is_a_whole_number_above_0(limit: str) -> None:
    with pytest.raises(CommandError) as raised:
        run(f"--limit={limit}")
    message = f"argument --limit: {limit!r} is no whole number above 0."
    assert str(raised.value) == f"Error: {message}"


def test_where_nothing_is_cached_there_is_nothing_to_audit(settings: Any, db: None) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "dummy"}
    assert fails("--database", "default")[1] == "default: nothing is cached."
    assert run() == ""


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_cache_that_does_not_answer_is_an_error(
    noting: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise CacheError("out of order")

    monkeypatch.setattr(RedisStore, "noted", fail)
    assert fails("--database", using)[1] == (
        "default: the cache 'redis' does not answer: out of order"
    )


@on_databases("default", transaction=True)
@on_caches("redis")
def test_what_was_found_before_the_cache_failed_is_told(
    noting: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        noting.miss(lambda number=number: list(Author.objects.filter(pk__gt=-number)))
    execute(using, "UPDATE tests_author SET name = 'wrong'")
    note_of, asked = RedisStore.note_of, []

    def fail_at_last(self: RedisStore, *args: Any) -> Any:
        asked.append(args)
        if len(asked) > 2:
            raise CacheError("out of order")
        return note_of(self, *args)

    monkeypatch.setattr(RedisStore, "note_of", fail_at_last)
    output, error = fails("--database", using)
    assert "  compared: 2\n    different: 2\n  different: tests_author\n" in output
    assert error.splitlines() == [
        "default: 2 of 2 entries were wrong, and are dropped.",
        "default: the cache 'redis' does not answer: out of order",
    ]


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_a_database_that_does_not_answer_is_an_error(noting: Watch, using: str) -> None:
    with session(using, PORT="1"):
        assert f"{using}: the database does not answer: " in fails("--database", using)[1]
        assert isinstance(connections[using].connection, type(None))


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_a_database_that_is_lost_midway_is_an_error(
    noting: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        noting.miss(lambda number=number: list(Author.objects.using(using).filter(pk__gt=-number)))
    connection = connections[using]
    note_of, asked = RedisStore.note_of, []

    def refuse() -> None:
        raise OperationalError("it is down")

    def lose_at_second(self: RedisStore, *args: Any) -> Any:
        asked.append(args)
        if len(asked) == 2:
            pid = connection.connection.info.backend_pid
            with session(using) as other:
                other.ensure_connection()
                ask(other, f"SELECT pg_terminate_backend({pid}, 10000)")
            monkeypatch.setattr(connection, "connect", refuse)
        return note_of(self, *args)

    monkeypatch.setattr(RedisStore, "note_of", lose_at_second)
    output, error = fails("--database", using)
    monkeypatch.undo()
    assert "  compared: 1\n    same: 1\n" in output
    assert error == f"{using}: the database does not answer: it is down"
    assert len(asked) == 2


@on_databases("default", transaction=True)
@on_caches("redis")
def test_progress_is_shown_to_people_only(noting: Watch, using: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for number in range(4):
        noting.miss(lambda number=number: Author.objects.filter(pk=number).exists())
    shown = run("--database", using, stdout=Terminal())
    assert "[##########..............................] 1 of 4" in shown
    assert "\r\x1b[K" in shown
    assert "\r" not in run("--database", using)


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_share_of_the_answers_is_noted(
    noting: Watch, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "AUDIT": 0.5}
    draws = iter([0.4, 0.6, 0.49, 0.51])
    monkeypatch.setattr("ormcache.verification._random.random", lambda: next(draws))
    for number in range(4):
        noting.warm(lambda number=number: Author.objects.filter(pk=number).exists())
    assert Audit(using, 100).noted == 2


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_query_that_is_longer_than_any_answer_may_be_is_not_noted(
    noting: Watch, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": 1000}
    noting.warm(lambda: Author.objects.filter(name__in=map(str, range(300))).exists())
    assert Audit(using, 100).noted == 0


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_query_whose_parameters_cannot_be_noted_is_stored_without(
    noting: Watch, using: str
) -> None:
    noting.warm(lambda: list(Author.objects.filter(name=Concat(Value(SafeString("a")), "name"))))
    assert Audit(using, 100).noted == 0


@on_databases("default", transaction=True)
@on_caches("redis")
def test_a_note_ends_with_its_entry(noting: Watch, using: str, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "TIMEOUT": 100}
    noting.miss(Author.objects.count)
    store = store_of(using)
    assert isinstance(store, RedisStore)
    (entry,) = store.noted(route_of(using).namespace)
    from ormcache.stores.channels import pack

    def left(channel: Any) -> list[int]:
        prefix = store._prefix(route_of(using).namespace, channel).encode()
        return [
            channel.call(pack(b"TTL", prefix + kind + entry.encode())) for kind in (b"q:", b"e:")
        ]

    assert all(90 <= seconds <= 100 for seconds in store._channels.run(left))
