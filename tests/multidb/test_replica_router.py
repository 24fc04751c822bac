"""Which alias a query goes to: the primary for what is written, a replica for what is read."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connections, router, transaction
from django.db.models import prefetch_related_objects

from ormcache.connection_state import state_of
from ormcache.routers import ReplicaRouter, pins
from tests.aliases import alias_of
from tests.factories import AuthorFactory, BookFactory, CommentFactory, TagFactory
from tests.interleaving import session
from tests.marks import needs, on_databases
from tests.models import Author, AuthorProfile, Book, Comment, Tag

REPLICAS = ("first", "second")

on_sqlite = on_databases("default", transaction=True)


@pytest.fixture
def primary(using: str, settings: Any) -> Iterator[str]:
    """The alias `using` as a primary with two replicas, which are two other ways to it."""
    with contextlib.ExitStack() as aliases:
        for name in REPLICAS:
            aliases.enter_context(alias_of(using, name))
        declared = {name: {"PRIMARY": using} for name in REPLICAS}
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": declared}
        settings.DATABASE_ROUTERS = [ReplicaRouter(using)]
        yield using


def reader(model: Any = Author, **hints: Any) -> str:
    return router.db_for_read(model, **hints)


# --- reads and writes ------------------------------------------------------------------------


@on_databases(transaction=True)
def test_reads_go_to_the_replicas_and_writes_to_the_primary(primary: str) -> None:
    author = Author.objects.create(name="new")
    assert author._state.db == primary
    for question in (Author.objects.all(), Author.objects.filter(name="new")):
        assert question.db in REPLICAS
        assert [found.pk for found in question] == [author.pk]
    assert Author.objects.get()._state.db in REPLICAS


@on_sqlite
def test_reads_are_spread_over_the_replicas(primary: str) -> None:
    readers = [reader() for _ in range(10)]
    assert readers.count("first") == readers.count("second") == 5


@on_sqlite
def test_within_a_request_all_reads_go_to_one_replica(primary: str) -> None:
    requests = []
    for _ in range(10):
        pins.begin_request()
        (one,) = {reader() for _ in range(10)}
        requests.append(one)
    assert set(requests) == set(REPLICAS)


@on_sqlite
def test_what_reads_in_order_to_write_reads_from_the_primary(primary: str) -> None:
    author = AuthorFactory()
    found, made = Author.objects.get_or_create(pk=author.pk)
    assert (found._state.db, made) == (primary, False)
    updated, _ = Author.objects.update_or_create(pk=author.pk, defaults={"name": "new"})
    assert updated._state.db == primary
    assert Author.objects.select_for_update().db == primary
    assert Author.objects.update(name="newer") == 1
    assert Author.objects.bulk_create([Author(name="another")])[0]._state.db == primary
    assert Author.objects.all().delete()[0] == 2


@on_sqlite
def test_an_object_that_was_read_from_a_replica_is_saved_to_the_primary(primary: str) -> None:
    AuthorFactory(name="old")
    author = Author.objects.get()
    assert author._state.db in REPLICAS
    author.name = "new"
    author.save()
    assert author._state.db == primary
    author = Author.objects.get()
    assert author.name == "new"
    author.delete()
    assert not Author.objects.using(primary).exists()


@on_sqlite
def test_related_objects_are_read_from_replicas_and_written_to_the_primary(primary: str) -> None:
    BookFactory(tags=[TagFactory()])
    book = Book.objects.get()
    assert book._state.db in REPLICAS
    assert book.author._state.db in REPLICAS
    assert [tag._state.db in REPLICAS for tag in book.tags.all()] == [True]
    assert book.author.books.db in REPLICAS
    book.tags.add(TagFactory())
    book.tags.set([TagFactory()])
    assert book.author.books.create(title="another")._state.db == primary
    assert book.comments.create(text="comment", subject=book)._state.db == primary
    prefetch_related_objects([book], "tags", "author__books")
    assert len(book.tags.all()) == 1
    assert len(book.author.books.all()) == 2


@on_sqlite
def test_objects_of_the_primary_and_of_replicas_can_be_related(primary: str) -> None:
    author = AuthorFactory()
    assert author._state.db == primary
    read = Author.objects.get()
    assert read._state.db in REPLICAS
    book = Book(title="new", author=read)
    book.save()
    book.author = author
    AuthorProfile(author=read).save()
    tag = TagFactory()
    book.tags.add(tag, Tag.objects.get())


@on_sqlite
def test_refreshing_and_deferred_fields_may_come_from_another_replica(primary: str) -> None:
    author = AuthorFactory(name="old")
    Author.objects.using(primary).update(name="new")
    author.refresh_from_db()
    assert (author.name, author._state.db in REPLICAS) == ("new", True)
    assert Author.objects.defer("name").get().name == "new"


@on_sqlite
def test_using_is_obeyed(primary: str) -> None:
    AuthorFactory()
    for alias in (primary, *REPLICAS):
        assert Author.objects.using(alias).get()._state.db == alias


@on_sqlite
def test_an_object_of_a_database_outside_the_group_stays_there(
    primary: str, tmp_path: Path
) -> None:
    with alias_of(primary, "archive", NAME=str(tmp_path / "archive.sqlite3")) as archive:
        with connections[archive].schema_editor() as editor:
            editor.create_model(Author)
        Author.objects.using(archive).create(name="old")
        author = Author.objects.using(archive).get()
        assert reader(instance=author) == archive
        author.save()
        author.refresh_from_db()
        assert author._state.db == archive
        assert Author.objects.using(archive).count() == 1
        assert not Author.objects.exists()
        book = BookFactory()
        with pytest.raises(ValueError, match="the current database router prevents"):
            book.author = author


@on_sqlite
def test_what_does_not_ask_the_router_reads_where_the_object_was_read(primary: str) -> None:
    """As the documentation says: a write in between does not change that."""
    CommentFactory()
    comment = Comment.objects.get()
    authors = Author.objects.raw("SELECT * FROM tests_author")
    with transaction.atomic(using=primary):
        Author.objects.create(name="new")
        assert reader() == primary
        assert comment.subject._state.db == comment._state.db != primary
        assert authors.query.using in REPLICAS


@on_sqlite
def test_a_dump_of_a_replica_is_empty(primary: str, capsys: pytest.CaptureFixture[str]) -> None:
    AuthorFactory(name="dumped")
    for alias in (primary, *REPLICAS):
        call_command("dumpdata", "tests.author", database=alias)
        assert ("dumped" in capsys.readouterr().out) == (alias == primary)


# --- transactions ----------------------------------------------------------------------------


@on_databases("postgresql", "mariadb", transaction=True)
def test_a_transaction_reads_from_the_replicas_until_it_writes(primary: str) -> None:
    with transaction.atomic(using=primary):
        assert reader() in REPLICAS
        author = Author.objects.create(name="new")
        assert reader() == primary
        assert Author.objects.get() == author
    assert reader() in REPLICAS
    assert Author.objects.get() == author


@on_databases("postgresql", "mariadb", transaction=True)
def test_a_transaction_that_was_rolled_back_leaves_nothing_behind(primary: str) -> None:
    with transaction.atomic(using=primary):
        with transaction.atomic(using=primary):
            Author.objects.create(name="new")
            transaction.set_rollback(True, using=primary)
        # A savepoint that is rolled back may have left locks.
        assert reader() == primary
        transaction.set_rollback(True, using=primary)
    assert reader() in REPLICAS


@on_databases("postgresql", "mariadb", transaction=True)
def test_a_transaction_that_holds_locks_reads_from_the_primary(primary: str) -> None:
    with transaction.atomic(using=primary):
        assert list(Author.objects.select_for_update()) == []
        assert reader() == primary
    assert reader() in REPLICAS


@on_databases("default", "postgresql", "mariadb", transaction=True)
def test_a_transaction_that_reads_from_a_snapshot_reads_from_the_primary(
    using: str, primary: str
) -> None:
    """SQLite's always do."""
    options = connections[using].settings_dict["OPTIONS"]
    stricter = {"default": {}, "mariadb": {"isolation_level": "repeatable read"}}
    if using == "postgresql":
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        stricter["postgresql"] = {"isolation_level": IsolationLevel.REPEATABLE_READ}
    with session(using, OPTIONS={**options, **stricter[using]}):
        assert reader() in REPLICAS
        with transaction.atomic(using=using):
            assert reader() == using


