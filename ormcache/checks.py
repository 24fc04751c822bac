"""System checks: what is wrong with the settings, with an id, a hint and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core import checks
from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.memcached import BaseMemcachedCache
from django.db import connections, router

from ormcache import conf, policies, relations, sql
from ormcache.exceptions import SettingsError
from ormcache.replica_router import ReplicaRouter
from ormcache.routers import chosen, groups
from ormcache.routers.namespaces import (
    cache_alias_of,
    group_namespace,
    identity,
    is_mirrored,
    may_lag,
    way,
)
from ormcache.stores import strict_store

_RIVALS = {"cachalot": "E006", "cacheops": "E007"}


def register() -> None:
    """Register the checks; ``manage.py check`` runs them."""
    checks.register(check_settings, checks.Tags.caches)


def check_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    """All checks of ormcache."""
    settings, problems = conf.parse(getattr(django_settings, "ORMCACHE", None))
    found: list[checks.CheckMessage] = [
        _error(problem.code, problem.message, problem.hint) for problem in problems
    ]
    found += _unknown_names(settings)
    found += _unknown_tables(settings)
    found += _labels(settings)
    found += _lease(settings)
    found += _fence(settings)
    found += _other_caches()
    if settings.ENABLED:
        for alias in sorted(_cache_aliases(settings)):
            if alias in django_settings.CACHES:
                found += _cache(alias, settings)
    try:
        primaries = groups.primaries(settings)
    except SettingsError as error:
        found.append(
            _error(
                "E012",
                str(error),
                "Look at PRIMARY in ORMCACHE['DATABASES'] and at TEST['MIRROR'] in DATABASES.",
            )
        )
        return found
    found += _groups(primaries, settings)
    found += _chosen_namespaces(settings)
    found += _routers(primaries, settings)
    found += _order_of_middleware()
    if settings.ENABLED:
        found += _unnamed_databases(primaries, settings)
        found += _shared_databases(settings)
        found += _undeclared_replicas(primaries, settings)
    return found


def _error(code: str, message: str, hint: str) -> checks.Error:
    return checks.Error(message, hint=hint, id=f"ormcache.{code}")


def _warning(code: str, message: str, hint: str) -> checks.Warning:
    return checks.Warning(message, hint=hint, id=f"ormcache.{code}")


def _cache_aliases(settings: conf.Settings) -> set[str]:
    aliases = {database.CACHE_ALIAS for database in settings.DATABASES.values()}
    return {settings.CACHE_ALIAS} | {alias for alias in aliases if alias is not None}


def _unknown_names(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    for alias in sorted(_cache_aliases(settings) - set(django_settings.CACHES)):
        yield _error(
            "E003",
            f"ORMCACHE uses the cache alias {alias!r}, which CACHES does not have.",
            "Known aliases: " + ", ".join(sorted(django_settings.CACHES)) + ".",
        )
    for alias in sorted(set(settings.DATABASES) - set(connections)):
        yield _error(
            "E004",
            f"ORMCACHE['DATABASES'] has the alias {alias!r}, which DATABASES does not have.",
            "Known aliases: " + ", ".join(sorted(connections)) + ".",
        )
    for label in sorted(settings.MODELS):
        if not _is_label(label):
            similar = _label_in_other_case(label)
            yield _error(
                "E005",
                f"ORMCACHE['MODELS'] has {label!r}, which is no model.",
                (f"Did you mean {similar!r}? " if similar else "")
                + 'Write "app_label.ModelName", "app_label.*" for all models of an app, or "*" '
                "for all.",
            )


def _is_label(label: str) -> bool:
    """Whether ``label`` may be a key of ``MODELS``."""
    if label == policies.ALL:
        return True
    app_label, _, name = label.rpartition(".")
    try:
        app = apps.get_app_config(app_label)
        # Exactly as it is spelled, since that is how the settings are looked up.
        return name == "*" or app.get_model(name).__name__ == name
    except LookupError:
        return False


def _label_in_other_case(label: str) -> str:
    """The label that differs from this one in its case only, or ``""``."""
    labels = [f"{app_label}.*" for app_label in apps.app_configs]
    labels += [model._meta.label for model in apps.get_models(include_auto_created=True)]
    return next((known for known in labels if known.lower() == label.lower()), "")


def _unknown_tables(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """A table that is misspelt here would never be invalidated."""
    models = apps.get_models(include_auto_created=True, include_swapped=True)
    known = {sql.table_name(model._meta.db_table) for model in models} | {"django_migrations"}
    known |= {sql.fold(name) for name in settings.DEPENDS_ON}
    for option in ("DEPENDS_ON", "WRITES"):
        for key, names in sorted(getattr(settings, option).items()):
            for name in sorted(names):
                if sql.fold(name) not in known and not _table_of(name):
                    yield _warning(
                        "W007",
                        f"ORMCACHE[{option!r}][{key!r}] names the table {name!r}, which is that "
                        "of no model.",
                        "Write the name of the table (Model._meta.db_table), without a schema; "
                        "silence ormcache.W007 if the table has no model.",
                    )


def _labels(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """The label of a model is the name of no table: it is never met, as key or as value."""
    for option in ("DEPENDS_ON", "WRITES"):
        declared: Mapping[str, Iterable[str]] = getattr(settings, option)
        names = {name for key, values in declared.items() for name in (key, *values)}
        for name in sorted(names):
            table = _table_of(name)
            if table:
                yield _warning(
                    "W016",
                    f"ORMCACHE[{option!r}] has {name!r}, which is the label of a model: names of "
                    "tables are expected there, and it has no effect.",
                    f"Write the name of its table: {table!r}; silence ormcache.W016 if "
                    f"{name.partition('.')[0]!r} is a schema.",
                )


def _table_of(label: str) -> str:
    """The table of the model with this label, or ``""`` if there is none of another name."""
    try:
        table = relations.table(apps.get_model(label))
    except (LookupError, ValueError):
        return ""
    return "" if table == sql.fold(label) else table


def _lease(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    if settings.LEASE < 3 * settings.SOCKET_TIMEOUT:
        yield _warning(
            "W006",
            f"ORMCACHE['LEASE'] is {settings.LEASE} s, less than three times SOCKET_TIMEOUT "
            f"({settings.SOCKET_TIMEOUT} s).",
            "A commit is announced again when a third of its lease is over before the cache has "
            "answered: lengthen LEASE or shorten SOCKET_TIMEOUT.",
        )


def _fence(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    raw = getattr(django_settings, "ORMCACHE", None)
    is_asked_for = isinstance(raw, Mapping) and raw.get("ON_CACHE_FAILURE") == "fence"
    if is_asked_for and settings.fence_interval is None:
        yield _error(
            "E017",
            "ORMCACHE['ON_CACHE_FAILURE'] is 'fence', but with FENCE None nobody looks there.",
            "Leave FENCE out, or give a number of seconds; or set ON_CACHE_FAILURE to 'raise'.",
        )


def _other_caches() -> Iterator[checks.CheckMessage]:
    for app, code in _RIVALS.items():
        if apps.is_installed(app):
            yield _error(
                code,
                f"ormcache and django-{app} are both installed; they patch the same functions.",
                f'Remove "{app}" or "ormcache" from INSTALLED_APPS.',
            )
    try:
        metadata.distribution("django-ormcache")
    except metadata.PackageNotFoundError:
        return
    yield _error(
        "E008",
        "The distribution django-ormcache is installed; it has a package of the same name.",
        "Run `pip uninstall django-ormcache`, and install ormcache again from where you had it.",
    )


def _cache(alias: str, settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    cache: Any = caches[alias]
    if isinstance(cache, DummyCache):
        yield _warning(
            "W004",
            f"The cache {alias!r} is a dummy: ormcache caches nothing.",
            'Choose another with ORMCACHE["CACHE_ALIAS"], or set ORMCACHE["ENABLED"] to False.',
        )
        return
    yield from _kind(alias, cache)
    try:
        can_be_strict = strict_store(alias) is not None
    except Exception as error:
        yield _error(
            "E011",
            f"The cache {alias!r} cannot be opened: {type(error).__name__}: {error}",
            f"Look at CACHES[{alias!r}], and whether the client library is installed.",
        )
        return
    if settings.CONSISTENCY == "strict" and not can_be_strict:
        yield _error(
            "E009",
            f"The cache {alias!r} ({django_settings.CACHES[alias]['BACKEND']}) cannot give "
            "strict consistency.",
            "Use Redis or Valkey without a sharding or herd client, or set "
            'ORMCACHE["CONSISTENCY"] to "auto".',
        )
    is_strict = can_be_strict and settings.CONSISTENCY != "standard"
    yield from _several_servers(alias, cache, is_strict)
    yield from _ignored_exceptions(alias, is_strict)


def _kind(alias: str, cache: Any) -> Iterator[checks.CheckMessage]:
    if isinstance(cache, LocMemCache):
        yield _warning(
            "W001",
            f"The cache {alias!r} is local memory, which is coherent in one process only: a "
            "write of another process (a second worker, a shell, a cron job) is not seen.",
            "Use Redis, Valkey or Memcached wherever more than one process uses the database; "
            "silence ormcache.W001 where there is one.",
        )
    elif isinstance(cache, BaseDatabaseCache):
        yield _warning(
            "W005",
            f"The cache {alias!r} lives in a database: ormcache caches nothing of that database "
            "in it, a hit costs a query of the other, and in a transaction of that database "
            "nothing is cached and other databases cannot be written.",
            'Choose another cache with ORMCACHE["CACHE_ALIAS"].',
        )
    elif isinstance(cache, FileBasedCache):
        yield _warning(
            "W009",
            f"The cache {alias!r} keeps files: it forgets at random what ormcache must remember, "
            "and lets a reader overwrite what a writer has just set.",
            'Choose another cache with ORMCACHE["CACHE_ALIAS"].',
        )


def _several_servers(alias: str, cache: Any, is_strict: bool) -> Iterator[checks.CheckMessage]:
    if isinstance(cache, (LocMemCache, BaseDatabaseCache, FileBasedCache)):
        return
    location = django_settings.CACHES[alias].get("LOCATION") or ""
    # Django and its Redis packages split a string like this.
    servers = re.split("[;,]", location) if isinstance(location, str) else location
    if len([server for server in servers if server]) < 2:
        return
    message = f"The cache {alias!r} has several servers."
    if is_strict:
        hint = "ormcache uses the first server only, the primary; the others get no reads."
        yield _warning("W002", message, hint)
        return
    if isinstance(cache, BaseMemcachedCache):
        why = "A client that ejects a server and takes it back brings old entries back, too."
    else:
        why = "A replica that lags behind answers with what is out of date."
    yield _error("E019", message, f"{why} Give ormcache a cache alias with one server.")


def _ignored_exceptions(alias: str, is_strict: bool) -> Iterator[checks.CheckMessage]:
    """Only standard mode uses the client that ignores them."""
    options = django_settings.CACHES[alias].get("OPTIONS") or {}
    ignored = options.get("IGNORE_EXCEPTIONS") or any(
        getattr(django_settings, f"DJANGO_{client}_IGNORE_EXCEPTIONS", False)
        for client in ("REDIS", "VALKEY")
    )
    if ignored and not is_strict:
        yield _warning(
            "W003",
            f"The cache {alias!r} ignores exceptions: a server that is down looks like one that "
            "is empty, and every read waits for it.",
            "Remove IGNORE_EXCEPTIONS, or let ormcache be strict, where it uses sockets of its "
            "own.",
        )


def _groups(
    primaries: Mapping[str, str], settings: conf.Settings
) -> Iterator[checks.CheckMessage]:
    for alias, primary in primaries.items():
        replica: Any = connections[alias]
        if replica.vendor != connections[primary].vendor:
            yield _error(
                "E013",
                f"The database alias {alias!r} is declared to be a replica of {primary!r}, but "
                f"they are databases of different kinds ({replica.vendor} and "
                f"{connections[primary].vendor}).",
                f"Leave out the PRIMARY of {alias!r}, or name the alias that it replicates.",
            )
            continue
        database = settings.DATABASES.get(alias) or conf.DatabaseSettings()
        if not database.ENABLED or database.MAX_LAG is not None:
            continue
        lags = may_lag(replica, connections[primary], settings)
        if lags and replica.vendor not in ("postgresql", "mysql"):
            yield _warning(
                "W010",
                f"Nothing tells how far the replica {alias!r} ({replica.vendor}) is behind "
                f"{primary!r}, so nothing that is read from it is stored.",
                f"Declare ORMCACHE['DATABASES'][{alias!r}]['MAX_LAG'], in seconds.",
            )
        # SQLite has no servers, and a test run one of them.
        is_certain = replica.vendor == "sqlite" or is_mirrored(replica)
        if database.PRIMARY is not None and not lags and not is_certain:
            yield _warning(
                "W015",
                f"The database alias {alias!r} is declared to be a replica of {primary!r}, but "
                "nothing in DATABASES tells their servers apart: what is read from it is stored "
                "as if it were never behind.",
                f"If it may be, declare ORMCACHE['DATABASES'][{alias!r}]['MAX_LAG'], in seconds; "
                "silence ormcache.W015 if both lead to one server.",
            )
    for alias, database in sorted(settings.DATABASES.items()):
        if database.MAX_LAG is not None and alias not in primaries and alias in connections:
            yield _warning(
                "W011",
                f"ORMCACHE['DATABASES'][{alias!r}] has a MAX_LAG, but {alias!r} is no replica.",
                f"Say of which alias it is: ORMCACHE['DATABASES'][{alias!r}]['PRIMARY'].",
            )


def _chosen_namespaces(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Try the functions that choose namespaces: one that fails would fail at every query."""
    messages: dict[str, None] = {}
    for alias in connections:
        try:
            chosen.text_for(connections[alias], settings)
        except SettingsError as error:
            messages[str(error)] = None
    for message in messages:
        yield _error(
            "E014",
            message,
            "NAMESPACE must be a function, or its dotted path, that can be called at any time "
            "with a connection, open or not, makes no query and returns a short string.",
        )


