"""Sessions that change hands: psycopg's pool in Django, PgBouncer in transaction mode, or both.

Wherever a session was before and whatever it was told there: a read gets what this session
would answer, and what it answers is served to nobody who would get something else.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

import ormcache
from ormcache import access, sessions, snapshots, transactions
from ormcache.connection_state import in_transaction, state_of
from tests.aliases import alias_of, changed
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.hammering import PATIENCE, Commuters, Hammer, rest
from tests.interleaving import SECONDS, Background, switched_to
from tests.marks import on_pairs, scenario
from tests.models import Author
from tests.servers import HOST, PgBouncerServer, PostgreSQLServer
from tests.settings import WORKER_SUFFIX, port_of
from tests.watching import Watch, wait_for_quarantine

USING = "postgresql"
OLD, NEW = "old", "new"
BUSY, SESSION, SNAPSHOT = (
    "a write is being committed",
    "session was altered",
    "snapshot transaction",
)
NOBODY = f"tests_pooled{WORKER_SUFFIX}"

on_postgresql = on_pairs((USING, "redis"), transaction=True)


# --- the server, its sessions, and what is between ---------------------------------------------


class Server:
    """PostgreSQL without a pool and without Django."""

    def __init__(self, database: str) -> None:
        self._driver = psycopg.connect(
            host=HOST,
            port=port_of(PostgreSQLServer),
            user=PostgreSQLServer.user,
            dbname=database,
            autocommit=True,
        )

    def __call__(self, sql: str, *params: Any) -> list[Any]:
        cursor = self._driver.execute(sql, params or None)
        return [] if cursor.description is None else [value for (value,) in cursor.fetchall()]

    def names(self) -> list[str]:
        return self("SELECT name FROM tests_author ORDER BY id")

    def sessions(self) -> list[int]:
        return self(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def kill(self, *pids: int) -> None:
        """End sessions, and return when they are gone."""
        for pid in pids:
            self("SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: not set(pids) & set(self.sessions()))

    def close(self) -> None:
        self._driver.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_fence(settings: Any) -> None:
    """Its looks connect before a query is looked up, and ask for a table in the search path."""
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}


@pytest.fixture(autouse=True)
def _nothing_known_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_altered", {})
    monkeypatch.setattr(sessions, "_spoilt", set())
    monkeypatch.setattr(sessions, "_met", {})


@pytest.fixture(autouse=True)
def _hits_do_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of test cases, which want to be asked whether a database may be used."""
    monkeypatch.setattr(access, "_connects", lambda connection: None)


@pytest.fixture
def author(using: str, cached: Watch) -> Author:
    with factories_using(using):
        return AuthorFactory(name=OLD)


@pytest.fixture
def server(using: str, author: Author) -> Iterator[Server]:
    """With two schemas that have authors of their own, and a role whose schema has none."""
    server = Server(connections[using].settings_dict["NAME"])
    server(f"CREATE ROLE {NOBODY}")
    for name in ("one", "two", NOBODY):
        server(f"CREATE SCHEMA {name}")
        server(f"CREATE TABLE {name}.tests_author (LIKE public.tests_author)")
    for name in ("one", "two"):
        server(f"INSERT INTO {name}.tests_author (id, name) VALUES (1, '{name}')")
    server(f"GRANT USAGE ON SCHEMA {NOBODY} TO {NOBODY}")
    server(f"GRANT SELECT ON {NOBODY}.tests_author TO {NOBODY}")
    yield server
    for name in ("one", "two", NOBODY):
        server(f"DROP SCHEMA {name} CASCADE")
    server(f"DROP ROLE {NOBODY}")
    server.close()


def pool(size: int = 1, **options: Any) -> dict[str, Any]:
    """The settings of an alias with psycopg's pool, of so many sessions."""
    return {"OPTIONS": {"pool": {"min_size": size, "max_size": size, **options}}}


@contextlib.contextmanager
def pooled(size: int = 1, **options: Any) -> Iterator[None]:
    """Inside, Django has a pool of so many sessions."""
    with changed(USING, **pool(size), **options):
        yield


