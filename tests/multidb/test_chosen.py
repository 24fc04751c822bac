"""NAMESPACE: a function of the project chooses the namespace from the connection."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.db.models import Value
from django.test.utils import override_settings

import ormcache
from ormcache.conf import parse
from ormcache.exceptions import CacheError, CacheUnreachable, SettingsError
from ormcache.reasons import Reason
from ormcache.routers import chosen
from tests.interleaving import record_calls, route_of, store_of
from tests.marks import on_databases, on_pairs
from tests.models import Author
from tests.watching import Watch, wait_for_quarantine

on_default = on_databases("default", transaction=True)


def text_of(connection: Any) -> str:
    """The function of the tests: what `say` told the connection."""
    text: str = connection.__dict__.get("tests_text", "")
    return text


def say(text: str, using: str = "default") -> None:
    connections[using].tests_text = text  # type: ignore[attr-defined]


@pytest.fixture
def spaces(cached: Watch, using: str) -> Iterator[Watch]:
    """Caching goes on, in the namespace that `say` names; "a" and "b" are out of quarantine."""
    with override_settings(ORMCACHE={**django_settings.ORMCACHE, "NAMESPACE": text_of}):
        for text in ("a", "b"):
            say(text, using)
            ormcache.flush(using)
            wait_for_quarantine(using)
        cached.clear()
        yield cached
        del connections[using].tests_text  # type: ignore[attr-defined]


def count(using: str = "default") -> Callable[[], int]:
    return Author.objects.using(using).count


# --- the name ------------------------------------------------------------------------------


@on_default
def test_the_text_is_part_of_the_name_of_the_namespace(spaces: Watch) -> None:
    say("")
    usual = route_of("default").namespace
    say("shop-1")
    assert "-shop-1-" in route_of("default").namespace
    with override_settings(ORMCACHE={}):
        assert route_of("default").namespace == usual


@on_default
def test_each_text_is_another_database(spaces: Watch) -> None:
    """Not even a text that looks like the end of another name meets it."""
    names = set()
    for text in ("", "a", "b", "a-b"):
        say(text)
        names.add(route_of("default").namespace)
        say(route_of("default").namespace[-60:])
        names.add(route_of("default").namespace)
    assert len(names) == 8


def settings(**options: Any) -> Any:
    found, problems = parse(options)
    assert not problems
    return found


def test_the_function_of_an_alias_goes_before_that_of_all() -> None:
    connection = connections["default"].copy()

    def ask(own: Any) -> str:
        options = {"NAMESPACE": lambda connection: "all", "DATABASES": {"default": own}}
        return chosen.text_for(connection, settings(**options))

    assert ask({}) == "all"
    assert ask({"NAMESPACE": lambda connection: "own"}) == "own"
    assert ask({"NAMESPACE": None}) == ""


def test_a_replica_has_the_function_of_its_primary() -> None:
    connection = connections["default"].copy("replica")
    connection.tests_text = "of the replica"  # type: ignore[attr-defined]
    # As a function of the primary: it is asked about the connection that is used.
    here = settings(
        DATABASES={
            "primary": {"NAMESPACE": lambda connection: connection.tests_text.replace(" ", "-")}
        }
    )
    connections.settings["replica"] = {
        **connections.settings["default"],
        "TEST": {"MIRROR": "primary"},
    }
    connections.settings["primary"] = connections.settings["default"]
    try:
        assert chosen.text_for(connection, here) == "of-the-replica"
    finally:
        del connections.settings["replica"], connections.settings["primary"]


def test_the_function_may_be_named_by_its_path() -> None:
    connection = connections["default"].copy()
    connection.tests_text = "here"  # type: ignore[attr-defined]
    here = settings(NAMESPACE="tests.multidb.test_chosen.text_of")
    assert chosen.text_for(connection, here) == "here"


# --- reads and writes ----------------------------------------------------------------------


@on_default
def test_namespaces_share_no_answers(spaces: Watch) -> None:
    say("a")
    spaces.warm(count())
    say("b")
    spaces.warm(count())
    say("a")
    spaces.hit(count())


@on_default
def test_namespaces_share_no_invalidations(spaces: Watch) -> None:
    for text in ("a", "b"):
        say(text)
        spaces.warm(count())
    Author.objects.create(name="written in b")
    spaces.miss(count())
    say("a")
    # Documented: these are different databases, or should be.
    assert spaces.hit(count()) == 0


@on_pairs(("postgresql", "redis"), ("mariadb", "redis"), transaction=True)
def test_a_transaction_is_announced_wherever_it_wrote(
    spaces: Watch, using: str, cache: str
) -> None:
    for text in ("a", "b"):
        say(text, using)
        spaces.warm(count(using))
    with transaction.atomic(using=using):
        say("a", using)
        Author.objects.using(using).create(name="in a")
        say("b", using)
        Author.objects.using(using).create(name="in b")
        say("", using)
    for text in ("a", "b"):
        say(text, using)
        assert spaces.miss(count(using)) == 2


@on_pairs(("postgresql", "redis"), transaction=True)
def test_a_namespace_that_was_left_before_the_commit_is_told(
    spaces: Watch, using: str, cache: str
) -> None:
    say("a", using)
    spaces.warm(count(using))
    with transaction.atomic(using=using):
        Author.objects.using(using).create(name="in a")
        say("b", using)
    say("a", using)
    assert spaces.miss(count(using)) == 1


@on_pairs(("postgresql", "redis"), transaction=True)
def test_invalidate_in_a_transaction_is_told_where_it_was_called(
    spaces: Watch, using: str, cache: str
) -> None:
    say("a", using)
    spaces.warm(count(using))
    with transaction.atomic(using=using):
        ormcache.invalidate(Author, using=using)
        say("b", using)
        spaces.clear()
    # Once more at the commit.
    assert spaces.invalidated == [("tests_author", *spaces.invalidated[0][1:])]
    say("a", using)
    spaces.miss(count(using))


@on_pairs(("postgresql", "redis"), transaction=True)
def test_a_rollback_forgets_where_it_wrote(
    spaces: Watch, using: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_calls(monkeypatch, store_of(using), "arm", "start_arm", "finish")
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=using):
        say("a", using)
        Author.objects.using(using).create(name="a")
        raise ZeroDivisionError
    say("b", using)
    with transaction.atomic(using=using):
        Author.objects.using(using).create(name="b")
    assert calls == ["arm", "finish"]


@on_pairs(("postgresql", "redis"), transaction=True)
def test_a_commit_that_cannot_be_announced_everywhere_is_refused(
    spaces: Watch, using: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("a", using)
    spaces.warm(count(using))
    first = route_of(using).namespace
    arm = store_of(using).arm

    def failing(namespace: str, *args: Any) -> None:
        if namespace != first:
            raise CacheError("no")
        arm(namespace, *args)

    with monkeypatch.context() as patched:
        patched.setattr(store_of(using), "arm", failing)
        with pytest.raises(CacheUnreachable), transaction.atomic(using=using):
            Author.objects.using(using).create(name="in a")
            say("b", using)
            Author.objects.using(using).create(name="in b")
    route_of(using).breaker.succeeded()
    say("a", using)
    # What was announced has been ended: there is no intent left to wait for.
    assert spaces.miss(count(using)) == 0


class Switching(Value):
    """An expression that lets the connection lead elsewhere once it has been compiled."""

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        say("b", connection.alias)
        return super().as_sql(compiler, connection)


@on_pairs(("postgresql", "redis"), transaction=True)
def test_what_was_announced_ahead_elsewhere_is_announced_again(
    spaces: Watch, using: str, cache: str
) -> None:
    Author.objects.using(using).create(name="old")
    say("b", using)
    spaces.warm(Author.objects.using(using).get)
    say("a", using)
    Author.objects.using(using).update(name=Switching("new"))
    assert text_of(connections[using]) == "b"
    assert Author.objects.using(using).get().name == "new"


@on_default
def test_an_answer_from_elsewhere_is_not_stored(spaces: Watch) -> None:
    """What the query itself leads to was not known when the registers were read."""
    say("a")

    def lead_elsewhere(execute: Any, *args: Any) -> Any:
        say("b")
        return execute(*args)

    with connections["default"].execute_wrapper(lead_elsewhere):
        count()()
    assert [read.reason for read in spaces.reads] == [Reason.SESSION]
    say("a")
    spaces.miss(count())


@on_default
def test_what_connecting_decides_is_known_before_the_look_up(spaces: Watch) -> None:
    def receive(connection: Any, **kwargs: Any) -> None:
        connection.tests_text = "b"

    say("b")
    spaces.warm(count())
    connection_created.connect(receive)
    try:
        connections["default"].close()
        say("a")
        spaces.hit(count())
    finally:
        connection_created.disconnect(receive)


# --- errors --------------------------------------------------------------------------------


@on_default
@pytest.mark.parametrize(
    "function",
    ["tests.nothing.here", lambda connection: 5, lambda connection: 1 / 0],
    ids=["not importable", "no string", "fails"],
)
def test_a_function_that_does_not_work_stops_reads_and_writes(using: str, function: Any) -> None:
    with override_settings(ORMCACHE={"NAMESPACE": function}):
        with pytest.raises(SettingsError, match="NAMESPACE"):
            Author.objects.count()
        with pytest.raises(SettingsError, match="NAMESPACE"):
            Author.objects.create(name="a")
        with pytest.raises(SettingsError, match="NAMESPACE"), transaction.atomic():
            Author.objects.create(name="a")
    assert Author.objects.count() == 0


@on_default
def test_a_function_that_queries_is_told_off(using: str) -> None:
    with (
        override_settings(ORMCACHE={"NAMESPACE": lambda connection: str(Author.objects.count())}),
        pytest.raises(SettingsError, match="RecursionError"),
    ):
        Author.objects.count()


def test_without_the_option_no_function_is_called() -> None:
    assert not chosen.is_configured(settings())
    assert not chosen.is_configured(settings(DATABASES={"default": {"NAMESPACE": None}}))
    assert chosen.is_configured(settings(DATABASES={"default": {"NAMESPACE": "a.b"}}))
