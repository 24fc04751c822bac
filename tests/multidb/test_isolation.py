"""Several databases at once: each keeps to its own namespace, and one database to one."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import override_settings

import ormcache
from ormcache import signals
from ormcache.exceptions import CacheError, CacheUnreachable
from ormcache.stores import Store
from tests.aliases import alias_of
from tests.factories import AuthorFactory, BookFactory, TagFactory
from tests.factories import using as factories_using
from tests.interleaving import route_of, store_of
from tests.marks import DATABASES, needs, on_databases, on_pairs
from tests.models import Author, Book, Tag
from tests.watching import Watch

on_default = on_databases("default", transaction=True)


def names(using: str) -> Callable[[], Any]:
    return lambda: list(Author.objects.using(using).order_by("pk").values_list("name", flat=True))


def only_names(using: str) -> list[Any]:
    return names(using)()


@pytest.fixture
def three(cached: Watch) -> Watch:
    """An author of the same id, but of another name, in each database."""
    for alias in DATABASES:
        ormcache.flush(alias)
        Author.objects.using(alias).create(pk=1000, name=alias)
    cached.clear()
    return cached


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch, cached: Watch) -> dict[str, set[str]]:
    """The namespaces that are used, by the method of the store."""
    found: dict[str, set[str]] = defaultdict(set)
    store = store_of("default")

    def recording(name: str) -> Callable[..., Any]:
        original = getattr(store, name)

        def recorded(namespace: str, *args: Any) -> Any:
            found[name].add(namespace)
            return original(namespace, *args)

        return recorded

    for name in Store.__abstractmethods__:
        monkeypatch.setattr(store, name, recording(name))
    return found


on_three = pytest.mark.django_db(databases=list(DATABASES), transaction=True)


# --- three databases -----------------------------------------------------------------------


@on_three
def test_three_databases_have_three_namespaces(three: Watch) -> None:
    assert len({route_of(alias).namespace for alias in DATABASES}) == 3


@on_three
def test_equal_questions_to_several_databases_have_answers_of_their_own(three: Watch) -> None:
    for alias in DATABASES:
        three.miss(names(alias))
    for alias in DATABASES:
        assert three.hit(names(alias)) == [alias]
    assert {read.using for read in three.reads} == set(DATABASES)


@on_three
@pytest.mark.parametrize("written", DATABASES)
def test_a_write_to_one_database_leaves_the_others_cached(three: Watch, written: str) -> None:
    for alias in DATABASES:
        three.warm(names(alias))
    Author.objects.using(written).update(name="new")
    for alias in DATABASES:
        if alias == written:
            assert three.warm(names(alias)) == ["new"]
        else:
            assert three.hit(names(alias)) == [alias]


@on_three
@pytest.mark.parametrize("alias", DATABASES)
def test_reads_and_writes_touch_the_namespace_of_their_database_only(
    three: Watch, alias: str, touched: dict[str, set[str]]
) -> None:
    told = []

    def note(using: str, **kwargs: Any) -> None:
        told.append(using)

    signals.tables_invalidated.connect(note)
    try:
        with factories_using(alias), transaction.atomic(using=alias):
            book = BookFactory()
        with factories_using(alias):
            book.tags.add(TagFactory())
        list(Book.objects.using(alias).prefetch_related("tags", "author"))
        Book.objects.using(alias).filter(author__in=Author.objects.using(alias)).count()
        Tag.objects.using(alias).all().delete()
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE tests_author SET name = 'new'")
        ormcache.invalidate(Book, using=alias)
        ormcache.flush(alias)
    finally:
        signals.tables_invalidated.disconnect(note)
    mine = {route_of(alias).namespace}
    assert touched["read"] == touched["fill"] == touched["arm"] == touched["finish"] == mine
    assert set(told) == {alias}
    assert {read.using for read in three.reads} == {alias}


@on_three
def test_a_transaction_on_one_database_says_nothing_of_the_others(three: Watch) -> None:
    for alias in DATABASES:
        three.warm(names(alias))
    with transaction.atomic(using="postgresql"):
        Author.objects.using("postgresql").update(name="new")
        assert three.hit(names("mariadb")) == ["mariadb"]
        Author.objects.using("mariadb").update(name="newer")
        assert three.warm(names("mariadb")) == ["newer"]
        transaction.set_rollback(True, using="postgresql")
    assert three.hit(names("postgresql")) == ["postgresql"]
    assert three.hit(names("mariadb")) == ["newer"]


@on_three
def test_an_object_moved_to_another_database_is_found_there(three: Watch) -> None:
    for alias in DATABASES:
        three.warm(names(alias))
    author = Author.objects.using("default").get()
    author.save(using="mariadb")
    assert three.warm(names("mariadb")) == ["default"]
    assert three.hit(names("postgresql")) == ["postgresql"]


# --- several aliases of one database -------------------------------------------------------


@pytest.fixture
def second(using: str, cached: Watch) -> Iterator[str]:
    """A second alias of the database `using`, which holds one author."""
    with factories_using(using):
        AuthorFactory(name="old")
    with alias_of(using, "second") as alias:
        yield alias


@on_databases(transaction=True)
def test_aliases_of_one_database_share_no_answers(cached: Watch, using: str, second: str) -> None:
    cached.warm(names(using))
    cached.warm(names(second))


@on_databases(transaction=True)
def test_a_write_through_one_alias_is_seen_through_the_other(
    cached: Watch, using: str, second: str
) -> None:
    for writer, reader in ((using, second), (second, using)):
        cached.warm(names(reader))
        Author.objects.using(writer).update(name=writer)
        assert cached.warm(names(reader)) == [writer]
        with transaction.atomic(using=writer):
            Author.objects.using(writer).update(name="in a transaction")
        assert cached.warm(names(reader)) == ["in a transaction"]


def _link_to(file: str, directory: Path) -> str:
    link = directory / "link.sqlite3"
    link.symlink_to(file)
    return str(link)


@pytest.mark.parametrize(
    "spell",
    [
        lambda file, directory: os.path.relpath(file),
        lambda file, directory: os.path.join(os.path.dirname(file), ".", os.path.basename(file)),
        lambda file, directory: Path(file),
        lambda file, directory: f"file:{file}?cache=private",
        _link_to,
    ],
    ids=["relative", "dot", "Path", "URI", "link"],
)
@on_pairs(("default", "redis"), transaction=True)
def test_a_write_is_seen_through_an_alias_that_spells_the_file_in_another_way(
    cached: Watch, using: str, cache: str, tmp_path: Path, spell: Callable[[str, Path], Any]
) -> None:
    AuthorFactory(name="old")
    name = spell(connections[using].settings_dict["NAME"], tmp_path)
    with alias_of(using, "second", NAME=name) as second:
        for writer, reader in ((using, second), (second, using)):
            cached.warm(names(reader))
            Author.objects.using(writer).update(name=writer)
            assert cached.warm(names(reader)) == [writer]


@on_databases("postgresql", "mariadb", transaction=True)
def test_what_one_alias_has_not_committed_the_other_does_not_see(
    cached: Watch, using: str, second: str
) -> None:
    cached.warm(names(second))
    with transaction.atomic(using=using):
        Author.objects.using(using).update(name="new")
        assert names(using)() == ["new"]
        assert cached.hit(names(second)) == ["old"]
    assert cached.warm(names(second)) == ["new"]


@on_databases(transaction=True)
def test_invalidating_and_flushing_one_alias_does_so_for_the_other(
    cached: Watch, using: str, second: str
) -> None:
    for tell in (
        lambda: ormcache.invalidate(Author, using=second),
        lambda: ormcache.flush(second),
    ):
        cached.call(names(using))
        cached.hit(names(using))
        tell()
        cached.miss(names(using))


@on_default
def test_a_write_through_an_alias_that_is_not_cached_is_seen_through_one_that_is(
    cached: Watch, using: str, second: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"second": {"ENABLED": False}}}
    cached.warm(names(using))
    with cached.expect("database switched off"):
        only_names(second)
    Author.objects.using(second).update(name="new")
    assert cached.warm(names(using)) == ["new"]


@on_default
def test_a_write_through_an_alias_that_is_not_cached_is_not_kept_from_one_that_is(
    cached: Watch, using: str, second: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is down is ignored only where nobody reads from it."""
    own = {"DATABASES": {"second": {"ENABLED": False}}, "ON_CACHE_FAILURE": "raise"}
    settings.ORMCACHE = {**settings.ORMCACHE, **own}
    before = cached.warm(names(using))

    def refuse(*args: Any) -> None:
        raise CacheError("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", refuse)
        with pytest.raises(CacheUnreachable):
            Author.objects.using(second).create(name="new")
    route_of(using).breaker.succeeded()
    assert cached.hit(names(using)) == before
    both = {"ENABLED": False}
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"second": both, using: both}}
    with monkeypatch.context() as patch:
        patch.setattr(store_of(using), "arm", refuse)
        Author.objects.using(second).create(name="new")
    route_of(using).breaker.succeeded()


