from south.db import db
from south.v2 import SchemaMigration


class Migration(SchemaMigration):
    def forwards(self, orm):
        db.create_table(
            "legacy_item",
            (
                ("id", self.gf("django.db.models.fields.AutoField")(primary_key=True)),
                ("name", self.gf("django.db.models.fields.CharField")(max_length=20)),
            ),
        )
        db.send_create_signal("legacy", ["Item"])
        if not db.dry_run:
            orm["legacy.Item"].objects.using(db.db_alias).create(name="old")

    def backwards(self, orm):
        db.delete_table("legacy_item")

    models = {
        "legacy.item": {
            "Meta": {"object_name": "Item"},
            "id": ("django.db.models.fields.AutoField", [], {"primary_key": "True"}),
            "name": ("django.db.models.fields.CharField", [], {"max_length": "20"}),
        }
    }
