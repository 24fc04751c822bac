"""The pytest plugin for projects that use ormcache, in the test runs of a small project."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SETTINGS = """
    import os
    SECRET_KEY = "x"
    INSTALLED_APPS = ["ormcache", "shop"]
    DATABASES = {{"default": {{
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "shop.sqlite3",
        "TEST": {{"NAME": "test-shop.sqlite3" + os.environ.get("PYTEST_XDIST_WORKER", "")}},
    }}}}
    CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.{cache}"}}}}
    ORMCACHE = {options}
    USE_TZ = True
"""
MODELS = """
    from django.db import models

    class Book(models.Model):
        title = models.CharField(max_length=100)

    class Tag(models.Model):
        name = models.CharField(max_length=100)
"""
BOOKSHOP = """
    from django.db import models

    class Author(models.Model):
        name = models.CharField(max_length=100)

    class Book(models.Model):
        title = models.CharField(max_length=100)
        author = models.ForeignKey(Author, on_delete=models.CASCADE)
        year = models.IntegerField()

    class Tag(models.Model):
        name = models.CharField(max_length=100)
"""
HEAD = """
    import pytest
    from django.conf import settings
    from django.db import connection
    from django.test import TestCase, TransactionTestCase, override_settings
    import ormcache
    from ormcache.exceptions import Mismatch
    from shop.models import Book, Tag

    committing = pytest.mark.django_db(transaction=True)

    def by_the_back_door(sql):
        cursor = connection.connection.cursor()
        cursor.execute(sql)
        cursor.close()

"""
# By its path: the installed package may be another checkout.
ORMCACHE = ("-p", "no:ormcache", "-p", "ormcache.pytest_plugin", "-p", "no:cacheprovider")
# Of the other plugins that are installed none is loaded: that takes longer than the tests.
PLUGINS = [*ORMCACHE, "-p", "pytest_django.plugin", "-p", "xdist.plugin"]
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs tests of the shop, in a process of their own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.delenv("ORMCACHE_TEST_RUN", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(
        tests: str,
        *arguments: str,
        ini: str = "",
        options: Any = None,
        cache: str = "locmem.LocMemCache",
        models: str = MODELS,
    ) -> pytest.RunResult:
        pytester.mkpydir("shop")
        pytester.makepyfile(
            **{
                "shop/models": models,
                "shop/settings": SETTINGS.format(options=options or {}, cache=cache),
                "test_shop": HEAD + tests,
            }
        )
        pytester.makeini(
            "[pytest]\nDJANGO_SETTINGS_MODULE = shop.settings\npythonpath = .\n"
            f"filterwarnings = error\n{ini}"
        )
        return pytester.runpytest_subprocess(*PLUGINS, *arguments)

    return run


def test_pytest_finds_the_plugin() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '[project.entry-points.pytest11]\normcache = "ormcache.pytest_plugin"\n' in project
    assert "-p no:ormcache" in (ROOT / "tox.ini").read_text("utf-8")


# --- modes -----------------------------------------------------------------------------------

OUTCOMES = """
    def outcomes():
        seen = []
        def note(outcome, reason, **kwargs):
            seen.append(outcome if reason is None else str(reason))
        ormcache.signals.query_read.connect(note)
        for _ in range(2):
            list(Book.objects.all())
        ormcache.signals.query_read.disconnect(note)
        return seen

    EXPECTED = {expected}

    @committing
    def test_function():
        assert outcomes() == EXPECTED

    class TransactionTests(TransactionTestCase):
        def test_method(self):
            assert outcomes() == EXPECTED

    @committing
    def test_settings_of_a_test_come_first(settings):
        settings.ORMCACHE = {{"ENABLED": True}}
        assert outcomes() == ["miss", "hit"]

    @override_settings(ORMCACHE={{}})
    class OverriddenTests(TransactionTestCase):
        def test_method(self):
            assert outcomes() == ["miss", "hit"]
