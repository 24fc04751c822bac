"""Reads that go to the database, each with its reason."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, models, transaction
from django.db.models import Count, Q, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now, Random
from django.db.models.sql import Query
from django.db.models.sql.constants import CURSOR, NO_RESULTS, ROW_COUNT

import ormcache
from ormcache import bypasses, codec
from ormcache.reasons import Reason
from tests.marks import on_caches, on_databases
from tests.models import (
    Author,
    Book,
    Category,
    ItalianRestaurant,
    Note,
    Place,
    Publisher,
    Restaurant,
    Tag,
)
from tests.watching import Watch


def authors(using: str) -> Any:
    return Author.objects.using(using)


# --- what the query is -----------------------------------------------------------------------

QUESTIONS: dict[str, tuple[Callable[[str], Any], Reason]] = {
    "iterator": (lambda db: list(authors(db).iterator()), Reason.ITERATOR),
    "iterator in chunks": (lambda db: list(authors(db).iterator(1)), Reason.ITERATOR),
    "values iterator": (lambda db: list(authors(db).values().iterator()), Reason.ITERATOR),
    "explain": (lambda db: authors(db).explain(), Reason.EXPLAIN),
    "random order": (lambda db: list(authors(db).order_by("?")), Reason.RANDOM),
    "random value": (lambda db: list(authors(db).annotate(r=Random())), Reason.RANDOM),
    "now": (lambda db: list(authors(db).filter(born__lt=Now())), Reason.NON_DETERMINISTIC),
    "now in a subquery": (
        lambda db: authors(db).filter(books__in=Book.objects.filter(published__lt=Now())).count(),
        Reason.NON_DETERMINISTIC,
    ),
    "unknown function": (
        lambda db: list(
            authors(db).annotate(
                x=models.Func("name", function="INSTR_REV", output_field=models.TextField())
            )
        ),
        Reason.UNKNOWN_FUNCTION,
    ),
    "unknown table": (
        lambda db: list(authors(db).extra(where=["EXISTS (SELECT 1 FROM some_view)"])),
        Reason.UNKNOWN_TABLE,
    ),
}
# These fail in the database; the reason comes before.
FAIL = ("unknown function", "unknown table")


@on_databases(transaction=True)
def test_each_kind_of_query_has_its_reason_each_time(cached: Watch, using: str) -> None:
    authors(using).create(name="a")
    for name, (question, reason) in QUESTIONS.items():
        for _ in range(2):
            with cached.expect(reason):
                if name in FAIL:
                    with pytest.raises(Exception, match=r"some_view|(?i:instr_rev)"):
                        question(using)
                else:
                    question(using)


@on_databases(transaction=True)
def test_a_read_that_locks_goes_to_the_database(cached: Watch, using: str) -> None:
    authors(using).create(name="a")
    with transaction.atomic(using):
        for question in (
            lambda: list(authors(using).select_for_update()),
            lambda: authors(using).select_for_update().get(name="a"),
            lambda: authors(using).select_for_update().first(),
        ):
            with cached.expect(Reason.SELECT_FOR_UPDATE):
                question()


@on_databases("postgresql", transaction=True)
def test_a_table_whose_name_is_escaped_is_not_looked_for(cached: Watch, using: str) -> None:
    tags = RawSQL(r"""(SELECT count(*) FROM U&"tests\005ftag")""", [])
    question = authors(using).annotate(tags=tags).values_list("tags", flat=True)
    authors(using).create(name="a")
    for count in range(2):
        with cached.expect(Reason.UNREADABLE_SQL):
            assert list(question.all()) == [count]
        Tag.objects.using(using).create(name=str(count))


@on_databases("default", transaction=True)
def test_raw_queries_are_none_of_ormcaches_reads(cached: Watch, using: str) -> None:
    with cached.expect():
        list(Author.objects.raw("SELECT * FROM tests_author"))
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM tests_author")


@on_databases(transaction=True)
def test_a_query_that_reads_no_table_is_asked_each_time(cached: Watch, using: str) -> None:
    for _ in range(2):
        with cached.expect(Reason.NO_TABLE):
            assert Q(x__gt=1).check({"x": Value(2)}, using=using)
        query = Query(None)
        query.add_annotation(Value(1), "one")
        with cached.expect(Reason.NO_TABLE):
            assert query.get_compiler(using).execute_sql("single") == (1,)


@on_databases("default", transaction=True)
@pytest.mark.parametrize("result_type", [NO_RESULTS, CURSOR, ROW_COUNT, None])
def test_other_kinds_of_result_pass_through(
    cached: Watch, using: str, result_type: str | None
) -> None:
    compiler = authors(using).all().query.get_compiler(using)
    with cached.expect():
        result = compiler.execute_sql(result_type)
    if result_type == CURSOR:
        assert result.fetchall() == []
        result.close()


@on_databases("postgresql", transaction=True)
def test_a_parameter_without_identity_goes_to_the_database(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(models.TextField):
        def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
            from psycopg.types.multirange import Multirange

            return Multirange([])

    question = authors(using).annotate(odd=Value("x", output_field=Odd())).values_list("odd")
    for _ in range(2):
        with cached.expect(Reason.PARAMETER):
            list(question.all())


# --- what the settings say -------------------------------------------------------------------


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "change, reason",
    [
        ({"ENABLED": False}, Reason.SWITCHED_OFF),
        ({"DATABASES": {"default": {"ENABLED": False}}}, Reason.DATABASE_OFF),
        ({"MODELS": {"tests.Author": {"ENABLED": False}}}, Reason.MODEL_OFF),
        ({"MODELS": {"tests.*": {"ENABLED": False}}}, Reason.MODEL_OFF),
        ({"CACHE_ALIAS": "dummy"}, Reason.NO_CACHE),
        ({"CACHE_ALIAS": "database"}, Reason.NO_CACHE),
        ({"CACHE_ALIAS": "filebased", "CONSISTENCY": "strict"}, Reason.NO_CACHE),
    ],
    ids=str,
)
def test_each_setting_that_switches_off_has_its_reason(
    cached: Watch, using: str, settings: Any, change: dict[str, Any], reason: Reason
) -> None:
    cached.warm(authors(using).count)
    settings.ORMCACHE = {**settings.ORMCACHE, **change}
    with cached.expect(reason, reason):
        authors(using).count()
        authors(using).count()


@on_databases("default", transaction=True)
def test_switches_of_other_databases_and_models_do_not_matter(
    cached: Watch, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "DATABASES": {"elsewhere": {"ENABLED": False}},
        "MODELS": {"tests.Tag": {"ENABLED": False}, "auth.*": {"ENABLED": False}},
    }
    cached.warm(authors(using).count)


# --- what the answer is ----------------------------------------------------------------------


def stored(cached: Watch, question: Callable[[], Any]) -> Reason | None:
    """Ask twice; why the first answer was not stored."""
    (_, first), (_, second) = cached.call(question), cached.call(question)
    reason = cached.reads[-1].reason
    assert (first, second) == (["miss"], ["hit" if reason is None else "miss"])
    return reason


@on_databases("default", transaction=True)
def test_an_answer_is_stored_up_to_the_limit_and_not_beyond(
    cached: Watch, using: str, settings: Any
) -> None:
    Note.objects.create(text="x" * 1000)

    def question() -> Any:
        return list(Note.objects.values_list("text"))

    size = len(codec.encode(codec.Result([("x" * 1000,)], "list")))
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": size - 1}
    assert stored(cached, question) is Reason.TOO_LARGE
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": size}
    assert stored(cached, question) is None


@on_databases("default", transaction=True)
def test_an_answer_that_can_not_fit_is_not_even_encoded(
    cached: Watch, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tag.objects.bulk_create(Tag(name=str(n)) for n in range(50))
    settings.ORMCACHE = {**settings.ORMCACHE, "MAX_RESULT_BYTES": 99}
    monkeypatch.setattr(codec, "encode", lambda result: pytest.fail("it was encoded"))
    with cached.expect("miss"):
        list(Tag.objects.all())
    assert cached.reads[-1].reason is Reason.TOO_LARGE


@on_databases("default", transaction=True)
def test_an_answer_of_an_unknown_type_is_not_stored(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Text(str):
        pass

    authors(using).create(name="a")
    connection.ensure_connection()
    connection.connection.text_factory = lambda data: Text(data.decode())
    try:
        with cached.expect("miss", "miss"):
            for _ in range(2):
                assert type(authors(using).get().name) is Text
        assert cached.reads[-1].reason is Reason.NOT_ENCODABLE
    finally:
        connection.close()


@on_databases("default", transaction=True)
def test_an_answer_that_fails_is_not_stored(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db.utils import OperationalError

    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(
            connection.ops.__class__,
            "quote_name",
            lambda self, name: f'"{name}_gone"',
        )
        authors(using).count()
    cached.warm(authors(using).count)


# --- where the read stands -------------------------------------------------------------------


@on_databases("postgresql", "mariadb", transaction=True)
@on_caches("locmem", "redis")
def test_a_table_written_in_the_transaction_is_read_from_the_database(
    cached: Watch, using: str, cache: str
) -> None:
    cached.warm(authors(using).count)
    cached.warm(Tag.objects.using(using).count)
    with transaction.atomic(using):
        assert cached.hit(authors(using).count) == 0
        authors(using).create(name="a")
        with cached.expect(Reason.WRITTEN_HERE, Reason.WRITTEN_HERE, "hit"):
            assert authors(using).count() == 1
            assert list(Book.objects.using(using).select_related("author")) == []
            Tag.objects.using(using).count()
    assert cached.miss(authors(using).count) == 1


@on_databases(transaction=True)
def test_a_snapshot_is_read_from_the_database(cached: Watch, using: str) -> None:
    alias = connections[using]
    cached.warm(authors(using).count)
    with transaction.atomic(using):
        if using != "default":
            with alias.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ") if (
                    using == "postgresql"
                ) else cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with cached.expect(Reason.SNAPSHOT):
            authors(using).count()
    alias.close()


@on_databases(transaction=True)
def test_reads_that_feed_a_write_go_to_the_database(cached: Watch, using: str) -> None:
    author = authors(using).create(name="a")
    book = Book.objects.using(using).create(title="b", author=author)
    tag = Tag.objects.using(using).create(name="t")
    Category.objects.using(using).create(name="c")
    italian = ItalianRestaurant.objects.using(using).create(name="i")

    def get_or_create() -> None:
        authors(using).get_or_create(name="a")

    def update_or_create() -> None:
        authors(using).update_or_create(name="a", defaults={"born": None})

    writes: dict[str, Callable[[], Any]] = {
        "get_or_create": get_or_create,
        "get_or_create new": lambda: authors(using).get_or_create(name="new"),
        "update_or_create": update_or_create,
        "related get_or_create": lambda: author.books.get_or_create(title="b"),
        "m2m set": lambda: book.tags.set([tag]),
        "m2m add": lambda: book.tags.add(tag),
        "m2m remove": lambda: book.tags.remove(tag),
        "m2m clear": lambda: book.tags.clear(),
        "reverse set": lambda: author.books.set([book]),
        "inherited update": lambda: (
            ItalianRestaurant.objects.using(using).filter(name="i").update(stars=1, name="j")
        ),
        "inherited save": lambda: italian.save(),
        "parent delete": lambda: Place.objects.using(using).filter(pk=italian.pk).delete(),
        "queryset delete": lambda: Publisher.objects.using(using).filter(name="p").delete(),
        "delete": lambda: author.delete(),
    }
    for name, write in writes.items():
        before = len(cached.reads)
        write()
        outcomes = set(cached.outcomes[before:])
        assert outcomes <= {Reason.FEEDS_WRITE, Reason.SELECT_FOR_UPDATE}, (name, outcomes)
    assert bypasses.feeds.depth == 0
    assert str(Reason.FEEDS_WRITE) in cached.outcomes


@on_databases("default", transaction=True)
def test_a_row_that_another_program_made_is_found_by_get_or_create(
    cached: Watch, using: str
) -> None:
    """The cached "no such row" must not decide."""
    cached.warm(lambda: Tag.objects.filter(name="t").first())
    write_behind_the_back("INSERT INTO tests_tag (name) VALUES ('t')")
    assert cached.hit(lambda: Tag.objects.filter(name="t").first()) is None
    _, created = Tag.objects.get_or_create(name="t")
    assert not created
    assert Tag.objects.update_or_create(name="t")[1] is False


@on_databases("default", transaction=True)
def test_rows_that_another_program_made_are_deleted_in_cascade(cached: Watch, using: str) -> None:
    author = Author.objects.create(name="a")
    cached.warm(lambda: list(Book.objects.filter(author=author)))
    write_behind_the_back(
        f"INSERT INTO tests_book (title, author_id, pages, price) VALUES ('b', {author.pk}, 1, 1)"
    )
    author.delete()
    assert Book.objects.count() == 0


@on_databases("default", transaction=True)
def test_rows_that_another_program_made_are_updated_through_inheritance(
    cached: Watch, using: str
) -> None:
    Restaurant.objects.create(name="a")
    with cached.expect(Reason.FEEDS_WRITE):
        Restaurant.objects.filter(stars=0).update(name="b")
    place = Place.objects.create(name="c")
    write_behind_the_back(
        f"INSERT INTO tests_restaurant (place_ptr_id, stars) VALUES ({place.pk}, 0)"
    )
    assert Restaurant.objects.filter(stars=0).update(name="d") == 2


def write_behind_the_back(sql: str) -> None:
    import sqlite3

    other = sqlite3.connect(connection.settings_dict["NAME"])
    try:
        other.execute(sql)
        other.commit()
    finally:
        other.close()


@on_databases("default", transaction=True)
def test_a_write_is_no_read(cached: Watch, using: str) -> None:
    with cached.expect():
        author = Author.objects.create(name="a")
        Author.objects.filter(pk=author.pk).update(name="b")
        Author.objects.bulk_create([Author(name="c"), Author(name="d")])
        Author.objects.bulk_update([author], ["name"])
        author.save()
        Author.objects.filter(pk=author.pk)._raw_delete(using)


@on_databases("default", transaction=True)
def test_an_empty_query_is_answered_by_django(
    cached: Watch, using: str, django_assert_num_queries: Any
) -> None:
    with cached.expect(), django_assert_num_queries(0):
        assert list(authors(using).none()) == []
        assert list(authors(using).filter(pk__in=[])) == []
        assert list(authors(using)[2:2]) == []
        assert authors(using).none().count() == 0
        assert authors(using).filter(pk__in=[]).exists() is False
        assert authors(using).none().aggregate(n=Count("*")) == {"n": 0}
        with pytest.raises(Author.DoesNotExist):
            authors(using).filter(pk__in=[]).get()


@on_databases("default", transaction=True)
def test_disabled_is_a_reason(cached: Watch, using: str) -> None:
    cached.warm(authors(using).count)
    with ormcache.disabled(), cached.expect(Reason.DISABLED):
        authors(using).count()