@contextlib.contextmanager
def bounced(
    size: int = 1,
    mode: Any = "transaction",
    *,
    is_declared: bool = True,
    patience: int = 20,
    **options: Any,
) -> Iterator[PgBouncerServer]:
    """Inside, Django is behind PgBouncer, which has so many sessions.

    For so many seconds it lets a statement wait for one of them.
    The address is another, and so is the namespace.
    """
    behind = {"default_pool_size": str(size), "query_wait_timeout": str(patience)}
    if is_declared:
        options["DISABLE_SERVER_SIDE_CURSORS"] = mode == "transaction"
    with (
        PgBouncerServer(
            port_of(PostgreSQLServer) or "", pool_mode=mode, options=behind
        ) as bouncer,
        changed(USING, PORT=bouncer.port, **options),
    ):
        ormcache.flush(USING)
        wait_for_quarantine(USING)
        yield bouncer


@contextlib.contextmanager
def bounced_and_pooled(size: int = 1) -> Iterator[PgBouncerServer]:
    with bounced(size, **pool(size)) as bouncer:
        yield bouncer


WAYS: dict[str, Any] = {"psycopg": pooled, "PgBouncer": bounced, "both": bounced_and_pooled}

on_each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def names() -> list[str]:
    return list(Author.objects.using(USING).order_by("pk").values_list("name", flat=True))


def execute(*statements: str) -> list[Any]:
    """The rows of the last statement."""
    with connections[USING].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return [] if cursor.description is None else cursor.fetchall()


def put_back() -> None:
    """What the end of a request does."""
    connections[USING].close()


def elsewhere(question: Callable[..., Any], *args: Any) -> Any:
    """The answer in another thread, which has a connection of its own and then none."""
    return Background(question, *args).result()


def in_block(*statements: str) -> list[str]:
    with transaction.atomic(USING):
        execute(*statements)
        return names()


def watch_questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ormcache asks the database from now on."""
    questions: list[str] = []
    original = snapshots.ask

    def asked(connection: Any, sql: str) -> Any:
        questions.append(sql)
        return original(connection, sql)

    for module in (snapshots, transactions):
        monkeypatch.setattr(module, "ask", asked)
    return questions


def update(name: str = NEW) -> None:
    Author.objects.using(USING).update(name=name)


# --- psycopg's pool: what a session was told goes with it --------------------------------------


@on_postgresql
def test_a_search_path_stays_with_the_session_in_the_pool(cached: Watch, server: Server) -> None:
    with pooled():
        cached.warm(names)
        execute("SET search_path TO one")
        put_back()
        assert cached.miss(names) == ["one"]
        put_back()
        assert elsewhere(names) == elsewhere(names) == ["one"]
        assert cached.outcomes[-2:] == ["hit", "hit"]
        execute("SET search_path TO two")
        put_back()
        assert elsewhere(names) == ["two"]
    assert cached.hit(names) == [OLD]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"SET ROLE {NOBODY}", []),
        ("SELECT set_config('search_path', 'one', false)", ["one"]),
        ("CREATE TEMPORARY TABLE tests_pooled_other (id int); SET ROLE postgres", [OLD]),
    ],
    ids=["role", "set_config", "text"],
)
@on_postgresql
def test_a_session_that_was_altered_is_not_cached_for_those_who_get_it_next(
    cached: Watch, server: Server, statement: str, expected: list[str]
) -> None:
    with pooled():
        cached.warm(names)
        execute(statement)
        put_back()
        for _ in range(2):
            with cached.expect(SESSION):
                assert elsewhere(names) == expected


@on_postgresql
def test_other_sessions_of_the_pool_are_cached_as_ever(cached: Watch, server: Server) -> None:
    with pooled(2):
        cached.warm(names)
        execute(f"SET ROLE {NOBODY}")
        with cached.expect("hit"):
            # The altered one is in use.
            assert elsewhere(names) == [OLD]
        put_back()
        seen = [elsewhere(lambda: (names(), execute("SELECT current_user")[0][0])) for _ in "1234"]
    expected = {NOBODY: ([], SESSION), "postgres": ([OLD], "hit")}
    assert {role for _, role in seen} == {NOBODY, "postgres"}
    for (answer, role), outcome in zip(seen, cached.outcomes[-4:], strict=True):
        assert (answer, outcome) == expected[role]


@on_postgresql
def test_a_pool_is_cached_again_when_the_altered_session_has_ended(
    cached: Watch, server: Server
) -> None:
    with pooled():
        cached.warm(names)
        execute(f"SET ROLE {NOBODY}")
        put_back()
        server.kill(*server.sessions())
        with contextlib.suppress(OperationalError):
            elsewhere(execute, "SELECT 1")
        assert elsewhere(names) == [OLD]
        assert cached.outcomes[-1] == "hit"


@on_postgresql
def test_a_hit_takes_no_session_from_the_pool(cached: Watch, server: Server) -> None:
    with pooled():
        cached.warm(names)
        with cached.expect("hit"):
            # This thread has the only one.
            assert elsewhere(names) == [OLD]


@on_postgresql
def test_a_session_that_turns_out_to_be_altered_is_not_stored(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came back to the pool between the look-up and the query."""
    with pooled():
        execute("SET search_path TO one")
        put_back()
        monkeypatch.setattr(sessions, "may_be_altered", lambda alias: False)
        with cached.expect("miss"):
            assert elsewhere(names) == ["one"]
        assert cached.reads[-1].reason == SESSION
    assert cached.warm(names) == [OLD]


