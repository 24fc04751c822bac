"""Each check has a setting that triggers it and says what to do; a good setting is silent."""

import tempfile
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ormcache.checks import check_settings
from ormcache.routers import ReplicaRouter
from tests.marks import scenario

GOOD = {
    "BACKEND": "django.core.cache.backends.redis.RedisCache",
    "LOCATION": "redis://127.0.0.1:1/0",
}
MEMCACHED = {
    "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
    "LOCATION": "127.0.0.1:1",
}


@pytest.fixture
def check(settings: Any) -> Callable[..., list[CheckMessage]]:
    """Runs the checks for a cache, `ORMCACHE` and other settings."""

    def check(cache: Any = None, *, ormcache: Any = None, **others: Any) -> list[CheckMessage]:
        caches = {"default": cache or GOOD, "second": GOOD}
        settings.CACHES = caches
        settings.ORMCACHE = {} if ormcache is None else ormcache
        for name, value in others.items():
            setattr(settings, name, value)
        return check_settings()

    return check


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("ormcache.") for message in messages]


def the_only(messages: list[CheckMessage]) -> CheckMessage:
    (message,) = messages
    assert message.hint
    is_error = ".E" in str(message.id)
    assert type(message) is (Error if is_error else Warning)
    return message


Check = Callable[..., list[CheckMessage]]


# --- good settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cache",
    [
        GOOD,
        MEMCACHED,
        {**GOOD, "BACKEND": "django_redis.cache.RedisCache"},
        {"BACKEND": "django_valkey.cache.ValkeyCache", "LOCATION": "valkey://127.0.0.1:1/0"},
    ],
    ids=lambda cache: cache["BACKEND"],
)
def test_a_good_configuration_is_silent(check: Check, cache: dict[str, Any]) -> None:
    assert check(cache) == []


@pytest.mark.parametrize(
    "ormcache",
    [
        {},
        {"LEASE": 3, "SOCKET_TIMEOUT": 1},
        {"CACHE_ALIAS": "second", "CONSISTENCY": "strict"},
        {"DATABASES": {"default": {"TIMEOUT": None, "CACHE_ALIAS": "second"}}},
        {"MODELS": {"tests.Author": {"TIMEOUT": 5}, "auth.*": {"ENABLED": False}, "*": {}}},
        {"DEPENDS_ON": {"a_view": ["tests_author", "another"], "another": ["tests_book"]}},
        {"WRITES": {"tests_author": ["TESTS_BOOK"]}},
    ],
    ids=str,
)
def test_good_options_are_silent(check: Check, ormcache: dict[str, Any]) -> None:
    assert check(ormcache=ormcache) == []


def test_without_the_setting_everything_is_default(check: Check, settings: Any) -> None:
    check()
    del settings.ORMCACHE
    assert check_settings() == []


# --- E001 and E002: options ------------------------------------------------------------------


def test_e001_names_an_unknown_option_and_the_known_ones(check: Check) -> None:
    message = the_only(check(ormcache={"TIMEOUTS": 5}))
    assert message.id == "ormcache.E001"
    assert "'TIMEOUTS'" in message.msg
    assert "TIMEOUT," in str(message.hint)


@pytest.mark.parametrize("value", [0, -1, "60", True, float("inf")])
def test_e002_names_a_wrong_value_and_what_it_must_be(check: Check, value: Any) -> None:
    message = the_only(check(ormcache={"TIMEOUT": value}))
    assert message.id == "ormcache.E002"
    assert repr(value) in message.msg
    assert message.hint == (
        "It must be a number of seconds above 0, 1,000,000,000 at most, or None for no expiry."
    )


@pytest.mark.parametrize("value", [[], False, 0, "", "ENABLED"])
def test_e002_also_means_a_setting_that_is_no_dict(check: Check, value: Any) -> None:
    message = the_only(check(ormcache=value))
    assert message.id == "ormcache.E002"
    assert message.hint == "Make ORMCACHE a dict."


def test_all_problems_are_told_at_once(check: Check) -> None:
    wrong = {"TIMEOUTS": 5, "LEASE": 0, "CACHE_ALIAS": "nowhere", "DATABASES": {"nowhere": {}}}
    assert ids(check(ormcache=wrong)) == ["E001", "E002", "E003", "E004"]


