from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("rolling", "0010_remake")]
    operations = [
        migrations.RunSQL("UPDATE rolling_told SET name = 'told', version = version + 1000"),
    ]
