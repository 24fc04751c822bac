"""Commits in autocommit that follow each other closely, and share one announcement."""

import os
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_finished
from django.db import IntegrityError, close_old_connections, transaction
from django.db.models import CharField

from ormcache import brackets, bursts
from ormcache.bursts import Bursts
from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from ormcache.stores import flushing, strict_store
from tests.authors import NEW, OLD, Names, update, wait_for_lease
from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.interleaving import SECONDS, Background, pause_before, record_calls, route_of, store_of
from tests.marks import on_pairs
from tests.models import Author, Tag
from tests.watching import Watch, wait_for_quarantine

pytestmark = pytest.mark.usefixtures("emptied")

on_redis = on_pairs(("postgresql", "redis"), transaction=True)
on_others = on_pairs(
    ("postgresql", "locmem"), ("postgresql", "memcached"), ("default", "locmem"), transaction=True
)
TABLES = ["tests_author"]
PATIENCE = 3 * SECONDS
"""The lease of these tests: no intent of theirs is to be renewed, or to end by itself."""


@pytest.fixture
def patient(cached: Watch, using: str, settings: Any) -> None:
    """A long lease in a namespace that is not in quarantine, and that nobody else has."""
    # The longest lease that it was ever asked for stays with a namespace.
    settings.ORMCACHE = {**settings.ORMCACHE, "KEY_PREFIX": secrets.token_hex(4)}
    wait_for_quarantine(using)
    store_of(using).read(route_of(using).namespace, "none", [*TABLES, "tests_tag"])
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": PATIENCE}


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bursts]:
    """Bursts that nobody else has begun, or ends but by a read: the clock has no say."""
    bursts.bursts.flush()
    mine = Bursts()
    monkeypatch.setattr(bursts, "bursts", mine)
    monkeypatch.setattr(brackets, "bursts", mine)
    monkeypatch.setattr("ormcache.reads.bursts", mine)
    monkeypatch.setattr(bursts, "_PAUSE", SECONDS)
    monkeypatch.setattr(flushing.flusher, "notice", lambda waiting: None)
    yield mine
    mine.flush()


@pytest.fixture
def told(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    author: Author,
    mine: Bursts,
    patient: None,
) -> list[str]:
    """What the store is told of commits from now on."""
    mine.flush()
    mine._reset()
    cached.clear()
    return record_calls(monkeypatch, store_of(using), "start_arm", "arm", "finish")


def seen_by_others(using: str) -> Reason | None:
    """Why a process beside this one may not use the cache for authors, if it may not."""
    other = strict_store(current().CACHE_ALIAS)
    assert other is not None
    try:
        return other.read(route_of(using).namespace, "e" * 40, TABLES).reason
    finally:
        other.close()


def begin(using: str) -> None:
    """Write so often that there is an intent which waits for the next."""
    for _ in range(2):
        update(using)


