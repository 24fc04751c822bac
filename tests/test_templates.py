"""Whoever left the template of a shape, queries are answered by it as if they were compiled."""

import asyncio
import datetime
import enum
import gc
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import django
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.db import OperationalError, connections, models, transaction
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import Avg, Count, F, Max, Min, Q, Sum
from django.db.models.functions import Length, Random
from django.test import SimpleTestCase
from django.test.utils import isolate_apps
from django.utils import timezone

import ormcache
from ormcache import plans, templates
from ormcache.conf import current
from ormcache.memo import Memo
from ormcache.reasons import Reason
from tests.exactness import exact
from tests.factories import AuthorFactory, AuthorProfileFactory, BookFactory, PublisherFactory
from tests.marks import on_caches, on_databases
from tests.models import (
    Author,
    Book,
    CheapBook,
    EveryField,
    Tag,
)
from tests.querysets import STEPS, WAYS, build
from tests.shaping import (
    bookshop,
    key_of,
    know_content_types,
    mirror,
)
from tests.watching import Watch

UTC = datetime.timezone.utc


# --- readers ---------------------------------------------------------------------------------


def read(ask: Callable[[], Any]) -> Any:
    """The answer, or the error, and what is known of it without another query."""
    try:
        return exact(ask())
    except OverflowError:
        # An integer that SQLite cannot hold: Python 3.12 may tell the connection's last error.
        return OperationalError
    except Exception as error:
        return type(error)


@pytest.fixture
def shelves() -> None:
    for number in range(3):
        author = AuthorFactory(name="a" if number else "b")
        AuthorProfileFactory(author=author)
        BookFactory(title="ab"[number % 2], author=author, pages=number, price=number)
    publisher = PublisherFactory(name="a")
    BookFactory(title="a", author=author, publisher=publisher, published=timezone.now())


@on_databases("default", transaction=True)
def test_templates_of_any_query_serve_any_other(cached: Watch, using: str, shelves: None) -> None:
    """In any order, so that templates are made by one query and used by others."""
    know_content_types(using)
    choice = random.Random(1)
    asked: list[Callable[[], Any]] = []
    while len(asked) < 500:
        steps = choice.choices(STEPS, k=choice.randint(0, 3))
        way = choice.choice(list(WAYS.values()))
        rows = build(steps, Book.objects.all())
        if rows is not None and not {"?", Random()}.intersection(rows.query.order_by):
            asked.append(lambda rows=rows, way=way: way(rows.all()))
    with ormcache.disabled():
        truth = [(ask, read(ask)) for ask in asked]
        # Some that fail do not fail alike each time, with Django alone.
        truth = [(ask, answer) for ask, answer in truth if read(ask) == answer]
    assert len(truth) > 450
    for _ in range(2):
        choice.shuffle(truth)
        for ask, answer in truth:
            assert read(ask) == answer
    assert cached.outcomes.count("hit") > 500


@pytest.fixture
def template_of_another(cached: Watch, shelves: None) -> Callable[..., Any]:
    """Let another query of the same shape leave the template and the answer be a hit."""

    def warm(ask: Callable[[str], Any], other: str = "b", own: str = "a") -> Any:
        ask(other)
        with ormcache.disabled():
            truth = exact(ask(own))
        assert exact(cached.miss(lambda: ask(own))) == truth
        assert exact(cached.hit(lambda: ask(own))) == truth
        return cached.hit(lambda: ask(own))

    return warm