@on_default
def test_aliases_of_one_database_with_caches_of_their_own_are_not_cached(
    cached: Watch, using: str, second: str, settings: Any
) -> None:
    """A write through the one would never be heard of in the cache of the other."""
    settings.ORMCACHE = {
        **settings.ORMCACHE,
        "DATABASES": {"second": {"CACHE_ALIAS": "default"}},
    }
    for writer, reader in ((using, second), (second, using)):
        with cached.expect("no usable cache"):
            only_names(reader)
        Author.objects.using(writer).update(name=writer)
        with cached.expect("no usable cache"):
            assert only_names(reader) == [writer]


@on_default
def test_a_test_mirror_is_a_second_alias(cached: Watch, using: str, tmp_path: Path) -> None:
    """TEST = {"MIRROR": …} gives the alias the name of the other's test database."""
    with alias_of(using, "mirror", NAME=str(tmp_path / "replica.sqlite3")) as mirror:
        assert route_of(mirror).namespace != route_of(using).namespace
        connections[mirror].close()
        connections[mirror].creation.set_as_test_mirror(connections[using].settings_dict)
        connections[mirror].connect()
        assert route_of(mirror).namespace == route_of(using).namespace
        cached.warm(names(mirror))
        AuthorFactory(name="new")
        assert cached.warm(names(mirror)) == ["new"]


