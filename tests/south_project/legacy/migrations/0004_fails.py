from south.db import db
from south.v2 import DataMigration

from pauses import pause


class Migration(DataMigration):
    no_dry_run = True

    def forwards(self, orm):
        items = orm["legacy.Item"].objects.using(db.db_alias)
        items.update(name="half")
        db.commit_transaction()
        db.start_transaction()
        items.update(name="lost")
        pause("before the failure")
        raise ValueError("this migration fails")

    def backwards(self, orm):
        pass

    models = {
        "legacy.item": {
            "Meta": {"object_name": "Item"},
            "id": ("django.db.models.fields.AutoField", [], {"primary_key": "True"}),
            "name": ("django.db.models.fields.CharField", [], {"max_length": "20"}),
            "price": ("django.db.models.fields.IntegerField", [], {"default": "0"}),
        }
    }