@on_postgresql
def test_what_a_receiver_sets_on_connecting_comes_after_what_the_session_was_told(
    cached: Watch, server: Server
) -> None:
    def choose(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO two")

    with pooled():
        execute("SET search_path TO one")
        cached.warm(names)
        put_back()
        connection_created.connect(choose)
        try:
            assert elsewhere(names) == elsewhere(names) == ["two"]
        finally:
            connection_created.disconnect(choose)
        assert elsewhere(names) == ["two"]


@on_postgresql
def test_a_search_path_of_a_transaction_that_was_never_committed_is_not_believed(
    cached: Watch, server: Server
) -> None:
    with pooled():
        cached.warm(names)
        with contextlib.suppress(DatabaseError), transaction.atomic(USING):
            execute("SET search_path TO one")
            put_back()
        with cached.expect(SESSION):
            assert elsewhere(names) == [OLD]


@pytest.mark.parametrize("way_to_set", ["SET", "driver"])
@on_postgresql
def test_an_isolation_level_stays_with_the_session_in_the_pool(
    cached: Watch, server: Server, way_to_set: str
) -> None:
    with pooled():
        cached.warm(names)
        if way_to_set == "SET":
            execute("SET default_transaction_isolation TO 'repeatable read'")
        else:
            connections[USING].connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        put_back()
        with cached.expect(SNAPSHOT):
            assert elsewhere(in_block, "SELECT 1") == [OLD]
        with cached.expect("hit"):
            assert elsewhere(names) == [OLD]


@on_postgresql
def test_the_isolation_of_a_session_in_the_pool_is_asked_once(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pooled():
        elsewhere(names)
        questions = watch_questions(monkeypatch)
        for _ in range(3):
            assert elsewhere(in_block, "SELECT 1") == [OLD]
        assert questions == ["SHOW default_transaction_isolation"]
        with transaction.atomic(USING):
            execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            transaction.set_rollback(True, USING)
        put_back()
        with cached.expect("hit"):
            assert elsewhere(in_block, "SELECT 1") == [OLD]
        assert len(questions) == 2


@on_postgresql
def test_a_transaction_is_over_when_its_session_goes_back_to_the_pool(
    cached: Watch, server: Server
) -> None:
    """A BEGIN that was sent as SQL, an atomic() block, and autocommit that was off."""
    with pooled():
        cached.warm(names)
        cached.clear()
        execute("BEGIN")
        update()
        put_back()
        assert cached.hit(names) == [OLD]
        with contextlib.suppress(DatabaseError), transaction.atomic(USING):
            update()
            put_back()
        assert elsewhere(names) == [OLD]
        transaction.set_autocommit(False, USING)
        update()
        put_back()
        assert cached.hit(names) == [OLD]
        assert not in_transaction(connections[USING], state_of(connections[USING]))
        assert elsewhere(in_block, "SELECT 1") == [OLD]
        assert cached.invalidated == []
        elsewhere(update)
        assert len(cached.invalidated) == 1
        assert cached.warm(names) == [NEW] == server.names()


@on_postgresql
def test_locks_cursors_and_harmless_settings_that_stay_behind_change_nothing(
    cached: Watch, server: Server
) -> None:
    with pooled():
        cached.warm(names)
        execute(
            "SELECT pg_advisory_lock(1)",
            "SET work_mem TO '8MB'",
            "LISTEN tests",
            "DECLARE held CURSOR WITH HOLD FOR SELECT * FROM tests_author",
            "BEGIN",
            "SET LOCAL search_path TO one",
            "COMMIT",
        )
        put_back()
        for _ in range(2):
            with cached.expect("hit"):
                assert elsewhere(in_block, "SELECT 1") == [OLD]
        execute("SELECT pg_advisory_unlock(1)")


@on_postgresql
def test_a_session_that_the_pool_could_not_take_back_is_forgotten(
    cached: Watch, server: Server
) -> None:
    with pooled():
        cached.warm(names)
        execute("SET search_path TO one")
        connection = connections[USING]
        # It comes from no pool that would have it.
        connection.connection._pool.drain()
        connection.connection._pool.close()
        put_back()
        assert connection.connection is None
        assert not sessions.may_be_altered(USING)
        assert cached.hit(names) == [OLD]


@on_postgresql
def test_the_pool_gets_a_session_back_when_it_is_known_to_be_altered(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not later: by then another thread may have it."""
    seen: list[bool] = []
    with pooled():
        execute(f"SET ROLE {NOBODY}")
        pool = connections[USING].pool
        original = pool.putconn

        def put(driver: Any) -> None:
            seen.append(sessions.may_be_altered(USING))
            original(driver)

        monkeypatch.setattr(pool, "putconn", put)
        put_back()
    assert seen == [True]


class _KeptConnections(list[Any]):
    """A pool of another package: its close() keeps the driver's connection."""

    def take(self, original: Callable[..., Any], params: Any) -> Any:
        return self.pop() if self else original(params)


@pytest.mark.parametrize("alias", [USING, "mariadb"])
@pytest.mark.django_db(databases=["default", USING, "mariadb"], transaction=True)
def test_what_a_session_was_told_is_known_in_pools_of_other_packages(
    cached: Watch, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    kept, wrapper = _KeptConnections(), type(connections[alias])
    original = wrapper.get_new_connection
    monkeypatch.setattr(
        wrapper,
        "get_new_connection",
        lambda self, params: kept.take(lambda p: original(self, p), params),
    )
    monkeypatch.setattr(wrapper, "_close", lambda self: kept.append(self.connection))
    first = connections[alias].copy()
    with first.cursor() as cursor:
        cursor.execute("SET timezone = '+00:00'" if alias == USING else "SET sql_mode = ''")
    first.close()
    second = connections[alias].copy()
    snapshots.prepare_session(second)
    assert str(snapshots.why_not_read(second, state_of(second))) == SESSION
    monkeypatch.undo()
    second.close()
    assert not sessions.may_be_altered(alias)


# --- PgBouncer: what one was told, another answers ---------------------------------------------


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "not declared"])
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (f"SET ROLE {NOBODY}", []),
        ("SET search_path TO one", ["one"]),
        ("SELECT set_config('search_path', 'one', false)", ["one"]),
    ],
    ids=["role", "path", "set_config"],
)
@on_postgresql
def test_a_database_behind_a_pooler_is_not_cached_once_a_session_was_altered(
    cached: Watch, server: Server, statement: str, expected: list[str], is_declared: bool
) -> None:
    with bounced(is_declared=is_declared):
        cached.warm(names)
        elsewhere(execute, statement)
        for question in (names, lambda: elsewhere(names)):
            with cached.expect(SESSION):
                assert question() == expected


