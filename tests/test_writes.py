"""Every way to write that Django knows, and some that it does not.

A story prepares its rows, yields the questions that are asked, writes, and may yield once more
before it cleans up. After the write each question must be answered by the database, with an
answer other than before, and be cached anew.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import (
    DatabaseError,
    IntegrityError,
    connections,
    migrations,
    models,
    transaction,
)
from django.db.migrations.state import ProjectState
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce, Concat
from django.test.utils import CaptureQueriesContext, isolate_apps, override_settings

import ormcache
from tests import factories
from tests.factories import (
    AuthorFactory,
    AuthorProfileFactory,
    BookFactory,
    CommentFactory,
    ContributionFactory,
    ItalianRestaurantFactory,
    PlaceFactory,
    PublisherFactory,
    RestaurantFactory,
    TagFactory,
)
from tests.interleaving import SECONDS, session
from tests.marks import DATABASES, on_databases, scenario
from tests.models import (
    Author,
    AuthorBooks,
    AuthorProfile,
    Book,
    Category,
    CheapBook,
    Comment,
    Contribution,
    DatabaseDefault,
    Generated,
    ItalianRestaurant,
    Legacy,
    Note,
    Place,
    Publisher,
    Restaurant,
    Tag,
)
from tests.watching import Watch

Question = Callable[[], Any]
Story = Callable[[str], Iterator[Any]]

SQLITE, POSTGRESQL, MARIADB = DATABASES

pytestmark = pytest.mark.usefixtures("emptied")

_stories: list[Any] = []


def story(*databases: str) -> Callable[[Story], Story]:
    """Tell the story on each of these databases, or on all."""

    def register(tell: Story) -> Story:
        for place in on_databases(*databases, transaction=True).args[1]:
            (alias,) = place.values
            _stories.append(
                pytest.param(alias, tell, marks=place.marks, id=f"{tell.__name__}-{alias}")
            )
        return tell

    return register


def rows(model: type[models.Model], db: str) -> Question:
    """All rows of a model, with all columns."""
    manager = model._base_manager
    return lambda: list(manager.using(db).order_by("pk").values_list())


def run(db: str, statement: Any, params: Any = None) -> None:
    with connections[db].cursor() as cursor:
        cursor.execute(statement, params)


def quoted(model: type[models.Model], db: str) -> str:
    return connections[db].ops.quote_name(model._meta.db_table)


@contextlib.contextmanager
def made(db: str, create: str, drop: str) -> Iterator[None]:
    """Something that the flush after a test would leave behind."""
    run(db, create)
    try:
        yield
    finally:
        run(db, drop)


@contextlib.contextmanager
def told(**options: Any) -> Iterator[None]:
    """Options of ORMCACHE."""
    with override_settings(ORMCACHE={**django_settings.ORMCACHE, **options}):
        yield


@contextlib.contextmanager
def tables_of(db: str, *made_here: type[models.Model]) -> Iterator[None]:
    """Tables for models that are not in the registry."""
    connection = connections[db]
    with connection.schema_editor() as editor:
        for model in made_here:
            editor.create_model(model)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            there = connection.introspection.table_names(cursor)
        with connection.schema_editor() as editor:
            for model in reversed(made_here):
                if model._meta.db_table.rpartition('"')[2] in there:
                    editor.delete_model(model)


def procedure(db: str, name: str, body: str) -> contextlib.AbstractContextManager[None]:
    if db == POSTGRESQL:
        body = f"LANGUAGE SQL AS $$ {body} $$"
    return made(db, f"CREATE PROCEDURE {name}() {body}", f"DROP PROCEDURE {name}")


def function(db: str, name: str, body: str) -> contextlib.AbstractContextManager[None]:
    if db == POSTGRESQL:
        body = f"RETURNS integer LANGUAGE SQL AS $$ {body}; SELECT 1 $$"
    else:
        body = f"RETURNS integer BEGIN {body}; RETURN 1; END"
    return made(db, f"CREATE FUNCTION {name}() {body}", f"DROP FUNCTION {name}")


# --- one object ----------------------------------------------------------------------------


@story()
def save_inserts(db):
    yield rows(Author, db)
    Author(name="new").save(using=db)


@story()
def save_updates(db):
    author = AuthorFactory()
    yield rows(Author, db), lambda: Author.objects.using(db).get(pk=author.pk).name
    author.name = "new"
    author.save()


@story()
def save_of_named_fields_updates(db):
    author = AuthorFactory()
    yield rows(Author, db)
    author.born = date(1900, 1, 1)
    author.save(update_fields=["born"])


@story()
def save_of_an_expression_updates(db):
    book = BookFactory()
    yield rows(Book, db)
    book.pages = F("pages") + 1
    book.save()


@story()
def save_of_a_model_with_generated_columns_updates(db):
    # Since Django 6.0 this UPDATE has a RETURNING clause, and a method of its own.
    rectangle = Generated.objects.using(db).create(width=2, height=3)
    yield rows(Generated, db)
    rectangle.width = 4
    rectangle.save()


@story()
def save_of_a_model_with_database_defaults_updates(db):
    row = DatabaseDefault.objects.using(db).create()
    yield rows(DatabaseDefault, db)
    row.name = "new"
    row.save()


@story()
def create_with_database_defaults_inserts(db):
    yield rows(DatabaseDefault, db)
    DatabaseDefault.objects.using(db).create()


@story()
def create_inserts(db):
    yield rows(Tag, db), Tag.objects.using(db).filter(name="new").exists
    Tag.objects.using(db).create(name="new")


@story()
def asynchronous_create_inserts(db):
    yield rows(Tag, db)
    async_to_sync(Tag.objects.using(db).acreate)(name="new")


@story()
def get_or_create_inserts(db):
    yield rows(Tag, db), Tag.objects.using(db).filter(name="new").first
    Tag.objects.using(db).get_or_create(name="new")


@story()
def update_or_create_updates(db):
    author = AuthorFactory()
    yield rows(Author, db)
    Author.objects.using(db).update_or_create(pk=author.pk, defaults={"name": "new"})


@story()
def save_in_a_committed_transaction(db):
    author = AuthorFactory()
    yield rows(Author, db)
    with transaction.atomic(using=db):
        locked = Author.objects.using(db).select_for_update().get(pk=author.pk)
        locked.name = "new"
        locked.save()


# --- many objects --------------------------------------------------------------------------


@story()
def bulk_create_inserts(db):
    yield rows(Tag, db)
    Tag.objects.using(db).bulk_create([Tag(name="new"), Tag(name="newer")])


@story()
def bulk_create_that_ignores_conflicts_inserts(db):
    TagFactory(name="old")
    yield rows(Tag, db)
    Tag.objects.using(db).bulk_create([Tag(name="old"), Tag(name="new")], ignore_conflicts=True)


@story()
def bulk_create_that_updates_on_conflict(db):
    author = AuthorFactory()
    yield rows(Author, db)
    # MariaDB finds the conflict by itself.
    unique = [] if db == MARIADB else ["id"]
    Author.objects.using(db).bulk_create(
        [Author(pk=author.pk, name="new")],
        update_conflicts=True,
        update_fields=["name"],
        unique_fields=unique,
    )


@story()
def bulk_update_updates(db):
    authors = AuthorFactory.create_batch(2)
    yield rows(Author, db)
    for author in authors:
        author.name = "new"
    Author.objects.using(db).bulk_update(authors, ["name"])


@story()
def update_of_a_queryset(db):
    AuthorFactory()
    yield rows(Author, db), Author.objects.using(db).filter(name="new").count
    Author.objects.using(db).update(name="new")


@story()
def update_filtered_over_a_relation(db):
    book = BookFactory()
    yield rows(Book, db)
    Book.objects.using(db).filter(author__name=book.author.name).update(pages=1)


@story()
def update_by_a_subquery(db):
    BookFactory()
    yield rows(Book, db)
    author = Author.objects.filter(pk=OuterRef("author")).values("name")[:1]
    Book.objects.using(db).update(title=Concat(Subquery(author), Value("!")))


@story()
def update_of_what_a_subquery_selects(db):
    BookFactory()
    yield rows(Book, db)
    Book.objects.using(db).filter(author__in=Author.objects.using(db).all()).update(pages=1)


@story()
def raw_query_that_returns_what_it_writes(db):
    TagFactory(name="old")
    yield rows(Tag, db)
    statement = (
        "INSERT INTO tests_tag (name) VALUES ('new') RETURNING id, name"
        if db == MARIADB
        else "UPDATE tests_tag SET name = 'new' RETURNING id, name"
    )
    assert [tag.name for tag in Tag.objects.using(db).raw(statement)] == ["new"]


# --- deletes -------------------------------------------------------------------------------


@story()
def fast_delete(db):
    note = Note.objects.using(db).create()
    yield rows(Note, db), lambda: Note.objects.using(db).filter(pk=note.pk).exists()
    note.delete()


@story()
def delete_of_a_queryset(db):
    TagFactory()
    yield rows(Tag, db)
    Tag.objects.using(db).all().delete()


@story()
def delete_takes_collected_rows_along(db):
    book = BookFactory(tags=[TagFactory()])
    AuthorProfileFactory(author=book.author)
    yield rows(Author, db), rows(Book, db), rows(AuthorProfile, db), rows(Book.tags.through, db)
    book.author.delete()


@story()
def delete_goes_down_a_tree(db):
    root = Category.objects.using(db).create(name="root")
    Category.objects.using(db).create(name="leaf", parent=root)
    yield rows(Category, db), Category.objects.using(db).filter(name="leaf").exists
    root.delete()


@story()
def delete_sets_null(db):
    publisher = PublisherFactory()
    BookFactory(publisher=publisher)
    yield rows(Publisher, db), rows(Book, db)
    publisher.delete()


@story()
def delete_sets_a_default(db):
    with isolate_apps("tests"):

        class Shelf(models.Model):
            class Meta:
                app_label = "tests"

        class Item(models.Model):
            shelf = models.ForeignKey(Shelf, models.SET_DEFAULT, default=1)

            class Meta:
                app_label = "tests"

    with tables_of(db, Shelf, Item):
        for pk in (1, 2):
            Shelf.objects.using(db).create(pk=pk)
        Item.objects.using(db).create(shelf_id=2)
        yield rows(Shelf, db), rows(Item, db)
        Shelf.objects.using(db).get(pk=2).delete()
        yield


@story()
def delete_takes_generic_relations_along(db):
    comment = CommentFactory(content_type=ContentType.objects.db_manager(db).get_for_model(Book))
    yield rows(Comment, db)
    comment.subject.delete()


if django.VERSION >= (6, 1):
    from tests.models import Child, Friend, Grandparent, Parent, Ward

    @story()
    def delete_that_the_database_passes_on(db):
        grandparent = Grandparent.objects.using(db).create(name="g")
        parent = Parent.objects.using(db).create(name="p", grandparent=grandparent)
        Child.objects.using(db).create(name="c", parent=parent)
        Friend.objects.using(db).create(name="f", parent=parent)
        yield rows(Grandparent, db), rows(Parent, db), rows(Child, db), rows(Friend, db)
        Grandparent.objects.using(db).filter(pk=grandparent.pk).delete()

    @story(SQLITE, POSTGRESQL)
    def delete_after_which_the_database_sets_a_default(db):
        Grandparent.objects.using(db).create(pk=1, name="default")
        grandparent = Grandparent.objects.using(db).create(pk=2, name="other")
        Ward.objects.using(db).create(name="w", guardian=grandparent)
        yield rows(Ward, db)
        grandparent.delete()

    @story()
    def raw_delete_that_the_database_passes_on(db):
        parent = Parent.objects.using(db).create(
            name="p", grandparent=Grandparent.objects.using(db).create(name="g")
        )
        Child.objects.using(db).create(name="c", parent=parent)
        yield rows(Parent, db), rows(Child, db)
        run(db, "DELETE FROM tests_grandparent")

    @story(SQLITE, MARIADB)
    def replace_that_the_database_passes_on(db):
        # REPLACE deletes the row in the way, and with it what refers to that.
        grandparent = Grandparent.objects.using(db).create(name="g")
        Parent.objects.using(db).create(name="p", grandparent=grandparent)
        yield rows(Parent, db)
        run(db, "REPLACE INTO tests_grandparent (id, name) VALUES (%s, 'new')", [grandparent.pk])


# --- relations -----------------------------------------------------------------------------


def _tags_of(book: Book, db: str) -> Question:
    return lambda: list(
        Tag.objects.using(db).filter(books=book.pk).order_by("name").values_list("name", flat=True)
    )


def _books_of(tag: Tag, db: str) -> Question:
    return lambda: Book.objects.using(db).filter(tags=tag.pk).count()


@story()
def many_to_many_add(db):
    book, tag = BookFactory(), TagFactory()
    yield _tags_of(book, db), _books_of(tag, db), rows(Book.tags.through, db)
    book.tags.add(tag)


@story()
def many_to_many_add_from_the_other_side(db):
    book, tag = BookFactory(), TagFactory()
    yield _tags_of(book, db), _books_of(tag, db)
    tag.books.add(book)


@story()
def many_to_many_remove(db):
    tag = TagFactory()
    book = BookFactory(tags=[tag])
    yield _tags_of(book, db), _books_of(tag, db)
    book.tags.remove(tag)


@story()
def many_to_many_remove_from_the_other_side(db):
    tag = TagFactory()
    book = BookFactory(tags=[tag])
    yield _tags_of(book, db), _books_of(tag, db)
    tag.books.remove(book)


@story()
def many_to_many_set(db):
    book = BookFactory(tags=[TagFactory()])
    yield _tags_of(book, db)
    book.tags.set([TagFactory()])


@story()
def many_to_many_clear(db):
    tag = TagFactory()
    book = BookFactory(tags=[tag])
    yield _tags_of(book, db), _books_of(tag, db)
    book.tags.clear()


@story()
def many_to_many_clear_from_the_other_side(db):
    tag = TagFactory()
    book = BookFactory(tags=[tag])
    yield _tags_of(book, db), _books_of(tag, db)
    tag.books.clear()


@story()
def prefetched_relation(db):
    book, tag = BookFactory(), TagFactory()

    def tags() -> list[str]:
        again = Book(pk=book.pk)
        again._state.db = db
        models.prefetch_related_objects([again], "tags")
        return [tag.name for tag in again.tags.all()]

    yield tags
    book.tags.add(tag)


@story()
def rows_between_two_models(db):
    book, author = BookFactory(), AuthorFactory()
    yield (
        rows(Contribution, db),
        lambda: list(author.contributed_books.values_list("pk")),
        lambda: list(book.contributors.values_list("pk")),
    )
    ContributionFactory(book=book, author=author)


@story()
def reverse_foreign_key_add(db):
    author, book = AuthorFactory(), BookFactory()
    yield lambda: author.books.count(), rows(Book, db)
    author.books.add(book)


@story()
def reverse_foreign_key_clear(db):
    publisher = PublisherFactory()
    BookFactory(publisher=publisher)
    yield lambda: publisher.books.count(), rows(Book, db)
    publisher.books.clear()


@story()
def reverse_foreign_key_set(db):
    publisher = PublisherFactory()
    BookFactory(publisher=publisher)
    yield lambda: list(publisher.books.values_list("pk")), rows(Book, db)
    publisher.books.set([BookFactory()])


@story()
def generic_relation_create(db):
    book = BookFactory()
    ContentType.objects.db_manager(db).get_for_model(Book)
    yield lambda: book.comments.count(), rows(Comment, db)
    book.comments.create(text="new")


@story()
def joined_table(db):
    author = BookFactory().author
    yield (
        lambda: [b.author.name for b in Book.objects.using(db).select_related("author")],
        lambda: Book.objects.using(db).filter(author__name="new").count(),
    )
    author.name = "new"
    author.save()


# --- several models on one row -------------------------------------------------------------


@story()
def create_of_a_proxy_is_seen_by_its_model(db):
    author = AuthorFactory()
    yield rows(Book, db)
    CheapBook.objects.using(db).create(title="new", author=author, price=1)


@story()
def update_of_a_model_is_seen_by_its_proxy(db):
    BookFactory(price=50)
    yield lambda: CheapBook.objects.using(db).count(), rows(Book, db)
    Book.objects.using(db).update(price=1)


@story()
def save_of_a_child_is_seen_by_its_parents(db):
    trattoria = ItalianRestaurantFactory()
    yield rows(Place, db), rows(Restaurant, db), rows(ItalianRestaurant, db)
    trattoria.name, trattoria.stars, trattoria.serves_pizza = "new", 3, False
    trattoria.save()


@story()
def save_of_a_parent_is_seen_by_its_children(db):
    trattoria = ItalianRestaurantFactory()
    yield rows(Place, db), rows(Restaurant, db), rows(ItalianRestaurant, db)
    place = Place.objects.using(db).get(pk=trattoria.pk)
    place.name = "new"
    place.save()


@story()
def update_of_inherited_and_own_columns(db):
    ItalianRestaurantFactory()
    yield rows(Place, db), rows(Restaurant, db), rows(ItalianRestaurant, db)
    ItalianRestaurant.objects.using(db).update(name="new", stars=2, serves_pizza=False)


@story()
def creation_of_a_child_is_seen_by_its_parents(db):
    yield rows(Place, db), rows(Restaurant, db)
    RestaurantFactory()


@story()
def child_made_of_a_parent(db):
    place = PlaceFactory()
    yield rows(Restaurant, db)
    restaurant = Restaurant(place_ptr=place, stars=1)
    restaurant._state.db = db
    restaurant.save_base(raw=True, using=db, force_insert=True)


@story()
def delete_of_a_child_is_seen_by_its_parents(db):
    trattoria = ItalianRestaurantFactory()
    yield rows(Place, db), rows(Restaurant, db), rows(ItalianRestaurant, db)
    trattoria.delete()


@story()
def delete_that_keeps_the_parents(db):
    trattoria = ItalianRestaurantFactory()
    yield rows(ItalianRestaurant, db)
    trattoria.delete(keep_parents=True)


@story()
def delete_of_a_parent_is_seen_by_its_children(db):
    trattoria = ItalianRestaurantFactory()
    yield rows(Place, db), rows(Restaurant, db), rows(ItalianRestaurant, db)
    Place.objects.using(db).filter(pk=trattoria.pk).delete()


# --- SQL by hand ---------------------------------------------------------------------------


@story()
def raw_insert(db):
    yield rows(Tag, db)
    run(db, "INSERT INTO tests_tag (name) VALUES (%s)", ["new"])


@story()
def raw_update(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, "UPDATE tests_author SET name = 'new'")


@story()
def raw_delete(db):
    TagFactory()
    yield rows(Tag, db)
    run(db, "/* by hand */ delete\nfrom tests_tag")


@story()
def raw_executemany(db):
    authors = AuthorFactory.create_batch(2)
    yield rows(Author, db)
    with connections[db].cursor() as cursor:
        cursor.executemany(
            "UPDATE tests_author SET name = %s WHERE id = %s",
            [("new", author.pk) for author in authors],
        )


@story(SQLITE, MARIADB)
def executemany_that_fails_half_way_in_autocommit(db):
    tags = TagFactory.create_batch(2)
    yield rows(Tag, db)
    with pytest.raises(IntegrityError), connections[db].cursor() as cursor:
        cursor.executemany(
            "UPDATE tests_tag SET name = %s WHERE id = %s", [("new", tag.pk) for tag in tags]
        )


@story(POSTGRESQL, MARIADB)
def sql_in_bytes(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, b"UPDATE tests_author SET name = 'new'")


@story(SQLITE, MARIADB)
def replace(db):
    author = AuthorFactory()
    yield rows(Author, db)
    run(db, "REPLACE INTO tests_author (id, name) VALUES (%s, 'new')", [author.pk])


@story(MARIADB)
def replace_by_its_shortest_form(db):
    yield rows(Note, db)
    run(db, "REPLACE tests_note SET text = 'new'")


@story(MARIADB)
def insert_without_into(db):
    yield rows(Note, db)
    run(db, "INSERT tests_note (text) VALUES ('new')")


@story(MARIADB)
def update_with_a_modifier(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, "UPDATE LOW_PRIORITY IGNORE tests_author SET name = 'new'")


@story(MARIADB)
def analysis_of_an_update_of_joined_tables(db):
    AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        "ANALYZE UPDATE (tests_author a JOIN tests_author b ON a.id = b.id) SET a.name = 'new'",
    )


@story(POSTGRESQL, MARIADB)
def truncate(db):
    Note.objects.using(db).create()
    yield rows(Note, db)
    run(db, "TRUNCATE tests_note")


@story(POSTGRESQL)
def truncate_that_cascades(db):
    BookFactory(tags=[TagFactory()])
    # Neither table is named.
    yield rows(Book, db), rows(Book.tags.through, db)
    run(db, "TRUNCATE tests_author CASCADE")


@story(POSTGRESQL)
def merge(db):
    author = AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        "MERGE INTO tests_author a USING (SELECT %s::bigint AS id) n ON a.id = n.id "
        "WHEN MATCHED THEN UPDATE SET name = 'new'",
        [author.pk],
    )


@story(POSTGRESQL)
def common_table_expression_that_writes(db):
    AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        "WITH changed AS (UPDATE tests_author SET name = 'new' RETURNING id) "
        "SELECT COUNT(*) FROM changed",
    )


@story(SQLITE, POSTGRESQL)
def write_behind_a_common_table_expression(db):
    yield rows(Tag, db)
    run(
        db,
        "WITH fresh(name) AS (SELECT 'new') INSERT INTO tests_tag (name) SELECT name FROM fresh",
    )


@story()
def insert_of_a_selection(db):
    AuthorFactory()
    yield rows(Tag, db)
    run(db, "INSERT INTO tests_tag (name) SELECT name FROM tests_author")


@story(SQLITE, POSTGRESQL)
def insert_with_on_conflict(db):
    author = AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        "INSERT INTO tests_author (id, name) VALUES (%s, 'new') "
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        [author.pk],
    )


@story(MARIADB)
def insert_with_on_duplicate_key(db):
    author = AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        "INSERT INTO tests_author (id, name) VALUES (%s, 'new') "
        "ON DUPLICATE KEY UPDATE name = VALUES(name)",
        [author.pk],
    )


@story(MARIADB)
def update_of_two_tables(db):
    BookFactory()
    yield rows(Author, db), rows(Book, db)
    run(
        db,
        "UPDATE tests_author a, tests_book b SET a.name = 'new', b.title = 'new' "
        "WHERE b.author_id = a.id",
    )


@story(MARIADB)
def update_of_the_joined_table(db):
    BookFactory()
    yield rows(Book, db)
    run(
        db,
        "UPDATE tests_author a JOIN tests_book b ON b.author_id = a.id SET b.title = 'new'",
    )


@story(MARIADB)
def delete_from_two_tables(db):
    ContributionFactory()
    AuthorProfileFactory()
    yield rows(Contribution, db), rows(AuthorProfile, db)
    run(db, "DELETE c, p FROM tests_contribution c, tests_authorprofile p")


@story(MARIADB)
def delete_from_one_of_two_tables(db):
    ContributionFactory()
    yield rows(Contribution, db)
    run(db, "DELETE FROM c USING tests_contribution c JOIN tests_book b ON b.id = c.book_id")


@story(POSTGRESQL)
def delete_by_a_second_table(db):
    ContributionFactory()
    yield rows(Contribution, db)
    run(db, "DELETE FROM tests_contribution c USING tests_book b WHERE b.id = c.book_id")


@story(SQLITE, POSTGRESQL)
def update_from_a_second_table(db):
    BookFactory()
    yield rows(Book, db)
    run(
        db,
        "UPDATE tests_book SET title = a.name FROM tests_author a "
        "WHERE a.id = tests_book.author_id",
    )


@story(POSTGRESQL)
def several_statements(db):
    AuthorFactory()
    yield rows(Author, db), rows(Tag, db)
    run(db, "UPDATE tests_author SET name = 'new'; INSERT INTO tests_tag (name) VALUES (';')")


@story(POSTGRESQL)
def several_statements_with_a_transaction_of_their_own(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, "BEGIN; UPDATE tests_author SET name = 'new'; COMMIT")


@story()
def transaction_by_hand(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, "BEGIN")
    run(db, "UPDATE tests_author SET name = 'new'")
    run(db, "COMMIT")


@story(SQLITE)
def executescript(db):
    AuthorFactory()
    yield rows(Author, db), rows(Tag, db)
    with connections[db].cursor() as cursor:
        cursor.executescript(
            "UPDATE tests_author SET name = 'new'; INSERT INTO tests_tag (name) VALUES ('new');"
        )


@story(SQLITE)
def executescript_with_a_transaction_of_its_own(db):
    AuthorFactory()
    yield rows(Author, db)
    with connections[db].cursor() as cursor:
        cursor.executescript("BEGIN; UPDATE tests_author SET name = 'new'; COMMIT;")


@story(POSTGRESQL)
def composed_sql(db):
    from psycopg import sql

    AuthorFactory()
    yield rows(Author, db)
    run(
        db,
        sql.SQL("UPDATE {} SET {} = {}").format(
            sql.Identifier("tests_author"), sql.Identifier("name"), sql.Literal("new")
        ),
    )


@story(POSTGRESQL)
def sql_of_psycopg(db):
    from psycopg import sql

    AuthorFactory()
    yield rows(Author, db)
    run(db, sql.SQL("UPDATE tests_author SET name = 'new'"))


@story(POSTGRESQL)
def copy(db):
    yield rows(Tag, db)
    with connections[db].cursor() as cursor, cursor.copy("COPY tests_tag (name) FROM STDIN") as to:
        to.write_row(["new"])


@story(POSTGRESQL)
def copy_in_a_transaction(db):
    yield rows(Tag, db)
    with (
        transaction.atomic(using=db),
        connections[db].cursor() as cursor,
        cursor.copy("COPY tests_tag (name) FROM STDIN") as to,
    ):
        to.write_row(["new"])


@story(POSTGRESQL)
def stream(db):
    AuthorFactory.create_batch(2)
    yield rows(Author, db)
    with connections[db].cursor() as cursor:
        statement = "UPDATE tests_author SET name = 'new' RETURNING name"
        assert list(cursor.stream(statement)) == [("new",), ("new",)]


@story(POSTGRESQL)
def stream_in_a_transaction(db):
    AuthorFactory()
    yield rows(Author, db)
    with transaction.atomic(using=db), connections[db].cursor() as cursor:
        assert list(cursor.stream("UPDATE tests_author SET name = 'new' RETURNING name"))


@story(POSTGRESQL)
def copy_by_name(db):
    yield rows(Tag, db)
    with (
        connections[db].cursor() as cursor,
        cursor.copy(statement="COPY tests_tag (name) FROM STDIN") as to,
    ):
        to.write_row(["new"])


@story(POSTGRESQL)
def stream_by_name(db):
    AuthorFactory()
    yield rows(Author, db)
    with connections[db].cursor() as cursor:
        list(cursor.stream(query="UPDATE tests_author SET name = 'new' RETURNING name"))


@story(MARIADB)
def load_data(db):
    TagFactory(name="old")
    with connections[db].cursor() as cursor:
        cursor.execute("SELECT CONCAT(@@datadir, 'tests_tag.txt')")
        (file,) = cursor.fetchone()
        cursor.execute(f"SELECT 'new' INTO OUTFILE '{file}'")
    yield rows(Tag, db)
    run(db, f"LOAD DATA INFILE '{file}' INTO TABLE tests_tag (name)")


@story()
def statement_that_a_wrapper_makes_of_another(db):
    AuthorFactory()
    yield rows(Author, db)
    with connections[db].execute_wrapper(lambda execute, sql, *args: execute(_RENAME, *args)):
        run(db, "SELECT 1")


@story()
def executemany_that_a_wrapper_leads_to_another_table(db):
    yield rows(Tag, db)

    def lead_astray(execute: Any, sql: str, *args: Any) -> Any:
        return execute(sql.replace("tests_note (text)", "tests_tag (name)"), *args)

    with connections[db].execute_wrapper(lead_astray), connections[db].cursor() as cursor:
        cursor.executemany("INSERT INTO tests_note (text) VALUES (%s)", [["a"], ["b"]])


@story(POSTGRESQL)
def explain_analyze_of_what_was_prepared(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, f"PREPARE tests_rename AS {_RENAME}")
    run(db, "EXPLAIN ANALYZE EXECUTE tests_rename")
    run(db, "DEALLOCATE tests_rename")


@story()
def write_inside_disabled(db):
    AuthorFactory()
    yield rows(Author, db)
    with ormcache.disabled():
        Author.objects.using(db).update(name="new")


# --- names of tables -----------------------------------------------------------------------


@story()
def table_with_a_capital(db):
    Legacy.objects.using(db).create(name="old")
    yield rows(Legacy, db)
    run(db, f"UPDATE {quoted(Legacy, db)} SET name = 'new'")


@story(POSTGRESQL)
def table_whose_name_is_escaped(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, r"""UPDATE U&"tests\005fauthor" SET name = 'new'""")


@story(SQLITE)
def table_in_another_case(db):
    Legacy.objects.using(db).create(name="old")
    yield rows(Legacy, db)
    run(db, "UPDATE LEGACYTABLE SET name = 'new'")


def _shelf(table: str) -> Any:
    with isolate_apps("tests"):

        class Shelf(models.Model):
            name = models.CharField(max_length=20)

            class Meta:
                app_label = "tests"
                db_table = table

    return Shelf


@story()
def table_with_spaces_and_dashes(db):
    shelf = _shelf("a shelf-mark")
    with tables_of(db, shelf):
        shelf.objects.using(db).create(name="old")
        yield rows(shelf, db)
        shelf.objects.using(db).update(name="new")
        yield


@story()
def table_with_spaces_and_dashes_by_hand(db):
    shelf = _shelf("a shelf-mark")
    with tables_of(db, shelf):
        shelf.objects.using(db).create(name="old")
        yield rows(shelf, db)
        run(db, f"DELETE FROM {quoted(shelf, db)}")
        yield


@story(SQLITE, POSTGRESQL)
def table_with_a_schema(db):
    schema = "main" if db == SQLITE else "public"
    plain, qualified = _shelf("tests_shelf"), _shelf(f'{schema}"."tests_shelf')
    with tables_of(db, plain):
        plain.objects.using(db).create(name="old")
        yield rows(plain, db), rows(qualified, db)
        qualified.objects.using(db).update(name="new")
        yield


@story(SQLITE, POSTGRESQL)
def table_with_a_schema_by_hand(db):
    schema = "main" if db == SQLITE else "public"
    plain, qualified = _shelf("tests_shelf"), _shelf(f'{schema}"."tests_shelf')
    with tables_of(db, plain):
        plain.objects.using(db).create(name="old")
        yield rows(qualified, db)
        run(db, f"update {schema}.tests_shelf set name = 'new'")
        yield


# --- procedures, functions, triggers, views ------------------------------------------------

_RENAME = "UPDATE tests_author SET name = 'new'"


@story(POSTGRESQL, MARIADB)
def call_of_a_procedure(db):
    AuthorFactory()
    with procedure(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        run(db, "CALL tests_rename()")
        yield


@story(POSTGRESQL, MARIADB)
def call_of_a_procedure_in_a_transaction(db):
    AuthorFactory()
    with procedure(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        with transaction.atomic(using=db):
            run(db, "CALL tests_rename()")
        yield


@story(POSTGRESQL, MARIADB)
def call_of_a_declared_procedure(db):
    AuthorFactory()
    with told(WRITES={"tests_rename": ["tests_author"]}), procedure(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        run(db, "CALL tests_rename()")
        yield


@story(POSTGRESQL, MARIADB)
def call_of_an_undeclared_procedure_with_a_declared_argument(db):
    # The argument is declared, the procedure that it is given to is not.
    AuthorFactory()
    body = "LANGUAGE SQL AS $$" if db == POSTGRESQL else ""
    end = "$$" if db == POSTGRESQL else ""
    with (
        told(WRITES={"tests_one": ["tests_tag"]}),
        function(db, "tests_one", "SELECT 1" if db == POSTGRESQL else "DO 1"),
        made(
            db,
            f"CREATE PROCEDURE tests_rename(ignored integer) {body} {_RENAME} {end}",
            "DROP PROCEDURE tests_rename",
        ),
    ):
        yield rows(Author, db)
        run(db, "CALL tests_rename(tests_one())")
        yield


@story(POSTGRESQL, MARIADB)
def callproc(db):
    AuthorFactory()
    make = function if db == POSTGRESQL else procedure
    with make(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        with connections[db].cursor() as cursor:
            cursor.callproc("tests_rename")
        yield


@story(POSTGRESQL)
def callproc_of_an_identifier(db):
    """psycopg's, as Django takes it, too."""
    identifier = pytest.importorskip("psycopg.sql").Identifier("public", "tests_rename")
    AuthorFactory()
    with function(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        with connections[db].cursor() as cursor:
            cursor.callproc(identifier)
        yield


@story(POSTGRESQL, MARIADB)
def callproc_of_a_declared_procedure(db):
    AuthorFactory()
    make = function if db == POSTGRESQL else procedure
    with told(WRITES={"tests_rename": ["tests_author"]}), make(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        with connections[db].cursor() as cursor:
            cursor.callproc("tests_rename")
        yield


@story(POSTGRESQL)
def anonymous_block(db):
    AuthorFactory()
    yield rows(Author, db)
    run(db, f"DO $$ BEGIN {_RENAME}; END $$")


@story(POSTGRESQL)
def anonymous_block_that_names_a_declared_function(db):
    # Nobody said that the block does nothing else.
    AuthorFactory()
    with told(WRITES={"tests_one": ["tests_tag"]}), function(db, "tests_one", "SELECT 1"):
        yield rows(Author, db)
        run(db, f"DO $$ BEGIN PERFORM tests_one(); {_RENAME}; END $$")
        yield


@story(MARIADB)
def do_of_a_function(db):
    AuthorFactory()
    with function(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        run(db, "DO tests_rename()")
        yield


@story(MARIADB)
def do_of_a_declared_function(db):
    AuthorFactory()
    with told(WRITES={"tests_rename": ["tests_author"]}), function(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        run(db, "DO tests_rename()")
        yield


@story(POSTGRESQL, MARIADB)
def select_of_a_declared_function(db):
    AuthorFactory()
    with told(WRITES={"tests_rename": ["tests_author"]}), function(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        run(db, "SELECT tests_rename()")
        yield


@story(POSTGRESQL, MARIADB)
def insert_of_what_a_declared_function_returns(db):
    AuthorFactory()
    with told(WRITES={"tests_rename": ["tests_author"]}), function(db, "tests_rename", _RENAME):
        yield rows(Author, db), rows(Note, db)
        run(db, "INSERT INTO tests_note (text) VALUES (tests_rename())")
        yield


@story(POSTGRESQL, MARIADB)
def declared_function_in_the_orm(db):
    AuthorFactory()
    TagFactory()
    with told(WRITES={"tests_rename": ["tests_author"]}), function(db, "tests_rename", _RENAME):
        yield rows(Author, db)
        called = models.Func(function="tests_rename", output_field=models.IntegerField())
        assert list(Tag.objects.using(db).values_list(called)) == [(1,)]
        yield


@story(POSTGRESQL)
def another_body_of_a_declared_function(db):
    TagFactory()
    body = "CREATE OR REPLACE FUNCTION tests_number() RETURNS integer LANGUAGE SQL AS 'SELECT {}'"
    number = models.Func(function="tests_number", output_field=models.IntegerField())
    with (
        told(DEPENDS_ON={"tests_number": []}),
        made(db, body.format(1), "DROP FUNCTION tests_number"),
    ):
        yield lambda: list(Tag.objects.using(db).values_list(number))
        run(db, body.format(2))
        yield


@story(POSTGRESQL)
def other_words_that_a_text_search_knows(db):
    from django.contrib.postgres.search import SearchVector

    with made(
        db,
        "CREATE TEXT SEARCH CONFIGURATION tests_search (COPY = english)",
        "DROP TEXT SEARCH CONFIGURATION tests_search",
    ):
        AuthorFactory(name="old")
        vector = SearchVector("name", config="tests_search")
        yield lambda: Author.objects.using(db).annotate(v=vector).filter(v="old").count()
        run(db, "ALTER TEXT SEARCH CONFIGURATION tests_search DROP MAPPING FOR asciiword")
        yield


@story(POSTGRESQL)
def another_name_of_a_value_of_a_type(db):
    column = "ALTER TABLE tests_note ALTER COLUMN text TYPE {0} USING text::{0}"
    with (
        made(db, "CREATE TYPE tests_mood AS ENUM ('old')", "DROP TYPE tests_mood"),
        made(db, column.format("tests_mood"), column.format("text")),
    ):
        Note.objects.using(db).create(text="old")
        yield rows(Note, db)
        run(db, "ALTER TYPE tests_mood RENAME VALUE 'old' TO 'new'")
        yield


@story()
def declared_trigger(db):
    event = "CREATE TRIGGER tests_trigger AFTER INSERT ON tests_note"
    copied = "INSERT INTO tests_tag (name) VALUES (new.text)"
    with contextlib.ExitStack() as stack:
        if db == POSTGRESQL:
            stack.enter_context(
                made(
                    db,
                    "CREATE FUNCTION tests_copy() RETURNS trigger LANGUAGE plpgsql "
                    f"AS $$ BEGIN {copied}; RETURN NULL; END $$",
                    "DROP FUNCTION tests_copy CASCADE",
                )
            )
            run(db, f"{event} FOR EACH ROW EXECUTE FUNCTION tests_copy()")
        else:
            action = f"BEGIN {copied}; END" if db == SQLITE else f"FOR EACH ROW {copied}"
            stack.enter_context(made(db, f"{event} {action}", "DROP TRIGGER tests_trigger"))
        stack.enter_context(told(WRITES={"tests_note": ["tests_tag"]}))
        yield rows(Tag, db), rows(Note, db)
        Note.objects.using(db).create(text="new")
        yield


@story()
def table_behind_a_declared_view(db):
    author = AuthorFactory()
    with told(DEPENDS_ON={"tests_author_books": ["tests_author", "tests_book"]}):
        yield rows(AuthorBooks, db)
        BookFactory(author=author)
        yield


@story(POSTGRESQL, MARIADB)
def declared_view_that_is_written(db):
    author = AuthorFactory()
    with (
        told(DEPENDS_ON={"tests_names": ["tests_author"]}),
        made(
            db,
            "CREATE VIEW tests_names AS SELECT id, name FROM tests_author",
            "DROP VIEW tests_names",
        ),
    ):
        yield rows(Author, db)
        run(db, "UPDATE tests_names SET name = 'new' WHERE id = %s", [author.pk])
        yield


@story(POSTGRESQL)
def refresh_of_a_materialized_view(db):
    AuthorFactory()
    with (
        told(DEPENDS_ON={"tests_shelf": []}),
        made(
            db,
            "CREATE MATERIALIZED VIEW tests_shelf AS SELECT id, name FROM tests_author",
            "DROP MATERIALIZED VIEW tests_shelf",
        ),
    ):
        Author.objects.using(db).update(name="new")
        yield rows(_shelf("tests_shelf"), db)
        run(db, "REFRESH MATERIALIZED VIEW tests_shelf")
        yield


@story(MARIADB)
def write_to_a_table_of_no_model_on_which_a_view_depends(db):
    with (
        told(DEPENDS_ON={"tests_shelf": ["tests_foreign"]}),
        made(
            db,
            "CREATE TABLE tests_foreign (id integer, name varchar(20))",
            "DROP TABLE tests_foreign",
        ),
        made(
            db,
            "CREATE VIEW tests_shelf AS SELECT id, name FROM tests_foreign",
            "DROP VIEW tests_shelf",
        ),
    ):
        yield rows(_shelf("tests_shelf"), db)
        run(db, "INSERT tests_foreign SET id = 1, name = 'new'")
        yield


# --- commands and migrations ---------------------------------------------------------------


@story()
def flush_command(db):
    BookFactory()
    yield rows(Book, db), rows(Author, db)
    call_command("flush", database=db, interactive=False, verbosity=0)


@story()
def flush_command_without_signals(db):
    BookFactory()
    yield rows(Book, db), rows(Author, db)
    call_command("flush", database=db, interactive=False, verbosity=0, inhibit_post_migrate=True)


@story()
def loaddata_command(db):
    yield rows(Tag, db)
    with tempfile.TemporaryDirectory() as directory:
        fixture = Path(directory) / "tags.json"
        fixture.write_text(json.dumps([{"model": "tests.tag", "fields": {"name": "new"}}]))
        call_command("loaddata", fixture, database=db, verbosity=0)


def _apply(db: str, operation: Any) -> None:
    state = ProjectState()
    with connections[db].schema_editor() as editor:
        operation.database_forwards("tests", editor, state, state)


@story()
def run_sql(db):
    AuthorFactory()
    yield rows(Author, db)
    _apply(db, migrations.RunSQL("UPDATE tests_author SET name = 'new';"))


@story()
def run_python(db):
    AuthorFactory()
    yield rows(Author, db)
    _apply(
        db,
        migrations.RunPython(lambda apps, editor: Author.objects.using(db).update(name="new")),
    )


# --- statements in the course of which others read -----------------------------------------

BUSY = "a write is being committed"


def is_busy(cached: Watch, question: Question) -> bool:
    """Whether others are told to ask the database, and to keep the answer to themselves."""
    with session(cached.using):
        return cached.call(question)[1] == [BUSY]


def wait_for_lease(using: str, question: Question) -> None:
    """Return when the answer to the question is cached again, which takes a lease."""
    with Watch(using) as watch:
        deadline = time.monotonic() + SECONDS
        while watch.call(question)[1] != ["hit"]:
            assert time.monotonic() < deadline, "the lease does not end"


@on_databases(MARIADB, transaction=True)
def test_tables_of_later_statements_are_left_to_the_lease(cached: Watch, using: str) -> None:
    """MariaDB is still at work on the second statement when the driver returns."""
    with factories.using(using):
        BookFactory()
    books = rows(Book, using)
    cached.warm(books)
    with connections[using].cursor() as cursor:
        cursor.execute("UPDATE tests_author SET name = 'new'; UPDATE tests_book SET title = 'new'")
        assert is_busy(cached, books)
        assert cursor.nextset()
    wait_for_lease(using, books)
    assert books()[0][1] == "new"


@on_databases(MARIADB, transaction=True)
def test_what_a_procedure_writes_after_it_selected_is_left_to_the_lease(
    cached: Watch, using: str
) -> None:
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    body = f"BEGIN SELECT 1; {_RENAME}; END"
    with procedure(using, "tests_rename", body):
        cached.warm(authors)
        with connections[using].cursor() as cursor:
            cursor.callproc("tests_rename")
            assert is_busy(cached, authors)
        wait_for_lease(using, authors)
    assert authors()[0][1] == "new"


@on_databases(POSTGRESQL, transaction=True)
def test_what_is_written_in_a_pipeline_is_left_to_the_lease(cached: Watch, using: str) -> None:
    """psycopg returns before the statement is sent."""
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    cached.warm(authors)
    with connections[using].connection.pipeline():
        Author.objects.using(using).update(name="new")
        assert is_busy(cached, authors)
    wait_for_lease(using, authors)
    assert authors()[0][1] == "new"


@on_databases(POSTGRESQL, transaction=True)
def test_while_rows_are_copied_in_others_read_from_the_database(cached: Watch, using: str) -> None:
    tags = rows(Tag, using)
    cached.warm(tags)
    with connections[using].cursor() as cursor:
        with cursor.copy("COPY tests_tag (name) FROM STDIN") as to:
            to.write_row(["new"])
            assert is_busy(cached, tags)
        assert len(cached.warm(tags)) == 1


@on_databases(POSTGRESQL, transaction=True)
def test_a_copy_that_is_given_up_is_over(cached: Watch, using: str) -> None:
    tags = rows(Tag, using)
    with (
        pytest.raises(ZeroDivisionError),
        connections[using].cursor() as cursor,
        cursor.copy("COPY tests_tag (name) FROM STDIN") as to,
    ):
        to.write_row(["new"])
        raise ZeroDivisionError
    assert cached.warm(tags) == []


@on_databases(POSTGRESQL, transaction=True)
def test_a_copy_that_is_rolled_back_was_never_announced(cached: Watch, using: str) -> None:
    tags = rows(Tag, using)
    cached.warm(tags)
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        with cursor.copy("COPY tests_tag (name) FROM STDIN") as to:
            to.write_row(["new"])
        assert len(tags()) == 1
        transaction.set_rollback(True, using=using)
    assert cached.hit(tags) == []


@on_databases(POSTGRESQL, transaction=True)
def test_a_copy_that_postgresql_refuses_is_over(cached: Watch, using: str) -> None:
    import psycopg

    tags = rows(Tag, using)
    for column, error in (
        ("name", psycopg.errors.UniqueViolation),
        ("nonsense", psycopg.errors.UndefinedColumn),
    ):
        with (
            pytest.raises(error),
            connections[using].cursor() as cursor,
            cursor.copy(f"COPY tests_tag ({column}) FROM STDIN") as to,
        ):
            to.write_row(["same"])
            to.write_row(["same"])
        assert cached.warm(tags) == []


@on_databases(POSTGRESQL, transaction=True)
def test_a_stream_that_is_not_read_to_its_end_is_over(cached: Watch, using: str) -> None:
    with factories.using(using):
        AuthorFactory.create_batch(2)
    authors = rows(Author, using)
    cached.warm(authors)
    with connections[using].cursor() as cursor:
        stream = cursor.stream("UPDATE tests_author SET name = 'new' RETURNING name")
        next(stream)
        assert is_busy(cached, authors)
        stream.close()
    assert cached.warm(authors) == authors()


@on_databases(POSTGRESQL, transaction=True)
def test_a_stream_that_locks_rows_ends_caching_for_its_transaction(
    cached: Watch, using: str
) -> None:
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        list(cursor.stream("SELECT id FROM tests_author FOR UPDATE"))
        with cached.expect("transaction holds locks"):
            rows(Author, using)()


# --- transactions that Django does not know of ---------------------------------------------


@on_databases(SQLITE, transaction=True)
def test_executescript_publishes_what_was_pending(cached: Watch, using: str) -> None:
    """sqlite3 commits before it runs a script, even one that only reads."""
    author = AuthorFactory()
    authors = rows(Author, using)
    cached.warm(authors)
    with transaction.atomic(), connections[using].cursor() as cursor:
        Author.objects.filter(pk=author.pk).update(name="new")
        cursor.executescript("SELECT 1")
        with session(using):
            assert cached.warm(authors)[0][1] == "new"


@on_databases(SQLITE, transaction=True)
def test_after_a_commit_as_sql_an_atomic_block_of_sqlite_takes_effect_at_once(
    cached: Watch, using: str
) -> None:
    author = AuthorFactory()
    authors = rows(Author, using)
    with transaction.atomic():
        run(using, "COMMIT")
        with session(using):
            cached.warm(authors)
        Author.objects.filter(pk=author.pk).update(name="new")
        with session(using):
            assert cached.warm(authors)[0][1] == "new"


@on_databases(SQLITE, transaction=True)
def test_a_transaction_that_a_script_leaves_open_is_published_with_its_commit(
    cached: Watch, using: str
) -> None:
    AuthorFactory()
    authors = rows(Author, using)
    with session(using) as connection, connection.cursor() as cursor:
        cursor.executescript("BEGIN; UPDATE tests_author SET name = 'new';")
        with session(using):
            cached.warm(authors)
        cursor.execute("COMMIT")
        with session(using):
            assert cached.warm(authors)[0][1] == "new"


_ORPHAN = "INSERT INTO tests_contribution (book_id, author_id, role) VALUES (123456, 123456, 'x')"


@on_databases(SQLITE, POSTGRESQL, transaction=True)
def test_after_a_commit_as_sql_that_fails_writes_are_seen_as_ever(
    cached: Watch, using: str
) -> None:
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    cached.warm(authors)
    with session(using):
        run(using, "BEGIN")
        run(using, _ORPHAN)
        with pytest.raises(IntegrityError):
            run(using, "COMMIT")
        if using == SQLITE:
            # Here the transaction is still open.
            run(using, "ROLLBACK")
        cached.warm(rows(Contribution, using))
        run(using, _RENAME)
    assert cached.warm(authors)[0][1] == "new"


@pytest.mark.parametrize("when", ["before", "after"])
@on_databases(MARIADB, transaction=True)
def test_when_nobody_knows_whether_a_commit_failed_writes_are_announced_then_and_with_the_next(
    cached: Watch, using: str, when: str
) -> None:
    """MariaDB's driver cannot tell whether the transaction is still open."""
    with factories.using(using):
        AuthorFactory()
        TagFactory()
    authors, tags = rows(Author, using), rows(Tag, using)

    def interrupt(execute: Any, sql: str, *args: Any) -> None:
        if sql == "COMMIT" and when == "after":
            execute(sql, *args)
        if sql == "COMMIT":
            raise DatabaseError("the answer was lost")
        execute(sql, *args)

    with session(using) as connection:
        run(using, "BEGIN")
        run(using, "UPDATE tests_tag SET name = 'new'")
        with connection.execute_wrapper(interrupt), pytest.raises(DatabaseError):
            run(using, "COMMIT")
        for statement in (_RENAME, "COMMIT"):
            with session(using):
                wait_for_lease(using, authors)
                wait_for_lease(using, tags)
            run(using, statement)
            with session(using):
                assert_true(authors)
                assert_true(tags)
    assert (authors()[0][1], tags()[0][1]) == ("new", "new")


@pytest.mark.parametrize(
    "before",
    [
        # A transaction is open afterwards of which the driver tells nothing.
        ["EXECUTE IMMEDIATE 'START TRANSACTION'"],
        ["BEGIN NOT ATOMIC START TRANSACTION; END"],
        ["PREPARE tests_begin FROM 'START TRANSACTION'", "EXECUTE tests_begin"],
        ["/*!50003 START TRANSACTION */"],
        ["SET completion_type = 1", "BEGIN", "COMMIT"],
        ["SET completion_type = 'CHAIN'", "BEGIN", "ROLLBACK"],
        ["EXECUTE IMMEDIATE 'SET completion_type = 1'", "BEGIN", "COMMIT"],
        ["COMMIT; EXECUTE IMMEDIATE 'START TRANSACTION'"],
        # No transaction has ended.
        ["BEGIN", "SET autocommit = 1"],
        ["BEGIN", "SET autocommit = 1; SELECT 1"],
        ["BEGIN", "CREATE TEMPORARY TABLE tests_scratch (id int)"],
        # Or it has, and nobody knows.
        ["BEGIN", "EXECUTE IMMEDIATE 'COMMIT'"],
        ["BEGIN", "CREATE OR REPLACE TABLE tests_scratch (id int)"],
        ["BEGIN", "SET PASSWORD = PASSWORD('')"],
    ],
    ids=str,
)
@on_databases(MARIADB, transaction=True)
def test_writes_are_announced_with_whatever_commits_them(
    cached: Watch, using: str, before: list[str]
) -> None:
    """In a session of which nobody knows whether a transaction is open."""
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    try:
        with session(using):
            for statement in before:
                with connections[using].cursor() as cursor:
                    cursor.execute(statement)
                    while cursor.nextset():
                        pass
            for end in ("COMMIT", "commit()"):
                with session(using):
                    # Others have the answer from before.
                    wait_for_lease(using, authors)
                run(using, f"UPDATE tests_author SET name = '{end}'")
                answer, (outcome,) = cached.call(authors)
                assert answer[0][1] == end
                if end == "COMMIT":
                    assert outcome in ("session was altered", "table written in this transaction")
                with session(using):
                    wait_for_lease(using, authors)
                    assert_true(authors)
                if end == "COMMIT":
                    run(using, end)
                else:
                    connections[using].commit()
                with session(using):
                    wait_for_lease(using, authors)
                    assert_true(authors)
                    assert authors()[0][1] == end
    finally:
        run(using, "DROP TABLE IF EXISTS tests_scratch")


@pytest.mark.parametrize(
    "statement",
    [
        "SET autocommit = 1",
        "SET PASSWORD = PASSWORD('')",
        "RESET QUERY CACHE",
        "EXECUTE IMMEDIATE 'COMMIT'",
        "BEGIN NOT ATOMIC COMMIT; END",
    ],
)
@on_databases(MARIADB, transaction=True)
def test_what_commits_in_an_atomic_block_publishes_what_was_written(
    cached: Watch, using: str, statement: str
) -> None:
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    with session(using), transaction.atomic(using):
        with session(using):
            cached.warm(authors)
        run(using, "UPDATE tests_author SET name = 'new'")
        run(using, statement)
        with session(using):
            assert_true(authors)
            assert authors()[0][1] == "new"


@on_databases(MARIADB, transaction=True)
def test_after_autocommit_was_switched_on_an_atomic_block_takes_effect_at_once(
    cached: Watch, using: str
) -> None:
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    with session(using), transaction.atomic(using):
        run(using, "SET autocommit = 1")
        with session(using):
            cached.warm(authors)
        for name in ("one", "two"):
            Author.objects.using(using).update(name=name)
            with session(using):
                assert cached.warm(authors)[0][1] == name


def assert_true(question: Question) -> None:
    answer = question()
    with ormcache.disabled():
        assert answer == question()


# --- cursors that log ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("using", "tell"),
    [
        pytest.param(*place.values, tell, marks=place.marks, id=tell.__name__)
        for tell, alias in (
            (executescript, SQLITE),
            (executescript_with_a_transaction_of_its_own, SQLITE),
            (copy, POSTGRESQL),
            (copy_by_name, POSTGRESQL),
            (copy_in_a_transaction, POSTGRESQL),
            (stream, POSTGRESQL),
            (stream_in_a_transaction, POSTGRESQL),
        )
        for place in on_databases(alias, transaction=True).args[1]
    ],
)
@pytest.mark.parametrize("reason", ["DEBUG", "captured"])
def test_what_a_driver_writes_is_seen_on_a_cursor_that_logs(
    cached: Watch, settings: Any, using: str, tell: Story, reason: str
) -> None:
    if reason == "DEBUG":
        settings.DEBUG = True
        check(cached, using, tell)
    else:
        with CaptureQueriesContext(connections[using]):
            check(cached, using, tell)


# --- the schema ----------------------------------------------------------------------------


def _add_field(editor: Any, shelf: Any) -> None:
    field = models.IntegerField(default=1)
    field.set_attributes_from_name("pages")
    editor.add_field(shelf, field)


def _remove_field(editor: Any, shelf: Any) -> None:
    editor.remove_field(shelf, shelf._meta.get_field("name"))


def _alter_field(editor: Any, shelf: Any) -> None:
    field = models.CharField(max_length=30, unique=True)
    field.set_attributes_from_name("name")
    field.model = shelf
    editor.alter_field(shelf, shelf._meta.get_field("name"), field)


def _rename_field(editor: Any, shelf: Any) -> None:
    field = models.CharField(max_length=20)
    field.set_attributes_from_name("title")
    field.model = shelf
    editor.alter_field(shelf, shelf._meta.get_field("name"), field)


def _rename_table(editor: Any, shelf: Any) -> None:
    editor.alter_db_table(shelf, "tests_shelf", "tests_shelves")


def _create_anew(editor: Any, shelf: Any) -> None:
    editor.delete_model(shelf)
    editor.create_model(shelf)


def _delete_model(editor: Any, shelf: Any) -> None:
    editor.delete_model(shelf)


@scenario(38)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_add_field, [(1, "old")]),
        (_alter_field, [(1, "old")]),
        (_create_anew, []),
        (_remove_field, DatabaseError),
        (_rename_field, DatabaseError),
        (_rename_table, DatabaseError),
        (_delete_model, DatabaseError),
    ],
)
@on_databases(transaction=True)
def test_a_change_of_the_schema_is_seen(
    cached: Watch, using: str, change: Callable[[Any, Any], None], expected: Any
) -> None:
    shelf = _shelf("tests_shelf")

    def names() -> list[Any]:
        return list(shelf.objects.using(using).order_by("pk").values_list("pk", "name"))

    with connections[using].schema_editor() as editor:
        editor.create_model(shelf)
    try:
        shelf.objects.using(using).create(pk=1, name="old")
        cached.warm(names)
        with connections[using].schema_editor() as editor:
            change(editor, shelf)
        if expected is DatabaseError:
            with pytest.raises(DatabaseError):
                names()
        else:
            assert cached.warm(names) == expected
    finally:
        run(using, "DROP TABLE IF EXISTS tests_shelf")
        run(using, "DROP TABLE IF EXISTS tests_shelves")


# --- what does not invalidate --------------------------------------------------------------

_READS = """
    SELECT * FROM tests_author
    select name as "update", name as "delete" from tests_author
    SELECT REPLACE(name, 'INSERT INTO tests_author', '') FROM tests_author
    SELECT 'DELETE FROM tests_author' FROM tests_author
    SELECT 1 /* UPDATE tests_author SET name = 'x' */ FROM tests_author -- DELETE
    WITH named AS (SELECT name FROM tests_author) SELECT * FROM named
    EXPLAIN SELECT * FROM tests_author
    (SELECT * FROM tests_author) UNION SELECT * FROM tests_author
""".strip().splitlines()
_READS_OF = {
    SQLITE: ["PRAGMA table_info(tests_author)", "VALUES (1)"],
    POSTGRESQL: [
        "VALUES (1)",
        "TABLE tests_author",
        "SHOW search_path",
        "SELECT * FROM tests_author FOR UPDATE",
        "SELECT * FROM tests_author FOR NO KEY UPDATE SKIP LOCKED",
        "SET LOCAL statement_timeout = 10000",
        "SAVEPOINT a",
        "COPY tests_author TO STDOUT",
        "COPY (SELECT * FROM tests_author) TO STDOUT",
    ],
    MARIADB: [
        "SHOW TABLES",
        "DESCRIBE tests_author",
        "SELECT * FROM tests_author FOR UPDATE",
        "SELECT * FROM tests_author LOCK IN SHARE MODE",
        "SELECT INSERT(name, 1, 1, 'x') FROM tests_author",
        "SAVEPOINT a",
    ],
}


@on_databases(transaction=True)
def test_statements_that_only_read_invalidate_nothing(cached: Watch, using: str) -> None:
    with factories.using(using):
        AuthorFactory()
    authors = rows(Author, using)
    cached.warm(authors)
    cached.clear()
    for statement in [*map(str.strip, _READS), *_READS_OF[using]]:
        if using == MARIADB:
            statement = statement.replace('"', "`")
        if using == SQLITE and statement.startswith("("):
            continue
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            if statement.startswith("COPY"):
                with cursor.copy(statement) as rows_out:
                    assert list(rows_out)
            else:
                cursor.execute(statement)
                if cursor.description:
                    cursor.fetchall()
        assert not cached.invalidated, statement
    cached.hit(authors)


@on_databases(transaction=True)
def test_reads_of_the_orm_past_the_cache_invalidate_nothing(cached: Watch, using: str) -> None:
    with factories.using(using):
        AuthorFactory()
    everybody = Author.objects.using(using)
    cached.warm(rows(Author, using))
    cached.clear()
    everybody.explain()
    list(everybody.iterator())
    list(Author.objects.using(using).raw("SELECT * FROM tests_author"))
    with transaction.atomic(using=using):
        list(everybody.select_for_update())
    with connections[using].cursor() as cursor:
        connections[using].introspection.get_table_description(cursor, "tests_author")
    assert cached.invalidated == []
    cached.hit(rows(Author, using))


@on_databases(transaction=True)
def test_a_statement_that_a_wrapper_does_not_execute_invalidates_nothing(
    cached: Watch, using: str
) -> None:
    tags = rows(Tag, using)
    cached.warm(tags)
    cached.clear()
    connection = connections[using]
    with connection.execute_wrapper(lambda execute, *args: None), connection.cursor() as cursor:
        cursor.execute("DELETE FROM tests_tag")
        cursor.executemany("INSERT INTO tests_tag (name) VALUES (%s)", [["a"], ["b"]])
    assert cached.invalidated == []
    cached.hit(tags)


@on_databases(POSTGRESQL, transaction=True)
def test_many_rows_at_once_are_written_to_their_table_alone(cached: Watch, using: str) -> None:
    """Django sends them as INSERT INTO … SELECT * FROM UNNEST(…)."""
    with CaptureQueriesContext(connections[using]) as sent:
        Tag.objects.using(using).bulk_create([Tag(name="a"), Tag(name="b")])
    assert [query["sql"] for query in sent if "UNNEST" in query["sql"]]
    assert cached.invalidated == [("tests_tag",)]


@on_databases(transaction=True)
def test_the_sqlflush_command_writes_nothing(cached: Watch, using: str) -> None:
    cached.warm(rows(Author, using))
    cached.clear()
    assert "tests_author" in call_command("sqlflush", database=using, stdout=io.StringIO())
    assert cached.invalidated == []
    cached.hit(rows(Author, using))


_PRECISE: list[tuple[str, Callable[[str], Any], tuple[type[models.Model], ...]]] = [
    ("save", lambda db: AuthorFactory(), (Book, Tag, Publisher)),
    ("update", lambda db: Book.objects.using(db).update(pages=1), (Author, Book.tags.through)),
    ("delete", lambda db: Note.objects.using(db).all().delete(), (Author, Tag)),
    (
        "many-to-many",
        lambda db: Book.objects.using(db).get().tags.add(Tag.objects.using(db).get()),
        (Book, Tag, Author),
    ),
    ("child", lambda db: Restaurant.objects.using(db).update(stars=1), (Place,)),
    ("raw insert", lambda db: run(db, "INSERT INTO tests_tag (name) VALUES ('x')"), (Author,)),
    (
        "raw update by a selection",
        lambda db: run(
            db, "UPDATE tests_tag SET name = (SELECT MAX(name) FROM tests_author) WHERE 1 = 0"
        ),
        (Author, Book),
    ),
    ("raw delete", lambda db: run(db, "DELETE FROM tests_note"), (Author, Tag)),
    (
        "raw SQL in a string",
        lambda db: run(db, "DELETE FROM tests_note WHERE text = 'tests_tag'"),
        (Tag,),
    ),
]


@pytest.mark.parametrize(
    ("write", "others"), [case[1:] for case in _PRECISE], ids=[case[0] for case in _PRECISE]
)
@on_databases(transaction=True)
def test_a_write_leaves_unrelated_tables_cached(
    cached: Watch, using: str, write: Callable[[str], Any], others: tuple[Any, ...]
) -> None:
    with factories.using(using):
        BookFactory()
        TagFactory()
        RestaurantFactory()
        questions = [rows(other, using) for other in others]
        for question in questions:
            cached.warm(question)
        cached.clear()
        write(using)
        assert cached.invalidated
        for question in questions:
            cached.hit(question)


@on_databases(transaction=True)
def test_a_new_table_leaves_others_cached(cached: Watch, using: str) -> None:
    cached.warm(rows(Author, using))
    with connections[using].schema_editor() as editor:
        editor.create_model(_shelf("tests_shelf"))
    try:
        cached.hit(rows(Author, using))
    finally:
        run(using, "DROP TABLE tests_shelf")


@pytest.mark.parametrize(
    ("make", "statement"),
    [
        (procedure, "CALL tests_rename()"),
        (function, "SELECT tests_rename()"),
        (function, "INSERT INTO tests_note (text) VALUES (tests_rename())"),
    ],
)
@on_databases(POSTGRESQL, MARIADB, transaction=True)
def test_what_is_declared_writes_what_is_declared_and_nothing_else(
    cached: Watch, using: str, make: Any, statement: str
) -> None:
    with told(WRITES={"tests_rename": ["tests_author"]}), make(using, "tests_rename", _RENAME):
        cached.warm(rows(Tag, using))
        run(using, statement)
        cached.hit(rows(Tag, using))


@on_databases(POSTGRESQL, transaction=True)
def test_to_refresh_a_view_does_not_write_what_it_reads(cached: Watch, using: str) -> None:
    with (
        told(DEPENDS_ON={"tests_shelf": ["tests_author"]}),
        made(
            using,
            "CREATE MATERIALIZED VIEW tests_shelf AS SELECT id, name FROM tests_author",
            "DROP MATERIALIZED VIEW tests_shelf",
        ),
    ):
        cached.warm(rows(Author, using))
        run(using, "REFRESH MATERIALIZED VIEW tests_shelf")
        cached.hit(rows(Author, using))


# --- where other caches went on serving what was there before ------------------------------


def _of_author(question: Callable[[Any], Any]) -> Story:
    """A story of a query that reads authors somewhere deep inside."""

    def tell(db: str) -> Iterator[Any]:
        book = BookFactory(author__name="old")
        yield lambda: question(Book.objects.using(db).order_by("pk"))
        Author.objects.using(db).filter(pk=book.author_id).update(name="new")

    return tell


_named_old = Author.objects.filter(name="old")
_name = Author.objects.filter(pk=OuterRef("author")).values("name")
_pages = Author.objects.filter(name="old").values("pk")[:1]

_DEEP: dict[str, Callable[[Any], Any]] = {
    "Subquery() + 1 in annotate()": lambda books: list(
        books.annotate(n=Subquery(_pages) + 1).values_list("n", flat=True)
    ),
    "Coalesce(Subquery()) in filter()": lambda books: books.filter(
        author=Coalesce(Subquery(_pages), Value(-1))
    ).count(),
    "Exists() in Case(When())": lambda books: list(
        books.annotate(n=Case(When(Exists(_named_old), then=1), default=0)).values_list("n")
    ),
    "~Exists()": lambda books: books.filter(~Exists(_named_old)).count(),
    "pk__in in Case(When())": lambda books: list(
        books.annotate(
            n=Case(When(author__in=_named_old.values("pk"), then=1), default=0)
        ).values_list("n")
    ),
    "Count() with a filter by a subquery": lambda books: books.aggregate(
        n=Count("pk", filter=Q(author__in=_named_old.values("pk")))
    ),
    "order_by(Subquery())": lambda books: list(
        books.order_by(Subquery(_name[:1])).annotate(n=Subquery(_name[:1])).values_list("n")
    ),
    "order_by() over a relation": lambda books: list(
        books.order_by("author__name").values_list("author__name")
    ),
    "select_related()": lambda books: [b.author.name for b in books.select_related("author")],
    "pk__in a queryset": lambda books: books.filter(author__in=_named_old).count(),
    "Exists()": lambda books: books.filter(Exists(_named_old)).count(),
    "union()": lambda books: list(
        books.order_by().values_list("author__name").union(books.order_by().values_list("title"))
    ),
}


def rows_that_a_manager_hides(db):
    # CheapBook.objects does not find the row; its old state is of no importance.
    book = BookFactory(price=50)
    yield rows(Book, db)
    book = CheapBook._base_manager.using(db).get(pk=book.pk)
    book.title = "new"
    book.save()


def equal_values_that_are_spelt_differently(db):
    book = BookFactory(price="1.00")
    yield lambda: Book.objects.using(db).filter(price=Decimal("1.0")).count()
    book.price = Decimal("2.000")
    book.save()


# Each was seen in django-cachalot 2.9, django-cacheops 7.2 or django-ormcache 1.5.
_HOLES: dict[str, tuple[Story, str]] = {
    "a generated column": (save_of_a_model_with_generated_columns_updates, SQLITE),
    "update()": (update_of_a_queryset, SQLITE),
    "bulk_update()": (bulk_update_updates, SQLITE),
    "bulk_create(update_conflicts=True)": (bulk_create_that_updates_on_conflict, SQLITE),
    "cursor.execute()": (raw_update, SQLITE),
    "REPLACE INTO": (replace, SQLITE),
    "executescript()": (executescript, SQLITE),
    "TRUNCATE": (truncate, POSTGRESQL),
    "COPY": (copy, POSTGRESQL),
    "a SELECT that writes": (select_of_a_declared_function, POSTGRESQL),
    "a trigger": (declared_trigger, SQLITE),
    "a table with capitals": (table_with_a_capital, POSTGRESQL),
    "psycopg.sql.Composed": (composed_sql, POSTGRESQL),
    "flush": (flush_command, SQLITE),
    "the child of multi-table inheritance": (save_of_a_child_is_seen_by_its_parents, SQLITE),
    "the parent of multi-table inheritance": (save_of_a_parent_is_seen_by_its_children, SQLITE),
    "SET NULL": (delete_sets_null, SQLITE),
    "a row that a manager hides": (rows_that_a_manager_hides, SQLITE),
    "equal values, spelt differently": (equal_values_that_are_spelt_differently, SQLITE),
    **{name: (_of_author(question), SQLITE) for name, question in _DEEP.items()},
}
if django.VERSION >= (6, 1):
    _HOLES["DB_CASCADE and DB_SET_NULL"] = (delete_that_the_database_passes_on, SQLITE)


@scenario(38)
@pytest.mark.parametrize(
    ("using", "tell"),
    [
        pytest.param(*place.values, tell, marks=place.marks, id=name)
        for name, (tell, alias) in _HOLES.items()
        for place in on_databases(alias, transaction=True).args[1]
    ],
)
def test_where_other_caches_serve_what_was_there_before(
    cached: Watch, using: str, tell: Story
) -> None:
    check(cached, using, tell)


# --- the stories are told ------------------------------------------------------------------


def check(cached: Watch, using: str, tell: Story) -> None:
    with factories.using(using), contextlib.closing(tell(using)) as plot:
        questions = next(plot)
        if not isinstance(questions, tuple):
            questions = (questions,)
        old_answers = [cached.warm(question) for question in questions]
        next(plot, None)
        for question, old in zip(questions, old_answers, strict=True):
            new = cached.warm(question)
            with ormcache.disabled():
                assert new == question()
            assert new != old


@scenario(38)
@pytest.mark.parametrize(("using", "tell"), _stories)
def test_what_was_written_is_read(cached: Watch, using: str, tell: Story) -> None:
    check(cached, using, tell)