READERS: dict[str, Callable[[str], Any]] = {
    "values_list, flat": lambda a: list(
        Book.objects.filter(title=a).values_list("price", flat=True)
    ),
    "values_list, named": lambda a: [
        (type(row).__name__, row._asdict())
        for row in Book.objects.filter(title=a).values_list("price", "title", named=True)
    ],
    "values": lambda a: list(Book.objects.filter(title=a).values("price", "author__name")),
    "aggregate": lambda a: Book.objects.filter(title=a).aggregate(n=Count("*")),
    "aggregates of columns": lambda a: Book.objects.filter(title=a).aggregate(
        Count("pk"), Max("published"), Min("price"), Avg("price"), Sum("pages"), Avg("pages")
    ),
    "count": lambda a: Book.objects.filter(title=a).count(),
    "exists": lambda a: Book.objects.filter(title=a).exists(),
    "first and last": lambda a: (
        Book.objects.filter(title=a).first(),
        Book.objects.filter(title=a).last(),
    ),
    "reverse": lambda a: list(Book.objects.filter(title=a).order_by("pages").reverse()),
    "proxy": lambda a: [
        (type(book).__name__, book.price) for book in CheapBook.objects.filter(title=a)
    ],
}


@pytest.mark.parametrize("ask", READERS.values(), ids=READERS)
@on_databases("default", transaction=True)
def test_each_reader_reads_through_a_template(
    ask: Callable[[str], Any], using: str, template_of_another: Any
) -> None:
    template_of_another(ask)


@on_databases("default", transaction=True)
def test_single_rows_come_through_templates(using: str, template_of_another: Any) -> None:
    one, other, *_ = Author.objects.order_by("pk").values_list("pk", flat=True)
    template_of_another(lambda key: Author.objects.get(pk=key), other, one)
    template_of_another(lambda key: Author.objects.in_bulk([key]), other, one)


