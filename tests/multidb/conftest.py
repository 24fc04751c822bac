"""Real primaries with a real replica each, which the test can hold back."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from ormcache import access, replica_router, replicas
from ormcache.routers import ReplicaRouter, health, pins
from tests.aliases import alias_of
from tests.models import Author, Tag
from tests.servers import (
    HOST,
    MariaDBReplica,
    MariaDBServer,
    PostgreSQLReplica,
    PostgreSQLServer,
)

PRIMARY, REPLICA = "primary", "replica"


@dataclasses.dataclass
class Pair:
    """A primary and its replica, with the tables of `MODELS`.

    Where a test uses one, it takes the fixture `pair`, which also makes the database aliases
    `PRIMARY` and `REPLICA`.
    """

    like: str
    """The alias of the tests' settings that is of the same kind."""
    database: str
    primary: Any
    replica: Any
    has_tables: bool = False

    MODELS = (Author, Tag)

    @contextlib.contextmanager
    def aliases(self) -> Iterator[None]:
        with (
            alias_of(self.like, PRIMARY, **self._address(self.primary)),
            alias_of(self.like, REPLICA, **self._address(self.replica)),
        ):
            yield

    def _address(self, server: Any) -> dict[str, Any]:
        # No MIRROR: who wants it, says so.
        return {"HOST": HOST, "PORT": str(server.port), "NAME": self.database, "TEST": {}}

    def make_tables(self) -> None:
        if self.has_tables:
            return
        with connections[PRIMARY].schema_editor() as editor:
            for model in self.MODELS:
                editor.create_model(model)
        self.has_tables = True


@pytest.fixture(scope="session")
def postgresql_pair() -> Iterator[Pair]:
    with PostgreSQLServer() as primary, PostgreSQLReplica(primary) as replica:
        yield Pair("postgresql", "postgres", primary, replica)


@pytest.fixture(scope="session")
def mariadb_pair() -> Iterator[Pair]:
    with MariaDBServer(server_id=1) as primary, MariaDBReplica(primary) as replica:
        primary.ask("CREATE DATABASE shop")
        replica.wait_for_primary()
        yield Pair("mariadb", "shop", primary, replica)


@pytest.fixture
def pair(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[Pair]:
    """The pair of the fixture that the test names, in step and with empty tables.

    @on_replicated()
    def test_it(pair): ...
    """
    pair: Pair = request.getfixturevalue(request.param)
    with pair.aliases():
        pair.make_tables()
        for model in pair.MODELS:
            # Without a look at the tables that refer to it, which are not there.
            model._default_manager.using(PRIMARY)._raw_delete(PRIMARY)
        pair.replica.wait_for_primary()
        try:
            yield pair
        finally:
            pair.replica.resume_replay()


# --- the router ------------------------------------------------------------------------------

GROUP = {REPLICA: {"PRIMARY": PRIMARY}}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing was written and no server was asked."""
    for owner, name, value in (
        (health, "well", set()),
        (health, "_breakers", {}),
        (health, "_trying", {}),
        (replicas, "_breakers", {}),
        (replicas, "_telling", set()),
        (replicas, "reached", {}),
        # Servers are asked again at once.
        (replica_router, "_PATIENCE", 0),
    ):
        monkeypatch.setattr(owner, name, value)
    pins._scope.set(None)
    yield
    pins._scope.set(None)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads may use the aliases of the pair, which the test case was not told of."""
    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", access._pristine)


@pytest.fixture
def routed(pair: Pair, fresh: None, unguarded: None, settings: Any) -> Pair:
    """A pair behind the router, in step, and with one author called "old"."""
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "locmem", "DATABASES": GROUP}
    settings.DATABASE_ROUTERS = [ReplicaRouter(PRIMARY)]
    Author.objects.create(name="old")
    pair.replica.wait_for_primary()
    pins._scope.set(None)
    return pair


def reader() -> str:
    """The alias from which authors are read now."""
    return router.db_for_read(Author)


def names() -> list[str]:
    """The names of all authors, from wherever they are read now."""
    return list(Author.objects.order_by("pk").values_list("name", flat=True))
