"""The tables that ormcache finds in a query or statement are those that the database accesses."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import django
import hypothesis
import pytest
from django.core.exceptions import EmptyResultSet
from django.core.management import call_command
from django.db import connection, models
from django.db.models import Case, Count, Exists, F, Q, Subquery, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Length
from django.test.utils import isolate_apps
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import ormcache
from ormcache import conf, snapshots, sql, tables
from ormcache.reasons import Reason
from ormcache.stores import EVERYTHING
from tests import factories
from tests.authorizer import Authorizer
from tests.marks import on_databases
from tests.models import (
    Author,
    AuthorBooks,
    Book,
    Category,
    CheapBook,
    CompositeKey,
    Generated,
    ItalianRestaurant,
    Place,
    Publisher,
    Tag,
)
from tests.queries import (
    QUERIES,
    city_of_publisher,
    famous,
    in_europe,
    tagged,
    tags_of_book,
)
from tests.watching import Watch

DEPENDS_ON = {"DEPENDS_ON": {"tests_author_books": ["tests_author", "tests_book"]}}


def fill_bookshop() -> None:
    book = factories.BookFactory(
        pk=1,
        author__pk=1,
        tags=[factories.TagFactory(pk=1, name="new")],
        publisher=factories.PublisherFactory(),
    )
    factories.AuthorProfileFactory(author=book.author)
    factories.ContributionFactory(book=book, author=book.author)
    factories.CommentFactory(pk=1, subject=book)
    factories.ItalianRestaurantFactory(pk=1)
    CompositeKey.objects.create(pk=(1, 1), book=book)
    if django.VERSION >= (6, 1):
        grandparent = Grandparent.objects.create(pk=1, name="a")
        Parent.objects.create(pk=1, name="a", grandparent=grandparent)


@pytest.fixture(scope="module")
def bookshop(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """A row of everything, committed: without rows nothing is prefetched."""
    with django_db_blocker.unblock():
        fill_bookshop()
        yield
        call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=False)


@pytest.fixture
def watch(bookshop: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    # The transaction around the test is no reason not to look at its queries.
    monkeypatch.setattr(snapshots, "why_not_read", lambda *args: None)
    settings.ORMCACHE = {**settings.ORMCACHE, **DEPENDS_ON}
    # Nothing is answered by the cache: the transaction has "written" all tables.
    ormcache.flush()
    with Watch() as watch:
        yield watch


def read(question: Callable[[], Any], watch: Watch) -> list[tuple[set[str], set[str]]]:
    """For each SELECT: what ormcache says that it reads, and what SQLite says."""
    watch.clear()
    with Authorizer() as access:
        question()
    assert len(watch.reads) == len(access.reads) > 0
    return [
        (set(read.tables), truth) for read, truth in zip(watch.reads, access.reads, strict=True)
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("name", QUERIES)
def test_query(name: str, watch: Watch) -> None:
    for found, truth in read(QUERIES[name], watch):
        assert truth <= found
        assert found == truth


# --- any combination -----------------------------------------------------------------------

LOOKUPS = [
    {"title": "a"},
    {"author__name": "a"},
    {"author__profile__biography__contains": "a"},
    {"publisher__city__country__name__in": ["a", "b"]},
    {"publisher__isnull": True},
    {"tags__name": "a"},
    {"contributors__born__year": 1900},
    {"comments__text": "a"},
    {"author__in": famous},
    {"publisher__in": in_europe},
    {"pk__in": tagged.values("pk")},
    {"title": F("author__name")},
    {"copies__shelf": 1},
]
ANNOTATIONS = {
    "tag_count": Count("tags"),
    "few": Count("comments", filter=Q(author__in=famous)),
    "city": Subquery(city_of_publisher),
    "tagged": Exists(tags_of_book),
    "not_tagged": ~Exists(tags_of_book.filter(books__author__name="a")),
    "kind": Case(When(publisher__in=in_europe, then=Value(1)), default=F("author__books__pages")),
    "plus": Coalesce(Subquery(tags_of_book.values(n=Length("name"))[:1]), 0) + 1,
}
ORDERS = ["title", "author__name", "-publisher__city__name", "tags__name", "?"]

conditions = st.recursive(
    st.sampled_from(LOOKUPS).map(lambda lookup: Q(**lookup)),
    lambda inner: st.one_of(
        inner.map(operator.invert),
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=5,
)


@st.composite
def querysets(draw: st.DrawFn) -> Any:
    queryset = Book.objects.filter(draw(conditions))
    for name in draw(st.lists(st.sampled_from(sorted(ANNOTATIONS)), unique=True, max_size=3)):
        queryset = queryset.annotate(**{name: ANNOTATIONS[name]})
    if draw(st.booleans()):
        queryset = queryset.exclude(draw(conditions))
    queryset = queryset.order_by(*draw(st.lists(st.sampled_from(ORDERS), max_size=2)))
    if draw(st.booleans()):
        queryset = queryset.select_related("publisher__city", "author__profile")
    if draw(st.booleans()):
        queryset = queryset[:3]
    return draw(st.sampled_from([list, lambda rows: rows.count(), lambda rows: rows.exists()])), (
        queryset
    )


@pytest.mark.django_db
@given(querysets())
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_combination_of_conditions_annotations_and_orders(watch: Watch, question: Any) -> None:
    ask, queryset = question
    watch.clear()
    for found, truth in read(lambda: ask(queryset.all()), watch):
        assert found == truth


@pytest.mark.django_db
def test_names_in_strings_and_columns_are_taken_for_tables(watch: Watch) -> None:
    """Of text that is written by hand each word counts: too many tables, never too few."""
    books = Book.objects.annotate(x=RawSQL("'tests_tag'", []))
    ((found, truth), *_) = read(lambda: list(books), watch)
    assert (found, truth) == ({"tests_book", "tests_tag"}, {"tests_book"})


# --- views and unmanaged models ------------------------------------------------------------


def facts_of(queryset: Any, **options: Any) -> tables.Facts:
    """What is known of a query under these settings."""
    text, _, recorded, handwritten, _ = tables.compile_query(
        queryset.query.get_compiler("default")
    )
    return tables.facts(text, recorded, handwritten, "sqlite", conf.Settings(**options))


@pytest.mark.parametrize(
    "question", [AuthorBooks.objects.all(), Author.objects.filter(authorbooks__books=1)]
)
def test_unmanaged_model_is_not_cached_by_default(question: Any) -> None:
    """Its table may be a view, and nothing tells when the rows of a view change."""
    facts = facts_of(question)
    assert facts.reason is Reason.UNMANAGED
    assert facts.detail == "tests_author_books"


def test_unmanaged_model_is_cached_with_the_tables_that_it_depends_on() -> None:
    facts = facts_of(
        AuthorBooks.objects.all(), DEPENDS_ON={"Tests_Author_Books": ["tests_book", "Other"]}
    )
    assert facts[:3] == (("other", "tests_author_books", "tests_book"), None, "")


def test_unmanaged_model_that_depends_on_nothing_is_a_plain_table() -> None:
    facts = facts_of(AuthorBooks.objects.all(), DEPENDS_ON={"tests_author_books": []})
    assert facts[:3] == (("tests_author_books",), None, "")


@pytest.mark.parametrize("label", ["tests.AuthorBooks", "tests.*"])
def test_enabling_an_unmanaged_model_vouches_for_its_table(label: str) -> None:
    models = {label: conf.ModelSettings(ENABLED=True)}
    assert facts_of(AuthorBooks.objects.all(), MODELS=models).reason is None


@pytest.mark.parametrize("label", ["tests.Author", "other.*", "*"])
def test_enabling_another_model_does_not_vouch_for_an_unmanaged_one(label: str) -> None:
    models = {label: conf.ModelSettings(ENABLED=True)}
    assert facts_of(AuthorBooks.objects.all(), MODELS=models).reason is Reason.UNMANAGED


def test_timeout_of_an_unmanaged_model_does_not_vouch_for_it() -> None:
    models = {"tests.AuthorBooks": conf.ModelSettings(TIMEOUT=5)}
    assert facts_of(AuthorBooks.objects.all(), MODELS=models).reason is Reason.UNMANAGED


def test_unmanaged_twin_of_a_managed_model_is_cached() -> None:
    with isolate_apps("tests"):

        class Twin(models.Model):
            class Meta:
                managed = False
                db_table = "tests_author"

    assert tables._unmanaged([Twin, Author]) == set()


def test_proxy_of_an_unmanaged_model_is_unmanaged() -> None:
    with isolate_apps("tests"):

        class Other(AuthorBooks):
            class Meta:
                proxy = True

    assert Other._meta.managed
    assert set(tables._unmanaged([AuthorBooks, Other])) == {"tests_author_books"}


def test_dependencies_of_a_dependency_belong_to_a_query() -> None:
    """A view on a view."""
    declared = {"tests_author_books": ["inner_view"], "inner_view": ["tests_book"]}
    facts = facts_of(AuthorBooks.objects.all(), DEPENDS_ON=declared)
    assert facts.tables == ("inner_view", "tests_author_books", "tests_book")


def test_dependencies_may_be_circular() -> None:
    declared = {"tests_author_books": ["b"], "b": ["tests_author_books"]}
    facts = facts_of(AuthorBooks.objects.all(), DEPENDS_ON=declared)
    assert facts.tables == ("b", "tests_author_books")


@on_databases("default", transaction=True)
def test_view_follows_its_tables_once_they_are_declared(cached: Watch, settings: Any) -> None:
    author = factories.AuthorFactory()

    def books() -> int:
        return AuthorBooks.objects.get(author=author).books

    assert cached.call(books) == (0, [str(Reason.UNMANAGED)])
    settings.ORMCACHE = {**settings.ORMCACHE, **DEPENDS_ON}
    assert cached.warm(books) == 0
    factories.BookFactory(author=author)
    assert cached.warm(books) == 1


# --- hand-written SQL ----------------------------------------------------------------------


def with_raw(text: str) -> Any:
    return Book.objects.annotate(x=RawSQL(text, []))


def test_unknown_table_in_a_fragment_is_refused_by_name() -> None:
    facts = facts_of(with_raw("(SELECT MAX(a) FROM somewhere.Some_View v)"))
    assert (facts.reason, facts.detail) == (Reason.UNKNOWN_TABLE, "some_view")


def test_declared_view_in_a_fragment_is_read_with_its_tables() -> None:
    facts = facts_of(
        with_raw("(SELECT MAX(a) FROM some_view)"), DEPENDS_ON={"some_view": ["elsewhere"]}
    )
    assert facts[:3] == (("elsewhere", "some_view", "tests_book"), None, "")


@pytest.mark.parametrize("name", ["extra_view", "pg_stat_activity", "Extra View", "sqlite_master"])
def test_a_table_of_extra_is_a_name_like_any_other_that_is_written_by_hand(name: str) -> None:
    queryset = Book.objects.extra(tables=[name])
    facts = facts_of(queryset)
    assert (facts.reason, facts.detail) == (Reason.UNKNOWN_TABLE, sql.fold(name))
    # It has not become known by being refused.
    assert facts_of(queryset).reason is Reason.UNKNOWN_TABLE
    facts = facts_of(queryset, DEPENDS_ON={name: ["elsewhere"]})
    assert facts[:2] == (tuple(sorted(["elsewhere", sql.fold(name), "tests_book"])), None)


def test_declared_function_is_read_with_its_tables() -> None:
    facts = facts_of(with_raw("myschema.best_of(3)"), DEPENDS_ON={"best_of": ["tests_tag"]})
    assert facts[:3] == (("tests_book", "tests_tag"), None, "")


@pytest.mark.parametrize(
    "queryset",
    [
        with_raw("(SELECT 1 FROM tests_tag)"),
        with_raw("1 + 1"),
        Book.objects.annotate(
            x=Coalesce(RawSQL("pages", []), Value(0), output_field=models.IntegerField())
        ),
        Book.objects.filter(pages__gt=RawSQL("1 + 1", [])),
        Book.objects.filter(Q(title="a") | Q(pages__in=RawSQL("1 + 1", []))),
        Book.objects.order_by(RawSQL("pages", []).desc()),
        Author.objects.filter(books__in=with_raw("1 + 1").filter(x=2).values("pk")),
        Book.objects.extra(where=["pages > 3"]),
        Book.objects.extra(where=["pages > 3"]) | Book.objects.filter(title="a"),
        Book.objects.extra(select={"x": "pages"}),
        Book.objects.extra(order_by=["pages"]),
        Book.objects.extra(tables=["tests_tag"]),
    ],
)
def test_fragments_can_be_refused_altogether(queryset: Any, settings: Any) -> None:
    assert facts_of(queryset).reason is None
    settings.ORMCACHE = {"CACHE_EXTRA": False}
    assert facts_of(queryset, CACHE_EXTRA=False).reason is Reason.RAW_FRAGMENT


def test_refusing_fragments_refuses_nothing_else(settings: Any) -> None:
    settings.ORMCACHE = {"CACHE_EXTRA": False}
    queryset = Author.objects.filter(Exists(Book.objects.filter(pages__gt=F("author")))).order_by(
        Coalesce("name", Value("a"))
    )
    assert facts_of(queryset, CACHE_EXTRA=False).reason is None


def test_query_without_a_table_is_refused() -> None:
    facts = tables.facts("SELECT 1", [], False, "sqlite", conf.Settings())
    assert facts.reason is Reason.NO_TABLE


def test_text_that_is_not_understood_is_refused() -> None:
    facts = tables.facts("SELECT 1 FROM tests_book, 3", [], False, "sqlite", conf.Settings())
    assert facts.reason is Reason.UNREADABLE_SQL


def test_facts_are_forgotten_with_the_settings() -> None:
    queryset = AuthorBooks.objects.all()
    assert facts_of(queryset).reason is Reason.UNMANAGED
    assert facts_of(queryset, DEPENDS_ON={"tests_author_books": []}).reason is None
    assert facts_of(queryset).reason is Reason.UNMANAGED


def test_facts_are_forgotten_when_a_model_is_made() -> None:
    """Its table may have been a mere word before."""
    before = tables.known.generation
    with isolate_apps("tests"):

        class New(models.Model):
            pass

    assert tables.known.generation > before


def test_table_that_belongs_to_no_model_is_known_once_it_was_read() -> None:
    """What the recorder saw for one query the words of another's text may name."""
    facts = tables.facts(
        'SELECT 1 FROM "no_models_own"', ["no_models_own"], False, "sqlite", conf.Settings()
    )
    assert facts.tables == ("no_models_own",)
    assert "no_models_own" in tables.known.names()


