"""The table by which programs that write SQL announce what they have written.

It has no model: the ORM's reads of it would be cached. See :mod:`ormcache.fence`.
"""

from __future__ import annotations

from typing import Any

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.models.functions import Now


def _model() -> type[models.Model]:
    class Fence(models.Model):
        id = models.BigAutoField(primary_key=True)
        table_name = models.CharField(max_length=255)
        created = models.DateTimeField(db_default=Now())

        class Meta:
            apps = Apps()
            app_label = "ormcache"
            db_table = "ormcache_fence"

    return Fence


def create(apps: Any, schema_editor: Any) -> None:
    schema_editor.create_model(_model())


def delete(apps: Any, schema_editor: Any) -> None:
    schema_editor.delete_model(_model())


class Migration(migrations.Migration):
    dependencies = ()
    # atomic is about databases without transactional DDL: no transaction of its own there.
    operations = (migrations.RunPython(create, delete, atomic=False),)
