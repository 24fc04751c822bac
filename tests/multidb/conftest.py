"""Real primaries with a real replica each, which the test can hold back."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections

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
