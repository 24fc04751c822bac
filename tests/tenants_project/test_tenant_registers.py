"""A write of one tenant leaves the answers of the others valid, where that is certain."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.test.utils import override_settings
from django_tenants.utils import schema_context

import ormcache
from ormcache import catalog, counters
from ormcache.reasons import Reason
from ormcache.routers import tenancy
from tests.interleaving import record_calls, route_of, store_of
from tests.tenants_project.customers.models import Country
from tests.tenants_project.notes.models import Note
from tests.tenants_project.shop.models import Author, Book, Tag
from tests.tenants_project.world import TENANTS, add, names, outside, within
from tests.watching import Watch, wait_for_quarantine

in_alpha, in_beta = within("alpha"), within("beta")


def notes() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def allow(**options: Any) -> Any:
    return override_settings(ORMCACHE={**settings.ORMCACHE, **options})


# --- what is gained ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda: Author.objects.create(name="new"),
        lambda: Author.objects.update(name="new"),
        lambda: Author.objects.all().delete(),
        lambda: Author.objects.bulk_create([Author(name="x"), Author(name="y")]),
        lambda: Author.objects.bulk_update(
            [Author(pk=author.pk, name="bulk") for author in Author.objects.all()], ["name"]
        ),
        lambda: Author.objects.update_or_create(name="old", defaults={"name": "changed"}),
        lambda: execute("UPDATE shop_author SET name = 'by name'"),
        lambda: execute('delete from "shop_author" where true'),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_atomic", [True, False], ids=["atomic", "autocommit"])
def test_a_write_of_a_tenant_leaves_the_answers_of_others(
    cached: Watch, write: Callable[[], Any], is_atomic: bool
) -> None:
    for tenant in TENANTS:
        add(tenant, "old")
        cached.warm(within(tenant))
    block = transaction.atomic() if is_atomic else contextlib.nullcontext()
    with schema_context("alpha"), block:
        write()
    assert cached.hit(in_beta) == ["old"]
    assert in_alpha() != ["old"]
    cached.hit(in_alpha)


def test_relations_of_a_tenant_leave_the_answers_of_others(cached: Watch) -> None:
    def tags() -> int:
        return Book.objects.filter(tags__name="new").count()

    for tenant in TENANTS:
        with schema_context(tenant):
            Book.objects.create(title="a", author=Author.objects.create(name="a"))
        cached.warm(within(tenant, tags))
    with schema_context("alpha"):
        Book.objects.get().tags.add(Tag.objects.create(name="new"))
    assert cached.hit(within("beta", tags)) == 0
    assert within("alpha", tags)() == 1


def test_tables_in_all_schemas_are_told_apart_as_well(cached: Watch) -> None:
    for schema in ("public", *TENANTS):
        cached.warm(within(schema, notes))
    Note.objects.create(text="public")
    for tenant in TENANTS:
        assert cached.hit(within(tenant, notes)) == []
    assert cached.warm(notes) == ["public"]
    with schema_context("alpha"):
        Note.objects.create(text="alpha")
    assert cached.hit(within("beta", notes)) == []
    # What is in the public schema is never certain, and so hears of all.
    assert cached.miss(notes) == ["public"]
    assert cached.warm(within("alpha", notes)) == ["alpha"]


def test_a_shared_table_has_one_register(cached: Watch) -> None:
    cached.warm(within("beta", Country.objects.count))
    with schema_context("alpha"):
        Country.objects.create(name="Austria")
    assert cached.miss(within("beta", Country.objects.count)) == 1


def test_a_write_of_a_tenant_is_announced_with_one_command(
    cached: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_alpha()
    calls = record_calls(monkeypatch, store_of("default"), "arm", "start_arm", "finish")
    add("alpha", "autocommit")
    assert calls == ["start_arm", "finish"]
    calls.clear()
    with transaction.atomic():
        add("alpha", "atomic")
        add("beta", "atomic")
    assert calls == ["arm", "finish"]


def test_a_read_of_a_tenant_is_looked_up_with_one_command(
    cached: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.warm(in_alpha)
    calls = record_calls(monkeypatch, store_of("default"), "read", "start_read")
    cached.hit(in_alpha)
    assert calls == ["read"]


def test_who_watches_is_told_of_tables(cached: Watch) -> None:
    counters.reset()
    with schema_context("alpha"):
        in_alpha()
        cached.clear()
        Author.objects.create(name="a")
    assert cached.invalidated == [("shop_author",)]
    assert ormcache.statistics()["default"]["shop_author"]["invalidated"] == 1
    with schema_context("alpha"):
        explanation = ormcache.explain(Author.objects.all())
    assert explanation.cacheable
    assert explanation.tables == ("shop_author",)


# --- what is not certain -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO beta.shop_author (name) VALUES ('new')",
        "INSERT INTO beta . shop_author (name) SELECT 'new'",
        'UPDATE "beta"."shop_author" SET name = \'new\'',
        "DELETE FROM beta.shop_author",
        "WITH x AS (DELETE FROM beta.shop_author RETURNING 1) SELECT 1 FROM x",
        "MERGE INTO beta.shop_author a USING (SELECT 1) b ON true WHEN MATCHED THEN DELETE",
        "SET search_path TO beta; UPDATE shop_author SET name = 'new'",
        "SET search_path TO beta; INSERT INTO shop_author (name) SELECT 'new'",
        "DO $$ BEGIN DELETE FROM beta.shop_author; END $$",
    ],
)
def test_a_write_to_the_table_of_another_tenant_is_seen(cached: Watch, statement: str) -> None:
    for tenant in TENANTS:
        add(tenant, "old")
        cached.warm(within(tenant))
    with schema_context("alpha"):
        execute(statement)
    assert in_beta() == [name for (name,) in outside("SELECT name FROM beta.shop_author")]
    assert in_beta() != ["old"]
    assert in_alpha() == ["old"]


def test_a_trigger_may_write_to_another_tenant(cached: Watch) -> None:
    outside(
        "CREATE FUNCTION public.copy_tag() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO beta.shop_author (name) VALUES (NEW.name); "
        "INSERT INTO beta.shop_tag (name) VALUES (NEW.name); RETURN NEW; END $$",
        "CREATE TRIGGER copy_tag AFTER INSERT ON alpha.shop_tag "
        "FOR EACH ROW EXECUTE FUNCTION public.copy_tag()",
    )
    try:
        with allow(WRITES={"shop_tag": ["shop_author"], "shop_author": ["shop_tag"]}):
            cached.warm(in_beta)
            cached.warm(within("beta", Tag.objects.count))
            with schema_context("alpha"):
                Tag.objects.create(name="a")
            assert in_beta() == ["a"]
            assert within("beta", Tag.objects.count)() == 1
    finally:
        outside("DROP FUNCTION public.copy_tag CASCADE")


def _by_the_driver() -> None:
    with schema_context("beta"), connection.connection.cursor() as cursor:
        cursor.execute("SET search_path TO beta")


def _by_a_cursor() -> None:
    with schema_context("beta"):
        execute("SELECT 1")


def _by_hand() -> None:
    execute("SET search_path TO beta")


def _for_good() -> None:
    connection.set_schema("beta")
    execute("SELECT 1")


@pytest.mark.parametrize("lead", [_by_the_driver, _by_a_cursor, _by_hand, _for_good])
def test_a_wrapper_around_the_statement_may_lead_to_another_tenant(
    cached: Watch, lead: Callable[[], None]
) -> None:
    for tenant in TENANTS:
        cached.warm(within(tenant))

    def lead_astray(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("INSERT"):
            lead()
        return execute(sql, *args)

    with connection.execute_wrapper(lead_astray):
        add("alpha", "where?")
    assert outside("SELECT name FROM beta.shop_author") == [("where?",)]
    assert in_beta() == ["where?"]
    assert in_alpha() == []


def test_a_wrapper_that_leads_nowhere_leaves_the_answers_of_other_tenants_valid(
    cached: Watch,
) -> None:
    for tenant in TENANTS:
        cached.warm(within(tenant))
    with connection.execute_wrapper(lambda execute, *args: execute(*args)):
        add("alpha", "new")
    assert cached.hit(in_beta) == []
    assert cached.warm(in_alpha) == ["new"]


def test_a_read_that_a_wrapper_led_to_another_tenant_is_not_stored(cached: Watch) -> None:
    add("beta", "b")

    def lead_astray(execute: Any, sql: str, *args: Any) -> Any:
        if "FROM" in sql and "shop_author" in sql:
            with schema_context("beta"), connection.connection.cursor() as cursor:
                cursor.execute("SET search_path TO beta")
        return execute(sql, *args)

    with connection.execute_wrapper(lead_astray):
        assert in_alpha() == ["b"]
    assert cached.reads[-1].reason is Reason.SESSION
    assert in_alpha() == []


def test_a_query_that_names_a_schema_hears_of_all(cached: Watch) -> None:
    def public_notes() -> list[str]:
        rows = Note.objects.extra(
            tables=["public.notes_note"],
            where=["public.notes_note.text = notes_note.text"],
        )
        return list(rows.values_list("text", flat=True))

    def all_of_public() -> list[int]:
        sql = "SELECT count(*) FROM public.notes_note AS others"
        return list(Note.objects.extra(select={"many": sql}).values_list("many", flat=True))

    with schema_context("alpha"):
        Note.objects.create(text="a")
    assert within("alpha", all_of_public)() == within("alpha", all_of_public)() == [0]
    Note.objects.create(text="public")
    assert within("alpha", all_of_public)() == [1]


def test_what_a_declared_view_reads_hears_of_all(cached: Watch) -> None:
    execute("CREATE VIEW alpha.all_notes AS SELECT count(*) AS many FROM public.notes_note")
    try:
        wait_for_quarantine("default")
        with allow(DEPENDS_ON={"all_notes": ["notes_note"]}):

            def count() -> list[int]:
                sql = "SELECT many FROM all_notes"
                authors = Author.objects.extra(select={"many": sql})
                return list(authors.values_list("many", flat=True))

            add("alpha", "a")
            assert within("alpha", count)() == within("alpha", count)() == [0]
            cached.hit(within("alpha", count))
            Note.objects.create(text="public")
            assert within("alpha", count)() == [1]
    finally:
        execute("DROP VIEW alpha.all_notes")


def test_an_alias_without_django_tenants_hears_of_all(cached: Watch) -> None:
    def plain() -> list[str]:
        return list(Author.objects.using("plain").values_list("name", flat=True))

    assert route_of("plain").namespace == route_of("default").namespace
    assert cached.warm(plain) == []
    add("alpha", "a")
    assert cached.warm(plain) == ["a"]
    Author.objects.using("plain").create(name="b")
    assert in_alpha() == ["a", "b"]
    connections["plain"].close()


@pytest.fixture
def delta() -> Iterator[None]:
    """A tenant whose schema has no tables: it finds those of the public schema."""
    execute("CREATE SCHEMA delta")
    wait_for_quarantine("default")
    yield
    execute("DROP SCHEMA delta CASCADE")


def test_a_tenant_without_the_table_reads_and_writes_the_public_one(
    cached: Watch, delta: None
) -> None:
    in_delta = within("delta", notes)
    in_delta()
    cached.warm(in_delta)
    cached.warm(notes)
    Note.objects.create(text="public")
    assert cached.warm(in_delta) == ["public"]
    assert cached.warm(notes) == ["public"]
    with schema_context("delta"):
        Note.objects.create(text="delta")
    assert cached.warm(in_delta) == ["public", "delta"]
    assert cached.warm(notes) == ["public", "delta"]


def test_a_table_that_was_dropped_is_not_believed_to_be_there(cached: Watch, delta: None) -> None:
    in_delta = within("delta", notes)
    execute("CREATE TABLE delta.notes_note (LIKE public.notes_note INCLUDING ALL)")
    in_delta()
    cached.warm(in_delta)
    execute("DROP TABLE delta.notes_note")
    for text in ("one", "two"):
        in_delta()
        in_delta()
        cached.hit(in_delta)
        # In the public schema: no register of delta's own is changed.
        Note.objects.create(text=text)
        assert in_delta() == notes()
    execute("CREATE TABLE delta.notes_note (LIKE public.notes_note INCLUDING ALL)")
    in_delta()
    in_delta()
    cached.hit(in_delta)
    Note.objects.create(text="three")
    assert cached.hit(in_delta) == []


def test_entries_under_other_registers_are_not_mixed_up(cached: Watch, delta: None) -> None:
    """A commit gives all registers that it changes the same nonce."""
    in_delta = within("delta", notes)
    in_delta()
    in_delta()
    with schema_context("delta"):
        Note.objects.create(text="delta")
    assert cached.warm(in_delta) == ["delta"]
    Note.objects.create(text="public")
    # Another process, which takes the table for one of delta's own.
    catalog._places.clear()
    assert in_delta() == ["delta", "public"]


def test_a_statement_that_was_prepared_is_not_certain(cached: Watch, delta: None) -> None:
    """It goes on meaning the table that it meant at first."""
    connection.ensure_connection()
    # Not by OPTIONS: a pool that is there already goes on with its own.
    driver = connection.connection
    driver.prepare_threshold = 0
    try:
        add("alpha", "a")
        assert in_alpha() == ["a"]
        assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN
        cached.warm(in_alpha)
        add("beta", "b")
        assert cached.miss(in_alpha) == ["a"]
    finally:
        driver.prepare_threshold = None
        catalog._places.clear()


def test_a_question_that_fails_leaves_the_answer_unstored(
    cached: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_alpha()
    ormcache.flush()
    monkeypatch.setattr(catalog, "_IN_SCHEMA", "SELECT 1 / 0 WHERE %s = 'x' OR %s IS NOT NULL")
    monkeypatch.setattr(catalog, "_breakers", {})
    with transaction.atomic():
        assert in_alpha() == []
        assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN
        add("alpha", "a")
    assert within("alpha")() == ["a"]


def test_explain_tells_what_a_tenant_would_be_answered(cached: Watch) -> None:
    with schema_context("alpha"):
        found = ormcache.explain(Author.objects.values_list("name", flat=True).order_by("pk"))
        assert (found.cached, found.cacheable, found.reason) == (False, True, None)
        names()
        found = ormcache.explain(Author.objects.values_list("name", flat=True).order_by("pk"))
        assert (found.cached, found.key) != (False, "")
        assert found.cached


# --- which tables ------------------------------------------------------------------------------


def test_tables_of_tenants_are_those_of_tenant_apps() -> None:
    found = tenancy.tenant_tables()
    assert {"shop_author", "shop_book", "shop_book_tags", "notes_note", "auth_user"} <= found
    assert not {"customers_client", "customers_country", "django_migrations"} & found


def test_tenants_may_be_of_several_types() -> None:
    types = {
        "public": {"APPS": settings.SHARED_APPS},
        "shop": {"APPS": ["tests.tenants_project.shop"]},
        "notes": {"APPS": ["tests.tenants_project.notes"]},
    }
    with override_settings(HAS_MULTI_TYPE_TENANTS=True, TENANT_TYPES=types):
        assert tenancy.is_configured()
        found = tenancy.tenant_tables()
        assert {"shop_author", "notes_note"} <= found
        assert "auth_user" not in found


def test_without_tenants_nothing_has_registers_of_its_own() -> None:
    with override_settings(TENANT_APPS=[]):
        assert not tenancy.is_configured()
        assert tenancy.tenant_tables() == frozenset()


@pytest.mark.parametrize("schema", ["public", "extra", "with space", "ünicode", "", None])
def test_schemas_that_are_no_tenants_have_no_registers(schema: Any) -> None:
    with override_settings(PG_EXTRA_SEARCH_PATHS=["extra"]):
        assert tenancy.own_schema(schema) is None
        assert tenancy.own_schema("alpha") == "alpha"


@pytest.mark.parametrize("schema", ["alpha", "Al-pha_7"])
def test_registers_of_a_write_meet_those_of_every_read_that_may_see_it(schema: str) -> None:
    name = "shop_author"
    written = tenancy.written(frozenset({name, "other"}), name, [schema, "public"])
    assert written == {"other", f"*.{name}", f"{schema}.{name}"}
    certain = tenancy.read((name,), {name}, schema)
    assert certain == (name, f"{schema}.{name}")
    assert written & set(certain)
    for uncertain in (tenancy.read((name,), (), schema), tenancy.read((name,), {name}, None)):
        assert uncertain == (name, f"*.{name}")
        assert written & set(uncertain)
    others = tenancy.read((name,), {name}, "another")
    assert not written & set(others)
    assert tenancy.tables_of(written) == ("other", name)


def test_other_tables_have_the_registers_that_they_always_had() -> None:
    names = frozenset({"customers_country"})
    assert tenancy.written(names, "customers_country", ["alpha"]) == names
    assert tenancy.read(("customers_country",), {"customers_country"}, "alpha") == (
        "customers_country",
    )
