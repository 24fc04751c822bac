"""Migrations flush the namespace of the database on which they run, and no other."""

import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import DatabaseError, connections, migrations, models, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.signals import post_migrate
from django.test import modify_settings, override_settings

import ormcache
from ormcache import migrations_hooks, signals
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheUnreachable
from ormcache.migrations_hooks import flush
from ormcache.stores import breaker_for
from tests import backdoor, migrating
from tests.aliases import alias_of
from tests.factories import AuthorFactory, BookFactory, TagFactory
from tests.factories import using as factories_using
from tests.interleaving import session
from tests.marks import needs, on_databases, scenario
from tests.migrating import plugged
from tests.models import Author, AuthorBooks, Book, Note, Tag
from tests.proxies import Proxy
from tests.servers import HOST, RedisServer
from tests.watching import Watch, wait_for_quarantine

pytestmark = [needs("redis"), pytest.mark.usefixtures("emptied")]

FLUSH = ("*",)
MIGRATING = "migration in progress"

Question = Callable[[], Any]
Invalidated = list[tuple[str, tuple[str, ...]]]

on_default = on_databases("default", transaction=True)
on_each = on_databases(transaction=True)


@pytest.fixture
def cache() -> str:
    return "redis"


@pytest.fixture
def app(using: str, cached: Watch) -> Iterator[None]:
    """The app `tests.migrating`, of which nothing has been migrated yet."""
    with modify_settings(INSTALLED_APPS={"append": "tests.migrating"}):
        yield
        migrating.steps.clear()
        plugged.clear()
        connections[using].close()
        backdoor.execute(
            using,
            "DROP TABLE IF EXISTS migrating_item_friends",
            "DROP TABLE IF EXISTS migrating_item",
            "DELETE FROM django_migrations WHERE app = 'migrating'",
        )
        ContentType.objects.using(using).filter(app_label="migrating").delete()


@pytest.fixture
def invalidated() -> Iterator[Invalidated]:
    """Database aliases and tables, as they are invalidated."""
    events: Invalidated = []

    def note(using: str, tables: tuple[str, ...], **kwargs: Any) -> None:
        events.append((using, tables))

    signals.tables_invalidated.connect(note)
    yield events
    signals.tables_invalidated.disconnect(note)


@pytest.fixture
def names(using: str, cached: Watch) -> Question:
    """A question of which the answer changes unseen by ormcache after it was cached."""
    with factories_using(using):
        AuthorFactory(name="old")

    def names() -> list[str]:
        return list(Author.objects.using(using).values_list("name", flat=True))

    cached.warm(names)
    rename_unseen(using, "new")
    assert cached.hit(names) == ["old"]
    return names


def rename_unseen(using: str, name: str) -> None:
    backdoor.execute(using, f"UPDATE tests_author SET name = '{name}'")


def migrate(using: str, to: str = "0003", **options: Any) -> None:
    call_command("migrate", "migrating", to, database=using, verbosity=0, **options)


def execute(using: str, to: str | None = "0003_price") -> None:
    """As tests of migrations do it, without the command and without signals."""
    MigrationExecutor(connections[using]).migrate([("migrating", to)])


def items(using: str) -> list[Any]:
    item = apps.get_model("migrating", "Item")
    return list(item.objects.using(using).order_by("pk").values_list("name", "price"))


def columns_of_items(using: str) -> set[str]:
    connection = connections[using]
    with connection.cursor() as cursor:
        table = connection.introspection.get_table_description(cursor, "migrating_item")
    return {column.name for column in table}


def run(*statements: str) -> Any:
    """An operation that executes SQL."""
    return migrations.RunSQL([*statements], migrations.RunSQL.noop)


def do(work: Callable[[str], Any]) -> Any:
    """An operation that calls a function with the database's alias."""
    return migrations.RunPython(
        lambda apps, editor: work(editor.connection.alias), migrations.RunPython.noop
    )


def fail(using: str) -> None:
    raise migrating.Failure


# --- what is flushed -----------------------------------------------------------------------


