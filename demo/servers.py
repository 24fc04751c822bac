"""URLs of databases and caches as Django settings, and whether a server answers."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from demo.errors import DemoError

DATABASE_FORMS = "postgres://user:password@host:port/name, mysql://user:password@host:port/name or sqlite:///path"
CACHE_FORMS = "redis://host:port/0, memcached://host:port or locmem://"


@dataclass(frozen=True)
class Server:
    """A database or a cache: its Django settings, and a name to print without the password."""

    settings: dict[str, Any]
    label: str


def database(url: str) -> Server:
    """The database of a URL."""
    parts = _split(url, "database", DATABASE_FORMS)
    if parts.scheme == "sqlite":
        return _sqlite(url, parts)
    if parts.scheme in ("postgres", "postgresql"):
        _need("psycopg", "psycopg2", for_="PostgreSQL", install="psycopg[binary]")
        return _server_database(url, parts, "django.db.backends.postgresql", {})
    if parts.scheme in ("mysql", "mariadb"):
        _need("MySQLdb", for_="MySQL and MariaDB", install="mysqlclient")
        return _server_database(url, parts, "django.db.backends.mysql", {"charset": "utf8mb4"})
    raise DemoError(f"Cannot use the database URL {_shown(parts)!r}: expected {DATABASE_FORMS}.")


def cache(url: str, *, prefix: str) -> Server:
    """The cache of a URL, with a prefix that keeps the demo's keys apart from all others."""
    parts = _split(url, "cache", CACHE_FORMS)
    settings: dict[str, Any] = {"KEY_PREFIX": prefix}
    if parts.scheme == "locmem":
        # Django's default is 300 entries, fewer than the demo's pages have queries.
        settings |= {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "OPTIONS": {"MAX_ENTRIES": 20_000},
        }
        return Server(settings, "locmem (this process's memory)")
    if parts.scheme in ("redis", "rediss", "unix"):
        _need("redis", for_="Redis", install="redis")
        settings |= {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}
        return Server(settings, _shown(parts))
    if parts.scheme == "memcached" and parts.hostname:
        _need("pymemcache", for_="memcached", install="pymemcache")
        location = f"{parts.hostname}:{parts.port or 11211}"
        settings |= {
            "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
            "LOCATION": location,
        }
        return Server(settings, _shown(parts))
    raise DemoError(f"Cannot use the cache URL {_shown(parts)!r}: expected {CACHE_FORMS}.")


def check_database(label: str) -> None:
    """Connect once, so that an unreachable server is a sentence and not a traceback."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error, connection

    try:
        connection.ensure_connection()
        if connection.vendor == "mysql":
            _check_charset(connection)
    except (Error, ImproperlyConfigured) as error:
        raise DemoError(f"Cannot connect to the database {label}: {first_line(error)}.") from error


def check_cache(label: str) -> None:
    """Store and fetch one value, which expires by itself."""
    from django.core.cache import cache as default

    try:
        default.set("probe", label, timeout=5)
        answer = default.get("probe")
    # Each cache client has its own exceptions, and none of their bases is common.
    except Exception as error:
        raise DemoError(f"Cannot use the cache {label}: {first_line(error)}.") from error
    if answer != label:
        raise DemoError(f"Cannot use the cache {label}: it does not return what was stored.")


def first_line(error: BaseException) -> str:
    """The message of an exception without its further lines and its final full stop."""
    # MySQL's exceptions are a number and a text.
    text = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], str) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _split(url: str, what: str, forms: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 -- raises if it is no number
    except ValueError as error:
        raise DemoError(f"Cannot read the {what} URL: {error}; expected {forms}.") from error
    if not parts.scheme or "://" not in url:
        raise DemoError(f"Cannot use the {what} URL {_shown(parts)!r}: expected {forms}.")
    return parts


def _sqlite(url: str, parts: SplitResult) -> Server:
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or not path:
        raise DemoError(
            f"Cannot use the database URL {url!r}: expected sqlite:///path (or sqlite:////absolute/path)."
        )
    if not Path(path).resolve().parent.is_dir():
        raise DemoError(f"Cannot use the database URL {url!r}: its folder does not exist.")
    return sqlite_file(Path(path))


def sqlite_file(path: Path) -> Server:
    """An SQLite database in a file."""
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path.resolve()),
        "OPTIONS": {"timeout": 20},
    }
    return Server(settings, f"sqlite:///{os.path.relpath(path)}")


def _server_database(url: str, parts: SplitResult, engine: str, options: dict[str, Any]) -> Server:
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise DemoError(f"Cannot use the database URL {_shown(parts)!r}: it names no database.")
    options = options | dict(parse_qsl(parts.query))
    settings = {
        "ENGINE": engine,
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        # ?host=/run/postgresql is how libpq's URLs name a socket.
        "HOST": options.pop("host", None) or parts.hostname or "",
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
        "CONN_MAX_AGE": None,
    }
    return Server(settings, _shown(parts))


def _shown(parts: SplitResult) -> str:
    user, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}", query="").geturl()


def _need(*modules: str, for_: str, install: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return
    raise DemoError(
        f'{for_} needs a package that is not installed: python -m pip install "{install}".'
    )


def _check_charset(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@character_set_database")
        charset = cursor.fetchone()[0]
    if charset != "utf8mb4":
        raise DemoError(
            f"The database's character set is {charset}, and GeoNames' names need utf8mb4."
        )