def test_name_of_several_words_is_found_in_a_text() -> None:
    with isolate_apps("tests"):
        known = tables._Known()
        known._seen = {"odd table-name", "2024"}
        known.names()
        assert known.among(sql.words('SELECT 1 FROM "Odd Table-Name"')) >= {"odd table-name"}


def test_recording_is_nested_and_ends_with_an_error() -> None:
    """Compiling one query may compile, and fail to compile, another."""

    class Compiler:
        query = Tag.objects.none().query

        def as_sql(self) -> tuple[str, tuple[Any, ...]]:
            with pytest.raises(EmptyResultSet):
                tables.compile_query(Tag.objects.none().query.get_compiler("default"))
            tables.record(Book.objects.filter(author__name="a").query)
            return "", ()

    assert tables.compile_query(Compiler())[2] == {"tests_book", "tests_author"}
    assert tables._recorder.tables is None


# --- writes --------------------------------------------------------------------------------


def write_by_hand(*statements: str) -> Callable[[], None]:
    def write() -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    return write


def write_script() -> None:
    with connection.cursor() as cursor:
        cursor.executescript(
            "INSERT INTO tests_tag (name) VALUES ('a;b'); -- UPDATE tests_city\n"
            "DELETE FROM LegacyTable; UPDATE tests_note SET text = 'it''s';"
        )


