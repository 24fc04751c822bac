"""Which isolation levels, locks and sessions read from the database, and store nothing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.models import Sum

from tests.authors import NEW, OLD, Names, execute, rename, update
from tests.factories import BookFactory
from tests.factories import using as factories_using
from tests.interleaving import (
    SECONDS,
    Background,
    session,
)
from tests.marks import on_database, on_databases, on_pairs, scenario
from tests.models import Author, Book
from tests.settings import WORKER_SUFFIX
from tests.watching import Watch

pytestmark = pytest.mark.usefixtures("emptied")

on_servers = on_databases("postgresql", "mariadb", transaction=True)
on_postgresql = on_databases("postgresql", transaction=True)
on_mariadb = on_databases("mariadb", transaction=True)
on_sqlite = on_databases("default", transaction=True)

SNAPSHOT = "snapshot transaction"
SESSION = "session was altered"
LOCKED = "transaction holds locks"
# psycopg.IsolationLevel, without which this module can be imported.
REPEATABLE_READ, SERIALIZABLE = 3, 4
# Roles belong to the server, which all workers of pytest-xdist share.
NOBODY = f"tests_nobody{WORKER_SUFFIX}"


# --- isolation ---------------------------------------------------------------------------------


Opened = Callable[[], contextlib.AbstractContextManager[None]]


def by_option(using: str, **options: Any) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        with session(using, OPTIONS=options), transaction.atomic(using):
            yield

    return opened


def in_block(using: str, *statements: str) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        with transaction.atomic(using):
            execute(using, *statements)
            yield

    return opened


def as_sql(using: str, *statements: str) -> Opened:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        execute(using, *statements)
        yield
        execute(using, "COMMIT")

    return opened


def by_default_of(what: str, level: str) -> Opened:
    """A default of the server's, which new sessions take over."""

    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        name = connections["postgresql"].settings_dict["NAME"]
        target = what.format(name=name)
        execute("postgresql", f"ALTER {target} SET default_transaction_isolation = '{level}'")
        try:
            with session("postgresql"), transaction.atomic("postgresql"):
                yield
        finally:
            execute("postgresql", f"ALTER {target} RESET default_transaction_isolation")

    return opened


@contextlib.contextmanager
def by_driver() -> Iterator[None]:
    connections["postgresql"].ensure_connection()
    connections["postgresql"].connection.isolation_level = REPEATABLE_READ
    with transaction.atomic("postgresql"):
        yield


