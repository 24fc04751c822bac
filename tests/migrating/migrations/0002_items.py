from django.db import migrations

from tests.migrating import steps


def populate(apps, editor):
    alias = editor.connection.alias
    items = apps.get_model("migrating", "Item").objects.using(alias)
    items.create(name="old")
    assert items.get().name == "old"
    items.update(name="new")
    assert items.get().name == "new"
    if step := steps.get("populate"):
        step(alias)


class Migration(migrations.Migration):
    dependencies = [("migrating", "0001_initial")]
    operations = [migrations.RunPython(populate, migrations.RunPython.noop)]