"""


def outcomes(*expected: str) -> str:
    return OUTCOMES.format(expected=list(expected))


def test_in_tests_nothing_is_cached(run: Run) -> None:
    result = run(outcomes("switched off", "switched off"))
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["ormcache: off"])


def test_the_ini_option_leaves_it_switched_on(run: Run) -> None:
    run(outcomes("miss", "hit"), ini="ormcache = on").assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("arguments", "ini"), [(["--ormcache-verify"], ""), ([], "ormcache = verify")]
)
def test_when_verifying_the_database_answers(run: Run, arguments: list[str], ini: str) -> None:
    result = run(outcomes("miss", "shadow hit"), *arguments, ini=ini)
    result.assert_outcomes(passed=4)


def test_another_mode_is_an_error(run: Run) -> None:
    result = run("", ini="ormcache = of")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*option ormcache is 'of'; it must be one of off, on, verify."])


def test_a_project_without_ormcache_is_left_alone(run: Run, pytester: pytest.Pytester) -> None:
    tests = """
    def test_it():
        assert settings.ORMCACHE == {}
    """
    run(tests, ini="").assert_outcomes(failed=1)
    text = (pytester.path / "shop/settings.py").read_text()
    (pytester.path / "shop/settings.py").write_text(text.replace('"ormcache", ', ""))
    pytester.runpytest_subprocess(*PLUGINS).assert_outcomes(passed=1)


def test_tests_without_django_are_left_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    pytester.makepyfile("def test_it(): pass")
    for plugins in (PLUGINS, ORMCACHE):
        pytester.runpytest_subprocess(*plugins).assert_outcomes(passed=1)


# --- the fixture -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "on", "verify"])
@pytest.mark.parametrize("cache", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_the_fixture_caches_in_a_place_of_its_own(run: Run, mode: str, cache: str) -> None:
    tests = """
    @committing
    @pytest.mark.parametrize("time", [1, 2])
    def test_nothing_is_left_of_other_tests(orm_cache, time):
        with orm_cache.assert_misses(1), orm_cache.assert_hits(1):
            assert list(Book.objects.all()) == list(Book.objects.all()) == []

    @committing
    def test_a_write_invalidates(orm_cache):
        list(Book.objects.all())
        with orm_cache.assert_invalidates(Book) as record:
            Book.objects.create(title="a")
        assert record.invalidated == {"shop_book"}
        with orm_cache.assert_invalidates("shop.Book"), orm_cache.assert_invalidates("shop_book"):
            ormcache.flush()
        with orm_cache.assert_misses(1), orm_cache.assert_invalidates():
            list(Book.objects.all())
        with orm_cache.assert_hits() as record:
            list(Book.objects.all())
        (read,) = record.hits
        assert (read.tables, read.using, read.reason) == (("shop_book",), "default", None)

    @committing
    def test_other_settings_are_kept(orm_cache, settings):
        assert settings.ORMCACHE["TIMEOUT"] == 7
        assert settings.ORMCACHE["DATABASES"] == {"default": {"TIMEOUT": 9}}
        settings.CACHES = {"default": settings.CACHES["default"]}
        with orm_cache.assert_misses(1), orm_cache.assert_hits(1):
            assert list(Book.objects.all()) == list(Book.objects.all()) == []

    def test_after_it_all_is_as_before():
        assert settings.ORMCACHE.get("ENABLED") is EXPECTED
        assert settings.ORMCACHE["TIMEOUT"] == 7
    """
    expected = {"off": False, "on": None, "verify": True}[mode]
    options = {"TIMEOUT": 7, "DATABASES": {"default": {"TIMEOUT": 9, "CACHE_ALIAS": "default"}}}
    result = run(
        tests.replace("EXPECTED", repr(expected)),
        ini=f"ormcache = {mode}",
        options=options,
        cache=cache,
    )
    result.assert_outcomes(passed=5)


def test_the_first_sample_of_the_documentation_runs_with_the_models_of_the_quickstart(
    run: Run,
) -> None:
    page = (ROOT / "docs" / "howto" / "testing.md").read_text("utf-8")
    _, _, behind = page.partition("```python\n")
    sample, _, _ = behind.partition("```")
    assert "orm_cache" in sample
    result = run(textwrap.indent(sample, "    "), models=BOOKSHOP)
    result.assert_outcomes(passed=1)


def test_other_tests_are_told_of_what_a_test_with_the_fixture_has_written(run: Run) -> None:
    tests = """
    @pytest.fixture(scope="module", autouse=True)
    def rows(django_db_setup, django_db_blocker):
        with django_db_blocker.unblock():
            Book.objects.create(title="first")
            assert Book.objects.count() == Book.objects.count() == 1

    @committing
    def test_that_writes(orm_cache):
        assert Book.objects.count() == 1
        Book.objects.create(title="second")
        assert Book.objects.count() == 2

    @committing
    def test_that_comes_later():
        # Django has emptied the tables.
        assert Book.objects.count() == 0
    """
    run(tests, ini="ormcache = on").assert_outcomes(passed=2)


def test_what_is_expected_in_vain_fails_with_all_there_is_to_know(run: Run) -> None:
    tests = """
    @committing
    def test_hits(orm_cache):
        with orm_cache.assert_hits(2):
            list(Book.objects.all())

    @committing
    def test_all_hits(orm_cache):
        with orm_cache.assert_hits():
            list(Book.objects.all())
            list(Book.objects.all())

    @committing
    def test_any_hits(orm_cache):
        with orm_cache.assert_hits():
            pass

    @committing
    def test_misses(orm_cache):
        with orm_cache.assert_misses(0):
            list(Book.objects.order_by("?"))
            Book.objects.count()

    @committing
    def test_invalidates(orm_cache):
        with orm_cache.assert_invalidates(Book, Tag):
            Book.objects.create(title="a")

    @committing
    def test_invalidates_nothing(orm_cache):
        with orm_cache.assert_invalidates():
            Book.objects.create(title="a")

    @pytest.mark.django_db
    def test_in_a_transaction(orm_cache):
        with orm_cache.assert_hits():
            Book.objects.count()
    """
    result = run(tests)
    result.assert_outcomes(failed=7)
    for line in [
        "0 hits instead of 2:",
        "  miss: shop_book: SELECT *",
        "Not every read was a hit:",
        "  no reads",
        "1 misses instead of 0:",
        "  skip (random order): shop_book: SELECT *",
        "Not invalidated: shop_tag",
        "  invalidated: shop_book",
        "Something was invalidated:",
        "  skip (snapshot transaction): -: -",
        "  SQLite answers every read in a transaction itself: mark the test *transaction=True).",
    ]:
        result.stdout.fnmatch_lines([line])


def test_an_error_in_the_block_is_what_fails(run: Run) -> None:
    tests = """
    @committing
    def test_it(orm_cache):
        with orm_cache.assert_hits(2):
            raise ZeroDivisionError
    """
    run(tests).stdout.fnmatch_lines(["E*ZeroDivisionError"])


def test_a_model_that_an_app_does_not_have_is_an_error_and_no_table(run: Run) -> None:
    tests = """
    @committing
    def test_it(orm_cache):
        with pytest.raises(LookupError, match="Bok"), orm_cache.assert_invalidates("shop.Bok"):
            raise ZeroDivisionError
        with orm_cache.assert_invalidates("public.shop_book", "shop.book"):
            ormcache.flush()
    """
    run(tests).assert_outcomes(passed=1)


def test_the_fixture_wants_ormcache_installed(run: Run, pytester: pytest.Pytester) -> None:
    run("")
    text = (pytester.path / "shop/settings.py").read_text()
    (pytester.path / "shop/settings.py").write_text(text.replace('"ormcache", ', ""))
    pytester.makepyfile(test_shop="def test_it(orm_cache): pass")
    result = pytester.runpytest_subprocess(*PLUGINS)
    result.stdout.fnmatch_lines(['*"ormcache" is not in INSTALLED_APPS.'])


# --- verifying a suite -----------------------------------------------------------------------

SUITE = """
    def stale():
        Book.objects.create(title="right")
        Book.objects.get(title="right")
        by_the_back_door("UPDATE shop_book SET title = 'wrong'")
        with pytest.raises(Book.DoesNotExist):
            Book.objects.get(title="right")

    @committing
    def test_right(django_assert_num_queries):
        with django_assert_num_queries(3):
            for _ in range(3):
                assert Book.objects.count() == 0

    @committing
    def test_wrong():
        stale()

    @committing
    def test_wrong_and_caught():
        with pytest.raises(Mismatch):
            stale()

    @committing
    def test_right_after_it():
        for _ in range(3):
            assert Book.objects.count() == 0

    class Tests(TransactionTestCase):
        @override_settings(CACHES={"default": settings.CACHES["default"]})
        def test_other_caches(self):
            for _ in range(3):
                self.assertEqual(Book.objects.count(), 0)
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=str)
def test_differences_fail_tests_and_are_counted(run: Run, arguments: list[str]) -> None:
    result = run(SUITE, "--ormcache-verify", *arguments, cache="dummy.DummyCache")
    result.assert_outcomes(passed=3, failed=2)
    output = result.stdout.str()
    assert re.search(r"= ormcache =", output)
    # Two of each test that is right, and one of each that is wrong.
    assert "8 reads could have been answered from the cache, 2 of them wrongly.\n" in output
    result.stdout.fnmatch_lines(["E*Mismatch: The cache and the database 'default' disagree: *"])
    result.stdout.fnmatch_lines(["default: shop_book: SELECT *"])
    for name in ("test_wrong", "test_wrong_and_caught"):
        assert f"FAILED test_shop.py::{name} " in output


