"""Tenants see their own rows and the shared ones, from the cache as from the database."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import ProgrammingError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_tenants.utils import schema_context, tenant_context

import ormcache
from ormcache.fence_rows import TABLE as FENCE
from ormcache.reasons import Reason
from tests.interleaving import Background
from tests.tenants_project.customers.models import Client, Country
from tests.tenants_project.notes.models import Note
from tests.tenants_project.shop.models import Author, Book, Tag
from tests.tenants_project.world import TENANTS, add, names, outside, within
from tests.watching import Watch

IS_LIMITED: bool = settings.TENANT_LIMIT_SET_CALLS

in_alpha, in_beta = within("alpha"), within("beta")


# --- rows of a tenant ------------------------------------------------------------------------


def test_tenants_are_cached_and_never_see_each_others_rows(cached: Watch) -> None:
    add("alpha", "a")
    add("beta", "b")
    assert cached.warm(in_alpha) == ["a"]
    assert cached.warm(in_beta) == ["b"]
    assert cached.hit(in_alpha) == ["a"]
    assert cached.hit(in_beta) == ["b"]


def test_rows_of_the_same_key_are_not_mixed_up(cached: Watch) -> None:
    outside(
        "INSERT INTO alpha.shop_author (id, name) VALUES (1, 'a')",
        "INSERT INTO beta.shop_author (id, name) VALUES (1, 'b')",
    )

    def get() -> str:
        return Author.objects.get(pk=1).name

    assert cached.warm(within("alpha", get)) == "a"
    assert cached.warm(within("beta", get)) == "b"
    assert cached.hit(within("alpha", get)) == "a"


def test_a_tenant_that_was_never_asked_is_not_answered_by_another(cached: Watch) -> None:
    add("alpha", "a")
    cached.warm(in_alpha)
    assert cached.miss(in_beta) == []


def test_a_hit_does_not_depend_on_who_was_asked_before(cached: Watch) -> None:
    """The search path of the session is that of the last cursor, which may be any tenant's."""
    cached.warm(in_alpha)
    cached.warm(in_beta)
    for before in ("public", "beta", "alpha"):
        with schema_context(before), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        cached.hit(in_alpha)
        connection.close()
        cached.hit(in_alpha)


def test_a_hit_asks_nothing_of_the_database(cached: Watch) -> None:
    cached.warm(in_alpha)
    with schema_context("beta"), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    with CaptureQueriesContext(connection) as queries:
        cached.hit(in_alpha)
    asked = [query["sql"] for query in queries]
    if any(FENCE in text for text in asked):
        # On a slow machine the next look may be due, which it is once a second: in its schema.
        asked = [text for text in asked if FENCE not in text and "SET search_path" not in text]
    assert asked == []


def test_a_write_is_seen_by_its_tenant_at_once(cached: Watch) -> None:
    cached.warm(in_alpha)
    cached.warm(in_beta)
    add("alpha", "a")
    assert in_alpha() == ["a"]
    assert in_beta() == []


@pytest.mark.parametrize(
    "write",
    [
        lambda: Author.objects.update(name="new"),
        lambda: Author.objects.all().delete(),
        lambda: Author.objects.bulk_create([Author(name="x"), Author(name="y")]),
        lambda: Author.objects.bulk_update(
            [Author(pk=author.pk, name="bulk") for author in Author.objects.all()], ["name"]
        ),
        lambda: Author.objects.update_or_create(name="old", defaults={"name": "changed"}),
        lambda: Author.objects.get().save(),
    ],
    ids=["update", "delete", "bulk_create", "bulk_update", "update_or_create", "save"],
)
@pytest.mark.parametrize("is_atomic", [True, False], ids=["atomic", "autocommit"])
def test_every_write_of_the_orm_is_seen(
    cached: Watch, write: Callable[[], Any], is_atomic: bool
) -> None:
    for tenant in TENANTS:
        add(tenant, "old")
        cached.warm(within(tenant))
    with schema_context("alpha"):
        if is_atomic:
            with transaction.atomic():
                write()
        else:
            write()
    assert in_alpha() == stored("alpha")
    assert in_beta() == ["old"]


