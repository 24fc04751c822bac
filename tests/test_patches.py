"""The hooks in Django's classes come, stay beside others' and go without a trace."""

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.db.models.sql.compiler import SQLCompiler
from django.template import Context, Engine
from django.test.utils import CaptureQueriesContext

from ormcache import driver_methods, patches
from tests import factories
from tests.factories import AuthorFactory, BookFactory, TagFactory
from tests.marks import on_databases
from tests.models import Author, Comment, Tag
from tests.watching import Watch

on_default = on_databases("default", transaction=True)
HOOKED = [
    pytest.param(owner, name, id=f"{owner.__name__}.{name}") for owner, name, _ in patches._HOOKS
]


def hooked() -> dict[tuple[Any, str], Any]:
    """What Django's classes hold where ormcache puts its hooks."""
    return {(owner, name): vars(owner)[name] for owner, name, _ in patches.hooks()}


def names() -> list[str]:
    return list(Author.objects.values_list("name", flat=True))


@pytest.fixture
def installed() -> Iterator[None]:
    """The hooks are in place afterwards."""
    yield
    assert patches.uninstall() == []
    patches.install()


# --- installing and uninstalling -----------------------------------------------------------


@pytest.mark.parametrize(("owner", "name"), HOOKED)
def test_a_hook_looks_like_what_it_replaces(owner: Any, name: str) -> None:
    hook = vars(owner)[name]
    original = hook.__wrapped__
    assert (hook.__name__, hook.__doc__) == (original.__name__, original.__doc__)
    assert inspect.signature(hook) == inspect.signature(original)


def test_to_install_twice_changes_nothing() -> None:
    before = hooked()
    patches.install()
    assert hooked() == before


def test_uninstalling_restores_the_very_same_objects(installed: None) -> None:
    originals = {place: hook.__wrapped__ for place, hook in hooked().items()}
    assert patches.uninstall() == []
    assert not patches.is_installed()
    now = hooked()
    assert all(now[place] is original for place, original in originals.items())


def test_to_uninstall_twice_changes_nothing(installed: None) -> None:
    patches.uninstall()
    before = hooked()
    assert patches.uninstall() == []
    assert hooked() == before


@on_default
def test_uninstalled_nothing_is_read_from_the_cache(cached: Watch, installed: None) -> None:
    cached.warm(names)
    patches.uninstall()
    with cached.expect():
        names()


@on_default
def test_installed_anew_everything_works(cached: Watch, installed: None) -> None:
    patches.uninstall()
    patches.install()
    assert patches.is_installed()
    cached.warm(names)
    AuthorFactory(name="new")
    assert cached.warm(names) == ["new"]


@on_databases()
def test_what_a_debug_cursor_does_itself_is_hooked_as_well(using: str) -> None:
    """It hides what CursorWrapper.__getattr__ would give."""
    connection = connections[using]
    with CaptureQueriesContext(connection), connection.cursor() as cursor:
        own = driver_methods.DRIVER_METHODS & set(dir(type(cursor)))
        assert own == ({"copy"} if using == "postgresql" else set())
        assert all(hasattr(getattr(cursor, name), "__wrapped__") for name in own)


@pytest.mark.parametrize("engine", ["sqlite3", "oracle"])
def test_without_postgresql_its_driver_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """And no other that is missing, either: the databases in question tell of it themselves."""
    engines = {"default": {"ENGINE": f"django.db.backends.{engine}"}}
    monkeypatch.setattr(connections, "settings", engines)
    for module in ("psycopg", "psycopg2", "oracledb", "cx_Oracle"):
        monkeypatch.setitem(sys.modules, module, None)
    for backend in ("postgresql", "oracle"):
        for name in [n for n in sys.modules if n.startswith(f"django.db.backends.{backend}")]:
            monkeypatch.delitem(sys.modules, name)
    assert {(CursorWrapper, "_execute"), (CursorWrapper, "__getattr__")} <= set(hooked())


# --- beside other packages -----------------------------------------------------------------


def on_top(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: Callable[[Any], None]
) -> Any:
    """Patch as others do: keep what is there, and call it."""
    original = vars(owner)[name]

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    return patched


