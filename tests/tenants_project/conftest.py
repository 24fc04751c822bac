"""The database of the tenants project: the tenants "alpha" and "beta" beside the public schema.

Everything is committed, as in production: the tests of the project need no `django_db`.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections

import ormcache
from tests.tenants_project import world
from tests.watching import Watch, wait_for_quarantine


@pytest.fixture(scope="session", autouse=True)
def _site(django_db_blocker: Any) -> Iterator[None]:
    name = connection.settings_dict["NAME"]
    with psycopg.connect(world.dsn("postgres"), autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {name}")
        with django_db_blocker.unblock():
            call_command("migrate_schemas", verbosity=0, interactive=False)
            for tenant in world.TENANTS:
                world.create(tenant)
            yield
            connections.close_all()
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def cached() -> Iterator[Watch]:
    """ormcache at work in the public schema, with nothing in the tables or the cache."""
    # A pool would give out the sessions that a former test has altered.
    connection.close()
    connection.close_pool()
    connection.set_schema_to_public()
    world.empty()
    ormcache.flush()
    # A commit of a former test whose end was not reported: on a slow machine, even here.
    wait_for_quarantine("default", *world.registers())
    with Watch() as watch:
        yield watch
    connection.close()
    connection.set_schema_to_public()
