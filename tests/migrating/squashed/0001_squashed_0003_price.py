from django.db import migrations, models


class Migration(migrations.Migration):
    """What the first three migrations came to."""

    initial = True
    replaces = [
        ("migrating", "0001_initial"),
        ("migrating", "0002_items"),
        ("migrating", "0003_price"),
    ]
    operations = [
        migrations.CreateModel(
            "Item",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50)),
                ("price", models.IntegerField(default=0)),
                ("friends", models.ManyToManyField("self")),
            ],
        )
    ]