SNAPSHOTS: dict[str, Opened] = {
    "postgresql: option": by_option("postgresql", isolation_level=REPEATABLE_READ),
    "postgresql: serializable option": by_option("postgresql", isolation_level=SERIALIZABLE),
    "postgresql: role": by_default_of("ROLE CURRENT_USER", "repeatable read"),
    "postgresql: database": by_default_of("DATABASE {name}", "serializable"),
    "postgresql: SET TRANSACTION": in_block(
        "postgresql", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    ),
    "postgresql: SET": in_block("postgresql", "SET transaction_isolation = 'serializable'"),
    "postgresql: set_config": as_sql(
        "postgresql",
        "SELECT set_config('default_transaction_isolation', 'repeatable read', false)",
        "BEGIN",
    ),
    "postgresql: SET SESSION": as_sql(
        "postgresql",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "BEGIN",
    ),
    "postgresql: BEGIN": as_sql("postgresql", "BEGIN ISOLATION LEVEL REPEATABLE READ"),
    "postgresql: START": as_sql("postgresql", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    "postgresql: CHAIN": as_sql(
        "postgresql",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "LOCK TABLE tests_note",
        "COMMIT AND CHAIN",
    ),
    "postgresql: driver": by_driver,
    "mariadb: option": by_option("mariadb", isolation_level="repeatable read"),
    "mariadb: no option": by_option("mariadb", isolation_level=None),
    "mariadb: SET TRANSACTION": as_sql(
        "mariadb", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "BEGIN"
    ),
    "mariadb: SET SESSION": as_sql(
        "mariadb", "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "BEGIN"
    ),
    "mariadb: variable": as_sql("mariadb", "SET tx_isolation = 'REPEATABLE-READ'", "BEGIN"),
    "default: block": in_block("default"),
    "default: BEGIN": as_sql("default", "BEGIN"),
}


def on_snapshots(function: Any) -> Any:
    """Run the test with each way to open a transaction that keeps its snapshot."""
    return pytest.mark.parametrize(
        ("using", "opened"),
        [
            pytest.param(using, opened, id=way, marks=on_database(using, transaction=True))
            for way, opened in SNAPSHOTS.items()
            for using in [way.partition(":")[0]]
        ],
    )(function)


@pytest.fixture
def write_ahead(using: str, cached: Watch) -> Iterator[None]:
    """SQLite's readers do not stop its writers."""
    if using == "default":
        execute(using, "PRAGMA journal_mode = wal")
    yield
    if using == "default":
        execute(using, "PRAGMA journal_mode = delete")


@scenario(23)
@scenario(24)
@on_snapshots
def test_a_transaction_with_a_snapshot_reads_from_it_and_stores_nothing(
    cached: Watch,
    using: str,
    opened: Opened,
    author: Author,
    names: Names,
    write_ahead: None,
) -> None:
    def in_snapshot() -> None:
        answer, outcomes = cached.call(names)
        assert answer == [OLD]
        # set_config() and the like may have changed anything.
        assert outcomes in ([SNAPSHOT], [SESSION])

    cached.warm(names)
    with session(using), opened():
        in_snapshot()
        with session(using):
            rename(using)
        in_snapshot()
        with session(using):
            assert cached.warm(names) == [NEW]
        in_snapshot()


@pytest.mark.parametrize(
    ("using", "options"),
    [
        pytest.param(using, options, marks=on_database(using, transaction=True))
        for using, options in [
            ("postgresql", {"isolation_level": REPEATABLE_READ}),
            ("mariadb", {"isolation_level": "repeatable read"}),
            ("mariadb", {"isolation_level": None}),
        ]
    ],
)
def test_outside_transactions_the_isolation_level_does_not_matter(
    cached: Watch, using: str, options: dict[str, Any], author: Author, names: Names
) -> None:
    """Each statement takes a snapshot of its own."""
    with session(using, OPTIONS=options):
        names()
        assert cached.hit(names) == [OLD]
        rename(using)
        assert cached.warm(names) == [NEW]


@scenario(26)
@pytest.mark.parametrize("way", ["option", "SET", "variable", "number", "parameter"])
@on_mariadb
def test_an_uncommitted_row_that_a_transaction_reads_is_served_to_nobody(
    cached: Watch, using: str, author: Author, names: Names, way: str
) -> None:
    statements = {
        "option": "SELECT 1",
        "SET": "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        "variable": "SET tx_isolation = 'READ-UNCOMMITTED'",
        "number": "SET tx_isolation = 0",
        "parameter": "SET tx_isolation = %s",
    }
    parameters = ["READ-UNCOMMITTED"] if way == "parameter" else None
    options = {"isolation_level": "read uncommitted"} if way == "option" else {}
    with session(using), transaction.atomic(using):
        update(using)
        with session(using, **({"OPTIONS": options} if options else {})) as connection:
            with connection.cursor() as cursor:
                cursor.execute(statements[way], parameters)
            why = "reads uncommitted rows" if way == "option" else SESSION
            with cached.expect(why, why):
                assert names() == [NEW]
                with transaction.atomic(using):
                    assert names() == [NEW]
        with session(using):
            assert cached.warm(names) == [OLD]
        transaction.set_rollback(True, using)
    assert cached.hit(names) == [OLD]


@scenario(24)
@on_sqlite
def test_sqlite_still_refuses_to_write_on_an_outdated_snapshot(
    cached: Watch, using: str, author: Author, names: Names, write_ahead: None
) -> None:
    cached.warm(names)
    with (
        session(using),
        pytest.raises(OperationalError, match="locked"),
        transaction.atomic(using),
    ):
        assert names() == [OLD]
        with session(using):
            rename(using)
        update(using, "lost update")
    assert cached.warm(names) == [NEW]


@on_sqlite
def test_a_read_in_a_transaction_still_holds_off_sqlites_writers(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    """With a rollback journal, a reader's lock is what prevents lost updates."""
    cached.warm(names)
    with session(using), transaction.atomic(using):
        assert names() == [OLD]
        with (
            session(using, OPTIONS={"timeout": 0.05}),
            pytest.raises(OperationalError, match="locked"),
        ):
            rename(using)
        update(using, NEW)
    assert cached.warm(names) == [NEW]


@scenario(25)
@on_postgresql
def test_postgresql_still_finds_serializable_transactions_that_cannot_be_serialized(
    cached: Watch, using: str
) -> None:
    """Two transactions, each of which reads what the other one writes."""
    with factories_using(using):
        first, second = BookFactory(pages=1), BookFactory(pages=1)

    def total() -> int:
        return Book.objects.using(using).aggregate(total=Sum("pages"))["total"]

    def take(book: Book) -> None:
        if total() >= 2:
            Book.objects.using(using).filter(pk=book.pk).update(pages=0)

    cached.warm(total)
    serializable = {"OPTIONS": {"isolation_level": SERIALIZABLE}}
    with pytest.raises(OperationalError) as caught:  # noqa: SIM117
        with session(using, **serializable), transaction.atomic(using):
            assert total() == 2
            with session(using, **serializable), transaction.atomic(using):
                take(second)
            Book.objects.using(using).filter(pk=first.pk).update(pages=0)
    assert caught.value.__cause__.sqlstate == "40001"
    assert cached.warm(total) == 1


# --- locks -------------------------------------------------------------------------------------


@scenario(27)
@pytest.mark.parametrize(
    "times", [200, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.long])]
)
@on_pairs(
    ("postgresql", "redis"),
    ("postgresql", "memcached"),
    ("mariadb", "redis"),
    transaction=True,
)
def test_no_increment_is_lost_under_select_for_update(
    cached: Watch, using: str, times: int
) -> None:
    with factories_using(using):
        book = BookFactory(pages=0)
    rows = Book.objects.using(using).filter(pk=book.pk)

    def increment() -> None:
        for _ in range(times):
            with transaction.atomic(using):
                rows.select_for_update().get()
                pages = rows.values_list("pages", flat=True).get()
                rows.update(pages=pages + 1)

    threads = [Background(increment) for _ in range(2)]
    for thread in threads:
        # Each waits for the other, and for the disk.
        thread.result(6 * SECONDS)
    assert cached.warm(lambda: rows.get().pages) == 2 * times


