from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rolling", "0003_rename")]
    operations = [
        migrations.AlterField("Retyped", "code", models.CharField(max_length=20)),
    ]
