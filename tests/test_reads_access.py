"""A hit refuses what a query would have been refused."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from django.test.testcases import DatabaseOperationForbidden, SimpleTestCase

from ormcache import access
from tests.marks import on_databases
from tests.models import Author
from tests.watching import Watch


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of a site: pytest-django has put nothing in the place of this method.

    Where it has, each read calls the method, and that refuses coroutines by itself.
    """
    monkeypatch.setattr(access, "_pristine", BaseDatabaseWrapper.ensure_connection)


@pytest.mark.usefixtures("unwatched")
@on_databases("default", "postgresql", transaction=True)
def test_a_synchronous_read_in_a_coroutine_is_refused(cached: Watch, using: str) -> None:
    question = Author.objects.using(using).count
    cached.warm(question)

    async def ask() -> None:
        question()

    with cached.expect(), pytest.raises(SynchronousOnlyOperation):
        asyncio.run(ask())
    cached.hit(question)


@on_databases("default", transaction=True)
def test_a_synchronous_read_in_a_coroutine_can_be_allowed(
    cached: Watch, using: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.warm(Author.objects.count)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def ask() -> int:
        try:
            return Author.objects.count()
        finally:
            # A coroutine has connections of its own.
            connections.close_all()

    assert cached.hit(lambda: asyncio.run(ask())) == 0


@on_databases(transaction=True)
def test_a_read_in_a_broken_transaction_is_refused(cached: Watch, using: str) -> None:
    question = Author.objects.using(using).count
    cached.warm(question)
    with transaction.atomic(using):
        transaction.set_rollback(True, using)
        with pytest.raises(TransactionManagementError):
            question()
    cached.hit(question)


@on_databases("default", "postgresql", transaction=True)
def test_the_connection_of_another_thread_is_refused(cached: Watch, using: str) -> None:
    question = Author.objects.using(using).count
    cached.warm(question)
    connection, errors = connections[using], []

    def ask() -> None:
        connections[using] = connection
        try:
            question()
        except DatabaseError as error:
            errors.append(str(error))

    with cached.expect():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "created in thread id" in errors[0]


@on_databases("default", "postgresql", transaction=True)
def test_the_connection_of_another_thread_can_be_allowed(cached: Watch, using: str) -> None:
    question = Author.objects.using(using).count
    cached.warm(question)
    connection = connections[using]

    def ask() -> None:
        connections[using] = connection
        question()

    connection.inc_thread_sharing()
    try:
        with cached.expect("hit"):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
    finally:
        connection.dec_thread_sharing()


@on_databases("default", transaction=True)
def test_a_simple_test_case_is_refused_the_database(cached: Watch, using: str) -> None:
    class Case(SimpleTestCase):
        def runTest(self) -> None:
            Author.objects.count()

    cached.warm(Author.objects.count)
    with cached.expect():
        result = run(Case)
    (failure,) = [text for _, text in result.errors + result.failures]
    assert "Database queries to 'default' are not allowed in SimpleTestCase" in failure
    assert DatabaseOperationForbidden.__name__ in failure
    cached.hit(Author.objects.count)


@on_databases("default", transaction=True)
def test_a_simple_test_case_may_read_what_it_names(cached: Watch, using: str) -> None:
    class Case(SimpleTestCase):
        databases = {"default"}

        def runTest(self) -> None:
            Author.objects.count()

    cached.warm(Author.objects.count)
    with cached.expect("hit"):
        assert run(Case).wasSuccessful()


def run(case: type[SimpleTestCase]) -> Any:
    import unittest

    result = unittest.TestResult()
    unittest.TestSuite([case("runTest")]).run(result)
    return result


PYTEST_MODULE = """
    import pytest

    from tests.models import Author

    @pytest.mark.django_db(transaction=True)
    def test_warms_the_cache():
        list(Author.objects.all())
        list(Author.objects.all())

    def test_may_not_read():
        list(Author.objects.all())

    @pytest.fixture(autouse=True)
    def on(settings):
        settings.ORMCACHE = {"CACHE_ALIAS": "locmem"}
"""


def test_pytest_django_refuses_the_database(tmp_path: Path) -> None:
    """It replaces ensure_connection(), which a hit has to call."""
    # pytest-django leaves connections closed between tests, so that it is asked for a new one.
    module = tmp_path / "test_refused.py"
    module.write_text(textwrap.dedent(PYTEST_MODULE))
    command = [sys.executable, "-m", "pytest", str(module), "-q", "-p", "no:cacheprovider"]
    options = ["-p", "tests.servers_plugin", "--rootdir", str(tmp_path), "-c", "/dev/null"]
    done = subprocess.run(
        [*command, *options, "--ds", "tests.settings"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "Database access not allowed" in done.stdout


@on_databases("default", transaction=True)
def test_a_blocked_database_is_refused_in_this_process(
    cached: Watch, using: str, django_db_blocker: Any
) -> None:
    cached.warm(Author.objects.count)
    with django_db_blocker.block():
        connections[using].close()
        with cached.expect(), pytest.raises(RuntimeError, match="Database access not allowed"):
            Author.objects.count()
    cached.hit(Author.objects.count)


@on_databases("default", transaction=True)
def test_a_blocked_database_is_refused_also_on_an_open_connection(
    cached: Watch, using: str, django_db_blocker: Any
) -> None:
    """Django's cursor() calls ensure_connection() whether or not it is connected."""
    cached.warm(Author.objects.count)
    assert connections[using].connection is not None
    with (
        django_db_blocker.block(),
        cached.expect(),
        pytest.raises(RuntimeError, match="Database access not allowed"),
    ):
        Author.objects.count()
    cached.hit(Author.objects.count)