def stored(schema: str) -> list[str]:
    """What the database itself has."""
    return [name for (name,) in outside(f"SELECT name FROM {schema}.shop_author ORDER BY id")]


def test_relations_stay_within_the_tenant(cached: Watch) -> None:
    def tags() -> list[list[str]]:
        books = Book.objects.order_by("pk").prefetch_related("tags").select_related("author")
        return [[book.author.name, *(tag.name for tag in book.tags.all())] for book in books]

    for tenant in TENANTS:
        with schema_context(tenant):
            book = Book.objects.create(title=tenant, author=Author.objects.create(name=tenant))
            book.tags.add(Tag.objects.create(name=f"tag of {tenant}"))
        cached.warm(within(tenant, tags))
    with schema_context("alpha"):
        Book.objects.get().tags.clear()
    assert within("alpha", tags)() == [["alpha"]]
    assert within("beta", tags)() == [["beta", "tag of beta"]]


def test_tenant_context_and_activate_choose_the_tenant(cached: Watch) -> None:
    add("beta", "b")
    cached.warm(in_beta)
    tenant = Client.objects.get(schema_name="beta")
    with tenant_context(tenant):
        assert cached.hit(names) == ["b"]
    with tenant:
        assert cached.hit(names) == ["b"]
    with schema_context("alpha"):
        with tenant_context(tenant):
            assert cached.hit(names) == ["b"]
        assert cached.miss(names) == []


# --- shared tables ---------------------------------------------------------------------------


def countries() -> list[str]:
    return list(Country.objects.order_by("pk").values_list("name", flat=True))


@pytest.mark.parametrize("writer", ["alpha", "public"])
def test_a_shared_table_is_fresh_for_all_at_once(cached: Watch, writer: str) -> None:
    for schema in ("alpha", "beta", "public"):
        cached.warm(within(schema, countries))
    with schema_context(writer):
        Country.objects.create(name="Austria")
    for schema in ("alpha", "beta", "public"):
        assert cached.warm(within(schema, countries)) == ["Austria"]
    with schema_context(writer), transaction.atomic():
        Country.objects.update(name="Österreich")
    for schema in ("alpha", "beta", "public"):
        assert cached.warm(within(schema, countries)) == ["Österreich"]


def test_a_join_with_a_shared_table_is_fresh_for_all_at_once(cached: Watch) -> None:
    def origins() -> list[str]:
        return list(Author.objects.order_by("pk").values_list("country__name", flat=True))

    with schema_context("alpha"):
        austria = Country.objects.create(name="Austria")
        Author.objects.create(name="a", country=austria)
    with schema_context("beta"):
        Author.objects.create(name="b", country=austria)
        Author.objects.create(name="c", country=austria)
    cached.warm(within("alpha", origins))
    cached.warm(within("beta", origins))
    with schema_context("alpha"):
        Country.objects.update(name="A")
    assert cached.warm(within("beta", origins)) == ["A", "A"]
    assert cached.warm(within("alpha", origins)) == ["A"]


def test_a_table_in_all_schemas_is_that_of_the_schema(cached: Watch) -> None:
    def notes() -> list[str]:
        return list(Note.objects.values_list("text", flat=True))

    for schema in ("public", *TENANTS):
        with schema_context(schema):
            Note.objects.create(text=schema)
    for schema in ("public", *TENANTS):
        assert cached.warm(within(schema, notes)) == [schema]
    for writer in ("alpha", "public"):
        with schema_context(writer):
            Note.objects.update(text=f"new in {writer}")
        for schema in ("public", *TENANTS):
            rows = outside(f"SELECT text FROM {schema}.notes_note")
            assert within(schema, notes)() == [text for (text,) in rows]