@on_redis
def test_commits_that_follow_each_other_are_announced_once(
    cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    update(using, "1")
    # Whether another will follow is not known yet.
    assert told == ["start_arm", "finish"]
    for number in range(2, 6):
        update(using, str(number))
    assert told == ["start_arm", "finish", "start_arm"]
    assert cached.invalidated == [("tests_author",)] * 5
    assert cached.warm(names) == ["5"]
    assert told == ["start_arm", "finish", "start_arm", "finish"]


@on_redis
def test_the_ways_of_the_orm_to_write_one_table_make_one_burst(
    using: str, told: list[str], author: Author
) -> None:
    begin(using)
    told.clear()
    author.save(using=using)
    Author.objects.using(using).create(name="another")
    Author.objects.using(using).exclude(pk=author.pk)._raw_delete(using)
    assert told == []


@on_redis
def test_for_others_a_burst_is_one_commit_that_takes_long(
    cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    cached.warm(names)
    for _ in range(4):
        update(using)
        if "start_arm" in told[1:]:
            assert seen_by_others(using) is Reason.BUSY
    cached.warm(names)
    assert seen_by_others(using) is None


@on_redis
def test_a_burst_ends_when_its_own_process_reads_in_whatever_thread(
    cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    begin(using)
    told.clear()
    assert Background(cached.warm, names).result() == [NEW]
    assert told == ["finish"]


@on_redis
def test_a_burst_ends_with_the_request(
    monkeypatch: pytest.MonkeyPatch, using: str, author: Author, patient: None
) -> None:
    """Though the thread that would end it is given no time."""
    monkeypatch.setattr(bursts, "_PAUSE", SECONDS)
    monkeypatch.setattr(flushing.flusher, "notice", lambda waiting: None)
    begin(using)
    assert seen_by_others(using) is Reason.BUSY
    request_finished.disconnect(close_old_connections)
    try:
        request_finished.send(sender=None)
    finally:
        request_finished.connect(close_old_connections)
    assert seen_by_others(using) is None


@on_redis
def test_a_read_waits_once_for_a_cache_that_is_dead(
    monkeypatch: pytest.MonkeyPatch, cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    begin(using)
    store, attempts = store_of(using), []

    def fail(*args: Any) -> None:
        attempts.append(args)
        raise CacheError("it does not answer")

    for name in ("finish", "read", "start_read"):
        monkeypatch.setattr(store, name, fail)
    answer = cached.call(names)
    route_of(using).breaker.succeeded()
    assert answer == ([NEW], [str(Reason.CACHE_UNREACHABLE)])
    assert len(attempts) == 1


@on_redis
def test_to_read_other_tables_does_not_end_a_burst(
    cached: Watch, using: str, told: list[str]
) -> None:
    begin(using)
    told.clear()
    cached.warm(lambda: Tag.objects.using(using).count())
    update(using)
    assert told == []


@on_redis
def test_commits_to_other_tables_are_announced_on_their_own(using: str, told: list[str]) -> None:
    begin(using)
    told.clear()
    Tag.objects.using(using).create(name="one")
    assert told == ["start_arm", "finish"]


@on_redis
def test_transactions_are_announced_on_their_own(using: str, told: list[str]) -> None:
    begin(using)
    told.clear()
    for _ in range(3):
        with transaction.atomic(using):
            update(using)
    assert told == ["arm", "finish"] * 3


@on_others
def test_where_the_cache_is_no_redis_each_commit_is_reported(
    cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    for _ in range(3):
        update(using)
    assert told.count("finish") == 3
    assert cached.warm(names) == [NEW]


# --- how it ends -------------------------------------------------------------------------------


@on_redis
def test_a_burst_that_nobody_goes_on_with_is_over_in_a_moment(
    monkeypatch: pytest.MonkeyPatch, using: str, author: Author, patient: None
) -> None:
    monkeypatch.setattr(bursts, "_PAUSE", SECONDS)
    begin(using)
    # Not by its lease, which is longer.
    wait_for_lease(using)
    assert not bursts.bursts


@on_redis
def test_a_read_waits_for_the_thread_that_ends_the_burst(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    names: Names,
    told: list[str],
    mine: Bursts,
) -> None:
    """Its answer could not be stored if the cache had not been told yet."""
    begin(using)
    pause = pause_before(monkeypatch, store_of(using), "finish")
    flusher = Background(mine.flush)
    pause.wait()
    reader = Background(cached.warm, names)
    reader.join(0.2)
    assert reader.is_alive()
    pause.end()
    flusher.result()
    assert reader.result() == [NEW]


@on_redis
def test_a_commit_that_comes_later_is_announced_on_its_own(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str]
) -> None:
    monkeypatch.setattr(bursts, "_PAUSE", 0.0)
    for _ in range(3):
        update(using)
    assert told == ["start_arm", "finish"] * 3


@on_redis
def test_a_commit_that_comes_a_little_late_ends_the_burst(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str]
) -> None:
    begin(using)
    monkeypatch.setattr(bursts, "_PAUSE", 0.0)
    told.clear()
    update(using)
    assert told == ["finish"]
    assert seen_by_others(using) is None


@on_redis
def test_a_commit_of_which_nobody_knows_the_end_leaves_its_intent_to_the_lease(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str], author: Author
) -> None:
    with factories_using(using):
        other = AuthorFactory()
    begin(using)
    told.clear()
    monkeypatch.setattr(brackets, "outcome_is_known", lambda connection, error: False)
    with pytest.raises(IntegrityError):
        Author.objects.using(using).update(id=other.pk)
    assert told == []
    assert seen_by_others(using) is Reason.BUSY
    update(using)
    assert told == ["start_arm"]


@on_redis
def test_a_write_that_is_never_sent_ends_the_burst(
    cached: Watch, using: str, names: Names, told: list[str]
) -> None:
    begin(using)
    told.clear()
    assert Author.objects.using(using).filter(pk__in=[]).update(name=OLD) == 0
    assert told == ["finish"]
    assert seen_by_others(using) is None


@on_redis
def test_an_intent_that_is_not_fresh_is_announced_again_before_the_commit(
    using: str, told: list[str], mine: Bursts
) -> None:
    begin(using)
    told.clear()
    ((place, intent),) = mine._waiting.items()
    mine._waiting[place] = intent._replace(begun=intent.begun - current().LEASE / 2)
    update(using)
    assert told == ["arm"]
    assert mine._waiting[place].name == intent.name


@on_redis
def test_with_another_lease_another_burst_begins(
    using: str, told: list[str], mine: Bursts, settings: Any
) -> None:
    """An intent of half a second would be taken for one that lasts for an hour."""
    begin(using)
    told.clear()
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 3600}
    update(using)
    assert told == ["start_arm", "finish"]
    mine.flush()
    assert told == ["start_arm", "finish", "finish"]


@on_redis
def test_an_intent_that_may_just_be_renewed_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str]
) -> None:
    """Who renews it would take it back, though the next commit relies on it."""
    begin(using)
    told.clear()
    original = brackets.Bracket.end

    def late(bracket: Any, **kwargs: Any) -> None:
        bracket._begun -= current().LEASE / 2
        original(bracket, **kwargs)

    monkeypatch.setattr(brackets.Bracket, "end", late)
    update(using)
    assert told == ["finish"]


