"""A project on Python 2.7, Django 1.6 and South beside this one: nothing stale is ever read.

`tests/south_project` is that project; `tests/south.py` makes its environment and runs it. This
process is the modern one.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import modify_settings

import ormcache
from ormcache.reasons import Reason
from tests import backdoor, south
from tests.interleaving import route_of
from tests.marks import needs, on_databases, scenario
from tests.models import Author
from tests.servers import HOST, RedisServer
from tests.sharing.models import Item, Note, PricedItem
from tests.watching import Watch, seconds_while, wait_for_quarantine

pytestmark = [pytest.mark.slow, needs("python2.7")]

LEASE = 2
"""Seconds. A renewal that a busy machine delays must not end a hold."""
BUSY = str(Reason.BUSY)

on_both = on_databases("default", "postgresql", transaction=True)
on_sqlite = on_databases("default", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)


# --- fixtures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    redis = RedisServer(options={"requirepass": "secret"})
    redis.serve_tls()
    with redis:
        yield redis


@pytest.fixture
def admin(redis: RedisServer) -> Iterator[Any]:
    module = pytest.importorskip("redis")
    with module.Redis(port=redis.port, password="secret", db=3, decode_responses=True) as client:
        yield client


@pytest.fixture
def url(redis: RedisServer) -> str:
    return f"redis://:secret@{HOST}:{redis.port}/3"


@pytest.fixture
def cache(settings: Any, url: str) -> Iterator[str]:
    settings.CACHES = {
        **settings.CACHES,
        "south": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url},
    }
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "LEASE": LEASE,
        "DEPENDS_ON": {"legacy_item": [], "notes_note": []},
    }
    with modify_settings(INSTALLED_APPS={"append": "tests.sharing"}):
        yield "south"


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python 2.7 with Django 1.6, South and `ormcache_south`."""
    # Kept for the next run, unless pytest was told to keep nothing: -p no:cacheprovider.
    cache: Any = getattr(request.config, "cache", None)
    place = tmp_path_factory.mktemp("south") if cache is None else cache.mkdir("south")
    return south.make_environment(place)


