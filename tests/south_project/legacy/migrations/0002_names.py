from south.db import db
from south.v2 import DataMigration

from pauses import pause


class Migration(DataMigration):
    no_dry_run = True

    def forwards(self, orm):
        orm["legacy.Item"].objects.using(db.db_alias).update(name="new")
        pause("before the commit")

    def backwards(self, orm):
        orm["legacy.Item"].objects.using(db.db_alias).update(name="old")

    models = {
        "legacy.item": {
            "Meta": {"object_name": "Item"},
            "id": ("django.db.models.fields.AutoField", [], {"primary_key": "True"}),
            "name": ("django.db.models.fields.CharField", [], {"max_length": "20"}),
        }
    }
