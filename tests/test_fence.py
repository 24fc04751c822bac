"""The fence: writes of programs that speak SQL only are heard of in time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

import ormcache
from ormcache import fence, fence_rows
from ormcache.exceptions import CacheError
from ormcache.questions import ask
from ormcache.reasons import Reason
from tests import backdoor
from tests.aliases import alias_of
from tests.interleaving import Background, route_of, session, store_of
from tests.marks import on_databases, on_pairs, scenario
from tests.models import Author, Tag
from tests.watching import Watch, wait_for_quarantine

ANNOUNCE = "INSERT INTO ormcache_fence (table_name) VALUES ('{}')"

everywhere = on_pairs(
    *((using, "redis") for using in ("default", "postgresql", "mariadb")),
    ("postgresql", "memcached"),
    ("default", "locmem"),
    transaction=True,
)
on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)


class Clock:
    """The monotonic clock of this process, as the fence sees it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fence, "time", clock)
    return clock


@pytest.fixture
def fenced(cached: Watch, settings: Any, using: str, clock: Clock) -> Iterator[Watch]:
    """ormcache at work with a fence that is looked into every two seconds."""
    fence._looks.clear()
    fence._warned.clear()
    fence._unknown.clear()
    fence._there.clear()
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": 2}
    backdoor.execute(using, "DELETE FROM ormcache_fence")
    yield cached
    fence._looks.clear()
    backdoor.execute(using, "DELETE FROM ormcache_fence")


def names(using: str) -> Callable[[], Any]:
    return lambda: list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


def rename(using: str, name: str, *announcements: str) -> None:
    """Write as another program does: ormcache sees nothing of it."""
    backdoor.execute(
        using,
        f"UPDATE tests_author SET name = '{name}'",
        *(ANNOUNCE.format(table) for table in announcements),
    )


def rows(using: str) -> list[Any]:
    return ask(connections[using], "SELECT table_name FROM ormcache_fence")


