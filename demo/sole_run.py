"""One run at a time on a database: two would take each other's writes for stale answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from demo.errors import DemoError
from demo.models import Run

SILENCE = 30
"""After so many seconds without a sign of life, a run is taken for dead."""


@contextmanager
def sole_run() -> Iterator[Callable[[], None]]:
    """Claim the database, or raise; yields what gives a sign of life."""
    _claim()
    try:
        yield _still_here
    finally:
        Run.objects.all().delete()


def _claim() -> None:
    now = timezone.now()
    Run.objects.filter(seen_at__lt=now - timedelta(seconds=SILENCE)).delete()
    try:
        with transaction.atomic():
            Run.objects.create(number=1, seen_at=now)
    except IntegrityError as error:
        raise DemoError(
            "Another run of the demo is at work on this database: wait for its end, or "
            f"{SILENCE} seconds if it was killed."
        ) from error


def _still_here() -> None:
    # Inside a transaction the sign would not be seen, and would be one more write in it.
    if not connection.in_atomic_block:
        Run.objects.update(seen_at=timezone.now())