@on_databases("postgresql", transaction=True)
def test_the_error_of_a_broken_transaction_is_not_hidden_by_a_replica(primary: str) -> None:
    with transaction.atomic(using=primary):
        with pytest.raises(DatabaseError), connections[primary].cursor() as cursor:
            cursor.execute("SELECT nonsense")
        assert reader() == primary
        transaction.set_rollback(True, using=primary)
        with pytest.raises(transaction.TransactionManagementError):
            Author.objects.get()
    assert reader() in REPLICAS


@on_databases("postgresql", transaction=True)
@pytest.mark.parametrize("statement", ["SET ROLE pg_monitor", "SET search_path TO other"])
def test_a_session_that_was_altered_reads_what_it_may_see(primary: str, statement: str) -> None:
    """A replica's session knows nothing of the role, the tenant or the path."""
    with session(primary):
        with connections[primary].cursor() as cursor:
            cursor.execute(statement)
        assert reader() == primary
    assert reader() in REPLICAS


@on_sqlite
def test_a_replica_that_is_set_to_another_tenant_is_not_read(primary: str) -> None:
    """As the connections of django-tenants are, each by a call of its own."""
    connections[primary].schema_name = "tenant"
    try:
        assert [reader() for _ in range(4)] == [primary] * 4
        connections["second"].schema_name = "another"
        assert [reader() for _ in range(4)] == [primary] * 4
        connections["second"].schema_name = "tenant"
        assert [reader() for _ in range(4)] == ["second"] * 4
    finally:
        del connections[primary].schema_name


