"""The demo's tables. All their names begin with ``demo_``."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="City",
            fields=[
                ("geoname", models.BigIntegerField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=200)),
                ("population", models.BigIntegerField()),
                ("latitude", models.FloatField()),
                ("longitude", models.FloatField()),
                ("timezone", models.CharField(max_length=50)),
                (
                    "changed_at",
                    models.DateTimeField(help_text="Not set: as GeoNames has it", null=True),
                ),
            ],
            options={
                "db_table": "demo_city",
            },
        ),
        migrations.CreateModel(
            name="Continent",
            fields=[
                ("code", models.CharField(max_length=2, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=30)),
            ],
            options={
                "db_table": "demo_continent",
            },
        ),
        migrations.CreateModel(
            name="DataSet",
            fields=[
                ("name", models.CharField(max_length=20, primary_key=True, serialize=False)),
                ("release", models.CharField(max_length=20)),
                ("complete", models.BooleanField()),
                ("loaded_at", models.DateTimeField(auto_now=True)),
            ],
            options={
                "db_table": "demo_dataset",
            },
        ),
        migrations.CreateModel(
            name="Language",
            fields=[
                ("tag", models.CharField(max_length=16, primary_key=True, serialize=False)),
            ],
            options={
                "db_table": "demo_language",
            },
        ),
        migrations.CreateModel(
            name="Run",
            fields=[
                ("number", models.PositiveSmallIntegerField(primary_key=True, serialize=False)),
                ("seen_at", models.DateTimeField()),
            ],
            options={
                "db_table": "demo_run",
            },
        ),
        migrations.CreateModel(
            name="AlternateName",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=200)),
                (
                    "city",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="alternate_names",
                        to="ormcache_demo.city",
                    ),
                ),
            ],
            options={
                "db_table": "demo_alternate_name",
            },
        ),
        migrations.CreateModel(
            name="Country",
            fields=[
                ("iso", models.CharField(max_length=2, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("area", models.FloatField(help_text="km²")),
                ("population", models.BigIntegerField()),
                ("currency", models.CharField(max_length=40)),
                (
                    "continent",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="countries",
                        to="ormcache_demo.continent",
                    ),
                ),
                (
                    "neighbours",
                    models.ManyToManyField(
                        db_table="demo_country_neighbours", to="ormcache_demo.country"
                    ),
                ),
                (
                    "languages",
                    models.ManyToManyField(
                        db_table="demo_country_languages",
                        related_name="countries",
                        to="ormcache_demo.language",
                    ),
                ),
            ],
            options={
                "db_table": "demo_country",
            },
        ),
        migrations.AddField(
            model_name="city",
            name="country",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="cities",
                to="ormcache_demo.country",
            ),
        ),
        migrations.CreateModel(
            name="Capital",
            fields=[
                (
                    "city_ptr",
                    models.OneToOneField(
                        auto_created=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        parent_link=True,
                        primary_key=True,
                        serialize=False,
                        to="ormcache_demo.city",
                    ),
                ),
                (
                    "seat_of",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="capital",
                        to="ormcache_demo.country",
                    ),
                ),
            ],
            options={
                "db_table": "demo_capital",
            },
            bases=("ormcache_demo.city",),
        ),
        migrations.AddIndex(
            model_name="city",
            index=models.Index(fields=["country", "-population"], name="demo_city_by_country"),
        ),
        migrations.AddIndex(
            model_name="city",
            index=models.Index(fields=["-population"], name="demo_city_by_population"),
        ),
        migrations.AddIndex(
            model_name="city",
            index=models.Index(fields=["name"], name="demo_city_by_name"),
        ),
    ]
