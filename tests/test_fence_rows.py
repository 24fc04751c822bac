"""Policy "fence": with the cache out of reach, a row in the fence announces a write."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction

import ormcache
from ormcache import connection_state, debts, fence, fence_rows
from ormcache.exceptions import CacheError, CacheUnreachable, NoFence
from ormcache.questions import ask, tell
from ormcache.reasons import Reason
from tests import backdoor
from tests.cut_off import STOPS, WRITES, CutOff
from tests.interleaving import route_of, session, store_of
from tests.marks import on_databases, on_pairs, on_redis_and_valkey, scenario
from tests.models import Author, Tag
from tests.servers import HOST, RedisServer
from tests.watching import Watch, seconds_while, wait_for_quarantine

OLD, NEW = "old", "new"
INTERVAL = 1.0
"""Seconds: ``FENCE`` where nothing is set."""

everywhere = on_pairs(
    *((using, "redis") for using in ("default", "postgresql", "mariadb")),
    ("postgresql", "memcached"),
    transaction=True,
)
on_each_database = on_pairs(
    *((using, "redis") for using in ("default", "postgresql", "mariadb")), transaction=True
)
on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)
on_mariadb = on_pairs(("mariadb", "redis"), transaction=True)
on_sqlite = on_pairs(("default", "redis"), transaction=True)


class Clock:
    """The monotonic clock of this process, as the reading side of the fence sees it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fence, "time", clock)
    return clock


@pytest.fixture
def empty_fence(using: str) -> Iterator[None]:
    fence._looks.clear()
    backdoor.execute(using, "DELETE FROM ormcache_fence")
    yield
    fence._looks.clear()
    backdoor.execute(using, "DELETE FROM ormcache_fence")


@pytest.fixture
def author(cached: Watch, using: str, clock: Clock, empty_fence: None) -> Author:
    return Author.objects.using(using).create(name=OLD)


def names(using: str) -> Callable[[], Any]:
    return lambda: list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


def tags(using: str) -> Callable[[], Any]:
    return lambda: Tag.objects.using(using).count()


def rows(using: str) -> list[str]:
    """What is announced, seen from another session."""
    with session(using) as other:
        other.ensure_connection()
        return sorted(name for (name,) in ask(other, "SELECT table_name FROM ormcache_fence"))


def in_database(using: str) -> list[str]:
    with session(using), ormcache.disabled():
        return list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