@on_sqlite
def test_a_replica_of_which_another_namespace_is_chosen_is_not_read(
    primary: str, settings: Any
) -> None:
    """Each connection of a project may lead to another customer."""

    def customer(connection: Any) -> str:
        text: str = connection.__dict__.get("tests_customer", "")
        return text

    settings.ORMCACHE = {**settings.ORMCACHE, "NAMESPACE": customer}
    assert reader() in REPLICAS
    connections[primary].tests_customer = "a"  # type: ignore[attr-defined]
    try:
        assert {reader() for _ in range(4)} == {primary}
        connections["second"].tests_customer = "a"  # type: ignore[attr-defined]
        assert {reader() for _ in range(4)} == {"second"}
    finally:
        del connections[primary].tests_customer  # type: ignore[attr-defined]


@on_sqlite
def test_while_it_migrates_the_primary_is_read(primary: str) -> None:
    state = state_of(connections[primary])
    state.migrating = True
    try:
        assert reader() == primary
    finally:
        state.migrating = False
    assert reader() in REPLICAS


# --- groups ----------------------------------------------------------------------------------


@on_sqlite
def test_without_replicas_all_goes_to_the_primary(using: str, settings: Any) -> None:
    """As it would with replicas: routers that stand behind are not asked here, either."""
    settings.DATABASE_ROUTERS = [ReplicaRouter()]
    assert (reader(), router.db_for_write(Author)) == ("default", "default")
    settings.DATABASE_ROUTERS = [ReplicaRouter("postgresql")]
    assert (reader(), router.db_for_write(Author)) == ("postgresql", "postgresql")


