"""From a connection to its namespace: the same for the same database, and for no other."""

import gc
import os
import re
import sqlite3.dbapi2
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django
import pytest
from django.apps import apps
from django.core import mail
from django.core.cache import caches
from django.db import connections
from django.test import utils
from hypothesis import assume, given
from hypothesis import strategies as st

from ormcache.conf import current, parse
from ormcache.connection_state import state_of
from ormcache.exceptions import SettingsError
from ormcache.routers import namespaces
from ormcache.routers.namespaces import identity, may_lag, namespace, route
from ormcache.stores import LocMemStore
from tests.marks import needs

RUN = "ORMCACHE_TEST_RUN"


def server(vendor: str = "postgresql", **facts: Any) -> Any:
    """As much of a connection to a server as makes its identity."""
    usual = {"HOST": "db", "PORT": "5432", "NAME": "shop", "USER": "web", "OPTIONS": {}}
    return SimpleNamespace(vendor=vendor, alias="any", settings_dict={**usual, **facts})


@pytest.fixture
def sqlite() -> Iterator[Any]:
    """Makes connections to SQLite databases by name."""
    made = []

    def connect(name: Any) -> Any:
        connection = connections["default"].copy()
        connection.settings_dict["NAME"] = name
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


def settings(**options: Any) -> Any:
    parsed, problems = parse(options)
    assert not problems
    return parsed


# --- servers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"HOST": "other"},
        {"PORT": "5433"},
        {"NAME": "other"},
        {"NAME": "Shop"},
        {"vendor": "mysql"},
        {"OPTIONS": {"service": "other"}},
        *(
            {"OPTIONS": {option: "other"}}
            for option in (
                *("host", "hostaddr", "port", "dbname", "database", "db"),
                *("unix_socket", "read_default_file", "read_default_group"),
            )
        ),
    ],
    ids=str,
)
def test_another_server_or_database_is_another_namespace(other: dict[str, Any]) -> None:
    assert namespace(server(**other), "") != namespace(server(), "")


@pytest.mark.parametrize(
    "same",
    [
        {"PORT": 5432},
        {"USER": "batch"},
        {"CONN_MAX_AGE": 60},
        {"OPTIONS": {"application_name": "x"}},
        {"OPTIONS": {"target_session_attrs": "standby", "unix_socket": ""}},
        {"TEST": {"NAME": "x"}},
    ],
    ids=str,
)
def test_another_way_to_the_same_database_is_the_same_namespace(same: dict[str, Any]) -> None:
    assert namespace(server(**same), "") == namespace(server(), "")


def test_neither_the_alias_nor_an_empty_setting_matters() -> None:
    bare = server(HOST=None, PORT=None)
    bare.alias = "other"
    assert namespace(bare, "") == namespace(server(HOST="", PORT=""), "")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (server(HOST="a", PORT="1"), server(HOST="a1", PORT="")),
        (server(HOST="a", NAME="b"), server(HOST="b", NAME="a")),
        (server(NAME="a b"), server(NAME="a-b")),
        (server(NAME="x" * 200 + "a"), server(NAME="y" * 200 + "a")),
    ],
)
def test_facts_that_look_alike_are_told_apart(first: Any, second: Any) -> None:
    assert namespace(first, "") != namespace(second, "")


@given(st.text(), st.text())
def test_any_name_makes_a_namespace_of_its_own_that_any_cache_takes(a: str, b: str) -> None:
    assume(a != b)
    first, second = namespace(server(NAME=a), ""), namespace(server(NAME=b), "")
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9_.-]{16,64}", first)


def test_a_namespace_begins_with_the_prefix_and_the_name() -> None:
    found = namespace(server(NAME="/srv/shop's db"), "blue")
    assert re.fullmatch(r"blue-srv-shop-s-db-[0-9a-f]{16}", found)


def test_another_prefix_is_another_namespace() -> None:
    assert len({namespace(server(), prefix) for prefix in ("", "blue", "green")}) == 3


def replica(**facts: Any) -> Any:
    connection = server(**facts)
    connection.alias = "replica"
    return connection


