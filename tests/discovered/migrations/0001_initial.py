from django.db import migrations, models


def seed(apps, editor):
    apps.get_model("discovered", "Row").objects.using(editor.connection.alias).create(name="seed")


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            "Row",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50)),
            ],
        ),
        migrations.RunPython(seed, migrations.RunPython.noop),
    ]