@everywhere
def test_a_write_in_sql_is_heard_of_within_the_time_that_was_set(
    fenced: Watch, using: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_author")
    clock.now += 1.9
    assert fenced.hit(names(using)) == ["old"]
    clock.now += 0.2
    assert fenced.warm(names(using)) == ["new"]
    assert rows(using) == [], "what was told is removed"


@everywhere
def test_only_the_tables_that_are_named_become_invalid(
    fenced: Watch, using: str, clock: Clock
) -> None:
    def tags() -> int:
        return Tag.objects.using(using).count()

    Author.objects.using(using).create(name="old")
    fenced.warm(tags)
    fenced.warm(names(using))
    rename(using, "new", "public.TESTS_Author")
    clock.now += 3
    assert fenced.hit(tags) == 0
    assert fenced.warm(names(using)) == ["new"]
    rename(using, "newer", "*")
    clock.now += 3
    fenced.warm(tags)
    assert fenced.warm(names(using)) == ["newer"]


def tags(using: str) -> Callable[[], Any]:
    return lambda: Tag.objects.using(using).count()


@everywhere
def test_a_table_may_be_named_in_several_ways(
    fenced: Watch, using: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Columns of a fixed length are padded; models are what Django's users know by name."""
    Author.objects.using(using).create(name="old")
    fenced.warm(tags(using))
    fenced.warm(names(using))
    spellings = (
        *("tests_author ", " tests_author\n", "tests.Author", "tests.author"),
        *("public.tests_author", '"Tests_Author"', "public.TESTS_AUTHOR "),
    )
    for number, name in enumerate(spellings):
        rename(using, f"new {number}", name)
        clock.now += 3
        assert fenced.hit(tags(using)) == 0, name
        assert fenced.warm(names(using)) == [f"new {number}"], name
        assert rows(using) == []
    assert not caplog.text


@everywhere
def test_a_name_that_nobody_knows_makes_everything_invalid_and_is_told_once(
    fenced: Watch, using: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The write that it announces is as true as any other."""
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    for name in ("", " ", "Author", "public.", "*.", "tests.Autor", "tests_autor"):
        caplog.clear()
        for number in range(2):
            rename(using, f"{name} {number}", name)
            clock.now += 3
            assert fenced.warm(names(using)) == [f"{name} {number}"]
            assert rows(using) == []
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert f"names {name!r}, which no table is known as" in record.getMessage()


@everywhere
def test_a_table_without_a_model_is_no_unknown_name(
    fenced: Watch, using: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A partition, for example, or a table that only raw SQL reads."""
    backdoor.execute(using, "CREATE TABLE tests_without_model (id integer)")
    try:
        fenced.warm(names(using))
        for name in ("tests_without_model", "public.Tests_Without_Model"):
            backdoor.execute(using, ANNOUNCE.format(name))
            clock.now += 3
            assert fenced.hit(names(using)) == []
            assert rows(using) == []
    finally:
        backdoor.execute(using, "DROP TABLE tests_without_model")
    assert not caplog.text


@on_postgresql
def test_in_a_transaction_an_unknown_name_aborts_nothing(
    fenced: Watch, using: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fence._THERE, "postgresql", "SELECT 1 FROM no_such_table WHERE 'a' = %s")
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_autor")
    clock.now += 3
    with transaction.atomic(using=using):
        assert names(using)() == ["new"]


@on_pairs(("default", "redis"), transaction=True)
@pytest.mark.parametrize("value", ["x'61ff'", "x''", "x'74657374735f617574686f72'"])
def test_a_name_in_bytes_stands_for_all_tables(
    fenced: Watch, using: str, clock: Clock, value: str
) -> None:
    """SQLite takes anything in any column."""
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new")
    backdoor.execute(using, f"INSERT INTO ormcache_fence (table_name) VALUES ({value})")
    clock.now += 3
    assert fenced.warm(names(using)) == ["new"]
    assert rows(using) == []


@on_pairs(("default", "redis"), transaction=True)
@pytest.mark.parametrize("value", ["'2020-99-99'", "x'ff'", "7", "''"])
def test_whatever_sqlite_has_for_a_time_the_row_is_told(
    fenced: Watch, using: str, clock: Clock, value: str
) -> None:
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new")
    backdoor.execute(
        using,
        f"INSERT INTO ormcache_fence (table_name, created) VALUES ('tests_author', {value})",
    )
    clock.now += 3
    assert fenced.warm(names(using)) == ["new"]
    assert rows(using) == []


@on_databases("default", transaction=True)
@pytest.mark.parametrize("error", [ValueError("year 10000"), OverflowError("too large")])
def test_a_row_that_the_driver_cannot_read_is_no_error_of_the_read(
    fenced: Watch, using: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def ask(*args: Any) -> Any:
        raise error

    Author.objects.using(using).create(name="a")
    fenced.warm(names(using))
    clock.now += 3
    with monkeypatch.context() as patch:
        patch.setattr(fence, "ask", ask)
        with fenced.expect(Reason.FENCE):
            assert names(using)() == ["a"]
    assert fenced.hit(names(using)) == ["a"]


@everywhere
def test_a_write_that_is_rolled_back_announces_nothing(
    fenced: Watch, using: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    with session(using) as other:
        other.set_autocommit(False)
        with other.connection.cursor() if using != "default" else _nothing(other) as cursor:
            cursor.execute("UPDATE tests_author SET name = 'never'")
            cursor.execute(ANNOUNCE.format("tests_author"))
        other.rollback()
        other.set_autocommit(True)
    clock.now += 3
    assert fenced.hit(names(using)) == ["old"]


class _nothing:
    """sqlite3's cursors are no context managers."""

    def __init__(self, connection: Any) -> None:
        self.cursor = connection.connection.cursor()

    def __enter__(self) -> Any:
        return self.cursor

    def __exit__(self, *exc_info: object) -> None:
        self.cursor.close()


TRIGGERS = {
    "postgresql": [
        """
        CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO ormcache_fence (table_name) VALUES (TG_TABLE_NAME); RETURN NULL;
        END $$
        """,
        "CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tests_author "
        "FOR EACH STATEMENT EXECUTE FUNCTION announce()",
    ],
    "mariadb": [
        f"CREATE TRIGGER announce_{event} AFTER {event} ON tests_author FOR EACH ROW "
        + ANNOUNCE.format("tests_author")
        for event in ("INSERT", "UPDATE", "DELETE")
    ],
    "default": [
        f"CREATE TRIGGER announce_{event} AFTER {event} ON tests_author BEGIN "
        f"{ANNOUNCE.format('tests_author')}; END"
        for event in ("INSERT", "UPDATE", "DELETE")
    ],
}
"""Those of docs/howto/external-writers.md, by alias."""


@pytest.fixture
def announcing(fenced: Watch, using: str) -> Iterator[None]:
    """Triggers on the table of authors; there is one author."""
    Author.objects.using(using).create(name="old")
    backdoor.execute(using, *TRIGGERS[using])
    yield
    if using == "postgresql":
        backdoor.execute(using, "DROP FUNCTION announce CASCADE")
    else:
        triggers = [f"DROP TRIGGER announce_{event}" for event in ("INSERT", "UPDATE", "DELETE")]
        backdoor.execute(using, *triggers)


on_each_database = on_pairs(*((using, "redis") for using in TRIGGERS), transaction=True)


@scenario(39)
@pytest.mark.parametrize(
    ("write", "then"),
    [
        ("INSERT INTO tests_author (name) VALUES ('new')", ["old", "new"]),
        ("UPDATE tests_author SET name = 'new'", ["new"]),
        ("DELETE FROM tests_author", []),
    ],
    ids=["insert", "update", "delete"],
)
@on_each_database
def test_a_trigger_announces_what_anybody_writes(
    fenced: Watch, using: str, clock: Clock, announcing: None, write: str, then: list[str]
) -> None:
    fenced.warm(names(using))
    backdoor.execute(using, write)
    clock.now += 3
    assert fenced.warm(names(using)) == then


@on_each_database
def test_a_trigger_leaves_a_new_object_its_own_key(
    fenced: Watch, using: str, announcing: None
) -> None:
    """It inserts a row, too, with a key that the database generates."""
    backdoor.execute(using, *[ANNOUNCE.format("tests_tag")] * 20)
    author = Author.objects.using(using).create(name="new")
    assert Author.objects.using(using).get(name="new").pk == author.pk


@on_postgresql
def test_ids_need_not_be_committed_in_their_order(fenced: Watch, using: str, clock: Clock) -> None:
    """A row of a long transaction has a lower id than those that were told before it."""
    Author.objects.using(using).create(name="old")
    with session(using) as slow:
        slow.set_autocommit(False)
        with slow.connection.cursor() as cursor:
            cursor.execute("UPDATE tests_author SET name = 'new'")
            cursor.execute(ANNOUNCE.format("tests_author"))
        with session(using):
            backdoor.execute(using, ANNOUNCE.format("tests_tag"))
            clock.now += 3
            assert fenced.warm(names(using)) == ["old"]
            assert rows(using) == []
        slow.commit()
        slow.set_autocommit(True)
    clock.now += 3
    assert fenced.warm(names(using)) == ["new"]


@everywhere
def test_rows_that_cannot_be_removed_are_told_once(
    fenced: Watch,
    using: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(connection: Any, statement: str) -> None:
        if "DELETE" in statement:
            raise OperationalError("permission denied")

    monkeypatch.setattr(fence, "tell", refuse)
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_author")
    for _ in range(3):
        clock.now += 3
        names(using)()
    assert fenced.hit(names(using)) == ["new"]
    assert "permission denied" in caplog.text
    assert len(rows(using)) == 1


@everywhere
def test_many_rows_are_removed_in_parts(
    fenced: Watch, using: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_AT_ONCE", 2)
    fenced.warm(names(using))
    backdoor.execute(using, *[ANNOUNCE.format("tests_author")] * 5)
    clock.now += 3
    fenced.warm(names(using))
    assert rows(using) == []


@everywhere
def test_while_the_cache_cannot_be_told_it_is_not_believed(
    fenced: Watch, using: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_author")
    clock.now += 3

    def refuse(*args: Any) -> None:
        raise CacheError("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "bump", refuse)
        for _ in range(2):
            with fenced.expect(Reason.CACHE_UNREACHABLE):
                assert names(using)() == ["new"]
    assert len(rows(using)) == 1
    route_of(using).breaker.succeeded()
    assert fenced.warm(names(using)) == ["new"]


@on_postgresql
def test_in_a_transaction_it_looks_and_does_not_write(
    fenced: Watch, using: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_author")
    clock.now += 3
    with transaction.atomic(using=using):
        assert names(using)() == ["new"]
        transaction.set_rollback(True, using=using)
    assert len(rows(using)) == 1
    assert fenced.hit(names(using)) == ["new"]
    clock.now += 3
    names(using)()
    assert rows(using) == []


@on_postgresql
def test_each_schema_may_have_a_fence_of_its_own(fenced: Watch, using: str, clock: Clock) -> None:
    def look_in(schema: str) -> Any:
        with connections[using].cursor() as cursor:
            cursor.execute(f"SET search_path = {schema}, public")
        return names(using)()

    backdoor.execute(
        using,
        *(
            statement
            for schema in ("one", "two")
            for statement in (
                f"CREATE SCHEMA {schema}",
                f"CREATE TABLE {schema}.tests_author (LIKE public.tests_author INCLUDING ALL)",
                f"INSERT INTO {schema}.tests_author (name) VALUES ('old')",
                f"CREATE TABLE {schema}.ormcache_fence (LIKE ormcache_fence INCLUDING ALL)",
            )
        ),
    )
    try:
        for _ in range(2):
            assert look_in("one") == look_in("two") == ["old"]
        backdoor.execute(
            using,
            "UPDATE two.tests_author SET name = 'new'",
            "INSERT INTO two.ormcache_fence (table_name) VALUES ('tests_author')",
        )
        clock.now += 3
        assert look_in("one") == ["old"]
        assert look_in("two") == ["new"]
    finally:
        backdoor.execute(using, "DROP SCHEMA one, two CASCADE", "RESET search_path")
        connections[using].close()


@on_pairs(("postgresql", "redis"), transaction=True)
def test_nothing_is_asked_in_a_transaction_of_the_driver(
    fenced: Watch, using: str, clock: Clock
) -> None:
    """It may have a snapshot, rows of its own, or locks that it would keep."""
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    driver = connections[using].connection
    driver.isolation_level = 4  # SERIALIZABLE
    with driver.transaction():
        driver.execute("SELECT 1 FROM tests_author")
        with session(using):
            rename(using, "new", "tests_author")
        clock.now += 3
        with fenced.expect(Reason.UNSEEN):
            assert names(using)() == ["old"]
    driver.isolation_level = None
    assert fenced.warm(names(using)) == ["new"]
    assert rows(using) == []


@on_postgresql
def test_in_a_pipeline_nothing_is_asked(fenced: Watch, using: str, clock: Clock) -> None:
    """An error would abort what the user has put into it."""
    Author.objects.using(using).create(name="a")
    fenced.warm(names(using))
    clock.now += 3
    with connections[using].connection.pipeline(), fenced.expect(Reason.FENCE):
        assert names(using)() == ["a"]


@everywhere
def test_what_is_written_with_a_table_becomes_invalid_with_it(
    fenced: Watch, using: str, clock: Clock, settings: Any
) -> None:
    """A trigger that Django was told of fires for the others' writes, too."""
    writes = {"tests_tag": ["tests_author"]}
    settings.ORMCACHE = {**settings.ORMCACHE, "WRITES": writes}
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_tag")
    clock.now += 3
    assert fenced.warm(names(using)) == ["new"]


@everywhere
@pytest.mark.parametrize("name", ['"Odd.Name"', 'public"."Odd.Name', "Odd.Name"])
def test_a_table_may_have_a_dot_in_its_name(
    fenced: Watch,
    using: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    settings: Any,
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DEPENDS_ON": {"Odd.Name": []}}
    told: list[str] = []
    monkeypatch.setattr(store_of(using), "bump", lambda space, tables: told.extend(tables))
    backdoor.execute(using, ANNOUNCE.format(name))
    names(using)()
    assert "odd.name" in told


@on_postgresql
def test_a_transaction_that_must_not_be_disturbed_is_not(
    fenced: Watch, using: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="a")
    clock.now += 3
    with transaction.atomic(using=using):
        with connections[using].cursor() as cursor, pytest.raises(Exception, match="no_such"):
            cursor.execute("SELECT * FROM no_such_table")
        with fenced.expect(Reason.BROKEN_TRANSACTION), pytest.raises(Exception, match="aborted"):
            names(using)()
        transaction.set_rollback(True, using=using)


@on_pairs(("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
def test_a_row_of_the_transaction_that_looks_is_told_again_after_its_commit(
    fenced: Watch, using: str, clock: Clock
) -> None:
    """Seen before it is committed, it says too early what others cannot see yet."""
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    with transaction.atomic(using=using):
        rename(using, "new", "tests_author")
        clock.now += 3
        Tag.objects.using(using).count()
        with session(using):
            # Another reader meanwhile, for whom nothing has changed.
            assert fenced.warm(names(using)) == ["old"]
    clock.now += 3
    assert fenced.warm(names(using)) == ["new"]
    assert rows(using) == []


@on_pairs(("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
def test_where_all_reads_are_in_transactions_a_row_is_not_told_for_ever(
    fenced: Watch, using: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="old")
    rename(using, "new", "tests_author")
    for _ in range(3):
        with transaction.atomic(using=using):
            names(using)()
        clock.now += 3
    with transaction.atomic(using=using):
        assert fenced.hit(names(using)) == ["new"]


@on_postgresql
@pytest.mark.parametrize("trouble", ["dropped", "forbidden"])
def test_a_fence_that_cannot_be_read_does_not_abort_the_transaction(
    fenced: Watch, using: str, clock: Clock, trouble: str
) -> None:
    Author.objects.using(using).create(name="a")
    if trouble == "dropped":
        fenced.warm(names(using))
        call_command("migrate", "ormcache", "zero", database=using, verbosity=0)
        clock.now += 3
    else:
        backdoor.execute(
            using,
            "CREATE ROLE reader",
            "GRANT SELECT ON tests_author TO reader",
        )
    try:
        with transaction.atomic(using=using):
            if trouble == "forbidden":
                backdoor.execute(using, "SET LOCAL ROLE reader")
            for _ in range(2):
                assert names(using)() == ["a"]
            transaction.set_rollback(True, using=using)
    finally:
        if trouble == "dropped":
            call_command("migrate", "ormcache", database=using, verbosity=0)
        else:
            backdoor.execute(using, "DROP OWNED BY reader", "DROP ROLE reader")


async def test_a_query_that_cannot_have_rows_does_not_look(settings: Any) -> None:
    """Django answers it without a connection, in a coroutine and in a SimpleTestCase, too."""
    fence._looks.clear()
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": 2, "CACHE_ALIAS": "locmem"}
    assert list(Author.objects.filter(pk__in=[])) == []


@on_postgresql
def test_nothing_is_asked_on_a_connection_of_another_thread(
    fenced: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence._looks.clear()
    connection = connections[using]
    connection.ensure_connection()
    asked: list[str] = []
    monkeypatch.setattr(fence, "ask", lambda connection, text: asked.append(text) or [])

    def read() -> Any:
        connections[using] = connection
        try:
            with pytest.raises(DatabaseError, match="thread"):
                names(using)()
        finally:
            del connections[using]

    Background(read).result()
    assert asked == []


@on_pairs(("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
@pytest.mark.parametrize("locked", ["rows", "table"])
def test_a_read_does_not_wait_for_who_has_locked_the_fence(
    fenced: Watch, using: str, clock: Clock, locked: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A transaction that removes rows, too; a dump that locks all tables."""
    Author.objects.using(using).create(name="old")
    fenced.warm(names(using))
    rename(using, "new", "tests_author")
    clock.now += 3

    def read() -> Any:
        return names(using)(), ask(connections[using], _WAITS[using])

    with session(using):
        if locked == "rows":
            backdoor.execute(using, "BEGIN", "DELETE FROM ormcache_fence")
        elif using == "postgresql":
            backdoor.execute(using, "BEGIN", "LOCK TABLE ormcache_fence IN SHARE MODE")
        else:
            backdoor.execute(using, "LOCK TABLES ormcache_fence READ")
        answer, waits = Background(read).result()
    assert answer == ["new"]
    assert waits == ask(connections[using], _WAITS[using])
    assert "could not be removed" in caplog.text
    assert fenced.hit(names(using)) == ["new"]
    assert len(rows(using)) == 1
    clock.now += 3
    assert fenced.hit(names(using)) == ["new"]
    assert rows(using) == []


_WAITS = {
    "postgresql": "SHOW lock_timeout",
    "mariadb": "SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout",
}


@on_pairs(("default", "redis"), transaction=True)
def test_on_sqlite_a_read_does_not_wait_for_a_writer(
    fenced: Watch, using: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The row stays until the next look; the answer is right at once."""
    Author.objects.using(using).create(name="old")
    rename(using, "new", "tests_author")
    before = ask(connections[using], "PRAGMA busy_timeout")
    with session(using) as writer:
        writer.ensure_connection()
        cursor = writer.connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        with session(using):
            assert fenced.warm(names(using)) == ["new"]
            assert "database is locked" in caplog.text
            assert ask(connections[using], "PRAGMA busy_timeout") == before
        cursor.execute("ROLLBACK")
        cursor.close()
    assert len(rows(using)) == 1


# --- the fence of a primary, seen from a replica -----------------------------------------------


@pytest.fixture
def replica(fenced: Watch, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An alias that counts as a replica of ``using``, with nothing looked into yet."""
    with alias_of(using, "replica"):
        monkeypatch.setattr("ormcache.routers.namespaces.identity", lambda its: (its.alias,))
        databases = {"replica": {"PRIMARY": using, "MAX_LAG": 0.000_001}}
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": databases}
        ormcache.flush(using=using)
        wait_for_quarantine(using)
        fence._looks.clear()
        monkeypatch.setattr(fence, "_breakers", {})
        yield "replica"


@on_postgresql
def test_a_replica_looks_into_the_fence_of_its_primary(
    fenced: Watch, using: str, replica: str, clock: Clock
) -> None:
    Author.objects.using(using).create(name="old")
    names(replica)()
    fenced.warm(names(replica))
    rename(using, "new", "tests_author")
    clock.now += 3
    names(replica)()
    assert fenced.warm(names(replica)) == ["new"]
    assert rows(using) == []


@on_postgresql
@pytest.mark.parametrize("error", [OperationalError("it is down"), RuntimeError("forbidden")])
def test_a_primary_that_cannot_be_asked_costs_its_replica_no_error_and_little_time(
    fenced: Watch,
    using: str,
    replica: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """It may be down, or a test case may forbid it."""
    Author.objects.using(using).create(name="a")
    tried: list[int] = []

    def refuse() -> None:
        tried.append(1)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(connections[using], "ensure_connection", refuse)
        with fenced.expect(*[Reason.FENCE] * 5):
            for _ in range(5):
                assert names(replica)() == ["a"]
    assert len(tried) == 1, "a primary that does not answer is asked again and again"


@on_postgresql
def test_a_connection_to_the_primary_that_was_lost_is_replaced(
    fenced: Watch, using: str, replica: str, clock: Clock
) -> None:
    """Nobody but the fence may use it in this thread, and so nobody else would close it."""
    names(replica)()
    assert fence._looks
    with session(using) as other:
        other.ensure_connection()
        pid = connections[replica].connection.info.backend_pid
    lost = connections[using].connection.info.backend_pid
    assert pid != lost
    backdoor.execute(replica, f"SELECT pg_terminate_backend({lost}, 10000)")
    clock.now += 3
    with fenced.expect(Reason.FENCE):
        names(replica)()
    fence._breakers.clear()
    with fenced.expect("miss"):
        names(replica)()


@on_pairs(("mariadb", "redis"), transaction=True)
def test_a_primary_that_shows_what_is_not_committed_is_not_asked(
    fenced: Watch, using: str, replica: str, clock: Clock
) -> None:
    """What it shows would be told too early, and removed when it is committed."""
    options = {"isolation_level": "read uncommitted"}
    with session(using, OPTIONS=options), fenced.expect(Reason.FENCE):
        names(replica)()


@everywhere
def test_without_the_table_nothing_is_cached_and_the_reason_says_what_to_do(
    fenced: Watch, using: str, clock: Clock
) -> None:
    call_command("migrate", "ormcache", "zero", database=using, verbosity=0)
    try:
        fence._looks.clear()
        with fenced.expect(Reason.NO_FENCE):
            names(using)()
        explanation = ormcache.explain(Author.objects.using(using))
        assert explanation.reason is Reason.NO_FENCE
        assert "migrate ormcache" in Reason.NO_FENCE.explanation
    finally:
        call_command("migrate", "ormcache", database=using, verbosity=0)
    clock.now += 3
    fenced.warm(names(using))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the database is asked for the sake of the fence."""
    asked: list[str] = []
    original = fence.ask

    def ask(connection: Any, question: str, *args: Any) -> Any:
        asked.append(question)
        return original(connection, question, *args)

    monkeypatch.setattr(fence, "ask", ask)
    monkeypatch.setattr(fence_rows, "ask", ask)
    return asked


@everywhere
def test_a_database_without_the_table_is_asked_for_it_once_in_that_time(
    fenced: Watch, using: str, clock: Clock, questions: list[str]
) -> None:
    call_command("migrate", "ormcache", "zero", database=using, verbosity=0)
    try:
        fence._looks.clear()
        questions.clear()
        with fenced.expect(*[Reason.NO_FENCE] * 3):
            for _ in range(3):
                names(using)()
        assert len(questions) == 1
        clock.now += 3
        names(using)()
        assert len(questions) == 2
    finally:
        call_command("migrate", "ormcache", database=using, verbosity=0)


@on_postgresql
def test_who_may_not_read_the_table_is_refused_once_in_that_time(
    fenced: Watch, using: str, clock: Clock, questions: list[str]
) -> None:
    """Each refusal is a line in the log of PostgreSQL."""
    role = "ormcache_reader_of_authors"
    backdoor.execute(using, f"CREATE ROLE {role}", f"GRANT SELECT ON tests_author TO {role}")
    try:
        with session(using, OPTIONS={"assume_role": role}):
            fence._looks.clear()
            questions.clear()
            with fenced.expect(*[Reason.FENCE] * 3):
                for _ in range(3):
                    names(using)()
            assert questions.count(fence._ROWS) == 1
            clock.now += 3
            names(using)()
            assert questions.count(fence._ROWS) == 2
    finally:
        backdoor.execute(using, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@on_postgresql
def test_a_table_that_is_dropped_later_is_noticed(fenced: Watch, using: str, clock: Clock) -> None:
    fenced.warm(names(using))
    call_command("migrate", "ormcache", "zero", database=using, verbosity=0)
    try:
        clock.now += 3
        with fenced.expect(Reason.FENCE, Reason.NO_FENCE):
            names(using)()
            names(using)()
    finally:
        call_command("migrate", "ormcache", database=using, verbosity=0)


@on_databases("default", transaction=True)
def test_without_the_setting_nobody_looks(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(fence, "ask", fail)
    cached.warm(names(using))


@on_databases()
def test_the_table_is_made_by_a_migration(using: str) -> None:
    assert fence.TABLE in connections[using].introspection.table_names()


def test_there_is_no_model_of_it_which_makemigrations_would_miss() -> None:
    before, after = MigrationLoader(None).project_state(), ProjectState.from_apps(apps)
    assert "ormcache" not in MigrationAutodetector(before, after)._detect_changes()
