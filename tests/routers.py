"""Keeps what only PostgreSQL can hold away from the other databases."""

from typing import Any

from django.db import connections
from django.db.models import Model


class PostgresOnly:
    app_label = "tests_postgres"

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return "postgresql" if model._meta.app_label == self.app_label else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        if app_label == self.app_label:
            return connections[db].vendor == "postgresql"
        return None
