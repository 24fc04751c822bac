"""Marks that choose a test's database and cache.

    @on_databases()                             # once on each of the three
    def test_it(using): ...

    @on_databases("postgresql", transaction=True)
    @on_caches("redis", "django_redis")
    def test_it(using, cache): ...              # an alias of each

    @on_pairs(("postgresql", "redis"), ("default", "locmem"), transaction=True)
    def test_it(using, cache): ...              # the pairs, where not every combination matters

    @needs("redis")
    def test_it(): ...

    @on_redis_and_valkey
    def test_it(server_kind): ...               # what the test's own server is

    @scenario(7)                                # one of docs/explanation/scenarios.md
    def test_it(): ...

Where the server is missing, the test is skipped, and the last lines of the run name it.
"""

from typing import Any

import pytest

from tests.servers import RedisServer, ValkeyServer

DATABASES = ("default", "postgresql", "mariadb")
CACHES = ("locmem", "redis", "django_redis", "django_valkey", "memcached", "filebased", "database")

_server_of = {
    "postgresql": "postgresql",
    "mariadb": "mariadb",
    "redis": "redis",
    "django_redis": "redis",
    "django_valkey": "valkey or redis",
    "memcached": "memcached",
}


def needs(*servers: str) -> pytest.MarkDecorator:
    """Skip the test where one is missing of: postgresql, mariadb, redis, valkey, memcached,
    python2.7; or both of "valkey or redis".
    """
    return pytest.mark.needs(*servers)


def scenario(number: int) -> pytest.MarkDecorator:
    """Say that the test shows one of the forty; `-m "scenario(number=7)"` runs those of a number.

    `tests.test_scenarios` sees to it that each has its tests, and that the page names them.
    """
    return pytest.mark.scenario(number=number)


def on_databases(*aliases: str, **django_db: Any) -> pytest.MarkDecorator:
    """Run the test on each database, with its alias in the argument `using`.

    It may touch that database and the default one. It must not be marked `django_db`: what that
    takes (`transaction=True`) is given here. With several databases of one test, use `django_db`.
    """
    return pytest.mark.parametrize(
        "using",
        [pytest.param(a, marks=on_database(a, **django_db)) for a in aliases or DATABASES],
    )


def on_database(alias: str, **django_db: Any) -> list[pytest.MarkDecorator]:
    """What `on_databases` puts on each of its cases, for `pytest.param(alias, …, marks=…)`."""
    databases = list(dict.fromkeys(["default", alias]))
    return [pytest.mark.django_db(databases=databases, **django_db), *_needs_of(alias)]


def on_caches(*aliases: str) -> pytest.MarkDecorator:
    """Run the test with each cache, with its alias in the argument `cache`."""
    return pytest.mark.parametrize(
        "cache", [pytest.param(alias, marks=_needs_of(alias)) for alias in aliases or CACHES]
    )


on_redis_and_valkey = pytest.mark.parametrize(
    "server_kind",
    [pytest.param(RedisServer, id="redis"), pytest.param(ValkeyServer, id="valkey")],
    indirect=True,
)
"""Run the test with a server of its own of each kind; see the fixture `server_kind`."""


def on_pairs(*pairs: tuple[str, str], **django_db: Any) -> pytest.MarkDecorator:
    """`on_databases` and `on_caches` at once, for some of their combinations."""
    return pytest.mark.parametrize(
        ("using", "cache"),
        [
            pytest.param(
                using,
                cache,
                marks=[*on_database(using, **django_db), *_needs_of(cache)],
                id=f"{using}-{cache}",
            )
            for using, cache in pairs
        ],
    )


def _needs_of(alias: str) -> list[pytest.MarkDecorator]:
    return [needs(_server_of[alias])] if alias in _server_of else []


def on_replicated(*databases: str) -> pytest.MarkDecorator:
    """Run the test with a primary and a replica of each kind, in the argument `pair`.

    See `tests/multidb/conftest.py`, whose fixtures are for the tests beside it.
    """
    return pytest.mark.parametrize(
        "pair",
        [
            pytest.param(f"{database}_pair", marks=_needs_of(database), id=database)
            for database in databases or ("postgresql", "mariadb")
        ],
        indirect=True,
    )
