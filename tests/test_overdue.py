"""Commits that take longer than their lease: PostgreSQL tells when they are over."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from ormcache import brackets, leases, overdue
from ormcache.questions import ask, tell
from ormcache.reasons import Reason
from ormcache.stores.channels import pack
from tests import backdoor
from tests.interleaving import Background, pause_before, route_of, session, store_of
from tests.marks import on_databases, on_pairs, scenario
from tests.models import Author
from tests.watching import Watch

OLD, NEW = "old", "new"

on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)


@pytest.fixture
def author(
    cached: Watch, using: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Author]:
    """Nobody renews a lease here, as if the writer's process were stopped."""
    monkeypatch.setattr(leases.keeper, "hold", lambda *args: None)
    # Attempts of former tests, and the pauses between those of one.
    monkeypatch.setattr(overdue, "_tried", {})
    monkeypatch.setattr(overdue, "_PAUSE", 0)
    store: Any = store_of(using)
    store.expects_ids(route_of(using).namespace)
    yield Author.objects.using(using).create(name=OLD)
    store._with_ids.clear()


def name(using: str) -> Callable[[], Any]:
    return lambda: Author.objects.using(using).get().name


def update(using: str) -> None:
    with transaction.atomic(using):
        Author.objects.using(using).update(name=NEW)


def until(cached: Watch, question: Callable[[], Any], outcome: str, answer: str) -> None:
    """Ask until the outcome comes; all answers are the one that is given.

    Other tests use the same server: PostgreSQL waits for their transactions, too.
    """
    deadline = time.monotonic() + 60
    while (got := cached.call(question))[1] != [str(outcome)]:
        assert got[0] == answer, got
        assert time.monotonic() < deadline, got
        time.sleep(0.01)
    assert got[0] == answer


