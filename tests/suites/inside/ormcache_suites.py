"""Puts ormcache into the process of another project's tests, and writes down how they end.

Found by its name from anywhere, as the packages of those projects may be called `tests`, too:

    python ormcache_suites.py django FOLDER [LABEL ...]
    python ormcache_suites.py simple_history FOLDER [LABEL ...]
    python -m pytest -p ormcache_suites_pytest ...

The variable ORMCACHE_SUITE holds, as JSON, what `tests.suites.running` says.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
from django.test import TestCase
from django.test.runner import DiscoverRunner

ORDER: dict[str, Any] = json.loads(os.environ["ORMCACHE_SUITE"])
HAS_ORMCACHE = ORDER["run"] != "without"

# --- how the tests end ---------------------------------------------------------------------


class Record:
    """The file of outcomes: a line of JSON for each."""

    def __init__(self) -> None:
        # Open to the end of the process, which a test may cut short.
        self._file = Path(ORDER["outcomes"]).open("a", buffering=1)  # noqa: SIM115

    def write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")

    def outcome(self, test: str, outcome: str, message: str = "", trace: str = "") -> None:
        self.write(test=test, outcome=outcome, message=message, trace=trace)

    def end(self) -> None:
        """Say that the run came to its end, and what ormcache has done."""
        self.write(end=True, reads=_reads())


def _reads() -> dict[str, int]:
    if not HAS_ORMCACHE:
        return {}
    from ormcache import counters

    found: dict[str, int] = {}
    for tables in counters.snapshot().values():
        for events in tables.values():
            for event, number in events.items():
                found[event] = found.get(event, 0) + number
    return found


@functools.cache
def record() -> Record:
    """The record of this process."""
    return Record()


def _message(error: Any) -> str:
    """The last line of a traceback, but all of it if the exception has several."""
    kind, value, _ = error
    return "".join(traceback.format_exception_only(kind, value)).strip()


class Outcomes:
    """Mixed into a result of unittest."""

    running = ""
    """The test that began last."""

    is_test_case = False
    """Whether it would be in a transaction of its own."""

    def startTest(self, test: Any) -> None:
        Outcomes.running = test.id()
        Outcomes.is_test_case = isinstance(test, TestCase)
        super().startTest(test)  # type: ignore[misc]

    def _note(self, test: Any, outcome: str, error: Any = None) -> None:
        trace = "".join(traceback.format_exception(*error)) if error else ""
        record().outcome(test.id(), outcome, _message(error) if error else "", trace)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")
        super().addSuccess(test)  # type: ignore[misc]

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, "error", err)
        super().addError(test, err)  # type: ignore[misc]

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "failed", err)
        super().addFailure(test, err)  # type: ignore[misc]

    def addSkip(self, test: Any, reason: str) -> None:
        record().outcome(test.id(), "skipped", reason)
        super().addSkip(test, reason)  # type: ignore[misc]

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._note(test, "failed as expected", err)
        super().addExpectedFailure(test, err)  # type: ignore[misc]

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note(test, "passed unexpectedly")
        super().addUnexpectedSuccess(test)  # type: ignore[misc]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        # One that passes is told only by some versions of Python.
        if err is not None:
            outcome = "failed" if issubclass(err[0], test.failureException) else "error"
            self._note(subtest, outcome, err)
        super().addSubTest(test, subtest, err)  # type: ignore[misc]


class Runner(DiscoverRunner):
    """Django's test runner; the setting TEST_RUNNER names it."""

    def get_resultclass(self) -> Any:
        base = super().get_resultclass() or unittest.TextTestResult
        return type("Result", (Outcomes, base), {})

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        result = super().run_suite(suite, **kwargs)
        record().end()
        return result


# --- ormcache ------------------------------------------------------------------------------


