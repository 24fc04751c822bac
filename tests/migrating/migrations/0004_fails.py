from django.db import migrations

from tests.migrating import Failure


def fail(apps, editor):
    items = apps.get_model("migrating", "Item").objects.using(editor.connection.alias)
    items.update(name="never")
    raise Failure


class Migration(migrations.Migration):
    dependencies = [("migrating", "0003_price")]
    operations = [migrations.RunPython(fail)]