LOCKS = {
    "postgresql": (
        "SELECT 1 FROM tests_author FOR SHARE",
        "LOCK TABLE tests_author IN SHARE MODE",
        "SELECT pg_advisory_xact_lock(1)",
    ),
    "mariadb": ("SELECT 1 FROM tests_author LOCK IN SHARE MODE", "SELECT GET_LOCK('x', 1)"),
}


@on_servers
def test_a_transaction_that_holds_locks_reads_from_the_database_until_it_ends(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    for statement in LOCKS[using]:
        with transaction.atomic(using):
            cached.hit(names)
            execute(using, statement)
            with cached.expect(LOCKED):
                names()
        cached.hit(names)


# --- sessions ----------------------------------------------------------------------------------


@pytest.fixture
def tenants(using: str, cached: Watch, author: Author, settings: Any) -> Iterator[None]:
    """Two schemas with authors of their own, and a role that sees none of them.

    Row-level security is vouched for, or nothing would be cached.
    """
    settings.ORMCACHE = {**settings.ORMCACHE, "DEPENDS_ON": {"tests_author": []}}
    execute(
        using,
        *(
            statement.format(name)
            for name in ("one", "two")
            for statement in (
                "CREATE SCHEMA {0}",
                "CREATE TABLE {0}.tests_author (LIKE public.tests_author)",
                "INSERT INTO {0}.tests_author (id, name) VALUES (1, '{0}')",
            )
        ),
        f"CREATE ROLE {NOBODY}",
        f"GRANT SELECT ON tests_author TO {NOBODY}",
        "ALTER TABLE tests_author ENABLE ROW LEVEL SECURITY",
    )
    yield
    execute(
        using,
        "DROP SCHEMA one CASCADE",
        "DROP SCHEMA two CASCADE",
        "ALTER TABLE tests_author DISABLE ROW LEVEL SECURITY",
        f"DROP OWNED BY {NOBODY}",
        f"DROP ROLE {NOBODY}",
    )


@on_postgresql
def test_each_search_path_has_its_own_answers(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with session(using):
        for name in ("one", "two"):
            execute(using, f"SET search_path TO {name}, public")
            assert cached.warm(names) == [name]
            update(using, name.upper())
            assert cached.warm(names) == [name.upper()]
        execute(using, "SET search_path TO one, public")
        assert names() == ["ONE"]
    assert names() == [OLD]


@on_postgresql
def test_a_search_path_set_in_a_transaction_that_is_rolled_back_is_not_believed(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with session(using):
        execute(using, "SET search_path TO one")
        assert cached.warm(names) == ["one"]
        with transaction.atomic(using):
            execute(using, "SET search_path TO two")
            assert cached.warm(names) == ["two"]
            transaction.set_rollback(True, using)
        with cached.expect(SESSION):
            assert names() == ["one"]
        execute(using, "SET search_path TO two")
        assert cached.hit(names) == ["two"]


@on_postgresql
def test_a_search_path_set_behind_a_savepoint_that_is_rolled_back_is_not_believed(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using), transaction.atomic(using):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using):
            execute(using, "SET search_path TO one")
            assert cached.warm(names) == ["one"]
            1 / 0  # noqa: B018
        with cached.expect(SESSION):
            assert names() == [OLD]


@on_postgresql
def test_a_search_path_set_in_a_transaction_that_commits_stays(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using):
        with transaction.atomic(using):
            execute(using, "SET search_path TO one")
        assert cached.warm(names) == ["one"]
        execute(using, "BEGIN", "ROLLBACK")
        assert cached.hit(names) == ["one"]


@on_postgresql
def test_a_local_search_path_is_not_cached_and_ends_with_the_transaction(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    cached.warm(names)
    with transaction.atomic(using):
        execute(using, "SET LOCAL search_path TO one")
        with cached.expect(SESSION):
            assert names() == ["one"]
    assert cached.hit(names) == [OLD]


@on_postgresql
def test_each_parameter_of_a_search_path_has_its_own_answers(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    with session(using) as connection, connection.cursor() as cursor:
        for name in ("one", "two"):
            cursor.execute("SET search_path TO %s, public", [name])
            assert cached.warm(names) == [name]
        cursor.execute(sql="SET search_path TO %s, public", params=("one",))
        assert names() == ["one"]
        with cached.expect(SESSION):
            cursor.execute("SET search_path TO %(name)s", {"name": "one"})
            assert names() == ["one"]


@on_postgresql
def test_a_schema_may_be_called_local(
    cached: Watch, using: str, names: Names, tenants: None
) -> None:
    execute(using, "CREATE SCHEMA local", "CREATE TABLE local.tests_author (LIKE tests_author)")
    cached.warm(names)
    with session(using):
        execute(using, "SET search_path TO local")
        assert cached.warm(names) == []
    execute(using, "DROP SCHEMA local CASCADE")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT set_config('search_path', 'one', true)", ["one"]),
        ("SET LOCAL ROLE {nobody}", []),
        ("SET LOCAL app.tenant = 'one'", [OLD]),
    ],
)
@on_postgresql
def test_what_is_set_for_a_transaction_is_not_cached_and_ends_with_it(
    cached: Watch,
    using: str,
    names: Names,
    tenants: None,
    statement: str,
    expected: list[str],
) -> None:
    cached.warm(names)
    for end in (False, True):
        with transaction.atomic(using):
            assert cached.hit(names) == [OLD]
            execute(using, statement.format(nobody=NOBODY))
            with cached.expect(SESSION):
                assert names() == expected
            transaction.set_rollback(end, using)
        assert cached.hit(names) == [OLD]
    execute(using, "BEGIN", statement.format(nobody=NOBODY))
    with cached.expect(SESSION):
        assert names() == expected
    execute(using, "COMMIT")
    assert cached.hit(names) == [OLD]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT set_config('search_path', 'one', false)", ["one"]),
        ("SET ROLE {nobody}", []),
        ("SET SESSION AUTHORIZATION {nobody}", []),
    ],
)
@pytest.mark.parametrize("is_in_block", [False, True])
@on_postgresql
def test_a_session_that_sees_something_else_is_not_cached(
    cached: Watch,
    using: str,
    names: Names,
    tenants: None,
    statement: str,
    expected: list[str],
    is_in_block: bool,
) -> None:
    cached.warm(names)
    with session(using):
        with transaction.atomic(using) if is_in_block else contextlib.nullcontext():
            execute(using, statement.format(nobody=NOBODY))
            with cached.expect(SESSION):
                assert names() == expected
        with cached.expect(SESSION):
            assert names() == expected
    with session(using):
        assert cached.hit(names) == [OLD]