def test_without_the_public_schema_its_tables_are_not_there(cached: Watch) -> None:
    """And the cache does not pretend that they were."""
    cached.warm(within("alpha", countries))
    connection.set_schema("alpha", include_public=False)
    with pytest.raises(ProgrammingError, match="does not exist"):
        countries()
    connection.set_schema("alpha")
    cached.hit(countries)


# --- switching in the middle -----------------------------------------------------------------


def test_a_switch_inside_a_transaction_loses_no_write(cached: Watch) -> None:
    cached.warm(in_alpha)
    cached.warm(in_beta)
    with transaction.atomic():
        add("alpha", "a")
        assert in_beta() == []
        add("beta", "b")
        assert in_alpha() == ["a"]
        connection.set_schema_to_public()
    assert in_alpha() == ["a"]
    assert in_beta() == ["b"]


def test_a_transaction_that_began_before_the_switch_is_announced(cached: Watch) -> None:
    cached.warm(in_alpha)
    connection.set_schema("alpha")
    with transaction.atomic():
        Author.objects.create(name="a")
        connection.set_schema("beta")
    assert in_alpha() == ["a"]


def test_own_writes_of_a_transaction_are_seen_after_switches(cached: Watch) -> None:
    cached.warm(in_alpha)
    with transaction.atomic():
        add("alpha", "a")
        with schema_context("beta"):
            names()
        assert in_alpha() == ["a"]
        # And nobody else sees them.
        assert Background(in_alpha).result() == []
    assert in_alpha() == ["a"]


def test_a_rollback_changes_nothing(cached: Watch) -> None:
    add("alpha", "a")
    cached.warm(in_alpha)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        add("alpha", "never")
        with schema_context("beta"):
            names()
        raise ZeroDivisionError
    # The rollback has undone SET search_path as well; tenants are cached all the same.
    assert cached.hit(in_alpha) == ["a"]
    assert cached.hit(in_beta) == []


def test_a_savepoint_that_is_undone_leaves_the_tenant_as_it_was(cached: Watch) -> None:
    add("alpha", "a")
    add("beta", "b")
    with schema_context("alpha"), transaction.atomic():
        names()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            with schema_context("beta"):
                names()
            raise ZeroDivisionError
        assert names() == ["a"]
        with schema_context("beta"):
            assert names() == ["b"]
        assert names() == ["a"]
    assert in_alpha() == ["a"]
    assert in_beta() == ["b"]


def test_a_cursor_that_was_opened_before_a_switch_writes_where_it_stands(cached: Watch) -> None:
    """The backend sets the path when a cursor is opened, and not when it is used."""
    cached.warm(in_alpha)
    cached.warm(in_beta)
    connection.set_schema("alpha")
    with connection.cursor() as cursor:
        connection.set_schema("beta")
        cursor.execute("INSERT INTO shop_author (name) VALUES ('where?')")
    assert stored("alpha") == ["where?"]
    assert in_alpha() == ["where?"]
    assert in_beta() == []


def test_a_named_cursor_sets_the_path_unseen(cached: Watch) -> None:
    """It has a cursor of the driver's for that. A held cursor then writes to the other schema."""
    cached.warm(in_alpha)
    cached.warm(in_beta)
    connection.set_schema("alpha")
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("SELECT 1")
        connection.set_schema("beta")
        list(Author.objects.iterator())
        cursor.execute("INSERT INTO shop_author (name) VALUES ('where?')")
    assert stored("beta") == ["where?"]
    assert in_alpha() == []
    assert in_beta() == ["where?"]


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path TO beta",
        "SET SCHEMA 'beta'",
        "SELECT set_config('search_path', 'beta', false)",
    ],
)
def test_a_path_that_was_set_by_hand_is_not_taken_for_the_tenants(
    cached: Watch, statement: str
) -> None:
    add("alpha", "a")
    add("beta", "b")
    cached.warm(in_beta)
    connection.set_schema("alpha")
    cached.warm(names)
    with connection.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("SELECT name FROM shop_author")
        assert cursor.fetchall() == [("b",)]
    # Limited, the backend goes on with that path; it knows nothing of it.
    expected = ["b"] if IS_LIMITED else ["a"]
    assert names() == expected
    assert names() == expected
    Author.objects.create(name="by hand")
    assert names() == [*expected, "by hand"]
    # In a new session, which may be answered from the cache.
    connection.close()
    for tenant in TENANTS:
        assert within(tenant)() == stored(tenant)
    # Chosen again, the tenant is itself again.
    connection.set_schema("alpha")
    assert names() == stored("alpha")