# --- E003 to E005: names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "ormcache",
    [{"CACHE_ALIAS": "nowhere"}, {"DATABASES": {"default": {"CACHE_ALIAS": "nowhere"}}}],
    ids=str,
)
def test_e003_names_an_unknown_cache(check: Check, ormcache: dict[str, Any]) -> None:
    message = the_only(
        [message for message in check(ormcache=ormcache) if message.id != "ormcache.E010"]
    )
    assert message.id == "ormcache.E003"
    assert "'nowhere'" in message.msg
    assert message.hint == "Known aliases: default, second."


def test_e004_names_an_unknown_database(check: Check) -> None:
    message = the_only(check(ormcache={"DATABASES": {"nowhere": {}}}))
    assert message.id == "ormcache.E004"
    assert "'nowhere'" in message.msg
    assert "default" in str(message.hint)


@pytest.mark.parametrize(
    "label",
    ["tests.Nobody", "nowhere.Author", "nowhere.*", "Author", "tests.author", "tests_author"],
)
def test_e005_names_what_is_no_model(check: Check, label: str) -> None:
    message = the_only(check(ormcache={"MODELS": {label: {"ENABLED": False}}}))
    assert message.id == "ormcache.E005"
    assert repr(label) in message.msg
    assert "app_label.ModelName" in str(message.hint)


@pytest.mark.parametrize(
    ("label", "meant"),
    [
        ("tests.author", "tests.Author"),
        ("Tests.Author", "tests.Author"),
        ("TESTS.*", "tests.*"),
        ("tests.book_tags", "tests.Book_tags"),
    ],
)
def test_e005_knows_what_is_meant_if_only_the_case_differs(
    check: Check, label: str, meant: str
) -> None:
    message = the_only(check(ormcache={"MODELS": {label: {"ENABLED": False}}}))
    assert str(message.hint).startswith(f"Did you mean {meant!r}? Write ")
    (message,) = check(ormcache={"MODELS": {"tests.Nobody": {"ENABLED": False}}})
    assert "Did you mean" not in str(message.hint)


# --- E006 to E008: others of the kind --------------------------------------------------------


@pytest.fixture
def fake_app() -> Iterator[Callable[[str], None]]:
    """Makes an app appear in INSTALLED_APPS, though its package is not installed."""
    added = []

    def add(name: str) -> None:
        module: Any = types.ModuleType(name)
        module.__path__ = ["/nowhere"]
        config = type("Fake", (AppConfig,), {"path": "/nowhere"})(name, module)
        apps.app_configs[name] = config
        added.append(name)

    yield add
    for name in added:
        del apps.app_configs[name]


@pytest.mark.parametrize(("app", "code"), [("cachalot", "E006"), ("cacheops", "E007")])
def test_e006_and_e007_refuse_packages_that_patch_the_same(
    check: Check, fake_app: Callable[[str], None], app: str, code: str
) -> None:
    fake_app(app)
    message = the_only(check())
    assert message.id == f"ormcache.{code}"
    assert f"django-{app}" in message.msg
    assert message.hint == f'Remove "{app}" or "ormcache" from INSTALLED_APPS.'