@pytest.mark.parametrize(
    "facts",
    [
        {"HOST": "other"},
        {"USER": "reader"},
        {"OPTIONS": {"target_session_attrs": "standby"}},
        {"OPTIONS": {"load_balance_hosts": "random"}},
        {"OPTIONS": {"read_default_file": "/etc/replica.cnf"}},
        {"OPTIONS": {"application_name": "reader"}},
    ],
    ids=str,
)
def test_a_replica_lags_if_anything_may_lead_it_to_another_server(facts: dict[str, Any]) -> None:
    assert may_lag(replica(**facts), server(), settings())
    assert not may_lag(replica(), server(), settings())


def test_a_replica_of_which_a_lag_is_declared_lags() -> None:
    declared = settings(DATABASES={"replica": {"PRIMARY": "any", "MAX_LAG": 5}})
    assert may_lag(replica(), server(), declared)


def end_test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As teardown_test_environment(), which cannot be called without ending this one."""
    monkeypatch.delenv(RUN)
    monkeypatch.delattr(utils._TestState, "saved_data")


def test_a_mirror_in_a_test_run_does_not_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django has given it the test database, and nobody copies what a test case writes."""
    declared = settings(DATABASES={"replica": {"PRIMARY": "any", "MAX_LAG": 5}})
    mirror = replica(USER="reader", TEST={"MIRROR": "any"})
    assert not may_lag(mirror, server(), declared)
    assert may_lag(replica(HOST="other", TEST={"MIRROR": "any"}), server(), declared)
    end_test_run(monkeypatch)
    assert may_lag(mirror, server(), declared)


# --- SQLite --------------------------------------------------------------------------------


def test_a_file_is_the_same_however_it_is_named(sqlite: Any, tmp_path: Path) -> None:
    file = tmp_path / "a shop.sqlite3"
    file.touch()
    link = tmp_path / "link.sqlite3"
    link.symlink_to(file)
    spelt = [
        file,
        str(file),
        os.path.relpath(file),
        f"{tmp_path}/./a shop.sqlite3",
        link,
        f"file:{tmp_path}/a%20shop.sqlite3",
        f"file:{tmp_path}/a%20shop.sqlite3?mode=ro&cache=private",
        f"file://{tmp_path}/a%20shop.sqlite3",
        f"file://localhost{tmp_path}/a%20shop.sqlite3#x",
    ]
    assert len({identity(sqlite(name)) for name in spelt}) == 1
    assert len({namespace(sqlite(name), "") for name in spelt}) == 1


def test_other_files_are_other_databases(sqlite: Any, tmp_path: Path) -> None:
    names = [tmp_path / "a", tmp_path / "b", f"file:{tmp_path}/c", "a", "file:b"]
    assert len({identity(sqlite(name)) for name in names}) == len(names)


def test_each_connection_to_memory_has_a_database_of_its_own(sqlite: Any) -> None:
    found = set()
    for _ in range(20):
        # Not kept: the next one may take its place in memory, and its id().
        connection = connections["default"].copy()
        connection.settings_dict["NAME"] = ":memory:"
        found.add(namespace(connection, ""))
        assert namespace(connection, "") in found
        del connection
        gc.collect(0)
    assert len(found) == 20


def test_connections_to_one_shared_memory_have_one_database(sqlite: Any) -> None:
    shared = "file:shared?mode=memory&cache=shared"
    other = "file:other?mode=memory&cache=shared"
    assert identity(sqlite(shared)) == identity(sqlite(shared)) != identity(sqlite(other))


