"""The services a run uses: private ones, started for it, or those named by the caller."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.contenders import Services

_DATABASE = "ormcache_benchmark"


@contextmanager
def services(
    stack: str,
    postgres: str | None = None,
    redis: str | None = None,
    *,
    durable: bool = True,
) -> Iterator[tuple[Services, dict[str, str]]]:
    """The stack's services, and facts about them that a reader of figures must know.

    The URLs name running servers instead of private ones. The database
    `ormcache_benchmark` there is dropped and made anew, Redis databases 1 to 4 emptied.
    `durable`: whether a commit of the private PostgreSQL waits for the disk.
    """
    if stack == "sqlite-locmem":
        with _sqlite() as opened:
            yield opened
        return
    if postgres and redis:
        yield _postgres_and_redis(postgres, redis)
        return
    with _private_servers(durable) as (postgres_url, redis_url):
        yield _postgres_and_redis(postgres or postgres_url, redis or redis_url)


@contextmanager
def _sqlite() -> Iterator[tuple[Services, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="ormcache-benchmark-") as folder:
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(folder) / "benchmark.sqlite3"),
            # As usually advised for a Django site on SQLite.
            "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"},
        }
        facts = {"SQLite": sqlite3.sqlite_version, "journal": "WAL"}
        yield Services("sqlite-locmem", database), facts


def _postgres_and_redis(postgres: str, redis: str) -> tuple[Services, dict[str, str]]:
    # Imported here: the SQLite stack needs neither driver.
    import psycopg
    import redis as redis_py

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {_DATABASE}")
        connection.execute(f"CREATE DATABASE {_DATABASE}")
        version, fsync, synchronous_commit = (
            _show(connection, name) for name in ("server_version", "fsync", "synchronous_commit")
        )
    facts = {
        "PostgreSQL": version.split()[0],
        "fsync": fsync,
        "synchronous_commit": synchronous_commit,
        "Redis": redis_py.Redis.from_url(redis).info("server")["redis_version"],
    }
    return Services("postgres-redis", _django_database(postgres), redis), facts


def _show(connection: Any, name: str) -> str:
    return str(connection.execute(f"SHOW {name}").fetchone()[0])


def _django_database(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _DATABASE,
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
    }


@contextmanager
def _private_servers(durable: bool) -> Iterator[tuple[str, str]]:
    """Throw-away servers, as the tests have them."""
    # Imported here: a run on given servers needs none of the programs that it looks for.
    from tests.servers import HOST, PostgreSQLServer, RedisServer, start_together

    postgres, redis = PostgreSQLServer(durable=durable), RedisServer()
    try:
        start_together([postgres, redis])
        yield (
            f"postgresql://{postgres.user}@{HOST}:{postgres.port}/postgres",
            f"redis://{HOST}:{redis.port}",
        )
    finally:
        postgres.close()
        redis.close()