_TELL = "set_config('search_path', 'one', false)"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"DO $$ BEGIN PERFORM {_TELL}; END $$", ["one"]),
        ("DO $$ BEGIN EXECUTE 'SET search_path TO one'; END $$", ["one"]),
        ("DO $$ BEGIN SET ROLE {nobody}; END $$", []),
        (f"INSERT INTO tests_tag (name) VALUES ({_TELL})", ["one"]),
        (f"INSERT INTO tests_tag (name) SELECT {_TELL}", ["one"]),
        (f"CREATE TEMP TABLE tests_scratch AS SELECT {_TELL}", ["one"]),
        ("UPDATE pg_settings SET setting = 'one' WHERE name = 'search_path'", ["one"]),
        (f"PREPARE tests_tell AS SELECT {_TELL}; EXECUTE tests_tell", ["one"]),
    ],
)
@on_postgresql
def test_a_session_that_is_altered_in_the_midst_of_a_statement_is_not_cached(
    cached: Watch,
    using: str,
    names: Names,
    tenants: None,
    statement: str,
    expected: list[str],
) -> None:
    with session(using):
        execute(using, statement.format(nobody=NOBODY))
        with cached.expect(SESSION, SESSION):
            assert names() == names() == expected
    assert cached.warm(names) == [OLD]