@on_postgresql
def test_a_session_behind_a_pooler_is_altered_when_nothing_is_cached_any_more(
    cached: Watch, server: Server
) -> None:
    """Not before: its pooler may give it to another connection at once."""
    seen: list[bool] = []

    class Looking:
        """The driver's cursor, which looks when the statement is about to be sent."""

        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor

        def __getattr__(self, name: str) -> Any:
            return getattr(self._cursor, name)

        def execute(self, *args: Any) -> Any:
            seen.append(sessions.is_spoilt(USING))
            return self._cursor.execute(*args)

    with bounced(), connections[USING].cursor() as cursor:
        cursor.cursor = Looking(cursor.cursor)
        cursor.execute("SELECT 1")
        cursor.execute(f"SET ROLE {NOBODY}")
    assert seen == [False, True]


@on_postgresql
def test_what_is_set_for_a_transaction_does_no_harm_behind_a_pooler(
    cached: Watch, server: Server
) -> None:
    with bounced():
        cached.warm(names)
        for statement in (
            f"SET LOCAL ROLE {NOBODY}",
            "SET LOCAL search_path TO one",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET statement_timeout TO '1min'",
        ):
            in_block(statement)
        assert cached.hit(names) == [OLD]
        assert elsewhere(in_block, "SELECT 1") == [OLD]
        assert cached.outcomes[-1] == "hit"