def _is_one_database(one: str, other: str) -> bool:
    """Whether two aliases lead to one server: then there is no lag."""
    return identity(connections[one]) == identity(connections[other])


def _routers(
    primaries: Mapping[str, str], settings: conf.Settings
) -> Iterator[checks.CheckMessage]:
    for replica_router in router.routers:
        if not isinstance(replica_router, ReplicaRouter):
            continue
        primary = replica_router.primary
        if primary not in connections:
            yield _error(
                "E015",
                f"ReplicaRouter({primary!r}) is to write to a database alias that DATABASES does "
                "not have.",
                "Known aliases: " + ", ".join(sorted(connections)) + ".",
            )
        elif primary in primaries:
            yield _error(
                "E016",
                f"ReplicaRouter({primary!r}) is to write to {primary!r}, which is a replica of "
                f"{primaries[primary]!r}.",
                f"Write ReplicaRouter({primaries[primary]!r}).",
            )
        elif not groups.replicas_of(primary, settings):
            yield _warning(
                "W012",
                f"ReplicaRouter({primary!r}) has no replicas to read from.",
                "Declare them: ORMCACHE['DATABASES'][…]['PRIMARY'], or TEST['MIRROR'] in "
                "DATABASES.",
            )
        else:
            yield from _mirrors(primary, settings)