@pytest.mark.parametrize("name", [":memory:", "file:shared?mode=memory&cache=shared"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_memory_is_another_database_in_a_forked_process(sqlite: Any, name: str) -> None:
    connection = sqlite(name)
    usual = route_of(connection)
    read, write = os.pipe()
    with warnings.catch_warnings():
        # The child only computes a name and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.write(write, route_of(connection).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as pipe:
        answer = pipe.read()
    assert answer
    assert answer != usual == route_of(connection)


def route_of(connection: Any) -> str:
    """The namespace as reads and writes find it: kept on the connection."""
    found: str = state_of(connection).route(connection, current()).namespace
    return found


# --- test databases ------------------------------------------------------------------------


def test_a_test_database_is_another_one(sqlite: Any, tmp_path: Path) -> None:
    """create_test_db() changes the name in the settings of a connection that may be in use."""
    connection = sqlite(tmp_path / "shop")
    usual = route_of(connection)
    connection.settings_dict["NAME"] = str(tmp_path / "test_shop")
    test = route_of(connection)
    assert test != usual
    connection.settings_dict["NAME"] = tmp_path / "shop"
    assert route_of(connection) == usual


@pytest.mark.parametrize("alias", ["default", "postgresql", "mariadb"])
@needs("postgresql", "mariadb")
def test_parallel_clones_are_databases_of_their_own(alias: str) -> None:
    original = connections[alias].copy()
    found = {namespace(original, "")}
    for worker in ("1", "2"):
        clone = original.copy()
        clone.settings_dict.update(original.creation.get_test_db_clone_settings(worker))
        found.add(namespace(clone, ""))
    assert len(found) == 3


def test_each_test_run_has_namespaces_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "one")
    one = namespace(server(), "")
    assert namespace(server(), "") == one
    monkeypatch.setenv(RUN, "two")
    assert namespace(server(), "") != one


def test_a_test_run_is_noticed_and_passed_on_to_child_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(RUN)
    first = namespace(server(), "")
    assert os.environ[RUN]
    assert namespace(server(), "") == first


def test_outside_tests_the_namespace_is_the_same_in_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end_test_run(monkeypatch)
    # A server has it, too, whose mails stay in memory.
    assert hasattr(mail, "outbox")
    # Part of the keys in the cache: it may not change from one release to the next.
    assert namespace(server(), "") == "shop-27237ef1c992f78f"
    assert RUN not in os.environ


class Noting(LocMemStore):
    """Notes which namespaces are said to have ids."""

    def __init__(self) -> None:
        super().__init__(caches["default"])
        self.noted: list[str] = []

    def expects_ids(self, namespace: str) -> None:
        self.noted.append(namespace)


@pytest.mark.parametrize(
    ("vendor", "autocommit", "is_expected"),
    [("postgresql", True, True), ("postgresql", False, False), ("mysql", True, False)],
)
def test_what_was_lost_is_waited_for_by_id_where_the_database_tells_them_and_is_no_test(
    monkeypatch: pytest.MonkeyPatch,
    sqlite: Any,
    vendor: str,
    autocommit: bool,
    is_expected: bool,
) -> None:
    store = Noting()
    monkeypatch.setattr(namespaces, "_store", lambda *args: store)
    connection = sqlite("shop")
    connection.vendor = vendor
    connection.settings_dict["AUTOCOMMIT"] = autocommit
    route(connection, settings())
    assert store.noted == []
    monkeypatch.setattr(namespaces, "is_under_test", lambda: False)
    found = route(connection, settings())
    assert store.noted == [found.namespace] * is_expected


# --- routes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"USER": "other"},
        {"TIME_ZONE": "Asia/Tokyo"},
        {"OPTIONS": {"options": "-c search_path=other"}},
        {"OPTIONS": {"init_command": "SET sql_mode = ''"}},
        {"OPTIONS": {"assume_role": "other"}},
        {"OPTIONS": {"sql_mode": "ANSI"}},
        {"OPTIONS": {"collation": "utf8mb4_bin"}},
        {"OPTIONS": {"client_encoding": "latin1"}},
        {"OPTIONS": {"detect_types": 0}},
        {"ENGINE": "other.engine"},
    ],
    ids=str,
)
def test_what_a_session_is_told_sets_its_entries_apart(change: dict[str, Any]) -> None:
    usual, other = connections["default"].copy(), connections["default"].copy()
    other.settings_dict.update(change)
    first, second = route(usual, settings()), route(other, settings())
    assert first.namespace == second.namespace
    assert first.context != second.context


@pytest.mark.parametrize(
    ("module", "name", "version"),
    [
        (django, "VERSION", (99, 0, 0, "final", 0)),
        (sys, "version_info", (3, 99, 0, "final", 0)),
        (sqlite3.dbapi2, "sqlite_version", "99.0"),
        (apps, "is_installed", lambda name: name != "django.contrib.postgres"),
    ],
    ids=["Django", "Python", "driver", "contrib.postgres"],
)
def test_other_versions_share_the_namespace_and_no_entries(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, version: Any
) -> None:
    """They run side by side while a project is being deployed, and hear of each other's writes."""
    connection = connections["default"].copy()
    # Where psycopg is missing, the app is not installed to begin with.
    monkeypatch.setattr(apps, "is_installed", lambda name: True)
    first = route(connection, settings())
    monkeypatch.setattr(module, name, version)
    second = route(connection, settings())
    assert first.namespace == second.namespace
    assert first.context != second.context