@pytest.mark.parametrize(
    ("owner", "name"), [(CursorWrapper, "_execute"), (SQLCompiler, "execute_sql")]
)
def test_a_patch_on_top_is_left_alone_and_named(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    patched = on_top(monkeypatch, owner, name, lambda self: None)
    before = hooked()
    assert patches.uninstall() == [f"{owner.__name__}.{name}"]
    assert vars(owner)[name] is patched
    # All or nothing: a hook that reads must not outlive those that see the writes.
    assert hooked() == before
    assert patches.is_installed()


@on_default
def test_under_a_patch_on_top_nothing_out_of_date_is_read(
    cached: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.warm(names)
    on_top(monkeypatch, SQLCompiler, "execute_sql", lambda self: None)
    patches.uninstall()
    AuthorFactory(name="new")
    assert names() == ["new"]


@on_default
def test_when_the_patch_on_top_is_gone_the_hooks_can_go(
    cached: Watch, monkeypatch: pytest.MonkeyPatch, installed: None
) -> None:
    with monkeypatch.context() as context:
        on_top(context, CursorWrapper, "_execute", lambda self: None)
        assert patches.uninstall()
    assert patches.uninstall() == []


@pytest.mark.parametrize(
    "question",
    [
        names,
        lambda: Author.objects.get(name="old").pk,
        lambda: Author.objects.filter(name="old").count(),
        lambda: Author.objects.filter(name="old").exists(),
        lambda: Author.objects.order_by("books__title").first().pk,
    ],
)
@on_default
def test_a_profiler_may_compile_each_query_first(
    cached: Watch, monkeypatch: pytest.MonkeyPatch, question: Callable[[], Any]
) -> None:
    """django-silk patches execute_sql() on the first request, and calls as_sql() in it."""
    seen: list[str] = []
    on_top(monkeypatch, SQLCompiler, "execute_sql", lambda self: seen.append(self.as_sql()[0]))
    AuthorFactory(name="old")
    seen.clear()
    cached.warm(question)
    assert len(seen) == 2
    AuthorFactory(name="new")
    cached.warm(question)


@on_default
def test_a_cursor_of_another_class_is_watched(cached: Watch, settings: Any) -> None:
    """The debug toolbar and DEBUG use subclasses of CursorWrapper."""
    cached.warm(names)
    connection = connections["default"]
    connection.force_debug_cursor = True
    try:
        AuthorFactory(name="new")
    finally:
        connection.force_debug_cursor = False
    assert cached.warm(names) == ["new"]


# --- related managers ----------------------------------------------------------------------


@on_default
def test_templates_refuse_methods_that_change_data(cached: Watch) -> None:
    book = BookFactory(tags=[TagFactory()])
    text = "{{ book.tags.clear }}{{ book.contributions.get_or_create }}{{ tag.books.clear }}"
    Engine().from_string(text).render(Context({"book": book, "tag": book.tags.get()}))
    assert book.tags.count() == 1
    assert book.contributions.count() == 0


@pytest.mark.parametrize("name", ["add", "set", "remove", "clear"])
@on_default
def test_methods_of_related_managers_keep_what_django_says_of_them(
    cached: Watch, name: str
) -> None:
    book = BookFactory()
    for manager in (book.tags, book.author.books, book.comments):
        if hasattr(manager, name):
            method = getattr(manager, name)
            assert method.alters_data
            assert method.__name__ == name


@pytest.mark.parametrize(
    "change",
    [
        lambda book, tag: book.tags.aadd(tag),
        lambda book, tag: book.tags.aset([tag]),
        lambda book, tag: tag.books.aadd(book),
        lambda book, tag: book.tags.acreate(name="new"),
        lambda book, tag: book.tags.aget_or_create(name="new"),
    ],
)
@on_default
def test_asynchronous_methods_of_related_managers_work(
    cached: Watch, change: Callable[..., Any]
) -> None:
    book, tag = BookFactory(), TagFactory()

    def tags() -> list[Tag]:
        return list(book.tags.all())

    async def work() -> None:
        await change(book, tag)

    assert cached.warm(tags) == []
    async_to_sync(work)()
    assert len(cached.warm(tags)) == 1


@on_default
def test_what_a_related_manager_asks_before_it_writes_is_asked_of_the_database(
    cached: Watch,
) -> None:
    book, tag = BookFactory(), TagFactory()
    cached.clear()
    book.tags.set([tag])
    assert set(cached.outcomes) == {"feeds a write"}


@on_databases("postgresql", transaction=True)
def test_what_the_manager_of_a_generic_relation_asks_is_asked_of_the_database(
    cached: Watch, using: str
) -> None:
    with factories.using(using):
        book = BookFactory()
    comment = Comment.objects.using(using).create(text="good", subject=book)
    cached.clear()
    book.comments.set([comment])
    # The content type is looked up on the way, which Django keeps.
    assert "feeds a write" in cached.outcomes
    assert {read.outcome for read in cached.reads if "tests_comment" in read.tables} <= {"skip"}