def save_child() -> None:
    restaurant = ItalianRestaurant.objects.get()
    restaurant.stars = 3
    restaurant.save()


WRITES: dict[str, Callable[[], Any]] = {
    "create": lambda: Author.objects.create(name="a"),
    "save": lambda: Author.objects.get().save(),
    "save of some fields": lambda: Author(pk=1, name="x").save(update_fields=["name"]),
    "get_or_create": lambda: Tag.objects.get_or_create(name="other"),
    "update_or_create": lambda: Tag.objects.update_or_create(name="new", defaults={"name": "x"}),
    "create with generated columns": lambda: Generated.objects.create(width=1, height=2),
    "create with a composite key": lambda: CompositeKey.objects.create(pk=(7, 7), book_id=1),
    "create of a child": lambda: ItalianRestaurant.objects.create(name="a"),
    "save of a child": save_child,
    "save of a proxy": lambda: CheapBook(pk=1, author_id=1).save(),
    "update": lambda: Book.objects.update(title="b"),
    "update with F": lambda: Book.objects.update(pages=F("pages") + 1),
    "update over a join": lambda: Book.objects.filter(author__name__gt="").update(title="b"),
    "update with a subquery": lambda: Book.objects.update(
        title=Subquery(Author.objects.values("name")[:1])
    ),
    "update of a parent's column": lambda: ItalianRestaurant.objects.update(name="b"),
    "update of all levels": lambda: ItalianRestaurant.objects.update(
        name="b", stars=3, serves_pizza=False
    ),
    "bulk_create": lambda: Tag.objects.bulk_create([Tag(name="x"), Tag(name="y")]),
    "bulk_create, conflicts ignored": lambda: Tag.objects.bulk_create(
        [Tag(name="new")], ignore_conflicts=True
    ),
    "bulk_create, conflicts updated": lambda: Tag.objects.bulk_create(
        [Tag(name="new")],
        update_conflicts=True,
        update_fields=["name"],
        unique_fields=["name"],
    ),
    "bulk_update": lambda: Book.objects.bulk_update(Book.objects.all(), ["title"]),
    "bulk_update of a child": lambda: ItalianRestaurant.objects.bulk_update(
        ItalianRestaurant.objects.all(), ["name", "stars"]
    ),
    "related manager, create": lambda: Author.objects.get().books.create(title="x"),
    "related manager, add": lambda: Author.objects.get().books.add(Book.objects.get()),
    "many to many, add": lambda: Book.objects.get().tags.add(Tag.objects.create(name="x")),
    "many to many, create": lambda: Book.objects.get().tags.create(name="x"),
    "many to many, set": lambda: Book.objects.get().tags.set([]),
    "many to many, remove": lambda: Book.objects.get().tags.remove(1),
    "many to many, clear": lambda: Book.objects.get().tags.clear(),
    "many to many, reverse": lambda: Tag.objects.get().books.set([]),
    "many to many, through": lambda: Book.objects.get().contributors.set([]),
    "delete": lambda: Book.objects.get().delete(),
    "delete of a queryset": lambda: Book.objects.filter(author__name__gt="").delete(),
    "delete with cascades": lambda: Author.objects.all().delete(),
    "delete with SET_NULL": lambda: Publisher.objects.all().delete(),
    "delete of a child": lambda: ItalianRestaurant.objects.get().delete(),
    "delete of a child, its parents kept": lambda: ItalianRestaurant.objects.get().delete(
        keep_parents=True
    ),
    "delete of a parent": lambda: Place.objects.all().delete(),
    "delete with a generic relation": lambda: Book.objects.get().comments.all().delete(),
    "delete of a tree": lambda: Category.objects.create(name="a").delete(),
    "raw delete": lambda: Book.objects.filter(pk=0)._raw_delete("default"),
    "by hand, INSERT": write_by_hand("INSERT INTO \"tests_tag\" (name) VALUES ('x')"),
    "by hand, INSERT of a query": write_by_hand(
        "insert into tests_tag (name) select name || 'x' from tests_author"
    ),
    "by hand, INSERT without columns": write_by_hand("INSERT INTO tests_note DEFAULT VALUES"),
    "by hand, upsert": write_by_hand(
        "INSERT INTO tests_tag (name) VALUES ('new') ON CONFLICT (name) DO UPDATE SET name = 'x'"
    ),
    "by hand, REPLACE": write_by_hand("REPLACE INTO Tests_Tag (id, name) VALUES (1, 'x')"),
    "by hand, INSERT OR REPLACE": write_by_hand(
        "INSERT OR REPLACE INTO main.tests_tag (id, name) VALUES (1, 'x')"
    ),
    "by hand, UPDATE": write_by_hand("/* ; */ UPDATE [LegacyTable] SET name = 'x'"),
    "by hand, UPDATE FROM": write_by_hand(
        "UPDATE tests_book AS b SET title = a.name FROM tests_author AS a WHERE a.id = b.author_id"
    ),
    "by hand, DELETE": write_by_hand("DELETE FROM `tests_comment`"),
    "by hand, DELETE with a query": write_by_hand(
        "DELETE FROM tests_contribution WHERE book_id IN (SELECT id FROM tests_book)"
    ),
    "by hand, WITH": write_by_hand(
        "WITH x AS (SELECT 'x' AS n) INSERT INTO tests_tag (name) SELECT n FROM x",
        "WITH x AS (SELECT 1 AS n) UPDATE tests_book SET pages = (SELECT n FROM x)",
        "WITH x AS (SELECT 1) DELETE FROM tests_comment WHERE 1 IN x",
    ),
    "by hand, with quotes and comments": write_by_hand(
        "-- tests_city\nUPDATE\ttests_note\nSET text = 'DELETE FROM tests_city; it''s'"
    ),
    "script": write_script,
}

