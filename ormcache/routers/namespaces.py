"""From a connection to its namespace and its cache.

A namespace stands for the data of one database: its registers are shared by all aliases that lead
there, replicas included, so a write through any of them is seen by all, while the entries' keys
hold the alias, too.
The schema is part of the entries' keys and not of the namespace, because a table that several
schemas share has to be invalidated in all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import unquote

import django
from django.apps import apps
from django.db import connections

from ormcache import engines
from ormcache.conf import DatabaseSettings, Inherited, Settings, is_under_test
from ormcache.routers import chosen, schemas, tenancy
from ormcache.routers.groups import primary_of
from ormcache.stores import Breaker, Store, breaker_for, store_for

_RUN_VARIABLE = "ORMCACHE_TEST_RUN"
_NUMBER = "_ormcache_number"
_process = os.urandom(8).hex()
_numbers = itertools.count(1)


def _new_process() -> None:
    global _process
    _process = os.urandom(8).hex()


os.register_at_fork(after_in_child=_new_process)


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """Where and how the reads and writes of one connection are cached."""

    alias: str
    namespace: str
    cache_alias: str
    store: Store | None
    breaker: Breaker
    enabled: bool
    timeout: float | None
    on_failure: Literal["raise", "fence", "open", "ignore"]
    context: tuple[object, ...]
    """What an answer depends on besides the SQL: part of every entry's key."""
    lags_behind: str | None = None
    """The alias of the primary, if this one reads from another server than that."""
    max_lag: float | None = None
    """By how many seconds at most, if that is declared."""
    has_tenants: bool = False
    """Whether some alias of the same data is one of django-tenants."""
    verify: float = 0
    """The share of hits that are run on the database, too; see :mod:`ormcache.verification`."""
    is_shadow: bool = False
    """Whether the database answers even what the cache could."""


def route(connection: Any, settings: Settings, chosen_text: str | None = None) -> Route:
    """The route of ``connection`` under ``settings``; keep it while :func:`basis` is the same.

    Args:
        connection: of any alias.
        settings: those in force.
        chosen_text: what :func:`ormcache.routers.chosen.text_for` has just said.

    Raises:
        SettingsError: a cache alias is unknown, or ``NAMESPACE`` does not do what it must.
    """
    if chosen_text is None:
        chosen_text = chosen.text_for(connection, settings)
    alias = connection.alias
    database = settings.DATABASES.get(alias) or DatabaseSettings()
    cache_alias = cache_alias_of(alias, settings)
    primary = _primary_connection(connection, settings)
    is_enabled = settings.ENABLED and database.ENABLED
    name = namespace(primary, settings.KEY_PREFIX, chosen_text)
    store = _store(connection, cache_alias, settings)
    # Test cases write, and read, in one transaction that does not end.
    if store is not None and engines.tells_what_is_over(primary) and not is_under_test():
        store.expects_ids(name)
    timeout = settings.TIMEOUT if isinstance(database.TIMEOUT, Inherited) else database.TIMEOUT
    return Route(
        alias=alias,
        namespace=name,
        cache_alias=cache_alias,
        store=store,
        breaker=breaker_for(cache_alias),
        enabled=is_enabled,
        timeout=timeout,
        # Switched off, ormcache still tells other processes of writes, but never in the way.
        on_failure=settings.on_cache_failure if _is_cached(connection, settings) else "ignore",
        context=(alias, _digest(_driver(connection), _software(connection), _session(connection))),
        lags_behind=primary.alias if may_lag(connection, primary, settings) else None,
        max_lag=database.MAX_LAG,
        has_tenants=_has_tenants(connection, settings),
        verify=1 if settings.MODE == "shadow" else settings.VERIFY,
        is_shadow=settings.MODE == "shadow",
    )


def _has_tenants(connection: Any, settings: Settings) -> bool:
    """Whether the tables of tenants have :mod:`registers of their own <.tenancy>`."""
    return tenancy.is_configured() and (
        schemas.is_of_tenants(connection)
        or any(
            schemas.is_of_tenants(connections[other])
            and _is_same_data(connections[other], connection, settings)
            for other in connections
        )
    )


def _is_cached(connection: Any, settings: Settings) -> bool:
    """Whether the data of ``connection`` is, through whichever alias it is read."""

    def is_enabled(alias: str) -> bool:
        return (settings.DATABASES.get(alias) or DatabaseSettings()).ENABLED

    if not settings.ENABLED or is_enabled(connection.alias):
        return settings.ENABLED
    return any(
        is_enabled(other) and _is_same_data(connections[other], connection, settings)
        for other in connections
    )


