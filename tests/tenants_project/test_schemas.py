"""Schemas come, change and go, and no answer outlives what it was read from."""

from collections.abc import Iterator

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django_tenants.clone import CloneSchema
from django_tenants.utils import schema_context

from tests.tenants_project.customers.models import Client
from tests.tenants_project.notes.models import Note
from tests.tenants_project.shop.models import Author
from tests.tenants_project.world import add, create, drop, names, outside, within
from tests.watching import Watch


@pytest.fixture
def gamma() -> Iterator[None]:
    """Whatever the test makes of the schema "gamma" is gone afterwards."""
    yield
    connection.close()
    connection.set_schema_to_public()
    outside(
        "DROP SCHEMA IF EXISTS gamma CASCADE",
        "DELETE FROM customers_client WHERE schema_name = 'gamma'",
    )


def notes() -> list[str]:
    return list(Note.objects.values_list("text", flat=True))


def test_a_new_tenant_is_empty_and_cached(cached: Watch, gamma: None) -> None:
    add("alpha", "a")
    cached.warm(within("alpha"))
    create("gamma")
    assert cached.warm(within("gamma")) == []
    assert within("alpha")() == ["a"]
    add("gamma", "c")
    assert cached.warm(within("gamma")) == ["c"]


def test_a_tenant_that_was_dropped_leaves_nothing_to_the_next_of_its_name(
    cached: Watch, gamma: None
) -> None:
    tenant = create("gamma")
    add("gamma", "first")
    cached.warm(within("gamma"))
    drop(tenant)
    create("gamma")
    assert within("gamma")() == []


def test_a_schema_that_was_dropped_and_made_in_one_transaction_is_another(
    cached: Watch, gamma: None
) -> None:
    create("gamma")
    add("gamma", "first")
    cached.warm(within("gamma"))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA gamma CASCADE")
        cursor.execute("CREATE SCHEMA gamma")
        cursor.execute("CREATE TABLE gamma.shop_author (LIKE alpha.shop_author INCLUDING ALL)")
    assert within("gamma")() == []


def test_schemas_that_change_names_change_answers(cached: Watch, gamma: None) -> None:
    create("gamma")
    add("alpha", "a")
    add("gamma", "c")
    cached.warm(within("alpha"))
    cached.warm(within("gamma"))
    try:
        for _ in range(2):
            with connection.cursor() as cursor:
                cursor.execute("ALTER SCHEMA alpha RENAME TO other")
                cursor.execute("ALTER SCHEMA gamma RENAME TO alpha")
                cursor.execute("ALTER SCHEMA other RENAME TO gamma")
            assert within("alpha")() != within("gamma")()
            for schema in ("alpha", "gamma"):
                rows = outside(f"SELECT name FROM {schema}.shop_author")
                assert within(schema)() == [name for (name,) in rows]
    finally:
        assert within("alpha")() == ["a"]


def test_a_table_that_moves_to_another_schema_takes_its_rows_along(
    cached: Watch, gamma: None
) -> None:
    create("gamma")
    add("alpha", "a")
    add("gamma", "c")
    cached.warm(within("alpha"))
    cached.warm(within("gamma"))
    outside("DROP TABLE gamma.shop_author CASCADE")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE alpha.shop_author SET SCHEMA gamma")
    try:
        assert within("gamma")() == ["a"]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE gamma.shop_author SET SCHEMA alpha")
    assert within("alpha")() == ["a"]


def test_a_schema_that_was_cloned_shows_its_rows_at_once(cached: Watch, gamma: None) -> None:
    """The function that clones is called in a SELECT."""
    with schema_context("alpha"):
        Note.objects.create(text="a")
    Note.objects.create(text="public")
    # Nobody should ask in a schema that is not there; who does, sees the public tables.
    clone = CloneSchema()
    clone._create_clone_schema_function()
    assert within("gamma", notes)() == within("gamma", notes)() == ["public"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT clone_schema('alpha', 'gamma', 'DATA')")
    assert within("gamma", notes)() == ["a"]


def test_a_table_that_is_made_in_a_schema_hides_the_public_one(cached: Watch, gamma: None) -> None:
    Note.objects.create(text="public")
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA gamma")
    assert within("gamma", notes)() == within("gamma", notes)() == ["public"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE gamma.notes_note (LIKE public.notes_note)")
    assert within("gamma", notes)() == []
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE gamma.notes_note")
    assert within("gamma", notes)() == ["public"]
    with schema_context("gamma"):
        Note.objects.update(text="changed by gamma")
    assert notes() == within("gamma", notes)() == ["changed by gamma"]


def test_migrate_schemas_flushes_what_it_migrates(cached: Watch) -> None:
    add("alpha", "a")
    with schema_context("alpha"):
        Note.objects.create(text="a")
    for schema in ("alpha", "beta"):
        cached.warm(within(schema, notes))
    call_command("migrate_schemas", "notes", "zero", schema_name="alpha", verbosity=0)
    call_command("migrate_schemas", "notes", schema_name="alpha", verbosity=0)
    assert within("alpha", notes)() == []
    assert within("alpha")() == ["a"]
    assert within("beta", notes)() == []


def test_migrate_schemas_with_nothing_to_do_flushes_nothing(cached: Watch) -> None:
    add("alpha", "a")
    cached.warm(within("alpha"))
    call_command("migrate_schemas", verbosity=0)
    connection.set_schema_to_public()
    cached.hit(within("alpha"))


def test_tenants_themselves_are_cached(cached: Watch) -> None:
    """The middleware asks for the tenant of each request."""

    def tenant() -> Client:
        return Client.objects.get(schema_name="alpha")

    cached.warm(tenant)
    with schema_context("beta"):
        cached.warm(tenant)
    Client.objects.filter(schema_name="alpha").update(name="new")
    try:
        assert within("beta", tenant)().name == tenant().name == "new"
    finally:
        Client.objects.filter(schema_name="alpha").update(name="alpha")


def test_a_tenant_is_cached_again_after_all_this(cached: Watch) -> None:
    with schema_context("alpha"):
        Author.objects.create(name="a")
        assert cached.warm(names) == ["a"]