@on_redis
def test_of_two_commits_at_once_each_has_an_intent_of_its_own(
    using: str, told: list[str], mine: Bursts
) -> None:
    begin(using)
    told.clear()
    one, other = (brackets._bracket(route_of(using), TABLES) for _ in range(2))
    for bracket in (one, other):
        assert bracket.start()
        bracket.arm()
    assert told == ["start_arm"]
    one.end()
    assert seen_by_others(using) is Reason.BUSY
    # One of them may wait for the next commit; two need not.
    other.end()
    assert told == ["start_arm", "finish"]
    mine.flush()
    assert seen_by_others(using) is None


@on_redis
def test_when_the_cache_is_replaced_the_intent_is_finished_where_it_is(
    using: str, told: list[str], mine: Bursts, settings: Any
) -> None:
    begin(using)
    told.clear()
    settings.CACHES = {**settings.CACHES, "another": dict(settings.CACHES["redis"])}
    update(using)
    # The rest was told to the new store, which nobody watches.
    assert told == ["finish"]
    mine.flush()


@on_redis
def test_a_cache_that_cannot_be_told_of_the_end_is_no_error(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str], mine: Bursts
) -> None:
    begin(using)

    def fail(*args: Any) -> None:
        raise CacheError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "finish", fail)
        mine.flush()
    breaker = route_of(using).breaker
    assert not breaker.is_closed
    breaker.succeeded()
    assert seen_by_others(using) is Reason.BUSY


@on_redis
def test_a_commit_that_goes_on_with_a_burst_says_nothing_of_the_cache(
    using: str, told: list[str]
) -> None:
    """It was not asked: if it failed somebody else just now, the next has to know."""
    begin(using)
    breaker = route_of(using).breaker
    bracket = brackets._bracket(route_of(using), TABLES)
    assert bracket.start()
    breaker.failed()
    bracket.arm()
    was_closed = breaker.is_closed
    breaker.succeeded()
    bracket.end()
    assert not was_closed


