"""What is read from a replica: stored when it has caught up, and never as if it were current."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

import ormcache
from ormcache import counters, replicas
from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.exceptions import SettingsError
from ormcache.questions import ask
from ormcache.reasons import Reason
from ormcache.routers import positions
from ormcache.routers.groups import primaries, primary_of, replicas_of
from ormcache.routers.positions import Position
from tests.aliases import alias_of, changed
from tests.interleaving import SECONDS, record_calls, route_of, store_of
from tests.marks import on_databases, on_pairs, on_replicated, scenario
from tests.models import Author, Tag
from tests.multidb.conftest import PRIMARY, REPLICA, Pair
from tests.servers import HOST
from tests.watching import Watch, wait_for_quarantine

BEHIND = str(Reason.REPLICA_BEHIND)
GROUP = {"DATABASES": {REPLICA: {"PRIMARY": PRIMARY}}}


@pytest.fixture(autouse=True)
def _nothing_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_seen", {})
    monkeypatch.setattr(replicas, "_breakers", {})
    monkeypatch.setattr(replicas, "_telling", set())


@pytest.fixture
def group(pair: Pair, settings: Any) -> Iterator[Watch]:
    """ormcache on a primary and its replica, in Redis.

    With a policy that asks the primary for nothing but its position.
    """
    own = {"CACHE_ALIAS": "redis", "ON_CACHE_FAILURE": "raise"}
    settings.ORMCACHE = {**settings.ORMCACHE, **GROUP, **own}
    ormcache.flush(using=PRIMARY)
    wait_for_quarantine(PRIMARY)
    with Watch(REPLICA) as watch:
        yield watch


def names(using: str) -> Callable[[], Any]:
    return lambda: list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


def after_the_positions(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something once, between the question for the positions and the query."""
    original, actions = replicas.why_not_store, [action]

    def interrupted(*args: Any) -> Reason | None:
        reason = original(*args)
        if actions:
            actions.pop()()
        return reason

    monkeypatch.setattr(replicas, "why_not_store", interrupted)


def allow_to_connect(monkeypatch: pytest.MonkeyPatch, alias: str) -> None:
    """Let an alias that this test has made connect anew."""
    connection = connections[alias]

    def ensure_connection() -> None:
        if connection.connection is None:
            connection.connect()

    monkeypatch.setattr(connection, "ensure_connection", ensure_connection)


def stored(watch: Watch) -> list[Reason | None]:
    return [read.reason for read in watch.reads]


# --- a real replica that is held back ----------------------------------------------------------


@on_replicated()
def test_what_a_replica_that_has_caught_up_answers_is_stored(group: Watch, pair: Pair) -> None:
    Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    assert group.warm(names(REPLICA)) == ["old"]
    assert group.warm(names(PRIMARY)) == ["old"]


@on_replicated()
def test_a_write_to_the_primary_invalidates_the_answers_of_the_replica(
    group: Watch, pair: Pair
) -> None:
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")
    pair.replica.wait_for_primary()
    assert group.warm(names(REPLICA)) == ["new"]


@scenario(37)
@on_replicated()
def test_what_a_replica_that_is_behind_answers_is_not_stored(group: Watch, pair: Pair) -> None:
    """Scenario 37: the old row would be served as current until the next write."""
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")
    group.clear()
    for _ in range(3):
        assert names(REPLICA)() == ["old"]
    assert group.outcomes == ["miss"] * 3
    assert stored(group) == [Reason.REPLICA_BEHIND] * 3
    assert group.warm(names(PRIMARY)) == ["new"]
    pair.replica.resume_replay()
    pair.replica.wait_for_primary()
    assert group.warm(names(REPLICA)) == ["new"]


@on_replicated()
def test_a_replica_that_is_behind_is_still_read_from_the_cache_what_was_not_written(
    group: Watch, pair: Pair
) -> None:
    Tag.objects.using(PRIMARY).create(name="tag")
    pair.replica.wait_for_primary()

    def tags() -> list[str]:
        return list(Tag.objects.using(REPLICA).values_list("name", flat=True))

    group.warm(tags)
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).create(name="new")
    assert group.hit(tags) == ["tag"]


