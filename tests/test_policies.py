"""Which tables are cached and for how long."""

import threading
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.core.cache import caches
from django.db import models

from ormcache import conf, policies, tables
from ormcache.policies import Policy
from ormcache.reasons import Reason
from tests.marks import on_caches, on_databases
from tests.models import Author, Book, CheapBook, Country, Place, Restaurant, Tag
from tests.watching import Watch, wait_for_quarantine

BOOK, AUTHOR, TAGS = "tests_book", "tests_author", "tests_book_tags"


def policy(models: dict[str, Any], *tables: str) -> Policy:
    settings, problems = conf.parse({"MODELS": models})
    assert not problems
    return policies.policies.of(tables, settings)


OFF, ON = {"ENABLED": False}, {"ENABLED": True}


@pytest.mark.parametrize(
    "models, tables, enabled",
    [
        ({}, [BOOK], True),
        ({"tests.Book": OFF}, [BOOK], False),
        ({"tests.Book": OFF}, [AUTHOR], True),
        ({"tests.Book": OFF}, [AUTHOR, BOOK], False),
        ({"tests.Book": OFF}, [TAGS], True),
        ({"tests.Book_tags": OFF}, [TAGS], False),
        ({"tests.Book_tags": OFF}, [BOOK], True),
        ({"tests.*": OFF}, [BOOK], False),
        ({"tests.*": OFF}, [TAGS], False),
        ({"tests.*": OFF}, ["auth_user"], True),
        ({"tests.*": OFF}, ["auth_user", BOOK], False),
        ({"tests.*": OFF, "tests.Book": ON}, [BOOK], True),
        ({"tests.Book": ON, "tests.*": OFF}, [BOOK], True),
        ({"tests.*": OFF, "tests.Book": ON}, [BOOK, AUTHOR], False),
        ({"tests.*": OFF, "tests.Book": {"TIMEOUT": 5}}, [BOOK], False),
        ({"tests.*": ON, "tests.Book": OFF}, [BOOK], False),
        ({"tests.Legacy": OFF}, ["legacytable"], False),
        ({"tests.AuthorBooks": OFF}, ["tests_author_books"], False),
        ({"auth.User": OFF}, ["auth_user"], False),
        # A proxy has the rows of the model behind it: off wins, in whatever order.
        ({"tests.CheapBook": OFF}, [BOOK], False),
        ({"tests.CheapBook": ON, "tests.Book": OFF}, [BOOK], False),
        ({"tests.Book": OFF, "tests.CheapBook": ON}, [BOOK], False),
        # A parent's table is another one.
        ({"tests.Restaurant": OFF}, ["tests_place"], True),
        ({"tests.Restaurant": OFF}, ["tests_place", "tests_restaurant"], False),
        # Spelled as the class is; the system check complains of the rest.
        ({"tests.book": OFF}, [BOOK], True),
        ({"Book": OFF}, [BOOK], True),
        # All, those of no model included; the least specific key.
        ({"*": OFF}, [BOOK], False),
        ({"*": OFF}, ["auth_user"], False),
        ({"*": OFF}, ["of_no_model"], False),
        ({"*": ON}, ["of_no_model"], True),
        ({"*": OFF, "tests.Book": ON}, [BOOK], True),
        ({"tests.Book": ON, "*": OFF}, [BOOK], True),
        ({"*": OFF, "tests.Book": ON}, [BOOK, AUTHOR], False),
        ({"*": OFF, "tests.Book": ON}, [TAGS], False),
        ({"*": OFF, "tests.Book_tags": ON}, [TAGS], True),
        ({"*": OFF, "tests.*": ON}, [BOOK, TAGS], True),
        ({"*": OFF, "tests.*": ON}, ["auth_user"], False),
        ({"*": OFF, "tests.*": ON, "tests.Book": OFF}, [BOOK], False),
        ({"*": OFF, "tests.Book": {"TIMEOUT": 5}}, [BOOK], False),
        ({"*": ON, "tests.Book": OFF}, [BOOK], False),
        ({"*": OFF, "tests.CheapBook": ON}, [BOOK], True),
    ],
)
def test_a_query_is_cached_if_all_its_tables_are(
    models: dict[str, Any], tables: list[str], enabled: bool
) -> None:
    assert policy(models, *tables).enabled is enabled


def seconds(value: Any) -> dict[str, Any]:
    return {"TIMEOUT": value}


