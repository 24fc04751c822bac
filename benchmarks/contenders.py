"""The contenders, the stacks, and the Django settings of each combination.

Each is set up as its own documentation recommends for speed and left at its defaults
otherwise, so that the comparison is one of what a reader of that documentation gets.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

NO_CACHE = "none"
CONTENDERS = (NO_CACHE, "cachalot", "cacheops", "ormcache")
STACKS = ("postgres-redis", "sqlite-locmem")

# Each contender has a Redis database of its own: nobody sees another's keys.
_REDIS_DATABASES = {name: number for number, name in enumerate(CONTENDERS, start=1)}


@dataclass(frozen=True)
class Services:
    """Where one stack lives: a Django database and, perhaps, a Redis server."""

    stack: str
    database: dict[str, Any]
    redis: str | None = None

    def redis_for(self, contender: str) -> str | None:
        """The URL of the contender's own Redis database."""
        if self.redis is None:
            return None
        return f"{self.redis.rstrip('/')}/{_REDIS_DATABASES[contender]}"


def why_not(contender: str, stack: str) -> str | None:
    """Why the contender cannot run on the stack, or None if it can."""
    if contender == "cacheops" and stack == "sqlite-locmem":
        return "needs Redis"
    if contender != NO_CACHE and not _is_installed(contender):
        return "not installed"
    return None


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder without __init__.py is found as well, but has no origin.
    return spec is not None and spec.origin is not None


def settings_for(contender: str, services: Services) -> dict[str, Any]:
    """The keyword arguments of `settings.configure()` for one worker."""
    settings: dict[str, Any] = {
        "DATABASES": {"default": services.database},
        "CACHES": {"default": _cache(contender, services)},
        "INSTALLED_APPS": ["benchmarks.catalog"],
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "SECRET_KEY": "benchmarks",
        "USE_TZ": True,
    }
    if contender == "cachalot":
        settings["INSTALLED_APPS"].append("cachalot")
    elif contender == "cacheops":
        settings["INSTALLED_APPS"].append("cacheops")
        settings["CACHEOPS_REDIS"] = services.redis_for(contender)
        settings["CACHEOPS"] = {"catalog.*": {"ops": "all", "timeout": 60 * 60}}
    elif contender == "ormcache":
        settings["INSTALLED_APPS"].append("ormcache")
        settings["ORMCACHE"] = {}
    return settings


def _cache(contender: str, services: Services) -> dict[str, Any]:
    location = services.redis_for(contender)
    if location is None:
        return {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            # The default of 300 would cull entries in the middle of a miss case.
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        }
    if contender == "cachalot":
        # Its documentation: "django-redis"; redis-py takes hiredis when it is there.
        return {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}
    return {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": location,
    }
