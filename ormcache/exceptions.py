"""The errors that ormcache raises."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError


class OrmcacheError(Exception):
    """Base class of ormcache's errors."""


class SettingsError(OrmcacheError, ImproperlyConfigured):
    """The ORMCACHE setting is wrong; `manage.py check` lists each problem with a hint."""


class CacheError(OrmcacheError):
    """The cache did not do what it was asked to. Never leaves ormcache."""


class CacheTimeout(CacheError):
    """The cache did not answer in time: asking again would take as long. Never leaves ormcache."""


class CacheUnreachable(OrmcacheError, OperationalError):
    """A write was refused because neither the cache nor the fence could be told about it.

    ``ormcache.invalidate()`` and ``flush()`` raise it, too, if they cannot tell the cache.

    It is a ``django.db.OperationalError``, so that ``atomic()`` rolls the transaction back:
    Django rolls back after a failed commit for database errors only, and MySQL and SQLite
    would commit for any other error. ``ORMCACHE["ON_CACHE_FAILURE"]`` says when writes are
    refused.
    """


class NoFence(OrmcacheError):
    """A write could not be announced in the table ``ormcache_fence``. Never leaves ormcache."""


class NotEncodable(OrmcacheError, TypeError):
    """A value cannot be stored, or not be told apart from others. Never leaves ormcache."""


class Corrupt(OrmcacheError, ValueError):
    """A cache entry does not decode. Never leaves ormcache: it counts as a miss."""


class Mismatch(OrmcacheError, AssertionError):
    """The cache would have answered otherwise than the database, and no write can be the reason.

    Raised only where ``ORMCACHE["ON_MISMATCH"]`` is ``"raise"``, as it is in tests by default.
    """
