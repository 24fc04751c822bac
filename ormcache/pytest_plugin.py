"""Pytest plugin for projects that use ormcache; works with pytest-django.

In tests nothing is cached, unless a test asks for the fixture :func:`orm_cache`, the ini option
``ormcache`` is ``on``, or the whole suite is run with ``--ormcache-verify``. Then each read that
the cache could have answered is compared with what the database says, and a difference fails the
test, and the run.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, models
from django.test.utils import override_settings

import ormcache
from ormcache import relations, sql
from ormcache.conf import current
from ormcache.invalidation import model_of
from ormcache.reasons import Reason
from ormcache.routers.namespaces import cache_alias_of
from ormcache.signals import mismatch_found, query_read, tables_invalidated

_CACHE = "ormcache-tests"
_CACHE_SETTINGS = {
    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
    "LOCATION": _CACHE,
    "OPTIONS": {"MAX_ENTRIES": 10_000},
}
_MODES = ("off", "on", "verify")
_NOT_CACHED = "not cached: "
_UNVERIFIED = "unverified: "


# --- modes ---------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "ormcache",
        "what ormcache does in tests: off (the default: nothing is cached), on (as the settings "
        "say) or verify (as --ormcache-verify)",
        default="off",
    )
    parser.getgroup("ormcache", "ormcache: cached queries").addoption(
        "--ormcache-verify",
        action="store_true",
        help="compare each read that the cache could have answered with what the database says; "
        "a difference fails the test",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getini("ormcache") not in _MODES:
        raise pytest.UsageError(
            f"The option ormcache is {config.getini('ormcache')!r}; it must be one of "
            f"{', '.join(_MODES)}."
        )
    if _mode(config) == "verify":
        config.pluginmanager.register(Verifier(config), "ormcache-verifier")


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"ormcache: {_mode(config)}" if _is_in_use() else None


def _mode(config: pytest.Config) -> str:
    if config.getoption("ormcache_verify"):
        return "verify"
    mode: str = config.getini("ormcache")
    return mode


def _is_in_use() -> bool:
    """Whether this is the test run of a project with ormcache."""
    return apps.ready and apps.is_installed("ormcache")


@pytest.fixture(scope="session", autouse=True)
def _ormcache_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    mode = _mode(request.config)
    if mode == "on" or not _is_in_use():
        yield
        return
    # Not another cache than the project's if that can be helped: a test with settings of its own
    # has to hear of what the others have written.
    changes: dict[str, Any] = {"ENABLED": False}
    if mode == "verify":
        changes = _own_cache() if _has_dummy() else {}
        changes |= {"ENABLED": True, "MODE": "shadow", "ON_MISMATCH": "raise"}
    with override_settings(ORMCACHE=_with(changes)):
        yield


def _has_dummy() -> bool:
    """Whether nothing can be cached in the cache of the project."""
    alias = cache_alias_of(DEFAULT_DB_ALIAS, current())
    return isinstance(caches[alias], DummyCache)


def _with(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**(getattr(django_settings, "ORMCACHE", None) or {}), **changes}


def _own_cache() -> dict[str, Any]:
    """Settings for a cache and a namespace that nobody else has.

    In local memory: it needs no server, and begins without a quarantine.
    """
    _add_cache("CACHES", django_settings.CACHES)
    setting_changed.connect(_add_cache, dispatch_uid="ormcache.pytest_plugin")
    databases = _with({}).get("DATABASES") or {}
    return {
        "CACHE_ALIAS": _CACHE,
        "KEY_PREFIX": f"test-{secrets.token_hex(8)}",
        "DATABASES": {
            alias: {name: value for name, value in options.items() if name != "CACHE_ALIAS"}
            for alias, options in databases.items()
        },
    }


def _add_cache(setting: str, value: Any, **kwargs: object) -> None:
    """Put the cache among ``CACHES``, whatever these become in a test."""
    if setting == "CACHES" and value is not None:
        value.setdefault(_CACHE, _CACHE_SETTINGS)


# --- the fixture ---------------------------------------------------------------------------


class Read(NamedTuple):
    """A read of the ORM."""

    outcome: str
    """``hit``, ``miss`` or ``skip``; ``shadow hit`` where the database answers all the same."""
    reason: Reason | None
    """Why it was not cached."""
    tables: tuple[str, ...]
    sql: str | None
    using: str

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.outcome}{why}: {', '.join(self.tables) or '-'}: {self.sql or '-'}"


class Record:
    """What ormcache did inside a block."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.invalidated: set[str] = set()
        """Tables; "*" stands for all."""

    @property
    def hits(self) -> list[Read]:
        """Reads that the cache answered."""
        return [read for read in self.reads if read.outcome in ("hit", "shadow hit")]

    @property
    def misses(self) -> list[Read]:
        """Reads that the database answered, and whose answers were stored if possible."""
        return [read for read in self.reads if read.outcome == "miss"]

    @property
    def skipped(self) -> list[Read]:
        """Reads that are not cached, for a reason."""
        return [read for read in self.reads if read.outcome == "skip"]

    def _read(
        self,
        outcome: str,
        reason: Reason | None,
        tables: tuple[str, ...],
        sql: str | None,
        using: str,
        **kwargs: object,
    ) -> None:
        self.reads.append(Read(outcome, reason, tables, sql, using))

    def _invalidated(self, tables: tuple[str, ...], **kwargs: object) -> None:
        self.invalidated.update(tables)

    def __str__(self) -> str:
        lines = [f"  {read}" for read in self.reads] or ["  no reads"]
        if any(read.reason is Reason.SNAPSHOT for read in self.reads):
            lines.append(
                "  SQLite answers every read in a transaction itself: mark the test "
                "@pytest.mark.django_db(transaction=True)."
            )
        lines.append(f"  invalidated: {', '.join(sorted(self.invalidated)) or '-'}")
        return "\n".join(lines)