# --- databases of their own ----------------------------------------------------------------


def switch(alias: str, file: Path) -> None:
    """What create_test_db() does to a connection."""
    connections[alias].close()
    connections[alias].settings_dict["NAME"] = str(file)
    connections[alias].connect()


@on_default
def test_a_test_database_and_the_real_one_share_nothing(
    cached: Watch, using: str, tmp_path: Path
) -> None:
    """A test run on a shared cache neither reads nor invalidates what production has cached."""
    real, test = tmp_path / "shop", tmp_path / "test_shop"
    with alias_of(using, "shop", NAME=str(real)) as shop:
        with connections[shop].schema_editor() as editor:
            editor.create_model(Author)
        Author.objects.using(shop).create(name="real")
        cached.warm(names(shop))
        switch(shop, test)
        with connections[shop].schema_editor() as editor:
            editor.create_model(Author)
        assert cached.warm(names(shop)) == []
        Author.objects.using(shop).create(name="test")
        assert cached.warm(names(shop)) == ["test"]
        switch(shop, real)
        assert cached.hit(names(shop)) == ["real"]


@on_default
def test_programs_with_another_key_prefix_share_nothing(
    cached: Watch, using: str, settings: Any
) -> None:
    cached.warm(names(using))
    with override_settings(ORMCACHE={**settings.ORMCACHE, "KEY_PREFIX": "blue"}):
        cached.warm(names(using))
        ormcache.flush(using)
        cached.miss(names(using))
    cached.hit(names(using))


# --- options of one database ---------------------------------------------------------------


def told(settings: Any, **options: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"postgresql": options}}


both = pytest.mark.django_db(databases=["default", "postgresql"], transaction=True)


@needs("postgresql")
@both
def test_one_database_can_be_switched_off(cached: Watch, settings: Any) -> None:
    told(settings, ENABLED=False)
    ormcache.flush()
    cached.warm(names("default"))
    with cached.expect("database switched off"):
        only_names("postgresql")


@needs("postgresql")
@both
def test_one_database_can_have_a_cache_of_its_own(cached: Watch, settings: Any) -> None:
    told(settings, CACHE_ALIAS="default")
    ormcache.flush()
    assert route_of("postgresql").store is not route_of("default").store
    for alias in ("default", "postgresql"):
        cached.warm(names(alias))
        with factories_using(alias):
            AuthorFactory(name="new")
        assert cached.warm(names(alias)) == ["new"]


@needs("postgresql")
@both
def test_one_database_can_have_a_cache_that_stores_nothing(cached: Watch, settings: Any) -> None:
    told(settings, CACHE_ALIAS="dummy")
    ormcache.flush()
    cached.warm(names("default"))
    with cached.expect("no usable cache"):
        only_names("postgresql")


@needs("postgresql")
@both
def test_one_database_can_have_a_timeout_of_its_own(
    cached: Watch, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(settings, TIMEOUT=5)
    ormcache.flush()
    timeouts = []
    store = store_of("default")
    fill = store.fill

    def note(*args: Any) -> None:
        timeouts.append(args[-1])
        fill(*args)

    monkeypatch.setattr(store, "fill", note)
    only_names("default")
    only_names("postgresql")
    assert timeouts == [3600, 5]