@on_postgresql
def test_a_role_that_django_assumes_is_not_cached_behind_a_pooler(
    cached: Watch, server: Server
) -> None:
    """It sets the role of one session, when it connects, and may get another one."""
    with bounced(OPTIONS={"assume_role": NOBODY}):
        with cached.expect("miss", SESSION):
            assert names() == names() == []
        assert cached.reads[-2].reason == SESSION


@on_postgresql
def test_what_a_receiver_sets_on_connecting_is_not_cached_behind_a_pooler(
    cached: Watch, server: Server
) -> None:
    def choose(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO one")

    with bounced(is_declared=False):
        connection_created.connect(choose)
        try:
            with cached.expect(SESSION, SESSION):
                assert elsewhere(names) == elsewhere(names) == ["one"]
        finally:
            connection_created.disconnect(choose)


@on_postgresql
def test_the_server_is_asked_once_whether_there_is_a_pooler(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = watch_questions(monkeypatch)
    sessions._met.clear()
    with changed(USING):
        assert elsewhere(execute, "SELECT 1") == elsewhere(execute, "SELECT 1") == [(1,)]
        assert questions == ["SELECT pg_backend_pid()"]
        assert not sessions.are_shared(connections[USING])
    with bounced():
        assert sessions.are_shared(connections[USING])
    with bounced(mode="session"):
        assert not sessions.are_shared(connections[USING])
    assert len(questions) == 1


@on_postgresql
def test_a_server_that_cannot_be_asked_whether_there_is_a_pooler_is_asked_again(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: Any, sql: str) -> Any:
        raise OperationalError

    with bounced(is_declared=False):
        put_back()
        sessions._met.clear()
        with monkeypatch.context() as patch:
            patch.setattr(transactions, "ask", fail)
            assert elsewhere(execute, "SELECT 1") == [(1,)]
        assert not sessions.are_shared(connections[USING])
        assert elsewhere(execute, "SELECT 1") == [(1,)]
        assert sessions.are_shared(connections[USING])


@on_postgresql
def test_aliases_of_the_same_pooler_are_not_cached_either(cached: Watch, server: Server) -> None:
    with bounced(), alias_of(USING, "other"):
        execute(f"SET ROLE {NOBODY}")
        assert sessions.is_spoilt("other")
        assert not sessions.is_spoilt("default")


@on_postgresql
def test_a_snapshot_on_a_session_that_another_program_has_altered_is_not_stored(
    cached: Watch, server: Server
) -> None:
    """A read in its transaction would store the past as the present."""
    with bounced() as bouncer:
        assert in_block("SELECT 1") == [OLD]
        cached.clear()
        ormcache.flush(USING)
        with psycopg.connect(
            host=HOST, port=bouncer.port, user="postgres", dbname=database(), autocommit=True
        ) as other:
            other.execute("SET default_transaction_isolation TO 'repeatable read'")
        with transaction.atomic(USING):
            execute("SELECT 1 FROM tests_author")
            # As if it had been committed on another session, and announced.
            server(f"UPDATE tests_author SET name = '{NEW}'")
            elsewhere(lambda: ormcache.invalidate(Author, using=USING))
            with cached.expect("miss"):
                assert names() == [OLD]
            assert cached.reads[-1].reason == SNAPSHOT
        assert elsewhere(names) == [NEW]


def database() -> str:
    return str(connections[USING].settings_dict["NAME"])


@on_postgresql
def test_a_transaction_behind_a_pooler_is_asked_for_its_isolation_when_it_stores(
    cached: Watch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bounced():
        in_block("SELECT 1")
        questions = watch_questions(monkeypatch)
        for _ in range(2):
            assert in_block("SELECT 1") == [OLD]
        assert cached.outcomes[-2:] == ["hit", "hit"]
        assert questions == []
        for _ in range(2):
            ormcache.flush(USING)
            with transaction.atomic(USING):
                assert names() == [OLD]
                Author.objects.using(USING).count()
                Author.objects.using(USING).exists()
        assert questions == ["SHOW transaction_isolation"] * 2


@on_postgresql
def test_in_session_mode_a_session_belongs_to_one_connection(
    cached: Watch, server: Server
) -> None:
    """PgBouncer cleans it (server_reset_query) before the next one gets it."""
    with bounced(mode="session"):
        cached.warm(names)
        execute("SET search_path TO one")
        assert cached.warm(names) == ["one"]
        put_back()
        assert elsewhere(names) == [OLD]
        assert cached.outcomes[-1] == "hit"
        execute(f"SET ROLE {NOBODY}")
        with cached.expect(SESSION):
            assert names() == []
        put_back()
        assert cached.hit(names) == [OLD]


@on_postgresql
def test_writes_past_a_pooler_are_seen_where_the_direct_way_is_declared(
    cached: Watch, server: Server, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"direct": {"PRIMARY": USING}}}
    with bounced(), alias_of(USING, "direct", PORT=port_of(PostgreSQLServer)):
        cached.warm(names)
        Author.objects.using("direct").update(name=NEW)
        assert cached.warm(names) == [NEW]
        direct = Author.objects.using("direct")
        for _ in range(2):
            assert direct.get().name == NEW
        assert cached.outcomes[-2:] == ["miss", "miss"]
        update(OLD)
        assert direct.get().name == OLD


# --- connections that break --------------------------------------------------------------------


@on_each_way
@on_postgresql
def test_a_session_killed_in_a_transaction_publishes_nothing(
    cached: Watch, server: Server, way: Any
) -> None:
    with way():
        cached.warm(names)
        with pytest.raises(DatabaseError), transaction.atomic(USING):
            update()
            server.kill(*server.sessions())
            execute("SELECT 1")
        assert names() == [OLD] == server.names()
        update()
        assert cached.warm(names) == [NEW]


@pytest.mark.parametrize("moment", ["before", "after"])
@on_each_way
@on_postgresql
def test_a_session_killed_at_its_commit_leaves_its_intent_behind(
    cached: Watch, server: Server, way: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BaseDatabaseWrapper._commit

    def commit(connection: Any) -> None:
        if moment == "after":
            original(connection)
        server.kill(*server.sessions())
        if moment == "before":
            original(connection)
        raise OperationalError("the answer is lost")

    with way():
        cached.warm(names)
        with monkeypatch.context() as patch:
            patch.setattr(BaseDatabaseWrapper, "_commit", commit)
            # psycopg calls it an internal error that PgBouncer answers twice.
            with pytest.raises(DatabaseError), transaction.atomic(USING):
                update()
        put_back()
        expected = [NEW] if moment == "after" else [OLD]
        assert server.names() == expected
        with cached.expect(BUSY):
            assert patiently(names) == expected
        # When the lease has run out, the database tells that the transaction is over.
        wait_until(lambda: cached.call(names) == (expected, ["hit"]))


def patiently(question: Callable[[], Any]) -> Any:
    """Once more, if a session turns out to have been killed."""
    try:
        return question()
    except (OperationalError, InterfaceError):
        put_back()
        return question()


@on_postgresql
def test_a_write_that_the_pooler_kept_waiting_in_vain_leaves_its_intent_to_its_lease(
    cached: Watch, server: Server
) -> None:
    with bounced(patience=2):
        cached.warm(names)
        other = connections[USING].copy()
        other.connect()
        with transaction.atomic(USING):
            # There is one session, and now it is taken.
            execute("SELECT 1")
            with switched_to(other):
                with pytest.raises(OperationalError, match="query_wait_timeout"):
                    update()
                other.close()
            with cached.expect(BUSY):
                assert names() == [OLD]


# --- many at once ------------------------------------------------------------------------------


def hammer(seconds: float, watch: Watch, meanwhile: Callable[[], Any]) -> Commuters:
    """Three writers and five readers, who do not get through; `meanwhile` happens often."""
    commuters = Commuters(USING, seconds)
    commuters.is_enough = lambda: watch.outcomes.count("hit") > 50
    threads = [Background(commuters.write, seed) for seed in range(3)]
    threads += [Background(commuters.read, seed) for seed in range(5)]
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.3)
        meanwhile()
    for thread in threads:
        thread.result(2 * PATIENCE)
    return commuters


@on_postgresql
def test_threads_that_leave_search_paths_behind_never_read_from_another_schema(
    cached: Watch, server: Server
) -> None:
    rows = {"public": [OLD], "one": ["one"], "two": ["two"]}
    wrong: list[Any] = []
    end = time.monotonic() + 3

    def look() -> None:
        schema = execute("SELECT current_schema()")[0][0]
        answer = names()
        if answer != rows[schema]:
            wrong.append((schema, answer))

    def wander(seed: int) -> None:
        chance = random.Random(seed)

        def look_in_block() -> None:
            with transaction.atomic(USING):
                look()
                if chance.random() < 0.3:
                    execute("SET search_path TO two")
                    look()
                transaction.set_rollback(chance.random() < 0.5, USING)
            look()

        while time.monotonic() < end:
            chance.choice(
                [
                    look,
                    look,
                    look_in_block,
                    names,
                    put_back,
                    put_back,
                    lambda: execute(f"SET search_path TO {chance.choice(list(rows))}"),
                    lambda: ormcache.invalidate(Author, using=USING),
                ]
            )()

    with pooled(4):
        for thread in [Background(wander, seed) for seed in range(4)]:
            thread.result()
    assert wrong == []
    assert cached.outcomes.count("hit") > 50


@scenario(40)
@on_each_way
@on_postgresql
def test_threads_whose_sessions_change_never_read_less_than_what_was_committed_before(
    cached: Watch, server: Server, way: Any
) -> None:
    with way(4):
        found = hammer(3, cached, server.sessions)
    assert found.stale == []
    assert found.broken == []
    assert cached.outcomes.count("hit") > 50


@scenario(40)
@on_each_way
@on_postgresql
def test_threads_whose_sessions_are_killed_never_read_less_than_what_was_committed_before(
    cached: Watch, server: Server, way: Any
) -> None:
    with way(4):
        found = hammer(4, cached, lambda: server.kill(*server.sessions()[:2]))
    assert found.stale == []
    assert found.broken
    assert cached.outcomes.count("hit") > 20


@on_postgresql
def test_threads_whose_pooler_is_killed_never_read_less_than_what_was_committed_before(
    cached: Watch, server: Server
) -> None:
    with bounced(4) as bouncer:

        def restart() -> None:
            bouncer.kill()
            bouncer.start()

        found = hammer(4, cached, restart)
    assert found.stale == []
    assert found.broken
    assert cached.outcomes.count("hit") > 20


@on_postgresql
def test_threads_that_keep_their_connections_never_read_less_than_what_was_committed_before(
    cached: Watch, server: Server
) -> None:
    with changed(USING, CONN_MAX_AGE=0.2, CONN_HEALTH_CHECKS=True):
        found = hammer(3, cached, lambda: server.kill(*server.sessions()[:1]))
    assert found.stale == []
    assert cached.outcomes.count("hit") > 20


@scenario(40)
@on_each_way
@on_postgresql
def test_tasks_whose_sessions_change_never_read_less_than_what_was_committed_before(
    cached: Watch, server: Server, way: Any
) -> None:
    """As ASGI servers run requests: each has a thread of its own, and gives its session back."""
    tasks = Hammer(USING, seconds=3)
    tasks.is_enough = lambda: cached.outcomes.count("hit") > 50

    async def read(chance: random.Random, seed: int) -> None:
        # Longer requests would keep the others waiting for a session, until they are over.
        for _ in range(10):
            await tasks.read_once_async(chance)

    async def write(chance: random.Random, seed: int) -> None:
        begin = time.monotonic()
        await sync_to_async(tasks.write_once)(chance, seed)
        await asyncio.sleep(rest(chance, begin))

    async def requests(work: Any, seed: int) -> None:
        chance = random.Random(seed)
        while not tasks.is_over():
            async with ThreadSensitiveContext():
                await work(chance, seed)
                await sync_to_async(put_back)()

    async def everybody() -> None:
        await asyncio.gather(
            *(requests(write, seed) for seed in range(2)),
            *(requests(read, seed) for seed in range(4)),
        )

    with way(3):
        asyncio.run(everybody())
    assert tasks.stale == []
    assert cached.outcomes.count("hit") > 50


# --- connections that are kept (CONN_MAX_AGE) --------------------------------------------------


@on_postgresql
def test_a_kept_connection_that_was_lost_is_not_believed_to_have_its_search_path(
    cached: Watch, server: Server
) -> None:
    with changed(USING, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True):
        cached.warm(names)
        execute("SET search_path TO one")
        assert cached.warm(names) == ["one"]
        close_old_connections()
        assert cached.hit(names) == ["one"]
        close_old_connections()
        server.kill(*server.sessions())
        assert cached.hit(names) == [OLD]