def test_e008_refuses_another_distribution_with_a_package_of_that_name(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = metadata.distribution

    def distribution(name: str) -> Any:
        return object() if name == "django-ormcache" else original(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    message = the_only(check())
    assert message.id == "ormcache.E008"
    assert "pip uninstall django-ormcache" in str(message.hint)
    # Another project may have that name on PyPI.
    assert "pip install" not in str(message.hint)


# --- E009 to E011 and most warnings: the cache -----------------------------------------------

WEAK = {
    "memcached": MEMCACHED,
    "files": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        # A check may make the folder.
        "LOCATION": str(Path(tempfile.gettempdir(), "ormcache-tests-nowhere")),
    },
    "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "table"},
    "shards": {
        **GOOD,
        "BACKEND": "django_redis.cache.RedisCache",
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.ShardClient"},
    },
    "herd": {
        **GOOD,
        "BACKEND": "django_redis.cache.RedisCache",
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.HerdClient"},
    },
}


@pytest.mark.parametrize("kind", WEAK)
def test_e009_refuses_strict_consistency_where_the_cache_cannot_give_it(
    check: Check, kind: str
) -> None:
    strict = check(WEAK[kind], ormcache={"CONSISTENCY": "strict"})
    assert "E009" in ids(strict)
    message = next(message for message in strict if message.id == "ormcache.E009")
    assert WEAK[kind]["BACKEND"] in message.msg
    assert "Redis or Valkey" in str(message.hint)
    assert "E009" not in ids(check(WEAK[kind], ormcache={"CONSISTENCY": "auto"}))


def test_local_memory_can_be_strict(check: Check) -> None:
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    assert ids(check(locmem, ormcache={"CONSISTENCY": "strict"})) == ["W001"]


def test_e011_tells_why_a_cache_cannot_be_opened(check: Check) -> None:
    message = the_only(check({**GOOD, "LOCATION": "http://127.0.0.1"}))
    assert message.id == "ormcache.E011"
    assert "ValueError" in message.msg
    assert "CACHES['default']" in str(message.hint)


def test_w001_warns_of_local_memory(check: Check) -> None:
    message = the_only(check({"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}))
    assert message.id == "ormcache.W001"
    assert "one process only" in message.msg
    assert "Redis, Valkey or Memcached" in str(message.hint)


SEVERAL = "redis://127.0.0.1:1/0", "redis://127.0.0.1:2/0"


@pytest.mark.parametrize("backend", [GOOD["BACKEND"], "django_redis.cache.RedisCache"])
@pytest.mark.parametrize(
    "location", [SEVERAL, list(SEVERAL), ",".join(SEVERAL), ";".join(SEVERAL)]
)
def test_w002_tells_that_redis_means_the_first_server(
    check: Check, backend: str, location: Any
) -> None:
    message = the_only(check({"BACKEND": backend, "LOCATION": location}))
    assert message.id == "ormcache.W002"
    assert "first server only" in str(message.hint)


@scenario(36)
@pytest.mark.parametrize("location", [["127.0.0.1:1", "127.0.0.1:2"], "127.0.0.1:1;127.0.0.1:2"])
def test_e019_refuses_several_memcached_servers(check: Check, location: Any) -> None:
    message = the_only(check({**MEMCACHED, "LOCATION": location}))
    assert message.id == "ormcache.E019"
    assert "ejects" in str(message.hint)


def test_e019_refuses_replicas_that_standard_mode_would_read(check: Check) -> None:
    cache = {**GOOD, "LOCATION": list(SEVERAL)}
    message = the_only(check(cache, ormcache={"CONSISTENCY": "standard"}))
    assert message.id == "ormcache.E019"
    assert "replica" in str(message.hint)


def test_a_comma_in_the_name_of_local_memory_is_no_second_server(check: Check) -> None:
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "a,b"}
    assert ids(check(locmem)) == ["W001"]


IGNORING = {
    **GOOD,
    "BACKEND": "django_redis.cache.RedisCache",
    "OPTIONS": {"IGNORE_EXCEPTIONS": True},
}


def test_w003_warns_of_ignored_exceptions_in_standard_mode(check: Check) -> None:
    message = the_only(check(IGNORING, ormcache={"CONSISTENCY": "standard"}))
    assert message.id == "ormcache.W003"
    assert "IGNORE_EXCEPTIONS" in str(message.hint)


@pytest.mark.parametrize("client", ["REDIS", "VALKEY"])
def test_w003_knows_the_setting_for_all_caches(check: Check, client: str) -> None:
    others = {f"DJANGO_{client}_IGNORE_EXCEPTIONS": True}
    assert ids(check(GOOD, ormcache={"CONSISTENCY": "standard"}, **others)) == ["W003"]


def test_strict_mode_is_not_affected_by_ignored_exceptions(check: Check) -> None:
    assert check(IGNORING) == []


def test_w004_warns_of_a_dummy(check: Check) -> None:
    message = the_only(check({"BACKEND": "django.core.cache.backends.dummy.DummyCache"}))
    assert message.id == "ormcache.W004"
    assert '"ENABLED"' in str(message.hint)


def test_w005_warns_of_a_cache_in_a_database(check: Check) -> None:
    message = the_only(check(WEAK["database"]))
    assert message.id == "ormcache.W005"
    assert "another cache" in str(message.hint)


def test_w009_warns_of_a_cache_in_files(check: Check) -> None:
    message = the_only(check(WEAK["files"]))
    assert message.id == "ormcache.W009"
    assert "another cache" in str(message.hint)


def test_every_cache_in_use_is_checked_and_no_other(check: Check, settings: Any) -> None:
    dummy = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    settings.CACHES = {"default": GOOD, "other": dummy}
    settings.ORMCACHE = {}
    assert check_settings() == []
    settings.ORMCACHE = {"DATABASES": {"default": {"CACHE_ALIAS": "other"}}}
    assert ids(check_settings()) == ["W004"]


def test_switched_off_the_cache_is_of_no_interest(check: Check) -> None:
    dummy = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    assert check(dummy, ormcache={"ENABLED": False}) == []


# --- leases and tables -----------------------------------------------------------------------


def test_w006_warns_of_a_lease_that_is_short_for_the_timeout(check: Check) -> None:
    message = the_only(check(ormcache={"LEASE": 2.9, "SOCKET_TIMEOUT": 1}))
    assert message.id == "ormcache.W006"
    assert "2.9 s" in message.msg
    assert "lengthen LEASE" in str(message.hint)


@pytest.mark.parametrize("option", ["DEPENDS_ON", "WRITES"])
@pytest.mark.parametrize("name", ["tests_autor", "tests.Autor", "public.tests_author"])
def test_w007_warns_of_a_table_that_no_model_has(check: Check, option: str, name: str) -> None:
    message = the_only(check(ormcache={option: {"report": ["tests_book", name]}}))
    assert message.id == "ormcache.W007"
    assert repr(name) in message.msg
    assert "db_table" in str(message.hint)


@pytest.mark.parametrize("option", ["DEPENDS_ON", "WRITES"])
@pytest.mark.parametrize("label", ["tests.Author", "tests.author"])
def test_w016_warns_of_a_model_that_stands_for_its_table(
    check: Check, option: str, label: str
) -> None:
    """It is accepted and does nothing, so that answers would be out of date."""
    for declared in ({label: ["tests_book"]}, {"report": ["tests_book", label]}, {label: [label]}):
        message = the_only(check(ormcache={option: declared}))
        assert message.id == "ormcache.W016"
        assert f"ORMCACHE[{option!r}] has {label!r}" in message.msg
        assert "the name of its table: 'tests_author'" in str(message.hint)


@pytest.mark.parametrize("key", ["tests_author", "tests.a_view", "nowhere.Author", "a.b.c", "."])
def test_w016_is_silent_about_other_names(check: Check, key: str) -> None:
    assert check(ormcache={"DEPENDS_ON": {key: ["tests_book"]}}) == []


# --- databases -------------------------------------------------------------------------------


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Adds an alias to DATABASES."""
    added: list[str] = []

    def add(name: str, **facts: Any) -> None:
        whole = connections.configure_settings({"default": {}, name: dict(facts)})[name]
        monkeypatch.setitem(connections.settings, name, whole)
        added.append(name)

    yield add
    for name in added:
        if hasattr(connections._connections, name):
            del connections[name]


def test_e017_refuses_a_fence_that_nobody_looks_into(check: Check) -> None:
    message = the_only(check(ormcache={"ON_CACHE_FAILURE": "fence", "FENCE": None}))
    assert message.id == "ormcache.E017"
    assert check(ormcache={"ON_CACHE_FAILURE": "fence"}) == []
    assert check(ormcache={"FENCE": None}) == []


def test_e010_refuses_two_caches_for_one_database(
    check: Check, alias: Callable[..., None]
) -> None:
    """A write through one alias would be told to its own cache only."""
    facts = connections["default"].settings_dict
    alias("twin", ENGINE=facts["ENGINE"], NAME=facts["NAME"])
    assert check() == []
    message = the_only(check(ormcache={"DATABASES": {"twin": {"CACHE_ALIAS": "second"}}}))
    assert message.id == "ormcache.E010"
    assert "'twin'" in message.msg
    assert "'default'" in message.msg
    assert "the same CACHE_ALIAS" in str(message.hint)


def test_different_databases_may_have_different_caches(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("other", ENGINE="django.db.backends.sqlite3", NAME="/nowhere/other.sqlite3")
    assert check(ormcache={"DATABASES": {"other": {"CACHE_ALIAS": "second"}}}) == []


def test_an_alias_without_an_engine_is_not_ours_to_complain_about(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("empty")
    assert check() == []


def postgresql(host: str, name: str = "shop", **others: Any) -> dict[str, Any]:
    pytest.importorskip("psycopg")
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": host, **others}


def test_w008_warns_of_what_looks_like_a_replica(check: Check, alias: Callable[..., None]) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2"))
    message = the_only(check())
    assert message.id == "ormcache.W008"
    assert "'replica' looks like a replica of 'primary'" in message.msg
    assert "{'PRIMARY': 'primary'}" in str(message.hint)
    for said in ({"PRIMARY": "primary"}, {"ENABLED": False}):
        assert check(ormcache={"DATABASES": {"replica": said}}) == []
    assert check(ormcache={"DATABASES": {"primary": {"PRIMARY": "replica"}}}) == []


def test_w008_knows_that_one_address_may_lead_to_several_servers(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1,db2", OPTIONS={"target_session_attrs": "read-write"}))
    alias("replica", **postgresql("db1,db2", OPTIONS={"target_session_attrs": "standby"}))
    assert the_only(check()).id == "ormcache.W008"
    assert check(ormcache={"DATABASES": {"replica": {"PRIMARY": "primary"}}}) == []


def test_w008_knows_djangos_own_word_for_a_replica(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2", TEST={"MIRROR": "primary"}))
    assert check() == []


def test_e010_a_replica_must_use_the_cache_of_its_primary(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2"))
    replica = {"PRIMARY": "primary"}
    databases = {"replica": {**replica, "CACHE_ALIAS": "second"}}
    assert the_only(check(ormcache={"DATABASES": databases})).id == "ormcache.E010"
    databases = {"replica": replica, "primary": {"CACHE_ALIAS": "second"}}
    assert check(ormcache={"DATABASES": databases}) == []


@pytest.mark.parametrize(
    ("databases", "said"),
    [
        ({"replica": {"PRIMARY": "primry"}}, "'primry', which DATABASES does not have"),
        ({"replica": {"PRIMARY": "replica"}}, "'replica' is declared to be a replica of itself."),
        (
            {"replica": {"PRIMARY": "primary"}, "primary": {"PRIMARY": "replica"}},
            "replicas of each other",
        ),
    ],
)
def test_e012_refuses_a_primary_that_is_none(
    check: Check, alias: Callable[..., None], databases: dict[str, Any], said: str
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2"))
    message = the_only(check(ormcache={"DATABASES": databases}))
    assert message.id == "ormcache.E012"
    assert said in message.msg


def test_e012_knows_a_wrong_mirror(check: Check, alias: Callable[..., None]) -> None:
    alias("replica", **postgresql("db2", TEST={"MIRROR": "nobody"}))
    assert ids(check()) == ["E012"]


def test_e013_refuses_a_replica_of_another_kind_of_database(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("replica", **postgresql("db2"))
    message = the_only(check(ormcache={"DATABASES": {"replica": {"PRIMARY": "default"}}}))
    assert message.id == "ormcache.E013"
    assert "(postgresql and sqlite)" in message.msg


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("tests.no_module.f", "'tests.no_module.f' cannot be imported: ModuleNotFoundError"),
        ("tests.settings.WORKER", "'tests.settings.WORKER' is no function but ''"),
        (lambda connection: connection.nonsense, "AttributeError: 'DatabaseWrapper' object has"),
        (lambda connection: None, "returned None for the database 'default'"),
        (lambda connection: "a b", "returned 'a b' for the database 'default'"),
        (lambda connection: "a" * 65, "It must return a string of at most 64 ASCII letters"),
    ],
)
def test_e014_refuses_a_namespace_that_cannot_be_had(
    check: Check, monkeypatch: pytest.MonkeyPatch, option: Any, said: str
) -> None:
    monkeypatch.setattr("tests.settings.WORKER", "")
    message = the_only(check(ormcache={"DATABASES": {"default": {"NAMESPACE": option}}}))
    assert message.id == "ormcache.E014"
    assert said in message.msg


def test_e014_is_said_once_if_it_is_the_same_for_all_aliases(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("other", ENGINE="django.db.backends.sqlite3", NAME="/nowhere/other.sqlite3")
    assert ids(check(ormcache={"NAMESPACE": "tests.nothing"})) == ["E014"]


def test_a_namespace_that_can_be_had_is_silent(check: Check) -> None:
    assert check(ormcache={"NAMESPACE": lambda connection: "shop-1"}) == []


def test_w010_warns_where_nothing_tells_the_lag(check: Check, alias: Callable[..., None]) -> None:
    alias("replica", ENGINE="django.db.backends.sqlite3", NAME="/nowhere/copy.sqlite3")
    replica = {"PRIMARY": "default"}
    message = the_only(check(ormcache={"DATABASES": {"replica": replica}}))
    assert message.id == "ormcache.W010"
    assert "['replica']['MAX_LAG']" in str(message.hint)
    for said in ({"MAX_LAG": 5}, {"ENABLED": False}):
        assert check(ormcache={"DATABASES": {"replica": {**replica, **said}}}) == []


def test_w011_warns_of_a_lag_of_no_replica(check: Check) -> None:
    message = the_only(check(ormcache={"DATABASES": {"default": {"MAX_LAG": 5}}}))
    assert message.id == "ormcache.W011"
    assert "['default']['PRIMARY']" in str(message.hint)


def test_two_ways_to_one_database_are_no_replica(check: Check, alias: Callable[..., None]) -> None:
    alias("primary", **postgresql("db1"))
    alias("owner", **postgresql("db1", USER="owner", TEST={"MIRROR": "primary"}))
    alias("other", **postgresql("db2", "warehouse"))
    assert check() == []


def test_w010_is_silent_of_a_second_way_to_one_file(
    check: Check, alias: Callable[..., None]
) -> None:
    facts = connections["default"].settings_dict
    alias("twin", ENGINE=facts["ENGINE"], NAME=facts["NAME"])
    assert check(ormcache={"DATABASES": {"twin": {"PRIMARY": "default"}}}) == []


def test_w015_warns_of_a_replica_that_nothing_tells_from_its_primary(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db1"))
    replica = {"PRIMARY": "primary"}
    message = the_only(check(ormcache={"DATABASES": {"replica": replica}}))
    assert message.id == "ormcache.W015"
    assert "'replica' is declared to be a replica of 'primary'" in message.msg
    assert "['replica']['MAX_LAG']" in str(message.hint)
    for said in ({"MAX_LAG": 5}, {"ENABLED": False}):
        assert check(ormcache={"DATABASES": {"replica": {**replica, **said}}}) == []


@pytest.mark.parametrize(
    "others",
    [
        {"USER": "reader"},
        {"OPTIONS": {"target_session_attrs": "prefer-standby"}},
        # In this test run, it has been given the database of the primary.
        {"TEST": {"MIRROR": "primary"}},
    ],
    ids=str,
)
def test_w015_is_silent_where_something_tells_them_apart(
    check: Check, alias: Callable[..., None], others: dict[str, Any]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db1", **others))
    assert check(ormcache={"DATABASES": {"replica": {"PRIMARY": "primary"}}}) == []


def test_e018_refuses_a_database_that_only_a_file_of_this_machine_names(
    check: Check, alias: Callable[..., None]
) -> None:
    """Two sites with such a file at the same path would get each other's rows."""
    alias("file", **mysql())
    message = the_only(check())
    assert message.id == "ormcache.E018"
    assert "'file' has no NAME" in message.msg
    assert "KEY_PREFIX" in str(message.hint)
    for ormcache in ({"KEY_PREFIX": "shop"}, {"ENABLED": False}):
        assert check(ormcache=ormcache) == []


def test_e018_looks_for_the_name_in_the_options_and_in_those_of_the_primary(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("named", **mysql(NAME="shop"))
    alias("in_options", **mysql(database="warehouse"))
    alias("replica", **mysql(read_default_file="/etc/replica.cnf"))
    assert check(ormcache={"DATABASES": {"replica": {"PRIMARY": "named"}}}) == []


def test_e018_leaves_sqlite_without_a_name_to_django(
    check: Check, alias: Callable[..., None]
) -> None:
    """As a test run leaves the alias of a database that no test asks for."""
    alias("unused", ENGINE="django.db.backends.sqlite3", NAME="")
    assert check() == []


def mysql(NAME: str = "", **options: str) -> dict[str, Any]:
    pytest.importorskip("MySQLdb")
    found = {"read_default_file": "/etc/my.cnf", **options}
    return {"ENGINE": "django.db.backends.mysql", "NAME": NAME, "OPTIONS": found}


# --- the router ------------------------------------------------------------------------------

ROUTER = "ormcache.routers.ReplicaRouter"
MIRRORED = {"TEST": {"MIRROR": "primary"}}


def test_a_router_with_mirrored_replicas_is_silent(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2", **MIRRORED))
    assert check(DATABASE_ROUTERS=[ReplicaRouter("primary")]) == []


def test_e015_refuses_a_router_whose_primary_is_no_alias(check: Check) -> None:
    message = the_only(check(DATABASE_ROUTERS=[ReplicaRouter("primry")]))
    assert message.id == "ormcache.E015"
    assert "'primry'" in message.msg
    assert "default" in str(message.hint)


def test_e016_refuses_a_router_whose_primary_is_a_replica(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2", **MIRRORED))
    message = the_only(check(DATABASE_ROUTERS=[ReplicaRouter("replica")]))
    assert message.id == "ormcache.E016"
    assert "ReplicaRouter('primary')" in str(message.hint)


def test_w012_warns_of_a_router_without_replicas(check: Check) -> None:
    message = the_only(check(DATABASE_ROUTERS=["tests.routers.PostgresOnly", ROUTER]))
    assert message.id == "ormcache.W012"
    assert "['PRIMARY']" in str(message.hint)


def test_w013_warns_of_a_replica_that_is_no_mirror_in_tests(
    check: Check, alias: Callable[..., None]
) -> None:
    alias("primary", **postgresql("db1"))
    alias("replica", **postgresql("db2"))
    # Another way to the primary: Django makes one test database for both.
    alias("reader", **postgresql("db1", USER="reader"))
    databases = {name: {"PRIMARY": "primary"} for name in ("replica", "reader")}
    routers = [ReplicaRouter("primary")]
    message = the_only(check(ormcache={"DATABASES": databases}, DATABASE_ROUTERS=routers))
    assert message.id == "ormcache.W013"
    assert "from 'replica'" in message.msg
    assert "{'MIRROR': 'primary'}" in str(message.hint)
    assert check(ormcache={"DATABASES": databases}, DATABASE_ROUTERS=[]) == []


def test_w014_warns_of_a_middleware_that_does_not_see_sessions(check: Check) -> None:
    sessions = "django.contrib.sessions.middleware.SessionMiddleware"
    pins = "ormcache.routers.ReadYourWritesMiddleware"
    message = the_only(check(MIDDLEWARE=[sessions, pins]))
    assert message.id == "ormcache.W014"
    assert "to the beginning" in str(message.hint)
    for middleware in ([pins, sessions], [pins], [sessions]):
        assert check(MIDDLEWARE=middleware) == []


def test_wrong_groups_are_reported_before_routers(
    check: Check, alias: Callable[..., None]
) -> None:
    databases = {"default": {"PRIMARY": "nobody"}}
    assert ids(check(ormcache={"DATABASES": databases}, DATABASE_ROUTERS=[ROUTER])) == ["E012"]


# --- manage.py check -------------------------------------------------------------------------


def test_manage_py_check_runs_them(check: Check) -> None:
    check(ormcache={"TIMEOUTS": 5})
    with pytest.raises(SystemCheckError, match=r"ormcache\.E001"):
        call_command("check", tags=["caches"])


def test_manage_py_check_shows_warnings_and_silences_them(
    check: Check, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check({"BACKEND": "django.core.cache.backends.locmem.LocMemCache"})
    call_command("check", tags=["caches"])
    assert "ormcache.W001" in capsys.readouterr().err
    settings.SILENCED_SYSTEM_CHECKS = ["ormcache.W001"]
    call_command("check", tags=["caches"])
    assert "W001" not in capsys.readouterr().err


def test_no_check_connects_to_a_database_or_a_cache(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*args: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # Drivers of databases have sockets of their own, or a file.
    monkeypatch.setattr(BaseDatabaseWrapper, "connect", refuse)
    connections.close_all()
    assert check() == []
    assert check(MEMCACHED) == []