class OrmCache:
    """What the fixture ``orm_cache`` gives to a test."""

    @contextlib.contextmanager
    def record(self) -> Iterator[Record]:
        """Notes the reads and the invalidations inside, of all threads."""
        record = Record()
        query_read.connect(record._read)
        tables_invalidated.connect(record._invalidated)
        try:
            yield record
        finally:
            query_read.disconnect(record._read)
            tables_invalidated.disconnect(record._invalidated)

    @contextlib.contextmanager
    def assert_hits(self, number: int | None = None) -> Iterator[Record]:
        """Fails unless ``number`` reads inside were hits; without one: all, and at least one."""
        with self.record() as record:
            yield record
        found = len(record.hits)
        if number is None:
            if not found or found < len(record.reads):
                pytest.fail(f"Not every read was a hit:\n{record}", pytrace=False)
        elif found != number:
            pytest.fail(f"{found} hits instead of {number}:\n{record}", pytrace=False)

    @contextlib.contextmanager
    def assert_misses(self, number: int) -> Iterator[Record]:
        """Fails unless ``number`` reads inside were misses."""
        with self.record() as record:
            yield record
        found = len(record.misses)
        if found != number:
            pytest.fail(f"{found} misses instead of {number}:\n{record}", pytrace=False)

    @contextlib.contextmanager
    def assert_invalidates(self, *models_or_tables: type[models.Model] | str) -> Iterator[Record]:
        """Fails unless at least these were invalidated inside; without any: nothing at all.

        Args:
            models_or_tables: model classes, ``"app.Model"`` or names of tables. A model that an
                installed app does not have is a LookupError.
        """
        expected = {_table(each) for each in models_or_tables}
        with self.record() as record:
            yield record
        if not expected:
            if record.invalidated:
                pytest.fail(f"Something was invalidated:\n{record}", pytrace=False)
        elif "*" not in record.invalidated and (missing := expected - record.invalidated):
            names = ", ".join(sorted(missing))
            pytest.fail(f"Not invalidated: {names}\n{record}", pytrace=False)


def _table(model_or_table: type[models.Model] | str) -> str:
    if not isinstance(model_or_table, str):
        return relations.table(model_or_table)
    model = model_of(model_or_table)
    return sql.table_name(model_or_table) if model is None else relations.table(model)