@on_databases("default", transaction=True)
def test_what_select_related_loaded_needs_no_query(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Book.objects.select_related("author__profile", "publisher__city").order_by("pk")
    found = template_of_another(lambda title: list(rows.filter(title=title)))
    with cached.expect():
        assert [book.author.profile.author is book.author for book in found] == [True] * 3
        assert [book.publisher and book.publisher.city.name for book in found][:2] == [None, None]
        assert found[2].publisher.city.name


@on_databases("default", transaction=True)
def test_what_was_not_loaded_is_deferred(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Book.objects.only("title").order_by("pk")
    found = template_of_another(lambda title: list(rows.filter(title=title)))
    assert [book.get_deferred_fields() for book in found] == [
        {"author_id", "publisher_id", "pages", "price", "published"}
    ] * 3
    with cached.expect("miss"):
        assert found[0].pages == 0


if django.VERSION >= (6, 1):

    @on_databases("default", transaction=True)
    def test_peers_are_fetched_together(
        cached: Watch, using: str, template_of_another: Any
    ) -> None:
        rows = Book.objects.fetch_mode(models.FETCH_PEERS).order_by("pk")
        found = template_of_another(lambda title: list(rows.filter(title=title)))
        with cached.expect("miss"):
            assert {book.author.name for book in found} == {"a", "b"}


@on_databases("default", transaction=True)
def test_prefetched_rows_come_through_templates(
    cached: Watch, using: str, template_of_another: Any
) -> None:
    rows = Author.objects.prefetch_related("books").order_by("pk")
    found = template_of_another(lambda name: list(rows.filter(name=name)))
    with cached.expect():
        assert [len(author.books.all()) for author in found] == [1, 2]


@on_databases("default", transaction=True)
def test_asynchronous_readers_read_through_templates(
    cached: Watch, using: str, shelves: None
) -> None:
    async def ask(title: str) -> Any:
        rows = Book.objects.filter(title=title).order_by("pk")
        return [book.pk async for book in rows], await rows.acount(), (await rows.afirst()).pk

    asyncio.run(ask("b"))
    with ormcache.disabled():
        truth = asyncio.run(ask("a"))
    assert asyncio.run(ask("a")) == truth
    assert cached.hit(lambda: asyncio.run(ask("a"))) == truth


# --- keys ------------------------------------------------------------------------------------

KEYS = """
import json, sys, django
django.setup()
from tests.test_templates import keys_met_first_with
print(json.dumps(keys_met_first_with(sys.argv[1])))
"""

Rows = Callable[[Any], models.QuerySet[Any]]
# Of one shape each, and two values: with the second, Django may leave out the condition.
SHAPES: list[tuple[Rows, Any, Any]] = [
    (lambda title: Book.objects.filter(title=title), "a", "LIMIT 1 ORDER BY 2 WHERE 3"),
    (lambda pages: Book.objects.filter(pages__gte=pages), 5, -(2**63) - 1),
    (lambda pages: Book.objects.filter(pages__gt=pages).order_by("-pk"), 5, -(2**63) - 1),
    (lambda keys: Book.objects.filter(pk__in=keys)[:3], [1, 2], range(50)),
    (lambda name: Book.objects.filter(author__name=name).select_related("publisher"), "a", "b"),
    (lambda name: Book.objects.filter(author__name=name).order_by("author__name")[:1], "a", "b"),
    (lambda limit: Book.objects.only("title", "pages").order_by("title")[:limit], 3, None),
    (lambda start: Book.objects.values("title", "pages").distinct()[start:], 0, 3),
]


def keys_met_first_with(which: str) -> list[str]:
    """Keys of queries, in a process that met their shapes with these or with other values."""
    return [
        key_of(rows(one), rows({"itself": one, "others": other}[which]))
        for rows, one, other in SHAPES
    ]


def test_keys_are_the_same_in_a_process_that_met_other_values_first() -> None:
    found = []
    for which, seed in (("itself", "1"), ("others", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        output = subprocess.run(
            [sys.executable, "-c", KEYS, which],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found.append(json.loads(output))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])


def versions_of_a_project(**changes: Any) -> tuple[Any, Any]:
    """Models of one version, whose names are those of the other."""
    with isolate_apps("tests"):
        author_meta = {"ordering": changes.get("authors_ordering", ["name"])}
        author = type(
            "Writer",
            (models.Model,),
            {
                "name": models.CharField(max_length=9),
                "Meta": type("Meta", (), {"app_label": "tests", **author_meta}),
                "__module__": __name__,
            },
        )
        meta = {"ordering": changes.get("ordering", []), "db_table": changes.get("table", "work")}
        book = type(
            "Work",
            (models.Model,),
            {
                "title": models.CharField(max_length=9, db_column=changes.get("column", "title")),
                "author": models.ForeignKey(author, models.CASCADE, related_name="+"),
                "Meta": type("Meta", (), {"app_label": "tests", **meta}),
                "__module__": __name__,
            },
        )
    return author, book


@pytest.mark.parametrize(
    "change",
    [
        {"ordering": ["title"]},
        {"ordering": [F("title").desc(nulls_last=True)]},
        {"column": "title_2"},
        {"table": "work_2"},
        {"authors_ordering": ["-name"]},
        {"authors_ordering": []},
    ],
    ids=str,
)
def test_another_version_of_a_project_has_other_keys(change: dict[str, Any]) -> None:
    def key(**changes: Any) -> str:
        _, book = versions_of_a_project(**changes)
        rows = book.objects.filter(title="a")
        return key_of(rows.order_by("author") if "authors_ordering" in change else rows)

    assert key() == key()
    assert key() != key(**change)


class Shout(models.CharField):
    """What is read is not what is stored."""

    def from_db_value(self, value: str, *args: Any) -> str:
        return value.upper()


class Spelled(models.CharField):
    """What is asked for is not what the caller says."""

    def get_prep_value(self, value: Any) -> Any:
        return {1: "one"}.get(value, value)


def version_with(field: models.Field, of: type[models.Model], name: str) -> Any:
    """One version of a model, whose name and columns are those of the other versions."""
    with isolate_apps("tests"):
        return mirror("Version", of, {name: field})


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (models.CharField(), models.TextField(), "1"),
        (models.IntegerField(), models.BigIntegerField(), 1),
        (models.IntegerField(), models.BooleanField(), True),
        (models.JSONField(), models.JSONField(encoder=DjangoJSONEncoder), "a"),
        (models.DecimalField(decimal_places=1), models.DecimalField(decimal_places=2), Decimal(1)),
        (models.GenericIPAddressField(), models.GenericIPAddressField(unpack_ipv4=True), "::1"),
        (models.CharField(max_length=9), models.CharField(max_length=9, db_collation="C"), "a"),
    ],
    ids=lambda value: repr(value),
)
def test_a_field_that_is_declared_in_another_way_has_other_keys(
    one: models.Field, other: models.Field, value: Any
) -> None:
    def key(field: models.Field) -> str:
        return key_of(version_with(field.clone(), Book, "title").objects.filter(title=value))

    assert key(one) == key(one)
    assert key(one) != key(other)


def test_so_has_a_foreign_key_to_such_a_field() -> None:
    def key(**options: Any) -> str:
        with isolate_apps("tests"):
            _, books = bookshop(key=models.CharField(primary_key=True, **options))
            return key_of(books.objects.filter(author="a"))

    assert key() == key()
    assert key() != key(max_length=5)


def test_declarations_that_differ_in_each_process_are_no_part_of_a_key() -> None:
    def key(default: Any) -> str:
        field = models.CharField(default=lambda: default, choices=[("a", default)])
        return key_of(version_with(field, Book, "title").objects.filter(title="a"))

    assert key("a") == key("b")


@on_databases(transaction=True)
@on_caches("redis")
def test_versions_that_read_the_same_columns_share_answers_and_convert_them_themselves(
    cached: Watch, using: str
) -> None:
    Tag.objects.using(using).create(name="a")
    plain = version_with(models.CharField(), Tag, "name")
    loud = version_with(Shout(), Tag, "name")

    def all_columns(model: Any) -> list[str]:
        return [row.name for row in model.objects.using(using)]

    def without_a_shape(model: Any) -> list[str]:
        rows = model.objects.using(using).annotate(length=Length("name"))
        return list(rows.values_list("name", flat=True))

    for question in (all_columns, without_a_shape):
        assert cached.miss(lambda question=question: question(plain)) == ["a"]
        assert cached.hit(lambda question=question: question(loud)) == ["A"]
        assert cached.hit(lambda question=question: question(plain)) == ["a"]


@on_databases("default", "postgresql", transaction=True)
def test_versions_that_decode_differently_share_answers(cached: Watch, using: str) -> None:
    class Decoder(json.JSONDecoder):
        def decode(self, text: str) -> Any:
            return ["decoded", super().decode(text)]

    EveryField.objects.using(using).create(json={"a": 1})
    one = version_with(models.JSONField(), EveryField, "json")
    other = version_with(models.JSONField(decoder=Decoder), EveryField, "json")

    def read(model: Any) -> Any:
        return [row.json for row in model.objects.using(using)]

    assert cached.miss(lambda: read(one)) == [{"a": 1}]
    assert cached.hit(lambda: read(other)) == [["decoded", {"a": 1}]]


@on_databases(transaction=True)
@on_caches("redis")
def test_versions_that_ask_for_other_values_do_not_share_answers(
    cached: Watch, using: str
) -> None:
    """1 is "1" to one version, and "one" to the other."""
    for name in ("1", "one"):
        Tag.objects.using(using).create(name=name)
    old = version_with(models.CharField(), Tag, "name")
    new = version_with(Spelled(), Tag, "name")

    def ask(model: Any) -> list[str]:
        return list(model.objects.using(using).filter(name=1).values_list("name", flat=True))

    for _ in range(2):
        assert cached.call(lambda: ask(old))[0] == ["1"]
        assert cached.call(lambda: ask(new))[0] == ["one"]
    assert cached.outcomes == ["miss", "miss", "hit", "hit"]


@on_databases("default", transaction=True)
def test_versions_whose_choices_are_spelled_otherwise_do_not_share_answers(
    cached: Watch, using: str
) -> None:
    class Old(int, enum.Enum):
        ONE = 1

        def __str__(self) -> str:
            return "1"

    class New(int, enum.Enum):
        ONE = 1

        def __str__(self) -> str:
            return "one"

    New.__qualname__ = Old.__qualname__
    for name in ("1", "one"):
        Tag.objects.create(name=name)

    def ask(choice: Any) -> list[str]:
        return list(Tag.objects.filter(name=choice).values_list("name", flat=True))

    for _ in range(2):
        assert cached.call(lambda: ask(Old.ONE))[0] == ["1"]
        assert cached.call(lambda: ask(New.ONE))[0] == ["one"]


# --- the memo --------------------------------------------------------------------------------


def memo() -> dict[Any, Any]:
    return templates.templates(current())


@on_databases("default", transaction=True)
def test_models_of_migrations_are_other_models(cached: Watch, using: str, shelves: None) -> None:
    rows = Author.objects.filter(name="a").order_by("pk")
    real = cached.warm(lambda: list(rows.all()))
    fields = [("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]
    state = ProjectState()
    state.add_model(ModelState("tests", "Author", fields))
    for _ in range(2):
        historical = state.clone().apps.get_model("tests", "Author")
        found = [list(historical.objects.filter(name="a").order_by("pk")) for _ in range(2)]
        for authors in found:
            assert [type(author) for author in authors] == [historical] * 2
            assert [author.pk for author in authors] == [author.pk for author in real]
            assert "born" not in vars(authors[0])
    assert [type(author) for author in rows.all()] == [Author] * 2


@on_databases("default", transaction=True)
def test_models_that_are_made_anew_are_other_models(
    cached: Watch, using: str, shelves: None
) -> None:
    """Also where the fields of the new one take the places of the old ones in memory."""
    for number in range(20):
        title = ("title", "pages")[number % 2]
        with isolate_apps("tests"):
            book = mirror(
                "MirrorBook",
                Book,
                {"text": models.CharField(max_length=9, db_column=title)},
            )
            with ormcache.disabled():
                truth = [row.text for row in book.objects.filter(text__gt="0").order_by("pk")]
            for _ in range(2):
                found = book.objects.filter(text__gt="0").order_by("pk")
                assert [row.text for row in found] == truth
                assert {type(row) for row in found} <= {book}
        del book, found
        gc.collect()


@on_databases("default", transaction=True)
def test_templates_go_when_settings_change_or_models_are_made(
    cached: Watch, using: str, settings: Any
) -> None:
    Book.objects.count()
    assert memo()
    settings.ORMCACHE = {**settings.ORMCACHE}
    assert not memo()
    Book.objects.count()
    assert memo()
    with isolate_apps("tests"):
        bookshop()
        assert not memo()


@on_databases("default", transaction=True)
def test_switching_a_model_off_reaches_queries_of_known_shape(
    cached: Watch, using: str, settings: Any
) -> None:
    cached.warm(lambda: Book.objects.count())
    settings.ORMCACHE = {**settings.ORMCACHE, "MODELS": {"tests.Book": {"ENABLED": False}}}
    with cached.expect(Reason.MODEL_OFF):
        Book.objects.count()


@on_databases("default", transaction=True)
def test_the_memo_is_bounded(cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_memo", Memo(limit=5))
    sizes = []
    for number in range(1, 20):
        conditions = Q(*(("pages", page) for page in range(number)), _connector="OR")
        Book.objects.filter(conditions).count()
        sizes.append(len(memo()))
    assert max(sizes) <= 6
    assert sizes.count(1) > 1


@on_databases("default", transaction=True)
def test_a_template_keeps_no_values(cached: Watch, using: str) -> None:
    marker = "a title that nothing else has"
    list(Book.objects.filter(title__in=[marker] * 1000, author__name=marker))
    gc.collect()
    kept = [template for template in memo().values() if template is not None]
    assert kept
    seen: set[int] = set()
    waiting: list[Any] = [*memo(), *kept]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, type(os))) or callable(thing):
            continue
        seen.add(id(thing))
        assert not (type(thing) is str and thing == marker)
        assert not isinstance(thing, models.sql.Query)
        waiting.extend(gc.get_referents(thing))


# --- making a plan ---------------------------------------------------------------------------


@on_databases("default", transaction=True)
def test_threads_that_meet_a_shape_at_once_agree(
    cached: Watch, using: str, shelves: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=10)
    make = templates.make_template

    def make_together(*args: Any) -> Any:
        together.wait()
        return make(*args)

    monkeypatch.setattr(plans, "make_template", make_together)
    found: dict[str, list[Any]] = {}

    def ask(title: str) -> None:
        try:
            found[title] = [book.title for book in Book.objects.filter(title=title)]
        finally:
            connections[using].close()

    threads = [threading.Thread(target=ask, args=(title,)) for title in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"a": ["a"] * 3, "b": ["b"], "c": []}
    assert len(memo()) == 1
    for title, truth in found.items():
        rows = Book.objects.filter(title=title)
        again = cached.hit(lambda rows=rows: list(rows))
        assert [book.title for book in again] == truth


@on_databases("default", transaction=True)
def test_an_answer_from_other_tables_than_the_templates_is_not_stored(
    cached: Watch, using: str, shelves: None
) -> None:
    rows = Book.objects.filter(title="a")
    list(rows.all())
    (template,) = memo().values()
    template.tables = ("tests_author",)
    # So that it is compiled as a whole.
    template.text = None
    rows = Book.objects.filter(title="b")
    for _ in range(2):
        with cached.expect("miss"):
            assert [book.title for book in rows.all()] == ["b"]
        assert cached.reads[-1].reason is Reason.UNREADABLE_SQL


@on_databases("default", transaction=True)
def test_a_first_query_that_fails_or_is_empty_spoils_the_shape_for_none(
    cached: Watch, using: str, shelves: None
) -> None:
    with pytest.raises(ValueError, match="must be True or False"):
        list(Book.objects.filter(publisher__isnull=1))
    assert list(Book.objects.filter(pages__lt=-(2**63) - 1)) == []
    cached.warm(lambda: list(Book.objects.filter(publisher__isnull=True)))
    cached.warm(lambda: list(Book.objects.filter(pages__lt=2)))


# --- queries that cannot have rows -----------------------------------------------------------

impossible = Book.objects.filter(pages__lt=-(2**63) - 1)


@pytest.fixture
def known_shape(cached: Watch) -> None:
    list(Book.objects.filter(pages__lt=2))
    assert len(memo()) == 1


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_coroutine(using: str, known_shape: None) -> None:
    async def ask() -> Any:
        with pytest.raises(SynchronousOnlyOperation):
            list(Book.objects.filter(pages__lt=2))
        return list(impossible.all())

    assert asyncio.run(ask()) == []


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_simple_test_case(
    using: str, known_shape: None
) -> None:
    class Test(SimpleTestCase):
        def test(self) -> None:
            self.found = list(impossible.all()), impossible.count(), impossible.exists()
            with pytest.raises(AssertionError, match="Database queries to 'default' are not"):
                list(Book.objects.filter(pages__lt=2))

    test = Test("test")
    Test.setUpClass()
    try:
        test.test()
    finally:
        Test.doClassCleanups()
    assert test.found == ([], 0, False)


@on_databases("default", transaction=True)
def test_an_impossible_query_is_answered_in_a_broken_transaction(
    using: str, known_shape: None
) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        assert list(impossible.all()) == []
        with pytest.raises(transaction.TransactionManagementError):
            list(Book.objects.filter(pages__lt=2))