def legacy_settings(using: str) -> dict[str, Any]:
    """An alias of this project, as DATABASES has it in the other."""
    facts = connections[using].settings_dict
    engine = facts["ENGINE"]
    if connections[using].vendor == "postgresql":
        engine = "django.db.backends.postgresql_psycopg2"
    kept = {name: str(facts[name]) for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD")}
    return {"ENGINE": engine, **kept}


@pytest.fixture
def project(
    python: Path, tmp_path: Path, using: str, cached: Watch, url: str
) -> Iterator[south.Project]:
    """The old project; its default database is `using`."""
    project = south.Project(python, tmp_path)
    project.databases["default"] = legacy_settings(using)
    project.ormcache_south["default"] = {
        "REDIS": url,
        "NAMESPACE": route_of(using).namespace,
        "LEASE": LEASE,
    }
    _drop_tables(using)
    yield project
    project.close()
    _drop_tables(using)


def _drop_tables(using: str) -> None:
    for table in ("legacy_item", "notes_note", "south_migrationhistory"):
        backdoor.execute(using, f"DROP TABLE IF EXISTS {table}")


SET_UP = """
from django.core.management import call_command
call_command("syncdb", interactive=False, verbosity=0)
call_command("migrate", "legacy", {target!r}, verbosity=0)
ormcache_south.release("default")
"""


@pytest.fixture
def initial(project: south.Project) -> south.Project:
    """The old project after its first migration: one item, called "old"."""
    with project.obeying() as process:
        process.do(SET_UP.format(target="0001"))
    return project


@pytest.fixture
def writing(project: south.Project) -> Iterator[south.Obeying]:
    """A process of the old project that announces its writes.

    All migrations have run but the one that fails; there is one item, called "new".
    """
    project.ormcache_south["default"]["WRITES"] = True
    with project.obeying(pauses=True) as writing:
        project.end("before the commit")
        writing.do(SET_UP.format(target="0003"))
        yield writing


@pytest.fixture
def names(using: str) -> Callable[[], Any]:
    return lambda: list(Item.objects.using(using).order_by("pk").values_list("name", flat=True))


@pytest.fixture
def there(cached: Watch, settings: Any) -> Callable[[], Any]:
    """A cached answer of another database in the same cache, of which nobody migrates anything."""
    alias = "postgresql" if cached.using == "default" else "default"

    def there() -> Any:
        return list(Author.objects.using(alias).values())

    ormcache.flush(alias)
    wait_for_quarantine(alias)
    cached.warm(there)
    return there


def wait_until_cached(cached: Watch, question: Callable[[], Any]) -> float:
    """Ask until the answer is stored; the seconds that this took."""
    took = seconds_while(lambda: cached.call(question)[1][0] not in ("miss", "hit"))
    cached.hit(question)
    return took


# --- migrations ------------------------------------------------------------------------------


@on_both
def test_after_a_migration_forwards_and_backwards_the_new_rows_are_read(
    initial: south.Project, cached: Watch, names: Callable[[], Any], using: str
) -> None:
    assert cached.warm(names) == ["old"]
    initial.manage("migrate", "legacy", "0002")
    assert cached.warm(names) == ["new"]
    initial.manage("migrate", "legacy", "0003")
    priced = PricedItem.objects.using(using)
    assert cached.warm(lambda: list(priced.values_list("name", "price"))) == [("new", 7)]
    assert cached.warm(names) == ["new"]
    initial.manage("migrate", "legacy", "0001")
    assert cached.warm(names) == ["old"]


@needs("postgresql")
@pytest.mark.parametrize("using", ["default", "postgresql"])
@pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)
def test_while_a_migration_runs_its_database_is_not_cached_and_others_are(
    initial: south.Project,
    cached: Watch,
    names: Callable[[], Any],
    there: Callable[[], Any],
    admin: Any,
    using: str,
) -> None:
    def authors() -> int:
        return Author.objects.using(using).count()

    cached.warm(authors)
    cached.warm(names)
    migrating = initial.start("migrate", "legacy", "0002", pauses=True)
    initial.wait_for("before the commit", migrating)
    assert cached.call(names) == (["old"], [BUSY])
    assert cached.call(authors) == (0, [BUSY])
    cached.hit(there)
    # A migration may take longer than a lease.
    wait_for_renewals(admin, route_of(using).namespace)
    assert cached.call(names) == (["old"], [BUSY])
    initial.end("before the commit")
    initial.finish(migrating)
    assert cached.warm(names) == ["new"]
    cached.warm(authors)
    cached.hit(there)


def wait_for_renewals(admin: Any, namespace: str) -> None:
    """Return when an intent on everything has lived for longer than a lease."""
    (register,) = (
        key
        for key in admin.keys(f"ormcache:1:{{{namespace}}}:*")
        if key.endswith(":r:*") and admin.hget(key, "d")
    )

    def deadline() -> int:
        return int(admin.hget(register, "d").rpartition("=")[2])

    first, begun = deadline(), time.monotonic()
    while deadline() < first + 1000 * LEASE:
        assert time.monotonic() < begun + 3 * LEASE, "the intent is not renewed"
        time.sleep(0.05)


