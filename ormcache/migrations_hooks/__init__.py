"""Migrations flush the namespace of the database on which they run."""

from ormcache.migrations_hooks.flush import connect, disconnect

__all__ = ["connect", "disconnect"]
