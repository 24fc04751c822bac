"""The app of what only PostgreSQL can hold; `tests.routers.PostgresOnly` keeps it there."""

from typing import Any

from django.apps import AppConfig
from django.contrib.postgres.operations import HStoreExtension
from django.db import connections
from django.db.models.signals import pre_migrate


class TestsPostgresConfig(AppConfig):
    name = "tests.postgres"
    label = "tests_postgres"

    def ready(self) -> None:
        pre_migrate.connect(create_extension, sender=self)


def create_extension(using: str, **kwargs: Any) -> None:
    # The migration operation without a migration: it also tells the open connection about the
    # new type.
    with connections[using].schema_editor() as editor:
        HStoreExtension().database_forwards(TestsPostgresConfig.label, editor, None, None)
