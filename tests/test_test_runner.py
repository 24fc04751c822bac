"""Django's own test runner: what it makes, copies and keeps is never mistaken for another."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from tests import backdoor
from tests.aliases import alias_of
from tests.marks import needs, on_databases
from tests.settings import WORKER_SUFFIX

pytestmark = needs("redis")

Runner = Callable[..., str]


@pytest.fixture
def name(using: str, tmp_path: Any) -> str:
    if using == "default":
        return str(tmp_path / "discovered.sqlite3")
    return f"discovered{WORKER_SUFFIX}"


@pytest.fixture
def run(using: str, name: str) -> Iterator[Runner]:
    """Runs the tests of `tests.discovered` in a process of their own; their output."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.discovered.settings",
        "DISCOVERED_DATABASE": using,
        "DISCOVERED_NAME": name,
    }
    # A run of its own, not a part of this one.
    environment.pop("ORMCACHE_TEST_RUN", None)

    def run(*arguments: str, rows: str = "seed", **variables: str) -> str:
        command = [sys.executable, "-m", "django", "test", "tests.discovered"]
        done = subprocess.run(
            [*command, "--pattern", "cases.py", "--noinput", *arguments],
            env={**environment, **variables, "DISCOVERED_ROWS": rows},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "Ran 7 tests" in done.stderr
        return done.stderr

    yield run


@on_databases()
def test_each_clone_of_the_database_is_one_of_its_own(run: Runner, using: str) -> None:
    output = run("--parallel", "2", "--verbosity", "2")
    assert output.count("Cloning test database") == 2


@pytest.fixture
def kept(using: str, name: str) -> Iterator[str]:
    """The name of the database that the runner keeps."""
    if using == "default":
        yield name
        return
    yield f"test_{name}"
    with connections[using].cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS test_{name}")


@on_databases("default", "postgresql", transaction=True)
def test_a_database_that_was_kept_is_read_anew(run: Runner, using: str, kept: str) -> None:
    """What the first run has cached is of no use to the second, since nobody told of changes."""
    run("--keepdb", DISCOVERED_KEEPS="1")
    with alias_of(using, "kept", NAME=kept) as alias:
        backdoor.execute(
            alias,
            "DELETE FROM discovered_row",
            "INSERT INTO discovered_row (name) VALUES ('kept')",
        )
    output = run("--keepdb", "--verbosity", "2", rows="kept", DISCOVERED_KEEPS="1")
    assert "Using existing test database" in output
