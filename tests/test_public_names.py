"""What users may import; a change here is a change for them."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

import ormcache
from ormcache import exceptions, routers, signals
from ormcache.reasons import Reason


def test_the_package_has_these_names_and_no_others() -> None:
    assert sorted(ormcache.__all__) == [
        "Explanation",
        "Reason",
        "disabled",
        "explain",
        "flush",
        "invalidate",
        "statistics",
    ]
    submodules = {name for name, value in vars(ormcache).items() if inspect.ismodule(value)}
    public = {name for name in vars(ormcache) if not name.startswith("_")}
    assert public - submodules == set(ormcache.__all__)


@pytest.mark.parametrize("name", ormcache.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(ormcache, name))


@pytest.mark.parametrize(
    "function, signature",
    [
        (ormcache.explain, ["queryset"]),
        (ormcache.flush, ["using"]),
        (ormcache.invalidate, ["models_or_tables", "using"]),
        (ormcache.statistics, ["aliases"]),
        (ormcache.disabled, []),
    ],
)
def test_each_function_takes_these_arguments(function: Any, signature: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == signature


def test_the_routers() -> None:
    assert routers.__all__ == ["ReadYourWritesMiddleware", "ReplicaRouter"]
    assert all(inspect.getdoc(getattr(routers, name)) for name in routers.__all__)
    with pytest.raises(AttributeError, match=r"'ormcache\.routers' has no attribute 'Router'"):
        assert routers.Router
    assert list(inspect.signature(routers.ReplicaRouter).parameters) == ["primary", "app_labels"]


def test_the_version_is_that_of_the_distribution() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    assert ormcache.__version__ == version


def test_the_signals() -> None:
    assert {name for name, value in vars(signals).items() if type(value) is signals.Signal} == {
        "mismatch_found",
        "query_read",
        "tables_invalidated",
    }


def test_the_errors() -> None:
    assert {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and value.__module__ == "ormcache.exceptions"
    } == {
        "OrmcacheError",
        "SettingsError",
        "CacheError",
        "CacheTimeout",
        "CacheUnreachable",
        "Mismatch",
        "NoFence",
        "NotEncodable",
        "Corrupt",
    }
    assert issubclass(exceptions.CacheUnreachable, OperationalError)


def test_the_reasons() -> None:
    """Their texts are in users' logs and dashboards."""
    assert {reason.name: str(reason) for reason in Reason} == {
        "BROKEN_TRANSACTION": "broken transaction",
        "BUSY": "a write is being committed",
        "CACHE_UNREACHABLE": "cache unreachable",
        "DATABASE_OFF": "database switched off",
        "DISABLED": "disabled",
        "EXPLAIN": "explain()",
        "FEEDS_WRITE": "feeds a write",
        "FENCE": "fence not read",
        "ITERATOR": "iterator()",
        "LOCKED": "transaction holds locks",
        "MIGRATING": "migration in progress",
        "MODEL_OFF": "model switched off",
        "NON_DETERMINISTIC": "depends on more than its tables",
        "NOT_ENCODABLE": "result cannot be encoded",
        "NO_CACHE": "no usable cache",
        "NO_FENCE": "no fence",
        "OVERDUE": "a commit is overdue",
        "NO_ROWS_POSSIBLE": "empty query",
        "NO_TABLE": "reads no table",
        "PARAMETER": "parameter without a stable identity",
        "QUARANTINE": "quarantine",
        "RANDOM": "random order",
        "RAW": "raw()",
        "RAW_FRAGMENT": "extra() or RawSQL",
        "READ_UNCOMMITTED": "reads uncommitted rows",
        "REPLICA_BEHIND": "replica behind",
        "REPLICA_UNKNOWN": "position of replica unknown",
        "SELECT_FOR_UPDATE": "locks rows",
        "SESSION": "session was altered",
        "SNAPSHOT": "snapshot transaction",
        "UNSEEN": "transaction begun past Django",
        "SWITCHED_OFF": "switched off",
        "TOO_LARGE": "result too large",
        "TRIGGER": "written by a trigger",
        "UNKNOWN_FUNCTION": "calls an unknown function",
        "UNKNOWN_TABLE": "reads an unknown table",
        "UNMANAGED": "unmanaged model",
        "VIEW": "view or foreign table",
        "ROW_SECURITY": "row-level security",
        "PARTITIONS": "too many partitions",
        "CATALOG_UNKNOWN": "kind of table unknown",
        "UNREADABLE_SQL": "SQL not understood",
        "WRITE_STATEMENT": "not a plain read",
        "WRITTEN_HERE": "table written in this transaction",
    }


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_each_reason_is_its_text_and_explains_itself(reason: Reason) -> None:
    assert Reason(str(reason)) is reason
    assert reason == reason.value == str(reason) == f"{reason}"
    assert reason.explanation.endswith(".")
