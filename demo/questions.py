"""The queries of the demo's pages. The web pages and the comparison ask the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Avg, Count, Exists, Max, OuterRef, Sum
from django.db.models.functions import Now

from demo.models import Capital, City, Continent, Country, Language


@dataclass(frozen=True)
class Question:
    """A query with a name.

    ``ask`` builds it anew each time, as a view does, and returns what it loaded.
    """

    name: str
    ask: Callable[[], Any]


def country_list() -> list[Country]:
    countries = Country.objects.select_related("continent").annotate(city_count=Count("cities"))
    return list(countries.order_by("name", "pk"))


def continents() -> list[Continent]:
    return list(Continent.objects.order_by("name"))


def world() -> dict[str, Any]:
    return City.objects.aggregate(
        cities=Count("pk"), inhabitants=Sum("population"), largest=Max("population")
    )


def country(iso: str) -> Country:
    return Country.objects.get(pk=iso)


def country_with_relations(iso: str) -> Country:
    found = Country.objects.select_related("continent").prefetch_related("languages", "neighbours")
    return found.get(pk=iso)


def largest_cities(iso: str) -> list[City]:
    return list(City.objects.filter(country=iso).order_by("-population", "pk")[:20])


def city_figures(iso: str) -> dict[str, Any]:
    cities = City.objects.filter(country=iso)
    return cities.aggregate(
        cities=Count("pk"), inhabitants=Sum("population"), average=Avg("population")
    )


def is_crowded(iso: str) -> bool:
    return City.objects.filter(country=iso, population__gte=10_000_000).exists()


def city(geoname: int) -> City:
    return (
        City.objects.select_related("country__continent")
        .prefetch_related("alternate_names")
        .get(pk=geoname)
    )


def seat_of(geoname: int) -> Capital | None:
    return Capital.objects.select_related("seat_of").filter(pk=geoname).first()


def capitals() -> list[Capital]:
    return list(Capital.objects.select_related("seat_of").order_by("-population", "pk"))


def search(term: str) -> list[City]:
    found = City.objects.filter(name__icontains=term).select_related("country")
    return list(found.order_by("-population", "pk")[:50])


def language_ranking() -> list[tuple[str, int]]:
    spoken = Language.objects.annotate(spoken_in=Count("countries")).order_by("-spoken_in", "tag")
    return list(spoken.values_list("tag", "spoken_in")[:25])


def metropolis_countries() -> list[Country]:
    metropolis = City.objects.filter(country=OuterRef("pk"), population__gte=5_000_000)
    return list(Country.objects.filter(Exists(metropolis)).order_by("name"))


def south_america() -> list[Country]:
    countries = Country.objects.filter(continent="SA").prefetch_related("languages", "neighbours")
    return list(countries.order_by("name"))


def recently_changed() -> int:
    return City.objects.filter(changed_at__gte=Now() - timedelta(days=30)).count()


def all_questions(iso: str, geoname: int, term: str) -> list[Question]:
    """What the comparison asks, about one country, one city and one search term."""
    return [
        Question("countries with their city counts", country_list),
        Question("all cities: count, sum, maximum", world),
        Question(f"country {iso} by primary key", lambda: country(iso)),
        Question(f"country {iso}, languages and neighbours", lambda: country_with_relations(iso)),
        Question(f"20 largest cities of {iso}", lambda: largest_cities(iso)),
        Question(f"cities of {iso}: count, sum, average", lambda: city_figures(iso)),
        Question(f"has {iso} a city over 10 million?", lambda: is_crowded(iso)),
        Question("city by key, country, other names", lambda: city(geoname)),
        Question("capitals (inherited from city)", capitals),
        Question(f"search for {term!r}", lambda: search(term)),
        Question("languages by number of countries", language_ranking),
        Question("countries with a city over 5 million", metropolis_countries),
        Question("South America, languages, neighbours", south_america),
        Question("cities changed lately, by Now()", recently_changed),
    ]