@on_each
def test_a_migration_invalidates_every_table(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    migrate(using)
    assert cached.warm(names) == ["new"]


@on_default
def test_the_namespace_is_flushed_before_and_after_a_migration_and_no_other(
    app: None, using: str, invalidated: Invalidated
) -> None:
    plugged(do(lambda alias: invalidated.append((using, ("the step",)))))
    migrate(using)
    invalidated.clear()
    migrate(using, "0004")
    middle = invalidated.index((using, ("the step",)))
    assert invalidated[0] == (using, FLUSH)
    assert (using, FLUSH) in invalidated[middle:]
    assert {alias for alias, _ in invalidated} == {using}


def write_as_before(apps: Any, editor: Any) -> None:
    """With the models of that time, which know no more than the migrations said."""
    rows = apps.get_model("migrating", "Item").objects.using(editor.connection.alias)
    (before,) = rows.values_list("price", flat=True)
    rows.update(price=models.F("price") + 1)
    assert list(rows.values_list("price", flat=True)) == [before + 1]


KINDS: dict[str, list[Any]] = {
    "RunSQL": [run("UPDATE migrating_item SET price = 8")],
    "RunSQL, no model": [
        run(
            "CREATE TABLE migrating_loose (id integer)",
            "INSERT INTO migrating_loose VALUES (1)",
            "DROP TABLE migrating_loose",
        )
    ],
    "RunPython": [migrations.RunPython(write_as_before, migrations.RunPython.noop)],
    "state only": [
        migrations.SeparateDatabaseAndState(
            state_operations=[migrations.AlterField("Item", "price", models.FloatField())]
        )
    ],
    "database only": [
        migrations.SeparateDatabaseAndState(
            database_operations=[run("UPDATE migrating_item SET price = 7")]
        )
    ],
    "AlterField": [migrations.AlterField("Item", "price", models.CharField(max_length=9))],
    "RenameField": [migrations.RenameField("Item", "price", "cost")],
    "nothing": [],
}


@scenario(38)
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
@on_each
def test_whatever_a_migration_does_it_invalidates_every_table(
    app: None, cached: Watch, using: str, names: Question, atomic: bool
) -> None:
    execute(using)
    for kind, operations in KINDS.items():
        plugged(*operations, atomic=atomic)
        for to in ("0004_plugged", "0003_price"):
            cached.warm(names)
            rename_unseen(using, f"{kind} {to}")
            execute(using, to)
            assert names() == [f"{kind} {to}"]
            ormcache.flush(using=using)
    assert not state_of(connections[using]).migrating


@on_each
def test_what_others_store_in_the_course_of_a_migration_is_flushed_after_it(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    """Also what is changed in a way that ormcache does not see, such as another driver."""

    def work(alias: str) -> None:
        with session(alias):
            assert cached.warm(names) == ["new"]
            rename_unseen(alias, "newest")
            assert cached.hit(names) == ["new"]

    plugged(do(work), atomic=False)
    execute(using, "0004_plugged")
    assert cached.warm(names) == ["newest"]


@on_each
def test_a_migration_backwards_flushes(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    migrate(using)
    cached.warm(names)
    for to in ("0002", "zero"):
        rename_unseen(using, to)
        migrate(using, to)
        assert cached.warm(names) == [to]


@on_each
def test_a_faked_migration_flushes(app: None, cached: Watch, using: str, names: Question) -> None:
    migrate(using, "0001", fake=True)
    assert cached.warm(names) == ["new"]
    rename_unseen(using, "newer")
    migrate(using, "zero", fake=True)
    assert cached.warm(names) == ["newer"]


@on_each
def test_a_migration_of_tables_that_are_there_already_flushes(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    migrate(using, "0001")
    backdoor.execute(using, "DELETE FROM django_migrations WHERE app = 'migrating'")
    cached.warm(names)
    rename_unseen(using, "newer")
    migrate(using, "0001", fake_initial=True)
    assert cached.warm(names) == ["newer"]


@on_each
def test_a_squashed_migration_flushes(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    with override_settings(MIGRATION_MODULES={"migrating": "tests.migrating.squashed"}):
        migrate(using, "0001")
        assert cached.warm(names) == ["new"]
        assert cached.warm(lambda: items(using)) == []
        migrate(using, "zero")


@on_default
def test_a_squashed_migration_of_which_all_is_there_is_recorded_and_flushes_nothing(
    app: None, cached: Watch, using: str, invalidated: Invalidated
) -> None:
    migrate(using)
    cached.warm(Author.objects.count)
    invalidated.clear()
    with override_settings(MIGRATION_MODULES={"migrating": "tests.migrating.squashed"}):
        migrate(using, "0001")
    assert (using, ("django_migrations",)) in invalidated
    assert (using, FLUSH) not in invalidated
    cached.hit(Author.objects.count)


@on_each
def test_what_a_migration_writes_is_read_afterwards(app: None, cached: Watch, using: str) -> None:
    migrate(using)
    assert cached.warm(lambda: items(using)) == [("new", 7)]


# --- what is not flushed -------------------------------------------------------------------


@on_default
def test_an_empty_plan_flushes_nothing(
    app: None, cached: Watch, using: str, invalidated: Invalidated
) -> None:
    migrate(using)
    cached.warm(Author.objects.count)
    invalidated.clear()
    migrate(using)
    MigrationExecutor(connections[using]).migrate([("migrating", "0003_price")])
    assert invalidated == []
    cached.hit(Author.objects.count)


@on_default
def test_what_receivers_write_after_an_empty_plan_is_invalidated(
    app: None, cached: Watch, using: str, invalidated: Invalidated
) -> None:
    def receive(sender: Any, **kwargs: Any) -> None:
        if sender.label == "tests":
            Tag.objects.using(using).create(name="received")

    migrate(using)
    tags = Tag.objects.using(using)
    cached.warm(tags.count)
    cached.warm(Author.objects.count)
    invalidated.clear()
    post_migrate.connect(receive)
    try:
        migrate(using)
    finally:
        post_migrate.disconnect(receive)
    assert invalidated == [(using, ("tests_tag",))]
    assert cached.warm(tags.count) == 1
    cached.hit(Author.objects.count)


@pytest.mark.parametrize(
    "command",
    [
        ("migrate", "migrating", "--plan"),
        ("migrate", "migrating", "--check"),
        ("sqlmigrate", "migrating", "0003"),
        ("showmigrations",),
        ("sqlflush",),
        ("makemigrations", "migrating", "--check", "--dry-run"),
        ("optimizemigration", "migrating", "0003", "--check"),
    ],
    ids=" ".join,
)
@on_default
def test_to_look_at_migrations_flushes_nothing(
    app: None, cached: Watch, using: str, command: tuple[str, ...]
) -> None:
    cached.warm(Author.objects.count)
    cached.clear()
    name, *arguments = command
    # They end the process with a code if there is something to do.
    with contextlib.suppress(SystemExit), override_settings(DATABASE_ROUTERS=[]):
        call_command(name, *arguments, stdout=io.StringIO())
    assert cached.invalidated == []
    cached.hit(Author.objects.count)


# --- other databases and aliases -----------------------------------------------------------


@needs("postgresql", "mariadb")
@pytest.mark.django_db(databases=["default", "postgresql", "mariadb"], transaction=True)
@pytest.mark.parametrize("using", ["default", "postgresql", "mariadb"])
def test_other_databases_are_left_alone(
    app: None, cached: Watch, using: str, invalidated: Invalidated, names: Question
) -> None:
    there: list[Question] = []
    for alias in {"default", "postgresql", "mariadb"} - {using}:
        ormcache.flush(using=alias)
        wait_for_quarantine(alias)
        there.append(Author.objects.using(alias).count)
        cached.warm(there[-1])
    invalidated.clear()
    execute(using)
    assert {alias for alias, _ in invalidated} == {using}
    for question in there:
        cached.hit(question)
    assert cached.warm(names) == ["new"]


@on_databases("default", "postgresql", transaction=True)
def test_all_aliases_of_the_database_are_flushed(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    with alias_of(using, "second") as second:
        execute(second)
        assert cached.warm(names) == ["new"]
        # The other alias reads as ever while this one migrates.
        seen = []
        plugged(do(lambda alias: seen.append(cached.warm(Tag.objects.using(using).count))))
        execute(second, "0004_plugged")
        assert seen == [0]


@on_default
def test_a_connection_of_ones_own_is_flushed_and_not_the_database_of_its_alias(
    app: None, cached: Watch, using: str, names: Question, tmp_path: Path
) -> None:
    """As packages have it that migrate each tenant's database through a copy of a connection."""
    file = str(tmp_path / "own")
    with alias_of(using, "other", NAME=file) as other:
        with connections[other].schema_editor() as editor:
            editor.create_model(Author)
        question = Author.objects.using(other).count
        wait_for_quarantine(other)
        cached.warm(question)
        own = connections[using].copy()
        own.settings_dict["NAME"] = file
        try:
            MigrationExecutor(own).migrate([("migrating", "0001_initial")])
        finally:
            own.close()
        cached.miss(question)
        assert cached.hit(names) == ["old"]


@on_databases("postgresql", transaction=True)
def test_the_replicas_of_the_database_are_flushed(
    app: None, cached: Watch, using: str, names: Question, settings: Any
) -> None:
    # A replica of another name, which here happens to be the same server.
    with alias_of(using, "replica", HOST="localhost") as replica:
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "DATABASES": {replica: {"PRIMARY": using, "MAX_LAG": 0.1}},
        }

        def there() -> list[str]:
            return list(Author.objects.using(replica).values_list("name", flat=True))

        answers = [there() for _ in range(2)]
        rename_unseen(using, "newer")
        execute(using)
        assert there() == ["newer"], answers


@on_default
def test_a_router_that_allows_nothing_flushes_but_the_database_that_was_named(
    app: None, cached: Watch, using: str, names: Question, invalidated: Invalidated
) -> None:
    class Nothing:
        def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
            return False if app_label == "migrating" else None

    with override_settings(DATABASE_ROUTERS=[Nothing()]):
        migrate(using)
        assert "migrating_item" not in connections[using].introspection.table_names()
        assert cached.warm(names) == ["new"]
        assert {alias for alias, _ in invalidated} == {using}
        migrate(using, "zero")


# --- tables without a model of their own ---------------------------------------------------


@on_each
def test_views_are_flushed(app: None, cached: Watch, using: str, settings: Any) -> None:
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        # Wrong, so that nothing but a flush reaches what the view answers.
        "DEPENDS_ON": {"tests_author_books": []},
    }
    with factories_using(using):
        AuthorFactory(name="old")

    def question() -> list[str]:
        return list(AuthorBooks.objects.using(using).values_list("name", flat=True))

    cached.warm(question)
    rename_unseen(using, "new")
    assert cached.hit(question) == ["old"]
    execute(using)
    assert cached.warm(question) == ["new"]


@on_each
def test_unmanaged_models_and_tables_without_a_model_are_flushed(
    app: None, cached: Watch, using: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DEPENDS_ON": {"tests_loose": []}}
    loose = "EXISTS (SELECT 1 FROM tests_loose WHERE id = 2)"
    with factories_using(using):
        TagFactory()

    def question() -> int:
        return Tag.objects.using(using).extra(where=[loose]).count()

    backdoor.execute(using, "CREATE TABLE tests_loose (id integer)")
    try:
        assert cached.warm(question) == 0
        backdoor.execute(using, "INSERT INTO tests_loose VALUES (2)")
        assert cached.hit(question) == 0
        execute(using)
        assert cached.warm(question) == 1
    finally:
        backdoor.execute(using, "DROP TABLE tests_loose")


@on_each
def test_tables_of_many_to_many_relations_are_flushed(
    app: None, cached: Watch, using: str
) -> None:
    with factories_using(using):
        book = BookFactory(tags=[TagFactory(), TagFactory()])

    def question() -> int:
        return Book.objects.using(using).get(pk=book.pk).tags.count()

    assert cached.warm(question) == 2
    backdoor.execute(using, "DELETE FROM tests_book_tags")
    assert cached.hit(question) == 2
    execute(using)
    assert cached.warm(question) == 0


# --- in the course of a migration ----------------------------------------------------------


@on_each
def test_the_migrating_connection_reads_from_the_database(
    app: None, cached: Watch, using: str
) -> None:
    outcomes = []

    def read(alias: str) -> None:
        outcomes.extend(cached.call(lambda: Author.objects.using(alias).count())[1])
        outcomes.extend(cached.call(lambda: ContentType.objects.using(alias).count())[1])

    migrating.steps["populate"] = read
    execute(using)
    assert outcomes == [MIGRATING, MIGRATING]


@on_databases("default", "postgresql", transaction=True)
def test_so_does_the_next_session_of_it(app: None, cached: Watch, using: str) -> None:
    def read(alias: str) -> None:
        connections[alias].close()
        with cached.expect(MIGRATING):
            Author.objects.using(alias).count()

    plugged(do(read), atomic=False)
    execute(using, "0004_plugged")
    cached.warm(Author.objects.using(using).count)


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
    execute(using)
    assert answers == [0]


@on_default
def test_a_migration_may_run_another_one(app: None, cached: Watch, using: str) -> None:
    def nest(alias: str) -> None:
        executor = MigrationExecutor(connections[alias])
        first = executor.loader.graph.nodes["migrating", "0001_initial"]
        executor.migrate(None, plan=[(first, False)], fake=True)
        with cached.expect(MIGRATING):
            Author.objects.using(alias).count()

    plugged(do(nest), atomic=False)
    execute(using, "0004_plugged")
    assert not state_of(connections[using]).migrating
    cached.warm(Author.objects.using(using).count)


@on_each
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


@on_each
def test_receivers_of_post_migrate_read_what_the_migration_left(
    app: None, cached: Watch, using: str, names: Question
) -> None:
    seen = []

    def receive(**kwargs: Any) -> None:
        seen.append(names())

    post_migrate.connect(receive, sender=apps.get_app_config("contenttypes"))
    try:
        migrate(using)
    finally:
        post_migrate.disconnect(receive, sender=apps.get_app_config("contenttypes"))
    assert seen == [["new"]]


@on_each
def test_what_has_been_migrated_is_asked_of_the_database(
    app: None, cached: Watch, using: str
) -> None:
    """The database may have been restored, or migrated by a program without ormcache."""

    def applied() -> set[str]:
        applied = MigrationRecorder(connections[using]).applied_migrations()
        return {name for app, name in applied if app == "migrating"}

    execute(using, "0002_items")
    for _ in range(2):
        assert applied() == {"0001_initial", "0002_items"}
    backdoor.execute(using, "DELETE FROM django_migrations WHERE name = '0002_items'")
    assert applied() == {"0001_initial"}
    backdoor.execute(
        using,
        "INSERT INTO django_migrations (app, name, applied) "
        "VALUES ('migrating', '0002_items', CURRENT_TIMESTAMP)",
    )
    assert applied() == {"0001_initial", "0002_items"}


# --- failures ------------------------------------------------------------------------------

_ADD = "ALTER TABLE migrating_item ADD COLUMN extra integer DEFAULT 1 NOT NULL"


def write_and_commit(using: str) -> None:
    with transaction.atomic(using=using):
        apps.get_model("migrating", "Item").objects.using(using).update(name="half")


def is_interrupted(using: str) -> None:
    raise KeyboardInterrupt


class Failing(NamedTuple):
    """A migration that fails after it was half done, and what is left unless it is undone."""

    operations: list[Any]
    is_atomic: bool
    error: type[BaseException]
    name: str = "new"
    column: str = ""


FAILING = {
    "in a transaction": Failing(
        [run("UPDATE migrating_item SET name = 'half'"), do(fail)],
        True,
        migrating.Failure,
        name="half",
    ),
    "after DDL in a transaction": Failing(
        [run(_ADD), do(fail)], True, migrating.Failure, column="extra"
    ),
    "after DDL without one": Failing(
        [run(_ADD), do(fail)], False, migrating.Failure, column="extra"
    ),
    "after a commit": Failing(
        [do(write_and_commit), do(fail)], False, migrating.Failure, name="half"
    ),
    "in SQL": Failing(
        [do(write_and_commit), run("SELECT * FROM nowhere")], False, DatabaseError, name="half"
    ),
    "by the user": Failing(
        [run(_ADD), do(is_interrupted)], False, KeyboardInterrupt, column="extra"
    ),
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
@on_each
def test_a_migration_that_fails_leaves_nothing_stale_and_reading_works(
    app: None, cached: Watch, using: str, names: Question, failing: Failing
) -> None:
    execute(using)

    def question() -> Any:
        return items(using), names()

    def work(alias: str) -> None:
        # What others store meanwhile, and what ormcache does not see.
        with session(alias):
            cached.call(question)
            if not failing.is_atomic:
                rename_unseen(alias, "newest")

    cached.call(question)
    plugged(do(work), *failing.operations, atomic=failing.is_atomic)
    with pytest.raises(failing.error):
        execute(using, "0004_plugged")
    # MariaDB commits each statement that changes a table; Django opens no transaction for it.
    is_undone = failing.is_atomic and using != "mariadb"
    if failing.column:
        assert (failing.column in columns_of_items(using)) is not is_undone
    with ormcache.disabled():
        truth = question()
    assert cached.warm(question) == truth
    assert truth == (
        [("new" if is_undone else failing.name, 7)],
        ["new" if failing.is_atomic else "newest"],
    )
    # As ever afterwards.
    assert not state_of(connections[using]).migrating
    plugged(run("UPDATE migrating_item SET name = 'last'"))
    execute(using, "0004_plugged")
    assert cached.warm(lambda: items(using)) == [("last", 7)]


@on_default
def test_a_failed_migration_flushes_before_and_after(
    app: None, using: str, invalidated: Invalidated
) -> None:
    plugged(do(lambda alias: invalidated.append((using, ("the step",)))), do(fail))
    execute(using)
    invalidated.clear()
    with pytest.raises(migrating.Failure):
        execute(using, "0004_plugged")
    assert invalidated == [(using, FLUSH), (using, ("the step",)), (using, FLUSH)]


KILLED = """
import os, signal, sys
import django
django.setup()
from django.conf import settings
from django.core.management import call_command
from django.db import connection, migrations
from tests.migrating import plugged

settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "redis"}
using, is_atomic = sys.argv[1], sys.argv[2] == "atomic"

def die(apps, editor):
    apps.get_model("migrating", "Item").objects.using(using).update(name="killed")
    os.kill(os.getpid(), signal.SIGKILL)

plugged(
    migrations.RunSQL("ALTER TABLE migrating_item RENAME COLUMN price TO cost"),
    migrations.RunPython(die),
    atomic=is_atomic,
)
call_command("migrate", "migrating", "0004", database=using, verbosity=0)
"""


@pytest.mark.parametrize("atomic", ["atomic", "not atomic"])
@on_each
def test_a_migration_that_is_killed_leaves_nothing_stale(
    app: None, cached: Watch, using: str, atomic: str, tmp_path: Path
) -> None:
    execute(using)

    def old() -> Any:
        return items(using)

    def count() -> Any:
        return apps.get_model("migrating", "Item").objects.using(using).filter(name="new").count()

    cached.warm(old)
    assert cached.warm(count) == 1
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.migrating.settings"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, using, atomic], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    is_renamed = "cost" in columns_of_items(using)
    assert is_renamed is (using == "mariadb" or atomic == "not atomic")
    with ormcache.disabled():
        truth = count()
    assert truth == (0 if atomic == "not atomic" else 1)
    # At once, and when the lease of the killed process has ended.
    assert count() == truth
    wait_for_quarantine(using)
    if is_renamed:
        with pytest.raises(Exception, match="price"):
            old()
        backdoor.execute(using, "ALTER TABLE migrating_item RENAME COLUMN cost TO price")
        ormcache.flush(using=using)
    else:
        assert cached.warm(old) == [("new", 7)]


# --- the cache does not answer -------------------------------------------------------------


class Cut:
    """A cache that can be taken away, and the site that uses it."""

    def __init__(self, settings: Any, proxy: Proxy) -> None:
        self.settings, self.proxy = settings, proxy
        settings.CACHES = {
            **settings.CACHES,
            "cut": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://{HOST}:{proxy.port}/0",
            },
        }
        self.set(CACHE_ALIAS="cut", SOCKET_TIMEOUT=0.5)

    def set(self, **options: Any) -> None:
        self.settings.ORMCACHE = {**self.settings.ORMCACHE, **options}

    def mend(self) -> None:
        """Let the cache answer, and ormcache ask it again."""
        self.proxy.mend()
        breaker_for("cut").succeeded()


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as redis:
        yield redis


@pytest.fixture
def cut(own_redis: RedisServer, app: None, using: str, settings: Any) -> Iterator[Cut]:
    with Proxy(own_redis.port) as proxy:
        cut = Cut(settings, proxy)
        wait_for_quarantine(using)
        yield cut
        # Nothing is owed to the next test, and nothing refused.
        cut.set(ON_CACHE_FAILURE="raise", ENABLED=True, DATABASES={})
        cut.mend()
        ormcache.flush(using=using)
        cut.set(CACHE_ALIAS="redis")


@on_default
@pytest.mark.parametrize(
    "is_test, advice",
    [
        (False, "`manage.py ormcache flush --database default`"),
        (True, re.escape('in tests: ORMCACHE = {"ENABLED": False}.')),
    ],
    ids=["deployment", "test run"],
)
def test_without_the_cache_nothing_is_migrated(
    cut: Cut, using: str, monkeypatch: pytest.MonkeyPatch, is_test: bool, advice: str
) -> None:
    monkeypatch.setattr(flush, "is_under_test", lambda: is_test)
    cut.proxy.cut()
    with pytest.raises(
        CacheUnreachable,
        match=r"Nothing was migrated in the database 'default', because the cache 'cut' could not "
        rf"be told beforehand \(.*\)\. .* {advice}",
    ):
        migrate(using)
    applied = MigrationRecorder(connections[using]).applied_migrations()
    assert "migrating" not in {app for app, _ in applied}
    assert not state_of(connections[using]).migrating


@on_default
def test_a_cache_that_is_lost_at_the_end_is_an_error_that_says_what_to_do(
    cut: Cut, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = MigrationExecutor.check_replacements

    def lose(executor: MigrationExecutor) -> None:
        check(executor)
        cut.proxy.cut()

    monkeypatch.setattr(MigrationExecutor, "check_replacements", lose)
    with pytest.raises(
        CacheUnreachable,
        match=r"'default' was migrated, but the cache 'cut' could not be told afterwards \(.*\)\. "
        r".* run `manage.py ormcache flush --database default`, and `manage.py migrate",
    ):
        migrate(using)
    assert not state_of(connections[using]).migrating


@on_default
def test_a_cache_that_is_lost_on_the_way_stops_a_migration(cut: Cut, using: str) -> None:
    cut.set(ON_CACHE_FAILURE="raise")
    migrate(using)
    plugged(run("UPDATE migrating_item SET name = 'lost'"), do(lambda alias: cut.proxy.cut()))
    with pytest.raises(CacheUnreachable, match=r"The write to .* was refused"):
        migrate(using, "0004")
    with ormcache.disabled():
        assert items(using) == [("new", 7)]
    assert not state_of(connections[using]).migrating


@on_default
def test_the_error_of_a_migration_that_fails_is_the_one_that_is_raised(
    cut: Cut, using: str, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_and_fail(alias: str) -> None:
        cut.proxy.cut()
        raise migrating.Failure

    plugged(do(lose_and_fail))
    with pytest.raises(migrating.Failure):
        migrate(using, "0004")
    assert [record.getMessage() for record in caplog.records if record.name == "ormcache"] == [
        "The migration of the database 'default' is over, but the cache 'cut' could not be told. "
        "Run `manage.py ormcache flush --database default` when the cache is back."
    ]
    assert not state_of(connections[using]).migrating


@on_default
def test_open_lets_a_migration_through_and_says_what_to_do(
    cut: Cut, using: str, caplog: pytest.LogCaptureFixture
) -> None:
    cut.set(ON_CACHE_FAILURE="open")
    cut.proxy.cut()
    migrate(using)
    assert [record.levelno for record in caplog.records if record.name == "ormcache"] == [
        logging.WARNING
    ]
    assert "`manage.py ormcache flush --database default`" in caplog.text
    with ormcache.disabled():
        assert items(using) == [("new", 7)]


@on_default
def test_open_has_nothing_to_say_when_the_cache_is_back_before_the_end(
    cut: Cut, using: str, caplog: pytest.LogCaptureFixture, names: Question
) -> None:
    cut.set(ON_CACHE_FAILURE="open")
    plugged(do(lambda alias: cut.mend()))
    cut.proxy.cut()
    migrate(using, "0004")
    assert [record for record in caplog.records if record.name == "ormcache"] == []
    wait_for_quarantine(using)
    assert names() == ["new"]


@pytest.mark.parametrize(
    "options",
    [{"ENABLED": False}, {"DATABASES": {"default": {"ENABLED": False}}}],
    ids=["switched off", "alias off"],
)
@on_default
def test_switched_off_a_migration_needs_no_cache(
    cut: Cut, using: str, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    cut.set(**options)
    cut.proxy.cut()
    execute(using)
    assert [record for record in caplog.records if record.name == "ormcache"] == []
    assert items(using) == [("new", 7)]


@pytest.mark.parametrize(
    "options",
    [
        {"ENABLED": False},
        {"DATABASES": {"default": {"ENABLED": False}}},
        {"ON_CACHE_FAILURE": "open"},
    ],
    ids=["switched off", "alias off", "open"],
)
@on_default
def test_switched_off_a_migration_flushes_what_others_have_stored(
    app: None, cached: Watch, using: str, names: Question, settings: Any, options: dict[str, Any]
) -> None:
    usual = settings.ORMCACHE
    settings.ORMCACHE = {**usual, **options}
    execute(using)
    settings.ORMCACHE = usual
    assert cached.warm(names) == ["new"]


# --- other commands ------------------------------------------------------------------------


@on_each
def test_the_flush_command_flushes(
    cached: Watch, using: str, invalidated: Invalidated, names: Question
) -> None:
    call_command("flush", database=using, interactive=False, verbosity=0)
    assert (using, FLUSH) in invalidated
    assert {alias for alias, _ in invalidated} == {using}
    assert cached.warm(names) == []


@on_each
def test_loaddata_invalidates_what_it_loads(
    cached: Watch, using: str, invalidated: Invalidated, tmp_path: Path
) -> None:
    with factories_using(using):
        TagFactory(name="old")
    tags, notes = Tag.objects.using(using), Note.objects.using(using)
    cached.warm(lambda: list(tags.values_list("name", flat=True)))
    cached.warm(notes.count)
    invalidated.clear()
    fixture = tmp_path / "tags.json"
    rows = [{"model": "tests.tag", "pk": tags.get().pk, "fields": {"name": "new"}}]
    fixture.write_text(json.dumps(rows))
    call_command("loaddata", str(fixture), database=using, verbosity=0)
    assert set(invalidated) == {(using, ("tests_tag",))}
    assert cached.warm(lambda: list(tags.values_list("name", flat=True))) == ["new"]
    cached.hit(notes.count)


@on_each
def test_a_table_for_djangos_cache_invalidates_no_other(
    cached: Watch, using: str, invalidated: Invalidated
) -> None:
    cached.warm(Tag.objects.using(using).count)
    invalidated.clear()
    call_command("createcachetable", "migrating_cache", database=using, verbosity=0)
    try:
        assert set(invalidated) <= {(using, ("migrating_cache",))}
        cached.hit(Tag.objects.using(using).count)
    finally:
        backdoor.execute(using, "DROP TABLE migrating_cache")


@on_each
def test_stale_content_types_are_removed(cached: Watch, using: str) -> None:
    types = ContentType.objects.using(using).filter(app_label="tests")
    ContentType.objects.using(using).create(app_label="tests", model="gone")
    cached.warm(types.count)
    before = types.count()
    call_command("remove_stale_contenttypes", database=using, interactive=False, verbosity=0)
    assert cached.warm(types.count) == before - 1


@on_each
def test_tables_of_apps_without_migrations_are_seen_when_they_are_made(
    cached: Watch, using: str, invalidated: Invalidated, names: Question
) -> None:
    """Nothing is in the plan, so nothing but what is made is invalidated."""

    def question() -> Any:
        return Note.objects.using(using).count()

    with connections[using].schema_editor() as editor:
        editor.delete_model(Note)
    cached.call(names)
    invalidated.clear()
    call_command("migrate", database=using, run_syncdb=True, verbosity=0)
    assert {tables for _, tables in invalidated} == {("tests_note",)}
    assert cached.warm(question) == 0
    cached.hit(names)


@on_default
def test_pruned_migrations_invalidate_nothing_but_their_table(
    app: None, cached: Watch, using: str, invalidated: Invalidated
) -> None:
    migrate(using)
    cached.warm(Author.objects.count)
    MigrationRecorder(connections[using]).record_applied("migrating", "0000_gone")
    invalidated.clear()
    call_command("migrate", "migrating", prune=True, database=using, verbosity=0)
    assert invalidated == [(using, ("django_migrations",))]
    cached.hit(Author.objects.count)


# --- the receiver --------------------------------------------------------------------------


@on_default
def test_disconnected_nothing_is_flushed_and_connected_again_it_is(
    cached: Watch, using: str, invalidated: Invalidated
) -> None:
    migrations_hooks.connect()  # Twice is once.
    migrations_hooks.disconnect()
    try:
        call_command("flush", database=using, interactive=False, verbosity=0)
        assert (using, FLUSH) not in invalidated
    finally:
        migrations_hooks.connect()
    call_command("flush", database=using, interactive=False, verbosity=0)
    assert (using, FLUSH) in invalidated
