from django.db import migrations

from tests.rolling.fields import Flag, Word


class Migration(migrations.Migration):
    dependencies = [("rolling", "0007_switch")]
    operations = [
        migrations.AlterField("Recoded", "word", Word(max_length=20)),
        migrations.AlterField("Recoded", "flag", Flag()),
    ]