@pytest.mark.parametrize(
    "statement",
    [
        "EXECUTE IMMEDIATE 'SET div_precision_increment = 9'",
        "BEGIN NOT ATOMIC SET div_precision_increment = 9; END",
        "SET sql_auto_is_null = 1",
    ],
)
@on_mariadb
def test_a_session_that_may_have_been_altered_out_of_sight_is_not_cached(
    cached: Watch, using: str, author: Author, names: Names, statement: str
) -> None:
    with session(using):
        cached.warm(names)
        execute(using, statement)
        with cached.expect(SESSION):
            names()


@on_mariadb
def test_a_session_in_which_django_switches_off_auto_is_null_is_cached(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    with session(using):
        execute(using, "SET SQL_AUTO_IS_NULL = 0")
        cached.warm(names)


@on_mariadb
def test_a_session_that_uses_another_database_is_not_cached(
    cached: Watch, using: str, author: Author, names: Names
) -> None:
    cached.warm(names)
    execute(using, "CREATE DATABASE tests_other")
    try:
        with session(using):
            execute(
                using,
                "CREATE TABLE tests_other.tests_author AS SELECT * FROM tests_author WHERE 0",
                "USE tests_other",
            )
            with cached.expect(SESSION):
                assert names() == []
    finally:
        execute(using, "DROP DATABASE tests_other")
    assert names() == [OLD]


@on_postgresql
def test_the_isolation_of_the_server_is_asked_once_per_session_and_not_logged(
    cached: Watch, using: str, author: Author, names: Names, django_assert_num_queries: Any
) -> None:
    with session(using) as connection:
        for _ in range(2):
            with transaction.atomic(using):
                with django_assert_num_queries(1, connection=connection):
                    execute(using, "SELECT 1")
                names()
        with (
            transaction.atomic(using),
            django_assert_num_queries(0, connection=connection),
        ):
            assert cached.hit(names) == [OLD]
