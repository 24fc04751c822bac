from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("rolling", "0002_add")]
    operations = [
        migrations.RenameField("Renamed", "title", "heading"),
    ]
