"""Migrations flush the namespace of the database on which they run."""

from ormcache.migrations_hooks.flush import connect, disconnect, migrate

__all__ = ["connect", "disconnect", "migrate"]