def add_ormcache() -> None:
    """Have ormcache among the installed apps, whichever these will be."""
    if not HAS_ORMCACHE:
        return
    setup = django.setup

    @functools.wraps(setup)
    def setup_with_ormcache(*args: Any, **kwargs: Any) -> None:
        from django.conf import settings

        if "ormcache" not in settings.INSTALLED_APPS:
            # In place: the list is kept by who is about to run the tests.
            settings.INSTALLED_APPS.append("ormcache")
        setup(*args, **kwargs)
        watch_mismatches()
        echo()

    django.setup = setup_with_ormcache


@functools.cache
def watch_mismatches() -> None:
    """Write down what the cache would have answered otherwise than the database."""
    from ormcache.signals import mismatch_found

    def note(sql: str, params: Any, cached: Any, truth: Any, **kwargs: Any) -> None:
        record().write(
            mismatch=f"{Outcomes.running}: {cached!r} instead of {truth!r}: {sql} {params!r}",
        )

    mismatch_found.connect(note, weak=False)


class _Stored(threading.local):
    """Whether the last read of this thread was put into the cache."""

    last = False


@functools.cache
def echo() -> None:
    """Have each answer that was just stored read back from the cache, and that one used.

    Most tests ask nothing twice: few hits would show whether an answer outlives the way through
    the cache. Where the database answers again, nobody is to notice.
    """
    from ormcache import reads

    stored = _Stored()
    execute_sql, store = reads.execute_sql, reads._store

    def note(*args: Any, **kwargs: Any) -> Any:
        reason = store(*args, **kwargs)
        stored.last = reason is None
        return reason

    def echoing(original: Any, compiler: Any, /, *args: Any, **kwargs: Any) -> Any:
        query = compiler.query.clone()
        stored.last = False
        answer = execute_sql(original, compiler, *args, **kwargs)
        # To compile a union changes what its copies share: it works only once.
        if not stored.last or query.combinator:
            return answer
        # As it was before: compiling leaves traces in a query.
        second = query.get_compiler(compiler.using, compiler.connection, compiler.elide_empty)
        with _unnoticed(compiler.connection):
            answer = execute_sql(original, second, *args, **kwargs)
        vars(compiler).update({k: v for k, v in vars(second).items() if k != "query"})
        return answer

    reads._store, reads.execute_sql = note, echoing


@contextlib.contextmanager
def _unnoticed(connection: Any) -> Iterator[None]:
    """Keep queries from those who count them."""
    log, wrappers = connection.queries_log, connection.execute_wrappers
    connection.queries_log, connection.execute_wrappers = type(log)(maxlen=log.maxlen), []
    try:
        yield
    finally:
        connection.queries_log, connection.execute_wrappers = log, wrappers


# --- tests whose writes are committed ------------------------------------------------------


def commit_in_tests() -> None:
    """Treat each TestCase as Django does on a database without transactions."""
    from django.db import Error, connections
    from django.test import TransactionTestCase

    if ORDER["in_transactions"]:
        return
    flush = TransactionTestCase._fixture_teardown
    beginning: dict[str, _Beginning] = {}

    @classmethod  # type: ignore[misc]
    def never(cls: Any) -> bool:
        return False

    def setup(original: Any) -> Any:
        @functools.wraps(original)
        def fixture_setup(cls: Any) -> Any:
            for alias in cls._databases_names(include_mirrors=False):
                if alias not in beginning:
                    beginning[alias] = _Beginning(connections[alias])
            return original(cls)

        return classmethod(fixture_setup)

    def teardown(self: Any) -> None:
        if self.available_apps is not None or self.serialized_rollback:
            flush(self)
            return
        for alias in self._databases_names(include_mirrors=False):
            try:
                is_done = alias in beginning and beginning[alias].restore()
            except Error:
                is_done = False
            if not is_done:
                flush(self)
                beginning.clear()
                return

    _count_queries_as_in_a_transaction()
    TestCase._databases_support_transactions = never
    # To connect anew for each test would take most of the time.
    TestCase._should_reload_connections = lambda self: False
    TestCase._fixture_setup = setup(TestCase._fixture_setup.__func__)
    TransactionTestCase._fixture_teardown = teardown


