"""Countries, their cities and the landmarks in them: a small, ordinary schema."""

from __future__ import annotations

from django.db import models


class Country(models.Model):
    name = models.CharField(max_length=60)
    code = models.CharField(max_length=3, unique=True)
    continent = models.CharField(max_length=20)

    class Meta:
        app_label = "catalog"

    def __str__(self) -> str:
        return self.name


class City(models.Model):
    """Eight columns; lists of it are read by country, largest first."""

    name = models.CharField(max_length=80)
    country = models.ForeignKey(Country, models.CASCADE, related_name="cities", db_index=False)
    population = models.PositiveIntegerField()
    latitude = models.FloatField()
    longitude = models.FloatField()
    # Not indexed, so that a write to it measures the row and the cache, not an index.
    elevation = models.IntegerField()
    updated = models.DateTimeField()

    class Meta:
        app_label = "catalog"
        indexes = [
            models.Index(fields=["country", "-population"], name="city_by_size"),
        ]

    def __str__(self) -> str:
        return self.name


class Landmark(models.Model):
    name = models.CharField(max_length=80)
    city = models.ForeignKey(City, models.CASCADE, related_name="landmarks")
    visitors = models.PositiveIntegerField()

    class Meta:
        app_label = "catalog"

    def __str__(self) -> str:
        return self.name