def test_a_schema_sets_entries_apart_and_shares_the_namespace() -> None:
    """django-tenants keeps the schema on the connection."""
    usual, other = connections["default"].copy(), connections["default"].copy()
    usual.schema_name, other.schema_name = "one", "two"
    first, second = route(usual, settings()), route(other, settings())
    assert first.namespace == second.namespace
    assert first.context != second.context


def test_a_schema_that_changes_is_noticed() -> None:
    connection = connections["default"].copy()
    state = state_of(connection)
    here = settings()
    connection.schema_name = "one"
    first = state.route(connection, here)
    assert state.route(connection, here) is first
    connection.schema_name = "two"
    assert state.route(connection, here).context != first.context


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("HOST", "other"),
        ("PORT", "5433"),
        ("USER", "other"),
        ("OPTIONS", {"options": "-c search_path=other"}),
        ("OPTIONS", None),
    ],
)
@pytest.mark.parametrize("used", ["primary", "replica"])
@needs("postgresql")
def test_a_setting_that_changes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, used: str, setting: str, value: Any
) -> None:
    """Some projects point a connection at each tenant in turn."""
    for alias in ("primary", "replica"):
        monkeypatch.setitem(connections.settings, alias, connections.settings["postgresql"])
        monkeypatch.setattr(
            connections._connections, alias, connections["postgresql"].copy(alias), raising=False
        )
    here = settings(DATABASES={"replica": {"PRIMARY": "primary"}})
    changed: dict[str, Any] = connections["primary"].settings_dict
    changed["OPTIONS"] = {"connect_timeout": 5}
    connection = connections[used]
    state = state_of(connection)
    first = state.route(connection, here)
    assert state.route(connection, here) is first
    changed[setting] = value
    assert state.route(connection, here) is not first


@needs("postgresql")
def test_an_option_that_changes_in_place_is_noticed() -> None:
    connection = connections["postgresql"].copy()
    connection.settings_dict["OPTIONS"] = {"options": "-c search_path=one"}
    state = state_of(connection)
    first = state.route(connection, settings())
    connection.settings_dict["OPTIONS"]["options"] = "-c search_path=two"
    assert state.route(connection, settings()).context != first.context


def test_options_of_a_database_go_before_those_of_all() -> None:
    mine = settings(
        CACHE_ALIAS="default",
        TIMEOUT=60,
        DATABASES={"default": {"CACHE_ALIAS": "locmem", "TIMEOUT": 5, "ENABLED": False}},
    )
    found = route(connections["default"], mine)
    assert (found.cache_alias, found.timeout, found.enabled) == ("locmem", 5, False)


def test_options_that_a_database_does_not_have_are_those_of_all() -> None:
    mine = settings(CACHE_ALIAS="locmem", TIMEOUT=60, DATABASES={"default": {}})
    found = route(connections["default"], mine)
    assert (found.cache_alias, found.timeout, found.enabled) == ("locmem", 60, True)


def test_a_database_may_do_without_expiry() -> None:
    mine = settings(TIMEOUT=60, DATABASES={"default": {"TIMEOUT": None}})
    assert route(connections["default"], mine).timeout is None


def test_an_unknown_cache_is_an_error_that_names_the_known_ones() -> None:
    message = r"cache alias 'nonsense', .* Known aliases: .*\bdefault, .*\blocmem\b"
    for options in (
        {"CACHE_ALIAS": "nonsense"},
        {"DATABASES": {"default": {"CACHE_ALIAS": "nonsense"}}},
    ):
        with pytest.raises(SettingsError, match=message):
            route(connections["default"], settings(**options))


def test_a_dummy_cache_stores_nothing() -> None:
    assert route(connections["default"], settings(CACHE_ALIAS="dummy")).store is None