@on_both
def test_after_a_migration_that_fails_what_it_had_committed_is_read_and_cached(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    initial.manage("migrate", "legacy", "0003")
    cached.warm(names)
    output = initial.manage("migrate", "legacy", "0004", fails=True)
    assert "ValueError: this migration fails" in output
    # At once, and not after a lease: the process has ended what it held.
    assert cached.warm(names) == ["half"]


@on_both
def test_after_a_migrating_process_was_killed_caching_is_back_within_a_lease(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    migrating = initial.start("migrate", "legacy", "0002", pauses=True)
    initial.wait_for("before the commit", migrating)
    migrating.kill()
    initial.finish(migrating, fails=True)
    assert cached.call(names) == (["old"], [BUSY])
    assert wait_until_cached(cached, names) <= LEASE + 1


@on_postgresql
def test_after_a_connection_that_was_lost_the_lease_ends_the_hold(
    initial: south.Project, cached: Watch, names: Callable[[], Any], using: str
) -> None:
    """The process cannot know what became of its transaction."""
    cached.warm(names)
    migrating = initial.start("migrate", "legacy", "0002", pauses=True)
    initial.wait_for("before the commit", migrating)
    backdoor.execute(
        using,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    initial.end("before the commit")
    initial.finish(migrating, fails=True)
    assert cached.call(names) == (["old"], [BUSY])
    assert wait_until_cached(cached, names) <= LEASE + 1


@on_both
@pytest.mark.parametrize("option", ["--fake", "--db-dry-run"])
def test_migrations_that_are_only_recorded_or_tried_flush_as_well(
    initial: south.Project, cached: Watch, names: Callable[[], Any], using: str, option: str
) -> None:
    """South sends no ran_migration for these."""
    cached.warm(names)
    backdoor.execute(using, "UPDATE legacy_item SET name = 'unseen'")
    assert cached.hit(names) == ["old"]
    initial.manage("migrate", "legacy", "0002", option)
    assert cached.warm(names) == ["unseen"]


@on_both
def test_syncdb_with_its_fixtures_is_read(
    initial: south.Project, cached: Watch, using: str
) -> None:
    def notes() -> list[str]:
        return list(Note.objects.using(using).values_list("text", flat=True))

    backdoor.execute(using, "UPDATE notes_note SET text = 'old'")
    assert cached.warm(notes) == ["old"]
    initial.manage("syncdb", "--noinput")
    assert cached.warm(notes) == ["new"]


@on_both
def test_the_flush_command_of_the_old_project_is_seen(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    initial.manage("migrate", "legacy", "0003")
    cached.warm(names)
    initial.manage("flush", "--noinput")
    assert cached.warm(names) == []


@needs("postgresql")
@pytest.mark.parametrize("using", ["postgresql"])
@pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)
def test_only_the_database_that_is_migrated_is_flushed(
    initial: south.Project,
    cached: Watch,
    names: Callable[[], Any],
    there: Callable[[], Any],
    url: str,
    tmp_path: Path,
) -> None:
    initial.databases["other"] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "other.sqlite3"),
    }
    initial.ormcache_south["other"] = {"REDIS": url, "NAMESPACE": "other", "LEASE": LEASE}
    cached.warm(names)
    # Whoever misspells the namespace is told so.
    output = initial.manage("syncdb", "--noinput", "--database", "other")
    assert "nobody has cached anything in its database 3 under the namespace 'other'" in output
    output = initial.manage("migrate", "legacy", "0001", "--database", "other")
    assert "nobody has cached" not in output
    assert cached.hit(names) == ["old"]
    cached.hit(there)


# --- settings and failures -------------------------------------------------------------------


@on_sqlite
def test_redis_may_be_reached_by_tls(
    initial: south.Project, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    cached.warm(names)
    initial.ormcache_south["default"]["REDIS"] = (
        f"rediss://:secret@localhost:{redis.options['tls-port']}/3"
        f"?ssl_ca_certs={redis.files / 'certificate.pem'}"
    )
    initial.manage("migrate", "legacy", "0002")
    assert cached.warm(names) == ["new"]


@on_sqlite
def test_without_redis_nothing_is_migrated(
    initial: south.Project,
    cached: Watch,
    names: Callable[[], Any],
    redis: RedisServer,
) -> None:
    initial.ormcache_south["default"]["SOCKET_TIMEOUT"] = 0.3
    cached.warm(names)
    redis.pause()
    try:
        output = initial.manage("migrate", "legacy", "0002", fails=True)
    finally:
        redis.resume()
    assert f"CommandError: Nothing was migrated, because Redis at {HOST}:{redis.port}" in output
    assert "secret" not in output
    assert names() == ["old"]


@on_sqlite
def test_without_redis_a_migration_runs_if_the_settings_say_so(
    initial: south.Project, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    initial.ormcache_south["default"] |= {"SOCKET_TIMEOUT": 0.3, "ON_CACHE_FAILURE": "open"}
    redis.pause()
    try:
        output = initial.manage("migrate", "legacy", "0002")
    finally:
        redis.resume()
    assert f"ormcache_south: {HOST}:{redis.port} does not answer" in output
    assert "was not told of all writes" in output
    wait_until_cached(cached, names)
    assert names() == ["new"]


@on_sqlite
def test_a_redis_that_comes_back_while_a_migration_runs_is_told_then(
    initial: south.Project, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    initial.ormcache_south["default"] |= {"SOCKET_TIMEOUT": 0.3, "ON_CACHE_FAILURE": "open"}
    cached.warm(names)
    redis.pause()
    try:
        migrating = initial.start("migrate", "legacy", "0002", pauses=True)
        initial.wait_for("before the commit", migrating)
    finally:
        redis.resume()
    while cached.call(names)[1] != [BUSY]:
        time.sleep(0.02)
    initial.end("before the commit")
    output = initial.finish(migrating)
    assert "was not told" not in output
    assert cached.warm(names) == ["new"]


@on_sqlite
def test_redis_that_goes_away_in_the_middle_stops_the_migrations(
    initial: south.Project, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    initial.ormcache_south["default"]["SOCKET_TIMEOUT"] = 0.3
    migrating = initial.start("migrate", "legacy", "0003", pauses=True)
    initial.wait_for("before the commit", migrating)
    redis.pause()
    try:
        initial.end("before the commit")
        output = initial.finish(migrating, fails=True)
    finally:
        redis.resume()
    assert "CommandError: The migration is done and recorded, but Redis at" in output
    assert "0003" not in output.partition("CommandError")[0].partition("> legacy:0002")[2]
    wait_until_cached(cached, names)
    assert names() == ["new"]
    # The next run does the rest.
    initial.manage("migrate", "legacy", "0003")


@on_sqlite
def test_a_database_that_is_not_in_the_settings_is_named(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    initial.ormcache_south = {"default": None}
    assert "ormcache_south" not in initial.manage("migrate", "legacy", "0001")
    initial.databases["other"] = initial.databases["default"]
    initial.ormcache_south = {"other": None}
    output = initial.manage("migrate", "legacy", "0001")
    assert output.count("The database 'default' is not in ORMCACHE_SOUTH") == 1
    cached.hit(names)


@on_sqlite
def test_wrong_settings_are_named_when_the_project_starts(project: south.Project) -> None:
    project.ormcache_south = {"default": {"REDIS": "redis://localhost"}}
    output = project.manage("migrate", "--list", fails=True)
    assert "ImproperlyConfigured: ORMCACHE_SOUTH['default'] has no 'NAMESPACE'" in output


@on_sqlite
def test_a_test_run_of_the_old_project_touches_nothing(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    initial.ormcache_south["default"]["WRITES"] = True
    cached.warm(names)
    output = initial.manage("test", "legacy")
    assert "This is a test run, or the database 'default' is not the one" in output
    assert "OK" in output
    assert cached.hit(names) == ["old"]


# --- writes ----------------------------------------------------------------------------------


@pytest.fixture
def notes(using: str) -> Callable[[], Any]:
    return lambda: list(Note.objects.using(using).values_list("text", flat=True))


WRITES = {
    "save": "item = Item.objects.get(); item.name = 'written'; item.save()",
    "update": "Item.objects.update(name='written')",
    "atomic": """
with transaction.atomic():
    Item.objects.update(name='first')
    with transaction.atomic():
        Item.objects.update(name='written')
""",
    "savepoint undone": """
with transaction.atomic():
    Item.objects.update(name='written')
    try:
        with transaction.atomic():
            Item.objects.update(name='undone')
            raise ValueError
    except ValueError:
        pass
""",
    "commit_on_success": """
with transaction.commit_on_success():
    Item.objects.update(name='written')
""",
    "commit_manually": """
with transaction.commit_manually():
    Item.objects.update(name='written')
    transaction.commit()
""",
    "set_autocommit": """
transaction.set_autocommit(False)
Item.objects.update(name='written')
transaction.commit()
transaction.set_autocommit(True)
""",
    "execute": "connection.cursor().execute(u\"UPDATE legacy_item SET name = %s\", ['written'])",
    "executemany": """
connection.cursor().executemany(
    "UPDATE legacy_item SET name = %s WHERE id > %s", [('written', 0), ('other', 1000)]
)
""",
    "a debug cursor": """
connection.use_debug_cursor = True
Item.objects.update(name='written')
connection.use_debug_cursor = None
""",
}
ANYTHING = {
    "a transaction as SQL": """
cursor = connection.cursor()
cursor.execute("BEGIN")
cursor.execute("UPDATE legacy_item SET name = 'written'")
cursor.execute("COMMIT")
""",
    "DDL": """
with transaction.atomic():
    Item.objects.update(name='written')
    connection.cursor().execute("CREATE TABLE legacy_made (id integer)")
connection.cursor().execute("DROP TABLE legacy_made")
""",
}
ON_SQLITE = {
    "executescript": """
connection.cursor().executescript("UPDATE legacy_item SET name = 'written'")
""",
    "a commit by sqlite3 itself": """
transaction.set_autocommit(False)
Item.objects.update(name='written')
connection.cursor().execute("PRAGMA user_version")
""",
    "set_autocommit(True)": """
transaction.set_autocommit(False)
Item.objects.update(name='written')
transaction.set_autocommit(True)
""",
    "a savepoint as SQL": """
cursor = connection.cursor()
cursor.execute("SAVEPOINT mine")
cursor.execute("UPDATE legacy_item SET name = 'written'")
cursor.execute("RELEASE mine")
""",
}
ON_POSTGRESQL = {
    "copy_from": """
import io
Item.objects.all().delete()
connection.cursor().copy_from(
    io.BytesIO(b"9,written,1"), "legacy_item", sep=",", columns=("id", "name", "price")
)
""",
    "a function": """
cursor = connection.cursor()
cursor.execute('''
    CREATE FUNCTION legacy_rename() RETURNS integer LANGUAGE sql AS
    $$ UPDATE legacy_item SET name = 'written'; SELECT 1 $$
''')
cursor.callproc("legacy_rename")
cursor.execute("DROP FUNCTION legacy_rename()")
""",
    "a common table expression": """
connection.cursor().execute(
    "WITH changed AS (UPDATE legacy_item SET name = 'written' RETURNING 1) SELECT * FROM changed"
)
""",
}


def check_writes(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], writes: dict[str, str]
) -> None:
    for code in writes.values():
        writing.do("Item.objects.update(name='before')")
        assert cached.warm(names) == ["before"]
        writing.do(code)
        assert cached.warm(names) == ["written"], code
        writing.do("transaction.get_autocommit() or transaction.set_autocommit(True)")


@scenario(39)
@on_both
def test_writes_are_read_at_once_and_other_tables_stay_cached(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], notes: Callable[[], Any]
) -> None:
    cached.warm(notes)
    check_writes(writing, cached, names, WRITES)
    cached.hit(notes)


@on_both
def test_writes_that_name_no_table_are_read_at_once(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], using: str
) -> None:
    check_writes(writing, cached, names, ANYTHING)
    vendor = connections[using].vendor
    check_writes(writing, cached, names, ON_SQLITE if vendor == "sqlite" else ON_POSTGRESQL)


@on_both
def test_what_is_not_committed_is_announced_to_nobody(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    writing.do("list(Item.objects.all())")
    writing.do("transaction.set_autocommit(False)\nItem.objects.update(name='lost')")
    assert cached.hit(names) == ["new"]
    writing.do("transaction.rollback()\ntransaction.set_autocommit(True)")
    cached.hit(names)
    failing = "with transaction.atomic():\n  Item.objects.update(name='lost')\n  raise ValueError"
    assert writing.ask(failing).startswith("ValueError")
    cached.hit(names)
    writing.do("transaction.set_autocommit(False)\nItem.objects.update(name='lost')")
    writing.do("connection.close()\nlist(Item.objects.all())")
    cached.hit(names)


PAUSED_COMMIT = """
driver = connection._commit
def _commit():
    pause("before")
    driver()
    pause("after")
connection._commit = _commit
with transaction.atomic():
    Item.objects.update(name='written')
"""


@on_both
def test_nothing_is_cached_from_before_a_commit_until_after_it(
    writing: south.Obeying,
    cached: Watch,
    names: Callable[[], Any],
    notes: Callable[[], Any],
    project: south.Project,
) -> None:
    cached.warm(names)
    cached.warm(notes)
    writing.send(PAUSED_COMMIT)
    project.wait_for("before", writing.process)
    assert cached.call(names) == (["new"], [BUSY])
    cached.hit(notes)
    project.end("before")
    project.wait_for("after", writing.process)
    assert cached.call(names) == (["written"], [BUSY])
    project.end("after")
    assert writing.answer() == "done"
    assert cached.warm(names) == ["written"]
    cached.hit(notes)


@on_both
def test_after_a_writer_was_killed_in_its_commit_caching_is_back_within_a_lease(
    initial: south.Project, cached: Watch, names: Callable[[], Any]
) -> None:
    initial.manage("migrate", "legacy", "0003")
    initial.ormcache_south["default"]["WRITES"] = True
    process = initial.start("obey", pauses=True)
    cached.warm(names)
    south.Obeying(process).send(PAUSED_COMMIT)
    initial.wait_for("before", process)
    initial.end("before")
    initial.wait_for("after", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cached.call(names) == (["written"], [BUSY])
    assert wait_until_cached(cached, names) <= LEASE + 1


@on_postgresql
def test_a_commit_of_unknown_outcome_is_left_to_its_lease(
    writing: south.Obeying,
    cached: Watch,
    names: Callable[[], Any],
    project: south.Project,
    using: str,
) -> None:
    cached.warm(names)
    writing.send(PAUSED_COMMIT)
    project.wait_for("before", writing.process)
    backdoor.execute(
        using,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    project.end("before")
    answer = writing.answer()
    assert answer.startswith(("OperationalError", "InterfaceError", "DatabaseError")), answer
    assert cached.call(names) == (["new"], [BUSY])
    wait_until_cached(cached, names)


@on_postgresql
def test_a_commit_that_the_database_refuses_is_over_at_once(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], using: str
) -> None:
    backdoor.execute(
        using,
        "ALTER TABLE legacy_item ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED",
    )
    cached.warm(names)
    answer = writing.ask("with transaction.atomic():\n  Item.objects.create(name='new', price=1)")
    assert answer.startswith("IntegrityError")
    assert cached.warm(names) == ["new"]
    writing.do("Item.objects.update(name='written')")
    assert cached.warm(names) == ["written"]


@on_both
def test_an_interrupt_before_a_commit_undoes_the_transaction(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any]
) -> None:
    """For such errors Django would go on to switch autocommit on, and SQLite would commit."""
    cached.warm(names)
    writing.do("""
hold = ormcache_south.Link.hold
def interrupted(*args):
    raise KeyboardInterrupt
ormcache_south.Link.hold = interrupted
try:
    with transaction.atomic():
        Item.objects.update(name='lost')
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("nothing was announced")
ormcache_south.Link.hold = hold
assert Item.objects.get().name == 'new'
""")
    cached.hit(names)
    writing.do("Item.objects.update(name='written')")
    assert cached.warm(names) == ["written"]


@on_both
def test_without_redis_writes_are_refused_and_undone(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    cached.warm(names)
    redis.pause()
    try:
        for code in (
            "Item.objects.update(name='refused')",
            "with transaction.atomic():\n  Item.objects.update(name='refused')",
            "with transaction.commit_on_success():\n  Item.objects.update(name='refused')",
        ):
            answer = writing.ask(code)
            assert answer.startswith("CacheUnreachable: The write to legacy_item was refused")
            assert "secret" not in answer
        writing.do("assert Item.objects.get().name == 'new'")
    finally:
        redis.resume()
    writing.do("Item.objects.update(name='written')")
    wait_until_cached(cached, names)
    assert names() == ["written"]


@on_both
def test_without_redis_writes_go_on_if_the_settings_say_so_and_are_told_later(
    initial: south.Project, cached: Watch, names: Callable[[], Any], redis: RedisServer
) -> None:
    initial.manage("migrate", "legacy", "0003")
    initial.ormcache_south["default"] |= {
        "WRITES": True,
        "ON_CACHE_FAILURE": "open",
        "SOCKET_TIMEOUT": 0.3,
    }
    with initial.obeying() as writing:
        cached.warm(names)
        redis.pause()
        try:
            writing.do("Item.objects.update(name='lost')")
            # It does not wait for Redis with each write.
            begun = time.monotonic()
            writing.do("for _ in range(20): Item.objects.update(name='written')")
            assert time.monotonic() - begun < 20 * 0.3
        finally:
            redis.resume()
        # Nobody writes again: the process tells of it by itself.
        deadline = time.monotonic() + 60
        while names() != ["written"]:
            assert time.monotonic() < deadline, "nobody tells of it"
            time.sleep(0.02)
        wait_until_cached(cached, names)


@on_sqlite
def test_triggers_that_are_declared_are_followed(
    initial: south.Project, cached: Watch, notes: Callable[[], Any], using: str
) -> None:
    initial.manage("migrate", "legacy", "0003")
    backdoor.execute(
        using,
        "CREATE TRIGGER legacy_trigger AFTER UPDATE ON legacy_item "
        "BEGIN UPDATE notes_note SET text = 'of the trigger'; END",
    )
    initial.ormcache_south["default"] |= {
        "WRITES": True,
        "ALSO_WRITES": {"legacy_item": ["notes_note"]},
    }
    cached.warm(notes)
    with initial.obeying() as writing:
        writing.do("Item.objects.update(name='written')")
    assert cached.warm(notes) == ["of the trigger"]


@on_sqlite
def test_what_nothing_announces_can_be_told_by_hand(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], notes: Callable[[], Any]
) -> None:
    cached.warm(names)
    cached.warm(notes)
    writing.do("connection.ensure_connection()")
    writing.do("connection.connection.execute(\"UPDATE legacy_item SET name = 'unseen'\")")
    assert cached.hit(names) == ["new"]
    writing.do("ormcache_south.invalidate('default', 'legacy_item')")
    assert cached.warm(names) == ["unseen"]
    cached.hit(notes)
    writing.do("ormcache_south.invalidate('default')")
    cached.miss(notes)


@on_sqlite
def test_a_forked_process_has_sockets_of_its_own(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    writing.do("Item.objects.update(name='of the parent')")
    writing.do("""
import os
child = os.fork()
if child == 0:
    try:
        connection.close()
        Item.objects.update(name='of the child')
    finally:
        os._exit(0)
os.waitpid(child, 0)
""")
    assert cached.warm(names) == ["of the child"]
    writing.do("Item.objects.update(name='of the parent')")
    assert cached.warm(names) == ["of the parent"]


@on_sqlite
def test_a_process_that_goes_on_can_end_what_is_left_held(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any]
) -> None:
    cached.warm(names)
    writing.do("call_command('syncdb', interactive=False, verbosity=0)")
    assert cached.call(names)[1] == [BUSY]
    writing.do("ormcache_south.release('default')")
    cached.warm(names)


@on_sqlite
def test_the_same_app_migrated_with_success_ends_what_its_failure_left_held(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], project: south.Project
) -> None:
    project.end("before the failure")
    assert writing.ask("call_command('migrate', 'legacy', '0004')").startswith("ValueError")
    assert cached.call(names) == (["half"], [BUSY])
    writing.do("call_command('migrate', 'legacy', '0003')")
    assert cached.warm(names) == ["half"]


@on_sqlite
def test_importing_it_first_is_enough_for_a_process_that_loads_no_apps(
    writing: south.Obeying, cached: Watch, names: Callable[[], Any], project: south.Project
) -> None:
    """Django 1.6 imports INSTALLED_APPS with the first query, but not with the first save()."""
    cached.warm(names)
    save = "from legacy.models import Item\nItem(name='written').save()"
    project.run(save + "\nassert 'ormcache_south' not in sys.modules")
    assert cached.hit(names) == ["new"]
    project.run("import ormcache_south\n" + save)
    assert cached.warm(names) == ["new", "written", "written"]