@on_replicated()
def test_only_a_replica_that_has_caught_up_is_asked_whether_a_hit_is_right(
    group: Watch, pair: Pair, settings: Any
) -> None:
    """It may have fallen behind since, or be another one behind the same address."""
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 1}
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    counters.reset()
    # As if another replica had answered before: the primary has written more since then.
    Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    assert ormcache.statistics()[REPLICA]["tests_author"]["verified"] == 1
    pair.replica.pause_replay()
    Tag.objects.using(PRIMARY).create(name="moves the position of the primary")
    replicas._seen.clear()
    state_of(connections[REPLICA]).replayed = None
    assert group.hit(names(REPLICA)) == ["new"]
    counts = ormcache.statistics()[REPLICA]["tests_author"]
    assert counts["unverified: replica behind"] == 1
    assert "mismatch" not in counts


@scenario(37)
@on_replicated()
def test_a_query_that_runs_before_the_replica_catches_up_is_not_stored(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position is asked for before the query: what comes in between does not count."""
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")

    def catch_up() -> None:
        pair.replica.resume_replay()
        pair.replica.wait_for_primary()

    after_the_positions(monkeypatch, catch_up)
    assert names(REPLICA)() == ["new"]
    assert stored(group)[-1] is Reason.REPLICA_BEHIND


@on_replicated()
def test_a_write_while_the_replica_answers_makes_what_is_stored_invalid(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()

    def write() -> None:
        Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")

    after_the_positions(monkeypatch, write)
    assert names(REPLICA)() in (["old"], ["new"])
    assert stored(group) == [None]
    pair.replica.wait_for_primary()
    assert group.warm(names(REPLICA)) == ["new"]


@on_replicated()
def test_the_servers_are_asked_once_per_write(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    asked: list[str] = []

    def count(name: str) -> None:
        original = getattr(positions, name)

        def counted(connection: Any) -> Position:
            asked.append(name)
            return original(connection)

        monkeypatch.setattr(positions, name, counted)

    count("written")
    count("replayed")
    for number in range(5):
        group.miss(lambda number=number: Author.objects.using(REPLICA).filter(pk=number).first())
    assert sorted(asked) == ["replayed", "written", "written"]  # "*" and the table of authors
    asked.clear()
    group.hit(lambda: Author.objects.using(REPLICA).filter(pk=1).first())
    assert asked == []
    Author.objects.using(PRIMARY).create(name="b")
    pair.replica.wait_for_primary()
    for number in range(5):
        group.miss(lambda number=number: Author.objects.using(REPLICA).filter(pk=number).first())
    assert sorted(asked) == ["replayed", "written"]


@on_replicated()
def test_explain_says_that_the_replica_is_behind(group: Watch, pair: Pair) -> None:
    Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    query = Author.objects.using(REPLICA).order_by("pk")
    assert ormcache.explain(query).reason is None
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).create(name="new")
    explanation = ormcache.explain(query)
    assert explanation.reason is Reason.REPLICA_BEHIND
    assert not explanation.cached
    assert not explanation.cacheable


@on_replicated()
def test_an_open_transaction_on_the_primary_is_not_disturbed(group: Watch, pair: Pair) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))  # now the primary is known to tell its position
    Tag.objects.using(PRIMARY).create(name="tag")
    pair.replica.wait_for_primary()

    def tags() -> list[str]:
        return list(Tag.objects.using(REPLICA).values_list("name", flat=True))

    with transaction.atomic(using=PRIMARY):
        Author.objects.using(PRIMARY).create(name="b")
        # PostgreSQL counts what is not committed, too.
        pair.replica.wait_for_primary()
        group.warm(tags)
        transaction.set_rollback(True, using=PRIMARY)
        Author.objects.using(REPLICA).filter(pk=0).first()
    assert names(PRIMARY)() == ["a"]


@on_replicated("postgresql")
def test_an_aborted_transaction_on_the_primary_is_left_alone(group: Watch, pair: Pair) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    Tag.objects.using(PRIMARY).create(name="tag")
    with transaction.atomic(using=PRIMARY):
        with connections[PRIMARY].cursor() as cursor, pytest.raises(Exception, match="no_such"):
            cursor.execute("SELECT * FROM no_such_table")
        group.clear()
        list(Tag.objects.using(REPLICA))
        assert stored(group) == [Reason.REPLICA_UNKNOWN]
        transaction.set_rollback(True, using=PRIMARY)


@on_replicated()
def test_a_primary_that_is_down_costs_caching_and_no_error(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    connections[PRIMARY].close()
    tried: list[int] = []

    def refuse(*args: Any) -> None:
        tried.append(1)
        raise OperationalError("the primary is down")

    monkeypatch.setattr(connections[PRIMARY], "ensure_connection", refuse)
    for _ in range(5):
        assert names(REPLICA)() == ["a"]
    assert stored(group)[-5:] == [Reason.REPLICA_UNKNOWN] * 5
    assert len(tried) == 1, "a primary that does not answer is asked again and again"


@on_replicated()
def test_a_replica_that_is_down_does_not_harm_a_hit_that_is_to_be_verified(
    group: Watch, pair: Pair, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "VERIFY": 1}
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    counters.reset()

    def refuse(*args: Any) -> None:
        raise OperationalError("the replica is down")

    # It asks the replica where it is, and connects for that.
    with monkeypatch.context() as patch:
        patch.setattr(replicas, "_replayed", refuse)
        assert group.hit(names(REPLICA)) == ["a"]
    assert ormcache.statistics()[REPLICA]["tests_author"] == {
        "hit": 1,
        "unverified: database error": 1,
    }


@on_replicated()
def test_a_connection_to_the_primary_that_was_lost_is_replaced(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but ormcache may use it in this thread, and so nobody else would close it."""
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    if pair.like == "postgresql":
        lost = connections[PRIMARY].connection.info.backend_pid
        pair.primary.ask(f"SELECT pg_terminate_backend({lost}, 10000)")
    else:
        pair.primary.ask(f"KILL {connections[PRIMARY].connection.thread_id()}")
    allow_to_connect(monkeypatch, PRIMARY)
    assert names(REPLICA)() == ["a"]
    assert stored(group)[-1] is Reason.REPLICA_UNKNOWN
    replicas._breakers.clear()
    group.warm(names(REPLICA))


@on_replicated()
def test_requests_in_transactions_learn_the_positions(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ATOMIC_REQUESTS nothing is ever read outside of one."""
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    with transaction.atomic(using=PRIMARY), transaction.atomic(using=REPLICA):
        assert group.warm(names(REPLICA)) == ["a"]


@on_replicated()
@pytest.mark.parametrize("name", ["written", "replayed"])
def test_a_server_that_does_not_tell_leaves_the_transaction_alone(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    monkeypatch.setattr(positions, name, lambda its: ask(its, "SELECT no_such_function()"))
    with transaction.atomic(using=PRIMARY), transaction.atomic(using=REPLICA):
        assert names(REPLICA)() == ["a"]
        assert stored(group)[-1] is Reason.REPLICA_UNKNOWN
        assert names(PRIMARY)() == names(REPLICA)() == ["a"]


@on_replicated()
def test_what_is_read_on_another_connection_than_was_asked_is_not_stored(
    group: Watch, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's health check replaces a lost one when the query begins: by another server's."""
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    allow_to_connect(monkeypatch, REPLICA)
    after_the_positions(monkeypatch, connections[REPLICA].close)
    Author.objects.using(REPLICA).filter(name="a").first()
    assert stored(group)[-1] is Reason.REPLICA_UNKNOWN


@on_replicated()
def test_a_new_connection_may_lead_to_another_replica(group: Watch, pair: Pair) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    state = state_of(connections[REPLICA])
    assert state.replayed is not None
    connections[REPLICA].close()
    assert state.replayed is None


# --- groups ----------------------------------------------------------------------------------


@on_replicated()
def test_a_write_to_three_aliases_is_announced_by_as_many_commands_as_to_one(
    group: Watch, pair: Pair, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_calls(monkeypatch, store_of(PRIMARY), "arm", "start_arm", "finish")
    Author.objects.using(PRIMARY).create(name="a")
    in_one = list(calls)
    with alias_of(REPLICA, "second"):
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "DATABASES": {**GROUP["DATABASES"], "second": {"PRIMARY": PRIMARY}},
        }
        calls.clear()
        Author.objects.using(PRIMARY).create(name="b")
        assert calls == in_one
        spaces = {route_of(alias).namespace for alias in (PRIMARY, REPLICA, "second")}
        assert len(spaces) == 1


@pytest.fixture
def one_address(pair: Pair, tmp_path: Path) -> Iterator[None]:
    """The aliases of the pair with equal HOST, PORT and NAME: the rest leads to the servers."""
    if pair.like == "postgresql":
        address = {
            "HOST": f"{HOST},{HOST}",
            "PORT": f"{pair.primary.port},{pair.replica.port}",
        }
        options = {
            PRIMARY: {"target_session_attrs": "read-write"},
            REPLICA: {"target_session_attrs": "standby"},
        }
    else:
        address = {"HOST": "", "PORT": ""}
        options = {}
        for alias, server in ((PRIMARY, pair.primary), (REPLICA, pair.replica)):
            file = tmp_path / f"{alias}.cnf"
            file.write_text(f"[client]\nhost={HOST}\nport={server.port}\n")
            options[alias] = {"read_default_file": str(file)}
    with contextlib.ExitStack() as changes:
        for alias, its in options.items():
            usual = connections[alias].settings_dict["OPTIONS"]
            changes.enter_context(changed(alias, **address, OPTIONS={**usual, **its}))
            connections[alias].connect()
        yield


@on_replicated()
def test_a_replica_with_the_address_of_its_primary_may_be_behind(
    pair: Pair, one_address: None, group: Watch
) -> None:
    author = Author.objects.using(PRIMARY).create(name="old")
    pair.replica.wait_for_primary()
    group.warm(names(REPLICA))
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).filter(pk=author.pk).update(name="new")
    assert names(REPLICA)() == ["old"]
    assert stored(group)[-1] is Reason.REPLICA_BEHIND
    pair.replica.resume_replay()
    pair.replica.wait_for_primary()
    assert group.warm(names(REPLICA)) == ["new"]


@on_databases("default", transaction=True)
def test_djangos_word_for_a_replica_is_enough(cached: Watch, tmp_path: Path) -> None:
    with alias_of("default", "copy", NAME=tmp_path / "copy", TEST={"MIRROR": "default"}):
        assert route_of("copy").namespace == route_of("default").namespace
        assert route_of("copy").lags_behind == "default"


@on_databases("default", transaction=True)
def test_an_alias_of_the_same_server_does_not_lag(cached: Watch, settings: Any) -> None:
    with alias_of("default", "twin"):
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"twin": {"PRIMARY": "default"}}}
        assert route_of("twin").lags_behind is None
        assert route_of("twin").namespace == route_of("default").namespace