@on_redis
@pytest.mark.parametrize("is_in_burst", [True, False])
def test_a_child_of_fork_does_not_finish_what_its_parent_is_about_to_commit(
    monkeypatch: pytest.MonkeyPatch, using: str, told: list[str], author: Author, is_in_burst: bool
) -> None:
    """It is born while a value is being saved, and leaves `save()` with an exception."""
    if is_in_burst:
        begin(using)
    parent, seen, pre_save = os.getpid(), [], CharField.pre_save

    def fork(field: Any, *args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            raise KeyboardInterrupt
        os.waitpid(child, 0)
        seen.append(seen_by_others(using))
        return pre_save(field, *args)

    monkeypatch.setattr(CharField, "pre_save", fork)
    try:
        author.save(using=using)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert set(seen) == {Reason.BUSY}


@on_redis
def test_a_child_of_fork_leaves_the_burst_to_its_parent(
    using: str, told: list[str], mine: Bursts
) -> None:
    begin(using)
    # Python 3.12 warns of fork() with threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # Whatever happens here, the tests go on in the parent only.
        os._exit(bool(mine))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert mine
    assert seen_by_others(using) is Reason.BUSY


BURST = """
import sys
import django
django.setup()
from django.conf import settings
from ormcache import bursts
from ormcache.stores import flushing
from tests.models import Author

using, prefix = sys.argv[1:]
settings.ORMCACHE = {
    **settings.ORMCACHE, "CACHE_ALIAS": "redis", "LEASE": 60, "KEY_PREFIX": prefix
}
bursts._PAUSE = 60
flushing.flusher.notice = lambda waiting: None

def write():
    for number in range(4):
        Author.objects.using(using).update(name=str(number))

def begin():
    write()
    assert bursts.bursts
"""
ENDS = {
    "in good order": "begin()",
    "after it has written on": """
import atexit
atexit.register(write)
begin()
""",
    "as a child of multiprocessing": """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=begin)
child.start()
child.join()
assert not child.exitcode
""",
}


@on_redis
@pytest.mark.parametrize("how", ENDS)
def test_a_process_that_ends_ends_its_burst(
    cached: Watch, using: str, names: Names, author: Author, patient: None, how: str
) -> None:
    prefix = current().KEY_PREFIX
    cached.warm(names)
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", BURST + ENDS[how], using, prefix],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert cached.warm(names) == ["3"]


@on_redis
def test_a_reader_that_is_broken_off_while_it_ends_a_burst_leaves_that_to_others(
    monkeypatch: pytest.MonkeyPatch,
    cached: Watch,
    using: str,
    names: Names,
    told: list[str],
    mine: Bursts,
) -> None:
    """It may have been told or not: so no commit relies on that intent, and it is ended again."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    begin(using)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_of(using), "finish", interrupt)
        names()
    told.clear()
    update(using)
    assert told == ["start_arm"]
    mine.flush()
    assert told == ["start_arm", "finish", "finish"]
    assert cached.warm(names) == [NEW]


@on_redis
def test_threads_do_not_go_on_with_the_bursts_of_others(using: str, told: list[str]) -> None:
    """Otherwise the tables of a server with many threads would hardly ever be clean."""
    begin(using)
    told.clear()
    Background(update, using).result()
    assert told == ["start_arm", "finish"]
    update(using)
    assert told == ["start_arm", "finish"]


def test_what_ended_is_forgotten_some_time() -> None:
    """A project with tenants has any number of namespaces."""

    class Route:
        cache_alias, store = "redis", object()

        def __init__(self, number: int) -> None:
            self.namespace = str(number)

    mine, now = Bursts(), time.monotonic()
    for number in range(3 * bursts._LIMIT):
        assert not mine.keep(Route(number), TABLES, 1.0, "intent", now)  # type: ignore[arg-type]
    assert len(mine._ended) <= bursts._LIMIT + 1


def test_what_cannot_be_sent_does_not_end_the_thread_that_sends() -> None:
    """A client of the project's own may raise anything."""
    flushed = []

    class Waiting:
        def __init__(self, error: Exception | None) -> None:
            self._error = error

        def flush(self) -> None:
            flushed.append(self)
            if self._error is not None:
                raise self._error

    flusher = flushing.Flusher()
    for waiting in (Waiting(RuntimeError()), Waiting(None)):
        flusher.notice(waiting)
        deadline = time.monotonic() + SECONDS
        while waiting not in flushed:
            assert time.monotonic() < deadline, "nobody flushes it"
            time.sleep(0.01)
