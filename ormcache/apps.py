"""Starts ormcache with the project."""

from __future__ import annotations

from django.apps import AppConfig


class OrmcacheConfig(AppConfig):
    """All that ``INSTALLED_APPS += ["ormcache"]`` does."""

    name = "ormcache"
    verbose_name = "ORM cache"

    def ready(self) -> None:
        from ormcache import checks, migrations_hooks, patches

        checks.register()
        migrations_hooks.connect()
        patches.install()
