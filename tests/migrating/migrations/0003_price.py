from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("migrating", "0002_items")]
    operations = [
        migrations.AddField("Item", "price", models.IntegerField(default=0)),
        migrations.RunSQL("UPDATE migrating_item SET price = 7", migrations.RunSQL.noop),
    ]
