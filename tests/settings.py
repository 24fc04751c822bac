"""Django settings of the tests.

Three databases and nine caches, each at its own place. What needs a server is there only if the
server is: `tests.servers_plugin` starts the servers and puts their ports into the environment.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from tests import servers

DIRECTORY = Path(os.environ.get(servers.DIRECTORY_VARIABLE, tempfile.gettempdir()))

# pytest-django gives the test database of each pytest-xdist worker this ending. Having it in NAME
# too, a process that a test starts loads these settings and is at the test's own database.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
WORKER_NUMBER = int(WORKER.removeprefix("gw") or 0)
WORKER_SUFFIX = f"_{WORKER}" if WORKER else ""


def is_importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def port_of(server: type[servers.Server]) -> str | None:
    return os.environ.get(server.variable())


def test_database(name: str) -> dict[str, Any]:
    return {"NAME": name + WORKER_SUFFIX, "TEST": {"NAME": name}}


DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        # A file: an in-memory database belongs to one thread of one process.
        **test_database(str(DIRECTORY / "ormcache-test.sqlite3")),
        "OPTIONS": {"timeout": 5},
    },
}
if (port := port_of(servers.PostgreSQLServer)) and is_importable("psycopg"):
    DATABASES["postgresql"] = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": servers.HOST,
        "PORT": port,
        "USER": servers.PostgreSQLServer.user,
        **test_database("ormcache_test"),
    }
if (port := port_of(servers.MariaDBServer)) and is_importable("MySQLdb"):
    DATABASES["mariadb"] = {
        "ENGINE": "django.db.backends.mysql",
        "HOST": servers.HOST,
        "PORT": port,
        "USER": servers.MariaDBServer.user,
        **test_database("ormcache_test"),
    }

DATABASE_ROUTERS = ["tests.routers.PostgresOnly"]

CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "locmem": {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "LOCATION": "locmem",
    },
    "dummy": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
    "filebased": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": str(DIRECTORY / f"ormcache-test-files{WORKER_SUFFIX}"),
    },
    "database": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "ormcache_test_cache",
    },
}
# A number for each cache and worker: clear() empties the whole Redis database.
first = 4 * WORKER_NUMBER
if port := port_of(servers.RedisServer):
    CACHES["redis"] = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://{servers.HOST}:{port}/{first + 1}",
    }
    CACHES["django_redis"] = {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": f"redis://{servers.HOST}:{port}/{first + 2}",
    }
# Valkey is optional: where it is missing, its client is tested with Redis.
if port := port_of(servers.ValkeyServer) or port_of(servers.RedisServer):
    CACHES["django_valkey"] = {
        "BACKEND": "django_valkey.cache.ValkeyCache",
        "LOCATION": f"valkey://{servers.HOST}:{port}/{first + 3}",
    }
if port := port_of(servers.MemcachedServer):
    CACHES["memcached"] = {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": f"{servers.HOST}:{port}",
        # Memcached has no databases: clear() in one worker is seen by the others.
        "KEY_PREFIX": WORKER,
    }

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "ormcache",
    "tests",
]
if is_importable("psycopg"):
    INSTALLED_APPS += ["django.contrib.postgres", "tests.postgres"]

# Tables of an app with migrations come after those of an app without, and `tests` has foreign
# keys to these.
MIGRATION_MODULES = {"contenttypes": None, "auth": None, "sessions": None}

# A short lease: tests wait for the quarantine of a new namespace, and for leases to end. A long
# timeout: a busy machine may stand still for a moment, and the answer is there after that.
ORMCACHE: dict[str, Any] = {"LEASE": 0.5, "SOCKET_TIMEOUT": 10}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "not a secret"
TIME_ZONE = "Europe/Vienna"
USE_TZ = True