@on_sqlite
def test_a_router_leaves_the_models_of_other_apps_to_others(primary: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [
        ReplicaRouter("postgresql", app_labels=["auth"]),
        ReplicaRouter(primary, app_labels=["tests"]),
    ]
    from django.contrib.auth.models import User
    from django.contrib.sessions.models import Session

    assert (reader(User), router.db_for_write(User)) == ("postgresql", "postgresql")
    assert reader() in REPLICAS
    assert router.db_for_write(Author) == primary
    assert reader(Session) == "default"


def test_a_string_is_no_list_of_apps() -> None:
    with pytest.raises(TypeError, match="a list of app labels"):
        ReplicaRouter(app_labels="shop")


@on_sqlite
def test_replicas_are_not_migrated(primary: str, settings: Any) -> None:
    assert not any(router.allow_migrate(alias, "tests") for alias in REPLICAS)
    assert router.allow_migrate(primary, "tests")
    assert router.allow_migrate("postgresql", "tests")
    settings.DATABASE_ROUTERS = [ReplicaRouter(primary, app_labels=["tests"])]
    assert not router.allow_migrate("postgresql", "tests")
    assert router.allow_migrate("postgresql", "auth")
    assert not router.allow_migrate("first", "auth")


@on_sqlite
def test_wrong_groups_leave_it_to_the_checks_to_tell(using: str, settings: Any) -> None:
    """Django's own checks ask the router first."""
    settings.ORMCACHE = {"DATABASES": {using: {"PRIMARY": "nobody"}}}
    settings.DATABASE_ROUTERS = [ReplicaRouter()]
    assert router.allow_migrate(using, "tests")
    with pytest.raises(ImproperlyConfigured, match="'nobody', which DATABASES does not have"):
        reader()


# --- settings --------------------------------------------------------------------------------

PROJECT = """
from {module} import ReplicaRouter

SECRET_KEY = "not a secret"
INSTALLED_APPS = {apps}
DATABASES = {{
    alias: {{"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
    for alias in ("default", "replica", "orders", "orders_replica")
}}
DATABASES["replica"]["TEST"] = {{"MIRROR": "default"}}
ORMCACHE = {{"DATABASES": {{"orders_replica": {{"PRIMARY": "orders"}}}}}}
DATABASE_ROUTERS = [
    ReplicaRouter("orders", app_labels=["sessions"]),
    "ormcache.routers.ReplicaRouter",
]
"""
QUESTION = """
import django
django.setup()
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db import router
for model in (ContentType, Session):
    print(router.db_for_read(model), router.db_for_write(model))
"""

AskProject = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask_project(tmp_path: Path) -> AskProject:
    """Runs `QUESTION` in a project of its own."""

    def ask(*apps: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "project.py").write_text(
            PROJECT.format(
                module="ormcache.routers",
                apps=["django.contrib.contenttypes", "django.contrib.sessions", *apps],
            )
        )
        return subprocess.run(
            [sys.executable, "-c", QUESTION],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                "DJANGO_SETTINGS_MODULE": "project",
                "PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}",
            },
        )

    return ask


def test_it_stands_in_settings_as_a_path_or_as_an_instance(ask_project: AskProject) -> None:
    done = ask_project("ormcache")
    assert not done.stderr
    assert done.stdout.split() == ["replica", "default", "orders_replica", "orders"]


def test_without_the_app_it_refuses_to_read_from_replicas(ask_project: AskProject) -> None:
    """Nobody would tell it of writes."""
    assert 'add "ormcache" to INSTALLED_APPS' in ask_project().stderr


# --- test cases ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "database", ["default", pytest.param("postgresql", marks=needs("postgresql"))]
)
def test_the_tests_of_a_project_with_mirrors_need_not_know_of_the_router(database: str) -> None:
    """Django's own example of a router fails some of them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "test", "tests.multidb.mirrored.suite"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.multidb.mirrored.settings",
            "ORMCACHE_TEST_MIRRORED": database,
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 7 tests" in done.stderr
