"""What each case does. Needs Django set up; runs in a worker.

Every operation takes a serial number that it never sees twice in one process. Hits
rotate by it over a few warm parameters, misses take a parameter nobody used before,
writes store it, so that each write really changes the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from django.db import transaction
from django.db.models import Avg, Count, Max, QuerySet

from benchmarks.catalog.data import CITIES, SMALLEST_CITY
from benchmarks.catalog.models import City, Landmark

# Parameters a hit case rotates over. More than one, so that a contender cannot live
# off the last answer it gave; few, so that warming them is quick.
HOT_CITIES = range(1, 11)
HOT_COUNTRIES = range(5, 205, 20)
WARM_ROTATION = len(HOT_CITIES)

# Reads of the hit cases never touch the rows that the write cases change, but every
# contender that invalidates whole tables has to drop them all the same.
WRITTEN_CITIES = range(1001, 1051)
WRITTEN_LANDMARK = 1001
UNREAD_CITIES = range(2001, CITIES + 1)

# The threshold of warm lists; those of misses count up from 0 and stay below it.
_HOT_THRESHOLD = SMALLEST_CITY - 1


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """How to run a case, and what surrounds its batch, outside the timing."""

    run: Callable[[int], object]
    prepare: Callable[[], object] = _nothing
    cleanup: Callable[[], object] = _nothing
    # A read whose answer every run changes: tells whether the contender noticed.
    witness: Callable[[], object] | None = None


def _country(serial: int) -> int:
    return HOT_COUNTRIES[serial % len(HOT_COUNTRIES)]


def _largest(serial: int, threshold: int = _HOT_THRESHOLD) -> QuerySet[City]:
    return City.objects.filter(country_id=_country(serial), population__gte=threshold).order_by(
        "-population"
    )[:20]


# Hits


def hit_get(serial: int) -> City:
    return City.objects.get(pk=HOT_CITIES[serial % len(HOT_CITIES)])


def hit_list(serial: int) -> list[City]:
    return list(_largest(serial))


def hit_count(serial: int) -> int:
    return City.objects.filter(country_id=_country(serial)).count()


def hit_exists(serial: int) -> bool:
    return City.objects.filter(
        country_id=_country(serial), population__gte=_HOT_THRESHOLD
    ).exists()


def hit_select_related(serial: int) -> list[City]:
    return list(_largest(serial).select_related("country"))


def hit_prefetch_related(serial: int) -> list[City]:
    return list(_largest(serial).prefetch_related("landmarks"))


def hit_values_list(serial: int) -> list[tuple[object, ...]]:
    return list(_largest(serial).values_list("pk", "name", "population"))


def hit_aggregate(serial: int) -> dict[str, object]:
    return City.objects.filter(country_id=_country(serial)).aggregate(
        Count("pk"), Max("population"), Avg("elevation")
    )


def atomic_5_hits(serial: int) -> None:
    with transaction.atomic():
        hit_get(serial)
        hit_get(serial + 1)
        hit_list(serial)
        hit_count(serial)
        hit_exists(serial)


# Misses


def miss_get(serial: int) -> City:
    return City.objects.get(pk=UNREAD_CITIES[serial])


def miss_list(serial: int) -> list[City]:
    if serial >= _HOT_THRESHOLD:
        raise IndexError("no unused parameter left: fewer rounds, please")
    return list(_largest(serial, threshold=serial))


# Writes


@cache
def _held_city(pk: int) -> City:
    return City.objects.get(pk=pk)


@cache
def _held_landmark() -> Landmark:
    return Landmark.objects.get(pk=WRITTEN_LANDMARK)


def _save_city(pk: int, serial: int) -> None:
    city = _held_city(pk)
    city.elevation = serial
    city.save()


def save(serial: int) -> None:
    _save_city(WRITTEN_CITIES[0], serial)


def save_get(serial: int) -> City:
    save(serial)
    return City.objects.get(pk=WRITTEN_CITIES[0])


def create(serial: int) -> City:
    like = _held_city(WRITTEN_CITIES[0])
    return City.objects.create(
        name="New city",
        country_id=like.country_id,
        population=like.population,
        latitude=like.latitude,
        longitude=like.longitude,
        elevation=serial,
        updated=like.updated,
    )


def update(serial: int) -> int:
    return City.objects.filter(pk=WRITTEN_CITIES[0]).update(elevation=serial)


def save_50_atomic(serial: int) -> None:
    with transaction.atomic():
        for pk in WRITTEN_CITIES:
            _save_city(pk, serial)


def _hold_written_rows() -> None:
    _held_landmark()
    for pk in WRITTEN_CITIES:
        _held_city(pk)


def _delete_created() -> None:
    City.objects.filter(pk__gt=CITIES).delete()


def _elevation() -> int:
    return City.objects.get(pk=WRITTEN_CITIES[-1]).elevation


def _first_elevation() -> int:
    return City.objects.get(pk=WRITTEN_CITIES[0]).elevation


def _created() -> int:
    return City.objects.filter(pk__gt=CITIES).count()


def _visitors() -> int:
    return Landmark.objects.get(pk=WRITTEN_LANDMARK).visitors


# Pages


def _read_cities(serial: int) -> None:
    """Eight reads, none of which uses landmarks."""
    hit_get(serial)
    hit_get(serial + 1)
    hit_get(serial + 2)
    hit_list(serial)
    hit_count(serial)
    hit_exists(serial)
    hit_values_list(serial)
    hit_aggregate(serial)


def page(serial: int) -> None:
    _read_cities(serial)
    city = HOT_CITIES[serial % len(HOT_CITIES)]
    list(Landmark.objects.filter(city_id=city))
    Landmark.objects.filter(city_id=city).count()
    landmark = _held_landmark()
    landmark.visitors = serial
    landmark.save()


def page_hot(serial: int) -> None:
    _read_cities(serial)
    hit_select_related(serial)
    hit_list(serial + 1)
    save(serial)


_HITS = (
    hit_get,
    hit_list,
    hit_count,
    hit_exists,
    hit_select_related,
    hit_prefetch_related,
    hit_values_list,
    hit_aggregate,
    atomic_5_hits,
)

OPERATIONS: dict[str, Operation] = {
    **{hit.__name__: Operation(hit) for hit in _HITS},
    "miss_get": Operation(miss_get),
    "miss_list": Operation(miss_list),
    "save": Operation(save, _hold_written_rows, witness=_first_elevation),
    "save_get": Operation(save_get, _hold_written_rows, witness=_first_elevation),
    "create": Operation(create, _hold_written_rows, _delete_created, _created),
    "update": Operation(update, _hold_written_rows, witness=_first_elevation),
    "save_50_atomic": Operation(save_50_atomic, _hold_written_rows, witness=_elevation),
    "page": Operation(page, _hold_written_rows, witness=_visitors),
    "page_hot": Operation(page_hot, _hold_written_rows, witness=_first_elevation),
}
