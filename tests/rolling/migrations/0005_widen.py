from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rolling", "0004_retype")]
    operations = [
        migrations.AlterField("Widened", "text", models.CharField(max_length=40, default="none")),
    ]
