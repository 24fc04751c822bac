"""The writes between the questions: each way the ORM has to change a row, and one past the ORM.

Each write has an undo. The comparison runs all of them at the end, also when it fails, so that a
database which the demo was lent holds GeoNames' data again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from demo.models import AlternateName, Capital, City, Country, DataSet

OWN_CITY = 10**12
"""The key of the city that the demo creates; GeoNames' keys are far below."""

OWN_NAME = "Ormcacheville"

LANGUAGE = "fr"
"""A language that the country of the comparison does not speak."""


@dataclass(frozen=True)
class Write:
    """A write with the code that stands for it."""

    code: str
    run: Callable[[], object]
    undo: Callable[[], object] = lambda: None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """A block around the write and the questions after it."""


@contextmanager
def rolled_back() -> Iterator[None]:
    """A transaction that is not committed."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def all_writes(iso: str, geoname: int) -> list[Write]:
    """The writes of the comparison, in order, to a country, its capital and another city of it."""
    return [
        Write(
            "city.save()", lambda: _grow_city(geoname, 1000), lambda: _grow_city(geoname, -1000)
        ),
        Write(
            "countries.update(…)",
            lambda: _grow_countries(iso, 5),
            lambda: _grow_countries(iso, -5),
        ),
        Write(
            "country.languages.add(…)",
            lambda: _languages(iso).add(LANGUAGE),
            lambda: _languages(iso).remove(LANGUAGE),
        ),
        Write("AlternateName…bulk_create(…)", lambda: _add_names(geoname), delete_own_rows),
        Write(
            "raw SQL: UPDATE demo_city …",
            lambda: _raw_update(geoname, 7),
            lambda: _raw_update(geoname, -7),
        ),
        Write(
            "capital.save()", lambda: _grow_capital(iso, 1000), lambda: _grow_capital(iso, -1000)
        ),
        Write("atomic(): create, save, update", lambda: _found_city(iso)),
        Write("city.delete()", lambda: City.objects.get(pk=OWN_CITY).delete()),
        Write(
            "atomic(): update, not committed",
            lambda: City.objects.filter(pk=geoname).update(population=1),
            around=rolled_back,
        ),
        Write("the rollback of that", lambda: None),
        Write("a table that no query reads", lambda: DataSet.objects.get().save()),
    ]


def prepare(iso: str) -> None:
    """Take away what an interrupted run has left."""
    delete_own_rows()
    _languages(iso).remove(LANGUAGE)


def delete_own_rows() -> None:
    """Delete the rows that the writes create."""
    AlternateName.objects.filter(name__startswith=OWN_NAME).delete()
    City.objects.filter(pk=OWN_CITY).delete()


def _grow_city(geoname: int, inhabitants: int) -> None:
    city = City.objects.get(pk=geoname)
    city.population += inhabitants
    city.changed_at = timezone.now()
    city.save()


def _grow_countries(iso: str, inhabitants: int) -> None:
    Country.objects.filter(pk=iso).update(population=F("population") + inhabitants)


def _languages(iso: str) -> Any:
    return Country.objects.get(pk=iso).languages


def _add_names(geoname: int) -> None:
    AlternateName.objects.bulk_create(
        [AlternateName(city_id=geoname, name=f"{OWN_NAME} {n}") for n in range(3)]
    )


def _raw_update(geoname: int, inhabitants: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE demo_city SET population = population + %s WHERE geoname = %s",
            [inhabitants, geoname],
        )


def _grow_capital(iso: str, inhabitants: int) -> None:
    capital = Capital.objects.get(seat_of=iso)
    capital.population += inhabitants
    capital.save()


def _found_city(iso: str) -> None:
    with transaction.atomic():
        city = City.objects.create(
            geoname=OWN_CITY,
            name=OWN_NAME,
            country_id=iso,
            population=20_000_000,
            latitude=0,
            longitude=0,
            timezone="UTC",
        )
        city.alternate_names.create(name=f"{OWN_NAME} upon Tyne")
        City.objects.filter(pk=OWN_CITY).update(population=F("population") + 1)
