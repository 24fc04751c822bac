from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rolling", "0001_initial")]
    operations = [
        migrations.AddField("Grown", "extra", models.IntegerField(default=7)),
    ]
