"""GeoNames as models: foreign keys, many-to-many relations, inheritance.

Every table name begins with ``demo_``: the demo can live in a database that holds others.
"""

from __future__ import annotations

from django.db import models
from django.urls import reverse


class DataSet(models.Model):
    """What has been loaded. Written in the transaction that loads: no row means no data."""

    name = models.CharField(max_length=20, primary_key=True)
    release = models.CharField(max_length=20)
    complete = models.BooleanField()
    loaded_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "demo_dataset"

    def __str__(self) -> str:
        return f"{self.name} {self.release}"


class Run(models.Model):
    """The run that is at work on this database; see ``demo.sole_run``."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    seen_at = models.DateTimeField()

    class Meta:
        db_table = "demo_run"

    def __str__(self) -> str:
        return f"seen at {self.seen_at}"


class Continent(models.Model):
    """One of GeoNames' seven continents."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=30)

    class Meta:
        db_table = "demo_continent"

    def __str__(self) -> str:
        return self.name


class Language(models.Model):
    """A language as GeoNames has it: a tag such as ``mi`` or ``en-NZ``."""

    tag = models.CharField(max_length=16, primary_key=True)

    class Meta:
        db_table = "demo_language"

    def __str__(self) -> str:
        return self.tag


class Country(models.Model):
    """A country, also some that GeoNames knows but that are no more."""

    iso = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    continent = models.ForeignKey(Continent, models.CASCADE, related_name="countries")
    area = models.FloatField(help_text="km²")
    population = models.BigIntegerField()
    currency = models.CharField(max_length=40)
    languages = models.ManyToManyField(
        Language, related_name="countries", db_table="demo_country_languages"
    )
    neighbours = models.ManyToManyField("self", db_table="demo_country_neighbours")

    class Meta:
        db_table = "demo_country"

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("country", args=[self.pk])


class City(models.Model):
    """A city of over 15,000 inhabitants."""

    geoname = models.BigIntegerField(primary_key=True)
    name = models.CharField(max_length=200)
    country = models.ForeignKey(Country, models.CASCADE, related_name="cities")
    population = models.BigIntegerField()
    latitude = models.FloatField()
    longitude = models.FloatField()
    timezone = models.CharField(max_length=50)
    changed_at = models.DateTimeField(null=True, help_text="Not set: as GeoNames has it")

    class Meta:
        db_table = "demo_city"
        indexes = [
            models.Index(fields=["country", "-population"], name="demo_city_by_country"),
            models.Index(fields=["-population"], name="demo_city_by_population"),
            models.Index(fields=["name"], name="demo_city_by_name"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("city", args=[self.pk])


class Capital(City):
    """A city with a row in a second table: a read joins both, so a write to either concerns it."""

    seat_of = models.OneToOneField(Country, models.CASCADE, related_name="capital")

    class Meta:
        db_table = "demo_capital"


class AlternateName(models.Model):
    """Another name of a city, in some language and script."""

    city = models.ForeignKey(City, models.CASCADE, related_name="alternate_names")
    name = models.CharField(max_length=200)

    class Meta:
        db_table = "demo_alternate_name"

    def __str__(self) -> str:
        return self.name