@pytest.mark.parametrize(
    "models, tables, timeout",
    [
        ({}, [BOOK], 100),
        ({"tests.Author": seconds(5)}, [BOOK], 100),
        ({"tests.Book": seconds(5)}, [BOOK], 5),
        ({"tests.Book": seconds(500)}, [BOOK], 500),
        ({"tests.Book": seconds(None)}, [BOOK], None),
        # A join lives no longer than any of its tables may.
        ({"tests.Book": seconds(5)}, [BOOK, AUTHOR], 5),
        ({"tests.Book": seconds(500)}, [BOOK, AUTHOR], 100),
        ({"tests.Book": seconds(None)}, [BOOK, AUTHOR], 100),
        ({"tests.Book": seconds(500), "tests.Author": seconds(200)}, [BOOK, AUTHOR], 200),
        ({"tests.Book": seconds(None), "tests.Author": seconds(200)}, [BOOK, AUTHOR], 200),
        ({"tests.Book": seconds(None), "tests.Author": seconds(None)}, [BOOK, AUTHOR], None),
        # The model comes before its app.
        ({"tests.*": seconds(5)}, [BOOK], 5),
        ({"tests.*": seconds(5), "tests.Book": seconds(500)}, [BOOK], 500),
        ({"tests.Book": seconds(500), "tests.*": seconds(5)}, [BOOK], 500),
        ({"tests.*": seconds(5), "tests.Book": seconds(None)}, [BOOK], None),
        ({"tests.*": seconds(5), "tests.Book": ON}, [BOOK], 5),
        ({"tests.*": seconds(5)}, ["auth_user", BOOK], 5),
        ({"tests.*": seconds(None)}, ["auth_user", BOOK], 100),
        # "*" comes last, and is for tables of no model, too.
        ({"*": seconds(5)}, [BOOK, "of_no_model"], 5),
        ({"*": seconds(5), "tests.*": seconds(500)}, [BOOK], 500),
        ({"*": seconds(5), "tests.Book": seconds(None)}, [BOOK], None),
        ({"*": seconds(5), "tests.*": ON, "tests.Book": ON}, [BOOK], 5),
        ({"*": seconds(None)}, ["of_no_model"], None),
        # Two models of one table.
        ({"tests.Book": seconds(50), "tests.CheapBook": seconds(5)}, [BOOK], 5),
        ({"tests.Book": seconds(5), "tests.CheapBook": seconds(None)}, [BOOK], 5),
        ({"tests.CheapBook": seconds(5)}, [BOOK], 5),
    ],
)
def test_the_shortest_timeout_of_the_tables_holds(
    models: dict[str, Any], tables: list[str], timeout: float | None
) -> None:
    assert policy(models, *tables).timeout(100) == timeout


def test_without_any_timeout_there_is_no_expiry() -> None:
    assert policy({}, BOOK).timeout(None) is None
    assert policy({"tests.Book": seconds(5)}, BOOK, AUTHOR).timeout(None) == 5


def test_two_settings_used_in_turn_do_not_mix() -> None:
    off, _ = conf.parse({"MODELS": {"tests.Book": OFF}})
    on, _ = conf.parse({"MODELS": {"tests.Book": ON}})
    for settings, enabled in [(off, False), (on, True)] * 2:
        assert policies.policies.of((BOOK,), settings).enabled is enabled


def test_two_threads_with_two_settings_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one must not leave its models behind under the name of the other's settings."""
    off, _ = conf.parse({"MODELS": {"tests.Book": OFF}})
    on, _ = conf.parse({"MODELS": {"tests.Book": ON}})
    original = policies._by_table
    slow_is_inside, fast_is_done = threading.Event(), threading.Event()

    def by_table(models: Any) -> Any:
        if models is off.MODELS and not slow_is_inside.is_set():
            slow_is_inside.set()
            assert fast_is_done.wait(10)
        return original(models)

    monkeypatch.setattr(policies, "_by_table", by_table)
    found: list[bool] = []
    slow = threading.Thread(
        target=lambda: found.append(policies.policies.of((BOOK,), off).enabled)
    )
    slow.start()
    assert slow_is_inside.wait(10)
    assert policies.policies.of((BOOK,), on).enabled is True
    fast_is_done.set()
    slow.join()
    assert found == [False]
    for settings, enabled in [(on, True), (off, False)]:
        assert policies.policies.of((BOOK,), settings).enabled is enabled


def test_a_model_that_is_made_later_has_the_policy_of_its_app() -> None:
    settings, _ = conf.parse({"MODELS": {"tests.*": OFF}})
    assert policies.policies.of(("tests_latecomer",), settings).enabled is True
    try:
        type("Latecomer", (models.Model,), {"__module__": "tests.models"})
        assert policies.policies.of(("tests_latecomer",), settings).enabled is False
    finally:
        del apps.all_models["tests"]["latecomer"]
        apps.clear_cache()
        tables.known.forget()


