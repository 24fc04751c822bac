import ast
import json
from pathlib import Path
from typing import Any

import django
import pytest

from tests import hooked_functions
from tests.hooked_functions import changes, digest, digest_of, functions, report, write


def of(text: str) -> str:
    """The digest of the definition in `text`."""
    return digest_of(ast.parse(text).body[0])


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The records, in a file of the test's own."""
    file = tmp_path / "records.json"
    file.write_text(hooked_functions.RECORDS.read_text())
    monkeypatch.setattr(hooked_functions, "RECORDS", file)
    return file


# --- the alarm -----------------------------------------------------------------------------


def test_nothing_that_ormcache_hooks_or_knows_has_changed_in_django() -> None:
    assert not report(), report()


@pytest.mark.parametrize("version", ["5.2", "6.0", "6.1"])
def test_somebody_has_looked_at_each_supported_version(version: str) -> None:
    record = hooked_functions.records()[version]
    assert record["version"].startswith(version)
    assert set(record["digests"]) == {function.path for function in functions()}


def test_no_name_is_misspelt() -> None:
    """What is in no version of Django would never sound the alarm."""
    found = [record["digests"] for record in hooked_functions.records().values()]
    paths = [function.path for function in functions()]
    assert [path for path in paths if not any(digests[path] for digests in found)] == []


def test_what_is_hooked_is_among_it() -> None:
    hooked = {f.path for f in functions() if "ormcache/patches.py" in f.users}
    assert "django.db.models.sql.compiler.SQLCompiler.execute_sql" in hooked
    assert "django.contrib.contenttypes.fields.create_generic_related_manager" in hooked
    assert "django.db.backends.utils.CursorWrapper.__getattr__" in hooked


def test_the_parts_of_ormcache_that_are_named_exist() -> None:
    package = Path(hooked_functions.__file__).parent.parent / "ormcache"
    for part in hooked_functions.RELIED_ON:
        assert (package / f"{part}.py").exists() or (package / part).is_dir()


# --- what it says --------------------------------------------------------------------------


def test_it_names_what_changed_and_what_to_do(written: Path) -> None:
    known = json.loads(written.read_text())
    record = known[hooked_functions.minor()]
    record["version"] = "1.2.3"
    digests = record["digests"]
    digests["django.db.transaction.Atomic.__exit__"] = "another"
    digests["django.db.transaction.rollback"] = None
    del digests["django.db.transaction.commit"]
    written.write_text(json.dumps(known))
    lines = report().splitlines()
    assert lines[:4] == [
        f"Django {django.__version__} is not what was looked at (1.2.3):",
        "  django.db.transaction.Atomic.__exit__ has changed (see ormcache/transactions)",
        "  django.db.transaction.commit was never looked at (see ormcache/transactions)",
        "  django.db.transaction.rollback is new (see ormcache/transactions)",
    ]
    assert "--write" in lines[-1]


def test_it_says_what_is_gone() -> None:
    now: dict[str, Any] = hooked_functions.current()
    then = {**now}
    now["django.db.transaction.commit"] = None
    (change,) = changes(then, now)
    assert str(change).startswith("django.db.transaction.commit is gone")


def test_a_version_that_nobody_has_looked_at_is_an_alarm(written: Path) -> None:
    written.write_text("{}")
    assert report().startswith(f"Nobody has looked at Django {hooked_functions.minor()} yet.")


@pytest.mark.parametrize(
    ("known", "nearest"),
    [
        (["1.9", "1.10", "99.0", "100.0"], "1.10"),
        (["1.9", "2.0"], "2.0"),
        (["99.0", "100.0"], "99.0"),
    ],
    ids=["between", "newer than all", "older than all"],
)
def test_of_a_version_that_nobody_has_looked_at_it_names_what_differs_from_the_nearest(
    written: Path, known: list[str], nearest: str
) -> None:
    digests = hooked_functions.current()
    others = dict.fromkeys(digests)
    changed = {**digests, "django.db.transaction.Atomic.__exit__": "another"}
    records = {
        minor: {"version": f"{minor}.3", "digests": changed if minor == nearest else others}
        for minor in known
    }
    written.write_text(json.dumps(records))
    lines = report().splitlines()
    assert lines[0].startswith(f"Nobody has looked at Django {hooked_functions.minor()} yet.")
    assert lines[1:3] == [
        f"1 of them differ from those of Django {nearest}.3:",
        "  django.db.transaction.Atomic.__exit__ has changed (see ormcache/transactions)",
    ]
    assert "--write" in lines[-1]


def test_a_new_version_in_which_nothing_differs_is_an_alarm_all_the_same(written: Path) -> None:
    record = {"version": "1.9.3", "digests": hooked_functions.current()}
    written.write_text(json.dumps({"1.9": record}))
    assert "None of them differ from those of Django 1.9.3." in report().splitlines()


def test_it_is_silent_when_somebody_has_looked(written: Path) -> None:
    written.write_text("{}")
    write()
    assert report() == ""


# --- digests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        "def f(a):\n    # why\n    return a + 1",
        'def f(a):\n    """What."""\n    return a + 1',
        "def f(\n    a,\n):\n    return (a + 1)",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same: str) -> None:
    assert of(same) == of("def f(a):\n    return a + 1")


@pytest.mark.parametrize(
    "other",
    [
        "def f(a):\n    return a + 2",
        "def f(a):\n    return 1 + a",
        "def f(a, b=None):\n    return a + 1",
        "async def f(a):\n    return a + 1",
        "@staticmethod\ndef f(a):\n    return a + 1",
    ],
)
def test_everything_else_does(other: str) -> None:
    assert of(other) != of("def f(a):\n    return a + 1")


def test_a_class_is_what_it_assigns_and_inherits() -> None:
    plain = of("class A(B):\n    x = 1")
    assert of("class A(B):\n    x = 1\n    def f(self): pass") == plain
    assert of("class A(B):\n    x = 2") != plain
    assert of("class A(C):\n    x = 1") != plain


def test_a_definition_is_found_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "__init__.py").write_text("if True:\n    def f(): return 1\n")
    (tmp_path / "db" / "base.py").write_text("class A:\n    class B:\n        def f(self): 1\n")
    assert digest("django.db.f", tmp_path) == of("def f(): return 1")
    assert digest("django.db.base.A.B.f", tmp_path) == of("def f(self): 1")
    assert digest("django.db.base.A.g", tmp_path) is None
    assert digest("django.db.other.f", tmp_path) is None


@pytest.mark.parametrize("is_written", [False, True])
def test_the_command_writes_only_when_told_to(
    written: Path, is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.write_text("{}")
    monkeypatch.setattr("sys.argv", ["hooked_functions", *["--write"] * is_written])
    assert hooked_functions.main() == (0 if is_written else 1)
    assert bool(json.loads(written.read_text())) == is_written
