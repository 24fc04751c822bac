"""Migrations flush the namespace of the database on which they run."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connections
from django.test import modify_settings

from ormcache import migrations_hooks, signals
from ormcache.transactions import state_of
from tests import backdoor, migrating
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.interleaving import session
from tests.marks import needs, on_databases
from tests.models import Author
from tests.watching import Watch

FLUSH = ("*",)
MIGRATING = "migration in progress"


@pytest.fixture
def app(using: str, cached: Watch) -> Iterator[None]:
    """The app `tests.migrating`, of which nothing has been migrated yet."""
    with modify_settings(INSTALLED_APPS={"append": "tests.migrating"}):
        yield
        migrating.steps.clear()
        connections[using].close()
        call_command("migrate", "migrating", "zero", database=using, verbosity=0)
        # No model knows the table of migrations, so nothing else would empty it.
        backdoor.execute(using, "DELETE FROM django_migrations")


@pytest.fixture
def invalidated() -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    """Database aliases and tables, as they are invalidated."""
    events = []

    def note(using: str, tables: tuple[str, ...], **kwargs: Any) -> None:
        events.append((using, tables))

    signals.tables_invalidated.connect(note)
    yield events
    signals.tables_invalidated.disconnect(note)


@pytest.fixture
def names(using: str, cached: Watch) -> Callable[[], Any]:
    """A question of which the answer changes unseen by ormcache after it was cached."""
    with factories_using(using):
        AuthorFactory(name="old")

    def names() -> list[str]:
        return list(Author.objects.using(using).values_list("name", flat=True))

    cached.warm(names)
    backdoor.execute(using, "UPDATE tests_author SET name = 'new'")
    assert cached.hit(names) == ["old"]
    return names


def migrate(using: str, to: str = "0003", **options: Any) -> None:
    call_command("migrate", "migrating", to, database=using, verbosity=0, **options)


# --- what is flushed -----------------------------------------------------------------------


@on_databases(transaction=True)
def test_a_migration_invalidates_every_table(
    app: None, cached: Watch, using: str, names: Callable[[], Any]
) -> None:
    migrate(using)
    assert cached.warm(names) == ["new"]


@on_databases("default", transaction=True)
def test_the_namespace_is_flushed_before_and_after_a_migration(
    app: None, using: str, invalidated: list[Any]
) -> None:
    migrating.steps["populate"] = lambda alias: invalidated.append("populate")
    migrate(using)
    middle = invalidated.index("populate")
    assert (using, FLUSH) in invalidated[:middle]
    assert (using, FLUSH) in invalidated[middle:]
    assert invalidated[0] == (using, FLUSH)


@needs("postgresql")
@pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)
def test_other_databases_are_left_alone(
    app: None, cached: Watch, using: str, invalidated: list[Any], names: Callable[[], Any]
) -> None:
    def there() -> list[Any]:
        return list(Author.objects.using("postgresql").values())

    there()
    cached.hit(there)
    migrate(using)
    assert {alias for alias, _ in invalidated} == {using}
    cached.hit(there)


@on_databases(transaction=True)
def test_what_a_migration_writes_is_read_afterwards(app: None, cached: Watch, using: str) -> None:
    def items() -> list[Any]:
        item = apps.get_model("migrating", "Item")
        return list(item.objects.using(using).values_list("name", "price"))

    migrate(using)
    assert cached.warm(items) == [("new", 7)]


@on_databases("default", transaction=True)
def test_a_migration_backwards_flushes(
    app: None, cached: Watch, using: str, invalidated: list[Any]
) -> None:
    migrate(using)
    invalidated.clear()
    migrate(using, "0002")
    assert (using, FLUSH) in invalidated


@on_databases("default", transaction=True)
def test_a_faked_migration_flushes(
    app: None, cached: Watch, using: str, names: Callable[[], Any]
) -> None:
    migrate(using, "0001", fake=True)
    assert cached.warm(names) == ["new"]
    migrate(using, "zero", fake=True)


@on_databases("default", transaction=True)
def test_an_empty_plan_flushes_nothing(
    app: None, cached: Watch, using: str, invalidated: list[Any]
) -> None:
    migrate(using)
    cached.warm(Author.objects.count)
    invalidated.clear()
    migrate(using)
    assert (using, FLUSH) not in invalidated
    cached.hit(Author.objects.count)


@pytest.mark.parametrize("option", ["plan", "check_unapplied"])
@on_databases("default", transaction=True)
def test_to_look_at_the_plan_flushes_nothing(
    app: None, cached: Watch, using: str, option: str
) -> None:
    cached.warm(Author.objects.count)
    cached.clear()
    options = {option: True}
    try:
        migrate(using, stdout=io.StringIO(), **options)
    except SystemExit:
        assert option == "check_unapplied"
    assert cached.invalidated == []
    cached.hit(Author.objects.count)


@on_databases("default", transaction=True)
def test_the_flush_command_flushes(
    cached: Watch, using: str, invalidated: list[Any], names: Callable[[], Any]
) -> None:
    call_command("flush", database=using, interactive=False, verbosity=0)
    assert (using, FLUSH) in invalidated
    assert cached.warm(names) == []


# --- in the course of a migration ----------------------------------------------------------


@on_databases(transaction=True)
def test_the_migrating_connection_reads_from_the_database(
    app: None, cached: Watch, using: str
) -> None:
    outcomes = []

    def read(alias: str) -> None:
        outcomes.extend(cached.call(lambda: Author.objects.using(alias).count())[1])
        outcomes.extend(cached.call(lambda: ContentType.objects.using(alias).count())[1])

    migrating.steps["populate"] = read
    migrate(using)
    assert outcomes == [MIGRATING, MIGRATING]


@on_databases("default", "postgresql", transaction=True)
def test_other_connections_go_on_reading_from_the_cache(
    app: None, cached: Watch, using: str
) -> None:
    def authors() -> int:
        return Author.objects.using(using).count()

    answers = []

    def read_elsewhere(alias: str) -> None:
        with session(alias):
            answers.append(cached.warm(authors))

    migrating.steps["populate"] = read_elsewhere
    migrate(using)
    assert answers == [0]


@on_databases(transaction=True)
def test_content_types_and_permissions_are_made_once(app: None, cached: Watch, using: str) -> None:
    """Their receivers ask what is there already."""

    def types() -> Any:
        return ContentType.objects.using(using).filter(app_label="migrating").count()

    def permissions() -> Any:
        return Permission.objects.using(using).filter(content_type__app_label="migrating").count()

    for _ in range(2):
        migrate(using)
        assert (types(), permissions()) == (1, 4)
        cached.hit(types)
        cached.hit(permissions)
        migrate(using, "zero")
        ContentType.objects.using(using).filter(app_label="migrating").delete()
        assert cached.warm(types) == cached.warm(permissions) == 0


# --- failures ------------------------------------------------------------------------------


@on_databases(transaction=True)
def test_after_a_failed_migration_its_connection_reads_from_the_database(
    app: None, cached: Watch, using: str, names: Callable[[], Any]
) -> None:
    with pytest.raises(migrating.Failure):
        migrate(using, "0004")
    answer, outcomes = cached.call(names)
    assert (answer, outcomes) == (["new"], [MIGRATING])
    # The next session is like any other.
    connections[using].close()
    assert cached.warm(names) == ["new"]


@on_databases("default", transaction=True)
def test_the_migration_after_a_failed_one_flushes_before_and_after(
    app: None, cached: Watch, using: str, invalidated: list[Any]
) -> None:
    with pytest.raises(migrating.Failure):
        migrate(using, "0004")
    invalidated.clear()
    migrate(using, "0002")
    assert invalidated[0] == (using, FLUSH)
    assert not state_of(connections[using]).migrating
    cached.warm(Author.objects.count)


# --- the receivers -------------------------------------------------------------------------


@on_databases("default", transaction=True)
def test_disconnected_nothing_is_flushed_and_connected_again_it_is(
    app: None, cached: Watch, using: str, invalidated: list[Any]
) -> None:
    migrations_hooks.connect()  # Twice is once.
    migrations_hooks.disconnect()
    try:
        migrate(using, "0001")
        assert (using, FLUSH) not in invalidated
    finally:
        migrations_hooks.connect()
    migrate(using)
    assert (using, FLUSH) in invalidated