@pytest.fixture
def orm_cache(request: pytest.FixtureRequest, settings: Any) -> Iterator[OrmCache]:
    """Queries are cached in this test, in a cache of its own with nothing in it.

    It is in local memory, whatever the cache of the project. In a transaction SQLite reads past
    the cache, and so does every database for what the transaction has written: most tests with
    this fixture want ``@pytest.mark.django_db(transaction=True)``.
    """
    if not _is_in_use():
        pytest.fail('"ormcache" is not in INSTALLED_APPS.', pytrace=False)
    usual = _with({})
    changes = _own_cache() | {"ENABLED": True, "MODE": "serve"}
    if _mode(request.config) == "verify":
        # Not "shadow": the test is about hits, and may count queries.
        changes |= {"VERIFY": 1, "ON_MISMATCH": "raise"}
    settings.ORMCACHE = _with(changes)
    yield OrmCache()
    caches[_CACHE].clear()
    settings.ORMCACHE = usual
    # The cache of the other tests has heard nothing of what this one has written.
    ormcache.flush()


# --- verifying a suite ---------------------------------------------------------------------


class Verifier:
    """Fails tests in which the cache differs from the database, and counts the others."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._mismatches: list[str] = []
        self.counts: Counter[str] = Counter()
        mismatch_found.connect(self._mismatch)
        query_read.connect(self._read)

    def _mismatch(self, using: str, tables: tuple[str, ...], sql: str, **kwargs: object) -> None:
        self.counts["mismatches"] += 1
        self._mismatches.append(f"{using}: {', '.join(tables)}: {sql}")

    def _read(self, outcome: str, reason: Reason | None, **kwargs: object) -> None:
        self.counts["hits"] += outcome in ("hit", "shadow hit")
        if outcome in ("skip", "miss"):
            self.counts[f"{_NOT_CACHED}{reason}" if reason else "misses"] += 1

    # Fixtures read, too, before the test and after it; with a scope beyond the test, too.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        return (yield from self._watched())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        return (yield from self._watched())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        return (yield from self._watched())

    def _watched(self) -> Generator[None, Any, Any]:
        """Fails a phase of a test in which there was a difference."""
        try:
            result = yield
        except BaseException:
            # It fails anyway, most likely of the Mismatch: the next phase is not to blame.
            self._mismatches.clear()
            raise
        if self._mismatches:
            # The error that was raised has been caught by somebody.
            found = "\n".join(self._mismatches)
            self._mismatches.clear()
            pytest.fail(f"The cache answers otherwise than the database:\n{found}", pytrace=False)
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.counts["mismatches"] and session.exitstatus == pytest.ExitCode.OK:
            # No test has failed of it: it was expected to fail, or was run again, or it was in no
            # test at all.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for tables in ormcache.statistics().values():
            for events in tables.values():
                for event, number in events.items():
                    if event == "verified" or event.startswith(_UNVERIFIED):
                        self.counts[event] += number
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["ormcache"] = dict(self.counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended."""
        self.counts.update(getattr(node, "workeroutput", {}).get("ormcache", {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("ormcache")
        if not self.counts and not _is_in_use():
            terminalreporter.line(
                'Nothing was verified: "ormcache" is not in the INSTALLED_APPS of this run.'
            )
            return
        for line in self._summary():
            terminalreporter.line(line)

    def _summary(self) -> Iterator[str]:
        hits = f"{self.counts['hits']} reads could have been answered from the cache"
        if self.counts["verified"] or self.counts["mismatches"]:
            yield f"{hits}, {self.counts['mismatches']} of them wrongly."
        else:
            # "None of them wrongly" would be taken for good news.
            yield f"Nothing was verified: {hits}."
            if self.counts["misses"]:
                yield f"{self.counts['misses']} reads found no answer in the cache."
        kept = Counter(
            {
                event.removeprefix(_NOT_CACHED): number
                for event, number in sorted(self.counts.items())
                if event.startswith(_NOT_CACHED)
            }
        )
        if kept:
            reasons = ", ".join(f"{reason} {number}" for reason, number in kept.most_common())
            yield f"{kept.total()} reads were not cached: {reasons}."
        for event, number in sorted(self.counts.items()):
            if event.startswith(_UNVERIFIED):
                yield f"{event}: {number} (counted for each table)"
