"""ormcache.invalidate() and flush(), which tell the cache what it cannot see."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections, models, transaction
from django.db.utils import ConnectionDoesNotExist

import ormcache
from ormcache.exceptions import CacheError, CacheUnreachable
from tests import backdoor
from tests.factories import AuthorFactory, BookFactory
from tests.factories import using as factories_using
from tests.interleaving import session, store_of
from tests.marks import needs, on_caches, on_databases
from tests.models import (
    Author,
    Book,
    CheapBook,
    Contribution,
    ItalianRestaurant,
    Legacy,
    Place,
    Restaurant,
    Tag,
)
from tests.watching import Watch

on_default = on_databases("default", transaction=True)
both = pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)

TELL = pytest.mark.parametrize(
    "tell",
    [lambda **kw: ormcache.invalidate(Author, **kw), ormcache.flush],
    ids=["invalidate", "flush"],
)


def names(using: str = "default") -> Callable[[], Any]:
    return lambda: list(Author.objects.using(using).values_list("name", flat=True))


def rename_unseen(using: str = "default") -> None:
    backdoor.execute(using, "UPDATE tests_author SET name = 'new'")


@pytest.fixture
def author(cached: Watch, using: str) -> Author:
    with factories_using(using):
        return AuthorFactory(name="old")


# --- what may be named ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        Author,
        "tests.Author",
        "tests.author",
        "tests_author",
        "TESTS_AUTHOR",
        '"tests_author"',
        "`tests_author`",
        "public.tests_author",
        '"public"."tests_author"',
        # A schema that is called like an app.
        "tests.tests_author",
    ],
    ids=str,
)
@on_default
def test_a_change_that_ormcache_did_not_see_can_be_told(
    cached: Watch, author: Author, thing: Any
) -> None:
    cached.warm(names())
    rename_unseen()
    assert cached.hit(names()) == ["old"]
    ormcache.invalidate(thing)
    assert cached.warm(names()) == ["new"]


@on_default
def test_a_table_with_a_capital_can_be_told(cached: Watch) -> None:
    question = Legacy.objects.count
    cached.warm(question)
    ormcache.invalidate("LegacyTable")
    cached.miss(question)


@on_default
def test_several_things_can_be_told_at_once(cached: Watch) -> None:
    questions = [Author.objects.count, Place.objects.count, Legacy.objects.count]
    for question in questions:
        cached.warm(question)
    ormcache.invalidate(Author, "tests.Place", "LegacyTable")
    for question in questions:
        cached.miss(question)


@pytest.mark.parametrize(
    ("model", "relatives"),
    [
        (Place, [Place, Restaurant, ItalianRestaurant]),
        (ItalianRestaurant, [Place, Restaurant, ItalianRestaurant]),
        (Book, [Book, Book.tags.through, Contribution]),
        (CheapBook, [Book, Book.tags.through, Contribution]),
        (Tag, [Tag, Book.tags.through]),
        (Author, [Author, Contribution]),
        (Book.tags.through, [Book.tags.through]),
    ],
)
@on_default
def test_a_model_stands_for_all_tables_that_hold_its_rows(
    cached: Watch, model: type[models.Model], relatives: list[type[models.Model]]
) -> None:
    ormcache.invalidate(model, using="default")
    (told,) = cached.invalidated
    assert {relative._meta.db_table for relative in relatives} == set(told)


@on_default
def test_other_models_stay_cached(cached: Watch) -> None:
    cached.warm(Author.objects.count)
    ormcache.invalidate(Tag)
    cached.hit(Author.objects.count)


# --- what may not --------------------------------------------------------------------------


def test_nothing_is_not_everything() -> None:
    with pytest.raises(TypeError, match="flush"):
        ormcache.invalidate()


@pytest.mark.parametrize(
    "thing", [1, None, b"tests_author", object, ["tests_author"], models.Model], ids=repr
)
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="is neither a model nor the name"):
        ormcache.invalidate(thing)


def test_an_object_is_refused() -> None:
    with pytest.raises(TypeError):
        ormcache.invalidate(Author(name="x"))


def test_a_model_that_an_app_does_not_have_is_refused() -> None:
    with pytest.raises(LookupError):
        ormcache.invalidate("tests.Nonsense")


@on_default
def test_a_table_of_no_model_is_accepted(cached: Watch) -> None:
    ormcache.invalidate("warehouse.stock", using="default")
    (told,) = cached.invalidated
    assert "stock" in told


@TELL
def test_an_unknown_alias_is_refused(tell: Callable[..., None]) -> None:
    with pytest.raises(ConnectionDoesNotExist):
        tell(using="nonsense")


# --- transactions --------------------------------------------------------------------------


@on_databases("postgresql", "mariadb", transaction=True)
def test_in_a_transaction_it_takes_effect_now_and_at_the_commit(
    cached: Watch, using: str, author: Author
) -> None:
    question = names(using)
    cached.warm(question)
    with transaction.atomic(using=using):
        ormcache.invalidate(Author, using=using)
        with session(using):
            assert cached.warm(question) == ["old"]
            rename_unseen(using)
            assert cached.hit(question) == ["old"]
    assert cached.warm(question) == ["new"]


@on_databases(transaction=True)
def test_a_rollback_does_not_undo_it(cached: Watch, using: str, author: Author) -> None:
    question = names(using)
    cached.warm(question)
    rename_unseen(using)
    with transaction.atomic(using=using):
        ormcache.invalidate(Author, using=using)
        transaction.set_rollback(True, using=using)
    assert cached.warm(question) == ["new"]


# --- databases -----------------------------------------------------------------------------


@pytest.fixture
def two(cached: Watch) -> Watch:
    """Both databases are warm."""
    ormcache.flush()
    for alias in ("default", "postgresql"):
        cached.warm(names(alias))
    return cached


@needs("postgresql")
@both
@TELL
def test_one_database_can_be_told_alone(two: Watch, tell: Callable[..., None]) -> None:
    tell(using="postgresql")
    two.hit(names("default"))
    two.miss(names("postgresql"))


@needs("postgresql")
@both
@TELL
def test_without_an_alias_all_databases_are_told(two: Watch, tell: Callable[..., None]) -> None:
    tell()
    two.miss(names("default"))
    two.miss(names("postgresql"))


@needs("postgresql")
@both
@TELL
def test_a_cache_out_of_reach_does_not_keep_other_databases_from_being_told(
    cached: Watch, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.CACHES = {**settings.CACHES, "broken": settings.CACHES["default"]}
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"default": {"CACHE_ALIAS": "broken"}}}
    cached.warm(names("postgresql"))

    def refuse(*args: Any) -> None:
        raise CacheError("broken")

    monkeypatch.setattr(store_of("default"), "arm", refuse)
    with pytest.raises(CacheUnreachable):
        tell()
    cached.miss(names("postgresql"))


@on_default
@TELL
@pytest.mark.parametrize("policy", ["fence", "raise"])
def test_the_error_says_what_was_not_made_invalid_and_of_no_write_that_was_refused(
    cached: Watch,
    settings: Any,
    tell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    settings.CACHES = {**settings.CACHES, "broken": settings.CACHES["default"]}
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "CACHE_ALIAS": "broken",
        "ON_CACHE_FAILURE": policy,
    }

    def refuse(*args: Any) -> None:
        raise CacheError("broken")

    monkeypatch.setattr(store_of("default"), "arm", refuse)
    with pytest.raises(CacheUnreachable) as raised:
        tell(using="default")
    what = "everything" if tell is ormcache.flush else "tests_author, tests_contribution"
    assert str(raised.value) == (
        "The cache 'broken' did not answer (broken): it could not be told to make invalid "
        f"{what} of the database 'default'. Its answers may be out of date until you do this "
        "again, when it is back."
    )


@on_default
def test_flush_invalidates_every_table(cached: Watch) -> None:
    BookFactory()
    questions = [Author.objects.count, Book.objects.count, Tag.objects.count]
    for question in questions:
        cached.warm(question)
    cached.clear()
    ormcache.flush(using="default")
    assert cached.invalidated == [("*",)]
    for question in questions:
        cached.miss(question)


# --- caches --------------------------------------------------------------------------------


@on_caches("locmem", "redis", "memcached")
@on_default
@TELL
def test_it_works_in_every_kind_of_cache(
    cached: Watch, author: Author, cache: str, tell: Callable[..., None]
) -> None:
    cached.warm(names())
    rename_unseen()
    assert cached.hit(names()) == ["old"]
    tell(using="default")
    assert cached.warm(names()) == ["new"]


@on_default
def test_a_process_that_does_not_cache_can_tell_those_that_do(
    cached: Watch, author: Author, settings: Any
) -> None:
    cached.warm(names())
    rename_unseen()
    usual = settings.ORMCACHE
    settings.ORMCACHE = {**usual, "ENABLED": False}
    ormcache.invalidate(Author)
    settings.ORMCACHE = usual
    assert cached.warm(names()) == ["new"]


@on_default
async def test_a_coroutine_can_tell(cached: Watch) -> None:
    ormcache.invalidate(Author, using="default")
    assert any("tests_author" in told for told in cached.invalidated)


def test_to_tell_opens_no_connection_to_the_database(cached: Watch) -> None:
    usual = connections["default"].connection
    connections["default"].connection = None
    try:
        ormcache.invalidate(Author, using="default")
        assert connections["default"].connection is None
    finally:
        connections["default"].connection = usual
