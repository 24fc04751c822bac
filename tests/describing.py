"""What tests do to a database so that its catalog says something, and what they ask of it then."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from django.db import connections

from ormcache.reasons import Reason
from tests.models import Tag
from tests.watching import Watch, wait_for_quarantine


def execute(using: str, *statements: str) -> None:
    """Run SQL through Django's cursor, where ormcache sees it."""
    with connections[using].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextlib.contextmanager
def made(using: str, *statements: str, undo: tuple[str, ...]) -> Iterator[None]:
    """Inside, the statements have been executed; nothing is left of them afterwards."""
    execute(using, *statements)
    try:
        wait_for_quarantine(using)
        yield
    finally:
        execute(using, *undo)


class Tags:
    """The question of most tests: the names of all tags."""

    def __init__(self, using: str) -> None:
        self.using = using

    def __call__(self) -> list[str]:
        return sorted(Tag.objects.using(self.using).values_list("name", flat=True))


def not_stored(cached: Watch, question: Callable[[], Any]) -> Reason | None:
    """Ask twice; the reason why the answers were not stored, though they were looked up."""
    for _ in range(2):
        cached.clear()
        question()
        assert cached.outcomes == ["miss"]
    (read,) = cached.reads
    reason: Reason | None = read.reason
    return reason


def allow(settings: Any, **options: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, **options}