def _count_queries_as_in_a_transaction() -> None:
    """Keep BEGIN and COMMIT from tests that count queries, where they expect neither.

    In the transaction of a TestCase, `atomic(savepoint=False)` needs no statement.
    """
    from django.db.transaction import Atomic, get_connection

    enter, leave = Atomic.__enter__, Atomic.__exit__
    outermost: set[Any] = set()

    def __enter__(self: Any) -> None:
        connection = get_connection(self.using)
        if connection.in_atomic_block or self.savepoint or not Outcomes.is_test_case:
            enter(self)
            return
        with _unnoticed(connection):
            enter(self)
        outermost.add(connection)

    def __exit__(self: Any, *exception: Any) -> None:
        connection = get_connection(self.using)
        if connection not in outermost or len(connection.atomic_blocks) > 1:
            leave(self, *exception)
            return
        outermost.discard(connection)
        with _unnoticed(connection):
            leave(self, *exception)

    Atomic.__enter__, Atomic.__exit__ = __enter__, __exit__


class _Beginning:
    """What was in a database before the tests, and the way back; quicker than a flush."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        introspection = connection.introspection
        self._tables = introspection.django_table_names(only_existing=True, include_views=False)
        self._tables.sort()
        self._kept = self._filled()
        self._content = self._read_kept()

    def _filled(self) -> list[str]:
        """The tables that have rows."""
        quote = self._connection.ops.quote_name
        found: list[str] = []
        with self._connection.cursor() as cursor:
            for start in range(0, len(self._tables), 100):
                names = self._tables[start : start + 100]
                cursor.execute(
                    " UNION ALL ".join(
                        f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {quote(name)})"
                        for number, name in enumerate(names)
                    )
                )
                found += [names[number] for (number,) in cursor.fetchall()]
        return found

    def _read_kept(self) -> list[Any]:
        quote = self._connection.ops.quote_name
        found = []
        with self._connection.cursor() as cursor:
            for name in self._kept:
                cursor.execute(f"SELECT COUNT(*) FROM {quote(name)}")
                (number,) = cursor.fetchone()
                found.append(number)
                # Permissions are many, and no test changes one that was there.
                if number < 200:
                    cursor.execute(f"SELECT * FROM {quote(name)}")
                    found.append(sorted(map(repr, cursor.fetchall())))
        return found

    def restore(self) -> bool:
        """Delete what the tests have written; False if only a flush can do that."""
        from django.db import transaction

        if self._read_kept() != self._content:
            return False
        names = [name for name in self._filled() if name not in self._kept]
        quote = self._connection.ops.quote_name
        # In any order: Django has foreign keys checked at the end of a transaction.
        with transaction.atomic(self._connection.alias), self._connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"DELETE FROM {quote(name)}")
        return True


# --- suites --------------------------------------------------------------------------------


def django_suite(folder: Path, labels: list[str]) -> None:
    """`tests/runtests.py` of Django."""
    sys.path.insert(0, str(folder))
    add_ormcache()
    os.environ["DJANGO_SETTINGS_MODULE"] = "ormcache_suites_settings"
    commit_in_tests()
    sys.argv = [str(folder / "runtests.py"), "--parallel=1", "--noinput", *labels]
    os.chdir(folder)
    runpy.run_path(sys.argv[0], run_name="__main__")


def simple_history(folder: Path, labels: list[str]) -> None:
    """`runtests.py` of django-simple-history, which configures the settings unless they are."""
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    add_ormcache()
    from django.conf import settings

    program: Any = importlib.import_module("runtests")
    settings.configure(**{**program.get_default_settings(), **ORDER["settings"]})
    commit_in_tests()
    django.setup()
    labels = labels or ["simple_history.tests", "simple_history.registry_tests"]
    sys.exit(bool(Runner(interactive=False).run_tests(labels)))


def main() -> None:
    suite, folder, *labels = sys.argv[1:]
    # As a module: what is imported from it is the same as what runs.
    this = importlib.import_module("ormcache_suites")
    {"django": this.django_suite, "simple_history": this.simple_history}[suite](
        Path(folder), labels
    )


if __name__ == "__main__":
    main()
