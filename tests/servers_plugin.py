"""Pytest plugin: starts the shared servers before Django's settings are read.

A test that needs a server or Python 2.7, and does not find it, is skipped, and the very last lines
of the run say what that left untested and what to install. Under CI=true nothing may be missing
but Valkey, whose client is then tested with Redis; the last lines say that, too.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import servers, south

IS_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# The Python side of a database, and what it takes to have it.
DRIVERS = {
    "postgresql": ("psycopg", "pip install 'psycopg[binary]'"),
    "mariadb": (
        "MySQLdb",
        "apt-get install libmariadb-dev pkg-config gcc python3-dev; pip install mysqlclient",
    ),
}

PYTHON27 = "python2.7"
PYTHON27_REMEDY = "pyenv install 2.7.18"

VALKEY_OR_REDIS = "valkey or redis"
WITHOUT_VALKEY = "tested without Valkey"
"""The property of a test that has used Redis in its place."""

_started: list[servers.Server] = []


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests() -> Generator[None]:
    # A wrapper, because pytest-django reads the settings in this very hook.
    if IS_CI and (missing := _what_is_missing()):
        raise pytest.UsageError(
            "With CI=true every server but Valkey must be there.\n" + "\n".join(missing)
        )
    # A pytest-xdist worker uses the servers of the process that started it.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        to_start = [
            kind
            for kind in servers.SHARED
            if kind.variable() not in os.environ and servers.is_installed(kind)
        ]
        _started.extend(servers.start_shared(to_start))
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*servers): skip where a shared server, or Python 2.7, is missing"
    )
    config.pluginmanager.register(Untested(), "ormcache-untested")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {kind.key(): _reason(kind) for kind in servers.SHARED}
    for item in items:
        for server in dict.fromkeys(_needs_of(item)):
            if server == VALKEY_OR_REDIS:
                reason = reasons["valkey"] and reasons["redis"]
                if reasons["valkey"] and not reason:
                    item.user_properties.append((WITHOUT_VALKEY, reasons["valkey"]))
            else:
                reason = _python27_reason() if server == PYTHON27 else reasons[server]
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    return (yield from _missing_program_is_a_skip())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    return (yield from _missing_program_is_a_skip())


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    while _started:
        _started.pop().close()


class Untested:
    """Counts what was skipped for want of a server and names it when all else is said."""

    def __init__(self) -> None:
        self.files_by_reason: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = Path(report.location[0]).name
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason.startswith(REASON):
                self.files_by_reason["NOT TESTED", reason][file] += 1
        elif report.when == "call" and not report.skipped:
            what = "NOT TESTED WITH VALKEY, but its client with Redis"
            for name, value in report.user_properties:
                if name == WITHOUT_VALKEY:
                    self.files_by_reason[what, str(value)][file] += 1

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        for (what, reason), files in self.files_by_reason.items():
            names = ", ".join(f"{name} ({count})" for name, count in sorted(files.items()))
            terminal.write_line(f"{what}: {names}: {reason}", yellow=True, bold=True)


REASON = "needs "


def _reason(kind: type[servers.Server]) -> str:
    """Why tests cannot use the shared server of this kind, or nothing."""
    driver, remedy = DRIVERS.get(kind.key(), ("", ""))
    if kind.variable() not in os.environ:
        return f"{REASON}{kind.name}: apt-get install {kind.package}"
    if driver and importlib.util.find_spec(driver) is None:
        return f"{REASON}{kind.name}'s driver {driver}: {remedy}"
    return ""


def _python27_reason() -> str:
    return "" if south.find_python() else f"{REASON}Python 2.7: {PYTHON27_REMEDY}"


def _what_is_missing() -> list[str]:
    programs = [
        f"{program} is missing: apt-get install {package}"
        for kind in servers.REQUIRED
        if kind.variable() not in os.environ
        for program, package in servers.missing_programs([kind]).items()
    ]
    drivers = [
        f"the Python module {driver} is missing: {remedy}"
        for driver, remedy in DRIVERS.values()
        if importlib.util.find_spec(driver) is None
    ]
    pythons = [] if south.find_python() else [f"Python 2.7 is missing: {PYTHON27_REMEDY}"]
    return programs + drivers + pythons


def _needs_of(item: pytest.Item) -> Iterator[str]:
    """The servers that a test names: by `needs`, or by the databases it may use."""
    for mark in item.iter_markers("needs"):
        yield from mark.args
    databases = list(getattr(getattr(item, "cls", None), "databases", None) or ())
    if django_db := item.get_closest_marker("django_db"):
        databases += django_db.kwargs.get("databases") or ()
    yield from (alias for alias in databases if alias in DRIVERS)


def _missing_program_is_a_skip() -> Generator[None]:
    """A test that starts a server of its own can do without announcing it."""
    try:
        return (yield)
    except servers.MissingProgram as missing:
        if IS_CI and missing.server not in servers.OPTIONAL:
            raise
        server = missing.server
        pytest.skip(f"{REASON}{server.name}: apt-get install {server.package}")