@contextlib.contextmanager
def never_finished(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever commits inside dies before it can say so."""
    with monkeypatch.context() as patch:
        patch.setattr(brackets.Bracket, "end", lambda *args, **kwargs: None)
        yield


@scenario(29)
@on_postgresql
def test_a_writer_that_is_stopped_for_longer_than_its_lease_keeps_its_intent(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the announcement and the COMMIT, which comes all the same."""
    cached.warm(name(using))
    pause = pause_before(monkeypatch, type(connections[using]), "_commit")
    writer = Background(update, using)
    pause.wait()
    until(cached, name(using), Reason.OVERDUE, OLD)
    for _ in range(5):
        with cached.expect(Reason.OVERDUE):
            assert name(using)() == OLD
    with never_finished(monkeypatch):
        pause.end()
        writer.result()
    # The answer is that of the database until it is stored again.
    until(cached, name(using), "miss", NEW)


@on_postgresql
def test_a_writer_that_wakes_up_ends_its_intent_itself(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the intent has got a horizon meanwhile."""
    cached.warm(name(using))
    pause = pause_before(monkeypatch, type(connections[using]), "_commit")
    writer = Background(update, using)
    pause.wait()
    until(cached, name(using), Reason.OVERDUE, OLD)
    pause.end()
    writer.result()
    assert cached.warm(name(using)) == NEW


@on_postgresql
def test_a_writer_that_died_costs_its_lease_and_no_read_more(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read that finds it out, by asking the database, stores its answer."""
    asked: list[bool] = []
    settle = overdue.settle

    def counting(*args: Any) -> bool:
        asked.append(settle(*args))
        return asked[-1]

    monkeypatch.setattr(overdue, "settle", counting)
    outcomes: list[str] = []

    def question() -> str:
        outcomes.append(cached.call(name(using))[1][0])
        return outcomes[-1]

    with never_finished(monkeypatch):
        update(using)
    deadline = time.monotonic() + 60
    while question() != "miss":
        assert time.monotonic() < deadline, outcomes
        time.sleep(0.01)
    # Other tests use the same server, and their transactions may have to be waited for.
    assert len(asked) == outcomes.count(Reason.OVERDUE) + 1
    assert question() == "hit"


WRITE = "UPDATE tests_author SET name = 'new'"


@pytest.mark.parametrize(
    ("gid", "texts"),
    [
        ("plain", [WRITE, "PREPARE TRANSACTION 'plain'"]),
        ("tagged", [WRITE, "/* by a tool */ PREPARE TRANSACTION 'tagged'"]),
        ("together", [f"{WRITE}; PREPARE TRANSACTION 'together'"]),
    ],
)
@on_postgresql
def test_a_prepared_transaction_keeps_its_intent_until_somebody_ends_it(
    cached: Watch, using: str, author: Author, gid: str, texts: list[str]
) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        for text in texts:
            cursor.execute(text)
    try:
        until(cached, name(using), Reason.OVERDUE, OLD)
        for _ in range(5):
            with cached.expect(Reason.OVERDUE):
                assert name(using)() == OLD
    finally:
        # Another program, which tells nobody.
        backdoor.execute(using, f"COMMIT PREPARED '{gid}'")
    until(cached, name(using), "miss", NEW)


def redis_of(using: str) -> Callable[..., Any]:
    """Sends a command to the Redis of the cache."""
    store: Any = store_of(using)
    return lambda *parts: store._channels.run(lambda channel: channel.call(pack(*parts)))


def register_of(using: str, table: str) -> bytes:
    pattern = f"ormcache:*{{{route_of(using).namespace}}}*:r:{table}"
    (key,) = redis_of(using)(b"KEYS", pattern.encode())
    return bytes(key)


def lose_register(using: str) -> None:
    redis_of(using)(b"DEL", register_of(using, "tests_author"))


def lose_everything(using: str) -> None:
    redis_of(using)(b"FLUSHDB")


@pytest.fixture(params=[lose_register, lose_everything])
def lose(request: Any) -> Callable[[str], None]:
    """What the cache forgets in the middle of a commit: its announcement, too."""
    return request.param  # type: ignore[no-any-return]


@on_postgresql
def test_a_prepared_transaction_is_waited_for_although_its_intent_was_lost(
    cached: Watch, using: str, author: Author, lose: Callable[[str], None]
) -> None:
    cached.warm(name(using))
    with connections[using].cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE tests_author SET name = 'new'")
        cursor.execute(f"PREPARE TRANSACTION '{lose.__name__}'")
    try:
        lose(using)
        until(cached, name(using), Reason.OVERDUE, OLD)
        for _ in range(5):
            with cached.expect(Reason.OVERDUE):
                assert name(using)() == OLD
    finally:
        backdoor.execute(using, f"COMMIT PREPARED '{lose.__name__}'")
    until(cached, name(using), "miss", NEW)


@on_postgresql
def test_a_writer_that_is_stopped_is_waited_for_although_its_intent_was_lost(
    cached: Watch,
    using: str,
    author: Author,
    lose: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached.warm(name(using))
    pause = pause_before(monkeypatch, type(connections[using]), "_commit")
    writer = Background(update, using)
    pause.wait()
    lose(using)
    until(cached, name(using), Reason.OVERDUE, OLD)
    for _ in range(5):
        with cached.expect(Reason.OVERDUE):
            assert name(using)() == OLD
    with never_finished(monkeypatch):
        pause.end()
        writer.result()
    until(cached, name(using), "miss", NEW)


@on_postgresql
def test_a_horizon_of_a_database_that_was_restored_since_is_not_waited_for(
    cached: Watch, using: str, author: Author
) -> None:
    """It gives out lower ids than it did before."""
    cached.warm(name(using))
    redis_of(using)(b"HSET", register_of(using, "tests_author"), b"d", b"@1.0!%d=1" % 10**15)
    until(cached, name(using), "miss", OLD)


@on_postgresql
def test_what_a_reader_says_too_late_ends_no_other_commit(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows that one is over, and is stopped; meanwhile another becomes overdue."""
    with never_finished(monkeypatch):
        update(using)
    until(cached, name(using), "miss", NEW)
    with never_finished(monkeypatch):
        update(using)
    pause = pause_before(monkeypatch, type(store_of(using)), "settle")
    late = Background(lambda: until(cached, name(using), Reason.OVERDUE, NEW))
    pause.wait()
    # This one settles the first, and everything is as usual.
    until(cached, name(using), "miss", NEW)
    commit = pause_before(monkeypatch, type(connections[using]), "_commit")
    monkeypatch.setattr(overdue, "_settle", lambda *args: False)
    writer = Background(update, using)
    commit.wait()
    until(cached, name(using), Reason.OVERDUE, NEW)
    pause.end()
    late.result()
    for _ in range(3):
        with cached.expect(Reason.OVERDUE):
            name(using)()
    commit.end()
    writer.result()


@on_postgresql
def test_where_all_reads_are_in_transactions_the_database_is_asked_after_them(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked inside, it would give the reader's transaction an id."""

    def in_request() -> Any:
        with transaction.atomic(using):
            answer = name(using)()
            assert ask(connections[using], "SELECT pg_current_xact_id_if_assigned()") == [(None,)]
            return answer

    with never_finished(monkeypatch):
        update(using)
    until(cached, in_request, Reason.OVERDUE, NEW)
    until(cached, in_request, "miss", NEW)


@on_postgresql
def test_another_transaction_that_was_writing_then_is_waited_for(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might be the one; one that begins later is not."""
    with session(using) as other, session(using) as later:
        for writing in (other, later):
            writing.ensure_connection()
        tell(other, "BEGIN")
        ask(other, "SELECT pg_current_xact_id()")
        with session(using):
            with never_finished(monkeypatch):
                update(using)
            until(cached, name(using), Reason.OVERDUE, NEW)
            with cached.expect(Reason.OVERDUE):
                name(using)()
            tell(later, "BEGIN")
            ask(later, "SELECT pg_current_xact_id()")
            tell(other, "ROLLBACK")
            until(cached, name(using), "miss", NEW)
            tell(later, "ROLLBACK")


@on_databases("postgresql", transaction=True)
def test_the_end_of_a_snapshot_would_be_no_horizon(using: str) -> None:
    """What `ormcache.overdue` says of PostgreSQL."""
    end = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    deadline = time.monotonic() + 60
    is_taken_for_over = False
    # Not while tests of others have older transactions on the same server.
    while not is_taken_for_over:
        assert time.monotonic() < deadline
        with session(using) as writer:
            writer.ensure_connection()
            tell(writer, "BEGIN")
            ((written,),) = ask(writer, "SELECT pg_current_xact_id()::text")
            with session(using) as reader:
                reader.ensure_connection()
                ((last,),) = ask(reader, end)
                ((oldest,),) = ask(reader, overdue._OLDEST)
                is_taken_for_over = int(oldest) >= int(last)
                ((horizon,),) = ask(reader, overdue._HORIZON)
                assert int(horizon) > int(written)
                ((oldest,),) = ask(reader, overdue._OLDEST)
                assert int(oldest) < int(horizon)
            tell(writer, "ROLLBACK")


@on_postgresql
def test_a_statement_in_autocommit_has_no_id_and_is_left_to_its_lease(
    cached: Watch, using: str, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    with never_finished(monkeypatch):
        Author.objects.using(using).update(name=NEW)
    with cached.expect(Reason.BUSY):
        name(using)()
    until(cached, name(using), "miss", NEW)