@on_databases("default")
def test_a_replica_of_a_replica_belongs_to_the_first_primary(settings: Any, using: str) -> None:
    settings.ORMCACHE = {"DATABASES": {"b": {"PRIMARY": "a"}, "c": {"PRIMARY": "b"}}}
    with alias_of("default", "a"), alias_of("default", "b"), alias_of("default", "c"):
        assert primary_of("c", current()) == primary_of("b", current()) == "a"
        assert replicas_of("a", current()) == ("b", "c")
        assert primary_of("default", current()) == "default"


def test_a_wrong_primary_is_an_error_at_the_first_query(settings: Any) -> None:
    settings.ORMCACHE = {"DATABASES": {"default": {"PRIMARY": "nobody"}}}
    with pytest.raises(SettingsError, match="'nobody', which DATABASES does not have"):
        primaries(current())


# --- a declared lag ----------------------------------------------------------------------------


@on_pairs(("default", "locmem"), ("default", "redis"), transaction=True)
def test_a_declared_lag_has_to_pass_since_the_last_write(
    cached: Watch, settings: Any, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now)
    facts = connections[using].settings_dict
    # The same file by another name stands for a replica that is in step.
    with alias_of(using, "copy", NAME=f"file:{facts['NAME']}?cache=private"):
        connections["copy"].settings_dict["OPTIONS"] = {"uri": True}
        monkeypatch.setattr("ormcache.routers.namespaces.identity", _identity_by_alias)
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "DATABASES": {"copy": {"PRIMARY": using, "MAX_LAG": 5}},
        }
        ormcache.flush(using=using)
        wait_for_quarantine(using)
        Author.objects.using(using).create(name="a")
        names("copy")()
        assert stored(cached)[-1] is Reason.REPLICA_BEHIND
        now += 4.9
        names("copy")()
        assert stored(cached)[-1] is Reason.REPLICA_BEHIND
        now += 0.2
        assert cached.warm(names("copy")) == ["a"]
        Author.objects.using(using).create(name="b")
        names("copy")()
        assert stored(cached)[-1] is Reason.REPLICA_BEHIND


