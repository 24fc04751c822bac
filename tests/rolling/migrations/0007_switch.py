from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rolling", "0006_scale")]
    operations = [
        migrations.AlterField("Switched", "is_on", models.BooleanField()),
    ]