# --- applied ---------------------------------------------------------------------------------


@pytest.fixture
def models_setting(settings: Any) -> Any:
    def change(**models: Any) -> None:
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "MODELS": {f"tests.{name}": value for name, value in models.items()},
        }

    return change


@on_databases(transaction=True)
def test_a_model_that_is_off_is_read_from_the_database(
    cached: Watch, using: str, models_setting: Any
) -> None:
    models_setting(Author=OFF)
    for question, outcomes in [
        (lambda: list(Author.objects.using(using)), [Reason.MODEL_OFF] * 2),
        (lambda: list(Book.objects.using(using).select_related("author")), [Reason.MODEL_OFF] * 2),
        (lambda: list(Book.objects.using(using).filter(author__name="a")), [Reason.MODEL_OFF] * 2),
        (lambda: list(Book.objects.using(using)), ["miss", "hit"]),
        (lambda: list(Tag.objects.using(using)), ["miss", "hit"]),
    ]:
        with cached.expect(*outcomes):
            question()
            question()


@on_databases("default", transaction=True)
def test_a_proxy_that_is_off_is_its_table(cached: Watch, models_setting: Any) -> None:
    models_setting(CheapBook=OFF)
    with cached.expect(*[Reason.MODEL_OFF] * 2):
        list(CheapBook.objects.all())
        list(Book.objects.all())


@on_databases("default", transaction=True)
def test_writes_of_a_model_that_is_off_still_invalidate_others(
    cached: Watch, settings: Any, models_setting: Any
) -> None:
    """It may be switched on elsewhere."""
    cached.warm(Author.objects.count)
    on = settings.ORMCACHE
    models_setting(Author=OFF)
    Author.objects.create(name="a")
    settings.ORMCACHE = on
    assert cached.miss(Author.objects.count) == 1


def entries_with_ttl(cache: str) -> dict[bytes, int]:
    """Milliseconds that the entries in Redis have to live; -1 without expiry."""
    client = caches[cache]._cache.get_client(write=True)  # type: ignore[attr-defined]
    return {key: client.pttl(key) for key in client.keys("*:e:*")}


@on_databases("postgresql", transaction=True)
@on_caches("redis")
@pytest.mark.parametrize(
    "own, database, default, milliseconds",
    [
        ({}, {}, 100, 100_000),
        ({"Author": seconds(5)}, {}, 100, 5_000),
        ({"Author": seconds(0.5)}, {}, 100, 500),
        ({"Author": seconds(None)}, {}, 100, -1),
        ({}, seconds(7), 100, 7_000),
        ({}, seconds(None), 100, -1),
        ({}, {}, None, -1),
        ({"Author": seconds(5)}, seconds(7), 100, 5_000),
    ],
)
def test_the_timeout_is_the_life_of_the_entry(
    cached: Watch,
    using: str,
    cache: str,
    settings: Any,
    models_setting: Any,
    own: Any,
    database: Any,
    default: Any,
    milliseconds: int,
) -> None:
    models_setting(**own)
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "TIMEOUT": default,
        "DATABASES": {using: database},
    }
    caches[cache].clear()
    wait_for_quarantine(using)
    cached.warm(Author.objects.using(using).count)
    (left,) = entries_with_ttl(cache).values()
    if milliseconds < 0:
        assert left == milliseconds
    else:
        assert milliseconds - 2_000 < left <= milliseconds


@on_databases("default", transaction=True)
def test_tables_without_a_model_setting_stay_as_they_are(
    cached: Watch, models_setting: Any
) -> None:
    models_setting(Restaurant=OFF)
    cached.warm(lambda: list(Place.objects.all()))
    cached.warm(lambda: list(Country.objects.all()))
    with cached.expect(Reason.MODEL_OFF):
        list(Restaurant.objects.all())


@on_databases("default", transaction=True)
def test_a_few_models_are_switched_on_and_all_else_off(cached: Watch, settings: Any) -> None:
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "MODELS": {"*": OFF, "tests.Book": ON, "tests.Book_tags": ON, "tests.Tag": ON},
    }
    cached.warm(lambda: list(Book.objects.filter(tags__name="a")))
    for question in (
        lambda: list(Author.objects.all()),
        lambda: list(Book.objects.filter(author__name="a")),
        lambda: list(Group.objects.all()),
    ):
        with cached.expect(Reason.MODEL_OFF):
            question()