def _primary_connection(connection: Any, settings: Settings) -> Any:
    """The connection that takes the writes which ``connection`` shows; itself for most."""
    primary = primary_of(connection.alias, settings)
    # Not connections[alias]: a copy of the connection may have been given another database.
    return connection if primary == connection.alias else connections[primary]


def may_lag(connection: Any, primary: Any, settings: Settings) -> bool:
    """Whether ``connection`` may read from another server than ``primary``, its primary.

    One address may lead to several servers, so what else decides has to be equal as well.
    """
    if primary is connection:
        return False
    if way(primary) != way(connection):
        return True
    if is_mirrored(connection):
        return False
    database = settings.DATABASES.get(connection.alias) or DatabaseSettings()
    return database.MAX_LAG is not None or _caller(primary) != _caller(connection)


def is_mirrored(connection: Any) -> bool:
    """Whether this is a test run, in which Django has given ``connection`` another's database."""
    is_mirror = bool((connection.settings_dict.get("TEST") or {}).get("MIRROR"))
    return is_mirror and bool(_test_run())


def way(connection: Any) -> tuple[object, ...]:
    """The address, and which of the servers there the driver is to take."""
    return (*identity(connection), *_given(connection, _CHOICE_OF_SERVER))


def _caller(connection: Any) -> tuple[str, ...]:
    """By what a proxy may choose the server: ProxySQL by the user, Pgpool-II by the program."""
    user = str(connection.settings_dict.get("USER") or "")
    return (user, *_given(connection, ("application_name",)))


def _given(connection: Any, names: Iterable[str]) -> Iterator[str]:
    """Those of the ``OPTIONS`` that are set, with their values."""
    options = connection.settings_dict.get("OPTIONS") or {}
    return (f"{name}={options[name]}" for name in names if options.get(name))


# Options with which the driver finds the database, instead of HOST, PORT and NAME.
_ADDRESS = (
    *("host", "hostaddr", "port", "dbname", "database", "db"),
    *("unix_socket", "read_default_file", "read_default_group"),
)

# Options of libpq with several hosts.
_CHOICE_OF_SERVER = ("target_session_attrs", "load_balance_hosts")


def group_namespace(connection: Any, settings: Settings) -> str:
    """The name of the namespace that ``connection`` shares with its primary and replicas.

    Without what ``NAMESPACE`` adds to it.
    """
    return namespace(_primary_connection(connection, settings), settings.KEY_PREFIX)


def _store(connection: Any, cache_alias: str, settings: Settings) -> Store | None:
    """The store, unless it must not be used for this database.

    A cache that lives in the very database that it would be the cache of runs its statements on
    the user's connection, in the middle of the user's own: SQLite rolls back an INSERT …
    RETURNING whose rows are not fetched when another statement commits.
    """
    store = store_for(cache_alias, settings.CONSISTENCY)
    home = store.database() if store is not None else None
    if home is not None and _is_same_data(connections[home], connection, settings):
        return None
    return None if _has_another_cache(connection, cache_alias, settings) else store


def _has_another_cache(connection: Any, cache_alias: str, settings: Settings) -> bool:
    """Whether another alias of the same data uses another cache.

    Neither would hear of writes through the other, so that nothing may be cached at all.
    """
    if all(database.CACHE_ALIAS is None for database in settings.DATABASES.values()):
        return False
    return any(
        cache_alias_of(other, settings) != cache_alias
        and _is_same_data(connections[other], connection, settings)
        for other in connections
    )


def _is_same_data(one: Any, other: Any, settings: Settings) -> bool:
    return group_namespace(one, settings) == group_namespace(other, settings)


def cache_alias_of(alias: str, settings: Settings) -> str:
    """The cache of a database alias; a replica that is given none has that of its primary."""
    for name in (alias, primary_of(alias, settings)):
        database = settings.DATABASES.get(name)
        if database is not None and database.CACHE_ALIAS is not None:
            return database.CACHE_ALIAS
    return settings.CACHE_ALIAS


def basis(connection: Any, settings: Settings) -> tuple[object, ...]:
    """What may change while a connection lives: its database, schema, time zone and process.

    At each hit, so it compares what a route is made of and makes nothing.
    """
    primary = primary_of(connection.alias, settings)
    return (
        _followed(connection),
        primary == connection.alias or _followed(connections[primary]),
        getattr(connection, "schema_name", None),
        getattr(connection, "include_public_schema", None),
        connection.timezone,
        _process,
    )


def _followed(connection: Any) -> tuple[object, ...]:
    """The settings of a connection that a project, or a test run, may change: a tenant's own."""
    facts = connection.settings_dict
    options = facts["OPTIONS"]
    # A copy, because a change inside has to be seen, too.
    options = options and options.copy()
    return (facts["NAME"], facts["HOST"], facts["PORT"], facts["USER"], options)


