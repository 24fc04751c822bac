from south.db import db
from south.v2 import SchemaMigration


class Migration(SchemaMigration):
    def forwards(self, orm):
        db.add_column(
            "legacy_item",
            "price",
            self.gf("django.db.models.fields.IntegerField")(default=7),
            keep_default=False,
        )

    def backwards(self, orm):
        db.delete_column("legacy_item", "price")

    models = {
        "legacy.item": {
            "Meta": {"object_name": "Item"},
            "id": ("django.db.models.fields.AutoField", [], {"primary_key": "True"}),
            "name": ("django.db.models.fields.CharField", [], {"max_length": "20"}),
            "price": ("django.db.models.fields.IntegerField", [], {"default": "0"}),
        }
    }
