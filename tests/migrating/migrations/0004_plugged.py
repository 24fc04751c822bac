from django.db import migrations

from tests.migrating import plugged


class Migration(migrations.Migration):
    dependencies = [("migrating", "0003_price")]

    def __init__(self, name, app_label):
        super().__init__(name, app_label)
        self.operations = list(plugged.operations)
        self.atomic = plugged.is_atomic
