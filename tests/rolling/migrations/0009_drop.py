from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("rolling", "0008_recode")]
    operations = [
        migrations.DeleteModel("Dropped"),
    ]
