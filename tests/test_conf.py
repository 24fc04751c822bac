"""The ORMCACHE setting: defaults, types, and what is said of mistakes."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail.backends.locmem import EmailBackend
from django.test import override_settings
from django.test.utils import setup_test_environment, teardown_test_environment

from ormcache import conf
from ormcache.conf import DatabaseSettings, Inherited, ModelSettings, Settings
from ormcache.exceptions import SettingsError
from tests.marks import on_databases
from tests.models import Author
from tests.watching import Watch

DEFAULTS = {
    "ENABLED": True,
    "CACHE_ALIAS": "default",
    "TIMEOUT": 3600,
    "KEY_PREFIX": "",
    "NAMESPACE": None,
    "CONSISTENCY": "auto",
    "MODE": "serve",
    "VERIFY": 0,
    "AUDIT": 0,
    "ON_MISMATCH": Inherited.INHERITED,
    "LEASE": 10,
    "SOCKET_TIMEOUT": 1,
    "ON_CACHE_FAILURE": "fence",
    "FENCE": Inherited.INHERITED,
    "DATABASES": {},
    "MODELS": {},
    "CACHE_RANDOM": False,
    "CACHE_EXTRA": True,
    "DEPENDS_ON": {},
    "WRITES": {},
    "MAX_RESULT_BYTES": 1024 * 1024,
}

RIGHT: dict[str, list[Any]] = {
    "ENABLED": [True, False],
    "CACHE_ALIAS": ["other"],
    "TIMEOUT": [1, 0.5, None, 10**9],
    "KEY_PREFIX": ["", "my.site_1-x", "A" * 64],
    "NAMESPACE": [None, "a.b", repr],
    "CONSISTENCY": ["auto", "strict", "standard"],
    "MODE": ["serve", "shadow"],
    "VERIFY": [0, 0.001, 1, 1.0],
    "AUDIT": [0, 0.001, 1, 1.0],
    "ON_MISMATCH": ["log", "raise"],
    "LEASE": [0.5, 60],
    "SOCKET_TIMEOUT": [0.1, 5],
    "ON_CACHE_FAILURE": ["raise", "fence", "open"],
    "FENCE": [None, 0.5, 60],
    "DATABASES": [{}, {"default": {}}],
    "MODELS": [{}, {"tests.Book": {}}],
    "CACHE_RANDOM": [True, False],
    "CACHE_EXTRA": [True, False],
    "DEPENDS_ON": [{}, {"view": ["a", "b"]}, {"f": ("a",)}, {"f": {"a"}}, {"f": frozenset("a")}],
    "WRITES": [{}, {"trigger": []}],
    "MAX_RESULT_BYTES": [1, 10**9],
}
NO_NUMBER = ["1", None, True, 0, -1, 1e300, float("nan"), float("inf"), [], 1j]
WRONG: dict[str, list[Any]] = {
    "ENABLED": [1, 0, "yes", None, []],
    "CACHE_ALIAS": [None, 1, b"default"],
    "TIMEOUT": [value for value in NO_NUMBER if value is not None],
    "KEY_PREFIX": [None, 1, "a b", "a:b", "a{b}", "a\n", "é", "٣", "a" * 65],
    "NAMESPACE": [1, "", "nodots", ["a.b"], False],
    "CONSISTENCY": ["Strict", "", None, True, ["auto"]],
    "MODE": ["Shadow", "", None, True, "off"],
    "VERIFY": ["1", None, True, False, -0.1, 1.1, float("nan"), [], 1j],
    "AUDIT": ["1", None, True, False, -0.1, 1.1, float("nan"), [], 1j],
    "ON_MISMATCH": ["ignore", None, True, []],
    "LEASE": NO_NUMBER,
    "SOCKET_TIMEOUT": NO_NUMBER,
    "ON_CACHE_FAILURE": ["ignore", "Fence", None, True, []],
    "FENCE": [value for value in NO_NUMBER if value is not None],
    "DATABASES": [None, [], "default", {1: {}}],
    "MODELS": [None, [], "tests.Book", {None: {}}],
    "CACHE_RANDOM": [1, None],
    "CACHE_EXTRA": [1, None],
    "DEPENDS_ON": [None, [], {"view": "table"}, {"view": [1]}, {1: []}, {"view": None}],
    "WRITES": [None, [], {"trigger": "table"}, {"trigger": {"a": 1}}],
    "MAX_RESULT_BYTES": ["1", None, True, 0, -1, 1.5],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, values in table.items()
        for value in values
    ]


def test_each_option_has_a_documented_default() -> None:
    defaults = Settings()
    names = [field.name for field in dataclasses.fields(Settings)]
    assert {name: getattr(defaults, name) for name in names} == DEFAULTS


@pytest.mark.parametrize(
    "raw, interval, policy",
    [
        ({}, 1, "fence"),
        ({"FENCE": 5}, 5, "fence"),
        ({"FENCE": None}, None, "raise"),
        ({"FENCE": None, "ON_CACHE_FAILURE": "fence"}, None, "raise"),
        ({"ON_CACHE_FAILURE": "raise"}, None, "raise"),
        ({"ON_CACHE_FAILURE": "open"}, None, "open"),
        ({"ON_CACHE_FAILURE": "raise", "FENCE": 5}, 5, "raise"),
    ],
)
def test_the_policy_and_the_looks_into_the_fence_go_together(
    raw: Any, interval: float | None, policy: str
) -> None:
    settings, _ = conf.parse(raw)
    assert settings.fence_interval == interval
    assert settings.on_cache_failure == policy


@pytest.mark.parametrize("raw", [{}, {"ON_MISMATCH": "log"}, {"ON_MISMATCH": "raise"}], ids=str)
def test_a_difference_raises_in_tests_and_is_logged_elsewhere_unless_it_is_set(raw: Any) -> None:
    settings, _ = conf.parse(raw)
    assert settings.on_mismatch == raw.get("ON_MISMATCH", "raise")
    teardown_test_environment()
    try:
        assert settings.on_mismatch == raw.get("ON_MISMATCH", "log")
        # A server whose mails stay in memory is under no test.
        EmailBackend()
        assert hasattr(mail, "outbox")
        assert settings.on_mismatch == raw.get("ON_MISMATCH", "log")
        del mail.outbox
    finally:
        setup_test_environment()
    assert settings.on_mismatch == raw.get("ON_MISMATCH", "raise")


def test_to_know_that_it_runs_in_no_test_a_process_imports_nothing_of_tests() -> None:
    code = (
        "import sys; from ormcache.conf import Settings; print(Settings().on_mismatch); "
        "print('django.test' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["log", "False"]


def test_each_option_is_tried_here() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names == RIGHT.keys() == WRONG.keys()


@pytest.mark.parametrize("name, value", cases(RIGHT))
def test_a_right_value_is_taken(name: str, value: Any) -> None:
    settings, problems = conf.parse({name: value})
    assert problems == []
    if name not in ("DATABASES", "MODELS"):
        assert getattr(settings, name) == value


@pytest.mark.parametrize("name, value", cases(WRONG))
def test_a_wrong_value_is_reported_and_the_default_stays(name: str, value: Any) -> None:
    settings, (problem,) = conf.parse({name: value})
    assert problem.code == "E002"
    assert problem.message == f"ORMCACHE[{name!r}] is {value!r}."
    assert problem.hint.startswith("It must be ")
    assert getattr(settings, name) == DEFAULTS[name]


@pytest.mark.parametrize("raw", [None, {}], ids=repr)
def test_none_and_nothing_are_all_defaults(raw: Any) -> None:
    settings, problems = conf.parse(raw)
    assert problems == []
    assert dataclasses.asdict(settings) == DEFAULTS


@pytest.mark.parametrize("raw", [[], "on", True, 0, ("ENABLED",)], ids=repr)
def test_what_is_no_dict_is_one_problem(raw: Any) -> None:
    settings, (problem,) = conf.parse(raw)
    assert problem == ("E002", f"ORMCACHE is {raw!r}, not a dict.", "Make ORMCACHE a dict.")
    assert dataclasses.asdict(settings) == DEFAULTS


@pytest.mark.parametrize("name", ["enabled", "TIMEOUTS", "", 1, None], ids=repr)
def test_an_unknown_option_is_named_with_those_that_are_known(name: Any) -> None:
    _, (problem,) = conf.parse({name: 1})
    assert problem.code == "E001"
    assert problem.message == f"ORMCACHE has an unknown option {name!r}."
    assert problem.hint == "Known options: " + ", ".join(sorted(DEFAULTS)) + "."


def test_sections_hold_settings_of_their_own() -> None:
    settings, problems = conf.parse(
        {
            "DATABASES": {"default": {"ENABLED": False, "CACHE_ALIAS": "x", "TIMEOUT": None}},
            "MODELS": {"tests.*": {"TIMEOUT": 5}, "tests.Book": {"ENABLED": True}},
        }
    )
    assert problems == []
    database = settings.DATABASES["default"]
    assert (database.ENABLED, database.CACHE_ALIAS, database.TIMEOUT) == (False, "x", None)
    assert settings.MODELS["tests.*"].TIMEOUT == 5
    assert settings.MODELS["tests.*"].ENABLED is None
    assert settings.MODELS["tests.Book"].ENABLED is True
    assert settings.MODELS["tests.Book"].TIMEOUT is Inherited.INHERITED


def test_what_a_section_does_not_say_is_inherited() -> None:
    database, model = DatabaseSettings(), ModelSettings()
    assert (database.ENABLED, database.CACHE_ALIAS) == (True, None)
    assert database.TIMEOUT is Inherited.INHERITED
    assert (model.ENABLED, model.TIMEOUT) == (None, Inherited.INHERITED)


@pytest.mark.parametrize(
    "raw, where",
    [
        ({"DATABASES": {"default": None}}, "ORMCACHE['DATABASES']['default'] is None"),
        ({"DATABASES": {"a": {"LEASE": 1}}}, "ORMCACHE['DATABASES']['a'] has an unknown option"),
        ({"DATABASES": {"a": {"ENABLED": None}}}, "ORMCACHE['DATABASES']['a']['ENABLED'] is None"),
        ({"DATABASES": {"a": {"TIMEOUT": 0}}}, "ORMCACHE['DATABASES']['a']['TIMEOUT'] is 0"),
        ({"DATABASES": {"a": {"CACHE_ALIAS": 5}}}, "ORMCACHE['DATABASES']['a']['CACHE_ALIAS']"),
        ({"DATABASES": {"a": {"NAMESPACE": 5}}}, "ORMCACHE['DATABASES']['a']['NAMESPACE'] is 5"),
        ({"MODELS": {"tests.Book": True}}, "ORMCACHE['MODELS']['tests.Book'] is True"),
        (
            {"MODELS": {"tests.Book": {"ENABLED": 1}}},
            "ORMCACHE['MODELS']['tests.Book']['ENABLED']",
        ),
        ({"MODELS": {"a.*": {"CACHE_ALIAS": "x"}}}, "ORMCACHE['MODELS']['a.*'] has an unknown"),
        ({"MODELS": {"a.*": {"TIMEOUT": "1"}}}, "ORMCACHE['MODELS']['a.*']['TIMEOUT'] is '1'"),
    ],
)
def test_a_problem_inside_a_section_says_where_it_is(raw: Any, where: str) -> None:
    _, (problem,) = conf.parse(raw)
    assert problem.message.startswith(where)


def test_all_problems_are_reported_at_once() -> None:
    settings, problems = conf.parse(
        {"TIMEOUT": -1, "X": 1, "LEASE": 3, "MODELS": {"a.B": {"Y": 1, "ENABLED": False}}}
    )
    assert [problem.code for problem in problems] == ["E002", "E001", "E001"]
    # What is right is taken all the same.
    assert settings.LEASE == 3
    assert settings.MODELS["a.B"].ENABLED is False


def test_settings_can_not_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().ENABLED = False  # type: ignore[misc]


# --- the settings in force -------------------------------------------------------------------


def test_the_same_setting_gives_the_same_object() -> None:
    assert conf.current() is conf.current()


def test_a_setting_that_is_added_later_is_in_force_at_once() -> None:
    with override_settings():
        del django_settings.ORMCACHE
        for lease in (7, 8):
            assert conf.current().LEASE == conf.current().LEASE == 10
            django_settings.ORMCACHE = {"LEASE": lease}
            assert lease == conf.current().LEASE
            del django_settings.ORMCACHE
        with override_settings(ORMCACHE={"LEASE": 9}):
            assert conf.current().LEASE == 9
        assert conf.current().LEASE == 10


def test_override_settings_is_in_force_at_once_and_ends_at_once() -> None:
    before = conf.current().LEASE
    with override_settings(ORMCACHE={"LEASE": 7}):
        assert conf.current().LEASE == 7
        with override_settings(ORMCACHE={"LEASE": 8}):
            assert conf.current().LEASE == 8
        assert conf.current().LEASE == 7
    assert before == conf.current().LEASE


def test_a_setting_of_none_is_all_defaults_also_after_another() -> None:
    with override_settings(ORMCACHE=None):
        assert dataclasses.asdict(conf.current()) == DEFAULTS


def test_a_missing_setting_is_all_defaults_also_after_another() -> None:
    conf.current()
    with override_settings():
        del django_settings.ORMCACHE
        assert dataclasses.asdict(conf.current()) == DEFAULTS


def test_wrong_settings_raise_an_error_that_names_each_problem() -> None:
    with (
        override_settings(ORMCACHE={"TIMEOUT": "1h", "LEESE": 5}),
        pytest.raises(SettingsError) as raised,
    ):
        conf.current()
    assert isinstance(raised.value, ImproperlyConfigured)
    first, second = str(raised.value).splitlines()
    assert first == (
        "ORMCACHE['TIMEOUT'] is '1h'. It must be a number of seconds above 0, "
        "1,000,000,000 at most, or None for no expiry."
    )
    assert second.startswith("ORMCACHE has an unknown option 'LEESE'. Known options: AUDIT,")


def test_wrong_settings_are_reported_each_time() -> None:
    with override_settings(ORMCACHE={"TIMEOUT": "1h"}):
        for _ in range(2):
            with pytest.raises(SettingsError):
                conf.current()
    assert conf.current().TIMEOUT == 3600


@pytest.mark.parametrize("wrong", [{"ENABLED": "no"}, {"CACHE_ALIAS": "nonsense"}], ids=str)
@on_databases("default", transaction=True)
def test_wrong_settings_stop_reads_and_writes(using: str, wrong: dict[str, Any]) -> None:
    with override_settings(ORMCACHE=wrong):
        with pytest.raises(SettingsError):
            Author.objects.count()
        with pytest.raises(SettingsError):
            Author.objects.create(name="a")
    assert Author.objects.count() == 0


@on_databases("default", transaction=True)
def test_a_switch_takes_effect_between_two_reads(cached: Watch, settings: Any) -> None:
    cached.warm(Author.objects.count)
    on = settings.ORMCACHE
    settings.ORMCACHE = {**on, "ENABLED": False}
    with cached.expect("switched off"):
        Author.objects.count()
    settings.ORMCACHE = on
    cached.hit(Author.objects.count)