def test_a_local_path_is_not_taken_for_the_tenants(cached: Watch) -> None:
    add("beta", "b")
    connection.set_schema("alpha")
    cached.warm(names)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL search_path TO beta")
        cursor.execute("INSERT INTO shop_author (name) VALUES ('local')")
        with cached.expect(Reason.SESSION):
            names()
    assert in_alpha() == []
    assert in_beta() == ["b", "local"]


def test_a_path_set_by_hand_and_undone_by_a_rollback_is_not_believed(cached: Watch) -> None:
    add("alpha", "a")
    add("beta", "b")
    connection.set_schema("alpha")
    cached.warm(names)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO beta")
        names()
        raise ZeroDivisionError
    assert names() == names() == ["a"]
    assert in_beta() == ["b"]


def test_a_commit_as_sql_that_is_a_rollback_undoes_the_path(cached: Watch) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK where an error has aborted the transaction."""
    add("alpha", "a")
    add("beta", "b")
    connection.set_schema("alpha")
    names()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        connection.set_schema("beta")
        with connection.cursor() as other:
            other.execute("SELECT 1")
        with pytest.raises(ProgrammingError):
            cursor.execute("SELECT * FROM nowhere")
        cursor.execute("COMMIT")
    # Limited, the backend itself believes to be in beta. That is not stored as beta's answer.
    assert names() == (["a"] if IS_LIMITED else ["b"])
    connection.set_schema("beta")
    assert names() == names() == ["b"]
    assert in_alpha() == ["a"]


def test_a_commit_that_is_a_rollback_undoes_the_path(cached: Watch) -> None:
    add("alpha", "a")
    add("beta", "b")
    connection.set_schema("alpha")
    names()
    connection.set_autocommit(False)
    try:
        connection.set_schema("beta")
        with connection.cursor() as cursor, pytest.raises(ProgrammingError):
            cursor.execute("SELECT * FROM nowhere")
        connection.commit()
        assert names() == (["a"] if IS_LIMITED else ["b"])
    finally:
        connection.rollback()
        connection.set_autocommit(True)
    connection.set_schema("beta")
    assert names() == names() == ["b"]
    assert in_alpha() == ["a"]


# --- several at once -------------------------------------------------------------------------


def test_threads_of_different_tenants_do_not_meet(cached: Watch) -> None:
    def work(number: int) -> None:
        chance = random.Random(number)
        mine = TENANTS[number % 2]
        for step in range(60):
            schema = chance.choice([mine, mine, mine, "public"])
            with schema_context(schema):
                if schema == "public":
                    Country.objects.create(name=mine)
                elif chance.random() < 0.3:
                    with transaction.atomic():
                        Author.objects.create(name=f"{mine} {number} {step}")
                else:
                    assert all(name.startswith(mine) for name in names())
                    assert set(countries()) <= set(TENANTS)

    threads = [Background(work, number) for number in range(4)]
    for thread in threads:
        thread.result()
    for tenant in TENANTS:
        assert within(tenant)() == stored(tenant)
    hits = [read for read in cached.reads if read.outcome == "hit"]
    assert len(hits) > 20


def test_invalidate_and_flush_reach_all_tenants(cached: Watch) -> None:
    for forget in (lambda: ormcache.invalidate(Author), ormcache.flush):
        for tenant in TENANTS:
            within(tenant)()
            cached.hit(within(tenant))
            outside(f"INSERT INTO {tenant}.shop_author (name) VALUES ('outside')")
        forget()
        for tenant in TENANTS:
            assert within(tenant)() == stored(tenant)