CAUGHT = """
    def stale():
        Book.objects.create(title="right")
        Book.objects.get(title="right")
        by_the_back_door("UPDATE shop_book SET title = 'wrong'")
        try:
            Book.objects.get(title="right")
        except (Mismatch, Book.DoesNotExist):
            pass
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=str)
def test_a_difference_in_a_fixture_is_an_error_also_if_somebody_catches_it(
    run: Run, arguments: list[str]
) -> None:
    tests = """
    @pytest.fixture
    def before(transactional_db):
        stale()

    def test_before(before):
        pass

    def test_that_is_right():
        pass

    @pytest.fixture
    def after(transactional_db):
        yield
        stale()

    def test_after(after):
        pass
    """
    result = run(CAUGHT + tests, "--ormcache-verify", *arguments)
    result.assert_outcomes(passed=2, errors=2)
    output = result.stdout.str()
    assert "ERROR test_shop.py::test_before " in output
    assert "ERROR test_shop.py::test_after " in output
    assert "2 reads could have been answered from the cache, 2 of them wrongly.\n" in output


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=str)
def test_a_difference_fails_the_run_if_it_fails_no_test(run: Run, arguments: list[str]) -> None:
    tests = """
    @pytest.mark.xfail
    @committing
    def test_it():
        stale()
    """
    result = run(CAUGHT + tests, "--ormcache-verify", *arguments)
    result.assert_outcomes(xfailed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_without_differences_succeeds_when_verifying(run: Run) -> None:
    tests = """
    @committing
    def test_it():
        assert Book.objects.count() == Book.objects.count()
    """
    assert run(tests, "--ormcache-verify").ret == pytest.ExitCode.OK


def test_hits_of_the_fixture_are_compared_when_verifying(run: Run) -> None:
    tests = """
    @committing
    def test_that_is_wrong(orm_cache):
        stale()

    @committing
    def test_that_is_right(orm_cache, django_assert_num_queries):
        with django_assert_num_queries(1), orm_cache.assert_misses(1), orm_cache.assert_hits(1):
            assert Book.objects.count() == Book.objects.count()
    """
    result = run(CAUGHT + tests, "--ormcache-verify")
    result.assert_outcomes(passed=1, failed=1)
    output = result.stdout.str()
    assert "FAILED test_shop.py::test_that_is_wrong " in output
    assert "2 reads could have been answered from the cache, 1 of them wrongly.\n" in output


def test_with_a_setting_that_verifies_a_difference_fails_a_test_by_itself(run: Run) -> None:
    tests = """
    @committing
    def test_it():
        Book.objects.create(title="right")
        Book.objects.get(title="right")
        by_the_back_door("UPDATE shop_book SET title = 'wrong'")
        Book.objects.get(title="right")
    """
    result = run(tests, ini="ormcache = on", options={"VERIFY": 1})
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*Mismatch: The cache and the database 'default' disagree: *"])


def test_without_verifying_the_same_tests_pass_and_nothing_is_summed_up(run: Run) -> None:
    result = run(SUITE)
    # Nobody raises a Mismatch.
    result.assert_outcomes(passed=4, failed=1)
    assert "could have been answered" not in result.stdout.str()


UNDETERMINED = """
    @committing
    def test_it():
        Book.objects.bulk_create([Book(title="a"), Book(title="b")])
        for _ in range(2):
            list(Book.objects.all()[:1])
            by_the_back_door("DELETE FROM shop_book WHERE title = 'a'")
