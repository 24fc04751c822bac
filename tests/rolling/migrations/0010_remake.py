from django.db import migrations, models


def fill(apps, editor):
    rows = apps.get_model("rolling", "Remade").objects.using(editor.connection.alias)
    for row in (1, 2, 3):
        # Newer than all versions of the table that was there before.
        rows.create(pk=row, name=row, version=10**6)


class Migration(migrations.Migration):
    dependencies = [("rolling", "0009_drop")]
    operations = [
        migrations.DeleteModel("Remade"),
        migrations.CreateModel(
            "Remade",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("version", models.IntegerField(default=1)),
                ("name", models.IntegerField()),
            ],
        ),
        migrations.RunPython(fill),
    ]