def _mirrors(primary: str, settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Django makes a test database for each alias that it does not know to be a replica."""
    for alias in groups.replicas_of(primary, settings):
        mirrored = (connections.settings[alias].get("TEST") or {}).get("MIRROR")
        if mirrored != primary and not _is_one_database(alias, primary):
            yield _warning(
                "W013",
                f"In tests, what ReplicaRouter({primary!r}) reads from {alias!r} comes from a "
                "test database of its own, which is empty.",
                f"Set DATABASES[{alias!r}]['TEST'] = {{'MIRROR': {primary!r}}}.",
            )


_SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
_PINS = "ormcache.routers.ReadYourWritesMiddleware"


def _order_of_middleware() -> Iterator[checks.CheckMessage]:
    order = list(django_settings.MIDDLEWARE)
    if _PINS in order and _SESSIONS in order[: order.index(_PINS)]:
        yield _warning(
            "W014",
            "MIDDLEWARE has ReadYourWritesMiddleware behind SessionMiddleware: it does not see "
            "that a session is saved, so the next request may not find it.",
            f"Move {_PINS!r} to the beginning of MIDDLEWARE.",
        )


def _unnamed_databases(
    primaries: Mapping[str, str], settings: conf.Settings
) -> Iterator[checks.CheckMessage]:
    """A file of options that another site has at the same path may name another database."""
    if settings.KEY_PREFIX:
        return
    for alias in sorted(set(connections) - set(primaries)):
        facts = connections[alias].settings_dict
        options = facts.get("OPTIONS") or {}
        if (
            facts["ENGINE"] != "django.db.backends.dummy"
            # It is nobody's: Django refuses to connect.
            and connections[alias].vendor != "sqlite"
            and not facts["NAME"]
            and not any(options.get(name) for name in ("dbname", "database", "db", "service"))
        ):
            yield _error(
                "E018",
                f"The database alias {alias!r} has no NAME: other sites that share the cache may "
                "have the same settings and another database, and would get its rows.",
                f"Set DATABASES[{alias!r}]['NAME'] to the name of the database, or "
                "ORMCACHE['KEY_PREFIX'] to one of the site's own.",
            )


def _shared_databases(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Aliases of one database must share a cache, or a write would reach one of them only."""
    seen: dict[str, tuple[str, str]] = {}
    for alias in connections:
        try:
            space = group_namespace(connections[alias], settings)
        except KeyError:
            # An alias without a NAME is Django's to complain about.
            continue
        cache_alias = cache_alias_of(alias, settings)
        other, other_cache = seen.setdefault(space, (alias, cache_alias))
        if other_cache != cache_alias:
            yield _error(
                "E010",
                f"The database aliases {other!r} and {alias!r} have the same data but use "
                f"the caches {other_cache!r} and {cache_alias!r}.",
                "Give both the same CACHE_ALIAS in ORMCACHE['DATABASES'].",
            )


def _undeclared_replicas(
    primaries: Mapping[str, str], settings: conf.Settings
) -> Iterator[checks.CheckMessage]:
    """An alias that is not known to be a replica hears of no write to its primary."""
    firsts: dict[tuple[str, str], str] = {}
    for alias in connections:
        connection: Any = connections[alias]
        name = str(connection.settings_dict.get("NAME") or "")
        if not name or connection.vendor == "sqlite":
            continue
        first = firsts.setdefault((connection.vendor, name), alias)
        database = settings.DATABASES.get(alias)
        if (
            alias in primaries
            or first in primaries
            or way(connection) == way(connections[first])
            or (database is not None and not database.ENABLED)
        ):
            continue
        yield _warning(
            "W008",
            f"The database alias {alias!r} looks like a replica of {first!r}: what is read "
            "through it is cached, and no write to the primary invalidates it.",
            f"Set ORMCACHE['DATABASES'][{alias!r}] = {{'PRIMARY': {first!r}}}, or silence "
            "ormcache.W008 if they are different databases.",
        )
