"""A plugin of pytest for projects whose tests run with it, with settings in `tests.settings`."""

from __future__ import annotations

import importlib
from typing import Any

from ormcache_suites import ORDER, Outcomes, add_ormcache, commit_in_tests, record

settings: Any = importlib.import_module("tests.settings")
vars(settings).update(ORDER["settings"])
# Before pytest-django sets Django up.
add_ormcache()
commit_in_tests()
_ended: dict[str, tuple[str, str, str]] = {}


def pytest_runtest_logstart(nodeid: str) -> None:
    Outcomes.running = nodeid


def pytest_runtest_logreport(report: Any) -> None:
    """Of setting up, the test and tearing down, the first that does not pass counts."""
    if _ended.get(report.nodeid, ("passed",))[0] != "passed":
        return
    outcome = report.outcome
    if outcome == "failed" and report.when != "call":
        outcome = "error"
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(getattr(crash, "message", "") or "")
    _ended[report.nodeid] = (outcome, message, report.longreprtext)


def pytest_sessionfinish() -> None:
    for test, (outcome, message, trace) in _ended.items():
        record().outcome(test, outcome, message, trace)
    record().end()