# Where the targets cannot be told from the rest with certainty, all that is named counts.
NAMED_AS_WELL = {
    "by hand, INSERT of a query": {"tests_author"},
    "by hand, UPDATE FROM": {"tests_author"},
    "by hand, WITH": {"x"},
    "by hand, with quotes and comments": {"tests_city"},
}

if django.VERSION >= (6, 1):
    from tests.models import Grandparent, Parent

    WRITES |= {
        "delete that the database passes on": lambda: Parent.objects.all().delete(),
        "delete that the database passes on twice": lambda: Grandparent.objects.all().delete(),
        "delete by hand that the database passes on": write_by_hand(
            "DELETE FROM tests_grandparent WHERE id > 0"
        ),
        "REPLACE that the database passes on": write_by_hand(
            "REPLACE INTO tests_parent (id, name, grandparent_id) VALUES (1, 'x', 1)"
        ),
        "save of what has children": lambda: Parent.objects.update(name="x"),
    }


@pytest.fixture
def committed(transactional_db: None) -> None:
    with ormcache.disabled():
        # If nothing ran between the tests with `bookshop` and these, its rows are still there.
        is_filled = Book.objects.exists()
    if not is_filled:
        fill_bookshop()


def written(write: Callable[[], Any]) -> tuple[set[str], set[str]]:
    """The tables that are invalidated by a write, and those that SQLite writes."""
    with Watch() as watch, Authorizer() as access:
        write()
    return set().union(*watch.invalidated), access.written


