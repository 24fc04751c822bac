"""While one process migrates, others go on serving, with the old code and with the new.

Each answer is compared with what the database says just before and just after it. What the
database refuses (a column that is gone, or that is not there yet), ormcache refuses, too.
"""

import contextlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.core.cache import caches
from django.db import connections
from django.db.models.functions import Length

from ormcache import codec
from ormcache.reasons import Reason
from ormcache.stores import redis
from ormcache.stores.redis import RedisStore, connection_pool
from tests import backdoor
from tests.interleaving import route_of, session
from tests.marks import needs, on_databases
from tests.models import Tag
from tests.rolling.traffic import Answer, Outcome, is_wrong, migrate, run, serve
from tests.watching import Watch

pytestmark = needs("redis")

SECONDS = 60
RELEASES = ("old", "old", "new", "new")
TABLES = [
    f"rolling_{name}"
    for name in "grown renamed retyped widened scaled switched recoded remade told".split()
]
"""What the new release reads."""


@pytest.fixture
def deploy(using: str) -> Iterator[Any]:
    """Migrates while processes of both releases serve; what these have to tell."""
    context = multiprocessing.get_context("spawn")
    processes = []

    def deploy() -> list[Outcome]:
        ready, stop = context.Barrier(len(RELEASES) + 1), context.Event()
        told = context.Queue()
        work: list[tuple[Any, ...]] = [(migrate, using, ready, stop, told)]
        for seed, release in enumerate(RELEASES):
            work.append((serve, release, using, seed, ready, stop, told))
        for one in work:
            processes.append(context.Process(target=run, args=one, daemon=True))
            processes[-1].start()
        outcomes = []
        for _ in processes:
            outcome = told.get(timeout=SECONDS)
            assert not isinstance(outcome, str), outcome
            outcomes.append(outcome)
        return [outcome for outcome in outcomes if outcome is not None]

    yield deploy
    for process in processes:
        process.kill()
        process.join()
    connection = connections[using]
    tables = [
        name for name in connection.introspection.table_names() if name.startswith("rolling_")
    ]
    connection.close()
    backdoor.execute(
        using,
        *(f"DROP TABLE {table}" for table in tables),
        "DELETE FROM django_migrations WHERE app = 'rolling'",
    )


def check(outcomes: list[Outcome]) -> None:
    assert [outcome.wrong for outcome in outcomes] == [[]] * len(RELEASES)
    for release in ("old", "new"):
        mine = [outcome for outcome in outcomes if outcome.release == release]
        done = sum((outcome.done for outcome in mine), Counter[str]())
        failed = sum((outcome.failed for outcome in mine), Counter[str]())
        hits = sum((Counter(outcome.hits) for outcome in mine), Counter[str]())
        assert min(done.values()) > 3
        assert sum(hits.values()) > sum(done.values()) / 10
        if release == "old":
            # What was there when the old release began is not there any more.
            assert {name.partition(":")[0] for name in failed} >= {"Renamed", "Dropped"}
        else:
            assert all(hits[table] > 0 for table in TABLES), hits


@on_databases("postgresql", transaction=True)
def test_no_release_is_answered_what_the_database_would_not_say(deploy: Any, using: str) -> None:
    check(deploy())


@pytest.mark.slow
@on_databases("default", "mariadb", transaction=True)
def test_nor_is_it_on_other_databases(deploy: Any, using: str) -> None:
    check(deploy())


@pytest.mark.parametrize(
    ("before", "given", "after", "wrong"),
    [
        ((1, 1), (1, 1), (1, 1), False),
        ((1, 1), (1, 2), (1, 1), True),
        ((1, 1), (1, 2), (1, 3), False),
        ((1, 2), (1, 1), (1, 3), True),
        ((1, 1), (2, 1), (1, 2), True),
        ("gone", "gone", "gone", False),
        ("gone", (1, 1), "gone", True),
        ((1, 1), "gone", (1, 1), True),
        ((1, 1), "gone", "gone", False),
        ("other", "gone", (1, 1), True),
    ],
)
def test_the_judge_knows_wrong_from_right(
    before: Any, given: Any, after: Any, wrong: bool
) -> None:
    def answer(what: Any) -> Answer:
        is_error = isinstance(what, str)
        return Answer(None, what, ()) if is_error else Answer(list(what), "", what)

    assert is_wrong(*map(answer, (before, given, after))) is wrong


# --- versions of what is beneath -----------------------------------------------------------


@pytest.fixture
def cache() -> str:
    return "redis"


VERSIONS = [
    pytest.param(codec, "FORMAT", 99, id="format"),
    pytest.param(django, "VERSION", (99, 0, 0, "final", 0), id="Django"),
]


@pytest.mark.parametrize(("module", "name", "version"), VERSIONS)
@on_databases("postgresql", transaction=True)
def test_processes_of_other_versions_hear_of_writes_and_share_no_answers(
    cached: Watch,
    using: str,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    version: Any,
) -> None:
    tags = Tag.objects.using(using)
    questions = [
        lambda: list(tags.values_list("name", flat=True)),
        lambda: list(tags.annotate(length=Length("name")).values_list("name", flat=True)),
    ]
    tag = tags.create(name="old")

    @contextlib.contextmanager
    def other_version() -> Iterator[None]:
        # What is known of a connection is kept as long as it lives.
        with monkeypatch.context() as patch, session(using):
            patch.setattr(module, name, version)
            yield

    for question in questions:
        assert cached.warm(question) == ["old"]
        with other_version():
            assert cached.warm(question) == ["old"]
        assert cached.hit(question) == ["old"]
    with other_version():
        tags.filter(pk=tag.pk).update(name="new")
    for question in questions:
        assert cached.warm(question) == ["new"]
    tags.filter(pk=tag.pk).update(name="newer")
    with other_version():
        for question in questions:
            assert cached.warm(question) == ["newer"]


@on_databases("postgresql", transaction=True)
def test_another_protocol_begins_with_a_quarantine_and_no_answers(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its registers are others, so that processes of both must not serve at the same time."""
    place = (route_of(using).namespace, "e" * 40)
    pool = connection_pool(caches["redis"])
    with (
        contextlib.closing(RedisStore(pool)) as one,
        contextlib.closing(RedisStore(pool)) as other,
    ):
        vector = one.read(*place, ["tests_tag"]).vector
        assert vector is not None
        one.fill(*place, vector, b"answer", 60)
        assert one.read(*place, ["tests_tag"]).entry == b"answer"
        monkeypatch.setattr(redis, "PROTOCOL", 99)
        lookup = other.read(*place, ["tests_tag"])
        assert (lookup.entry, lookup.vector, lookup.reason) == (None, None, Reason.QUARANTINE)