@contextlib.contextmanager
def cut_off(using: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Inside, the cache cannot be told; afterwards this process knows of nothing that it wrote.

    The function that is given mends the cache before the end.
    """
    store = store_of(using)

    def fail(*args: Any) -> None:
        raise CacheError("out of reach")

    with monkeypatch.context() as patch:
        for method in ("arm", "start_arm", "bump"):
            patch.setattr(store, method, fail)
        # Its pauses would only make the test wait.
        patch.setattr(route_of(using).breaker, "failed", lambda: None)
        try:
            yield patch.undo
        finally:
            debts.ledger._written.clear()


def is_idle(using: str) -> bool:
    connection = connections[using]
    return connection.get_autocommit() and connection_state.is_open(connection) is not True


# --- ways to write ---------------------------------------------------------------------------


def update(using: str) -> None:
    Author.objects.using(using).update(name=NEW)


def save(using: str) -> None:
    author = Author.objects.using(using).get()
    author.name = NEW
    author.save()


def recreate(using: str) -> None:
    Author.objects.using(using).all().delete()
    author = Author.objects.using(using).create(name=NEW)
    assert author.pk is not None


def create_many(using: str) -> None:
    Author.objects.using(using).all().delete()
    Author.objects.using(using).bulk_create([Author(name=NEW)])


def in_transaction(using: str) -> None:
    with transaction.atomic(using):
        update(using)


def raw(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("UPDATE tests_author SET name = %s", [NEW])
        assert cursor.rowcount == 1


def many(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.executemany("UPDATE tests_author SET name = %s", [["other"], [NEW]])


def by_hand(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE tests_author SET name = %s", [NEW])
        cursor.execute("COMMIT")


def without_autocommit(using: str) -> None:
    transaction.set_autocommit(False, using)
    update(using)
    transaction.commit(using)
    transaction.set_autocommit(True, using)


ALL = [
    update,
    save,
    recreate,
    create_many,
    in_transaction,
    raw,
    many,
    by_hand,
    without_autocommit,
]


@everywhere
@pytest.mark.parametrize("write", ALL)
def test_a_write_commits_and_other_processes_hear_of_it_in_time(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str], None],
) -> None:
    cached.warm(names(using))
    with cut_off(using, monkeypatch):
        write(using)
        assert "tests_author" in rows(using)
        assert is_idle(using)
    assert in_database(using) == [NEW]
    clock.now += INTERVAL - 0.1
    assert cached.hit(names(using)) == [OLD]
    clock.now += 0.2
    assert cached.warm(names(using)) == [NEW]
    assert rows(using) == []


@on_each_database
@pytest.mark.parametrize("write", [update, in_transaction])
def test_the_process_that_wrote_does_not_believe_the_cache_until_it_has_told_it(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str], None],
) -> None:
    cached.warm(names(using))
    cached.warm(tags(using))
    with cut_off(using, monkeypatch) as mend:
        write(using)
        with cached.expect(Reason.CACHE_UNREACHABLE):
            assert names(using)() == [NEW]
        assert cached.hit(tags(using)) == 0
        counts = ormcache.statistics()[using]["tests_author"]
        assert counts["fenced"] >= 1
        owed = debts.owed(route_of(using))
        assert owed == {"tests_author"}
        # Told by itself, before anybody has looked.
        mend()
        assert cached.warm(names(using)) == [NEW]
        assert debts.owed(route_of(using)) == frozenset()


@on_each_database
def test_what_is_rolled_back_is_not_announced(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cut_off(using, monkeypatch):
        with transaction.atomic(using):
            update(using)
            transaction.set_rollback(True, using)
        with pytest.raises(IntegrityError):
            Author.objects.using(using).create(pk=author.pk, name=NEW)
        assert is_idle(using)
        assert rows(using) == []
        update(using)
    assert rows(using) == ["tests_author"]
    assert in_database(using) == [NEW]


@on_each_database
@pytest.mark.parametrize("write", [update, in_transaction, by_hand])
def test_without_the_table_it_is_as_raise(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str], None],
) -> None:
    call_command("migrate", "ormcache", "zero", database=using, verbosity=0)
    try:
        clock.now += 2 * INTERVAL
        cached.warm(names(using))
        with cut_off(using, monkeypatch):
            with pytest.raises(CacheUnreachable, match="migrate ormcache"):
                write(using)
            if write is by_hand:
                connections[using].close()
            assert is_idle(using)
        assert in_database(using) == [OLD]
        assert cached.hit(names(using)) == [OLD]
    finally:
        call_command("migrate", "ormcache", database=using, verbosity=0)
    wait_for_quarantine(using)
    cached.warm(names(using))
    clock.now += INTERVAL + 0.1
    # It is noticed with the next look that it is there now.
    with cut_off(using, monkeypatch):
        update(using)
    clock.now += INTERVAL + 0.1
    assert cached.warm(names(using)) == [NEW]


@on_each_database
@pytest.mark.parametrize("write", [update, in_transaction])
def test_if_the_row_cannot_be_written_nothing_is(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str], None],
) -> None:
    def misspell(connection: Any, sql: str, parameters: Any = None) -> None:
        tell(connection, sql.replace("(table_name)", "(no_such_column)"), parameters)

    with cut_off(using, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(fence_rows, "tell", misspell)
            with pytest.raises(CacheUnreachable, match="no_such_column"):
                write(using)
        assert is_idle(using)
        assert in_database(using) == [OLD]
        assert rows(using) == []
        write(using)
    assert in_database(using) == [NEW]


@on_each_database
def test_neither_the_rows_nor_the_looks_are_among_the_queries_of_the_user(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: Any,
) -> None:
    cached.warm(names(using))
    with (
        cut_off(using, monkeypatch),
        django_assert_num_queries(1, connection=connections[using]),
    ):
        update(using)
    clock.now += 2 * INTERVAL
    with django_assert_num_queries(1, connection=connections[using]):
        cached.warm(names(using))


@on_each_database
def test_a_wrapper_around_the_statement_may_write_another_table(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log of all statements, say. It is committed with the statement, and announced with it."""
    inside: list[int] = []

    def log(execute: Any, sql: str, *args: Any) -> Any:
        if not inside:
            inside.append(1)
            Tag.objects.using(using).create(name="logged")
        return execute(sql, *args)

    cached.warm(names(using))
    cached.warm(tags(using))
    with cut_off(using, monkeypatch):
        with connections[using].execute_wrapper(log):
            update(using)
        assert rows(using) == ["tests_author", "tests_tag"]
        assert debts.owed(route_of(using)) == {"tests_author", "tests_tag"}
    clock.now += 2 * INTERVAL
    assert cached.warm(names(using)) == [NEW]
    assert cached.warm(tags(using)) == 1


@on_postgresql
@pytest.mark.parametrize("policy", ["fence", "open"])
@pytest.mark.parametrize("write", [update, in_transaction])
def test_the_signal_tells_of_writes_that_the_cache_could_not_be_told_of(
    cached: Watch,
    using: str,
    author: Author,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    policy: str,
    write: Callable[[str], None],
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": policy}
    cached.clear()
    with cut_off(using, monkeypatch):
        write(using)
    assert cached.invalidated == [("tests_author",)]


_LAST_ID = {
    "default": "SELECT last_insert_rowid()",
    "postgresql": "SELECT lastval()",
    "mariadb": "SELECT LAST_INSERT_ID()",
}


@on_each_database
def test_the_last_id_of_the_session_is_that_of_the_users_own_row(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its ids are to be no others' by chance.
    backdoor.execute(using, "INSERT INTO ormcache_fence (id, table_name) VALUES (1000, '-')")
    with cut_off(using, monkeypatch), connections[using].cursor() as cursor:
        for name in ("a", "b"):
            cursor.execute("INSERT INTO tests_tag (name) VALUES (%s)", [name])
            cursor.execute(_LAST_ID[using])
            (last,) = cursor.fetchone()
            cursor.execute("SELECT MAX(id) FROM tests_tag")
            assert (last,) == cursor.fetchone()
    assert rows(using) == ["-", "tests_tag", "tests_tag"]


@on_databases("default", "mariadb", transaction=True)
@pytest.mark.parametrize("is_atomic", [False, True], ids=["autocommit", "atomic"])
def test_the_cursors_own_last_id_and_count_are_those_of_the_users_own_rows(
    cached: Watch,
    using: str,
    author: Author,
    monkeypatch: pytest.MonkeyPatch,
    is_atomic: bool,
) -> None:
    """Also after a block, at whose end the row of the fence is written."""
    backdoor.execute(using, "INSERT INTO ormcache_fence (id, table_name) VALUES (1000, '-')")
    with cut_off(using, monkeypatch), connections[using].cursor() as cursor:
        with transaction.atomic(using) if is_atomic else contextlib.nullcontext():
            cursor.execute("INSERT INTO tests_tag (name) VALUES ('a')")
        first = cursor.lastrowid
        with transaction.atomic(using) if is_atomic else contextlib.nullcontext():
            cursor.execute("INSERT INTO tests_tag (name) VALUES ('b'), ('c')")
        assert cursor.rowcount == 2
        last = cursor.lastrowid
    ids = [tag.pk for tag in Tag.objects.using(using).order_by("pk")]
    # Of several rows, SQLite tells the last, and MariaDB the first.
    assert (first, last) == (ids[0], ids[-1 if using == "default" else 1])
    assert rows(using) == ["-", "tests_tag", "tests_tag"]


def _truncate(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("TRUNCATE TABLE tests_author CASCADE")


def _two_in_one_text(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("UPDATE tests_author SET name = 'new'; UPDATE tests_tag SET name = 'new'")


def _copy(using: str) -> None:
    with (
        connections[using].cursor() as cursor,
        cursor.copy("COPY tests_author (name) FROM STDIN") as copy,
    ):
        copy.write_row([NEW])


def _commit_and_more(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE tests_author SET name = 'new'")
        cursor.execute("COMMIT; UPDATE tests_tag SET name = 'new'")


def _block(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("DO $$ BEGIN UPDATE tests_author SET name = 'new'; END $$")


def _pipeline(using: str) -> None:
    connections[using].ensure_connection()
    with connections[using].connection.pipeline():
        update(using)


def _by_hand_told(using: str) -> None:
    ormcache.invalidate(Author, using=using)


@on_postgresql
@pytest.mark.parametrize(
    "write",
    [_truncate, _two_in_one_text, _copy, _commit_and_more, _block, _pipeline, _by_hand_told],
)
def test_what_cannot_be_committed_together_with_a_row_is_refused(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str], None],
) -> None:
    with cut_off(using, monkeypatch):
        with pytest.raises(CacheUnreachable, match=r"did not answer \(.*\)") as raised:
            write(using)
        # By hand no write is refused.
        refused = "and the write could not be announced in ormcache_fence either, because "
        assert (refused in str(raised.value)) != (write is _by_hand_told)
        connections[using].close()
        assert in_database(using) == [OLD]
        assert rows(using) == []


@on_sqlite
def test_a_script_is_refused(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sqlite3 commits what is open before it runs one."""
    with (
        cut_off(using, monkeypatch),
        connections[using].cursor() as cursor,
        pytest.raises(CacheUnreachable),
    ):
        cursor.executescript("UPDATE tests_author SET name = 'new'")
    assert in_database(using) == [OLD]


@on_mariadb
@pytest.mark.parametrize("table", ["plain", "ormcache_fence"])
def test_what_takes_no_part_in_transactions_is_refused(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("CREATE TABLE plain (id int)")
        cursor.execute(f"ALTER TABLE {table} ENGINE=MyISAM")
        try:
            with cut_off(using, monkeypatch), pytest.raises(CacheUnreachable, match="no part in"):
                cursor.execute("INSERT INTO plain VALUES (1)")
            assert ask(connections[using], "SELECT * FROM plain") == []
            assert rows(using) == []
        finally:
            cursor.execute("ALTER TABLE ormcache_fence ENGINE=InnoDB")
            cursor.execute("DROP TABLE plain")


@on_postgresql
def test_a_prepared_transaction_takes_its_rows_with_it(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached.warm(names(using))
    with cut_off(using, monkeypatch), connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE tests_author SET name = 'new'")
        cursor.execute("PREPARE TRANSACTION 'fenced'")
    assert rows(using) == []
    clock.now += 2 * INTERVAL
    assert cached.hit(names(using)) == [OLD]
    # Another program ends it, which knows nothing of the cache.
    backdoor.execute(using, "COMMIT PREPARED 'fenced'")
    clock.now += 2 * INTERVAL
    assert cached.warm(names(using)) == [NEW]


@on_postgresql
def test_where_not_all_find_the_table_writes_are_refused(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backdoor.execute(
        using, "CREATE SCHEMA one", "CREATE TABLE one.ormcache_fence (LIKE ormcache_fence)"
    )
    try:
        with cut_off(using, monkeypatch), pytest.raises(CacheUnreachable, match="exactly one"):
            update(using)
    finally:
        backdoor.execute(using, "DROP SCHEMA one CASCADE")


@on_postgresql
def test_who_does_not_find_a_table_that_others_may_write_to_is_not_answered_from_the_cache(
    cached: Watch, using: str, author: Author, clock: Clock
) -> None:
    connections[using].close()
    backdoor.execute(
        using, "CREATE SCHEMA one", "CREATE TABLE one.tests_author (LIKE tests_author)"
    )
    try:
        with connections[using].cursor() as cursor:
            cursor.execute("SET search_path = one")
        with cached.expect(Reason.NO_FENCE, Reason.NO_FENCE):
            assert names(using)() == names(using)() == []
    finally:
        backdoor.execute(using, "DROP SCHEMA one CASCADE")
        connections[using].close()


@on_postgresql
def test_with_several_namespaces_in_one_database_writes_are_refused(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who looks in one of them removes the row that another would need."""
    settings.ORMCACHE = {**settings.ORMCACHE, "NAMESPACE": lambda connection: "one"}
    for write in (update, in_transaction, by_hand):
        with cut_off(using, monkeypatch), pytest.raises(CacheUnreachable):
            write(using)
        connections[using].close()
    assert in_database(using) == [OLD]


@on_postgresql
def test_a_transaction_that_the_server_has_aborted_needs_no_row(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cut_off(using, monkeypatch), connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE tests_author SET name = 'new'")
        with pytest.raises(Exception, match="no_such"):
            cursor.execute("SELECT * FROM no_such_table")
        cursor.execute("COMMIT")
    assert rows(using) == []
    assert in_database(using) == [OLD]


@on_databases("default", "postgresql", "mariadb", transaction=True)
def test_many_tables_and_names_that_need_quotes(using: str, empty_fence: None) -> None:
    connection = connections[using]
    connection.ensure_connection()
    for tables, expected in (
        (["a'b", 'c"d', "%s", "e\\f"], ["%s", "a'b", 'c"d', "e\\f"]),
        (["a", "b" * 300], ["*"]),
    ):
        backdoor.execute(using, "DELETE FROM ormcache_fence")
        fence_rows.insert(connection, tables)
        assert rows(using) == expected


@on_databases("postgresql", transaction=True)
def test_a_row_that_cannot_be_written_is_no_error_of_the_database(using: str) -> None:
    """It would be taken for one of the user's statement."""
    with session(using) as connection:
        connection.ensure_connection()
        connection.connection.close()
        with pytest.raises(NoFence):
            fence_rows.check(connection, "space")


# --- the looks that the policy asks for --------------------------------------------------------


@on_pairs(("default", "locmem"), transaction=True)
def test_a_cache_that_cannot_be_out_of_reach_needs_no_looks(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(fence, "_look", fail)
    cached.warm(names(using))


@on_pairs(("postgresql", "redis"), transaction=True)
@pytest.mark.parametrize(
    "change", [{"ON_CACHE_FAILURE": "raise"}, {"ON_CACHE_FAILURE": "open"}, {"FENCE": None}]
)
def test_with_another_policy_nobody_looks(
    cached: Watch, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, **change}

    def fail(*args: Any) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(fence, "_look", fail)
    cached.warm(names(using))


@on_each_database
def test_a_process_looks_once_in_a_second_and_with_one_query(
    cached: Watch, using: str, author: Author, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.warm(names(using))
    asked: list[str] = []

    def recording(connection: Any, sql: str) -> Any:
        asked.append(sql)
        return ask(connection, sql)

    monkeypatch.setattr(fence, "ask", recording)
    monkeypatch.setattr(fence_rows, "ask", recording)
    for _ in range(10):
        cached.hit(names(using))
    assert asked == []
    clock.now += INTERVAL
    for _ in range(10):
        cached.hit(names(using))
    assert len(asked) == 1


@on_postgresql
def test_while_the_cache_is_left_alone_nobody_looks(
    cached: Watch, using: str, author: Author, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.warm(names(using))

    def fail(*args: Any) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(fence, "_look", fail)
    clock.now += 2 * INTERVAL
    breaker = route_of(using).breaker
    breaker.failed()
    try:
        with cached.expect(Reason.CACHE_UNREACHABLE):
            names(using)()
    finally:
        breaker.succeeded()


# --- real processes, and a cache that is really out of reach ------------------------------------


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@scenario(30)
@everywhere
@pytest.mark.parametrize("how", WRITES)
def test_a_process_that_cannot_reach_the_cache_is_heard_of_in_time(
    cached: Watch, using: str, cache: str, empty_fence: None, how: str
) -> None:
    Author.objects.using(using).create(name=OLD)
    with CutOff(using, cache) as writer:
        cached.warm(names(using))
        assert writer.write(how, NEW) == "done"
        assert seconds_while(lambda: names(using)() == [OLD]) < INTERVAL + 0.5
        assert cached.hit(names(using)) == [NEW]
        assert rows(using) == []


@scenario(30)
@on_each_database
@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("stop", STOPS)
def test_a_process_that_is_killed_has_announced_what_it_has_committed(
    cached: Watch, using: str, cache: str, empty_fence: None, how: str, stop: str
) -> None:
    Author.objects.using(using).create(name=OLD)
    with CutOff(using, cache) as writer:
        cached.warm(names(using))
        assert writer.write(how, NEW, stop) == "stopped"
        is_committed = stop == "after the commit"
        assert rows(using) == ["tests_author"] * is_committed
        writer.kill()
    if is_committed:
        assert seconds_while(lambda: names(using)() == [OLD]) < INTERVAL + 0.5
        assert cached.hit(names(using)) == [NEW]
    else:
        # For longer than a look takes to come.
        end = time.monotonic() + INTERVAL + 0.2
        while time.monotonic() < end:
            assert names(using)() == [OLD]
        assert rows(using) == []
        assert cached.hit(names(using)) == [OLD]


@scenario(30)
@on_each_database
@on_redis_and_valkey
def test_a_redis_that_dies_and_comes_back_with_all_it_had(
    cached: Watch,
    using: str,
    empty_fence: None,
    settings: Any,
    server_kind: type[RedisServer],
) -> None:
    """Nobody was told meanwhile; the rows wait for those who come back to the cache."""
    with server_kind(persistence="aof") as server:
        settings.CACHES = {
            **settings.CACHES,
            "own": {
                "BACKEND": server.backend,
                "LOCATION": f"{server.scheme}://{HOST}:{server.port}/0",
            },
        }
        settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "own", "SOCKET_TIMEOUT": 0.3}
        Author.objects.using(using).create(name=OLD)
        wait_for_quarantine(using)
        wait_until(lambda: cached.call(names(using))[1] == ["hit"])
        server.kill()
        update(using)
        in_transaction(using)
        with cached.expect(Reason.CACHE_UNREACHABLE):
            assert names(using)() == [NEW]
        assert rows(using) == ["tests_author"] * 2
        server.start()

        def is_hit() -> bool:
            answer, outcome = cached.call(names(using))
            assert answer == [NEW]
            return outcome == ["hit"]

        wait_until(is_hit)
        wait_until(lambda: bool(names(using)()) and rows(using) == [])


@on_postgresql
def test_the_row_is_found_by_who_reads_in_transactions_only(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with ATOMIC_REQUESTS. It is removed after the second transaction that has seen it."""

    def in_request() -> Any:
        with transaction.atomic(using):
            return names(using)()

    cached.warm(in_request)
    with cut_off(using, monkeypatch):
        update(using)
    clock.now += 2 * INTERVAL
    assert in_request() == [NEW]
    assert rows(using) == ["tests_author"]
    clock.now += 2 * INTERVAL
    with transaction.atomic(using):
        assert names(using)() == [NEW]
        assert rows(using) == ["tests_author"]
        transaction.set_rollback(True, using)
    assert rows(using) == []
    assert cached.hit(in_request) == [NEW]


@on_postgresql
def test_a_flush_removes_the_rows_that_it_finds(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_off(using, monkeypatch):
        update(using)
        with pytest.raises(CacheUnreachable):
            ormcache.flush(using=using)
        assert rows(using) == ["tests_author"]
    with transaction.atomic(using):
        ormcache.flush(using=using)
    assert rows(using) == ["tests_author"]
    ormcache.flush(using=using)
    assert rows(using) == []


@on_postgresql
def test_a_test_case_of_the_user_notices_nothing(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: Any,
) -> None:
    """It is one transaction that is never committed."""
    cached.warm(names(using))
    with transaction.atomic(using):
        clock.now += 2 * INTERVAL
        with django_assert_num_queries(0, connection=connections[using]):
            assert names(using)() == [OLD]
        with cut_off(using, monkeypatch):
            with transaction.atomic(using):
                update(using)
            assert names(using)() == [NEW]
        assert ask(connections[using], "SELECT count(*) FROM ormcache_fence") == [(0,)]
        transaction.set_rollback(True, using)
    assert cached.hit(names(using)) == [OLD]


@on_pairs(("default", "redis"), ("postgresql", "redis"), transaction=True)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_in_a_transaction_of_the_driver_the_row_ends_as_that_does(
    cached: Watch,
    using: str,
    author: Author,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """It must not be committed with the row, as a statement in autocommit is."""
    with cut_off(using, monkeypatch):
        driver = connections[using].connection
        driver.execute("BEGIN")
        update(using)
        assert connection_state.is_open(connections[using])
        getattr(driver, end)()
        is_kept = end == "commit"
        assert ("tests_author" in rows(using)) is is_kept
        assert names(using)() == [NEW if is_kept else OLD]