def _driver(connection: Any) -> tuple[object, ...]:
    """What decides of which types the values in a row are."""
    # The time zone is None without USE_TZ, and datetimes come without one.
    return (
        connection.vendor,
        connection.Database.__name__,
        str(connection.timezone),
        connection.timezone_name,
    )


def _software(connection: Any) -> tuple[object, ...]:
    """What may differ between processes side by side, while a project is being deployed.

    Other versions may send other values for the same parameters, and return the same columns as
    other types. Some of SQLite's functions are written in Python, by Django.
    """
    driver = connection.Database
    facts = connection.settings_dict
    options = facts.get("OPTIONS") or {}
    return (
        facts.get("ENGINE"),
        django.VERSION,
        sys.version_info[:2],
        str(getattr(driver, "__version__", None) or getattr(driver, "sqlite_version", "")),
        # It makes hstore columns dicts.
        apps.is_installed("django.contrib.postgres"),
        *(str(options.get(name, "")) for name in _DRIVER_OPTIONS),
    )


# Options that change the types of values, or how the server reads and compares them.
_DRIVER_OPTIONS = (
    *("charset", "collation", "sql_mode", "use_unicode"),
    *("client_encoding", "server_side_binding"),
    "detect_types",
)


def _digest(*facts: object) -> str:
    """Short, since it is part of every key, and equal in all processes."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=20).hexdigest()


def _session(connection: Any) -> tuple[object, ...]:
    """What the server is told of the session: it decides which rows and tables are seen."""
    facts = connection.settings_dict
    options = facts.get("OPTIONS") or {}
    told = (str(options.get(name, "")) for name in ("options", "init_command", "assume_role"))
    return (facts["NAME"], schemas.named(connection), str(facts.get("USER", "")), *told)


def namespace(connection: Any, key_prefix: str, chosen_text: str = "") -> str:
    """The name of the namespace: readable in front, a digest of the database's identity behind.

    Only letters, digits and ``. _ -``, whatever the database is called. ``chosen_text``, which
    has no others, makes one database several, that hear nothing of each other.
    """
    facts = identity(connection)
    if chosen_text:
        facts = (*facts, "chosen", chosen_text)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    # One file of SQLite may be spelt in many ways.
    named = facts[1] if connection.vendor == "sqlite" else connection.settings_dict["NAME"]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(named))[-32:]
    parts = (key_prefix, name.strip("-"), chosen_text, digest)
    return "-".join(part for part in parts if part)


def identity(connection: Any) -> tuple[object, ...]:
    """What makes the physical database behind ``connection`` this one and no other.

    All programs that share a cache must spell HOST, PORT and NAME alike, or the OPTIONS instead
    of these: ormcache compares the settings, reads no file and asks no server.
    """
    facts = connection.settings_dict
    name = facts["NAME"]
    if connection.vendor == "sqlite":
        if connection.is_in_memory_db():
            return ("sqlite", str(name), _process, _own_number(connection))
        return ("sqlite", _file_of(name), *_test_run())
    return (
        connection.vendor,
        facts.get("HOST") or "",
        str(facts.get("PORT") or ""),
        str(name),
        # A service file or a DSN may name the server instead.
        str((facts.get("OPTIONS") or {}).get("service", "")),
        *_given(connection, _ADDRESS),
        *_test_run(),
    )


def _own_number(connection: Any) -> int:
    """Sets apart connections to ":memory:": each has a database of its own, in each process.

    Not id(): a connection that is gone leaves its number to the next one.
    """
    if str(connection.settings_dict["NAME"]) != ":memory:":
        return 0
    facts = connection.__dict__
    number: int = facts.get(_NUMBER) or facts.setdefault(_NUMBER, next(_numbers))
    return number


def _file_of(name: Any) -> str:
    """The file of an SQLite database; its name may be a URI, as in "file:shop.db?mode=ro"."""
    text: str = os.fspath(name)
    if text.startswith("file:"):
        path = unquote(text.removeprefix("file:").partition("?")[0].partition("#")[0])
        # file:///path and file://localhost/path
        text = re.sub(r"\A//(localhost)?(?=/)", "", path)
    return os.path.realpath(text)


def _test_run() -> tuple[str, ...]:
    """Sets one test run apart from the next, which makes databases of the same names.

    Parallel clones are copied by the database itself, so nothing would flush what a former run
    left behind. Child processes inherit the variable.
    """
    run = os.environ.get(_RUN_VARIABLE)
    if run is None and is_under_test():
        run = os.environ[_RUN_VARIABLE] = os.urandom(8).hex()
    return () if run is None else (run,)