"""
"""Whose hit proves nothing: it is some row, in no order."""


def test_what_proves_nothing_is_counted(run: Run) -> None:
    result = run(UNDETERMINED, "--ormcache-verify")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["unverified: result not determined: 1 (counted for each table)"])


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=str)
def test_a_suite_of_which_nothing_was_verified_says_so_and_why(
    run: Run, arguments: list[str]
) -> None:
    tests = """
    class Tests(TestCase):
        def test_in_a_transaction(self):
            for _ in range(7):
                Book.objects.count()

    @committing
    def test_other_reads():
        Book.objects.count()
        for _ in range(2):
            list(Book.objects.iterator())
    """
    result = run(tests, "--ormcache-verify", *arguments)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "=* ormcache =*",
            "Nothing was verified: 0 reads could have been answered from the cache.",
            "1 reads found no answer in the cache.",
            # Django has read, too, when it made the database.
            "* reads were not cached: snapshot transaction 7, iterator() 2*",
        ],
        consecutive=True,
    )
    assert "wrongly" not in result.stdout.str()


def test_hits_that_prove_nothing_are_not_verified(run: Run) -> None:
    output = run(UNDETERMINED, "--ormcache-verify").stdout.str()
    assert "Nothing was verified: 1 reads could have been answered from the cache.\n" in output


def test_what_was_not_cached_is_told_beside_what_was_verified(run: Run) -> None:
    tests = """
    @committing
    def test_it():
        for _ in range(3):
            Book.objects.count()
        list(Book.objects.iterator())
    """
    result = run(tests, "--ormcache-verify")
    result.stdout.fnmatch_lines(
        [
            "2 reads could have been answered from the cache, 0 of them wrongly.",
            "* reads were not cached: *iterator() 1*",
        ],
        consecutive=True,
    )


def test_verifying_a_project_without_ormcache_says_so(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("")
    text = (pytester.path / "shop/settings.py").read_text()
    (pytester.path / "shop/settings.py").write_text(text.replace('"ormcache", ', ""))
    pytester.makepyfile(test_shop="def test_it(): pass")
    said = 'Nothing was verified: "ormcache" is not in the INSTALLED_APPS of this run.'
    pytester.runpytest_subprocess(*PLUGINS, "--ormcache-verify").stdout.fnmatch_lines([said])
    # Nor is there Django in this one.
    pytester.makeini("")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    pytester.runpytest_subprocess(*ORMCACHE, "--ormcache-verify").stdout.fnmatch_lines([said])
