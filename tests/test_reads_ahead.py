"""Facts about reads that are compiled while the cache answers, because the last one missed."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheError, CacheTimeout
from ormcache.stores.channels import Channel
from tests import factories
from tests.marks import on_caches, on_databases, on_pairs
from tests.models import Book
from tests.watching import Watch


def titles(using: str, pages: int) -> Callable[[], list[str]]:
    return lambda: [book.title for book in Book.objects.using(using).filter(pages=pages)]


@pytest.fixture
def missed(cached: Watch, using: str) -> Watch:
    """The shape of :func:`titles` is known, and its last query was not in the cache."""
    with factories.using(using):
        for pages in range(5):
            factories.BookFactory(title=f"of {pages} pages", pages=pages)
    # The first query makes the template, the second is looked up by it.
    cached.miss(titles(using, 0))
    cached.miss(titles(using, 1))
    return cached


@on_databases(transaction=True)
@on_caches("redis", "django_redis", "django_valkey", "locmem")
def test_answers_are_the_same(missed: Watch, using: str, cache: str) -> None:
    assert missed.miss(titles(using, 2)) == ["of 2 pages"]
    assert missed.miss(titles(using, 3)) == ["of 3 pages"]
    assert missed.hit(titles(using, 2)) == ["of 2 pages"]
    assert missed.hit(titles(using, 3)) == ["of 3 pages"]
    Book.objects.using(using).filter(pages=2).update(title="new")
    assert missed.miss(titles(using, 2)) == ["new"]
    assert missed.miss(titles(using, 4)) == ["of 4 pages"]
    assert missed.hit(titles(using, 2)) == ["new"]


@on_pairs(("postgresql", "redis"), transaction=True)
def test_query_that_cannot_have_rows_leaves_nothing_on_the_socket(
    missed: Watch, using: str, cache: str
) -> None:
    """Django finds out while compiling, when the question has been sent."""
    for _ in range(3):
        assert titles(using, 10**30)() == []
    assert missed.miss(titles(using, 2)) == ["of 2 pages"]
    assert missed.hit(titles(using, 2)) == ["of 2 pages"]


@on_pairs(("postgresql", "redis"), transaction=True)
def test_error_while_compiling_leaves_nothing_on_the_socket(
    missed: Watch, using: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("ormcache.reads.complete", fails)
        with pytest.raises(ZeroDivisionError):
            titles(using, 2)()
    assert missed.miss(titles(using, 2)) == ["of 2 pages"]
    assert missed.hit(titles(using, 2)) == ["of 2 pages"]


@on_pairs(("postgresql", "redis"), transaction=True)
def test_socket_that_is_killed_in_between_is_replaced(
    missed: Watch, using: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Channel.receive
    kills = [True]

    def killed(channel: Channel) -> Any:
        if kills:
            kills.clear()
            # As if the server had hung up; this one is not asked to, for others use it, too.
            channel._connection._sock.shutdown(socket.SHUT_RDWR)
        return receive(channel)

    monkeypatch.setattr(Channel, "receive", killed)
    assert missed.miss(titles(using, 2)) == ["of 2 pages"]
    assert not kills
    # The answer may have been sent for storing on a socket that was dead, too.
    titles(using, 2)()
    assert missed.hit(titles(using, 2)) == ["of 2 pages"]


@on_pairs(("postgresql", "redis"), transaction=True)
@pytest.mark.parametrize("error", [CacheTimeout, CacheError])
def test_cache_that_does_not_answer_is_as_one_that_has_nothing(
    missed: Watch,
    using: str,
    cache: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = connections[using]
    route = state_of(connection).route(connection, current())

    def silent(*args: Any) -> Any:
        raise error("no answer")

    monkeypatch.setattr(route.store, "start_read", lambda *args: silent)
    with missed.expect("cache unreachable"):
        assert titles(using, 2)() == ["of 2 pages"]
    assert not route.breaker.is_closed
    # The next test shall not have to wait.
    route.breaker.succeeded()