def _identity_by_alias(connection: Any) -> tuple[object, ...]:
    return (connection.vendor, connection.alias)


@on_databases("default", transaction=True)
def test_where_nothing_tells_the_lag_nothing_is_stored(
    cached: Watch, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with alias_of("default", "copy"):
        monkeypatch.setattr("ormcache.routers.namespaces.identity", _identity_by_alias)
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"copy": {"PRIMARY": "default"}}}
        ormcache.flush(using="default")
        names("copy")()
        assert stored(cached)[-1] is Reason.REPLICA_UNKNOWN


# --- positions ---------------------------------------------------------------------------------


def test_a_position_includes_another_if_it_is_as_far_in_each_stream() -> None:
    far = Position({"0": 5, "1": 7})
    for other in ({}, {"0": 5}, {"0": 4, "1": 7}):
        assert far.includes(Position(other))
    for other in ({"0": 6}, {"2": 0}, {"0": 1, "2": 1}):
        assert not far.includes(Position(other))


def test_a_position_can_be_written_down_and_read_again() -> None:
    for streams in ({}, {"wal": 12345}, {"0": 5, "10": 7}):
        assert Position.parse(str(Position(streams))) == Position(streams)
    for text in ("wal", "wal:x", "a:1,b"):
        with pytest.raises(ValueError, match=r".*"):
            Position.parse(text)


