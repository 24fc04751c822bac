"""What explain() says of a query."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections, models, transaction
from django.db.models.functions import Now, Random

import ormcache
from ormcache.exceptions import CacheError
from ormcache.explanation import Explanation, explain
from ormcache.reasons import Reason
from ormcache.stores import LocMemStore, breaker_for
from tests.marks import needs, on_caches, on_databases
from tests.models import Author, Book
from tests.watching import Watch


@on_databases(transaction=True)
@on_caches("locmem", "redis")
def test_not_yet_then_cached_then_not_yet_again(cached: Watch, using: str, cache: str) -> None:
    queryset = Author.objects.using(using).order_by("name")

    def state() -> tuple[bool, bool, Any]:
        found = explain(queryset.all())
        return found.cached, found.cacheable, found.reason

    assert state() == (False, True, None)
    list(queryset.all())
    assert state() == (True, True, None)
    Author.objects.using(using).create(name="a")
    assert state() == (False, True, None)


@on_databases("default", transaction=True)
def test_explaining_asks_neither_the_database_nor_stores_anything(
    cached: Watch, django_assert_num_queries: Any
) -> None:
    with cached.expect(), django_assert_num_queries(0):
        explain(Author.objects.all())
        explain(Author.objects.all())
    cached.miss(lambda: list(Author.objects.all()))


@on_databases(transaction=True)
def test_locks_are_named_outside_of_a_transaction(cached: Watch, using: str, cache: str) -> None:
    """Where Django would refuse to run the query."""
    found = explain(Author.objects.using(using).select_for_update())
    assert found.reason is Reason.SELECT_FOR_UPDATE
    assert found.tables == ("tests_author",)
    assert "tests_author" in found.sql


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_the_facts_of_a_query(cached: Watch, using: str, cache: str) -> None:
    queryset = Book.objects.using(using).filter(author__name="a").select_related("author")
    found = explain(queryset)
    assert isinstance(found, ormcache.Explanation)
    assert found.using == using
    assert found.tables == ("tests_author", "tests_book")
    assert found.cache_alias == cache
    assert found.mode == "strict"
    assert found.sql == queryset.query.get_compiler(using).as_sql()[0]
    assert found.namespace.startswith("test_ormcache_test") or "ormcache_test" in found.namespace
    assert len(found.key) == 40
    assert (found.detail, found.remaining) == ("", 0.0)


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Author.objects.all(),
        lambda: Author.objects.filter(name__in=["a", "b"])[:3],
        lambda: Author.objects.annotate(books_=models.Count("books")).order_by("-books_"),
    ],
    ids=["all", "filter", "annotate"],
)
def test_the_key_is_that_of_the_read(
    cached: Watch, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = LocMemStore.read

    def read(store: Any, namespace: str, entry: str, tables: Any) -> Any:
        asked.append(entry)
        return original(store, namespace, entry, tables)

    monkeypatch.setattr(LocMemStore, "read", read)
    explained = [explain(make()).key]
    list(make())
    explained.append(explain(make()).key)
    list(make())
    assert len(asked) == 4
    assert len({*asked, *explained}) == 1


@on_databases("default", transaction=True)
def test_a_manager_is_all_its_rows(cached: Watch) -> None:
    assert explain(Author.objects).key == explain(Author.objects.all()).key


@pytest.mark.parametrize("thing", [Author, "Author.objects", None, 3, []], ids=repr)
def test_what_is_no_queryset_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"is not a queryset\. .* of a model, give Model\.objects"):
        explain(thing)


@on_databases("default", transaction=True)
def test_an_explanation_can_not_be_changed(cached: Watch) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        explain(Author.objects).cached = True  # type: ignore[misc]


# --- each kind of no -------------------------------------------------------------------------

NO: dict[str, tuple[Callable[[], Any], Reason, str]] = {
    "locks": (lambda: Author.objects.select_for_update(), Reason.SELECT_FOR_UPDATE, ""),
    "none": (lambda: Author.objects.none(), Reason.NO_ROWS_POSSIBLE, ""),
    "empty list": (lambda: Author.objects.filter(pk__in=[]), Reason.NO_ROWS_POSSIBLE, ""),
    "empty slice": (lambda: Author.objects.all()[3:3], Reason.NO_ROWS_POSSIBLE, ""),
    "raw": (lambda: Author.objects.raw("SELECT * FROM tests_author"), Reason.RAW, ""),
    "random": (lambda: Author.objects.order_by("?"), Reason.RANDOM, "rand"),
    "Random": (lambda: Author.objects.annotate(r=Random()), Reason.RANDOM, "rand"),
    "now": (
        lambda: Book.objects.filter(published__lt=Now()),
        Reason.NON_DETERMINISTIC,
        "strftime",
    ),
    "function": (
        lambda: Author.objects.annotate(
            f=models.Func("name", function="my_own", output_field=models.TextField())
        ),
        Reason.UNKNOWN_FUNCTION,
        "my_own",
    ),
    "table": (
        lambda: Author.objects.extra(where=["id IN (SELECT id FROM some_view)"]),
        Reason.UNKNOWN_TABLE,
        "some_view",
    ),
}


@on_databases("default", transaction=True)
@pytest.mark.parametrize("name", NO)
def test_each_kind_of_no_has_its_reason_and_detail(cached: Watch, name: str) -> None:
    make, reason, detail = NO[name]
    found = explain(make())
    assert (found.cached, found.cacheable) == (False, False)
    assert found.reason is reason
    assert found.detail.startswith(detail)


@on_databases("postgresql", transaction=True)
def test_a_parameter_without_identity_is_a_no_with_its_type(cached: Watch, using: str) -> None:
    class Odd:
        pass

    queryset = Author.objects.using(using).annotate(
        odd=models.Value(Odd(), output_field=models.Field())
    )
    found = explain(queryset)
    assert found.reason is Reason.PARAMETER
    assert "Odd" in found.detail


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "change, reason",
    [
        ({"ENABLED": False}, Reason.SWITCHED_OFF),
        ({"DATABASES": {"default": {"ENABLED": False}}}, Reason.DATABASE_OFF),
        ({"MODELS": {"tests.Author": {"ENABLED": False}}}, Reason.MODEL_OFF),
        ({"CACHE_ALIAS": "dummy"}, Reason.NO_CACHE),
        ({"CACHE_ALIAS": "filebased", "CONSISTENCY": "strict"}, Reason.NO_CACHE),
        ({"CACHE_EXTRA": False}, Reason.RAW_FRAGMENT),
    ],
    ids=str,
)
def test_each_setting_that_switches_off_is_a_reason(
    cached: Watch, settings: Any, change: dict[str, Any], reason: Reason
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, **change}
    found = explain(Author.objects.extra(select={"one": "1"}))
    assert found.reason is reason
    assert found.mode == ("off" if reason is Reason.NO_CACHE else "strict")
    assert "tests_author" in found.tables


@on_databases("default", transaction=True)
def test_disabled_is_a_reason(cached: Watch) -> None:
    with ormcache.disabled():
        assert explain(Author.objects).reason is Reason.DISABLED
    assert explain(Author.objects).reason is None


@on_databases(transaction=True)
def test_the_state_of_the_transaction_is_a_reason(cached: Watch, using: str) -> None:
    author, books = Author.objects.using(using), Book.objects.using(using)
    snapshot = using == "default"
    with transaction.atomic(using):
        assert explain(author).reason is (Reason.SNAPSHOT if snapshot else None)
        author.create(name="a")
        assert explain(author).reason is (Reason.SNAPSHOT if snapshot else Reason.WRITTEN_HERE)
        assert explain(books).reason is (Reason.SNAPSHOT if snapshot else None)
        transaction.set_rollback(True, using)
        assert explain(books).reason is Reason.BROKEN_TRANSACTION
    assert explain(author).reason is None


@on_databases("default", transaction=True)
def test_a_commit_on_its_way_is_a_reason_that_ends(cached: Watch) -> None:
    from ormcache.conf import current
    from ormcache.connection_state import state_of

    connection = connections["default"]
    route = state_of(connection).route(connection, current())
    assert route.store is not None
    route.store.arm(route.namespace, "intent", ["tests_author"])
    found = explain(Author.objects)
    assert found.reason is Reason.BUSY
    assert 0 < found.remaining <= 0.5
    assert f"for {found.remaining:.1f} s at most" in str(found)
    route.store.finish(route.namespace, "intent", ["tests_author"])
    assert explain(Author.objects).reason is None


@needs("redis")
@on_databases("default", transaction=True)
@on_caches("redis")
def test_the_quarantine_is_a_reason_that_ends(cached: Watch, cache: str) -> None:
    from django.core.cache import caches

    caches[cache].clear()
    found = explain(Author.objects)
    assert found.reason is Reason.QUARANTINE
    assert 0 < found.remaining <= 0.5


@on_databases("default", transaction=True)
def test_an_unreachable_cache_is_a_reason(cached: Watch, monkeypatch: Any) -> None:
    def fail(*args: Any) -> None:
        raise CacheError("out of order")

    monkeypatch.setattr(LocMemStore, "read", fail)
    try:
        assert explain(Author.objects).reason is Reason.CACHE_UNREACHABLE
        # Not asked again at once, and the same reason all the same.
        assert explain(Author.objects).reason is Reason.CACHE_UNREACHABLE
    finally:
        breaker_for("locmem").succeeded()


@on_databases("default", transaction=True)
def test_what_forbids_the_query_as_such_comes_before_what_forbids_it_now(
    cached: Watch, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False}
    assert explain(Author.objects.select_for_update()).reason is Reason.SELECT_FOR_UPDATE
    explanation = explain(Author.objects.order_by("?"))
    assert explanation.reason is Reason.SWITCHED_OFF
    # Under pytest it is most likely the plugin, of which the settings show nothing.
    assert 'the test uses the fixture "orm_cache"' in str(explanation)


# --- the text --------------------------------------------------------------------------------

FACTS = Explanation(
    using="default",
    cached=False,
    cacheable=True,
    reason=None,
    detail="",
    remaining=0.0,
    tables=("a", "b"),
    key="0123",
    sql="SELECT 1",
    namespace="shop-1",
    cache_alias="redis",
    mode="strict",
)
REST = """
  tables:    a, b
  database:  default
  namespace: shop-1
  cache:     redis (strict)
  key:       0123
  SQL:       SELECT 1"""


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"cached": True}, "cached: the next read is answered from the cache" + REST),
        (
            {"cached": True, "shadow": True},
            "cached, but MODE is shadow: the next read is answered from the database" + REST,
        ),
        ({}, "not cached yet: the next read stores its answer, if that can be stored" + REST),
        (
            {"cacheable": False, "reason": Reason.ITERATOR},
            "not cached: iterator()\n"
            "  why:       iterator() streams rows that are not kept in memory." + REST,
        ),
        (
            {"cacheable": False, "reason": Reason.RAW, "detail": "the detail"},
            "not cached: raw() (the detail)\n"
            "  why:       raw() and cursor.execute() go to the database." + REST,
        ),
        (
            {"cacheable": False, "reason": Reason.EXPLAIN, "remaining": 1.26},
            "not cached: explain(), for 1.3 s at most\n"
            "  why:       The query asks for its plan." + REST,
        ),
    ],
)
def test_the_text_is_for_people(changes: dict[str, Any], text: str) -> None:
    assert str(dataclasses.replace(FACTS, **changes)) == text


def test_what_is_not_known_is_a_dash() -> None:
    lines = str(dataclasses.replace(FACTS, tables=(), key="", sql="")).splitlines()
    assert [line.split() for line in lines if line.endswith(" -")] == [
        ["tables:", "-"],
        ["key:", "-"],
        ["SQL:", "-"],
    ]
