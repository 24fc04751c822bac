"""What the processes do: serve one release, or migrate.

Nothing of Django is imported before the release is chosen and Django is set up.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

Question = Callable[[], list[Any]]

_REST = 0.1
"""Seconds between two steps of the migration, in which both releases serve."""


class Answer(NamedTuple):
    """Rows, exactly as they came, or the error that came instead of them."""

    rows: Any
    error: str
    versions: tuple[int, ...]


class Wrong(NamedTuple):
    """An answer that ormcache gave, and what the database said before and after it."""

    release: str
    question: str
    before: Any
    answer: Any
    after: Any


class Outcome(NamedTuple):
    """What a worker has to tell."""

    release: str
    done: Counter[str]
    """How often each question was answered so that it could be judged."""
    failed: Counter[str]
    """How often that was an error."""
    hits: dict[str, int]
    """By table."""
    wrong: list[Wrong]


def run(target: Callable[..., Any], *arguments: Any) -> None:
    """What a process does: its result goes into the queue, the last argument, or its error."""
    *others, outcomes = arguments
    try:
        outcomes.put(target(*others))
    except BaseException:
        outcomes.put(traceback.format_exc())


def set_up(release: str, using: str) -> None:
    os.environ["ROLLING_RELEASE"] = release
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.rolling.settings"
    import django

    django.setup()


def questions(using: str) -> dict[str, Question]:
    """What is asked, by name. The releases ask the same, as their models allow."""
    from django.apps import apps

    found: dict[str, Question] = {}
    for model in apps.get_app_config("rolling").get_models():
        for name, question in _questions_of(model, using).items():
            found[f"{model.__name__}: {name}"] = question
    return found


def _questions_of(model: Any, using: str) -> dict[str, Question]:
    from django.db.models import F

    names = [field.attname for field in model._meta.concrete_fields]

    def rows() -> Any:
        return model._default_manager.using(using).order_by("pk")

    def instances(rows: Any) -> list[Any]:
        return [[getattr(row, name) for name in names] for row in rows]

    def columns(rows: Any) -> list[Any]:
        return list(rows.values_list(*names))

    found: dict[str, Question] = {
        "instances": lambda: instances(rows()),
        "one": lambda: instances(rows().filter(pk=2)),
        "columns": lambda: columns(rows()),
        "computed": lambda: columns(rows().annotate(more=F("version") + 1)),
    }
    for name in names[2:]:
        for value in _values(model, name):
            condition = {name: value}
            found |= {
                f"{name} is {value}": lambda condition=condition: columns(
                    rows().filter(**condition)
                ),
                f"{name} is not {value}": lambda condition=condition: columns(
                    rows().exclude(**condition)
                ),
            }
    return found


def _values(model: Any, name: str) -> list[Any]:
    """What the release may ask for in a column."""
    kind = type(model._meta.get_field(name)).__name__
    return {
        "IntegerField": [1],
        "CharField": ["1", "told"],
        "DecimalField": ["1.0", "1.125"],
        "BooleanField": [True],
        "Word": ["one", "1"],
        "Flag": [True],
    }[kind]


def answer(question: Question) -> Answer | None:
    """None if the database had no time: nothing is known then."""
    from django.db import DatabaseError

    from ormcache.exceptions import CacheUnreachable
    from tests.exactness import exact

    try:
        rows = question()
    except CacheUnreachable:
        raise
    except DatabaseError as error:
        if _is_passing(error):
            return None
        return Answer(None, type(error).__name__, ())
    # The version stands behind the key in each of them.
    return Answer(exact(rows), "", tuple(row[1] for row in rows))


def _is_passing(error: Exception) -> bool:
    """A lock that was waited for too long, a deadlock, a table that was changed just now."""
    code: object = next(iter(error.args), None)
    return "locked" in str(error) or code in (1205, 1213, 1412)


def is_wrong(before: Answer, given: Answer, after: Answer) -> bool:
    """Whether ``given`` was true at no moment between ``before`` and ``after``."""
    if before == after:
        return given != before
    if given in (before, after):
        return False
    if given.error:
        return True
    if len(before.versions) == len(given.versions) == len(after.versions):
        triples = zip(before.versions, given.versions, after.versions, strict=True)
        return not all(low <= version <= high for low, version, high in triples)
    return False


def serve(release: str, using: str, seed: int, ready: Any, stop: Any) -> Outcome:
    """Read all there is, again and again, and write now and then."""
    set_up(release, using)
    from django.db import connections

    import ormcache
    from ormcache import counters

    chance = random.Random(seed)
    asked = list(questions(using).items())
    done, failed, wrong = Counter[str](), Counter[str](), []
    ready.wait(60)
    while not stop.is_set():
        chance.shuffle(asked)
        for name, question in asked:
            with ormcache.disabled():
                before = answer(question)
            given = answer(question)
            with ormcache.disabled():
                after = answer(question)
            if before is not None and given is not None and after is not None:
                done[name] += 1
                failed[name] += bool(given.error)
                if is_wrong(before, given, after):
                    wrong.append(Wrong(release, name, before, given, after))
            if chance.random() < 0.03:
                write(using, chance)
            if stop.is_set():
                break
    hits = {
        table: counts.get("hit", 0) for table, counts in counters.snapshot().get(using, {}).items()
    }
    connections.close_all()
    return Outcome(release, done, failed, hits, wrong)


def write(using: str, chance: random.Random) -> None:
    """Raise the version of a row: at once, or in a transaction."""
    from django.apps import apps
    from django.db import DatabaseError, transaction
    from django.db.models import F

    models = list(apps.get_app_config("rolling").get_models())
    rows = chance.choice(models)._default_manager.using(using).filter(pk=chance.randint(1, 3))
    try:
        if chance.random() < 0.5:
            rows.update(version=F("version") + 1)
            return
        with transaction.atomic(using=using):
            rows.update(version=F("version") + 1)
    except DatabaseError:
        # The table is not there any more, or is locked.
        return


def migrate(using: str, ready: Any, stop: Any) -> None:
    """One migration after the other, with a rest in which both releases serve."""
    set_up("new", using)
    from django.core.management import call_command
    from django.db import connections
    from django.db.migrations.loader import MigrationLoader

    names = sorted(name for app, name in MigrationLoader(None).graph.nodes if app == "rolling")
    try:
        call_command("migrate", "rolling", names[0], database=using, verbosity=0)
        ready.wait(60)
        for name in names[1:]:
            time.sleep(_REST)
            call_command("migrate", "rolling", name, database=using, verbosity=0)
        time.sleep(5 * _REST)
    finally:
        stop.set()
        connections.close_all()