def test_gtids_of_several_domains_and_servers() -> None:
    found = positions._gtids([("0-1-270,1-9-9,0-2-268",)])
    assert found == Position({"0": 270, "1": 9})
    assert positions._gtids([(b"",)]) == Position({})


@on_replicated()
def test_the_servers_tell_where_they_are_and_refuse_to_play_the_other_part(pair: Pair) -> None:
    primary, replica = connections[PRIMARY], connections[REPLICA]
    Author.objects.using(PRIMARY).create(name="a")
    pair.replica.wait_for_primary()
    written = positions.written(primary)
    pair.replica.wait_for_primary()
    assert positions.replayed(replica).includes(written)
    pair.replica.pause_replay()
    Author.objects.using(PRIMARY).create(name="b")
    assert not positions.replayed(replica).includes(positions.written(primary))
    if pair.like == "postgresql":
        with pytest.raises(positions.PositionUnknown):
            positions.replayed(primary)


@pytest.mark.parametrize(
    ("next_record", "end"),
    [
        (0x4000028, 0x4000000),  # behind the header of a segment
        (0x4002018, 0x4002000),  # behind that of another page
        (0x4002028, 0x4002028),  # a record that ends 16 bytes behind the header
        (0x4000098, 0x4000098),
    ],
)
def test_the_end_of_the_log_is_that_of_its_last_record(next_record: int, end: int) -> None:
    assert positions._end_of_last_record(next_record, 8192, 1 << 24) == end


@on_replicated("postgresql")
def test_a_log_that_ends_with_a_page_does_not_make_the_replica_late(
    group: Watch, pair: Pair
) -> None:
    Author.objects.using(PRIMARY).create(name="a")
    pair.primary.ask("SELECT pg_switch_wal()")
    position = pair.primary.ask("SELECT pg_current_wal_insert_lsn()")
    assert int(position.partition("/")[2], 16) % (1 << 24) == positions._SEGMENT_HEADER
    deadline = time.monotonic() + SECONDS
    while stored(group)[-1:] != [None]:
        assert time.monotonic() < deadline
        names(REPLICA)()
    assert group.hit(names(REPLICA)) == ["a"]


@on_databases("default")
def test_other_databases_tell_no_position(using: str) -> None:
    for question in (positions.written, positions.replayed):
        with pytest.raises(positions.PositionUnknown):
            question(connections[using])