@on_databases("default", transaction=True)
@pytest.mark.parametrize("name", WRITES)
def test_write(name: str, using: str, committed: None) -> None:
    found, truth = written(WRITES[name])
    assert truth
    assert found == truth | NAMED_AS_WELL.get(name, set())


@pytest.fixture
def trigger(committed: None) -> Iterator[Callable[[str], None]]:
    """Gives the default database a trigger until the test ends."""
    write = write_by_hand
    yield lambda text: write(f"CREATE TRIGGER test_trigger {text}")()
    write("DROP TRIGGER IF EXISTS test_trigger")()


@on_databases("default", transaction=True)
def test_what_a_trigger_writes_is_invalidated_once_it_is_declared(
    using: str, trigger: Any, settings: Any
) -> None:
    trigger("AFTER UPDATE ON tests_author BEGIN UPDATE tests_tag SET name = new.name; END")
    found, truth = written(lambda: Author.objects.update(name="x"))
    assert (found, truth) == ({"tests_author"}, {"tests_author", "tests_tag"})
    settings.ORMCACHE = {**settings.ORMCACHE, "WRITES": {"TESTS_AUTHOR": ["Tests_Tag"]}}
    found, truth = written(lambda: Author.objects.update(name="x"))
    assert found == truth


@on_databases("default", transaction=True)
def test_write_through_a_view_invalidates_everything_unless_it_is_declared(
    using: str, trigger: Any, settings: Any
) -> None:
    trigger(
        "INSTEAD OF UPDATE ON tests_author_books "
        "BEGIN UPDATE tests_author SET name = new.name; END"
    )
    view = "tests_author_books"
    found, truth = written(lambda: AuthorBooks.objects.update(name="x"))
    assert (found, truth) == ({EVERYTHING}, {view, "tests_author"})
    settings.ORMCACHE = {**settings.ORMCACHE, **DEPENDS_ON}
    found, truth = written(lambda: AuthorBooks.objects.update(name="x"))
    assert (found, truth) == ({view, "tests_author", "tests_book"}, {view, "tests_author"})


@on_databases("default", transaction=True)
def test_savepoint_by_hand_begins_and_ends_a_transaction_of_sqlite(
    using: str, committed: None
) -> None:
    with Watch() as watch:
        write_by_hand("SAVEPOINT a", "DELETE FROM tests_note", "SAVEPOINT b")()
        assert watch.invalidated == []
        write_by_hand("RELEASE b", "DELETE FROM tests_comment")()
        watch.clear()
        write_by_hand("RELEASE SAVEPOINT a")()
        assert watch.invalidated == [("tests_comment", "tests_note")]
        write_by_hand("DELETE FROM tests_tag WHERE name = 'x'")()
        assert watch.invalidated[1:] == [("tests_tag",)]
