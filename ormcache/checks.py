"""System checks: what is wrong with the settings, with an id, a hint and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core import checks
from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connections

from ormcache import conf
from ormcache.routers.namespaces import namespace
from ormcache.stores import strict_store

_RIVALS = {"cachalot": "E006", "cacheops": "E007"}


def register() -> None:
    """Register the checks; ``manage.py check`` runs them."""
    checks.register(check_settings, checks.Tags.caches)


def check_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    """All checks of ormcache."""
    settings, problems = conf.parse(getattr(django_settings, "ORMCACHE", None) or {})
    found: list[checks.CheckMessage] = [
        _error(problem.code, problem.message, problem.hint) for problem in problems
    ]
    found += _unknown_names(settings)
    found += _other_caches()
    if settings.ENABLED:
        for alias in sorted(_cache_aliases(settings)):
            if alias in django_settings.CACHES:
                found += _cache(alias, settings)
        found += _shared_databases(settings)
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
        app_label, _, name = label.rpartition(".")
        try:
            app = apps.get_app_config(app_label)
            # Exactly as it is spelled, since that is how the settings are looked up.
            if name != "*" and app.get_model(name).__name__ != name:
                raise LookupError
        except LookupError:
            yield _error(
                "E005",
                f"ORMCACHE['MODELS'] has {label!r}, which is no model.",
                'Write "app_label.ModelName", or "app_label.*" for all models of an app.',
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
        "Run `pip uninstall django-ormcache` and then `pip install --force-reinstall ormcache`.",
    )


def _cache(alias: str, settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    cache: Any = caches[alias]
    configuration = django_settings.CACHES[alias]
    options = configuration.get("OPTIONS") or {}
    if isinstance(cache, DummyCache):
        yield _warning(
            "W004",
            f"The cache {alias!r} is a dummy: ormcache caches nothing.",
            'Choose another with ORMCACHE["CACHE_ALIAS"], or set ORMCACHE["ENABLED"] to False.',
        )
        return
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
            "in it, and a hit costs a query of the other.",
            'Choose another cache with ORMCACHE["CACHE_ALIAS"].',
        )
    elif settings.CONSISTENCY == "strict" and strict_store(alias) is None:
        yield _error(
            "E009",
            f"The cache {alias!r} ({configuration['BACKEND']}) cannot give strict consistency.",
            "Use Redis or Valkey without a sharding or herd client, or set "
            'ORMCACHE["CONSISTENCY"] to "auto".',
        )
    location = configuration.get("LOCATION", "")
    servers = location if isinstance(location, (list, tuple)) else str(location).split(";")
    if len([server for server in servers if server]) > 1:
        if strict_store(alias) is not None:
            hint = "ormcache uses the first server only, the primary; the others get no reads."
        else:
            hint = (
                "A client that ejects a server and takes it back brings old entries back, too. "
                "Give ormcache a cache alias with one server."
            )
        yield _warning("W002", f"The cache {alias!r} has several servers.", hint)
    if options.get("IGNORE_EXCEPTIONS") or getattr(
        django_settings, "DJANGO_REDIS_IGNORE_EXCEPTIONS", False
    ):
        yield _warning(
            "W003",
            f"The cache {alias!r} ignores exceptions, which hides lost invalidations.",
            "In strict mode ormcache uses sockets of its own and is not affected; in standard "
            "mode remove IGNORE_EXCEPTIONS.",
        )


def _shared_databases(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Aliases of one database must share a cache, or a write would reach one of them only."""
    seen: dict[str, tuple[str, str]] = {}
    for alias in connections:
        try:
            space = namespace(connections[alias], settings.KEY_PREFIX)
        except KeyError:
            # An alias without a NAME is Django's to complain about.
            continue
        database = settings.DATABASES.get(alias)
        cache_alias = (database and database.CACHE_ALIAS) or settings.CACHE_ALIAS
        other, other_cache = seen.setdefault(space, (alias, cache_alias))
        if other_cache != cache_alias:
            yield _error(
                "E010",
                f"The database aliases {other!r} and {alias!r} are the same database but use "
                f"the caches {other_cache!r} and {cache_alias!r}.",
                "Give both the same CACHE_ALIAS in ORMCACHE['DATABASES'].",
            )
